"""Constant rate: one mail leaves at each tick, a real one if one waits, else one that means nothing.

Runs at the relying party. To the host both look alike: they are made, sent, answered
and sent again by the same steps, in one size, in the order of one queue.

Spec: spec/mail.md section 10 (MAIL-42).
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

from conclave.client.core import Answer, Exchange, Steps
from conclave.errors import OverloadedError, TransportError
from conclave.mail.padding import Padding
from conclave.rpc.interface import Interface

T = TypeVar("T")
# Requests without an answer yet. Above it a tick passes without any, real or not.
MAX_IN_FLIGHT: Final = 64
_MAX_QUEUE: Final = 65536
_GRANTED: Final = Answer(200)
_NOT_YET: Final = Answer(0)
_CLOSED: Final = "the client was closed before this call left"


@dataclass(frozen=True, slots=True)
class ConstantRate:
    """A client that sends one mail each `every`, whether it has anything to say or not.

    It starts when the client is entered (`with`, `async with`) or first calls, and
    ends when it is closed. The client needs a `fixed(…)` padding.

    Attributes:
        every: time from one mail to the next. A call waits for its turn.
        topic: the only topic such a client has: each is a session that the host sees.
        queue: how many calls may wait; another one is an OverloadedError.
    """

    every: timedelta
    topic: str = "default"
    queue: int = 64

    def __post_init__(self) -> None:
        """Raises ValueError for a rate that cannot be kept."""
        if not timedelta(milliseconds=1) <= self.every <= timedelta(days=1):
            raise ValueError("every is a timedelta of 1 millisecond to 1 day")
        if not 0 < self.queue <= _MAX_QUEUE:
            raise ValueError(f"queue is 1 to {_MAX_QUEUE}")


@dataclass(frozen=True, slots=True)
class Turn:
    """A step: wait until a mail may leave.

    Attributes:
        again: it left before and was not answered, so it goes before those that wait.
    """

    again: bool = False


class Pace:
    """Whose turn it is. Thread-safe, without clock."""

    def __init__(self, rate: ConstantRate, padding: Padding) -> None:
        if not padding.is_fixed:
            raise ValueError("a constant rate hides nothing while sizes differ: give the client padding=fixed(…)")
        self.rate = rate
        self._lock = threading.Lock()
        self._first: deque[Callable[[], None]] = deque()
        self._again: deque[Callable[[], None]] = deque()
        self._in_flight = 0

    def enter(self, turn: Turn, grant: Callable[[], None]) -> None:
        """Wait in line; `grant` is called once, at a tick.

        Raises:
            OverloadedError: as many wait as may.
        """
        with self._lock:
            if not turn.again and len(self._first) >= self.rate.queue:
                raise OverloadedError(
                    f"{self.rate.queue} calls wait for their turn already; call less often, or give the "
                    "ConstantRate a shorter `every` or a longer `queue`"
                )
            (self._again if turn.again else self._first).append(grant)

    def leave(self, grant: Callable[[], None]) -> bool:
        """Give up waiting. False: it was granted just now."""
        with self._lock:
            for line in (self._again, self._first):
                if grant in line:
                    line.remove(grant)
                    return True
        return False

    def tick(self) -> bool:
        """Let one mail go. True: none waits, so one that means nothing shall."""
        with self._lock:
            if self._in_flight >= MAX_IN_FLIGHT:
                return False
            self._in_flight += 1
            line = self._again or self._first
            grant = line.popleft() if line else None
        if grant is not None:
            grant()
        return grant is None

    def close(self) -> None:
        """Wake all who wait."""
        with self._lock:
            grants = [*self._again, *self._first]
            self._again.clear()
            self._first.clear()
        for grant in grants:
            grant()

    def landed(self) -> None:
        """A mail that left, or was to leave, is over."""
        with self._lock:
            self._in_flight -= 1

    def check_interface(self, interface: Interface) -> None:
        """Raises ValueError if answers of that enclave come in several sizes."""
        sizes = {interface.padding, *(m.padding for m in interface.methods.values())}
        if len(sizes) != 1 or not all(padding and padding.is_fixed for padding in sizes):
            raise ValueError(
                "a constant rate hides nothing while answers differ in size: the enclave needs one "
                "`padding = fixed(…)` for all of its methods"
            )


def paced(
    pace: Pace,
    make: Callable[[], Generator[Any, Answer, T]],
    *,
    cover: Callable[[], Steps[None]] | None = None,
    granted: bool = False,
) -> Generator[Any, Answer, T]:
    """The same steps, each mail at its turn.

    The first turn comes before the first step: a mail is made when it leaves, so that
    its counter and its opening tell nothing of how long it waited.

    Args:
        cover: sends something else at a turn at which nothing could be made.
        granted: the first turn was given already.
    """
    while not granted:
        granted = (yield Turn()) is _GRANTED
    steps = make()
    answer: Answer | None = None
    try:
        while True:
            try:
                step = next(steps) if answer is None else steps.send(answer)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            except Exception:
                if granted and cover is not None:
                    # A turn that passes in silence would tell of the failure.
                    granted = False
                    with suppress(Exception):
                        yield from paced(pace, cover, granted=True)
                raise
            mail = isinstance(step, Exchange) and step.path == "/mail"
            while mail and not granted:
                granted = (yield Turn(again=True)) is _GRANTED
            answer = yield step
            if mail:
                granted = False
                pace.landed()
    finally:
        if granted:
            pace.landed()
        steps.close()


class ThreadTicker:
    """Ticks in a thread of its own, which ends with the client."""

    def __init__(self, pace: Pace, cover: Callable[[], None]) -> None:
        """Nothing runs yet.

        Args:
            cover: a bound method that sends one cover mail, and raises nothing.
        """
        self.pace = pace
        self._cover = weakref.WeakMethod(cover)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Tick, unless it does already. After a fork the child's first call starts it anew."""
        with self._lock:
            if self._closed.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._main, name="conclave-pace", daemon=True)
            self._thread.start()

    def _main(self) -> None:
        every = self.pace.rate.every.total_seconds()
        at = time.monotonic()
        while not self._closed.wait(max(0.0, at - time.monotonic())):
            # A tick that was missed is left out: two close to each other would tell of it.
            at = max(at + every, time.monotonic())
            if self.pace.tick():
                cover = self._cover()
                if cover is None:
                    return
                threading.Thread(target=cover, name="conclave-cover", daemon=True).start()
                del cover

    def wait(self, turn: Turn, seconds: float) -> Answer:
        """Wait for a turn, at most that long.

        Raises:
            OverloadedError: too many wait.
            TransportError: the client was closed meanwhile.
        """
        self.start()
        mine = threading.Event()
        self.pace.enter(turn, mine.set)
        granted = mine.wait(seconds) or not self.pace.leave(mine.set)
        if self._closed.is_set():
            raise TransportError(_CLOSED)
        return _GRANTED if granted else _NOT_YET

    def close(self) -> None:
        """Stop; who waits is told."""
        self._closed.set()
        self.pace.close()


