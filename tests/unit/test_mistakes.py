"""What is typed wrongly gets one line that says what was expected, exit status 1, and no traceback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from conclave.cli import main

CODE = "C:" + "0" * 64


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("nothing of the kind")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "c.constraint").write_text("FOO:1\n")
    (tmp_path / "nothing.bin").touch()
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("error")
    assert written.err.count("\n") == 1
    return written.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nonsense",), 'error (usage): Unknown command "nonsense"'),
        (("nonsense",), "see `conclave --help`"),
        (("cal",), 'error (usage): Unknown command "cal". Did you mean "call"?; see `conclave --help`'),
        (("build",), "see `conclave build --help`"),
        (("build", "x.py", "--dbug"), "Did you mean --debug?"),
        (("tcb", "rehearse", "x"), "see `conclave tcb rehearse --help`"),
        (("serve", "x", "--port", "70000"), "Must be <= 65535"),
        (("call", "http://x", "y", "--constraint", CODE, "--timeout", "-1"), "Invalid value"),
        (("call", "http://x", "y", "--constraint", CODE, "--deadline", "0"), "Invalid value"),
        (("call", "http://x", "y", "--constraint", ""), "the constraint is empty"),
        (("call", "http://x", "y", "--constraint", "folder"), "folder is not an ordinary file"),
        (
            ("call", "http://x", "y", "--constraint", CODE, "--identity", "folder"),
            "an identity file is an ordinary file",
        ),
        (("call", "http://x", "y", "--constraint", CODE, "--identity", "none/me"), "no such folder: none"),
        (("verify", "text.txt", "--constraint", "folder"), "folder is not an ordinary file"),
        (("verify", "text.txt", "--constraint", "empty"), "error (usage): empty is empty; expected a constraint as"),
        (("verify", "text.txt", "--constraint", "c.constraint"), "(format): c.constraint: unknown clause 'FOO:1' in"),
        (("call", "http://x", "y", "--constraint", "c.constraint"), "(format): c.constraint: unknown clause 'FOO:1'"),
        (("call", "http://x", "y", "--constraint", "SEC:STALE FOO:1"), "error (format): unknown clause 'FOO:1' in the"),
        (("verify", "ftp://x"), "begins with http:// or https://"),
        (("inspect", "ftp://x"), "begins with http:// or https://"),
        (("verify", "127.0.0.1:28770"), "begins with http:// or https://"),
        (("call", "127.0.0.1:28770", "y", "--constraint", CODE), "begins with http:// or https://"),
        (("verify", "http://"), "error (usage): the url names no host; expected one, such as http://"),
        (("verify", "http://127.0.0.1:99999"), "error (usage): the port of a url is a number from 1 to 65535"),
        (("call", "http://127.0.0.1:99999", "y", "--constraint", CODE), "error (usage): the port of a url is a number"),
        (("inspect", "missing"), "error: no such file: missing"),
        (("inspect", "text.txt/x"), "part of that path is a file, not a folder"),
        (("inspect", "none/missing"), "error: no such folder: none"),
        (("inspect", "nothing.bin"), "error (format): nothing.bin: the file is empty"),
        (("inspect", "folder"), "folder is a folder, and a file is needed"),
        (("serve", "folder"), "folder is a folder, and a file is needed"),
        (("state", "inspect", "folder"), "folder is a directory, and no bundle; a store is named file:folder"),
    ],
)
def test_one_line(place: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str) -> None:
    assert told in said(capsys, *arguments)


def test_a_file_may_have_the_name_of_a_host_and_a_port(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "disk:1").write_text("nothing of the kind")
    assert "error (evidence-unknown)" not in said(capsys, "verify", "disk:2")
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "disk:1"])
    assert stopped.value.code == 30


def test_the_help_of_lock_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["lock", "--help"])
    assert "a Python file that declares them" in capsys.readouterr().out


def test_a_folder_where_a_bundle_is_to_be_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "small.py").write_text(
        "from conclave.enclave import Enclave, rpc\n\nclass Small(Enclave):\n    @rpc\n    def f(self) -> int:\n"
        "        return 1\n"
    )
    # Not the file beside it, under whose name it is written first.
    assert "error: folder is a folder" in said(capsys, "build", "small.py", "-o", "folder")
    assert "error: no such folder: none" in said(capsys, "build", "small.py", "-o", "none/x.enclave")
    assert not [p for p in place.iterdir() if p.name.startswith(".")]


def test_a_host_that_never_answers(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from conclave.cli import _host

    monkeypatch.setattr(_host, "TIMEOUT_SECONDS", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        told = said(capsys, "verify", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "nothing answers there within 0.05 seconds; is it a conclave host?" in told
