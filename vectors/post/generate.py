"""Makes the vectors of posted mail from spec/mail.md section 11 with primitives alone.

An implementation of its own: nothing of `conclave` is imported. The HPKE output cannot
be fixed by choosing keys, so `sealed.hex` keeps one.

Usage: python vectors/post/generate.py [DIRECTORY]
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

HERE = Path(__file__).parent
SUITE = bytes.fromhex("647a00010002")
# The X-Wing draft expands its 32-byte seed so; implementations of it take the seed.
XWING_SEED = bytes(range(32))
EXPANDED = hashlib.shake_256(XWING_SEED).digest(96)
MLKEM_SEED, X25519_PRIVATE = EXPANDED[:64], EXPANDED[64:]
SIGNING_SEED = bytes(range(100, 132))
IDENTITY = bytes(range(160, 192))
CLAIMS_DIGEST = bytes(range(64, 128))
SECRET = bytes(range(200, 232))
TOPIC = b"auction/7"
ENVELOPE = b"lot 7"
BODY = b"you won, and the operator must not see it"
NUMBER, ACKNOWLEDGED = 5, 3
SIZE = 1024
CONTEXT = bytes(range(100, 172))


def keys() -> tuple[Any, bytes]:
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(MLKEM_SEED)
    dh = x25519.X25519PrivateKey.from_private_bytes(X25519_PRIVATE)
    public = kem.public_key().public_bytes_raw() + dh.public_key().public_bytes_raw()
    return hpke.MLKEM768X25519PrivateKey(kem, dh), public


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def sealed(reply_key: bytes) -> bytes:
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    private, _ = keys()
    info = b"mail/1 post" + SUITE + sha(reply_key) + CLAIMS_DIGEST
    kept = HERE / "sealed.hex"
    if not kept.exists():
        kept.write_text(suite.encrypt(SECRET, private.public_key(), info).hex() + "\n")
    data = bytes.fromhex(kept.read_text())
    assert suite.decrypt(data, private, info) == SECRET
    return data


def extract(salt: bytes, material: bytes) -> bytes:
    mac = HMAC(salt, hashes.SHA256())
    mac.update(material)
    return mac.finalize()


def inside(
    *, kind: int = 0, zero: int = 0, size: int = len(BODY), identity: bytes = IDENTITY, end: bytes = b"\0"
) -> bytes:
    numbers = struct.pack(">BBHIQQ", kind, len(TOPIC), zero, size, NUMBER, ACKNOWLEDGED)
    return numbers + identity + TOPIC.ljust(255, b"\0") + end


def cases() -> list[dict[str, Any]]:
    _, reply_key = keys()
    hpke_output = sealed(reply_key)
    box = sha(b"conclave/1 outbox", reply_key)[:16]
    prk = extract(sha(hpke_output, CLAIMS_DIGEST), SECRET)
    key = HKDFExpand(hashes.SHA256(), 32, b"mail/1 post").derive(prk)
    header = b"CMP1" + struct.pack(">HH", 0, len(ENVELOPE)) + box + CLAIMS_DIGEST + hpke_output
    public = header + struct.pack(">I", SIZE + 16) + ENVELOPE
    signer = ed25519.Ed25519PrivateKey.from_private_bytes(SIGNING_SEED)

    def signed(fields: bytes, content: bytes = BODY) -> bytes:
        body = b"mail/1 post" + SUITE + sha(reply_key) + sha(public) + fields + sha(content)
        return b"conclave/1 mail\0" + CLAIMS_DIGEST + body

    def made(fields: bytes, *, signature: bytes = b"", padding: bytes = b"", content: bytes = BODY) -> bytes:
        plain = fields + (signature or signer.sign(signed(fields, content))) + content + padding
        return public + AESGCM(key).encrypt(bytes(12), plain.ljust(SIZE, b"\0"), public)

    good = made(inside())
    inputs = {
        "xwing_seed": XWING_SEED,
        "mlkem_seed": MLKEM_SEED,
        "x25519_private": X25519_PRIVATE,
        "reply_key": reply_key,
        "signing_key": signer.public_key().public_bytes_raw(),
        "identity": IDENTITY,
        "claims_digest": CLAIMS_DIGEST,
        "secret": SECRET,
        "sealed": hpke_output,
    }
    values = {"box": box, "k_post": key, "signed": signed(inside()), "topic": TOPIC, "envelope": ENVELOPE, "body": BODY}
    numbers = {"number": NUMBER.to_bytes(8, "big"), "acknowledged": ACKNOWLEDGED.to_bytes(8, "big")}
    seed = {"signing_seed": SIGNING_SEED}

    def bad(name: str, comment: str, expect: str, data: bytes) -> dict[str, Any]:
        return {"id": f"post/{name}", "spec": "MAIL-30", "comment": comment, "expect": expect, **inputs, "mail": data}

    of_log = inside(kind=1, size=len(CONTEXT + BODY))
    signature = signer.sign(signed(of_log, CONTEXT + BODY))
    other_context = made(of_log, signature=signature, content=bytes(72) + BODY)
    address = b"CMA1" + IDENTITY + reply_key + bytes((len(TOPIC),)) + TOPIC
    return [
        {
            "id": "post/posted",
            "spec": "MAIL-30",
            "comment": "A posted mail.",
            "expect": "ok",
            **inputs,
            **seed,
            **values,
            **numbers,
            "address": address,
            "mail": good,
        },
        {
            "id": "post/log",
            "spec": "MAIL-70",
            "comment": "Posted by an enclave with a log: a state context before the body.",
            "expect": "ok",
            **inputs,
            **seed,
            **values,
            **numbers,
            "signed": signed(of_log, CONTEXT + BODY),
            "context": CONTEXT,
            "address": address,
            "mail": made(of_log, content=CONTEXT + BODY),
        },
        bad("log-context", "Another context than was signed.", "signature", other_context),
        bad(
            "log-short",
            "Of an enclave with a log, and too short for a context.",
            "format",
            made(inside(kind=1, size=71)),
        ),
        bad("kind-2", "A kind that there is not.", "format", made(inside(kind=2))),
        bad("flipped-tag", "Last bit changed.", "decryption", good[:-1] + bytes([good[-1] ^ 1])),
        bad("flipped-envelope", "Envelope changed.", "decryption", good.replace(ENVELOPE, b"lot 8")),
        bad("flipped-digest", "Another sender named.", "decryption", good[:30] + b"\0" + good[31:]),
        bad("other-box", "Another box id.", "decryption", good[:8] + bytes(16) + good[24:]),
        bad("truncated", "One byte missing.", "format", good[:-1]),
        bad("extended", "One byte more.", "format", good + b"\0"),
        bad("magic", "Another magic.", "format", b"CMP2" + good[4:]),
        bad("reserved", "A reserved field of the header set.", "format", good[:5] + b"\1" + good[6:]),
        bad("kind", "An unknown kind inside.", "format", made(inside(kind=1))),
        bad("zero", "A reserved field inside set.", "format", made(inside(zero=1))),
        bad("end", "The byte behind the topic set.", "format", made(inside(end=b"\1"))),
        bad("long", "A body that would end behind the mail.", "format", made(inside(size=SIZE))),
        bad("padding", "Padded with something else than zeros.", "format", made(inside(), padding=b"\1")),
        bad("recipient", "For another identity with this reply key.", "decryption", made(inside(identity=bytes(32)))),
        bad("signature", "Signed by another key.", "signature", made(inside(), signature=bytes(64))),
    ]


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for case in cases():
        text = {k: v.hex() if isinstance(v, bytes) else v for k, v in case.items()}
        path = target / f"{case['id'].partition('/')[2]}.json"
        path.write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    main()
