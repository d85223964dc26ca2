"""T-50, T-51, T-52: an operator with several enclaves of one log, and who stands between them and their witnesses."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from tests._witness import Branch, Desk, turns

from conclave import _codec
from conclave._crypto import ZERO_DIGEST, SigningKey
from conclave.enclave import NotInRoster, Roster, WrongRoster
from conclave.enclave._anchors import Anchors
from conclave.errors import Error, FormatError, SignatureError, TransportError
from conclave.host.answers import Refusal
from conclave.host.stores import open_store
from conclave.persistence.witness import (
    ADVANCE_PATH,
    MAX_MESSAGE,
    AdvanceRequest,
    Anchor,
    Answer,
    ForkWitnessed,
    Head,
    Standing,
    Step,
    advance_request,
    countersign,
    log_id_of,
    make_answer,
)
from conclave.witness.ledger import Bounds, Ledger

pytestmark = pytest.mark.anyio
LOG = SigningKey(b"l" * 32)
LOG_ID = log_id_of(LOG.public)
NONCE = bytes(32)
Network = Callable[[str, str, bytes], Awaitable[bytes]]


def desks() -> dict[str, Desk]:
    return {name: Desk(name, SigningKey(name.encode() * 32)) for name in "abc"}


def network(towers: dict[str, Desk]) -> Network:
    """A host that behaves."""

    async def exchange(name: str, path: str, body: bytes) -> bytes:
        await asyncio.sleep(0)
        return towers[name].handle(path, body)

    return exchange


class Victim:
    """An enclave of the log, whose host is the test's."""

    def __init__(self, branch: Branch, towers: dict[str, Desk], exchange: Network, *, quorum: int = 2) -> None:
        self.branch = branch
        self.keys = {name: desk.key.public.hex() for name, desk in towers.items()}
        self.reports: list[tuple[str, Error]] = []

        async def newest(version: int | None) -> Head:
            return branch.newest

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(0)

        self.anchors = Anchors(
            [branch.client(desk) for desk in towers.values()],
            quorum,
            log_id=LOG_ID,
            newest=newest,
            exchange=exchange,
            report=lambda name, error: self.reports.append((name, error)),
            sleep=sleep,
        )

    async def anchored(self) -> Anchor:
        async with asyncio.timeout(20):
            return await self.anchors.anchored()

    async def stuck(self, count: int = 200) -> None:
        """It never gets its anchor, and does not halt."""
        waiting = asyncio.create_task(self.anchors.anchored())
        await turns(count)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert self.anchors._fork is None
        await self.anchors.close()


# Forks ---------------------------------------------------------------------------------


@pytest.mark.spec("T-50", "WIT-5", "WIT-13")
@pytest.mark.parametrize("order", sorted(set(itertools.permutations("AABB"))))
def test_two_forks_at_one_witness_in_every_order(order: tuple[str, ...]) -> None:
    """Each asks where the log stands, and then to go on: six ways to meet, and one of the two goes on in each."""
    start, desk = Branch(LOG), Desk()
    branches = {name: Branch(LOG, start) for name in "AB"}
    steps = {name: branch.client(desk).countersign(branch.newest) for name, branch in branches.items()}
    asks = {name: next(some) for name, some in steps.items()}
    ends: dict[str, object] = {}
    for name in (*order, "A", "B"):
        if name in ends:
            continue
        try:
            asks[name] = steps[name].send(desk.handle(asks[name].path, asks[name].body))
        except StopIteration:
            ends[name] = "anchored"
        except ForkWitnessed as fork:
            ends[name] = fork.standing.step.new
    assert sorted(map(str, ends.values())).count("anchored") == 1
    (winner,) = [branch for name, branch in branches.items() if ends[name] == "anchored"]
    assert winner.newest in ends.values()


