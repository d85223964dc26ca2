"""One HTTP request and its answer, as an ASGI application sees it or as callbacks write it.

Runs in the untrusted host. A request arrives through `feed` and `end`; its answer
leaves through `answer` in one piece, or through an ASGI application in a task.

Spec: spec/http.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol
from urllib.parse import unquote

import httptools

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Body = bytes | bytearray | memoryview

# A body that nobody takes is read no further than this ahead.
READ_AHEAD: Final = 256 * 1024
# Below this one copy is cheaper than a write of many pieces.
_JOIN: Final = 16 * 1024
_NO_BODY: Final = frozenset({204, 304})
_REASONS: Final = {
    200: b"OK",
    201: b"Created",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    410: b"Gone",
    413: b"Content Too Large",
    414: b"URI Too Long",
    417: b"Expectation Failed",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    507: b"Insufficient Storage",
}
# What our own server offers its application beside ASGI, see `passed_on`.
_PASSED_ON: Final = "conclave.passed_on"
STATUSES: Final = frozenset(_REASONS)
OTHER: Final = "other"
# Requests are counted by the first part of their path, if it is one of these.
ROUTES: Final = {
    f"/{name}".encode(): f"/{name}"
    for name in (
        "mail",
        "stream",
        "instance",
        "challenge",
        "outbox",
        "health",
        "healthz",
        "readyz",
        "metrics",
        "openapi.json",
    )
}


def route(url: bytes) -> str:
    """The resource that a request was for, as one of a few words."""
    found = ROUTES.get(url)
    if found is None:
        first = url.partition(b"?")[0].split(b"/", 2)[:2]
        found = ROUTES.get(b"/".join(first), OTHER)
    return found


class Gone(OSError):
    """The client has closed its connection: nothing more can be sent to it."""


class Wire(Protocol):
    """What an exchange needs of the connection that it came over."""

    @property
    def transport(self) -> asyncio.Transport: ...
    def finished(self, exchange: Exchange) -> None:
        """The answer is written whole."""

    def flow(self) -> None:
        """Read on, or stop reading: how much of the body waits has changed."""

    async def writable(self) -> None:
        """Wait until the client has read enough. Raises Gone."""

    def failed(self, exchange: Exchange, error: Exception | None) -> None:
        """The application ended without a whole answer."""

    def give_back(self, size: int) -> None:
        """So much of a body that was counted is held no more."""


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return b"HTTP/1.1 %d %s\r\n" % (status, _REASONS.get(status, b"Status"))


@lru_cache(maxsize=1024)
def _answer_head(status: int, content_type: bytes, size: int, connection: bytes) -> bytes:
    return b"%scontent-type: %s\r\ncontent-length: %d\r\n%s\r\n" % (
        status_line(status),
        content_type,
        size,
        connection,
    )


def refusal(status: int, word: str, detail: str, more: bytes = b"") -> bytes:
    """A whole error answer, after which the connection closes."""
    body = json.dumps({"error": word, "detail": detail}).encode()
    head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
    return status_line(status) + head + more + b"\r\n" + body


class Exchange:
    """A request under way."""

    # Told when the client goes away before it has its answer.
    on_gone: Callable[[], None] | None = None
    task: asyncio.Task[None] | None = None
    # One is made for every request: what it begins with stands here once.
    complete = started = begun = answered = expects = False
    # The client has closed its connection.
    gone = False
    # Bytes of the body that are held, here or by the application, and count against the server's bound.
    counted = 0
    status = 0
    _body: Body = b""
    _head = b""
    _bare = _chunked = _read = False
    _wake: asyncio.Future[None] | None = None

    def __init__(
        self, wire: Wire, method: bytes, url: bytes, version: str, headers: Headers, *, keep_alive: bool, collects: bool
    ) -> None:
        """Take the head of a request.

        Args:
            collects: nothing starts before the body has come whole.
        """
        self.wire = wire
        self.method = method
        self.url = url
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self.collects = collects

    # The request --------------------------------------------------------------------

    def feed(self, data: Body) -> None:
        """Take a piece of the body."""
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytearray):
            self._body += data
        else:
            # Many small pieces must not cost more than their bytes.
            self._body = bytearray(self._body)
            self._body += data
        self._awake()

    def end(self) -> None:
        """The body has come whole."""
        self.complete = True
        self._awake()

    def lost(self) -> None:
        """The client has gone."""
        self.gone = True
        self._awake()
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()
        if self.task is None:
            # An application at work still holds what it has read, though nobody waits for its answer.
            self.passed_on()

    def passed_on(self) -> None:
        """The body is held no more: it went to the enclave, or nobody will take it."""
        size, self.counted = self.counted, 0
        if size:
            self.wire.give_back(size)

    @property
    def held(self) -> int:
        """How much of the body waits here."""
        return len(self._body)

    def take(self) -> Body:
        """The body as it came so far."""
        body, self._body = self._body, b""
        return body

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def go_on(self) -> None:
        """Tell a client that asked first that its body is welcome."""
        if self.expects:
            self.expects = False
            self.wire.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def receive(self) -> Message:
        """ASGI: the next piece of the body; later, that the client has gone or has its answer.

        Raises:
            Gone: the client left in the middle of its request.
        """
        while not (self._body or self.complete or self.gone):
            self.go_on()
            await self._wait()
        if self.gone and not self.complete:
            # An application that takes a disconnect for the end of the body would act on half of it.
            raise Gone("the client has closed its connection before its request was whole")
        if self._read:
            while not (self.gone or self.answered):
                await self._wait()
            return {"type": "http.disconnect"}
        body = bytes(self.take())
        self._read = self.complete
        self.wire.flow()
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    async def _wait(self) -> None:
        if self._wake is None or self._wake.done():
            self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    # The answer ---------------------------------------------------------------------

    def answer(self, status: int, content_type: bytes, parts: Sequence[bytes]) -> None:
        """Send a whole answer. To a client that has gone, nothing is sent."""
        if self.gone:
            return
        self.status = status
        size = sum(map(len, parts))
        head = _answer_head(status, content_type, size, self._connection())
        if size <= _JOIN:
            self.wire.transport.write(b"".join((head, *parts)))
        else:
            self.wire.transport.writelines((head, *parts))
        self._done()

    def _connection(self) -> bytes:
        if not self.keep_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self.version == "1.0" else b""

    def _done(self) -> None:
        self.answered = True
        self.on_gone = None
        if self._wake is not None:
            self._awake()
        self.wire.finished(self)

    async def send(self, message: Message) -> None:
        """ASGI: a piece of the answer; waits while the client does not read.

        Raises:
            Gone: the client has closed its connection.
        """
        if self.gone:
            raise Gone("the client has closed its connection")
        if message["type"] == "http.response.start" and not self.begun:
            self.begun = True
            self._head = self._begin(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body" and self.begun and not self.answered:
            more = message.get("more_body", False)
            self._send_body(message.get("body", b""), more)
            if not more:
                self._done()
            else:
                await self.wire.writable()
        else:
            raise RuntimeError(f"an answer has one start, then its body: not {message['type']} now")

    def _begin(self, status: int, headers: Headers) -> bytes:
        self.status = status
        lines = [status_line(status)]
        sized = False
        for name, value in headers:
            name = name.lower()
            if b"\n" in value or b"\r" in value:
                raise RuntimeError("a header value has a line break")
            sized = sized or name == b"content-length"
            if name not in (b"connection", b"transfer-encoding"):
                lines.append(b"%s: %s\r\n" % (name, value))
        self._bare = status in _NO_BODY or self.method == b"HEAD"
        if not sized and not self._bare:
            if self.version == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        lines += (self._connection(), b"\r\n")
        return b"".join(lines)

    def _send_body(self, body: bytes, more: bool) -> None:
        head, self._head = self._head, b""
        if self._bare:
            body = b""
        parts = [head] if head else []
        if self._chunked:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more:
                parts.append(b"0\r\n\r\n")
        elif body:
            parts.append(body)
        if len(body) <= _JOIN:
            self.wire.transport.write(b"".join(parts))
        else:
            self.wire.transport.writelines(parts)

    def run(self, app: App, scope: Scope | None = None) -> None:
        """Have an ASGI application answer, in a task."""
        self.task = asyncio.get_running_loop().create_task(self._run(app, scope))

    async def _run(self, app: App, scope: Scope | None) -> None:
        try:
            await app(self.scope() if scope is None else scope, self.receive, self.send)
        except Gone:
            return
        except Exception as error:
            self.wire.failed(self, error)
            return
        finally:
            self.task = None
            self.passed_on()
        if not (self.answered or self.gone):
            self.wire.failed(self, None)

    def scope(self) -> Scope:
        """What ASGI tells an application of this request. Raises ValueError: the target is none."""
        path, query = target(self.url)
        transport = self.wire.transport
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": self.version,
            "method": self.method.decode("ascii"),
            "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": self.headers,
            "client": _address(transport.get_extra_info("peername")),
            "server": _address(transport.get_extra_info("sockname")),
            "extensions": {_PASSED_ON: self.passed_on},
        }


def passed_on(scope: Scope) -> None:
    """An application holds a request's body no more, though its answer may take long. Our own server counts them."""
    tell = (scope.get("extensions") or {}).get(_PASSED_ON)
    if tell is not None:
        tell()


def target(url: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request target, as a proxy or a client writes it. Raises ValueError."""
    if url == b"*":
        return b"*", b""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        raise ValueError("not a request target") from None
    path, query = parsed.path or b"/", parsed.query or b""
    path.decode("ascii"), query.decode("ascii")
    return path, query


def _address(found: object) -> tuple[str, int] | None:
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
