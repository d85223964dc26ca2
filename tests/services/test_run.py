"""What `conclave run` and `conclave serve` show to whoever looks at their terminal; real processes throughout."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.services.test_operation import own, told_by, until

from conclave.bundle import Bundle
from conclave.client import Client
from conclave.errors import Error

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "conclave.cli"]

TALKER = """
import os

from conclave.enclave import Enclave, rpc


class Talker(Enclave):
    @rpc
    def say(self, text: str) -> None:
        print(text)

    @rpc(retry=False)
    def end(self, text: str) -> None:
        print(text)
        os._exit(3)
"""
KEEPER = """
from conclave.enclave import Enclave, rpc


class Keeper(Enclave):
    persistence = "code"

    @rpc
    def keep(self, text: str) -> None:
        self.map["text"] = text.encode()
"""
STARTER = """
from conclave.enclave import Enclave, rpc


class Starter(Enclave):
    def on_start(self) -> None:
        raise ValueError("NO-DATABASE")

    @rpc
    def nothing(self) -> None:
        pass
"""


@dataclass
class Shown:
    """A command that serves, and what it has written."""

    process: subprocess.Popen[str]
    told: dict[str, str]
    errors: Path

    def client(self) -> Client:
        return Client(self.told["serving"], constraint=self.told["constraint"], attempts=1)

    def stands(self, pattern: str) -> bool:
        return re.search(pattern, self.errors.read_text(), re.MULTILINE) is not None


Showing = Callable[..., "contextmanager[Shown]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "temporary").mkdir()
    return {**own(tmp_path), "TMPDIR": str(tmp_path / "temporary")}


@pytest.fixture
def showing(machine: Path, tmp_path: Path, environment: dict[str, str]) -> Showing:
    @contextmanager
    def show(*arguments: str) -> Iterator[Shown]:
        errors = tmp_path / "errors"
        command = [*COMMAND, *arguments, "--platform", str(machine / "own"), "--port", "0"]
        with errors.open("w") as file:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment, cwd=tmp_path
            )
        try:
            yield Shown(process, told_by(process, "constraint"), errors)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)

    return show


def test_what_an_enclave_prints_is_shown_while_it_runs(showing: Showing, tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    with showing("run", "talker.py") as shown, shown.client() as client:
        client.call("say", "FIRST-WORDS")
        until(lambda: shown.stands("^FIRST-WORDS$"))


def test_an_enclave_that_ends_is_told_with_its_last_words(showing: Showing, tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    with showing("run", "talker.py") as shown:
        with shown.client() as client, suppress(Error):
            client.call("end", "LAST-WORDS")
        until(
            lambda: shown.stands(
                r"^LAST-WORDS\n  the enclave ended \(status 3\); "
                "starting it again: what it held in memory is gone$"
            )
        )
    # A stop that was asked for is no such end.
    assert shown.errors.read_text().count("the enclave ended") == 1


def test_the_log_tells_of_a_restart(showing: Showing, author: Callable[..., Bundle]) -> None:
    bundle = author("talker", TALKER)
    with showing("serve", str(bundle.path), "--log", "json") as shown:
        assert shown.told["delivery"].startswith("stateless: ")
        with shown.client() as client, suppress(Error):
            client.call("end", "LAST-WORDS")
        until(lambda: shown.stands('"status": 3, "event": "restarting"|"event": "restarting", "status": 3'))
    # It is a release.
    assert not shown.stands("LAST-WORDS")


def test_a_debug_bundle_that_is_served_shows_its_output(showing: Showing, author: Callable[..., Bundle]) -> None:
    bundle = author("talker", TALKER, mode="debug")
    with showing("serve", str(bundle.path), "--log", "none") as shown, shown.client() as client:
        client.call("say", "FIRST-WORDS")
        until(lambda: shown.stands("^FIRST-WORDS$"))


def test_where_state_is_kept_and_whether_there_was_any(
    showing: Showing, author: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = author("keeper", KEEPER)
    (tmp_path / "disk").mkdir()
    command = ("serve", str(bundle.path), "--store", "file:disk")
    with showing(*command) as shown, shown.client() as client:
        assert shown.told["state"] == "file:disk: new, begins a log of its own"
        assert shown.told["delivery"] == "exactly once, also across restarts of the enclave and of this host"
        client.call("keep", "x")
        assert client.instance is not None
        log_id = client.instance.claims.log_id
        assert log_id is not None
    with showing(*command) as shown:
        assert shown.told["state"] == f"file:disk, log {log_id.hex()[:8]}…"


@pytest.mark.parametrize("mode", ["release", "debug"])
def test_why_a_start_failed(
    mode: str, author: Callable[..., Bundle], machine: Path, environment: dict[str, str]
) -> None:
    bundle = author("starter", STARTER, mode=mode)
    command = [*COMMAND, "serve", str(bundle.path), "--platform", str(machine / "own"), "--port", "0", "--log", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert done.returncode == 1
    hint = "error (platform): the enclave refused to start: the enclave's start failed; `conclave run FILE` shows why\n"
    assert (done.stderr == hint) == (mode == "release")
    assert ("NO-DATABASE" in done.stderr) == (mode == "debug")


def test_what_a_killed_command_left_is_removed_by_the_next(showing: Showing, tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    places = tmp_path / "temporary"
    with showing("run", "talker.py") as first:
        (left,) = places.glob("conclave-run-*")
        with showing("run", "talker.py") as second:
            # The first still runs.
            assert left.is_dir()
            second.process.kill()
            second.process.wait()
        assert len(list(places.glob("conclave-run-*"))) == 2
        with showing("run", "talker.py"):
            found = list(places.glob("conclave-run-*"))
            assert len(found) == 2
            assert left in found
    assert not list(places.iterdir())
    assert first.process.returncode == 0
