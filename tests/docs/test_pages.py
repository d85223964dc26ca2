"""Every code block of the manual is run, or checked, as its reader would."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conclave.errors import Error

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if "decisions" not in p.parts)
URL = "http://127.0.0.1:8765"
PORT = re.compile(r" --port (\d+)")
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVES = re.compile(r"conclave (run|serve|witness --key) ")


class Reader:
    """Follows one page in a folder of its own: writes its files, types its commands, compares what is shown."""

    def __init__(self, place: Path) -> None:
        self.place = place
        # A reader has cloned the repository.
        (place / "conclave").symlink_to(ROOT)
        # Addresses as the page shows them, and where they are here.
        self.urls: dict[str, str] = {}
        self._servers: dict[str, subprocess.Popen[str]] = {}
        self._work: dict[str, Callable[[str], object]] = {
            "python": self._python,
            "console": self._console,
            "toml": tomllib.loads,
            "json": json.loads,
        }
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_STATE_HOME": str(place / "state"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def follow(self, page: str) -> None:
        for kind, body in BLOCK.findall((DOCS / page).read_text()):
            work = self._work.get(kind)
            assert work is not None, f"{page}: a block of the kind {kind!r}, which nobody runs"
            work(body)

    def close(self) -> None:
        for shown in list(self._servers):
            self._stop(shown)

    def kill(self) -> None:
        for server in self._servers.values():
            server.kill()
            server.wait()

    def _stop(self, shown: str) -> None:
        server = self._servers.pop(shown, None)
        if server is not None:
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 130

    def _here(self, text: str) -> str:
        for shown, url in self.urls.items():
            text = text.replace(shown, url)
        return text

    def _python(self, body: str) -> None:
        first, _, _ = body.partition("\n")
        named = re.fullmatch(r"# (\w+\.py)", first)
        if named is not None:
            (self.place / named[1]).write_text(self._here(body))
            compile(body, named[1], "exec")
        else:
            self._compare(self._run([sys.executable, "-c", self._here(body)]), "")

    def _console(self, body: str) -> None:
        assert body.startswith("$ "), "a console block begins with a command"
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            if SERVES.match(command):
                self._compare(self._serve(command), expected)
            else:
                self._compare(self._run(["bash", "-c", self._here(command)]), expected)

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.place,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}"
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def _serve(self, command: str) -> str:
        port = PORT.search(command)
        shown = URL if port is None else f"http://127.0.0.1:{port[1]}"
        # One server a port: the next one on it takes its place.
        self._stop(shown)
        before = self.urls.pop(shown, shown)
        server = self._servers[shown] = subprocess.Popen(
            ["bash", "-c", f"exec {self._here(PORT.sub('', command))} --port 0"],
            cwd=self.place,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        last = {"conclave run": "written to", "conclave witness": "serving"}.get(
            " ".join(command.split()[:2]), "constraint"
        )
        said = ""
        for line in server.stdout:
            said += line
            if line.startswith("serving"):
                self.urls[shown] = line.split()[1]
            if line.startswith(last):
                break
        assert shown in self.urls, f"{command}: it did not start\n{said}"
        for file in self.place.glob("*.py"):
            file.write_text(file.read_text().replace(before, self.urls[shown]))
        return said

    def _compare(self, said: str, expected: str) -> None:
        """`…` stands for anything in a line, and a line of its own for any lines."""
        if not expected.strip():
            return
        lines = expected.rstrip("\n").splitlines()
        pattern = "".join(
            r"(?:.*\n)*" if line == "…" else re.escape(line.rstrip()).replace("…", ".*") + "\n" for line in lines
        )
        found = "".join(line.rstrip() + "\n" for line in said.splitlines())
        for shown, url in self.urls.items():
            found = found.replace(url, shown)
        assert re.fullmatch(pattern, found), f"shown:\n{expected}\nsaid:\n{found}"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    try:
        yield made
    finally:
        made.kill()


def test_every_decision_is_in_the_index() -> None:
    decisions = DOCS / "decisions"
    listed = re.findall(r"^\| (\d+) \| \[.*?\]\((.*?)\) \|", (decisions / "README.md").read_text(), re.MULTILINE)
    assert listed == [(str(int(p.name[:4])), p.name) for p in sorted(decisions.glob("0*.md"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of(page: str, reader: Reader) -> None:
    reader.follow(page)
    reader.close()


def test_a_block_that_shows_something_else_is_noticed(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader._console("$ echo one; echo two\none\n…\n")
    with pytest.raises(AssertionError, match="said"):
        reader._console("$ echo one; echo two\none\n")
    with pytest.raises(AssertionError):
        reader._console("$ false\n")


def test_every_error_code_is_explained() -> None:
    page = (DOCS / "guide" / "troubleshooting.md").read_text()
    codes = {Error.code}
    found = list(Error.__subclasses__())
    while found:
        kind = found.pop()
        # What a start refuses is the enclave's own: its host hears of it as a PlatformError.
        if kind.__module__ == Error.__module__:
            codes.add(kind.code)
        found += kind.__subclasses__()
    assert re.findall(r"^## `(\S+)`$", page, re.MULTILINE) == sorted(codes, key=lambda c: page.find(f"## `{c}`")), (
        "an error without a section, or a section without an error"
    )


def test_threats_that_are_named_exist() -> None:
    known = set(re.findall(r"^\| (T-\d+) \|", (ROOT / "spec" / "threat-model.md").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"T-\d+", (DOCS / page).read_text())) <= known


class Addresses(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe") or (
            tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload")
        ):
            self.found.append(given.get("src") or given.get("href") or "")


@pytest.mark.slow
def test_the_manual_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        parser = Addresses()
        parser.feed(page.read_text())
        assert parser.found
        assert not [a for a in parser.found if "//" in a], page
    for name in (ROOT / "PUBLIC_API.txt").read_text().split():
        reference = (tmp_path / "site" / "reference" / name.split(".")[1] / "index.html").read_text()
        assert f'id="{name}"' in reference, f"the reference has nothing on {name}"
