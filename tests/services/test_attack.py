"""Attacks for real: the kit finds the bug of an enclave that has one, nothing in its twin, and seeds mean the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conclave.testing import Attack
from conclave.testing.attack.generated import GeneratedWorkload
from conclave.testing.attack.hosting import Hosting
from conclave.testing.attack.hunt import hunt
from conclave.testing.attack.run import Run
from conclave.testing.attack.runner import Runner
from conclave.testing.attack.schedule import ACTIONS, Step, draw, read
from conclave.testing.attack.workload import AuthorsWorkload, load_workload

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "attack"
CONCLAVE = [sys.executable, "-m", "conclave.cli"]

COUNTER = """
import os

from conclave.enclave import Enclave, rpc


class Counter(Enclave):
    def on_start(self) -> None:
        self.seen: list[str] = []

    @rpc
    def put(self, token: str) -> int:
        self.seen.append(token)
        return self.seen.count(token)

    @rpc
    def end(self) -> None:
        os._exit(3)
"""


@pytest.fixture(scope="module")
def hosting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosting]:
    path = tmp_path_factory.mktemp("counter") / "counter.py"
    path.write_text(COUNTER)
    with Hosting(path) as hosting:
        yield hosting


def puts(attack: Attack) -> None:
    """No token is counted twice, whatever happens to it."""
    for number in range(3):
        for name in ("alice", "bob"):
            client = attack.client(name)
            counted = attack.attempt(client.call, "put", f"the token {name} {number}")
            assert counted.unknown or counted.value == 1, counted
    attack.secret("the token")


def served(attack: Attack) -> None:
    assert attack.attempt(attack.client("alice").call, "put", "the token of the end").confirmed


def told(run: Run) -> str:
    return "\n".join(f"{line.turn} {line.client} {line.text}" for line in run.story if line.by_operator)


@pytest.mark.parametrize(("action", "variant"), [(a, v) for a, variants in ACTIONS.items() for v in variants])
def test_every_action_happens_and_is_withstood(hosting: Hosting, action: str, variant: str) -> None:
    run = Runner(hosting, AuthorsWorkload(puts, served))((Step(5, action, variant, 1234),))
    assert run.failure is None, run
    assert run.cut_short is None
    assert told(run), "it did nothing"
    # Clients try again, or look at the instance again, but where the enclave alone has to bear it.
    borne = (
        action in ("duplicate", "reorder", "store")
        or variant in ("same-frame", "all")
        or (action, variant)
        == (
            "replay",
            "request",
        )
    )
    assert (run.requests == 9) == borne


def test_an_honest_operator_does_nothing(hosting: Hosting) -> None:
    run = Runner(hosting, AuthorsWorkload(puts, served))(())
    assert (run.failure, run.cut_short, told(run)) == (None, None, "")
    assert run.requests == 9


def test_the_same_seed_does_the_same(hosting: Hosting) -> None:
    runner = Runner(hosting, AuthorsWorkload(puts, served))
    # Of requests alone: how often a client tries again while an enclave starts depends on the time that takes.
    schedule = draw(6, length=9, actions=("drop", "delay", "duplicate", "truncate", "replay", "cross-wire"))
    first, second = runner(schedule), runner(schedule)
    assert told(first) == told(second) != ""


def test_steps_that_are_due_together_all_happen(hosting: Hosting) -> None:
    schedule = read("3:drop:answer 3:drop:request 3:replay:all 3:store:full 3:duplicate:second")
    run = Runner(hosting, AuthorsWorkload(puts, served))(schedule)
    assert run.failure is None
    assert len(told(run).splitlines()) == 5


def test_mail_that_is_overtaken(hosting: Hosting) -> None:
    def together(attack: Attack) -> None:
        alice, bob = attack.client("alice"), attack.client("bob")
        alice.verify(), bob.verify()
        done = attack.together(lambda: alice.call("put", "of alice"), lambda: bob.call("put", "of bob"))
        assert [outcome.value for outcome in done] == [1, 1]

    run = Runner(hosting, AuthorsWorkload(together))(read("3:reorder:request"))
    assert run.failure is None
    assert "had passed it" in told(run)


def test_an_enclave_that_ends_by_itself_is_found(hosting: Hosting) -> None:
    def end(attack: Attack) -> None:
        alice = attack.client("alice")
        attack.attempt(alice.call, "end", retry=False)
        attack.attempt(alice.call, "put", "the token")

    run = Runner(hosting, AuthorsWorkload(end))(())
    assert run.failure is not None
    assert "nobody had ended it" in run.failure.message
    # It was started again all the same: everybody is served.
    assert [line.text for line in run.story][-1] == "put('the token'): 1"


def test_what_the_operator_sees_in_plain_is_found(hosting: Hosting) -> None:
    def tell(attack: Attack) -> None:
        attack.secret("for all to see")
        attack.attempt(attack.client("alice").mail, b"body", envelope=b"for all to see")

    run = Runner(hosting, AuthorsWorkload(tell))(())
    assert run.failure is not None
    assert "in plain" in run.failure.message


def test_a_client_that_is_closed_goes_on_from_its_saved_state(hosting: Hosting) -> None:
    def restart(attack: Attack) -> None:
        alice = attack.client("alice")
        assert attack.client("alice") is alice
        lost = attack.attempt(alice.call, "put", "left behind")
        alice.close()
        again = attack.client("alice")
        assert again is not alice
        assert again.identity.public == alice.identity.public
        assert [r.error for r in again.resume()] == [None] * lost.unknown

    runner = Runner(hosting, AuthorsWorkload(restart))
    assert runner(()).failure is None
    dropped = " ".join(f"{n}:drop:answer" for n in range(2, 6))
    run = runner(read(dropped))
    assert run.failure is None, run
    assert len(told(run).splitlines()) == 4


def test_errors_of_the_library_are_no_failure_and_others_are(hosting: Hosting) -> None:
    def careless(attack: Attack) -> None:
        attack.client("alice").call("put", "the token")
        attack.client("alice").call("put", "the other")

    runner = Runner(hosting, AuthorsWorkload(careless))
    run = runner(read("3:bundle:this:4"))
    assert run.failure is None
    assert run.cut_short is not None
    assert run.cut_short.code == "appraisal"

    def broken(attack: Attack) -> None:
        attack.client("alice").call("put", "the token")
        raise KeyError("a bug of the workload")

    run = Runner(hosting, AuthorsWorkload(broken))(())
    assert run.failure is not None
    assert "KeyError" in run.failure.message


# The examples ------------------------------------------------------------------------------


def test_the_bug_of_the_poll_is_found_within_the_default_budget_and_its_twin_holds() -> None:
    workload = load_workload(EXAMPLES / "poll_workload.py")
    with Hosting(EXAMPLES / "poll.py") as hosting:
        # Seeds rather than time, so that a slow machine does not decide; on an ordinary one they take half a minute.
        hunted = hunt(Runner(hosting, workload), seeds=range(1, 31), seconds=10_000)
    assert hunted.found is not None
    run = hunted.found.run
    assert run.failure is not None
    assert "votes were confirmed" in run.failure.message or "different results" in run.failure.message
    assert len(run.schedule) == 1
    assert run.schedule[0].action in ("restart", "fork", "roll-back", "garbage")
    with Hosting(EXAMPLES / "poll_fixed.py") as hosting:
        runner = Runner(hosting, workload)
        assert runner(run.schedule).failure is None
        assert hunt(runner, seeds=range(1, 13), seconds=10_000).found is None


@pytest.fixture(scope="module")
def wallet() -> Iterator[Hosting]:
    with Hosting(EXAMPLES / "wallet_fixed.py") as hosting:
        yield hosting


def test_the_bug_of_the_wallet_is_found_within_the_default_budget_and_its_twin_holds(wallet: Hosting) -> None:
    workload = load_workload(EXAMPLES / "wallet_workload.py")
    with Hosting(EXAMPLES / "wallet.py") as hosting:
        hunted = hunt(Runner(hosting, workload), seeds=range(1, 31), seconds=10_000)
        # Its interface alone is enough to find it.
        generated = GeneratedWorkload(hosting.program.manifest.interface)
        again = hunt(Runner(hosting, generated), seeds=[], given=read("7:restart:after"), rehearsals=2)
    assert hunted.found is not None
    run = hunted.found.run
    assert run.failure is not None
    assert "has 0, and put in 10 to 10" in run.failure.message
    assert [step.action for step in run.schedule] == ["restart"]
    assert again.found is not None
    assert again.found.run.failure is not None
    assert "with an honest operator it is 100" in again.found.run.failure.message
    runner = Runner(wallet, workload)
    assert runner(run.schedule).failure is None
    assert hunt(runner, seeds=range(1, 13), seconds=10_000).found is None


@pytest.mark.parametrize(
    ("schedule", "error"),
    [
        ("7:roll-back:kill:1", "RollbackError"),
        ("7:roll-back:stop:1", "RollbackError"),
        ("5:fork:swap:0 9:fork:swap:0", "RollbackError"),
        ("7:store:forgets:4 13:restart:before:0", "RollbackError"),
        ("7:roll-back:empty:0", "LogReplaced"),
    ],
)
def test_clients_notice_that_state_was_taken_away(wallet: Hosting, schedule: str, error: str) -> None:
    run = Runner(wallet, load_workload(EXAMPLES / "wallet_workload.py"))(read(schedule))
    assert run.failure is None, run
    assert any(error in line.text for line in run.story), run.story


@pytest.mark.parametrize("schedule", ["7:restart:before", "7:restart:after", "7:store:unsure:1", "7:store:full:1"])
def test_what_takes_nothing_away_is_not_noticed(wallet: Hosting, schedule: str) -> None:
    run = Runner(wallet, load_workload(EXAMPLES / "wallet_workload.py"))(read(schedule))
    assert run.failure is None, run
    balances = [line.text for line in run.story if line.text.startswith("balance")]
    assert balances == [f"balance(): {amount}" for amount in (10, 10, 20, 20, 30, 30)], run.story


def conclave(*arguments: str, status: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*CONCLAVE, "attack", *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_command(tmp_path: Path) -> None:
    for name in ("poll.py", "poll_workload.py"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    poll = str(tmp_path / "poll.py")
    found: dict[str, Any] = json.loads(conclave(poll, "--schedule", "1:fork:this:0", "--json", status=10).stdout)
    assert found["verdict"] == "found"
    assert found["found"]["schedule_text"] == "1:fork:this:0"
    assert found["found"]["statement"].startswith("assert told >= counted")
    nothing = conclave(poll, "--seed", "1", "--actions", "alter,truncate", status=0)
    assert "NOTHING FOUND in one schedule (seed 1)" in nothing.stdout
    assert "workload: poll_workload.py" in nothing.stderr
    assert "no such action: burn" in conclave(poll, "--actions", "burn", status=1).stderr
    assert "without --seeds" in conclave(poll, "--seed", "1", "--seeds", "2", status=1).stderr
    (tmp_path / "poll_workload.py").write_text("def workload(attack):\n    assert False, 'never so'\n")
    assert "honest operator already" in conclave(poll, status=1).stderr


def test_an_enclave_without_a_workload(tmp_path: Path) -> None:
    path = tmp_path / "adder.py"
    path.write_text(COUNTER.replace("os._exit(3)", "raise KeyError(1)"))
    done = conclave(str(path), "--seeds", "6", status=0)
    assert "every method is called" in done.stderr
    assert "NOTHING FOUND in 6 schedules" in done.stdout
    assert "remark      end fails with an error that it does not declare" in done.stdout


FIXTURE = """
import pytest
from conclave.testing import Attack, attack_fixture

attack = attack_fixture(PATH, seeds=SEEDS, actions=("fork",))


@pytest.fixture
def voters():
    return ["alice", "bob", "carol"]


def test_votes_count(attack: Attack, voters: list[str]) -> None:
    counted = 0
    for name in voters:
        voter = attack.client(name)
        voter.verify()
        vote = attack.attempt(voter.call, "vote", "yes", voter.instance.claims_digest)
        counted += vote.confirmed
        result = attack.attempt(voter.call, "result")
        assert not result.confirmed or sum(result.value.values()) >= counted
"""


def test_the_fixture(tmp_path: Path) -> None:
    def run(enclave: str, seeds: int) -> str:
        (tmp_path / "test_poll.py").write_text(
            FIXTURE.replace("PATH", repr(str(EXAMPLES / enclave))).replace("SEEDS", str(seeds))
        )
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", "test_poll.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        return done.stdout + done.stderr

    assert "3 passed" in run("poll_fixed.py", 3)
    said = run("poll.py", 16)
    assert "1 failed" in said
    assert "What the operator" not in said
    assert "What happened, by request:" in said
    assert "OPERATOR  started a second enclave" in said
    assert "assert not result.confirmed or sum(result.value.values()) >= counted" in said
