"""Lets replies out only once the commits and the posted mail that came before them are durable.

Runs in the untrusted host, between the link and whoever waits for answers. While
nothing was committed or posted it costs one look at an empty queue.

Spec: spec/host-channel.md section 2 (CHAN-13).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from conclave._framing import Frame, Kind
from conclave.errors import FormatError
from conclave.host.streams import weight

PATIENCE_SECONDS: Final = 10.0
# Looking up the member of an enumeration costs more than comparing it.
_POST: Final = Kind.POST
_COMMIT: Final = Kind.COMMIT
_SNAPSHOT: Final = Kind.SNAPSHOT
_INSTANCE: Final = Kind.INSTANCE
_KEPT: Final = frozenset({Kind.POST, Kind.COMMIT, Kind.SNAPSHOT})
# Nothing that a client could take as an answer to its mail.
_FREE: Final = frozenset({Kind.INSTANCE, Kind.SIGNED, Kind.FETCH, Kind.LOAD})
Keep = Callable[[bytes, Callable[[], None]], None]


class State(Protocol):
    """What keeps the state of an enclave; both raise FormatError for what is none."""

    def commit(self, payload: bytes, durable: Callable[[], None]) -> None:
        """Keep what a COMMIT frame brought, and say when it is there."""

    def snapshot(self, payload: bytes, kept: Callable[[], None]) -> None:
        """Keep what a SNAPSHOT frame brought, and say when it takes no memory any more."""


class _Mark:
    """Stands in the queue where a commit or posted mail came."""

    __slots__ = ("commit", "durable", "size")

    def __init__(self, size: int, *, commit: bool) -> None:
        self.size = size
        self.commit = commit
        self.durable = False


class Gate:
    """The order of posted mail and replies of one boot."""

    def __init__(
        self,
        keep: Keep,
        deliver: Callable[[list[Frame]], None],
        *,
        state: State | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Open at first.

        Args:
            keep: puts the payload of a POST frame on the store, and says when it is there.
            deliver: gives frames to whoever waits for them.
            state: the same for state; None: an enclave that commits any breaks the protocol.
            patience_seconds: after that long, replies become ERROR `store`: their
                clients ask again, and the enclave has the replies still.
        """
        self._keep = keep
        self._deliver = deliver
        self._state = state
        self._patience = patience_seconds
        self._queue: deque[Frame | _Mark] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._late = False
        # Bytes that are held here.
        self.held = 0

    def passed(self, frames: list[Frame]) -> list[Frame]:
        """Those of the frames that may go at once; the others are held. Raises FormatError."""
        if not self._queue and _KEPT.isdisjoint([frame.kind for frame in frames]):
            return frames
        return [frame for frame in frames if not self.holds(frame)]

    def holds(self, frame: Frame) -> bool:
        """Take a frame that must wait; False: it may go at once.

        Raises:
            FormatError: of state, what cannot be.
        """
        kind = frame.kind
        if kind in _KEPT:
            self._hold(kind, frame)
            return True
        if kind == _INSTANCE and frame.request == 0 and any(isinstance(m, _Mark) and m.commit for m in self._queue):
            # Who sees the name of a log must find that log after a restart.
            self._add(frame, weight(frame))
            return True
        if not self._queue or frame.request == 0 or kind in _FREE:
            return False
        if self._late:
            self._deliver([_not_kept(frame)])
        else:
            self._add(frame, weight(frame))
        return True

    def _hold(self, kind: int, frame: Frame) -> None:
        size = weight(frame)
        if kind == _POST:
            mark = _Mark(size, commit=False)
            self._add(mark, size)
            self._keep(frame.payload, lambda: self._durable(mark))
        elif self._state is None:
            raise FormatError("an enclave that has no state commits some")
        elif kind == _COMMIT:
            mark = _Mark(size, commit=True)
            self._add(mark, size)
            self._state.commit(frame.payload, lambda: self._durable(mark))
        else:
            self.held += size
            self._state.snapshot(frame.payload, lambda: self._kept(size))

    def _kept(self, size: int) -> None:
        self.held -= size
        self._deliver([])

    def close(self) -> None:
        """The boot is gone: what it committed and posted is still kept, its replies reach nobody."""
        self._queue.clear()
        self._stop_timer()

    def _add(self, item: Frame | _Mark, size: int) -> None:
        self._queue.append(item)
        self.held += size
        if self._timer is None and not self._late:
            self._timer = asyncio.get_running_loop().call_later(self._patience, self._give_up)

    def _durable(self, mark: _Mark) -> None:
        mark.durable = True
        frames = []
        while self._queue:
            first = self._queue[0]
            if isinstance(first, Frame):
                self.held -= weight(first)
                frames.append(first)
            elif first.durable:
                self.held -= first.size
            else:
                break
            self._queue.popleft()
        # The next mark has the same patience from here: the store does take mail.
        self._stop_timer()
        self._late = False
        if self._queue:
            self._timer = asyncio.get_running_loop().call_later(self._patience, self._give_up)
        self._deliver(frames)

    def _give_up(self) -> None:
        self._late, self._timer = True, None
        frames = [item for item in self._queue if isinstance(item, Frame) and item.request]
        self._queue = deque(item for item in self._queue if not isinstance(item, Frame) or not item.request)
        self.held -= sum(map(weight, frames))
        self._deliver([_not_kept(frame) for frame in frames])

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _not_kept(frame: Frame) -> Frame:
    return Frame(Kind.ERROR, frame.request, b"store")
