"""From instance info and a constraint to an attestation result.

Runs at the relying party. Instance info is hostile; the constraint is trusted.
Pure: bytes, constraint and time in, a value or an error out, no network.

Spec: spec/claims.md (CLM-1 to CLM-9).
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from conclave import _crypto
from conclave.attestation import _x509
from conclave.attestation.claims import bundle_id, claims_digest, parse_claims, parse_instance_info
from conclave.attestation.constraint import SIMULATED, AttestationResult, Claims, Constraint
from conclave.attestation.dcap import SgxQuote, parse_sgx_quote, verify_sgx_quote
from conclave.errors import AppraisalError, BindingError, ChainError

SIMULATED_ROOT: Final = "Conclave Simulated Root CA"

# SHA-256 of Intel's SGX root certificates (DER), as published by the provisioning
# certification service: valid 2018 to 2049, and its earlier edition to 2033.
_vendor_roots: dict[str, frozenset[str]] = {
    "sgx": frozenset(
        {
            "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
            "fc64f8076d79a4fee9d1d473d74c89eb8d8fd55c5abafeabeba7366d20429404",
        }
    )
}


def verify_instance(info: bytes, constraint: Constraint, *, now: datetime) -> AttestationResult:
    """Verify instance info and appraise it.

    Args:
        info: as a host gave it, at most 1 MiB. Untrusted.
        constraint: decides trust anchors before anything of the evidence is read.
        now: aware UTC time at which everything must be valid.

    Raises:
        ValueError: `now` has no time zone.
        FormatError: does not parse.
        VerificationError: not authentic, expired, revoked, or for another bundle.
        AppraisalError: authentic, but the constraint refuses it.

    Spec: spec/claims.md section 4; the steps are CLM-7, 8, 3, 4, 5, 9.
    """
    if now.utcoffset() is None:
        raise ValueError("now must be an aware datetime")
    # 1. Shape.
    parsed = parse_instance_info(info)
    # 2. Trust anchors follow from the constraint alone (CLM-7).
    allowed = _anchors(constraint)
    # 3. The evidence, under the one anchor its chain leads to (CLM-8).
    quote = parse_sgx_quote(parsed.evidence)
    tee, root = _select(allowed, constraint, quote)
    evidence = verify_sgx_quote(quote, parsed.endorsements, root_der=root, now=now)
    # 4. The TEE names the bundle (CLM-3), before anything else the claims say.
    claims = parse_claims(parsed.claims)
    if not _crypto.same(quote.config_id, claims.bundle_id + bytes(32)):
        raise BindingError("the TEE launched another bundle than the claims name")
    # 5. The bundle id is that of its parts (CLM-4).
    parts = bundle_id(
        code=claims.code,
        signer=claims.signer,
        product_id=claims.product_id,
        revocation_level=claims.revocation_level,
    )
    if not _crypto.same(parts, claims.bundle_id):
        raise BindingError("the bundle id does not belong to code, signer, product and level in the claims")
    # 6. The evidence covers these claims (CLM-5).
    digest = claims_digest(parsed.claims)
    if not _crypto.same(quote.report_data, digest):
        raise BindingError("the evidence covers other claims than these")
    # 7. Policy (CLM-9).
    return constraint.appraise(
        Claims(
            claims,
            digest,
            tee,
            quote.debug,
            evidence.tcb_status,
            evidence.advisories,
            quote.mrenclave,
            _crypto.sha256(root).hex(),
            evidence.oldest_issue_date,
            now,
        )
    )


def _anchors(constraint: Constraint) -> frozenset[str]:
    usable = constraint.tees & {"sgx", SIMULATED}
    if not usable:
        names = ", ".join(sorted(constraint.tees))
        raise AppraisalError((f"TEE: evidence of {names} cannot be verified by this release; it knows sgx",))
    return usable


def _select(allowed: frozenset[str], constraint: Constraint, quote: SgxQuote) -> tuple[str, bytes]:
    root = quote.chain[-1]
    fingerprint = _crypto.sha256(root).hex()
    if "sgx" in allowed and fingerprint in _vendor_roots["sgx"]:
        return "sgx", root
    if SIMULATED in allowed:
        pinned = constraint.simulated_anchor
        if pinned is not None and pinned != fingerprint:
            raise ChainError("the evidence is of another simulated machine than TEE:simulated@… pins")
        if _x509.is_self_signed_root(root, SIMULATED_ROOT):
            return SIMULATED, root
    if _x509.is_self_signed_root(root, SIMULATED_ROOT):
        raise ChainError("the evidence is of a simulated TEE, which protects nothing; for development say SEC:INSECURE")
    raise ChainError("the evidence does not lead to a trust anchor that the constraint allows")


def anchor_name(quote: SgxQuote) -> str:
    """Whose root certificate a quote carries, for display. Carrying one proves nothing."""
    root = quote.chain[-1]
    if _crypto.sha256(root).hex() in _vendor_roots["sgx"]:
        return "Intel SGX"
    return SIMULATED if _x509.is_self_signed_root(root, SIMULATED_ROOT) else "unknown"
