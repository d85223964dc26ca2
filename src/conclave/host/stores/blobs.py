"""What every blob store is: five operations on named bytes, and the names they take.

Runs in the untrusted host.

Spec: spec/stores.md sections 1 and 2.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

MAX_NAME: Final = 200
MAX_BLOB: Final = 32 * 1024 * 1024
_LETTERS: Final = re.compile(r"[a-z0-9._/-]*")


class BlobStore(Protocol):
    """Named bytes that stay. Handles of one store, in any process, see one history of each blob.

    Every operation ends within a time-out, and raises `StoreUnavailable` then.
    """

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """Write a blob whole; it is durable when this returns.

        Args:
            name: 1 to 200 of `a-z 0-9 - _ . /`, see spec/stores.md section 2.
            data: at most `MAX_BLOB` bytes.
            expected: the etag that the blob must still have; "" if it must not exist; None: write whatever there is.

        Returns:
            The blob's new etag. Other contents have another one; equal contents may have the same.

        Raises:
            StoreConflict: the blob is not as expected, and is as it was.
            StoreFull: no room, and the blob is as it was.
            StoreUnavailable: the blob is as it was, or as it was to be.
        """

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """Contents and etag; None if there is no such blob. Raises StoreUnavailable."""

    async def list(self, prefix: str) -> list[str]:
        """Names that begin with `prefix` ("": all), in order of their bytes. Raises StoreUnavailable."""

    async def delete(self, name: str) -> None:
        """Remove a blob for good, if it is there. Raises StoreUnavailable."""

    async def close(self) -> None:
        """Let go of files and connections; the store can no longer be used."""


def is_name(text: str) -> bool:
    """Whether a blob can have this name."""
    return 0 < len(text) <= MAX_NAME and is_prefix(text) and not {"", ".", ".."} & set(text.split("/"))


def is_prefix(text: str) -> bool:
    """Whether names can begin so."""
    return len(text) <= MAX_NAME and _LETTERS.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Raise ValueError unless a blob can have this name."""
    if not is_name(name):
        raise ValueError("a blob's name has 1 to 200 of `a-z 0-9 - _ . /`, and no part that is empty, `.` or `..`")


def check_put(name: str, data: bytes) -> None:
    """Raise ValueError unless this can be written."""
    check_name(name)
    if len(data) > MAX_BLOB:
        raise ValueError(f"a blob has at most {MAX_BLOB} bytes")


def check_prefix(prefix: str) -> None:
    """Raise ValueError unless names can begin so."""
    if not is_prefix(prefix):
        raise ValueError("a prefix has at most 200 of `a-z 0-9 - _ . /`")
