"""Vendors' documents on disk: written whole or not at all, never served damaged.

Untrusted. Several processes may share the directory. A file that is cut short,
altered or not ours is removed with a warning, as if it had never been there.

Spec: spec/endorsements.md section 6.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import math
import os
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from conclave import _codec
from conclave.errors import FormatError, PlatformError
from conclave.host.endorsements.documents import Document, Wanted, parse_name, read_document
from conclave.host.endorsements.schedule import Trouble

MAX_DOCUMENTS: Final = 1024
_MAX_FILE: Final = 262144
_DIGEST: Final = 32
_LOCK_SECONDS: Final = 30.0
_STALE_SECONDS: Final = 3600.0
_DOCUMENT: Final = ".document"
_TROUBLE: Final = ".trouble"


class _Entry(_codec.Record, frozen=True):
    version: int
    name: str
    fetched: int
    body: bytes
    chain: bytes


class _Trouble(_codec.Record, frozen=True):
    version: int
    failures: int
    until_ms: int
    missing: bool
    code: str


def read_regular(path: Path, size: int) -> bytes:
    """Up to so many bytes of an ordinary file; links are not followed, pipes not waited for. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", str(path))
    with os.fdopen(descriptor, "rb") as file:
        return file.read(size)


class Cache:
    """One directory of documents, and of the trouble there was in getting them."""

    def __init__(self, directory: Path, *, warn: Callable[[str], None]) -> None:
        """Makes the directory. Raises PlatformError if that is not possible."""
        self._directory = directory
        self._warn = warn
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            (directory / "locks").mkdir(exist_ok=True, mode=0o700)
            self._sweep()
        except OSError as error:
            raise PlatformError(
                f"cannot use {directory} as a cache of endorsements: {error.strerror}", code="cache-unusable"
            ) from None

    def _sweep(self) -> None:
        """Remove what writers left that were interrupted."""
        for path in self._directory.glob(".new-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()

    def load(self, wanted: Wanted) -> Document | None:
        """The document as it was stored, or None."""
        return self._read(self._directory / (wanted.name + _DOCUMENT))

    def _read(self, path: Path) -> Document | None:
        data = self._contents(path)
        if data is None:
            return None
        try:
            entry = _codec.decode(_Entry, data, max_size=_MAX_FILE, what="cache entry")
            if entry.version != 1 or entry.name + _DOCUMENT != path.name:
                raise FormatError
            fetched = datetime.fromtimestamp(entry.fetched, UTC)
            return read_document(parse_name(entry.name), entry.body, entry.chain, fetched=fetched)
        except (FormatError, ValueError, OverflowError, OSError):
            self._discard(path)
            return None

    def _contents(self, path: Path) -> bytes | None:
        """What follows a right digest."""
        try:
            data = read_regular(path, _MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(f"cannot read {path.name} in the cache of endorsements: {error.strerror}")
            return None
        if len(data) > _MAX_FILE or hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            self._discard(path)
            return None
        return data[_DIGEST:]

    def _discard(self, path: Path) -> None:
        self._warn(f"{path.name} in the cache of endorsements is damaged; it is removed")
        with suppress(OSError):
            path.unlink()

    def documents(self) -> Iterator[Document]:
        """Everything that is stored, by name."""
        for path in sorted(self._directory.glob(f"*{_DOCUMENT}")):
            found = self._read(path)
            if found is not None:
                yield found

    def store(self, *documents: Document) -> None:
        """Write documents: all are on disk before the first takes its place.

        Raises:
            OSError: nothing was replaced, or (between two renames) some were.
        """
        staged: list[tuple[str, Path]] = []
        try:
            for document in documents:
                entry = _Entry(
                    version=1,
                    name=document.wanted.name,
                    fetched=int(document.fetched.timestamp()),
                    body=document.body,
                    chain=document.chain,
                )
                staged.append((self._stage(_codec.encode(entry)), self._place(document.wanted.name)))
            for temporary, place in staged:
                os.replace(temporary, place)
        finally:
            for temporary, _ in staged:
                with suppress(OSError):
                    os.unlink(temporary)
        self._thin(_DOCUMENT)

    def _place(self, name: str) -> Path:
        return self._directory / (name + _DOCUMENT)

    def _stage(self, data: bytes) -> str:
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=self._directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        return temporary

    def _thin(self, ending: str) -> None:
        """Keep the cache within its bounds: what was written longest ago goes first."""
        with suppress(OSError):
            paths = list(self._directory.glob(f"*{ending}"))
            if len(paths) > MAX_DOCUMENTS:
                for path in sorted(paths, key=lambda p: p.stat().st_mtime)[: len(paths) - MAX_DOCUMENTS]:
                    path.unlink(missing_ok=True)
                    (self._directory / "locks" / path.name.removesuffix(ending)).unlink(missing_ok=True)

    def trouble(self, name: str) -> Trouble | None:
        """What went wrong with a document, or with a whole service."""
        data = self._contents(self._directory / (name + _TROUBLE))
        if data is None:
            return None
        try:
            found = _codec.decode(_Trouble, data, max_size=_MAX_FILE, what="cache entry")
            return Trouble(
                found.failures, datetime.fromtimestamp(found.until_ms / 1000, UTC), found.missing, found.code
            )
        except (FormatError, ValueError, OverflowError, OSError):
            self._discard(self._directory / (name + _TROUBLE))
            return None

    def store_trouble(self, name: str, trouble: Trouble | None) -> None:
        """Remember it, or that it is over. Raises OSError."""
        path = self._directory / (name + _TROUBLE)
        if trouble is None:
            path.unlink(missing_ok=True)
            return
        entry = _Trouble(
            version=1,
            failures=trouble.failures,
            until_ms=math.ceil(trouble.until.timestamp() * 1000),
            missing=trouble.missing,
            code=trouble.code,
        )
        os.replace(self._stage(_codec.encode(entry)), path)
        self._thin(_TROUBLE)

    @asynccontextmanager
    async def exclusive(self, name: str) -> AsyncIterator[None]:
        """One process at a time asks for a document.

        The lock spares the vendor requests and protects nothing: where it cannot be had,
        or not within 30 seconds, the block runs all the same.
        """
        try:
            descriptor = os.open(self._directory / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield
            return
        try:
            end = time.monotonic() + _LOCK_SECONDS
            pause = 0.01
            while time.monotonic() < end:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 0.25)
            yield
        finally:
            os.close(descriptor)
