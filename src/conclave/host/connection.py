"""One HTTP/1.1 connection: bytes to exchanges, in order, within limits.

Runs in the untrusted host; the client is untrusted too. The grammar is llhttp's
(through httptools), with none of its leniencies; what it leaves open is refused
here. Nothing that was refused reaches the application or the enclave.

Spec: spec/http.md section 3 (HTTP-4 to HTTP-9).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import httptools

from conclave._mailheader import MAX_MAIL
from conclave.host.exchange import OTHER, READ_AHEAD, ROUTES, Body, Exchange, Gone, Headers, refusal, route, target
from conclave.host.heads import END, MAX_SIZE, Head

if TYPE_CHECKING:
    from conclave.host.server import Server

METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE"})
_SMALL: Final = 8 * 1024
_END_SIZE: Final = len(END)
# More than this waits in the kernel's buffers, not here.
_HIGH_WATER: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes.

    Attributes:
        connections: open at one time; one more is answered 503 and closed, many more are just closed.
        head_bytes: request line and headers (431), trailers of a chunked body too.
        target_bytes: the request target (414).
        pipelined: requests of one connection that wait for an answer (503).
        collected_bytes: bodies that came and were not passed on to the enclave, of all connections together (503).
        head_seconds: from a request's first byte, or from the connection's start, to its headers' end (408).
        body_seconds: how long a body may come more slowly than `body_bytes_per_second` (408).
        unsent_bytes: answers that nobody takes, of all connections together; above it, those with most are cut off.
        send_seconds: how long a client may take nothing of its answer.
        idle_seconds: between two requests; a quarter of it while connections are scarce.
        linger_seconds: how long a refused client may go on sending, and a half-closed one wait for its answer.
    """

    connections: int = 10_000
    head_bytes: int = 32 * 1024
    target_bytes: int = 8 * 1024
    pipelined: int = 64
    collected_bytes: int = 512 * 1024 * 1024
    unsent_bytes: int = 512 * 1024 * 1024
    head_seconds: int = 15
    body_seconds: int = 20
    body_bytes_per_second: int = 1024
    send_seconds: int = 60
    idle_seconds: int = 75
    linger_seconds: int = 3


class _Refused(Exception):
    """The request under way is refused; what follows it is not read."""

    def __init__(self, status: int, word: str, detail: str) -> None:
        self.status = status
        self.word = word
        self.detail = detail
        super().__init__(detail)


