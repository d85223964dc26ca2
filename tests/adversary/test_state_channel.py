"""An enclave that breaks the protocol of state against its host, over a real channel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests._state import boot_header, commit, record, snapshot

from conclave._framing import Frame, FrameReader, Kind, pack
from conclave.errors import TransportError
from conclave.host.journal import Journal
from conclave.host.link import Link
from conclave.host.outbox import Outbox
from conclave.host.states import MemoryStates, What


class Channel:
    """A fake enclave's end of the channel, and the host's link and journal."""

    def __init__(self, theirs: socket.socket, store: MemoryStates) -> None:
        self.socket = theirs
        self.reader = FrameReader(Kind)
        self.outbox = Outbox()
        self.journal = Journal(store, outbox=self.outbox, lost=lambda: self.link.close())
        self.unasked: list[Frame] = []
        self.lost = asyncio.Event()
        self.link = Link(self._unasked, self.lost.set, self.outbox.put, state=self.journal)
        self._loads: set[asyncio.Task[None]] = set()

    def _unasked(self, frame: Frame) -> None:
        self.unasked.append(frame)
        if frame.kind == Kind.LOAD:
            self._loads.add(asyncio.create_task(self.journal.load(self.link, frame.request)))

    async def send(self, kind: int, request: int, payload: bytes = b"") -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, pack(kind, request, payload))

    async def frames(self, number: int) -> list[Frame]:
        found: list[Frame] = []
        async with asyncio.timeout(10):
            while len(found) < number:
                data = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 20)
                assert data, "the host hung up"
                found += self.reader.feed(data)
        return found

    async def load(self) -> list[Frame]:
        """LOAD, and what answers it up to its end."""
        await self.send(Kind.LOAD, 1)
        found: list[Frame] = []
        while not found or found[-1].payload[:1] not in (bytes([What.END]), bytes([What.UNREADABLE])):
            found += await self.frames(1)
        return found


@asynccontextmanager
async def channel(store: MemoryStates | None = None) -> AsyncIterator[Channel]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    made = Channel(theirs, store or MemoryStates())
    await made.outbox.start()
    made.journal.start()
    await asyncio.get_running_loop().create_connection(lambda: made.link, sock=ours)
    try:
        yield made
    finally:
        made.link.close()
        theirs.close()
        await made.journal.stop()
        await made.outbox.stop()


def test_a_boot_loads_commits_and_is_told() -> None:
    async def work() -> None:
        store = MemoryStates()
        async with channel(store) as c:
            assert [f.payload for f in await c.load()] == [bytes([What.END])]
            await c.send(Kind.COMMIT, 0, commit(0, boot=boot_header()))
            await c.send(Kind.COMMIT, 0, commit(1, b"one"))
            committed = []
            while not committed or committed[-1] != 1:
                committed += [int.from_bytes(f.payload, "big") for f in await c.frames(1)]
        async with channel(store) as c:
            found = await c.load()
            assert [f.kind for f in found] == [Kind.STORED] * 3
            assert [f.payload for f in found[:2]] == [
                bytes([What.ITEM]) + record(0, boot=boot_header()),
                bytes([What.ITEM]) + record(1, b"one"),
            ]

    asyncio.run(work())


BAD = {
    "before it loaded": (False, [(Kind.COMMIT, commit(0, boot=boot_header()))]),
    "a gap": (True, [(Kind.COMMIT, commit(1))]),
    "a version twice": (True, [(Kind.COMMIT, commit(0, boot=boot_header()))] * 2),
    "another version than its record's": (True, [(Kind.COMMIT, (5).to_bytes(8, "big") + commit(0)[8:])]),
    "cut off": (True, [(Kind.COMMIT, commit(0)[:20])]),
    "empty": (True, [(Kind.COMMIT, b"")]),
    "no record": (True, [(Kind.COMMIT, bytes(8) + (40).to_bytes(4, "big") + bytes(40))]),
    "a snapshot of what was never committed": (True, [(Kind.SNAPSHOT, snapshot(1, 1, 0))]),
    "a snapshot before it loaded": (False, [(Kind.SNAPSHOT, snapshot(1, 1, 0))]),
    "a piece of another snapshot": (
        True,
        [
            (Kind.COMMIT, commit(0, boot=boot_header())),
            (Kind.SNAPSHOT, snapshot(1, 1, 0)[:28] + snapshot(2, 1, 0)[28:]),
        ],
    ),
    "an empty snapshot": (True, [(Kind.SNAPSHOT, b"")]),
}


@pytest.mark.spec("CHAN-17", "CHAN-20")
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_ends_the_boot(case: str) -> None:
    loads, frames = BAD[case]

    async def work() -> None:
        store = MemoryStates()
        async with channel(store) as c:
            if loads:
                await c.load()
            for kind, payload in frames:
                await c.send(kind, 0, payload)
            async with asyncio.timeout(5):
                await c.lost.wait()
        # The host works on for the next boot.
        async with channel(store) as c:
            assert (await c.load())[-1].payload == bytes([What.END])

    asyncio.run(work())


def test_whoever_sends_much_learns_that_the_enclave_is_gone() -> None:
    async def work() -> None:
        async with channel() as c:
            while c.link._drained is None:
                c.link.tell(Kind.STORED, 1, bytes(1 << 20))
                await asyncio.sleep(0)
            waiting = asyncio.create_task(c.link.drained())
            await asyncio.sleep(0)
            c.socket.close()
            with pytest.raises(TransportError):
                await asyncio.wait_for(waiting, 5)

    asyncio.run(work())
