"""SEV-SNP evidence under authorities of our own: what passes, to be changed in one thing and signed again."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from conclave.attestation.evidence import EvidenceClaims
from conclave.attestation.snp import parse_report, verify_report
from conclave.attestation.snp.report import FIELDS

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
YEAR = timedelta(days=365)
OID = "1.3.6.1.4.1.3704.1"
HWID = {"Milan": bytes(range(64)), "Genoa": bytes(range(1, 65)), "Turin": bytes(range(1, 9))}
CPUID = {"Milan": (0x19, 1, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 2, 1)}
TCB = {"Milan": "04000000000018db", "Genoa": "0a00000000001754", "Turin": "0101010400000051"}
LAYOUT = {"Milan": (1, 2, 4, 5, 6, 7, 3, 8), "Genoa": (1, 2, 4, 5, 6, 7, 3, 8), "Turin": (9, 1, 2, 3, 5, 6, 7, 8)}
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
PLACES = {f.name: slice(f.offset, f.offset + f.size) for f in FIELDS}


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def chip_key(name: str = "chip") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def integer(value: int) -> bytes:
    return bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])


def text(value: str) -> bytes:
    return bytes([0x16, len(value)]) + value.encode()


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def name_of(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


@cache
def authority(
    common: str,
    issuer: str,
    key: str,
    issuer_key: str,
    *,
    serial: int,
    end: datetime = NOW + 20 * YEAR,
    ca: bool = True,
) -> bytes:
    """DER of an ARK, ASK or ASVK."""
    builder = x509.CertificateBuilder(name_of(issuer), name_of(common), rsa_key(key).public_key(), serial)
    builder = builder.not_valid_before(NOW - 5 * YEAR).not_valid_after(end)
    path_length = None if common == issuer or not ca else 0
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    return der(builder.sign(rsa_key(issuer_key), hashes.SHA384(), rsa_padding=PSS))


def with_serial_zero(certificate: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """The certificate with serial number 0, which builders refuse to make, signed again."""
    tbs = bytearray(x509.load_der_x509_certificate(certificate).tbs_certificate_bytes)
    assert tbs[4:12] == bytes.fromhex("a003020102020101")
    tbs[11] = 0
    parsed = x509.load_der_x509_certificate(certificate)
    made = certificate.replace(parsed.tbs_certificate_bytes, bytes(tbs))
    return made.replace(parsed.signature, key.sign(bytes(tbs), PSS, hashes.SHA384()))


@dataclass(frozen=True)
class Amd:
    """One report, its endorsements, and who verifies them.

    Every part is what genuine evidence has, unless it is changed here:
    `fields` of the report, `arcs` of the endorsement key's certificate (None
    removes one), members of the endorsements.
    """

    product: str = "Milan"
    kind: str = "VCEK"
    fields: Mapping[str, int | bytes] = field(default_factory=dict)
    arcs: Mapping[str, bytes | None] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)
    signer: str = "chip"
    certified: str = "chip"
    begin: datetime = NOW - 30 * DAY
    end: datetime = NOW + 7 * YEAR
    serial_zero: bool = True
    issuer_name: str | None = None
    root_name: str | None = None
    ca: bool = True
    crl: Mapping[str, Any] | None = None
    now: datetime = NOW

    def but(self, **changes: Any) -> Amd:
        """Another one; mappings are merged."""
        merged = {k: {**getattr(self, k), **v} if k in ("fields", "arcs", "members") else v for k, v in changes.items()}
        return replace(self, **merged)

    # The processor ---------------------------------------------------------------

    def body(self) -> bytes:
        """The report without its signature."""
        family, model, stepping = CPUID[self.product]
        tcb = bytes.fromhex(TCB[self.product])
        values: dict[str, int | bytes] = {
            "version": 3,
            "policy": 0x30000,
            "signature_algorithm": 1,
            "platform_info": 0x25,
            "key_info": 0 if self.kind == "VCEK" else 1 << 2,
            "report_data": bytes(range(64)),
            "measurement": bytes(range(48)),
            "host_data": bytes(range(32)),
            "report_id": bytes(range(1, 33)),
            "report_id_ma": b"\xff" * 32,
            "chip_id": HWID[self.product].ljust(64, b"\0") if self.kind == "VCEK" else bytes(64),
        }
        values |= {f"{which}_tcb": tcb for which in ("reported", "current", "committed", "launch")}
        values |= dict(self.fields)
        if int.from_bytes(_bytes(values["version"], 4), "little") >= 3:
            values = {"cpuid_family": family, "cpuid_model": model, "cpuid_stepping": stepping} | values
        raw = bytearray(1184)
        for name, value in values.items():
            raw[PLACES[name]] = _bytes(value, PLACES[name].stop - PLACES[name].start)
        return bytes(raw)

    def report(self) -> bytes:
        """Signed, with r and s as the processor writes them."""
        raw = bytearray(self.body())
        r, s = decode_dss_signature(chip_key(self.signer).sign(bytes(raw[:0x2A0]), ec.ECDSA(hashes.SHA384())))
        for name, number in (("signature_r", r), ("signature_s", s)):
            if name not in self.fields:
                raw[PLACES[name]] = number.to_bytes(72, "little")
        return bytes(raw)

    # AMD -------------------------------------------------------------------------

    @property
    def root(self) -> str:
        """Common name of the ARK."""
        return self.root_name or f"ARK-{self.product}"

    @property
    def ark(self) -> bytes:
        return authority(self.root, self.root, "ark", "ark", serial=0x10000)

    @property
    def issuer(self) -> bytes:
        """The ASK or ASVK."""
        common = self.issuer_name or f"SEV-{'' if self.kind == 'VCEK' else 'VLEK-'}{self.product}"
        key, serial = ("ask", 0x10001) if self.kind == "VCEK" else ("asvk", 0x10101)
        return authority(common, self.root, key, "ark", serial=serial, ca=self.ca)

    @property
    def issuer_key(self) -> rsa.RSAPrivateKey:
        return rsa_key("ask" if self.kind == "VCEK" else "asvk")

    def certificate(self) -> bytes:
        """DER of the VCEK or VLEK."""
        tcb = bytes.fromhex(TCB[self.product])
        arcs: dict[str, bytes | None] = {
            "1": integer(1 if self.product == "Turin" else 0),
            "2": text({"Milan": "Milan-B0"}.get(self.product, self.product)),
            **{f"3.{arc}": integer(value) for arc, value in zip(LAYOUT[self.product], tcb, strict=True)},
            **({"4": HWID[self.product]} if self.kind == "VCEK" else {"5": text("CN=cloud.example")}),
            **self.arcs,
        }
        subject = x509.load_der_x509_certificate(self.issuer).subject
        builder = x509.CertificateBuilder(
            subject, name_of(f"SEV-{self.kind}"), chip_key(self.certified).public_key(), 1
        )
        builder = builder.not_valid_before(self.begin).not_valid_after(self.end)
        for arc, value in arcs.items():
            if value is not None:
                extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{OID}.{arc}"), value)
                builder = builder.add_extension(extension, critical=False)
        made = der(builder.sign(self.issuer_key, hashes.SHA384(), rsa_padding=PSS))
        return with_serial_zero(made, self.issuer_key) if self.serial_zero else made

    def list(self) -> bytes:
        """DER of the ARK's revocation list, of serial numbers `revoked`, by key and name of `by`."""
        said = {"revoked": (), "by": "ark", "name": self.root, "update": NOW - 10 * DAY, **(self.crl or {})}
        builder = x509.CertificateRevocationListBuilder(name_of(said["name"]), said["update"], said["update"] + YEAR)
        builder = builder.add_extension(x509.CRLNumber(7), critical=False)
        for serial in said["revoked"]:
            entry = x509.RevokedCertificateBuilder(serial, said["update"]).build()
            builder = builder.add_revoked_certificate(entry)
        made = builder.sign(rsa_key(said["by"]), hashes.SHA384(), rsa_padding=PSS)
        return made.public_bytes(serialization.Encoding.DER)

    def endorsements(self) -> bytes:
        members = {
            "certificate": self.certificate().hex(),
            "chain": pem(self.issuer, self.ark),
            "crl": "" if self.crl is None else self.list().hex(),
        }
        return json.dumps(members | dict(self.members)).encode()

    # The relying party -----------------------------------------------------------

    @property
    def anchors(self) -> frozenset[str]:
        return frozenset({hashlib.sha256(self.ark).hexdigest()})

    def verify(self) -> EvidenceClaims:
        return verify_report(parse_report(self.report()), self.endorsements(), anchors=self.anchors, now=self.now)


def _bytes(value: int | bytes, size: int) -> bytes:
    return value.to_bytes(size, "little") if isinstance(value, int) else value


def pem(*certificates: bytes) -> str:
    return "".join(
        f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(c).decode()}-----END CERTIFICATE-----\n"
        for c in certificates
    )
