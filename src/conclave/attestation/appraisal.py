"""Holds verified claims against a constraint: accepted, or every reason why not.

Runs at the relying party. Everything here was verified before, or is the data owner's.

Spec: spec/constraint.md (CON-4 to CON-15), spec/evidence.md sections 4 to 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from conclave import _crypto
from conclave.attestation.binding import measured_with_bundle
from conclave.attestation.claims import InstanceClaims
from conclave.attestation.constraint import MEASUREMENT, Constraint
from conclave.attestation.evidence import EvidenceClaims
from conclave.attestation.reference import ReferenceValues, built_in
from conclave.attestation.security import LEVELS, SIMULATED, Security, judge
from conclave.attestation.tcb import reaches, subject_of, version_of
from conclave.errors import AppraisalError

_NAME_IT: Final = "if you have checked it, name the measurement"


@dataclass(frozen=True, slots=True)
class Claims:
    """What verified evidence says, together with the instance claims it covers.

    Made by the verifier only. `tee` names the trust anchor that verified; `measurement`
    is the runtime's. `instance` is None for evidence that came alone.
    """

    instance: InstanceClaims | None
    claims_digest: bytes
    tee: str
    evidence: EvidenceClaims
    measurement: bytes
    verified_at: datetime


@dataclass(frozen=True, slots=True)
class AttestationResult:
    """A verified instance that a constraint accepts. Only appraisal makes one.

    `reasons` are what keeps `security` from SECURE.
    """

    claims: InstanceClaims
    claims_digest: bytes
    tee: str
    security: Security
    reasons: tuple[str, ...]
    evidence: EvidenceClaims
    measurement: bytes
    verified_at: datetime

    @property
    def tcb_status(self) -> str:
        """The vendor's word; empty where the vendor gives none."""
        return self.evidence.tcb_status

    @property
    def advisories(self) -> tuple[str, ...]:
        """The vendor's security advisories for this platform."""
        return self.evidence.advisories

    @property
    def anchor(self) -> str:
        """SHA-256 of the trust anchor's certificate, in hex."""
        return self.evidence.anchor

    @property
    def oldest_issue_date(self) -> datetime:
        """Of the endorsements that age."""
        return self.evidence.oldest_issue_date

    def check_signature(self, data: bytes, signature: bytes) -> None:
        """Check that this instance's author code signed that data, with `Enclave.sign` (claims.md section 5).

        Args:
            data: what was signed, as whoever shows it has it.
            signature: 64 bytes, of whoever shows it.

        Raises:
            SignatureError: it did not.
        """
        _crypto.verify_signature(self.claims.signing_key, "app", self.claims_digest, data, signature)


def appraise(constraint: Constraint, claims: Claims, *, reference: ReferenceValues | None = None) -> AttestationResult:
    """Accept verified claims, or raise AppraisalError naming every reason.

    Args:
        constraint: the data owner's.
        claims: of the verifier.
        reference: which measurements are which release; None for what this library knows.
    """
    security, reasons, failures = weigh(constraint, claims, reference=reference)
    if claims.instance is None and not failures:
        failures = (
            "C/S: evidence alone names no program, so there is no instance to trust; use the host's instance info",
        )
    if failures:
        raise AppraisalError(failures)
    assert claims.instance is not None
    return AttestationResult(
        claims.instance,
        claims.claims_digest,
        claims.tee,
        security,
        reasons,
        claims.evidence,
        claims.measurement,
        claims.verified_at,
    )


def weigh(
    constraint: Constraint, claims: Claims, *, reference: ReferenceValues | None = None
) -> tuple[Security, tuple[str, ...], tuple[str, ...]]:
    """The level of security, what keeps it from SECURE, and every clause that refuses."""
    reference = reference or built_in()
    security, reasons = security_of(claims, reference=reference, constraint=constraint)
    checks = (
        _program(constraint, claims.instance),
        _product(constraint, claims.instance),
        _revocation(constraint, claims.instance),
        _level(constraint, security, reasons, claims),
        _age(constraint, claims),
        _tee(constraint, claims),
        _runtime(constraint, claims, reference),
        _minimum_tcb(constraint, claims),
        _chip(constraint, claims),
    )
    return security, reasons, tuple(check for check in checks if check is not None)


