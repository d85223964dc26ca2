"""Makes the claims vectors from spec/claims.md with hashlib and an encoder of its own.

Nothing of `conclave` is imported for the claims and their digests. Evidence cannot be
fixed by choosing keys (its signatures are random): `machine.kept` keeps one quote of a
simulated processor over the claims of `signed.json`, with endorsements, and is made by
the simulated platform when it is missing. It verifies for ever at the time it names.

Usage: python vectors/claims/generate.py [DIRECTORY]
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NOW = "2026-03-01T12:00:00Z"


def pack(value: object) -> bytes:
    """MessagePack in its shortest form, for what these vectors need."""
    if value is None:
        return b"\xc0"
    if isinstance(value, int):
        if 0 <= value < 128:
            return bytes((value,))
        if 0 <= value < 256:
            return b"\xcc" + bytes((value,))
        if 0 <= value < 65536:
            return b"\xcd" + struct.pack(">H", value)
        if value >= 0:
            return b"\xce" + struct.pack(">I", value)
        return struct.pack("b", value)
    if isinstance(value, str):
        data = value.encode()
        return (bytes((0xA0 | len(data),)) if len(data) < 32 else b"\xd9" + bytes((len(data),))) + data
    if isinstance(value, bytes):
        size = len(value)
        if size < 256:
            return b"\xc4" + bytes((size,)) + value
        return (b"\xc5" + struct.pack(">H", size) if size < 65536 else b"\xc6" + struct.pack(">I", size)) + value
    assert isinstance(value, dict)
    head = bytes((0x80 | len(value),)) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))
    return head + b"".join(pack(k) + pack(v) for k, v in value.items())


def run(start: int, size: int) -> bytes:
    return bytes((start + i) % 256 for i in range(size))


def bundle_id(parts: dict[str, Any]) -> bytes:
    numbers = struct.pack(">HH", parts["product_id"], parts["revocation_level"])
    return hashlib.sha256(b"conclave/1 bundle" + parts["code"] + parts["signer"] + numbers).digest()


def digest(encoding: bytes) -> bytes:
    return hashlib.sha512(b"conclave/1 instance-claims\x00" + encoding).digest()


def claims(**changes: Any) -> dict[str, Any]:
    parts = {"code": run(16, 32), "signer": run(48, 32), "product_id": 513, "revocation_level": 2}
    parts |= {k: v for k, v in changes.items() if k in parts}
    fields = {
        "version": 1,
        "bundle_id": bundle_id(parts),
        **parts,
        "runtime": "conclave-9.9.9",
        "sandbox": "landlock",
        "mode": "release",
        "suite": bytes.fromhex("647a00010002"),
        "encryption_key": run(0, 1216),
        "signing_key": run(80, 32),
        "boot_nonce": run(112, 32),
        "log_id": run(144, 32),
        "kds_constraint": run(176, 32),
        "interface": run(208, 32),
    }
    return fields | changes


def accepted(name: str, comment: str, fields: dict[str, Any]) -> dict[str, Any]:
    encoding = pack(fields)
    return {
        "id": f"claims/{name}",
        "spec": "CLM-4 CLM-5",
        "comment": comment,
        "expect": "ok",
        "fields": {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()},
        "bundle_id": bundle_id(fields),
        "encoding": encoding,
        "claims_digest": digest(encoding),
    }


def refused(name: str, comment: str, encoding: bytes) -> dict[str, Any]:
    return {"id": f"claims/{name}", "spec": "CLM-6", "comment": comment, "expect": "format", "encoding": encoding}


def keep() -> dict[str, str]:
    """Evidence over the claims of the case `signed`, kept because it cannot be made again."""
    path = HERE / "machine.kept"
    if not path.exists():
        import tempfile
        from datetime import datetime

        from conclave.platform.machine import Machine

        now = datetime.fromisoformat(NOW)
        fields = claims()
        with tempfile.TemporaryDirectory() as place:
            machine = Machine.open(Path(place), now=now)
            quote = machine.quote(
                report_data=digest(pack(fields)), config_id=fields["bundle_id"] + bytes(32), mrenclave=run(32, 32)
            )
            kept = {"anchor": machine.anchor, "evidence": quote.hex(), "endorsements": machine.endorsements().hex()}
        path.write_text(json.dumps(kept, indent=2) + "\n")
    return dict(json.loads(path.read_text()))


def info(
    name: str, spec: str, comment: str, expect: str, *, constraint: str = "", now: str = NOW, **changes: Any
) -> dict[str, Any]:
    kept = keep()
    parts = {
        "version": 1,
        "format": "sgx",
        "evidence": bytes.fromhex(kept["evidence"]),
        "endorsements": bytes.fromhex(kept["endorsements"]),
        "claims": pack(claims()),
    }
    base = f"C:{run(16, 32).hex()} RUNTIME:conclave-9.9.9"
    return {
        "id": f"claims/{name}",
        "spec": spec,
        "comment": comment,
        "expect": expect,
        "constraint": f"{base} {constraint or 'SEC:INSECURE TEE:simulated@' + kept['anchor']}",
        "now": now,
        "info": pack(parts | changes),
    }


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def cases() -> list[dict[str, Any]]:
    good = pack(claims())
    kept = keep()
    evidence = bytes.fromhex(kept["evidence"])
    endorsements = json.loads(bytes.fromhex(kept["endorsements"]))
    other = json.dumps(endorsements | {"tcb_info_signature": "00" * 64}, separators=(",", ":")).encode()
    unsigned = claims(
        signer=bytes(32),
        product_id=0,
        revocation_level=0,
        mode="debug",
        sandbox="none",
        log_id=None,
        kds_constraint=None,
    )
    return [
        accepted("signed", "A signed bundle with a log and a KDS.", claims()),
        accepted("unsigned", "An unsigned debug bundle, stateless.", unsigned),
        accepted("largest-numbers", "Product and level of 65535.", claims(product_id=65535, revocation_level=65535)),
        refused("version", "Version 2.", pack(claims(version=2))),
        refused("mode", "An unknown mode.", pack(claims(mode="test"))),
        refused("sandbox", "An unknown sandbox word.", pack(claims(sandbox="chroot"))),
        refused("suite", "Another suite: AES-128-GCM.", pack(claims(suite=bytes.fromhex("647a00010001")))),
        refused("product-id", "A product id of 65536.", pack(claims() | {"product_id": 65536})),
        refused("revocation-level", "A revocation level below zero.", pack(claims() | {"revocation_level": -1})),
        refused("runtime-empty", "No release.", pack(claims(runtime=""))),
        refused("runtime-long", "A release of 65 characters.", pack(claims(runtime="r" * 65))),
        refused("short-key", "An encryption key of 1215 bytes.", pack(claims(encryption_key=bytes(1215)))),
        refused("long-code", "A code of 33 bytes.", pack(claims() | {"code": bytes(33)})),
        refused("missing-key", "No boot nonce.", pack({k: v for k, v in claims().items() if k != "boot_nonce"})),
        refused("extra-key", "One key more.", pack(claims(extra=1))),
        refused("order", "The keys in another order.", pack(dict(reversed(claims().items())))),
        refused("text-for-bytes", "A code as text.", pack(claims() | {"code": "c" * 32})),
        refused("nil", "nil where it is not allowed.", pack(claims(signing_key=None))),
        refused("number-form", "The version in two bytes.", good.replace(b"\xa7version\x01", b"\xa7version\xcc\x01")),
        refused("key-twice", "A key twice.", b"\xde\x00\x11" + good[3:] + b"\xa7version\x01"),
        refused("trailing", "One byte more.", good + b"\0"),
        refused("truncated", "One byte missing.", good[:-1]),
        refused("too-large", "8193 bytes.", bytes(8193)),
        info("info", "CLM-7 CLM-8", "Evidence of a pinned simulated machine.", "ok"),
        info(
            "info-another-bundle", "CLM-3", "Claims of another bundle.", "binding", claims=pack(claims(code=bytes(32)))
        ),
        info(
            "info-parts",
            "CLM-4",
            "The right bundle id, of other parts.",
            "binding",
            claims=pack(claims() | {"revocation_level": 3}),
        ),
        info(
            "info-another-key",
            "CLM-5",
            "Claims with another signing key.",
            "binding",
            claims=pack(claims(signing_key=bytes(32))),
        ),
        info(
            "info-evidence",
            "CLM-8",
            "A bit of the report data changed.",
            "quote-signature",
            evidence=flip(evidence, 431),
        ),
        info(
            "info-tcb-signature", "CLM-8", "TCB info with a wrong signature.", "tcb-info-signature", endorsements=other
        ),
        info("info-expired", "CLM-8", "Thirty-one days later.", "tcb-info-expired", now="2026-04-01T12:00:00Z"),
        info(
            "info-hardware", "CLM-7", "The same for a constraint that wants hardware.", "chain", constraint="SEC:STALE"
        ),
        info(
            "info-another-machine",
            "CLM-7",
            "Another machine is pinned.",
            "chain",
            constraint="SEC:INSECURE TEE:simulated@" + "00" * 32,
        ),
        info(
            "info-older-release",
            "CLM-8",
            "Genuine, but a newer release is wanted.",
            "appraisal",
            constraint="SEC:INSECURE REVOKE:3",
        ),
        info("info-version", "CLM-6", "Instance info of version 2.", "format", version=2),
        info("info-trailing", "CLM-6", "A byte after the quote.", "quote-format", evidence=evidence + b"\0"),
    ]


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for item in cases():
        text = {k: v.hex() if isinstance(v, bytes) else v for k, v in item.items()}
        path = target / f"{item['id'].partition('/')[2]}.json"
        path.write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    main()
