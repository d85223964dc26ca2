"""`conclave new` writes a project that works, or says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conclave.cli import main
from conclave.testing import serve_enclave


def new(name: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["new", name])
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Survey", "2 to 40 characters"),
        ("a", "2 to 40 characters"),
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


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "survey").mkdir()
    assert new(str(tmp_path / "survey")) == 0