def security_of(
    claims: Claims, *, reference: ReferenceValues | None = None, constraint: Constraint | None = None
) -> tuple[Security, tuple[str, ...]]:
    """The level of security and what keeps it from SECURE, as a constraint sees it, or none."""
    subject = subject_of(claims.evidence)
    own = constraint.minimum_tcb.get(subject) if constraint else None
    minimum = own or (reference or built_in()).minimum_tcb.get(subject)
    if own is not None and claims.evidence.tcb_status:
        # The clause refuses for itself; the status is the vendor's.
        minimum = None
    return judge(
        claims.evidence,
        tee=claims.tee,
        debug=claims.instance is not None and claims.instance.mode == "debug",
        accepted_advisories=constraint.advisories if constraint else frozenset(),
        tcb_accepted=None if minimum is None else reaches(claims.evidence, minimum),
    )


def chip_of(evidence: EvidenceClaims) -> str:
    """What `CHIP:` names: SHA-256 of the processor's id, in hex; empty if the evidence names none."""
    return _crypto.sha256(evidence.platform.encode()).hex() if evidence.platform else ""


def _program(constraint: Constraint, instance: InstanceClaims | None) -> str | None:
    if not constraint.codes and not constraint.signers:
        nothing = "C/S: the constraint names no program; say which one you accept with C:, or whose with S: and PROD:"
        return None if instance is None else nothing
    accepted = [f"C:{c}" for c in sorted(constraint.codes)] + [f"S:{s}" for s in sorted(constraint.signers)]
    if instance is None:
        wanted = " or ".join(accepted)
        return f"C/S: expected {wanted}, but evidence alone names no program; verify the host's instance info"
    if instance.code.hex() in constraint.codes or instance.signer.hex() in constraint.signers:
        return None
    signer = f" S:{instance.signer.hex()}" if any(instance.signer) else ", unsigned"
    return (
        f"C/S: expected {' or '.join(accepted)}, got C:{instance.code.hex()}{signer}: this is another program, in "
        f"{instance.mode} mode (a release has another code than what `conclave run` starts); if you have reviewed it, "
        "put its code into the constraint"
    )


def _product(constraint: Constraint, instance: InstanceClaims | None) -> str | None:
    if constraint.product_id is None or instance is None or instance.product_id == constraint.product_id:
        return None
    return (
        f"PROD: expected {constraint.product_id}, got {instance.product_id}: "
        "the author's other product; connect to the right host or change PROD"
    )


def _revocation(constraint: Constraint, instance: InstanceClaims | None) -> str | None:
    if constraint.revocation_level == 0 or (instance and instance.revocation_level >= constraint.revocation_level):
        return None
    if instance is None:
        return "REVOKE: evidence alone names no program; verify the host's instance info"
    return (
        f"REVOKE: expected at least {constraint.revocation_level}, got {instance.revocation_level}: "
        "the author replaced this release; ask the operator to upgrade"
    )


def _level(constraint: Constraint, security: Security, reasons: tuple[str, ...], claims: Claims) -> str | None:
    status = claims.evidence.tcb_status or "status not given"
    mode = f", {claims.instance.mode} mode" if claims.instance else ""
    found = f"{security} ({claims.tee}, TCB {status}{mode})"
    if constraint.security == "INSECURE":
        if security == "INSECURE":
            return None
        return f"SEC: INSECURE matches only insecure enclaves, got {found}; remove SEC:INSECURE for this one"
    if LEVELS.index(security) >= LEVELS.index(constraint.security):
        return None
    hint = "for development only, say SEC:INSECURE" if security == "INSECURE" else "or accept SEC:STALE"
    found += ", because " + "; ".join(reasons)
    return f"SEC: expected {constraint.security}, got {found}; ask the operator to update the platform, {hint}"


def _age(constraint: Constraint, claims: Claims) -> str | None:
    if constraint.expire is None:
        return None
    years, months, days = constraint.expire
    if "revocation-unknown" in claims.evidence.remarks:
        # Left out, a list that names this platform would be as young as anybody likes.
        return (
            f"EXPIRE: expected endorsements younger than P{years}Y{months}M{days}D, but a revocation list is missing; "
            "ask the operator to fetch it"
        )
    oldest = claims.evidence.oldest_issue_date
    if oldest > _before(claims.verified_at, constraint.expire):
        return None
    return (
        f"EXPIRE: expected endorsements younger than P{years}Y{months}M{days}D, but the oldest endorsement is of "
        f"{oldest.date()}; ask the operator to fetch new endorsements"
    )


