"""Nitro: a document that carries its certificates, one thing changed at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from case import Case, Cases, Change, do, window

from conclave.testing.evidence import AwsDraft, AwsPki
from conclave.testing.evidence.aws import Pairs, Raw, cbor
from conclave.testing.evidence.draft import flip

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
BAD = "document-format"
GONE = object()


def said(**members: Any) -> Change:
    """Other members of the payload; GONE takes one away."""

    def change(d: AwsDraft) -> None:
        d.payload.update(members)
        d.payload = {k: v for k, v in d.payload.items() if v is not GONE}

    return change


def field(**values: Any) -> Change:
    return lambda d: [setattr(d, name, value) for name, value in values.items()]


def pcrs(change: Callable[[dict[Any, Any]], object]) -> Change:
    return lambda d: change(d.payload["pcrs"])


def certificate(name: str, **fields: Any) -> Change:
    return lambda d: d.certificates[name].set(**fields)


def critical(name: str) -> Change:
    return lambda d: d.certificates[name].extensions.update({"1.3.6.1.4.1.99999.1": (True, b"\5\0")})


def signer(**keys: str) -> Change:
    return lambda d: d.signers.update(keys)


def pin(name: str) -> Change:
    return lambda d: setattr(d, "pinned", name)


def bundle(*names: str) -> Change:
    return lambda d: d.cabundle.__setitem__(slice(None), names)


def signature(change: Callable[[bytes], bytes]) -> Change:
    return lambda d: d.at_signature("document", change)


def numbers(change: Callable[[int, int], tuple[int, int]]) -> Change:
    """Another r and s."""

    def swap(data: bytes) -> bytes:
        return b"".join(
            n.to_bytes(48, "big") for n in change(int.from_bytes(data[:48], "big"), int.from_bytes(data[48:], "big"))
        )

    return signature(swap)


def payload(change: Callable[[bytes], bytes]) -> Change:
    return lambda d: d.before_signing("document", change)


def document(change: Callable[[bytes], bytes]) -> Change:
    return lambda d: d.after_signing("document", change)


def own_root(d: AwsDraft) -> None:
    """A root of the same name and another key, and the certificate below it."""
    d.certificates["root"].key = "stranger"
    d.signers.update({"root": "stranger", "regional": "stranger"})


def leaf_as_authority(d: AwsDraft) -> None:
    """An enclave's certificate signs that of another."""
    below = AwsPki.create(now=NOW).certificates()["leaf"]
    d.certificates["fake"] = below.set(key="stranger", issuer=d.certificates["leaf"].subject, subject={"CN": "fake"})
    d.signers.update({"fake": "leaf", "document": "stranger"})
    d.cabundle.append("leaf")
    d.payload["certificate"] = d.certificate("fake")


def too_deep(name: str, length: int | None) -> Change:
    return certificate(name, path_length=length)


