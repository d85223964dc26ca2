"""What an author writes an enclave with.

Runs inside the enclave (and is imported, without running, by typed clients and
by `conclave build`). The host is the adversary; a client is whoever holds the
key `sender` names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from conclave.enclave._roster import Roster
from conclave.mail.padding import Padding
from conclave.rpc.interface import RpcError

if TYPE_CHECKING:
    from conclave.attestation import AttestationResult, Constraint, InstanceClaims
    from conclave.enclave._peers import Peer
    from conclave.persistence.map import PersistentMap
    from conclave.persistence.witness import Anchor

T = TypeVar("T")
SHORTEST: Final = timedelta(milliseconds=1)
LONGEST: Final = timedelta(hours=1)
POLICIES: Final = ("code", "signer", "product")
_sender: ContextVar[bytes] = ContextVar("conclave_sender")


@dataclass(frozen=True, slots=True)
class Mail:
    """One decrypted mail for `Enclave.on_mail`.

    Attributes:
        sender: Ed25519 public key (32 bytes) that signed the session's opening.
        topic: the sender's topic; channels of two senders never mix.
        sequence: position in the channel, from 0.
        envelope: bytes the host could read but not alter.
        body: only sender and enclave know it.
    """

    sender: bytes
    topic: str
    sequence: int
    envelope: bytes
    body: bytes
    _reply: Callable[[bytes, bytes], None] = field(repr=False, compare=False)

    def reply(self, body: bytes, *, envelope: bytes = b"") -> None:
        """Send one more reply to this mail, before the handler returns."""
        self._reply(body, envelope)


@dataclass(frozen=True, slots=True)
class Post:
    """One mail for `Enclave.post_together`.

    Attributes:
        to: the client's public key (32 bytes), or what `Enclave.address` gave.
        body: only the client will know it.
        topic: on which of the client's topics; an address has its own.
        envelope: bytes the host can read but not alter.
    """

    to: bytes
    body: bytes = field(repr=False)
    topic: str = "default"
    envelope: bytes = b""


class NotIntroduced(RpcError):
    """The sender is no enclave that this one accepts for what it asked, or not any more."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Another enclave that calls this one, as this one verified it.

    Attributes:
        names: the names in `callers` whose constraints accept it.
        result: what was verified, under the first of them.
    """

    names: frozenset[str]
    result: AttestationResult


class Context(Protocol):
    """What the runtime gives an enclave object. Authors use `Enclave`'s methods."""

    claims: InstanceClaims
    roster: Roster

    def post(self, posts: Sequence[Post], *, skip_unreachable: bool = False) -> tuple[Post, ...]: ...
    def address(self, identity: bytes, topic: str) -> bytes: ...
    def sign(self, data: bytes) -> bytes: ...
    def caller(self, sender: bytes) -> Caller | None: ...
    def allow_caller(self, name: str, constraint: str) -> None: ...
    @property
    def map(self) -> PersistentMap: ...
    @property
    def version(self) -> int: ...
    def atomically(self, work: Callable[[], T]) -> T: ...
    def peer(
        self, url: str, constraint: str | Constraint, *, introduce: bool, timeout_seconds: float, attempts: int
    ) -> Peer: ...
    async def stable(self, version: int | None, roster: Roster) -> None: ...
    async def anchored(self, version: int | None) -> Anchor: ...


