"""The runtime tree: measured as it lies there, made once, removed when nobody runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conclave.errors import PlatformError
from conclave.platform import shelf, tree
from conclave.platform.tree import RuntimeTree, measure, runtime_tree


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which a tree is made of two files."""

    def fill(root: Path) -> None:
        (root / "bin").mkdir(parents=True)
        (root / "bin" / "python3").write_text("interpreter")
        (root / "lib").symlink_to("bin")

    monkeypatch.setattr(tree, "_fill", fill)
    return tmp_path / "cache"


def test_it_is_made_once_and_measured_as_it_lies_there(small: Path) -> None:
    said: list[str] = []
    first = runtime_tree(small, on_progress=said.append)
    assert runtime_tree(small, on_progress=said.append) == first
    assert said == ["preparing the runtime (once)"]
    assert first.measurement == measure(first.root)
    file = first.root / "bin" / "python3"
    file.write_text("Interpreter")
    touched = runtime_tree(small)
    assert touched.measurement != first.measurement
    file.write_text("interpreter")
    assert runtime_tree(small).measurement == first.measurement


def test_everything_counts(small: Path) -> None:
    made = runtime_tree(small)
    seen = {made.measurement}

    def differs() -> None:
        measurement = runtime_tree(small).measurement
        assert measurement not in seen
        seen.add(measurement)

    (made.root / "more").write_text("")
    differs()
    (made.root / "more").chmod(0o755)
    differs()
    (made.root / "more").rename(made.root / "moved")
    differs()
    (made.root / "lib").unlink()
    (made.root / "lib").symlink_to("/etc")
    differs()
    (made.root / "empty").mkdir()
    differs()


def test_two_processes_make_one_tree(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from conclave.platform import tree\n"
        "def fill(root):\n    (root / 'bin').mkdir(parents=True); (root / 'bin' / 'x').write_text('x')\n"
        "tree._fill = fill; print(tree.runtime_tree(Path(sys.argv[1])).measurement.hex())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate()[0] for process in running}) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_trees_of_other_releases_go_when_nobody_runs_them(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RuntimeTree] = []
    for number in range(6):
        monkeypatch.setattr(tree, "_key", lambda number=number: f"cpython-{number}")
        made.append(runtime_tree(small))
        os.utime(made[-1].root.parent, (number, number))
        if number == 0:
            shelf.hold(made[0].root.parent)
            os.utime(made[0].root.parent, (0, 0))
    shelf.prune(small)
    assert [t.root.exists() for t in made] == [True, False, True, True, True, True]


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match="cannot be made or read"):
        runtime_tree(tmp_path / "file")