class Connection(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limits = server.limits
        # Made anew for each connection: it is the connection's state.
        self._parser = httptools.HttpRequestParser(self)
        self._feed = self._parser.feed_data
        # Requests in the order of their answers; the first is being answered or received.
        self._line: deque[Exchange] = deque()
        self._building: Exchange | None = None
        self._url = b""
        self._headers: Headers = []
        self._head_bytes = self._unseen = 0
        # How often a request began, or a piece of a body came.
        self._calls = 0
        self._in_head = False
        # The head of the request that is read now, if the next one may be known by it.
        self._head = b""
        # Bytes of the body under way that come without the parser: its head was known.
        self._left = 0
        self._fresh = True
        # Whether anything further that the client sends is ignored.
        self._deaf = False
        self._last_words: bytes | None = None
        self._reading = True
        self._drained: asyncio.Future[None] | None = None
        self._writing = True
        # Seconds in the state of now, as the server's sweep counts them.
        self._age = 0
        self._received = 0
        self._unsent = 0
        self._lingers = self._half_closed = False

    # asyncio -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        # uvloop's transports are asyncio's by shape, not by class.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._server.connections.add(self)
        if self._server.crowded:
            self._deaf = True
            self.transport.abort()
        elif len(self._server.connections) > self._limits.connections:
            self._refuse(503, "overloaded", "too many connections are open here; try again, or another host")

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client has gone."""
        self._server.connections.discard(self)
        self._deaf = True
        line, self._line = self._line, deque()
        for exchange in line:
            exchange.lost()
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(Gone("the client has closed its connection"))
            # Whoever waited may have gone as well.
            self._drained.exception()
        self._server.left(self)

    def eof_received(self) -> bool:
        """asyncio: the client sends no more: half-closed, or gone. What it asked for is answered if that is soon."""
        self._deaf = self._half_closed = True
        if self._building is not None:
            self._line.pop()
            self._building.lost()
            self._building = None
        if self._line:
            self._line[-1].keep_alive = False
        return bool(self._line)

    def pause_writing(self) -> None:
        """asyncio: the client does not read."""
        self._writing = False
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """asyncio: the client has read."""
        self._writing = True
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
        self._step()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of the client."""
        if self._deaf:
            return
        if self._left:
            data = self._rest(data)
        elif not self._line and not self._in_head and self._writing:
            # Between two requests.
            end = data.find(END, 0, MAX_SIZE) + _END_SIZE
            head = data[:end]
            server = self._server
            known = server.heads.find(head)
            if known is None or server.collected + known.length > self._limits.collected_bytes:
                self._head = head
            else:
                data = self._known(known, data, end)
        if not data:
            # Nothing came but the one request.
            return
        if not self._deaf:
            self._parse(data)
        if len(self._line) > 1:
            self.flow()

    def _known(self, head: Head, data: bytes, start: int) -> bytes:
        """Take a request whose head was read before; what came after it."""
        headers, length = head
        exchange = Exchange(self, b"POST", b"/mail", "1.1", headers, keep_alive=True, collects=True)
        self._fresh = False
        self._age = self._received = 0
        self._line.append(exchange)
        end = start + length
        if end <= len(data):
            exchange.complete = exchange.started = True
            # Views cost more than a copy of a small mail.
            self._hand_over(exchange, data[start:end] if length < _SMALL else memoryview(data)[start:end])
            return data[end:] if end < len(data) else b""
        self._building = exchange
        self._left = length
        return self._rest(data[start:])

    def _rest(self, data: bytes) -> bytes:
        """Take a piece of the body whose head was known; what came after it."""
        left = self._left
        piece = data[:left]
        self._left -= len(piece)
        try:
            self.on_body(piece)
        except _Refused as refused:
            self._refuse(refused.status, refused.word, refused.detail)
            return b""
        if not self._left:
            self.on_message_complete()
        return data[left:]

    def _parse(self, data: bytes) -> None:
        calls = self._calls
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade:
            # The one request is answered without an upgrade, then the connection closes.
            self._deaf = True
        except httptools.HttpParserCallbackError as error:
            refused = error.__context__
            if not isinstance(refused, _Refused):
                raise
            self._refuse(refused.status, refused.word, refused.detail)
        except httptools.HttpParserError as error:
            # What follows a last request is not read, whatever it is.
            if not self._deaf:
                self._refuse(*_malformed(error))
        if calls == self._calls and (self._in_head or self._building is not None):
            # A header, a trailer or an extension that never ends: no callback sees it, and the parser keeps it.
            self._unseen += len(data)
            if self._unseen > self._limits.head_bytes and not self._deaf:
                self._refuse(*self._head_too_large())

    # httptools -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request has begun."""
        if len(self._line) >= self._limits.pipelined:
            raise _Refused(503, "overloaded", f"at most {self._limits.pipelined} requests may wait on one connection")
        self._url = b""
        self._headers = []
        self._head_bytes = self._unseen = self._age = 0
        self._calls += 1
        self._in_head = True
        self._fresh = False

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url
        self._head_bytes += len(url)
        if len(self._url) > self._limits.target_bytes:
            raise _Refused(414, "too large", f"a request target has at most {self._limits.target_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header, or a whole trailer, which nobody needs."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.head_bytes:
            raise _Refused(*self._head_too_large())
        if self._building is None:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head of a request is there: take or refuse it before its body comes."""
        parser = self._parser
        method, version = parser.get_method(), parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _Refused(505, "version", "this server speaks HTTP/1.1 and HTTP/1.0")
        if method not in METHODS:
            raise _Refused(501, "method", "no resource here takes that method; see /openapi.json")
        length, hosts, chunked, expects = 0, 0, False, False
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                chunked = True
                if version == "1.0":
                    raise _Refused(400, "format", "HTTP/1.0 has no transfer codings; send Content-Length")
                if value.strip().lower() != b"chunked":
                    raise _Refused(501, "coding", "the one transfer coding taken is chunked")
            elif name == b"expect":
                if value.strip().lower() != b"100-continue":
                    raise _Refused(417, "expectation", "the one expectation met is 100-continue")
                expects = version == "1.1"
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise _Refused(400, "format", "a request has one Host header")
        keep_alive = parser.should_keep_alive()
        if parser.should_upgrade():
            if length or chunked:
                raise _Refused(501, "upgrade", "no connection is upgraded here; leave the Upgrade header out")
            keep_alive = False
        collects = self._url == b"/mail" and method == b"POST" and self._server.mail is not None
        if collects:
            if length > MAX_MAIL:
                raise _Refused(413, "too large", f"at most {MAX_MAIL} bytes are taken")
        else:
            _check_target(self._url)
        if collects and length and keep_alive and not (chunked or expects):
            self._server.heads.learn(self._head, self._headers, length)
        exchange = Exchange(self, method, self._url, version, self._headers, keep_alive=keep_alive, collects=collects)
        exchange.expects = expects
        self._head = b""
        self._in_head = False
        self._age = self._received = 0
        self._building = exchange
        self._line.append(exchange)
        if expects or not collects:
            self._step()

    def on_body(self, data: bytes) -> None:
        """A piece of a body."""
        exchange = self._building
        assert exchange is not None
        self._received += len(data)
        self._calls += 1
        self._unseen = 0
        self._count(exchange, len(data))
        if exchange.collects and exchange.counted > MAX_MAIL:
            raise _Refused(413, "too large", f"at most {MAX_MAIL} bytes are taken")
        if self._server.collected > self._limits.collected_bytes:
            raise _Refused(503, "overloaded", "too much is on its way to this host; try again")
        exchange.feed(data)
        if not exchange.collects and exchange.held > READ_AHEAD:
            self.flow()

    def on_message_complete(self) -> None:
        """A request has come whole."""
        exchange, self._building = self._building, None
        assert exchange is not None
        self._age = 0
        if not exchange.keep_alive:
            self._deaf = True
        exchange.end()
        self._step()

    # Exchanges -----------------------------------------------------------------------

    def _step(self) -> None:
        """Start the first in line, if it is ready and the client reads."""
        if not self._line or not self._writing:
            return
        exchange = self._line[0]
        if exchange.started:
            return
        if exchange.collects:
            if not exchange.complete:
                exchange.go_on()
                return
            exchange.started = True
            if self._hand_over(exchange, exchange.take()):
                exchange.passed_on()
        else:
            exchange.started = True
            exchange.run(self._server.app)

    def _hand_over(self, exchange: Exchange, body: Body) -> bool:
        """A mail has come whole: it goes the short way, or else the application takes it, or says why not."""
        assert self._server.mail is not None
        if self._server.mail(body, exchange):
            return True
        if not exchange.counted:
            # It came at once. Now it stays for a while.
            self._count(exchange, len(body))
        exchange.feed(body)
        exchange.run(self._server.app)
        return False

    def finished(self, exchange: Exchange) -> None:
        """See `Wire`."""
        self._line.popleft()
        self._age = 0
        self._server.answers[ROUTES.get(exchange.url) or route(exchange.url), exchange.status] += 1
        if exchange is self._building:
            # Answered before its body was read: what is left of it cannot be told from a next request.
            self._building = None
            self._linger()
        elif self._line:
            self._step()
            self.flow()
        elif self._last_words is not None:
            self.transport.write(self._last_words)
            self._linger()
        elif not exchange.keep_alive or self._server.draining:
            self.transport.close()

    def flow(self) -> None:
        """See `Wire`."""
        line = self._line
        wanted = len(line) <= 1 and not (line and not line[0].collects and line[0].held > READ_AHEAD)
        if wanted != self._reading and not self.transport.is_closing():
            self._reading = wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    async def writable(self) -> None:
        """See `Wire`."""
        if self._drained is not None:
            await self._drained

    def failed(self, exchange: Exchange, error: Exception | None) -> None:
        """See `Wire`."""
        self._server.failed(error)
        if exchange.begun:
            self.transport.abort()
        elif not self.transport.is_closing():
            exchange.keep_alive = False
            exchange.answer(500, b"application/json", [_FAILED])

    def _count(self, exchange: Exchange, size: int) -> None:
        """So much more of a body is here: it counts until `Exchange.passed_on`."""
        exchange.counted += size
        self._server.collected += size

    def give_back(self, size: int) -> None:
        """See `Wire`."""
        self._server.collected -= size

    # Refusals ------------------------------------------------------------------------

    def _head_too_large(self) -> tuple[int, str, str]:
        return 431, "too large", f"request line and headers have at most {self._limits.head_bytes} bytes"

    def _refuse(self, status: int, word: str, detail: str) -> None:
        """Answer an error after the answers that are due, and read no more."""
        self._deaf = True
        self._server.refused[status] += 1
        self._server.answers[OTHER, status] += 1
        exchange, self._building = self._building, None
        if exchange is not None:
            self._line.pop()
            exchange.lost()
            if exchange.begun:
                # Half an answer is out: only a cut tells the client that it is none.
                self.transport.abort()
                return
        words = refusal(status, word, detail)
        if self._line:
            self._last_words = words
        else:
            self.transport.write(words)
            self._linger()

    def _linger(self) -> None:
        """Close, but let the client read first: a close with unread bytes would take the answer from it."""
        self._deaf = True
        if self.transport.can_write_eof():
            self._lingers = True
            self._age = 0
            self.transport.write_eof()
        else:
            self.transport.close()

    # Time ----------------------------------------------------------------------------

    def sweep(self, idle_seconds: int) -> None:
        """Called once a second: end what takes too long."""
        limits = self._limits
        self._age += 1
        unsent, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        received, self._received = self._received, 0
        if self._unsent:
            # Somebody who reads has an age of nothing.
            if self._unsent < unsent:
                self._age = 0
            if self._age > limits.send_seconds:
                self.transport.abort()
        elif self._lingers:
            if self._age > limits.linger_seconds:
                self.transport.abort()
        elif self._building is not None:
            if received >= limits.body_bytes_per_second or not self._reading:
                self._age = 0
            if self._age > limits.body_seconds:
                self._refuse(408, "timeout", "the body came too slowly; send it again")
        elif self._half_closed:
            # A client that has gone looks the same: what it asked for is not worked on for ever.
            if self._age > limits.linger_seconds:
                self.transport.abort()
        elif self._line:
            self._age = 0
        elif self._in_head:
            if self._age > limits.head_seconds:
                self._refuse(408, "timeout", f"the headers took longer than {limits.head_seconds} seconds")
        elif self._age > (limits.head_seconds if self._fresh else idle_seconds):
            self.transport.close()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client has not taken, at the last sweep."""
        return self._unsent

    def drain(self) -> None:
        """Close now if nothing is under way, else after the answers that are due."""
        if not self._line and not self._in_head:
            self.transport.close()


_FAILED: Final = b'{"error": "failed", "detail": "the host failed at this request; its log says why"}'


def _check_target(url: bytes) -> None:
    try:
        target(url)
    except ValueError:
        raise _Refused(400, "format", "not a request target; expected a path such as /instance") from None


def _malformed(error: httptools.HttpParserError) -> tuple[int, str, str]:
    """Status and words for what the grammar refuses. The parser's words are fixed ones."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return 501, "method", "not an HTTP method; TLS is spoken on another port, if at all"
    words = str(error)
    if words in ("Invalid HTTP version", "Pause on PRI/Upgrade"):
        return 505, "version", "this server speaks HTTP/1.1 and HTTP/1.0"
    return 400, "format", f"not an HTTP/1.1 request: {words}"
