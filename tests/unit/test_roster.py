"""Rosters: who counts, for which versions, and who waits."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests._witness import turns

from conclave._codec import encode
from conclave._crypto import sha256
from conclave.enclave import NotInRoster, Roster, WrongInstance, WrongRoster
from conclave.enclave._roster import MAX_MEMBERS, Rosters

pytestmark = pytest.mark.anyio
A, B, C, STRANGER = (letter * 32 for letter in (b"a", b"b", b"c", b"s"))
DIGEST = b"d" * 64


def declared(quorum: int = 2) -> Roster:
    return Roster((A, B, C), quorum, DIGEST)


# Without state -------------------------------------------------------------------------


@pytest.mark.spec("BAR-2", "BAR-4")
async def test_members_acknowledge_one_instance() -> None:
    roster = declared()
    waiting = asyncio.create_task(roster.stable())
    await turns()
    roster.acknowledge(A, DIGEST)
    roster.acknowledge(A, DIGEST)
    with pytest.raises(NotInRoster):
        roster.acknowledge(STRANGER, DIGEST)
    with pytest.raises(WrongInstance):
        roster.acknowledge(B, b"e" * 64)
    await turns()
    assert not waiting.done()
    assert not roster.complete
    # A renewed key is the same boot.
    roster.renewed(b"e" * 64)
    roster.acknowledge(B, b"e" * 64)
    assert roster.complete
    await waiting
    await roster.stable()


@pytest.mark.spec("BAR-2")
async def test_without_a_roster_nothing_is_stable() -> None:
    roster = Roster((), 0, DIGEST)
    assert not roster.complete
    assert not roster.reached(0)
    for version in (None, 0):
        with pytest.raises(RuntimeError, match="declares no roster"):
            await roster.stable(version)


# With state ----------------------------------------------------------------------------


@pytest.mark.spec("BAR-3")
async def test_members_come_back_with_a_version() -> None:
    roster = declared()
    waiting = {version: asyncio.create_task(roster.stable(version)) for version in (0, 3, 5)}
    await turns()
    roster.seen(A, 5)
    # Older mail of the same member takes nothing back, and the same member counts once.
    roster.seen(A, 1)
    roster.seen(A, 9)
    await turns()
    assert not any(task.done() for task in waiting.values())
    roster.seen(B, 3)
    await turns()
    assert [version for version, task in waiting.items() if task.done()] == [0, 3]
    assert roster.reached(3)
    assert not roster.reached(4)
    roster.seen(STRANGER, 100)
    roster.seen(C, 4)
    await turns()
    assert not waiting[5].done()
    roster.seen(C, 5)
    await waiting[5]
    await roster.stable(5)
    assert not roster._waiting


@pytest.mark.spec("BAR-2", "BAR-3")
async def test_the_two_barriers_do_not_open_one_another() -> None:
    roster = declared()
    instance, version = asyncio.create_task(roster.stable()), asyncio.create_task(roster.stable(1))
    await turns()
    for member in (A, B, C):
        roster.seen(member, 0)
        roster.acknowledge(member, DIGEST)
    await turns()
    assert (instance.done(), version.done()) == (True, False)
    other = declared()
    for member in (A, B, C):
        other.seen(member, 1)
    assert not other.complete
    version.cancel()


# From a mail ---------------------------------------------------------------------------


@pytest.mark.spec("BAR-1")
def test_a_digest_names_members_and_quorum() -> None:
    roster = Roster.of([B, A, C], 2)
    assert roster.digest == sha256(b"conclave/1 roster\0" + encode([2, [A, B, C]]))
    assert roster.digest == Roster.of([C, B, A], 2).digest == declared().digest
    assert len({roster.digest, Roster.of([A, B, C], 3).digest, Roster.of([A, B], 2).digest}) == 3


@pytest.mark.spec("BAR-1", "BAR-4")
async def test_only_who_agreed_counts() -> None:
    roster = Roster.of([A, B, C], 2)
    waiting = asyncio.create_task(roster.stable(3))
    await turns()
    for member in (A, B, C):
        roster.seen(member, 3)
    await turns()
    assert not roster.reached(0)
    roster.agree(A, roster.digest)
    roster.agree(A, roster.digest)
    with pytest.raises(WrongRoster):
        roster.agree(B, Roster.of([A, B, C], 1).digest)
    with pytest.raises(NotInRoster):
        roster.agree(STRANGER, roster.digest)
    await turns()
    assert not waiting.done()
    # First agreed, then come back, or the other way round.
    roster.agree(C, roster.digest)
    await waiting
    assert not roster.reached(4)
    roster.seen(A, 4)
    roster.seen(B, 4)
    assert not roster.reached(4)
    roster.seen(C, 7)
    assert roster.reached(4)


async def test_a_roster_from_a_mail_is_waited_for_with_a_version() -> None:
    roster = Roster.of([A], 1)
    with pytest.raises(RuntimeError, match="with a version"):
        await roster.stable()
    with pytest.raises(WrongInstance):
        roster.acknowledge(A, DIGEST)
    assert not roster.complete


@pytest.mark.parametrize(
    ("members", "quorum", "said"),
    [
        ([], 0, "1 to"),
        ([A, A], 1, "each once"),
        ([A, b"short"], 1, "32 bytes"),
        ([A, "a" * 32], 1, "32 bytes"),
        ([A, B], 0, "got 0"),
        ([A, B], 3, "number of members, 2; got 3"),
        ([i.to_bytes(32, "big") for i in range(MAX_MEMBERS + 1)], 1, "100000 members"),
    ],
)
def test_rosters_that_cannot_be(members: list[Any], quorum: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Roster.of(members, quorum)


# Waiting -------------------------------------------------------------------------------


@pytest.mark.spec("BAR-6")
async def test_members_counted_in_other_threads() -> None:
    roster = Roster([i.to_bytes(32, "big") for i in range(400)], 400, DIGEST)
    waiting = [asyncio.create_task(roster.stable(version)) for version in (None, 1, 1)]
    await turns()

    def count(start: int) -> None:
        for i in range(start, 400, 4):
            roster.seen(i.to_bytes(32, "big"), 1)
            roster.acknowledge(i.to_bytes(32, "big"), DIGEST)

    threads = [threading.Thread(target=count, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.gather(*waiting)
    for thread in threads:
        thread.join()


@pytest.mark.spec("BAR-6")
async def test_who_gives_up_leaves_nothing() -> None:
    roster = declared()
    for version in (None, 1):
        waiting = asyncio.create_task(roster.stable(version))
        await turns()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert not roster._waiting
    # Cancelled in the turn in which it was to go on.
    waiting = asyncio.create_task(roster.stable(1))
    await turns()
    roster.seen(A, 1)
    roster.seen(B, 1)
    waiting.cancel()
    await turns()
    assert waiting.cancelled()
    assert not roster._waiting


@pytest.mark.spec("BAR-3", "BAR-1")
@given(st.lists(st.tuples(st.sampled_from((A, B, C, STRANGER)), st.integers(0, 4), st.booleans()), max_size=12))
def test_a_barrier_opens_exactly_when_a_quorum_is_there(events: list[tuple[bytes, int, bool]]) -> None:
    async def play() -> None:
        roster = Roster.of([A, B, C], 2)
        waiting = {version: asyncio.create_task(roster.stable(version)) for version in range(5)}
        await turns(3)
        newest: dict[bytes, int] = {}
        agreed = set()
        for who, version, agrees in events:
            if agrees and who != STRANGER:
                roster.agree(who, roster.digest)
                agreed.add(who)
            elif not agrees:
                roster.seen(who, version)
                newest[who] = max(version, newest.get(who, -1))
            await turns(3)
            for wanted, task in waiting.items():
                there = sum(newest.get(member, -1) >= wanted for member in agreed) >= 2
                assert task.done() == roster.reached(wanted) == there
        for task in waiting.values():
            task.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)

    asyncio.run(play())


# All of an enclave's ---------------------------------------------------------------------


@pytest.mark.spec("BAR-3", "BAR-4", "BAR-5")
def test_each_roster_hears_of_its_members_as_long_as_it_is_there() -> None:
    bundle = declared()
    rosters = Rosters(bundle)
    rosters.seen(A, 1)
    mine, other = Roster.of([A, STRANGER], 1), Roster.of([B], 1)
    for roster in (mine, mine, other):
        rosters.watch(roster)
    for member, version in ((A, 2), (B, 3), (STRANGER, 4), (b"x" * 32, 9)):
        rosters.seen(member, version)
    assert bundle._versions == {A: 2, B: 3}
    assert mine._versions == {A: 2, STRANGER: 4}
    assert other._versions == {B: 3}
    del mine, other, roster
    gc.collect()
    rosters.seen(A, 5)
    rosters.watch(Roster.of([C], 1))
    assert set(rosters._of) == {A, B, C}
    assert all(len(known) == 1 for member, known in rosters._of.items() if member != C)
    assert bundle._versions[A] == 5
