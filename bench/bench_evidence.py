"""Verification of hardware evidence per vendor, against what it replaces.

Parsing and verifying, endorsements at hand, nothing kept between calls. `sgx`, `tdx`:
against dcap-qvl (Rust) on the same bytes. All: against the signatures alone, the very
calls into the cryptography library that one verification makes, replayed.

Evidence is built under test roots (`conclave.testing.evidence`), of the real formats and
sizes; nothing captured is needed. Processor time of one process, a side at a time;
rounds take all in turn.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import dcap_qvl
from _common import emit, middle

from conclave.attestation import Anchors, _x509, verify_evidence
from conclave.attestation.dcap import parse_quote
from conclave.testing.evidence import AmdPki, AwsPki, BuiltEvidence, IntelPki

ROUNDS = 15
EACH = 40
NOW = datetime(2026, 3, 1, tzinfo=UTC)
_CHECKS = ("_verify", "_signed", "_crl_signed")


def cpu_ms(work: Callable[[], object]) -> float:
    """Processor milliseconds of one call."""
    began = time.process_time()
    for _ in range(EACH):
        work()
    return (time.process_time() - began) / EACH * 1e3


def ours(evidence: BuiltEvidence) -> Callable[[], object]:
    """Everything, from bytes to claims."""
    anchors = Anchors({evidence.tee: evidence.anchors})
    return lambda: verify_evidence(
        evidence.raw, evidence.endorsements, kind=evidence.tee, anchors=anchors, now=evidence.now
    )


def signatures(verify: Callable[[], object]) -> Callable[[], object]:
    """The checks of signatures that one verification makes, to be made again."""
    made: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
    real = {name: getattr(_x509, name) for name in _CHECKS}

    def noting(name: str) -> Callable[..., object]:
        def check(*arguments: Any) -> object:
            made.append((real[name], arguments))
            return real[name](*arguments)

        return check

    for name in _CHECKS:
        setattr(_x509, name, noting(name))
    try:
        verify()
    finally:
        for name in _CHECKS:
            setattr(_x509, name, real[name])

    def again() -> None:
        for check, arguments in made:
            check(*arguments)

    return again


def rust(evidence: BuiltEvidence) -> Callable[[], object]:
    """The same quote by dcap-qvl, its endorsements parsed each time as ours are."""
    root = next(c for c in parse_quote(evidence.raw).chain if hashlib.sha256(c).hexdigest() in evidence.anchors)
    now = int(evidence.now.timestamp())
    text = evidence.endorsements.decode()
    return lambda: dcap_qvl.verify_with_root_ca(evidence.raw, dcap_qvl.QuoteCollateralV3.from_json(text), root, now)


def main() -> None:
    """Measure and report."""
    intel, amd, aws = IntelPki.create(now=NOW), AmdPki.create(now=NOW), AwsPki.create(now=NOW)
    built = {"sgx": intel.sgx(), "tdx": intel.tdx(), "snp": amd.snp(), "nitro": aws.nitro()}
    sides: dict[str, Callable[[], object]] = {name: ours(evidence) for name, evidence in built.items()}
    sides |= {f"{name} signatures": signatures(sides[name]) for name in built}
    sides |= {f"{name} dcap-qvl": rust(built[name]) for name in ("sgx", "tdx")}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(ROUNDS):
        for name, side in sides.items():
            found[name].append(cpu_ms(side))

    def ratio(a: str, b: str) -> float:
        return middle(x / y for x, y in zip(found[a], found[b], strict=True))

    others = {name: [o for o in ("signatures", "dcap-qvl") if f"{name} {o}" in sides] for name in built}
    emit(
        "verify_evidence",
        ours={name: {"cpu_ms": middle(found[name])} for name in built},
        theirs={name: {o: {"cpu_ms": middle(found[f"{name} {o}"])} for o in others[name]} for name in built},
        ratios={name: {o: ratio(name, f"{name} {o}") for o in others[name]} for name in built},
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
