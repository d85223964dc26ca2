"""An Intel-shaped PKI for one simulated processor: keys, certificates, lists, signed documents.

Runs in the simulated platform. Everything has the real formats, so that the
production verifier runs unchanged on it; only the root differs, and its subject
name says so.

Formats: Intel SGX PCK Certificate and CRL Specification; Intel PCS API v4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from conclave.platform.vendor import CPU_SVN, FIRST, PCE_ID, PCE_SVN, VALID, Tcb, Vendor

ROOT_NAME: Final = "Conclave Simulated Root CA"
PrivateKey = ec.EllipticCurvePrivateKey
_SGX_OID: Final = "1.2.840.113741.1.13.1"
_FOREVER: Final = timedelta(days=365 * 20)


def der(tag: int, content: bytes) -> bytes:
    """One DER element with a one-byte tag."""
    size = len(content)
    if size < 128:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sgx_values(
    *,
    ppid: bytes,
    fmspc: bytes,
    cpu_svn: bytes = bytes((CPU_SVN,)) * 16,
    pce_svn: int = PCE_SVN,
    pce_id: str = PCE_ID,
) -> dict[str, bytes]:
    """What the SGX extension of a PCK certificate says, for `sgx_extension`."""
    return {
        "1": der(4, ppid),
        **{f"2.{i}": _number(svn) for i, svn in enumerate(cpu_svn, 1)},
        "2.17": _number(pce_svn),
        "2.18": der(4, cpu_svn),
        "3": der(4, bytes.fromhex(pce_id)),
        "4": der(4, fmspc),
        "5": der(0x0A, b"\0"),
    }


def sgx_extension(values: Iterable[tuple[str, bytes]]) -> bytes:
    """The SGX extension: values in DER, each after the end of its OID, 1.2.840.113741.1.13.1.

    Values such as `2.1` become parts of one value `2`, which stands where the first of them does.
    """
    elements: dict[str, bytes] = {}
    nested = set()
    for suffix, value in values:
        top, dot, _ = suffix.partition(".")
        elements[top] = elements.get(top, b"") + der(0x30, _oid(suffix) + value)
        nested |= {top} if dot else set()
    return der(
        0x30,
        b"".join(der(0x30, _oid(top) + der(0x30, e)) if top in nested else e for top, e in elements.items()),
    )


def _oid(suffix: str) -> bytes:
    # 1.2.840.113741.1.13.1 and arcs below 128 after it.
    return der(6, bytes.fromhex("2a864886f84d010d01") + bytes(int(p) for p in suffix.split(".")))


def _number(value: int) -> bytes:
    return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Conclave simulated platform"),
        ]
    )


def _certificate(
    common: str,
    key: PrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: PrivateKey,
    *,
    now: datetime,
    authority: bool,
    path_length: int | None = None,
    extension: bytes | None = None,
) -> x509.Certificate:
    public = key.public_key()
    usage = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(issuer.subject if issuer else _name(common))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _FOREVER)
        .add_extension(x509.BasicConstraints(authority, path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if extension is not None:
        oid = x509.ObjectIdentifier(_SGX_OID)
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, extension), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _crl(
    issuer: x509.Certificate,
    key: PrivateKey,
    *,
    now: datetime,
    revoked: tuple[int, ...] = (),
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now)
        .next_update(now + VALID)
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def raw_signature(key: PrivateKey, data: bytes) -> bytes:
    """ECDSA P-256 with SHA-256 as r ‖ s, 64 bytes."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def pem(*certificates: x509.Certificate) -> str:
    """Certificates as PEM, one after the other."""
    return "".join(c.public_bytes(serialization.Encoding.PEM).decode() for c in certificates)


def private_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS 8, unencrypted: the directory is the processor."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def new_private() -> PrivateKey:
    """A fresh key."""
    return ec.generate_private_key(ec.SECP256R1())


def point(key: PrivateKey) -> bytes:
    """The public half as x ‖ y, 64 bytes."""
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def certificate_der(certificate: x509.Certificate) -> bytes:
    """A certificate's bytes."""
    return certificate.public_bytes(serialization.Encoding.DER)


