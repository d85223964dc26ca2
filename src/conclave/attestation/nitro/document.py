"""An attestation document of the Nitro hypervisor: COSE_Sign1 around a map. Nothing is authentic yet.

Runs at the relying party, on hostile bytes.

Spec: spec/nitro.md sections 2 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from conclave.attestation.nitro.cbor import decode, encode, malformed
from conclave.errors import FormatError

MAX_DOCUMENT: Final = 17408
MAX_PAYLOAD: Final = 16384
MAX_MODULE_ID: Final = 256
MAX_CERTIFICATE: Final = 1024
MAX_CHAIN: Final = 8
MAX_CHOSEN: Final = 1024
MAX_PCRS: Final = 32
PCR_SIZE: Final = 48
SIGNATURE_SIZE: Final = 96
DIGEST: Final = "SHA384"
# {1: -35}: ES384, in the only encoding that is accepted.
ES384: Final = bytes.fromhex("a1013822")
_TAG: Final = 0xD2
# By the member that holds the registers: what they measure.
KINDS: Final = {"pcrs": "enclave", "nitrotpm_pcrs": "nitrotpm"}
_REQUIRED: Final = {"module_id", "digest", "timestamp", "certificate", "cabundle"}
_CHOSEN: Final = ("public_key", "user_data", "nonce")
# They say whether an enclave runs in debug mode, so every enclave's document must have them.
_OF_THE_IMAGE: Final = {0, 1, 2}


@dataclass(frozen=True, slots=True)
class Document:
    """A document of the documented form.

    Attributes:
        payload, signature: what is signed, and by what.
        registers: name of the map of registers: `pcrs`, or `nitrotpm_pcrs` for an EC2 instance.
        pcrs: 48 bytes by index, 0 to 31.
        module_id: names the enclave or instance; printable ASCII.
        timestamp_ms: when it was made, by the hypervisor's clock; milliseconds since 1970.
        certificate: DER, whose key signs.
        cabundle: DER of its issuers, root first.
        public_key, user_data, nonce: the program's own choice; None where absent or null.
    """

    payload: bytes
    signature: bytes
    registers: str
    pcrs: Mapping[int, bytes]
    module_id: str
    timestamp_ms: int
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    @property
    def signed(self) -> bool:
        """False for what an emulator makes: zeros where a signature would be."""
        return any(self.signature)

    @property
    def kind(self) -> str:
        """`enclave`, or `nitrotpm` for a whole EC2 instance."""
        return KINDS[self.registers]

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers: COSE's Sig_structure."""
        return encode(["Signature1", ES384, b"", self.payload])


def parse_document(raw: bytes) -> Document:
    """Read a document. Verifies nothing.

    Args:
        raw: at most 17 KiB, as `/dev/nsm` or NitroTPM return it. Untrusted.

    Raises:
        FormatError: `document-format`: not of the documented form, or too large.
            `document-algorithm`: signed, but not by ES384.

    Spec: spec/nitro.md sections 3 and 4 (NITRO-1 to NITRO-6).
    """
    if not 0 < len(raw) <= MAX_DOCUMENT:
        raise malformed("its size is out of bounds")
    envelope = decode(bytes(raw[1:] if raw[0] == _TAG else raw), indefinite=False)
    if not isinstance(envelope, list) or [type(part) for part in envelope] != [bytes, dict, bytes, bytes]:
        raise malformed("it is not COSE_Sign1")
    protected, unprotected, payload, signature = envelope
    # Nothing signs this header, so nothing in it could be believed.
    if unprotected:
        raise malformed("its unprotected header is not empty")
    if any(signature) and protected != ES384:
        raise FormatError("attestation document: the signature is not ES384", code="document-algorithm")
    if any(signature) and len(signature) != SIGNATURE_SIZE:
        raise malformed("the signature has a wrong size")
    if not 0 < len(payload) <= MAX_PAYLOAD:
        raise malformed("its payload is too large, or empty")
    return _document(decode(payload, indefinite=True), payload, signature)


def _document(members: Any, payload: bytes, signature: bytes) -> Document:
    registers = [name for name in KINDS if isinstance(members, dict) and name in members]
    if len(registers) != 1 or not {*registers, *_REQUIRED} <= set(members) <= {*registers, *_REQUIRED, *_CHOSEN}:
        raise malformed("a field is missing or unknown")
    module_id, timestamp, bundle = members["module_id"], members["timestamp"], members["cabundle"]
    if type(module_id) is not str or not 0 < len(module_id) <= MAX_MODULE_ID:
        raise malformed("module_id")
    if not (module_id.isascii() and module_id.isprintable()):
        raise malformed("module_id")
    if members["digest"] != DIGEST:
        raise malformed("digest is not SHA384")
    if type(timestamp) is not int or not 0 < timestamp < 1 << 64:
        raise malformed("timestamp")
    if not isinstance(bundle, list) or not 0 < len(bundle) <= MAX_CHAIN:
        raise malformed("cabundle is not a list of 1 to 8 certificates")
    if not all(type(der) is bytes and 0 < len(der) <= MAX_CERTIFICATE for der in (members["certificate"], *bundle)):
        raise malformed("a certificate's size is out of bounds")
    chosen = [members.get(name) for name in _CHOSEN]
    if not all(value is None or (type(value) is bytes and len(value) <= MAX_CHOSEN) for value in chosen):
        raise malformed("public_key, user_data or nonce is too large")
    return Document(
        payload,
        signature,
        registers[0],
        _pcrs(members[registers[0]], KINDS[registers[0]]),
        module_id,
        timestamp,
        members["certificate"],
        tuple(bundle),
        *chosen,
    )


def _pcrs(members: Any, kind: str) -> Mapping[int, bytes]:
    if not isinstance(members, dict) or not 0 < len(members) <= MAX_PCRS:
        raise malformed("there are no registers, or too many")
    for index, value in members.items():
        if type(index) is not int or not 0 <= index < MAX_PCRS or type(value) is not bytes or len(value) != PCR_SIZE:
            raise malformed("a register's index or size")
    if kind == "enclave" and not set(members) >= _OF_THE_IMAGE:
        raise malformed("a register of the enclave's image is missing")
    return MappingProxyType(members)
