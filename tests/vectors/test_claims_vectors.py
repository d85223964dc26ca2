"""Claims, bundle ids, digests and evidence agree with vectors that another program made."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conclave.attestation import Constraint, bundle_id, parse_claims, verify_instance
from conclave.attestation.claims import claims_digest
from conclave.errors import Error

PLACE = Path(__file__).parents[2] / "vectors" / "claims"
CASES: dict[str, dict[str, Any]] = {p.stem: json.loads(p.read_text()) for p in sorted(PLACE.glob("*.json"))}


def of(member: str, *, ok: bool) -> list[str]:
    return [name for name, case in CASES.items() if member in case and (case["expect"] == "ok") is ok]


def test_all_cases_are_here(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PLACE / "generate.py"), str(tmp_path)], check=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {p.name: p.read_text() for p in PLACE.glob("*.json")}
    assert len(CASES) == 35
    for name, case in CASES.items():
        assert case["id"] == f"claims/{name}"
        assert set(case) >= {"id", "spec", "comment", "expect"}


@pytest.mark.spec("CLM-4", "CLM-5")
@pytest.mark.parametrize("name", of("fields", ok=True))
def test_what_is_accepted(name: str) -> None:
    case = CASES[name]
    encoding = bytes.fromhex(case["encoding"])
    claims = parse_claims(encoding)
    assert claims.encode() == encoding
    for field, value in case["fields"].items():
        got = getattr(claims, field)
        assert (got.hex() if isinstance(got, bytes) else got) == value
    # Ours, the vector's, and one made here with hashlib alone.
    numbers = struct.pack(">HH", claims.product_id, claims.revocation_level)
    alone = hashlib.sha256(b"conclave/1 bundle" + claims.code + claims.signer + numbers).hexdigest()
    ours = bundle_id(
        code=claims.code,
        signer=claims.signer,
        product_id=claims.product_id,
        revocation_level=claims.revocation_level,
    )
    assert ours.hex() == claims.bundle_id.hex() == case["bundle_id"] == alone
    alone = hashlib.sha512(b"conclave/1 instance-claims\x00" + encoding).hexdigest()
    assert claims.digest().hex() == claims_digest(encoding).hex() == case["claims_digest"] == alone


@pytest.mark.spec("CLM-6")
@pytest.mark.parametrize("name", of("encoding", ok=False))
def test_what_does_not_parse(name: str) -> None:
    with pytest.raises(Error) as refused:
        parse_claims(bytes.fromhex(CASES[name]["encoding"]))
    assert refused.value.code == CASES[name]["expect"]


def verify(name: str) -> Any:
    case = CASES[name]
    now = datetime.fromisoformat(case["now"])
    return verify_instance(bytes.fromhex(case["info"]), Constraint.parse(case["constraint"]), now=now)


@pytest.mark.spec("CLM-7", "CLM-8")
def test_evidence_that_is_accepted() -> None:
    assert of("info", ok=True) == ["info"]
    result = verify("info")
    signed = CASES["signed"]
    assert result.claims_digest.hex() == signed["claims_digest"]
    assert result.claims.bundle_id.hex() == signed["bundle_id"]
    assert (result.tee, result.security, result.tcb_status) == ("simulated", "INSECURE", "UpToDate")
    # What the quote holds, at the offsets that the specification names.
    info = bytes.fromhex(CASES["info"]["info"])
    body = info[info.index(bytes.fromhex("0300020000000000")) + 48 :][:384]
    assert body[192:256].hex() == signed["bundle_id"] + "00" * 32
    assert body[320:384].hex() == signed["claims_digest"]


@pytest.mark.spec("CLM-3", "CLM-4", "CLM-5", "CLM-7", "CLM-8")
@pytest.mark.parametrize("name", of("info", ok=False))
def test_evidence_that_is_refused(name: str) -> None:
    with pytest.raises(Error) as refused:
        verify(name)
    assert refused.value.code == CASES[name]["expect"]
