"""The shortest schedule that still fails.

Pure: it is told by a function whether a schedule fails, and asks it again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from conclave.testing.attack.schedule import Schedule


def shortest(schedule: Schedule, fails: Callable[[Schedule], bool], *, tries: int) -> Schedule:
    """Leave out steps, then have them earlier, then with smaller numbers, as long as it still fails.

    Args:
        schedule: one that fails.
        fails: runs a schedule. One that failed once may not fail again; then it is not taken.
        tries: how often it may be asked.
    """
    known = {schedule}
    again = True
    while again:
        again = False
        for candidate in _smaller(schedule):
            if candidate in known:
                continue
            if tries <= 0:
                return schedule
            tries -= 1
            known.add(candidate)
            if fails(candidate):
                schedule, again = candidate, True
                break
    return schedule


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    """What to try in place of a schedule, what saves most first."""
    # 1. Without half of the steps, a quarter of them, …, one of them; never without all: that is the honest operator.
    size = len(schedule) // 2
    while size:
        for at in range(0, len(schedule), size):
            left = schedule[:at] + schedule[at + size :]
            if left:
                yield left
        size //= 2
    # 2. One step earlier: at once, half way, one request.
    for at, step in enumerate(schedule):
        for position in sorted({1, step.position // 2, step.position - 1}):
            if 0 < position < step.position:
                yield tuple(sorted((*schedule[:at], replace(step, position=position), *schedule[at + 1 :])))
    # 3. The simplest number.
    for at, step in enumerate(schedule):
        if step.number:
            yield tuple(sorted((*schedule[:at], replace(step, number=0), *schedule[at + 1 :])))
