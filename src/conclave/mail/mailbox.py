"""The enclave's side of all channels and sessions of one boot.

Runs inside the enclave, without IO. Everything comes from the host and is
hostile until it authenticates; a client may be hostile after that. Bounds hold
per client, and as identities are free, nothing that is full stays full. With a
log, channels outlive the boot: what is done stays done, and is answered again.

Spec: spec/mail.md sections 5, 6 and 13 (MAIL-3 to MAIL-14, MAIL-51, MAIL-55, MAIL-56 to MAIL-65).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from conclave import _crypto
from conclave._crypto import DecryptionKey, Marker
from conclave._mailheader import NONE, TO_ENCLAVE, EncryptedMail, parse_mail
from conclave.errors import DecryptionError, FormatError, OverloadedError, RollbackError, SessionError, StateError
from conclave.mail import _wire
from conclave.mail._wire import (
    FLAG_LAST,
    FLAG_OUTSIDE,
    FLAG_STATEMENT,
    PRIVATE,
    REPLY_STATE_SIZE,
    Reply,
    ReplyKind,
    Request,
    RequestKind,
)
from conclave.mail.padding import Padding, padme
from conclave.mail.session import EnclaveSession

if TYPE_CHECKING:
    # Loaded where there is a log.
    from conclave.mail.memory import ChannelRows, Kept, LogRows, Memory


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one boot holds at most (MAIL-13)."""

    unacknowledged_replies: int = 1024
    unacknowledged_bytes: int = 64 * 1024 * 1024
    channels_per_identity: int = 64
    sessions_per_identity: int = 256
    channels: int = 100_000
    sessions: int = 200_000
    awake: int = 4096
    # To one encryption key; two can be opened to.
    session_ids: int = 500_000
    # Of one identity, once three quarters of those are used up.
    session_ids_when_scarce: int = 16
    # Strands that were not admitted, while one key was the newest.
    refused: int = 100_000
    # Of keys that are gone. Above it, their strands are known by their marks alone.
    closed: int = 500_000


# So many channels are looked at for one that makes room: a bound on what each newcomer costs.
_LOOKED_AT: Final = 64


def _head(request: Request) -> bytes:
    """What beside its body makes a request the same (spec section 7)."""
    # Each session's first request asks for a statement: one that is sent again in another session is the same.
    head = bytes((request.kind, request.flags & ~FLAG_STATEMENT))
    return head + _crypto.sha256(request.envelope) if request.envelope else head


class _Marks(Protocol):
    """Recognises a request again."""

    def mark(self, head: bytes, body: bytes) -> bytes: ...

    def fits(self, mark: bytes, head: bytes, body: bytes) -> bool: ...


class Handled(msgspec.Struct, gc=False):
    """One request that a handler was started for, until its replies are acknowledged.

    Attributes:
        session: where it came from last; None for one of an earlier boot that did not come again.
        echo: the version that it showed there.
    """

    mark: bytes
    session: EnclaveSession | None
    route: int
    padding: Padding
    replies: list[Reply] = []
    count: int = 0
    done: bool = False
    echo: int = 0


T = TypeVar("T")
_STREAM: Final = RequestKind.STREAM
# Identity, topic, strand.
Key = tuple[bytes, str, int]


@dataclass(slots=True)
class _Term:
    """One encryption key, and what was opened to it: remembered for as long as that is possible."""

    key: DecryptionKey
    digest: bytes
    ids: set[bytes] = field(default_factory=set)
    # How many of them each identity has.
    opened: dict[bytes, int] = field(default_factory=dict)
    # Names of strands that were not admitted while this was the newest.
    refused: set[bytes] = field(default_factory=set)


