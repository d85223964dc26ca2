"""Makes the vectors of witnesses and rosters from spec/witness.md and spec/barrier.md, with an encoder of its own.

Nothing of `conclave` is imported. Every key and nonce is chosen, so the files are the same each time.

Usage: python vectors/witness/generate.py [DIRECTORY]
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

HERE = Path(__file__).parent
NONCE = bytes(range(32))


def pack(value: object) -> bytes:
    """MessagePack in its shortest form, for what these vectors need."""
    if value is None:
        return b"\xc0"
    if isinstance(value, int):
        if value < 128:
            return bytes((value,))
        size = next(n for n in (1, 2, 4, 8) if value < 256**n)
        return bytes((0xCB + size.bit_length(),)) + value.to_bytes(size, "big")
    if isinstance(value, str):
        assert len(value) < 32
        return bytes((0xA0 | len(value),)) + value.encode()
    if isinstance(value, bytes):
        return b"\xc4" + bytes((len(value),)) + value
    if isinstance(value, dict):
        return bytes((0x80 | len(value),)) + b"".join(pack(k) + pack(v) for k, v in value.items())
    assert isinstance(value, list)
    return bytes((0x90 | len(value),)) + b"".join(map(pack, value))


class Key:
    """An Ed25519 key from one number."""

    def __init__(self, number: int) -> None:
        self.seed = bytes([number]) * 32
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(self.seed)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, purpose: str, body: bytes) -> bytes:
        return self._key.sign(b"conclave/1 " + purpose.encode() + b"\0" + bytes(64) + body)


LOG, OTHER_LOG, WITNESS, OTHER = Key(1), Key(2), Key(3), Key(4)
LOG_ID = hashlib.sha256(b"conclave/1 log" + LOG.public).digest()
FIRST = {"version": 0, "boot": b"b" * 16, "digest": b"d" * 32}
LATER = {"version": 300, "boot": b"c" * 16, "digest": b"e" * 32}

Fields = dict[str, Any]


def step(previous: Fields | None, new: Fields, key: Key = LOG) -> Fields:
    return {"log_key": key.public, "previous": previous, "new": new}


def countersigned(key: Key, head: Fields = LATER, *, log_id: bytes = LOG_ID, purpose: str = "countersign") -> bytes:
    return key.sign(purpose, pack({"log_id": log_id, "head": head}))


def standing(of: Fields, *, signer: Key = LOG, witness: Key = WITNESS, **more: Any) -> Fields:
    signature = countersigned(witness, of["new"], log_id=hashlib.sha256(b"conclave/1 log" + of["log_key"]).digest())
    return {"step": of, "signature": signer.sign("anchor", pack(of)), "countersignature": signature} | more


def advance(of: Fields, *, signer: Key = LOG, signed: Fields | None = None, **more: Any) -> Fields:
    signature = signer.sign("anchor", pack(of if signed is None else signed))
    return {"version": 1, "step": of, "signature": signature, "nonce": NONCE} | more


def answer(
    of: Fields | None, *, key: Key = WITNESS, nonce: bytes = NONCE, log: Key = LOG, purpose: str = "head"
) -> Fields:
    return {"version": 1, "standing": of, "signature": key.sign(purpose, log.public + nonce + pack(of))}


def anchor(*signatures: tuple[str, bytes], **more: Any) -> Fields:
    given = [{"witness": name, "signature": signature} for name, signature in signatures]
    return {"log_id": LOG_ID, **LATER, "countersignatures": given} | more


def requests() -> dict[str, Fields]:
    """What enclaves say."""
    first, later = step(None, FIRST), step(FIRST, LATER)
    head = {"version": 1, "log_key": LOG.public, "nonce": NONCE}
    back = step(LATER, FIRST)
    last, beyond = (step(LATER, LATER | {"version": version}) for version in (2**63 - 1, 2**63))

    def case(kind: str, spec: str, comment: str, expect: str, data: bytes) -> Fields:
        return {"kind": kind, "spec": spec, "comment": comment, "expect": expect, "data": data}

    return {
        "head": case("head", "WIT-1", "Where does this log stand?", "ok", pack(head)),
        "head-version": case("head", "WIT-1", "Another version.", "format", pack(head | {"version": 2})),
        "head-nonce": case("head", "WIT-1", "A nonce of 31 bytes.", "format", pack(head | {"nonce": NONCE[1:]})),
        "head-more": case("head", "WIT-1", "A byte behind it.", "format", pack(head) + b"\0"),
        "head-order": case("head", "WIT-1", "Keys in another order.", "format", pack(dict(reversed(head.items())))),
        "advance-first": case("advance", "WIT-3", "The first step of a log.", "ok", pack(advance(first))),
        "advance-later": case("advance", "WIT-3", "From one state to a later one.", "ok", pack(advance(later))),
        "advance-back": case("advance", "WIT-3", "To an older version.", "format", pack(advance(back))),
        "advance-last": case("advance", "WIT-1", "To the last version there is.", "ok", pack(advance(last))),
        "advance-beyond": case("advance", "WIT-1", "To a version of 64 bits.", "format", pack(advance(beyond))),
        "advance-stranger": case(
            "advance", "WIT-3", "Signed by another log's key.", "signature", pack(advance(later, signer=OTHER_LOG))
        ),
        "advance-moved": case(
            "advance",
            "WIT-6",
            "The step from nothing was signed.",
            "signature",
            pack(advance(later, signed=step(None, LATER))),
        ),
        "advance-end": case(
            "advance", "WIT-6", "The step to another state was signed.", "signature", pack(advance(later, signed=first))
        ),
    }


def answers() -> dict[str, Fields]:
    """What witnesses say, to an enclave whose log's key and nonce are always the same."""
    later = step(FIRST, LATER)
    stranger = standing(step(None, FIRST, OTHER_LOG), signer=OTHER_LOG)

    def case(spec: str, comment: str, expect: str, fields: Fields, more: bytes = b"") -> Fields:
        asked = {"kind": "answer", "witness": WITNESS.public, "log_key": LOG.public, "nonce": NONCE}
        return {**asked, "spec": spec, "comment": comment, "expect": expect, "data": pack(fields) + more}

    good = answer(standing(later))
    return {
        "answer": case("WIT-2", "The log stands at a later state.", "ok", good),
        "answer-none": case("WIT-2", "The witness knows nothing of the log.", "ok", answer(None)),
        "answer-more": case("WIT-1", "A byte behind it.", "format", good, b"\0"),
        "answer-nonce": case("WIT-2", "To another request.", "signature", answer(standing(later), nonce=bytes(32))),
        "answer-witness": case("WIT-2", "Of another witness.", "signature", answer(standing(later), key=OTHER)),
        "answer-log": case(
            "WIT-2", "To a request of another log.", "signature", answer(standing(later), log=OTHER_LOG)
        ),
        "answer-purpose": case(
            "WIT-2", "Signed as a state is.", "signature", answer(standing(later), purpose="countersign")
        ),
        "answer-cleared": case("WIT-2", "The state was taken out.", "signature", good | {"standing": None}),
        "answer-other-step": case("WIT-2", "A genuine step of another log.", "signature", answer(stranger)),
        "answer-invented": case(
            "WIT-13", "A state that the log never signed.", "signature", answer(standing(later, signer=WITNESS))
        ),
        "answer-uncountersigned": case(
            "WIT-2", "A step that another witness took.", "signature", answer(standing(later, witness=OTHER))
        ),
    }


