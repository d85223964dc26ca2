"""Streams at the client: an upload beside a download, with bounded memory.

Runs at the relying party. The host is the adversary: a stream is what its chunks
authenticate, in their order, up to the final one; everything else is an error. A
stream call is never retried.

Spec: spec/mail.md section 8, spec/http.md.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import httpx2

from conclave import _codec
from conclave._chunkheader import MAX_CHUNK
from conclave._memory import keep_memory
from conclave.client._http import Addresses, trusted, unreachable
from conclave.client._upload import Source, Uploader
from conclave.client.core import Exchange, Opened, not_admitted
from conclave.errors import CallError, DecryptionError, Error, FormatError, OverloadedError, StreamError, TransportError
from conclave.mail import ReplyKind
from conclave.mail.stream import ChunkOpener, Items
from conclave.rpc.interface import CallFailure, decode_result

T = TypeVar("T")
# The first record is a mail, which may be padded as far as a mail can be.
_MAX_HEAD: Final = 1024 * 1024
# An enclave that ended a stream has said so within this time.
_GRACE_SECONDS: Final = 2.0
_KEPT_MIB: Final = 8
_NOT_TAKEN: Final = (
    "the upload was not taken, and the stream is lost: is the host still running and reachable? If it is, it holds "
    "the upload up"
)


class Incoming:
    """What a host's answer to a stream call says, without IO."""

    def __init__(self, opened: Opened, guard: AbstractContextManager[object]) -> None:
        self._opened = opened
        self._guard = guard
        self._buffer = bytearray()
        self._opener: ChunkOpener | None = None
        self._joined = Items()
        self.items: deque[bytes] = deque()
        self.failure: Exception | None = None
        self.open = False

    @property
    def ended(self) -> bool:
        """Whether the enclave said that this is all."""
        return self._opener is not None and self._opener.ended

    def feed(self, data: bytes) -> bool:
        """Take a part of the answer; whether something in it was authentic.

        Raises:
            StreamError: something in it is not the enclave's next word.
            CallError, OverloadedError: the enclave refuses the call.
        """
        buffer, heard = self._buffer, False
        buffer += data
        at = 0
        with memoryview(buffer) as view:
            while len(view) - at >= 4 and not self.ended:
                size = int.from_bytes(view[at : at + 4], "big")
                if size > (MAX_CHUNK if self.open else _MAX_HEAD):
                    raise StreamError("the host sent something that is no part of the stream")
                if len(view) - at - 4 < size:
                    break
                with view[at + 4 : at + 4 + size] as record:
                    self._record(record)
                at += 4 + size
                heard = True
        del buffer[:at]
        return heard

    def result(self, item: bytes) -> bytes:
        """The value in an item that is the call's result. Raises FormatError, RollbackError."""
        with self._guard:
            return self._opened.result(item)

    def _record(self, record: memoryview) -> None:
        try:
            if self._opener is None:
                self._opener = self._head(bytes(record))
                self.open = True
                return
            chunk = self._opener.open(record)
            self.items += self._joined.add(chunk)
        except (FormatError, DecryptionError):
            raise StreamError("the host sent something that is not the enclave's next part of the stream") from None
        if chunk.error:
            failure = _codec.decode(CallFailure, chunk.content, max_size=65536, what="call error")
            self.failure = CallError(failure.type, failure.message)

    def _head(self, mail: bytes) -> ChunkOpener:
        session = self._opened.session
        with self._guard:
            reply = self._opened.head(mail)
            if reply.kind == ReplyKind.STREAM:
                return session.stream_opener(int.from_bytes(mail[24:32], "big"))
            if reply.kind == ReplyKind.CLOSED:
                self._opened.closed(reply.expected)
                raise StreamError("the enclave gave this topic's order up to make room; call again, it begins anew")
        if reply.kind == ReplyKind.NOT_ADMITTED:
            self._opened.closed(0)
            raise not_admitted()
        if reply.kind == ReplyKind.OVERLOADED:
            raise OverloadedError("the enclave has as many streams as it may, in all or of this identity")
        failure = _codec.decode(CallFailure, reply.body, max_size=65536, what="call error")
        raise CallError(failure.type, failure.message)


