"""What an author writes an enclave with.

Runs inside the enclave (and is imported, without running, by typed clients and
by `conclave build`). The host is the adversary; a client is whoever holds the
key `sender` names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from conclave.rpc.interface import RpcError

if TYPE_CHECKING:
    from conclave.attestation.claims import InstanceClaims

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


class NotInRoster(RpcError):
    """The sender is not a member of the roster that the bundle declares."""


class WrongInstance(RpcError):
    """The member acknowledged another instance than this one."""


class Roster:
    """The named set of clients without whom nothing joint leaves the enclave.

    Declared in the bundle, so measured: the operator cannot add members. A
    barrier is complete when `quorum` members acknowledged *this* instance, named
    by its claims digest; members who were each given an instance of their own
    never complete one.
    """

    def __init__(
        self,
        members: tuple[bytes, ...],
        quorum: int,
        claims_digest: bytes,
        at_home: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self.members = frozenset(members)
        self.quorum = quorum
        # A renewed encryption key gives the same boot a further digest.
        self._digests = {claims_digest}
        self._acknowledged: set[bytes] = set()
        # Runs where those wait who must be woken, whichever thread acknowledges.
        self._at_home = at_home
        self._complete = asyncio.Event()

    def renewed(self, claims_digest: bytes) -> None:
        """Called by the runtime when this boot's claims are renewed."""
        self._digests.add(claims_digest)

    def check(self, sender: bytes) -> None:
        """Raise NotInRoster unless `sender` is a member."""
        if sender not in self.members:
            raise NotInRoster("the sender is not in this bundle's roster")

    def acknowledge(self, sender: bytes, claims_digest: bytes) -> None:
        """Record that a member verified the instance with this digest.

        Raises:
            NotInRoster, WrongInstance: nothing is recorded.
        """
        self.check(sender)
        if claims_digest not in self._digests:
            raise WrongInstance("the acknowledged instance is not this one")
        self._at_home(lambda: self._record(sender))

    def _record(self, sender: bytes) -> None:
        self._acknowledged.add(sender)
        if self.members and len(self._acknowledged) >= self.quorum:
            self._complete.set()

    @property
    def complete(self) -> bool:
        """Whether the quorum has acknowledged. Never true without a roster."""
        return self._complete.is_set()

    async def stable(self) -> None:
        """Wait until the quorum has acknowledged this instance.

        Raises:
            RuntimeError: the bundle declares no roster.
        """
        if not self.members:
            raise RuntimeError("this bundle declares no roster; declare one in [tool.conclave]")
        await self._complete.wait()


class Context(Protocol):
    """What the runtime gives an enclave object. Authors use `Enclave`'s methods."""

    claims: InstanceClaims
    roster: Roster

    def post(self, posts: Sequence[Post]) -> None: ...
    def address(self, identity: bytes, topic: str) -> bytes: ...
    def sign(self, data: bytes) -> bytes: ...


class Enclave:
    """Base of every enclave: subclass it, mark methods with `@rpc`.

    Stateless: nothing survives a restart of the enclave. Within one boot a retry
    of a call gets the same reply and runs nothing twice; across boots a call runs
    at least once (`delivery`).

    Class attributes:
        threads: how many synchronous handlers may run at a time. With 1 (default)
            no handler ever runs beside another one.
    """

    threads: int = 1
    delivery = "at_least_once"
    _context: Context

    def on_start(self) -> None:
        """Called once, after the keys exist and before the first mail."""

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
    def instance(self) -> InstanceClaims:
        """This boot's attested claims."""
        return self._context.claims

    @property
    def roster(self) -> Roster:
        """The roster declared in the bundle."""
        return self._context.roster

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

    def post_together(self, posts: Iterable[Post]) -> None:
        """Mail several clients: all equally large, visible at one moment, or none.

        Bodies of any sizes are padded to that of the largest, so that neither host
        nor network sees who got which. Raises what `post` does, and ValueError
        for more than 17 MiB in all; then nothing was posted.
        """
        self._context.post(tuple(posts))

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
