"""Stores that are full, slow, silent or gone, and that come back."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from tests._stores import S3, Postgres, postgres, s3

from conclave.errors import StoreConflict, StoreFull, StoreUnavailable
from conclave.host.stores import BlobStore, open_store

__all__ = ["postgres", "s3"]
pytestmark = pytest.mark.slow
_MIB = 1024 * 1024


def run(url: str, work: Callable[[BlobStore], Awaitable[None]], *, timeout_seconds: float = 60) -> None:
    async def main() -> None:
        store = open_store(url, timeout_seconds=timeout_seconds)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(main())


async def fill(store: BlobStore) -> int:
    """Write until there is no room; how many blobs there are."""
    for number in range(1000):
        try:
            await store.put(f"filler/{number}", os.urandom(_MIB))
        except StoreFull:
            return number
    raise AssertionError("it never became full")


async def full(store: BlobStore) -> None:
    """What STORE-12 says of a store that can hold some MiB."""
    kept = await store.put("kept", b"kept")
    written = await fill(store)
    assert written > 1
    with pytest.raises(StoreFull):
        await store.put("kept", os.urandom(8 * _MIB), expected=kept)
    assert await store.get("kept") == (b"kept", kept)
    assert await store.list("") == sorted(["kept", *(f"filler/{number}" for number in range(written))])
    for number in range(written):
        await store.delete(f"filler/{number}")
    assert await store.list("") == ["kept"]
    await store.put("kept", b"again", expected=kept)
    await store.put("filler/0", bytes(_MIB))


# A full disk --------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Path]:
    # Where another user, the database's, can reach it.
    place = Path(tempfile.mkdtemp(prefix="disk-", dir="/tmp"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip("a small file system can be mounted by root alone")
    place.chmod(0o755)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


@pytest.mark.spec("STORE-12")
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_full_disk(small_disk: Path, kind: str) -> None:
    run(f"{kind}:{small_disk / 'store'}", full)
    # No half-written file takes room.
    assert not (small_disk / "store" / "new").exists()


_LIMITED = """
import asyncio, resource, signal, sys
from conclave.errors import StoreFull
from conclave.host.stores import open_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6 * 1024 * 1024, resource.RLIM_INFINITY))

async def main():
    store = open_store(sys.argv[1])
    kept = await store.put("kept", b"kept")
    for turn in range(3):
        try:
            await store.put("kept", bytes(9 * 1024 * 1024), expected=kept)
        except StoreFull:
            print("full")
    assert await store.get("kept") == (b"kept", kept)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.put("kept", bytes(9 * 1024 * 1024), expected=kept)
    await store.close()
    print("ended")

asyncio.run(main())
"""


@pytest.mark.spec("STORE-12")
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_quota(tmp_path: Path, kind: str) -> None:
    """A limit of file sizes is met as a quota is: in the middle of a write."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, f"{kind}:{tmp_path / 'store'}"], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["full"] * 3 + ["ended"], done.stderr


@pytest.mark.spec("STORE-12")
def test_a_full_database(small_disk: Path, postgres: Postgres) -> None:
    url = postgres.database()
    place = small_disk / "space"
    place.mkdir()
    (small_disk / "ballast").write_bytes(bytes(_MIB))
    postgres.own(place)
    postgres.sql("postgres", f"CREATE TABLESPACE small LOCATION '{place}'")
    postgres.sql("postgres", f"ALTER DATABASE {postgres.name(url)} SET default_tablespace = small")

    async def work(store: BlobStore) -> None:
        kept = await store.put("kept", b"kept")
        written = await fill(store)
        assert written > 1
        assert await store.get("kept") == (b"kept", kept)
        assert len(await store.list("filler/")) == written
        for number in range(written):
            await store.delete(f"filler/{number}")
        # Room of deleted rows is given back by the database's own housekeeping, which needs some itself.
        (small_disk / "ballast").unlink()
        postgres.sql(postgres.name(url), "VACUUM conclave_blobs")
        await store.put("kept", bytes(_MIB), expected=kept)

    try:
        run(url, work)
    finally:
        postgres.drop(url)
        postgres.sql("postgres", "DROP TABLESPACE small")


# Gone, and back -----------------------------------------------------------------------


@pytest.mark.spec("STORE-13", "STORE-15")
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_database_that_stops_and_starts(postgres: Postgres, mode: str) -> None:
    url = postgres.database()

    async def work(store: BlobStore) -> None:
        etag = await store.put("blob", b"1")
        postgres.stop(mode)
        for operation in (store.put("blob", b"2"), store.get("blob"), store.list(""), store.delete("blob")):
            with pytest.raises(StoreUnavailable, match="is it running") as caught:
                await operation
            assert str(postgres.place) not in str(caught.value)
        postgres.start()
        assert await store.get("blob") == (b"1", etag)
        # What was idle before is noticed as gone and replaced, for a conditional write too.
        postgres.stop(mode)
        postgres.start()
        await store.put("blob", b"2", expected=etag)

    try:
        run(url, work)
    finally:
        postgres.drop(url)


