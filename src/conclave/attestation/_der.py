"""Strict DER, as far as vendors' certificate extensions need it.

Runs at the relying party, on hostile bytes. One value has one encoding: a length that
could be shorter, an integer with a superfluous octet or a boolean that is neither of
its two octets does not parse.

Format: ITU-T X.690, sections 8 and 10.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from conclave.errors import FormatError

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
OCTET_STRING: Final = 0x04
OBJECT_IDENTIFIER: Final = 0x06
ENUMERATED: Final = 0x0A
SEQUENCE: Final = 0x30


class Element(NamedTuple):
    """One value: its tag and its contents. Each reading method raises FormatError if it is of another type."""

    tag: int
    contents: bytes

    def children(self) -> tuple[Element, ...]:
        """The members of a SEQUENCE."""
        return _elements(self._of(SEQUENCE))

    def octets(self, size: int) -> bytes:
        """An OCTET STRING of exactly that many bytes."""
        value = self._of(OCTET_STRING)
        if len(value) != size:
            raise FormatError(f"DER: an octet string has {len(value)} bytes, not {size}")
        return value

    def number(self, most: int, *, tag: int = INTEGER) -> int:
        """An INTEGER (or ENUMERATED) from 0 to `most`."""
        value = self._of(tag)
        superfluous = len(value) > 1 and value[0] == 0 and value[1] < 0x80
        if not value or len(value) > 9 or superfluous or not 0 <= int.from_bytes(value, "big", signed=True) <= most:
            raise FormatError("DER: a number is not in its shortest form, or out of range")
        return int.from_bytes(value, "big")

    def boolean(self) -> bool:
        """A BOOLEAN."""
        value = self._of(BOOLEAN)
        if value not in (b"\x00", b"\xff"):
            raise FormatError("DER: a boolean is neither true nor false")
        return value == b"\xff"

    def identifier(self) -> bytes:
        """An OBJECT IDENTIFIER, as encoded: to be compared as a whole, since one identifier has one encoding."""
        return self._of(OBJECT_IDENTIFIER)

    def _of(self, tag: int) -> bytes:
        if self.tag != tag:
            raise FormatError("DER: a value is of another type than it must be")
        return self.contents


def parse(data: bytes) -> Element:
    """The one value that these bytes are. Raises FormatError, also for bytes after it."""
    elements = _elements(data)
    if len(elements) != 1:
        raise FormatError("DER: bytes after the value, or none at all")
    return elements[0]


def split(data: bytes, *, most: int) -> tuple[bytes, ...]:
    """The encodings of values that stand one after the other, at most that many. Raises FormatError."""
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        _, end = _element(data, at)
        parts.append(data[at:end])
        at = end
        if len(parts) > most:
            raise FormatError(f"DER: more than {most} values")
    return tuple(parts)


def _elements(data: bytes) -> tuple[Element, ...]:
    found: list[Element] = []
    at = 0
    while at < len(data):
        element, at = _element(data, at)
        found.append(element)
    return tuple(found)


def _element(data: bytes, at: int) -> tuple[Element, int]:
    if at + 2 > len(data) or data[at] & 0x1F == 0x1F:
        raise FormatError("DER: cut short, or a tag of more than one octet")
    tag, size, start = data[at], data[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        octets = data[start : start + count]
        size = int.from_bytes(octets, "big")
        start += count
        # 0 octets would be the indefinite form, which is not DER.
        if not 1 <= count <= 4 or len(octets) != count or octets[0] == 0 or size < 0x80:
            raise FormatError("DER: a length is not in its shortest form")
    if start + size > len(data):
        raise FormatError("DER: cut short")
    return Element(tag, data[start : start + size]), start + size
