"""Makes the bundle vectors from spec/bundle.md with the standard library and Ed25519.

An implementation of its own, down to the MessagePack and ZIP bytes: nothing of
`conclave` is imported.

Usage: python vectors/bundle/generate.py [DIRECTORY]
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HERE = Path(__file__).parent
SEED = bytes(range(32))
SOURCE = b"print('hello')\n"


def pack(value: Any) -> bytes:
    """The shortest MessagePack of what manifests hold."""
    if isinstance(value, bool) or value is None:
        raise TypeError
    if isinstance(value, int):
        for limit, head, form in (
            (128, b"", ">B"),
            (1 << 8, b"\xcc", ">B"),
            (1 << 16, b"\xcd", ">H"),
            (1 << 32, b"\xce", ">I"),
        ):
            if value < limit:
                return head + struct.pack(form, value)
        raise OverflowError
    if isinstance(value, str):
        raw = value.encode()
        return (bytes((0xA0 | len(raw),)) if len(raw) < 32 else b"\xd9" + bytes((len(raw),))) + raw
    if isinstance(value, bytes):
        return b"\xc4" + bytes((len(value),)) + value
    if isinstance(value, (list, tuple)):
        return bytes((0x90 | len(value),)) + b"".join(map(pack, value))
    head = bytes((0x80 | len(value),)) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))
    return head + b"".join(pack(k) + pack(v) for k, v in value.items())


def manifest(**changes: Any) -> bytes:
    values: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "release": "1.0",
        "product_id": 300,
        "revocation_level": 2,
        "mode": "release",
        "python": "cp311",
        "platform": "any",
        "compiler": "cpython-3.11.7",
        "entry": "tiny:Tiny",
        "interface": b"\x90",
        "environment": [["LANGUAGE", "en"]],
        "roster": [bytes(32), bytes([1]) * 32],
        "quorum": 2,
        "limits": {"memory_mib": 256, "temporary_mib": 16},
        "key_specs": [],
        "metrics": [],
        "wheels": [],
        "files": [{"path": "app/tiny.py", "size": len(SOURCE), "sha256": hashlib.sha256(SOURCE).digest()}],
    }
    return pack({**values, **changes})


def archive(parts: list[tuple[str, bytes]]) -> bytes:
    data, central = b"", b""
    for name, body in parts:
        raw, crc = name.encode(), zlib.crc32(body)
        common = struct.pack("<5H3I2H", 20, 0, 0, 0, 33, crc, len(body), len(body), len(raw), 0)
        central += (
            b"PK\1\2"
            + struct.pack("<H", 0x0314)
            + common
            + struct.pack("<3H2I", 0, 0, 0, 0o100644 << 16, len(data))
            + raw
        )
        data += b"PK\3\4" + common + raw + body
    end = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, len(parts), len(parts), len(central), len(data), 0)
    return data + central + end


def identity(encoded: bytes, signer: bytes) -> dict[str, bytes]:
    code = hashlib.sha256(encoded).digest()
    bundle_id = hashlib.sha256(b"conclave/1 bundle" + code + signer + struct.pack(">2H", 300, 2)).digest()
    return {"manifest": encoded, "code": code, "signer": signer, "bundle_id": bundle_id}


def cases() -> list[dict[str, Any]]:
    key = Ed25519PrivateKey.from_private_bytes(SEED)
    public = key.public_key().public_bytes_raw()
    good = manifest()
    signature = public + key.sign(b"conclave/1 bundle\0" + bytes(64) + good)
    parts = [("manifest", good), ("app/tiny.py", SOURCE)]
    signed = [parts[0], ("signature", signature), parts[1]]

    def case(name: str, spec: str, comment: str, expect: str, data: bytes, **more: bytes) -> dict[str, Any]:
        return {"id": f"bundle/{name}", "spec": spec, "comment": comment, "expect": expect, "archive": data, **more}

    def bad(name: str, spec: str, comment: str, data: bytes) -> dict[str, Any]:
        return case(name, spec, comment, "bundle", data)

    other = manifest(files=[{"path": "app/../tiny.py", "size": len(SOURCE), "sha256": hashlib.sha256(SOURCE).digest()}])
    longer = good.replace(b"\xa7version\x01", b"\xa7version\xcc\x01")
    return [
        case("unsigned", "BND-9", "One file, no signature.", "ok", archive(parts), **identity(good, bytes(32))),
        case(
            "signed",
            "BND-7",
            "The same, signed.",
            "ok",
            archive(signed),
            **identity(good, hashlib.sha256(public).digest()),
        ),
        bad("order", "BND-5", "The file before the manifest.", archive(parts[::-1])),
        bad("suffix", "BND-5", "One byte after the end.", archive(parts) + b"\0"),
        bad(
            "time",
            "BND-5",
            "A later date.",
            archive(parts).replace(struct.pack("<2H", 0, 33), struct.pack("<2H", 0, 34)),
        ),
        bad("extra", "BND-6", "A file that the manifest does not list.", archive([*parts, ("app/zz.py", b"")])),
        bad("missing", "BND-6", "A listed file is not there.", archive(parts[:1])),
        bad("contents", "BND-6", "A file with other contents.", archive([parts[0], ("app/tiny.py", SOURCE.upper())])),
        bad(
            "signature",
            "BND-7",
            "A signature of somebody else.",
            archive([parts[0], ("signature", public + bytes(64)), parts[1]]),
        ),
        bad("path", "BND-2", "A path that escapes.", archive([("manifest", other), ("app/../tiny.py", SOURCE)])),
        bad("canonical", "BND-1", "A longer encoding of the version.", archive([("manifest", longer), parts[1]])),
        bad(
            "level",
            "BND-1",
            "A revocation level out of range.",
            archive([("manifest", manifest(revocation_level=65535)), parts[1]]),
        ),
    ]


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for case in cases():
        text = {k: v.hex() if isinstance(v, bytes) else v for k, v in case.items()}
        (target / f"{case['id'].partition('/')[2]}.json").write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    main()
