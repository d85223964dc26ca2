"""Makes the mail vectors from spec/mail.md with primitives alone.

An implementation of its own: nothing of `conclave` is imported, so agreement with
the package is agreement of two programs. The HPKE output cannot be fixed by
choosing keys (encapsulation is random), so `sealed.hex` keeps one, and opening it
with the key below is part of what the vectors show.

Usage: python vectors/mail/generate.py [DIRECTORY]
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
IDENTITY_SEED = bytes(range(32))
CLAIMS_DIGEST = bytes(range(64, 128))
SECRET = bytes(range(200, 232))
REPLY_SALT = bytes(range(32, 64))
TOPIC = b"records/2026"
ENVELOPE = b"ward 3"
BODY = b"what the operator must not see"
ANSWER = b"and what it answered"
LOG_ID = bytes(range(96, 128))
# Version, boot, digest, tag: only the log itself can tell a good one.
CONTEXT = struct.pack(">Q16s32s16s", 7, bytes(range(16)), bytes(range(32, 64)), bytes(range(16, 32)))
PROOF = bytes(range(64)) + b"a statement, as state.md has it"
NONE = 2**64 - 1


def keys() -> tuple[Any, bytes]:
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(MLKEM_SEED)
    dh = x25519.X25519PrivateKey.from_private_bytes(X25519_PRIVATE)
    public = kem.public_key().public_bytes_raw() + dh.public_key().public_bytes_raw()
    return hpke.MLKEM768X25519PrivateKey(kem, dh), public


def sealed() -> bytes:
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    private, _ = keys()
    info = b"mail/1 opening" + SUITE + CLAIMS_DIGEST
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


def expand(prk: bytes, info: bytes) -> bytes:
    return HKDFExpand(hashes.SHA256(), 32, info).derive(prk)


def padme(size: int) -> int:
    if size <= 256:
        return 256
    exponent = size.bit_length() - 1
    low = exponent - exponent.bit_length()
    mask = (1 << low) - 1
    return (size + mask) & ~mask


def header(direction: int, flags: int, session: bytes, counter: int, salt: bytes, size: int) -> bytes:
    return struct.pack(">4sBBH16sQ32sI", b"CML1", direction, flags, len(ENVELOPE), session, counter, salt, size)


def mail(direction: int, key: bytes, session: bytes, counter: int, salt: bytes, opening: bytes, plain: bytes) -> bytes:
    padded = plain.ljust(padme(len(plain)), b"\0")
    public = header(direction, 1 if opening else 0, session, counter, salt, len(padded) + 16) + opening + ENVELOPE
    return public + AESGCM(key).encrypt(struct.pack(">QI", counter, 0), padded, public)


def private(kind: int, flags: int, body: bytes, *numbers: int, zero: int = 0, state: bytes = b"") -> bytes:
    return struct.pack(">BBHIQQQQ", kind, flags, zero, len(body), *numbers) + state + body


def chunk(key: bytes, session: bytes, number: int, flags: int, content: bytes, *, named: int | None = None) -> bytes:
    head = struct.pack(">4sB3x16sQI", b"CMS1", 1, session, 5, number)
    plain = struct.pack(">B3xI", flags, len(content)) + content
    sealed = AESGCM(key).encrypt(head[24:], plain.ljust(padme(len(plain)), b"\0"), head)
    return head[:32] + struct.pack(">I", number if named is None else named) + sealed


def packed(*items: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(item)) + item for item in items)


def cases() -> list[dict[str, Any]]:
    hpke_output = sealed()
    session = hashlib.sha256(hpke_output).digest()[:16]
    prk = extract(hashlib.sha256(hpke_output + CLAIMS_DIGEST).digest(), SECRET)
    k_open, k_c2e = expand(prk, b"mail/1 record"), expand(prk, b"mail/1 c2e")
    k_e2c = expand(prk, b"mail/1 e2c" + REPLY_SALT)
    identity = ed25519.Ed25519PrivateKey.from_private_bytes(IDENTITY_SEED)
    _, public = keys()
    topic = bytes((len(TOPIC),)) + TOPIC.ljust(255, b"\0")
    records, openings = [], []
    for log in (bytes(33), b"\1" + LOG_ID):
        signed = b"conclave/1 opening\0" + CLAIMS_DIGEST + SUITE + hpke_output + session + topic + public + log
        records.append(identity.public_key().public_bytes_raw() + public + topic + log + identity.sign(signed))
        openings.append(hpke_output + AESGCM(k_open).encrypt(bytes(12), records[-1], b""))
    record, (opening, log_opening) = records[0], openings
    assert len(opening) == len(log_opening) == 2785

    request = mail(1, k_c2e, session, 0, bytes(32), opening, private(0, 0, BODY, 0, 0, 0, 0))
    second = mail(1, k_c2e, session, 1, bytes(32), b"", private(0, 0, BODY, 1, 1, 0, 0))
    reply = mail(2, k_e2c, session, 0, REPLY_SALT, b"", private(0, 1, ANSWER, 0, 1, 0, 1))
    inputs = {
        "xwing_seed": XWING_SEED,
        "mlkem_seed": MLKEM_SEED,
        "x25519_private": X25519_PRIVATE,
        "identity_seed": IDENTITY_SEED,
        "claims_digest": CLAIMS_DIGEST,
        "secret": SECRET,
        "sealed": hpke_output,
        "topic": TOPIC,
        "envelope": ENVELOPE,
    }
    values = {"session_id": session, "prk": prk, "k_open": k_open, "k_c2e": k_c2e, "k_e2c": k_e2c, "record": record}

    def case(name: str, comment: str, expect: str, spec: str, **more: bytes) -> dict[str, Any]:
        return {"id": f"mail/{name}", "spec": spec, "comment": comment, "expect": expect, **more}

    def bad(name: str, comment: str, expect: str, data: bytes, spec: str = "MAIL-4") -> dict[str, Any]:
        return case(name, comment, expect, spec, **inputs, mail=data)

    def part(name: str, comment: str, expect: str, spec: str, data: bytes) -> dict[str, Any]:
        return case(name, comment, expect, spec, **inputs, k_c2e=k_c2e, chunk=data, body=BODY)

    def echo(version: int) -> bytes:
        return CONTEXT + struct.pack(">Q", version)

    def of_log(name: str, comment: str, expect: str, spec: str, **more: bytes) -> dict[str, Any]:
        return case(name, comment, expect, spec, **inputs, log_id=LOG_ID, **{**values, "record": records[1]}, **more)

    def to_log(counter: int, plain: bytes, opened: bytes = log_opening) -> bytes:
        return mail(1, k_c2e, session, counter, bytes(32), opened, plain)

    def from_log(plain: bytes, counter: int = 0) -> bytes:
        return mail(2, k_e2c, session, counter, REPLY_SALT, b"", plain)

    log_reply = from_log(private(0, 1, ANSWER, 0, 1, 0, 1, state=echo(0)))
    wrong_padding = private(0, 0, BODY, 0, 0, 0, 0) + b"\1"
    return [
        case("request", "A mail with its opening.", "ok", "MAIL-5", **inputs, **values, mail=request, body=BODY),
        case(
            "second",
            "The next mail, its opening confirmed.",
            "ok",
            "MAIL-10",
            **inputs,
            **values,
            mail=second,
            body=BODY,
        ),
        case(
            "reply",
            "The enclave's last reply to sequence 0.",
            "ok",
            "MAIL-8",
            **inputs,
            **values,
            reply=reply,
            body=ANSWER,
        ),
        part("chunk", "The first chunk of an upload, one item.", "ok", "MAIL-24", chunk(k_c2e, session, 1, 2, BODY)),
        part(
            "chunk-renumbered",
            "The second chunk, called the first.",
            "decryption",
            "MAIL-21",
            chunk(k_c2e, session, 2, 2, BODY, named=1),
        ),
        part("chunk-flag", "Authentic, with an unknown flag.", "format", "MAIL-21", chunk(k_c2e, session, 1, 18, BODY)),
        part(
            "chunk-packed",
            "The first chunk of an upload, two items: one of two bytes, and what is left of the body.",
            "ok",
            "MAIL-24",
            chunk(k_c2e, session, 1, 10, packed(BODY[:2], BODY[2:])),
        ),
        part(
            "chunk-packed-cut",
            "Authentic, packed, with sizes that do not add up.",
            "format",
            "MAIL-24",
            chunk(k_c2e, session, 1, 10, packed(BODY[:2], BODY[2:])[:-1]),
        ),
        of_log(
            "log-request",
            "A first mail to an enclave with a log, without a context yet, that wants a statement.",
            "ok",
            "MAIL-58",
            mail=to_log(0, private(0, 4, BODY, 0, 0, 0, 0, state=bytes(72))),
            body=BODY,
            context=bytes(72),
        ),
        of_log(
            "log-reply",
            "The answer to it.",
            "ok",
            "MAIL-58",
            reply=log_reply,
            body=ANSWER,
            context=CONTEXT,
            echo=bytes(8),
        ),
        of_log(
            "log-second",
            "The next mail, which shows the context of that answer.",
            "ok",
            "MAIL-63",
            mail=to_log(1, private(0, 0, BODY, 1, 1, 0, 0, state=CONTEXT), b""),
            body=BODY,
            context=CONTEXT,
        ),
        of_log(
            "log-statement",
            "A statement beside the answer to sequence 0.",
            "ok",
            "MAIL-67",
            reply=from_log(private(12, 0, PROOF, NONE, 0, 0, 0, state=echo(0))),
            body=PROOF,
            context=CONTEXT,
            echo=bytes(8),
        ),
        of_log(
            "log-halted",
            "The enclave halted: in place of an answer to sequence 0.",
            "ok",
            "MAIL-60",
            reply=from_log(private(11, 1, PROOF, NONE, 0, 0, 0, state=bytes(80))),
            body=PROOF,
            context=bytes(72),
            echo=bytes(8),
        ),
        of_log(
            "log-bad-context",
            "The context of the mail with sequence 0 is not this log's.",
            "ok",
            "MAIL-59",
            reply=from_log(private(13, 1, b"", NONE, 0, 0, 0, state=bytes(80))),
            body=b"",
            context=bytes(72),
            echo=bytes(8),
        ),
        of_log(
            "log-halted-context",
            "Authentic: halted, and with a context.",
            "format",
            "MAIL-58",
            reply=from_log(private(11, 1, PROOF, NONE, 0, 0, 0, state=echo(0))),
        ),
        of_log(
            "log-no-context",
            "Authentic: an answer without a context.",
            "format",
            "MAIL-58",
            reply=from_log(private(0, 1, ANSWER, 0, 1, 0, 1, state=bytes(80))),
        ),
        of_log(
            "log-short",
            "Authentic, with a body that ends behind the mail once the context is counted.",
            "format",
            "MAIL-58",
            mail=to_log(0, private(0, 0, bytes(200), 0, 0, 0, 0)),
        ),
        of_log(
            "log-other",
            "The opening names no log.",
            "decryption",
            "MAIL-57",
            mail=to_log(0, private(0, 0, BODY, 0, 0, 0, 0), opening),
        ),
        bad(
            "log-unexpected",
            "To an enclave without a log, with an opening that names one.",
            "decryption",
            to_log(0, private(0, 0, BODY, 0, 0, 0, 0)),
            "MAIL-57",
        ),
        bad(
            "statement-flag",
            "Authentic, wants a statement where there is no log.",
            "format",
            mail(1, k_c2e, session, 0, bytes(32), opening, private(0, 4, BODY, 0, 0, 0, 0)),
            "MAIL-58",
        ),
        bad("flipped-tag", "Last bit changed.", "decryption", request[:-1] + bytes([request[-1] ^ 1])),
        bad("flipped-envelope", "Envelope changed.", "decryption", request.replace(ENVELOPE, b"ward 4")),
        bad("flipped-counter", "Another counter.", "decryption", request[:31] + b"\1" + request[32:]),
        bad("truncated", "One byte missing.", "format", request[:-1]),
        bad("extended", "One byte more.", "format", request + b"\0"),
        bad("magic", "Another magic.", "format", b"CML2" + request[4:], "MAIL-3"),
        bad("flag", "An unknown flag.", "format", request[:5] + b"\3" + request[6:], "MAIL-3"),
        bad("salt", "A reply salt in a mail to an enclave.", "format", request[:32] + b"\1" + request[33:], "MAIL-3"),
        bad(
            "padding",
            "Authentic, padded with something else than zeros.",
            "format",
            mail(1, k_c2e, session, 0, bytes(32), opening, wrong_padding),
            "MAIL-3",
        ),
        bad(
            "reserved",
            "Authentic, a reserved field of the private header set.",
            "format",
            mail(1, k_c2e, session, 0, bytes(32), opening, private(0, 0, BODY, 0, 0, 0, 0, zero=1)),
            "MAIL-3",
        ),
    ]


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for case in cases():
        text = {k: v.hex() if isinstance(v, bytes) else v for k, v in case.items()}
        path = target / f"{case['id'].partition('/')[2]}.json"
        path.write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    main()
