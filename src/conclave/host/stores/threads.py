"""Threads of one store, for calls that block.

Runs in the untrusted host.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from conclave.errors import StoreUnavailable
from conclave.host.stores.patience import Patience

Value = TypeVar("Value")
# Operations that no thread has begun yet: while a disk hangs they are as many as somebody asks for.
MOST_WAITING: Final = 256


class Threads:
    """A few threads of its own: a disk that hangs takes none from others."""

    def __init__(self, count: int, name: str, patience: Patience, told: Callable[[Exception], Exception]) -> None:
        """Starts none yet.

        Args:
            told: the store's own error for what the work raised, or that itself.
        """
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._patience = patience
        self._told = told
        self._closed = False
        self._room = threading.Semaphore(MOST_WAITING)

    async def run(self, work: Callable[[], Value], *, again: bool = False) -> Value:
        """Do blocking work in a thread; `again` as in `Patience.spend`.

        Raises:
            StoreUnavailable: too much waits, time is over, or this is closed.
            Exception: what became of that of the work.
        """

        def guarded() -> Value:
            try:
                return work()
            except Exception as error:
                raise self._told(error) from None

        return await self._patience.spend(lambda _: self._attempt(guarded), again=again)

    async def _attempt(self, work: Callable[[], Value]) -> Value:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if not self._room.acquire(blocking=False):
            raise StoreUnavailable("too many operations wait for the store")
        given_up = threading.Event()

        def begun() -> Value:
            self._room.release()
            if given_up.is_set():
                raise StoreUnavailable("nobody waits for this operation any more")
            return work()

        # What waits in the pool keeps its place there when it is cancelled: so it is only told.
        begins = self._pool.submit(begun)
        try:
            return await asyncio.shield(asyncio.wrap_future(begins))
        finally:
            given_up.set()

    def close(self) -> None:
        """Take no more work; what was begun ends by itself."""
        self._closed = True
        self._pool.shutdown(wait=False)
