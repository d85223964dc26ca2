"""What does the blocking work of one state store: a thread, or the event loop itself while that is faster.

Runs in the untrusted host.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import Any, Final, TypeVar

from conclave.errors import StoreUnavailable
from conclave.host.stores.local import told

Argument = TypeVar("Argument")
Value = TypeVar("Value")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]
_STOP: Final = None
# The way to a thread and back takes some 60 µs, as long as a fast disk takes to synchronise a small write. While work
# has been about as fast as that, it is done at once; a disk that becomes slow is left to the thread with the next one.
QUICK_SECONDS: Final = 0.0004
_WEIGHT: Final = 0.2


class Worker:
    """Does what blocks, one after the other, in order. What has begun is always finished."""

    def __init__(self, name: str) -> None:
        """The thread starts with the first work, and never keeps the process from ending."""
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        # How long quick work took lately, and how much is with the thread.
        self._lately = 2 * QUICK_SECONDS
        self._with_thread = 0

    async def run_quick(self, work: Callable[[Argument], Value], argument: Argument) -> Value:
        """As `run`, of work that a fast disk does in no time: at once if it has lately."""
        if self._with_thread or self._lately > QUICK_SECONDS or self._closed:
            return await self.run(lambda: self._timed(work, argument))
        try:
            return self._timed(work, argument)
        except Exception as error:
            raise told(error) from None

    def _timed(self, work: Callable[[Argument], Value], argument: Argument) -> Value:
        began = monotonic()
        try:
            return work(argument)
        finally:
            self._lately += _WEIGHT * (monotonic() - began - self._lately)

    async def run(self, work: Callable[[], Value]) -> Value:
        """Do it in the thread.

        Raises:
            StoreError: what an OSError is to a store; or this is closed.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Value] = loop.create_future()
        self._with_thread += 1
        self._jobs.put((loop, done, work))
        return await done

    def close(self) -> None:
        """Take no more work; the thread ends once it has done what it has."""
        self._closed = True
        self._jobs.put(_STOP)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not _STOP:
            loop, done, work = job
            try:
                result, error = work(), None
            except Exception as caught:
                result, error = None, told(caught)
            try:
                loop.call_soon_threadsafe(self._tell, done, result, error)
            except RuntimeError:
                # The loop is closed: nobody waits.
                continue

    def _tell(self, done: asyncio.Future[Any], result: object, error: Exception | None) -> None:
        self._with_thread -= 1
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)
