"""A report of an NVIDIA GPU or NVSwitch: an SPDM 1.1 request for measurements, and its response.

Runs at the relying party, on hostile bytes. Nothing is authentic yet.

Spec: spec/nvidia.md sections 2 and 3. Layout: DMTF DSP0274 1.1.0, GET_MEASUREMENTS and MEASUREMENTS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from conclave.errors import FormatError

MAX_OPAQUE: Final = 1024
# A request and the largest response that the driver makes.
MAX_SIZE: Final = 37 + 0x2000
DIGEST_SIZE: Final = 48
SIGNATURE_SIZE: Final = 96
NONCE_SIZE: Final = 32


class Field(NamedTuple):
    """A field at a fixed place; `value` if there is only one that it may have."""

    name: str
    offset: int
    size: int
    value: bytes | None = None


FIELDS: Final = (
    Field("request_version", 0, 1, b"\x11"),
    Field("request_code", 1, 1, b"\xe0"),
    # Signed; and every block, not one of the device's or the host's choice.
    Field("request_attributes", 2, 1, b"\x01"),
    Field("request_operation", 3, 1, b"\xff"),
    Field("nonce", 4, NONCE_SIZE),
    Field("request_slot", 36, 1, b"\x00"),
    Field("version", 37, 1, b"\x11"),
    Field("code", 38, 1, b"\x60"),
    Field("parameter_1", 39, 1, b"\x00"),
    Field("parameter_2", 40, 1, b"\x00"),
    Field("blocks", 41, 1),
    Field("record_size", 42, 3),
)
_PLACES: Final = {f.name: slice(f.offset, f.offset + f.size) for f in FIELDS}
_RECORD: Final = 45
_DMTF: Final = 1
# Digests of: immutable ROM, mutable firmware, hardware configuration, firmware configuration.
_TYPES: Final = range(4)
_BLOCK_HEAD: Final = 7
_OPAQUE_VERSION: Final = 34
OPAQUE_VERSIONS: Final = range(2)
_OTHER_OPAQUE_FORMAT: Final = b"NVDAOD"


@dataclass(frozen=True, slots=True)
class GpuReport:
    """A report of the known form.

    Attributes:
        raw: all of it.
        nonce: 32 bytes of the request, whoever asked chose them.
        responder_nonce: 32 bytes of the device.
        blocks: digests of 48 bytes by index of the block, from 1.
        opaque: NVIDIA's own fields by number; what they hold is not looked at.
    """

    raw: bytes
    nonce: bytes
    responder_nonce: bytes
    blocks: Mapping[int, bytes]
    opaque: Mapping[int, bytes]

    @property
    def signed(self) -> bytes:
        """What the signature covers: the request, and the response before it."""
        return self.raw[:-SIGNATURE_SIZE]

    @property
    def signature(self) -> bytes:
        """r ‖ s, big-endian."""
        return self.raw[-SIGNATURE_SIZE:]


def parse_report(raw: bytes) -> GpuReport:
    """Read a report. Verifies nothing.

    Args:
        raw: the 37 bytes of the request, then the response, at most 8229 bytes. Untrusted.

    Raises:
        FormatError: `gpu-report-version`: of another version of SPDM or of NVIDIA's own fields.
            `gpu-report-format`: not of the known form, or too large.

    Spec: spec/nvidia.md section 3 (GPU-1 to GPU-4).
    """
    if not _RECORD + NONCE_SIZE + 2 + SIGNATURE_SIZE <= len(raw) <= MAX_SIZE:
        raise malformed("its size is out of bounds")
    raw = bytes(raw)
    for field in FIELDS:
        if field.value is not None and raw[_PLACES[field.name]] != field.value:
            if field.name.endswith("version"):
                raise FormatError("gpu report: another version than SPDM 1.1", code="gpu-report-version")
            raise malformed(f"{field.name} is not that of a report on all measurements, signed with key 0")
    record_end = _RECORD + int.from_bytes(raw[_PLACES["record_size"]], "little")
    opaque_at = record_end + NONCE_SIZE + 2
    opaque_size = int.from_bytes(raw[opaque_at - 2 : opaque_at], "little")
    if opaque_at + opaque_size + SIGNATURE_SIZE != len(raw) or opaque_size > MAX_OPAQUE:
        raise malformed("the sizes of its parts are not its size")
    return GpuReport(
        raw,
        raw[_PLACES["nonce"]],
        raw[record_end : record_end + NONCE_SIZE],
        _blocks(raw[_RECORD:record_end], raw[41]),
        _opaque(raw[opaque_at : opaque_at + opaque_size]),
    )


def _blocks(record: bytes, count: int) -> Mapping[int, bytes]:
    found: dict[int, bytes] = {}
    at, last = 0, 0
    while at < len(record):
        head = record[at : at + _BLOCK_HEAD]
        value = record[at + _BLOCK_HEAD : at + _BLOCK_HEAD + DIGEST_SIZE]
        if len(value) != DIGEST_SIZE:
            raise malformed("a measurement block is cut short")
        sizes = int.from_bytes(head[2:4], "little"), int.from_bytes(head[5:7], "little")
        if head[1] != _DMTF or head[4] not in _TYPES or sizes != (DIGEST_SIZE + 3, DIGEST_SIZE):
            raise malformed("a measurement block is not a digest of 48 bytes as DMTF defines it")
        if head[0] <= last:
            raise malformed("measurement blocks are not in ascending order")
        last = head[0]
        found[last] = value
        at += _BLOCK_HEAD + DIGEST_SIZE
    if len(found) != count or not found:
        raise malformed("there are not as many measurement blocks as it says, or none")
    return MappingProxyType(found)


def _opaque(data: bytes) -> Mapping[int, bytes]:
    if data.startswith(_OTHER_OPAQUE_FORMAT):
        raise FormatError("gpu report: its own fields have a format that is not known", code="gpu-report-version")
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        number, size = int.from_bytes(data[at : at + 2], "little"), int.from_bytes(data[at + 2 : at + 4], "little")
        value = data[at + 4 : at + 4 + size]
        if at + 4 > len(data) or len(value) != size or number in found:
            raise malformed("a field of its own is cut short, or there twice")
        found[number] = value
        at += 4 + size
    if int.from_bytes(found.get(_OPAQUE_VERSION, b""), "little") not in OPAQUE_VERSIONS:
        raise FormatError("gpu report: its own fields are of a version that is not known", code="gpu-report-version")
    return MappingProxyType(found)


def malformed(why: str) -> FormatError:
    """The error for a report that is not of the known form."""
    return FormatError(f"gpu report: {why}", code="gpu-report-format")
