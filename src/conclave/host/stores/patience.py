"""How long an operation of a store may take, and when it is tried again.

Runs in the untrusted host.

Spec: spec/stores.md section 4.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from conclave.errors import StoreUnavailable

Value = TypeVar("Value")


TIMEOUT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds of one operation: all attempts and pauses together end within `timeout_seconds`."""

    timeout_seconds: float = TIMEOUT_SECONDS
    attempts: int = 5
    pause_seconds: float = 0.1

    async def spend(self, work: Callable[[int], Awaitable[Value]], *, again: bool) -> Value:
        """Do the work, given the number of the attempt; again after StoreUnavailable if that is safe.

        Raises:
            StoreUnavailable: the last attempt's, or that time is over.
        """
        attempts = self.attempts if again else 1
        try:
            async with asyncio.timeout(self.timeout_seconds):
                for attempt in range(attempts):
                    try:
                        return await work(attempt)
                    except StoreUnavailable:
                        if attempt + 1 == attempts:
                            raise
                    # Hosts that lost one store together do not come back to it together.
                    await asyncio.sleep(self.pause_seconds * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311
        except TimeoutError:
            pass
        raise StoreUnavailable(f"the store did not answer within {self.timeout_seconds:g} seconds; is it running?")
