"""HTTP exchanges that the host makes for its enclave.

Runs inside the enclave, and is loaded only by those that call others or have witnesses.
The host may answer anything, late, twice or never: what counts is checked by whoever asks.

Spec: spec/host-channel.md section 2 (CHAN-10 to CHAN-12).
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from typing import Final

from conclave import _codec
from conclave._framing import Frame, Kind, Send

MAX_OUTSTANDING: Final = 64
_STATUS = struct.Struct(">H")
# Status 0 comes with one of these words; nothing else that a host says goes into a message.
_WORDS: Final = {
    b"refused": "the host does not fetch from that address; its operator has to allow it (--peer, --witness)",
    b"connect": "the host says that nothing answers at that address",
    b"timeout": "the host says that there was no answer in time",
    b"large": "the host says that the answer is too large",
    b"busy": "the host says that too many exchanges are under way",
    b"broken": "the host says that the connection broke",
}


class Fetch(_codec.Record, frozen=True):
    """Payload of a FETCH frame: an HTTP exchange for the host to make.

    No url: with itself. `witness:NAME`: with that witness, wherever the operator says that it is.
    """

    url: str
    method: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came back. Status 0: no answer at all; `text` says why."""

    status: int
    body: bytes = b""
    text: str = ""


class Fetches:
    """HTTP exchanges that the host makes for this enclave."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._next = 1
        self._waiting: dict[int, asyncio.Future[Fetched]] = {}
        self._room = asyncio.Semaphore(MAX_OUTSTANDING)

    async def fetch(self, request: Fetch, *, timeout_seconds: float) -> Fetched:
        """Ask the host for one exchange. Never raises for what the host does or says."""
        try:
            async with asyncio.timeout(timeout_seconds), self._room:
                number, self._next = self._next, self._next + 1
                answer: asyncio.Future[Fetched] = asyncio.get_running_loop().create_future()
                self._waiting[number] = answer
                try:
                    self._send(Kind.FETCH, number, _codec.encode(request))
                    return await answer
                finally:
                    # Whatever comes for it later is dropped.
                    del self._waiting[number]
        except TimeoutError:
            return Fetched(0, text=f"the host gave no answer within {timeout_seconds:g} seconds")

    def fetched(self, frame: Frame) -> None:
        """Take what the host says of an exchange; late, repeated and invented answers are dropped."""
        waiting = self._waiting.get(frame.request)
        if waiting is not None and not waiting.done():
            waiting.set_result(_answer(frame.payload))


def _answer(payload: bytes) -> Fetched:
    if len(payload) < _STATUS.size:
        return Fetched(0, text="the host's answer has no status")
    (status,) = _STATUS.unpack_from(payload)
    body = payload[_STATUS.size :]
    if status == 0:
        return Fetched(0, text=_WORDS.get(body, "the host made no exchange"))
    return Fetched(status, body)
