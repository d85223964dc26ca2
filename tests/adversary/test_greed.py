"""One party that takes what is there for all: of the host, of the enclave, of a client (T-33, T-35, T-38)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack, suppress
from typing import Any, cast

import httpx2
import pytest
from tests._chunks import seal

from conclave._chunkheader import MAX_CONTENT
from conclave._crypto import SigningKey
from conclave._framing import Frame, Kind, pack
from conclave.bundle import Bundle
from conclave.client import Client, _box
from conclave.client._box import Box, Collector
from conclave.client.core import Answer, Opened
from conclave.enclave._posts import PostBounds, Posts
from conclave.enclave.sdk import Post
from conclave.errors import OverloadedError, TransportError
from conclave.host import link as links
from conclave.host import order
from conclave.host.exchange import Receive, Scope, Send
from conclave.host.gate import Gate
from conclave.host.link import Link
from conclave.host.order import Reorder
from conclave.host.outbox import Outbox, OutboxLimits
from conclave.host.place import Place
from conclave.host.server import Limits, Server
from conclave.mail import EnclaveSession
from conclave.mail.post import Address, make_post
from conclave.testing import HostServer

DIGEST = bytes(64)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


# The host's HTTP server --------------------------------------------------------------


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    size = int(scope["path"].strip("/"))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(size)})


@pytest.mark.spec("T-33", "HTTP-6")
@pytest.mark.parametrize("tail", [b"0\r\nX: ", b"1;x="], ids=["trailer", "extension"])
def test_a_trailer_or_extension_that_never_ends(tail: bytes) -> None:
    """The parser keeps what it has of a header and copies it with each piece: that must end early."""

    async def work() -> None:
        server = Server(_echo, limits=Limits(linger_seconds=1))
        port = int((await server.start(Place("127.0.0.1", 0))).rpartition(":")[2])
        head = b"POST /0 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + tail)
        for _ in range(16):
            writer.write(b"a" * 16384)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
        writer.close()
        # One that does end is nobody's harm.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        good = b"1;x=1\r\na\r\n0\r\nX: 1\r\n\r\n"
        writer.write(head)
        for at in range(len(good)):
            writer.write(good[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await server.stop(0)

    run(work)


@pytest.mark.spec("T-33", "HTTP-7")
def test_answers_that_nobody_reads() -> None:
    """Who takes a byte now and then is not silent; together such clients must not hold the host's memory."""
    size, limit = 8 * 1024 * 1024, 32 * 1024 * 1024

    async def work() -> None:
        server = Server(_echo, limits=Limits(unsent_bytes=limit))
        port = int((await server.start(Place("127.0.0.1", 0))).rpartition(":")[2])
        with ExitStack() as stack:
            greedy = []
            for _ in range(10):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                sock.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % size)
                greedy.append(sock)
            async with asyncio.timeout(20):
                while sum(c.transport.get_write_buffer_size() > 0 for c in server.connections) < 10:
                    await asyncio.sleep(0.05)
                while sum(c.transport.get_write_buffer_size() for c in server.connections) > limit:
                    await asyncio.sleep(0.05)
            # Those that fit are served on.
            assert len(server.connections) >= limit // size
        await server.stop(0)

    run(work)


@pytest.mark.spec("T-33", "HTTP-1")
def test_sessions_that_strangers_invent_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail of good form needs no key. The host must not forget who is at work, or let one wait that it forgot."""
    monkeypatch.setattr(order, "MAX_SESSIONS", 100)
    reorder = Reorder(patience_seconds=60)
    at_work, silent = b"w" * 16, b"s" * 16
    for counter in range(8):
        assert reorder.in_turn(at_work, counter)
        assert reorder.in_turn(silent, counter)
    for number in range(1000):
        assert reorder.in_turn(number.to_bytes(16, "big"), 0)
        if number % 50 == 0:
            assert reorder.in_turn(at_work, 8 + number // 50, opening=False)
    # One at work is still known, and its early mails wait for those before them.
    assert not reorder.in_turn(at_work, 40, opening=False)
    # One that was pushed out was answered before: there is no other mail to wait for.
    assert reorder.in_turn(silent, 8, opening=False)
    assert not reorder.in_turn(b"n" * 16, 1, opening=True)


# The host channel --------------------------------------------------------------------


@pytest.mark.spec("T-33")
def test_an_enclave_that_is_busy_does_not_fill_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that send and go away leave their mails in the channel; it must not take any number of them."""
    monkeypatch.setattr(links, "MAX_UNREAD", 4 * 1024 * 1024)

    async def work() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            _, link = await asyncio.get_running_loop().create_connection(
                lambda: Link(lambda frame: None, lambda: None), sock=ours
            )
            taken = 0
            with suppress(TransportError):
                while taken < 100:
                    link.drop(link.ask(Kind.MAIL, bytes(1024 * 1024)))
                    taken += 1
                    await asyncio.sleep(0)
            assert 3 <= taken <= 8
            link.close()

    run(work)


