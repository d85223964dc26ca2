"""Looks for a schedule that fails, seed by seed, and shortens the one it finds.

For tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from conclave.testing.attack.run import Run
from conclave.testing.attack.schedule import ACTIONS, Schedule, draw
from conclave.testing.attack.shrink import shortest
from conclave.testing.attack.workload import WorkloadError

DEFAULT_SECONDS: Final = 60.0
# Enough for a schedule of six steps, and an end for one that does not always fail.
_TRIES: Final = 60
# The words of a workload that raises with an honest operator.
_HONEST: Final = "the workload fails with an honest operator already, so nothing can be learnt from it"


class Holds(Protocol):
    """Runs a schedule, as `Runner` does."""

    def __call__(self, schedule: Schedule) -> Run: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A schedule that fails.

    Attributes:
        seed: whose schedule failed first; None: it was given.
        drawn: that schedule.
        run: of the shortest one that fails in the same place.
        certain: whether it failed more than once.
    """

    seed: int | None
    drawn: Schedule
    run: Run
    certain: bool


@dataclass(frozen=True, slots=True)
class Hunt:
    """What came of it.

    Attributes:
        requests: how many requests clients make with an honest operator.
        seeds: which were tried.
        runs: how many schedules were run in all.
        cut_short: how many ended early because a client refused to go on.
    """

    requests: int
    seeds: tuple[int, ...]
    runs: int
    seconds: float
    actions: tuple[str, ...]
    cut_short: int
    found: Found | None = None


def hunt(
    run: Holds,
    *,
    seeds: Iterable[int],
    seconds: float = DEFAULT_SECONDS,
    actions: Collection[str] = tuple(ACTIONS),
    given: Schedule | None = None,
    rehearsals: int = 1,
    requests: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> Hunt:
    """Hold schedule after schedule against a workload until one fails or the time is over.

    Args:
        run: runs one schedule.
        seeds: whose schedules to take, in order.
        seconds: when no further seed is begun. A schedule that fails is shortened however long it takes.
        given: this schedule and no other one.
        rehearsals: how many runs with an honest operator come first.
        requests: how many requests clients make with one; found out by the rehearsals, if there are any.

    Raises:
        WorkloadError: the workload fails with an honest operator.
    """
    began = clock()
    for _ in range(rehearsals):
        honest = run(())
        requests = honest.requests
        if honest.failure is not None:
            raise WorkloadError(f"{_HONEST}: {honest.failure.place}: {honest.failure.message}")
        if honest.cut_short is not None:
            raise WorkloadError(f"{_HONEST}: {type(honest.cut_short).__name__}: {honest.cut_short}")
    tried: list[int] = []
    runs = cut_short = 0
    found = None
    schedules = (
        [(None, given)]
        if given is not None
        else ((seed, draw(seed, length=requests, actions=actions)) for seed in seeds)
    )
    for seed, schedule in schedules:
        if runs and clock() - began > seconds:
            break
        made = run(schedule)
        runs += 1
        cut_short += made.cut_short is not None
        tried += [] if seed is None else [seed]
        if made.failure is not None:
            found, more = _shorten(run, seed, made)
            runs += more
            break
    return Hunt(requests, tuple(tried), runs, clock() - began, tuple(sorted(actions)), cut_short, found)


def _shorten(run: Holds, seed: int | None, first: Run) -> tuple[Found, int]:
    """The shortest schedule that fails in the same place, and how many runs that took."""
    assert first.failure is not None
    place = first.failure.place
    best, runs, again = first, 0, False

    def fails(schedule: Schedule) -> bool:
        nonlocal best, runs, again
        made = run(schedule)
        runs += 1
        same = made.failure is not None and made.failure.place == place
        if same:
            best, again = made, True
        return same

    shortest(first.schedule, fails, tries=_TRIES)
    if not again:
        fails(first.schedule)
    return Found(seed, first.schedule, best, again), runs
