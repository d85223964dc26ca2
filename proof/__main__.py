"""`python -m proof [STEPS]`: every schedule of that many steps, 8 unless told; what was not detected, and why.

Exit status 1: a property does not hold, or a rule could be left out.
"""

from __future__ import annotations

import gc
import sys
import time
from functools import partial

from proof.broken import BROKEN
from proof.explore import CLASSES, Found, classify, explore, find
from proof.state import State
from proof.words import tell
from proof.world import World

# The protocol in each world, and how many steps fewer than asked for are tried in it.
WORLDS = {
    "three clients, one mail in flight each": (World(), 0),
    "also mail that makes no record": (World(asks=True), 2),
    "also posted mail, given late or never": (World(posts=True), 2),
    "also clients that restore a backup of their own": (World(backups=True), 2),
    "two mails in flight each": (World(in_flight=2), 2),
    "also somebody who makes up contexts": (World(hostile_client=True), 2),
}


def main() -> int:
    """Print everything; say whether all of it holds."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    # Millions of tuples without a cycle among them.
    gc.disable()
    holds = True
    for name, (world, fewer) in WORLDS.items():
        began = time.process_time()
        found = explore(world, steps - fewer)
        print(
            f"\n{name}: {found.depth} steps, {found.schedules:,} schedules, {found.states:,} states, "
            f"{found.transitions:,} transitions, {time.process_time() - began:.0f} s"
        )
        _report(world, found, examples=fewer == 0 or world.backups)
        holds = holds and found.violated is None
    for broken in BROKEN:
        found = explore(broken.world, 6)
        failed = found.violated[0] if found.violated else "nothing"
        print(f"\nif {broken.instead}: {failed} fails")
        _list(tell(broken.world, found.schedule))
        holds = holds and failed == broken.fails
    print("\nall holds" if holds else "\nNOT all holds")
    return 0 if holds else 1


def _report(world: World, found: Found, *, examples: bool) -> None:
    if found.violated:
        _list(tell(world, found.schedule))
    for name in CLASSES:
        if found.classes[name]:
            print(f"{found.classes[name]:>18,}  {name}")
            if examples:
                _list(tell(world, find(world, found.depth, partial(_is, name)) or ()))


def _is(name: str, state: State) -> bool:
    return classify(state) == name


def _list(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"{'':20}{sentence}")


if __name__ == "__main__":
    sys.exit(main())
