"""`conclave new` writes a project that works, or says why not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conclave.cli import main
from conclave.testing import serve_enclave


def new(name: str, *options: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["new", *options, name])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def run_tests(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_its_own_tests_pass_and_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new("my-survey") == 0
    project = tmp_path / "my-survey"
    assert sorted(p.name for p in project.iterdir()) == [
        ".gitignore",
        "README.md",
        "client.py",
        "my_survey.py",
        "test_my_survey.py",
    ]
    assert not [p for p in project.iterdir() if "@" in p.read_text().replace("@rpc", "").replace("@pytest", "")]
    done = run_tests(project)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    clean = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "100", "--select", "E,F,B,UP", "."],
        cwd=project,
    )
    assert clean.returncode == 0

    enclave = project / "my_survey.py"
    enclave.write_text(enclave.read_text().replace("ENOUGH = 3", "ENOUGH = 2"))
    assert "1 failed" in run_tests(project).stdout


@pytest.mark.slow
def test_its_client_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new("survey") == 0
    project = tmp_path / "survey"

    def client(*numbers: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "client.py", *numbers]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)

    assert "survey.constraint is missing" in client("1").stderr
    with serve_enclave(project / "survey.py") as served:
        (project / "survey.constraint").write_text(served.constraint + "\n")
        script = (project / "client.py").read_text()
        (project / "client.py").write_text(script.replace("http://127.0.0.1:8765", served.url))
        refused = client("12", "15")
        assert refused.returncode == 1
        assert refused.stderr == "an average is told of 3 numbers or more\n"
        assert client("9").stdout == "numbers so far: 3\naverage: 12.0\n"


CONCLAVE = (sys.executable, "-m", "conclave.cli")
# The template declares what this example does, so the example's lock is what `conclave lock` would write.
LOCK = Path(__file__).parents[2] / "examples" / "starlette" / "app.lock"


@contextmanager
def served(project: Path, *command: str) -> Iterator[str]:
    """`conclave run` or `serve` in the project's folder, as in a terminal; gives the URL."""
    arguments = [*CONCLAVE, *command, "--port", "0"]
    environment = {**os.environ, "XDG_STATE_HOME": str(project / "state")}
    with subprocess.Popen(arguments, cwd=project, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("serving"):
                    url = line.split()[1]
                if line.startswith("written to" if command[0] == "run" else "constraint"):
                    yield url
                    break
            else:
                pytest.fail("it did not start")
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130


def client_of(project: Path, url: str, constraint: str, *numbers: str) -> str:
    """What its client prints, once as each person."""
    (project / "my_survey.constraint").write_text(constraint + "\n")
    script = (project / "client.py").read_text()
    (project / "client_here.py").write_text(script.replace("http://127.0.0.1:8765", url))
    command = [sys.executable, "client_here.py"]
    said = [subprocess.run([*command, n], cwd=project, capture_output=True, text=True, check=True) for n in numbers]
    return "".join(done.stdout for done in said)


@pytest.mark.slow
def test_an_application_is_written_run_built_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert new("my-survey", "--asgi") == 0
    assert capsys.readouterr().out == (
        "wrote my-survey: my_survey.py, client.py, conftest.py, test_my_survey.py, README.md, .gitignore\n"
        "next:  cd my-survey; conclave lock my_survey.py; python -m pytest; conclave run my_survey:app\n"
    )
    project = tmp_path / "my-survey"
    # 1. Without its lock it says what is missing; the second step of what was printed mends that.
    unlocked = subprocess.run([*CONCLAVE, "run", "my_survey:app"], cwd=project, capture_output=True, text=True)
    assert (unlocked.returncode, unlocked.stdout) == (1, "")
    assert unlocked.stderr == (
        "error (bundle): my_survey.lock is missing: run `conclave lock my_survey.py` to pin the dependencies\n"
    )
    shutil.copyfile(LOCK, project / "my_survey.lock")
    # 2. Its tests pass, in this process and in an enclave, and can fail in both.
    done = run_tests(project)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
    program = (project / "my_survey.py").read_text()
    (project / "my_survey.py").write_text(program.replace("ENOUGH = 3", "ENOUGH = 2"))
    assert "2 failed, 4 passed" in run_tests(project).stdout
    (project / "my_survey.py").write_text(program)
    clean = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "100", "--select", "E,F,B,UP", "."]
    assert subprocess.run(clean, cwd=project).returncode == 0
    # 3. It runs, and its client talks to it.
    told = (
        '{"numbers":1}\nan average is told of 3 numbers or more\n'
        '{"numbers":2}\nan average is told of 3 numbers or more\n'
        '{"numbers":3}\n{"average":12.0}\n'
    )
    with served(project, "run", "my_survey:app") as url:
        constraint = (project / "my_survey.constraint").read_text().strip()
        assert client_of(project, url, constraint, "12", "15", "9") == told
    # 4. So does the release that is built of it, for whoever trusts its author.
    command = [*CONCLAVE, "build", "my_survey:app", "--sign", "author.key"]
    built = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    (author,) = [line for line in built.stdout.splitlines() if line.startswith("constraint author")]
    with served(project, "serve", "my-survey-0.enclave") as url:
        constraint = author.removeprefix("constraint author").strip() + " SEC:INSECURE"
        assert client_of(project, url, constraint, "12", "15", "9") == told
        refused = subprocess.run(
            [*CONCLAVE, "call", url, "average", "--constraint", constraint], cwd=project, capture_output=True, text=True
        )
        assert refused.returncode == 1
        assert "serves HTTP" in refused.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Survey", "2 to 40 characters"),
        ("a", "'a' is no name of a project: expected 2 to 40 characters"),
        ("a" * 41, "2 to 40 characters"),
        ("9lives", "2 to 40 characters"),
        ("..", "2 to 40 characters"),
        ("sur vey", "2 to 40 characters"),
        ("json", "a module named json exists already"),
        ("client", "a module named client exists already"),
        ("import", "a module named import exists already"),
        ("test-me", "a module named test_me exists already"),
        ("pytest", "a module named pytest exists already"),
        ("full", "is not an empty folder"),
        ("file", "is not an empty folder"),
        ("nowhere/survey", "no such folder: nowhere"),
    ],
)
def test_names_that_are_refused(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert new(name) == 1
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("options", [(), ("--asgi",)])
@pytest.mark.parametrize("name", ["xyz", "a-name-that-is-longer-than-usual"])
def test_comments_stand_in_one_column(
    name: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert new(name, *options) == 0
    lines = [line for line in (tmp_path / name / "README.md").read_text().splitlines() if "   # " in line]
    assert len(lines) == 4
    assert len({line.index("# ") for line in lines}) == 1
    assert max(len(line.partition("   # ")[0].rstrip()) for line in lines) + 3 == lines[0].index("# ")


def test_its_help_says_what_a_name_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["new", "--help"])
    assert "2 to 40 characters" in capsys.readouterr().out


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "survey").mkdir()
    assert new(str(tmp_path / "survey")) == 0
