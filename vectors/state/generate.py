"""Makes the vectors of sealed state from spec/state.md with primitives and an encoder of its own.

Nothing of `conclave` is imported. Every salt, key and id is chosen, so the files are the same each time.

Usage: python vectors/state/generate.py [DIRECTORY]
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

HERE = Path(__file__).parent
BUNDLE = bytes(range(32, 64))
SEALING = bytes(range(200, 232))
TOKEN, ANCHOR = bytes(range(100, 132)), bytes(range(132, 164))
OTHER_ANCHOR = bytes(range(133, 165))
IDENTITY = bytes(range(160, 192))
SIGNING_SEED = bytes(range(10, 42))
CLAIMS_DIGEST = bytes(range(64, 128))
LEVEL = 3
MANIFEST, CHUNK, ENTRY, END, UNREADABLE = range(5)


def pack(value: object) -> bytes:
    """MessagePack in its shortest form, for what these vectors need."""
    if value is None:
        return b"\xc0"
    if isinstance(value, int):
        for size, first in ((1, 0xCC), (2, 0xCD), (4, 0xCE), (8, 0xCF)):
            if value < (128 if size == 1 else 0):
                return bytes((value,))
            if value < 256**size:
                return bytes((first,)) + value.to_bytes(size, "big")
    if isinstance(value, str):
        data = value.encode()
        return (bytes((0xA0 | len(data),)) if len(data) < 32 else b"\xd9" + bytes((len(data),))) + data
    if isinstance(value, bytes):
        small = len(value) < 256
        return (b"\xc4" + bytes((len(value),)) if small else b"\xc5" + struct.pack(">H", len(value))) + value
    if isinstance(value, dict):
        assert len(value) < 16
        return bytes((0x80 | len(value),)) + b"".join(pack(k) + pack(v) for k, v in value.items())
    assert isinstance(value, list | tuple)
    assert len(value) < 16
    return bytes((0x90 | len(value),)) + b"".join(map(pack, value))


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def log_id(anchor_seed: bytes) -> bytes:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(anchor_seed).public_key()
    return sha(b"conclave/1 log", key.public_bytes_raw())


def expand(key: bytes, label: bytes) -> bytes:
    return HKDFExpand(hashes.SHA256(), 32, label).derive(key)


def extract(salt: bytes, material: bytes) -> bytes:
    mac = HMAC(salt, hashes.SHA256())
    mac.update(material)
    return mac.finalize()


def padded(encoded: bytes, *, fill: bytes = b"\0", more: int = 0) -> bytes:
    size = 4 + len(encoded)
    target = 256
    if size > 256:
        exponent = size.bit_length() - 1
        step = 2 ** (exponent - exponent.bit_length())
        target = -(-size // step) * step
    return (struct.pack(">I", len(encoded)) + encoded).ljust(target + more, fill)


# Where no log is begun, its id is only named.
PLAIN_LOG = bytes(range(32))
LOG, OTHER_LOG = log_id(ANCHOR), log_id(OTHER_ANCHOR)


class Boot:
    """One boot: its key, its counter, its part of records."""

    def __init__(self, number: int, *, log: bytes = LOG, level: int = LEVEL, sealing: bytes = SEALING) -> None:
        self.log, self.level = log, level
        self.id = bytes((number,)) * 16
        self.key = bytes(range(64 * number, 64 * number + 32))
        self.salt = bytes(range(64 * number + 32, 64 * number + 64))
        self.record, self.snapshot = expand(self.key, b"state/1 record"), expand(self.key, b"state/1 snapshot")
        self.counter = 0
        aad = log + BUNDLE + struct.pack(">H", level) + self.id
        wrap = expand(extract(self.salt, sealing), b"state/1 wrap")
        self.wrapped = self.salt + AESGCM(wrap).encrypt(bytes(12), self.key, aad)
        self.part = aad[:66] + self.id + self.wrapped

    def take(self) -> int:
        self.counter += 1
        return self.counter - 1


class Chain:
    """A log as it is written: all records, and the digest."""

    def __init__(self, log: bytes = LOG) -> None:
        self.log, self.digest, self.version = log, bytes(32), -1
        self.entries: list[bytes] = []

    def copy(self) -> Chain:
        other = Chain(self.log)
        other.digest, other.version, other.entries = self.digest, self.version, list(self.entries)
        return other

    def add(self, boot: Boot, value: object, *, part: bytes = b"", plain: bytes = b"", version: int = -1) -> bytes:
        version = self.version + 1 if version < 0 else version
        counter, plain = boot.take(), plain or padded(pack(value))
        kind = 1 if part else 2
        head = struct.pack(">4sB3xQQI", b"CSR1", kind, version, counter, len(plain) + 16) + part
        sealed = AESGCM(boot.record).encrypt(struct.pack(">Q4x", counter), plain, self.log + self.digest + head)
        self.digest = sha(b"state/1", self.log, struct.pack(">Q", version), self.digest, head, sealed)
        self.version = version
        self.entries.append(head + sealed)
        return head + sealed

    def boot(self, boot: Boot, change: object = ((), (), (), 0), *, born: tuple[Any, Any] | None = None) -> bytes:
        anchor = ANCHOR if self.log == LOG else OTHER_ANCHOR
        keys = born or ((TOKEN, anchor) if self.version < 0 else (None, None))
        return self.add(boot, [change, *keys], part=boot.part)


def chunk(
    boot: Boot, index: int, version: int, value: object, *, snapshot: bytes = b"\x55" * 16, kind: int = 0
) -> bytes:
    plain, counter = padded(pack(value)), boot.take()
    part = boot.part if index == 0 else b""
    numbers = (kind or (1 if index == 0 else 2), snapshot, index, version, counter, len(plain) + 16)
    head = struct.pack(">4sB3x16sIQQI", b"CSS1", *numbers) + part
    return head + AESGCM(boot.snapshot).encrypt(struct.pack(">Q4x", counter), plain, boot.log + head)


def flip(data: bytes, at: int, bit: int = 1) -> bytes:
    at %= len(data)
    return data[:at] + bytes((data[at] ^ bit,)) + data[at + 1 :]


CHANGES: list[Any] = [
    [
        [["colour", b"red"], ["size", b"9"]],
        [[b"\1channel", b"x" * 300]],
        [[b"b" * 16, 4, sha(b"a mail")]],
        1_800_000_000,
    ],
    [[["size", None], ["shape", b"round"]], [[b"\2", b""]], [], 0],
    [[["colour", b"blue"], ["ünïcode", b"\0\xff"]], [[b"\2", None]], [], 1_800_000_060],
]
BOOTS_CHANGE: Any = [[["booted", b"twice"]], [], [], 0]


def written() -> tuple[Chain, Boot, Boot]:
    """Two boots: versions 0 to 3, and 4 to 5."""
    first, second, chain = Boot(1), Boot(2), Chain()
    chain.boot(first)
    for change in CHANGES:
        chain.add(first, change)
    chain.boot(second, BOOTS_CHANGE)
    chain.add(second, [[["after", b"all"]], [], [], 0])
    return chain, first, second


def table(*boots: tuple[Boot, int]) -> bytes:
    return b"".join(boot.id + struct.pack(">Q", first) for boot, first in boots)


DATA: list[Any] = [
    [{"after": b"all", "booted": b"twice"}, {}],
    [{"colour": b"blue", "shape": b"round", "ünïcode": b"\0\xff"}, {b"\1channel": b"x" * 300}],
]


def stored(entries: list[bytes], manifest: bytes = b"", chunks: tuple[bytes, ...] = ()) -> list[Any]:
    begun: list[Any] = [[MANIFEST, manifest]] if manifest else []
    return [*begun, *([CHUNK, c] for c in chunks), *([ENTRY, e] for e in entries), [END, b""]]


def snapshot(
    boot: Boot, chain: Chain, history: bytes, data: list[Any] | None = None, **options: Any
) -> tuple[bytes, tuple[bytes, ...]]:
    parts = DATA if data is None else data
    chunks = tuple(chunk(boot, index, chain.version, part) for index, part in enumerate(parts, 1))
    fields = {"count": len(parts), "digest": chain.digest, "history": history, "token": TOKEN, "anchor": ANCHOR}
    fields |= {"floor": 1_800_000_060, **options}
    return chunk(boot, 0, chain.version, list(fields.values())), chunks


def hexed(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {(k.hex() if isinstance(k, bytes) else k): hexed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [hexed(v) for v in value]
    return value


def parts() -> list[dict[str, Any]]:
    """Each construction by itself."""
    boot_key, previous = bytes(range(64, 96)), bytes(range(96, 128))
    chain, boot = Chain(PLAIN_LOG), Boot(1)
    boot.key, boot.counter = boot_key, 9
    boot.record = expand(boot_key, b"state/1 record")
    chain.digest, chain.version = previous, 6
    change = [[["colour", b"red"], ["size", None]], [], [], 0]
    entry = chain.add(boot, change)
    keys = {"boot_key": boot_key, "log_id": PLAIN_LOG, "previous": previous}
    record = {
        "id": "state/change",
        "spec": "STATE-1",
        "comment": "One change: colour becomes red, size goes.",
        "expect": "ok",
        **keys,
        "version": 7,
        "counter": 9,
        "k_record": boot.record,
        "k_snapshot": expand(boot_key, b"state/1 snapshot"),
        "encoded": pack(change),
        "plaintext": padded(pack(change)),
        "record": entry,
        "digest": chain.digest,
    }

    def bad(name: str, spec: str, comment: str, expect: str, data: bytes) -> dict[str, Any]:
        case = {"id": f"state/{name}", "spec": spec, "comment": comment, "expect": expect}
        return {**case, **keys, "record": data}

    def remade(encoded: bytes, **options: Any) -> bytes:
        other = Chain(PLAIN_LOG)
        other.digest, other.version = previous, 6
        return other.add(boot, None, plain=padded(encoded, **options))

    encoded = pack(change)
    wrapping = Boot(2, log=PLAIN_LOG)
    head = struct.pack(">Q", 7) + b"\1" * 16 + chain.digest
    k_context = expand(TOKEN, b"state/1 context key")
    label = b"state/1 context"

    def tag(key: bytes, *said: bytes) -> bytes:
        return hashlib.blake2b(b"".join(said), key=key, digest_size=16).digest()

    good = tag(k_context, label, PLAIN_LOG, IDENTITY, head)
    context = {"log_id": PLAIN_LOG, "identity": IDENTITY, "token_key": TOKEN}

    def presented(name: str, comment: str, expect: str, data: bytes) -> dict[str, Any]:
        case = {"id": f"state/context-{name}", "spec": "STATE-20", "comment": comment, "expect": expect}
        return {**case, **context, "context": data}

    signer = ed25519.Ed25519PrivateKey.from_private_bytes(SIGNING_SEED)

    def statement(name: str, comment: str, expect: str, fields: dict[str, Any], **options: bytes) -> dict[str, Any]:
        said = options.get("said") or pack(fields)
        purpose = options.get("purpose", b"state")
        signature = signer.sign(b"conclave/1 " + purpose + b"\0" + CLAIMS_DIGEST + said)
        return {
            "id": f"state/statement{name and '-'}{name}",
            "spec": "STATE-26" if expect != "format" else "STATE-25",
            "comment": comment,
            "expect": expect,
            "signing_key": signer.public_key().public_bytes_raw(),
            "claims_digest": CLAIMS_DIGEST,
            "statement": said,
            "signature": signature,
        }

    plain_statement: dict[str, Any] = {"version": 1, "log_id": PLAIN_LOG, "state_version": 7, "boot": b"\1" * 16}
    plain_statement |= {"digest": chain.digest, "refused_version": None, "refused_boot": None, "refused_digest": None}
    refusal = {**plain_statement, "refused_version": 9, "refused_boot": b"\2" * 16, "refused_digest": bytes(32)}
    return [
        record,
        bad("record-magic", "STATE-6", "Another magic.", "format", b"CSR2" + entry[4:]),
        bad("record-kind", "STATE-6", "An unknown kind.", "format", flip(entry, 4, 1)),
        bad("record-reserved", "STATE-6", "A reserved byte set.", "format", flip(entry, 6)),
        bad("record-short", "STATE-6", "One byte missing.", "format", entry[:-1]),
        bad("record-long", "STATE-6", "One byte more.", "format", entry + b"\0"),
        bad("record-tag", "STATE-35", "Last bit changed.", "decryption", flip(entry, -1)),
        bad("record-version", "STATE-35", "Another version.", "decryption", flip(entry, 15)),
        bad("record-counter", "STATE-35", "Another counter.", "decryption", flip(entry, 23)),
        bad("record-fill", "STATE-4", "Padded with ones.", "format", remade(encoded, fill=b"\1")),
        bad("record-padding", "STATE-4", "One byte of padding more.", "format", remade(encoded, more=1)),
        bad("record-size", "STATE-4", "A size beyond the end.", "format", remade(b"", fill=b"\xff")),
        bad("record-form", "STATE-5", "0 in two bytes.", "format", remade(encoded[:-1] + b"\xcc\0")),
        bad("record-more", "STATE-5", "A field more.", "format", remade(pack([*change, None]))),
        bad("record-type", "STATE-5", "Text for bytes.", "format", remade(pack([[["a", "b"]], [], [], 0]))),
        {
            "id": "state/wrapped",
            "spec": "STATE-3",
            "comment": "A boot key under a sealing key, and all 162 bytes.",
            "expect": "ok",
            "sealing_key": SEALING,
            "log_id": PLAIN_LOG,
            "bundle_id": BUNDLE,
            "level": LEVEL,
            "boot": wrapping.id,
            "boot_key": wrapping.key,
            "salt": wrapping.salt,
            "k_wrap": expand(extract(wrapping.salt, SEALING), b"state/1 wrap"),
            "wrapped": wrapping.wrapped,
            "part": wrapping.part,
        },
        {
            **presented("", "", "ok", head + good),
            "id": "state/context",
            "comment": "A context.",
            "k_context": k_context,
        },
        presented("none", "None yet.", "none", bytes(72)),
        presented("tag", "Last bit changed.", "context", flip(head + good, -1)),
        presented("later", "Another version.", "context", flip(head + good, 7)),
        presented("short", "One byte missing.", "context", (head + good)[:-1]),
        presented("client", "Another client's.", "context", head + tag(k_context, label, PLAIN_LOG, bytes(32), head)),
        presented("log", "Another log's.", "context", head + tag(k_context, label, OTHER_LOG, IDENTITY, head)),
        presented("label", "Made for another use.", "context", head + tag(k_context, b"", PLAIN_LOG, IDENTITY, head)),
        {
            "id": "state/mark",
            "spec": "STATE-20",
            "comment": "A mark of a request.",
            "expect": "ok",
            "token_key": TOKEN,
            "k_mark": expand(TOKEN, b"state/1 mark key"),
            "marked": b"what a client asked",
            "mark": tag(expand(TOKEN, b"state/1 mark key"), b"what a client asked"),
        },
        statement("", "What the newest version is.", "ok", plain_statement),
        statement("refusing", "A context that is not in the history.", "ok", refusal),
        statement("purpose", "Signed under another purpose.", "signature", plain_statement, purpose=b"app"),
        statement("half", "Names two parts of three.", "format", {**refusal, "refused_digest": None}),
        statement("version-2", "Of another version.", "format", {**plain_statement, "version": 2}),
        statement("log-id", "A log id of 31 bytes.", "format", {**plain_statement, "log_id": PLAIN_LOG[1:]}),
        statement("boot", "A boot of 17 bytes.", "format", {**plain_statement, "boot": b"\1" * 17}),
        statement("digest", "A digest of 33 bytes.", "format", {**refusal, "refused_digest": bytes(33)}),
        statement("more", "Bytes behind.", "format", {}, said=pack(plain_statement) + b"\0"),
        statement("form", "1 in two bytes.", "format", {}, said=pack(plain_statement).replace(b"\1", b"\xcc\1", 1)),
    ]


def logs() -> list[dict[str, Any]]:
    """Whole stores."""
    chain, first, second = written()
    zero, one, two, three, four, five = chain.entries
    history = table((first, 0), (second, 4))
    result = {"version": 5, "digest": chain.digest, "floor": 1_800_000_060, "history": history}
    result |= {"map": DATA[0][0] | DATA[1][0], "rows": DATA[1][1], "token_key": TOKEN, "anchor_seed": ANCHOR}
    keys = {"sealing_key": SEALING, "level": LEVEL, "log_id": LOG}
    made: list[dict[str, Any]] = []

    def log(name: str, spec: str, comment: str, expect: str, given: list[Any], **more: Any) -> None:
        case = {"id": f"state/log-{name}", "spec": spec, "comment": comment, "expect": expect}
        made.append({**case, **keys, **more, "stored": given})

    log("records", "STATE-30", "Two boots, records only.", "ok", stored(chain.entries), **result)
    log("empty", "STATE-30", "Nothing: a new log.", "new", [[END, b""]])

    # A snapshot that the first boot made at version 2, before the second began.
    early, first2 = Chain(), Boot(1)
    early.boot(first2)
    early.add(first2, CHANGES[0])
    early.add(first2, CHANGES[1])
    at_2: list[Any] = [
        [{"colour": b"red", "shape": b"round"}, {b"\1channel": b"x" * 300}],
        [{}, {b"\2": b""}],
    ]
    first.counter = 20
    old = snapshot(first, early, table((first, 0)), at_2, floor=1_800_000_000)
    log(
        "snapshot-early",
        "STATE-10",
        "Of version 2, records after it.",
        "ok",
        stored([three, four, five], *old),
        **result,
    )
    new = snapshot(second, chain, history)
    manifest, (chunk_1, chunk_2) = new
    log("snapshot", "STATE-10", "A snapshot, and nothing after it.", "ok", stored([], *new), **result)
    more = chain.copy()
    added = more.add(second, [[["after", None]], [], [], 0])
    after = {
        **result,
        "version": 6,
        "digest": more.digest,
        "map": {k: v for k, v in result["map"].items() if k != "after"},
    }
    log("snapshot-and-more", "STATE-10", "A snapshot, and a record.", "ok", stored([added], *new), **after)

    def refused(name: str, spec: str, comment: str, given: list[Any], expect: str = "state", **more: Any) -> None:
        log(name, spec, comment, expect, given, **more)

    def entries(*given: bytes) -> list[Any]:
        return stored(list(given))

    refused("no-end", "STATE-36", "The end is missing.", stored(chain.entries)[:-1])
    refused("nothing", "STATE-36", "Not even an end.", [])
    refused("unreadable", "STATE-36", "The host cannot read its store.", [[UNREADABLE, b"EIO"]])
    refused("unreadable-late", "STATE-36", "It fails in the middle.", [[ENTRY, zero], [UNREADABLE, b""]])
    refused("unknown", "STATE-30", "Something of an unknown kind.", [[5, zero], [END, b""]])
    refused("end-says", "STATE-30", "An end with contents.", [*stored(chain.entries)[:-1], [END, b"\0"]])
    refused("beginning", "STATE-34", "The first record is missing.", entries(*chain.entries[1:]))
    refused("gap", "STATE-34", "A record is missing.", entries(zero, one, three))
    refused("repeated", "STATE-34", "A record twice.", entries(zero, one, one, two))
    refused("swapped", "STATE-34", "Two records swapped.", entries(zero, two, one))
    refused("renumbered", "STATE-35", "A gap hidden by a number.", entries(zero, one, flip(three, 15, 1)))
    refused("boot-twice", "STATE-34", "The first record again at the end.", entries(zero, one, zero))
    refused("chunk-first", "STATE-30", "A chunk without its manifest.", [[CHUNK, chunk_1], [END, b""]])
    refused("chunk-late", "STATE-30", "A chunk among the records.", [[ENTRY, zero], [CHUNK, chunk_1], [END, b""]])
    refused(
        "manifest-late", "STATE-30", "A manifest among the records.", [[ENTRY, zero], [MANIFEST, manifest], [END, b""]]
    )
    refused("manifest-twice", "STATE-30", "Two snapshots.", [*stored([], *new)[:-1], *stored([], *new)])
    refused("change-bit", "STATE-35", "A bit of a change.", entries(zero, flip(one, 60), two))
    refused("last-bit", "STATE-35", "The last bit of the last record.", entries(*chain.entries[:-1], flip(five, -1)))
    refused("cut", "STATE-35", "The last record cut.", entries(*chain.entries[:-1], five[:-1]))
    refused("longer", "STATE-35", "A byte behind the last record.", entries(*chain.entries[:-1], five + b"\0"))
    refused("hollow", "STATE-35", "An empty record.", entries(zero, b""))
    refused("boot-kind", "STATE-35", "A boot record called a change.", entries(zero[:4] + b"\2" + zero[5:], one))
    refused("stranger", "STATE-30", "Something else in place of a record.", entries(b"\x89PNG\r\n\x1a\n" + bytes(300)))
    refused(
        "other-boot-key", "STATE-35", "A later boot key changed.", entries(zero, one, two, three, flip(four, 189), five)
    )
    refused(
        "other-boot-id", "STATE-35", "A later boot id changed.", entries(zero, one, two, three, flip(four, 94), five)
    )

    # Another log of the same enclave, and another history of this one.
    other, other_boot = Chain(OTHER_LOG), Boot(3, log=OTHER_LOG)
    other.boot(other_boot)
    other.add(other_boot, CHANGES[0])
    refused("other-log", "STATE-35", "A record of another log.", entries(zero, other.entries[1]))
    other_late = chain.copy()
    other_late.log = OTHER_LOG
    other_late.boot(Boot(3, log=OTHER_LOG))
    refused("other-log-boot", "STATE-35", "A boot record of another log.", entries(*other_late.entries))
    fork, forked = Chain(), Boot(3)
    fork.entries, fork.digest, fork.version = [zero], sha(b"state/1", LOG, bytes(8), bytes(32), zero), 0
    fork.boot(forked)
    fork.add(forked, CHANGES[0])
    fork.boot(Boot(0))
    refused("other-history", "STATE-35", "A record after another history.", entries(zero, one, fork.entries[2]))
    refused("other-boot", "STATE-35", "A boot record after another history.", entries(zero, one, two, fork.entries[3]))

    # Keys that do not fit.
    refused(
        "wrong-key", "STATE-31", "Another sealing key.", entries(*chain.entries), "wrong-key", sealing_key=bytes(32)
    )
    refused(
        "wrong-key-manifest", "STATE-31", "The same, a snapshot.", stored([], *new), "wrong-key", sealing_key=bytes(32)
    )
    refused("first-key", "STATE-31", "The first boot key changed.", entries(flip(zero, 189), one), "wrong-key")
    refused("first-log", "STATE-31", "Another log id in the first record.", entries(flip(zero, 28), one), "wrong-key")
    refused(
        "first-level", "STATE-31", "A lower level in the first record.", entries(flip(zero, 93, 1), one), "wrong-key"
    )
    refused("higher-level", "STATE-32", "Of a higher level.", entries(*chain.entries), "wrong-key", level=2)
    higher = chain.copy()
    higher.boot(Boot(3, level=4))
    refused("higher-later", "STATE-32", "A later boot of a higher level.", entries(*higher.entries), "wrong-key")
    log("newer", "STATE-33", "Read by a higher level.", "ok", stored(chain.entries), **{**result, "level": 9})
    lower = chain.copy()
    lower.boot(Boot(3, level=2))
    refused("lower-level", "STATE-33", "A later boot of a lower level.", entries(*lower.entries))

    # Authentic, and not what this version writes.
    def begun(value: object = None, *, born: tuple[Any, Any] | None = None, as_change: bool = False) -> list[Any]:
        boot, made = Boot(1), Chain()
        if as_change:
            made.add(boot, [[], [], [], 0])
        elif born:
            made.boot(boot, born=born)
        else:
            made.boot(boot)
            made.add(boot, value)
        return stored(made.entries)

    refused("no-boot", "STATE-34", "A change as the first record.", begun(as_change=True))
    refused("no-token", "STATE-8", "The first record without a token key.", begun(born=(None, ANCHOR)))
    refused("short-token", "STATE-8", "A token key of 31 bytes.", begun(born=(TOKEN[1:], ANCHOR)))
    refused("no-anchor", "STATE-8", "The first record without an anchor seed.", begun(born=(TOKEN, None)))
    refused(
        "other-anchor", "STATE-8", "An anchor seed that the log id does not name.", begun(born=(TOKEN, OTHER_ANCHOR))
    )
    later = chain.copy()
    later.boot(Boot(3), born=(TOKEN, ANCHOR))
    refused("born-twice", "STATE-8", "Later keys.", entries(*later.entries))
    refused("field-more", "STATE-5", "A change with a field more.", begun([[], [], [], 0, 0]))
    refused("negative", "STATE-5", "Text for a number.", begun([[], [], [], "0"]))

    # Snapshots.
    def with_snapshot(data: list[Any] | None = None, *, table_of: bytes = history, **options: Any) -> list[Any]:
        return stored([], *snapshot(second, chain, table_of, data, **options))

    refused("chunk-missing", "STATE-35", "A chunk is missing.", stored([], manifest, (chunk_1,)))
    refused("chunks-swapped", "STATE-14", "Two chunks swapped.", stored([], manifest, (chunk_2, chunk_1)))
    refused("chunk-twice", "STATE-14", "A chunk twice.", stored([], manifest, (chunk_1, chunk_1)))
    refused("chunk-more", "STATE-30", "A chunk more.", stored([], manifest, (chunk_1, chunk_2, chunk_2)))
    refused("chunk-bit", "STATE-35", "A bit of a chunk.", stored([], manifest, (chunk_1, flip(chunk_2, 90))))
    refused("chunk-index", "STATE-14", "An index changed.", stored([], manifest, (chunk_1, flip(chunk_1, 27, 3))))
    other_id = chunk(second, 1, 5, DATA[0], snapshot=b"\x66" * 16)
    refused("chunk-of-other", "STATE-14", "A chunk of another snapshot.", stored([], manifest, (other_id, chunk_2)))
    renamed = other_id[:8] + b"\x55" * 16 + other_id[24:]
    refused("chunk-renamed", "STATE-14", "The same, renamed.", stored([], manifest, (renamed, chunk_2)))
    refused(
        "chunk-version",
        "STATE-14",
        "Of another version.",
        stored([], manifest, (chunk(second, 1, 4, DATA[0]), chunk_2)),
    )
    refused("chunk-cut", "STATE-13", "A chunk cut.", stored([], manifest, (chunk_1, chunk_2[:-1])))
    refused("chunk-magic", "STATE-13", "Another magic.", stored([], manifest, (b"CSS2" + chunk_1[4:], chunk_2)))
    refused("chunk-kind", "STATE-13", "An unknown kind.", stored([], manifest, (flip(chunk_1, 4, 1), chunk_2)))
    refused("chunk-reserved", "STATE-13", "A reserved byte set.", stored([], manifest, (flip(chunk_1, 5), chunk_2)))
    refused("chunk-as-manifest", "STATE-13", "A chunk as manifest.", stored([], chunk_1, (chunk_1, chunk_2)))
    refused("record-as-manifest", "STATE-13", "A record as manifest.", stored([], zero))
    refused("manifest-bit", "STATE-35", "A bit of a manifest.", stored([], flip(manifest, 230), (chunk_1, chunk_2)))
    refused("manifest-version", "STATE-35", "Another version.", stored([], flip(manifest, 35, 1), (chunk_1, chunk_2)))
    refused("manifest-cut", "STATE-13", "A manifest cut.", stored([], manifest[:-1], (chunk_1, chunk_2)))
    refused("snapshot-gap", "STATE-34", "A gap behind a snapshot.", stored([five], *old))
    refused("snapshot-before", "STATE-34", "A record that is in the snapshot.", stored([two, three], *old))
    refused(
        "snapshot-other",
        "STATE-35",
        "Another history behind it.",
        stored([fork.entries[3]], *snapshot(Boot(0), early, table((Boot(0), 0)), at_2)),
    )
    refused("count-less", "STATE-30", "A count that is too small.", with_snapshot(count=1))
    refused("count-more", "STATE-30", "A count that is too large.", with_snapshot(count=3))
    refused("count-huge", "STATE-37", "A count beyond all chunks.", with_snapshot(count=2**63))
    refused("keys-order", "STATE-11", "Keys out of order.", with_snapshot([DATA[1], DATA[0]]))
    refused("key-twice", "STATE-11", "A key in two chunks.", with_snapshot([DATA[0], DATA[0]]))
    refused("row-twice", "STATE-11", "A row in two chunks.", with_snapshot([DATA[1], [{}, DATA[1][1]]]))
    refused("table-empty", "STATE-24", "No boots.", with_snapshot(table_of=b""))
    refused("table-cut", "STATE-24", "A table of boots cut.", with_snapshot(table_of=history[:-1]))
    refused(
        "table-first", "STATE-24", "It begins with version 1.", with_snapshot(table_of=table((first, 1), (second, 4)))
    )
    refused("table-order", "STATE-24", "It falls.", with_snapshot(table_of=table((first, 0), (second, 4), (first, 4))))
    refused("table-boot", "STATE-24", "Its last boot is not the manifest's.", with_snapshot(table_of=table((first, 0))))
    refused("manifest-token", "STATE-8", "No token key.", with_snapshot(token=b""))
    refused("manifest-anchor", "STATE-8", "An anchor seed of 31 bytes.", with_snapshot(anchor=ANCHOR[1:]))
    refused(
        "manifest-other", "STATE-8", "An anchor seed that the id does not name.", with_snapshot(anchor=OTHER_ANCHOR)
    )
    refused("manifest-digest", "STATE-5", "A digest of 31 bytes.", with_snapshot(digest=chain.digest[1:]))
    return made


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for case in (*parts(), *logs()):
        path = target / f"{case['id'].partition('/')[2]}.json"
        path.write_text(json.dumps(hexed(case), indent=2) + "\n")


if __name__ == "__main__":
    main()
