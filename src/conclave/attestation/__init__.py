"""Evidence, claims, constraints and results.

Names are loaded on first use: the enclave imports only `attestation.claims`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conclave._lazy import lazily

if TYPE_CHECKING:
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

__getattr__ = lazily(
    __name__,
    {
        "AttestationResult": "constraint",
        "Claims": "constraint",
        "Constraint": "constraint",
        "InstanceClaims": "claims",
        "InstanceInfo": "claims",
        "bundle_id": "claims",
        "parse_claims": "claims",
        "parse_instance_info": "claims",
        "verify_instance": "verify",
    },
)
