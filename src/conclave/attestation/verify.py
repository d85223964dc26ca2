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
from conclave.attestation.anchors import ANCHORS
from conclave.attestation.claims import bundle_id, claims_digest, parse_claims, parse_instance_info
from conclave.attestation.constraint import SIMULATED, AttestationResult, Claims, Constraint
from conclave.attestation.dcap import Quote, parse_quote, verify_quote
from conclave.errors import AppraisalError, BindingError, ChainError, FormatError

SIMULATED_ROOT: Final = "Conclave Simulated Root CA"

_vendor_roots: dict[str, frozenset[str]] = dict(ANCHORS)


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
    # 3. The evidence, under the anchors that its chain may lead to (CLM-8).
    quote = parse_quote(parsed.evidence)
    if quote.tee != parsed.format:
        raise FormatError("instance info: the evidence is of another format than it says")
    tee, anchors = _select(allowed, constraint, quote)
    evidence = verify_quote(quote, parsed.endorsements, anchors=anchors, now=now)
    # 4. The TEE names the bundle (CLM-3), before anything else the claims say.
    claims = parse_claims(parsed.claims)
    if not _crypto.same(quote.body["config_id"], claims.bundle_id + bytes(32)):
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
            evidence.debug,
            evidence.tcb_status,
            evidence.advisories,
            quote.body["mrenclave"],
            evidence.anchor,
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


def _select(allowed: frozenset[str], constraint: Constraint, quote: Quote) -> tuple[str, frozenset[str]]:
    root = _root(quote)
    fingerprint = _crypto.sha256(root).hex()
    if "sgx" in allowed and fingerprint in _vendor_roots["sgx"]:
        return "sgx", _vendor_roots["sgx"]
    if SIMULATED in allowed:
        pinned = constraint.simulated_anchor
        if pinned is not None and pinned != fingerprint:
            raise ChainError("the evidence is of another simulated machine than TEE:simulated@… pins")
        if _x509.is_self_signed_root(root, SIMULATED_ROOT):
            return SIMULATED, frozenset({fingerprint})
    if _x509.is_self_signed_root(root, SIMULATED_ROOT):
        raise ChainError("the evidence is of a simulated TEE, which protects nothing; for development say SEC:INSECURE")
    raise ChainError("the evidence does not lead to a trust anchor that the constraint allows")


def _root(quote: Quote) -> bytes:
    return quote.chain[-1] if quote.chain else b""


def anchor_name(quote: Quote) -> str:
    """Whose root certificate a quote carries, for display. Carrying one proves nothing."""
    root = _root(quote)
    if _crypto.sha256(root).hex() in _vendor_roots["sgx"]:
        return "Intel SGX"
    return SIMULATED if _x509.is_self_signed_root(root, SIMULATED_ROOT) else "unknown"
