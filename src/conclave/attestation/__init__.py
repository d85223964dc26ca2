"""Evidence, claims, constraints and results.

Names are loaded on first use: the enclave imports only `attestation.claims`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conclave._lazy import lazily

if TYPE_CHECKING:
    from conclave.attestation.appraisal import AttestationResult, Claims, appraise
    from conclave.attestation.claims import (
        InstanceClaims,
        InstanceInfo,
        bundle_id,
        parse_claims,
        parse_instance_info,
    )
    from conclave.attestation.constraint import Constraint
    from conclave.attestation.evidence import EvidenceClaims, Step
    from conclave.attestation.reference import ReferenceValues, load_reference_values, sign_reference_values
    from conclave.attestation.verify import Anchors, verify_evidence, verify_instance

__all__ = [
    "Anchors",
    "AttestationResult",
    "Claims",
    "Constraint",
    "EvidenceClaims",
    "InstanceClaims",
    "InstanceInfo",
    "ReferenceValues",
    "Step",
    "appraise",
    "bundle_id",
    "load_reference_values",
    "parse_claims",
    "parse_instance_info",
    "sign_reference_values",
    "verify_evidence",
    "verify_instance",
]

__getattr__ = lazily(
    __name__,
    {
        "Anchors": "verify",
        "AttestationResult": "appraisal",
        "Claims": "appraisal",
        "Constraint": "constraint",
        "EvidenceClaims": "evidence",
        "InstanceClaims": "claims",
        "InstanceInfo": "claims",
        "ReferenceValues": "reference",
        "Step": "evidence",
        "appraise": "appraisal",
        "bundle_id": "claims",
        "load_reference_values": "reference",
        "parse_claims": "claims",
        "parse_instance_info": "claims",
        "sign_reference_values": "reference",
        "verify_evidence": "verify",
        "verify_instance": "verify",
    },
)
