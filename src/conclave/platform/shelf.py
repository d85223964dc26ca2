"""Directories that are made once and kept for the next start: trees, unpacked bundles.

Runs in the simulated platform. A process holds what it runs; what nobody holds goes
when newer ones need the room.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

KEPT: Final = 4


def hold(place: Path) -> None:
    """Keep a directory as long as this process lives, and note that it was used."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with contextlib.suppress(OSError):
        os.utime(place)


def remove_unless_held(place: Path) -> None:
    """Remove a directory that no living process holds."""
    with contextlib.suppress(OSError):
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)
        finally:
            os.close(descriptor)


def prune(shelf: Path, pattern: str = "[!.]*") -> None:
    """Remove all but the directories that were used last."""
    with contextlib.suppress(OSError):
        places = sorted(shelf.glob(pattern), key=lambda p: p.stat().st_mtime, reverse=True)
        for place in places[KEPT:]:
            remove_unless_held(place)
