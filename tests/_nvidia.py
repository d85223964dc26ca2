"""NVIDIA evidence under authorities of our own: what passes, to be changed in one thing and signed again."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from conclave.attestation.nvidia import GpuClaims, Rim, parse_report, verify_report, verify_rim

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
YEAR = timedelta(days=365)
NONCE = bytes(range(32))
FWID = bytes(range(100, 148))
FWID_OID = bytes.fromhex("0609608648016503040202")
SERIAL = "48B02D0123456789"
COMPOSITE, TCB_INFO = "2.23.133.5.4.1", "2.23.133.5.4.1.1"
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)

GPU_FIELDS: Mapping[int, bytes] = {
    6: bytes.fromhex("005e009601000000"),
    14: bytes.fromhex("b1030000"),
    15: b"882\0\0\0\0\0\0",
    16: b"0\0\0\0\0",
    17: b"1010\0",
    18: b"0200\0",
    19: b"\0\0",
    3: b"550.90.07\0",
    4: bytes.fromhex("8001000000000000"),
    12: struct.pack("<4I", 0, 1, 4, 1),
    13: bytes.fromhex("00c00100"),
    11: b"\xaa",
    20: FWID,
    21: b"\x55",
}
SWITCH_FIELDS: Mapping[int, bytes] = {
    6: b"96.10.55.00.01",
    22: bytes.fromhex("203eb31ad9ed0008"),
    12: struct.pack("<2I", 1, 4),
    26: bytes(128),
    23: b"\xec\0",
    24: b"\2\0",
    25: b"\1\0",
}


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1() if name == "p256" else ec.SECP384R1())


def tlv(tag: int, *parts: bytes) -> bytes:
    """DER of one value."""
    body = b"".join(parts)
    size = len(body)
    long = b"\x81" + bytes([size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + (bytes([size]) if size < 128 else long) + body


def fwid(digest: bytes = FWID, algorithm: bytes = FWID_OID) -> bytes:
    return tlv(0x30, algorithm, tlv(4, digest))


def composite(version: int = 1, digest: bytes = FWID) -> bytes:
    spki = (
        key("device")
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return tlv(0x30, tlv(2, bytes([version])), spki, fwid(digest))


def tcb_info(*, flags: int | None = 0x80000001, digest: bytes = FWID) -> bytes:
    said = b"" if flags is None else tlv(0x87, b"\0", flags.to_bytes(4, "big"))
    return tlv(
        0x30,
        tlv(0x80, b"NVIDIA"),
        tlv(0x81, b"GB100 A01 GSP"),
        tlv(0x83, b"\3"),
        tlv(0xA6, fwid(digest), fwid(bytes(48))),
        said,
    )


def device_information(
    text: str, *, oid: str = "1.3.6.1.4.1.412.274.1", tag: int = 0x0C
) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.OtherName(x509.ObjectIdentifier(oid), tlv(tag, text.encode()))])


@dataclass(frozen=True)
class Link:
    """One certificate of a chain, by what is particular about it."""

    name: str
    key: str
    ca: bool = True
    path_length: int | None = None
    begin: datetime = NOW - 3 * YEAR
    end: datetime = FOREVER
    usage: str = "sign"
    extensions: tuple[tuple[Any, bool], ...] = ()


@cache
def certify(link: Link, issuer: Link) -> bytes:
    builder = x509.CertificateBuilder(name_of(issuer.name), name_of(link.name), key(link.key).public_key(), 7)
    builder = builder.not_valid_before(link.begin).not_valid_after(link.end)
    if link.ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=link.path_length), critical=True)
    if link.usage:
        signs, certifies = link.usage == "both" or (link.usage == "sign" and not link.ca), link.ca
        usage = x509.KeyUsage(signs, False, False, False, False, certifies, False, False, False)
        builder = builder.add_extension(usage, critical=True)
    for extension, critical in link.extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key(issuer.key), hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def name_of(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "NVIDIA Corporation"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


DEVICE_ROOT = Link("NVIDIA Device Identity CA", "root")
RIM_ROOT = Link("NVIDIA CoRIM signing Root CA", "rim-root")


def chain_of(*links: Link) -> list[bytes]:
    """DER of each, leaf first; the last one signs itself."""
    return [certify(link, issuer) for link, issuer in zip(links, (*links[1:], links[-1]), strict=True)]


def pem(certificates: list[bytes]) -> bytes:
    return b"".join(
        b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(c) + b"-----END CERTIFICATE-----\n" for c in certificates
    )


def fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def sign(name: str, data: bytes) -> bytes:
    """r ‖ s."""
    r, s = decode_dss_signature(key(name).sign(data, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


@dataclass(frozen=True)
class Nvidia:
    """One report, its certificates, and who verifies them: genuine but for what is changed here.

    `blocks` by index, `fields` of NVIDIA's own by number and `links` by role are None to leave one out.
    """

    chip: str = "GH100"
    nonce: bytes = NONCE
    serial: str = SERIAL
    blocks: Mapping[int, bytes | None] = field(default_factory=dict)
    fields: Mapping[int, bytes | None] = field(default_factory=dict)
    patch: Mapping[int, bytes] = field(default_factory=dict)
    leaf: Mapping[str, Any] = field(default_factory=dict)
    extension: tuple[str, bytes] | None = None
    information: Any = None
    links: Mapping[str, Link | None] = field(default_factory=dict)
    signer: str = "report"
    chain: Callable[[list[bytes]], list[bytes]] = list
    now: datetime = NOW

    def but(self, **changes: Any) -> Nvidia:
        """Another one; mappings are merged."""
        merged = {k: {**v, **changes[k]} if isinstance(v := getattr(self, k), Mapping) else changes[k] for k in changes}
        return replace(self, **merged)

    @property
    def kind(self) -> str:
        return "switch" if self.chip == "LS_10" else "gpu"

    def own(self) -> dict[int, bytes]:
        said = {**(GPU_FIELDS if self.kind == "gpu" else SWITCH_FIELDS), **self.fields}
        return {number: value for number, value in said.items() if value is not None}

    def body(self) -> bytes:
        """Request and response without the signature; `patch` replaces bytes by offset."""
        said = {n: bytes([n]) * 48 for n in range(1, 65)} | dict(self.blocks)
        blocks = {n: value for n, value in sorted(said.items()) if value is not None}
        record = b"".join(struct.pack("<BBHBH", n, 1, 51, 1, 48) + value for n, value in blocks.items())
        opaque = b"".join(struct.pack("<HH", n, len(value)) + value for n, value in self.own().items())
        body = bytearray(
            b"\x11\xe0\x01\xff" + self.nonce + b"\0"
            + b"\x11\x60\0\0" + bytes([len(blocks)]) + len(record).to_bytes(3, "little") + record
            + bytes(range(200, 232)) + struct.pack("<H", len(opaque)) + opaque
        )  # fmt: skip
        for at, value in self.patch.items():
            body[at : at + len(value)] = value
        return bytes(body)

    def report(self) -> bytes:
        return self.body() + sign(self.signer, self.body())

    def certificates(self) -> list[bytes]:
        said = self.extension or ((TCB_INFO, tcb_info()) if self.chip == "GB100" else (COMPOSITE, composite()))
        extensions: list[tuple[Any, bool]] = [
            (self.information or device_information(f"NVIDIA:{self.chip}:{self.serial}"), False),
            (x509.UnrecognizedExtension(x509.ObjectIdentifier(said[0]), said[1]), False),
        ]
        leaf = Link(f"{self.chip} A01 GSP FMC LF", "report", ca=False, extensions=tuple(extensions))
        roles: dict[str, Link | None] = {
            "report": replace(leaf, **self.leaf),
            "device": Link(f"{self.chip} A01 GSP BROM", "device"),
            "provisioner": Link(f"NVIDIA {self.chip} Provisioner ICA 1", "provisioner"),
            "family": Link(f"NVIDIA {self.chip} Identity", "family"),
            "root": DEVICE_ROOT,
            **self.links,
        }
        return self.chain(chain_of(*(link for link in roles.values() if link is not None)))

    @property
    def anchors(self) -> frozenset[str]:
        """The root by its role, whatever comes of the chain."""
        root = self.links.get("root") or DEVICE_ROOT
        return frozenset({fingerprint(certify(root, root))})

    def verify(self, nonce: bytes | None = NONCE) -> GpuClaims:
        report = parse_report(self.report())
        return verify_report(report, pem(self.certificates()), nonce=nonce, anchors=self.anchors, now=self.now)


# Manifests ---------------------------------------------------------------------------

SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
TCG = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"
DSIG = "http://www.w3.org/2000/09/xmldsig#"
C14N = "http://www.w3.org/2006/12/xml-c14n11"
ROOT_SPACES = f'xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="{SHA384}"'
# The statement has the namespaces of all around it, once it stands alone.
STATEMENT_SPACES = f' xmlns="{SWID}" xmlns:ds="{DSIG}" xmlns:ns0="{SWID}" xmlns:ns2="{SHA384}"'
ALGORITHMS = {
    "canonicalization": C14N,
    "signature": "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
    "enveloped": "http://www.w3.org/2000/09/xmldsig#enveloped-signature",
    "transform": C14N,
    "digest": "http://www.w3.org/2001/04/xmldsig-more#sha384",
}


def entry(number: int, /, *values: bytes, active: bool = True, **changes: str) -> str:
    """One measurement, in its canonical form; attributes by name are changed after all else."""
    values = values or (bytes([number + 1]) * 48,)
    plain = {
        "active": str(active),
        "alternatives": str(len(values)),
        "index": str(number),
        "name": f"Measurement_{number}",
        "size": "48",
        "type": "Measurement",
    } | changes
    hashed = {f"Hash{place}": value.hex() for place, value in enumerate(values)}
    said = [f'{n}="{v}"' for n, v in sorted(plain.items())] + [f'ns2:{n}="{v}"' for n, v in sorted(hashed.items())]
    return f"<ns0:Resource {' '.join(said)}></ns0:Resource>"


@dataclass(frozen=True)
class Manifest:
    """One manifest and who verifies it: genuine but for what is changed here.

    It is written in canonical form, so that its digest is that of its own text; `written` changes how it is
    written after that, which must not matter, or must be noticed.
    """

    product: str = "GH100"
    edition: str = "GPU"
    version: str = "550.90.07"
    entries: tuple[str, ...] = (entry(7), entry(8, active=False), entry(9, bytes(48), bytes([10]) * 48))
    root: str = ""
    about: str = ""
    inside: str = "{entity}{meta}{payload}"
    algorithms: Mapping[str, str] = field(default_factory=dict)
    reference: str = 'URI=""'
    digest: bytes | None = None
    signer: str = "rim-signer"
    leaf: Mapping[str, Any] = field(default_factory=dict)
    chain: Callable[[list[bytes]], list[bytes]] = list
    statement: Callable[[str], str] = str
    written: Callable[[str], str] = str
    now: datetime = NOW

    def but(self, **changes: Any) -> Manifest:
        return replace(self, **changes)

    def content(self) -> str:
        """The document without its signature: `{signature}` is where that goes."""
        meta = (
            f'<ns0:Meta xmlns:ns1="{TCG}" PayloadType="direct" colloquialVersion="{self.version}" '
            f'edition="{self.edition}" product="{self.product}" revision="r1" ns1:BindingSpec="RIMIM"></ns0:Meta>'
        )
        parts = {
            "entity": '<ns0:Entity name="NVIDIA Corporation" role="softwareCreator tagCreator"></ns0:Entity>\n    ',
            "meta": (self.about or meta) + "\n    ",
            "payload": f'<ns0:Payload xmlns:SHA384="{SHA384}">\n' + "\n".join(self.entries) + "\n    </ns0:Payload>\n",
        }
        named = f'name="{self.product}" patch="false" supplemental="false" tagId="560b" tagVersion="0" version="1.0"'
        start = self.root or f'{ROOT_SPACES} corpus="false" {named}'
        return f"<SoftwareIdentity {start}>\n    " + self.inside.format(**parts) + "{signature}</SoftwareIdentity>"

    def signed_info(self) -> str:
        names = ALGORITHMS | dict(self.algorithms)
        digest = self.digest or hashlib.sha384(self.content().format(signature="").encode()).digest()

        def element(name: str, algorithm: str) -> str:
            return f'<ds:{name} Algorithm="{names[algorithm]}"></ds:{name}>'

        transforms = element("Transform", "enveloped") + element("Transform", "transform")
        return self.statement(
            f"<ds:SignedInfo>{element('CanonicalizationMethod', 'canonicalization')}"
            f"{element('SignatureMethod', 'signature')}<ds:Reference {self.reference}>"
            f"<ds:Transforms>{transforms}</ds:Transforms>{element('DigestMethod', 'digest')}"
            f"<ds:DigestValue>{base64.b64encode(digest).decode()}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
        )

    def certificates(self) -> list[bytes]:
        signer = Link("RIM L4 Signer", "rim-signer", ca=False, begin=NOW - 30 * DAY, end=NOW + YEAR)
        return self.chain(
            chain_of(
                replace(signer, **self.leaf),
                Link("NVIDIA Reference Value L3 GH100 001", "rim-l3", path_length=0, end=NOW + 2 * YEAR),
                Link("NVIDIA Reference Value GH100 CA", "rim-ca"),
                RIM_ROOT,
            )
        )

    def signature(self) -> str:
        statement = self.signed_info()
        value = sign(self.signer, statement.replace("<ds:SignedInfo", "<ds:SignedInfo" + STATEMENT_SPACES, 1).encode())
        certificates = "".join(
            f"<ds:X509Certificate>{base64.encodebytes(c).decode()}</ds:X509Certificate>" for c in self.certificates()
        )
        return (
            f'<ds:Signature xmlns:ds="{DSIG}">{statement}'
            f"<ds:SignatureValue>{base64.b64encode(value).decode()}</ds:SignatureValue>"
            f"<ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>"
        )

    def xml(self) -> bytes:
        return self.written(self.content().format(signature=self.signature())).encode()

    @property
    def anchors(self) -> frozenset[str]:
        return frozenset({fingerprint(certify(RIM_ROOT, RIM_ROOT))})

    def verify(self) -> Rim:
        return verify_rim(self.xml(), anchors=self.anchors, now=self.now)
