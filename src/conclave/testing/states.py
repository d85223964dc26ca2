"""What every state store must do, as tests that a store's author runs.

For tests. Subclass `StateConformance` in a test module as `Test…`, say how a store is
opened, and pytest finds the rest; nothing here needs pytest itself.

Spec: spec/stores.md section 5 (STORE-18 to STORE-21).
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, ClassVar

from conclave.errors import StoreConflict, StoreError
from conclave.host.states import Item, Snapshot, StateStore, What

if TYPE_CHECKING:
    _Sent = Connection[tuple[int, bytes], None]
    _Received = Connection[None, tuple[int, bytes]]

Opener = Callable[[], StateStore]
# Never by fork: a store's threads and connections do not survive one.
_processes = multiprocessing.get_context("spawn")
_MIB = 1024 * 1024


class StateConformance:
    """The contract of a state store.

    Attributes:
        kills: how often a writer is killed.
    """

    kills: ClassVar[int] = 4

    def opener(self) -> Opener:
        """What opens this test's store, which is empty when a test begins; it is also called in other processes."""
        raise NotImplementedError

    # One handle --------------------------------------------------------------------------

    def test_an_empty_store(self) -> None:
        """Gives nothing, and has nothing to forget."""

        async def work(store: StateStore) -> None:
            assert await _read(store) == []
            await store.forget()
            assert await _read(store) == []

        self._run(work)

    def test_items_come_back(self) -> None:
        """Of all sizes, in order, byte for byte, in this handle and in the next."""
        sizes = (1, 0, 4095, 65536, _MIB, 17 * _MIB - 64, 3)
        items = [(version, _bytes(version, size)) for version, size in enumerate(sizes)]

        async def write(store: StateStore) -> None:
            for at in (0, 1, 3):
                await store.append(items[at : at + 1] if at < 1 else items[at : 2 * at + 1])
                assert await _read(store) == _as_read(items[: at + 1 if at < 1 else 2 * at + 1])

        async def read(store: StateStore) -> None:
            assert await _read(store) == _as_read(items)
            await store.append([(7, b"after")])
            assert await _read(store) == _as_read([*items, (7, b"after")])

        self._run(write)
        self._run(read)
        self._run(lambda store: _expect(store, _as_read([*items, (7, b"after")])))

    def test_versions_follow_each_other(self) -> None:
        """Anything else is a conflict, and changes nothing; what was just written may be given again."""

        async def work(store: StateStore) -> None:
            assert await _read(store) == []
            await _refused(store.append([(1, b"one")]))
            await store.append([(0, b"zero"), (1, b"one")])
            await store.append([(0, b"zero"), (1, b"one")])
            for wrong in ([(0, b"other")], [(1, b"other")], [(3, b"three")], [(0, b"zero"), (1, b"other")]):
                await _refused(store.append(wrong))
            await store.append([(2, b"two")])
            assert await _read(store) == _as_read([(0, b"zero"), (1, b"one"), (2, b"two")])

        self._run(work)

    def test_a_snapshot_stands_for_what_was_before(self) -> None:
        """Once it is complete, and then also for the next handle."""
        items = _items(12)
        snapshot = Snapshot(bytes(15) + b"1", 5)
        chunks = [_bytes(index, _MIB) for index in (1, 2, 3)]
        whole = [(What.MANIFEST, b"manifest"), *((What.CHUNK, chunk) for chunk in chunks)]

        async def write(store: StateStore) -> None:
            await store.append(items[:6])
            for index, chunk in enumerate(chunks, 1):
                await store.put_chunk(snapshot, index, chunk)
                await store.append(items[5 + index : 6 + index])
            assert await _read(store) == _as_read(items[:9])
            await store.complete(snapshot, b"manifest")
            assert await _read(store) == [*whole, *_as_read(items[6:9])]
            await store.forget()
            assert await _read(store) == [*whole, *_as_read(items[6:9])]
            await store.append(items[9:])

        self._run(write)
        self._run(lambda store: _expect(store, [*whole, *_as_read(items[6:])]))

    def test_the_newest_snapshot_counts(self) -> None:
        """Whatever became of others."""

        async def work(store: StateStore) -> None:
            await store.append(_items(4))
            one, two, three = (Snapshot(bytes([number]) * 16, number) for number in (1, 2, 3))
            for snapshot in (one, two):
                await store.put_chunk(snapshot, 1, b"chunk %d" % snapshot.version)
                await store.complete(snapshot, b"%d" % snapshot.version)
            await store.put_chunk(three, 1, b"never complete")
            expected = [(What.MANIFEST, b"2"), (What.CHUNK, b"chunk 2"), *_as_read(_items(4)[3:])]
            assert await _read(store) == expected
            await store.forget()
            assert await _read(store) == expected

        self._run(work)

    def test_chunks_follow_each_other(self) -> None:
        """A gap, a repetition, a chunk of another snapshot, and a manifest without chunks are refused."""

        async def work(store: StateStore) -> None:
            await store.append(_items(2))
            one, two = Snapshot(b"1" * 16, 1), Snapshot(b"2" * 16, 1)
            await _refused(store.put_chunk(one, 2, b"x"))
            await store.put_chunk(one, 1, b"x")
            for snapshot, index in ((one, 3), (two, 2)):
                await _refused(store.put_chunk(snapshot, index, b"y"))
            await _refused(store.complete(two, b"m"))
            assert await _read(store) == _as_read(_items(2))

        self._run(work)

    def test_a_snapshot_that_begins_again(self) -> None:
        """The first chunk of another ends the one before it, in this handle and in the next."""
        items = _items(3)
        one, two = Snapshot(b"1" * 16, 1), Snapshot(b"2" * 16, 2)

        async def interrupted(store: StateStore) -> None:
            await store.append(items)
            for index in (1, 2, 3):
                await store.put_chunk(one, index, _bytes(index, 1000))

        async def again(store: StateStore) -> None:
            assert await _read(store) == _as_read(items)
            await store.forget()
            await store.put_chunk(two, 1, b"chunk")
            await store.complete(two, b"manifest")
            await store.complete(two, b"manifest")
            await store.forget()
            assert await _read(store) == [(What.MANIFEST, b"manifest"), (What.CHUNK, b"chunk")]
            await store.append([(3, b"three")])

        self._run(interrupted)
        self._run(again)
        self._run(
            lambda store: _expect(store, [(What.MANIFEST, b"manifest"), (What.CHUNK, b"chunk"), (What.ITEM, b"three")])
        )

    def test_a_reader_that_stops(self) -> None:
        """Leaves a store that can be read and continued."""

        async def work(store: StateStore) -> None:
            items = [(version, _bytes(version, _MIB)) for version in range(6)]
            await store.append(items)
            pieces = store.read()
            assert await anext(pieces) == (What.ITEM, items[0][1])
            await pieces.aclose()
            await store.append([(6, b"six")])
            assert await _read(store) == _as_read([*items, (6, b"six")])

        self._run(work)

    # Many at one time --------------------------------------------------------------------

    def test_one_of_several_continues_the_log(self) -> None:
        """Of handles that continue one log each version has one winner, and what is there is the winners'."""

        async def work(store: StateStore) -> None:
            await store.append([(0, b"zero")])
            kept = [b"zero"]
            for version in range(1, 6):
                async with _opened(self.opener()) as other:
                    mine, theirs = [(version, b"mine %d" % version)], [(version, b"theirs %d" % version)]
                    done = await asyncio.gather(store.append(mine), other.append(theirs), return_exceptions=True)
                    # A store that is open to one handle at a time refuses the other with another error.
                    assert sorted(isinstance(one, StoreError) for one in done) == [False, True], done
                    won = mine if done[0] is None else theirs
                    kept.append(won[0][1])
                    for handle, tried in ((store, mine), (other, theirs)):
                        if tried != won:
                            with suppress(StoreError):
                                await handle.append(tried)
                                raise AssertionError("a version has two items")
                if won == theirs:
                    # It has to read what is there before it goes on.
                    assert len(await _read(store)) == version + 1
            assert [data for _, data in await _read(store)] == kept

        self._run(work)

    def test_processes_that_continue_one_log(self) -> None:
        """Several at one time, each from what it reads: no version has two, none is lost that was acknowledged."""
        workers, turns = 3, 5
        started = [_start(_continue, self.opener(), worker, turns) for worker in range(workers)]
        won: dict[int, bytes] = {}
        for process, pipe in started:
            with suppress(EOFError):
                while True:
                    assert pipe.poll(120), "a writer does not end"
                    version, data = pipe.recv()
                    assert version not in won, "two writers won one version"
                    won[version] = data
            process.join(60)
            assert process.exitcode == 0, f"a writer ended with {process.exitcode}; its error is on stderr"
        self._run(lambda store: _expect(store, _as_read([(v, won[v]) for v in range(workers * turns)])))

    # Writers that are killed -------------------------------------------------------------

    def test_what_was_appended_outlives_its_writer(self) -> None:
        """Killed at any point: what was acknowledged is there, each item is whole, and none without those before it."""
        told = -1
        for turn in range(self.kills):
            process, pipe = _start(_append, self.opener(), turn, 0)
            until = told + 5 + 7 * turn
            while told < until:
                assert pipe.poll(60), "the writer does not write"
                told, _ = pipe.recv()
            process.kill()
            process.join()
            with suppress(EOFError, OSError):
                while pipe.poll():
                    told, _ = pipe.recv()

            async def check(store: StateStore, told: int = told) -> None:
                found = await _read(store)
                assert len(found) > told
                assert found == _as_read([(version, _written(version)) for version in range(len(found))])

            self._run(check)

    def test_snapshots_outlive_their_writer(self) -> None:
        """Killed at any point: a snapshot that was complete is there, whole, and so is all that comes after it."""
        told = -1
        for turn in range(self.kills):
            process, pipe = _start(_snapshots, self.opener(), turn, 0)
            until = told + 2 + turn
            while told < until:
                assert pipe.poll(60), "the writer does not write"
                told, _ = pipe.recv()
            process.kill()
            process.join()
            with suppress(EOFError, OSError):
                while pipe.poll():
                    told, _ = pipe.recv()

            async def check(store: StateStore, told: int = told) -> None:
                found = await _read(store)
                assert found[0][0] == What.MANIFEST
                version = int(found[0][1])
                assert version >= told
                assert found[1:3] == [(What.CHUNK, _bytes(version + index, 100_000)) for index in (1, 2)]
                assert found[3:] == _as_read([(v, _written(v)) for v in range(version + 1, version + len(found) - 2)])
                await store.forget()
                assert await _read(store) == found

            self._run(check)

    def test_closing(self) -> None:
        """Ends all use; the next handle goes on."""

        async def work(store: StateStore) -> None:
            await store.append([(0, b"zero")])

        self._run(work)
        self._run(lambda store: _expect(store, [(What.ITEM, b"zero")]))

    def _run(self, work: Callable[[StateStore], Awaitable[None]]) -> None:
        async def main() -> None:
            async with _opened(self.opener()) as store:
                await work(store)

        asyncio.run(main())


