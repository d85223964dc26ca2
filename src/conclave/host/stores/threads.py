"""Threads of one store, for calls that block.

Runs in the untrusted host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from conclave.errors import StoreUnavailable

Value = TypeVar("Value")


class Threads:
    """A few threads of its own: a disk that hangs takes none from others."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._closed = False

    async def run(self, work: Callable[[], Value]) -> Value:
        """Do blocking work in a thread. Raises StoreUnavailable once closed."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Take no more work; what was begun ends by itself."""
        self._closed = True
        self._pool.shutdown(wait=False)
