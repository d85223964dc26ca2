"""A workload made from an enclave's interface, for authors who wrote none.

For tests. It knows nothing of what the methods mean, and holds an enclave to what
holds for every one: see `GeneratedWorkload`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from conclave.client import Client
from conclave.errors import Error, FormatError, RollbackError, StateError
from conclave.testing.attack.attack import Attack, Outcome
from conclave.testing.attack.run import Promise
from conclave.testing.attack.values import Values

CLIENTS: Final = ("alice", "bob", "carol")
_ROUNDS: Final = 3
_MOST_CALLS: Final = 24


@dataclass(frozen=True, slots=True)
class Call:
    """One call: by whom, of what, with what."""

    client: str
    method: str
    arguments: tuple[Any, ...]


class AnsweredOtherwise(Promise):
    """every answer is the one that an honest operator would have brought"""


class NotServed(Promise):
    """with an honest operator, everybody is served"""


class GeneratedWorkload:
    """Calls every method from three clients, always in the same way, and compares.

    As long as every call so far was answered, each must be answered as with an honest operator: nothing is
    handled twice, lost, or mixed up. That holds until a stateless enclave is started again; of one that keeps its
    state, until its operator takes some of that away, which is for those to notice who know more. Besides, errors
    are errors of the library, nothing that was an argument is ever seen in plain, and once the operator is honest
    everybody is served.

    Attributes:
        calls: what it calls, in order.
        remarks: what an author may want to know, and is no failure.
    """

    rehearsals = 2

    def __init__(self, interface: bytes) -> None:
        """Make the calls.

        Args:
            interface: the schema in the bundle's manifest.

        Raises:
            FormatError: there is no method that could be called.
        """
        values = Values(random.Random(0), [])  # noqa: S311 (it has to be the same each time)
        self.calls = _calls(interface, values)
        self.remarks: list[str] = []
        self._words = [word for word in values.words if word]
        self._rehearsed: list[list[object]] = []

    def run(self, attack: Attack) -> None:
        """See Workload."""
        attack.secret(*self._words)
        learning = len(self._rehearsed) < self.rehearsals
        answers: list[object] = []
        certain = True
        for number, call in enumerate(self.calls):
            client = attack.client(call.client)
            outcome = attack.attempt(client.call, call.method, *call.arguments)
            certain = (
                certain and not outcome.unknown and (attack.continuous or (attack.linear and _keeps_state(client)))
            )
            answer = _answer(outcome)
            answers.append(answer)
            if certain and not learning:
                self._compare(number, answer)
        if learning:
            self._rehearsed.append(answers)
            self._remark(answers)

    def _compare(self, number: int, answer: object) -> None:
        honest, again = (answers[number] for answers in self._rehearsed[: self.rehearsals])
        # What differs from run to run by itself says nothing.
        if honest == again and answer != honest:
            call = self.calls[number]
            shown = ", ".join(map(repr, call.arguments))
            raise AnsweredOtherwise(
                f"{call.client}'s {call.method}({shown}) was answered {answer!r}; "
                f"after the same calls with an honest operator it is {honest!r}"
            )

    def _remark(self, answers: list[object]) -> None:
        for call, answer in zip(self.calls, answers, strict=True):
            text = f"{call.method} fails with an error that it does not declare, for arguments of its types"
            if answer == ("refused", "error") and text not in self.remarks:
                self.remarks.append(text)

    def check(self, attack: Attack) -> None:
        """See Workload."""
        for call in self.calls[: len(CLIENTS)]:
            outcome = attack.attempt(attack.client(call.client).call, call.method, *call.arguments)
            # Proof of a rollback, or a log that is gone, ends the service, and rightly so.
            if outcome.unknown and not isinstance(outcome.error, StateError | RollbackError):
                raise NotServed(f"{call.client} is not served by an honest operator any more: {outcome.error}")


def _answer(outcome: Outcome[Any]) -> object:
    if outcome.refused:
        return "refused", getattr(outcome.error, "type_name", "")
    return outcome.value if outcome.confirmed else "unknown"


def _keeps_state(client: Client) -> bool:
    try:
        return client.instance.claims.log_id is not None
    except (RuntimeError, Error):
        return False


def _calls(interface: bytes, values: Values) -> list[Call]:
    _, methods = msgspec.msgpack.decode(interface)
    calls = []
    for _ in range(_ROUNDS):
        for name, parameters, returns, *_ in methods:
            for client in CLIENTS:
                if returns.startswith("stream<"):
                    continue
                try:
                    arguments = tuple(values.of(kind) for _, kind, _ in parameters)
                except FormatError:
                    continue
                calls.append(Call(client, name, arguments))
    if not calls:
        raise FormatError(
            "no method of this enclave can be called by itself; write a workload: a file with a function "
            "`workload(attack)`, see the guide's page on attacks"
        )
    return calls[:_MOST_CALLS]
