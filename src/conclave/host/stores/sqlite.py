"""A blob store in one SQLite file.

Runs in the untrusted host. Write-ahead log, every commit synchronised to the disk;
what a killed writer left is undone by SQLite when the file is opened next.

Spec: spec/stores.md (STORE-9).
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from conclave.errors import StoreConflict, StoreError, StoreFull, StoreUnavailable
from conclave.host.stores.blobs import check_name, check_prefix, check_put
from conclave.host.stores.local import hold, told, unusable
from conclave.host.stores.patience import Patience
from conclave.host.stores.threads import Threads

Value = TypeVar("Value")
_TABLE: Final = """CREATE TABLE IF NOT EXISTS blobs
    (name TEXT PRIMARY KEY NOT NULL, etag TEXT NOT NULL, data BLOB NOT NULL)"""
_PUT: Final = """INSERT INTO blobs VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET etag = excluded.etag, data = excluded.data"""

_DELETE: Final = "DELETE FROM blobs WHERE name = ?"
_FREE: Final = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
_MARGIN: Final = 65536
RESERVE_BYTES: Final = 4 * 1024 * 1024
# SQLite tells a full disk from others; a quota or a limit of file sizes it calls a failed write.
_FULL: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
_LOG_BYTES: Final = 64 * 1024 * 1024
_PAUSE_SECONDS: Final = 0.005


class SqliteStore:
    """One table in one file, used by one thread."""

    def __init__(self, file: Path, patience: Patience, *, alone: bool = False) -> None:
        """The file is opened, or made, by the first operation.

        Raises:
            StoreUnavailable: there is no folder for it; or it is to be `alone`, and another is.
        """
        self._file = file
        self._reserved = file.with_name(file.name + "-reserve")
        self._patience = patience
        self._threads = Threads(1, "sqlite-store", patience, self._told)
        self._database: sqlite3.Connection | None = None
        try:
            file.parent.stat()
            self._held = hold(file.with_name(file.name + "-host")) if alone else None
        except OSError as error:
            raise unusable(file, error) from None

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """See BlobStore."""
        check_put(name, data)

        def work(database: sqlite3.Connection) -> str:
            etag = secrets.token_hex(16)
            self._reserve(database, len(data))
            database.execute("BEGIN IMMEDIATE")
            if expected is not None:
                row = database.execute("SELECT etag FROM blobs WHERE name = ?", (name,)).fetchone()
                if expected != ("" if row is None else row[0]):
                    raise StoreConflict("the blob is not the one that was expected")
            database.execute(_PUT, (name, etag, data))
            database.execute("COMMIT")
            return etag

        return await self._run(work)

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """See BlobStore."""
        check_name(name)
        return await self._run(
            lambda database: database.execute("SELECT data, etag FROM blobs WHERE name = ?", (name,)).fetchone()
        )

    async def list(self, prefix: str) -> list[str]:
        """See BlobStore."""
        check_prefix(prefix)
        query = "SELECT name FROM blobs WHERE substr(name, 1, ?) = ? AND name >= ? ORDER BY name"
        rows = await self._run(
            lambda database: database.execute(query, (len(prefix), prefix, prefix)).fetchall(),
        )
        return [name for (name,) in rows]

    async def delete(self, name: str) -> None:
        """See BlobStore."""
        check_name(name)

        def work(database: sqlite3.Connection) -> None:
            try:
                database.execute(_DELETE, (name,))
            except sqlite3.Error as error:
                if error.sqlite_errorcode not in _FULL:
                    raise
                # Deleting takes room in the log before it gives any.
                self._reserved.unlink(missing_ok=True)
                database.execute(_DELETE, (name,))

        await self._run(work)

    async def close(self) -> None:
        """See BlobStore."""
        with suppress(StoreError):
            await self._threads.run(self._let_go)
        self._threads.close()
        if self._held is not None:
            self._held.close()

    async def _run(self, work: Callable[[sqlite3.Connection], Value]) -> Value:
        def whole() -> Value:
            database = self._open()
            try:
                return work(database)
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")

        return await self._threads.run(whole)

    def _told(self, error: Exception) -> Exception:
        if not isinstance(error, sqlite3.Error):
            return told(error)
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) in _FULL:
            return StoreFull("the store's file has no room to grow")
        self._let_go()
        return StoreUnavailable(
            f"the store's file cannot be used ({getattr(error, 'sqlite_errorname', 'SQLITE_ERROR')})"
        )

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            database = sqlite3.connect(
                self._file, timeout=self._patience.timeout_seconds, isolation_level=None, check_same_thread=False
            )
            self._database = database
            self._log_ahead(database)
            database.execute("PRAGMA synchronous = FULL")
            # What is deleted was nothing that a disk must not hold, and to overwrite it takes room.
            database.execute("PRAGMA secure_delete = OFF")
            database.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            database.execute(_TABLE)
        return self._database

    def _log_ahead(self, database: sqlite3.Connection) -> None:
        """Turn the write-ahead log on. SQLite does not wait for others that do the same to a new file: so we do."""
        until = time.monotonic() + self._patience.timeout_seconds
        while True:
            try:
                database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def _reserve(self, database: sqlite3.Connection, size: int) -> None:
        """Take the room that deletes on a full disk will need, unless the file itself has room for this write."""
        if self._reserved.exists():
            return
        file = os.open(self._reserved, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, RESERVE_BYTES)
        except OSError:
            self._reserved.unlink()
            free: int = database.execute(_FREE).fetchone()[0]
            if free < size + _MARGIN:
                raise
        finally:
            os.close(file)

    def _let_go(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()
