"""Attacks without processes: schedules, shrinking, the hunt, tampering, values, reports."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from conclave.errors import CallError, Error, FormatError, RollbackError, StoreFull, StoreUnavailable, TransportError
from conclave.host.states import MemoryStates
from conclave.rpc.types import describe
from conclave.testing import Attack, Outcome, attack_identity
from conclave.testing.attack.generated import CLIENTS, AnsweredOtherwise, Call, GeneratedWorkload, NotServed
from conclave.testing.attack.hunt import Found, Hunt, hunt
from conclave.testing.attack.report import lines, story, value
from conclave.testing.attack.run import Failure, Line, Run
from conclave.testing.attack.schedule import ACTIONS, Schedule, Step, chosen, draw, read, write
from conclave.testing.attack.shrink import shortest
from conclave.testing.attack.store import Faults, FaultyStates
from conclave.testing.attack.tampering import Tampering
from conclave.testing.attack.values import Values
from conclave.testing.attack.workload import WorkloadError, beside, load_workload

# Schedules -----------------------------------------------------------------------------


def test_a_seed_has_one_schedule() -> None:
    for seed in range(1, 200):
        drawn = draw(seed, length=20)
        assert drawn == draw(seed, length=20)
        assert 1 <= len(drawn) <= 6
        assert list(drawn) == sorted(drawn)
        for step in drawn:
            assert 1 <= step.position <= 20
            assert step.variant in ACTIONS[step.action]
    assert len({draw(seed, length=20) for seed in range(1, 200)}) > 190


def test_few_seeds_have_every_action_and_in_time_every_variant_at_many_positions() -> None:
    first = [step.action for seed in range(1, 2 * len(ACTIONS) + 1) for step in draw(seed, length=20)]
    assert set(first) == set(ACTIONS)
    restarts = {s.position for seed in range(1, 161) for s in draw(seed, length=20) if s.action == "restart"}
    assert len(restarts) >= 16
    many = {(s.action, s.variant) for seed in range(1, 400) for s in draw(seed, length=20)}
    assert many == {(action, variant) for action, variants in ACTIONS.items() for variant in variants}


def test_a_schedule_has_only_the_actions_that_are_wanted() -> None:
    assert {s.action for seed in range(1, 100) for s in draw(seed, length=9, actions=("alter", "fork"))} == {
        "alter",
        "fork",
    }
    assert {s.action for seed in range(1, 30) for s in draw(seed, length=9, actions=("alter",))} == {"alter"}
    # Even of a workload that asks nothing.
    assert draw(1, length=0)[0].position == 1


def test_schedules_are_written_and_read() -> None:
    for seed in range(1, 50):
        drawn = draw(seed, length=20)
        assert read(write(drawn)) == drawn
    assert read("7:drop:answer, 3:fork:this:9") == (Step(3, "fork", "this", 9), Step(7, "drop", "answer", 0))


@pytest.mark.parametrize(
    "text", ["x", "0:drop:answer", "1:drop", "1:drop:sideways", "1:explode:now", "1:drop:answer:-1"]
)
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(FormatError, match="POSITION:ACTION:VARIANT:NUMBER"):
        read(text)


def test_actions_by_name() -> None:
    assert chosen("") == tuple(ACTIONS)
    assert chosen("drop,fork drop") == ("drop", "fork")
    with pytest.raises(FormatError, match="no such action: dorp; there are restart, fork"):
        chosen("dorp")


# Shrinking -------------------------------------------------------------------------------


def steps(*positions: int) -> Schedule:
    return tuple(Step(position, "drop", "answer", position * 100) for position in positions)


def test_the_shortest_schedule_has_what_it_takes_and_nothing_else() -> None:
    asked: list[Schedule] = []

    def fails(schedule: Schedule) -> bool:
        asked.append(schedule)
        # It takes two: one at 4 or later, and one before it.
        return any(s.position >= 4 for s in schedule) and any(s.position < 4 for s in schedule)

    assert shortest(steps(2, 3, 9, 12, 17, 20), fails, tries=1000) == (
        Step(1, "drop", "answer", 0),
        Step(4, "drop", "answer", 0),
    )
    assert len(asked) == len(set(asked)) < 60
    assert () not in asked


def test_shrinking_ends_when_its_tries_do() -> None:
    asked: list[Schedule] = []

    def never(schedule: Schedule) -> bool:
        asked.append(schedule)
        return False

    assert shortest(steps(2, 3, 9), never, tries=4) == steps(2, 3, 9)
    assert len(asked) == 4


# The hunt ----------------------------------------------------------------------------------


class Fake:
    """Runs schedules without anything: `fails` says which do not hold."""

    def __init__(self, fails: Callable[[Schedule], str | None], *, cut_short: Error | None = None) -> None:
        self._fails = fails
        self._cut_short = cut_short
        self.runs: list[Schedule] = []

    def __call__(self, schedule: Schedule) -> Run:
        self.runs.append(schedule)
        place = self._fails(schedule)
        failure = None if place is None else Failure(place, "assert it", "it was not so")
        return Run(schedule, (), 10, failure, self._cut_short if schedule else None)


def test_a_hunt_finds_and_shortens() -> None:
    run = Fake(lambda s: "here" if any(x.action == "fork" for x in s) else None)
    found = hunt(run, seeds=range(1, 100)).found
    assert found is not None
    assert found.seed is not None
    assert found.drawn == draw(found.seed, length=10)
    assert [(s.position, s.action, s.number) for s in found.run.schedule] == [(1, "fork", 0)]
    assert found.certain
    assert run.runs[0] == ()


def test_only_what_fails_in_the_same_place_is_a_shorter_one() -> None:
    run = Fake(lambda s: None if not s else "two" if len(s) > 1 else "one")
    found = hunt(run, seeds=[1], given=steps(2, 5, 7)).found
    assert found is not None
    assert found.seed is None
    assert len(found.run.schedule) == 2
    assert found.run.failure is not None
    assert found.run.failure.place == "two"


def test_what_fails_once_only_is_said_to() -> None:
    failed: list[Schedule] = []

    def once(schedule: Schedule) -> str | None:
        if not schedule or failed:
            return None
        failed.append(schedule)
        return "here"

    found = hunt(Fake(once), seeds=range(1, 9)).found
    assert found is not None
    assert not found.certain
    assert found.run.schedule == found.drawn


def test_a_hunt_ends_with_its_seeds_or_its_time() -> None:
    run = Fake(lambda s: None, cut_short=TransportError("no"))
    nothing = hunt(run, seeds=range(1, 6), rehearsals=2)
    assert (nothing.found, nothing.seeds, nothing.runs, nothing.requests) == (None, (1, 2, 3, 4, 5), 5, 10)
    assert nothing.cut_short == 5
    assert run.runs[:2] == [(), ()]
    times = iter(range(0, 1000, 4))
    over = hunt(Fake(lambda s: None), seeds=range(1, 100), seconds=10, clock=lambda: next(times))
    assert len(over.seeds) == 3


def test_a_workload_that_fails_by_itself_teaches_nothing() -> None:
    with pytest.raises(WorkloadError, match=r"honest operator already.*here: it was not so"):
        hunt(Fake(lambda s: "here"), seeds=[1])

    def short(schedule: Schedule) -> Run:
        return Run(schedule, (), 3, None, CallError("Refused", "no"))

    with pytest.raises(WorkloadError, match="CallError: no"):
        hunt(short, seeds=[1])


# Reports ------------------------------------------------------------------------------------


def test_a_report_tells_it_in_plain_words() -> None:
    told = (
        Line(2, "alice", "put(5): None"),
        Line(4, "bob", "threw the mail away", by_operator=True),
        Line(5, "bob", "total(): 5"),
    )
    failure = Failure("w.py, line 7", "assert total == 10", "AssertionError: 5")
    run = Run((Step(4, "drop", "request"),), told, 5, failure, None, ("printed",))
    schedule = (Step(3, "alter", "answer", 1), Step(4, "drop", "request", 2))
    report = Hunt(9, (3,), 8, 12.4, ("alter", "drop"), 0, Found(3, schedule, run, True))
    assert list(lines(report, again="conclave attack w.py")) == [
        "FOUND       seed 3; the shortest schedule that fails has 1 step",
        "schedules   8 in 12 s",
        "",
        "What happened, by request:",
        "    2  alice     put(5): None",
        "    4  OPERATOR  threw the mail away (bob's request)",
        "    5  bob       total(): 5",
        "",
        "What should have held:",
        "  w.py, line 7",
        "    assert total == 10",
        "  AssertionError: 5",
        "",
        "What the enclave printed last:",
        "  printed",
        "",
        "Again: conclave attack w.py --schedule '4:drop:request:0'",
    ]
    made = msgspec.json.decode(msgspec.json.encode(value(report)))
    assert made["verdict"] == "found"
    assert made["found"]["schedule_text"] == "4:drop:request:0"
    assert made["found"]["story"][1] == {
        "request": 4,
        "client": "bob",
        "by_operator": True,
        "text": "threw the mail away",
    }
    assert [step["text"] for step in made["found"]["drawn"]] == ["3:alter:answer:1", "4:drop:request:2"]


def test_a_report_of_nothing_does_not_promise_too_much() -> None:
    nothing = Hunt(9, (1, 2, 3), 3, 5.0, ("drop",), 1)
    said = "\n".join(lines(nothing, remarks=["mean fails"]))
    assert "NOTHING FOUND in 3 schedules (seeds 1 to 3), 5 s" in said
    assert "no proof" in said
    assert "cut short   1" in said
    assert "remark      mean fails" in said
    assert value(nothing)["found"] is None


def test_a_long_story_is_told_from_its_end() -> None:
    told = tuple(Line(n, "alice", "call", by_operator=n % 2 == 0) for n in range(1, 101))
    said = list(story(told))
    assert said[0] == "  …    40 lines before, of which 20 are the operator's"
    assert len(said) == 61


def test_a_failure_names_the_workloads_own_line() -> None:
    def workload() -> None:
        expected = 10
        assert expected == 5, "the deposit is gone"

    with pytest.raises(AssertionError) as raised:
        workload()
    failure = Failure.of(raised.value)
    assert failure.place.startswith("test_attack.py, line ")
    assert failure.statement == 'assert expected == 5, "the deposit is gone"'
    assert failure.message.startswith("AssertionError: the deposit is gone")


def test_a_failure_of_a_promise_says_which() -> None:
    failure = Failure.of(NotServed("alice is not"))
    assert failure.place == "of every enclave: with an honest operator, everybody is served"
    assert (failure.statement, failure.message) == ("", "alice is not")


# What an operator makes of bytes ---------------------------------------------------------------


def step(action: str, variant: str, number: int = 0) -> Step:
    return Step(1, action, variant, number)


def test_tampering_with_requests() -> None:
    known = Tampering()
    mail = bytes(range(200))
    assert known.request(step("truncate", "request", 7), "alice", mail)[0] == mail[:7]
    changed, _ = known.request(step("alter", "request", 203), "alice", mail)
    assert [at for at in range(200) if changed[at] != mail[at]] == [3]
    assert changed[3] == mail[3] ^ 1
    assert len(known.request(step("garbage", "request", 9), "alice", mail)[0]) == 10
    assert known.older(step("replay", "all"))[0] == []
    known.requests = [("alice", b"first"), ("bob", b"second")]
    assert known.older(step("replay", "all"))[0] == [b"first", b"second"]
    assert known.older(step("replay", "request", 1)) == (
        [b"first"],
        "gave the enclave an earlier mail of alice once more, before this one",
    )


def test_tampering_with_answers() -> None:
    known = Tampering()
    assert known.answer(step("replay", "answer"), "alice", b"own")[0] == b""
    known.answers = [("alice", b"old"), ("bob", b"his"), ("alice", b"own")]
    assert known.answer(step("replay", "answer"), "alice", b"own")[0] == b"old"
    assert known.answer(step("cross-wire", "answer"), "alice", b"own")[0] == b"his"
    assert known.answer(step("truncate", "answer", 2), "alice", b"own")[0] == b"ow"
    assert known.answer(step("alter", "answer", 0), "alice", b"own")[0] == b"nwn"


def test_stores_that_fail_and_lie() -> None:
    faults = Faults()
    kept = MemoryStates()
    states = FaultyStates(kept, faults)

    async def held() -> list[bytes]:
        return [data async for _, data in kept.read()]

    async def main() -> None:
        await states.append([(0, b"zero")])
        for fault, error in (("full", StoreFull), ("fails", StoreUnavailable)):
            faults.now = fault
            with pytest.raises(error):
                await states.append([(1, b"one")])
            assert await held() == [b"zero"]
        with pytest.raises(StoreUnavailable):
            [piece async for piece in states.read()]
        faults.now = "forgets"
        await states.append([(1, b"one")])
        assert await held() == [b"zero"]
        faults.now = "unsure"
        with pytest.raises(StoreUnavailable):
            await states.append([(1, b"one")])
        assert await held() == [b"zero", b"one"]

    asyncio.run(main())


# What workloads use ------------------------------------------------------------------------------


def test_outcomes_say_what_is_known() -> None:
    def fail(error: Error) -> int:
        raise error

    attack = made()
    assert attack.attempt(lambda: 5) == Outcome(5)
    confirmed, refused = Outcome(None), attack.attempt(fail, CallError("Refused", "no"))
    assert (confirmed.confirmed, confirmed.refused, confirmed.unknown) == (True, False, False)
    assert (refused.confirmed, refused.refused, refused.unknown) == (False, True, False)
    for error in (TransportError("?"), RollbackError("!")):
        unknown = attack.attempt(fail, error)
        assert (unknown.confirmed, unknown.refused, unknown.unknown) == (False, False, True)
        assert unknown.error is error
    with pytest.raises(ZeroDivisionError):
        attack.attempt(lambda: 1 // 0)


def test_things_attempted_together() -> None:
    attack = made()
    assert [o.value for o in attack.together(lambda: 1, lambda: 2, lambda: 3)] == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        attack.together(lambda: 1, lambda: 1 // 0)


class Honest:
    continuous = linear = True


def made() -> Attack:
    return Attack(
        "http://127.0.0.1:1/run",
        "C:" + "0" * 64,
        Path("/nowhere"),
        story=[],
        turn=lambda: 0,
        behave=lambda: None,
        fleet=Honest(),
    )


def test_names_and_secrets_that_are_refused() -> None:
    attack = made()
    for name in ("", "a/b", "…", "a b"):
        with pytest.raises(ValueError, match="letters, digits"):
            attack.client(name)
    with pytest.raises(ValueError, match="by chance"):
        attack.secret("short")


def test_identities_go_by_name() -> None:
    assert attack_identity("alice").public == attack_identity("alice").public
    assert attack_identity("alice").public != attack_identity("bob").public


def test_workloads_are_found_and_loaded(tmp_path: Path) -> None:
    (tmp_path / "poll.py").write_text("")
    assert beside(tmp_path / "poll.py") is None
    assert beside(tmp_path) is None
    written = tmp_path / "poll_workload.py"
    written.write_text("import poll\n\ndef workload(attack):\n    attack.append(1)\n")
    (tmp_path / "workload.py").write_text("check = 5\n")
    assert beside(tmp_path / "poll.py") == beside(tmp_path / "poll:app") == written
    assert beside(tmp_path) == tmp_path / "workload.py"
    seen: list[Any] = []
    loaded = load_workload(written)
    loaded.run(seen)  # type: ignore[arg-type]
    loaded.check(seen)  # type: ignore[arg-type]
    assert seen == [1]
    with pytest.raises(FormatError, match=r"workload.py has no function `workload\(attack\)`"):
        load_workload(tmp_path / "workload.py")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(FormatError, match="ZeroDivisionError"):
        load_workload(tmp_path / "broken.py")
    with pytest.raises(FileNotFoundError):
        load_workload(tmp_path / "missing.py")


# A workload of nothing but types -------------------------------------------------------------------


@dataclass
class Reading:
    patient: str
    pulse: int = 0


@pytest.mark.parametrize(
    "kind",
    [
        bool,
        int,
        float,
        str,
        bytes,
        type(None),
        list,
        list[int],
        set[str],
        dict[str, list[int]],
        tuple[int, str],
        tuple[int, ...],
        int | None,
        Literal["a,b", "it's", 3],
        Reading,
        list[Reading | None],
    ],
)
def test_values_are_of_the_type_that_is_described(kind: Any) -> None:
    for seed in range(20):
        made = Values(random.Random(seed), []).of(describe(kind))
        assert made == Values(random.Random(seed), []).of(describe(kind))
        msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=kind)


def test_values_of_no_type() -> None:
    for described in ("stream<bytes>", "list<int", "ref Tree", "record"):
        with pytest.raises(FormatError, match="no values are made"):
            Values(random.Random(0), []).of(described)


def interface(*methods: tuple[str, list[tuple[str, str, bool]], str]) -> bytes:
    return msgspec.msgpack.encode(
        [None, [[name, list(map(list, p)), returns, True, None] for name, p, returns in methods]]
    )


class Answers(Attack):
    """An attack whose clients are answered by a function."""

    def __init__(self, answer: Callable[[Call], Any]) -> None:
        self.secrets = set()
        self._answer = answer
        self._fleet = Honest()

    def client(self, name: str, **options: Any) -> Any:
        class Client:
            def call(_, method: str, *arguments: Any) -> Any:
                return self._answer(Call(name, method, arguments))

        return Client()


def rehearsed(answer: Callable[[Call], Any]) -> GeneratedWorkload:
    workload = GeneratedWorkload(interface(("put", [("text", "str", False)], "int"), ("feed", [], "stream<bytes>")))
    for _ in range(workload.rehearsals):
        workload.run(Answers(answer))
    return workload


def test_generated_calls_are_those_that_can_be_made() -> None:
    workload = rehearsed(lambda call: 5)
    assert {call.method for call in workload.calls} == {"put"}
    assert {call.client for call in workload.calls} == set(CLIENTS)
    attack = Answers(lambda call: 5)
    workload.run(attack)
    workload.check(attack)
    assert attack.secrets == {str(call.arguments[0]).encode() for call in workload.calls}
    with pytest.raises(FormatError, match="write a workload"):
        GeneratedWorkload(interface(("feed", [], "stream<bytes>")))


def test_an_answer_that_an_honest_operator_would_not_have_given_is_a_failure() -> None:
    with pytest.raises(AnsweredOtherwise, match=r"alice's put\('\w+'\) was answered 6; .* honest operator it is 5"):
        rehearsed(lambda call: 5).run(Answers(lambda call: 6))


def test_after_an_unknown_outcome_nothing_is_compared() -> None:
    number = 0

    def unanswered(call: Call) -> int:
        nonlocal number
        number += 1
        if number == 3:
            raise TransportError("no answer")
        return 5 if number < 3 else 6

    rehearsed(lambda call: 5).run(Answers(unanswered))


def test_after_a_roll_back_nothing_is_compared() -> None:
    attack = Answers(lambda call: 6)
    attack._fleet = type("Forked", (), {"continuous": False, "linear": False})()
    rehearsed(lambda call: 5).run(attack)


def test_answers_that_differ_by_themselves_say_nothing() -> None:
    number = 0

    def counting(call: Call) -> int:
        nonlocal number
        number += 1
        return number

    rehearsed(counting).run(Answers(counting))


def test_who_is_not_served_by_an_honest_operator_says_so_but_for_proof_of_a_rollback() -> None:
    def refuse(error: Error) -> Callable[[Call], Any]:
        def answer(call: Call) -> Any:
            raise error

        return answer

    workload = rehearsed(lambda call: 5)
    with pytest.raises(NotServed, match="alice is not served by an honest operator any more: no answer"):
        workload.check(Answers(refuse(TransportError("no answer"))))
    workload.check(Answers(refuse(RollbackError("proof"))))
    workload.check(Answers(refuse(CallError("Refused", "no"))))


def test_errors_that_are_not_declared_are_remarked() -> None:
    def fail(call: Call) -> Any:
        raise CallError("error", "the enclave's code failed")

    assert rehearsed(fail).remarks == ["put fails with an error that it does not declare, for arguments of its types"]
