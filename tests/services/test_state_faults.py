"""State stores that are full, slow or gone, and come back: nothing accepted is lost, and nothing is half there."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests._stores import S3, Postgres, postgres, s3
from tests.services.test_store_faults import Way, small_disk, way

from conclave.errors import StoreError, StoreFull, StoreUnavailable
from conclave.host.states import Item, Snapshot, StateStore, What
from conclave.host.states.files import FileStates
from conclave.host.states.opening import open_state
from conclave.host.stores import open_store

__all__ = ["postgres", "s3", "small_disk", "way"]
pytestmark = pytest.mark.slow
_MIB = 1024 * 1024


def run(url: str, work: Callable[[StateStore], Awaitable[None]], *, timeout_seconds: float = 60) -> None:
    async def main() -> None:
        blobs = open_store(url, timeout_seconds=timeout_seconds)
        store = open_state(url, blobs)
        try:
            await work(store)
        finally:
            await store.close()
            await blobs.close()

    asyncio.run(main())


async def read(store: StateStore) -> list[tuple[What, bytes]]:
    return [piece async for piece in store.read()]


async def fill(store: StateStore, items: list[Item], size: int) -> Item:
    """Append until there is no room; the item that had none."""
    while True:
        item = (len(items), os.urandom(size))
        try:
            await store.append([item])
        except StoreFull:
            return item
        items.append(item)


@pytest.mark.spec("STORE-24", "STORE-12")
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_full_disk(small_disk: Path, kind: str) -> None:
    """Everything accepted is there; the same item is refused until there is room, and then goes on by itself."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(6 * _MIB))
    items: list[Item] = []

    async def work(store: StateStore) -> None:
        refused = await fill(store, items, 300_000)
        assert len(items) > 5
        for _ in range(3):
            with pytest.raises(StoreFull):
                await store.append([refused])
        # Reading needs no room.
        assert await read(store) == [(What.ITEM, data) for _, data in items]
        ballast.unlink()
        await store.append([refused])
        await store.append([(len(items) + 1, b"small")])
        items.extend([refused, (len(items) + 1, b"small")])

    run(f"{kind}:{small_disk / 'store'}", work)

    async def again(store: StateStore) -> None:
        assert await read(store) == [(What.ITEM, data) for _, data in items]

    run(f"{kind}:{small_disk / 'store'}", again)


@pytest.mark.spec("STORE-24")
def test_a_snapshot_that_finds_no_room_gives_its_own_back(small_disk: Path) -> None:
    async def work(store: StateStore) -> None:
        items: list[Item] = [(0, bytes(1000))]
        await store.append(items)
        snapshot = Snapshot(bytes(16), 0)
        index = 1
        with suppress(StoreFull):
            while index < 100:
                await store.put_chunk(snapshot, index, os.urandom(_MIB))
                index += 1
        assert 2 < index < 100
        with pytest.raises(StoreError):
            await store.complete(snapshot, b"manifest")
        # The log has room again at once.
        items.append((1, os.urandom(4 * _MIB)))
        await store.append(items[1:])
        assert await read(store) == [(What.ITEM, data) for _, data in items]

    run(f"file:{small_disk / 'store'}", work)


@pytest.mark.spec("STORE-19", "STORE-14")
def test_a_bucket_whose_answer_to_an_append_is_lost(s3: S3, way: Way) -> None:
    """It happened, the writer cannot know, and gives the same bytes again; another's are refused."""
    url = f"s3:{s3.bucket()}/x"

    async def work(store: StateStore) -> None:
        await store.append([(0, b"zero")])
        way.status(500, after=True)
        with pytest.raises(StoreUnavailable):
            await store.append([(1, b"one"), (2, b"two")])
        way.open()
        await store.append([(1, b"one"), (2, b"two")])
        await store.append([(3, b"three")])
        way.status(500)
        with pytest.raises(StoreUnavailable):
            await store.append([(4, b"four")])
        way.open()
        await store.append([(4, b"four")])
        assert [data for _, data in await read(store)] == [b"zero", b"one", b"two", b"three", b"four"]

    run(url, work, timeout_seconds=5)


@pytest.mark.spec("STORE-20")
def test_a_bucket_with_a_hole(s3: S3) -> None:
    from conclave.errors import StoreDamaged

    url = f"s3:{s3.bucket()}/x"

    async def work(store: StateStore) -> None:
        for version in range(4):
            await store.append([(version, b"x")])
        blobs = open_store(url)
        name = f"state/log/{1:020d}"
        whole = await blobs.get(name)
        assert whole is not None
        for damaged in (None, whole[0][:-1], whole[0] + b"x", b""):
            await blobs.delete(name)
            if damaged is not None:
                await blobs.put(name, damaged)
            with pytest.raises(StoreDamaged):
                await read(store)
        await blobs.put(name, whole[0])
        assert len(await read(store)) == 4
        await blobs.close()

    run(url, work)


@pytest.mark.spec("STORE-13", "STORE-18")
def test_a_database_that_is_stopped_in_the_middle(postgres: Postgres) -> None:
    url = postgres.database()
    try:

        async def work(store: StateStore) -> None:
            await store.append([(0, b"zero")])
            postgres.stop("immediate")
            try:
                with pytest.raises(StoreUnavailable):
                    await store.append([(1, b"one")])
            finally:
                postgres.start()
            await store.append([(1, b"one")])
            assert [data for _, data in await read(store)] == [b"zero", b"one"]

        run(url, work, timeout_seconds=3)
    finally:
        postgres.drop(url)


@pytest.mark.spec("STORE-18")
def test_a_disk_that_hangs_holds_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop goes on while a write waits for a disk that was slow before."""
    from conclave.host.states import segments

    hangs, real = threading.Event(), os.fdatasync

    def fdatasync(descriptor: int) -> None:
        hangs.wait(20)
        real(descriptor)

    async def main() -> None:
        store = FileStates(tmp_path / "state")
        monkeypatch.setattr(segments.os, "fdatasync", fdatasync)
        writing = asyncio.create_task(store.append([(0, b"zero")]))
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not writing.done()
        hangs.set()
        await writing
        await store.close()

    asyncio.run(main())
