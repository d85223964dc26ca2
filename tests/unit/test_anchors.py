"""Rounds of witnesses: shared, repeated, robust, and halted by proof alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests._witness import Branch, Desk, turns

from conclave import _codec
from conclave._crypto import SigningKey
from conclave._framing import Frame, Kind
from conclave.enclave._anchors import LONGEST_SECONDS, SHORTEST_SECONDS, Anchors, exchange_by
from conclave.enclave._fetches import Fetch, Fetches
from conclave.errors import Error, FormatError, RollbackError, TransportError
from conclave.persistence.witness import ForkWitnessed, Head, log_id_of

pytestmark = pytest.mark.anyio


class Boot:
    """One boot of an enclave with three witnesses, whose network the test holds."""

    def __init__(self, *, quorum: int = 2, branch: Branch | None = None, desks: list[Desk] | None = None) -> None:
        self.branch = branch or Branch(SigningKey.generate())
        self.desks = {desk.name: desk for desk in desks or [Desk(name) for name in "abc"]}
        self.keys = {name: desk.key.public.hex() for name, desk in self.desks.items()}
        self.quorum = quorum
        self.log_id = log_id_of(self.branch.anchor.public)
        self.asked: list[str] = []
        self.down: dict[str, Error] = {}
        self.reports: list[tuple[str, str]] = []
        self.forks: list[RollbackError] = []
        self.rests: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.slow: dict[str, asyncio.Event] = {}
        self.pauses: Callable[[], bool] = lambda: True
        self.anchors = Anchors(
            [self.branch.client(desk) for desk in self.desks.values()],
            quorum,
            log_id=self.log_id,
            newest=self.newest,
            exchange=self.exchange,
            report=lambda name, error: self.reports.append((name, error.code)),
            forked=self.forks.append,
            sleep=self.sleep,
        )

    async def newest(self, version: int | None) -> Head:
        while version is not None and version > self.branch.newest.version:
            await asyncio.sleep(0)
        return self.branch.newest

    async def exchange(self, name: str, path: str, body: bytes) -> bytes:
        self.asked.append(name)
        await self.gate.wait()
        if name in self.slow:
            await self.slow[name].wait()
        await asyncio.sleep(0)
        if name in self.down:
            raise self.down[name]
        return self.desks[name].handle(path, body)

    async def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        await asyncio.sleep(0)

    async def anchored(self, version: int | None = None) -> Head:
        anchor = await self.anchors.anchored(version)
        anchor.verify(self.keys, self.quorum, log_id=self.log_id, version=0 if version is None else version)
        return Head(version=anchor.version, boot=anchor.boot, digest=anchor.digest)


@pytest.mark.spec("WIT-12", "WIT-15")
async def test_an_anchor_is_of_the_newest_durable_state() -> None:
    boot = Boot()
    assert await boot.anchored() == boot.branch.newest
    asked = len(boot.asked)
    assert await boot.anchored() == await boot.anchored(0) == boot.branch.newest
    assert len(boot.asked) == asked
    later = asyncio.create_task(boot.anchored(2))
    await turns()
    assert not later.done()
    boot.branch.commit()
    # Who waits for a version that does not come holds up nobody.
    assert (await boot.anchored()).version == 1
    boot.branch.commit()
    assert (await later).version == 2
    await boot.anchors.close()


@pytest.mark.spec("WIT-15")
async def test_all_who_wait_share_a_round() -> None:
    boot = Boot(quorum=3)
    boot.gate.clear()
    first = [asyncio.create_task(boot.anchored()) for _ in range(5)]
    await turns()
    boot.branch.commit()
    boot.branch.commit()
    second = [asyncio.create_task(boot.anchored(version)) for version in (1, 2, 2, 1)]
    await turns()
    boot.gate.set()
    assert {head.version for head in await asyncio.gather(*first)} <= {0, 2}
    assert {head.version for head in await asyncio.gather(*second)} == {2}
    # Two states at three witnesses, and the question where the log stands.
    assert len(boot.asked) == 9
    await boot.anchors.close()


@pytest.mark.spec("WIT-14")
async def test_a_witness_that_is_down_holds_up_nobody_and_is_tried_again() -> None:
    boot = Boot()
    boot.down["b"] = TransportError("down")
    assert (await boot.anchored()).version == 0
    boot.down["a"] = TransportError("down")
    boot.branch.commit()
    waiting = asyncio.create_task(boot.anchored(1))
    await turns(300)
    assert not waiting.done()
    assert {name for name, _ in boot.reports} == {"a", "b"}
    assert min(boot.rests) == SHORTEST_SECONDS
    assert max(boot.rests) == LONGEST_SECONDS
    del boot.down["b"]
    assert (await waiting).version == 1
    await boot.anchors.close()


@pytest.mark.spec("WIT-14")
async def test_a_slow_witness_goes_on_with_the_round_of_today() -> None:
    boot = Boot()
    boot.slow["c"] = asyncio.Event()
    for version in range(5):
        assert (await boot.anchored(version)).version == version
        boot.branch.commit()
    # It was asked once, and has one exchange under way, whatever the others did meanwhile.
    assert boot.asked.count("c") == 1
    boot.slow.pop("c").set()
    boot.down["a"] = TransportError("down")
    assert (await boot.anchored(5)).version == 5
    await boot.anchors.close()


@pytest.mark.spec("WIT-13", "WIT-14")
async def test_a_witness_that_lies_is_reported_and_stops_nothing() -> None:
    boot = Boot()
    honest = boot.desks["a"].key
    boot.desks["a"].key = SigningKey.generate()
    boot.down["b"] = FormatError("no answer of ours")
    waiting = asyncio.create_task(boot.anchored())
    await turns()
    assert not waiting.done()
    assert set(boot.reports) == {("a", "signature"), ("b", "format")}
    del boot.down["b"]
    assert (await waiting).version == 0
    assert not boot.forks
    boot.desks["a"].key = honest
    await boot.anchors.close()


@pytest.mark.spec("WIT-13")
async def test_proof_of_a_fork_halts_for_good() -> None:
    boot = Boot()
    await boot.anchored()
    before = boot.branch
    await boot.anchors.close()
    twin = Boot(branch=Branch(before.anchor, before), desks=list(boot.desks.values()))
    boot = Boot(branch=Branch(before.anchor, before), desks=list(twin.desks.values()))
    assert await twin.anchored() == twin.branch.newest
    waiting = [asyncio.create_task(boot.anchored()) for _ in range(3)]
    for task in waiting:
        with pytest.raises(ForkWitnessed):
            await task
    assert len(boot.forks) == 1
    asked = len(boot.asked)
    with pytest.raises(ForkWitnessed):
        await boot.anchored(0)
    assert len(boot.asked) == asked
    for some in (boot, twin):
        await some.anchors.close()


@pytest.mark.spec("WIT-13")
async def test_a_fork_that_the_slowest_witness_knows_halts_too() -> None:
    boot = Boot()
    await boot.anchored()
    twin = Boot(branch=Branch(boot.branch.anchor, boot.branch), desks=list(boot.desks.values()))
    other = Boot(branch=Branch(boot.branch.anchor, boot.branch), desks=list(boot.desks.values()))
    other.slow["c"] = asyncio.Event()
    twin.down = {"a": TransportError("down"), "b": TransportError("down")}
    waiting = asyncio.create_task(twin.anchored())
    await turns()
    assert await other.anchored() == other.branch.newest
    assert not other.forks
    other.slow["c"].set()
    await turns()
    assert len(other.forks) == 1
    other.branch.commit()
    with pytest.raises(ForkWitnessed):
        await other.anchored()
    waiting.cancel()
    for some in (boot, twin, other):
        await some.anchors.close()


async def test_who_gives_up_waiting_stops_no_round() -> None:
    boot = Boot()
    boot.gate.clear()
    first, second = asyncio.create_task(boot.anchored()), asyncio.create_task(boot.anchored())
    await turns()
    first.cancel()
    await turns()
    boot.gate.set()
    assert (await second).version == 0
    await boot.anchors.close()


# Through the host ------------------------------------------------------------------------


@pytest.mark.spec("WIT-10", "CHAN-12")
async def test_exchanges_through_the_host() -> None:
    sent: list[tuple[int, bytes]] = []
    fetches = Fetches(lambda kind, number, payload: sent.append((number, payload)))
    exchange = exchange_by(fetches)

    async def said(payload: bytes) -> bytes:
        task = asyncio.ensure_future(exchange("tower", "/witness/head", b"body"))
        count = len(sent)
        while len(sent) == count:
            await asyncio.sleep(0)
        fetches.fetched(Frame(Kind.FETCHED, sent[-1][0], payload))
        return await task

    assert await said(b"\0\xc8yes") == b"yes"
    assert await said((409).to_bytes(2, "big") + b"no") == b"no"
    assert _codec.decode(Fetch, sent[0][1], max_size=1000, what="x") == Fetch(
        url="witness:tower", method="POST", path="/witness/head", body=b"body"
    )
    with pytest.raises(TransportError, match="status 429"):
        await said((429).to_bytes(2, "big") + b'{"error": "rate"}')
    with pytest.raises(TransportError, match="--witness"):
        await said(b"\0\0refused")
