"""A blob store in one table of PostgreSQL.

Runs in the untrusted host. Each write carries an etag of its own choice, so a
write whose answer was lost can be repeated: it recognises itself.

Spec: spec/stores.md (STORE-11).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.errors import DiskFull, DuplicateObject, DuplicateTable, OutOfMemory, UniqueViolation

from conclave.errors import StoreConflict, StoreFull, StoreUnavailable
from conclave.host.stores.blobs import check_name, check_prefix, check_put
from conclave.host.stores.patience import Patience

Value = TypeVar("Value")
MAX_CONNECTIONS: Final = 4
# Asked first: a role that may not create tables can use one that is there.
_THERE: Final = "SELECT to_regclass('conclave_blobs') IS NOT NULL"
_TABLE: Final = """CREATE TABLE IF NOT EXISTS conclave_blobs
    (name text COLLATE "C" PRIMARY KEY, etag text NOT NULL, data bytea NOT NULL)"""
_DURABLE: Final = """SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') = 'off'"""
_LIMIT: Final = "SELECT set_config('statement_timeout', %s, false)"
_PUT: Final = """INSERT INTO conclave_blobs VALUES (%(name)s, %(etag)s, %(data)b)
    ON CONFLICT (name) DO UPDATE SET etag = excluded.etag, data = excluded.data"""
_CREATE: Final = _PUT + " WHERE conclave_blobs.etag = excluded.etag"
_UPDATE: Final = """UPDATE conclave_blobs SET etag = %(etag)s, data = %(data)b
    WHERE name = %(name)s AND etag IN (%(expected)s, %(etag)s)"""
_GET: Final = "SELECT data, etag FROM conclave_blobs WHERE name = %s"
_LIST: Final = "SELECT name FROM conclave_blobs WHERE starts_with(name, %s) ORDER BY name"
_DELETE: Final = "DELETE FROM conclave_blobs WHERE name = %s"


class PostgresStore:
    """One table, made on first use, and a few connections that are kept."""

    def __init__(self, url: str, patience: Patience) -> None:
        """Connects to nothing yet."""
        self._url = url
        self._patience = patience
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: list[AsyncConnection] = []
        self._closed = False

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """See BlobStore."""
        check_put(name, data)
        given = {"name": name, "etag": secrets.token_hex(16), "data": data, "expected": expected}
        statement = _PUT if expected is None else _CREATE if expected == "" else _UPDATE

        sent = False

        async def work(connection: AsyncConnection) -> str:
            nonlocal sent
            before, sent = sent, True
            cursor = await connection.execute(statement, given)
            if cursor.rowcount == 1:
                return str(given["etag"])
            if before:
                raise StoreUnavailable("the connection to the store broke; whether the write happened is unknown")
            raise StoreConflict("the blob is not the one that was expected")

        return await self._run(work)

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """See BlobStore."""
        check_name(name)

        async def work(connection: AsyncConnection) -> tuple[bytes, str] | None:
            row = await (await connection.execute(_GET, (name,), binary=True)).fetchone()
            return None if row is None else (bytes(row[0]), str(row[1]))

        return await self._run(work)

    async def list(self, prefix: str) -> list[str]:
        """See BlobStore."""
        check_prefix(prefix)

        async def work(connection: AsyncConnection) -> list[str]:
            return [str(name) for (name,) in await (await connection.execute(_LIST, (prefix,))).fetchall()]

        return await self._run(work)

    async def delete(self, name: str) -> None:
        """See BlobStore."""
        check_name(name)

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(_DELETE, (name,))

        await self._run(work)

    async def close(self) -> None:
        """See BlobStore."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()

    async def _run(self, work: Callable[[AsyncConnection], Awaitable[Value]]) -> Value:
        async def attempted(attempt: int) -> Value:
            async with self._room:
                if self._closed:
                    raise StoreUnavailable("the store is closed")
                # Connections that were idle while a server went are all as good as gone.
                connection = self._idle.pop() if self._idle and not attempt else None
                try:
                    connection = connection or await self._connect()
                    value = await work(connection)
                except StoreConflict:
                    await self._keep(connection)
                    raise
                except BaseException as error:
                    if connection is not None:
                        with suppress(Exception):
                            await connection.close()
                    if isinstance(error, psycopg.Error):
                        raise _translated(error) from None
                    raise
                await self._keep(connection)
                return value

        return await self._patience.spend(attempted, again=True)

    async def _keep(self, connection: AsyncConnection | None) -> None:
        if connection is not None and self._closed:
            await connection.close()
        elif connection is not None:
            self._idle.append(connection)

    async def _connect(self) -> AsyncConnection:
        connection = await AsyncConnection.connect(
            self._url, autocommit=True, connect_timeout=max(2, int(self._patience.timeout_seconds / 2))
        )
        try:
            await connection.execute(_DURABLE)
            await connection.execute(_LIMIT, (str(int(self._patience.timeout_seconds * 1000)),))
            row = await (await connection.execute(_THERE)).fetchone()
            if row is None or not row[0]:
                # Two that create it at one time: one is told, in any of these ways.
                with suppress(UniqueViolation, DuplicateTable, DuplicateObject):
                    await connection.execute(_TABLE)
        except BaseException:
            await connection.close()
            raise
        return connection


def _translated(error: psycopg.Error) -> StoreFull | StoreUnavailable:
    """What PostgreSQL's trouble is to us, by its class: the server's text may name what nobody should log."""
    if isinstance(error, DiskFull | OutOfMemory):
        return StoreFull("the database server has no room")
    if error.sqlstate is None:
        return StoreUnavailable("the database cannot be reached; is it running, and do address and credentials fit?")
    return StoreUnavailable(f"the database refuses (SQLSTATE {error.sqlstate})")
