"""Built evidence is refused by the production verifiers, each with the one code that its vector names."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conclave.attestation import dcap, nitro, snp
from conclave.attestation.anchors import ANCHORS
from conclave.attestation.claims import TEES
from conclave.attestation.evidence import EvidenceClaims
from conclave.errors import ChainError, Error

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "vectors" / "evidence"
CASES: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in sorted(PLACE.glob("*.json"))}
PASSING = [name for name, case in CASES.items() if case["expect"] == "authentic"]
REFUSED = [name for name in CASES if name not in PASSING]
TIMES = ("oldest_issue_date", "valid_from", "valid_until")
SPECS = {"DCAP": "dcap.md", "SNP": "snp.md", "NITRO": "nitro.md"}


def blob(name: str) -> bytes:
    data = gzip.decompress((PLACE / "blobs" / f"{name}.gz").read_bytes())
    assert hashlib.sha256(data).hexdigest() == name
    return data


def verify(case: dict[str, Any], anchors: frozenset[str]) -> EvidenceClaims:
    raw, now = blob(case["evidence"]), datetime.fromisoformat(case["now"])
    if case["tee"] == "nitro":
        return nitro.verify_document(nitro.parse_document(raw), anchors=anchors, now=now)
    endorsements = blob(case["endorsements"])
    if case["tee"] == "snp":
        return snp.verify_report(snp.parse_report(raw), endorsements, anchors=anchors, now=now)
    return dcap.verify_quote(dcap.parse_quote(raw), endorsements, anchors=anchors, now=now)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    case = CASES[name]
    with pytest.raises(Error) as refused:
        verify(case, frozenset(case["anchors"]))
    assert refused.value.code == case["expect"], case["comment"]


@pytest.mark.parametrize("name", PASSING)
def test_what_passes(name: str) -> None:
    case = CASES[name]
    claims = verify(case, frozenset(case["anchors"]))
    assert claims.tee == case["tee"]
    assert {claims.anchor} == set(case["anchors"])
    said = {
        "debug": claims.debug,
        "remarks": sorted(claims.remarks),
        "tcb_status": claims.tcb_status,
        "statuses": dict(claims.statuses),
        "advisories": list(claims.advisories),
        "measurements": claims.measurements,
        "report_data": claims.report_data.hex() if claims.report_data is not None else None,
        "platform": claims.platform,
        **{name: f"{getattr(claims, name):%Y-%m-%dT%H:%M:%SZ}" for name in TIMES},
    }
    assert {key: said[key] for key in case["claims"]} == case["claims"]


@pytest.mark.parametrize("name", PASSING)
def test_no_vendor_vouches_for_what_passes(name: str) -> None:
    with pytest.raises(ChainError):
        verify(CASES[name], ANCHORS[CASES[name]["tee"]])


def test_there_are_enough() -> None:
    assert len(REFUSED) >= 300
    counted = Counter(CASES[name]["tee"] for name in REFUSED)
    assert set(counted) == set(TEES)
    assert min(counted.values()) >= 50
    assert len(PASSING) >= 25


def test_cases_are_complete() -> None:
    for name, case in CASES.items():
        assert case["id"] == f"evidence/{name}"
        assert name.startswith(f"{case['tee']}-")
        assert set(case) - {"claims"} == {
            "id", "spec", "comment", "expect", "tee", "now", "anchors", "evidence", "endorsements",
        }  # fmt: skip
        assert ("claims" in case) == (name in PASSING)


def test_every_requirement_and_every_code_has_a_vector() -> None:
    for prefix, page in SPECS.items():
        text = (ROOT / "spec" / page).read_text()
        requirements = set(re.findall(rf"^- \*\*({prefix}-\d+)\*\*", text, re.MULTILINE))
        named = {case["spec"] for case in CASES.values() if case["spec"].startswith(f"{prefix}-")}
        assert named == requirements
        listed = text.partition(". Codes\n")[2].partition("\n## ")[0]
        rows = [line.split("|")[1] for line in listed.splitlines() if line.startswith("| `")]
        codes = {code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row)}
        tees = {"dcap.md": {"sgx", "tdx"}}.get(page, {page.removesuffix(".md")})
        assert codes == {case["expect"] for case in CASES.values() if case["tee"] in tees} - {"authentic"}


@pytest.mark.slow
def test_the_generator_gives_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PLACE / "generate.py"), str(tmp_path)], check=True)
    for place in (tmp_path, PLACE):
        assert all(p.suffix == ".gz" for p in (place / "blobs").iterdir())
    assert {p.name for p in (tmp_path / "blobs").iterdir()} == {p.name for p in (PLACE / "blobs").iterdir()}
    made, kept = ({p.name: p.read_text() for p in place.glob("*.json")} for place in (tmp_path, PLACE))
    assert made == kept
    for path in (tmp_path / "blobs").iterdir():
        blob(path.stem)
