"""The protocol of detection in a small world: all schedules of a few steps. `make proof` tries more.

Also that each rule is needed, so that the properties are known to be able to fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from proof.broken import BROKEN, Broken
from proof.explore import APART, AWAY, BY_CLIENT, BY_ENCLAVE, FORGOT, HARMLESS, HONEST, classify, explore, find
from proof.state import State, Step
from proof.words import tell
from proof.world import World

WORLDS = {
    "plain": (World(), 5),
    "asks": (World(asks=True), 4),
    "posts": (World(posts=True), 5),
    "backups": (World(backups=True), 5),
    "two in flight": (World(in_flight=2), 5),
    "hostile client": (World(hostile_client=True), 5),
}


@pytest.mark.spec("DET-2", "DET-10", "DET-11", "DET-12", "DET-13", "DET-14", "DET-15")
@pytest.mark.parametrize("name", WORLDS)
def test_every_property_holds_in_every_schedule(name: str) -> None:
    world, steps = WORLDS[name]
    found = explore(world, steps)
    assert found.violated is None, tell(world, found.schedule)
    # A world in which nothing happens would satisfy everything.
    assert {HONEST, HARMLESS, BY_ENCLAVE, BY_CLIENT, APART, AWAY} <= set(found.classes)


@pytest.mark.spec("DET-17")
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.instead)
def test_no_rule_can_be_left_out(broken: Broken) -> None:
    found = explore(broken.world, 6)
    assert found.violated is not None
    assert found.violated[0] == broken.fails
    assert tell(broken.world, found.schedule)[-1].startswith(f"{broken.fails}: ")


@pytest.mark.spec("DET-16")
def test_who_forgot_is_counted_as_such() -> None:
    schedule = find(World(backups=True), 6, lambda state: classify(state) == FORGOT)
    assert schedule is not None
    assert [step.name for step in schedule if step.name != "start"] == ["mail", "backup", "answer", "restore"]


def test_schedules_are_counted_as_if_each_was_tried() -> None:
    """Against an enumeration that merges nothing."""
    world = World(clients=2, posts=True)
    level = [world.begin()]
    for _ in range(4):
        level = [world.after(state, step) for state in level for step in every(world, state)]
    found = explore(world, 4)
    assert found.schedules == len(level)
    assert found.classes == Counter(map(classify, level))


def every(world: World, state: State) -> Iterator[Step]:
    for step, _ in world.steps(state):
        yield step
        for c, client in enumerate(state.clients[step.client + 1 :], start=step.client + 1):
            if step.client >= 0 and client == state.clients[step.client]:
                yield step._replace(client=c)
