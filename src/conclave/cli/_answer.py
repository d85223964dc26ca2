"""What `conclave verify` answers: one object of a fixed form, for machines and for people.

Holds verified facts alone: of what did not verify, nothing is repeated.

Spec: spec/verify.md section 4, spec/verify.schema.json.
"""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from conclave.attestation.appraisal import Claims, chip_of
from conclave.attestation.claims import InstanceClaims
from conclave.attestation.security import Security
from conclave.attestation.tcb import version_of
from conclave.errors import AppraisalError, Error, FormatError

Verdict = Literal["accepted", "authentic", "refused", "not-authentic", "malformed"]
STATUSES: Final[dict[Verdict, int]] = {
    "accepted": 0,
    "authentic": 0,
    "refused": 10,
    "not-authentic": 20,
    "malformed": 30,
}
_REFUSED: Final = "the constraint refuses this enclave"
Hex = Annotated[str, Meta(pattern="^(?:[0-9a-f]{2})*$")]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Time = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
Code = Annotated[str, Meta(pattern="^[a-z0-9]+(?:-[a-z0-9]+)*$")]


class InstanceFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The instance claims that verified evidence covers, as spec/claims.md names them.

    `mode` is the program's; `log_id` is null for a stateless enclave, and
    `kds_constraint` where no key service is used.
    """

    bundle_id: Digest
    code: Digest
    signer: Digest
    product_id: int
    revocation_level: int
    runtime: str
    sandbox: str
    mode: Literal["release", "debug"]
    suite: Hex
    encryption_key: Hex
    signing_key: Digest
    boot_nonce: Digest
    log_id: Digest | None
    kds_constraint: Digest | None
    interface: Digest
    claims_digest: Hex


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer of `conclave verify`. Every member is always present.

    What is known of the evidence is null or empty unless it verified: `verdict` is
    then `accepted`, `authentic`, or `refused` by a constraint that was held against it.
    """

    verdict: Verdict
    code: Code | None
    message: str
    at: Time
    tee: Literal["sgx", "tdx", "snp", "nitro", "simulated"] | None
    tcb_status: str | None
    security: Security | None
    reasons: list[str]
    debug: bool | None
    remarks: list[str]
    advisories: list[str]
    measurements: dict[str, str | int | dict[str, Hex]]
    runtime_measurement: Hex | None
    report_data: Hex | None
    tcb_version: str | None
    chip: Digest | None
    anchor: Digest | None
    oldest_issue_date: Time | None
    valid_from: Time | None
    valid_until: Time | None
    details: dict[str, Any]
    claims: InstanceFacts | None
    failures: list[str]

    @property
    def status(self) -> int:
        """The exit status that goes with it."""
        return STATUSES[self.verdict]


def verified(
    claims: Claims,
    *,
    security: Security,
    reasons: tuple[str, ...],
    failures: tuple[str, ...] | None,
) -> Answer:
    """The answer about evidence that verified; `failures` is None if there was no constraint."""
    evidence = claims.evidence
    verdict: Verdict = "authentic" if failures is None else "refused" if failures else "accepted"
    message = {
        "authentic": "genuine; no constraint was given, so nothing else was asked",
        "accepted": "genuine, and every clause of the constraint holds",
        "refused": _REFUSED,
    }[verdict]
    return Answer(
        verdict=verdict,
        code=AppraisalError.code if failures else None,
        message=message,
        at=text_of(claims.verified_at),
        tee=claims.tee,  # type: ignore[arg-type]
        tcb_status=evidence.tcb_status or None,
        security=security,
        reasons=list(reasons),
        debug=evidence.debug,
        remarks=sorted(evidence.remarks),
        advisories=list(evidence.advisories),
        measurements=dict(evidence.measurements),
        runtime_measurement=claims.measurement.hex(),
        report_data=None if evidence.report_data is None else evidence.report_data.hex(),
        tcb_version=version_of(evidence) or None,
        chip=chip_of(evidence) or None,
        anchor=evidence.anchor,
        oldest_issue_date=text_of(evidence.oldest_issue_date),
        valid_from=text_of(evidence.valid_from),
        valid_until=text_of(evidence.valid_until),
        details=dict(evidence.details),
        claims=None if claims.instance is None else _facts(claims.instance, claims.claims_digest),
        failures=list(failures or ()),
    )


def unverified(error: Error, *, now: datetime) -> Answer:
    """The answer about what did not verify, or was refused unread."""
    refused = isinstance(error, AppraisalError)
    verdict: Verdict = "refused" if refused else "malformed" if isinstance(error, FormatError) else "not-authentic"
    return Answer(
        verdict=verdict,
        code=error.code,
        message=_REFUSED if refused else str(error),
        at=text_of(now),
        tee=None,
        tcb_status=None,
        security=None,
        reasons=[],
        debug=None,
        remarks=[],
        advisories=[],
        measurements={},
        runtime_measurement=None,
        report_data=None,
        tcb_version=None,
        chip=None,
        anchor=None,
        oldest_issue_date=None,
        valid_from=None,
        valid_until=None,
        details={},
        claims=None,
        failures=list(error.failures) if isinstance(error, AppraisalError) else [],
    )


def _facts(claims: InstanceClaims, digest: bytes) -> InstanceFacts:
    return InstanceFacts(
        bundle_id=claims.bundle_id.hex(),
        code=claims.code.hex(),
        signer=claims.signer.hex(),
        product_id=claims.product_id,
        revocation_level=claims.revocation_level,
        runtime=claims.runtime,
        sandbox=claims.sandbox,
        mode="debug" if claims.mode == "debug" else "release",
        suite=claims.suite.hex(),
        encryption_key=claims.encryption_key.hex(),
        signing_key=claims.signing_key.hex(),
        boot_nonce=claims.boot_nonce.hex(),
        log_id=None if claims.log_id is None else claims.log_id.hex(),
        kds_constraint=None if claims.kds_constraint is None else claims.kds_constraint.hex(),
        interface=claims.interface.hex(),
        claims_digest=digest.hex(),
    )


def text_of(moment: datetime) -> str:
    """A time in UTC, whole seconds, as `2026-01-31T12:00:00Z`."""
    # Not strftime, which writes the year 1 with one digit.
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def schema() -> dict[str, Any]:
    """JSON Schema of the answer: spec/verify.schema.json."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Answer)}
    for definition in made["$defs"].values():
        definition["description"] = inspect.cleandoc(definition["description"])
    return made