def envelopes(c: Cases) -> None:
    c.refuse(BAD, "NITRO-1", "empty", "No bytes.", document(lambda _: b""))
    c.refuse(BAD, "NITRO-1", "short", "The last byte is missing.", document(lambda b: b[:-1]))
    c.refuse(BAD, "NITRO-1", "long", "A byte after the document.", field(trailing=b"\0"))
    c.refuse(BAD, "NITRO-1", "twice", "The document twice.", document(lambda b: b + b))
    c.refuse(BAD, "NITRO-1", "too-large", "One byte above 17408.", document(lambda b: oversized(b, 17409)))
    c.refuse(BAD, "NITRO-1", "payload-trailing", "A byte after the payload's map.", payload(lambda b: b + b"\0"))
    c.refuse(BAD, "NITRO-1", "outer-indefinite", "The outer array leaves its length open.", document(opened))
    c.refuse(
        BAD,
        "NITRO-1",
        "payload-indefinite-string",
        "The payload comes in pieces.",
        document(lambda b: b.replace(split_payload(b), b"\x5f" + split_payload(b) + b"\xff")),
    )
    c.refuse(BAD, "NITRO-2", "tag-other", "Another tag.", document(lambda b: b"\xd1" + b))
    c.refuse(BAD, "NITRO-2", "tag-twice", "The tag twice.", document(lambda b: b"\xd2\xd2" + b))
    c.refuse(BAD, "NITRO-2", "tag-long", "The tag in two bytes.", document(lambda b: b"\xd8\x12" + b))
    c.refuse(BAD, "NITRO-2", "tag-self", "The tag that says: this is CBOR.", document(lambda b: b"\xd9\xd9\xf7" + b))
    for name, comment, value in (
        ("tag-in-payload", "A date by tag 0.", Raw(b"\xc0" + cbor("2026-06-01T12:00:00Z"))),
        ("tag-number", "A number by tag 2.", Raw(b"\xc2" + cbor(b"\x01"))),
        ("tag-shared", "A shared value.", Raw(b"\xd8\x1c" + cbor(b"x"))),
        ("tag-unknown", "A tag that nobody knows.", Raw(b"\xda\x00\x10\x00\x00" + cbor(b"x"))),
    ):
        c.refuse(BAD, "NITRO-2", name, comment, said(user_data=value))
    c.refuse(
        BAD,
        "NITRO-2",
        "key-twice",
        "A member twice.",
        payload(lambda b: bytes((b[0] + 1,)) + b[1:] + cbor("nonce") + cbor(None)),
    )
    c.refuse(
        BAD,
        "NITRO-2",
        "key-twice-other",
        "A member twice, the second time with another value.",
        payload(lambda b: bytes((b[0] + 1,)) + cbor("digest") + cbor("SHA256") + b[1:]),
    )
    c.refuse(
        BAD,
        "NITRO-2",
        "pcr-twice",
        "A register twice.",
        lambda d: d.payload.update(pcrs=Pairs((*d.payload["pcrs"].items(), (0, bytes(48))))),
    )
    c.refuse(
        BAD,
        "NITRO-2",
        "pcr-twice-long",
        "A register twice, once with a longer index.",
        lambda d: d.payload.update(pcrs=Pairs((*d.payload["pcrs"].items(), (Raw(b"\x18\x00"), bytes(48))))),
    )
    deep = b"\x81" * 1000 + b"\xf6"
    c.refuse(BAD, "NITRO-2", "deep", "A thousand arrays in one another.", said(user_data=Raw(deep)))
    c.refuse(BAD, "NITRO-2", "deep-3", "Three levels.", said(user_data=Raw(b"\x81\x81\xf6")))
    c.refuse(BAD, "NITRO-2", "deep-outer", "The document in another array.", document(lambda b: b"\x81" + b))
    for name, comment, raw in (
        ("length-string", "Bytes of 2^63.", b"\x5b\x7f" + b"\xff" * 7),
        ("length-array", "An array of 2^32.", b"\x9b\0\0\0\1\0\0\0\0"),
        ("length-map", "A map of 2^32.", b"\xbb\0\0\0\1\0\0\0\0"),
        ("text", "Text that is not UTF-8.", b"\x62\xff\xfe"),
        ("reserved", "A length of a kind that is not defined.", b"\x5c"),
        ("break", "An end without a beginning.", b"\xff"),
    ):
        c.refuse(BAD, "NITRO-2", f"cbor-{name}", comment, said(user_data=Raw(raw)))


def oversized(data: bytes, size: int) -> bytes:
    return data + bytes(size - len(data))


def opened(data: bytes) -> bytes:
    return b"\x9f" + data[1:] + b"\xff"


