"""A blob store in one directory of an ordinary file system.

Runs in the untrusted host. One writer at a time, by a lock that ends with its
process: a killed writer leaves at most the one file that the next writer empties.

Spec: spec/stores.md (STORE-8).
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from conclave.errors import StoreConflict
from conclave.host.stores.blobs import check_name, check_prefix, check_put, is_name
from conclave.host.stores.local import hold, open_lock, sync_directory, told, try_lock, unusable
from conclave.host.stores.patience import Patience
from conclave.host.stores.threads import Threads

# `list` is one of the operations.
Names = list[str]
_SUFFIX: Final = ".blob"
_NEW: Final = "new"
_LOCK: Final = "lock"
_HOST: Final = "host"
_THREADS: Final = 4


class DirectoryStore:
    """Each blob is a file; `/` in a name is `%` in the file's, so no name leads out of the directory."""

    def __init__(self, directory: Path, patience: Patience, *, alone: bool = False) -> None:
        """Makes the directory, not what it lies in, and clears away what a killed writer left.

        Raises:
            StoreUnavailable: that is not possible; or it is to be `alone`, and another is.
        """
        self._directory = directory
        self._patience = patience
        self._writing = threading.Lock()
        self._threads = Threads(_THREADS, "directory-store", patience, told)
        try:
            if not directory.is_dir():
                directory.mkdir(mode=0o700)
                sync_directory(directory.parent)
            self._held = hold(directory / _HOST) if alone else None
            with self._locked():
                (directory / _NEW).unlink(missing_ok=True)
        except OSError as error:
            raise unusable(directory, error) from None

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """See BlobStore."""
        check_put(name, data)
        return await self._threads.run(lambda: self._put(self._path(name), data, expected))

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """See BlobStore."""
        check_name(name)
        return await self._threads.run(lambda: self._get(self._path(name)))

    async def list(self, prefix: str) -> list[str]:
        """See BlobStore."""
        check_prefix(prefix)
        return await self._threads.run(lambda: self._names(prefix))

    async def delete(self, name: str) -> None:
        """See BlobStore."""
        check_name(name)
        await self._threads.run(lambda: self._delete(self._path(name)))

    async def close(self) -> None:
        """See BlobStore."""
        self._threads.close()
        if self._held is not None:
            self._held.close()

    def _path(self, name: str) -> Path:
        return self._directory / (name.replace("/", "%") + _SUFFIX)

    def _put(self, path: Path, data: bytes, expected: str | None) -> str:
        etag = _etag(data)
        with self._locked():
            if expected is not None:
                found = _read(path)
                if expected != ("" if found is None else found[1]):
                    raise StoreConflict("the blob is not the one that was expected")
            new = self._directory / _NEW
            try:
                _write(new, data)
                new.replace(path)
            except OSError:
                # Its room is needed.
                with suppress(OSError):
                    new.unlink()
                raise
            sync_directory(self._directory)
        return etag

    def _get(self, path: Path) -> tuple[bytes, str] | None:
        found = _read(path)
        if found is None and not self._directory.is_dir():
            # A disk that is not mounted holds nothing either, and is not empty.
            raise FileNotFoundError(errno.ENOENT, "the directory is gone")
        return found

    def _delete(self, path: Path) -> None:
        with self._locked():
            path.unlink(missing_ok=True)
            sync_directory(self._directory)

    def _names(self, prefix: str) -> Names:
        names = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                name = entry.name.removesuffix(_SUFFIX).replace("%", "/")
                if entry.name.endswith(_SUFFIX) and name.startswith(prefix) and is_name(name):
                    names.append(name)
        return sorted(names)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else writes meanwhile: no thread here, no other process."""
        until = time.monotonic() + self._patience.timeout_seconds
        if not self._writing.acquire(timeout=self._patience.timeout_seconds):
            raise OSError(errno.ETIMEDOUT, "another write does not end")
        try:
            with open_lock(self._directory / _LOCK) as lock:
                while not try_lock(lock):
                    if time.monotonic() > until:
                        raise OSError(errno.ETIMEDOUT, "another process holds the store's lock")
                    time.sleep(0.001)
                yield
        finally:
            self._writing.release()


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> tuple[bytes, str] | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data, _etag(data)


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
