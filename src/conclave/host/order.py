"""Puts early mails of a session back in order before they reach the enclave.

Runs in the untrusted host, as a courtesy: the enclave refuses what is out of
order. Several HTTP connections of one honest client overtake each other.

Spec: spec/http.md (HTTP-1).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

MAX_SESSIONS = 100_000
WINDOW = 1024
PATIENCE_SECONDS = 5.0


class _Order:
    __slots__ = ("early", "next")

    def __init__(self, first: int) -> None:
        self.next = first
        self.early: dict[int, asyncio.Future[None]] = {}


class Reorder:
    """The next counter of each session, and who waits for it."""

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience = patience_seconds
        # Those used last at the end.
        self._sessions: OrderedDict[bytes, _Order] = OrderedDict()

    def clear(self) -> None:
        """Forget all sessions: their boot is gone."""
        for order in self._sessions.values():
            for waiter in order.early.values():
                if not waiter.done():
                    waiter.set_result(None)
        self._sessions.clear()

    def forget(self, session_id: bytes) -> None:
        """The enclave knows no such session: whoever makes up many takes no room from others."""
        order = self._sessions.get(session_id)
        if order is not None and not order.early:
            del self._sessions[session_id]

    def in_turn(self, session_id: bytes, counter: int, *, opening: bool = True) -> bool:
        """Whether this mail may go at once; if so it counts as gone.

        Args:
            opening: whether it brings the opening. If not, its session was answered before:
                one that is unknown here was forgotten, and there is nothing to wait for.
        """
        order = self._sessions.get(session_id)
        if order is None:
            order = self._sessions[session_id] = _Order(0 if opening else counter)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        else:
            # The one that was silent longest goes first, or strangers' inventions would push out those at work.
            self._sessions.move_to_end(session_id)
        if counter > order.next and counter - order.next <= WINDOW:
            return False
        if counter == order.next:
            order.next += 1
            if order.early:
                self._call(order)
        return True

    def _call(self, order: _Order) -> None:
        waiter = order.early.pop(order.next, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def turn(self, session_id: bytes, counter: int) -> None:
        """Wait until the mails before this one went, or patience ends."""
        order = self._sessions.get(session_id)
        if order is None or counter in order.early:
            return
        waiter = order.early[counter] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._patience):
                await waiter
        except TimeoutError:
            order.early.pop(counter, None)
        if counter >= order.next:
            order.next = counter + 1
            self._call(order)
