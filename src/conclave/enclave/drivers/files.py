"""Files through which a kernel or library OS answers: opened, used once and closed.

Runs inside the enclave. Tests put an imitation in place of `Folder`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from conclave.errors import PlatformError


class Files(Protocol):
    """A directory whose files are not stored but answered. All raise OSError as the kernel does."""

    def mkdir(self, path: str) -> None:
        """Make an entry; who answers puts files into it."""

    def rmdir(self, path: str) -> None:
        """Take an entry away, files and all."""

    def read(self, path: str, most: int) -> bytes:
        """Open, read to the end, close. PlatformError: there are more than `most` bytes."""

    def write(self, path: str, data: bytes) -> None:
        """Open, write once, close: some values are taken at the write, others at the close."""


class Folder:
    """`Files` that are really there."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def mkdir(self, path: str) -> None:
        """See `Files`."""
        os.mkdir(self._place / path)

    def rmdir(self, path: str) -> None:
        """See `Files`."""
        os.rmdir(self._place / path)

    def read(self, path: str, most: int) -> bytes:
        """See `Files`."""
        data = b""
        descriptor = os.open(self._place / path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while len(data) <= most and (more := os.read(descriptor, most + 1 - len(data))):
                data += more
        finally:
            os.close(descriptor)
        if len(data) > most:
            raise PlatformError(f"{os.path.basename(path)} has more than {most} bytes")
        return data

    def write(self, path: str, data: bytes) -> None:
        """See `Files`."""
        descriptor = os.open(self._place / path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(descriptor, data)
        finally:
            os.close(descriptor)
        if written != len(data):
            raise OSError(errno.EIO, f"{written} of {len(data)} bytes were taken")
