"""Constraints are read, written out and held against facts as the vectors say."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests._facts import evidence

from conclave import _crypto
from conclave.attestation import Claims, Constraint, InstanceClaims, appraise, reference
from conclave.attestation.claims import TEES
from conclave.errors import AppraisalError, FormatError

PLACE = Path(__file__).parents[2] / "vectors" / "constraint"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(PLACE.glob("*.json"))}


def of(*expect: str) -> list[str]:
    return [name for name, case in CASES.items() if case["expect"] in expect]


@pytest.fixture(autouse=True)
def _known_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all vectors the measurement is one that is known for the release."""
    known = {"conclave-9.9.9": {tee: ["3e" * 32] for tee in TEES}}
    monkeypatch.setattr(reference, "_built_in", msgspec.structs.replace(reference.built_in(), releases=known))


def facts(said: dict[str, Any]) -> Claims:
    instance = InstanceClaims(
        version=1,
        bundle_id=bytes(32),
        code=bytes.fromhex(said["code"]),
        signer=bytes.fromhex(said["signer"]),
        product_id=said["product_id"],
        revocation_level=said["revocation_level"],
        runtime=said["runtime"],
        sandbox="none",
        mode=said["mode"],
        suite=_crypto.SUITE_ID,
        encryption_key=bytes(1216),
        signing_key=bytes(32),
        boot_nonce=bytes(32),
        log_id=None,
        kds_constraint=None,
        interface=bytes(32),
    )
    return Claims(
        instance=instance,
        claims_digest=instance.digest(),
        tee=said["tee"],
        evidence=evidence(
            debug=said["debug"],
            tcb_status=said["tcb_status"],
            advisories=tuple(said["advisories"]),
            oldest_issue_date=datetime.fromisoformat(said["oldest_issue_date"]),
        ),
        measurement=bytes.fromhex(said["measurement"]),
        verified_at=datetime.fromisoformat(said["now"]),
    )


def test_all_cases_are_here(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PLACE / "generate.py"), str(tmp_path)], check=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {p.name: p.read_text() for p in PLACE.glob("*.json")}
    assert len(CASES) == 44
    for name, case in CASES.items():
        assert case["id"] == f"constraint/{name}"
        assert set(case) >= {"id", "spec", "comment", "expect", "text"}


@pytest.mark.spec("CON-1", "CON-2", "CON-3", "CON-7", "CON-8")
@pytest.mark.parametrize("name", of("format"))
def test_what_does_not_parse(name: str) -> None:
    with pytest.raises(FormatError) as refused:
        Constraint.parse(CASES[name]["text"])
    assert refused.value.code == "format"


@pytest.mark.spec("CON-10")
@pytest.mark.parametrize("name", of("ok", "appraisal"))
def test_what_is_written_out(name: str) -> None:
    case = CASES[name]
    constraint = Constraint.parse(case["text"])
    assert str(constraint) == case["written"]
    assert Constraint.parse(case["written"]) == constraint


@pytest.mark.spec("CON-2", "CON-4", "CON-5", "CON-6", "CON-7", "CON-11")
@pytest.mark.parametrize("name", of("ok"))
def test_what_is_accepted(name: str) -> None:
    case = CASES[name]
    assert appraise(Constraint.parse(case["text"]), facts(case["facts"])).security == case["security"]


@pytest.mark.spec("CON-4", "CON-5", "CON-6", "CON-7", "CON-8", "CON-9", "CON-11", "CON-12")
@pytest.mark.parametrize("name", of("appraisal"))
def test_what_is_refused(name: str) -> None:
    case = CASES[name]
    with pytest.raises(AppraisalError) as refused:
        appraise(Constraint.parse(case["text"]), facts(case["facts"]))
    assert refused.value.code == "appraisal"
    assert [failure.partition(":")[0] for failure in refused.value.failures] == case["clauses"]