@pytest.mark.spec("STORE-11", "STORE-14")
def test_a_database_whose_answer_to_a_write_is_lost(postgres: Postgres) -> None:
    """The write is repeated, recognises itself, and is one."""
    url = postgres.database()
    way = Lossy(postgres.place / ".s.PGSQL.5432", postgres.place / "way")
    through = url.replace(quote(str(postgres.place), safe=""), quote(str(way.place), safe=""))

    async def work(store: BlobStore) -> None:
        way.lose = 1
        first = await store.put("blob", b"1", expected="")
        assert way.lose == 0
        assert await store.get("blob") == (b"1", first)
        way.lose = 2
        second = await store.put("blob", b"2", expected=first)
        assert way.lose == 0
        assert await store.get("blob") == (b"2", second)
        with pytest.raises(StoreConflict):
            await store.put("blob", b"3", expected=first)
        # Lost, and then somebody else's is there: who was first cannot be known.
        way.lose = 1
        with pytest.raises(StoreUnavailable, match="unknown"):
            await store.put("blob", b"3", expected=first)

    try:
        run(through, work)
    finally:
        way.close()
        postgres.drop(url)


class Lossy:
    """A socket before PostgreSQL's that loses answers to writes, and the connection with them."""

    def __init__(self, target: Path, place: Path) -> None:
        self._target = target
        self.place = place
        self.lose = 0
        place.mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place / target.name))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), closing(socket.socket(socket.AF_UNIX)) as server, suppress(OSError):
            server.connect(str(self._target))
            writes = False
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is client:
                        writes = b"INSERT INTO conclave_blobs" in data or b"UPDATE conclave_blobs" in data
                    elif writes and self.lose:
                        self.lose -= 1
                        return
                    (server if source is client else client).sendall(data)


@pytest.mark.spec("STORE-13")
def test_a_database_that_is_locked(postgres: Postgres) -> None:
    """Somebody holds the row and does not let go: the wait ends."""
    url = postgres.database()

    async def work(store: BlobStore) -> None:
        import psycopg

        etag = await store.put("blob", b"1")
        with psycopg.connect(url) as holder:
            holder.execute("UPDATE conclave_blobs SET data = 'x'")
            with pytest.raises(StoreUnavailable):
                await store.put("blob", b"2", expected=etag)
            holder.rollback()
        assert await store.get("blob") == (b"1", etag)

    try:
        run(url, work, timeout_seconds=1)
    finally:
        postgres.drop(url)


