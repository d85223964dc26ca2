"""The little that evidence needs from X.509 besides path verification.

Runs at the relying party, on hostile bytes.
"""

from __future__ import annotations

import base64
import re
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

from conclave.errors import FormatError

# Possessive: a hostile chain of white space must not make matching quadratic.
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]++)-----END CERTIFICATE-----[\s\0]*+")


def split_pem(data: bytes) -> tuple[bytes, ...]:
    """DER certificates of a PEM chain, at most 8. Raises FormatError."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        match = _PEM.match(data, at)
        if match is None or len(found) == 8:
            raise FormatError("certificate chain is not PEM, or too long")
        try:
            found.append(base64.b64decode(b"".join(match[1].split()), validate=True))
        except ValueError:
            raise FormatError("certificate chain is not PEM") from None
        at = match.end()
    if not found:
        raise FormatError("certificate chain is empty")
    return tuple(found)


def is_self_signed_root(der: bytes, common_name: str) -> bool:
    """Whether this is a self-signed certificate with that subject common name."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(certificate)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except Exception:
        return False
    return len(names) == 1 and names[0].value == common_name


def is_issued_by(der: bytes, issuer: bytes) -> bool:
    """Whether `issuer` itself signed this certificate, with no other in between."""
    try:
        x509.load_der_x509_certificate(der).verify_directly_issued_by(x509.load_der_x509_certificate(issuer))
    except Exception:
        return False
    return True


def crl_issue_date(der: bytes) -> datetime:
    """thisUpdate of a CRL. Raises ValueError."""
    try:
        return x509.load_der_x509_crl(der).last_update_utc
    except x509.InvalidVersion:
        raise ValueError from None
