"""The host's end of the host channel: asks the enclave, collects its answers.

Runs in the untrusted host. A buggy enclave may send anything: what is not a
frame ends the link, what answers nobody is dropped.

Spec: spec/host-channel.md sections 1 and 2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

from conclave._framing import Frame, FrameReader, Kind, head
from conclave._memory import keep_memory
from conclave.errors import FormatError, TransportError
from conclave.host.counts import Counts
from conclave.host.exchange import Body
from conclave.host.gate import Gate, Keep, State
from conclave.host.streams import MOST_WAITING, is_chunk, weight

MAX_ASKS: Final = 8192
# Answers that nobody took yet; above it the enclave has to wait.
MAX_HELD: Final = 64 * 1024 * 1024
# Requests that the enclave did not read yet; above it the clients have to wait.
MAX_UNREAD: Final = 256 * 1024 * 1024
# So many requests go out at once: the enclave begins with them while we take more. With 8 a write,
# a request costs a fifth more processor time.
_BATCH: Final = 32
# Below this one copy is cheaper than a write of many pieces.
_JOIN: Final = 32 * 1024
# As much as a processor keeps at hand: what just came is then sent on without a way to memory and back.
_BATCH_SIZE: Final = 256 * 1024
_KEPT_MIB: Final = 31
_READ_SIZE: Final = 256 * 1024
_FINAL: Final = frozenset({Kind.DONE, Kind.ERROR, Kind.SIGNED, Kind.INSTANCE})
# Looking up the member of an enumeration costs more than comparing it.
_MAIL: Final = Kind.MAIL
_ASKING: Final = frozenset({Kind.FETCH, Kind.LOAD})


class Ask:
    """One request to the enclave and the frames that answered it so far."""

    # Waits until the client that asked has gone; None once somebody waits for that.
    leaves: Callable[[], Awaitable[None]] | None = None
    # Chunks among the frames that wait: more than were asked for, and the enclave keeps to no protocol.
    chunks = 0
    # What the other frames weigh that wait: chunks are bounded by the credit of each stream.
    held = 0
    # How many of the frames are in these counts: those that are taken at once never are.
    counted = 0
    done = False
    # Called once, when there are frames or will be none.
    waiter: Callable[[Ask], None] | None = None

    def __init__(self, request: int, link: Link) -> None:
        self.request = request
        self.link = link
        self.frames: list[Frame] = []

    def end(self) -> None:
        """The enclave is gone, or the request given up."""
        self.done = True
        waiter, self.waiter = self.waiter, None
        if waiter is not None:
            waiter(self)

    def drop(self) -> None:
        """Give it up, see `Link.drop`."""
        self.link.drop(self)

    def take(self) -> list[Frame]:
        """The frames since the last time."""
        frames, self.frames = self.frames, []
        if self.counted:
            self.link.taken(self.held)
            self.chunks = self.held = self.counted = 0
        return frames

    async def more(self) -> list[Frame]:
        """Wait for frames; those since the last call. Empty: the enclave is gone."""
        if not self.frames and not self.done:
            arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiter = lambda ask: None if arrived.done() else arrived.set_result(None)
            await arrived
        return self.take()


class Link(asyncio.BufferedProtocol):
    """One byte stream to one boot."""

    def __init__(
        self,
        unasked: Callable[[Frame], None],
        lost: Callable[[], None],
        keep: Keep = lambda _, done: done(),
        *,
        state: State | None = None,
    ) -> None:
        self.counts = Counts()
        self._unasked = unasked
        self._lost = lost
        self._gate = Gate(keep, self._deliver, state=state)
        self._reader = FrameReader(Kind, buffer_size=_READ_SIZE)
        keep_memory(_KEPT_MIB)
        self._asks: dict[int, Ask] = {}
        self._next = 1
        self._out: list[Body] = []
        self._waiting = 0
        self._scheduled = False
        self._held = 0
        self._paused = False
        # There while the enclave does not take what was sent.
        self._drained: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the stream is there."""
        # uvloop's transports are asyncio's by shape, not by class.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the enclave is gone; everybody who waits learns it."""
        self._transport = None
        self._gate.close()
        self.resume_writing()
        asks, self._asks = self._asks, {}
        for ask in asks.values():
            ask.end()
        self._lost()

    def pause_writing(self) -> None:
        """asyncio: the enclave is slower than we are."""
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """asyncio: it has taken most of what was sent."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    async def drained(self) -> None:
        """Wait until the enclave has taken most of what was sent.

        Raises:
            TransportError: it is gone.
        """
        if self._drained is not None:
            await asyncio.shield(self._drained)
        if self._transport is None:
            raise TransportError("the enclave is not running")

    def get_buffer(self, sizehint: int) -> memoryview:
        """asyncio: where bytes of the enclave shall go."""
        return self._reader.space()

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio: bytes of the enclave."""
        try:
            frames = self._reader.received(nbytes)
            self.counts.to_host.add(len(frames), nbytes)
            passed = self._gate.passed(frames)
        except FormatError:
            self.close()
            return
        self._deliver(passed)

    def _deliver(self, frames: list[Frame]) -> None:
        answered = []
        asks = self._asks
        for frame in frames:
            kind, request = frame.kind, frame.request
            ask = asks.get(request)
            if ask is None or kind in _ASKING:
                # The request id is then the enclave's own, and says nothing of ours.
                if request == 0 or kind in _ASKING:
                    self._unasked(frame)
                continue
            # Whoever waits is told once all that arrived together is taken.
            ask.frames.append(frame)
            answered.append(ask)
            if kind in _FINAL:
                ask.done = True
                del asks[request]
        for ask in answered:
            waiter = ask.waiter
            if waiter is not None:
                ask.waiter = None
                waiter(ask)
            if ask.frames:
                self._count(ask)
                if ask.chunks > MOST_WAITING:
                    self.close()
        self._flow()

    def _count(self, ask: Ask) -> None:
        """Count what came for it and waits."""
        size = 0
        for frame in ask.frames[ask.counted :]:
            if is_chunk(frame):
                ask.chunks += 1
            else:
                size += weight(frame)
        ask.counted = len(ask.frames)
        ask.held += size
        self._held += size

    def taken(self, size: int) -> None:
        """So much of the answers was taken on."""
        self._held -= size
        if self._paused:
            self._flow()

    def _flow(self) -> None:
        full = self._held + self._gate.held > MAX_HELD
        if full != self._paused and self._transport is not None:
            self._paused = full
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def ask(self, kind: Kind, payload: Body = b"") -> Ask:
        """Send a request.

        Raises:
            TransportError: the enclave is gone, or too many requests wait.
        """
        if self._transport is None:
            raise TransportError("the enclave is not running")
        # While its buffer has room, next to nothing lies there.
        full = self._drained is not None and self._transport.get_write_buffer_size() + self._waiting > MAX_UNREAD
        if full or len(self._asks) >= MAX_ASKS:
            raise TransportError("too many requests are waiting for the enclave")
        request = self._next
        self._next = request + 1
        ask = self._asks[request] = Ask(request, self)
        if kind == _MAIL:
            self.counts.mails += 1
        self._send(kind, request, payload)
        return ask

    def waiting_since(self, request: int) -> list[Ask]:
        """Requests that were made before that one and have no answer yet."""
        return [ask for ask in self._asks.values() if ask.request < request]

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""
        return len(self._asks)

    @property
    def next_request(self) -> int:
        """The id that the next request will have."""
        return self._next

    def drop(self, ask: Ask) -> None:
        """Give up a request; what still comes for it is dropped, and a stream's handler is cancelled."""
        if self._asks.pop(ask.request, None) is not None:
            if self._transport is not None:
                self._send(Kind.DROP, ask.request, b"")
            ask.end()
        # What was never taken is held no more.
        ask.take()

    def tell(self, kind: Kind, request: int, payload: bytes) -> None:
        """Send what answers the enclave, or needs no answer; nothing if it is gone."""
        if self._transport is not None:
            self._send(kind, request, payload)

    def credit(self, ask: Ask, chunks: int) -> None:
        """Take so many chunks more of a stream."""
        if ask.request in self._asks and self._transport is not None:
            self._send(Kind.CREDIT, ask.request, chunks.to_bytes(4, "big"))

    def stop(self) -> None:
        """Ask the enclave to end."""
        if self._transport is not None:
            self._send(Kind.STOP, 0, b"")

    def close(self) -> None:
        """End the boot by closing its channel."""
        if self._transport is not None:
            self._transport.close()

    def _send(self, kind: Kind, request: int, payload: Body) -> None:
        # One write for many requests: under load a crossing costs a fraction.
        size, out = len(payload), self._out
        out += (head(kind, request, size), payload)
        self._waiting += size
        if len(out) >= 2 * _BATCH or self._waiting >= _BATCH_SIZE:
            self._flush()
        elif not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        out, self._out = self._out, []
        waiting, self._waiting = self._waiting, 0
        if not out or self._transport is None:
            return
        # Heads and payloads take turns.
        self.counts.to_enclave.add(len(out) // 2, 8 * len(out) + waiting)
        if waiting <= _JOIN:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)
