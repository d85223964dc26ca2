"""What once ended in a traceback is refused with a code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conclave.bundle.lockfile import read_lock
from conclave.bundle.source import read_source
from conclave.bundle.wheels import members
from conclave.errors import Error

PLACE = Path(__file__).parents[2] / "vectors" / "found"
CASES = sorted(path.stem for path in PLACE.glob("*.json"))


def read(case: dict[str, str], place: Path) -> None:
    if "wheel" in case:
        list(members(bytes.fromhex(case["wheel"]), "thing-1-py3-none-any.whl"))
    else:
        (place / "source.py").write_text("")
        (place / "source.lock").write_bytes(bytes.fromhex(case["lock"]))
        read_lock(read_source(place / "source.py"))


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, tmp_path: Path) -> None:
    case = json.loads((PLACE / f"{name}.json").read_text())
    with pytest.raises(Error) as refused:
        read(case, tmp_path)
    assert refused.value.code == case["expect"]


def test_the_generator_gives_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PLACE / "generate.py"), str(tmp_path)], check=True)
    assert sorted(p.stem for p in tmp_path.iterdir()) == CASES
    for name in CASES:
        assert (tmp_path / f"{name}.json").read_text() == (PLACE / f"{name}.json").read_text()
