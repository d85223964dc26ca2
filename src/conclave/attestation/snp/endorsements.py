"""What the host staples to a report: the key's certificate, its issuers, the revocation list.

Runs at the relying party, on hostile bytes.

Spec: spec/snp.md section 2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from conclave.attestation._x509 import Certificate, RevocationList, split_pem
from conclave.errors import ChainError, FormatError

MAX_SIZE: Final = 524288
MAX_CERTIFICATE: Final = 8192
_MEMBERS: Final = {"certificate", "chain", "crl"}


@dataclass(frozen=True, slots=True)
class Endorsements:
    """Parsed; nothing is verified.

    Attributes:
        certificate: of the VCEK or VLEK.
        issuers: ASK (or ASVK), then ARK.
        crl: the ARK's revocation list, if there is one.
    """

    certificate: Certificate
    issuers: tuple[Certificate, ...]
    crl: RevocationList | None


def parse_endorsements(data: bytes) -> Endorsements:
    """Read the JSON text. Raises FormatError with code `endorsements-format`."""
    try:
        if len(data) > MAX_SIZE:
            raise ValueError
        # One object and nothing in it but text: many small things would take long to make.
        if data.count(b"{") + data.count(b"[") != 1:
            raise ValueError
        # As text: of bytes, the decoder would guess the encoding.
        members = json.loads(data.decode("ascii"), object_pairs_hook=_unique)
        if not isinstance(members, dict) or set(members) != _MEMBERS:
            raise ValueError
        if not all(isinstance(v, str) and v.isascii() for v in members.values()):
            raise ValueError
        chain = (_hex(members["certificate"]), *split_pem(members["chain"].encode()))
        if len(chain) != 3 or max(map(len, chain)) > MAX_CERTIFICATE:
            raise ValueError
        certificate, *issuers = (Certificate(der, what="endorsements") for der in chain)
        crl = RevocationList(_hex(members["crl"]), what="endorsements") if members["crl"] else None
    except (ValueError, RecursionError, FormatError, ChainError):
        raise FormatError("endorsements are not well-formed", code="endorsements-format") from None
    return Endorsements(certificate, tuple(issuers), crl)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError
    return dict(pairs)


def _hex(text: str) -> bytes:
    data = bytes.fromhex(text)
    if data.hex() != text.lower():
        raise ValueError
    return data
