"""Certificates, their paths to a pinned anchor, and revocation lists.

Runs at the relying party, on hostile bytes. Every refusal has a code that names
what it is about, such as `pck-chain`, `pck-expired`, `pck-revoked`.

Spec: spec/evidence.md section 3 (EVID-2, EVID-3). Profile: RFC 5280.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtensionOID, NameOID

from conclave.attestation import _der
from conclave.errors import ChainError, ExpiredError, FormatError, RevokedError, SignatureError

MAX_CHAIN: Final = 8
# Vendors' certificates have up to 2.5 KiB. Hostile ones are parsed before anything about them is known.
MAX_CERTIFICATE: Final = 8192
MAX_CHAIN_SIZE: Final = 16384
# Possessive: a hostile chain of white space must not make matching quadratic.
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]++)-----END CERTIFICATE-----[\s\0]*+")
# A path decision here takes these into account; another critical extension could change its meaning.
_UNDERSTOOD: Final = {
    ExtensionOID.BASIC_CONSTRAINTS.dotted_string,
    ExtensionOID.KEY_USAGE.dotted_string,
    ExtensionOID.EXTENDED_KEY_USAGE.dotted_string,
}
# Of a revocation list. Real ones have a number and a key's digest; making objects of extensions is slow.
MAX_LIST_EXTENSIONS: Final = 1024
_EXTENSIONS: Final = 0xA0
# Keys that vendors use. A signature under a larger one, or with a larger exponent, may take the verifier 15 ms.
_MAX_RSA_BITS: Final = 4096
_MAX_RSA_EXPONENT: Final = 65537
_CURVES: Final = {"P-256": (ec.SECP256R1(), 32, hashes.SHA256()), "P-384": (ec.SECP384R1(), 48, hashes.SHA384())}


def split_pem(data: bytes) -> tuple[bytes, ...]:
    """DER certificates of a PEM chain, within the limits of `check_sizes`. Raises FormatError."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        match = _PEM.match(data, at)
        if match is None or len(found) == MAX_CHAIN:
            raise FormatError("certificate chain is not PEM, or too long")
        try:
            found.append(base64.b64decode(b"".join(match[1].split()), validate=True))
        except ValueError:
            raise FormatError("certificate chain is not PEM") from None
        at = match.end()
    check_sizes(found)
    return tuple(found)


def check_sizes(chain: Sequence[bytes]) -> None:
    """Raises FormatError unless there are 1 to 8 certificates, each of at most 8192 bytes, all of at most 16384."""
    if (
        not 0 < len(chain) <= MAX_CHAIN
        or max(map(len, chain)) > MAX_CERTIFICATE
        or sum(map(len, chain)) > MAX_CHAIN_SIZE
    ):
        raise FormatError("a certificate chain is empty, or too large")


class Certificate:
    """One certificate. Parsing verifies nothing.

    Attributes:
        der: its bytes.
        fingerprint: SHA-256 over them, in hex.
        subject, issuer: DER of the names, compared byte by byte.
        serial: its number; 0 too, although RFC 5280 forbids it.
        not_before, not_after: aware UTC times.
        authority: whether it may sign certificates and lists.
        path_length: how many authorities may follow below it, or None for any.
    """

    def __init__(self, der: bytes, *, what: str) -> None:
        """Parse it. Raises ChainError with code `{what}-chain`."""
        try:
            if len(der) > MAX_CERTIFICATE:
                raise ValueError
            parsed = x509.load_der_x509_certificate(_with_positive_serial(der))
            size = len(parsed.tbs_certificate_bytes)
            self.signed = der[_header(der, 0) : _header(der, 0) + size]
            self.serial = parsed.serial_number if self.signed == parsed.tbs_certificate_bytes else 0
            self.signature = parsed.signature
            self.scheme: Any = parsed.signature_algorithm_parameters
            self.hash = parsed.signature_hash_algorithm
            self.key: Any = parsed.public_key()
            self.issuer, self.subject = _names(self.signed)
            self.not_before = parsed.not_valid_before_utc
            self.not_after = parsed.not_valid_after_utc
            self._extensions = {e.oid.dotted_string: e for e in parsed.extensions}
        except Exception:
            raise ChainError("a certificate does not parse", code=f"{what}-chain") from None
        self._parsed = parsed
        self.der = der
        self.fingerprint = hashlib.sha256(der).hexdigest()
        basic = self._value(ExtensionOID.BASIC_CONSTRAINTS)
        usage = self._value(ExtensionOID.KEY_USAGE)
        self.authority = bool(basic and basic.ca and (usage is None or usage.key_cert_sign))
        self.path_length: int | None = basic.path_length if basic else None

    @cached_property
    def common_name(self) -> str:
        """The subject's common name; empty if there is none, or more than one, or the name does not parse."""
        try:
            found = self._parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        # A name is read when it is asked for, and what is wrong with it may be anything.
        except Exception:
            return ""
        return str(found[0].value) if len(found) == 1 else ""

    @property
    def understood(self) -> bool:
        """Whether it has no critical extension beyond those considered here."""
        return all(not e.critical or oid in _UNDERSTOOD for oid, e in self._extensions.items())

    def extension(self, oid: str) -> bytes | None:
        """DER of a vendor's extension, as it stands in the certificate."""
        found = self._extensions.get(oid)
        return found.value.public_bytes() if found else None

    def _value(self, oid: x509.ObjectIdentifier) -> Any:
        found = self._extensions.get(oid.dotted_string)
        return found.value if found else None

    def signed_by(self, issuer: Certificate) -> bool:
        """Whether that certificate's key made this one's signature."""
        return self.issuer == issuer.subject and _signed(
            issuer.key, self.signature, self.signed, self.scheme, self.hash
        )

    def verify(self, signature: bytes, data: bytes, *, code: str) -> None:
        """Check an ECDSA signature (r ‖ s, big-endian) made with this certificate's key.

        P-256 with SHA-256 or P-384 with SHA-384, as the key says.

        Raises:
            SignatureError: with that code; also if the key is of another kind.
        """
        curve = "P-256" if isinstance(self.key, ec.EllipticCurvePublicKey) and self.key.key_size == 256 else "P-384"
        _verify(self.key, curve, signature, data, code)


