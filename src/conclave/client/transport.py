"""Transports for httpx2: ordinary HTTP requests, inside mail.

Runs at the relying party. The host sees mails, as with any other client; what is
asked and answered is between this process and the verified enclave.

Spec: spec/asgi.md section 4.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn, TypeVar

import httpx2

from conclave.attestation import AttestationResult
from conclave.client._streams import AsyncStream, Background
from conclave.client.client import AsyncClient
from conclave.client.identity import Identity
from conclave.errors import AppraisalError, Error, FormatError, OverloadedError, StreamError, VerificationError
from conclave.errors import TransportError as HostError
from conclave.rpc.http import (
    HOP_BY_HOP,
    MAX_WHOLE,
    BadRequest,
    HeadReader,
    HttpExchange,
    RequestHead,
    ResponseHead,
    check_request,
)
from conclave.rpc.interface import interface_of

T = TypeVar("T")
# As many streams as an enclave gives one identity.
MAX_TOGETHER: Final = 32
_PART: Final = 256 * 1024
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOK_SECONDS: Final = 1.0


class AsyncMailTransport(httpx2.AsyncBaseTransport):
    """Carries the requests of an `httpx2.AsyncClient` to an enclave that serves an ASGI application.

    Scheme and authority of a URL do not choose the enclave: this object does. They are
    what the application finds in the header `host`.
    """

    def __init__(self, url: str | Sequence[str], **options: Any) -> None:
        """Prepare a transport; nothing is sent yet.

        Args:
            url: where the host serves, or several of interchangeable replicas. Untrusted.
            options: of `AsyncClient`: `constraint`, which is required, `identity` and the others.
        """
        self._client = AsyncClient(url, **options)
        self._checked: bytes | None = None
        self._room = asyncio.Semaphore(MAX_TOGETHER)

    @property
    def identity(self) -> Identity:
        """Who the application sees as `sender`."""
        return self._client.identity

    @property
    def instance(self) -> AttestationResult:
        """The verified instance. Raises RuntimeError before the first contact."""
        return self._client.instance

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; called by httpx2.

        Raises:
            httpx2.RequestError: nothing of the application's response came.
            VerificationError, AppraisalError: the host offers another enclave than the constraint accepts.
        """
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        upload = _Upload(request.stream) if _is_large(request) else None
        body = b"" if upload is not None else b"".join([part async for part in request.stream])
        head, reply = await self._exchange(request, body, upload)
        return httpx2.Response(head.status, headers=head.headers, stream=_AsyncBody(reply))

    async def _exchange(
        self, request: httpx2.Request, body: bytes, upload: _Upload | None
    ) -> tuple[ResponseHead, _Reply]:
        head = _head(request)
        times = request.extensions.get("timeout", {})
        try:
            await asyncio.wait_for(self._room.acquire(), times.get("pool"))
        except TimeoutError:
            raise httpx2.PoolTimeout(f"{MAX_TOGETHER} requests are under way already", request=request) from None
        reply = _Reply(request, upload, self._room)
        try:
            for attempt in range(2):
                try:
                    return await reply.begin(await self._open(head, body, upload, times.get("connect"))), reply
                except StreamError:
                    # As on a connection that had gone stale: what is safe may be asked twice.
                    if attempt or request.method not in _SAFE or upload is not None:
                        raise
            raise AssertionError
        except BaseException as error:
            await reply.aclose()
            _raise(error, request)

    async def _open(
        self, head: RequestHead, body: bytes, upload: _Upload | None, seconds: float | None
    ) -> AsyncStream[bytes]:
        """Call the enclave, verified; the call was accepted."""
        async with asyncio.timeout(seconds):
            if self._checked is None or self._checked != self._client.instance.claims_digest:
                self._checked = await self._check()
            if upload is None:
                stream = self._client.call_stream("request", head, body)
            else:
                stream = self._client.call_stream("upload", head, upload=upload.parts)
            return await stream.begin()

    async def _check(self) -> bytes:
        """Digest of the claims of an instance that serves HTTP. Raises AppraisalError: it does not."""
        if self._checked is None:
            await self._client.verify()
        claims = self._client.instance.claims
        if claims.interface != interface_of(HttpExchange).digest():
            raise AppraisalError(("interface: this enclave serves no ASGI application; call its methods with Client",))
        await self._client.stub(HttpExchange)
        return self._client.instance.claims_digest

    async def aclose(self) -> None:
        """Close the connections to the host."""
        await self._client.aclose()


