"""Rounds in which witnesses countersign this boot's newest durable state.

Runs inside the enclave, on its loop. The host carries every exchange and may lose, repeat
and swap them; each witness may lie. What counts is checked in `persistence.witness`.

Spec: spec/witness.md section 6 (WIT-12 to WIT-16).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from conclave.enclave._fetches import Fetch, Fetches
from conclave.errors import Error, RollbackError, TransportError
from conclave.persistence.context import Context
from conclave.persistence.witness import Anchor, Ask, Countersignature, ForkWitnessed, Head, WitnessClient

if TYPE_CHECKING:
    from conclave.enclave._state import State

EXCHANGE_SECONDS: Final = 30.0
SHORTEST_SECONDS: Final = 0.05
LONGEST_SECONDS: Final = 10.0
_ANSWERED: Final = (200, 409)

# Makes one exchange with a witness: name, path, body; gives the answer's body, or raises TransportError.
Exchange = Callable[[str, str, bytes], Awaitable[bytes]]


class AnchorSource(Protocol):
    """One party that countersigns states of a log, so that it has one continuation alone.

    `countersign` raises `RollbackError` where the party knows another one, which it proves.
    """

    name: str

    def countersign(self, head: Head) -> Generator[Ask, bytes, bytes]: ...


def exchange_by(fetches: Fetches) -> Exchange:
    """Exchanges that the host makes, with witnesses at addresses that its operator names."""

    async def exchange(name: str, path: str, body: bytes) -> bytes:
        request = Fetch(url=f"witness:{name}", method="POST", path=path, body=body)
        came = await fetches.fetch(request, timeout_seconds=EXCHANGE_SECONDS)
        if came.status not in _ANSWERED:
            raise TransportError(came.text or f"the witness answered with status {came.status}")
        return came.body

    return exchange


def anchors_of(
    state: State, witnesses: Mapping[str, str], quorum: int, fetches: Fetches, *, forked: Callable[[Context], object]
) -> Anchors:
    """The anchors of one boot's log.

    Args:
        witnesses: a name for each, and its public key in hex.
        forked: told of a state that was countersigned and is not of this history.
    """
    log = state.log

    def contains(head: Head) -> bool:
        return log.history.contains(Context(head.version, head.boot, head.digest, b""), newest=log.version)

    async def newest(version: int | None) -> Head:
        context = await state.newest(version)
        return Head(version=context.version, boot=context.boot, digest=context.digest)

    def report(name: str, error: Error) -> None:
        # Read in debug mode alone.
        print(f"witness '{name}': {error}", file=sys.stderr)

    def tell(error: RollbackError) -> None:
        if isinstance(error, ForkWitnessed):
            head = error.standing.step.new
            forked(Context(head.version, head.boot, head.digest, b""))

    clients = [
        WitnessClient(name, bytes.fromhex(key), anchor_key=log.anchor, contains=contains)
        for name, key in witnesses.items()
    ]
    return Anchors(
        clients,
        quorum,
        log_id=log.log_id,
        newest=newest,
        exchange=exchange_by(fetches),
        report=report,
        forked=tell,
    )


class _Round:
    """One state that is to be countersigned, and who has done so."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.signatures: dict[str, bytes] = {}
        self.done = asyncio.Event()


class Anchors:
    """Has a quorum of sources countersign states of one boot. One round at a time, for everybody who waits."""

    def __init__(
        self,
        sources: Sequence[AnchorSource],
        quorum: int,
        *,
        log_id: bytes,
        newest: Callable[[int | None], Awaitable[Head]],
        exchange: Exchange,
        report: Callable[[str, Error], None] = lambda name, error: None,
        forked: Callable[[RollbackError], None] = lambda error: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Nothing is asked before the first `anchored`.

        Args:
            quorum: how many must countersign, more than half of them.
            newest: waits for a state of this boot, at or after a version, to be durable, and gives the newest that is.
            exchange: makes one exchange with a source.
            report: told what went wrong with which source; it is tried again.
            forked: told once, of the proof that this history is not the only one: this boot has to halt.
        """
        self._sources = sources
        self._quorum = quorum
        self._log_id = log_id
        self._newest = newest
        self._exchange = exchange
        self._report = report
        self._tell_forked = forked
        self._sleep = sleep
        self._last: Anchor | None = None
        self._round: _Round | None = None
        self._turn = asyncio.Lock()
        self._wake = asyncio.Condition()
        self._workers: list[asyncio.Task[None]] = []
        self._fork: RollbackError | None = None

    async def anchored(self, version: int | None = None) -> Anchor:
        """The anchor of a state at or after that version; None: of one that is durable from now on.

        Raises:
            RollbackError: somebody countersigned what is not in this history. For good.
        """
        # Before its turn: who names a version that never comes holds up nobody else.
        durable = await self._newest(version)
        version = durable.version if version is None else version
        while self._last is None or self._last.version < version:
            # Who waits here shares the next round, whose state is chosen when it begins.
            async with self._turn:
                if self._fork is not None:
                    break
                if self._last is None or self._last.version < version:
                    await self._run(_Round(await self._newest(None)))
        if self._fork is not None:
            raise self._fork
        assert self._last is not None
        return self._last

    async def close(self) -> None:
        """Stop asking."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _run(self, this: _Round) -> None:
        if not self._workers:
            self._workers = [asyncio.create_task(self._work(source)) for source in self._sources]
        async with self._wake:
            self._round = this
            self._wake.notify_all()
        await this.done.wait()
        if self._fork is None:
            self._last = Anchor(
                log_id=self._log_id,
                version=this.head.version,
                boot=this.head.boot,
                digest=this.head.digest,
                countersignatures=[
                    Countersignature(witness=name, signature=signature)
                    for name, signature in sorted(this.signatures.items())
                ],
            )

    async def _work(self, source: AnchorSource) -> None:
        """Take one source through all rounds. A slow one skips rounds that ended without it."""
        pause = SHORTEST_SECONDS
        while True:
            async with self._wake:
                await self._wake.wait_for(lambda: self._wanted(source))
            this = self._round
            assert this is not None
            try:
                signature = await self._countersigned(source, this.head)
            except RollbackError as error:
                self._halt(error)
                return
            except Error as error:
                self._report(source.name, error)
                await self._sleep(pause)
                pause = min(2 * pause, LONGEST_SECONDS)
                continue
            pause = SHORTEST_SECONDS
            this.signatures[source.name] = signature
            if len(this.signatures) >= self._quorum:
                this.done.set()

    def _wanted(self, source: AnchorSource) -> bool:
        this = self._round
        return this is not None and not this.done.is_set() and source.name not in this.signatures

    async def _countersigned(self, source: AnchorSource, head: Head) -> bytes:
        steps = source.countersign(head)
        try:
            ask = next(steps)
            while True:
                ask = steps.send(await self._exchange(source.name, ask.path, ask.body))
        except StopIteration as end:
            signature: bytes = end.value
            return signature
        finally:
            steps.close()

    def _halt(self, error: RollbackError) -> None:
        if self._fork is None:
            self._fork = error
            self._tell_forked(error)
        if self._round is not None:
            self._round.done.set()