def verify_with_point(point: bytes, signature: bytes, data: bytes, *, code: str) -> None:
    """Check an ECDSA P-256 signature (r ‖ s) with a public key given as x ‖ y, 64 bytes.

    Raises:
        SignatureError: with that code; also if the point is not on the curve.
    """
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    except ValueError:
        raise SignatureError("a public key is not a point on its curve", code=code) from None
    _verify(key, "P-256", signature, data, code)


def _verify(key: Any, curve: str, signature: bytes, data: bytes, code: str) -> None:
    kind, size, digest = _CURVES[curve]
    fits = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, type(kind))
    if not fits or len(signature) != 2 * size:
        raise SignatureError("a signature is not of the kind its key makes", code=code)
    r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(digest))
    except (InvalidSignature, ValueError):
        raise SignatureError("a signature does not verify", code=code) from None


def _signed(key: Any, signature: bytes, data: bytes, scheme: Any, digest: Any) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(scheme, ec.ECDSA):
            if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
                return False
            key.verify(signature, data, scheme)
        elif isinstance(key, rsa.RSAPublicKey) and isinstance(scheme, padding.PSS):
            if key.key_size > _MAX_RSA_BITS or key.public_numbers().e > _MAX_RSA_EXPONENT:
                return False
            key.verify(signature, data, scheme, digest)
        else:
            return False
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _header(der: bytes, at: int) -> int:
    """Where the contents of the element at `at` begin."""
    return at + 2 + (der[at + 1] & 0x7F if der[at + 1] & 0x80 else 0)


def _end(der: bytes, at: int) -> int:
    """Where the element at `at` ends. The library has checked that all of them fit."""
    begin = _header(der, at)
    return begin + (int.from_bytes(der[at + 2 : begin], "big") if der[at + 1] & 0x80 else der[at + 1])


def _names(signed: bytes) -> tuple[bytes, bytes]:
    """DER of issuer and subject, as they stand in what was signed: making objects of them is slow."""
    at = _header(signed, 0)
    if signed[at] == 0xA0:
        at = _end(signed, at)
    # Serial number, algorithm; issuer; validity; subject.
    issuer = _end(signed, _end(signed, at))
    subject = _end(signed, _end(signed, issuer))
    return signed[issuer : _end(signed, issuer)], signed[subject : _end(signed, subject)]


def _with_positive_serial(der: bytes) -> bytes:
    """The same certificate with serial number 1 where it has 0.

    AMD gives its endorsement keys serial number 0, which RFC 5280 forbids and the
    parser refuses. Signatures are checked over the original bytes all the same.
    """
    at = _header(der, _header(der, 0))
    if der[at] == 0xA0:
        at = _header(der, at) + der[at + 1]
    return der[: at + 2] + b"\x01" + der[at + 3 :] if der[at : at + 3] == b"\x02\x01\x00" else der