class MailTransport(httpx2.BaseTransport):
    """The same for an `httpx2.Client`, safe to use from several threads."""

    def __init__(self, url: str | Sequence[str], **options: Any) -> None:
        self._inner = AsyncMailTransport(url, **options)
        self._background: Background | None = None
        self._process = 0
        self._lock = threading.Lock()

    __init__.__doc__ = AsyncMailTransport.__init__.__doc__

    @property
    def identity(self) -> Identity:
        """Who the application sees as `sender`."""
        return self._inner.identity

    @property
    def instance(self) -> AttestationResult:
        """The verified instance. Raises RuntimeError before the first contact."""
        return self._inner.instance

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            # The thread of a parent is not in its child.
            if self._background is None or self._process != os.getpid():
                self._background, self._process = Background(), os.getpid()
            background = self._background
        return background.run(work)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; see `AsyncMailTransport.handle_async_request`."""
        assert isinstance(request.stream, httpx2.SyncByteStream)
        upload = _Upload(request.stream) if _is_large(request) else None
        body = b"" if upload is not None else b"".join(request.stream)
        head, reply = self._run(self._inner._exchange(request, body, upload))
        return httpx2.Response(head.status, headers=head.headers, stream=_Body(reply, self._run))

    def close(self) -> None:
        """Close the connections to the host."""
        if self._background is not None:
            self._run(self._inner.aclose())
            self._background.close()
            self._background = None


def _is_large(request: httpx2.Request) -> bool:
    """Whether the body goes after its head: it is large, or nobody knows how large it is."""
    size = request.headers.get("content-length", "0")
    return "transfer-encoding" in request.headers or not size.isdigit() or int(size) > MAX_WHOLE


def _head(request: httpx2.Request) -> RequestHead:
    """What goes inside mail of a request. Raises httpx2.RequestError: it does not fit there."""
    if request.url.scheme not in ("http", "https"):
        raise httpx2.UnsupportedProtocol(
            "mail carries http and https URLs; WebSockets do not go inside mail, stream the response instead",
            request=request,
        )
    path, _, query = request.url.raw_path.partition(b"?")
    headers = [(n, v) for n, v in request.headers.raw if n.lower() not in HOP_BY_HOP or n.lower() == b"upgrade"]
    head = RequestHead(method=request.method, path=path, query=query, headers=headers)
    try:
        check_request(head)
    except BadRequest as error:
        raise httpx2.LocalProtocolError(f"this request does not go inside mail: {error}", request=request) from None
    return head


def _raise(error: BaseException, request: httpx2.Request) -> NoReturn:
    """Our error as one of httpx2's, for callers that know no other."""
    if isinstance(error, AppraisalError | VerificationError) or not isinstance(error, Error | TimeoutError):
        # Another enclave is no trouble of the network, which one might sit out.
        raise error
    kind: type[httpx2.RequestError] = httpx2.RemoteProtocolError
    if isinstance(error, TimeoutError):
        kind, error = httpx2.ConnectTimeout, HostError("the enclave did not accept the request in time")
    elif isinstance(error, OverloadedError):
        kind = httpx2.PoolTimeout
    elif isinstance(error, StreamError):
        kind = httpx2.ReadError
    elif isinstance(error, HostError):
        kind = httpx2.ConnectError
    raise kind(str(error), request=request) from error


