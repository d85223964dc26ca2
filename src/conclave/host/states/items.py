"""How items lie one after the other in a file or a blob, each with its length and checksum.

Runs in the untrusted host. The checksum is against accidents alone: whoever has the keys
checks what matters.

Spec: spec/stores.md section 5 (STORE-22).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from conclave.host.states.store import MAX_ITEM, Item

MAGIC: Final = b"CSI1"
# magic, size, checksum of the fields after it and of the data, number, number of the first item written with it
HEADER: Final = struct.Struct(">4sIIQQ")
_NUMBERS: Final = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Found:
    """One whole item, and where the next one begins."""

    number: int
    batch: int
    data: bytes
    end: int


def pack(items: Sequence[Item]) -> bytes:
    """Items that are written together."""
    batch = items[0][0]
    parts = []
    for number, data in items:
        sum_ = zlib.crc32(data, zlib.crc32(_NUMBERS.pack(number, batch)))
        parts += [HEADER.pack(MAGIC, len(data), sum_, number, batch), data]
    return b"".join(parts)


def item_at(data: bytes | memoryview, at: int) -> Found | None:
    """The item that begins there; None: no whole one does."""
    if len(data) - at < HEADER.size:
        return None
    magic, size, sum_, number, batch = HEADER.unpack_from(data, at)
    start = at + HEADER.size
    if magic != MAGIC or size > MAX_ITEM or start + size > len(data):
        return None
    content = bytes(data[start : start + size])
    if zlib.crc32(content, zlib.crc32(_NUMBERS.pack(number, batch))) != sum_:
        return None
    return Found(number, batch, content, start + size)


def unpack(data: bytes) -> Iterator[Found]:
    """Items from the beginning, up to the first that is not whole."""
    at = 0
    while (found := item_at(data, at)) is not None:
        yield found
        at = found.end
