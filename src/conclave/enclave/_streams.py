"""Streams of one boot: uploads and replies of any size, with bounded memory.

Runs inside the enclave. Chunks and credit come from the host and are hostile: what
is not the authentic next chunk changes nothing, credit is bounded, and who stays
silent is given up. A client is hostile too: bounds hold per identity and in all.

Spec: spec/mail.md section 8 (MAIL-25, MAIL-26), spec/host-channel.md section 2, spec/rpc.md section 3.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from conclave import _codec
from conclave._chunkheader import MAX_CHUNKS, MAX_CONTENT, Bytes, chunk_address, split_chunks
from conclave._framing import Frame, Kind, Send
from conclave._mailheader import NONE
from conclave.errors import DecryptionError, FormatError, StreamError
from conclave.mail._wire import FLAG_LAST, FLAG_OUTSIDE, FLAG_UPLOAD, Reply, ReplyKind, Request
from conclave.mail.padding import Padding
from conclave.mail.session import EnclaveSession
from conclave.mail.stream import ChunkOpener, ChunkSealer, Items, Packer
from conclave.rpc.interface import CallFailure, Method, error_body
from conclave.rpc.types import StreamType

if TYPE_CHECKING:
    from conclave.enclave._state import Work
    from conclave.enclave._transactions import Transactions

# Chunks of a reply stream that go out before the host asked for more.
WINDOW: Final = MAX_CHUNKS
# Below so much that waits for the handler, the next chunks of an upload may come.
LOW: Final = MAX_CHUNKS * MAX_CONTENT // 2
BEAT_SECONDS: Final = 1.0
# What an item takes beside its bytes while it waits.
_ITEM_COST: Final = 64
# Items that are made without a pause go out together, and others get their turn after so long.
_TURN_SECONDS: Final = 0.002
_MAX_CREDIT: Final = 1024
_encode = msgspec.msgpack.Encoder().encode

Handler = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one boot holds at most."""

    streams: int = 512
    streams_per_identity: int = 32
    waiting_bytes: int = 64 * 1024 * 1024
    waiting_bytes_per_identity: int = 24 * 1024 * 1024
    idle_seconds: float = 60.0


class _Codec:
    """How the items of one direction cross."""

    __slots__ = ("_decoder", "_raw")

    def __init__(self, kind: StreamType | None) -> None:
        self._raw = kind is not None and kind.raw
        self._decoder = None if kind is None or kind.raw else msgspec.msgpack.Decoder(kind.item)

    def encode(self, item: Any) -> bytes:
        if not self._raw:
            return _encode(item)
        if not isinstance(item, bytes | bytearray | memoryview):
            raise TypeError("a stream of bytes yields bytes")
        return item if isinstance(item, bytes) else bytes(item)

    def decode(self, data: bytes) -> Any:
        if self._decoder is None:
            return data
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            raise FormatError("an item of the stream does not have the declared type") from None


