"""Where the command line keeps things, after the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path


def state_directory() -> Path:
    """Per-user state of this program."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "conclave"


def platform_directory(given: Path | None) -> Path:
    """The simulated machine: the given directory, or the user's own."""
    return given or state_directory() / "platform"


def outbox_store(code: bytes) -> str:
    """Where a served bundle's posted mail is kept, unless told otherwise: one place for each program.

    Raises:
        OSError: the folder of these places cannot be made.
    """
    stores = state_directory() / "stores"
    stores.mkdir(parents=True, exist_ok=True, mode=0o700)
    return f"file:{stores / code.hex()[:32]}"


def endorsements_directory(given: Path | None) -> Path:
    """Vendors' documents: the given directory, or the user's own. State: an import cannot be fetched again."""
    return given or state_directory() / "endorsements"
