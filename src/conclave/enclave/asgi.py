"""Serves any ASGI application as an enclave.

Runs inside the enclave. Requests come inside mail, from clients that are
strangers until the application says otherwise; the host sees none of it.
Connection, scheme and sender in the scope are ours, and nothing that a client
writes into a header changes them.

Spec: spec/asgi.md.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, ClassVar, Final
from urllib.parse import unquote

from conclave.enclave.sdk import Enclave
from conclave.rpc.http import (
    HOP_BY_HOP,
    BadRequest,
    HttpExchange,
    RequestHead,
    ResponseHead,
    announced_size,
    check_request,
    encode_head,
)
from conclave.rpc.interface import rpc

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Body = bytes | AsyncIterator[bytes]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# Requests that run at a time; of one sender, so that no client takes them all.
MAX_REQUESTS: Final = 1024
MAX_OF_ONE: Final = 128
# Of an application's start, and of its requests when the end was asked for: the host waits for 120, and for 5 in all.
START_SECONDS: Final = 100.0
FINISH_SECONDS: Final = 3.0
# A response goes out in parts of this size, however large those are that the application makes.
_PART: Final = 256 * 1024
_ASGI: Final = {"version": "3.0", "spec_version": "2.5"}
# Nobody knows where a client is; what it talks to is this enclave and nothing else.
_SERVER: Final = ("enclave", 443)


class AsgiEnclave(HttpExchange, Enclave):
    """An enclave whose clients speak HTTP with an ASGI application.

    `conclave run module:attribute` makes one by itself. Subclass it to decide who is
    admitted, and name the application: `application = staticmethod(app)`.
    """

    application: ClassVar[staticmethod[[Scope, Receive, Send], Awaitable[None]]]

    async def on_start(self) -> None:
        """Start the application's lifespan, if it has one.

        Raises:
            RuntimeError: the application says that it cannot start, or says nothing.
        """
        self._requests: Counter[bytes] = Counter()
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._lifespan = _Lifespan(self.application, self._tell)
        await self._lifespan.start()

    async def on_stop(self) -> None:
        """Let the requests under way and then the application come to their end."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=FINISH_SECONDS)
            # Some responses have no end, and what they keep from ending is the application.
            for task in late:
                task.cancel()
            await asyncio.sleep(0)
        await self._lifespan.stop()

    @rpc(retry=False)
    def request(self, head: RequestHead, body: bytes) -> AsyncIterator[bytes]:
        """A request with its body."""
        return self._handle(head, body, self.sender)

    @rpc(retry=False)
    def upload(self, head: RequestHead, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """A request whose body comes after it."""
        return self._handle(head, body, self.sender)

    async def _handle(self, head: RequestHead, body: Body, sender: bytes) -> AsyncIterator[bytes]:
        # 1. What no application shall see.
        try:
            announced = check_request(head)
            if isinstance(body, bytes) and announced not in (None, len(body)):
                raise BadRequest(400, "the body has another size than content-length says")
            if self._running >= MAX_REQUESTS or self._requests[sender] >= MAX_OF_ONE:
                raise BadRequest(503, "too many requests at a time; try again later")
        except BadRequest as error:
            yield _plain(error.status, str(error))
            return
        # 2. The application, as a task of its own: what it does after the response is not the client's to wait for.
        exchange = _Exchange(head, body, announced)
        scope = _scope(head, sender, dict(self._lifespan.state))
        task = asyncio.get_running_loop().create_task(exchange.run(self.application, scope, self._report))
        self._count(task, sender)
        # 3. The response, as fast as the client takes it.
        try:
            async for part in exchange.response():
                yield part
        finally:
            exchange.disconnect()

    def _count(self, task: asyncio.Task[None], sender: bytes) -> None:
        self._running += 1
        self._requests[sender] += 1
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._running -= 1
            self._requests[sender] -= 1
            if not self._requests[sender]:
                del self._requests[sender]

        task.add_done_callback(done)

    def _report(self) -> None:
        if self.instance.mode == "debug":
            traceback.print_exc(file=sys.stderr)

    def _tell(self, text: str) -> None:
        if self.instance.mode == "debug":
            print(text, file=sys.stderr)


def enclave_of(application: object) -> type[AsgiEnclave]:
    """An enclave class around an ASGI application.

    Raises:
        TypeError: it is none.
    """
    if isinstance(application, type) or not callable(application):
        raise TypeError("an ASGI application is an object that can be called, and no class")
    try:
        signature = inspect.signature(application)
    except ValueError:
        # What is written in C may not say what it takes.
        signature = inspect.Signature.from_callable(lambda *_: None)
    try:
        signature.bind({}, None, None)
    except TypeError:
        raise TypeError(
            "an ASGI application is called with scope, receive and send; this one takes something else, "
            "as WSGI applications and functions that make an application do"
        ) from None
    return type("Application", (AsgiEnclave,), {"application": staticmethod(application)})


def _scope(head: RequestHead, sender: bytes, state: dict[str, Any]) -> Scope:
    return {
        "type": "http",
        "asgi": dict(_ASGI),
        "http_version": "1.1",
        "method": head.method,
        "scheme": "https",
        "path": unquote(head.path.decode("ascii")),
        "raw_path": head.path,
        "query_string": head.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in head.headers],
        "client": None,
        "server": _SERVER,
        "state": state,
        "extensions": {"conclave": {"sender": sender}},
    }


