"""Snapshots of a log: the whole state in chunks, and a manifest that completes them.

Pure. What is parsed here is the host's, and hostile until it was opened.

Spec: spec/state.md section 5 (STATE-10 to STATE-14).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from conclave._crypto import TAG_SIZE, AeadKey
from conclave.errors import FormatError
from conclave.persistence.records import BOOT_PART, MAX_PLAIN, Boot, nonce_of, unpad

MAGIC: Final = b"CSS1"
MANIFEST: Final = 1
DATA: Final = 2
HEADER: Final = struct.Struct(">4sB3s16sIQQI")
# Of a chunk: which snapshot, its index, its version.
PLACE: Final = slice(8, 36)
# What a chunk is filled up to. A single item that is larger has one to itself.
CHUNK_CONTENT: Final = 256 * 1024
MAX_CHUNK: Final = HEADER.size + BOOT_PART.size + MAX_PLAIN + TAG_SIZE
MAX_CHUNKS: Final = 2**32 - 1

_ZERO: Final = b"\0\0\0"
# The heads of an item's key and value, at their largest.
_ITEM: Final = 5 + 5

T = TypeVar("T")


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What completes a snapshot.

    Attributes:
        count: how many chunks there are besides.
        digest: of the log up to the snapshot's version.
        history: the table of boots, encoded.
        token_key, anchor_seed: what was born with the log.
        floor: the newest time that was accepted.
    """

    count: int
    digest: bytes
    history: bytes
    token_key: bytes
    anchor_seed: bytes
    floor: int


class Data(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A part of the state: items of the map in order of their keys, then rows."""

    map: dict[str, bytes]
    mail: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk as it was stored: structure only, not authentic until `open_chunk`. Index 0 is the manifest."""

    snapshot: bytes
    index: int
    version: int
    counter: int
    boot: Boot | None
    data: bytes


def parse_chunk(data: bytes) -> Chunk:
    """Split a stored chunk or manifest, untrusted.

    Raises:
        FormatError: too short, too large, an unknown magic or kind, a manifest that is not index 0 or a chunk that is,
            reserved bytes set, or another size than it says.
    """
    if len(data) > MAX_CHUNK:
        raise FormatError(f"a chunk has at most {MAX_CHUNK} bytes, not {len(data)}")
    if len(data) < HEADER.size:
        raise FormatError(f"a chunk has at least {HEADER.size} bytes, not {len(data)}")
    magic, kind, zero, snapshot, index, version, counter, size = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("not a chunk of a snapshot: it does not begin with CSS1")
    if kind not in (MANIFEST, DATA) or zero != _ZERO or (kind == MANIFEST) != (index == 0):
        raise FormatError("a chunk of an unknown kind, with the other kind's index, or with reserved bytes set")
    head = HEADER.size + (BOOT_PART.size if kind == MANIFEST else 0)
    if size < TAG_SIZE or len(data) != head + size:
        raise FormatError(f"a chunk says that it has {head + size} bytes, and has {len(data)}")
    boot = Boot.parse(data[HEADER.size : head]) if kind == MANIFEST else None
    return Chunk(snapshot, index, version, counter, boot, data)


def seal_chunk(
    plain: bytes,
    *,
    key: AeadKey,
    log: bytes,
    snapshot: bytes,
    index: int,
    version: int,
    counter: int,
    boot: bytes = b"",
) -> bytes:
    """One chunk, or with the boot's 162 bytes the manifest.

    Args:
        plain: as `pad` made it.
        counter: never used before with this key.
    """
    size, kind = len(plain) + TAG_SIZE, MANIFEST if boot else DATA
    head = HEADER.pack(MAGIC, kind, _ZERO, snapshot, index, version, counter, size) + boot
    return head + key.encrypt(nonce_of(counter), plain, log + head)


def open_chunk(chunk: Chunk, kind: type[T] | Any, *, key: AeadKey, log: bytes) -> T:
    """What a chunk holds.

    Raises:
        DecryptionError: not authentic, of another log, or at another place.
        FormatError: authentic, and not what this version writes.
    """
    head = HEADER.size + (BOOT_PART.size if chunk.boot else 0)
    plain = key.decrypt(nonce_of(chunk.counter), memoryview(chunk.data)[head:], log + chunk.data[:head])
    opened: T = unpad(plain, kind, "a chunk")
    return opened


def divide(items: Iterable[tuple[str, bytes]], rows: Iterable[tuple[bytes, bytes]]) -> Iterator[Data]:
    """What goes into each chunk, one after the other."""
    room = CHUNK_CONTENT
    full: dict[str, bytes] = {}
    for key, value in items:
        size = _ITEM + len(value) + (len(key) if key.isascii() else 4 * len(key))
        if size > room and full:
            yield Data(full, {})
            full, room = {}, CHUNK_CONTENT
        full[key] = value
        room -= size
    # The last items and the first rows go together.
    more: dict[bytes, bytes] = {}
    for name, value in rows:
        size = _ITEM + len(name) + len(value)
        if size > room and (full or more):
            yield Data(full, more)
            full, more, room = {}, {}, CHUNK_CONTENT
        more[name] = value
        room -= size
    if full or more:
        yield Data(full, more)
