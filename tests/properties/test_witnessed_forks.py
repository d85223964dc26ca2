"""Two forks of one state are never both anchored, whatever the host does, and in whatever order.

The real code of enclaves and witnesses; the host of the schedules forks enclaves, loses, repeats
and misroutes requests and answers. Witnesses of the last kind forget, as restored backups do.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._witness import Branch, Desk, run

from conclave._crypto import SigningKey
from conclave.errors import FormatError, SignatureError, VerificationError
from conclave.persistence.witness import Ask, ForkWitnessed, Head, Standing, WitnessClient

LOG = SigningKey(b"l" * 32)
Steps = Generator[Ask, bytes, bytes]
KEYS = [SigningKey(bytes([number]) * 32) for number in range(1, 5)]


@dataclass
class Life:
    """One branch that runs, and what it is asking of each witness."""

    branch: Branch
    clients: list[WitnessClient]
    wanted: Head
    halted: bool = False
    going: dict[int, tuple[Head, Steps, Ask]] = field(default_factory=dict)
    signed: dict[Head, set[int]] = field(default_factory=dict)


class World:
    """One log, its forks, its witnesses, and a host that may do anything."""

    def __init__(self, witnesses: int, quorum: int, forgetful: int) -> None:
        self.desks = [Desk(f"w{number}", KEYS[number]) for number in range(witnesses)]
        self.quorum = quorum
        self.forgetful = forgetful
        self.lives: list[Life] = []
        self.asks: list[Ask] = []
        self.answers: list[bytes] = []
        self.backups: list[dict[bytes, Standing]] = [{}]
        self.anchored: list[tuple[Life, Head]] = []
        self.begin(Branch(LOG))

    def begin(self, branch: Branch) -> None:
        self.lives.append(Life(branch, [branch.client(desk) for desk in self.desks], branch.newest))

    def play(self, action: int, who: int, what: int, how: int) -> None:
        life = self.lives[who % len(self.lives)]
        if action == 0:
            self.begin(Branch(LOG, life.branch, upto=what % len(life.branch.heads)))
        elif action == 1:
            life.branch.commit()
        elif action == 2 and self.asks:
            ask = self.asks[how % len(self.asks)]
            self.answers.append(self.desks[what % len(self.desks)].handle(ask.path, ask.body))
        elif action == 3 and self.forgetful:
            desk = self.desks[what % self.forgetful]
            self.backups.append(dict(desk.logs))
            desk.logs = dict(self.backups[how % len(self.backups)])
        elif not life.halted:
            self.exchange(life, what % len(self.desks), how)

    def exchange(self, life: Life, number: int, how: int) -> None:
        if number not in life.going:
            if number in life.signed.get(life.wanted, ()):
                life.wanted = life.branch.newest
            self.step(life, number, life.wanted, life.clients[number].countersign(life.wanted), None)
            return
        head, steps, ask = life.going.pop(number)
        self.asks.append(ask)
        way = how % 8
        if way == 0:
            steps.close()
        elif way == 1:
            self.answers.append(self.desks[number].handle(ask.path, ask.body))
            steps.close()
        elif way == 2 and self.answers:
            self.step(life, number, head, steps, self.answers[(how // 8) % len(self.answers)])
        else:
            desk = self.desks[(number + how // 8) % len(self.desks) if way == 3 else number]
            self.answers.append(desk.handle(ask.path, ask.body))
            self.step(life, number, head, steps, self.answers[-1])

    def step(self, life: Life, number: int, head: Head, steps: Steps, answer: bytes | None) -> None:
        caught = None
        try:
            life.going[number] = head, steps, next(steps) if answer is None else steps.send(answer)
        except StopIteration:
            signed = life.signed.setdefault(head, set())
            signed.add(number)
            if len(signed) >= self.quorum:
                self.anchored.append((life, head))
        except ForkWitnessed as fork:
            caught = fork.standing.step.new
            life.halted = True
        except (FormatError, SignatureError):
            # The host gave another answer than the one to this.
            pass
        except VerificationError:
            assert self.forgetful
        # No false alarm: what stopped it is not of its history.
        assert caught not in life.branch.heads

    def check(self) -> None:
        for desk in self.desks[self.forgetful :]:
            for earlier, later in zip(desk.countersigned, desk.countersigned[1:], strict=False):
                assert self.continues(later, earlier)
        heads = [head for _, head in self.anchored]
        for one in heads:
            for other in heads:
                assert self.continues(one, other) or self.continues(other, one), "two forks are anchored"

    def continues(self, later: Head, earlier: Head) -> bool:
        """Whether one state comes after the other, or is the same, in one history."""
        histories = [life.branch.heads for life in self.lives if later in life.branch.heads]
        return any(earlier in heads and heads.index(earlier) <= heads.index(later) for heads in histories)


SCHEDULES = st.lists(
    st.tuples(
        st.sampled_from((0, 1, 2, 3, 4, 4, 4, 4, 4, 4)), st.integers(0, 5), st.integers(0, 9), st.integers(0, 63)
    ),
    min_size=20,
    max_size=120,
)


@pytest.mark.spec("WIT-5", "WIT-6", "WIT-11", "WIT-12", "WIT-13")
@pytest.mark.parametrize(("witnesses", "quorum", "forgetful"), [(1, 1, 0), (3, 2, 0), (4, 3, 1), (3, 3, 2)])
@given(schedule=SCHEDULES)
@settings(max_examples=150, deadline=None)
def test_no_schedule_anchors_two_forks(
    witnesses: int, quorum: int, forgetful: int, schedule: list[tuple[int, int, int, int]]
) -> None:
    world = World(witnesses, quorum, forgetful)
    for event in schedule:
        world.play(*event)
    world.check()


def test_such_schedules_anchor_something() -> None:
    """A host that only forks and delivers: one of the two is anchored, and the other halts."""
    world = World(3, 2, 0)
    world.play(0, 0, 0, 0)
    for _ in range(6):
        for who in (1, 0):
            for number in range(3):
                world.play(4, who, number, 4)
    assert len({head for _, head in world.anchored}) == 1
    assert sum(life.halted for life in world.lives) == 1
    world.check()


@pytest.mark.spec("WIT-11")
def test_the_bound_is_tight() -> None:
    """As many forgetful witnesses as two quorums have in common, and both forks are anchored."""
    desks = [Desk(f"w{number}", KEYS[number]) for number in range(3)]
    start = Branch(LOG)
    one, other = Branch(LOG, start), Branch(LOG, start)
    for number in (0, 1):
        run(one.client(desks[number]).countersign(one.newest), desks[number])
    desks[1].logs.clear()
    for number in (1, 2):
        run(other.client(desks[number]).countersign(other.newest), desks[number])
