"""Calls to other enclaves: the client's core, driven inside an enclave.

Runs inside the enclave, and is loaded only by those that call another. The host makes
the HTTP exchanges and may answer anything, late, twice or never: what counts is
verified or decrypted by the core, against a constraint of this enclave's own.

Spec: spec/mail.md section 9 (MAIL-45 to MAIL-49).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar, cast

from conclave._crypto import SigningKey
from conclave.attestation.appraisal import AttestationResult
from conclave.attestation.claims import InstanceClaims, parse_claims, parse_instance_info
from conclave.attestation.constraint import Constraint
from conclave.client.core import Answer, ClientCore, Exchange, Pause, ReceivedMail, Steps
from conclave.client.identity import Identity
from conclave.enclave._callers import MAX_INTRODUCTION
from conclave.enclave._clock import Clock
from conclave.enclave._fetches import Fetch, Fetches
from conclave.errors import CallError, FormatError, TransportError
from conclave.rpc.interface import Interface, Method, interface_of

T = TypeVar("T")
E = TypeVar("E")
MAX_PEERS: Final = 64
_OWN: Final = ""


class Home(Protocol):
    """What a peer needs of the boot it belongs to."""

    claims: InstanceClaims


class Peers:
    """The other enclaves that one boot calls."""

    def __init__(self, home: Home, signing: SigningKey, clock: Clock, fetches: Fetches) -> None:
        self.fetches = fetches
        self._home = home
        self._identity = Identity(signing)
        self._clock = clock
        self._peers: dict[tuple[str, str, bool, float, int], Peer] = {}

    def peer(
        self, url: str, constraint: str | Constraint, *, introduce: bool, timeout_seconds: float, attempts: int
    ) -> Peer:
        """The peer at an address under a constraint: the same object each time."""
        wanted = constraint if isinstance(constraint, Constraint) else Constraint.parse(constraint.strip())
        key = (url.rstrip("/"), str(wanted), introduce, timeout_seconds, attempts)
        if not key[0].startswith(("http://", "https://")):
            raise ValueError("url begins with http:// or https://")
        found = self._peers.pop(key, None)
        if found is None:
            core = ClientCore(constraint=wanted, identity=self._identity, attempts=attempts, now=self._clock.now)
            found = Peer(self, core, key[0], introduce=introduce, timeout_seconds=timeout_seconds)
        self._peers[key] = found
        if len(self._peers) > MAX_PEERS:
            # Whoever holds it still uses it: each has strands of its own.
            del self._peers[next(iter(self._peers))]
        return found

    def accept(self, result: AttestationResult) -> None:
        """Time does not go back behind what this peer showed."""
        self._clock.accept(result)

    async def own_info(self, *, timeout_seconds: float, attempts: int = 6) -> bytes:
        """This boot's instance info, as its host hands it out.

        Raises:
            TransportError: the host gives none, or somebody else's.
        """
        for attempt in range(attempts):
            answer = await self.fetches.fetch(
                Fetch(url=_OWN, method="GET", path="/instance", body=b""), timeout_seconds=timeout_seconds
            )
            if answer.status == 200 and self._is_own(answer.body):
                return answer.body
            await asyncio.sleep(min(0.05 * 2.0**attempt, 1.0))
        raise TransportError("the host does not give this enclave's own instance info, so it cannot introduce itself")

    def _is_own(self, info: bytes) -> bool:
        try:
            claims = parse_claims(parse_instance_info(info).claims)
        except FormatError:
            return False
        # Keys are renewed, and the host may hand out the info of a moment ago.
        return len(info) <= MAX_INTRODUCTION and claims.signing_key == self._home.claims.signing_key


class Peer:
    """Another enclave, verified against a constraint before anything is sent to it.

    Made by `Enclave.peer`. Its methods are awaited in `async` handlers; several calls may
    be under way together, and none holds up the enclave's loop.
    """

    def __init__(self, peers: Peers, core: ClientCore, url: str, *, introduce: bool, timeout_seconds: float) -> None:
        self._peers = peers
        self._core = core
        self._url = url
        self._introduce = introduce
        self._timeout = timeout_seconds
        self._introductions = 0
        self._introducing = asyncio.Lock()

    @property
    def instance(self) -> AttestationResult:
        """The verified instance. Raises RuntimeError before the first contact."""
        if self._core.instance is None:
            raise RuntimeError("nothing was verified yet: await verify() or any call first")
        return self._core.instance

    async def verify(self) -> AttestationResult:
        """Fetch the peer's instance info and verify it now. Raises what refuses it."""
        return await self._run(self._core.verify())

    async def challenge(self) -> None:
        """Check that the verified peer is alive now."""
        await self._run(self._core.challenge())

    async def call(
        self, method: str, *args: Any, topic: str = "default", returns: Any = Any, retry: bool = True
    ) -> Any:
        """Call an `@rpc` method of the peer by name, with positional arguments.

        Returns:
            Its result, decoded as `returns`.

        Raises:
            AppraisalError, VerificationError: the constraint refuses what answers there.
            CallError: the peer's code refused or failed; `NotIntroduced`: it does not accept this enclave.
            TransportError: no reply; the outcome is unknown.
        """
        return await self._known(
            topic, lambda: self._core.call(method, list(args), returns=returns, topic=topic, retry=retry)
        )

    async def mail(self, body: bytes, *, topic: str = "default", envelope: bytes = b"") -> list[ReceivedMail]:
        """Send a mail and return the peer's replies to it. Raises as `call` does."""
        return await self._known(topic, lambda: self._core.mail(body, topic=topic, envelope=envelope))

    async def stub(self, cls: type[E], *, topic: str = "default") -> Any:
        """Typed calls: an object whose methods, those of an enclave class, are awaited.

        Raises:
            AppraisalError: the class differs from what the peer was built from.
        """
        interface = interface_of(cls)
        if self._core.instance is None:
            await self.verify()
        self._core.check_interface(interface)
        return _Stub(self, interface, topic)

    async def introduce(self, *, topic: str = "default") -> None:
        """Show the peer this enclave's evidence. Calls do it by themselves when it is needed.

        Raises:
            CallError: `NotIntroduced`: it does not accept this enclave; the message says why.
        """
        async with self._introducing:
            await self._show(topic)

    async def _show(self, topic: str) -> None:
        info = await self._peers.own_info(timeout_seconds=self._timeout)
        await self._run(self._core.introduce(info, topic=topic))
        self._introductions += 1

    async def _known(self, topic: str, make: Callable[[], Steps[T]]) -> T:
        """Run steps; before them, and once more if the peer no longer knows this enclave, introduce it."""
        if not self._introduce:
            return await self._run(make())
        seen = self._introductions or await self._again(topic, 0)
        try:
            return await self._run(make())
        except CallError as error:
            # The peer restarted, or what it verified has ended. It refused before it ran anything.
            if error.type_name != "NotIntroduced":
                raise
        await self._again(topic, seen)
        return await self._run(make())

    async def _again(self, topic: str, seen: int) -> int:
        """Introduce this enclave unless another call did so since then."""
        async with self._introducing:
            if self._introductions == seen:
                await self._show(topic)
        return self._introductions

    async def _run(self, steps: Steps[T]) -> T:
        answer: Answer | None = None
        try:
            while True:
                try:
                    step = next(steps) if answer is None else steps.send(answer)
                except StopIteration as stop:
                    return cast(T, stop.value)
                answer = await self._take(step)
        finally:
            # Who stops waiting leaves the core in order.
            steps.close()
            if self._core.instance is not None:
                self._peers.accept(self._core.instance)

    async def _take(self, step: Exchange | Pause) -> Answer:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return Answer(0)
        request = Fetch(url=self._url, method=step.method, path=step.path, body=step.body)
        came = await self._peers.fetches.fetch(request, timeout_seconds=self._timeout)
        return Answer(came.status, came.body, came.text)


class _Stub:
    """The `@rpc` methods of an enclave class, each an awaited call."""

    def __init__(self, peer: Peer, interface: Interface, topic: str) -> None:
        for method in interface.methods.values():
            if method.streams:
                # Streams have no exchange to wait for: between enclaves there are calls and mails.
                continue
            setattr(self, method.name, _caller(peer, method, topic))


def _caller(peer: Peer, method: Method, topic: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = method.bind(args, kwargs)
        return peer.call(method.name, *arguments, topic=topic, returns=method.return_type, retry=method.retry)

    call.__name__ = method.name
    return call