def split_payload(data: bytes) -> bytes:
    """The payload's item within a document, head included."""
    at = data.index(b"\xa0\x59") + 1
    return data[at : at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")]


def headers(c: Cases) -> None:
    for name, comment, change in (
        ("array-3", "Three parts.", document(lambda b: b"\x83" + b[1:-98])),
        ("array-5", "Five parts.", document(lambda b: b"\x85" + b[1:] + b"\xf6")),
        ("map", "A map instead of the array.", document(lambda b: b"\xa2" + b[1:])),
        ("text", "Text instead of the array.", document(lambda _: cbor("COSE_Sign1"))),
        ("number", "A number instead of the array.", document(lambda _: cbor(18))),
        ("detached", "The payload is elsewhere.", field(detached=True)),
        (
            "protected-map",
            "A protected header that is not encoded.",
            document(lambda b: b.replace(b"\x44\xa1", b"\xa1", 1)),
        ),
        ("unprotected-null", "No unprotected header.", field(unprotected=None)),
        ("unprotected-list", "An unprotected header that is a list.", field(unprotected=[])),
        ("unprotected", "An unprotected header that names a key.", field(unprotected={4: b"key"})),
        ("unprotected-algorithm", "An unprotected header that names the algorithm.", field(unprotected={1: -35})),
        ("signature-95", "A signature of 95 bytes.", signature(lambda s: s[:-1])),
        ("signature-97", "A signature of 97 bytes.", signature(lambda s: s + b"\0")),
        ("signature-empty-text", "A signature that is text.", document(lambda b: b[:-98] + cbor("x" * 96))),
        ("payload-empty", "An empty payload.", payload(lambda _: b"")),
        (
            "payload-padded",
            "A payload of more than 16384 bytes, of empty pieces.",
            said(user_data=Raw(b"\x5f" + b"\x40" * 13000 + b"\xff")),
        ),
        ("payload-large", "A payload of 16385 bytes.", payload(lambda b: oversized(b, 16385))),
    ):
        c.refuse(BAD, "NITRO-3", name, comment, change)
    for name, comment, protected in (
        ("es256", "ES256.", {1: -7}),
        ("es512", "ES512.", {1: -36}),
        ("none", "No algorithm.", {}),
        ("none-at-all", "An empty protected header.", b""),
        ("extra", "A key id beside the algorithm.", {1: -35, 4: b"key"}),
        ("critical", "A critical header that nobody knows.", {1: -35, 2: [99], 99: 1}),
        ("text", "The algorithm as text.", {1: "ES384"}),
        ("long", "The algorithm's number in a longer form.", bytes.fromhex("a101390022")),
        ("indefinite", "A protected header of open length.", bytes.fromhex("bf013822ff")),
        ("trailing", "A byte after the protected header.", bytes.fromhex("a101382200")),
        ("mac", "A MAC.", {1: 5}),
    ):
        c.refuse("document-algorithm", "NITRO-3", f"alg-{name}", comment, field(protected=protected))
    c.refuse(BAD, "NITRO-3", "payload-not-a-map", "The payload is an array.", payload(lambda _: cbor(["SHA384", 1, 2])))


def members(c: Cases) -> None:
    for name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"):
        label = name.replace("_", "-")
        c.refuse(BAD, "NITRO-4", f"{label}-missing", f"No {name}.", said(**{name: GONE}))
        c.refuse(BAD, "NITRO-4", f"{label}-null", f"{name} is null.", said(**{name: Raw(b"\xf6")}))
    for name, comment, change in (
        ("extra", "A member that nobody knows.", said(extra=1)),
        ("extra-number", "A member whose name is a number.", lambda d: d.payload.update({1: 1})),
        ("module-id-bytes", "module_id is bytes.", said(module_id=b"i-1")),
        ("module-id-empty", "module_id is empty.", said(module_id="")),
        ("module-id-long", "module_id of 257 characters.", said(module_id="i" * 257)),
        ("module-id-control", "A line end in module_id.", said(module_id="i-1\nPCR0")),
        ("module-id-unicode", "module_id outside ASCII.", said(module_id="\u0456-1")),
        ("digest-sha256", "SHA256.", said(digest="SHA256")),
        ("digest-sha512", "SHA512.", said(digest="SHA512")),
        ("digest-case", "The digest's name in lower case.", said(digest="sha384")),
        ("digest-bytes", "The digest's name as bytes.", said(digest=b"SHA384")),
        ("timestamp-zero", "A timestamp of zero.", said(timestamp=0)),
        ("timestamp-negative", "A timestamp below zero.", said(timestamp=-1)),
        ("timestamp-text", "A timestamp as text.", said(timestamp="1780315200000")),
        (
            "timestamp-float",
            "A timestamp with a fraction.",
            said(timestamp=Raw(b"\xfb\x42\x79\xe8\x20\x76\x80\x00\x00")),
        ),
        ("timestamp-bool", "A timestamp that is true.", said(timestamp=True)),
        ("certificate-empty", "An empty certificate.", said(certificate=b"")),
        ("certificate-large", "A certificate of 1025 bytes.", said(certificate=bytes(1025))),
        ("certificate-text", "A certificate as text.", said(certificate="x")),
        ("certificate-list", "A certificate in a list.", said(certificate=[b"x"])),
        ("cabundle-empty", "No certificates in the bundle.", said(cabundle=[])),
        ("cabundle-nine", "Nine certificates in the bundle.", bundle(*["root"] * 9)),
        ("cabundle-bytes", "A bundle that is no list.", lambda d: d.payload.update(cabundle=d.certificate("root"))),
        ("cabundle-map", "A bundle that is a map.", said(cabundle={0: b"x"})),
        ("cabundle-text", "Text in the bundle.", said(cabundle=["x"])),
        ("cabundle-member-empty", "An empty certificate in the bundle.", said(cabundle=[b""])),
        ("cabundle-member-large", "A certificate of 1025 bytes in the bundle.", said(cabundle=[bytes(1025)])),
    ):
        c.refuse(BAD, "NITRO-4", name, comment, change)
    for name, comment, change in (
        ("pcrs-list", "A list of registers.", said(pcrs=[bytes(48)] * 16)),
        ("pcrs-empty", "No registers.", said(pcrs={})),
        ("pcrs-33", "33 registers.", said(pcrs={i: bytes(48) for i in range(33)})),
        ("pcr-32", "Register 32.", pcrs(lambda p: p.update({32: bytes(48)}))),
        ("pcr-negative", "Register -1.", pcrs(lambda p: p.update({-1: bytes(48)}))),
        ("pcr-text", "A register by name.", pcrs(lambda p: p.update({"PCR0": bytes(48)}))),
        ("pcr-bool", "A register by truth.", pcrs(lambda p: (p.pop(1), p.update({Raw(b"\xf5"): bytes(48)})))),
        ("pcr-float", "A register by fraction.", pcrs(lambda p: p.update({Raw(b"\xf9\x4c\x00"): bytes(48)}))),
        ("pcr-32-bytes", "A register of 32 bytes.", pcrs(lambda p: p.update({3: bytes(32)}))),
        ("pcr-64-bytes", "A register of 64 bytes.", pcrs(lambda p: p.update({3: bytes(64)}))),
        ("pcr-47-bytes", "A register of 47 bytes.", pcrs(lambda p: p.update({3: bytes(47)}))),
        ("pcr-empty", "An empty register.", pcrs(lambda p: p.update({3: b""}))),
        ("pcr-hex", "A register in hex.", pcrs(lambda p: p.update({3: "00" * 24}))),
        ("pcr-null", "A register of nothing.", pcrs(lambda p: p.update({3: None}))),
        ("pcr-0-missing", "An enclave without register 0.", pcrs(lambda p: p.pop(0))),
        ("pcr-1-missing", "An enclave without register 1.", pcrs(lambda p: p.pop(1))),
        ("pcr-2-missing", "An enclave without register 2.", pcrs(lambda p: p.pop(2))),
        ("both-maps", "An enclave and an instance.", lambda d: d.payload.update(nitrotpm_pcrs=d.payload["pcrs"])),
        ("tpm-empty", "An instance without registers.", said(pcrs=GONE, nitrotpm_pcrs={})),
        ("tpm-33", "33 registers of an instance.", said(pcrs=GONE, nitrotpm_pcrs={i: bytes(48) for i in range(33)})),
        ("tpm-size", "A register of 32 bytes of an instance.", said(pcrs=GONE, nitrotpm_pcrs={4: bytes(32)})),
    ):
        c.refuse(BAD, "NITRO-5", name, comment, change)
    for name in ("public_key", "user_data", "nonce"):
        label = name.replace("_", "-")
        c.refuse(BAD, "NITRO-6", f"{label}-large", f"{name} of 1025 bytes.", said(**{name: bytes(1025)}))
        c.refuse(BAD, "NITRO-6", f"{label}-text", f"{name} is text.", said(**{name: "x"}))
        c.refuse(BAD, "NITRO-6", f"{label}-false", f"{name} is false.", said(**{name: False}))
        c.refuse(BAD, "NITRO-6", f"{label}-undefined", f"{name} is undefined.", said(**{name: Raw(b"\xf7")}))


def chains(c: Cases) -> None:
    bad = "document-chain"
    certificates = ("leaf", "instance", "zonal", "regional", "root")
    for name in certificates:
        c.refuse(
            bad,
            "NITRO-8",
            f"{name}-bit",
            f"A bit of the signature on the {name} certificate.",
            lambda d, n=name: d.at_signature(n, flip),
        )
        c.refuse(
            bad,
            "NITRO-8",
            f"{name}-critical",
            f"A critical extension that nobody knows, in the {name} certificate.",
            do(critical(name), *([pin("root")] if name == "root" else [])),
        )
        c.refuse(
            bad,
            "NITRO-8",
            f"{name}-cut",
            f"The {name} certificate is cut.",
            lambda d, n=name: d.after_signing(n, lambda b: b[:-1]),
        )
        if name != "root":
            c.refuse(
                bad,
                "NITRO-8",
                f"{name}-stranger",
                f"A stranger signed the {name} certificate.",
                signer(**{name: "stranger"}),
            )
            c.refuse(
                bad,
                "NITRO-8",
                f"{name}-issuer",
                f"The {name} certificate names another issuer.",
                certificate(name, issuer={"CN": "another"}),
            )
        if name != "leaf":
            pinned = [pin("root")] if name == "root" else []
            c.refuse(
                bad,
                "NITRO-8",
                f"{name}-no-authority",
                f"The {name} certificate is of no authority.",
                do(certificate(name, ca=False, path_length=None), *pinned),
            )
            c.refuse(
                bad,
                "NITRO-8",
                f"{name}-no-basic",
                f"The {name} certificate does not say whether it is of one.",
                do(certificate(name, ca=None), *pinned),
            )
            c.refuse(
                bad,
                "NITRO-8",
                f"{name}-usage",
                f"The {name} certificate's key is not for certificates.",
                do(certificate(name, usage=("digital_signature", "crl_sign")), *pinned),
            )
    for name, length in (("root", 2), ("regional", 1), ("zonal", 0)):
        c.refuse(
            bad,
            "NITRO-8",
            f"{name}-path-length",
            f"Below the {name} certificate is one authority too many.",
            do(too_deep(name, length), *([pin("root")] if name == "root" else [])),
        )
    for name, comment, change in (
        ("leaf-long", "A byte after the signing certificate.", lambda d: d.after_signing("leaf", lambda b: b + b"\0")),
        ("own-root", "A root of the same name, and the certificate below it.", own_root),
        ("leaf-as-authority", "An enclave's certificate signs another's.", leaf_as_authority),
        ("bundle-reversed", "The bundle begins with the instance.", bundle("instance", "zonal", "regional", "root")),
        (
            "bundle-swapped",
            "Two certificates of the bundle changed places.",
            bundle("root", "zonal", "regional", "instance"),
        ),
        ("bundle-without-root", "The bundle lacks the root.", bundle("regional", "zonal", "instance")),
        ("bundle-without-regional", "The bundle lacks one in the middle.", bundle("root", "zonal", "instance")),
        ("bundle-without-instance", "The bundle lacks the last.", bundle("root", "regional", "zonal")),
        ("bundle-root-only", "The bundle is the root.", bundle("root")),
        ("bundle-root-twice", "The root twice.", bundle("root", "root", "regional", "zonal", "instance")),
        ("bundle-instance-twice", "The last twice.", bundle("root", "regional", "zonal", "instance", "instance")),
        (
            "bundle-leaf",
            "The signing certificate in its own bundle.",
            bundle("root", "regional", "zonal", "instance", "leaf"),
        ),
        ("bundle-stranger", "A certificate that has nothing to do with it.", stranger_in_bundle),
        ("leaf-pinned", "The signing certificate itself is pinned.", pin("leaf")),
        ("regional-pinned", "A certificate in the middle is pinned: the bundle has one too many.", pin("regional")),
        ("leaf-byte", "A certificate of one byte.", said(certificate=b"\0")),
        ("leaf-garbage", "A certificate that is none.", said(certificate=b"\x30\x03\x02\x01\x01")),
        ("leaf-zeros", "A certificate of zeros, as emulators write it.", said(certificate=bytes(64))),
        ("root-garbage", "A certificate of zeros in the bundle.", zeros_in_bundle),
    ):
        c.refuse(bad, "NITRO-8", name, comment, change)
    for name, comment, change in (
        ("leaf-usage", "The signing key is for certificates only.", certificate("leaf", usage=("key_cert_sign",))),
        (
            "leaf-usage-agreement",
            "The signing key is not for signatures.",
            certificate("leaf", usage=("key_agreement",)),
        ),
        (
            "leaf-usage-none",
            "The signing certificate does not say what its key is for.",
            certificate("leaf", usage=None),
        ),
        (
            "leaf-authority",
            "The signing certificate is of an authority.",
            certificate("leaf", ca=True, usage=("digital_signature", "key_cert_sign")),
        ),
    ):
        c.refuse(bad, "NITRO-10", name, comment, change)
    for name in certificates:
        pinned = [pin("root")] if name == "root" else []
        c.refuse(
            "document-expired",
            "NITRO-9",
            f"{name}-expired",
            f"The {name} certificate expired a second ago.",
            do(certificate(name, not_after=NOW - SECOND), *pinned),
        )
        c.refuse(
            "document-expired",
            "NITRO-9",
            f"{name}-future",
            f"The {name} certificate is valid from the next second on.",
            do(certificate(name, not_before=NOW + SECOND), *pinned),
        )
    c.refuse(
        "document-expired", "NITRO-9", "later", "Three hours and a second later.", later=3 * 3600 * SECOND + SECOND
    )
    c.refuse("document-expired", "NITRO-9", "earlier", "A clock before the certificate was issued.", later=-4 * SECOND)


def stranger_in_bundle(d: AwsDraft) -> None:
    d.certificates["stranger"] = AwsPki.create(now=NOW).certificates()["zonal"].set(key="stranger", subject={"CN": "x"})
    d.signers["stranger"] = "regional"
    d.cabundle.insert(2, "stranger")


def zeros_in_bundle(d: AwsDraft) -> None:
    d.payload["cabundle"] = [bytes(64), *(d.certificate(name) for name in d.cabundle[1:])]


def signatures(c: Cases) -> None:
    bad = "document-signature"
    for name, comment, change in (
        ("r-bit", "One bit of r.", signature(lambda s: flip(s, 47))),
        ("s-bit", "One bit of s.", signature(lambda s: flip(s, 95))),
        ("r-zero", "r is zero.", numbers(lambda _, s: (0, s))),
        ("s-zero", "s is zero.", numbers(lambda r, _: (r, 0))),
        ("r-order", "r is the order of the curve.", numbers(lambda _, s: (ORDER, s))),
        ("s-order", "s is the order of the curve.", numbers(lambda r, _: (r, ORDER))),
        ("ones", "The largest numbers that fit.", signature(lambda _: b"\xff" * 96)),
        ("swapped", "s stands where r belongs.", numbers(lambda r, s: (s, r))),
        ("little-endian", "r and s little-endian.", signature(lambda s: s[47::-1] + s[:47:-1])),
        ("stranger", "A stranger signed the document.", signer(document="stranger")),
        ("by-instance", "The instance's key signed the document.", signer(document="instance")),
        ("by-root", "The root's key signed the document.", signer(document="root")),
        ("context", "A signature of another kind.", field(context="Signature")),
        ("context-mac", "A signature as if it were a MAC.", field(context="MAC0")),
        ("aad", "A signature over something else besides.", field(aad=b"x")),
        (
            "curve",
            "The key is on P-256.",
            do(certificate("leaf", key="p256:leaf"), signature(lambda s: s.ljust(96, b"\1"))),
        ),
    ):
        c.refuse(bad, "NITRO-11", name, comment, change)
    c.refuse(
        bad,
        "NITRO-11",
        "changed-pcr",
        "A register was changed after signing.",
        document(lambda b: flip(b, b.index(b"dpcrs") + 20)),
    )
    c.refuse(
        bad,
        "NITRO-11",
        "changed-timestamp",
        "The timestamp was changed after signing.",
        document(lambda b: flip(b, b.index(b"timestamp") + 9 + 8)),
    )
    c.refuse(
        bad,
        "NITRO-11",
        "changed-nonce",
        "The nonce was changed after signing.",
        document(lambda b: b.replace(b"fresh", b"stale")),
        nonce=b"fresh",
    )
    c.refuse(
        bad,
        "NITRO-11",
        "changed-public-key",
        "The public key was changed after signing.",
        document(lambda b: b.replace(b"honest", b"hacker")),
        public_key=b"honest",
    )
    zeros = "document-unsigned"
    c.refuse(zeros, "NITRO-7", "unsigned", "A signature of zeros.", signature(lambda s: bytes(len(s))))
    c.refuse(
        zeros,
        "NITRO-7",
        "emulator",
        "What an emulator writes: another algorithm, a signature and certificates of zeros.",
        do(
            field(protected={1: -1}),
            signature(lambda _: bytes(64)),
            said(certificate=bytes(64), cabundle=[bytes(64)]),
        ),
    )
    c.refuse(zeros, "NITRO-7", "unsigned-empty", "An empty signature.", signature(lambda _: b""))


def times(c: Cases) -> None:
    now = int(NOW.timestamp() * 1000)
    for name, comment, moment in (
        ("before", "Made a millisecond before its certificate.", now - 3001),
        ("after", "Made a millisecond after its certificate.", now + 3 * 3600 * 1000 + 1),
        ("one", "The smallest timestamp.", 1),
        ("seconds", "A timestamp in seconds.", now // 1000),
        ("largest", "The largest timestamp.", (1 << 64) - 1),
    ):
        c.refuse("document-timestamp", "NITRO-12", f"timestamp-{name}", comment, said(timestamp=moment))
    c.refuse(
        "document-future",
        "NITRO-12",
        "timestamp-ahead",
        "Made a millisecond more than five minutes after this time.",
        said(timestamp=now + 300_001),
    )


def passing(c: Cases) -> None:
    plain: dict[str, Any] = {"debug": False, "remarks": []}
    for spec, name, comment, change, options in (
        ("NITRO-13", "plain", "Nothing chosen by the enclave.", None, {}),
        (
            "NITRO-6",
            "chosen",
            "Key, data and nonce.",
            None,
            {"public_key": b"k" * 1024, "user_data": b"u" * 512, "nonce": b"n" * 512},
        ),
        ("NITRO-6", "chosen-empty", "Empty data.", None, {"user_data": b""}),
        (
            "NITRO-6",
            "absent",
            "The optional members are absent.",
            said(public_key=GONE, user_data=GONE, nonce=GONE),
            {},
        ),
        ("NITRO-5", "pcr-16", "17 registers.", None, {"pcrs": 17}),
        ("NITRO-5", "pcr-31", "32 registers.", None, {"pcrs": 32}),
        ("NITRO-5", "pcr-few", "Registers 0, 1 and 2 only.", pcrs(lambda p: [p.pop(i) for i in range(3, 16)]), {}),
        ("NITRO-1", "indefinite", "The payload leaves its map's length open.", field(indefinite=True), {}),
        ("NITRO-1", "tagged", "With the tag.", field(tagged=True), {}),
        (
            "NITRO-12",
            "ahead",
            "Five minutes ahead of this time.",
            said(timestamp=int(NOW.timestamp() * 1000) + 300_000),
            {},
        ),
        (
            "NITRO-12",
            "at-once",
            "Made when its certificate was.",
            said(timestamp=int(NOW.timestamp() * 1000) - 3000),
            {},
        ),
        ("NITRO-11", "twin", "The signature's twin: n - s.", numbers(lambda r, s: (r, ORDER - s)), {}),
    ):
        c.accept(spec, name, comment, change, claims=plain, **options)
    c.accept("NITRO-13", "debug", "Registers 0, 1 and 2 are zero.", claims={"debug": True, "remarks": []}, debug=True)
    c.accept(
        "NITRO-5",
        "tpm-one",
        "An instance with one register.",
        said(pcrs=GONE, nitrotpm_pcrs={4: b"\4" * 48}),
        claims={"debug": True, "remarks": ["nitrotpm"]},
    )
    c.accept(
        "NITRO-5",
        "tpm",
        "An EC2 instance, by its NitroTPM.",
        said(pcrs=GONE, nitrotpm_pcrs={4: b"\4" * 48, 7: b"\7" * 48, 12: bytes(48)}),
        claims={"debug": True, "remarks": ["nitrotpm"]},
    )


def eight(d: AwsDraft) -> None:
    """Four more authorities between."""
    above = "regional"
    for name in ("a", "b", "c", "d"):
        new = AwsPki.create(now=NOW).certificates()["zonal"]
        d.certificates[name] = new.set(key=name, subject={"CN": name}, issuer=d.certificates[above].subject)
        d.signers[name] = above
        above = name
    d.certificates["zonal"].issuer = d.certificates[above].subject
    d.signers["zonal"] = above
    for name in d.certificates:
        d.certificates[name].path_length = None
    d.cabundle[2:2] = ["a", "b", "c", "d"]


def filled(d: AwsDraft) -> None:
    d.payload["certificate"] = d.certificate("leaf")
    d.payload["cabundle"] = [d.certificate(name) for name in d.cabundle]
    d.payload["user_data"] = Raw(b"\x5f\xff")
    d.payload["user_data"] = Raw(b"\x5f" + b"\x40" * (16384 - len(cbor(d.payload))) + b"\xff")


def facts(d: AwsDraft) -> dict[str, Any]:
    name = "pcrs" if "pcrs" in d.payload else "nitrotpm_pcrs"
    periods = [(c.not_before, c.not_after) for c in d.certificates.values()]
    return {
        "measurements": {name: {str(i): v.hex() for i, v in d.payload[name].items()}, "digest": "SHA384"},
        "report_data": None,
        "platform": d.payload["module_id"],
        **window(periods, [d.certificates["leaf"].not_before]),
    }


def cases() -> list[Case]:
    c = Cases("nitro", AwsPki.create(now=NOW).nitro, facts)
    for part in (passing, envelopes, headers, members, chains, signatures, times):
        part(c)
    return c.found