def _tee(constraint: Constraint, claims: Claims) -> str | None:
    if claims.tee in constraint.tees:
        return None
    return f"TEE: expected {', '.join(sorted(constraint.tees))}, got {claims.tee}; add it to TEE: if you accept it"


def _runtime(constraint: Constraint, claims: Claims, reference: ReferenceValues) -> str | None:
    measurement = claims.measurement.hex()
    instance = claims.instance
    expected = ", ".join(sorted(constraint.runtimes))
    if measurement in constraint.runtimes:
        if _tells_programs_apart(constraint, claims, reference):
            return None
        return (
            f"RUNTIME: {measurement} is pinned, but not for which of the programs that this accepts: on SGX it covers "
            "runtime and program together; accept one program by C:, or use reference values that name its bundle"
        )
    if instance is None:
        # A release is known by what the reference values say of this measurement.
        if any(reference.knows(r, claims.tee, claims.measurement) for r in constraint.runtimes):
            return None
        return f"RUNTIME: expected {expected}, got measurement {measurement}; {_NAME_IT}"
    # The release is the runtime's own word: it must not pass for a measurement, and on
    # hardware it counts only together with the measurement of that very release.
    named = instance.runtime in constraint.runtimes and not MEASUREMENT.match(instance.runtime)
    if named and _genuine(claims, instance, reference, release=instance.runtime):
        return None
    hint = "upgrade the client library or name the release"
    if named:
        hint = f"the reference values know no such measurement of that release; {_NAME_IT}"
    return f"RUNTIME: expected {expected}, got {instance.runtime} with measurement {measurement}; {hint}"


def _tells_programs_apart(constraint: Constraint, claims: Claims, reference: ReferenceValues) -> bool:
    """Whether a pinned measurement may count without anything that says whose it is.

    SGX has no place for the bundle that its own program, or whoever launches it, could not
    fill: one of several accepted programs could call itself another, or a later level.
    """
    instance = claims.instance
    if claims.tee != "sgx" or instance is None:
        return True
    only_one = len(constraint.codes) == 1 and not constraint.signers
    releases = {*reference.releases, *reference.bundles}
    return only_one or any(_genuine(claims, instance, reference, release=r) for r in releases)


def _genuine(claims: Claims, instance: InstanceClaims, reference: ReferenceValues, *, release: str) -> bool:
    if claims.tee == SIMULATED:
        return True
    if measured_with_bundle(claims.evidence):
        return reference.knows_bundle(release, instance.bundle_id, claims.measurement)
    return reference.knows(release, claims.tee, claims.measurement)


def _minimum_tcb(constraint: Constraint, claims: Claims) -> str | None:
    subject = subject_of(claims.evidence)
    if not constraint.minimum_tcb:
        return None
    minimum = constraint.minimum_tcb.get(subject)
    if minimum is None:
        return f"TCB: names no minimum for {subject}; add {subject}@… (or {subject}@any) if you accept it"
    if reaches(claims.evidence, minimum):
        return None
    found = version_of(claims.evidence) or "none"
    return f"TCB: expected at least {subject}@{minimum}, got {found}; ask the operator to update the platform"


def _chip(constraint: Constraint, claims: Claims) -> str | None:
    chip = chip_of(claims.evidence)
    if not constraint.chips or chip in constraint.chips:
        return None
    found = f"CHIP:{chip}" if chip else "evidence that names no chip"
    return f"CHIP: expected one of {len(constraint.chips)}, got {found}; add it if you accept this machine"


def _before(moment: datetime, period: tuple[int, int, int]) -> datetime:
    """Calendar subtraction; a day that the month lacks becomes its last."""
    years, months, days = period
    count = moment.year * 12 + moment.month - 1 - years * 12 - months
    year, month = divmod(count, 12)
    if year < 1:
        return datetime.min.replace(tzinfo=moment.tzinfo)
    day = moment.day
    while True:
        try:
            earlier = moment.replace(year=year, month=month + 1, day=day)
            break
        except ValueError:
            day -= 1
    try:
        return earlier - timedelta(days=days)
    except OverflowError:
        return datetime.min.replace(tzinfo=moment.tzinfo)
