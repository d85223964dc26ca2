"""Mail that answers no request in flight, kept for its client to fetch.

Runs in the untrusted host, in memory: session keys do not outlive the enclave's
boot, so neither need these mails. Nobody relies on it: a client believes only
what decrypts.

Spec: spec/http.md (HTTP-3).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

from conclave._mailheader import address_of
from conclave.errors import FormatError

MAX_BOXES = 100_000
MAX_MAILS = 1024
MAX_BYTES = 64 * 1024 * 1024
KEEP_SECONDS = 3600.0


@dataclass(slots=True)
class _Box:
    mails: OrderedDict[int, tuple[bytes, float]] = field(default_factory=OrderedDict)
    size: int = 0
    capability: str | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class Outbox:
    """One box per session, reached by a random capability."""

    def __init__(self) -> None:
        self._boxes: OrderedDict[bytes, _Box] = OrderedDict()
        self._by_capability: dict[str, _Box] = {}

    def clear(self) -> None:
        """Forget everything: the boot whose keys these mails need is gone."""
        self._boxes.clear()
        self._by_capability.clear()

    def put(self, data: bytes, now: float) -> None:
        """Keep a mail of the enclave; what is none, or finds no room, is dropped."""
        try:
            _, session_id, counter = address_of(data)
        except FormatError:
            return
        box = self._box(session_id)
        for counter, (old, at) in list(box.mails.items()):
            if now - at > KEEP_SECONDS:
                del box.mails[counter]
                box.size -= len(old)
        if len(box.mails) < MAX_MAILS and box.size + len(data) <= MAX_BYTES:
            box.mails[counter] = (data, now)
            box.size += len(data)
            box.arrived.set()

    def _box(self, session_id: bytes) -> _Box:
        box = self._boxes.get(session_id)
        if box is None:
            box = self._boxes[session_id] = _Box()
            if len(self._boxes) > MAX_BOXES:
                _, old = self._boxes.popitem(last=False)
                if old.capability is not None:
                    self._by_capability.pop(old.capability, None)
        return box

    def claim(self, session_id: bytes) -> str | None:
        """The capability of a session's box; None if it was given already."""
        box = self._box(session_id)
        if box.capability is not None:
            return None
        box.capability = secrets.token_hex(16)
        self._by_capability[box.capability] = box
        return box.capability

    async def read(self, capability: str, wait_seconds: float) -> list[bytes] | None:
        """Mails in the box, waiting for the first; None if there is no such box."""
        box = self._by_capability.get(capability)
        if box is None:
            return None
        if not box.mails and wait_seconds > 0:
            box.arrived.clear()
            try:
                async with asyncio.timeout(wait_seconds):
                    await box.arrived.wait()
            except TimeoutError:
                pass
        return [data for data, _ in box.mails.values()]

    def delete(self, capability: str, below: int) -> bool:
        """Drop mails with a lower counter. False if there is no such box."""
        box = self._by_capability.get(capability)
        if box is None:
            return False
        for counter in [c for c in box.mails if c < below]:
            box.size -= len(box.mails.pop(counter)[0])
        return True
