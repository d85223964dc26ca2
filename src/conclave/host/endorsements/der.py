"""Certificates and revocation lists read just far enough to know what they are.

Untrusted, and holds no keys: names, dates and extensions by their place in the
DER. Whether a signature is right is the client's question, never the host's.

Formats: X.690 (DER), RFC 5280 sections 4.1 and 5.1, RFC 7468 (PEM).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from conclave.errors import FormatError

MAX_CHAIN: Final = 8
# Of one sequence. The entries of a revocation list are never taken apart.
MAX_ELEMENTS: Final = 64
_SEQUENCE: Final = 0x30
_OID: Final = 0x06
_OCTETS: Final = 0x04
_UTC_TIME: Final = 0x17
_LONG_TIME: Final = 0x18
_COMMON_NAME: Final = bytes.fromhex("550403")
# Possessive, so that white space without end cannot make matching quadratic.
_PEM: Final = re.compile(rb"\s*+-----BEGIN (CERTIFICATE|X509 CRL)-----([A-Za-z0-9+/=\s]++)-----END \1-----[\s\0]*+")


@dataclass(frozen=True, slots=True)
class Element:
    """One tag, length and value.

    Attributes:
        tag: identifier octet; tags of several octets are refused.
        content: the value.
        raw: all of it.
    """

    tag: int
    content: bytes
    raw: bytes

    def children(self) -> tuple[Element, ...]:
        """The elements that make up the value. Raises FormatError."""
        return tuple(elements(self.content))

    def inner(self, tag: int = _SEQUENCE) -> tuple[Element, ...]:
        """The same, if this is a sequence or of the tag given. Raises FormatError."""
        if self.tag != tag:
            raise FormatError("DER: an element is not of the kind expected here")
        return self.children()


def elements(data: bytes) -> Iterator[Element]:
    """Elements one after the other, to the last byte, at most 64. Raises FormatError."""
    at = 0
    for _ in range(MAX_ELEMENTS):
        if at == len(data):
            return
        element = first(data[at:])
        yield element
        at += len(element.raw)
    raise FormatError("DER: more elements than anything read here has")


def first(data: bytes) -> Element:
    """The element that begins here. Raises FormatError."""
    if len(data) < 2 or data[0] & 0x1F == 0x1F:
        raise FormatError("DER: no element")
    size, at = data[1], 2
    if size & 0x80:
        octets = size & 0x7F
        at += octets
        size = int.from_bytes(data[2:at], "big")
        if not 1 <= octets <= 4 or size < 0x80 or size >> (8 * (octets - 1)) == 0:
            raise FormatError("DER: a length is not in its one form")
    if at + size > len(data):
        raise FormatError("DER: cut short")
    return Element(data[0], data[at : at + size], data[: at + size])


def single(data: bytes) -> Element:
    """The one element that these bytes are. Raises FormatError."""
    element = first(data)
    if len(element.raw) != len(data):
        raise FormatError("DER: bytes after the end")
    return element


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a certificate says; nothing of it is verified.

    Attributes:
        der: all of it.
        issuer, subject: DER of the names.
        issuer_name, subject_name: their common names, or "".
        not_before, not_after: aware UTC times.
        extensions: values by the content octets of their object identifiers.
    """

    der: bytes
    issuer: bytes
    subject: bytes
    issuer_name: str
    subject_name: str
    not_before: datetime
    not_after: datetime
    extensions: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ListFacts:
    """What a revocation list says; nothing of it is verified.

    Attributes:
        issuer: DER of the name.
        issuer_name: its common name, or "".
        this_update, next_update: aware UTC times.
    """

    issuer: bytes
    issuer_name: str
    this_update: datetime
    next_update: datetime