def test_frames_without_a_payload_are_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile enclave answers one request with millions of empty frames, or posts nothing as often."""
    monkeypatch.setattr(links, "MAX_HELD", 64 * 1024)

    async def work(kind: Kind, request: int) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with ours, theirs:
            _, link = await asyncio.get_running_loop().create_connection(
                lambda: Link(lambda frame: None, lambda: None, lambda payload, durable: None), sock=ours
            )
            link.ask(Kind.MAIL, b"")
            sent = 0
            frames = pack(kind, request) * 256
            for _ in range(2000):
                with suppress(BlockingIOError):
                    sent += theirs.send(frames)
                await asyncio.sleep(0)
            assert link._paused
            link.close()

    for kind, request in ((Kind.REPLY, 1), (Kind.POST, 0)):
        asyncio.run(work(kind, request))


def test_a_reply_behind_the_gate_counts_until_it_leaves() -> None:
    async def work() -> None:
        kept: list[Callable[[], None]] = []
        gate = Gate(lambda payload, durable: kept.append(durable), lambda frames: None)
        for number in range(10):
            assert gate.holds(Frame(Kind.POST, 0, b""))
            assert gate.holds(Frame(Kind.DONE, number + 1, b""))
        assert gate.held > 20 * 64
        for durable in kept:
            durable()
        assert gate.held == 0
        gate.close()

    run(work)


# Posted mail -------------------------------------------------------------------------


def _session(identity: bytes, reply_key: bytes, topic: str = "t") -> EnclaveSession:
    session = EnclaveSession.__new__(EnclaveSession)
    session.identity, session.reply_key, session.topic = identity, reply_key, topic
    return session


def _posts(**bounds: int) -> Posts:
    return Posts(
        signer=SigningKey.generate(), claims_digest=DIGEST, send=lambda payload: None, bounds=PostBounds(**bounds)
    )


@pytest.mark.spec("T-38", "MAIL-35")
@pytest.mark.parametrize(
    "bounds", [{"mails_per_identity": 20}, {"bytes_per_identity": 50_000}, {"lines_per_identity": 20}], ids=str
)
def test_a_client_with_any_number_of_boxes_fills_its_own_share_alone(bounds: dict[str, int]) -> None:
    """A reply key is free. With a bound for each box alone, one client would fill the outbox of all."""
    posts = _posts(**bounds)
    hostile, honest = bytes(32), b"h" * 32
    reply_key = Box.generate().reply_key.public
    taken = 0
    with suppress(OverloadedError):
        while taken < 100:
            posts.post([Post(Address(hostile, reply_key, f"t{taken}").encode(), b"x")])
            taken += 1
    assert 10 <= taken <= 30
    posts.post([Post(Address(honest, reply_key, "t").encode(), b"x")])
    # What it acknowledges is free again, but for the channels that were posted on.
    for number in range(taken):
        posts.acknowledge(_session(hostile, reply_key, f"t{number}"), 1)
    posts.post([Post(Address(hostile, reply_key, "t0").encode(), b"x")])


@pytest.mark.spec("T-38", "MAIL-35")
def test_a_client_with_any_number_of_topics_makes_the_enclave_forget_its_own_alone() -> None:
    posts = _posts(topics_per_identity=10, lines=50)
    hostile, honest = bytes(32), b"h" * 32
    posts.opened(_session(honest, b"k" * 1216))
    for number in range(1000):
        posts.opened(_session(hostile, b"r" * 1216, f"t{number}"))
    assert posts.address(honest, "t")
    assert posts.address(hostile, "t999")
    # Many identities push each other out, the one that was silent longest first; the whole stays bounded.
    for number in range(100):
        posts.opened(_session(number.to_bytes(32, "big"), b"r" * 1216))
    assert posts._topics == sum(map(len, posts._reply_keys.values())) <= 50


@pytest.mark.spec("T-38", "HTTP-13")
def test_a_claim_that_comes_back_is_not_deleted_behind_its_owner() -> None:
    async def work() -> None:
        outbox = Outbox(limits=OutboxLimits(claims=2))
        await outbox.start()
        boxes, capabilities = [bytes([n]) * 16 for n in range(4)], [bytes([n]) * 32 for n in range(4)]
        for box, capability in zip(boxes, capabilities, strict=True):
            assert await outbox.claim(box, capability)
        assert outbox.box_of(capabilities[0]) is None
        assert await outbox.claim(boxes[0], capabilities[0])
        await outbox._tidy()
        again = Outbox(outbox._store)
        await again.start()
        assert again.box_of(capabilities[0]) == boxes[0]
        for one in (outbox, again):
            await one.stop()

    run(work)


def test_mail_that_comes_before_the_wait_ends_it() -> None:
    async def work() -> None:
        outbox = Outbox()
        await outbox.start()
        box = Box.generate()
        durable = asyncio.Event()
        made = make_post(
            Address(bytes(32), box.reply_key.public, "t"),
            b"",
            number=0,
            acknowledged=0,
            signer=SigningKey.generate(),
            claims_digest=DIGEST,
            size=512,
        )
        outbox.put(len(made).to_bytes(4, "big") + made, durable.set)
        async with asyncio.timeout(20):
            await durable.wait()
            assert await outbox.wait(box.id, 3600, after=0)
            [(number, _)] = await outbox.read(box.id, 0, most_bytes=1)
            assert await outbox.wait(box.id, 0.01, after=number)
        await outbox.stop()

    run(work)


@pytest.mark.spec("T-36")
def test_a_host_that_never_says_who_posted_does_not_fill_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """One mail given over and over, under new numbers, while the sender's claims are withheld."""
    monkeypatch.setattr(_box, "MAX_UNRESOLVED_BYTES", 100_000)
    box, identity = Box.generate(), bytes(32)
    mail = make_post(
        Address(identity, box.reply_key.public, "t"),
        bytes(8000),
        number=0,
        acknowledged=0,
        signer=SigningKey.generate(),
        claims_digest=DIGEST,
        size=9000,
    )
    place = 0

    def ask(method: str, path: str, body: bytes = b"", **_: object) -> Generator[Any, Any, Answer]:
        nonlocal place
        if method != "GET":
            return Answer(204)
        place += 1
        return Answer(200, place.to_bytes(8, "big") + len(mail).to_bytes(4, "big") + mail)
        yield

    def sender(digest: bytes) -> Generator[Any, Any, None]:
        raise TransportError("not now")
        yield

    collector = Collector(box, identity, ask=cast(Any, ask), sender=cast(Any, sender))
    for _ in range(40):
        assert not _result(collector.fetch("t", 0))
    assert sum(len(item.mail) for item in collector._unresolved) <= 100_000


