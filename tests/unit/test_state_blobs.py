"""State in blobs: two hosts on one store, and what is deleted when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from conclave.errors import StoreConflict
from conclave.host.outbox import InMemory
from conclave.host.states import Item, Snapshot, What, blobs
from conclave.host.states.blobs import GRACE_SECONDS, BlobStates

ITEMS: list[Item] = [(version, b"%d" % version) for version in range(12)]


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(blobs, "time", made)
    return made


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    asyncio.run(main())


async def read(store: BlobStates) -> list[tuple[What, bytes]]:
    return [piece async for piece in store.read()]


async def snapshot(store: BlobStates, version: int, *, number: int = 1) -> None:
    made = Snapshot(bytes([number]) * 16, version)
    await store.put_chunk(made, 1, b"chunk")
    await store.complete(made, b"manifest")
    await store.forget()


@pytest.mark.spec("STORE-25", "STORE-19")
def test_a_host_that_was_away_while_another_compacted(clock: Clock) -> None:
    """Whenever it comes back: its next blob is there, or it sees the snapshot."""

    async def work() -> None:
        shared = InMemory()
        here, away = BlobStates(shared), BlobStates(shared)
        await here.append(ITEMS[:3])
        assert len(await read(away)) == 3
        for item in ITEMS[3:8]:
            await here.append([item])
        await snapshot(here, 7)
        names = await shared.list("state/log/")
        assert names[1].endswith("3")
        with pytest.raises(StoreConflict):
            await away.append([(3, b"other")])
        clock.now += GRACE_SECONDS - 1
        await here.forget()
        assert await shared.list("state/log/") == names
        clock.now += 2
        await here.forget()
        assert await shared.list("state/log/") == names[-1:]
        # Its place is free now.
        with pytest.raises(StoreConflict, match="made a snapshot"):
            await away.append([(3, b"other")])
        assert await shared.list("state/log/") == names[-1:]
        await here.append(ITEMS[8:9])
        assert [data for _, data in await read(here)] == [b"manifest", b"chunk", b"8"]

    run(work)


@pytest.mark.spec("STORE-25", "STORE-21")
def test_a_snapshot_whose_chunks_another_host_deleted(clock: Clock) -> None:
    """It never becomes complete, so that nothing is deleted for it."""

    async def work() -> None:
        shared = InMemory()
        here, other = BlobStates(shared), BlobStates(shared, grace_seconds=0)
        await here.append(ITEMS[:3])
        made = Snapshot(bytes(16), 2)
        await here.put_chunk(made, 1, b"one")
        await other.forget()
        await here.put_chunk(made, 2, b"two")
        with pytest.raises(StoreConflict):
            await here.complete(made, b"manifest")
        assert [data for _, data in await read(here)] == [b"0", b"1", b"2"]

    run(work)


@pytest.mark.spec("STORE-25")
def test_one_blob_for_what_is_appended_together() -> None:
    async def work() -> None:
        shared = InMemory()
        store = BlobStates(shared)
        await store.append(ITEMS[:3])
        await store.append(ITEMS[3:4])
        assert await shared.list("") == [f"state/log/{version:020d}" for version in (0, 3)]
        made = Snapshot(b"\xab" * 16, 3)
        await store.put_chunk(made, 1, b"chunk")
        assert await shared.list("state/snapshots/") == [f"state/snapshots/{3:020d}-{'ab' * 16}/{1:010d}"]
        await store.complete(made, b"manifest")
        assert await shared.list("state/snapshots/") == [
            f"state/snapshots/{3:020d}-{'ab' * 16}/{index:010d}" for index in (0, 1)
        ]

    run(work)