def path(
    certificates: Sequence[Certificate], leaf: Certificate, *, anchors: Collection[str], now: datetime, what: str
) -> tuple[Certificate, ...]:
    """The path from a leaf to a pinned anchor, every step of it checked.

    Args:
        certificates: candidates in any order, at most 8. Untrusted.
        leaf: whose key is to be used. Untrusted.
        anchors: SHA-256 fingerprints, in hex, of the root certificates to trust.
        now: aware UTC time at which all must be valid.
        what: names the chain in error codes.

    Returns:
        Leaf first, anchor last.

    Raises:
        ChainError: `{what}-chain`: a step is missing, has a wrong signature, or is no authority.
        ExpiredError: `{what}-expired`: one of them is not valid at this time.
    """
    found = [leaf]
    while found[-1].fingerprint not in anchors:
        # An authority may come as several certificates of one key: prefer the pinned one.
        above = [c for c in certificates if c is not leaf and c.subject == found[-1].issuer]
        above.sort(key=lambda c: c.fingerprint not in anchors)
        issuer = next((c for c in above if c not in found and found[-1].signed_by(c)), None)
        if issuer is None:
            raise ChainError("the certificate chain does not lead to the trust anchor", code=f"{what}-chain")
        below = len(found) - 1
        if not issuer.authority or (issuer.path_length is not None and issuer.path_length < below):
            raise ChainError("a certificate in the chain may not issue the one below it", code=f"{what}-chain")
        found.append(issuer)
    if not all(c.understood for c in found):
        raise ChainError("a certificate has a critical extension that is not understood", code=f"{what}-chain")
    for certificate in found:
        check_time(certificate.not_before, certificate.not_after, now=now, what=what)
    return tuple(found)


def check_time(begin: datetime, end: datetime, *, now: datetime, what: str) -> None:
    """Raises ExpiredError with code `{what}-expired` unless begin ≤ now ≤ end."""
    if now < begin:
        raise ExpiredError(f"{what}: not valid yet at this time; check the clock", code=f"{what}-expired")
    if now > end:
        raise ExpiredError(f"{what}: expired; the host must fetch new endorsements", code=f"{what}-expired")


class RevocationList:
    """One CRL. Parsing verifies nothing.

    Attributes:
        this_update, next_update: aware UTC times.
        number: its CRL number, or 0.
    """

    def __init__(self, der: bytes, *, what: str) -> None:
        """Parse it. Raises FormatError with code `{what}-format`."""
        try:
            self._crl = x509.load_der_x509_crl(der)
            # Version (if not 1), algorithm, issuer, times, entries, extensions.
            parts = _der.split(_der.parse(self._crl.tbs_certlist_bytes).contents, most=7)
            if parts[-1][0] == _EXTENSIONS and len(parts[-1]) > MAX_LIST_EXTENSIONS:
                raise ValueError
            self._issuer = parts[2 if parts[0][0] == _der.INTEGER else 1]
            self.this_update = self._crl.last_update_utc
            end = self._crl.next_update_utc
            self.critical = any(e.critical for e in self._crl.extensions)
            numbers = [e.value.crl_number for e in self._crl.extensions if isinstance(e.value, x509.CRLNumber)]
        except Exception:
            raise FormatError("a revocation list does not parse", code=f"{what}-format") from None
        if end is None:
            raise FormatError("a revocation list does not say how long it is valid", code=f"{what}-format")
        self.next_update = end
        self.number = numbers[0] if numbers else 0

    def check(self, issuer: Certificate, *, now: datetime, what: str) -> None:
        """Check that the list is that authority's, and valid now.

        Raises:
            ChainError: `{what}-issuer`: another authority signed it.
            ExpiredError: `{what}-expired`.
        """
        crl = self._crl
        scheme: Any = getattr(crl, "signature_algorithm_parameters", None)
        ours = self._issuer == issuer.subject and not self.critical
        if not ours or not _crl_signed(crl, issuer.key, scheme):
            raise ChainError("a revocation list is not signed by the authority it is for", code=f"{what}-issuer")
        check_time(self.this_update, self.next_update, now=now, what=what)

    def refuse(self, certificates: Iterable[Certificate], *, what: str) -> None:
        """Raises RevokedError with code `{what}-revoked` if the list names one of them."""
        for certificate in certificates:
            if self._crl.get_revoked_certificate_by_serial_number(certificate.serial) is not None:
                raise RevokedError("the vendor revoked a certificate of this chain", code=f"{what}-revoked")


def _crl_signed(crl: Any, key: Any, scheme: Any) -> bool:
    if scheme is not None:
        return _signed(key, crl.signature, crl.tbs_certlist_bytes, scheme, crl.signature_hash_algorithm)
    try:
        return bool(crl.is_signature_valid(key))
    except (InvalidSignature, ValueError, TypeError):
        return False


def is_self_signed_root(der: bytes, common_name: str) -> bool:
    """Whether this is a self-signed certificate with that subject common name."""
    if common_name.encode() not in der:
        return False
    try:
        certificate = Certificate(der, what="root")
    except ChainError:
        return False
    return certificate.signed_by(certificate) and certificate.common_name == common_name
