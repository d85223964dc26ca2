"""What a hostile operator does, and when: drawn from a seed, written as text, the same each time.

For tests. A schedule says nothing of the enclave it is held against.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from conclave.errors import FormatError

# What each action can be, in the words of the command line and of reports. Seeds take them in this order.
ACTIONS: Final[dict[str, tuple[str, ...]]] = {
    "restart": ("before", "after"),
    "fork": ("this", "others", "swap"),
    "drop": ("answer", "request"),
    "roll-back": ("kill", "stop", "empty"),
    "delay": ("request",),
    "replay": ("request", "answer", "all"),
    "store": ("full", "fails", "unsure", "forgets"),
    "duplicate": ("first", "second"),
    "bundle": ("this", "everybody"),
    "reorder": ("request",),
    "stale": ("info", "endorsements"),
    "cross-wire": ("request", "answer"),
    "garbage": ("request", "answer", "frame", "half-frame", "same-frame"),
    "clock": ("ahead", "behind"),
    "truncate": ("request", "answer"),
    "alter": ("request", "answer"),
}
# Every second seed has one of these.
_TELLING: Final = ("restart", "fork", "drop", "roll-back")
_MORE_STEPS: Final = (0, 0, 0, 1, 1, 2, 3, 5)
# Large enough for a byte of any mail, small enough to be read aloud.
_NUMBERS: Final = 10_000


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """One thing that the operator does.

    Attributes:
        position: from which request of the clients on, counted from 1; it acts on the first one that it fits.
        action, variant: of `ACTIONS`.
        number: which byte, which earlier mail, how many requests long: whatever the action needs.
    """

    position: int
    action: str
    variant: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.position}:{self.action}:{self.variant}:{self.number}"


Schedule = tuple[Step, ...]


def draw(seed: int, *, length: int, actions: Collection[str] = tuple(ACTIONS)) -> Schedule:
    """The schedule of a seed.

    Successive seeds take turns with the action that each has in any case, its variant and its position, so that few
    seeds already try much; chance adds more.

    Args:
        length: how many requests the workload makes with an honest operator.
        actions: which of `ACTIONS` it may contain.
    """
    chance = random.Random(seed)  # noqa: S311 (it has to be the same each time)
    names = [name for name in ACTIONS if name in actions]
    telling = [name for name in _TELLING if name in names]
    half, odd = divmod(seed - 1, 2)
    turns = names if odd or not telling else telling
    action, turn = turns[half % len(turns)], half // len(turns)
    # The golden ratio: however many turns there are, they lie far from each other.
    part = (0.25 + 0.6180339887 * turn) % 1
    steps = [
        Step(1 + int(part * max(length, 1)), action, ACTIONS[action][turn % len(ACTIONS[action])], _number(chance))
    ]
    for action in chance.choices(names, k=chance.choice(_MORE_STEPS)):
        position = chance.randint(1, max(length, 1))
        steps.append(Step(position, action, chance.choice(ACTIONS[action]), _number(chance)))
    return tuple(sorted(steps))


def _number(chance: random.Random) -> int:
    return chance.randrange(_NUMBERS)


def write(schedule: Iterable[Step]) -> str:
    """One line that `read` understands."""
    return " ".join(map(str, schedule))


def read(text: str) -> Schedule:
    """The schedule that a line says. Raises FormatError."""
    return tuple(sorted(_step(word) for word in text.replace(",", " ").split()))


def _step(word: str) -> Step:
    position, action, variant, number = [*word.split(":"), "", "", ""][:4]
    variants = ACTIONS.get(action, ())
    if not (position.isdecimal() and int(position) > 0 and variant in variants and (number or "0").isdecimal()):
        raise FormatError(
            f"a step of a schedule is POSITION:ACTION:VARIANT:NUMBER, as 3:drop:answer:0; "
            f"actions are {', '.join(ACTIONS)}" + (f"; {action} is {', '.join(variants)}" if variants else "")
        )
    return Step(int(position), action, variant, int(number or 0))


def chosen(names: str) -> tuple[str, ...]:
    """Actions by name, with commas between them; "" for all. Raises FormatError."""
    wanted = tuple(dict.fromkeys(names.replace(",", " ").split())) or tuple(ACTIONS)
    unknown = [name for name in wanted if name not in ACTIONS]
    if unknown:
        raise FormatError(f"no such action: {', '.join(unknown)}; there are {', '.join(ACTIONS)}")
    return wanted
