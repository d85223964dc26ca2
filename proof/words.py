"""Schedules in plain words."""

from __future__ import annotations

from collections.abc import Iterable

from proof.protocol import boot_of, version_of
from proof.state import STATEMENT, State, Step
from proof.world import LETTERS, Violation, World

NAMES = ("Alice", "Bob", "Carol")


class Teller:
    """Tells one schedule; boots are called A, B, C in the order in which they began."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._boots: list[str] = ["A"]

    def tell(self, schedule: Iterable[Step]) -> list[str]:
        """A sentence for each step, and what is violated at the end if anything is."""
        said, state = [], self._world.begin()
        for step in schedule:
            try:
                after = self._world.after(state, step)
            except Violation as violation:
                said += [self._step(state, step, state), f"{violation.args[0]}: {violation.args[1]}."]
                break
            for boot in after.boots:
                if boot_of(boot.head) not in self._boots:
                    self._boots.append(boot_of(boot.head))
            said.append(self._step(state, step, after))
            state = after
        return said

    def _boot(self, record: str) -> str:
        number = self._boots.index(boot_of(record))
        return f"boot {LETTERS[number] if number < len(LETTERS) else number + 1}"

    def _record(self, record: str) -> str:
        return f"version {version_of(record)} of {self._boot(record)}"

    def _step(self, state: State, step: Step, after: State) -> str:
        who = NAMES[step.client] if step.client >= 0 else ""
        match step.name:
            case "start":
                begun = next(b for b in after.boots if b not in state.boots)
                place = "beside" if step.boot < 0 else f"in place of {self._boot(state.boots[step.boot].head)}"
                source = self._record(step.record) if step.record else "an empty store"
                return f"The host starts {self._boot(begun.head)} from {source}, {place}."
            case "mail" | "ask":
                return self._mail(state, step, after, who)
            case "answer":
                flight = state.clients[step.client].flights[step.boot]
                if flight.record == STATEMENT:
                    return f"{who} gets the signed statement of {self._boot(flight.boot)}."
                if after.clients[step.client].stopped:
                    return f"{who} gets an answer with {self._record(flight.context)}, and knows that it cannot be."
                return f"{who} gets the answer: {self._record(flight.record)}."
            case "post":
                return f"{who} gets the mail that was posted with {self._record(step.record)}."
            case "forge":
                return f"Somebody sends a context of their own making to {self._boot(state.boots[step.boot].head)}."
            case "refuse":
                return (
                    f"The store is said to have refused {self._record(state.boots[step.boot].head)}; it is made again."
                )
            case "backup":
                return f"{who} makes a backup."
            case _:
                return f"{who} restores the backup."

    def _mail(self, state: State, step: Step, after: State, who: str) -> str:
        head = state.boots[step.boot].head
        said = f"{who}'s mail goes to {self._boot(head)}"
        if after is state:
            return f"{said}, which takes it."
        if after.clients[step.client].stopped:
            return f"{who} sees that {self._boot(head)} has another log, and sends nothing."
        boot = after.boots[step.boot]
        if boot.halted:
            return f"{said}, which {'is halted' if state.boots[step.boot].halted else 'halts'}."
        return f"{said}, which makes version {version_of(boot.head)}." if boot.head != head else f"{said}."


def tell(world: World, schedule: Iterable[Step]) -> list[str]:
    """A sentence for each step."""
    return Teller(world).tell(schedule)
