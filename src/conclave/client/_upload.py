"""The upload of a stream call: any source of items, as batches of encrypted chunks.

Runs at the relying party, without IO of its own. A batch is made once and sent until
it was taken or refused: no chunk's number is used twice.

Spec: spec/mail.md section 8, spec/http.md (HTTP-10).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final, cast

import msgspec

from conclave._chunkheader import MAX_CHUNKS, MAX_CONTENT
from conclave.client.core import Opened
from conclave.mail.stream import Packer

Source = AsyncIterable[Any] | Iterable[Any]
# Items that wait to be sent, and those of them that an iterator gives at once.
_MAX_ITEMS: Final = 16 * 1024
_MAX_HOP: Final = 1024
_AGAIN_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0)


class Uploader:
    """Sends one source in batches of chunks, reading on and encrypting while a batch is under way."""

    def __init__(
        self,
        opened: Opened,
        source: Source,
        post: Callable[[bytes, Callable[[], None]], Awaitable[int]],
        *,
        raw: bool,
    ) -> None:
        """Nothing happens before `run`.

        Args:
            post: sends a batch, tells the function when all of it is on its way, and returns the answer's status.
        """
        self._sealer = opened.sealer
        self._source = source
        self._post = post
        self._raw = raw
        self._out = Packer()
        self._stepped: _Stepped | None = None
        self._changed = asyncio.Event()
        self._read = False
        # The batch that is under way, and whether all of it has left.
        self._sending: asyncio.Task[bool] | None = None
        self._left = False
        self.failure: BaseException | None = None
        self.progress = time.monotonic()
        # Since when the other end takes no more: its stream has ended, or the host is in the way.
        self.refused: float | None = None

    async def run(self) -> None:
        """Until everything was taken, or the stream has ended at the other end."""
        reading = asyncio.ensure_future(self._fill())
        try:
            while not self._sealer.ended:
                await self._until(self._ready)
                # A refusal is said at once: the source may wait for what the reply brings.
                if self._refused():
                    break
                body = self._batch()
                if not await self._sent():
                    return
                self._left = False
                self._sending = asyncio.ensure_future(self._send(body))
                self._sending.add_done_callback(lambda _: self._changed.set())
            await self._sent()
        finally:
            # Both before either is waited for: a source may take its time to end, and nothing more is sent meanwhile.
            tasks = [task for task in (self._sending, reading) if task is not None]
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    def _ready(self) -> bool:
        """Whether to make the next batch now: while one is under way only if it is whole, or the last."""
        if self._sending is None or self._sending.done():
            return bool(self._out) or self._read or self._refused()
        # Not before that one is on its way: the other end is to have work meanwhile.
        return self._left and (self._full() or self._read)

    def _refused(self) -> bool:
        """Whether the batch that was sent last failed."""
        sent = self._sending
        return sent is not None and sent.done() and (sent.exception() is not None or not sent.result())

    async def _sent(self) -> bool:
        """Whether the batch under way, if there is one, was taken."""
        taken = self._sending is None or await self._sending
        if not taken:
            self.refused = time.monotonic()
        return taken

    def _batch(self) -> bytes:
        parts: list[bytes] = []
        error = self._read and self.failure is not None
        while self._out and len(parts) < 3 * MAX_CHUNKS:
            content, item, packed = self._out.next()
            final = self._read and not error and not self._out
            parts += _sized(self._sealer.seal(content, item=item, packed=packed, final=final))
        if self._read and not self._sealer.ended and len(parts) < 3 * MAX_CHUNKS:
            parts += _sized(self._sealer.seal(b"", final=True, error=error))
        self._changed.set()
        if self._stepped is not None:
            self._stepped.room.set()
        return b"".join(parts)

    async def _send(self, body: bytes) -> bool:
        # The bytes stay the same: an enclave without room took none of them.
        for pause in _AGAIN_SECONDS:
            status = await self._post(body, self._on_its_way)
            self.progress = time.monotonic()
            if status != 429:
                break
            await asyncio.sleep(pause)
        return status == 204

    def _on_its_way(self) -> None:
        self._left = True
        self._changed.set()

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._changed.clear()
            await self._changed.wait()

    async def _fill(self) -> None:
        stepped: _Stepped | None = None
        try:
            if _blocks(self._source):
                stepped = _Stepped(cast(Iterable[Any], self._source), self._encode, self._full, self._arrived)
                self._stepped = stepped
                await stepped.ended
            async for item in _iterate(() if stepped else self._source):
                self._out.add(self._encode(item))
                self._changed.set()
                if self._full():
                    await self._until(lambda: not self._full())
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = error
        finally:
            if stepped is not None:
                stepped.stop()
        self._read = True
        self._changed.set()

    def _full(self) -> bool:
        return self._out.size > MAX_CHUNKS * MAX_CONTENT or len(self._out) > _MAX_ITEMS

    def _arrived(self, items: list[Any]) -> None:
        for item in items:
            self._out.add(item)
        self._changed.set()

    def _encode(self, item: Any) -> bytes | bytearray | memoryview:
        if not self._raw:
            return msgspec.msgpack.encode(item)
        if not isinstance(item, bytes | bytearray | memoryview):
            raise TypeError(f"this stream is of bytes; an item is {type(item).__name__}")
        return item


def _sized(chunk: tuple[bytes, bytes]) -> tuple[bytes, bytes, bytes]:
    head, sealed = chunk
    return (len(head) + len(sealed)).to_bytes(4, "big"), head, sealed


class _Stepped:
    """A caller's iterator, which may block: stepped in a thread of its own, as far as there is room."""

    def __init__(
        self,
        source: Iterable[Any],
        encode: Callable[[Any], Any],
        full: Callable[[], bool],
        arrived: Callable[[list[Any]], None],
    ) -> None:
        self.room = threading.Event()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._source = source
        self._encode = encode
        self._full = full
        self._arrived = arrived
        self._ready: deque[Any] = deque()
        self._told = self._stopped = False
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._run,), name="conclave-upload", daemon=True).start()

    def stop(self) -> None:
        """Step no further than the item that is being made."""
        self._stopped = True
        self.room.set()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if self._stopped:
                    return
                self._give(self._encode(item))
        except BaseException as raised:
            error = raised
        # The loop may be gone, and then nobody waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, error)

    def _give(self, item: Any) -> None:
        self._ready.append(item)
        if not self._told:
            # One hop for all that come until it is made.
            self._told = True
            self._loop.call_soon_threadsafe(self._take)
        while self._over(len(item)) and not self._stopped:
            self.room.clear()
            if self._over(len(item)) and not self._stopped:
                self.room.wait()

    def _over(self, size: int) -> bool:
        count = len(self._ready)
        return self._full() or count > _MAX_HOP or count * size > MAX_CONTENT

    def _take(self) -> None:
        self._told = False
        items = [self._ready.popleft() for _ in range(len(self._ready))]
        try:
            self._arrived(items)
        except ValueError as error:
            self.stop()
            self._end(error)
        if not self._full():
            self.room.set()

    def _end(self, error: BaseException | None) -> None:
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)


def _blocks(source: Any) -> bool:
    known = isinstance(source, bytes | bytearray | memoryview | list | tuple)
    return not (known or hasattr(source, "__aiter__") or hasattr(source, "read"))


async def _iterate(source: Any) -> AsyncIterator[Any]:
    """Items of whatever was given, but for an iterator that may block."""
    if isinstance(source, bytes | bytearray | memoryview):
        view = memoryview(source)
        for at in range(0, len(view), MAX_CONTENT):
            yield view[at : at + MAX_CONTENT]
    elif hasattr(source, "__aiter__"):
        async for item in source:
            yield item
    elif isinstance(source, list | tuple):
        for item in source:
            yield item
    elif hasattr(source, "read"):
        while data := await asyncio.to_thread(source.read, MAX_CHUNKS * MAX_CONTENT):
            for at in range(0, len(data), MAX_CONTENT):
                yield data[at : at + MAX_CONTENT]