@pytest.mark.spec("T-50", "WIT-11", "WIT-12")
@pytest.mark.parametrize("first", sorted(itertools.product("AB", repeat=3)))
async def test_the_host_chooses_who_reaches_which_witness_first(first: tuple[str, ...]) -> None:
    start, towers = Branch(LOG), desks()
    branches = {name: Branch(LOG, start) for name in "AB"}
    for name, tower in zip(first, towers.values(), strict=True):
        steps = branches[name].client(tower).countersign(branches[name].newest)
        ask = next(steps)
        tower.handle(*_of(steps.send(tower.handle(*_of(ask)))))
        steps.close()
    anchored = 0
    for branch in branches.values():
        victim = Victim(branch, towers, network(towers))
        try:
            (await victim.anchored()).verify(victim.keys, 2, log_id=LOG_ID, version=1)
            anchored += 1
        except ForkWitnessed:
            pass
        await victim.anchors.close()
    assert anchored <= 1


def _of(ask: object) -> tuple[str, bytes]:
    return ask.path, ask.body  # type: ignore[attr-defined]


@pytest.mark.spec("T-50", "WIT-12", "WIT-13")
async def test_an_old_fork_comes_late() -> None:
    towers = desks()
    branch = Branch(LOG)
    for _ in range(5):
        branch.commit()
    victim = Victim(branch, towers, network(towers))
    await victim.anchored()
    await victim.anchors.close()
    for upto in range(5):
        late = Victim(Branch(LOG, branch, upto=upto), towers, network(towers))
        # However far it goes on by itself first.
        for _ in range(upto):
            late.branch.commit()
        with pytest.raises(ForkWitnessed):
            await late.anchored()
        await late.anchors.close()
    # The one that has all of it goes on.
    honest = Victim(Branch(LOG, branch), towers, network(towers))
    assert (await honest.anchored()).version == 6
    await honest.anchors.close()


@pytest.mark.spec("T-50", "BAR-1", "BAR-3")
def test_a_poll_that_is_forked_once_for_each_voter_tells_nothing() -> None:
    """Each voter has a fork of its own, filled with invented ones: in none of them does a quorum come back."""
    voters = [bytes([number]) * 32 for number in range(5)]
    invented = [bytes([100 + number]) * 32 for number in range(5)]
    for own in voters:
        roster = Roster.of(voters, 3)
        roster.agree(own, roster.digest)
        roster.seen(own, 10)
        for stranger in invented:
            with pytest.raises(NotInRoster):
                roster.agree(stranger, roster.digest)
            roster.seen(stranger, 10)
        assert not roster.reached(0)
    # A roster that the operator mails itself is one that no voter agreed to.
    forged = Roster.of([voters[0], *invented], 5)
    for stranger in invented:
        forged.agree(stranger, forged.digest)
        forged.seen(stranger, 10)
    with pytest.raises(WrongRoster):
        forged.agree(voters[0], Roster.of(voters, 3).digest)


@pytest.mark.spec("T-50", "BAR-3")
def test_members_who_did_not_agree_do_not_stand_behind_a_poll_by_coming_back() -> None:
    """The operator names real people, whom other business brings back to this history; one alone takes part."""
    voters = [bytes([number]) * 32 for number in range(3)]
    roster = Roster.of(voters, 2)
    for voter in voters:
        roster.seen(voter, 10)
    roster.agree(voters[0], roster.digest)
    assert not roster.reached(0)
    roster.agree(voters[1], roster.digest)
    assert roster.reached(10)
    assert not roster.reached(11)


# The host between ------------------------------------------------------------------------


