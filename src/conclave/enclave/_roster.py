"""Rosters: the named clients without whom nothing joint leaves an enclave.

Runs inside the enclave. The host is the adversary: identities are free, so only those
that measured code names, or that the members themselves have agreed to, count.

Spec: spec/barrier.md (BAR-1 to BAR-6).
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Self

from conclave import _codec, _crypto
from conclave.rpc.interface import RpcError

MAX_MEMBERS: Final = 100_000
LABEL: Final = b"conclave/1 roster\0"


class NotInRoster(RpcError):
    """The sender is no member of the roster."""


class WrongInstance(RpcError):
    """The member acknowledged another instance than this one."""


class WrongRoster(RpcError):
    """The member agreed to another roster than this one."""


class ComeBack(RpcError):
    """Not yet: the sender has not come back with the version that is waited for. Clients do so by themselves."""


class _Waiting:
    """Somebody who waits for so many more members; `version` is None where they acknowledge the instance."""

    __slots__ = ("future", "left", "version")

    def __init__(self, version: int | None, left: int) -> None:
        self.version = version
        self.left = left
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Roster:
    """The named set of clients without whom nothing joint leaves the enclave.

    One that the bundle declares is measured: the operator cannot add members. One that
    came in a mail (`Roster.of`) may be anybody's, so only those members count who have
    agreed to it.

    Without state a barrier is complete when `quorum` members acknowledged *this*
    instance, named by its claims digest; members who were each given an instance of
    their own never complete one. With state it is complete when `quorum` members have
    come back with what they saw of *this* history, at or after a version.
    """

    def __init__(self, members: Iterable[bytes], quorum: int, claims_digest: bytes) -> None:
        """As the bundle declares it; called by the runtime. No members: it declares none."""
        self.members = frozenset(members)
        self.quorum = quorum
        # Names the roster, its quorum included: 32 bytes.
        self.digest = _crypto.sha256(LABEL, _codec.encode([quorum, sorted(self.members)]))
        # A renewed encryption key gives the same boot a further digest.
        self._digests = {claims_digest}
        self._acknowledged: set[bytes] = set()
        # Whose versions count: everybody, or those who agreed.
        self._agreed: set[bytes] | None = None
        self._versions: dict[bytes, int] = {}
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()

    @classmethod
    def of(cls, members: Iterable[bytes], quorum: int) -> Self:
        """A roster that came in a mail. Keep the object: who agreed to it is in its memory alone.

        Args:
            members: public keys of clients, 32 bytes each, without repetition.
            quorum: how many of them must have seen what is to leave.

        Raises:
            ValueError: no members, one of another size or twice, or a quorum that they cannot reach.
        """
        given = list(members)
        if not 0 < len(given) <= MAX_MEMBERS or len(set(given)) != len(given):
            raise ValueError(f"a roster has 1 to {MAX_MEMBERS} members, each once; got {len(given)}")
        if not all(isinstance(member, bytes) and len(member) == _crypto.SIGNING_KEY_SIZE for member in given):
            raise ValueError("a member of a roster is a client's public key, 32 bytes")
        if not 0 < quorum <= len(given):
            raise ValueError(f"the quorum is between 1 and the number of members, {len(given)}; got {quorum}")
        made = cls(given, quorum, b"")
        # No claims digest is empty: such a roster is not for `acknowledge`.
        made._digests = set()
        made._agreed = set()
        return made

    def renewed(self, claims_digest: bytes) -> None:
        """Called by the runtime when this boot's claims are renewed."""
        self._digests.add(claims_digest)

    def check(self, sender: bytes) -> None:
        """Raise NotInRoster unless `sender` is a member."""
        if sender not in self.members:
            raise NotInRoster("the sender is not in this roster")

    # Without state ---------------------------------------------------------------------

    def acknowledge(self, sender: bytes, claims_digest: bytes) -> None:
        """Record that a member verified the instance with this digest.

        Raises:
            NotInRoster, WrongInstance: nothing is recorded.
        """
        self.check(sender)
        if claims_digest not in self._digests:
            raise WrongInstance("the acknowledged instance is not this one")
        with self._lock:
            if sender not in self._acknowledged:
                self._acknowledged.add(sender)
                self._tell([waiting for waiting in self._waiting if waiting.version is None])

    @property
    def complete(self) -> bool:
        """Whether the quorum has acknowledged this instance. Never true without a roster."""
        return bool(self.members) and len(self._acknowledged) >= self.quorum

    # With state ------------------------------------------------------------------------

    def agree(self, sender: bytes, digest: bytes) -> None:
        """Record that a member who knows the whole roster, by its digest, takes part.

        Raises:
            NotInRoster, WrongRoster: nothing is recorded.
        """
        self.check(sender)
        if not _crypto.same(digest, self.digest):
            raise WrongRoster("the member agreed to another roster than this one, or to another quorum")
        with self._lock:
            if self._agreed is not None and sender not in self._agreed:
                self._agreed.add(sender)
                self._advanced(-1, self._versions.get(sender, -1))

    def seen(self, identity: bytes, version: int) -> None:
        """A member's mail carried this version of this history. Called by the runtime, which has checked it."""
        if identity not in self.members:
            return
        with self._lock:
            before = self._versions.get(identity, -1)
            if version > before:
                self._versions[identity] = version
                if self._agreed is None or identity in self._agreed:
                    self._advanced(before, version)

    def reached(self, version: int) -> bool:
        """Whether the quorum has come back with this version of the history or a later one."""
        with self._lock:
            return bool(self.members) and self._count(version) >= self.quorum

    async def stable(self, version: int | None = None) -> None:
        """Wait until the quorum has acknowledged this instance or, given a version, has come back with it.

        With a version use `Enclave.stable`, which has the runtime tell the roster who comes.

        Raises:
            RuntimeError: the bundle declares no roster; or a roster that came in a mail, and no version.
        """
        if not self.members:
            raise RuntimeError("this bundle declares no roster; declare one in [tool.conclave], or use Roster.of(…)")
        if version is None and self._agreed is not None:
            raise RuntimeError("a roster that came in a mail is waited for with a version, that of its members' inputs")
        with self._lock:
            done = len(self._acknowledged) if version is None else self._count(version)
            if done >= self.quorum:
                return
            waiting = _Waiting(version, self.quorum - done)
            self._waiting.append(waiting)
        try:
            await waiting.future
        finally:
            with self._lock:
                self._waiting.remove(waiting)

    def _count(self, version: int) -> int:
        who = self._versions if self._agreed is None else self._agreed
        return sum(self._versions.get(member, -1) >= version for member in who)

    def _advanced(self, before: int, version: int) -> None:
        """A member who counts has come from one version to another."""
        self._tell([w for w in self._waiting if w.version is not None and before < w.version <= version])

    def _tell(self, those: list[_Waiting]) -> None:
        for waiting in those:
            waiting.left -= 1
            if waiting.left == 0:
                # Handlers wait on the enclave's loop; members may be counted in any thread.
                with suppress(RuntimeError):
                    waiting.future.get_loop().call_soon_threadsafe(_settle, waiting.future)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Rosters:
    """Which rosters each client's mail is to be told to. On the enclave's loop."""

    def __init__(self, declared: Roster) -> None:
        """The bundle's roster is told from the first mail on."""
        self._of: dict[bytes, list[weakref.ref[Roster]]] = {}
        self._watched: weakref.WeakSet[Roster] = weakref.WeakSet()
        # Members of rosters that nobody has any more. Finalizers run at any moment, in any thread.
        self._gone: deque[frozenset[bytes]] = deque()
        self._declared = declared
        self.watch(declared)

    def watch(self, roster: Roster) -> None:
        """Tell this roster from now on, as long as somebody holds it."""
        self._sweep()
        if roster in self._watched:
            return
        self._watched.add(roster)
        reference = weakref.ref(roster)
        for member in roster.members:
            self._of.setdefault(member, []).append(reference)
        weakref.finalize(roster, self._gone.append, roster.members).atexit = False

    def seen(self, identity: bytes, version: int) -> None:
        """A mail of this identity carried this version, which is in this history."""
        for reference in self._of.get(identity, ()):
            roster = reference()
            if roster is not None:
                roster.seen(identity, version)

    def _sweep(self) -> None:
        while self._gone:
            for member in self._gone.popleft():
                left = [reference for reference in self._of.get(member, ()) if reference() is not None]
                if left:
                    self._of[member] = left
                else:
                    self._of.pop(member, None)