class Channel:
    """One ordered stream: (client identity, topic, strand) in this boot."""

    __slots__ = (
        "_bounds",
        "_bytes",
        "_handled",
        "_owed",
        "_unfinished",
        "identity",
        "next_reply",
        "next_request",
        "rows",
        "strand",
        "topic",
        "used",
    )

    def __init__(
        self, identity: bytes, topic: str, strand: int, bounds: Bounds, rows: ChannelRows | None = None
    ) -> None:
        self.identity = identity
        self.topic = topic
        self.strand = strand
        self.used = 0
        self.next_request = 0
        self.next_reply = 0
        self._handled: dict[int, Handled] = {}
        self._bounds = bounds
        # For each reply that is not acknowledged, in their order: its request, whose first reply it is by then.
        self._owed: list[Handled] = []
        self._unfinished = 0
        self._bytes = 0
        # What a log keeps of it.
        self.rows = rows

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return self.identity, self.topic, self.strand

    @property
    def taken(self) -> int:
        """No request from here on was ever run."""
        return self.next_request if self.rows is None else max(self.next_request, self.rows.finished.end)

    @property
    def kept(self) -> list[int]:
        """Requests that are done, and whose replies are kept."""
        return [sequence for sequence, handled in self._handled.items() if handled.done]

    def restore(self, kept: Kept) -> None:
        """Go on where an earlier boot of the log ended."""
        self.used, self.next_reply, self.next_request = kept.used, kept.next_reply, kept.finished.low
        owed: list[tuple[int, Handled]] = []
        for answered in kept.answered:
            handled = Handled(answered.mark, None, 0, answered.padding, answered.replies, done=True)
            handled.count = len(answered.replies)
            self._handled[answered.sequence] = handled
            self._bytes += len(handled.mark)
            for reply in answered.replies:
                owed.append((reply.sequence, handled))
                self._bytes += len(reply.body)
        self._owed = [handled for _, handled in sorted(owed, key=lambda one: one[0])]

    def acknowledge(self, below: int) -> None:
        """Forget replies the client has, and requests all of whose replies it has."""
        # An identity that claims replies it cannot have harms only itself.
        owed = self._owed
        while owed and owed[0].replies[0].sequence < below:
            handled = owed.pop(0)
            reply = handled.replies.pop(0)
            self._bytes -= len(reply.body)
            if handled.done and not handled.replies:
                del self._handled[reply.answers]
                self._bytes -= len(handled.mark)
                if self.rows is not None:
                    self.rows.acknowledged(reply.answers)

    @property
    def running(self) -> bool:
        """Whether a request has no last reply yet."""
        return self._unfinished > 0

    @property
    def owes(self) -> bool:
        """Whether replies are kept that the client may lack."""
        return bool(self._owed)

    def known(self, sequence: int) -> Handled | None:
        """The request of that sequence, if its replies are not all acknowledged."""
        return self._handled.get(sequence)

    def start(self, request: Request, marker: _Marks, session: EnclaveSession, route: int, padding: Padding) -> None:
        """Take the next request. Raises OverloadedError, changing nothing."""
        bounds, sequence = self._bounds, request.sequence
        if max(len(self._handled), len(self._owed)) >= bounds.unacknowledged_replies or (
            self._bytes >= bounds.unacknowledged_bytes
        ):
            raise OverloadedError("too many unacknowledged replies on this channel")
        handled = Handled(marker.mark(_head(request), request.body), session, route, padding)
        self._handled[sequence] = handled
        self._bytes += len(handled.mark)
        self._unfinished += 1
        self.next_request = sequence + 1
        if self.rows is not None:
            handled.echo = request.version
            # Those that an earlier boot had done while this one was running.
            self.next_request = self.rows.finished.after(self.next_request)

    def check(
        self,
        answers: int,
        body: bytes,
        envelope: bytes,
        *,
        last: bool,
        padding: Padding | None = None,
        waiting: int = 0,
    ) -> Handled | None:
        """Whether `reply` would take this, as which request; None once the request is done.

        Args:
            waiting: so many replies of this channel were checked, and are not made yet.

        Raises:
            OverloadedError, ValueError: as `reply`.
        """
        handled = self._handled.get(answers)
        if handled is None or handled.done:
            return None
        if not last and len(self._owed) + waiting >= 2 * self._bounds.unacknowledged_replies:
            raise OverloadedError("too many unacknowledged replies on this channel")
        # Checked before it is numbered: a number that never arrives would stop its client.
        _wire.check_sizes(body, envelope)
        padding = padding or handled.padding
        if padding is not padme:
            header = PRIVATE.size if self.rows is None else PRIVATE.size + REPLY_STATE_SIZE
            padding(header + len(body))
        return handled

    def reply(
        self,
        answers: int,
        kind: ReplyKind,
        body: bytes,
        envelope: bytes,
        *,
        last: bool,
        padding: Padding | None = None,
    ) -> Reply | None:
        """Number a reply and keep it until acknowledged; None once the request is done.

        Raises:
            OverloadedError: too many replies; nothing changed.
            ValueError: too large for a mail, or (DoesNotFit) for the padding; nothing changed.
        """
        handled = self.check(answers, body, envelope, last=last, padding=padding)
        if handled is None:
            return None
        sequence, padding = self.next_reply, padding or handled.padding
        flags = count = 0
        handled.count += 1
        if last:
            flags, count = FLAG_LAST, handled.count
            handled.done = True
            self._unfinished -= 1
        reply = Reply(kind, flags, sequence, self.next_request, answers, count, body, envelope, padding)
        self.next_reply = sequence + 1
        self._owed.append(handled)
        self._bytes += len(body)
        handled.replies.append(reply)
        if last and self.rows is not None:
            self.rows.finish(
                answers, handled.mark, handled.padding, handled.replies, next_reply=self.next_reply, used=self.used
            )
        return reply


