"""The runtime tree: measured as it lies there, made once, removed when nobody runs it."""

from __future__ import annotations

import fcntl
import os
import shutil
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
            assert runtime_tree(small, held=True) == made[0]
            os.utime(made[0].root.parent, (0, 0))
    left, now = small / ".making-left", small / ".making-now"
    for hidden in (left, now):
        hidden.mkdir()
    os.utime(left, (0, 0))
    shelf.prune(small)
    assert [t.root.exists() for t in made] == [True, False, True, True, True, True]
    assert (left.exists(), now.exists()) == (False, True)


def test_trees_that_were_used_just_now_stay(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RuntimeTree] = []
    for number in range(7):
        monkeypatch.setattr(tree, "_key", lambda number=number: f"cpython-{number}")
        made.append(runtime_tree(small))
    assert all(t.root.exists() for t in made)


def test_a_tree_that_goes_before_it_is_locked_is_made_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each moment in turn: after it was made, and between opening and locking, where another takes its place."""
    made, lock, taken = tree._make, fcntl.flock, [0, 0]

    def make_and_lose(place: Path) -> None:
        made(place)
        taken[0] += 1
        if taken[0] == 1:
            shelf.remove_unless_held(place)

    def lose_and_lock(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_SH:
            taken[1] += 1
            if taken[1] == 1:
                shelf.remove_unless_held(place)
            if taken[1] == 2:
                shelf.remove_unless_held(place)
                made(place)
        lock(descriptor, how)

    place = small / "cpython-0"
    monkeypatch.setattr(tree, "_key", lambda: place.name)
    monkeypatch.setattr(tree, "_make", make_and_lose)
    monkeypatch.setattr(fcntl, "flock", lose_and_lock)
    found = runtime_tree(small, held=True)
    assert taken == [3, 3]
    assert found.measurement == measure(found.root)
    shelf.remove_unless_held(place)
    assert found.root.exists()


def test_a_tree_that_others_always_remove(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tree._make

    def make_and_lose(place: Path) -> None:
        made(place)
        shelf.remove_unless_held(place)

    monkeypatch.setattr(tree, "_make", make_and_lose)
    with pytest.raises(PlatformError, match="removed by another process whenever it is made"):
        runtime_tree(small)


def test_half_a_tree_is_made_again(small: Path) -> None:
    first = runtime_tree(small)
    shutil.rmtree(first.root)
    assert runtime_tree(small) == first
    assert first.root.exists()


def test_one_process_makes_trees_while_another_removes_them(tmp_path: Path) -> None:
    """Whoever holds a tree finds it whole, however often others prune at that moment."""
    cache = tmp_path / "cache"
    program = (
        "import os, sys; from pathlib import Path; from conclave.platform import shelf, tree\n"
        "def fill(root):\n    (root / 'bin').mkdir(parents=True); (root / 'bin' / 'x').write_text('x')\n"
        "tree._fill = fill; shelf.KEPT = 0; shelf.RECENT_SECONDS = -1; shelf._ATTEMPTS = 1000\n"
        "cache = Path(sys.argv[1])\n"
        "def lose():\n    shelf.prune(cache)\n"
        "def make():\n    tree.runtime_tree(cache)\n"
        "for _ in range(300):\n    {'make': make, 'lose': lose}[sys.argv[2]]()\n"
        "found = tree.runtime_tree(cache, held=True); shelf.prune(cache)\n"
        "print(found.measurement == tree.measure(found.root))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(cache), part], stdout=subprocess.PIPE, text=True)
        for part in ("make", "lose", "make", "lose")
    ]
    assert [process.communicate()[0].strip() for process in running] == ["True"] * 4


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match="cannot be made or read"):
        runtime_tree(tmp_path / "file")
