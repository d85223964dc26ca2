"""Instance claims of no bundle, for tests that make enclaves without one."""

from __future__ import annotations

from conclave._crypto import SUITE_ID
from conclave.attestation.claims import InstanceClaims

_ZERO = bytes(32)


def claims_of(
    encryption_key: bytes, signing_key: bytes, *, boot_nonce: bytes = _ZERO, log_id: bytes | None = None
) -> InstanceClaims:
    return InstanceClaims(
        version=1,
        bundle_id=_ZERO,
        code=_ZERO,
        signer=_ZERO,
        product_id=0,
        revocation_level=0,
        runtime="conclave-0",
        sandbox="namespaces",
        mode="release",
        suite=SUITE_ID,
        encryption_key=encryption_key,
        signing_key=signing_key,
        boot_nonce=boot_nonce,
        log_id=log_id,
        kds_constraint=None,
        interface=_ZERO,
    )