@pytest.mark.spec("T-51", "WIT-2", "WIT-14")
@pytest.mark.parametrize("how", ["replayed", "swapped", "empty", "cut", "the request", "another log's", "withheld"])
async def test_a_host_that_plays_with_answers(how: str) -> None:
    """It gets no anchor by it, and halts nobody: only what a witness signed for this request counts."""
    towers = desks()
    other = {name: Desk(name, desk.key) for name, desk in towers.items()}
    branch = Branch(LOG)
    kept: dict[str, bytes] = {}

    async def exchange(name: str, path: str, body: bytes) -> bytes:
        await asyncio.sleep(0)
        if how == "withheld":
            towers[name].handle(path, body)
            raise TransportError("nothing")
        if how == "swapped":
            return towers["abcab"["abc".index(name) + 1]].handle(path, body)
        if how == "another log's":
            stranger = Branch(SigningKey.generate())
            steps = stranger.client(other[name]).countersign(stranger.newest)
            return other[name].handle(*_of(next(steps)))
        answer = towers[name].handle(path, body)
        if how == "replayed":
            # The first one where it belongs, and then again and again.
            return kept.setdefault(name, answer)
        return {"empty": b"", "cut": answer[:-1], "the request": body}[how]

    victim = Victim(branch, towers, exchange)
    await victim.stuck()
    assert {name for name, _ in victim.reports} == {"a", "b", "c"}
    kinds = {type(error) for _, error in victim.reports}
    assert kinds <= {FormatError, SignatureError, TransportError}
    # And nothing of it kept the log from going on with a host that behaves.
    honest = Victim(branch, towers, network(towers))
    assert (await honest.anchored()).version == 0
    await honest.anchors.close()


@pytest.mark.spec("T-51", "WIT-4", "WIT-6")
async def test_a_host_that_brings_old_requests_back() -> None:
    """Recorded requests, to any witness, in any order, as often as it likes: no witness goes back or aside."""
    towers, recorded = desks(), []
    branch = Branch(LOG)

    async def exchange(name: str, path: str, body: bytes) -> bytes:
        recorded.append((path, body))
        return await network(towers)(name, path, body)

    victim = Victim(branch, towers, exchange)
    for _ in range(4):
        await victim.anchored()
        branch.commit()
    await victim.anchors.close()
    before = {name: list(desk.countersigned) for name, desk in towers.items()}
    for path, body in (*recorded, *reversed(recorded)):
        for desk in towers.values():
            desk.handle(path, body)
    for name, desk in towers.items():
        assert desk.countersigned[: len(before[name])] == before[name]
        assert [head.version for head in desk.countersigned] == sorted({head.version for head in desk.countersigned})
        assert all(head in branch.heads for head in desk.countersigned)


# Witnesses that lie ----------------------------------------------------------------------


class Liar(Desk):
    """Holds its own key and signs whatever helps; it has no log's key."""

    def handle(self, path: str, body: bytes) -> bytes:
        request = _codec.decode(AdvanceRequest, body, max_size=MAX_MESSAGE, what="x") if path == ADVANCE_PATH else None
        nonce = body[-32:]
        step = Step(log_key=LOG.public, previous=None, new=Head(version=9, boot=b"?" * 16, digest=bytes(32)))
        signature = bytes(64)
        if request is not None:
            # A step that the log did sign, with another end under it.
            signature = request.signature
        invented = Standing(step=step, signature=signature, countersignature=countersign(self.key, LOG_ID, step.new))
        return make_answer(self.key, log_key=LOG.public, nonce=nonce, standing=invented)


@pytest.mark.spec("T-51", "WIT-2", "WIT-13")
async def test_a_lying_witness_halts_nobody_and_is_not_needed() -> None:
    towers = desks()
    towers["a"] = Liar("a", towers["a"].key)
    branch = Branch(LOG)
    victim = Victim(branch, towers, network(towers))
    anchor = await victim.anchored()
    anchor.verify(victim.keys, 2, log_id=LOG_ID, version=0)
    await turns()
    assert {name for name, _ in victim.reports} == {"a"}
    assert {error.code for _, error in victim.reports} == {"signature"}
    await victim.anchors.close()
    # Two of them out of three are as good as none.
    towers["b"] = Liar("b", towers["b"].key)
    await Victim(branch, towers, network(towers)).stuck()


