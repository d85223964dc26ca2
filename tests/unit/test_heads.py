"""A head that was read before changes nothing but the time it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from conclave.host.connection import Connection, Limits
from conclave.host.exchange import Body, Exchange
from conclave.host.heads import MAX_KNOWN, MAX_SIZE, Heads
from conclave.host.server import Server

pytestmark = pytest.mark.spec("HTTP-4")


class Recorder(asyncio.Transport):
    """The client's side: all that was written, and how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.end = ""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return bool(self.end)

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def write_eof(self) -> None:
        self.end = self.end or "last words"

    def close(self) -> None:
        self.end = self.end or "closed"

    def abort(self) -> None:
        self.end = self.end or "cut"


class Forgetful(Heads):
    """Reads every head."""

    def learn(self, head: bytes, headers: Any, length: int) -> None: ...


Outcome = tuple[list[bytes], bytes, str]


def outcome(pieces: Iterable[bytes], heads: Heads, limits: Limits | None = None) -> Outcome:
    """What a server makes of a connection: the mails it took, what it wrote, and how it ended."""
    mails: list[bytes] = []

    def take(body: Body, exchange: Exchange) -> bool:
        mails.append(bytes(body))
        exchange.answer(200, b"text/plain", [b"%d" % len(mails)])
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nothing here goes the long way")

    async def run() -> Outcome:
        server = Server(app, mail=take, limits=limits)
        server.heads = heads
        connection, transport = Connection(server), Recorder()
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        found = mails, transport.written, transport.end
        connection.connection_lost(None)
        assert server.collected == 0
        return found

    return asyncio.run(run())


def head(*more: str, length: int = 5, line: str = "POST /mail HTTP/1.1", host: str = "Host: a") -> bytes:
    return "\r\n".join((line, host, *more, f"Content-Length: {length}", "", "")).encode()


REQUESTS = [head() + b"first", head() + b"again", head(length=3) + b"abc", head() + b"third"]
PLAIN = b"".join(REQUESTS)


def knowing() -> Heads:
    heads = Heads()
    assert outcome(REQUESTS, heads)[0] == [b"first", b"again", b"abc", b"third"]
    assert heads.find(head())
    assert heads.find(head(length=3))
    return heads


@pytest.mark.spec("HTTP-5")
def test_mails_come_whole_however_their_bytes_are_cut() -> None:
    heads, expected = knowing(), outcome([PLAIN], Forgetful())
    for at in range(1, len(PLAIN)):
        assert outcome([PLAIN[:at], PLAIN[at:]], heads) == expected
    assert outcome([PLAIN[at : at + 1] for at in range(len(PLAIN))], heads) == expected
    # Each request by itself, as a client sends them that waits for answers.
    assert outcome(REQUESTS, heads) == expected


@pytest.mark.spec("HTTP-5")
@pytest.mark.parametrize(
    "after",
    [
        b"",
        b"\r\n\r\n" + head() + b"third",
        head("Connection: close") + b"third" + head() + b"never",
        head("Connection: close") + b"third",
        head("Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head().replace(b"\r\n\r\n", b"\n\n") + b"third",
        head(line="GET /mail HTTP/1.1") + b"third",
        head(line="POST /mail HTTP/2.0") + b"third",
        head(host="Host: a\r\nHost: b") + b"third",
        head(length=2**40) + b"third",
        b"garbage" + head() + b"third",
        b"\0" + head() + b"third",
        head()[:-2] + b" folded: x\r\n\r\nthird",
    ],
)
def test_what_follows_a_known_head_is_judged_as_always(after: bytes) -> None:
    data = head() + b"first" + after
    expected = outcome([data], Forgetful())
    heads = knowing()
    assert outcome([data], heads) == expected
    assert outcome([head() + b"first", after], heads) == outcome([head() + b"first", after], Forgetful())
    for at in range(1, len(data)):
        assert outcome([data[:at], data[at:]], heads) == outcome([data[:at], data[at:]], Forgetful())


def test_a_known_head_within_another_one_is_none() -> None:
    pieces = [b"POST /mail HTTP/1.1\r\nConnection: close\r\nX: ", head() + b"first"]
    assert outcome(pieces, knowing()) == outcome(pieces, Forgetful())
    assert outcome(pieces, knowing())[2] == "closed"


def test_a_known_head_waits_for_the_answer_before_it() -> None:
    heads, taken = knowing(), list[Exchange]()

    def take(body: Body, exchange: Exchange) -> bool:
        taken.append(exchange)
        return True

    async def run() -> None:
        server = Server(lambda *_: asyncio.sleep(0), mail=take)
        server.heads = heads
        connection, transport = Connection(server), Recorder()
        connection.connection_made(transport)
        for number in range(3):
            connection.data_received(head() + b"%05d" % number)
        for number in range(3):
            assert len(taken) == number + 1
            taken[number].answer(200, b"text/plain", [b"%d" % number])
        assert [part[-1:] for part in transport.written.split(b"HTTP/1.1 ")[1:]] == [b"0", b"1", b"2"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "request_",
    [
        head("Connection: close") + b"first",
        head("Connection: upgrade", "Upgrade: x") + b"first",
        head("Expect: 100-continue") + b"first",
        head(line="POST /mail HTTP/1.0") + b"first",
        head(line="POST /mail?x HTTP/1.1") + b"first",
        head("X: \xe9") + b"first",
        head("X: " + MAX_SIZE * "x") + b"first",
        head(length=0),
        b"\r\n" + head() + b"first",
        b"POST /mail HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
    ],
)
def test_only_the_plainest_heads_are_known(request_: bytes) -> None:
    heads = Heads()
    for _ in range(2):
        assert outcome([request_], heads) == outcome([request_], Forgetful())
    assert not heads._known


@pytest.mark.spec("HTTP-7")
def test_bodies_with_a_known_head_count_against_the_limit() -> None:
    for pieces in ([head() + b"first"], [head() + b"fir", b"st"], [head(), b"first"]):
        assert outcome(pieces, knowing(), Limits(collected_bytes=5))[0] == [b"first"]
        mails, written, end = outcome(pieces, knowing(), Limits(collected_bytes=4))
        assert (mails, end) == ([], "last words")
        assert written.startswith(b"HTTP/1.1 503 ")


@pytest.mark.spec("HTTP-7")
def test_few_heads_are_kept() -> None:
    heads = Heads()
    for number in range(3 * MAX_KNOWN):
        outcome([head(f"X: {number}") + b"first"], heads)
        assert 0 < len(heads._known) <= MAX_KNOWN
    assert heads.find(head(f"X: {number}"))
