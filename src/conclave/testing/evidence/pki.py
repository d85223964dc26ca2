"""Keys, certificates and revocation lists as data, signed at the end.

For tests. A vendor's evidence has layers that sign one another; here each certificate
and list is a draft whose every field can be changed before it is signed. Nothing is
random: keys follow from a seed and signatures from what is signed, so that building
twice gives the same bytes.

Profile: RFC 5280; ECDSA nonces by RFC 6979; RSA-PSS (RFC 8017) with a derived salt.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, Final, Protocol, Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from conclave.platform.pki import der

# The last two are of the same sizes, and used by no vendor.
_CURVES: Final[dict[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm, str]]] = {
    "p256": (ec.SECP256R1(), hashes.SHA256(), "1.2.840.10045.4.3.2"),
    "p384": (ec.SECP384R1(), hashes.SHA384(), "1.2.840.10045.4.3.3"),
    "k256": (ec.SECP256K1(), hashes.SHA256(), "1.2.840.10045.4.3.2"),
    "b384": (ec.BrainpoolP384R1(), hashes.SHA384(), "1.2.840.10045.4.3.3"),
}
# Made once: generating 4096-bit keys takes seconds. They stand in the package for everybody to read.
RSA_KEYS: Final = ("ark", "ask", "asvk", "other")
_NAMES: Final = {
    "CN": "2.5.4.3",
    "C": "2.5.4.6",
    "L": "2.5.4.7",
    "ST": "2.5.4.8",
    "O": "2.5.4.10",
    "OU": "2.5.4.11",
}
_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)


def oid(dotted: str) -> bytes:
    """An object identifier in DER."""
    first, second, *rest = (int(part) for part in dotted.partition("#")[0].split("."))
    out = b""
    for arc in (40 * first + second, *rest):
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.insert(0, arc & 0x7F | 0x80)
        out += bytes(digits)
    return der(6, out)


def integer(value: int) -> bytes:
    """A DER integer, zero or positive."""
    return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def sequence(*parts: bytes) -> bytes:
    """A DER sequence."""
    return der(0x30, b"".join(parts))


def _time(moment: datetime) -> bytes:
    utc = moment.astimezone(UTC)
    if 1950 <= utc.year < 2050:
        return der(0x17, utc.strftime("%y%m%d%H%M%SZ").encode())
    return der(0x18, f"{utc.year:04}{utc.strftime('%m%d%H%M%SZ')}".encode())


def _name(parts: dict[str, str]) -> bytes:
    return sequence(
        *(
            der(0x31, sequence(oid(_NAMES[kind]), der(0x13 if kind == "C" else 0x0C, text.encode())))
            for kind, text in parts.items()
        )
    )


class SigningKey(Protocol):
    """A private key of either kind, with the DER that certificates say of it."""

    @property
    def public(self) -> bytes:
        """SubjectPublicKeyInfo."""

    @property
    def algorithm(self) -> bytes:
        """AlgorithmIdentifier of its signatures."""

    def sign(self, data: bytes) -> bytes:
        """A signature in the form that certificates hold."""


class EcKey:
    """An ECDSA key of a seed and a name: on P-256 with SHA-256 (`p256`) or P-384 with SHA-384 (`p384`).

    Or, to be refused, on secp256k1 (`k256`) or brainpoolP384r1 (`b384`).
    """

    def __init__(self, seed: bytes, name: str, curve: str) -> None:
        kind, self._hash, algorithm = _CURVES[curve]
        self._size, order = kind.key_size // 8, kind.group_order
        drawn = hashlib.sha512(b"conclave test key\0" + name.encode() + b"\0" + seed).digest()
        self._key = ec.derive_private_key(int.from_bytes(drawn, "big") % (order - 1) + 1, kind)
        self.algorithm = sequence(oid(algorithm))
        self.public = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def point(self) -> bytes:
        """x ‖ y, big-endian."""
        return self.public[-2 * self._size :]

    def sign(self, data: bytes) -> bytes:
        """ECDSA in DER."""
        return self._key.sign(data, ec.ECDSA(self._hash, deterministic_signing=True))

    def sign_raw(self, data: bytes) -> bytes:
        """ECDSA as r ‖ s, big-endian."""
        r, s = decode_dss_signature(self.sign(data))
        return r.to_bytes(self._size, "big") + s.to_bytes(self._size, "big")


class RsaKey:
    """One of the four RSA keys of this package: RSA-PSS, SHA-384, salt of 48 bytes.

    A name that begins with `pkcs1:` is the same key with the older signatures of PKCS 1.
    """

    def __init__(self, name: str) -> None:
        _, colon, name = name.rpartition(":")
        pem = resources.files(__package__).joinpath(f"TEST-KEY-{name}.pem").read_bytes()
        key = serialization.load_pem_private_key(pem, password=None)
        assert isinstance(key, rsa.RSAPrivateKey)
        self._key, self._older = key, bool(colon)
        self._numbers = key.private_numbers()
        self._signatures: dict[bytes, bytes] = {}
        self.public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        sha384 = sequence(oid("2.16.840.1.101.3.4.2.2"), der(5, b""))
        self.algorithm = sequence(
            oid("1.2.840.113549.1.1.10"),
            sequence(
                der(0xA0, sha384),
                der(0xA1, sequence(oid("1.2.840.113549.1.1.8"), sha384)),
                der(0xA2, integer(48)),
                # The default, which DER leaves out; the vendor writes it.
                der(0xA3, integer(1)),
            ),
        )
        if self._older:
            self.algorithm = sequence(oid("1.2.840.113549.1.1.12"), der(5, b""))

    def sign(self, data: bytes) -> bytes:
        """EMSA-PSS (RFC 8017 section 9.1.1), then the private operation by the Chinese remainder theorem."""
        if self._older:
            return self._key.sign(data, padding.PKCS1v15(), hashes.SHA384())
        if data not in self._signatures:
            digest = hashlib.sha384(data).digest()
            salt = hashlib.sha384(b"conclave test salt\0" + digest).digest()
            seed = hashlib.sha384(bytes(8) + digest + salt).digest()
            block = (b"\1" + salt).rjust(512 - 48 - 1, b"\0")
            masked = int.from_bytes(block, "big") ^ int.from_bytes(_mgf1(seed, len(block)), "big")
            # Of 4096 bits the first is not used.
            masked &= (1 << (8 * len(block) - 1)) - 1
            encoded = int.from_bytes(masked.to_bytes(len(block), "big") + seed + b"\xbc", "big")
            n = self._numbers
            low, high = pow(encoded, n.dmq1, n.q), pow(encoded, n.dmp1, n.p)
            self._signatures[data] = (low + (high - low) * n.iqmp % n.p * n.q).to_bytes(512, "big")
        return self._signatures[data]


def _mgf1(seed: bytes, size: int) -> bytes:
    blocks = (hashlib.sha384(seed + i.to_bytes(4, "big")).digest() for i in range(size // 48 + 1))
    return b"".join(blocks)[:size]


@cache
def _rsa_key(name: str) -> RsaKey:
    return RsaKey(name)


@cache
def _ec_key(seed: bytes, name: str, curve: str) -> EcKey:
    return EcKey(seed, name, curve)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of one test PKI, by name. Every name is one: `stranger` is nobody's.

    Attributes:
        seed: two rings of one seed have the same keys.
        curve: of names that do not begin with another, as in `p256:leaf`.
        rsa: the names that are RSA keys.
    """

    seed: bytes
    curve: str
    rsa: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> SigningKey:
        return _rsa_key(name) if name.removeprefix("pkcs1:") in self.rsa else self.ec(name)

    def ec(self, name: str) -> EcKey:
        """A key that is known to be on a curve."""
        curve, colon, _ = name.partition(":")
        return _ec_key(self.seed, name, curve if colon else self.curve)

    def serial(self, name: str) -> int:
        """A serial number of 20 bytes for the certificate of that name."""
        return int.from_bytes(hashlib.sha256(b"serial\0" + name.encode() + self.seed).digest()[:20], "big") >> 1


