"""Under load one crossing carries many frames; alone, one carries one at once."""

from __future__ import annotations

import asyncio
import socket

import pytest

from conclave._framing import Frame, FrameReader, Kind, pack
from conclave.enclave._runtime import _Output
from conclave.host.link import Link

MANY = 64


class Recorder(asyncio.Transport):
    """The kernel's side: each write that it was given."""

    def get_write_buffer_size(self) -> int:
        return 0

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: object) -> None:
        self.writes.append(b"".join(list_of_data))  # type: ignore[arg-type]


@pytest.mark.spec("CHAN-2")
@pytest.mark.parametrize(("size", "each"), [(1000, 32), (70_000, 4)])
def test_requests_that_wait_leave_together(size: int, each: int) -> None:
    """So many in one write; of large ones as many as a processor's cache holds."""

    async def crossings(count: int) -> tuple[int, list[Frame]]:
        link, kernel = Link(lambda frame: None, lambda: None), Recorder()
        link.connection_made(kernel)
        for _ in range(count):
            link.ask(Kind.MAIL, bytes(size))
        await asyncio.sleep(0)
        return len(kernel.writes), FrameReader(Kind).feed(b"".join(kernel.writes))

    alone, frames = asyncio.run(crossings(1))
    assert (alone, len(frames)) == (1, 1)
    together, frames = asyncio.run(crossings(MANY))
    assert together <= MANY // each
    assert [f.request for f in frames] == list(range(1, MANY + 1))


@pytest.mark.spec("CHAN-2")
def test_replies_to_one_read_leave_together() -> None:
    """Packets keep apart what was written apart."""

    async def crossings(count: int) -> list[bytes]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.setblocking(False)
            output = _Output(asyncio.get_running_loop(), ours)
            output.hold()
            for number in range(count):
                output.send(Kind.DONE, number + 1, b"reply")
            output.release()
            theirs.setblocking(False)
            packets = []
            try:
                while True:
                    packets.append(theirs.recv(1 << 20))
            except BlockingIOError:
                return packets

    assert len(asyncio.run(crossings(1))) == 1
    packets = asyncio.run(crossings(MANY))
    assert len(packets) <= MANY // 32
    assert [f.request for f in FrameReader(Kind).feed(b"".join(packets))] == list(range(1, MANY + 1))


def test_a_channel_that_is_full_loses_nothing() -> None:
    async def pieces() -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            loop = asyncio.get_running_loop()
            output = _Output(loop, ours)
            for number, payload in enumerate(PAYLOADS):
                output.send(Kind.REPLY, number, payload)
            received = b""
            while len(received) < len(EXPECTED):
                received += await loop.sock_recv(theirs, 100_003)
            return received

    assert asyncio.run(pieces()) == EXPECTED


PAYLOADS = [bytes([n % 256]) * size for n, size in enumerate([0, 1, 200_000, 0, 0, 65_536, 3, 1_000_000, 0] * 3)]
EXPECTED = b"".join(pack(Kind.REPLY, n, p) for n, p in enumerate(PAYLOADS))
