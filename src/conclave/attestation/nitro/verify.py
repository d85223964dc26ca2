"""Verification of a Nitro attestation document: whether AWS's hypervisor signed it, and when.

Runs at the relying party. The document comes from the host and is hostile; the
anchors are what the caller trusts. The document carries its chain, so there are no
endorsements, and AWS publishes no revocation for it: signing keys live three hours.

Spec: spec/nitro.md sections 5 and 6.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from conclave.attestation import _x509
from conclave.attestation.evidence import EvidenceClaims, Step
from conclave.attestation.nitro.document import DIGEST, Document
from conclave.errors import ChainError, ExpiredError, SignatureError

MAX_AHEAD_MS: Final = 300_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEY_USAGE: Final = "2.5.29.15"
# The first bit after tag, length and the count of unused bits.
_DIGITAL_SIGNATURE: Final = b"\x80"


def verify_document(document: Document, *, anchors: frozenset[str], now: datetime) -> EvidenceClaims:
    """Check that AWS's Nitro hypervisor signed this document.

    Authenticity only: debug mode, the registers and the document's age are told, and
    are the constraint's question.

    Args:
        document: from `parse_document`. Untrusted.
        anchors: SHA-256 of the root certificates to trust, in hex.
        now: aware UTC time at which the certificates must be valid.

    Raises:
        VerificationError: by its subclasses, with a code of spec/nitro.md section 7.

    Spec: spec/nitro.md section 5 (NITRO-7 to NITRO-13).
    """
    # 1. There is a signature. Emulators write zeros.
    if not document.signed:
        raise SignatureError("the attestation document is not signed: it is an emulator's", code="document-unsigned")
    # 2. The signing certificate leads to a pinned root over exactly the bundle; all are valid now.
    leaf = _x509.Certificate(document.certificate, what="document")
    bundle = [_x509.Certificate(der, what="document") for der in document.cabundle]
    path = _x509.path(bundle, leaf, anchors=anchors, now=now, what="document")
    if [c.der for c in path[1:]] != list(reversed(document.cabundle)):
        raise ChainError("the bundle is not the chain, root first", code="document-chain")
    # 3. Its key is for signing documents, not certificates.
    usage = leaf.extension(_KEY_USAGE)
    if leaf.authority or usage is None or not usage[3:4] >= _DIGITAL_SIGNATURE:
        raise ChainError("the signing certificate is not for signing documents", code="document-chain")
    # 4. The key signed the payload.
    leaf.verify(document.signature, document.signed_bytes, code="document-signature")
    # 5. It was made while its certificates were valid, and not after now.
    begin, end = max(c.not_before for c in path), min(c.not_after for c in path)
    if not _milliseconds(begin) <= document.timestamp_ms <= _milliseconds(end):
        raise ExpiredError("the document was made while its certificates were not valid", code="document-timestamp")
    if document.timestamp_ms - MAX_AHEAD_MS > _milliseconds(now):
        raise ExpiredError("the document was made after this time; check the clock", code="document-future")
    # 6. What was signed, as claims.
    return EvidenceClaims(
        tee="nitro",
        anchor=path[-1].fingerprint,
        tcb_status="",
        statuses={},
        advisories=(),
        debug=not any(b"".join(document.pcrs.get(index, b"") for index in range(3))),
        remarks=frozenset({"nitrotpm"} if document.kind == "nitrotpm" else ()),
        measurements=_measurements(document),
        report_data=None,
        details=_details(document),
        platform=document.module_id,
        tcb_date=None,
        oldest_issue_date=leaf.not_before,
        valid_from=begin,
        valid_until=end,
        steps=_steps(document, path),
    )


def _milliseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(milliseconds=1)


def _measurements(document: Document) -> dict[str, Any]:
    """Registers of an enclave and of an instance have different names: they measure different things."""
    return {
        document.registers: {str(index): value.hex() for index, value in sorted(document.pcrs.items())},
        "digest": DIGEST,
    }


def _details(document: Document) -> dict[str, Any]:
    chosen = {"public_key": document.public_key, "user_data": document.user_data, "nonce": document.nonce}
    return {
        "module_id": document.module_id,
        "timestamp_ms": document.timestamp_ms,
        "kind": document.kind,
        **{name: None if value is None else value.hex() for name, value in chosen.items()},
    }


def _steps(document: Document, path: tuple[_x509.Certificate, ...]) -> tuple[Step, ...]:
    made = _EPOCH + timedelta(milliseconds=document.timestamp_ms)
    return (
        Step("signed", f"document of an {'enclave' if document.kind == 'enclave' else 'EC2 instance'}"),
        Step("path", " ← ".join(c.common_name for c in path)),
        Step("signing certificate", "for digital signatures, no authority"),
        Step("signature", f"ECDSA P-384 over {len(document.payload)} bytes"),
        Step("time", f"made {made:%Y-%m-%dT%H:%M:%SZ}"),
        Step("claims", f"{len(document.pcrs)} registers"),
    )
