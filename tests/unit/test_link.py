"""What a host holds of an enclave's answers: counted while it waits, and given back."""

from __future__ import annotations

import asyncio

import pytest

from conclave._chunkheader import CHUNK_MAGIC
from conclave._framing import Kind, pack
from conclave.host.link import Ask, Link
from conclave.host.streams import FRAME_WEIGHT, MOST_WAITING

CHUNK = CHUNK_MAGIC + bytes(60)


class Kernel(asyncio.Transport):
    """Takes everything, and is closed by the link alone."""

    closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


class Linked:
    def __init__(self) -> None:
        self.link, self.kernel = Link(lambda frame: None, lambda: None), Kernel()
        self.link.connection_made(self.kernel)

    def arrives(self, *frames: bytes) -> None:
        """One read of these."""
        data = b"".join(frames)
        self.link.get_buffer(-1)[: len(data)] = data
        self.link.buffer_updated(len(data))

    def ask(self) -> Ask:
        return self.link.ask(Kind.MAIL, b"mail")


@pytest.mark.anyio
async def test_what_is_taken_at_once_is_never_held() -> None:
    at = Linked()
    ask, taken = at.ask(), []
    ask.waiter = lambda one: taken.append([bytes(frame.payload) for frame in one.take()])
    at.arrives(pack(Kind.REPLY, ask.request, b"one"), pack(Kind.DONE, ask.request, b"two"))
    assert taken == [[b"one", b"two"]]
    assert ask.done
    assert (at.link._held, ask.held, ask.counted) == (0, 0, 0)


@pytest.mark.anyio
async def test_what_waits_is_counted_once_and_given_back() -> None:
    at = Linked()
    ask, dropped = at.ask(), at.ask()
    for number in range(1, 4):
        at.arrives(pack(Kind.REPLY, ask.request, b"12345"), pack(Kind.REPLY, dropped.request, b"1"))
        assert ask.held == number * (FRAME_WEIGHT + 5)
        assert at.link._held == ask.held + dropped.held
    at.link.drop(dropped)
    assert at.link._held == ask.held
    assert len(ask.take()) == 3
    assert (at.link._held, ask.held) == (0, 0)
    at.arrives(pack(Kind.DONE, ask.request, b"x"))
    assert at.link._held == FRAME_WEIGHT + 1


@pytest.mark.anyio
async def test_chunks_beyond_what_was_asked_for_end_the_link() -> None:
    at = Linked()
    ask, other = at.ask(), at.ask()
    told: list[Ask] = []
    other.waiter = told.append
    for _ in range(2):
        for _ in range(MOST_WAITING):
            at.arrives(pack(Kind.REPLY, ask.request, CHUNK))
        assert ask.chunks == MOST_WAITING
        assert not at.kernel.closed
        # They are bounded by credit, and weigh nothing.
        assert at.link._held == 0
        ask.take()
    chunks = [pack(Kind.REPLY, ask.request, CHUNK)] * (MOST_WAITING + 1)
    at.arrives(*chunks, pack(Kind.DONE, other.request, b""))
    assert at.kernel.closed
    # Whoever came to an answer with them has it.
    assert told == [other]
