"""One boot of an enclave: mail in, handlers run, replies out.

Runs inside the enclave. Everything from the host is hostile: any frame gives an
answer or an ERROR word and never an exception that ends the boot. Author code is
trusted with the mail, not with the runtime's manners: whatever it raises becomes
an opaque call error.

Spec: spec/host-channel.md section 2, spec/mail.md section 6, spec/rpc.md.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from conclave import _codec, _crypto
from conclave._crypto import DecryptionKey, SigningKey
from conclave._framing import Frame, Kind, Send
from conclave.attestation.claims import InstanceClaims
from conclave.enclave import _streams
from conclave.enclave._author import Author
from conclave.enclave._posts import Posts
from conclave.enclave._release import Release, seal_later
from conclave.enclave._roster import ComeBack, Roster, Rosters
from conclave.enclave.drivers import Evidence
from conclave.enclave.sdk import Caller, Enclave, Mail, NotIntroduced, Post, _sender
from conclave.errors import DecryptionError, Error, FormatError, OverloadedError, SessionError
from conclave.mail import Channel, EnclaveSession, Mailbox, Opened, Outcome, Received, ReplyKind, Request, RequestKind
from conclave.mail._wire import REPLY_STATE_SIZE
from conclave.mail.padding import Padding, padme
from conclave.rpc.interface import Interface, error_body

if TYPE_CHECKING:
    from conclave.attestation import Constraint
    from conclave.enclave._anchors import Anchors
    from conclave.enclave._callers import Callers
    from conclave.enclave._clock import Clock
    from conclave.enclave._fetches import Fetches
    from conclave.enclave._peers import Peer, Peers
    from conclave.enclave._state import State, Work
    from conclave.enclave._transactions import Transactions
    from conclave.persistence.context import Context
    from conclave.persistence.map import PersistentMap
    from conclave.persistence.witness import Anchor

T = TypeVar("T")
STOP_SECONDS: Final = 5.0
# Mails up to this size are decrypted ahead of their turn.
_AHEAD: Final = 8 * 1024
_WORDS: Final = (
    (DecryptionError, b"decryption"),
    (SessionError, b"session"),
    (OverloadedError, b"overloaded"),
    (FormatError, b"format"),
)
# Looking up the member of an enumeration costs more than comparing it.
_MAIL: Final = Kind.MAIL
_DONE: Final = Kind.DONE
_CALL: Final = RequestKind.CALL
_INTRODUCTION: Final = RequestKind.INTRODUCTION
_REPLY: Final = Kind.REPLY
_ANSWERED: Final = Outcome.ANSWERED
_RUN: Final = Outcome.RUN
# Together with a channel: the mail asks for the replies to a request.
_ASKS: Final = (_RUN, Outcome.WAIT, _ANSWERED)


class Instance(_codec.Record, frozen=True):
    """Payload of an INSTANCE frame."""

    claims: bytes
    format: str
    evidence: bytes
    hints: bytes


class Service:
    """Keys, mailbox and the author's object of one boot. Single-threaded but for
    synchronous handlers when the class allows several threads."""

    def __init__(
        self,
        *,
        enclave: Enclave,
        interface: Interface,
        claims: Callable[[bytes, bytes], InstanceClaims],
        evidence: Callable[[bytes], Evidence],
        roster: tuple[bytes, ...],
        quorum: int,
        send: Send,
        debug: bool,
        state: State | None = None,
    ) -> None:
        """Make the keys and the first claims.

        Args:
            claims: makes claims from an encryption key and a signing key.
            evidence: asks the TEE for evidence over 64 bytes.
            send: queues one frame (kind, request id, payload) to the host.
            debug: tracebacks of the author's code may leave the enclave.
            state: of an enclave whose state persists, with this boot's record in it.
        """
        self._make_claims = claims
        self._evidence = evidence
        self._release = Release(enclave.release_every, send) if enclave.release_every else None
        if self._release is not None and state is not None:
            # A record that left at once would tell when a handler was ready.
            self._release.before = state.at_ticks()
        self._state = state
        self._send = self._release.send if self._release else send if state is None else state.send
        self._signing = SigningKey.generate()
        key = DecryptionKey.generate()
        self.claims = claims(key.public, self._signing.public)
        self._digest = self.claims.digest()
        self._padding = interface.padding or padme
        self._author = Author(enclave, interface, self._padding, debug=debug)
        self._mailbox = Mailbox(
            key=key,
            claims_digest=self._digest,
            admit=self._admit,
            opened=lambda session: self._posts.opened(session),
            posted=lambda session, below: self._posts.acknowledge(session, below),
            padding=self._padding,
            padding_of=self._author.padding_of,
            seal=EnclaveSession.encrypt if self._release is None and state is None else seal_later,
            spent=self._spent,
            memory=state,
        )
        self._asked_renewal = False
        self._posts = Posts(
            signer=self._signing,
            claims_digest=self._digest,
            send=lambda payload: self._send(Kind.POST, 0, payload),
            padding=self._padding,
            rows=state,
        )
        self._enclave = enclave
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.roster = Roster(roster, quorum, self._digest)
        self._rosters = Rosters(self.roster)
        self._anchors: Anchors | None = None
        if state is not None:
            state.seen = self._rosters.seen
        self._tasks: set[asyncio.Task[None]] = set()
        self._pool = ThreadPoolExecutor(enclave.threads) if enclave.threads > 1 else None
        self._transactions: Transactions | None = None
        self.outcome = self._author.outcome
        if state is not None:
            from conclave.enclave._transactions import Transactions

            self._transactions = Transactions(state, self, lambda: self._posts, self._pool)
        self.streams = _streams.Streams(
            send=self._send,
            prepare=self._author.prepare_stream,
            failure=self._author.failure,
            pool=self._pool,
            bounds=_streams.Bounds(idle_seconds=enclave.stream_idle_seconds),
            transactions=self._transactions,
        )
        # What verifies other enclaves is loaded by those alone who call or are called by some.
        self._clock: Clock | None = None
        self._fetches: Fetches | None = None
        self._peers: Peers | None = None
        self._callers: Callers | None = None
        if enclave.callers:
            from conclave.enclave._callers import Callers

            self._callers = self._author.callers = Callers(enclave.callers, self._time())
        enclave._context = self
        self._starting = None if state is None else state.begin()
        self._started = enclave.on_start()
        if self._release is not None:
            self._release.start(self._loop)

    async def start(self) -> None:
        """Wait for the author's `on_start`, and commit what it did."""
        if self._started is not None:
            await self._started
        if self._starting is not None:
            assert self._state is not None
            assert self._transactions is not None
            self._transactions.commit_once(self._starting)
            self._state.end(self._starting)
            self._state.flush()

    async def stop(self) -> None:
        """The author's `on_stop`, as long as it may take. Whatever it raises ends nothing else."""
        work = None if self._state is None else self._state.begin()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                stopping = self._enclave.on_stop()
                if stopping is not None:
                    await stopping
            if work is not None and self._transactions is not None and not self._mailbox.halted:
                self._transactions.commit_once(work)
        except BaseException:
            self._author.report()
        finally:
            if work is not None and self._state is not None:
                self._state.end(work)
        if self._state is not None:
            # There is no tick any more that would.
            self._state.flush()

    def announce(self, request: int = 0) -> None:
        """Send claims and evidence to the host."""
        self._announce(request, self.claims, self._evidence(self._digest))

    def _announce(self, request: int, claims: InstanceClaims, evidence: Evidence) -> None:
        instance = Instance(
            claims=claims.encode(), format=evidence.format, evidence=evidence.data, hints=evidence.hints
        )
        self._send(Kind.INSTANCE, request, _codec.encode(instance))

    def handle(self, frames: Sequence[Frame]) -> bool:
        """Take frames that came together from the host. False: stop."""
        # Mails are decrypted before the first is handled: a processor that does the same again has its steps at hand.
        # Of large ones, what was decrypted first would be at hand no more.
        open_ = self._mailbox.open
        opened = [
            open_(frame.payload) if frame.kind == _MAIL and len(frame.payload) <= _AHEAD else None for frame in frames
        ]
        return all(map(self._answer, frames, opened))

    def _answer(self, frame: Frame, opened: Opened | None) -> bool:
        try:
            return self._handle(frame, opened)
        except Exception:
            # A fault of ours. Those whose frames came with this one shall not notice.
            self._author.report()
            self._send(Kind.ERROR, frame.request, b"format")
            return True

    def _handle(self, frame: Frame, opened: Opened | None) -> bool:
        if frame.kind == _MAIL:
            self._mail(frame, opened)
        elif frame.kind == Kind.CHUNKS:
            self.streams.chunks(frame)
        elif frame.kind == Kind.CREDIT:
            self.streams.credit(frame)
        elif frame.kind == Kind.DROP:
            self.streams.drop(frame)
        elif frame.kind == Kind.CHALLENGE:
            self._challenge(frame)
        elif frame.kind == Kind.RENEW:
            self._renew(frame)
        elif frame.kind == Kind.ROOM:
            self._room(frame)
        elif frame.kind == Kind.COMMITTED:
            if self._state is not None:
                self._state.committed(frame.payload)
        elif frame.kind == Kind.FETCHED:
            if self._fetches is not None:
                self._fetches.fetched(frame)
        elif frame.kind == Kind.STOP:
            return False
        else:
            self._send(Kind.ERROR, frame.request, b"format")
        return True

    def hold(self) -> None:
        """A batch begins, at whose end `flush` is called."""
        if self._state is not None:
            self._state.hold()

    def flush(self) -> None:
        """A batch is handled: what was committed leaves as one record, and what waited for it."""
        if self._state is not None and self._release is None:
            self._state.flush()

    # Context for the author's object -------------------------------------------------

    def post(self, posts: Sequence[Post], *, skip_unreachable: bool = False) -> tuple[Post, ...]:
        """See `Enclave.post_together`."""
        if self._state is None:
            return self._at_home(lambda: self._posts.post(posts, skip_unreachable=skip_unreachable))
        work = self._state.running
        if work is None:
            # Mail and its numbers are of one record.
            return self.atomically(lambda: self.post(posts, skip_unreachable=skip_unreachable))
        plan = self._at_home(lambda: self._posts.plan(posts, skip_unreachable=skip_unreachable))
        work.add(plan.size)
        work.plans.append(plan)
        return plan.lost

    @property
    def map(self) -> PersistentMap:
        """See `Enclave.map`."""
        return self._persistent().map

    @property
    def version(self) -> int:
        """See `Enclave.version`."""
        return self._persistent().work.version

    def atomically(self, work: Callable[[], T]) -> T:
        """See `Enclave.atomically`."""
        state, transactions = self._persistent(), self._transactions
        assert transactions is not None
        return self._at_home(lambda: transactions.atomically(work)) if state.running is None else work()

    def _persistent(self) -> State:
        if self._state is None:
            raise RuntimeError(
                'this enclave keeps no state; declare it: persistence = "code" (or "signer", "product") in the class'
            )
        return self._state

    def address(self, identity: bytes, topic: str) -> bytes:
        """See `Enclave.address`."""
        # One look-up: nothing that another thread could see half done.
        return self._posts.address(identity, topic)

    def sign(self, data: bytes) -> bytes:
        """See `Enclave.sign`."""
        return self._signing.sign("app", self._digest, data)

    def _time(self) -> Clock:
        from conclave.enclave._clock import Clock

        if self._clock is None:
            state = self._state
            self._clock = Clock() if state is None else Clock(floor=state.log.floor, raised=state.raise_floor)
        return self._clock

    def _exchanges(self) -> Fetches:
        from conclave.enclave._fetches import Fetches

        self._fetches = self._fetches or Fetches(self._send)
        return self._fetches

    def peer(
        self, url: str, constraint: str | Constraint, *, introduce: bool, timeout_seconds: float, attempts: int
    ) -> Peer:
        """See `Enclave.peer`."""
        if self._peers is None:
            from conclave.enclave._peers import Peers

            self._peers = Peers(self, self._signing, self._time(), self._exchanges())
        return self._peers.peer(
            url, constraint, introduce=introduce, timeout_seconds=timeout_seconds, attempts=attempts
        )

    def caller(self, sender: bytes) -> Caller | None:
        """See `Enclave.caller`."""
        return None if self._callers is None else self._callers.find(sender)

    def allow_caller(self, name: str, constraint: str) -> None:
        """See `Enclave.allow_caller`."""
        callers = self._callers
        if callers is None:
            raise ValueError("this class declares no callers")
        self._at_home(lambda: callers.allow(name, constraint))

    async def stable(self, version: int | None, roster: Roster) -> None:
        """See `Enclave.stable`."""
        if version is not None:
            work = self._persistent().running
            self._rosters.watch(roster)
            if work is not None and work.known:
                # The mail that is handled came before the roster was told of any.
                sender = _sender.get(b"")
                roster.seen(sender, work.known)
                if sender in roster.members and work.known < version and not roster.reached(version):
                    # While it waits here it does not come back: the error shows it the version, its next mail has it.
                    raise ComeBack("ask again: your mail was from before the version that is waited for")
        await roster.stable(version)

    async def anchored(self, version: int | None) -> Anchor:
        """See `Enclave.anchored`."""
        if self._anchors is None:
            if not self._enclave.witnesses:
                raise RuntimeError("this class declares no witnesses that could countersign its state")
            from conclave.enclave._anchors import anchors_of

            self._anchors = anchors_of(
                self._persistent(),
                self._enclave.witnesses,
                self._enclave.witness_quorum,
                self._exchanges(),
                forked=self._stop,
            )
        return await self._anchors.anchored(version)

    def _at_home(self, work: Callable[[], T]) -> T:
        """Run where sessions and channels live: the author's threads may call from elsewhere."""
        if threading.get_ident() == self._thread:
            return work()
        return asyncio.run_coroutine_threadsafe(_run(work), self._loop).result()

    # Frames --------------------------------------------------------------------------

    def _challenge(self, frame: Frame) -> None:
        if len(frame.payload) != 32:
            self._send(Kind.ERROR, frame.request, b"format")
            return
        nonce = _crypto.random_bytes(32)
        signature = self._signing.sign("challenge", self._digest, frame.payload + nonce)
        self._send(Kind.SIGNED, frame.request, nonce + signature)

    def _room(self, frame: Frame) -> None:
        try:
            self._posts.room(frame.payload)
        except FormatError:
            self._send(Kind.ERROR, frame.request, b"format")

    def _spent(self) -> None:
        if not self._asked_renewal:
            self._asked_renewal = True
            self._send(Kind.SPENT, 0, b"")

    def _renew(self, frame: Frame) -> None:
        # Whatever comes of it: if it is needed still, it is asked for again.
        self._asked_renewal = False
        key = DecryptionKey.generate()
        claims = self._make_claims(key.public, self._signing.public)
        digest = claims.digest()
        try:
            evidence = self._evidence(digest)
        except (Error, OSError):
            # Without new evidence the old key stays; the host decides what then.
            self._send(Kind.ERROR, frame.request, b"stopping")
            return
        self.claims, self._digest = claims, digest
        self._mailbox.renew(key, digest)
        self._posts.renew(digest)
        self.roster.renewed(digest)
        self._announce(frame.request, claims, evidence)

    def _mail(self, frame: Frame, opened: Opened | None) -> None:
        release = self._release
        ticket = None if release is None else release.arrived(frame.request)
        route = frame.request if ticket is None else ticket
        if self._state is not None:
            # What mail itself changes, as acknowledgements do, is small, and any number of mails may come together.
            self._state.make_room(0)
        try:
            received = self._mailbox.receive(frame.payload, route, opened)
        except Error as error:
            word = next((w for kind, w in _WORDS if isinstance(error, kind)), b"format")
            self._send(Kind.ERROR, route, word)
            return
        if received.statement:
            self._send(_REPLY, route, self._stated(received))
        if received.outcome in _ASKS and received.channel and received.request:
            if release is not None and ticket is not None:
                handled = received.channel.known(received.request.sequence)
                assert handled is not None
                release.wait(ticket, handled)
            if received.outcome is _RUN:
                self._start(received.channel, received.request)
            if received.outcome is _RUN or release is not None:
                return
        if received.outcome is Outcome.HALT:
            self._halt(received, route)
            return
        # The last mail comes with DONE, so that every answer of one mail is one frame.
        answered = received.outcome is _ANSWERED
        mails, last = (received.mails[:-1], received.mails[-1:]) if answered else (received.mails, ())
        for mail in mails:
            self._send(Kind.REPLY, route, mail)
        if received.superseded_route and received.superseded_route != route:
            self._send(Kind.DONE, received.superseded_route, b"")
        if answered:
            self._send(Kind.DONE, route, last[0] if last else b"")
        elif received.outcome is Outcome.STREAM and received.session and received.request:
            self.streams.start(
                received.request,
                received.session,
                received.counter,
                route,
                sender=_sender,
                padding=self._author.padding_of(received.request),
            )

    def _stated(self, received: Received) -> bytes:
        """A mail that says, signed, which state this is: the client can show it to others."""
        signed = self._persistent().signed(None, self._signing, self._digest)
        return self._mailbox.outside(received, ReplyKind.STATEMENT, signed.signature + signed.encoded)

    def _halt(self, received: Received, route: int) -> None:
        """A client has seen what this history lacks: the host put back an older state, or runs two of them."""
        assert received.request is not None
        from conclave.persistence.context import Context

        refused = Context.parse(received.request.context)
        assert refused is not None
        proof = self._stop(refused)
        self._send(_DONE, route, self._mailbox.outside(received, ReplyKind.HALTED, proof))

    def _stop(self, refused: Context) -> bytes:
        """Answer everybody with a signed statement that this context is not of this history, from now on."""
        state = self._persistent()
        state.halt()
        signed = state.signed(refused, self._signing, self._digest)
        proof = signed.signature + signed.encoded
        self._mailbox.halt(proof)
        self._send(Kind.HALTED, 0, self._digest + proof)
        for task in list(self._tasks):
            task.cancel()
        self.streams.stop()
        if self._release is not None:
            self._release.give_up(b"stopping")
        return proof

    # Handlers ------------------------------------------------------------------------

    def _admit(self, sender: bytes, topic: str) -> bool:
        reading = None if self._state is None else self._state.begin()
        try:
            return bool(self._enclave.admit(sender, topic))
        except Exception:
            self._author.report()
            return False
        finally:
            if reading is not None and self._state is not None:
                # What it may have changed is forgotten: nobody is answered for it.
                self._state.end(reading)

    def _start(self, channel: Channel, request: Request) -> None:
        token = _sender.set(channel.identity)
        try:
            resolved = self.resolve(channel, request)
            handler, arguments, asynchronous = resolved
            if self._transactions is not None:
                if asynchronous or self._pool is not None:
                    self._spawn(self._transactions.run_later(channel, request, resolved))
                else:
                    self._transactions.run(channel, request, resolved)
            elif asynchronous:
                self._spawn(self._finish_later(channel, request, handler(*arguments)))
            elif self._pool is not None:
                context = contextvars.copy_context()
                work = asyncio.get_running_loop().run_in_executor(self._pool, context.run, handler, *arguments)
                self._spawn(self._finish_later(channel, request, _wait(work)))
            else:
                self._finish(channel, request, handler(*arguments))
        except BaseException as error:
            self.fail(channel, request, error)
        finally:
            _sender.reset(token)

    def resolve(self, channel: Channel, request: Request) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
        """What handles a request: function, arguments, and whether it is asynchronous."""
        if request.kind == _CALL:
            target, method, arguments = self._author.called(request.body, channel.identity)
            if target.streams:
                raise FormatError(f"{method.name}() takes or returns a stream: it is called by a stream call")
            return target.handler, arguments, target.asynchronous
        if request.kind == _INTRODUCTION:
            if self._callers is None:
                raise NotIntroduced("this enclave declares no callers; call it with introduce=False")
            return self._callers.introduce, (channel.identity, request.body), True

        def reply(body: bytes, envelope: bytes) -> None:
            if self._state is not None:
                work = self._state.work
                channel.check(request.sequence, body, envelope, last=False, waiting=len(work.replies))
                work.add(len(body) + len(envelope))
                work.replies.append((body, envelope))
                return
            self._at_home(lambda: self._reply(channel, request, ReplyKind.MAIL, body, envelope=envelope, last=False))

        mail = Mail(channel.identity, channel.topic, request.sequence, request.envelope, request.body, reply)
        return self._author.on_mail.handler, (mail,), self._author.on_mail.asynchronous

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish_later(self, channel: Channel, request: Request, work: Coroutine[Any, Any, Any]) -> None:
        try:
            self._finish(channel, request, await work)
        except BaseException as error:
            self.fail(channel, request, error)

    def _finish(self, channel: Channel, request: Request, result: Any) -> None:
        kind, body = self._author.outcome(request, result)
        self._reply(channel, request, kind, body, last=True)

    def replies(self, channel: Channel, request: Request, work: Work, kind: ReplyKind, body: bytes) -> None:
        """All replies of a run that was committed."""
        for mail, envelope in work.replies:
            self._reply(channel, request, ReplyKind.MAIL, mail, envelope=envelope, last=False)
        self._reply(channel, request, kind, body, last=True)

    def fail(self, channel: Channel, request: Request, error: BaseException) -> None:
        """The error with which a handler ended. Within the handler of its exception."""
        beside = 0 if self._state is None else REPLY_STATE_SIZE
        body, padding = error_body(self._author.failure(error), self._author.padding_of(request), beside=beside)
        if self._state is not None:
            self._state.make_room(len(body))
        self._reply(channel, request, ReplyKind.CALL_ERROR, body, last=True, padding=padding)

    def _reply(
        self,
        channel: Channel,
        request: Request,
        kind: ReplyKind,
        body: bytes,
        *,
        envelope: bytes = b"",
        last: bool,
        padding: Padding | None = None,
    ) -> None:
        made = self._mailbox.reply(channel, request.sequence, kind, body, envelope=envelope, last=last, padding=padding)
        if self._release is not None:
            # Whoever waits for it at a tick is given it there.
            return
        if made is None:
            if self._mailbox.halted and (handled := channel.known(request.sequence)) is not None:
                # Whoever waits for it asks again, and is told why.
                self._send(Kind.ERROR, handled.route, b"stopping")
            return
        route, mail = made
        self._send(_DONE if last else _REPLY, route, mail)


async def _run(work: Callable[[], T]) -> T:
    return work()


async def _wait(future: asyncio.Future[Any]) -> Any:
    return await future
