"""Who would lose access: enclaves held against constraints as things are, and as they will be.

Runs at the operator or the relying party, before anything happens. Evidence,
endorsements and what a vendor announced are untrusted, and go through the production
verifier; constraints and reference values are the data owners'. Pure: the times are
arguments, and nothing is fetched.

Spec: spec/tcb.md section 3 (TCB-7 to TCB-13).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import msgspec

from conclave.attestation.appraisal import Claims, weigh
from conclave.attestation.binding import runtime_measurement
from conclave.attestation.claims import InstanceInfo, parse_instance_info
from conclave.attestation.constraint import Constraint
from conclave.attestation.evidence import EvidenceClaims
from conclave.attestation.gaps import Gap, gaps_of
from conclave.attestation.reference import ReferenceValues, built_in
from conclave.attestation.security import Security
from conclave.attestation.tcb import subject_of, version_of
from conclave.attestation.verify import Anchors, authenticate_instance, verify_evidence
from conclave.errors import AppraisalError, Error, FormatError, VerificationError

_FORGED: Final = frozenset(
    f"{document}-{fault}" for document in ("tcb-info", "qe-identity") for fault in ("format", "chain", "signature")
)


@dataclass(frozen=True, slots=True)
class Enclave:
    """What is held against constraints: as a host gave it, or as somebody kept it. Untrusted.

    Attributes:
        name: for people; free.
        kind: `sgx`, `tdx`, `snp` or `nitro`: how to read the evidence.
        evidence, endorsements: as `verify_evidence` takes them.
        claims: encoded instance claims; None for evidence that came alone, which names no
            program: then only what a constraint says of platforms counts.
    """

    name: str
    kind: str
    evidence: bytes
    endorsements: bytes
    claims: bytes | None = None

    @classmethod
    def of_instance(cls, name: str, info: bytes) -> Enclave:
        """From instance info. Raises FormatError."""
        parsed = parse_instance_info(info)
        return cls(name, parsed.format, parsed.evidence, parsed.endorsements, parsed.claims)

    def authenticate(self, anchors: Anchors, now: datetime) -> Claims:
        """Verify as a client does, without policy. Raises what `verify_instance` raises."""
        if self.claims is not None:
            info = InstanceInfo(1, self.kind, self.evidence, self.endorsements, self.claims)
            return authenticate_instance(info.encode(), anchors, now=now)
        anchors.demand(self.kind)
        tee, evidence = verify_evidence(self.evidence, self.endorsements, kind=self.kind, anchors=anchors, now=now)
        return Claims(None, b"", tee, evidence, runtime_measurement(evidence), now)


@dataclass(frozen=True, slots=True)
class Situation:
    """Enclaves with their endorsements at a time, and what relying parties know then.

    Attributes:
        reference: None for what this library knows.
        genuine: root certificates of simulated machines, SHA-256 in hex, that count as genuine
            hardware here, for constraints that do not accept simulated ones anyway. Nothing
            but a rehearsal comes of it: no result that a client would take.
    """

    enclaves: tuple[Enclave, ...]
    now: datetime
    reference: ReferenceValues | None = None
    genuine: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Standing:
    """How one enclave fares under one constraint in one situation.

    Attributes:
        accepted: whether a client with that constraint talks to it.
        code: empty if accepted; `appraisal` if the constraint refuses; else why it does not verify.
        security: None if it does not verify.
        tcb_status, tcb_version: as the vendor says; empty where it says nothing.
        advisories: the vendor's, for this platform.
        reasons: what keeps `security` from SECURE.
        failures: every clause that refuses, or the one reason why it does not verify.
        gaps: what the platform would need for the vendor's newest level.
    """

    accepted: bool
    code: str
    security: Security | None
    tcb_status: str
    tcb_version: str
    advisories: tuple[str, ...]
    reasons: tuple[str, ...]
    failures: tuple[str, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One enclave and one constraint, now and then."""

    enclave: str
    constraint: str
    now: Standing
    then: Standing

    @property
    def loses_access(self) -> bool:
        """A client that is served now would refuse then."""
        return self.now.accepted and not self.then.accepted

    @property
    def gains_access(self) -> bool:
        """A client that refuses now would be served then."""
        return self.then.accepted and not self.now.accepted


