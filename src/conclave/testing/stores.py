"""What every blob store must do, as tests that a store's author runs.

For tests. Subclass `StoreConformance` in a test module as `Test…`, say how a store is
opened, and pytest finds the rest; nothing here needs pytest itself.

Spec: spec/stores.md (STORE-1 to STORE-7).
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import ClassVar

from conclave.errors import StoreConflict, StoreUnavailable
from conclave.host.stores import MAX_BLOB, MAX_NAME, BlobStore

Opener = Callable[[], BlobStore]
# Never by fork: a store's threads and connections do not survive one.
_processes = multiprocessing.get_context("spawn")
_MIB = 1024 * 1024
NAMES = (
    "a",
    "0",
    "-",
    "_",
    "...",
    ".hidden",
    "a/b",
    "a/b/c.d_e-f",
    "a-b",
    "a.b",
    "aa",
    "new",
    "lock",
    "x" * MAX_NAME,
    "/".join(["y" * 9] * (MAX_NAME // 10)),
)
NO_NAMES = (
    "",
    "/",
    "a/",
    "/a",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/.",
    "A",
    "ä",
    "a b",
    "a\0",
    "a%b",
    "a\n",
    "z" * 201,
)


class StoreConformance:
    """The contract of a blob store.

    Attributes:
        many: how many blobs a listing is tried with; above what one answer of the store holds.
        kills: how often a writer is killed.
    """

    many: ClassVar[int] = 1100
    kills: ClassVar[int] = 3

    def opener(self) -> Opener:
        """What opens this test's store, which is empty when a test begins; it is also called in other processes."""
        raise NotImplementedError

    # One handle --------------------------------------------------------------------------

    def test_contents_come_back(self) -> None:
        """Of all sizes, byte for byte, through another handle too."""

        async def work(store: BlobStore) -> None:
            sizes = (0, 1, 4095, 65536, _MIB, 16 * _MIB, MAX_BLOB)
            etags = {size: await store.put("size/blob", _bytes(size)) and await _check(store, size) for size in sizes}
            assert len(set(etags.values())) == len(sizes)

        async def _check(store: BlobStore, size: int) -> str:
            found = await store.get("size/blob")
            assert found is not None
            assert found[0] == _bytes(size)
            async with _opened(self.opener()) as other:
                assert await other.get("size/blob") == found
            return found[1]

        self._run(work)

    def test_what_was_never_put(self) -> None:
        """Is None, is not listed, and can be deleted."""

        async def work(store: BlobStore) -> None:
            assert await store.get("nothing") is None
            assert await store.list("") == []
            await store.delete("nothing")
            assert await store.get("nothing") is None

        self._run(work)

    def test_put_returns_the_etag_that_get_gives(self) -> None:
        """It changes with the contents, and is never the word for `must not exist`."""

        async def work(store: BlobStore) -> None:
            seen: set[str] = set()
            for content in (b"", b"one", b"two", b"One"):
                etag = await store.put("blob", content)
                assert await store.get("blob") == (content, etag)
                assert etag not in seen | {""}
                seen.add(etag)

        self._run(work)

    def test_names(self) -> None:
        """Each is a blob of its own, none leads elsewhere, and they are listed in order of their bytes."""

        async def work(store: BlobStore) -> None:
            for name in NAMES:
                await store.put(name, name.encode(), expected="")
            assert await store.list("") == sorted(NAMES)
            for name in NAMES:
                found = await store.get(name)
                assert found is not None
                assert found[0] == name.encode()
            for prefix in ("a", "a/", "a/b", "a.", "x" * MAX_NAME, "y", "b", "/", "_", ".", "..", "..."):
                assert await store.list(prefix) == sorted(n for n in NAMES if n.startswith(prefix)), prefix
            for name in NAMES:
                await store.delete(name)
            assert await store.list("") == []

        self._run(work)

    def test_what_is_no_name(self) -> None:
        """Is a mistake of the caller's, and nothing is asked."""

        async def work(store: BlobStore) -> None:
            for name in NO_NAMES:
                await _refused(store.put(name, b""), ValueError)
                await _refused(store.get(name), ValueError)
                await _refused(store.delete(name), ValueError)
            for prefix in ("A", "ä", "a b", "%", "a*", "z" * 201):
                await _refused(store.list(prefix), ValueError)
            await _refused(store.put("big", bytes(MAX_BLOB + 1)), ValueError)
            assert await store.list("") == []

        self._run(work)

    def test_a_put_that_expects(self) -> None:
        """Happens only to the blob it expects; a refused one changes nothing."""

        async def work(store: BlobStore) -> None:
            await _refused(store.put("blob", b"0", expected="no-such-etag"), StoreConflict)
            assert await store.get("blob") is None
            first = await store.put("blob", b"1", expected="")
            await _refused(store.put("blob", b"2", expected=""), StoreConflict)
            assert await store.get("blob") == (b"1", first)
            second = await store.put("blob", b"2", expected=first)
            await _refused(store.put("blob", b"3", expected=first), StoreConflict)
            await _refused(store.put("blob", b"3", expected=""), StoreConflict)
            assert await store.get("blob") == (b"2", second)
            third = await store.put("blob", b"3")
            await _refused(store.put("blob", b"4", expected=second), StoreConflict)
            await store.delete("blob")
            await _refused(store.put("blob", b"4", expected=third), StoreConflict)
            assert await store.get("blob") is None
            await store.put("blob", b"5", expected="")

        self._run(work)

    def test_deletes_stay(self) -> None:
        """For other handles and later ones; the neighbours are left alone."""

        async def work(store: BlobStore) -> None:
            for name in ("a", "a/b", "a/b/c", "ab"):
                await store.put(name, b"x")
            await store.delete("a/b")
            async with _opened(self.opener()) as other:
                assert await other.list("") == ["a", "a/b/c", "ab"]
                assert await other.get("a/b") is None

        self._run(work)

    def test_a_long_listing(self) -> None:
        """Is whole and in order."""

        async def work(store: BlobStore) -> None:
            names = [f"many/{hashlib.sha256(str(number).encode()).hexdigest()}" for number in range(self.many)]
            for part in range(0, len(names), 50):
                await asyncio.gather(*(store.put(name, b"") for name in names[part : part + 50]))
            assert await store.list("many/") == sorted(names)
            assert await store.list("many/0") == sorted(name for name in names if name.startswith("many/0"))
            assert await store.list("few/") == []

        self._run(work)

    # Many at one time --------------------------------------------------------------------

    def test_many_at_one_time(self) -> None:
        """Two handles, many names: nothing mixes."""

        async def work(store: BlobStore) -> None:
            async with _opened(self.opener()) as other:

                async def one(number: int) -> None:
                    mine = (store, other)[number % 2]
                    for turn in range(3):
                        content = f"{number} {turn}".encode() * 1000
                        await mine.put(f"at-once/{number}", content)
                        found = await mine.get(f"at-once/{number}")
                        assert found is not None
                        assert found[0] == content
                    if number % 3 == 0:
                        await mine.delete(f"at-once/{number}")

                await asyncio.gather(*(one(number) for number in range(32)))
                assert await other.list("at-once/") == sorted(f"at-once/{n}" for n in range(32) if n % 3)

        self._run(work)

    def test_a_reader_sees_whole_blobs(self) -> None:
        """The old contents or the new ones, never a mixture or nothing."""

        async def work(store: BlobStore) -> None:
            contents = [bytes([number]) * (_MIB + number) for number in range(4)]
            await store.put("whole", contents[0])
            async with _opened(self.opener()) as other:
                written = asyncio.Event()

                async def write() -> None:
                    for turn in range(12):
                        await store.put("whole", contents[turn % 4])
                    written.set()

                async def read() -> None:
                    while not written.is_set():
                        found = await other.get("whole")
                        assert found is not None
                        assert found[0] in contents

                await asyncio.gather(write(), read())

        self._run(work)

    def test_one_of_many_creates(self) -> None:
        """Of two handles that both expect nothing, in many races, one wins each, and its contents stay."""

        async def work(store: BlobStore) -> None:
            async with _opened(self.opener()) as other:
                for turn in range(10):
                    name = f"race/{turn}"
                    tries = [(store, b"mine"), (other, b"theirs"), (store, b"mine too"), (other, b"theirs too")]
                    done = await asyncio.gather(
                        *(handle.put(name, content, expected="") for handle, content in tries), return_exceptions=True
                    )
                    won = [content for (_, content), result in zip(tries, done, strict=True) if isinstance(result, str)]
                    assert len(won) == 1
                    assert all(isinstance(result, str | StoreConflict) for result in done), done
                    found = await store.get(name)
                    assert found is not None
                    assert found[0] == won[0]

        self._run(work)

    def test_counting_between_processes(self) -> None:
        """Several processes count in one blob by expecting what they read: no count is lost."""
        workers, turns = 3, 8
        processes = [_start(_count, self.opener(), worker, turns)[0] for worker in range(workers)]
        for process in processes:
            process.join(120)
            assert process.exitcode == 0, f"a counting process ended with {process.exitcode}; its error is on stderr"

        async def work(store: BlobStore) -> None:
            found = await store.get("count")
            assert found is not None
            assert len(found[0].split()) == len(set(found[0].split())) == workers * turns

        self._run(work)

    # Writers that are killed -------------------------------------------------------------

    def test_what_was_put_outlives_its_writer(self) -> None:
        """Killed at any point: what was acknowledged is there, what was not is there whole or not at all."""
        told: dict[str, bytes] = {}
        for turn in range(self.kills):
            process, pipe = _start(_write, self.opener(), turn)
            acknowledged = 0
            while acknowledged < 3 + turn:
                assert pipe.poll(60), "the writer does not write"
                acknowledged = pipe.recv()
            # It is in the middle of something now.
            process.kill()
            process.join()
            with suppress(EOFError, OSError):
                while pipe.poll():
                    acknowledged = pipe.recv()
            told |= {name: content for name, content in (_written(turn, number) for number in range(acknowledged))}

        async def work(store: BlobStore) -> None:
            listed = await store.list("")
            assert set(told) <= set(listed)
            # At most the one that was being written each time.
            assert len(listed) <= len(told) + self.kills
            for name in listed:
                found = await store.get(name)
                assert found is not None
                _, turn, number = name.split("/")
                assert found[0] == _written(int(turn), int(number))[1]
            for name in listed:
                await store.put(name, b"again")
                await store.delete(name)
            assert await store.list("") == []

        self._run(work)

    def test_closing(self) -> None:
        """Ends all use, twice is once, and another handle is not concerned."""

        async def work(store: BlobStore) -> None:
            async with _opened(self.opener()) as other:
                await other.put("blob", b"1")
                await store.get("blob")
                await store.close()
                await store.close()
                assert await other.get("blob") is not None

        self._run(work)

    def _run(self, work: Callable[[BlobStore], Awaitable[None]]) -> None:
        async def main() -> None:
            async with _opened(self.opener()) as store:
                await work(store)

        asyncio.run(main())


