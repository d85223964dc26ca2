"""Evidence, claims, constraints and results."""

from conclave.attestation.claims import (
    InstanceClaims,
    InstanceInfo,
    bundle_id,
    parse_claims,
    parse_instance_info,
)
from conclave.attestation.constraint import AttestationResult, Claims, Constraint
from conclave.attestation.verify import verify_instance

__all__ = [
    "AttestationResult",
    "Claims",
    "Constraint",
    "InstanceClaims",
    "InstanceInfo",
    "bundle_id",
    "parse_claims",
    "parse_instance_info",
    "verify_instance",
]
