"""An Intel-shaped PKI for one simulated processor: certificates, lists, TCB info.

Runs in the simulated platform. Everything has the real formats, so that the
production verifier runs unchanged on it; only the root differs, and its subject
name says so.

Formats: Intel SGX PCK Certificate and CRL Specification; Intel PCS API v4
(TCB info version 3, enclave identity version 2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

ROOT_NAME: Final = "Conclave Simulated Root CA"
PCE_ID: Final = "0000"
CPU_SVN: Final = 2
PCE_SVN: Final = 11
QE_SVN: Final = 8
QE_PRODUCT: Final = 1
QE_MRSIGNER: Final = bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff")
QE_ATTRIBUTES: Final = bytes.fromhex("11000000000000000000000000000000")
STATUSES: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
_SGX_OID: Final = "1.2.840.113741.1.13.1"
_FOREVER: Final = timedelta(days=365 * 20)
_VALID: Final = timedelta(days=30)


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
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
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
    key: ec.EllipticCurvePrivateKey,
    *,
    now: datetime,
    revoked: tuple[int, ...] = (),
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now)
        .next_update(now + _VALID)
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
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


def load_private(data: bytes) -> ec.EllipticCurvePrivateKey:
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

    root_key: ec.EllipticCurvePrivateKey
    root: x509.Certificate
    ca_key: ec.EllipticCurvePrivateKey
    ca: x509.Certificate
    pck_key: ec.EllipticCurvePrivateKey
    pck: x509.Certificate
    tcb_key: ec.EllipticCurvePrivateKey
    tcb: x509.Certificate
    fmspc: bytes

    @classmethod
    def create(cls, *, fmspc: bytes, ppid: bytes, now: datetime) -> Pki:
        """Fresh keys and certificates."""
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(4)]
        root_key, ca_key, pck_key, tcb_key = keys
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
        pck = _certificate(
            "Conclave Simulated PCK Certificate",
            pck_key,
            ca,
            ca_key,
            now=now,
            authority=False,
            extension=sgx_extension(sgx_values(ppid=ppid, fmspc=fmspc).items()),
        )
        tcb = _certificate("Conclave Simulated TCB Signing", tcb_key, root, root_key, now=now, authority=False)
        return cls(root_key, root, ca_key, ca, pck_key, pck, tcb_key, tcb, fmspc)

    def endorsements(self, *, now: datetime, status: str, advisories: tuple[str, ...], number: int) -> bytes:
        """CRLs, TCB info and QE identity as of now, in the format of claims.md section 4."""
        revoked = (self.pck.serial_number,) if status == "Revoked" else ()
        tcb_info = json_text(sgx_tcb_info(self.fmspc, now=now, status=status, advisories=advisories, number=number))
        identity = json_text(qe_identity(now=now, number=number))
        signer = pem(self.tcb, self.root)
        return json_text(
            {
                "pck_crl_issuer_chain": pem(self.ca, self.root),
                "root_ca_crl": _crl(self.root, self.root_key, now=now).hex(),
                "pck_crl": _crl(self.ca, self.ca_key, now=now, revoked=revoked).hex(),
                "tcb_info_issuer_chain": signer,
                "tcb_info": tcb_info,
                "tcb_info_signature": raw_signature(self.tcb_key, tcb_info.encode()).hex(),
                "qe_identity_issuer_chain": signer,
                "qe_identity": identity,
                "qe_identity_signature": raw_signature(self.tcb_key, identity.encode()).hex(),
            }
        ).encode()


def sgx_tcb_info(
    fmspc: bytes, *, now: datetime, status: str, advisories: tuple[str, ...], number: int
) -> dict[str, Any]:
    """TCB info of version 3 with one level, which this platform has."""
    level = {
        "tcb": {"sgxtcbcomponents": [{"svn": CPU_SVN} for _ in range(16)], "pcesvn": PCE_SVN},
        "tcbDate": _text(now),
        "tcbStatus": status,
    }
    if advisories:
        level["advisoryIDs"] = list(advisories)
    return {
        "id": "SGX",
        "version": 3,
        "issueDate": _text(now),
        "nextUpdate": _text(now + _VALID),
        "fmspc": fmspc.hex().upper(),
        "pceId": PCE_ID,
        "tcbType": 0,
        "tcbEvaluationDataNumber": number,
        "tcbLevels": [level],
    }


def qe_identity(*, now: datetime, number: int) -> dict[str, Any]:
    """The identity of Intel's quoting enclave, version 2, with one level."""
    return {
        "id": "QE",
        "version": 2,
        "issueDate": _text(now),
        "nextUpdate": _text(now + _VALID),
        "tcbEvaluationDataNumber": number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": QE_ATTRIBUTES.hex().upper(),
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_MRSIGNER.hex().upper(),
        "isvprodid": QE_PRODUCT,
        "tcbLevels": [{"tcb": {"isvsvn": QE_SVN}, "tcbDate": _text(now), "tcbStatus": "UpToDate"}],
    }


def json_text(value: object) -> str:
    """Compact JSON, as the vendor signs it."""
    return json.dumps(value, separators=(",", ":"))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