class _Draft:
    def set(self, **values: Any) -> Self:
        """Change fields by name. Raises TypeError for one that there is not."""
        for name, value in values.items():
            if name not in {f.name for f in fields(self)}:  # type: ignore[arg-type]
                raise TypeError(f"there is no field {name}")
            setattr(self, name, value)
        return self


@dataclass(slots=True)
class CertificateDraft(_Draft):
    """A certificate before it is signed.

    Attributes:
        key: the name of the key it is for.
        subject, issuer: names, such as `{"CN": "…", "O": "…"}`, in this order.
        ca: whether it may issue; None leaves the basic constraints out.
        usage: names of RFC 5280 key usages; None leaves the extension out.
        identifiers: whether it names its key and its issuer's by digest.
        extensions: by dotted OID: whether critical, and the value. Written last, in this order.
            What follows a `#` is no part of the OID, so that one can come twice.
        version: 3, as written in words; encoded less one.
    """

    key: str
    subject: dict[str, str]
    issuer: dict[str, str]
    serial: int
    not_before: datetime
    not_after: datetime
    ca: bool | None = False
    path_length: int | None = None
    usage: tuple[str, ...] | None = ("digital_signature", "content_commitment")
    identifiers: bool = True
    extensions: dict[str, tuple[bool, bytes]] = field(default_factory=dict)
    version: int = 3

    def to_sign(self, ring: KeyRing, signer: SigningKey) -> bytes:
        """TBSCertificate."""
        public = ring[self.key].public
        written: list[bytes] = []
        if self.identifiers:
            written.append(_extension("2.5.29.35", False, sequence(der(0x80, _identifier(signer.public)))))
            written.append(_extension("2.5.29.14", False, der(4, _identifier(public))))
        if self.usage is not None:
            bits = sum(0x80 >> _USAGES.index(u) for u in self.usage)
            unused = (bits & -bits).bit_length() - 1 if bits else 0
            written.append(_extension("2.5.29.15", True, der(3, bytes((unused, bits)))))
        if self.ca is not None:
            limit = b"" if self.path_length is None else integer(self.path_length)
            basic = sequence(der(1, b"\xff") if self.ca else b"", limit)
            written.append(_extension("2.5.29.19", True, basic))
        written += [_extension(name, critical, value) for name, (critical, value) in self.extensions.items()]
        return sequence(
            der(0xA0, integer(self.version - 1)),
            integer(self.serial),
            signer.algorithm,
            _name(self.issuer),
            sequence(_time(self.not_before), _time(self.not_after)),
            _name(self.subject),
            public,
            der(0xA3, sequence(*written)) if written else b"",
        )