class _Stream:
    """One stream call while its handler runs."""

    def __init__(
        self, streams: Streams, method: Method, *, identity: bytes, key: tuple[bytes, int], route: int
    ) -> None:
        self.identity = identity
        self.key = key
        self.route = route
        self.task: asyncio.Task[None] | None = None
        self.work: Work | None = None
        self.opener: ChunkOpener | None = None
        self.sealer: ChunkSealer | None = None
        self.credit = WINDOW
        self.failure: str | None = None
        self.quiet = False
        # Since when it waits for the peer; None: it waits for nobody, or for the handler.
        self.waits_since: float | None = None
        self._streams = streams
        self._codec_in = _Codec(method.upload)
        self._codec_out = _Codec(method.download)
        self._loop = asyncio.get_running_loop()
        self._joined = Items()
        self._items: deque[bytes] = deque()
        self._waiting = 0
        self._unanswered: int | None = None
        self._uploaded = method.upload is None
        self._wake: asyncio.Event = asyncio.Event()
        self._out = Packer()
        # When the first of the items that wait for the end of this turn came.
        self._turn: float | None = None

    # Upload --------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether what was uploaded last still waits for the handler."""
        return self._unanswered is not None

    @property
    def held(self) -> int:
        """Bytes of the upload that wait for the handler."""
        return self._waiting + self._joined.size

    def take(self, data: memoryview) -> None:
        """One chunk of the upload; the caller counts what is `held`.

        Raises:
            FormatError, DecryptionError: nothing changed.
        """
        if self.opener is None:
            raise DecryptionError
        chunk = self.opener.open(data)
        for item in self._joined.add(chunk):
            self._items.append(item)
            self._waiting += len(item) + _ITEM_COST
        if chunk.error:
            self.fail("the client gave the upload up")
        # What its sender gave up is broken off, never an upload that came to its end.
        self._uploaded = self._uploaded or (chunk.final and not chunk.error)

    def answer(self, request: int) -> None:
        """Tell the host that these chunks were taken, as soon as the handler has most of them."""
        self._wake.set()
        self._unanswered = request
        self._answer()

    def _answer(self, *, ended: bool = False) -> None:
        if self._unanswered is not None and (ended or self._waiting <= LOW):
            request, self._unanswered = self._unanswered, None
            self._streams.send(Kind.DONE, request, b"")

    async def next_items(self) -> list[bytes]:
        """Items that the handler gets next, waiting for the first. Empty: the upload ended."""
        await self._until(lambda: bool(self._items) or self._uploaded)
        items = list(self._items)
        self._items.clear()
        self._taken(self._waiting)
        return items

    def _taken(self, cost: int) -> None:
        self._waiting -= cost
        self._streams.held -= cost
        self._answer()

    async def next_item(self) -> Any:
        """One item; raises StopAsyncIteration at the end of the upload."""
        items = self._items
        if not items:
            await self._until(lambda: bool(items) or self._uploaded)
            if not items:
                raise StopAsyncIteration
        item = items.popleft()
        self._taken(len(item) + _ITEM_COST)
        return self._codec_in.decode(item)

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self.check()
            self.waits_since = self._loop.time()
            self._wake.clear()
            await self._wake.wait()
        self.waits_since = None

    def check(self) -> None:
        """Raise StreamError if the stream broke off."""
        if self.failure is not None:
            raise StreamError(self.failure)

    # Reply ---------------------------------------------------------------------------

    async def put(self, item: Any) -> None:
        """Send one item as soon as there is credit for it: at the end of this turn, if it is small."""
        self.check()
        out = self._out
        out.add(self._codec_out.encode(item))
        while out.full and self.credit > 0:
            self._next()
        if out.full:
            await self._drain(lambda: out.full)
        if out:
            now = self._loop.time()
            if self._turn is None:
                self._turn = now
                self._loop.call_soon(self._turned)
            elif now - self._turn > _TURN_SECONDS:
                await asyncio.sleep(0)

    async def finish(self, result: Any = None, *, value: bool, context: bytes = b"") -> None:
        """Send the result of a method that returns no stream, or only the end.

        Args:
            context: of the state that it tells of; the head is from before.
        """
        if value:
            self._out.add(context + _encode(result))
        await self._drain(lambda: bool(self._out), final=True)
        if self.sealer is not None and not self.sealer.ended:
            self._write(b"", final=True)

    async def _drain(self, more: Callable[[], bool], *, final: bool = False) -> None:
        """Send while there is more, as credit allows."""
        while more():
            if self.credit <= 0:
                await self._until(lambda: self.credit > 0 or not more())
            else:
                self._next(final=final)

    def _next(self, *, final: bool = False) -> None:
        content, item, packed = self._out.next()
        self._write(content, item=item, packed=packed, final=final and not self._out)

    def _turned(self) -> None:
        self._turn = None
        while self._out and self.credit > 0 and self.failure is None:
            self._next()

    async def flush(self) -> None:
        """Send what waits, before an error ends the reply."""
        await self._drain(lambda: bool(self._out))

    def end(self, failure: CallFailure) -> None:
        """Send the error with which the handler ended."""
        if self.sealer is not None and not self.sealer.ended:
            self._write(_codec.encode(failure), final=True, error=True)

    def beat(self) -> None:
        """Tell the client that the enclave is alive, if nothing else did of late."""
        if self.quiet and self.credit > 1 and self.sealer is not None and not self.sealer.ended:
            self._write(b"")
        self.quiet = True

    def _write(
        self,
        content: Bytes,
        *,
        final: bool = False,
        item: bool = False,
        error: bool = False,
        packed: bool = False,
    ) -> None:
        assert self.sealer is not None
        self.credit -= 1
        self.quiet = False
        chunk = self.sealer.seal(content, final=final, item=item, error=error, packed=packed)
        self._streams.send(Kind.DONE if final else Kind.REPLY, self.route, *chunk)

    def more(self, chunks: int) -> None:
        """The host takes so many chunks more."""
        self.credit = min(self.credit + chunks, _MAX_CREDIT)
        self._wake.set()
        if self._turn is None:
            self._turned()

    # End -----------------------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """Break off: whoever waits for the peer gets StreamError."""
        self.failure = self.failure or reason
        self._wake.set()

    def close(self) -> None:
        """Nothing of it is left but what the handler's thread, if any, still holds."""
        self.fail("the stream has ended")
        self._streams.held -= self.held
        self._items.clear()
        self._waiting = 0
        self._joined = Items()
        self._answer(ended=True)

    # What a handler in a thread uses ---------------------------------------------------

    def blocking_items(self) -> Iterator[Any]:
        """The upload, for a handler in a thread of its own."""
        while items := asyncio.run_coroutine_threadsafe(self.next_items(), self._loop).result():
            for item in items:
                yield self._codec_in.decode(item)

    def blocking_put(self, item: Any) -> None:
        """Send one item from a thread."""
        asyncio.run_coroutine_threadsafe(self.put(item), self._loop).result()


