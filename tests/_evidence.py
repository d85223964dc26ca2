"""Where the captured evidence of real hardware is, which is no part of this repository."""

from __future__ import annotations

import os
from pathlib import Path

ABSENT = "captured evidence of real processors is not here (CONCLAVE_EVIDENCE, or ../shared/evidence)"


def evidence_dir() -> Path | None:
    """The folder with `sgx`, `tdx`, `snp`, `nitro`, `roots`; None if this machine has none."""
    named = os.environ.get("CONCLAVE_EVIDENCE")
    place = Path(named) if named else Path(__file__).parents[2] / "shared" / "evidence"
    return place if place.is_dir() else None


def samples(kind: str) -> list[Path]:
    """The samples of a kind; none where the folder is absent."""
    place = evidence_dir()
    return sorted(p.parent for p in (place / kind).glob("*/meta.json")) if place else []
