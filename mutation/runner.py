"""Runs tests against a copy of the package in which one check is gone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mutation.mutants import PACKAGE, ROOT, Mutant

KILLED = Path(__file__).with_name("KILLED.txt")
EQUIVALENT = Path(__file__).with_name("EQUIVALENT.txt")
_FAILED = re.compile(r"^FAILED (\S+?::[^\n]*?)(?: - |$)", re.MULTILINE)


def read(table: Path) -> dict[str, str]:
    """A list of mutants: a name and, below it and indented, a test or an argument."""
    if not table.exists():
        return {}
    entries: dict[str, str] = {}
    name = ""
    for line in table.read_text().splitlines():
        if line.startswith("    "):
            entries[name] = f"{entries[name]} {line.strip()}".strip()
        elif line and not line.startswith("#"):
            name = line
            entries[name] = ""
    return entries


def failing_test(mutant: Mutant | None, tests: list[str], place: Path, *, slow: bool = False) -> str | None:
    """The first of these tests that fails with that mutant (or without any), if one does.

    Args:
        place: a directory of this run's own, for the copy.

    Raises:
        RuntimeError: the tests could not be run at all.
    """
    copy = place / "src" / "conclave"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        (copy / mutant.file).write_text(mutant.applied())
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-rf", "--no-header", "-p", "no:cacheprovider", "-p"]
    command += ["no:xdist", *([] if slow else ["-m", "not slow"]), *tests]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(place / "src")
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment, timeout=400
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == 0:
        return None
    found = _FAILED.search(done.stdout)
    if found is None:
        raise RuntimeError(f"{mutant.name if mutant else 'unchanged'}: no test failed, but:\n{done.stdout[-2000:]}")
    return found[1]
