"""Replies that leave together, at ticks: a host sees when a tick came, not when an answer was ready.

Runs inside the enclave, on its loop. The host sets the clock and may stop the
enclave between ticks; it then sees later ticks and no more than before.

Spec: spec/mail.md section 10 (MAIL-43).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Final

from conclave._framing import Kind, Send
from conclave.errors import Error
from conclave.mail import EnclaveSession, Reply

# Frames that depend on author code or a client's secrets. Words about mail that
# cannot be decrypted, evidence and challenges tell nothing that the host does not know.
_AT_ONCE: Final = frozenset({Kind.INSTANCE, Kind.ERROR, Kind.SIGNED, Kind.FAILED, Kind.HALTED})


class Later(bytes):
    """Stands for a mail until it leaves: one encrypted when it was ready would show by its counter which was first."""

    encrypt: Callable[[], bytes]


class Release:
    """Holds frames until the tick at which they may leave."""

    def __init__(self, every: timedelta, send: Send) -> None:
        """Nothing leaves before `start`.

        Args:
            every: the time from one tick to the next.
            send: takes one frame to the host.
        """
        # What has to leave before all that is due at a tick.
        self.before: Callable[[], None] = lambda: None
        self._every = every.total_seconds()
        self._send = send
        self._ticks = 0
        # At which tick the answer to a request may leave.
        self._due: dict[int, int] = {}
        self._held: list[tuple[int, int, tuple[bytes, ...]]] = []

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tick from now on."""
        self._next(loop, loop.time())

    def _next(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        # A tick that was missed is left out: two close to each other would tell of it.
        at = max(at + self._every, loop.time())
        loop.call_at(at, self._turn, loop, at)

    def _turn(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        self._next(loop, at)
        self.tick()

    def arrived(self, request: int) -> None:
        """A mail came. Its answer leaves at the second tick from now, or at a later one.

        At the first, what needs no time could leave, and the rest could not.
        """
        self._due[request] = self._ticks + 2

    def send(self, kind: int, request: int, *payload: bytes) -> None:
        """Hold a frame until its tick; some kinds leave at once."""
        if kind in _AT_ONCE:
            self._due.pop(request, None)
            self._send(kind, request, *payload)
        else:
            self._held.append((kind, request, payload))

    def tick(self) -> None:
        """Let go of what is due, in the order in which the requests came."""
        self._ticks += 1
        self.before()
        held, self._held = self._held, []
        leaving: list[tuple[int, int, tuple[bytes, ...]]] = []
        for frame in held:
            due = self._due.get(frame[1], 0) <= self._ticks
            (leaving if due else self._held).append(frame)
        # Frames of one request keep their order.
        leaving.sort(key=lambda frame: frame[1])
        for kind, request, payload in leaving:
            if kind == Kind.DONE:
                self._due.pop(request, None)
            self._send(kind, request, *map(now, payload))


def seal_later(session: EnclaveSession, reply: Reply) -> bytes:
    """What stands for a reply until `now` encrypts it."""
    later = Later()
    later.encrypt = partial(session.encrypt, reply)
    return later


def now(part: bytes) -> bytes:
    """Encrypt what was to be encrypted later."""
    if not isinstance(part, Later):
        return part
    try:
        return part.encrypt()
    except Error:
        # A session that is spent, after 2^32 mails: the client opens another.
        return b""
