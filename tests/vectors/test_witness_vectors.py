"""Our witnesses, anchors and rosters agree with vectors that another program made from the specifications."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conclave import _codec
from conclave.enclave import Roster
from conclave.errors import Error
from conclave.persistence import Anchor
from conclave.persistence.witness import MAX_MESSAGE, Answer, read_answer
from conclave.witness.steps import read_advance_request, read_head_request

PLACE = Path(__file__).parents[2] / "vectors" / "witness"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(PLACE.glob("*.json"))}


def opened(case: dict[str, Any]) -> object:
    """What a case's bytes are, verified as far as its kind has it."""
    data = bytes.fromhex(case["data"])
    if case["kind"] == "head":
        return read_head_request(data)
    if case["kind"] == "advance":
        return read_advance_request(data)
    if case["kind"] == "answer":
        key, log_key, nonce = (bytes.fromhex(case[name]) for name in ("witness", "log_key", "nonce"))
        read_answer(data, key=key, log_key=log_key, nonce=nonce)
        return _codec.decode(Answer, data, max_size=MAX_MESSAGE, what="answer")
    anchor = Anchor.parse(data)
    anchor.verify(case["keys"], case["quorum"], log_id=bytes.fromhex(case["log_id"]), version=case["version"])
    return anchor


@pytest.mark.spec("WIT-1", "WIT-2", "WIT-3", "WIT-6", "WIT-13", "WIT-16")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["kind"] != "roster"])
def test_messages(name: str) -> None:
    case = CASES[name]
    if case["expect"] == "ok":
        assert _codec.encode(opened(case)).hex() == case["data"]
        return
    with pytest.raises(Error) as caught:
        opened(case)
    assert caught.value.code == case["expect"]


@pytest.mark.spec("BAR-1")
def test_roster() -> None:
    case = CASES["roster"]
    made = Roster.of([bytes.fromhex(member) for member in case["members"]], case["quorum"])
    assert made.digest.hex() == case["digest"]


def test_the_generator_makes_these_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PLACE / "generate.py"), str(tmp_path)], check=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        path.name: path.read_text() for path in PLACE.glob("*.json")
    }