class TaskTicker:
    """Ticks in a task of the client's event loop."""

    def __init__(self, pace: Pace, cover: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Nothing runs yet; see `ThreadTicker`."""
        self.pace = pace
        self._cover = weakref.WeakMethod(cover)
        self._task: asyncio.Task[None] | None = None
        self._covers: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self) -> None:
        """Tick, unless it does already."""
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._main())

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        every = self.pace.rate.every.total_seconds()
        at = loop.time()
        while True:
            at = max(at + every, loop.time())
            if self.pace.tick():
                cover = self._cover()
                if cover is None:
                    return
                task = loop.create_task(cover())
                self._covers.add(task)
                task.add_done_callback(self._covers.discard)
                del cover
            await asyncio.sleep(max(0.0, at - loop.time()))

    async def wait(self, turn: Turn, seconds: float) -> Answer:
        """See `ThreadTicker.wait`."""
        self.start()
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def grant() -> None:
            if not mine.done():
                mine.set_result(None)

        self.pace.enter(turn, grant)
        try:
            async with asyncio.timeout(seconds):
                await mine
        except BaseException as error:
            if not self.pace.leave(grant):
                # Granted at the moment when it was given up.
                self.pace.landed()
            if isinstance(error, TimeoutError):
                return _NOT_YET
            raise
        if self._closed:
            raise TransportError(_CLOSED)
        return _GRANTED

    async def close(self) -> None:
        """Stop; who waits is told."""
        self._closed = True
        self.pace.close()
        tasks = [*self._covers, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
