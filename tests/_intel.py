"""Quotes and endorsements of an Intel-shaped platform, part by part: change one, and all of it is signed again."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conclave.attestation.dcap import parse_quote, verify_quote
from conclave.attestation.dcap._layout import HEADER, SGX_REPORT, TD_REPORT_10, TD_REPORT_15, Layout, size_of
from conclave.attestation.evidence import EvidenceClaims
from conclave.platform import pki
from conclave.platform.pki import Pki
from conclave.platform.vendor import QE_MRSIGNER, Vendor

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
BODIES: dict[int, Layout] = {1: SGX_REPORT, 2: TD_REPORT_10, 3: TD_REPORT_15}
TD_QE_MRSIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
PPID, FMSPC = bytes(range(16)), bytes.fromhex("00806f050000")
SEPT_VE_DISABLE = struct.pack("<Q", 1 << 28)
DATE = "2026-02-11T00:00:00Z"


def packed(layout: Layout, fields: Mapping[str, bytes]) -> bytes:
    data = bytearray(size_of(layout))
    for name, offset, size in layout:
        value = fields.get(name, bytes(size))
        assert len(value) == size, name
        data[offset : offset + size] = value
    assert fields.keys() <= {name for name, _, _ in layout}
    return bytes(data)


def level(status: str, svn: int, *advisories: str, date: str = DATE) -> dict[str, Any]:
    """A level of an enclave or a module."""
    named = {"advisoryIDs": list(advisories)} if advisories else {}
    return {"tcb": {"isvsvn": svn}, "tcbDate": date, "tcbStatus": status, **named}


def platform_level(
    status: str,
    *advisories: str,
    sgx: int = 2,
    pce: int = 11,
    tdx: tuple[int, ...] | None = (5, 0, 2),
    date: str = DATE,
) -> dict[str, Any]:
    tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": sgx}] * 16, "pcesvn": pce}
    if tdx is not None:
        tcb["tdxtcbcomponents"] = [{"svn": v} for v in (*tdx, *[0] * 16)[:16]]
    named = {"advisoryIDs": list(advisories)} if advisories else {}
    return {"tcb": tcb, "tcbDate": date, "tcbStatus": status, **named}


def module(name: str, *levels: dict[str, Any], **fields: str) -> dict[str, Any]:
    identity = {"id": name, "mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    return identity | fields | {"tcbLevels": list(levels)}


MODULES = [
    module("TDX_03", level("UpToDate", 3), level("OutOfDate", 1, "INTEL-SA-3")),
    module("TDX_01", level("UpToDate", 6), level("OutOfDate", 4, "INTEL-SA-1"), level("Revoked", 2)),
]


def svn(*values: int) -> bytes:
    """16 versions, the rest 0."""
    return bytes((*values, *[0] * 16)[:16])


@functools.cache
def keys() -> tuple[Pki, ec.EllipticCurvePrivateKey]:
    """A PKI and an attestation key, made once."""
    return Pki.create(fmspc=FMSPC, ppid=PPID, now=NOW), ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Intel:
    """One platform and one program on it. `but` changes a part; `verify` signs everything and verifies it."""

    version: int
    body_type: int
    body: dict[str, bytes]
    header: dict[str, bytes]
    qe: dict[str, bytes]
    tcb_info: dict[str, Any]
    qe_identity: dict[str, Any]
    members: dict[str, str] = field(default_factory=dict)
    certification: tuple[int, bytes] | None = None
    auth_data: bytes = bytes(range(32))
    trailing: bytes = b""
    now: datetime = NOW

    @property
    def tee(self) -> str:
        return "sgx" if self.body_type == 1 else "tdx"

    def but(self, **changes: Any) -> Intel:
        """Other parts; dictionaries are merged."""
        merged = {k: getattr(self, k) | v if isinstance(v, dict) else v for k, v in changes.items()}
        return replace(self, **merged)

    def quote(self) -> bytes:
        platform, key = keys()
        body = packed(BODIES[self.body_type], self.body)
        signed = packed(HEADER, self.header)
        signed += struct.pack("<HI", self.body_type, len(body)) if self.version == 5 else b""
        signed += body
        numbers = key.public_key().public_numbers()
        public = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        bound = hashlib.sha256(public + self.auth_data).digest() + bytes(32)
        report = packed(SGX_REPORT, {"report_data": bound} | self.qe)
        chain = pki.pem(platform.pck, platform.ca, platform.root).encode() + b"\0"
        kind, data = self.certification or (5, chain)
        part = report + pki.raw_signature(platform.pck_key, report)
        part += struct.pack("<H", len(self.auth_data)) + self.auth_data + struct.pack("<HI", kind, len(data)) + data
        if self.version > 3:
            part = struct.pack("<HI", 6, len(part)) + part
        auth = pki.raw_signature(key, signed) + public + part
        return signed + struct.pack("<I", len(auth)) + auth + self.trailing

    def endorsements(self) -> bytes:
        platform, _ = keys()
        parts: dict[str, str] = json.loads(platform.endorsements(Vendor.first(NOW), now=NOW))
        for name in ("tcb_info", "qe_identity"):
            text = json.dumps({k: v for k, v in getattr(self, name).items() if v is not None}, separators=(",", ":"))
            signature = pki.raw_signature(platform.tcb_key, text.encode())
            parts |= {name: text, f"{name}_signature": signature.hex()}
        return json.dumps(parts | self.members).encode()

    def verify(self, *, endorsements: bytes | None = None) -> EvidenceClaims:
        given = self.endorsements() if endorsements is None else endorsements
        return verify_quote(parse_quote(self.quote()), given, anchors=frozenset({anchor()}), now=self.now)


def anchor() -> str:
    return hashlib.sha256(keys()[0].root.public_bytes(serialization.Encoding.DER)).hexdigest()


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def intel(version: int = 4, body_type: int = 2) -> Intel:
    """A platform that verifies as UpToDate, with nothing to remark."""
    period = {"issueDate": _text(NOW), "nextUpdate": _text(NOW + timedelta(days=30))}
    tee = "sgx" if body_type == 1 else "tdx"
    sgx = tee == "sgx"
    tcb_info: dict[str, Any] = {
        "id": tee.upper(), "version": 3, **period, "fmspc": FMSPC.hex(), "pceId": "0000", "tcbType": 0,
        "tcbEvaluationDataNumber": 17, "tcbLevels": [platform_level("UpToDate", tdx=None if sgx else (5, 0, 2))],
    }  # fmt: skip
    if not sgx:
        tcb_info |= {
            "tdxModule": {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8},
            "tdxModuleIdentities": MODULES,
        }
    signer, product, version_of_qe = (QE_MRSIGNER, 1, 8) if sgx else (TD_QE_MRSIGNER, 2, 4)
    qe_identity = {
        "id": "QE" if sgx else "TD_QE", "version": 2, **period, "tcbEvaluationDataNumber": 18,
        "miscselect": "00000000", "miscselectMask": "FFFFFFFF", "attributes": "11" + "00" * 15,
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000", "mrsigner": signer.hex().upper(), "isvprodid": product,
        "tcbLevels": [level("UpToDate", version_of_qe), level("OutOfDate", 1, "INTEL-SA-QE")],
    }  # fmt: skip
    body = {"report_data": bytes(range(64))}
    if sgx:
        body |= {"attributes": struct.pack("<QQ", 5, 3), "mrenclave": bytes(range(32)), "cpu_svn": bytes([2]) * 16}
    else:
        body |= {"tee_tcb_svn": svn(6, 1, 2), "td_attributes": SEPT_VE_DISABLE, "mrtd": bytes(range(48))}
    if body_type == 3:
        body["tee_tcb_svn2"] = svn(6, 1, 2)
    return Intel(
        version,
        body_type,
        body,
        {
            "version": struct.pack("<H", version),
            "attestation_key_type": b"\2\0",
            "tee_type": struct.pack("<I", 0 if sgx else 0x81),
            "qe_vendor_id": QE_VENDOR,
        },
        {
            "mrsigner": signer,
            "isv_prod_id": struct.pack("<H", product),
            "isv_svn": struct.pack("<H", version_of_qe),
            "attributes": struct.pack("<QQ", 0x11, 0),
        },
        tcb_info,
        qe_identity,
    )
