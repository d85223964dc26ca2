"""Lets replies out only once the posted mail that came before them is durable.

Runs in the untrusted host, between the link and whoever waits for answers. While
nothing was posted it costs one look at an empty queue.

Spec: spec/host-channel.md section 2 (CHAN-13).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from conclave._framing import Frame, Kind
from conclave.host.streams import weight

PATIENCE_SECONDS: Final = 10.0
# Looking up the member of an enumeration costs more than comparing it.
_POST: Final = Kind.POST
# Nothing that a client could take as an answer to its mail.
_FREE: Final = frozenset({Kind.INSTANCE, Kind.SIGNED, Kind.FETCH})
Keep = Callable[[bytes, Callable[[], None]], None]


class _Mark:
    """Stands in the queue where posted mail came."""

    __slots__ = ("durable", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.durable = False


class Gate:
    """The order of posted mail and replies of one boot."""

    def __init__(
        self,
        keep: Keep,
        deliver: Callable[[list[Frame]], None],
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Open at first.

        Args:
            keep: puts the payload of a POST frame on the store, and says when it is there.
            deliver: gives frames to whoever waits for them.
            patience_seconds: after that long, replies become ERROR `store`: their
                clients ask again, and the enclave has the replies still.
        """
        self._keep = keep
        self._deliver = deliver
        self._patience = patience_seconds
        self._queue: deque[Frame | _Mark] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._late = False
        # Bytes that are held here.
        self.held = 0

    def passed(self, frames: list[Frame]) -> list[Frame]:
        """Those of the frames that may go at once; the others are held."""
        if not self._queue and _POST not in [frame.kind for frame in frames]:
            return frames
        return [frame for frame in frames if not self.holds(frame)]

    def holds(self, frame: Frame) -> bool:
        """Take a frame that must wait; False: it may go at once."""
        if frame.kind == _POST:
            mark = _Mark(weight(frame))
            self._add(mark, mark.size)
            self._keep(frame.payload, lambda: self._durable(mark))
            return True
        if not self._queue or frame.request == 0 or frame.kind in _FREE:
            return False
        if self._late:
            self._deliver([_not_kept(frame)])
        else:
            self._add(frame, weight(frame))
        return True

    def close(self) -> None:
        """The boot is gone: what it posted is still kept, its replies reach nobody."""
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
        frames = [item for item in self._queue if isinstance(item, Frame)]
        self._queue = deque(item for item in self._queue if not isinstance(item, Frame))
        self.held -= sum(map(weight, frames))
        self._deliver([_not_kept(frame) for frame in frames])

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _not_kept(frame: Frame) -> Frame:
    return Frame(Kind.ERROR, frame.request, b"store")
