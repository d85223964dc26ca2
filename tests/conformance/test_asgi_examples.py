"""The example applications' own tests, each in this process and in an enclave."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastapi", "starlette", "django"])
def test_an_application_passes_its_own_tests_in_an_enclave(name: str) -> None:
    place = ROOT / "examples" / name
    assert not [p for p in place.rglob("*.py") if "conclave" in p.read_text() and p.name != "conftest.py"]
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    counted = re.search(r"^(\d+) passed in", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert counted is not None, done.stdout
    tests = sum(p.read_text().count("def test_") for p in place.glob("test_*.py"))
    assert int(counted[1]) == 2 * tests
