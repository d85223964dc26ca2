"""Verification of one captured SGX quote and one TDX quote, warm, against dcap-qvl and against bare signatures.

`ours` parses quote and endorsements and verifies all of it, as a client does on first
contact; `dcap_qvl` is the library in Rust on the same bytes, its collateral object made
beforehand; `signatures` are the nine ECDSA P-256 verifications that no verifier can leave
out. Processor time of this one process, in turn. Without the captured samples
(CONCLAVE_EVIDENCE, or ../shared/evidence) it says so and measures nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime

import dcap_qvl
from _common import HERE, emit, middle
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

sys.path.insert(0, str(HERE.parent))

from tests._evidence import ABSENT, evidence_dir

from conclave.attestation.anchors import ANCHORS
from conclave.attestation.dcap import parse_quote, verify_quote

ROUNDS, EACH, SIGNATURES = 15, 40, 9
SAMPLES = {"sgx": "azure-sgx-release", "tdx": "phala-tdx-v4-uptodate"}
BINARY = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")


def cpu_ms(work: Callable[[], object]) -> float:
    """Processor milliseconds of one call."""
    began = time.process_time()
    for _ in range(EACH):
        work()
    return (time.process_time() - began) / EACH * 1e3


def signatures() -> Callable[[], None]:
    """Nine verifications with ready keys."""
    key = ec.generate_private_key(ec.SECP256R1())
    signature = key.sign(b"data", ec.ECDSA(hashes.SHA256()))
    public, scheme = key.public_key(), ec.ECDSA(hashes.SHA256())

    def work() -> None:
        for _ in range(SIGNATURES):
            public.verify(signature, b"data", scheme)

    return work


def main() -> None:
    """Measure and report."""
    place = evidence_dir()
    if place is None:
        print(ABSENT, file=sys.stderr)
        return
    for kind, name in SAMPLES.items():
        sample = place / kind / name
        raw, endorsements = (sample / "quote.bin").read_bytes(), (sample / "collateral.json").read_bytes()
        now = datetime.fromisoformat(json.loads((sample / "meta.json").read_text())["valid_at"].replace("Z", "+00:00"))
        parts = {k: bytes.fromhex(v) if k in BINARY else v for k, v in json.loads(endorsements).items()}
        collateral, seconds = dcap_qvl.QuoteCollateralV3(**parts), int(now.timestamp())

        def ours(raw: bytes = raw, given: bytes = endorsements, kind: str = kind, now: datetime = now) -> object:
            return verify_quote(parse_quote(raw), given, anchors=ANCHORS[kind], now=now)

        def theirs(raw: bytes = raw, collateral: object = collateral, seconds: int = seconds) -> object:
            return dcap_qvl.verify(raw, collateral, seconds)

        sides = {"ours": ours, "dcap_qvl": theirs, "signatures": signatures()}
        found: dict[str, list[float]] = {side: [cpu_ms(work)] for side, work in sides.items()}
        for _ in range(ROUNDS):
            for side, work in sides.items():
                found[side].append(cpu_ms(work))
        measured = {side: values[1:] for side, values in found.items()}
        against = ("dcap_qvl", "signatures")
        emit(
            f"verify_{kind}",
            ours={"cpu_ms": middle(measured["ours"])},
            theirs={side: {"cpu_ms": middle(measured[side])} for side in against},
            ratios={
                side: middle(a / b for a, b in zip(measured["ours"], measured[side], strict=True)) for side in against
            },
            rounds=ROUNDS,
        )


if __name__ == "__main__":
    main()
