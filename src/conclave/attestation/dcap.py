"""SGX evidence (DCAP ECDSA quotes, version 3): parse, then verify.

Runs at the relying party. Quote and endorsements come from the host and are
hostile; the root is what the caller trusts. Verification itself is dcap-qvl's,
behind `verify_sgx_quote`; fields it does not expose are read from the signed
bytes at their fixed offsets.

Layout: Intel SGX ECDSA QuoteLibReference, appendix A.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import dcap_qvl

from conclave.attestation import _x509
from conclave.errors import (
    ChainError,
    ExpiredError,
    FormatError,
    RevokedError,
    SignatureError,
    VerificationError,
)

BODY: Final = 48
BODY_SIZE: Final = 384
_ATTRIBUTES: Final = BODY + 48
_MRENCLAVE: Final = BODY + 64
_CONFIGID: Final = BODY + 192
_REPORT_DATA: Final = BODY + 320
_AUTH: Final = BODY + BODY_SIZE + 4
_CERTIFICATION: Final = 64 + 64 + 384 + 64
_FLAG_DEBUG: Final = 0x02
_TEXTS: Final = (
    "pck_crl_issuer_chain",
    "tcb_info_issuer_chain",
    "tcb_info",
    "qe_identity_issuer_chain",
    "qe_identity",
)
_BYTES: Final = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")
_STATUSES: Final = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
    }
)


@dataclass(frozen=True, slots=True)
class SgxQuote:
    """Fields of a quote by their offsets. Nothing is authentic yet."""

    raw: bytes
    mrenclave: bytes
    config_id: bytes
    report_data: bytes
    debug: bool
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SgxClaims:
    """What a genuine processor said, as of a time."""

    quote: SgxQuote
    tcb_status: str
    advisories: tuple[str, ...]
    oldest_issue_date: datetime


def parse_sgx_quote(raw: bytes) -> SgxQuote:
    """Read a quote's fields and its certificate chain. Raises FormatError."""
    if len(raw) < _AUTH + _CERTIFICATION + 8 or raw[:8] != bytes.fromhex("0300020000000000"):
        raise FormatError("evidence is not an SGX ECDSA quote of version 3")
    auth = raw[_AUTH:]
    if int.from_bytes(raw[_AUTH - 4 : _AUTH], "little") != len(auth):
        raise FormatError("quote: sizes do not add up")
    at = _CERTIFICATION
    at += 2 + int.from_bytes(auth[at : at + 2], "little")
    kind, size = int.from_bytes(auth[at : at + 2], "little"), int.from_bytes(auth[at + 2 : at + 6], "little")
    if kind != 5 or at + 6 + size != len(auth):
        raise FormatError("quote: certification data is not a PEM chain, or sizes do not add up")
    return SgxQuote(
        raw,
        raw[_MRENCLAVE : _MRENCLAVE + 32],
        raw[_CONFIGID : _CONFIGID + 64],
        raw[_REPORT_DATA : _REPORT_DATA + 64],
        bool(raw[_ATTRIBUTES] & _FLAG_DEBUG),
        _x509.split_pem(auth[at + 6 :]),
    )


def parse_endorsements(data: bytes) -> tuple[Any, datetime]:
    """Read endorsements; returns dcap-qvl's object and the oldest issue date.

    What counts for the oldest issue date: both CRLs' thisUpdate, and the issueDate
    of TCB info and QE identity. Certificates are long-lived by design and do not.

    Raises:
        FormatError
    """
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or set(value) != {*_TEXTS, *_BYTES}:
            raise ValueError
        if not all(isinstance(v, str) and v.isascii() for v in value.values()):
            raise ValueError
        parts: dict[str, Any] = {k: value[k] for k in _TEXTS}
        parts |= {k: bytes.fromhex(value[k]) for k in _BYTES}
        dates = [_issue_date(value["tcb_info"], "SGX", 3), _issue_date(value["qe_identity"], "QE", 2)]
        dates += [_x509.crl_issue_date(parts["root_ca_crl"]), _x509.crl_issue_date(parts["pck_crl"])]
        collateral = dcap_qvl.QuoteCollateralV3(
            pck_crl_issuer_chain=parts["pck_crl_issuer_chain"],
            root_ca_crl=parts["root_ca_crl"],
            pck_crl=parts["pck_crl"],
            tcb_info_issuer_chain=parts["tcb_info_issuer_chain"],
            tcb_info=parts["tcb_info"],
            tcb_info_signature=parts["tcb_info_signature"],
            qe_identity_issuer_chain=parts["qe_identity_issuer_chain"],
            qe_identity=parts["qe_identity"],
            qe_identity_signature=parts["qe_identity_signature"],
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError("endorsements are not well-formed") from None
    return collateral, min(dates)


def _issue_date(text: str, kind: str, version: int) -> datetime:
    signed = json.loads(text)
    if signed["id"] != kind or signed["version"] != version:
        raise ValueError
    value = signed["issueDate"]
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value):
        raise ValueError
    return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def verify_sgx_quote(quote: SgxQuote, endorsements: bytes, *, root_der: bytes, now: datetime) -> SgxClaims:
    """Check that a genuine processor under `root_der` signed this quote.

    Authenticity, revocation and TCB level as of `now`. Whether to accept it is the
    constraint's question.

    Raises:
        FormatError, VerificationError and its subclasses.
    """
    collateral, oldest = parse_endorsements(endorsements)
    # dcap-qvl accepts any path to the root. A processor's own PCK certificate has one
    # too, and could then sign that its platform is up to date.
    for chain in (collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain):
        if not _x509.is_issued_by(_x509.split_pem(chain.encode())[0], root_der):
            raise ChainError("TCB info or QE identity is not signed by a signer that the trust anchor itself named")
    try:
        report = dcap_qvl.verify_with_root_ca(quote.raw, collateral, root_der, max(0, int(now.timestamp())))
    except ValueError as error:
        raise _ours(str(error)) from None
    pck = dcap_qvl.parse_quote(quote.raw).pck_extension()
    if pck is None or pck.pce_id.hex() != json.loads(collateral.tcb_info)["pceId"].lower():
        raise VerificationError("the TCB info is of another kind of platform")
    if report.status not in _STATUSES:
        raise VerificationError("the vendor gives this platform a TCB status that this release does not know")
    return SgxClaims(quote, report.status, tuple(sorted(set(report.advisory_ids))), oldest)


def _ours(text: str) -> FormatError | VerificationError:
    """dcap-qvl's text as one of our errors; its own words stay out of messages."""
    low = text.lower()
    # First: these texts quote what did not parse, and every status that is known.
    if "failed to decode" in low:
        return FormatError("quote or endorsements are not well-formed")
    if "revoked" in low:
        return RevokedError("the vendor revoked this platform")
    if "expired" in low or "notvalidyet" in low or "future" in low:
        return ExpiredError("endorsements or certificates are not valid at this time; the host must fetch new ones")
    if "signature" in low:
        return SignatureError("a signature in quote or endorsements does not verify")
    if "certificate" in low:
        return ChainError("the certificate chain does not lead to the trust anchor")
    if "failed to parse" in low:
        return FormatError("quote or endorsements are not well-formed")
    if "debug" in low:
        return VerificationError("the enclave runs with the debug bit; such evidence is not verified yet")
    return VerificationError("the quote does not verify")
