"""Each check is held by a test that is named, and the names are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mutation.mutants import ROOT, Mutant, mutants
from mutation.runner import EQUIVALENT, KILLED, failing_test, read

_FIND = re.compile(r"def (test_\w+)\(")


def sample() -> list[Mutant]:
    """A few that are spread over all files."""
    every = mutants()
    return every[5 :: len(every) // 8]


def test_every_check_has_a_test() -> None:
    """`make mutation` after a check is added, or changed."""
    killed, excused = read(KILLED), read(EQUIVALENT)
    assert not set(killed) & set(excused)
    assert set(killed) | set(excused) == {m.name for m in mutants()}
    assert all(excused.values())
    assert len(excused) < 5


def test_the_named_tests_exist() -> None:
    names: dict[str, set[str]] = {}
    for killer in read(KILLED).values():
        file, _, test = killer.partition("::")
        known = names.setdefault(file, set(_FIND.findall((ROOT / file).read_text())))
        assert test.partition("[")[0] in known, f"no such test: {killer}"


@pytest.mark.slow
def test_a_sample_dies_by_the_named_test(tmp_path: Path) -> None:
    killed = read(KILLED)
    chosen = [m for m in sample() if m.name in killed]
    assert len(chosen) >= 6
    assert failing_test(None, sorted({killed[m.name] for m in chosen}), tmp_path, slow=True) is None
    for mutant in chosen:
        assert failing_test(mutant, [killed[mutant.name]], tmp_path, slow=True) == killed[mutant.name]
