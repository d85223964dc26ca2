"""The journal: commits in order, durable before what follows them; a boot is given all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests._state import boot_header, commit, record

from conclave._framing import Kind
from conclave.host.journal import Journal
from conclave.host.outbox import Outbox
from conclave.host.states import Item, MemoryStates, StateStore, What
from conclave.host.states.files import FileStates


class Enclave:
    """What a boot was told."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, bytes]] = []

    def tell(self, kind: Kind, request: int, payload: bytes) -> None:
        self.frames.append((kind, request, payload))

    async def drained(self) -> None:
        await asyncio.sleep(0)

    def stored(self) -> list[tuple[int, bytes]]:
        return [(payload[0], payload[1:]) for kind, _, payload in self.frames if kind == Kind.STORED]

    def committed(self) -> list[int]:
        return [int.from_bytes(payload, "big") for kind, _, payload in self.frames if kind == Kind.COMMITTED]


class Failing(MemoryStates):
    """A state store that fails or waits while told to."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.held: asyncio.Event | None = None
        self.batches: list[list[int]] = []

    async def append(self, items: Sequence[Item]) -> None:
        self.batches.append([version for version, _ in items])
        if self.held is not None:
            await self.held.wait()
        if self.error is not None:
            raise self.error
        await super().append(items)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def opened(store: StateStore | None = None, **options: Any) -> tuple[Journal, Outbox]:
    outbox = options.pop("outbox", None) or Outbox()
    await outbox.start()
    journal = Journal(store, outbox=outbox, **options)
    journal.start()
    return journal, outbox


async def close(journal: Journal, outbox: Outbox) -> None:
    await journal.stop()
    await outbox.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_boot_is_given_what_was_committed(kind: str, tmp_path: Path) -> None:
    store: StateStore = MemoryStates() if kind == "memory" else FileStates(tmp_path / "state")

    async def work() -> None:
        journal, outbox = await opened(store)
        first, durable = Enclave(), []
        await journal.load(first, 1)
        assert first.frames == [(Kind.STORED, 1, bytes([What.END]))]
        journal.commit(commit(0, boot=boot_header()), lambda: durable.append(0))
        for version in range(1, 5):
            journal.commit(commit(version, b"%d" % version), lambda version=version: durable.append(version))
        assert durable == []
        await until(lambda: len(durable) == 5)
        assert durable == [0, 1, 2, 3, 4]
        assert first.committed()[-1] == 4
        second = Enclave()
        await journal.load(second, 7)
        assert {request for _, request, _ in second.frames} == {7}
        assert second.stored() == [
            (What.ITEM, record(0, boot=boot_header())),
            *((What.ITEM, record(version, b"%d" % version)) for version in range(1, 5)),
            (What.END, b""),
        ]
        await close(journal, outbox)

    run(work)
