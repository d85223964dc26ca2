"""What a hunt found, in plain words and as JSON.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from conclave.testing.attack.hunt import Found, Hunt
from conclave.testing.attack.run import Line
from conclave.testing.attack.schedule import Schedule, write

_OPERATOR: Final = "OPERATOR"
# The story of a long run: its beginning is told short.
_MOST_LINES: Final = 60


def lines(hunt: Hunt, *, again: str = "", remarks: Iterable[str] = ()) -> Iterator[str]:
    """The report.

    Args:
        again: the command that holds the found schedule against the enclave, without the schedule.
        remarks: what else an author may want to know.
    """
    if hunt.found is None:
        runs = "one schedule" if hunt.runs == 1 else f"{hunt.runs} schedules"
        yield f"NOTHING FOUND in {runs}{_seeds(hunt)}, {hunt.seconds:.0f} s"
        yield f"requests    {hunt.requests} with an honest operator"
        yield f"actions     {', '.join(hunt.actions)}"
        if hunt.cut_short:
            yield f"cut short   {hunt.cut_short}: the workload ended by an error of the library, which it did not catch"
        yield "This is no proof that there is nothing: it holds for these schedules and what the workload asks."
    else:
        yield from _found(hunt, hunt.found, again)
    for remark in remarks:
        yield f"remark      {remark}"


def _found(hunt: Hunt, found: Found, again: str) -> Iterator[str]:
    run = found.run
    assert run.failure is not None
    steps = len(run.schedule)
    seed = "" if found.seed is None else f"seed {found.seed}; "
    yield f"FOUND       {seed}the shortest schedule that fails has {steps} step{'s' if steps != 1 else ''}"
    if not found.certain:
        yield "seldom      it failed once, and not again: it depends on what happened at the same time"
    yield f"schedules   {hunt.runs} in {hunt.seconds:.0f} s"
    yield ""
    yield "What happened, by request:"
    yield from story(run.story)
    yield ""
    yield "What should have held:"
    yield f"  {run.failure.place}"
    if run.failure.statement:
        yield f"    {run.failure.statement}"
    yield from (f"  {line}" for line in run.failure.message.splitlines())
    if run.output:
        yield ""
        yield "What the enclave printed last:"
        yield from (f"  {line}" for line in run.output)
    if again:
        yield ""
        yield f"Again: {again} --schedule '{write(run.schedule)}'"


def story(told: tuple[Line, ...]) -> Iterator[str]:
    """What happened, in lines."""
    width = max([len(_OPERATOR), *(len(line.client) for line in told)])
    left_out = max(len(told) - _MOST_LINES, 0)
    if left_out:
        deeds = sum(line.by_operator for line in told[:left_out])
        yield f"  …    {left_out} lines before, of which {deeds} are the operator's"
    for line in told[left_out:]:
        who = _OPERATOR if line.by_operator else line.client
        whose = f" ({line.client}'s request)" if line.by_operator else ""
        yield f"  {line.turn:>3}  {who:<{width}}  {line.text}{whose}"


def _seeds(hunt: Hunt) -> str:
    if not hunt.seeds:
        return ""
    first, last = hunt.seeds[0], hunt.seeds[-1]
    return f" (seed {first})" if first == last else f" (seeds {first} to {last})"


def value(hunt: Hunt, *, remarks: Iterable[str] = ()) -> dict[str, Any]:
    """The same for machines."""
    made: dict[str, Any] = {
        "verdict": "nothing found" if hunt.found is None else "found",
        "requests": hunt.requests,
        "seeds": list(hunt.seeds),
        "schedules": hunt.runs,
        "seconds": round(hunt.seconds, 1),
        "actions": list(hunt.actions),
        "cut_short": hunt.cut_short,
        "remarks": list(remarks),
        "found": None,
    }
    if hunt.found is not None:
        run = hunt.found.run
        assert run.failure is not None
        made["found"] = {
            "seed": hunt.found.seed,
            "certain": hunt.found.certain,
            "drawn": _steps(hunt.found.drawn),
            "schedule": _steps(run.schedule),
            "schedule_text": write(run.schedule),
            "story": [
                {"request": line.turn, "client": line.client, "by_operator": line.by_operator, "text": line.text}
                for line in run.story
            ],
            "place": run.failure.place,
            "statement": run.failure.statement,
            "message": run.failure.message,
            "output": list(run.output),
        }
    return made


def _steps(schedule: Schedule) -> list[dict[str, Any]]:
    return [
        {"position": s.position, "action": s.action, "variant": s.variant, "number": s.number, "text": str(s)}
        for s in schedule
    ]