@asynccontextmanager
async def _opened(opener: Opener) -> AsyncIterator[BlobStore]:
    store = opener()
    try:
        yield store
    finally:
        await store.close()


async def _refused(work: Awaitable[object], kind: type[Exception]) -> None:
    try:
        await work
    except kind:
        return
    raise AssertionError(f"expected {kind.__name__}, and nothing was raised")


def _bytes(size: int) -> bytes:
    """That many bytes which no store finds small."""
    return hashlib.shake_128(str(size).encode()).digest(size)


def _written(turn: int, number: int) -> tuple[str, bytes]:
    return f"killed/{turn}/{number}", _bytes(_MIB // 4 + 1000 * turn + number)


def _start(work: Callable[..., None], opener: Opener, *arguments: int) -> tuple[BaseProcess, Connection[object, int]]:
    ours, theirs = _processes.Pipe(duplex=False)
    process = _processes.Process(target=work, args=(opener, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _write(opener: Opener, pipe: Connection[int, object], turn: int) -> None:
    """Write blob after blob, and say after each how many there are."""

    async def main() -> None:
        async with _opened(opener) as store:
            for number in range(10_000):
                await store.put(*_written(turn, number))
                pipe.send(number + 1)

    asyncio.run(main())


def _count(opener: Opener, pipe: Connection[int, object], worker: int, turns: int) -> None:
    """Append to one blob, each time to what is there."""

    async def main() -> None:
        async with _opened(opener) as store:
            for turn in range(turns):
                mine, content = f"{worker}.{turn}\n".encode(), b""
                # A write whose outcome is unknown is looked for, as every writer has to.
                while mine not in content:
                    content, etag = await store.get("count") or (b"", "")
                    if mine not in content:
                        with suppress(StoreConflict, StoreUnavailable):
                            await store.put("count", content + mine, expected=etag)
                            break

    asyncio.run(main())