def load_certificate(data: bytes) -> x509.Certificate:
    """The inverse of `certificate_der`. Raises ValueError."""
    return x509.load_der_x509_certificate(data)


def load_private(data: bytes) -> PrivateKey:
    """The inverse of `private_der`. Raises ValueError."""
    try:
        key = serialization.load_der_private_key(data, password=None)
    except UnsupportedAlgorithm:
        raise ValueError("not a key of a known kind") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic-curve key")
    return key


@dataclass(frozen=True, slots=True)
class Pki:
    """Keys and certificates of one simulated processor."""

    root_key: PrivateKey
    root: x509.Certificate
    ca_key: PrivateKey
    ca: x509.Certificate
    pck_key: PrivateKey
    pck: x509.Certificate
    tcb_key: PrivateKey
    tcb: x509.Certificate
    fmspc: bytes
    ppid: bytes

    @classmethod
    def create(cls, *, fmspc: bytes, ppid: bytes, now: datetime, tcb: Tcb = FIRST) -> Pki:
        """Fresh keys and certificates, for a processor of that TCB version."""
        root_key, ca_key, pck_key, tcb_key = (new_private() for _ in range(4))
        root = _certificate(ROOT_NAME, root_key, None, root_key, now=now, authority=True, path_length=1)
        ca = _certificate(
            "Conclave Simulated PCK Platform CA",
            ca_key,
            root,
            root_key,
            now=now,
            authority=True,
            path_length=0,
        )
        signer = _certificate("Conclave Simulated TCB Signing", tcb_key, root, root_key, now=now, authority=False)
        # The processor's own certificate takes this one's place.
        bare = cls(root_key, root, ca_key, ca, pck_key, signer, tcb_key, signer, fmspc, ppid)
        return bare.certified(pck_key, tcb, now=now)

    def certified(self, key: PrivateKey, tcb: Tcb, *, now: datetime) -> Pki:
        """The same with another key of the processor: each TCB version has its own."""
        values = sgx_values(ppid=self.ppid, fmspc=self.fmspc, cpu_svn=tcb.cpu_svn, pce_svn=tcb.pce_svn)
        certificate = _certificate(
            "Conclave Simulated PCK Certificate",
            key,
            self.ca,
            self.ca_key,
            now=now,
            authority=False,
            extension=sgx_extension(values.items()),
        )
        return replace(self, pck_key=key, pck=certificate)

    def endorsements(self, vendor: Vendor, *, now: datetime, serials: Iterable[int] = ()) -> bytes:
        """CRLs, TCB info and QE identity as of now, in the format of spec/dcap.md section 3.

        Args:
            vendor: what it says.
            serials: of every certificate that the processor ever had.
        """
        tcb_info = json_text(vendor.tcb_info(self.fmspc, now=now))
        identity = json_text(vendor.qe_identity(now=now))
        signer = pem(self.tcb, self.root)
        listed = vendor.issue_date("crl", now)
        cas = (self.ca.serial_number,) if "ca" in vendor.revoked else ()
        platforms = tuple(serials) if "platform" in vendor.revoked else ()
        return json_text(
            {
                "pck_crl_issuer_chain": pem(self.ca, self.root),
                "root_ca_crl": _crl(self.root, self.root_key, now=listed, revoked=cas).hex(),
                "pck_crl": _crl(self.ca, self.ca_key, now=listed, revoked=platforms).hex(),
                "tcb_info_issuer_chain": signer,
                "tcb_info": tcb_info,
                "tcb_info_signature": raw_signature(self.tcb_key, tcb_info.encode()).hex(),
                "qe_identity_issuer_chain": signer,
                "qe_identity": identity,
                "qe_identity_signature": raw_signature(self.tcb_key, identity.encode()).hex(),
            }
        ).encode()


def json_text(value: object) -> str:
    """Compact JSON, as the vendor signs it."""
    return json.dumps(value, separators=(",", ":"))
