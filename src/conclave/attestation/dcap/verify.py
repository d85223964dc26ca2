"""Verification of quotes: from bytes and endorsements to claims.

Runs at the relying party. Quote and endorsements are the host's; the anchors are the
caller's. Pure: no network, no clock, nothing kept between calls.

Spec: spec/dcap.md section 4, whose steps `verify_quote` repeats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from conclave.attestation import _x509
from conclave.attestation._x509 import Certificate
from conclave.attestation.dcap._claims import collect
from conclave.attestation.dcap._layout import number
from conclave.attestation.dcap.collateral import Endorsements, Level, QeIdentity, TcbInfo, parse_endorsements
from conclave.attestation.dcap.pck import PckExtension, pck_extension
from conclave.attestation.dcap.quote import Quote
from conclave.attestation.dcap.tcb import enclave_level, evaluate, module_of
from conclave.attestation.evidence import EvidenceClaims
from conclave.errors import BindingError, ChainError, VerificationError

QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
TCB_SIGNER: Final = "TCB Signing"
_PLAIN_PPID: Final = 1


def verify_quote(quote: Quote, endorsements: bytes, *, anchors: frozenset[str], now: datetime) -> EvidenceClaims:
    """Check that a genuine Intel processor signed this quote, and find its TCB status.

    Authenticity only: debug, a low TCB status and every remark are told, not refused.
    Whether to accept them is the constraint's question.

    Args:
        quote: as parsed; untrusted.
        endorsements: JSON of spec/dcap.md section 3, at most 524288 bytes. Untrusted. Not read before
            what the quote alone proves is checked, unless the quote carries no certificates.
        anchors: SHA-256 of the root certificates to trust, in hex.
        now: aware UTC time at which everything must be valid.

    Raises:
        ValueError: `now` has no time zone.
        FormatError: the endorsements do not parse.
        VerificationError: not genuine, not valid at this time, revoked, or not known to the vendor.

    Spec: spec/dcap.md section 4 (DCAP-8 to DCAP-21).
    """
    if now.utcoffset() is None:
        raise ValueError("now must be an aware datetime")
    given: Endorsements | None = None
    # 1. Certification: the quote carries a PCK certificate chain, or the endorsements do.
    chain = quote.chain
    if not chain and quote.certification_type == _PLAIN_PPID:
        given = parse_endorsements(endorsements)
        chain = given.pck_chain
    if not chain:
        raise VerificationError(
            "the quote names its processor in a way that only the vendor can follow", code="certification-unsupported"
        )
    # 2. PCK chain: PCK certificate, PCK CA, trust anchor.
    path = _pck_path(chain, anchors, now)
    # 3. PCK extension: which processor this is.
    pck = pck_extension(path[0])
    _check_identifiers(quote, pck)
    # 4. QE report: signed with the PCK key.
    path[0].verify(quote.qe_report_signature, quote.qe_report, code="qe-report-signature")
    # 5. Attestation key: the one that the quoting enclave certified.
    _check_binding(quote)
    # 6. Quote: signed with the attestation key.
    _x509.verify_with_point(quote.attestation_key, quote.signature, quote.signed, code="quote-signature")
    # 7. Endorsements: well-formed.
    given = given or parse_endorsements(endorsements)
    # 8. TCB info and QE identity: signed by a signer of the anchor, and valid now.
    signers = _check_documents(given, path[-1], now)
    # 9. Revocation: neither the PCK certificate nor its CA nor a signer.
    _check_revocation(given, path, signers, now)
    # 10. TCB info match: for this TEE and this kind of processor.
    _check_match(given.tcb_info, quote, pck)
    # 11. QE identity match: the enclave that the vendor's QE identity describes.
    qe_level = _check_qe(quote, given.qe_identity)
    # 12. TDX module: the one that the vendor signs for.
    _check_module(quote, given.tcb_info)
    # 13. TCB level: of each part, and one status for all.
    evaluation = evaluate(
        given.tcb_info,
        components=pck.components,
        pce_svn=pck.pce_svn,
        qe=qe_level,
        tee_tcb_svn=quote.body.get("tee_tcb_svn", b""),
        current=quote.body.get("tee_tcb_svn2", b""),
    )
    # 14. Facts: what was signed, and for how long all of it holds.
    return collect(quote, pck=pck, path=path, signers=signers, endorsements=given, evaluation=evaluation)


def _pck_path(chain: Sequence[bytes], anchors: frozenset[str], now: datetime) -> tuple[Certificate, ...]:
    certificates = [Certificate(der, what="pck") for der in chain]
    path = _x509.path(certificates, certificates[0], anchors=anchors, now=now, what="pck")
    if len(path) != 3:
        raise ChainError("a PCK certificate is issued by a CA right below the trust anchor", code="pck-chain")
    return path


def _check_identifiers(quote: Quote, pck: PckExtension) -> None:
    """A quote without certificates names its processor: PPID, CPUSVN, PCESVN, PCE id."""
    named = quote.certification
    if not quote.chain and (named[:16] != pck.ppid or named[34:] not in (b"", pck.pce_id)):
        raise VerificationError("the PCK certificate is of another processor than the quote names", code="pck-mismatch")


def _check_binding(quote: Quote) -> None:
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest() + bytes(32)
    if quote.qe["report_data"] != bound:
        raise BindingError("the quoting enclave certified another attestation key", code="qe-binding")


def _check_documents(given: Endorsements, root: Certificate, now: datetime) -> list[Certificate]:
    """Check signer, signature and period of both documents; returns the signers, which are mostly one."""
    known: dict[bytes, Certificate] = {}
    for what, document, content in (
        ("tcb-info", given.tcb_info_document, given.tcb_info),
        ("qe-identity", given.qe_identity_document, given.qe_identity),
    ):
        der = document.chain[0]
        signer = known[der] = known.get(der) or _signer(der, root, now, what)
        signer.verify(document.signature, document.text, code=f"{what}-signature")
        _x509.check_time(content.issue_date, content.next_update, now=now, what=what)
    return list(known.values())


def _signer(der: bytes, root: Certificate, now: datetime, what: str) -> Certificate:
    signer = Certificate(der, what=what)
    # The anchor itself must have issued the signer. Any path to the anchor is not enough: a
    # processor has one too, and could then sign that its own platform is up to date.
    _x509.path((root,), signer, anchors={root.fingerprint}, now=now, what=what)
    if signer.authority or not signer.common_name.endswith(TCB_SIGNER):
        raise ChainError("TCB info or QE identity is signed by a certificate for another use", code=f"{what}-chain")
    return signer


def _check_revocation(
    given: Endorsements, path: Sequence[Certificate], signers: Iterable[Certificate], now: datetime
) -> None:
    if given.root_crl:
        given.root_crl.check(path[2], now=now, what="root-crl")
        given.root_crl.refuse(path[1:2], what="pck-ca")
        given.root_crl.refuse(signers, what="tcb-signer")
    if given.pck_crl:
        given.pck_crl.check(path[1], now=now, what="pck-crl")
        given.pck_crl.refuse(path[:1], what="pck")


def _check_match(info: TcbInfo, quote: Quote, pck: PckExtension) -> None:
    if info.tee != quote.tee:
        raise VerificationError("the TCB info is for another TEE", code="tcb-info-mismatch")
    if (info.fmspc, info.pce_id) != (pck.fmspc, pck.pce_id):
        raise VerificationError("the TCB info is of another kind of platform", code="tcb-info-mismatch")


def _check_qe(quote: Quote, identity: QeIdentity) -> Level:
    """Check the quoting enclave against its identity; returns its level."""
    qe = quote.qe
    if identity.tee != quote.tee:
        raise VerificationError("the QE identity is for another TEE", code="qe-identity-mismatch")
    if quote.header["qe_vendor_id"] != QE_VENDOR:
        raise VerificationError("the quoting enclave is not of a known vendor", code="qe-vendor")
    if qe["mrsigner"] != identity.mrsigner:
        raise VerificationError("the quoting enclave has another signer", code="qe-mrsigner")
    if number(qe["isv_prod_id"]) != identity.isv_prod_id:
        raise VerificationError("the quoting enclave is another product of its signer", code="qe-product")
    # Both masks are applied to the report alone, and MISCSELECT is written in the order of its bytes there.
    if _masked(qe["misc_select"], identity.misc_select_mask) != identity.misc_select:
        raise VerificationError("the quoting enclave has another MISCSELECT", code="qe-misc-select")
    if _masked(qe["attributes"], identity.attributes_mask) != identity.attributes:
        raise VerificationError("the quoting enclave has other attributes", code="qe-attributes")
    return enclave_level(identity.levels, number(qe["isv_svn"]), "the quoting enclave")


def _check_module(quote: Quote, info: TcbInfo) -> None:
    if quote.tee != "tdx":
        return
    module = module_of(info, quote.body["tee_tcb_svn"])
    if quote.body["mrsignerseam"] != module.mrsigner:
        raise VerificationError("the TDX module has another signer", code="tdx-module-mismatch")
    attributes = quote.body["seam_attributes"]
    # No attribute of a TDX module has a published meaning yet, so none may be set, whatever the mask.
    if any(attributes) or _masked(attributes, module.attributes_mask) != module.attributes:
        raise VerificationError("the TDX module has other attributes", code="tdx-module-mismatch")


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(a & b for a, b in zip(value, mask, strict=True))
