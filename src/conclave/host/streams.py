"""Streams on their way through the host: uploads in, replies out, and who has gone.

Runs in the untrusted host, without keys. It checks forms and keeps memory bounded;
what authenticates is the ends' business.

Spec: spec/http.md (HTTP-10 to HTTP-12), spec/host-channel.md section 2.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from conclave._chunkheader import CHUNK_MAGIC, MAX_CHUNKS
from conclave._framing import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conclave.host.link import Ask

# Credit is given back in such portions: a frame for each chunk would cost as much as the chunk.
PORTION: Final = MAX_CHUNKS // 2
# Chunks of one stream that wait in the host at most; the end, and a sign of life, need no credit.
MOST_WAITING: Final = MAX_CHUNKS + 2
# What a frame costs here beside its payload: one without is not free.
FRAME_WEIGHT: Final = 128


def is_chunk(frame: Frame) -> bool:
    """Whether an enclave's frame carries a chunk rather than a mail."""
    return frame.payload.startswith(CHUNK_MAGIC)


class Reply:
    """One answer that is streamed to its client."""

    def __init__(self, ask: Ask) -> None:
        self._link = ask.link
        self._ask = ask
        self._sent = 0

    async def frames(self, first: list[Frame]) -> Any:
        """What the enclave sends, as it comes; credit goes back once the caller has passed it on."""
        frames = first
        while frames:
            yield frames
            if self._ask.done and not self._ask.frames:
                return
            self._sent += sum(map(is_chunk, frames))
            if self._sent >= PORTION:
                self._link.credit(self._ask, self._sent)
                self._sent = 0
            frames = await self._ask.more()

    async def while_there(self, left: Awaitable[None], work: Callable[[], Awaitable[None]]) -> None:
        """Do that, unless the client leaves: then the enclave learns it and what it still sends is dropped."""
        leaving = asyncio.ensure_future(left)
        leaving.add_done_callback(self._left)
        try:
            await work()
        finally:
            leaving.remove_done_callback(self._left)
            leaving.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await leaving
            # Whatever ended this before the enclave did: nobody reads on.
            self._link.drop(self._ask)

    def _left(self, leaving: asyncio.Future[None]) -> None:
        if not leaving.cancelled():
            self._link.drop(self._ask)


def weight(frame: Frame) -> int:
    """What a frame costs here."""
    return FRAME_WEIGHT + len(frame.payload)


def answered(frames: list[Frame]) -> bool:
    """Whether the enclave took what was uploaded."""
    return bool(frames) and frames[0].kind == Kind.DONE
