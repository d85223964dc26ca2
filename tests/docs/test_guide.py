"""README, guide and examples do what they say, run as a reader would run them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONCLAVE = [sys.executable, "-m", "conclave.cli"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, kind: str) -> list[str]:
    return [body for name, body in BLOCK.findall((ROOT / page).read_text()) if name == kind]


@contextmanager
def running(*arguments: str, cwd: Path) -> Iterator[str]:
    """`conclave …` until the block ends; gives the address it printed."""
    environment = {**os.environ, "XDG_STATE_HOME": str(cwd / "state")}
    process = subprocess.Popen(
        [*CONCLAVE, *arguments, "--port", "0"], cwd=cwd, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    url = ""
    try:
        for line in process.stdout:
            if line.startswith("serving"):
                url = line.split()[1]
            # The last line that is printed before serving begins.
            if line.startswith(("written to", "constraint ")) and url and (arguments[0] != "run" or "written" in line):
                break
        assert url, "it printed no address"
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def run(*command: str, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*command], cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_examples_are_what_the_readme_shows() -> None:
    enclave, client = blocks("README.md", "python")
    example = (ROOT / "examples" / "hello.py").read_text()
    assert "\n".join(example.splitlines()[2:]).split() == enclave.partition("\n")[2].split()
    assert client.partition("\n")[2].split() == (ROOT / "examples" / "hello_client.py").read_text().split()
    assert len(example.splitlines()) <= 20
    assert len((ROOT / "examples" / "hello_client.py").read_text().splitlines()) <= 6


@pytest.mark.parametrize("name", ["scorer.py", "cleaner.py", "owner.py"])
def test_the_pipeline_is_what_the_guide_shows(name: str) -> None:
    (shown,) = [b for b in blocks("docs/guide/pipeline.md", "python") if b.startswith(f"# {name}\n")]
    example = (ROOT / "examples" / "pipeline" / name).read_text()
    assert example.partition('."""\n')[2].split() == shown.partition("\n")[2].split()


def test_the_poll_is_what_the_guide_shows() -> None:
    (shown,) = [b for b in blocks("docs/guide/barrier.md", "python") if b.startswith("# poll.py\n")]
    settings, _, rest = (ROOT / "examples" / "poll" / "poll.py").read_text().partition('"""')
    assert (settings + rest.partition('"""\n')[2]).split() == shown.partition("\n")[2].split()


@pytest.mark.slow
def test_hello(tmp_path: Path) -> None:
    for name in ("hello.py", "hello_client.py"):
        (tmp_path / name).write_text((ROOT / "examples" / name).read_text())
    with running("run", "hello.py", cwd=tmp_path) as url:
        client = (tmp_path / "hello_client.py").read_text().replace("http://127.0.0.1:8765", url)
        (tmp_path / "hello_client.py").write_text(client)
        first = run(sys.executable, "hello_client.py", cwd=tmp_path)
        assert first.stdout == "Hello World, you are number 1.\n"
        accepted = run(*CONCLAVE, "verify", url, "--constraint", "hello.constraint", "--json", cwd=tmp_path)
        assert '"verdict": "accepted"' in accepted.stdout
        assert '"security": "INSECURE"' in accepted.stdout
        called = run(*CONCLAVE, "call", url, "greet", "Ada", "--constraint", "hello.constraint", cwd=tmp_path)
        assert called.stdout == '"Hello Ada, you are number 2."\n'
        refused = run(*CONCLAVE, "verify", url, "--constraint", "C:" + "0" * 64, cwd=tmp_path, status=20)
        assert "simulated TEE" in refused.stdout
        wrong = run(*CONCLAVE, "call", url, "greet", "5", "--constraint", "hello.constraint", cwd=tmp_path, status=1)
        assert "argument 'name' is not str" in wrong.stderr


@pytest.mark.slow
def test_a_release_is_built_and_served(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text((ROOT / "examples" / "hello.py").read_text())
    built = run(*CONCLAVE, "build", "hello.py", "--sign", "author.key", cwd=tmp_path)
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in built.stdout.splitlines())
    assert oct((tmp_path / "author.key").stat().st_mode)[-3:] == "600"
    written = tmp_path / facts["written to"]
    assert written.read_text() == facts["constraint"] + "\n"
    assert "INSECURE" not in written.read_text()
    with running("serve", "hello-0.enclave", cwd=tmp_path) as url:
        for constraint in (facts["constraint simulated"], facts["constraint author"] + " SEC:INSECURE"):
            run(*CONCLAVE, "verify", url, "--constraint", constraint, cwd=tmp_path)
        refused = run(*CONCLAVE, "verify", url, "--constraint", "hello-0.constraint", cwd=tmp_path, status=20)
        assert "simulated TEE" in refused.stdout
    # A debug bundle is insecure everywhere, and its constraint says so. The file is beside the bundle.
    for output, beside in (("out/mine.enclave", "out/mine.constraint"), ("out/other", "out/other.constraint")):
        (tmp_path / "out").mkdir(exist_ok=True)
        built = run(*CONCLAVE, "build", "hello.py", "--debug", "--json", "-o", output, cwd=tmp_path)
        assert json.loads(built.stdout)["written_to"] == beside
        assert (tmp_path / beside).read_text().endswith(" SEC:INSECURE\n")