class Way:
    """A way to a server that can be cut, be silent, or answer by itself."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.answer: bytes | None = None
        self.after = False
        self.silent = False
        self.asked = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def status(self, code: int, *, after: bool = False) -> None:
        """From now on every request is answered so, before or after it reached the server."""
        body = b"<Error><Code>Whatever secret-text</Code></Error>"
        self.answer = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (code, len(body), body)
        self.after = after

    def open(self) -> None:
        self.answer, self.silent, self.after = None, False, False

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError), closing(socket.create_connection(self._target)) as server:
            while request := _message(client):
                self.asked += 1
                if self.silent:
                    threading.Event().wait(20)
                    return
                if self.answer is not None and not self.after:
                    client.sendall(self.answer)
                    return
                server.sendall(request)
                reply = _message(server)
                if self.answer is not None:
                    client.sendall(self.answer)
                    return
                client.sendall(reply)


def _message(source: socket.socket) -> bytes:
    """One HTTP message with a known length."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = source.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    size = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            size = int(line.partition(b":")[2])
    while len(body) < size:
        body += source.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def way(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    made = Way(s3.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    yield made
    made.close()


@pytest.mark.spec("STORE-12", "STORE-13", "STORE-14", "STORE-15")
def test_a_bucket_whose_server_has_trouble(s3: S3, way: Way) -> None:
    async def work(store: BlobStore) -> None:
        etag = await store.put("blob", b"1", expected="")
        for status in (500, 502, 503, 429, 400, 301):
            way.status(status)
            with pytest.raises(StoreUnavailable) as caught:
                await store.get("blob")
            assert "secret-text" not in str(caught.value)
            assert way.url not in str(caught.value)
        way.status(500)
        before = way.asked
        for operation in (store.put("blob", b"2"), store.get("blob"), store.list(""), store.delete("blob")):
            with pytest.raises(StoreUnavailable):
                await operation
        assert way.asked == before + 4 * 5
        for expected in ("", etag):
            with pytest.raises(StoreUnavailable):
                await store.put("blob", b"2", expected=expected)
        assert way.asked == before + 4 * 5 + 2
        way.status(403)
        with pytest.raises(StoreUnavailable, match="credentials"):
            await store.get("blob")
        way.status(507)
        with pytest.raises(StoreFull):
            await store.put("blob", b"2", expected=etag)
        way.open()
        assert await store.get("blob") == (b"1", etag)

    run(f"s3:{s3.bucket()}/x", work)


@pytest.mark.spec("STORE-14")
def test_a_bucket_whose_answer_to_a_write_is_lost(s3: S3, way: Way) -> None:
    """It happened, the writer cannot know, and is not told that somebody else did it."""

    async def work(store: BlobStore) -> None:
        way.status(500, after=True)
        with pytest.raises(StoreUnavailable):
            await store.put("blob", b"1", expected="")
        way.open()
        found = await store.get("blob")
        assert found is not None
        assert found[0] == b"1"

    run(f"s3:{s3.bucket()}/x", work)


@pytest.mark.spec("STORE-13")
def test_a_bucket_that_is_silent_or_gone(s3: S3, way: Way) -> None:
    async def work(store: BlobStore) -> None:
        etag = await store.put("blob", b"1")
        way.silent = True
        for operation in (store.put("blob", b"2"), store.get("blob"), store.list(""), store.delete("blob")):
            with pytest.raises(StoreUnavailable):
                await operation
        way.open()
        assert await store.get("blob") == (b"1", etag)
        way.close()

    run(f"s3:{s3.bucket()}/x", work, timeout_seconds=1)


def test_a_bucket_that_does_not_exist(s3: S3) -> None:
    async def work(store: BlobStore) -> None:
        for operation in (store.delete("blob"), store.put("blob", b"2"), store.get("blob"), store.list("")):
            with pytest.raises(StoreUnavailable, match="no such bucket"):
                await operation

    run("s3:never-made/x", work)


# Damage, and others who hold on -------------------------------------------------------


@pytest.mark.spec("STORE-2", "STORE-8")
def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "new").write_bytes(b"half")
    (tmp_path / "store" / "somebody-else.txt").write_bytes(b"x")
    (tmp_path / "store" / "Not A Name.blob").write_bytes(b"x")

    async def work(store: BlobStore) -> None:
        assert not (tmp_path / "store" / "new").exists()
        assert await store.list("") == []
        (tmp_path / "store" / "new").write_bytes(b"half, again" * 1000)
        await store.put("blob", b"whole")
        found = await store.get("blob")
        assert found is not None
        assert found[0] == b"whole"

    run(f"file:{tmp_path / 'store'}", work)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == [
        "Not A Name.blob",
        "blob.blob",
        "lock",
        "somebody-else.txt",
    ]


@pytest.mark.spec("STORE-13")
def test_another_process_that_holds_the_lock(tmp_path: Path) -> None:
    import fcntl

    async def work(store: BlobStore) -> None:
        await store.put("blob", b"1")
        with (tmp_path / "store" / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(StoreUnavailable):
                await store.put("blob", b"2")
            # Readers do not wait for writers.
            assert await store.get("blob") is not None
        await store.put("blob", b"3")

    run(f"file:{tmp_path / 'store'}", work, timeout_seconds=0.5)


@pytest.mark.spec("STORE-13")
def test_another_process_that_holds_the_database(tmp_path: Path) -> None:
    import sqlite3

    async def work(store: BlobStore) -> None:
        await store.put("blob", b"1")
        with closing(sqlite3.connect(tmp_path / "store", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable):
                await store.put("blob", b"2")
            other.execute("ROLLBACK")
        await store.put("blob", b"3")

    run(f"sqlite:{tmp_path / 'store'}", work, timeout_seconds=0.5)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"something else entirely" * 100)

    async def work(store: BlobStore) -> None:
        with pytest.raises(StoreUnavailable, match="SQLITE_NOTADB"):
            await store.get("blob")

    run(f"sqlite:{tmp_path / 'store'}", work)
    assert (tmp_path / "store").read_bytes().startswith(b"something else")


@pytest.mark.spec("STORE-1", "STORE-9", "STORE-11")
def test_commits_reach_the_disk(tmp_path: Path, postgres: Postgres) -> None:
    """What the databases are set to, as they say themselves."""
    from conclave.host.stores.patience import Patience
    from conclave.host.stores.postgres import PostgresStore
    from conclave.host.stores.sqlite import SqliteStore

    sqlite = SqliteStore(tmp_path / "store", Patience())
    database = sqlite._open()
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    sqlite._let_go()
    url = postgres.database()
    postgres.sql("postgres", f"ALTER DATABASE {postgres.name(url)} SET synchronous_commit = off")

    async def main() -> None:
        async with await PostgresStore(url, Patience())._connect() as connection:
            row = await (await connection.execute("SHOW synchronous_commit")).fetchone()
            assert row == ("on",)

    try:
        asyncio.run(main())
    finally:
        postgres.drop(url)


@pytest.mark.spec("STORE-1", "STORE-8")
def test_the_directory_is_synchronised_after_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: contents, name; a put returns after both."""
    from conclave.host.stores import directory

    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(f"{Path(name).name} {(tmp_path / 'store' / 'blob.blob').exists()}")
        real(descriptor)

    monkeypatch.setattr(directory.os, "fsync", fsync)

    async def work(store: BlobStore) -> None:
        synced.clear()
        await store.put("blob", b"1")
        assert synced == ["new False", "store True"]
        synced.clear()
        await store.delete("blob")
        assert synced == ["store False"]

    run(f"file:{tmp_path / 'store'}", work)