def certificate(der: bytes) -> CertificateFacts:
    """Read a certificate. Raises FormatError."""
    signed, *_ = _signed(der)
    parts = list(signed.inner())
    # [0] version, which every certificate with extensions has.
    if len(parts) < 7 or parts[0].tag != 0xA0:
        raise FormatError("not a certificate of version 3")
    _, _, _, issuer, validity, subject, _, *rest = parts
    begin, end, *_ = _at_least(validity.inner(), 2)
    extensions: dict[bytes, bytes] = {}
    for part in rest:
        if part.tag == 0xA3:
            for extension in single(part.content).inner():
                name, *_, value = _at_least(extension.inner(), 2)
                if name.tag != _OID or value.tag != _OCTETS or name.content in extensions:
                    raise FormatError("certificate: extensions are not well-formed")
                extensions[name.content] = value.content
    return CertificateFacts(
        der,
        issuer.raw,
        subject.raw,
        common_name(issuer),
        common_name(subject),
        _time(begin),
        _time(end),
        extensions,
    )


def revocation_list(der: bytes) -> ListFacts:
    """Read a revocation list; one that does not say until when it is valid is refused. Raises FormatError."""
    signed, *_ = _signed(der)
    parts = [p for p in signed.inner() if p.tag != 0x02]
    _, issuer, begin, end, *_ = _at_least(parts, 4)
    return ListFacts(issuer.raw, common_name(issuer), _time(begin), _time(end))


def _signed(der: bytes) -> tuple[Element, ...]:
    parts = single(der).inner()
    if len(parts) != 3 or parts[2].tag != 0x03:
        raise FormatError("neither a certificate nor a revocation list")
    return parts


def _at_least(parts: tuple[Element, ...] | list[Element], count: int) -> tuple[Element, ...]:
    if len(parts) < count:
        raise FormatError("DER: a part is missing")
    return tuple(parts)


def common_name(name: Element) -> str:
    """The common name within a name, or "". Raises FormatError."""
    for relative in name.inner():
        for pair in relative.children():
            kind, value, *_ = _at_least(pair.inner(), 2)
            if kind.tag == _OID and kind.content == _COMMON_NAME:
                return value.content.decode("utf-8", "replace")
    return ""


def _time(element: Element) -> datetime:
    """Either of the two forms that RFC 5280 allows, and no other."""
    digits, zone = element.content[:-1], element.content[-1:]
    size = {_UTC_TIME: 12, _LONG_TIME: 14}.get(element.tag)
    if len(digits) != size or not digits.isdigit() or zone != b"Z":
        raise FormatError("DER: not a time")
    if element.tag == _UTC_TIME:
        digits = (b"19" if digits >= b"5" else b"20") + digits
    try:
        return datetime.strptime(digits.decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise FormatError("DER: not a time") from None


def pem_certificates(data: bytes) -> tuple[bytes, ...]:
    """DER of the certificates in a PEM text, at most 8. Raises FormatError."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        kind, der, at = _pem(data, at)
        if kind != b"CERTIFICATE" or len(found) == MAX_CHAIN:
            raise FormatError("a certificate chain holds something else, or is too long")
        found.append(der)
    if not found:
        raise FormatError("a certificate chain is empty")
    return tuple(found)


def pem_revocation_list(data: bytes) -> bytes:
    """DER of the one revocation list in a PEM text. Raises FormatError."""
    kind, der, end = _pem(data, 0)
    if kind != b"X509 CRL" or end != len(data):
        raise FormatError("not one revocation list in PEM")
    return der


def _pem(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    match = _PEM.match(data, at)
    if match is None:
        raise FormatError("not PEM")
    try:
        return match[1], base64.b64decode(b"".join(match[2].split()), validate=True), match.end()
    except ValueError:
        raise FormatError("not PEM") from None


def to_pem(certificates: tuple[bytes, ...]) -> str:
    """Certificates as PEM, 64 characters a line."""
    text = ""
    for der in certificates:
        body = base64.b64encode(der).decode()
        lines = [body[at : at + 64] for at in range(0, len(body), 64)]
        text += "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----"]) + "\n"
    return text