@pytest.mark.slow
def test_the_guide(tmp_path: Path) -> None:
    ward, client, joint = blocks("docs/guide/enclave.md", "python")
    (tmp_path / "ward.py").write_text(ward)
    (tmp_path / "client.py").write_text(client)
    (tmp_path / "joint.py").write_text(joint)
    with running("run", "ward.py", cwd=tmp_path) as url:
        done = run(sys.executable, "client.py", url, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "mean 66.0",
        "TooFast a pulse is at most 300",
        "b'received'",
        "b'done: hello'",
    ]
    run(*CONCLAVE, "build", "joint.py", cwd=tmp_path)
    roster, settings = blocks("docs/guide/enclave.md", "toml")
    tomllib.loads(roster)
    text = "\n".join(line for line in settings.splitlines() if not line.startswith("# ///"))
    declared = tomllib.loads(text)
    del declared["dependencies"]
    lines = ["# /// script", *("# " + line for line in text.splitlines()[1:]), "# ///", joint]
    (tmp_path / "settled.py").write_text("\n".join(lines))
    run(*CONCLAVE, "build", "settled.py", cwd=tmp_path)


def test_the_vectors_of_the_guide(tmp_path: Path) -> None:
    (program,) = [b for b in blocks("docs/guide/testing-evidence.md", "python") if b.startswith("# vectors.py")]
    (tmp_path / "vectors.py").write_text(program)
    place = ROOT / "vectors" / "evidence"
    done = run(sys.executable, "vectors.py", str(place), cwd=tmp_path)
    refused = sum('"expect": "authentic"' not in path.read_text() for path in place.glob("*.json"))
    assert done.stdout == f"{refused} to be refused\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build", "missing.py"), "no such file: missing.py"),
        (("build", "empty"), "has no pyproject.toml"),
        (("build", "text.txt"), "neither a Python file nor a project directory"),
        (("build", "broken.py"), "broken.py, line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        (("build", "none.py"), "must define exactly one subclass of conclave.enclave.Enclave, found: none"),
        (("build", "unlocked.py"), "run `conclave lock unlocked.py`"),
        (("serve", "text.txt"), "not a bundle"),
        (("serve", "missing.enclave"), "no such file"),
        (("serve", "text.txt", "--tee", "sgx"), "no driver for the TEE 'sgx'"),
        (("serve", "hello.enclave", "--peer", "host-b"), "begins with http:// or https://"),
        (("verify", "text.txt", "--constraint", "nonsense:"), "error (format)"),
        (("verify", "text.txt", "--constraint", "missing"), "no such file"),
        (("verify", "http://127.0.0.1:1", "--constraint", "C:" + "0" * 64), "is the host running?"),
        (("call", "ftp://x", "y", "--constraint", "C:" + "0" * 64), "http://"),
        (("call", "http://127.0.0.1:1", "y", "--constraint", "C:" + "0" * 64, "--identity", "text.txt"), "identity"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no bundle, no key, no instance info")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "none.py").write_text("x = 1\n")
    (tmp_path / "unlocked.py").write_text('# /// script\n# dependencies = ["numpy"]\n# ///\n')
    done = run(*CONCLAVE, *arguments, cwd=tmp_path, status=1)
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_the_demo() -> None:
    """The tour itself: downloads scikit-learn's locked wheels the first time."""
    done = run_demo()
    assert done.returncode == 0, done.stdout + done.stderr
    for told in (
        "569 patients",
        "hospital A: verified, mailed 285 records",
        "hospital B: verified, mailed 284 records",
        "Everything went as told",
    ):
        assert told in done.stdout
    assert done.stdout.count("✓") == 17
    assert "✗" not in done.stdout
    assert "Traceback" not in done.stderr


def run_demo() -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CONCLAVE, "demo"], capture_output=True, text=True, check=False, timeout=600)