@asynccontextmanager
async def _opened(opener: Opener) -> AsyncIterator[StateStore]:
    store = opener()
    try:
        yield store
    finally:
        await store.close()


async def _read(store: StateStore) -> list[tuple[What, bytes]]:
    return [piece async for piece in store.read()]


async def _expect(store: StateStore, pieces: Sequence[tuple[What, bytes]]) -> None:
    found = await _read(store)
    assert found == list(pieces), [(what, len(data)) for what, data in found]


async def _refused(work: Awaitable[object]) -> None:
    try:
        await work
    except StoreConflict:
        return
    raise AssertionError("expected StoreConflict, and nothing was raised")


def _as_read(items: Sequence[Item]) -> list[tuple[What, bytes]]:
    return [(What.ITEM, data) for _, data in items]


def _items(number: int) -> list[Item]:
    return [(version, _written(version)) for version in range(number)]


def _bytes(seed: int, size: int) -> bytes:
    """That many bytes which no store finds small."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def _written(version: int) -> bytes:
    return _bytes(version, 100 + version * 7919 % 40_000)


def _start(work: Callable[..., None], opener: Opener, *arguments: int) -> tuple[BaseProcess, _Received]:
    ours, theirs = _processes.Pipe(duplex=False)
    process = _processes.Process(target=work, args=(opener, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


async def _end(store: StateStore) -> int:
    """The newest version that a store has; -1: none."""
    version = -1
    async for what, data in store.read():
        version = int(data) if what == What.MANIFEST else version + (what == What.ITEM)
    return version


def _append(opener: Opener, pipe: _Sent, turn: int, _: int) -> None:
    """Append item after item, now and then several, and say after each how far it is."""

    async def main() -> None:
        async with _opened(opener) as store:
            version = await _end(store) + 1
            while True:
                count = 1 + version % 3
                await store.append([(v, _written(v)) for v in range(version, version + count)])
                version += count
                pipe.send((version - 1, b""))

    asyncio.run(main())


def _snapshots(opener: Opener, pipe: _Sent, turn: int, _: int) -> None:
    """Append, make a snapshot, forget, and say after each which version it is of."""

    async def main() -> None:
        async with _opened(opener) as store:
            version = await _end(store)
            await store.forget()
            while True:
                version += 1
                await store.append([(version, _written(version))])
                snapshot = Snapshot(_bytes(version * 100 + turn, 16), version)
                await store.put_chunk(snapshot, 1, _bytes(version + 1, 100_000))
                await store.put_chunk(snapshot, 2, _bytes(version + 2, 100_000))
                await store.complete(snapshot, b"%d" % version)
                pipe.send((version, b""))
                await store.forget()

    asyncio.run(main())


def _continue(opener: Opener, pipe: _Sent, worker: int, turns: int) -> None:
    """Continue one log from what is there, as often as it takes to win so many versions."""

    async def main() -> None:
        won = 0
        while won < turns:
            with suppress(StoreError):
                async with _opened(opener) as store:
                    version = await _end(store) + 1
                    data = b"%d.%d" % (worker, won)
                    await store.append([(version, data)])
                    pipe.send((version, data))
                    won += 1
            await asyncio.sleep(0.001 * (worker + 1))

    asyncio.run(main())
