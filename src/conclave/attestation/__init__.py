"""Evidence, claims, constraints and results.

Names are loaded on first use: the enclave imports only `attestation.claims`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_PLACES = {
    "AttestationResult": "constraint",
    "Claims": "constraint",
    "Constraint": "constraint",
    "InstanceClaims": "claims",
    "InstanceInfo": "claims",
    "bundle_id": "claims",
    "parse_claims": "claims",
    "parse_instance_info": "claims",
    "verify_instance": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value