class AsyncStream(Generic[T]):
    """A stream call: iterate it, or await its `result()`.

    Outside exactly-once: it is never retried, and one that breaks off raises
    `StreamError` without saying how much was handled. Leave it by reading to the end,
    or with `async with` or `aclose()`: the enclave's handler is then cancelled.
    """

    def __init__(
        self,
        open_call: Callable[[], Awaitable[Opened]],
        http: Callable[[], httpx2.AsyncClient],
        addresses: Addresses,
        *,
        upload: Source | None,
        upload_raw: bool,
        returns: Any,
        timeout_seconds: float,
        guard: AbstractContextManager[object],
        refused: Callable[[int], Awaitable[Exception]],
    ) -> None:
        self._open_call = open_call
        self._http = http
        self._addresses = addresses
        self._source = upload
        self._upload_raw = upload_raw
        self._returns = returns
        self._timeout = timeout_seconds
        self._guard = guard
        self._refused = refused
        self._response: httpx2.Response | None = None
        self._parts: AsyncIterator[bytes] | None = None
        self._incoming: Incoming | None = None
        self._uploader: Uploader | None = None
        self._uploading: asyncio.Task[None] | None = None
        self._closed = False

    def __await__(self) -> Generator[Any, None, Self]:
        return self.begin().__await__()

    async def begin(self) -> Self:
        """Send the call, wait until the enclave accepts it, start the upload.

        Raises:
            CallError: the enclave refuses the call.
            StreamError, TransportError: no authentic answer; it is unknown whether the handler runs.
        """
        if self._incoming is not None or self._closed:
            return self
        keep_memory(_KEPT_MIB)
        opened = await self._open_call()
        self._incoming = Incoming(opened, self._guard)
        try:
            self._response = await self._send(opened, "/mail", opened.mail, read_seconds=self._timeout)
            if self._response.status_code != 200:
                raise await self._refused(self._response.status_code)
            self._parts = self._response.aiter_raw()
            await self._hear(lambda: self._incoming is not None and self._incoming.open)
        except httpx2.HTTPError as error:
            await self.aclose()
            raise _broken(error, self._timeout) from None
        except BaseException:
            await self.aclose()
            raise
        if self._source is not None:

            async def post(body: bytes, on_its_way: Callable[[], None]) -> int:
                async def told() -> AsyncIterator[bytes]:
                    yield body
                    on_its_way()

                # How long the enclave takes it is the handler's affair: the reply stream tells whether it lives.
                try:
                    response = await self._send(opened, "/stream", body, read_seconds=None, content=told())
                    if response.status_code == 204:
                        # It has no body, and the connection is good for the next.
                        await response.aread()
                    await response.aclose()
                except httpx2.HTTPError:
                    return 0
                return response.status_code

            self._uploader = Uploader(opened, self._source, post, raw=self._upload_raw)
            self._uploading = asyncio.create_task(self._uploader.run())
        return self

    async def _send(
        self, opened: Opened, path: str, body: bytes, *, read_seconds: float | None, content: object = None
    ) -> httpx2.Response:
        step = Exchange("POST", path, body, host=opened.host)
        request = self._addresses.request(step, self._timeout, body if content is None else content)
        request.extensions["timeout"]["read"] = read_seconds
        return await self._http().send(request, stream=True)

    async def _hear(self, enough: Callable[[], bool]) -> None:
        """Read on until there is enough. Raises StreamError, CallError, httpx2.HTTPError."""
        assert self._incoming is not None
        assert self._parts is not None
        since = time.monotonic()
        while not enough() and not self._incoming.ended:
            part = await anext(self._parts, None)
            if part is None:
                raise StreamError("the stream broke off before the enclave ended it")
            now = time.monotonic()
            if self._incoming.feed(part):
                since = now
            if self._uploader is not None:
                since = max(since, self._uploader.progress)
                refused = self._uploader.refused
                if refused is not None and now - refused > _GRACE_SECONDS:
                    raise StreamError(_NOT_TAKEN)
            if now - since > self._timeout:
                raise StreamError(f"nothing authentic of the enclave came within {self._timeout:g} seconds")

    async def _next(self) -> bytes | None:
        """The next item as it crossed; None at the end."""
        if self._closed:
            return None
        await self.begin()
        assert self._incoming is not None
        if not self._incoming.items:
            try:
                await self._hear(lambda: bool(self._incoming and self._incoming.items))
            except BaseException as error:
                await self.aclose()
                if isinstance(error, httpx2.HTTPError):
                    raise _broken(error, self._timeout) from None
                raise
        if self._incoming.items:
            return self._incoming.items.popleft()
        await self._end()
        return None

    async def _end(self) -> None:
        assert self._incoming is not None
        uploader = self._uploader
        await self.aclose()
        # What went wrong in the caller's own iterator explains whatever the enclave says of it.
        if uploader is not None and uploader.failure is not None:
            raise uploader.failure
        if self._incoming.failure is not None:
            raise self._incoming.failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        item = await self._next()
        if item is None:
            raise StopAsyncIteration
        value: T = self._decode(item)
        return value

    async def some(self) -> list[T]:
        """Items that are there, waiting for the first; none at the end."""
        first = await self._next()
        if first is None or self._incoming is None:
            return []
        items = [first, *self._incoming.items]
        self._incoming.items.clear()
        return [self._decode(item) for item in items]

    def _decode(self, item: bytes) -> Any:
        return item if self._returns is bytes else decode_result(item, self._returns)

    async def result(self) -> T:
        """The result of a method that takes a stream and returns none."""
        item = await self._next()
        if item is None:
            raise FormatError("the enclave ended the call without a result")
        try:
            if await self._next() is not None:
                raise FormatError("the enclave answered with a stream, not with one result: iterate it")
        finally:
            await self.aclose()
        assert self._incoming is not None
        value: T = decode_result(self._incoming.result(item), self._returns)
        return value

    async def aclose(self) -> None:
        """Give up: nothing more is sent or read, and the enclave's handler is cancelled."""
        self._closed = True
        uploading, self._uploading = self._uploading, None
        if uploading is not None:
            uploading.cancel()
            with suppress(asyncio.CancelledError, Error):
                await uploading
        response, self._response = self._response, None
        if response is not None:
            with suppress(httpx2.HTTPError):
                await response.aclose()

    async def __aenter__(self) -> Self:
        return await self.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _broken(error: httpx2.HTTPError, timeout_seconds: float) -> TransportError:
    if isinstance(error, httpx2.TimeoutException):
        return StreamError(f"nothing came of the stream within {timeout_seconds:g} seconds")
    if isinstance(error, httpx2.ConnectError):
        return StreamError(unreachable(error))
    return StreamError(f"the connection to the host broke ({type(error).__name__}): the stream is lost")


class Background:
    """An event loop in a thread, in which a synchronous client's streams run."""

    def __init__(self) -> None:
        limits = httpx2.Limits(max_connections=256, max_keepalive_connections=16)
        self.http = httpx2.AsyncClient(verify=trusted(), limits=limits)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="conclave-streams", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End what streams, and the loop."""
        self.run(self.http.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        if not self._thread.is_alive():
            self._loop.close()


class Stream(Generic[T]):
    """A stream call of the synchronous client: iterate it, or take its `result()`.

    See `AsyncStream` for what it does not promise. `close()`, or leaving a `with`
    block, cancels the enclave's handler.
    """

    def __init__(self, stream: AsyncStream[T], background: Background) -> None:
        self._stream = stream
        self._background = background
        self._ready: deque[T] = deque()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._ready:
            # One hop between threads for all that has arrived.
            self._ready.extend(self._background.run(self._stream.some()))
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def result(self) -> T:
        """The result of a method that takes a stream and returns none."""
        return self._background.run(self._stream.result())

    def close(self) -> None:
        """Give up: see `AsyncStream.aclose`."""
        self._ready.clear()
        self._background.run(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
