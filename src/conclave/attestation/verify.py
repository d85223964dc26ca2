"""From instance info and a constraint to an attestation result; from evidence alone to claims.

Runs at the relying party. Instance info is hostile; the constraint is trusted.
Pure: bytes, constraint and time in, a value or an error out, no network.

Spec: spec/claims.md (CLM-1 to CLM-9), spec/evidence.md section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from conclave import _crypto
from conclave.attestation import _x509, dcap, nitro, snp
from conclave.attestation.anchors import ANCHORS
from conclave.attestation.appraisal import AttestationResult, Claims, appraise
from conclave.attestation.binding import bound_digest, names_bundle, runtime_measurement
from conclave.attestation.claims import bundle_id, claims_digest, parse_claims, parse_instance_info
from conclave.attestation.constraint import Constraint
from conclave.attestation.evidence import EvidenceClaims
from conclave.attestation.reference import ReferenceValues
from conclave.attestation.security import SIMULATED
from conclave.errors import AppraisalError, BindingError, ChainError, FormatError

SIMULATED_ROOT: Final = "Conclave Simulated Root CA"
# Tests and rehearsals add to these through `conclave.testing`; no public setting does.
_vendor_roots: dict[str, frozenset[str]] = dict(ANCHORS)
_FOREIGN: Final = "the evidence does not lead to a trust anchor that the constraint allows"


def verify_instance(
    info: bytes, constraint: Constraint, *, now: datetime, reference: ReferenceValues | None = None
) -> AttestationResult:
    """Verify instance info and appraise it.

    Args:
        info: as a host gave it, at most 1 MiB. Untrusted.
        constraint: decides trust anchors before anything of the evidence is read.
        now: aware UTC time at which everything must be valid.
        reference: which measurements are which release, from `load_reference_values`;
            None for what this library knows by itself. Trusted.

    Raises:
        ValueError: `now` has no time zone.
        FormatError: does not parse.
        VerificationError: not authentic, expired, revoked, or for another bundle.
        AppraisalError: authentic, but the constraint refuses it.

    Spec: spec/claims.md section 4; the steps are CLM-7, 8, 3, 4, 5, 9.
    """
    # Trust anchors follow from the constraint alone (CLM-7).
    return appraise(constraint, authenticate_instance(info, Anchors.of(constraint), now=now), reference=reference)


def authenticate_instance(info: bytes, anchors: Anchors, *, now: datetime) -> Claims:
    """The same without its last step, policy. Raises what `verify_instance` raises."""
    # 1. Shape.
    parsed = parse_instance_info(info)
    # 2. Trust anchors were chosen before anything of this was read (CLM-7).
    anchors.demand(parsed.format)
    # 3. The evidence, under the one anchor its chain leads to (CLM-8).
    tee, evidence = verify_evidence(parsed.evidence, parsed.endorsements, kind=parsed.format, anchors=anchors, now=now)
    # 4. The TEE names the bundle (CLM-3), before anything else the claims say.
    claims = parse_claims(parsed.claims)
    if not names_bundle(evidence, claims.bundle_id, tee=tee):
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
    if not _crypto.same(bound_digest(evidence), digest):
        raise BindingError("the evidence covers other claims than these")
    # 7. Policy is the caller's (CLM-9).
    return Claims(claims, digest, tee, evidence, runtime_measurement(evidence), now)


@dataclass(frozen=True, slots=True)
class Anchors:
    """Which roots may vouch for which kind of evidence.

    Attributes:
        roots: by kind of evidence, SHA-256 of root certificates in hex.
        simulated: whether a simulated machine's own root will do.
        pinned: the one such root that will, or None for any.
        given: roots that somebody gave by hand: no vendor stands behind them.
    """

    roots: Mapping[str, frozenset[str]]
    simulated: bool = False
    pinned: str | None = None
    given: frozenset[str] = frozenset()

    @classmethod
    def of(cls, constraint: Constraint, *, given: frozenset[str] = frozenset()) -> Anchors:
        """What a constraint allows; `given` by hand, they stand in for the vendors' pinned roots."""
        vendors = cls.of_vendors(given=given)
        roots = {tee: roots for tee, roots in vendors.roots.items() if tee in constraint.tees}
        return cls(roots, SIMULATED in constraint.tees, constraint.simulated_anchor, vendors.given)

    @classmethod
    def of_vendors(cls, *, given: frozenset[str] = frozenset(), simulated: bool = False) -> Anchors:
        """All vendors' pinned roots, or instead those that were given by hand."""
        pinned = frozenset[str]().union(*_vendor_roots.values())
        # A vendor's root vouches for that vendor's evidence alone, also when it is given by hand.
        roots = {tee: (given & own) | (given - pinned) if given else own for tee, own in _vendor_roots.items()}
        return cls(roots, simulated, given=given - pinned)

    def demand(self, kind: str) -> None:
        """Raises AppraisalError if no root may vouch for that kind of evidence."""
        if kind not in self.roots and not (self.simulated and kind == "sgx"):
            names = ", ".join(sorted({*self.roots, *((SIMULATED,) if self.simulated else ())}))
            raise AppraisalError((f"TEE: expected {names}, got evidence of {kind}; add it to TEE: if you accept it",))


