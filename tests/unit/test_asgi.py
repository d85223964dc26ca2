"""What passes between an ASGI application and its client, message by message."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conclave import _codec
from conclave.enclave import asgi
from conclave.enclave.asgi import AsgiEnclave, enclave_of
from conclave.errors import FormatError
from conclave.rpc.http import MAX_HEAD, HeadReader, RequestHead, ResponseHead, encode_head

SENDER = bytes(range(32))
Send = Callable[[dict[str, Any]], Awaitable[None]]


def made(application: Any, *, mode: str = "release") -> AsgiEnclave:
    enclave = enclave_of(application)()
    enclave._context = SimpleNamespace(claims=SimpleNamespace(mode=mode))  # type: ignore[assignment]
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
    for other in (lambda: None, lambda environ, start_response: [], lambda scope: None, lambda a, b, c, d: None):
        with pytest.raises(TypeError, match="is called with scope, receive and send"):
            enclave_of(other)


def test_what_is_an_application() -> None:
    async def function(scope: Any, receive: Any, send: Any, settings: Any = None) -> None: ...

    class Framework:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    # The last one is written in C, and does not say what it takes.
    for value in (function, functools.partial(function, settings=1), Framework(), Framework().__call__, {}.update):
        assert issubclass(enclave_of(value), AsgiEnclave)


async def replied(enclave: AsgiEnclave, **changed: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    whole = HeadReader().feed(b"".join([p async for p in ask(enclave, **changed)]))
    assert whole is not None
    return whole[0].status, whole[0].headers, whole[1]


def start(status: Any = 200, *headers: tuple[Any, Any]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


END = {"type": "http.response.body", "body": b""}
MISUSES: dict[str, tuple[dict[str, Any], ...]] = {
    "two starts": (start(), start()),
    "no start": (END,),
    "an informational status": (start(103), END),
    "a switch of protocols": (start(101), END),
    "a status that is none": (start(1000), END),
    "a status in words": (start("fine"), END),
    "a second header in a value": (start(200, (b"location", b"/\r\nset-cookie: a=b")), END),
    "a zero in a value": (start(200, (b"a", b"\0")), END),
    "a name with a space": (start(200, (b"a b", b"")), END),
    "a name that is none": (start(200, (b"", b"")), END),
    "a name in text": (start(200, ("a", b"")), END),
    "a value that is a number": (start(200, (b"a", 10**12)), END),
    "a size that int() would take": (start(200, (b"content-length", b"1_0")), END),
    "a negative size": (start(200, (b"content-length", b"-1")), END),
    "two sizes": (start(200, (b"content-length", b"0"), (b"Content-Length", b"0")), END),
    "a body in text": (start(), {**END, "body": "text"}),
    "a body that is a number": (start(), {**END, "body": 10**12}),
    "trailers": (start(), {"type": "http.response.trailers", "headers": []}),
    "a push": (start(), {"type": "http.response.push", "path": "/", "headers": []}),
    "a web socket's answer": ({"type": "websocket.accept"},),
    "no type": ({},),
}


@pytest.mark.spec("ASGI-7", "ASGI-8")
@pytest.mark.parametrize("name", MISUSES)
def test_an_application_that_misuses_send_is_a_500(name: str) -> None:
    raised: list[BaseException] = []

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        try:
            for message in MISUSES[name]:
                await send(message)
        except BaseException as error:
            raised.append(error)
            raise

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        assert await replied(enclave) == (
            500,
            [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"21")],
            b"Internal Server Error",
        )
        assert len(raised) == 1

    run(work)


@pytest.mark.spec("ASGI-7", "ASGI-9")
def test_what_comes_after_the_end() -> None:
    after: list[object] = []

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await begin(send, (b"x-spaces", b" a \t"))
        await part(send, b"whole", more=False)
        for message in (END, start()):
            try:
                await send(message)
            except RuntimeError as error:
                after.append(type(error))
        # Asked as often as it likes; nothing of the body is told any more.
        for _ in range(3):
            after.append((await receive())["type"])

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        assert await replied(enclave) == (200, [(b"x-spaces", b"a")], b"whole")
        while enclave._running:
            await asyncio.sleep(0)
        assert after == [RuntimeError, RuntimeError, *3 * ["http.disconnect"]]

    run(work)


@pytest.mark.spec("ASGI-7", "ASGI-9")
@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_a_body_that_nobody_gets_holds_nobody_up(method: str, status: int) -> None:
    """An endless response, asked for by HEAD: others have their turn, and its end is noticed."""
    sent: list[int] = []
    noticed: list[str] = []

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await begin(send, status=status)
        try:
            for n in range(100_000):
                await part(send, b"x" * 100, more=True)
                sent.append(n)
        except OSError as error:
            noticed.append(str(error))

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        reply = ask(enclave, method=method)
        whole = HeadReader().feed(await anext(reply))
        assert whole is not None
        assert whole[1] == b""
        await reply.aclose()  # type: ignore[attr-defined]
        while enclave._running:
            await asyncio.sleep(0)
        assert noticed == ["the client is gone"]
        assert len(sent) < 100

    run(work)


def test_nothing_is_taken_of_a_body_that_nobody_reads() -> None:
    taken: list[int] = []
    stopped: list[bool] = []

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        assert (await receive())["body"] == b"0"
        await begin(send, status=413)
        await part(send, b"enough", more=False)

    async def body() -> AsyncIterator[bytes]:
        try:
            for n in range(1_000_000):
                taken.append(n)
                yield b"%d" % n
        finally:
            stopped.append(True)

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        assert (await replied(enclave, body=body()))[0] == 413
        assert taken == [0]

    run(work)


@pytest.mark.spec("ASGI-9")
def test_what_an_application_began_it_may_finish() -> None:
    """A client that leaves is told to the application; nothing of it is cancelled in the middle."""
    finish = asyncio.Event()
    written: list[str] = []

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        written.append("debited")
        await begin(send)
        await part(send, b"", more=True)
        await finish.wait()
        written.append("credited")

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        reply = ask(enclave)
        await anext(reply)
        await reply.aclose()  # type: ignore[attr-defined]
        assert enclave._running == 1
        finish.set()
        while enclave._running:
            await asyncio.sleep(0)
        assert written == ["debited", "credited"]

    run(work)


@pytest.mark.spec("ASGI-10")
def test_a_response_without_end_does_not_keep_the_lifespan_from_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "FINISH_SECONDS", 0.01)
    heard: list[str] = []

    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "http":
            await begin(send)
            await part(send, b"begun", more=True)
            try:
                await asyncio.Event().wait()
            finally:
                heard.append("cancelled")
        for _ in range(2):
            heard.append((await receive())["type"])
            await send({"type": heard[-1] + ".complete"})

    async def work() -> None:
        enclave = made(application)
        await enclave.on_start()
        reply = ask(enclave)
        await anext(reply)
        await enclave.on_stop()
        assert heard == ["lifespan.startup", "cancelled", "lifespan.shutdown"]

    run(work)


@pytest.mark.spec("ASGI-10")
def test_a_start_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "START_SECONDS", 0.01)

    async def application(scope: Any, receive: Any, send: Send) -> None:
        await asyncio.Event().wait()

    async def work() -> None:
        with pytest.raises(RuntimeError, match="the application's lifespan did not start within 0 seconds"):
            await made(application).on_start()

    run(work)


@pytest.mark.spec("ASGI-8", "ASGI-10")
@pytest.mark.parametrize("mode", ["release", "debug"])
def test_what_went_wrong_is_told_in_debug_mode_alone(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def application(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "http":
            raise ValueError("SECRET-OF-A-REQUEST")
        await receive()
        if scope["state"]:
            raise KeyError("SECRET-OF-THE-START")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "SECRET-OF-THE-END"})

    async def work() -> None:
        enclave = made(application, mode=mode)
        await enclave.on_start()
        assert (await replied(enclave))[0] == 500
        await enclave.on_stop()
        enclave._lifespan.state["broken"] = True
        await enclave._lifespan.start()

    run(work)
    told = capsys.readouterr()
    assert told.out == ""
    for secret in ("SECRET-OF-A-REQUEST", "SECRET-OF-THE-START", "SECRET-OF-THE-END"):
        assert (secret in told.err) == (mode == "debug")


@pytest.mark.spec("ASGI-10")
def test_an_application_without_a_lifespan_is_spoken_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def application(scope: Any, receive: Any, send: Send) -> None:
        raise ValueError("only HTTP is spoken here")

    async def work() -> None:
        enclave = made(application, mode="debug")
        await enclave.on_start()
        await enclave.on_stop()

    run(work)
    told = "the application has no lifespan, or it failed: ValueError: only HTTP is spoken here\n"
    assert capsys.readouterr().err == told