def _plain(status: int, text: str) -> bytes:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    return encode_head(ResponseHead(status=status, headers=headers)) + body


class _Exchange:
    """One request and its response: what passes between an application and a client."""

    def __init__(self, head: RequestHead, body: Body, announced: int | None) -> None:
        self._whole = body if isinstance(body, bytes) else None
        self._parts = _nothing() if isinstance(body, bytes) else body
        self._next: asyncio.Task[bytes] | None = None
        self._left = announced
        self._read = False
        self._silent = head.method == "HEAD"
        self._head: bytes | None = None
        self._promised: int | None = None
        self._begun = self._complete = self._ended = False
        # One part at a time: an application is never further than that ahead of its client.
        self._part: bytes | None = None
        self._given, self._taken, self._gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self, application: Application, scope: Scope, report: Callable[[], None]) -> None:
        """Call the application, and see to it that there is a response."""
        try:
            await application(scope, self.receive, self.send)
            if not self._complete and not self._gone.is_set():
                raise RuntimeError("the application returned before its response was complete")
        except BaseException:
            # A client that left is no fault of the application's, whatever it makes of it.
            if not self._gone.is_set():
                report()
        finally:
            if not self._begun and not self._gone.is_set():
                self._part, self._complete = _plain(500, "Internal Server Error"), True
            self._ended = True
            self._given.set()

    def disconnect(self) -> None:
        """The client takes no more, or has it all."""
        self._gone.set()
        self._taken.set()
        if self._next is not None:
            self._next.cancel()

    async def response(self) -> AsyncIterator[bytes]:
        """The reply, part by part.

        Raises:
            RuntimeError: the application did not finish what it began.
        """
        while True:
            await self._given.wait()
            self._given.clear()
            part, self._part = self._part, None
            self._taken.set()
            if part is not None:
                for at in range(0, len(part), _PART):
                    yield part[at : at + _PART]
            if self._part is None and (self._complete or self._ended):
                break
        if not self._complete:
            raise RuntimeError("the response is incomplete")

    async def receive(self) -> Message:
        """The application's `receive`. May be cancelled without losing anything."""
        while not (self._read or self._complete or self._gone.is_set()):
            if self._whole is not None:
                self._read = True
                return {"type": "http.request", "body": self._whole, "more_body": False}
            if self._next is None:
                self._next = asyncio.get_running_loop().create_task(self._following())
            waiting = self._next
            await asyncio.wait({waiting})
            if self._next is not waiting:
                continue
            self._next = None
            # Whatever ended the body early: there is nobody to answer any more.
            part = None if waiting.cancelled() or waiting.exception() else waiting.result()
            if part is None or not self._fits(part):
                self.disconnect()
            else:
                self._read = not part
                return {"type": "http.request", "body": part, "more_body": not self._read}
        if not self._complete:
            await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _following(self) -> bytes:
        """The next part of the body; none is empty but the end."""
        async for part in self._parts:
            if part:
                return part
        return b""

    def _fits(self, part: bytes) -> bool:
        """Whether the body keeps to the size that the head announced."""
        if self._left is None:
            return True
        self._left -= len(part)
        return self._left >= 0 if part else self._left == 0

    async def send(self, message: Message) -> None:
        """The application's `send`; waits while the client has not taken what came before.

        Raises:
            OSError: the client is gone.
            RuntimeError: such a message does not come now.
        """
        kind = message["type"]
        if self._complete or kind != ("http.response.body" if self._head else "http.response.start"):
            raise RuntimeError("a response is http.response.start, then http.response.body until one has no more_body")
        if kind == "http.response.start":
            self._begin(int(message["status"]), list(message.get("headers", ())))
            return
        body, last = _octets(message.get("body", b"")), not message.get("more_body", False)
        if self._promised is not None and not self._silent:
            self._promised -= len(body)
            if self._promised < 0 or (last and self._promised):
                raise RuntimeError("the response's body has another size than its content-length")
        part = b"" if self._silent else body
        if not self._begun:
            assert self._head is not None
            part = self._head + part
        if part:
            await self._give(part)
        else:
            # An application that sends nothing without end would keep everybody else waiting.
            await asyncio.sleep(0)
            self._check()
        if last:
            self._complete = True
            self._given.set()

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        made = [(_octets(name).lower(), _octets(value).strip(b" \t")) for name, value in headers]
        head = ResponseHead(status=status, headers=[(n, v) for n, v in made if n not in HOP_BY_HOP])
        promised = announced_size(head.headers)
        self._head = encode_head(head)
        self._promised = promised
        self._silent |= status in (204, 304)

    async def _give(self, part: bytes) -> None:
        while self._part is not None and not self._gone.is_set():
            self._taken.clear()
            await self._taken.wait()
        self._check()
        self._begun = True
        self._part = part
        self._given.set()

    def _check(self) -> None:
        if self._gone.is_set():
            raise OSError("the client is gone")


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def _octets(value: object) -> bytes:
    # bytes() makes of a number so many zeros.
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("headers and bodies of a response are bytes")
    return bytes(value)


