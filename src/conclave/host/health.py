"""Whether a host lives, and whether clients should be sent to it.

Runs in the untrusted host.

Spec: spec/http.md (HTTP-20, HTTP-21).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from conclave.errors import StoreError
from conclave.host.stores import BlobStore

STORE_SECONDS: Final = 2.0
# However often it is asked, the store is asked this often.
FRESH_SECONDS: Final = 1.0
_PROBE: Final = "readyz"


class Health:
    """What `/readyz` says."""

    def __init__(
        self,
        *,
        up: Callable[[], bool],
        keeps: Callable[[], bool] = lambda: True,
        halted: Callable[[], bool] = lambda: False,
        store: BlobStore | None = None,
    ) -> None:
        """Nothing runs by itself.

        Args:
            up: whether there is an enclave with evidence.
            keeps: whether what was committed and posted last could be kept.
            halted: whether the enclave stopped because its state was rolled back or forked.
            store: asked whether it answers; None where posted mail is kept in memory.
        """
        self._up = up
        self._keeps = keeps
        self._halted = halted
        self._store = store
        self._asked = -FRESH_SECONDS
        self._answers = True
        self._asking: asyncio.Task[None] | None = None
        self.draining = False

    async def reasons(self) -> list[str]:
        """Why clients should go elsewhere, as words; none: it is ready."""
        found = {
            "draining": self.draining,
            "enclave": not self._up(),
            "halted": self._halted(),
            "store": not (await self._store_answers() and self._keeps()),
        }
        return [word for word, holds in found.items() if holds]

    async def _store_answers(self) -> bool:
        if self._store is not None and self._asking is None and time.monotonic() - self._asked >= FRESH_SECONDS:
            self._asking = asyncio.create_task(self._ask(self._store))
        if self._asking is not None:
            await asyncio.shield(self._asking)
        return self._answers

    async def _ask(self, store: BlobStore) -> None:
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await store.get(_PROBE)
            self._answers = True
        except (StoreError, TimeoutError):
            self._answers = False
        finally:
            self._asked = time.monotonic()
            self._asking = None
