"""One thread for the files of one state store, with the shortest way there and back.

Runs in the untrusted host.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from conclave.errors import StoreUnavailable
from conclave.host.stores.local import told

Value = TypeVar("Value")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]
_STOP: Final = None


class Worker:
    """Does what blocks, one after the other, in order. What has begun is always finished."""

    def __init__(self, name: str) -> None:
        """The thread starts with the first work, and never keeps the process from ending."""
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def run(self, work: Callable[[], Value]) -> Value:
        """Do it there.

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
                loop.call_soon_threadsafe(_tell, done, result, error)
            except RuntimeError:
                # The loop is closed: nobody waits.
                continue


def _tell(done: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