def _result(steps: Iterator[Any]) -> Any:
    try:
        next(steps)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it asked for more")


# Streams -----------------------------------------------------------------------------

SOURCE = """
from collections.abc import AsyncIterator
from conclave.enclave import Enclave, rpc


class Sink(Enclave):
    @rpc
    async def up(self, data: AsyncIterator[bytes]) -> int:
        size = 0
        async for item in data:
            size += len(item)
        return size
"""


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("sink", SOURCE)


@pytest.mark.slow
@pytest.mark.spec("T-35", "MAIL-26")
def test_items_that_never_end_leave_room_for_others(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with (
        serve(bundle) as server,
        Client(server.url, constraint=only(bundle)) as hostile,
        Client(server.url, constraint=only(bundle)) as honest,
        httpx2.Client(base_url=server.url, timeout=30) as http,
        ExitStack() as stack,
    ):
        kept = refused = 0
        for _ in range(6):
            opened: Opened = hostile._run(lambda: hostile._core.open_stream("up", [], topic="default", upload=True))
            stack.enter_context(http.stream("POST", "/mail", content=opened.mail))
            for _ in range(31):
                chunks = [seal(opened.sealer, bytes(MAX_CONTENT)) for _ in range(2)]
                body = b"".join(len(c).to_bytes(4, "big") + c for c in chunks)
                if http.post("/stream", content=body).status_code != 204:
                    refused += 1
                    break
                kept += 2 * MAX_CONTENT
        assert refused == 5
        assert kept < 40 * 1024 * 1024
        assert honest.call_stream("up", upload=[bytes(1000)] * 100, returns=int).result() == 100_000
