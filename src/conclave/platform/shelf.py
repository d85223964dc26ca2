"""Directories that are made once and kept for the next start: trees, unpacked bundles.

Runs in the simulated platform. A process holds what it runs; what nobody holds goes
when newer ones need the room. Processes that know nothing of each other share a shelf,
also those of other releases.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from conclave.errors import PlatformError

KEPT: Final = 4
# What was used just now stays, however many are newer: somebody may be about to hold it.
RECENT_SECONDS: Final = 600.0
# What is hidden is half made or half removed; this old, whoever did that is gone.
_ABANDONED_SECONDS: Final = 24 * 3600.0
_ATTEMPTS: Final = 10


def hold(place: Path, make: Callable[[Path], None], *, content: str = "") -> int:
    """Keep the directory at `place` from being removed, made if there is none, and note that it was used.

    Until it is locked another process may remove it at any moment. So it is locked
    first, then must be what lies at that place, and otherwise is made again.

    Args:
        make: brings it there as a whole, and leaves alone what another process has brought meanwhile.
        content: what must lie in it; a directory without that is replaced.

    Returns:
        A descriptor: it is held until that is closed, or this process ends.

    Raises:
        PlatformError: others removed it each time.
        OSError: it cannot be made or opened.
    """
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            make(place)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _lies_at(descriptor, place) and (place / content).exists():
                with contextlib.suppress(OSError):
                    os.utime(place)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if place.exists() and not (place / content).exists():
            remove_unless_held(place)
    raise PlatformError(f"{place} is removed by another process whenever it is made; is its folder being emptied?")


def _lies_at(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(place))
    except FileNotFoundError:
        return False


def remove_unless_held(place: Path) -> None:
    """Remove a directory that no living process holds."""
    with contextlib.suppress(OSError):
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Moved away in one step: nobody ever finds half of it, and who waits for the lock sees that it is gone.
            gone = place.with_name(f".gone-{secrets.token_hex(8)}")
            if _lies_at(descriptor, place):
                place.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
        finally:
            os.close(descriptor)


def prune(shelf: Path, pattern: str = "[!.]*") -> None:
    """Remove all but the directories that were used last, or just now."""
    now = time.time()
    with contextlib.suppress(OSError):
        used = sorted(((p.stat().st_mtime, p) for p in shelf.glob(pattern)), reverse=True)
        for when, place in used[KEPT:]:
            if now - when > RECENT_SECONDS:
                remove_unless_held(place)
        for hidden in shelf.glob(".*"):
            if now - hidden.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(hidden, ignore_errors=True)
