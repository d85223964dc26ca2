"""Runs one schedule: the workload's clients against the operator who does what it says.

For tests.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conclave.errors import Error
from conclave.testing.attack.attack import Attack
from conclave.testing.attack.hosting import Hosting
from conclave.testing.attack.operator import HostileOperator
from conclave.testing.attack.run import Failure, Line, Run
from conclave.testing.attack.schedule import Schedule


class Workload(Protocol):
    """What clients do with an enclave, and what has to hold for them whatever the operator does.

    Attributes:
        rehearsals: how many runs with an honest operator come before all others.
    """

    @property
    def rehearsals(self) -> int: ...

    def run(self, attack: Attack) -> None:
        """Use the enclave, and assert what must hold meanwhile."""

    def check(self, attack: Attack) -> None:
        """Assert what must hold in the end; the operator is honest by then."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Holds schedules against one workload of one enclave."""

    hosting: Hosting
    workload: Workload

    def __call__(self, schedule: Schedule) -> Run:
        """Run it, on a new boot with an empty store."""
        hosting = self.hosting
        story: list[Line] = []
        operator = HostileOperator(hosting, schedule, story)
        crashes = len(hosting.crashes)
        hosting.run(operator.fleet.begin())
        failure, cut_short = None, None
        with tempfile.TemporaryDirectory(prefix="conclave-attack-clients-") as place:
            attack = Attack(
                hosting.serve(operator),
                f"C:{hosting.program.code.hex()} SEC:INSECURE",
                Path(place),
                story=story,
                turn=lambda: operator.turn,
                behave=lambda: hosting.run(operator.behave()),
                fleet=operator.fleet,
            )
            try:
                self.workload.run(attack)
                attack.behave()
                self.workload.check(attack)
            except Error as error:
                cut_short = error
            except Exception as error:
                failure = Failure.of(error)
            finally:
                attack.close()
                hosting.run(operator.fleet.end())
        failure = failure or _broken(operator, attack, hosting.crashes[crashes:])
        output = tuple(line for boot in operator.fleet.boots for line in boot.output)
        return Run(schedule, tuple(story), operator.turn, failure, cut_short, output)


def _broken(operator: HostileOperator, attack: Attack, crashes: list[Exception]) -> Failure | None:
    """What is promised of every enclave, and did not hold."""
    if operator.fleet.fell:
        return Failure(
            "of every enclave: it ends when its host ends it", "", "the enclave ended, and nobody had ended it"
        )
    for crash in crashes:
        if isinstance(crash, Error):
            # Nothing of the enclave's: this machine could not start another one.
            raise crash
    if crashes:
        return Failure(
            "of every host: it bears its enclave and its clients", "", f"the host failed: {type(crashes[0]).__name__}"
        )
    if attack.secrets:
        seen = [*operator.seen, *operator.fleet.stored()]
        for secret in attack.secrets:
            if any(secret in data for data in seen):
                return Failure(
                    "of every enclave: what clients say is encrypted",
                    "",
                    "the operator saw in plain what was to stay secret",
                )
    return None
