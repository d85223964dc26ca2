"""What passes between an ASGI application and its client, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conclave import _codec
from conclave.enclave.asgi import AsgiEnclave, enclave_of
from conclave.errors import FormatError
from conclave.rpc.http import MAX_HEAD, HeadReader, RequestHead, ResponseHead, encode_head

SENDER = bytes(range(32))
Send = Callable[[dict[str, Any]], Awaitable[None]]


def made(application: Any) -> AsgiEnclave:
    enclave = enclave_of(application)()
    enclave._context = SimpleNamespace(claims=SimpleNamespace(mode="release"))  # type: ignore[assignment]
    return enclave


def ask(enclave: AsgiEnclave, body: bytes | AsyncIterator[bytes] = b"", **changed: Any) -> AsyncIterator[bytes]:
    head = RequestHead(**{"method": "POST", "path": b"/", "query": b"", "headers": [], **changed})
    return enclave._handle(head, body, SENDER)


async def begin(send: Send, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def part(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(bounded())


@pytest.mark.spec("ASGI-6")
@pytest.mark.parametrize(
    ("sizes", "announced", "breaks", "seen"),
    [
        ([3, 3], b"6", False, ["http.request", "http.request", "http.request"]),
        ([3, 3], None, False, ["http.request", "http.request", "http.request"]),
        ([3, 2], b"6", False, ["http.request", "http.request", "http.disconnect"]),
        ([3, 4], b"6", False, ["http.request", "http.disconnect"]),
        ([3], None, True, ["http.request", "http.disconnect"]),
        ([3, 3], b"6", True, ["http.request", "http.request", "http.disconnect"]),
    ],
)
def test_a_body_is_whole_or_a_disconnect(
    sizes: list[int], announced: bytes | None, breaks: bool, seen: list[str]
) -> None:
    got: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        while not got or got[-1].get("more_body"):
            got.append(await receive())

    async def body() -> AsyncIterator[bytes]:
        for size in sizes:
            yield b"x" * size
        if breaks:
            raise RuntimeError("the client gave up")

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        headers = [] if announced is None else [(b"content-length", announced)]
        broken = seen[-1] == "http.disconnect"
        try:
            reply = b"".join([p async for p in ask(enclave, body(), headers=headers)])
        except RuntimeError:
            assert broken
        else:
            assert b"Internal Server Error" in reply
            assert not broken
        assert [m["type"] for m in got] == seen
        if not broken:
            assert (got[-1]["body"], got[-1]["more_body"]) == (b"", False)

    run(work)


def test_receiving_may_be_given_up_without_loss() -> None:
    """Frameworks ask whether a client is still there by a `receive` that they cancel at once."""
    read: list[bytes] = []
    arrives = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        for _ in range(3):
            asking = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            asking.cancel()
        arrives.set()
        while (message := await receive())["more_body"]:
            read.append(message["body"])
        await begin(send)
        await part(send, b"", more=False)

    async def body() -> AsyncIterator[bytes]:
        await arrives.wait()
        for n in range(3):
            yield b"%d" % n

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        async for _ in ask(enclave, body()):
            pass
        assert read == [b"0", b"1", b"2"]

    run(work)


def test_an_application_is_one_part_ahead_of_its_client() -> None:
    sent: list[int] = []

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await begin(send)
        for n in range(100):
            await part(send, b"%d" % n, more=True)
            sent.append(n)
        await part(send, b"", more=False)

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        reply = ask(enclave)
        for n in range(100):
            assert (await anext(reply)).endswith(b"%d" % n)
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(sent) <= n + 2
        with pytest.raises(StopAsyncIteration):
            await anext(reply)
        assert len(sent) == 100

    run(work)


@pytest.mark.spec("ASGI-9")
def test_a_client_that_leaves_is_noticed_both_ways() -> None:
    noticed: list[str] = []
    ended = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        listening = asyncio.ensure_future(receive())
        assert (await listening)["type"] == "http.request"
        listening = asyncio.ensure_future(receive())
        await begin(send)
        try:
            while True:
                await part(send, b"more", more=True)
        except OSError:
            noticed.append("send")
        noticed.append((await listening)["type"])
        ended.set()

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        reply = ask(enclave)
        await anext(reply)
        await reply.aclose()  # type: ignore[attr-defined]
        await ended.wait()
        assert noticed == ["send", "http.disconnect"]
        await asyncio.sleep(0)
        assert not enclave._running

    run(work)


def test_the_lifespan_has_two_ends() -> None:
    heard: list[str] = []

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "http":
            await begin(send)
            await part(send, b"", more=False)
            await asyncio.sleep(0.01)
            heard.append("background")
            return
        for _ in range(2):
            heard.append((await receive())["type"])
            await send({"type": heard[-1] + ".complete"})

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        async for _ in ask(enclave):
            pass
        await enclave.on_stop()
        assert heard == ["lifespan.startup", "background", "lifespan.shutdown"]

    run(work)


@pytest.mark.spec("ASGI-4")
def test_a_reply_begins_with_a_head() -> None:
    head = ResponseHead(status=200, headers=[(b"a", b"1"), (b"a", b"2")])
    reply = encode_head(head) + b"body"
    for cut in range(1, len(reply)):
        reader = HeadReader()
        first = reader.feed(reply[:cut])
        if first is None:
            assert reader.feed(reply[cut:]) == (head, b"body")
        else:
            assert (first[0], first[1] + reply[cut:]) == (head, b"body")


def _framed(value: object) -> bytes:
    body = _codec.encode(value)
    return len(body).to_bytes(4, "big") + body


@pytest.mark.spec("ASGI-4")
@pytest.mark.parametrize(
    "reply",
    [
        (MAX_HEAD + 1).to_bytes(4, "big"),
        b"\0\0\0\0",
        _framed({"status": 200}),
        _framed({"headers": [], "status": 200}),
        _framed({"status": 199, "headers": []}),
        _framed({"status": 1000, "headers": []}),
        _framed({"status": 200, "headers": [[b"a b", b""]]}),
        _framed({"status": 200, "headers": [[b"a", b"\r\nb: c"]]}),
        _framed({"status": 200, "headers": [["a", b""]]}),
    ],
)
def test_what_is_no_head_is_refused(reply: bytes) -> None:
    with pytest.raises(FormatError):
        HeadReader().feed(reply)


def test_heads_of_responses_are_bounded() -> None:
    with pytest.raises(ValueError, match="at most 256 headers"):
        encode_head(ResponseHead(status=200, headers=[(b"a", b"")] * 257))
    with pytest.raises(ValueError, match="at most 256 headers and 49152 bytes"):
        encode_head(ResponseHead(status=200, headers=[(b"a", b"x" * MAX_HEAD)]))


def test_what_is_no_application() -> None:
    for value in (AsgiEnclave, dict, "app", None):
        with pytest.raises(TypeError, match="is an object that can be called, and no class"):
            enclave_of(value)
