"""What a client does, as generators that ask for IO and get its results.

Runs at the relying party. The host is the adversary: everything it says is
verified or decrypted before it counts, and its errors are only hints to try
again. The synchronous and the asynchronous client drive the same code.

Spec: spec/claims.md section 4, spec/mail.md sections 6 and 13, spec/http.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from conclave import _codec, _crypto
from conclave._mailheader import HEADER, NONE, SMALLEST_CIPHERTEXT
from conclave.attestation import AttestationResult, Constraint, InstanceClaims, ReferenceValues, verify_instance
from conclave.attestation.reference import built_in
from conclave.client._box import Box, Collector
from conclave.client._hosts import Hosts, delay_seconds
from conclave.client._log import KnownLog, check_log_id, history_id
from conclave.client.identity import Identity
from conclave.errors import (
    AppraisalError,
    BindingError,
    CallError,
    DecryptionError,
    Error,
    FormatError,
    LogReplaced,
    MailError,
    OverloadedError,
    SequenceError,
    StateError,
    StreamError,
    TransportError,
)
from conclave.mail import ClientSession, Conversation, Pending, Reply, ReplyKind, RequestKind, padme
from conclave.mail._wire import CONTEXT_SIZE, MARK_SHIFT, strand_mark
from conclave.mail.contexts import check_echo
from conclave.mail.padding import Padding
from conclave.mail.stream import ChunkSealer
from conclave.rpc.interface import CallFailure, Interface, decode_call, decode_result, encode_call

if TYPE_CHECKING:
    # Not loaded where nothing is saved: in an enclave that calls another.
    from conclave.client._state import ClientState

T = TypeVar("T")
# What the statuses of spec/http.md mean. The host's word, so never more than a hint.
_HINTS: Final = {
    200: "the host answered, with nothing authentic from the enclave",
    400: "the host says that this is no mail",
    404: "the host has no such resource; is this the URL of a conclave host?",
    409: "the host says that the enclave does not know this session",
    413: "the host says that this is too large",
    422: "the host says that the enclave could not decrypt the mail",
    429: "the host says that the enclave has no room",
    502: "the host says that the enclave ended while it handled the mail",
    503: "the host says that the enclave is not running at the moment",
}
# What a client remembers of other boots that posted mail to it.
_MAX_SENDERS: Final = 64
# How long a host is asked to wait for mail; it may wait for less.
MOST_WAIT_SECONDS: Final = 25.0
CHALLENGE_ANSWER: Final = 96
_SMALLEST_MAIL: Final = HEADER.size + SMALLEST_CIPHERTEXT
# How many times more a client asks for the instance while the host says that it starts.
_STARTING: Final = 10
_AGAIN: Final = frozenset({409, 422, 502, 503})
# How often a call is repeated that was to come back with a newer version of the enclave's state.
_COME_BACK: Final = 8


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request a driver shall make.

    Attributes:
        mails: the answer is a list of mails rather than bytes.
        host: number of the host it goes to.
        bearer: a capability, in hex, that goes along in a header.
        wait_seconds: how long the host was asked to wait before it answers.
    """

    method: str
    path: str
    body: bytes = b""
    mails: bool = False
    host: int = 0
    bearer: str = ""
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Sleep that many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Status 0: no answer at all; `text` says why. `retry_after`: seconds, a hint."""

    status: int
    body: bytes = b""
    text: str = ""
    retry_after: float = 0.0


Steps = Generator["Exchange | Pause", Answer, T]


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """One decrypted mail of the enclave."""

    body: bytes
    envelope: bytes
    sequence: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """What became of a request that an earlier process left without an answer.

    Attributes:
        topic: the topic it was sent on.
        method: name of the called method; empty for a mail.
        body: the mail's body; empty for a call.
        error: why there is no answer; None if there is one. A `CallError` is the enclave's
            word; with anything else the outcome is unknown.
    """

    topic: str
    method: str
    body: bytes
    error: Error | None
    _arguments: bytes
    _replies: list[Reply]

    @property
    def arguments(self) -> list[Any]:
        """What the method was called with, as plain values."""
        return list(decode_result(self._arguments, list[Any])) if self.method else []

    def result(self, returns: Any = Any) -> Any:
        """The call's result, decoded as `returns`. Raises `error` if there is one."""
        if self.error is not None:
            raise self.error
        if not self.method:
            raise TypeError("a mail has no result: see `mails`")
        return decode_result(self._replies[-1].body, returns, method=self.method)

    @property
    def mails(self) -> list[ReceivedMail]:
        """The enclave's replies to a mail."""
        return [ReceivedMail(r.body, r.envelope, r.sequence) for r in self._replies if r.kind == ReplyKind.MAIL]


