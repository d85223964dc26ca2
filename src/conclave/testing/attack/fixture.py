"""A pytest fixture: the test function is the workload, once for each seed.

For tests of authors.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

from conclave.testing.attack.attack import Attack
from conclave.testing.attack.hosting import Hosting
from conclave.testing.attack.hunt import hunt
from conclave.testing.attack.report import lines
from conclave.testing.attack.run import Run
from conclave.testing.attack.runner import Runner
from conclave.testing.attack.schedule import ACTIONS, Schedule
from conclave.testing.attack.workload import AuthorsWorkload

DEFAULT_SEEDS: Final = 20


def attack_fixture(
    path: str | Path,
    *,
    seeds: int = DEFAULT_SEEDS,
    first: int = 1,
    actions: Collection[str] = tuple(ACTIONS),
    name: str = "attack",
) -> Any:
    """A fixture by which a test is run under a hostile host: `attack = attack_fixture("poll.py")` in a test module.

    A test with a parameter `attack` gets an `Attack`, and is a workload: what it asserts has to hold
    whatever the operator does. It runs once with an honest operator, and once for each seed; where it
    fails, the schedule is shortened, for which the test runs again and again, and the report is the
    failure. It must take nothing else that one run changes for the next.

    Args:
        path: the enclave, from where the test module is: a Python file, a project directory, or module:attribute.
        seeds: how many.
        first: the first of them.
        actions: what the operator may do, of `conclave attack --help`.
        name: of the fixture.
    """
    import pytest

    known: dict[str, Any] = {}
    place = Path(sys._getframe(1).f_code.co_filename).parent / path

    @pytest.fixture(name=name, params=range(first, first + seeds), ids=lambda seed: f"seed {seed}")
    def fixture(request: Any) -> None:
        item = request.node
        test = getattr(item, "obj", None)
        if name not in getattr(item, "fixturenames", ()) or not callable(test) or inspect.iscoroutinefunction(test):
            pytest.fail(f"the fixture {name!r} is for plain test functions, which it runs as workloads", pytrace=False)
        if "hosting" not in known:
            hosting = Hosting(place)
            known["hosting"] = hosting.__enter__()
            request.config.add_cleanup(lambda: hosting.__exit__(None, None, None))
        # Where pytest finds what it calls: ours calls the test as often as it takes.
        item.obj = _held(test, name, known, request.param, tuple(actions), pytest.fail)

    return fixture


def _held(
    test: Callable[..., None],
    name: str,
    known: dict[str, Any],
    seed: int,
    actions: tuple[str, ...],
    fail: Callable[..., Any],
) -> Callable[..., None]:
    """The test, held against the schedule of one seed."""

    def run(**others: Any) -> None:
        def workload(attack: Attack) -> None:
            test(**{**others, name: attack})

        runner = Runner(known["hosting"], AuthorsWorkload(workload))
        key = f"{test.__module__}.{test.__qualname__}"

        def counted(schedule: Schedule) -> Run:
            made = runner(schedule)
            if not schedule:
                known[key] = made.requests
            return made

        rehearsed = key in known
        found = hunt(
            counted, seeds=[seed], actions=actions, rehearsals=0 if rehearsed else 1, requests=known.get(key, 1)
        )
        if found.found is not None:
            fail("\n".join(lines(found)), pytrace=False)

    return run
