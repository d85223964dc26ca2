"""What stores on a local file system share.

Runs in the untrusted host.

Spec: spec/stores.md section 3.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import BinaryIO, Final

from conclave.errors import StoreFull, StoreUnavailable

IN_USE: Final = "another host uses this store; give each host its own"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def unusable(path: Path, error: OSError) -> StoreUnavailable:
    """Why a store cannot be opened there, or made."""
    if isinstance(error, FileNotFoundError):
        # A folder that is made of what was mistyped, or where a disk is not mounted, would take mail in silence.
        return StoreUnavailable(f"no such folder: {path.parent}; make it first")
    if isinstance(error, FileExistsError):
        return StoreUnavailable(f"{path} is a file, and a directory is needed; name one that is there, or a new one")
    return StoreUnavailable(f"cannot use {path} as a store: {error.strerror}")


def told(error: Exception) -> Exception:
    """What a refusal of the system is to us; anything else is itself."""
    if not isinstance(error, OSError):
        return error
    if error.errno in _FULL:
        return StoreFull(f"the store's file system has no room: {error.strerror}")
    return StoreUnavailable(f"the store's file system refuses: {error.strerror}")


def open_lock(path: Path) -> BinaryIO:
    """A file that is there to be locked. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


def try_lock(lock: BinaryIO) -> bool:
    """Lock it until it is closed, or its process ends. False: another holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold(path: Path) -> BinaryIO:
    """Keep every other holder out until the file that is returned is closed, or this process ends.

    Raises:
        StoreUnavailable: there is one.
        OSError: the file cannot be made.
    """
    lock = open_lock(path)
    if not try_lock(lock):
        lock.close()
        raise StoreUnavailable(IN_USE)
    return lock


def sync_directory(directory: Path) -> None:
    """Make the directory's entries durable, not only what is in its files."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