class _Upload:
    """A request's body as it is taken: parts of bounded size, and when the last one was."""

    def __init__(self, source: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> None:
        self.since = time.monotonic()
        self.ended = False
        # One that may block is stepped in a thread of its own by who sends it.
        self.parts = self._later(source) if isinstance(source, httpx2.AsyncByteStream) else self._now(source)

    def _now(self, source: httpx2.SyncByteStream) -> Iterator[bytes]:
        try:
            for part in source:
                yield from self._cut(part)
        finally:
            self._end()

    async def _later(self, source: httpx2.AsyncByteStream) -> AsyncIterator[bytes]:
        try:
            async for part in source:
                for piece in self._cut(part):
                    yield piece
        finally:
            self._end()

    def _cut(self, part: bytes) -> Iterator[bytes]:
        for at in range(0, len(part), _PART):
            self.since = time.monotonic()
            yield part[at : at + _PART]

    def _end(self) -> None:
        self.since, self.ended = time.monotonic(), True


class _Reply:
    """An enclave's reply as it comes, within the time-outs of its request."""

    def __init__(self, request: httpx2.Request, upload: _Upload | None, room: asyncio.Semaphore) -> None:
        self._request = request
        self._upload = upload
        self._room: asyncio.Semaphore | None = room
        self._stream: AsyncStream[bytes] | None = None
        self._ready: list[bytes] = []

    async def begin(self, stream: AsyncStream[bytes]) -> ResponseHead:
        """Wait for the head. Raises what the stream raises, or httpx2.TimeoutException."""
        self._stream = stream
        reader = HeadReader()
        while parts := await self._some():
            for at, part in enumerate(parts):
                whole = reader.feed(part)
                if whole is not None:
                    head, rest = whole
                    self._ready = [rest, *parts[at + 1 :]]
                    return head
        raise FormatError("the enclave's response ended before its head was whole")

    async def more(self) -> list[bytes]:
        """Parts of the body, waiting for the first; none at the end. Raises httpx2.RequestError."""
        ready, self._ready = [p for p in self._ready if p], []
        try:
            parts = ready or await self._some()
            if not parts and self._room is None:
                raise StreamError("the response was closed before its end")
            return parts
        except BaseException as error:
            await self.aclose()
            _raise(error, self._request)

    async def _some(self) -> list[bytes]:
        assert self._stream is not None
        task = asyncio.ensure_future(self._stream.some())
        began = time.monotonic()
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._left(began))
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                with suppress(BaseException):
                    await task

    def _left(self, began: float) -> float:
        """How long to wait before looking again. Raises httpx2.TimeoutException: no longer at all."""
        upload, times = self._upload, self._request.extensions.get("timeout", {})
        sending = upload is not None and not upload.ended
        seconds = times.get("write" if sending else "read")
        if seconds is None:
            return _LOOK_SECONDS
        since = began if upload is None else max(began, upload.since)
        left: float = since + seconds - time.monotonic()
        if left <= 0:
            kind = httpx2.WriteTimeout if sending else httpx2.ReadTimeout
            raise kind(f"nothing went on within {seconds:g} seconds", request=self._request)
        return min(left, _LOOK_SECONDS)

    async def aclose(self) -> None:
        """Give up, or be done: the enclave's application is told, if it still answers."""
        room, self._room = self._room, None
        if self._stream is not None:
            await self._stream.aclose()
        if room is not None:
            room.release()


class _AsyncBody(httpx2.AsyncByteStream):
    """A response's body as it comes."""

    def __init__(self, reply: _Reply) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while parts := await self._reply.more():
            for part in parts:
                yield part

    async def aclose(self) -> None:
        await self._reply.aclose()


class _Body(httpx2.SyncByteStream):
    """The same where the reply is in the background."""

    def __init__(self, reply: _Reply, run: Any) -> None:
        self._reply, self._run = reply, run

    def __iter__(self) -> Iterator[bytes]:
        while parts := self._run(self._reply.more()):
            yield from parts

    def close(self) -> None:
        self._run(self._reply.aclose())
