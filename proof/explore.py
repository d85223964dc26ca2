"""Every schedule up to a number of steps: each state once, and how many schedules lead to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from proof.state import State, Step
from proof.world import Violation, World, records

HONEST = "the host was honest"
HARMLESS = "the host was not honest, but nobody was told of anything that a running boot lacks"
BY_ENCLAVE = "detected by an enclave"
BY_CLIENT = "detected by a client, before an enclave could"
APART = "not detected: those who were told of it are kept on the branch that has it"
AWAY = "not detected: those who were told of it have sent no mail that shows it"
FORGOT = "not detected: those who were told of it restored a backup from before"
# Of several clients, the one that comes last here is named.
CAUSES = {HARMLESS: 0, FORGOT: 1, AWAY: 2, APART: 3}
CLASSES = (HONEST, HARMLESS, BY_ENCLAVE, BY_CLIENT, *list(CAUSES)[1:])


class Found(NamedTuple):
    """What an exploration came to.

    Attributes:
        schedules: how many there are, of exactly `depth` steps.
        states: how many different ones steps were taken from.
        transitions: steps that were taken from them.
        classes: schedules by what became of them.
        violated: name and text of a property that does not hold.
        schedule: the shortest one that shows it.
    """

    depth: int
    schedules: int
    states: int
    transitions: int
    classes: Counter[str]
    violated: tuple[str, str] | None = None
    schedule: tuple[Step, ...] = ()


def canonical(state: State) -> State:
    """The same, whichever clients are in it: nothing but their number tells them apart."""
    clients = tuple(sorted(state.clients))
    return state if clients == state.clients else state._replace(clients=clients)


def classify(state: State) -> str:
    """What became of a schedule that ends here."""
    if state.caught:
        return BY_ENCLAVE if state.caught == "enclave" else BY_CLIENT
    if state.kept is not None:
        return HONEST
    return _worst(_knowledge(state), tuple([boot.head for boot in state.boots]))


def _knowledge(state: State) -> frozenset[tuple[tuple[str, ...], tuple[str, ...]]]:
    return frozenset([(client.told, client.forgot) for client in state.clients])


@cache
def _worst(knowledge: frozenset[tuple[tuple[str, ...], tuple[str, ...]]], heads: tuple[str, ...]) -> str:
    return max([fate(told, forgot, heads) for told, forgot in knowledge], key=CAUSES.__getitem__)


@cache
def fate(told: tuple[str, ...], forgot: tuple[str, ...], heads: tuple[str, ...]) -> str:
    """Whether a client was told of what a running boot lacks, and why none noticed."""
    has = [all(head.startswith(record) for record in told) for head in heads]
    if not all(has):
        return APART if any(has) else AWAY
    return HARMLESS if all(head.startswith(record) for head in heads for record in forgot) else FORGOT


def explore(world: World, depth: int) -> Found:
    """Try every schedule of that many steps. Stops at the first violation, which is one of the shortest."""
    level, seen = {canonical(world.begin()): 1}, 0
    transitions = 0
    classes: Counter[str] = Counter()
    for at in range(depth):
        seen += len(level)
        after: dict[State, int] = {}
        for state, ways in level.items():
            last = at + 1 == depth
            if last:
                for name, count in _starts(world, state).items():
                    classes[name] += ways * count
                    transitions += count
            for step, same in world.steps(state, start=not last):
                transitions += 1
                try:
                    reached = world.after(state, step)
                except Violation as violation:
                    name, text = violation.args
                    return Found(at + 1, 0, seen, transitions, classes, (name, text), _last(world, at, state, step))
                if last:
                    classes[classify(reached)] += ways * same
                else:
                    if not world.identities:
                        reached = canonical(reached)
                    after[reached] = after.get(reached, 0) + ways * same
        level = after
    return Found(depth, sum(classes.values()), seen, transitions, classes)


def _starts(world: World, state: State) -> Counter[str]:
    """The classes after each start of a boot as the last step. Most steps are such, and they violate nothing."""
    classes: Counter[str] = Counter()
    heads = [boot.head for boot in state.boots]
    places = [heads[:b] + heads[b + 1 :] for b in range(len(heads))]
    if len(heads) < world.forks:
        places.append(heads)
    froms = ("", *records(state.tips))
    if state.caught:
        classes[classify(state)] = len(places) * len(froms)
        return classes
    knowledge = _knowledge(state)
    for record in froms:
        honest = state.kept is not None and record.startswith(state.kept)
        for others in places:
            # What the new boot has is what it is started from.
            classes[HONEST if honest else _worst(knowledge, (*others, record))] += 1
    return classes


def find(world: World, depth: int, wanted: Callable[[State], bool]) -> tuple[Step, ...] | None:
    """A shortest schedule, of at most that many steps, to a state as wanted."""
    begin = world.begin()
    trail: dict[State, tuple[State, Step] | None] = {canonical(begin): None}
    level = list(trail)
    for _ in range(depth + 1):
        for state in level:
            if wanted(state):
                return _retrace(world, trail, state)
        after = []
        for state in level:
            for step, _ in world.steps(state):
                with suppress(Violation):
                    reached = world.after(state, step)
                    reached = reached if world.identities else canonical(reached)
                    if reached not in trail:
                        trail[reached] = (state, step)
                        after.append(reached)
        level = after
    return None


def _last(world: World, depth: int, state: State, step: Step) -> tuple[Step, ...]:
    """A shortest schedule that ends with this step from this state, which violates a property."""
    schedule = find(world, depth, state.__eq__) or ()
    if step.client < 0 or world.identities:
        return (*schedule, step)
    end = world.begin()
    for earlier in schedule:
        end = world.after(end, earlier)
    return (*schedule, step._replace(client=_order(end)[step.client]))


def _order(state: State) -> list[int]:
    """Which client stands where in the canonical state."""
    return sorted(range(len(state.clients)), key=lambda c: (state.clients[c], c))


def _retrace(world: World, trail: dict[State, tuple[State, Step] | None], end: State) -> tuple[Step, ...]:
    steps: list[Step] = []
    while (before := trail[end]) is not None:
        end, step = before
        steps.append(step)
    return named(world, steps[::-1])


def named(world: World, steps: Iterable[Step]) -> tuple[Step, ...]:
    """A schedule whose steps count clients as the canonical states do, with the same numbers for the same clients."""
    state, same = world.begin(), []
    for step in steps:
        if step.client >= 0 and not world.identities:
            step = step._replace(client=_order(state)[step.client])
        same.append(step)
        state = world.after(state, step)
    return tuple(same)
