"""`conclave reference`: from values to a signed file and back, and what is told otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.test_reference import VALUES

from conclave.cli import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    from conclave.bundle import generate_key

    generate_key(tmp_path / "publisher.key")
    return tmp_path / "publisher.key"


@pytest.mark.spec("EVID-12")
def test_sign_and_show(tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values, signed = tmp_path / "values.json", tmp_path / "reference.values"
    values.write_text(json.dumps(VALUES, indent=2))
    assert run("reference", "sign", values, "--key", key, "-o", signed) == 0
    publisher = capsys.readouterr().out.split()[-1]
    assert run("reference", "show", signed, "--publisher", publisher) == 0
    shown = capsys.readouterr().out
    for part in ("number 7", "33" * 48, f"with bundle {'bb' * 32}", "snp-milan 4.0.22.213"):
        assert part in shown
    assert run("reference", "show", signed, "--publisher", publisher, "--json") == 0
    assert json.loads(capsys.readouterr().out) == VALUES
    assert run("reference", "show", signed, "--publisher", "0" * 64) == 1
    assert "another publisher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is not JSON"),
        ("{}", "Object missing required field `version`"),
        (json.dumps(VALUES | {"version": 3}), "only version 1"),
        (json.dumps(VALUES | {"minimum_tcb": {"snp-milan": "x"}}), "minimum TCB version"),
    ],
)
def test_values_that_cannot_be_signed(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    values, signed = tmp_path / "values.json", tmp_path / "reference.values"
    values.write_text(text)
    assert run("reference", "sign", values, "--key", key, "-o", signed) == 1
    assert message in capsys.readouterr().err
    assert not signed.exists()
    assert run("reference", "show", values, "--publisher", "xyz") == 1
    assert "64 hex digits" in capsys.readouterr().err
