"""Instance claims: which bundle one boot runs and which keys it holds.

Runs everywhere, the enclave included. Claims are untrusted until evidence over
their digest verified.

Spec: spec/claims.md sections 2 to 4 (CLM-4 to CLM-6).
"""

from __future__ import annotations

from typing import Final

from conclave import _codec, _crypto
from conclave.errors import FormatError

MAX_CLAIMS: Final = 8192
MAX_INFO: Final = 1024 * 1024
MAX_EVIDENCE: Final = 65536
MAX_ENDORSEMENTS: Final = 524288
TEES: Final = ("sgx", "tdx", "snp", "nitro")
MODES: Final = ("release", "debug")
SANDBOXES: Final = ("namespaces", "landlock", "none")


def bundle_id(*, code: bytes, signer: bytes, product_id: int, revocation_level: int) -> bytes:
    """The 32 bytes by which a TEE names a bundle (section 2)."""
    if len(code) != 32 or len(signer) != 32:
        raise ValueError("code and signer have 32 bytes each")
    numbers = product_id.to_bytes(2, "big") + revocation_level.to_bytes(2, "big")
    return _crypto.sha256(b"conclave/1 bundle", code, signer, numbers)


class InstanceClaims(_codec.Record, frozen=True):
    """The claims of one boot; every field is required. See the spec's table."""

    version: int
    bundle_id: bytes
    code: bytes
    signer: bytes
    product_id: int
    revocation_level: int
    runtime: str
    sandbox: str
    mode: str
    suite: bytes
    encryption_key: bytes
    signing_key: bytes
    boot_nonce: bytes
    log_id: bytes | None
    kds_constraint: bytes | None
    interface: bytes

    def encode(self) -> bytes:
        """The canonical encoding."""
        return _codec.encode(self)

    def digest(self) -> bytes:
        """The 64-byte claims digest, which is the report data."""
        return claims_digest(self.encode())


def claims_digest(encoded: bytes) -> bytes:
    """`SHA-512("conclave/1 instance-claims" ‖ 0x00 ‖ encoding)`."""
    return _crypto.sha512(b"conclave/1 instance-claims\0", encoded)


_SIZES: Final = {
    "bundle_id": 32,
    "code": 32,
    "signer": 32,
    "suite": 6,
    "encryption_key": _crypto.ENCRYPTION_KEY_SIZE,
    "signing_key": 32,
    "boot_nonce": 32,
    "log_id": 32,
    "kds_constraint": 32,
    "interface": 32,
}


def parse_claims(data: bytes) -> InstanceClaims:
    """Read claims from untrusted bytes. Raises FormatError (CLM-6)."""
    claims = _codec.decode(InstanceClaims, data, max_size=MAX_CLAIMS, what="instance claims")
    for name, size in _SIZES.items():
        value = getattr(claims, name)
        if value is not None and len(value) != size:
            raise FormatError(f"instance claims: {name} has {len(value)} bytes, not {size}")
    if claims.version != 1:
        raise FormatError("instance claims: only version 1 is known")
    if claims.suite != _crypto.SUITE_ID:
        raise FormatError("instance claims: unknown HPKE suite")
    if claims.mode not in MODES or claims.sandbox not in SANDBOXES:
        raise FormatError("instance claims: unknown mode or sandbox")
    if not (0 <= claims.product_id <= 65535 and 0 <= claims.revocation_level <= 65535):
        raise FormatError("instance claims: product id and revocation level are 0 to 65535")
    if not (1 <= len(claims.runtime) <= 64 and claims.runtime.isascii() and claims.runtime.isprintable()):
        raise FormatError("instance claims: the runtime release has 1 to 64 printable ASCII characters")
    return claims


class InstanceInfo(_codec.Record, frozen=True):
    """What a host hands out: evidence, endorsements, claims. Nothing is verified."""

    version: int
    format: str
    evidence: bytes
    endorsements: bytes
    claims: bytes

    def encode(self) -> bytes:
        """The canonical encoding."""
        return _codec.encode(self)


def parse_instance_info(data: bytes) -> InstanceInfo:
    """Read instance info from untrusted bytes. Raises FormatError."""
    info = _codec.decode(InstanceInfo, data, max_size=MAX_INFO, what="instance info")
    if info.version != 1 or info.format not in TEES:
        raise FormatError(f"instance info: only version 1 with evidence of {', '.join(TEES)} is known")
    limits = ((info.evidence, MAX_EVIDENCE), (info.endorsements, MAX_ENDORSEMENTS), (info.claims, MAX_CLAIMS))
    if any(len(part) > limit for part, limit in limits):
        raise FormatError("instance info: a part exceeds its limit")
    return info