class _Lifespan:
    """An application's start and end, if it wants to hear of them."""

    def __init__(self, application: Application, tell: Callable[[str], None]) -> None:
        self.state: dict[str, Any] = {}
        self._application = application
        self._tell = tell
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait until the application has started, or does not know the protocol.

        Raises:
            RuntimeError: it refuses to start, or does not say in time that it has.
        """
        self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            async with asyncio.timeout(START_SECONDS):
                answer = await self._ask("lifespan.startup")
        except TimeoutError:
            raise RuntimeError(f"the application's lifespan did not start within {START_SECONDS:.0f} seconds") from None
        if answer["type"] == "lifespan.startup.failed":
            raise RuntimeError(f"the application says that it cannot start: {answer.get('message', '')}")

    async def stop(self) -> None:
        """Wait until the application has ended."""
        answer = await self._ask("lifespan.shutdown")
        if answer["type"] == "lifespan.shutdown.failed":
            self._tell(f"the application says that it did not end well: {answer.get('message', '')}")

    async def _ask(self, kind: str) -> Message:
        """Say something; gives what is answered, or nothing if nobody listens."""
        assert self._task is not None
        self._messages.put_nowait({"type": kind})
        answer = asyncio.get_running_loop().create_task(self._answers.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        return {"type": ""}

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": dict(_ASGI), "state": self.state}
        try:
            await self._application(scope, self._messages.get, self._answers.put)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            # An application without a lifespan raises, each in its own way (ASGI, lifespan protocol).
            self._tell(f"the application has no lifespan, or it failed: {type(error).__name__}: {error}")
