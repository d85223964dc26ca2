"""Nitro documents under authorities of our own: what passes, to be changed in one thing and signed again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from conclave.attestation.evidence import EvidenceClaims
from conclave.attestation.nitro import parse_document, verify_document

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
MADE_MS = int(NOW.timestamp() * 1000) - 1500
ES384 = bytes.fromhex("a1013822")
# Signing certificate first: name, key, life before and after NOW.
CHAIN = (
    ("i-0123456789abcdef0-enc0123456789abcdef.eu-central-1.aws", "leaf", HOUR, 2 * HOUR),
    ("i-0123456789abcdef0.eu-central-1.aws.nitro-enclaves", "instance", 10 * HOUR, 14 * HOUR),
    ("0123456789abcdef.zonal.eu-central-1.aws.nitro-enclaves", "zonal", 50 * HOUR, 50 * HOUR),
    ("0123456789abcdef.eu-central-1.aws.nitro-enclaves", "regional", 200 * HOUR, 200 * HOUR),
    ("aws.nitro-enclaves", "root", 50_000 * HOUR, 200_000 * HOUR),
)
PCRS = {index: bytes([index + 1]) * 48 if index in (0, 1, 2, 4) else bytes(48) for index in range(16)}


def ec_key(name: str, curve: str = "P-384") -> ec.EllipticCurvePrivateKey:
    return _ec_key(name, curve)


@cache
def _ec_key(name: str, curve: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1() if curve == "P-384" else ec.SECP256R1())


def name_of(common: str) -> x509.Name:
    attributes = ((NameOID.COUNTRY_NAME, "US"), (NameOID.ORGANIZATION_NAME, "Amazon"), (NameOID.COMMON_NAME, common))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def usage(*, signs: bool, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=not certifies,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
    )


@cache
def certificate(
    common: str,
    issuer: str,
    key: str,
    issuer_key: str,
    begin: datetime,
    end: datetime,
    *,
    ca: bool,
    path_length: int | None = None,
    key_usage: x509.KeyUsage | None = None,
    curve: str = "P-384",
) -> bytes:
    """DER of one certificate of the chain."""
    builder = x509.CertificateBuilder(name_of(issuer), name_of(common), ec_key(key, curve).public_key(), 77)
    builder = builder.not_valid_before(begin).not_valid_after(end)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=ca)
    made = builder.sign(ec_key(issuer_key), hashes.SHA384())
    return made.public_bytes(serialization.Encoding.DER)


@cache
def chain() -> tuple[bytes, ...]:
    """DER of the whole chain, signing certificate first, root last."""
    made = []
    for place, (common, key, before, after) in enumerate(CHAIN):
        issuer, issuer_key, _, _ = CHAIN[min(place + 1, len(CHAIN) - 1)]
        ca = place > 0
        made.append(
            certificate(
                common,
                issuer,
                key,
                issuer_key,
                NOW - before,
                NOW + after,
                ca=ca,
                path_length=place - 1 if ca and key != "root" else None,
                key_usage=USAGE_OF_AUTHORITIES if ca else USAGE_OF_SIGNERS,
            )
        )
    return tuple(made)


USAGE_OF_AUTHORITIES = usage(signs=False, certifies=True)
USAGE_OF_SIGNERS = usage(signs=True, certifies=False)


def leaf(**changes: Any) -> bytes:
    """DER of another signing certificate."""
    common, key, before, after = CHAIN[0]
    usual: dict[str, Any] = {
        "common": common, "issuer": CHAIN[1][0], "key": key, "issuer_key": "instance",
        "begin": NOW - before, "end": NOW + after, "ca": False, "key_usage": USAGE_OF_SIGNERS,
    }  # fmt: skip
    return certificate(**(usual | changes))


@dataclass(frozen=True)
class Aws:
    """One document and who verifies it: what genuine ones have, unless it is changed here.

    `members` of the payload (None stands for null), `without` some; `payload` as a
    whole, in bytes.
    """

    members: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    payload: bytes | None = None
    protected: bytes = ES384
    unprotected: Any = field(default_factory=dict)
    signature: bytes | None = None
    signer: str = "leaf"
    tagged: bool = False
    now: datetime = NOW

    def but(self, **changes: Any) -> Aws:
        """Another one; members are merged."""
        if "members" in changes:
            changes["members"] = {**self.members, **changes["members"]}
        return replace(self, **changes)

    def payload_bytes(self) -> bytes:
        if self.payload is not None:
            return self.payload
        members = {
            "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
            "digest": "SHA384",
            "timestamp": MADE_MS,
            "pcrs": PCRS,
            "certificate": chain()[0],
            "cabundle": list(reversed(chain()[1:])),
            "public_key": None,
            "user_data": None,
            "nonce": None,
            **self.members,
        }
        return cbor2.dumps({name: value for name, value in members.items() if name not in self.without})

    def document(self) -> bytes:
        payload = self.payload_bytes()
        signature = self.signature
        if signature is None:
            signed = cbor2.dumps(["Signature1", self.protected, b"", payload])
            r, s = decode_dss_signature(ec_key(self.signer).sign(signed, ec.ECDSA(hashes.SHA384())))
            signature = r.to_bytes(48, "big") + s.to_bytes(48, "big")
        made = cbor2.dumps([self.protected, self.unprotected, payload, signature])
        return b"\xd2" + made if self.tagged else made

    @property
    def anchors(self) -> frozenset[str]:
        return frozenset({hashlib.sha256(chain()[-1]).hexdigest()})

    def verify(self) -> EvidenceClaims:
        return verify_document(parse_document(self.document()), anchors=self.anchors, now=self.now)


def nitrotpm() -> Aws:
    """A document of an EC2 instance: 24 registers under the other name, some of ones as TPMs have them."""
    pcrs = {index: b"\xff" * 48 if 17 <= index <= 22 else bytes([index + 1]) * 48 for index in range(24)}
    return Aws(
        members={"nitrotpm_pcrs": pcrs, "module_id": "i-0123456789abcdef0-tpm0000000000000000"}, without=("pcrs",)
    )


def emulated() -> Aws:
    """What QEMU's nitro-enclave machine makes."""
    zeros = bytes(64)
    return Aws(
        members={"certificate": zeros, "cabundle": [zeros], "module_id": "i-234-enc5678"},
        protected=bytes.fromhex("a10120"),
        signature=zeros,
    )