def anchors() -> dict[str, Fields]:
    """What clients verify: three witnesses, two of whom are needed, and version 300 at least."""
    keys = {"a": WITNESS, "b": OTHER, "c": Key(5)}
    good = {name: (name, countersigned(key)) for name, key in keys.items()}

    def case(spec: str, comment: str, expect: str, fields: Fields, more: bytes = b"") -> Fields:
        public = {name: key.public for name, key in keys.items()}
        asked = {"kind": "anchor", "keys": public, "quorum": 2, "log_id": LOG_ID, "version": 300}
        return {**asked, "spec": spec, "comment": comment, "expect": expect, "data": pack(fields) + more}

    b_signs = ("b", countersigned(OTHER, purpose="head"))
    return {
        "anchor": case("WIT-16", "Two of three.", "ok", anchor(good["a"], good["c"])),
        "anchor-all": case("WIT-16", "All three.", "ok", anchor(*good.values())),
        "anchor-few": case("WIT-16", "One of three.", "signature", anchor(good["a"])),
        "anchor-twice": case("WIT-16", "One of three, twice.", "signature", anchor(good["a"], good["a"])),
        "anchor-name": case(
            "WIT-16", "One of three, under two names.", "signature", anchor(good["a"], ("b", good["a"][1]))
        ),
        "anchor-purpose": case("WIT-16", "One of two signed as answers are.", "signature", anchor(good["a"], b_signs)),
        "anchor-state": case("WIT-16", "Another state.", "signature", anchor(good["a"], good["b"], version=301)),
        "anchor-log": case("WIT-16", "Another log.", "binding", anchor(good["a"], good["b"], log_id=bytes(32))),
        "anchor-short": case(
            "WIT-1", "A log id of 31 bytes.", "format", anchor(good["a"], good["b"], log_id=LOG_ID[1:])
        ),
        "anchor-beyond": case("WIT-1", "A version of 64 bits.", "format", anchor(good["a"], good["b"], version=2**63)),
        "anchor-cut": case(
            "WIT-1", "A signature of 63 bytes.", "format", anchor(good["a"], good["b"], ("c", good["c"][1][1:]))
        ),
        "anchor-old": case("WIT-16", "An older state.", "binding", anchor(good["a"], good["b"], version=299)),
        "anchor-more": case("WIT-16", "A byte behind it.", "format", anchor(good["a"], good["b"]), b"\0"),
    }


def rosters() -> dict[str, Fields]:
    members = [bytes([number]) * 32 for number in (9, 7, 8)]
    digest = hashlib.sha256(b"conclave/1 roster\0" + pack([2, sorted(members)])).digest()
    comment = "The digest of a roster, whatever the order of its members."
    given = {"kind": "roster", "spec": "BAR-1", "comment": comment, "expect": "ok"}
    return {"roster": {**given, "members": members, "quorum": 2, "digest": digest}}


def shown(value: object) -> object:
    """Bytes in hex, wherever they are."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: shown(item) for name, item in value.items()}
    return [shown(item) for item in value] if isinstance(value, list) else value


def main(place: Path) -> None:
    for name, case in {**requests(), **answers(), **anchors(), **rosters()}.items():
        (place / f"{name}.json").write_text(json.dumps({"id": f"witness/{name}", **shown(case)}, indent=1) + "\n")  # type: ignore[dict-item]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