class Enclave:
    """Base of every enclave: subclass it, mark methods with `@rpc`.

    Without `persistence` nothing survives a restart of the enclave. Within one boot a
    retry of a call gets the same reply and runs nothing twice; across boots a call runs
    at least once (`delivery`).

    With it, `self.map` does, and each handler is a transaction: changes, replies and
    posted mail of one that returned are kept as one, those of one that raised are
    forgotten. A call runs exactly once, if its client keeps trying and the host keeps
    its store; a host that forgets is caught by the next client that knows better. A
    handler may run more than once before it commits, so other attributes are a cache:
    neither kept nor undone.

    Class attributes:
        persistence: whose state it is, by what the TEE binds its key to: `code`, this
            exact program; `signer`, any of its author's; `product`, any of its author's
            with its product id. None (default): there is no state.
        threads: how many synchronous handlers may run at a time. With 1 (default)
            no handler ever runs beside another one.
        padding: how mails are padded that are no calls of a method with a padding of
            its own: `padme`, `fixed(…)` or `buckets(…)`. With None (default) replies
            are padded by Padmé, and each client chooses for its requests.
        release_every: a `timedelta` for replies and posted mail that leave at ticks
            only, one to two of them after the request came. None: as soon as they are
            ready.
        stream_idle_seconds: how long a stream waits for the client's next chunk, or
            for it to take the next item, before it breaks off.
        callers: which other enclaves may introduce themselves: a name for each kind of
            them, and the constraint it has to satisfy; None accepts nobody until
            `allow_caller` sets one. Measured, as all of the class is.
        witnesses: outside witnesses that countersign this enclave's state: a name for each, and
            its public key, 64 hex digits.
        witness_quorum: how many of them `anchored` needs, more than half.
    """

    persistence: str | None = None
    threads: int = 1
    padding: Padding | None = None
    release_every: timedelta | None = None
    stream_idle_seconds: float = 60.0
    callers: Mapping[str, str | None] = {}
    witnesses: Mapping[str, str] = {}
    witness_quorum: int = 0
    delivery: str = "at_least_once"
    _context: Context

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises TypeError, or an error of a constraint, for what the runtime could not follow: when it is built."""
        super().__init_subclass__(**options)
        every = cls.release_every
        if every is not None and not (isinstance(every, timedelta) and SHORTEST <= every <= LONGEST):
            raise TypeError(f"{cls.__name__}.release_every is a timedelta of {SHORTEST} to {LONGEST}, or None")
        if cls.persistence not in (None, *POLICIES):
            raise TypeError(f"{cls.__name__}.persistence is one of {', '.join(POLICIES)}, or None")
        cls.delivery = "at_least_once" if cls.persistence is None else "exactly_once"
        if cls.callers:
            # The verifiers are loaded by those alone who need them.
            from conclave.enclave._callers import check_declared

            check_declared(cls.callers)
        if cls.witnesses or cls.witness_quorum:
            from conclave.persistence.witness import check_witnesses

            check_witnesses(cls.witnesses, cls.witness_quorum, of=cls.__name__)
            if cls.persistence is None:
                raise TypeError(f"{cls.__name__} has witnesses and no state for them; set `persistence`")

    def on_start(self) -> Awaitable[None] | None:
        """Called once, after the keys exist and before the first mail; may be `async`."""
        return None

    def on_stop(self) -> Awaitable[None] | None:
        """Called when the host asks for the end; may be `async`, and gets five seconds.

        A convenience of the host's: it may end the enclave at any moment without.
        """
        return None

    def admit(self, sender: bytes, topic: str) -> bool:
        """Whether an unknown sender may open a channel. Must not block."""
        return True

    def on_mail(self, mail: Mail) -> bytes | None:
        """Handle a mail that is not a call; may be `async`. A result is replied."""
        raise NoMailHandler("this enclave answers calls only")

    @property
    def sender(self) -> bytes:
        """Ed25519 public key (32 bytes) of the caller that is being handled."""
        return _sender.get()

    @property
    def caller(self) -> Caller | None:
        """The verified enclave that is being handled; None for ordinary clients."""
        return self._context.caller(_sender.get())

    def allow_caller(self, name: str, constraint: str) -> None:
        """Set which enclaves are accepted under a name of `callers`, in place of those before.

        For constraints that nobody can know when the bundle is built. Whoever may call the
        method that calls this decides who is accepted: it is for the author to check.

        Raises:
            ValueError: `callers` has no such name.
            FormatError: the constraint does not parse.
        """
        self._context.allow_caller(name, constraint)

    def peer(
        self,
        url: str,
        constraint: str | Constraint,
        *,
        introduce: bool = True,
        timeout_seconds: float = 30.0,
        attempts: int = 6,
    ) -> Peer:
        """Another enclave, to be called from `async` handlers.

        Args:
            url: where its host serves. Only this enclave's own untrusted host reads it.
            constraint: which enclaves to accept there: in measured code, or from somebody
                who may decide it.
            introduce: show it this enclave's evidence first, so that its `caller` knows it.
            timeout_seconds: how long one exchange waits.
            attempts: how often a request is sent before `TransportError`.

        Raises:
            FormatError: the constraint does not parse.
        """
        return self._context.peer(
            url, constraint, introduce=introduce, timeout_seconds=timeout_seconds, attempts=attempts
        )

    @property
    def map(self) -> PersistentMap:
        """The persistent map, as the handler that runs here sees it: `str` to `bytes`, ordered.

        What a handler changes is there for others, and for good, once it returned;
        if it raises, nothing of it is. Replies and posted mail go along with it.

        Raises:
            RuntimeError: the class declares no `persistence`; or (on use) outside of a handler.
        """
        return self._context.map

    @property
    def version(self) -> int:
        """The state version that this handler reads: what was committed before has this or a lower one."""
        return self._context.version

    def atomically(self, work: Callable[[], T]) -> T:
        """Run a function as a handler is run: in one transaction, alone. For tasks beside handlers.

        In a handler it is part of that one's transaction.
        """
        return self._context.atomically(work)

    @property
    def instance(self) -> InstanceClaims:
        """This boot's attested claims."""
        return self._context.claims

    @property
    def roster(self) -> Roster:
        """The roster declared in the bundle."""
        return self._context.roster

    async def stable(self, version: int | None = None, roster: Roster | None = None) -> None:
        """Wait until a quorum of a roster stands behind one history of this enclave: the barrier.

        What a joint computation reveals is to leave after this, since a rollback or fork is
        *detected* when somebody comes back, and that is too late for what was told before.

        Args:
            version: of the state that has all inputs: members count who have come back with it
                or a later one. Kept in the map when inputs end: each call makes a new version,
                and members would never catch up with the newest. None: members count who
                acknowledged this instance.
            roster: what `Roster.of` made; the bundle's if None. Members' mails count for it from
                the first time on that it is waited for, the mail that is handled included.

        Raises:
            RuntimeError: no roster, or a version in an enclave without state.
            ComeBack: the member whose mail is handled has not seen the version itself, and would
                wait for itself; clients repeat such a call by themselves.
        """
        await self._context.stable(version, self._context.roster if roster is None else roster)

    async def anchored(self, version: int | None = None) -> Anchor:
        """Wait until `witness_quorum` of `witnesses` have countersigned this enclave's state: the anchor.

        For results that leave before any client comes back. Of two forks of one state at most one
        is ever anchored, as long as fewer than `2 * witness_quorum - len(witnesses)` witnesses are
        dishonest or have forgotten what they signed.

        Args:
            version: the state that is anchored is this one or a later one; None: the newest that is durable.

        Returns:
            What clients can verify on their own.

        Raises:
            RollbackError: witnesses know another continuation: this boot has halted.
            RuntimeError: this class declares no witnesses.
        """
        return await self._context.anchored(version)

    def post(self, to: bytes, body: bytes, *, topic: str = "default", envelope: bytes = b"") -> None:
        """Mail a client without being asked: it is kept in the host's outbox until fetched.

        A reply that the enclave sends after this leaves the host only when the
        mail is on the host's store.

        Args:
            to: the public key (32 bytes) of a client that had a session on the topic in
                this boot, or what `address` gave, in this boot or another.
            topic: ignored for an address, which has its own.

        Raises:
            SessionError: that client had no session on that topic in this boot.
            OverloadedError: too much lies in its box unacknowledged, or in all boxes.
            FormatError: not an address.
        """
        self._context.post((Post(to, body, topic, envelope),))

    def post_together(self, posts: Iterable[Post], *, skip_unreachable: bool = False) -> tuple[Post, ...]:
        """Mail several clients: all equally large, visible at one moment, or none.

        Bodies of any sizes are padded to that of the largest, so that neither host
        nor network sees who got which.

        Args:
            skip_unreachable: go on without those whose boxes are full, or who had no
                session on that topic, so that no client keeps mail from the others.
                The host, too, can have somebody skipped, as it can drop mail.

        Returns:
            Those that were not posted: the skipped ones, and any to a client whose reply
            key is none.

        Raises:
            SessionError, OverloadedError, FormatError: as `post`; nothing was posted.
                `clients` of OverloadedError are those who have no room.
            ValueError: more than 17 MiB in all.
        """
        return self._context.post(tuple(posts), skip_unreachable=skip_unreachable)

    def address(self, client: bytes, topic: str = "default") -> bytes:
        """Where a client is reached later, without a session, also from another boot.

        About 1.3 KiB that an author keeps. It is authentic when given, and
        afterwards only as far as it was kept where nobody else can write: whoever
        can put another one in its place gets the mail. Whoever has it can write to
        the client's box, as far as their own enclave satisfies the client's
        constraint; it is no secret to protect mail by.

        Raises:
            SessionError: that client had no session on that topic in this boot.
        """
        return self._context.address(client, topic)

    def sign(self, data: bytes) -> bytes:
        """Sign under purpose `app` with the instance's attested key: 64 bytes."""
        return self._context.sign(data)


class NoMailHandler(RpcError):
    """The enclave class does not define `on_mail`."""