def split_mails(body: bytes) -> list[bytes]:
    """Mails of an HTTP answer, as far as they are whole."""
    mails, at = [], 0
    while at + 4 <= len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        # Nothing that short is a mail: a host could make millions of them out of one answer.
        if size < _SMALLEST_MAIL or at + 4 + size > len(body):
            break
        mails.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    return mails


def check_challenge(claims: InstanceClaims, claims_digest: bytes, nonce: bytes, answer: Answer) -> None:
    """Check that the instance of these claims signed a challenge: 32 bytes of ours and 32 of its own.

    Raises:
        SignatureError: somebody else answered.
        TransportError: nobody did.
    """
    if answer.status != 200 or len(answer.body) != CHALLENGE_ANSWER:
        raise TransportError(f"no answer to the challenge: {reason_of(answer)}")
    said = nonce + answer.body[:32]
    _crypto.verify_signature(claims.signing_key, "challenge", claims_digest, said, answer.body[32:])


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream call that was encrypted and not yet sent.

    Attributes:
        counter: of its mail, which names it.
        sealer: encrypts the upload.
        head: decrypts what answers the call. Raises FormatError, DecryptionError, RollbackError, StateError.
        result: what is behind the state context of a result, which is learned. Raises FormatError, RollbackError.
        host: where it goes, with all that follows.
        closed: to be told if the enclave gave up the strand, and after how many requests.
    """

    session: ClientSession
    mail: bytes
    counter: int
    sealer: ChunkSealer
    head: Callable[[bytes], Reply]
    result: Callable[[bytes], bytes]
    host: int
    closed: Callable[[int], None]


class _Topic:
    __slots__ = ("conversation", "left", "strand")

    def __init__(self, strand: int, heard: Callable[[Reply], None]) -> None:
        self.conversation = Conversation(heard)
        self.strand = strand
        # What an earlier process left in this strand.
        self.left: list[Pending] = []


class ClientCore:
    """One client of one enclave: its verified instance and its channels."""

    def __init__(
        self,
        *,
        constraint: Constraint,
        identity: Identity | None = None,
        padding: Padding = padme,
        attempts: int = 6,
        reference: ReferenceValues | None = None,
        hosts: Hosts | None = None,
        box: Box | None = None,
        state: ClientState | None = None,
        accept_log: bytes | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self.constraint = constraint
        self.identity = identity or Identity.generate()
        self.instance: AttestationResult | None = None
        self._padding = padding
        self._attempts = attempts
        self._reference = reference
        self._now = now
        self._elapsed = elapsed
        if box is None:
            box = Box.restore(state.box) if state is not None and state.box else Box.generate()
        self.box = box
        self._topics: dict[str, _Topic] = {}
        self.hosts = hosts or Hosts()
        self.state = state
        self.log = KnownLog(state, accept_log)
        # Of the instance that was verified last, for whoever shall verify what it signed.
        self._info = b""
        self._resuming: list[tuple[str, _Topic]] = []
        if state is not None:
            state.accept_reference((reference or built_in()).number)
            if state.box != (exported := box.export()):
                state.keep_box(exported)
            if state.left:
                self.hosts.tell("unanswered", reason=f"an earlier process left {len(state.left)} requests")
        self._asked = self._told = 0
        # Where mails leave at a constant rate: in one topic and one size.
        self.only_topic: str | None = None
        self._collector = Collector(
            self.box,
            self.identity.public,
            ask=self._ask,
            sender=self._sender,
            host=lambda: self.hosts.current,
            learn=self._learn,
        )
        self._senders: dict[bytes, AttestationResult] = {}
        # Topics whose mail was received, of which the enclave was not told yet.
        self._owed: set[str] = set()
        self._refused = 0

    @property
    def refused_mails(self) -> int:
        """How often the host passed off something else as mail of the enclave, or gave posted mail again."""
        return self._refused + self._collector.refused + self.log.refused

    # Instance ------------------------------------------------------------------------

    def verify(self) -> Steps[AttestationResult]:
        """Fetch instance info and verify it; a new instance ends all sessions.

        Raises:
            TransportError: the host does not answer.
            FormatError, VerificationError, AppraisalError: do not use it.
            LogReplaced: it has another log than the one that is pinned.
        """
        for remaining in range(self.hosts.count, 0, -1):
            self._asked += 1
            turn = self._asked
            host, answer = yield from self._get_info()
            try:
                result = verify_instance(answer.body, self.constraint, now=self._now(), reference=self._reference)
                self.log.admit(result.claims)
                break
            except Error as error:
                if remaining == 1:
                    raise
                self.hosts.leave(host, f"its instance is refused ({error.code})")
        self.hosts.tell("verified")
        if self.state is not None:
            self.state.verified(result.claims_digest)
        if turn < self._told and self.instance is not None:
            # Calls verify side by side. What was asked for earlier may be of a boot that is
            # gone: going back to it would count the channels of its successor twice.
            return self.instance
        self._told = turn
        old, self.instance, self._info = self.instance, result, answer.body
        self.log.pin(result.claims)
        if old is not None and old.claims_digest != result.claims_digest:
            new_boot = history_id(old.claims) != history_id(result.claims)
            for name, topic in [*self._topics.items(), *self._resuming]:
                if topic.conversation.session is not None:
                    self._open(name, topic, new_boot=new_boot)
        return result

    def _ready(self) -> Steps[None]:
        """Verify if nothing was verified yet, or if what was is no longer to be relied on.

        A platform that the vendor revoked in the meantime is noticed when its endorsements end.

        Raises:
            RollbackError: the boot that runs was caught before with another history.
        """
        stale = self.instance is None or self._now() > self.instance.evidence.valid_until
        if stale or self.log.broken:
            yield from self.verify()
            self.log.demand()

    def accept_log(self, log_id: bytes) -> None:
        """Consent to go on with an enclave that has this log in place of the pinned one, or none (zeros)."""
        self.log.accepted = check_log_id(log_id)

    def _heard(self, reply: Reply) -> None:
        assert self.instance is not None
        self.log.hear(self.instance, self._info, reply)

    def _learn(self, claims: InstanceClaims, context: bytes) -> None:
        if context and self.instance is not None:
            self.log.watch(self.instance, lambda: self.log.learn(claims, context))

    def _get_info(self) -> Steps[tuple[int, Answer]]:
        # An enclave that starts again deserves more patience than an address where nobody is.
        for attempt in range(self._attempts + _STARTING):
            statuses = set()
            for _ in range(self.hosts.count):
                host = self.hosts.current
                self.hosts.tell("verifying", attempt=attempt)
                answer = yield Exchange("GET", "/instance", host=host)
                if answer.status == 200:
                    return host, answer
                statuses.add(answer.status)
                self.hosts.leave(host, reason_of(answer))
            if not statuses & {0, 503} or (503 not in statuses and attempt + 1 >= self._attempts):
                break
            yield self._pause(attempt, answer)
        raise TransportError(f"the host gives no instance info: {reason_of(answer)}")

    def _pause(self, attempt: int, answer: Answer | None = None) -> Pause:
        """Wait before the next attempt, and say so."""
        seconds = delay_seconds(attempt, answer.retry_after if answer is not None else 0.0)
        reason = reason_of(answer) if answer is not None else "an earlier request did not arrive"
        self.hosts.tell("waiting", attempt=attempt + 1, seconds=seconds, reason=reason)
        return Pause(seconds)

    def _open(self, name: str, topic: _Topic, *, new_boot: bool) -> None:
        assert self.instance is not None
        if new_boot:
            self._move(topic.conversation)
            topic.strand = self._new_strand()
        topic.conversation.use(self._session(name, topic), new_boot=new_boot)
        if new_boot:
            self._save(name, topic, topic.conversation.waiting())

    def _new_strand(self) -> int:
        # Random, so that no other process, no copy of this one and no restored backup has it (MAIL-50).
        assert self.instance is not None
        mark = strand_mark(self.instance.claims_digest)
        return mark << MARK_SHIFT | int.from_bytes(_crypto.random_bytes(5), "big")

    def _save(self, name: str, topic: _Topic, items: list[Pending]) -> None:
        """Write down what is about to leave. Raises StateError: it must not."""
        if self.state is None or not items:
            return
        replaced = [item.saved for item in items if item.saved is not None]
        self.state.sending(name, topic.strand, items, done=replaced)
        for item in items:
            item.saved = (topic.strand, item.sequence)

    def _settle(self, item: Pending) -> None:
        """Forget what is answered, or never will be. What an earlier process left stays until it is handed out."""
        if self.state is not None and item.saved is not None and not item.resumed:
            self.state.answered(item.saved)
            item.saved = None

    def _session(self, name: str, topic: _Topic) -> ClientSession:
        assert self.instance is not None
        return ClientSession(
            claims_digest=self.instance.claims_digest,
            encryption_key=self.instance.claims.encryption_key,
            identity=self.identity._key,
            reply_key=self.box.reply_key.public,
            topic=name,
            log_id=self.instance.claims.log_id,
            contexts=self.log.contexts,
            padding=self._padding,
            strand=topic.strand,
        )

    def _move(self, conversation: Conversation) -> None:
        """Keep of what waits what the present boot or log may be given: a call that it had under
        another number could run there twice (MAIL-52)."""
        assert self.instance is not None
        history, logged = history_id(self.instance.claims), self.instance.claims.log_id is not None
        for item in conversation.waiting():
            if item.logged:
                # It was meant for those who have that state, and may be in it.
                item.failed = TransportError(
                    "the enclave's log was replaced before it answered: the outcome is unknown, and the new one gets "
                    "nothing that was sent to the old one"
                )
            elif item.flags:
                item.failed = TransportError(
                    "the enclave restarted, or another host took over, before it answered, and this call is not retried"
                )
            elif history in item.boots:
                item.failed = TransportError("this boot had the call before another one did: the outcome is unknown")
            item.boots.append(history)
            item.logged = item.logged or logged
            if item.failed is not None or item.abandoned:
                conversation.forget(item)
                self._settle(item)

    def _close(self, name: str, topic: _Topic, taken: int) -> None:
        """Begin another strand: the enclave gave up this one after that many requests (MAIL-51)."""
        for item in topic.conversation.waiting():
            item.refused = None
            if item.sequence < taken:
                known = "took the request" if taken < NONE else "may have taken the request"
                item.failed = TransportError(f"the enclave {known}, and no longer has its answer")
                topic.conversation.forget(item)
                self._settle(item)
        topic.strand = self._new_strand()
        topic.conversation.use(self._session(name, topic), new_boot=True)
        self._save(name, topic, topic.conversation.waiting())

    def _outside(self, name: str, topic: _Topic, item: Pending) -> CallError:
        """Give up a request that was not admitted, and with it the strand, of which nothing will ever run (MAIL-72)."""
        item.failed = error = not_admitted()
        topic.conversation.forget(item)
        self._settle(item)
        self._close(name, topic, 0)
        return error

    def _topic(self, name: str) -> _Topic:
        topic = self._topics.get(name)
        if topic is None:
            topic = _Topic(self._new_strand(), self._heard)
            self._open(name, topic, new_boot=False)
            self._topics[name] = topic
        elif topic.conversation.session is None or not topic.conversation.session.usable:
            self._open(name, topic, new_boot=False)
        return topic

    def challenge(self) -> Steps[None]:
        """Check that the verified instance is alive now.

        Raises:
            SignatureError: somebody else answered.
            TransportError: nobody did.
        """
        yield from self._ready()
        assert self.instance is not None
        nonce = _crypto.random_bytes(32)
        answer = yield Exchange("POST", "/challenge", nonce, host=self.hosts.current)
        check_challenge(self.instance.claims, self.instance.claims_digest, nonce, answer)

    def forked(self) -> None:
        """Begin anew in a child process: the topics, and what waits in them, stay its parent's."""
        self._topics, self._resuming = {}, []
        if self.state is not None:
            self.state.forked()

    # Mail ----------------------------------------------------------------------------

    def mail(
        self, body: bytes, *, topic: str, envelope: bytes, padding: Padding | None = None
    ) -> Steps[list[ReceivedMail]]:
        """Send a mail; returns the enclave's replies to it.

        Args:
            padding: another one than this client's.

        Raises:
            CallError: the author's code refused or failed.
            MailError, TransportError, VerificationError, AppraisalError.
        """
        replies = yield from self._request(
            RequestKind.MAIL, body, topic=topic, envelope=envelope, retry=True, padding=padding
        )
        _raise_failure(replies[-1])
        return [ReceivedMail(r.body, r.envelope, r.sequence) for r in replies if r.kind == ReplyKind.MAIL]

    def call(
        self,
        name: str,
        arguments: list[Any],
        *,
        returns: Any,
        topic: str,
        retry: bool,
        padding: Padding | None = None,
    ) -> Steps[Any]:
        """Call an `@rpc` method; returns its result, decoded as `returns`."""
        body = encode_call(name, arguments)
        for left in range(_COME_BACK, -1, -1):
            replies = yield from self._request(
                RequestKind.CALL, body, topic=topic, envelope=b"", retry=retry, padding=padding
            )
            try:
                _raise_failure(replies[-1])
                break
            except CallError as error:
                # The enclave did nothing but show us a newer version, which our next mail shows it (BAR-7).
                if error.type_name != "ComeBack" or not left:
                    raise
        if replies[-1].kind != ReplyKind.RESULT:
            raise FormatError("the enclave answered a call with something else than a result")
        return decode_result(replies[-1].body, returns, method=name)

    def introduce(self, info: bytes, *, topic: str) -> Steps[None]:
        """Show instance info of one's own, whose signing key this client's identity is.

        Raises:
            CallError: the enclave does not accept it; the message says why.
        """
        replies = yield from self._request(
            RequestKind.INTRODUCTION, info, topic=topic, envelope=b"", retry=True, padding=None
        )
        _raise_failure(replies[-1])
        if replies[-1].kind != ReplyKind.INTRODUCED:
            raise FormatError("the enclave answered an introduction with something else")

    def open_stream(
        self, name: str, arguments: list[Any], *, topic: str, upload: bool, padding: Padding | None = None
    ) -> Steps[Opened]:
        """Encrypt a stream call, which is sent once at most."""
        if self.only_topic is not None:
            raise ValueError("a stream cannot be hidden in mails at a constant rate; use a client without pace for it")
        body = encode_call(name, arguments)
        yield from self._ready()
        place, instance, info = self._topic(topic), self.instance, self._info
        assert instance is not None
        assert place.conversation.session is not None
        shown = place.conversation.session.version
        session, mail, counter, sealer = place.conversation.open_stream(body, upload=upload, padding=padding)

        def decrypt(data: bytes) -> Reply:
            reply = session.decrypt(data)
            if reply.kind == ReplyKind.HALTED:
                self.log.hear(instance, info, reply)
            if not reply.outside or reply.answers != counter:
                raise DecryptionError
            check_echo(reply, shown)
            if reply.kind == ReplyKind.CONTEXT:
                raise _bad_context()
            return reply

        def closed(taken: int) -> None:
            self._close(topic, place, taken)

        def head(data: bytes) -> Reply:
            return self.log.watch(instance, lambda: decrypt(data))

        def result(item: bytes) -> bytes:
            if instance.claims.log_id is None:
                return item
            if len(item) < CONTEXT_SIZE:
                raise FormatError("the enclave answered a stream with a result that has no state context")
            context = item[:CONTEXT_SIZE]
            self.log.watch(instance, lambda: self.log.learn(instance.claims, context))
            return item[CONTEXT_SIZE:]

        return Opened(session, mail, counter, sealer, head, result, self.hosts.current, closed)

    def stream_refused(self, status: int, *, topic: str) -> Steps[StreamError]:
        """The error of a stream call that the host refused; what comes after it finds the new instance."""
        answer = Answer(status)
        place = self._topics.get(topic)
        if status in _AGAIN and place is not None:
            session = place.conversation.session
            with suppress(Error):
                yield from self.verify()
                if place.conversation.session is session and status in (409, 422):
                    self._open(topic, place, new_boot=False)
        return StreamError(f"the stream did not begin, and stream calls are not retried: {reason_of(answer)}")

    def _request(
        self, kind: RequestKind, body: bytes, *, topic: str, envelope: bytes, retry: bool, padding: Padding | None
    ) -> Steps[list[Reply]]:
        if self.only_topic is not None:
            if topic != self.only_topic or envelope:
                raise ValueError("at a constant rate mails have the one topic of the rate, and no envelope")
            padding = None
        yield from self._ready()
        place = self._topic(topic)
        conversation = place.conversation
        assert self.instance is not None
        item = conversation.add(kind, body, envelope=envelope, flags=0 if retry else 1, padding=padding)
        item.boots.append(history_id(self.instance.claims))
        item.logged = self.instance.claims.log_id is not None
        try:
            self._save(topic, place, [item])
        except StateError:
            conversation.retract(item)
            raise
        try:
            item.attended = True
            yield from self._catch_up(conversation, item)
            yield from self._deliver(topic, place, item)
        finally:
            item.attended = False
            if not item.done:
                item.abandoned = True
        return item.replies

    def cover(self) -> Steps[None]:
        """Send a mail that means nothing, in the steps in which a call is sent (MAIL-42)."""
        yield from self._ready()
        assert self.only_topic is not None
        place = self._topic(self.only_topic)
        item = place.conversation.cover()
        try:
            yield from self._deliver(self.only_topic, place, item)
        finally:
            place.conversation.uncover(item)

    def _catch_up(self, conversation: Conversation, item: Pending) -> Steps[None]:
        """Send again what an earlier caller gave up on: the channel is ordered behind it."""
        for earlier in conversation.waiting():
            if earlier.sequence < item.sequence and earlier.abandoned:
                yield from self._attempt(conversation, earlier)

    def _deliver(self, topic: str, place: _Topic, item: Pending) -> Steps[None]:
        conversation = place.conversation
        attempt = refusals = 0
        while attempt < self._attempts:
            host = self.hosts.current
            answer = yield from self._attempt(conversation, item)
            if item.done:
                return
            if item.failed is not None:
                raise item.failed
            if item.refused is not None:
                refused, item.refused = item.refused, None
                if refused.kind == ReplyKind.CLOSED:
                    self._close(topic, place, refused.expected)
                    if item.failed is not None:
                        raise item.failed
                    attempt += 1
                    continue
                if refused.kind == ReplyKind.SEQUENCE_ERROR:
                    # An earlier one did not arrive, and is still to be sent; or arrived while this was said.
                    again = conversation.holds(refused.expected) or conversation.passed(refused.expected)
                    # Another caller sends it, and gives up in the end: to wait for that is no attempt.
                    waits = self._attempts > 1 and conversation.awaits(refused.expected)
                    if not again or (attempt + 1 == self._attempts and not waits):
                        raise SequenceError(expected=refused.expected, got=item.sequence)
                    yield self._pause(refusals)
                    yield from self._catch_up(conversation, item)
                    refusals += 1
                    attempt += not waits
                    continue
                if refused.kind == ReplyKind.CONTEXT:
                    raise _bad_context()
                if refused.kind == ReplyKind.NOT_ADMITTED:
                    raise self._outside(topic, place, item)
                if attempt + 1 == self._attempts:
                    raise OverloadedError(
                        "the enclave holds too many unacknowledged replies of this channel. The call has not run, and "
                        "keeps its place: whatever is called next on this topic sends it first"
                    )
                yield self._pause(attempt)
                attempt += 1
                continue
            if answer.status in (400, 413, 405, 404):
                raise TransportError(f"the host refuses the mail: {reason_of(answer)}")
            if attempt + 1 == self._attempts:
                break
            yield self._pause(attempt, answer)
            if answer.status in _AGAIN or answer.status == 0:
                if attempt and answer.status not in (409, 422):
                    # Twice at one host: what it has of the call may be lost with it.
                    self.hosts.leave(host, reason_of(answer))
                yield from self._recover(topic, place, item, answer)
            self.hosts.tell("retrying", attempt=attempt + 2)
            attempt += 1
        raise TransportError(f"no reply after {_times(self._attempts)}, the outcome is unknown: {reason_of(answer)}")

    def _recover(self, topic: str, place: _Topic, item: Pending, answer: Answer) -> Steps[None]:
        conversation, session = place.conversation, place.conversation.session
        yield from self.verify()
        self.log.demand()
        if item.failed is not None:
            raise item.failed
        if conversation.session is session and answer.status in (409, 422):
            # The same instance has no such session, or cannot read it: open another.
            self._open(topic, place, new_boot=False)

    def _attempt(self, conversation: Conversation, item: Pending) -> Steps[Answer]:
        session = conversation.session
        answer = yield Exchange("POST", "/mail", item.encrypted, mails=True, host=self.hosts.current)
        if answer.status == 200 and conversation.session is session:
            self._take(conversation, answer.body)
        return answer

    def _take(self, conversation: Conversation, body: bytes) -> None:
        assert self.instance is not None
        for mail in split_mails(body):
            try:
                item = self.log.watch(self.instance, partial(conversation.receive, mail))
                if item is not None and item.done:
                    self._settle(item)
                elif item is not None and item.refused is not None and item.refused.kind == ReplyKind.HALTED:
                    # Not signed by the instance that was verified: then it would have ended here.
                    item.refused = None
            except (FormatError, MailError):
                # Whatever the host put there, it is not from the enclave. Counting
                # it as an error would let the host end a call with one byte.
                self._refused += 1

    # Posted mail ---------------------------------------------------------------------

    def poll(self, *, topic: str, wait_seconds: float) -> Steps[list[ReceivedMail]]:
        """Fetch mail the enclave sent without being asked, and acknowledge what the last poll gave.

        Raises:
            TransportError: the host gives no mail.
            VerificationError, AppraisalError: the instance that runs now is refused.
        """
        yield from self.acknowledge(topic=topic)
        # Not by the time of day: a clock set back by a day would make this wait for one.
        until = self._elapsed() + wait_seconds
        early = 0
        while True:
            asked = self._elapsed()
            left = max(until - asked, 0.0)
            place = self._collector.place
            posts = yield from self._collector.fetch(topic, min(left, MOST_WAIT_SECONDS))
            if posts or self._elapsed() >= until:
                return [ReceivedMail(p.body, p.envelope, p.number) for p in posts]
            if place == self._collector.place:
                # It brought nothing. A host that does not wait, as one that is crowded, is not asked in a loop.
                early = early + 1 if self._elapsed() - asked < 1 else 0
                yield Pause(min(left, max(delay_seconds(early) if early else 0.0, 0.05)))

    def listen(self, *, topic: str) -> Steps[list[ReceivedMail]]:
        """Wait for mail on a topic for as long as it takes, through whatever the host does."""
        attempt = 0
        while True:
            try:
                mails = yield from self.poll(topic=topic, wait_seconds=MOST_WAIT_SECONDS)
                if mails:
                    return mails
            except TransportError as error:
                self.hosts.leave(self.hosts.current, str(error))
            # After a wait that was one, this changes nothing; a host that does not wait is not asked in a loop.
            yield Pause(delay_seconds(attempt))
            attempt += 1

    def acknowledge(self, *, topic: str) -> Steps[None]:
        """What was handed out on a topic is done with: enclave and host need to keep it no more."""
        yield from self._ready()
        if (yield from self._collector.settle(topic)):
            self._owed.add(topic)
            if self.state is not None:
                # What cannot be written is handed out again after a restart.
                with suppress(StateError):
                    self.state.keep_box(self.box.export())
        if topic in self._owed:
            yield from self._report(topic)

    def _report(self, topic: str) -> Steps[None]:
        """Tell the boot that runs what was received; what does not arrive is told by the next poll.

        An enclave that is not told posts no more in the end (MAIL-35), and a client that only
        polls learns of a new boot by nothing else.
        """
        for _ in range(2):
            assert self.instance is not None
            place = self._topic(topic)
            conversation, session = place.conversation, place.conversation.session
            conversation.posted = self.box.received_below(history_id(self.instance.claims), topic)
            acknowledgement = conversation.acknowledgement()
            answer = yield Exchange("POST", "/mail", acknowledgement, mails=True, host=self.hosts.current)
            if answer.status == 200:
                if conversation.session is session:
                    self._take(conversation, answer.body)
                self._owed.discard(topic)
            if answer.status not in (409, 422):
                return
            try:
                yield from self.verify()
            except LogReplaced:
                raise
            except Error:
                # Mail of earlier boots is good all the same. Who calls is told.
                return
            if conversation.session is session:
                # The same instance has no such session, or cannot read it: open another.
                self._open(topic, place, new_boot=False)

    def _ask(
        self, method: str, path: str, body: bytes = b"", *, bearer: str = "", wait_seconds: float = 0.0
    ) -> Steps[Answer]:
        mails, host = method == "GET", self.hosts.current
        return (yield Exchange(method, path, body, mails=mails, host=host, bearer=bearer, wait_seconds=wait_seconds))

    def _sender(self, digest: bytes) -> Steps[InstanceClaims]:
        """Verified claims of whoever says that it posted a mail: of the instance that runs, or of another boot.

        Raises:
            TransportError: the host does not give them now.
            FormatError, VerificationError, AppraisalError: they are refused.
        """
        known = self._senders.get(digest)
        if self.instance is not None and self.instance.claims_digest == digest:
            known = self.instance
        if known is not None and self._now() <= known.evidence.valid_until:
            return known.claims
        answer = yield Exchange("GET", f"/instance/{digest.hex()}", host=self.hosts.current)
        if answer.status != 200:
            raise TransportError(f"the host does not say who posted a mail: {reason_of(answer)}")
        result = verify_instance(answer.body, self.constraint, now=self._now(), reference=self._reference)
        if result.claims_digest != digest:
            raise BindingError("the host gave the instance info of another instance")
        self._senders[digest] = result
        if len(self._senders) > _MAX_SENDERS:
            del self._senders[next(iter(self._senders))]
        return result.claims

    def resume(self) -> Steps[list[Resumed]]:
        """Repeat what earlier processes left without an answer, in its order.

        Raises:
            TransportError, VerificationError, AppraisalError: all of it stays for another time.
        """
        if self.state is None or not self.state.left:
            return []
        if self.only_topic is not None:
            raise ValueError("a constant rate does not hide what earlier processes left; resume it without pace")
        yield from self._ready()
        work = [(name, place, item) for name, place in self._restore() for item in place.left]
        try:
            outcomes = []
            for name, place, item in work:
                outcomes.append((yield from self._repeat(name, place, item)))
            # Only now: whoever dies over this finds it again.
            self.state.answered(*(item.saved for _, _, item in work if item.saved is not None))
            return outcomes
        finally:
            self._resuming = []
            # Where it ends early, what moved to another boot has other numbers than before.
            kept = (self.state.unanswered.get(item.saved) for _, _, item in work if item.saved is not None)
            self.state.left = [left for left in kept if left is not None]

    def _restore(self) -> list[tuple[str, _Topic]]:
        """Strands of earlier processes, in sessions of this one."""
        assert self.state is not None
        assert self.instance is not None
        places: dict[tuple[str, int, bytes], _Topic] = {}
        for left in self.state.left:
            place = places.setdefault((left.topic, left.strand, left.boots[-1]), _Topic(left.strand, self._heard))
            padding = None if left.padding is None else Padding.parse(left.padding)
            item = Pending(left.kind, left.flags, left.body, left.envelope, left.sequence, padding=padding)
            item.boots, item.saved, item.resumed = list(left.boots), left.key, True
            item.logged = left.logged
            place.left.append(item)
        self._resuming = []
        for (name, _, history), place in places.items():
            place.conversation.restore(place.left)
            if history == history_id(self.instance.claims):
                place.conversation.use(self._session(name, place), new_boot=False)
            else:
                self._open(name, place, new_boot=True)
            self._resuming.append((name, place))
        return self._resuming

    def _repeat(self, name: str, place: _Topic, item: Pending) -> Steps[Resumed]:
        error: Error | None = item.failed
        if error is None:
            try:
                yield from self._deliver(name, place, item)
                _raise_failure(item.replies[-1])
            except (MailError, CallError) as refused:
                error = refused
            except TransportError:
                if item.failed is None:
                    raise
                error = item.failed
        method, arguments, body = "", b"", item.body
        if item.kind == RequestKind.CALL:
            method, packed = decode_call(item.body)
            arguments, body = bytes(packed), b""
        return Resumed(name, method, body, error, arguments, item.replies)

    def close(self) -> None:
        """Let another process have the saved state."""
        if self.state is not None:
            self.state.close()

    def check_interface(self, interface: Interface) -> None:
        """Refuse a stub whose class differs from the measured interface.

        Raises:
            AppraisalError: naming both digests.
        """
        assert self.instance is not None
        ours, theirs = interface.digest(), self.instance.claims.interface
        if ours != theirs:
            raise AppraisalError(
                (
                    f"interface: the stub's class has digest {ours.hex()[:16]}…, the enclave's has "
                    f"{theirs.hex()[:16]}…; use the class this enclave was built from",
                )
            )


def not_admitted() -> CallError:
    """What a caller is told whom the enclave's `admit` did not take."""
    return CallError("NotAdmitted", "the enclave does not admit this sender; nothing ran, and nothing of it will")


def _raise_failure(reply: Reply) -> None:
    if reply.kind == ReplyKind.CALL_ERROR:
        failure = _codec.decode(CallFailure, reply.body, max_size=65536, what="call error")
        raise CallError(failure.type, failure.message)


def _bad_context() -> StateError:
    return StateError(
        "the enclave's log never gave this client the state context that it showed: its saved state was made under "
        "another identity, or the enclave is at fault; begin with a saved state of its own"
    )


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"


def reason_of(answer: Answer) -> str:
    """Why an answer is none, in words of ours."""
    if answer.status == 0:
        return answer.text
    return _HINTS.get(answer.status, f"the host answered with status {answer.status}")
