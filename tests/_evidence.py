"""Where the samples of real evidence lie: CONCLAVE_EVIDENCE, or ../shared/evidence."""

from __future__ import annotations

import os
from pathlib import Path

ABSENT = "no samples of evidence: set CONCLAVE_EVIDENCE to their folder"


def evidence_dir() -> Path | None:
    """The folder, or None where it is absent."""
    named = os.environ.get("CONCLAVE_EVIDENCE")
    place = Path(named) if named else Path(__file__).parents[2] / "shared" / "evidence"
    return place if (place / "README.md").is_file() else None


def samples(kind: str) -> list[Path]:
    """The samples of a kind; none where the folder is absent."""
    place = evidence_dir()
    return sorted(p.parent for p in (place / kind).glob("*/meta.json")) if place else []
