"""The enclave's side of all channels and sessions of one boot.

Runs inside the enclave, without IO. Everything comes from the host and is
hostile until it authenticates; a client may be hostile after that. Bounds hold
per client, and as identities are free, nothing that is full stays full.

Spec: spec/mail.md sections 5 and 6 (MAIL-3 to MAIL-14, MAIL-51, MAIL-55, MAIL-56).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Final, TypeVar

import msgspec

from conclave import _crypto, _mailheader
from conclave._crypto import DecryptionKey, Marker
from conclave._mailheader import NONE, EncryptedMail
from conclave.errors import DecryptionError, FormatError, OverloadedError, SessionError
from conclave.mail import _wire
from conclave.mail._wire import FLAG_LAST, FLAG_OUTSIDE, PRIVATE, Reply, ReplyKind, Request, RequestKind
from conclave.mail.padding import Padding, padme
from conclave.mail.session import EnclaveSession


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
    # Of keys that are gone. Above it, their strands are known by their marks alone.
    closed: int = 500_000


# So many channels are looked at for one that makes room: a bound on what each newcomer costs.
_LOOKED_AT: Final = 64


def _head(request: Request) -> bytes:
    """What beside its body makes a request the same (spec section 7)."""
    head = bytes((request.kind, request.flags))
    return head + _crypto.sha256(request.envelope) if request.envelope else head


class _Handled(msgspec.Struct, gc=False):
    """One request that a handler was started for, until its replies are acknowledged."""

    mark: bytes
    session: EnclaveSession
    route: int
    padding: Padding
    replies: list[Reply] = []
    count: int = 0
    done: bool = False


T = TypeVar("T")
_STREAM: Final = RequestKind.STREAM
# Identity, topic, strand.
_Key = tuple[bytes, str, int]


@dataclass(slots=True)
class _Term:
    """One encryption key, and what was opened to it: remembered for as long as that is possible."""

    key: DecryptionKey
    digest: bytes
    ids: set[bytes] = field(default_factory=set)
    # How many of them each identity has.
    opened: dict[bytes, int] = field(default_factory=dict)


class Channel:
    """One ordered stream: (client identity, topic, strand) in this boot."""

    __slots__ = (
        "_acknowledged",
        "_bounds",
        "_bytes",
        "_handled",
        "_owners",
        "_unfinished",
        "identity",
        "next_reply",
        "next_request",
        "strand",
        "topic",
        "used",
    )

    def __init__(self, identity: bytes, topic: str, strand: int, bounds: Bounds) -> None:
        self.identity = identity
        self.topic = topic
        self.strand = strand
        self.used = 0
        self.next_request = 0
        self.next_reply = 0
        self._handled: dict[int, _Handled] = {}
        self._bounds = bounds
        self._acknowledged = 0
        self._owners: dict[int, int] = {}
        self._unfinished = 0
        self._bytes = 0

    def acknowledge(self, below: int) -> None:
        """Forget replies the client has, and requests all of whose replies it has."""
        # An identity that claims replies it cannot have harms only itself.
        if below > self.next_reply:
            below = self.next_reply
        while self._acknowledged < below:
            owner = self._owners.pop(self._acknowledged)
            self._acknowledged += 1
            handled = self._handled[owner]
            # Replies are acknowledged in their order, so it is always the first.
            self._bytes -= len(handled.replies.pop(0).body)
            if handled.done and not handled.replies:
                del self._handled[owner]

    @property
    def running(self) -> bool:
        """Whether a request has no last reply yet."""
        return self._unfinished > 0

    @property
    def owes(self) -> bool:
        """Whether replies are kept that the client may lack."""
        return bool(self._owners)

    def known(self, sequence: int) -> _Handled | None:
        """The request of that sequence, if its replies are not all acknowledged."""
        return self._handled.get(sequence)

    def start(self, request: Request, marker: Marker, session: EnclaveSession, route: int, padding: Padding) -> None:
        """Take the next request. Raises OverloadedError, changing nothing."""
        if len(self._handled) >= self._bounds.unacknowledged_replies or (
            len(self._owners) >= self._bounds.unacknowledged_replies or self._bytes >= self._bounds.unacknowledged_bytes
        ):
            raise OverloadedError("too many unacknowledged replies on this channel")
        mark = marker.mark(_head(request), request.body)
        self._handled[request.sequence] = _Handled(mark, session, route, padding)
        self._unfinished += 1
        self.next_request = request.sequence + 1

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
        handled = self._handled.get(answers)
        if handled is None or handled.done:
            return None
        if len(self._owners) >= 2 * self._bounds.unacknowledged_replies and not last:
            raise OverloadedError("too many unacknowledged replies on this channel")
        # Checked before it is numbered: a number that never arrives would stop its client.
        _wire.check_sizes(body, envelope)
        padding = padding or handled.padding
        if padding is not padme:
            padding(PRIVATE.size + len(body))
        flags = FLAG_LAST if last else 0
        handled.count += 1
        count = handled.count if last else 0
        reply = Reply(kind, flags, self.next_reply, self.next_request, answers, count, body, envelope, padding)
        self.next_reply += 1
        self._owners[reply.sequence] = answers
        self._bytes += len(body)
        handled.replies.append(reply)
        handled.done = last
        self._unfinished -= last
        return reply


class Outcome(Enum):
    """What the caller of `Mailbox.receive` does next."""

    RUN = "run the handler"
    WAIT = "the handler runs already; its replies go to this route too"
    ANSWERED = "only send `mails`"
    STREAM = "a stream call: run the handler beside the channel's order"


_RUN: Final = Outcome.RUN


class Received(msgspec.Struct, frozen=True, gc=False):
    """Result of one mail from the host."""

    outcome: Outcome
    mails: tuple[bytes, ...] = ()
    channel: Channel | None = None
    request: Request | None = None
    superseded_route: int = 0
    session: EnclaveSession | None = None
    counter: int = 0


class Mailbox:
    """All sessions and channels of one boot."""

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
    ) -> None:
        """Nothing is open yet.

        Args:
            admit: whether an unknown identity may open a channel of that topic.
            padding: how what belongs to no request is padded.
            padding_of: how everything that answers a request is padded, refusals
                included; None for `padding`.
            seal: encrypts a reply, or gives what stands for it until it leaves.
            spent: told, as often as it is noticed, that the encryption key has to be renewed.
        """
        self.seal = seal
        # The newest first.
        self._terms = [_Term(key, claims_digest)]
        self._spent = spent
        self._marker = Marker()
        self._admit = admit
        self._opened = opened
        self._posted = posted
        self._padding = padding
        self._padding_of = padding_of
        self._bounds = bounds or Bounds()
        self._sessions: OrderedDict[bytes, tuple[EnclaveSession, Channel]] = OrderedDict()
        self._channels: OrderedDict[_Key, Channel] = OrderedDict()
        # Strands that were given up, by their marks, and how many requests each had taken.
        self._closed: dict[int, dict[_Key, int]] = {}
        self._forgot = False
        self._per_identity: dict[bytes, list[bytes]] = {}
        self._owned: dict[bytes, list[Channel]] = {}
        self._mails = 0
        # Sessions whose keys are expanded; an expanded key takes as much memory as all the rest.
        self._awake: deque[EnclaveSession] = deque()

    def renew(self, key: DecryptionKey, claims_digest: bytes) -> None:
        """Open to a new encryption key; the one before stays for openings under way.

        What was opened to the one before that cannot come again, and is forgotten.
        """
        self._terms = [_Term(key, claims_digest), self._terms[0]]
        old = self._closed.keys() - self._marks()
        if sum(len(self._closed[mark]) for mark in old) > self._bounds.closed:
            self._forgot = True
            for mark in old:
                del self._closed[mark]

    def _marks(self) -> set[int]:
        """The marks of strands that may be new."""
        return {_wire.strand_mark(term.digest) for term in self._terms}

    def receive(self, data: bytes, route: int) -> Received:
        """Take one mail from the host.

        Args:
            data: untrusted.
            route: the host's request id, where replies should go. Untrusted; it
                only decides which waiting request the host gives them to.

        Raises:
            FormatError, DecryptionError: not a mail, not authentic, or of two strands.
            SessionError: no such session here and no opening.
            OverloadedError: no room for a new session or channel.
        """
        mail = _mailheader.parse_mail(data)
        if mail.direction != _mailheader.TO_ENCLAVE:
            raise SessionError("a mail for a client, not for the enclave")
        known = self._sessions.get(mail.session_id)
        session, channel = known if known is not None else (self._open(mail), None)
        request = session.decrypt(mail)
        stream = request.kind == _STREAM
        if stream and mail.counter <= session.last_stream:
            raise DecryptionError
        # From here the mail is authentic; only now does anything change.
        if channel is None:
            key = (session.identity, session.topic, request.strand)
            channel, closed = self._channels.get(key), self._taken_by(key)
            if closed is not None:
                return self._refuse(session, request, ReplyKind.CLOSED, closed, mail.counter)
            if channel is None:
                if not self._admit(session.identity, session.topic):
                    # Nothing is kept: an outsider costs no memory.
                    return self._refuse(session, request, ReplyKind.NOT_ADMITTED, 0, mail.counter)
                channel = self._begin(key)
            self._register(session, channel)
        elif request.strand != channel.strand:
            raise FormatError("a session carries one strand")
        if not session.awake:
            self._wake(session)
        self._mails += 1
        channel.used = self._mails
        channel.acknowledge(request.acknowledged)
        if request.posted:
            self._posted(session, request.posted)
        if request.sequence != NONE:
            return self._order(session, channel, request, route)
        if stream:
            session.last_stream = mail.counter
            return Received(Outcome.STREAM, (), channel, request, 0, session, mail.counter)
        if request.kind == RequestKind.COVER:
            return self._refuse(session, request, ReplyKind.COVER, 0, mail.counter)
        return Received(Outcome.ANSWERED)

    def _wake(self, session: EnclaveSession) -> None:
        """Count a session among those in use; the one that was for longest rests."""
        session.awake = True
        self._awake.append(session)
        if len(self._awake) > self._bounds.awake:
            self._awake.popleft().rest()

    def _order(self, session: EnclaveSession, channel: Channel, request: Request, route: int) -> Received:
        expected = channel.next_request
        if request.sequence == expected:
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
        mails = tuple(self.seal(session, reply) for reply in handled.replies)
        if handled.done:
            return Received(Outcome.ANSWERED, mails)
        return Received(Outcome.WAIT, mails, channel, request, superseded_route=old)

    def _refuse(
        self, session: EnclaveSession, request: Request, kind: ReplyKind, expected: int, counter: int = 0
    ) -> Received:
        padding, flags, answers = self._padding_of(request), FLAG_LAST, request.sequence
        if answers == NONE:
            # It has no sequence to be known by.
            flags, answers = FLAG_LAST | FLAG_OUTSIDE, counter
        reply = Reply(kind, flags, NONE, expected, answers, expected, b"", padding=padding)
        return Received(Outcome.ANSWERED, (self.seal(session, reply),))

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
            (route, encrypted mail), or None if the request is done already.

        Raises:
            OverloadedError, ValueError: too many, or too large; nothing changed.
        """
        handled = channel.known(answers)
        reply = channel.reply(answers, kind, body, envelope, last=last, padding=padding)
        if reply is None:
            return None
        assert handled is not None
        return handled.route, self.seal(handled.session, reply)

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
        return EnclaveSession(opening, key=term.key, claims_digest=term.digest, padding=self._padding)

    def _begin(self, key: _Key) -> Channel:
        """A channel that is new; at a bound, another one makes room (MAIL-51, MAIL-56)."""
        mine = self._owned.get(key[0], [])
        many = len(mine) >= self._bounds.channels_per_identity
        if many or len(self._channels) >= self._bounds.channels:
            idle = [channel for channel in mine if not channel.running]
            if idle:
                self._close(min(idle, key=lambda channel: (channel.owes, channel.used)))
            elif many or not self._make_room():
                raise OverloadedError("no room for another channel")
        channel = self._channels[key] = Channel(*key, self._bounds)
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
        key = (channel.identity, channel.topic, channel.strand)
        closed = self._closed.setdefault(channel.strand >> _wire.MARK_SHIFT, {})
        closed[key] = self._channels.pop(key).next_request
        _take_out(self._owned, channel.identity, channel)
        mine = self._per_identity.get(channel.identity, [])
        for session_id in [s for s in mine if self._sessions[s][1] is channel]:
            self._retire(session_id)

    def _taken_by(self, key: _Key) -> int | None:
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


def _take_out(lists: dict[bytes, list[T]], identity: bytes, item: T) -> None:
    """Of identities that have nothing, nothing is kept: they are free."""
    lists[identity].remove(item)
    if not lists[identity]:
        del lists[identity]
