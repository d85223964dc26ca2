"""Built evidence of Intel's shape, judged by dcap-qvl too: where it judges otherwise is written down.

`vectors/evidence/ORACLE.txt` has a line for each difference. Most are where dcap-qvl is
laxer (encodings, reserved bytes, lists of the future); the rest is what it refuses by a
policy of its own, and what this project tells instead.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime
from typing import Any

import dcap_qvl
from tests.vectors.test_evidence_vectors import CASES, PLACE, blob

ORACLE = PLACE / "ORACLE.txt"
CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END")


def anchor(case: dict[str, Any], *places: bytes) -> bytes | None:
    for place in places:
        for match in CERTIFICATE.finditer(place):
            try:
                der = base64.b64decode(b"".join(match[1].split()))
            except ValueError:
                continue
            if hashlib.sha256(der).hexdigest() in case["anchors"]:
                return der
    return None


def theirs(case: dict[str, Any]) -> str:
    raw, endorsements = blob(case["evidence"]), blob(case["endorsements"])
    now = int(datetime.fromisoformat(case["now"]).timestamp())
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(endorsements.decode())
        root = anchor(case, raw, endorsements.replace(b"\\n", b"\n"))
        return str(dcap_qvl.verify_with_root_ca(raw, collateral, root, now).status)
    except (ValueError, TypeError):
        return "refused"


def test_where_dcap_qvl_judges_otherwise() -> None:
    lines = []
    agreed = 0
    for name, case in CASES.items():
        if case["tee"] not in ("sgx", "tdx"):
            continue
        ours, found = case["expect"], theirs(case)
        if ours == "authentic":
            ours = case["claims"]["tcb_status"]
        if found == ours or (found == "refused" and case["expect"] != "authentic"):
            agreed += 1
        else:
            lines.append(f"{name}: ours {ours}, dcap-qvl {found}")
    assert lines == ORACLE.read_text().splitlines()[1:]
    assert agreed > 4 * len(lines)


def test_what_it_accepts_and_we_refuse_is_no_missing_signature() -> None:
    for line in ORACLE.read_text().splitlines()[1:]:
        case = CASES[line.partition(":")[0]]
        assert not case["expect"].endswith("-signature"), line