class Outcome(Enum):
    """What the caller of `Mailbox.receive` does next."""

    RUN = "run the handler"
    WAIT = "the handler runs already; its replies go to this route too"
    ANSWERED = "only send `mails`"
    STREAM = "a stream call: run the handler beside the channel's order"
    HALT = "the client knows of state that this boot does not have: sign that, `halt`, and answer with it"


_RUN: Final = Outcome.RUN


class Received(msgspec.Struct, frozen=True, gc=False):
    """Result of one mail from the host.

    Attributes:
        channel, request: where a handler was or is to be started for this request; and of a stream call.
        session, counter: of the mail; only for a stream call, with `statement`, and for `HALT`.
        statement: the client wants the state signed: `Mailbox.outside` makes a mail of that, which goes first.
    """

    outcome: Outcome
    mails: tuple[bytes, ...] = ()
    channel: Channel | None = None
    request: Request | None = None
    superseded_route: int = 0
    session: EnclaveSession | None = None
    counter: int = 0
    statement: bool = False


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A mail that was decrypted ahead of its turn. Authentic; nothing was done with it.

    Attributes:
        known: session and channel that its session id named then.
    """

    session_id: bytes
    counter: int
    known: tuple[EnclaveSession, Channel]
    request: Request


class Mailbox:
    """All sessions of one boot, and all channels: of one boot, or of one log."""

    def __init__(
        self,
        *,
        key: DecryptionKey,
        claims_digest: bytes,
        admit: Callable[[bytes, str], bool] = lambda _sender, _topic: True,
        opened: Callable[[EnclaveSession], None] = lambda _session: None,
        posted: Callable[[EnclaveSession, int], None] = lambda _session, _below: None,
        padding: Padding = padme,
        padding_of: Callable[[Request], Padding | None] = lambda _request: None,
        seal: Callable[[EnclaveSession, Reply], bytes] = EnclaveSession.encrypt,
        spent: Callable[[], None] = lambda: None,
        bounds: Bounds | None = None,
        memory: Memory | None = None,
    ) -> None:
        """No session is open yet.

        Args:
            admit: whether an unknown identity may open a channel of that topic.
            padding: how what belongs to no request is padded.
            padding_of: how everything that answers a request is padded, refusals
                included; None for `padding`.
            seal: encrypts a reply, or gives what stands for it until it leaves.
            spent: told, as often as it is noticed, that the encryption key has to be renewed.
            memory: the log, of an enclave whose state persists. All replies to a request are then made in
                one go, when it is done; `seal` has to encrypt after their record was sealed.

        Raises:
            StateError: the log's rows are none that a mailbox wrote.
        """
        self.seal = seal
        # The newest first.
        self._terms = [_Term(key, claims_digest)]
        self._spent = spent
        self._memory = memory
        self._rows: LogRows | None = None
        # What every mail is answered with, once this boot has halted: signature and statement.
        self._proof = b""
        self._admit = admit
        self._opened = opened
        self._posted = posted
        self._padding = padding
        self._padding_of = padding_of
        self._bounds = bounds or Bounds()
        self._sessions: OrderedDict[bytes, tuple[EnclaveSession, Channel]] = OrderedDict()
        self._channels: OrderedDict[Key, Channel] = OrderedDict()
        # Strands that were given up, by their marks, and how many requests each had taken.
        self._closed: dict[int, dict[Key, int]] = {}
        self._forgot = False
        self._per_identity: dict[bytes, list[bytes]] = {}
        self._owned: dict[bytes, list[Channel]] = {}
        self._mails = 0
        # Sessions whose keys are expanded; an expanded key takes as much memory as all the rest.
        self._awake: deque[EnclaveSession] = deque()
        if memory is None:
            self._marker: _Marks = Marker()
        else:
            from conclave.mail.memory import LogRows

            self._rows = LogRows(memory)
            self._marker = self._rows.marker()
            self._restore(self._rows)

    def _restore(self, rows: LogRows) -> None:
        restored = rows.restore()
        for key, kept in restored.channels.items():
            channel = self._channels[key] = Channel(*key, self._bounds, rows.channel(key, kept.finished))
            channel.restore(kept)
            self._owned.setdefault(key[0], []).append(channel)
            self._mails = max(self._mails, channel.used)
        for key, taken in restored.closed.items():
            self._closed.setdefault(key[2] >> _wire.MARK_SHIFT, {})[key] = taken
        self._forgot = restored.forgot
        self._forget()

    def renew(self, key: DecryptionKey, claims_digest: bytes) -> None:
        """Open to a new encryption key; the one before stays for openings under way.

        What was opened to the one before that cannot come again, and is forgotten.
        """
        self._terms = [_Term(key, claims_digest), self._terms[0]]
        self._forget()

    def _forget(self) -> None:
        """If too many strands are remembered that began under keys which are gone, know these by their marks alone."""
        old = self._closed.keys() - self._marks()
        if sum(len(self._closed[mark]) for mark in old) <= self._bounds.closed:
            return
        self._forgot = True
        for mark in old:
            forgotten = self._closed.pop(mark)
            if self._rows is not None:
                self._rows.forget(forgotten)

    def _marks(self) -> set[int]:
        """The marks of strands that may be new."""
        return {_wire.strand_mark(term.digest) for term in self._terms}

    def open(self, data: bytes) -> Opened | None:
        """Decrypt a mail ahead of its turn, changing nothing. None: `receive` will, or says why it cannot be."""
        try:
            mail = parse_mail(data)
            known = self._sessions.get(mail.session_id)
            if known is None or mail.direction != TO_ENCLAVE:
                return None
            return Opened(mail.session_id, mail.counter, known, known[0].decrypt(mail))
        except (FormatError, DecryptionError):
            return None

    def receive(self, data: bytes, route: int, opened: Opened | None = None) -> Received:
        """Take one mail from the host.

        Args:
            data: untrusted.
            route: the host's request id, where replies should go. Untrusted; it
                only decides which waiting request the host gives them to.
            opened: what `open` made of this mail.

        Raises:
            FormatError, DecryptionError: not a mail, not authentic, or of two strands.
            SessionError: no such session here and no opening.
            OverloadedError: no room for a new session or channel.
        """
        channel: Channel | None
        if opened is not None and self._sessions.get(opened.session_id) is opened.known:
            counter, (session, channel), request = opened.counter, opened.known, opened.request
        else:
            # Of a session that begins here, or has ended since.
            mail = parse_mail(data)
            if mail.direction != TO_ENCLAVE:
                raise SessionError("a mail for a client, not for the enclave")
            known = self._sessions.get(mail.session_id)
            session, channel = known if known is not None else (self._open(mail), None)
            counter, request = mail.counter, session.decrypt(mail)
        stream = request.kind == _STREAM
        if stream and counter <= session.last_stream:
            raise DecryptionError
        if self._memory is not None:
            early = self._state(self._memory, session, request, counter)
            if early is not None:
                return early
        # From here the mail is authentic; only now does anything change.
        if channel is None:
            key = (session.identity, session.topic, request.strand)
            channel, closed = self._channels.get(key), self._taken_by(key)
            if closed is not None:
                return self._refuse(session, request, ReplyKind.CLOSED, closed, counter)
            if channel is None:
                if not self._admits(key):
                    return self._refuse(session, request, ReplyKind.NOT_ADMITTED, 0, counter)
                channel = self._begin(key)
            self._register(session, channel)
        elif request.strand != channel.strand:
            raise FormatError("a session carries one strand")
        if not session.awake:
            self._wake(session)
        channel.used = self._mails = self._mails + 1
        channel.acknowledge(request.acknowledged)
        if request.posted:
            self._posted(session, request.posted)
        if request.sequence != NONE:
            received = self._order(session, channel, request, route)
            if not request.flags & FLAG_STATEMENT:
                return received
            old, mails = received.superseded_route, received.mails
            return Received(received.outcome, mails, received.channel, request, old, session, counter, True)
        if stream:
            session.last_stream = counter
            return Received(Outcome.STREAM, (), channel, request, 0, session, counter)
        if request.kind == RequestKind.COVER:
            return self._refuse(session, request, ReplyKind.COVER, 0, counter)
        return Received(Outcome.ANSWERED)

    def _state(self, log: Memory, session: EnclaveSession, request: Request, counter: int) -> Received | None:
        """What ends here because of the state that the client knows of; nothing changed. None: go on."""
        if self._proof:
            halted = Received(Outcome.HALT, (), None, request, 0, session, counter)
            return Received(Outcome.ANSWERED, (self.outside(halted, ReplyKind.HALTED, self._proof),))
        try:
            log.check(request.context, session.identity)
        except RollbackError:
            return Received(Outcome.HALT, (), None, request, 0, session, counter)
        except StateError:
            if not session.awake:
                self._wake(session)
            return self._refuse(session, request, ReplyKind.CONTEXT, 0, counter)
        return None

    @property
    def halted(self) -> bool:
        """Whether this boot has stopped."""
        return bool(self._proof)

    def halt(self, proof: bytes) -> None:
        """Run nothing any more, and answer every mail with this.

        Args:
            proof: signature (64) and statement: which context this boot refuses.
        """
        self._proof = proof

    def outside(self, received: Received, kind: ReplyKind, body: bytes) -> bytes:
        """A mail of the kind HALTED or STATEMENT beside what was received, encrypted."""
        session, request = received.session, received.request
        if session is None or request is None:
            raise ValueError("this mail asked for no statement, and halts nothing")
        return self.seal(session, _beside(request, kind, body, received.counter))

    def _wake(self, session: EnclaveSession) -> None:
        """Count a session among those in use; the one that was for longest rests."""
        session.awake = True
        self._awake.append(session)
        if len(self._awake) > self._bounds.awake:
            self._awake.popleft().rest()

    def _order(self, session: EnclaveSession, channel: Channel, request: Request, route: int) -> Received:
        expected = channel.next_request
        if request.sequence == expected:
            if self._rows is not None:
                self._rows.tidy()
            try:
                padding = self._padding_of(request) or self._padding
                channel.start(request, self._marker, session, route, padding)
            except OverloadedError:
                return self._refuse(session, request, ReplyKind.OVERLOADED, expected)
            return Received(_RUN, (), channel, request)
        handled = channel.known(request.sequence)
        if handled is None or not self._marker.fits(handled.mark, _head(request), request.body):
            return self._refuse(session, request, ReplyKind.SEQUENCE_ERROR, expected)
        old, handled.route, handled.session = handled.route, route, session
        handled.echo = request.version
        mails = tuple(self._sealed(session, handled, reply) for reply in handled.replies)
        if handled.done:
            return Received(Outcome.ANSWERED, mails, channel, request)
        return Received(Outcome.WAIT, mails, channel, request, superseded_route=old)

    def _refuse(
        self, session: EnclaveSession, request: Request, kind: ReplyKind, expected: int, counter: int = 0
    ) -> Received:
        padding, flags, answers, echo = self._padding_of(request), FLAG_LAST, request.sequence, request.version
        if answers == NONE:
            # It has no sequence to be known by.
            flags, answers = FLAG_LAST | FLAG_OUTSIDE, counter
        reply = Reply(kind, flags, NONE, expected, answers, expected, b"", padding=padding, echo=echo)
        return Received(Outcome.ANSWERED, (self.seal(session, reply),))

    def _sealed(self, session: EnclaveSession, handled: Handled, reply: Reply) -> bytes:
        """A reply to a request, as what came last in a session."""
        if handled.echo != reply.echo:
            reply = msgspec.structs.replace(reply, echo=handled.echo)
        return self.seal(session, reply)

    def reply(
        self,
        channel: Channel,
        answers: int,
        kind: ReplyKind,
        body: bytes,
        *,
        envelope: bytes = b"",
        last: bool,
        padding: Padding | None = None,
    ) -> tuple[int, bytes] | None:
        """Make a reply to a request, and say where it goes now.

        Args:
            padding: another one than the request's own.

        Returns:
            (route, encrypted mail), or None if the request is done already, or this boot halted.

        Raises:
            OverloadedError, ValueError: too many, or too large; nothing changed.
        """
        if self._proof:
            return None
        handled = channel.known(answers)
        reply = channel.reply(answers, kind, body, envelope, last=last, padding=padding)
        if reply is None:
            return None
        assert handled is not None
        assert handled.session is not None
        return handled.route, self._sealed(handled.session, handled, reply)

    def _open(self, mail: EncryptedMail) -> EnclaveSession:
        if not mail.opening or any(mail.session_id in term.ids for term in self._terms):
            raise SessionError("no such session in this boot")
        if mail.session_id != _crypto.sha256(mail.opening[: _wire.SEALED_SIZE])[:16]:
            raise SessionError("the session id does not belong to the opening")
        term, session = self._accept(mail.opening)
        scarce = 4 * len(term.ids) >= 3 * self._bounds.session_ids
        if scarce and term is self._terms[0]:
            self._spent()
        opened = term.opened.get(session.identity, 0)
        if len(term.ids) >= self._bounds.session_ids or (scarce and opened >= self._bounds.session_ids_when_scarce):
            if term is not self._terms[0]:
                # Its client verifies again, and finds the key that came after this one.
                raise SessionError("no more sessions are opened to this encryption key, which was renewed")
            raise OverloadedError("no more sessions are opened until the encryption key was renewed")
        return session

    def _accept(self, opening: bytes) -> tuple[_Term, EnclaveSession]:
        # At most two keys, tried in turn: HPKE binds key and recipient id, so at
        # most one of them can open it.
        for term in self._terms[1:]:
            with suppress(DecryptionError):
                return term, self._agree(opening, term)
        return self._terms[0], self._agree(opening, self._terms[0])

    def _agree(self, opening: bytes, term: _Term) -> EnclaveSession:
        log = self._memory
        return EnclaveSession(
            opening,
            key=term.key,
            claims_digest=term.digest,
            padding=self._padding,
            log_id=None if log is None else log.log_id,
            context=None if log is None else log.context,
        )

    def _admits(self, key: Key) -> bool:
        """Whether a strand may begin. One that was refused never will, whomever `admit` takes later (MAIL-72).

        Raises:
            OverloadedError: not now, and too many were refused to remember that.
        """
        identity, topic, strand = key
        # All that is kept of an outsider.
        name = _crypto.sha256(identity + strand.to_bytes(8, "big") + topic.encode())[:16]
        if any(name in term.refused for term in self._terms):
            return False
        if self._admit(identity, topic):
            return True
        refused = self._terms[0].refused
        if len(refused) >= self._bounds.refused:
            raise OverloadedError("too many were not admitted")
        refused.add(name)
        return False

    def _begin(self, key: Key) -> Channel:
        """A channel that is new; at a bound, another one makes room (MAIL-51, MAIL-56)."""
        mine = self._owned.get(key[0], [])
        many = len(mine) >= self._bounds.channels_per_identity
        if many or len(self._channels) >= self._bounds.channels:
            idle = [channel for channel in mine if not channel.running]
            if idle:
                self._close(min(idle, key=lambda channel: (channel.owes, channel.used)))
            elif many or not self._make_room():
                raise OverloadedError("no room for another channel")
        rows = None if self._rows is None else self._rows.channel(key)
        channel = self._channels[key] = Channel(*key, self._bounds, rows)
        self._owned.setdefault(key[0], []).append(channel)
        return channel

    def _make_room(self) -> bool:
        """Close a channel of whoever was silent for long. What it owes is no reason to stay: clients choose that."""
        some = list(islice(self._channels.items(), _LOOKED_AT))
        for key, _ in some:
            # Others are looked at next time: in the end each is.
            self._channels.move_to_end(key)
        idle = [channel for _, channel in some if not channel.running]
        if idle:
            self._close(min(idle, key=lambda channel: channel.used))
        return bool(idle)

    def _close(self, channel: Channel) -> None:
        # Its number stays known, so that none of its requests can run again.
        closed = self._closed.setdefault(channel.strand >> _wire.MARK_SHIFT, {})
        closed[channel.key] = channel.taken
        del self._channels[channel.key]
        if channel.rows is not None:
            channel.rows.close(channel.taken, channel.kept)
        _take_out(self._owned, channel.identity, channel)
        mine = self._per_identity.get(channel.identity, [])
        for session_id in [s for s in mine if self._sessions[s][1] is channel]:
            self._retire(session_id)

    def _taken_by(self, key: Key) -> int | None:
        """How many requests a strand had taken that was closed; `NONE` where nobody knows any more."""
        mark = key[2] >> _wire.MARK_SHIFT
        taken = self._closed.get(mark, {}).get(key)
        if taken is None and self._forgot and key not in self._channels and mark not in self._marks():
            # Too old to be new, and it may be one of those that were forgotten.
            return NONE
        return taken

    def _register(self, session: EnclaveSession, channel: Channel) -> None:
        self._sessions[session.session_id] = (session, channel)
        # Known for as long as its opening could come back, also when the session has ended.
        term = next(term for term in self._terms if term.digest == session.recipient)
        term.ids.add(session.session_id)
        term.opened[session.identity] = term.opened.get(session.identity, 0) + 1
        # What is posted goes to the newest session's reply key; a replayed mail of an older
        # one must not draw it there.
        self._opened(session)
        mine = self._per_identity.setdefault(session.identity, [])
        mine.append(session.session_id)
        if len(mine) > self._bounds.sessions_per_identity:
            self._retire(mine[0])
        elif len(self._sessions) > self._bounds.sessions:
            self._retire(next(iter(self._sessions)))

    def _retire(self, session_id: bytes) -> None:
        """End a session: its client opens another one."""
        session, _ = self._sessions.pop(session_id)
        _take_out(self._per_identity, session.identity, session_id)


def _beside(request: Request, kind: ReplyKind, body: bytes, counter: int) -> Reply:
    """A reply about the state, padded by itself: its size tells a host nothing that it does not know."""
    flags = FLAG_LAST if kind == ReplyKind.HALTED else 0
    answers = request.sequence
    if answers == NONE:
        flags, answers = flags | FLAG_OUTSIDE, counter
    return Reply(kind, flags, NONE, 0, answers, 0, body, padding=padme, echo=request.version)


def _take_out(lists: dict[bytes, list[T]], identity: bytes, item: T) -> None:
    """Of identities that have nothing, nothing is kept: they are free."""
    lists[identity].remove(item)
    if not lists[identity]:
        del lists[identity]