def rehearse(now: Situation, then: Situation, constraints: Mapping[str, Constraint]) -> tuple[Outcome, ...]:
    """Hold every enclave against every constraint, in both situations.

    It foresees nothing but what `then` says: see spec/tcb.md section 4.

    Args:
        now: as things are.
        then: the same enclaves in the same order, as things will be.
        constraints: the data owners', by names for people.

    Raises:
        ValueError: the situations have other enclaves, or a time has no zone.
        VerificationError: in `then` a vendor's document is not the vendor's. Nobody loses
            access by it, because no client believes it.
    """
    if [e.name for e in now.enclaves] != [e.name for e in then.enclaves]:
        raise ValueError("both situations are about the same enclaves")
    if any(situation.now.utcoffset() is None for situation in (now, then)):
        raise ValueError("now must be an aware datetime")
    outcomes: list[Outcome] = []
    for before, after in zip(now.enclaves, then.enclaves, strict=True):
        first, second = _Bench(before, now), _Bench(after, then)
        for name, constraint in constraints.items():
            outcome = Outcome(before.name, name, first.standing(constraint), second.standing(constraint))
            if outcome.now.code not in _FORGED and outcome.then.code in _FORGED:
                raise VerificationError(
                    f"what was announced is not the vendor's: {outcome.then.failures[0]}", code=outcome.then.code
                )
            outcomes.append(outcome)
    return tuple(outcomes)


class _Bench:
    """One enclave in one situation. Verified once for each set of trust anchors."""

    def __init__(self, enclave: Enclave, situation: Situation) -> None:
        self._enclave = enclave
        self._situation = situation
        self._reference = situation.reference or built_in()
        self._verified: dict[tuple[frozenset[str], str | None], Claims | Error] = {}
        self._gaps: dict[str | None, tuple[Gap, ...]] = {}

    def _authenticated(self, constraint: Constraint) -> Claims | Error:
        key = (constraint.tees, constraint.simulated_anchor)
        if key not in self._verified:
            anchors = Anchors.of(constraint)
            if "sgx" in anchors.roots and not anchors.simulated:
                roots = {**anchors.roots, "sgx": anchors.roots["sgx"] | self._situation.genuine}
                anchors = replace(anchors, roots=roots)
            try:
                self._verified[key] = self._enclave.authenticate(anchors, self._situation.now)
            except (FormatError, VerificationError, AppraisalError) as error:
                self._verified[key] = error
        return self._verified[key]

    def standing(self, constraint: Constraint) -> Standing:
        found = self._authenticated(constraint)
        if isinstance(found, Error):
            failures = found.failures if isinstance(found, AppraisalError) else (str(found),)
            return Standing(False, found.code, None, "", "", (), (), failures, ())
        reference = self._reference
        if found.instance is None:
            constraint = _of_platforms(constraint, found)
        else:
            if not constraint.codes and not constraint.signers:
                # About whatever runs there: a client has to name it.
                constraint = replace(constraint, codes=frozenset({found.instance.code.hex()}))
            if found.evidence.anchor in self._situation.genuine:
                reference = _with_runtime(reference, found.instance.runtime, found.measurement)
        security, reasons, failures = weigh(constraint, found, reference=reference)
        evidence = found.evidence
        subject = subject_of(evidence)
        minimum = constraint.minimum_tcb.get(subject) or self._reference.minimum_tcb.get(subject)
        return Standing(
            accepted=not failures,
            code=AppraisalError.code if failures else "",
            security=security,
            tcb_status=evidence.tcb_status,
            tcb_version=version_of(evidence),
            advisories=evidence.advisories,
            reasons=reasons,
            failures=failures,
            gaps=self._lacking(evidence, minimum) if failures or reasons else (),
        )

    def _lacking(self, evidence: EvidenceClaims, minimum: str | None) -> tuple[Gap, ...]:
        # The same for whatever anchors it verified under.
        if minimum not in self._gaps:
            self._gaps[minimum] = gaps_of(evidence, self._enclave.endorsements, minimum=minimum)
        return self._gaps[minimum]


def _with_runtime(reference: ReferenceValues, release: str, measurement: bytes) -> ReferenceValues:
    """The same, and that this is the release's runtime: no reference values name that of a simulated machine."""
    known = {**reference.releases.get(release, {}), "sgx": [measurement.hex()]}
    return msgspec.structs.replace(reference, releases={**reference.releases, release: known})


def _of_platforms(constraint: Constraint, claims: Claims) -> Constraint:
    """What a constraint says of platforms: evidence alone names no program and no release."""
    return replace(
        constraint,
        codes=frozenset(),
        signers=frozenset(),
        product_id=None,
        revocation_level=0,
        runtimes=frozenset({claims.measurement.hex()}),
    )