class _Upload:
    """The upload, as an `async def` handler iterates it."""

    __slots__ = ("_stream",)

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        return self._stream.next_item()


class Streams:
    """All streams of one boot."""

    def __init__(
        self,
        *,
        send: Send,
        prepare: Callable[[Request, bytes], tuple[Handler, Method, tuple[Any, ...]]],
        failure: Callable[[BaseException], CallFailure],
        pool: Executor | None,
        bounds: Bounds,
        transactions: Transactions | None = None,
    ) -> None:
        """Nothing runs before the first stream call.

        Args:
            send: queues one frame to the host: kind, request id, and the parts of its payload.
            prepare: handler, method and arguments of a call; raises FormatError.
            failure: what the caller learns of an error.
            pool: where plain handlers run, if the class allows threads.
            transactions: of an enclave whose state persists.
        """
        self.send = send
        self._transactions = transactions
        self._prepare = prepare
        self._failure = failure
        self._pool = pool
        self._bounds = bounds
        self._by_route: dict[int, _Stream] = {}
        self._by_key: dict[tuple[bytes, int], _Stream] = {}
        self._per_identity: dict[bytes, int] = {}
        self._beat: asyncio.TimerHandle | None = None
        # Bytes of all uploads that wait for their handlers.
        self.held = 0

    def __len__(self) -> int:
        return len(self._by_route)

    # Frames --------------------------------------------------------------------------

    def start(
        self, request: Request, session: EnclaveSession, counter: int, route: int, *, sender: Any, padding: Padding
    ) -> None:
        """Take a stream call.

        Args:
            counter: of the mail; names the stream together with the session.
            route: the host's request id.
            sender: the context variable that names the caller.
            padding: of the method.
        """
        answers = (NONE, 0, counter, 0)
        if self._transactions is not None:
            # Its handler reads what this batch has committed.
            self._transactions.seal()

        def refuse(kind: ReplyKind, body: bytes = b"", padding: Padding = padding) -> None:
            reply = Reply(kind, FLAG_LAST | FLAG_OUTSIDE, *answers, body, padding=padding, echo=request.version)
            self.send(Kind.DONE, route, session.encrypt(reply))

        if route in self._by_route:
            self.send(Kind.ERROR, route, b"format")
            return
        mine = self._per_identity.get(session.identity, 0)
        if len(self._by_route) >= self._bounds.streams or mine >= self._bounds.streams_per_identity:
            refuse(ReplyKind.OVERLOADED)
            return
        try:
            handler, method, arguments = self._prepare(request, session.identity)
            if bool(request.flags & FLAG_UPLOAD) != (method.upload is not None):
                raise FormatError(f"{method.name}() takes {'a' if method.upload else 'no'} stream")
        except BaseException as error:
            refuse(ReplyKind.CALL_ERROR, *error_body(self._failure(error), padding))
            return
        stream = _Stream(self, method, identity=session.identity, key=(session.session_id, counter), route=route)
        head, stream.sealer = session.open_stream(
            Reply(ReplyKind.STREAM, FLAG_OUTSIDE, *answers, b"", padding=padding, echo=request.version)
        )
        if method.upload is not None:
            stream.opener = session.stream_opener(counter)
        self.send(Kind.REPLY, route, head)
        self._by_route[route] = self._by_key[stream.key] = stream
        self._per_identity[session.identity] = mine + 1
        if self._beat is None:
            self._beat = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._tick)
        context = contextvars.copy_context()
        context.run(sender.set, session.identity)
        if self._transactions is not None:
            stream.work = self._transactions.begin_stream(context)
        work = self._run(stream, handler, method, arguments)
        stream.task = asyncio.get_running_loop().create_task(work, context=context)
        # Not at the end of `_run`: a task that is cancelled before its first step runs nothing of it.
        stream.task.add_done_callback(lambda _: self._forget(stream))

    def stop(self) -> None:
        """End all streams: whatever their handlers do with that, nothing of it leaves any more."""
        for stream in list(self._by_route.values()):
            stream.end(self._failure(RuntimeError("cancelled")))
            stream.fail("this boot has stopped")
            if stream.task is not None:
                stream.task.cancel()

    def chunks(self, frame: Frame) -> None:
        """Chunks of an upload; answered when the handler has taken most of them."""
        word = b"session"
        stream: _Stream | None = None
        before = 0
        try:
            for count, data in enumerate(split_chunks(memoryview(frame.payload))):
                if count == 0:
                    direction, session_id, counter, _ = chunk_address(data)
                    found = self._by_key.get((session_id, counter))
                    if found is None or direction != 1:
                        break
                    if found.busy or not self._has_room(found):
                        word = b"overloaded"
                        break
                    stream, before = found, found.held
                elif count >= MAX_CHUNKS:
                    raise FormatError("too many chunks at once")
                assert stream is not None
                stream.take(data)
        except FormatError:
            word = b"format"
        except DecryptionError:
            word = b"decryption"
        else:
            if stream is not None:
                word = b""
        if stream is not None:
            self.held += stream.held - before
        if word:
            self.send(Kind.ERROR, frame.request, word)
        elif stream is not None:
            stream.answer(frame.request)

    def _has_room(self, stream: _Stream) -> bool:
        if self.held >= self._bounds.waiting_bytes:
            return False
        mine = [other.held for other in self._by_route.values() if other.identity == stream.identity]
        # Of those who wait for each other, the one with most comes to its end.
        return sum(mine) < self._bounds.waiting_bytes_per_identity or stream.held == max(mine)

    def credit(self, frame: Frame) -> None:
        """The host takes more of a reply stream. What is for none is ignored: it has just ended."""
        stream = self._by_route.get(frame.request)
        if stream is not None and len(frame.payload) == 4:
            stream.more(int.from_bytes(frame.payload, "big"))

    def drop(self, frame: Frame) -> None:
        """The client has gone: cancel its handler. Requests that are no streams run on."""
        stream = self._by_route.get(frame.request)
        if stream is not None:
            stream.fail("the client has gone")
            if stream.task is not None:
                stream.task.cancel()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._beat = loop.call_later(BEAT_SECONDS, self._tick) if self._by_route else None
        now = loop.time()
        for stream in list(self._by_route.values()):
            stream.beat()
            if stream.waits_since is not None and now - stream.waits_since > self._bounds.idle_seconds:
                stream.fail("nothing was heard of the client for too long")

    # Handlers ------------------------------------------------------------------------

    async def _run(self, stream: _Stream, handler: Handler, method: Method, arguments: tuple[Any, ...]) -> None:
        try:
            if self._in_thread(handler, method):
                assert self._pool is not None
                work = contextvars.copy_context().run
                run = asyncio.get_running_loop().run_in_executor
                result = await run(self._pool, work, _blocking, stream, handler, method, arguments)
            else:
                result = handler(*method.join(arguments, _Upload(stream)))
                if inspect.isawaitable(result):
                    result = await result
                if method.download is not None:
                    await _pump(stream, result)
            context = b""
            if self._transactions is not None and stream.work is not None:
                self._transactions.finish_stream(stream.work, answers_by_stream=method.download is not None)
                context = self._transactions.told(stream.identity)
            await stream.finish(result, value=method.download is None, context=context)
        except asyncio.CancelledError:
            if stream.failure is None:
                stream.end(self._failure(RuntimeError("cancelled")))
        except BaseException as error:
            with suppress(Exception):
                await stream.flush()
            with suppress(Exception):
                stream.end(self._failure(error))

    def _in_thread(self, handler: Handler, method: Method) -> bool:
        if self._pool is None or inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler):
            return False
        kinds = (method.upload, method.download)
        return not any(kind is not None and kind.asynchronous for kind in kinds)

    def _forget(self, stream: _Stream) -> None:
        stream.close()
        if self._transactions is not None and stream.work is not None:
            self._transactions.end(stream.work)
        del self._by_route[stream.route], self._by_key[stream.key]
        left = self._per_identity[stream.identity] - 1
        if left:
            self._per_identity[stream.identity] = left
        else:
            del self._per_identity[stream.identity]


async def _pump(stream: _Stream, result: Any) -> None:
    """Step the author's iterator as credit allows; close it however this ends."""
    try:
        if hasattr(result, "__aiter__"):
            async for item in result:
                await stream.put(item)
        else:
            for item in result:
                await stream.put(item)
    finally:
        if hasattr(result, "aclose"):
            await result.aclose()
        elif hasattr(result, "close"):
            result.close()


def _blocking(stream: _Stream, handler: Handler, method: Method, arguments: tuple[Any, ...]) -> Any:
    """Run a plain handler in a thread, and step what it returns there."""
    result = handler(*method.join(arguments, stream.blocking_items()))
    if method.download is None:
        return result
    try:
        for item in result:
            stream.blocking_put(item)
    finally:
        if hasattr(result, "close"):
            result.close()
    return None
