"""The public headers of sealed state: what the host sees of records and snapshots, and may not alter.

Runs at the untrusted host and at operators' commands. Holds no keys.

Spec: spec/state.md, spec/host-channel.md section 2.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import msgspec

from conclave.errors import FormatError

RECORD_MAGIC: Final = b"CSR1"
SNAPSHOT_MAGIC: Final = b"CSS1"
# magic, kind, zero, version, nonce counter, ciphertext size
RECORD_HEADER: Final = struct.Struct(">4sB3sQQI")
# log id, bundle id, revocation level, boot id, salt, wrapped boot key
BOOT_HEADER: Final = struct.Struct(">32s32sH16s32s48s")
# magic, kind, zero, snapshot id, index, version, nonce counter, ciphertext size
CHUNK_HEADER: Final = struct.Struct(">4sB3s16sIQQI")
# version, size of the record; the record and posted mail follow
COMMIT_HEADER: Final = struct.Struct(">QI")
# snapshot id, index, version; the chunk follows
SNAPSHOT_HEADER: Final = struct.Struct(">16sIQ")
BOOT, CHANGE = 1, 2
DIGEST_LABEL: Final = b"state/1"
MANIFEST: Final = 0
_MANIFEST_KIND, _DATA_KIND = 1, 2
_TAG: Final = 16
_ZERO: Final = b"\0\0\0"


class BootHeader(msgspec.Struct, frozen=True, gc=False):
    """Which boot of which log wrote what follows, as it says itself. Nothing in it is authentic yet."""

    log_id: bytes
    bundle_id: bytes
    level: int
    boot_id: bytes


class RecordHeader(msgspec.Struct, frozen=True, gc=False):
    """The public part of one record; `boot` is None for a change."""

    version: int
    counter: int
    boot: BootHeader | None


class ChunkHeader(msgspec.Struct, frozen=True, gc=False):
    """The public part of one chunk of a snapshot; `boot` is there for its manifest alone."""

    snapshot_id: bytes
    index: int
    version: int
    boot: BootHeader | None


class Commit(msgspec.Struct, frozen=True, gc=False):
    """What a COMMIT frame brings: a record, and posted mail that belongs to it."""

    version: int
    boot: BootHeader | None
    record: bytes
    posts: bytes


def parse_record(data: bytes) -> RecordHeader:
    """Read the public parts of a record. Raises FormatError."""
    if len(data) < RECORD_HEADER.size:
        raise FormatError(f"not a record of state: {len(data)} bytes, it has at least {RECORD_HEADER.size}")
    magic, kind, zero, version, counter, size = RECORD_HEADER.unpack_from(data)
    if magic != RECORD_MAGIC or zero != _ZERO or kind not in (BOOT, CHANGE):
        raise FormatError("not a record of state: wrong magic, kind or reserved bytes")
    start = RECORD_HEADER.size + (BOOT_HEADER.size if kind == BOOT else 0)
    if size < _TAG or len(data) != start + size:
        raise FormatError("record of state whose sizes do not add up: truncated or extended")
    return RecordHeader(version, counter, _boot(data, RECORD_HEADER.size) if kind == BOOT else None)


def parse_chunk(data: bytes) -> ChunkHeader:
    """Read the public parts of a snapshot's chunk. Raises FormatError."""
    if len(data) < CHUNK_HEADER.size:
        raise FormatError(f"not a chunk of a snapshot: {len(data)} bytes, it has at least {CHUNK_HEADER.size}")
    magic, kind, zero, snapshot_id, index, version, _, size = CHUNK_HEADER.unpack_from(data)
    if magic != SNAPSHOT_MAGIC or zero != _ZERO or kind != (_MANIFEST_KIND if index == MANIFEST else _DATA_KIND):
        raise FormatError("not a chunk of a snapshot: wrong magic, kind or reserved bytes")
    start = CHUNK_HEADER.size + (BOOT_HEADER.size if index == MANIFEST else 0)
    if size < _TAG or len(data) != start + size:
        raise FormatError("chunk of a snapshot whose sizes do not add up: truncated or extended")
    return ChunkHeader(snapshot_id, index, version, _boot(data, CHUNK_HEADER.size) if index == MANIFEST else None)


def parse_commit(payload: bytes) -> Commit:
    """Take the payload of a COMMIT frame apart; its record is checked by its header. Raises FormatError."""
    if len(payload) < COMMIT_HEADER.size:
        raise FormatError(f"not a commit: {len(payload)} bytes, it has at least {COMMIT_HEADER.size}")
    version, size = COMMIT_HEADER.unpack_from(payload)
    end = COMMIT_HEADER.size + size
    if len(payload) < end:
        raise FormatError("commit whose sizes do not add up: truncated")
    record = payload[COMMIT_HEADER.size : end]
    header = parse_record(record)
    if header.version != version:
        raise FormatError("commit of another version than its record's")
    return Commit(version, header.boot, record, payload[end:])


def next_digest(log_id: bytes, version: int, previous: bytes, record: bytes) -> bytes:
    """The digest of a log up to and including a record; `previous` is zeros before the first."""
    parts = (DIGEST_LABEL, log_id, version.to_bytes(8, "big"), previous, record)
    return hashlib.sha256(b"".join(parts)).digest()


def _boot(data: bytes, at: int) -> BootHeader:
    return BootHeader(*BOOT_HEADER.unpack_from(data, at)[:4])
