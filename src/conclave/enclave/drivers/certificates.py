"""The certificate table a host gives along with an SEV-SNP report.

Runs inside the enclave. The host wrote it and nobody checked it: it becomes hints
for whoever staples endorsements, and nothing here trusts a byte of it.

Spec: spec/drivers.md section 3.1 (DRV-17). Source: AMD GHCB standardization,
MSG_REPORT_REQ (certificate table).
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Final

from conclave.enclave.drivers.tee import MAX_HINTS
from conclave.errors import PlatformError

# Entry: GUID in RFC 4122 order, u32 offset, u32 length; a zero entry ends the table.
_ENTRY: Final = struct.Struct("<16sII")
_MAX_ENTRIES: Final = 32
_GUIDS: Final = {
    bytes.fromhex("63da758de6644564adc5f4b93be8accd"): "vcek",
    bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1"): "vlek",
    bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782"): "ask",
    bytes.fromhex("c0b406a4a803495297433fb6014cd0ae"): "ark",
    bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea"): "crl",
}


def parse_table(table: bytes) -> dict[str, bytes]:
    """The parts of a table by name: `vcek`, `vlek`, `ask`, `ark`, `crl`; unknown ones left out.

    Raises:
        PlatformError: an entry points outside, into the entries or into another's part.
    """
    if not any(table):
        return {}
    found: dict[str, bytes] = {}
    taken: list[tuple[int, int]] = []
    at = 0
    for _ in range(_MAX_ENTRIES):
        if len(table) - at < _ENTRY.size:
            raise PlatformError("the host's certificate table does not end")
        guid, offset, length = _ENTRY.unpack_from(table, at)
        at += _ENTRY.size
        if not any(guid):
            break
        if not length:
            continue
        taken.append((offset, offset + length))
        name = _GUIDS.get(guid)
        if name in found:
            raise PlatformError("the host's certificate table names a certificate twice")
        if name is not None:
            found[name] = table[offset : offset + length]
    else:
        raise PlatformError(f"the host's certificate table has more than {_MAX_ENTRIES} entries")
    end = at
    for start, stop in sorted(taken):
        if stop > len(table) or start < end:
            raise PlatformError("the host's certificate table has parts that overlap or lie outside")
        end = stop
    return found


def hints(table: bytes) -> bytes:
    """Endorsements as far as the table has them, in the form of spec/snp.md; empty if it has none.

    Raises:
        PlatformError: see `parse_table`.
    """
    parts = parse_table(table)
    leaf = parts.get("vcek") or parts.get("vlek")
    if leaf is None:
        return b""
    chain = "".join(_pem(parts[name]) for name in ("ask", "ark") if name in parts)
    found = {"certificate": _der(leaf).hex(), "chain": chain, "crl": parts.get("crl", b"").hex()}
    encoded = json.dumps(found).encode()
    # Hints that nobody could carry are none.
    return encoded if len(encoded) <= MAX_HINTS else b""


_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


def _der(certificate: bytes) -> bytes:
    """Hosts are free to load either form."""
    head, begin, rest = certificate.partition(_BEGIN)
    body, end, _ = rest.partition(_END)
    if head.strip() or not begin or not end:
        return certificate
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except ValueError:
        return certificate


def _pem(certificate: bytes) -> str:
    text = base64.b64encode(_der(certificate)).decode()
    lines = [text[n : n + 64] for n in range(0, len(text), 64)]
    return "\n".join([_BEGIN.decode(), *lines, _END.decode(), ""])
