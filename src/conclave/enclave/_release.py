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
from typing import TYPE_CHECKING, Final

import msgspec

from conclave._framing import Kind, Send
from conclave.errors import Error
from conclave.mail import EnclaveSession, Reply

if TYPE_CHECKING:
    from conclave.mail.mailbox import Handled

    _Held = tuple[int, int, tuple[bytes, ...]]

# Frames that depend on author code or a client's secrets. Words about mail that
# cannot be decrypted, evidence and challenges tell nothing that the host does not know.
_AT_ONCE: Final = frozenset({Kind.INSTANCE, Kind.ERROR, Kind.SIGNED, Kind.FAILED, Kind.HALTED})


class Later(bytes):
    """Stands for a mail until it leaves: one encrypted when it was ready would show by its counter which was first."""

    encrypt: Callable[[], bytes]


class Ticket(int):
    """The host's id of one mail, and when its answer may leave. A host may use an id twice: each mail has its own.

    Attributes:
        order: of its arrival.
        due: the tick.
    """

    order: int
    due: int


class _Asker:
    """One mail that waits for the replies to its request."""

    __slots__ = ("echo", "seen", "session", "ticket")

    def __init__(self, ticket: Ticket, session: EnclaveSession, echo: int) -> None:
        self.ticket = ticket
        self.session = session
        self.echo = echo
        # Replies from this sequence on have not left under its id.
        self.seen = 0

    def take(self, request: Handled) -> list[_Held]:
        """What there is that it was not given."""
        replies = [reply for reply in request.replies if reply.sequence >= self.seen]
        if replies:
            self.seen = replies[-1].sequence + 1
        mails = [seal_later(self.session, msgspec.structs.replace(reply, echo=self.echo)) for reply in replies]
        if not request.done:
            return [(Kind.REPLY, self.ticket, (mail,)) for mail in mails]
        # Its client may have acknowledged all of them, as answers to another mail.
        *others, last = mails or [b""]
        return [*((Kind.REPLY, self.ticket, (mail,)) for mail in others), (Kind.DONE, self.ticket, (last,))]


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
        self._ticks = self._mails = 0
        self._held: list[_Held] = []
        # Requests, by their identity as objects, and who waits for their replies, as they came.
        self._requests: dict[int, tuple[Handled, list[_Asker]]] = {}

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

    def arrived(self, request: int) -> Ticket:
        """A mail came. Its answer leaves at the second tick from now, or at a later one, under this ticket.

        At the first, what needs no time could leave, and the rest could not.
        """
        ticket = Ticket(request)
        self._mails += 1
        ticket.order, ticket.due = self._mails, self._ticks + 2
        return ticket

    def wait(self, ticket: Ticket, request: Handled) -> None:
        """That mail asks for the replies to this request, which runs, or is done.

        Which of the two it is must not show before a tick: a host that gives the same mail again
        and again would see which id was the first to come after the end of the handler. So a tick
        decides what each id gets, by what there is then.
        """
        assert request.session is not None
        asker = _Asker(ticket, request.session, request.echo)
        self._requests.setdefault(id(request), (request, []))[1].append(asker)

    def send(self, kind: int, request: int, *payload: bytes) -> None:
        """Hold a frame until its tick, for a mail that of its ticket, else the next; some kinds leave at once."""
        if kind in _AT_ONCE:
            self._send(kind, request, *payload)
        else:
            self._held.append((kind, request, payload))

    def give_up(self, word: bytes) -> None:
        """Answer whoever waits for a request by an error at once, whether that is done or not: the host chose when."""
        tickets = [asker.ticket for _, askers in self._requests.values() for asker in askers]
        self._requests.clear()
        # As objects: an id says nothing of which mail it is.
        ended = set(map(id, tickets))
        self._held = [frame for frame in self._held if id(frame[1]) not in ended]
        for ticket in tickets:
            self._send(Kind.ERROR, ticket, word)

    def tick(self) -> None:
        """Let go of what is due, in the order in which the mails came."""
        self._ticks += 1
        self.before()
        held, self._held = self._held, []
        leaving: list[_Held] = []
        for frame in held:
            due = not isinstance(frame[1], Ticket) or frame[1].due <= self._ticks
            (leaving if due else self._held).append(frame)
        for request, askers in list(self._requests.values()):
            leaving += self._answers(request, askers)
            if not askers:
                del self._requests[id(request)]
        leaving.sort(key=_order)
        for kind, ticket, payload in leaving:
            self._send(kind, ticket, *map(now, payload))

    def _answers(self, request: Handled, askers: list[_Asker]) -> list[_Held]:
        """The replies go to the newest mail that is due. Those before it end empty, whether there are any or not."""
        due = sum(asker.ticket.due <= self._ticks for asker in askers)
        if not due:
            return []
        newest = askers[due - 1]
        frames: list[_Held] = [(Kind.DONE, asker.ticket, (b"",)) for asker in askers[: due - 1]]
        frames += newest.take(request)
        del askers[: due if request.done else due - 1]
        return frames


def _order(frame: _Held) -> tuple[int, int]:
    """Those of one mail keep theirs; what answers none comes first."""
    return (frame[1].order if isinstance(frame[1], Ticket) else 0), frame[1]


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