def verify_evidence(
    evidence: bytes, endorsements: bytes, *, kind: str, anchors: Anchors, now: datetime
) -> tuple[str, EvidenceClaims]:
    """Check that genuine hardware made this evidence.

    Args:
        evidence: a quote, report or attestation document, at most 64 KiB. Untrusted.
        endorsements: as spec/dcap.md and spec/snp.md say; empty for Nitro. Untrusted.
        kind: `sgx`, `tdx`, `snp` or `nitro`: how to read it. Untrusted.
        anchors: whose roots count.
        now: aware UTC time at which everything must be valid.

    Returns:
        The TEE, which is `simulated` for a simulated machine, and the claims.

    Raises:
        ValueError: `now` has no time zone.
        FormatError: does not parse.
        VerificationError: not authentic, expired, or revoked.
    """
    if now.utcoffset() is None:
        raise ValueError("now must be an aware datetime")
    roots = anchors.roots.get(kind, frozenset())
    if kind in ("sgx", "tdx"):
        quote = dcap.parse_quote(evidence)
        if quote.tee != kind:
            raise FormatError(f"the evidence is a quote of {quote.tee}, not of {kind}", code="quote-tee")
        tee, roots = _select(anchors, roots, quote)
        claims = dcap.verify_quote(quote, endorsements, anchors=roots, now=now)
    elif kind == "snp":
        tee, claims = kind, snp.verify_report(snp.parse_report(evidence), endorsements, anchors=roots, now=now)
    else:
        tee, claims = kind, nitro.verify_document(nitro.parse_document(evidence), anchors=roots, now=now)
    if claims.anchor in anchors.given:
        claims = replace(claims, remarks=claims.remarks | {"custom-root"})
    return tee, claims


def _select(anchors: Anchors, roots: frozenset[str], quote: dcap.Quote) -> tuple[str, frozenset[str]]:
    """A simulated machine's quote carries its own root: it counts only where it was asked for."""
    root = next((der for der in quote.chain if _x509.is_self_signed_root(der, SIMULATED_ROOT)), None)
    if root is None:
        if not roots:
            raise ChainError(_FOREIGN, code="pck-chain")
        return quote.tee, roots
    fingerprint = _crypto.sha256(root).hex()
    if fingerprint in roots:
        return quote.tee, frozenset({fingerprint})
    if not anchors.simulated or quote.tee != "sgx":
        raise ChainError("the evidence is of a simulated TEE, which protects nothing; for development say SEC:INSECURE")
    if anchors.pinned not in (None, fingerprint):
        raise ChainError("the evidence is of another simulated machine than TEE:simulated@… pins")
    return SIMULATED, frozenset({fingerprint})


def anchor_name(quote: dcap.Quote) -> str:
    """Whose root certificate a quote carries, for display. Carrying one proves nothing."""
    if any(_crypto.sha256(der).hex() in _vendor_roots["sgx"] for der in quote.chain):
        return "Intel SGX"
    return SIMULATED if any(_x509.is_self_signed_root(der, SIMULATED_ROOT) for der in quote.chain) else "unknown"