@pytest.mark.spec("T-51", "WIT-16")
def test_a_client_is_not_shown_signatures_of_other_things() -> None:
    towers = desks()
    head = Branch(LOG).newest
    body = _codec.encode({"log_id": LOG_ID, "head": head})
    made = [
        {"witness": name, "signature": desk.key.sign(purpose, ZERO_DIGEST, body)}
        for (name, desk), purpose in zip(towers.items(), ("head", "anchor", "checkpoint"), strict=True)
    ]
    plain = {"log_id": LOG_ID, "version": head.version, "boot": head.boot, "digest": head.digest}
    anchor = Anchor.parse(_codec.encode({**plain, "countersignatures": made}))
    with pytest.raises(SignatureError, match="0 of these witnesses"):
        anchor.verify({name: desk.key.public.hex() for name, desk in towers.items()}, 2, log_id=LOG_ID, version=0)


# Strangers -------------------------------------------------------------------------------


@pytest.mark.spec("T-52", "WIT-3", "WIT-6")
def test_nobody_speaks_in_another_logs_name() -> None:
    desk, branch = Desk(), Branch(LOG)
    client = branch.client(desk)
    first = next(client.countersign(branch.newest))
    desk.handle(*_of(first))
    steps = client.countersign(branch.newest)
    advance = steps.send(desk.handle(*_of(next(steps))))
    good = _codec.decode(AdvanceRequest, advance.body, max_size=MAX_MESSAGE, what="x")
    stranger = SigningKey.generate()
    later = msgspec.structs.replace(good.step.new, version=7)
    for wrong in (
        msgspec.structs.replace(good, step=msgspec.structs.replace(good.step, new=later)),
        msgspec.structs.replace(good, signature=stranger.sign("anchor", ZERO_DIGEST, _codec.encode(good.step))),
        msgspec.structs.replace(good, signature=LOG.sign("app", ZERO_DIGEST, _codec.encode(good.step))),
    ):
        with pytest.raises(SignatureError):
            desk.handle(ADVANCE_PATH, _codec.encode(wrong))
    assert not desk.logs
    answer = _codec.decode(Answer, desk.handle(*_of(advance)), max_size=MAX_MESSAGE, what="x")
    assert answer.standing is not None
    assert desk.countersigned == [branch.newest]


@pytest.mark.spec("T-52", "WIT-9")
async def test_strangers_fill_no_witness_and_use_up_nobodys_share(tmp_path: Path) -> None:
    """One makes logs without end, and with each as many steps as it can; the log that was there goes on."""
    store, second = open_store(f"file:{tmp_path / 'witness'}"), 0.0
    bounds = Bounds(logs=20, new_per_second=1, new_at_once=5, steps_per_second=1, steps_at_once=3)
    witness = Ledger(store, SigningKey(b"w" * 32), bounds=bounds, now=lambda: second)
    await witness.start()

    async def step(branch: Branch) -> str:
        """Its next version, as all that it says so far; how the witness answers."""
        previous, new = (branch.heads[-2], branch.newest) if len(branch.heads) > 1 else (None, branch.newest)
        request = advance_request(branch.anchor, Step(log_key=branch.anchor.public, previous=previous, new=new), NONCE)
        try:
            taken, _ = await witness.advance(_codec.encode(request))
        except Refusal as refusal:
            return refusal.word
        branch.commit()
        return "taken" if taken else "stands elsewhere"

    honest = Branch(LOG)
    assert await step(honest) == "taken"
    strangers = [Branch(SigningKey.generate()) for _ in range(40)]
    assert [await step(stranger) for stranger in strangers[:10]] == ["taken"] * 4 + ["rate"] * 6
    assert [await step(strangers[0]) for _ in range(5)] == ["taken"] * 2 + ["rate"] * 3
    assert await step(honest) == "taken"
    said = []
    for stranger in strangers[10:]:
        second += 1
        said.append(await step(stranger))
    assert said == ["taken"] * 15 + ["full"] * 15
    assert len(await store.list("")) == 20
    assert await step(honest) == "taken"
    await store.close()