@dataclass(slots=True)
class ListDraft(_Draft):
    """A certificate revocation list before it is signed.

    Attributes:
        issuer: its name, as in certificates.
        next_update: None leaves it out.
        revoked: serial numbers.
        extensions: as in certificates.
    """

    issuer: dict[str, str]
    this_update: datetime
    next_update: datetime | None
    number: int = 1
    revoked: list[int] = field(default_factory=list)
    extensions: dict[str, tuple[bool, bytes]] = field(default_factory=dict)

    def to_sign(self, signer: SigningKey) -> bytes:
        """TBSCertList."""
        entries = [sequence(integer(serial), _time(self.this_update)) for serial in self.revoked]
        written = [
            _extension("2.5.29.20", False, integer(self.number)),
            _extension("2.5.29.35", False, sequence(der(0x80, _identifier(signer.public)))),
            *(_extension(name, critical, value) for name, (critical, value) in self.extensions.items()),
        ]
        return sequence(
            integer(1),
            signer.algorithm,
            _name(self.issuer),
            _time(self.this_update),
            _time(self.next_update) if self.next_update else b"",
            sequence(*entries) if entries else b"",
            der(0xA0, sequence(*written)),
        )


def _extension(dotted: str, critical: bool, value: bytes) -> bytes:
    return sequence(oid(dotted), der(1, b"\xff") if critical else b"", der(4, value))


def _identifier(public: bytes) -> bytes:
    return hashlib.sha1(public, usedforsecurity=False).digest()


def signed(to_sign: bytes, algorithm: bytes, signature: bytes) -> bytes:
    """A certificate or list with its signature."""
    return sequence(to_sign, algorithm, der(3, b"\0" + signature))


def pem(*certificates: bytes) -> str:
    """Certificates as PEM, one after the other."""
    out = []
    for certificate in certificates:
        text = base64.b64encode(certificate).decode()
        lines = [text[at : at + 64] for at in range(0, len(text), 64)]
        out += ["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----"]
    return "\n".join(out) + "\n"
