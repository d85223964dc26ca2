"""SEV-SNP: a report with the certificates of its key, one thing changed at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from case import Case, Cases, Change, do, window

from conclave.platform.pki import der
from conclave.testing.evidence import AmdDraft, AmdPki
from conclave.testing.evidence.amd import LEVELS
from conclave.testing.evidence.amd import REPORT as LAYOUT
from conclave.testing.evidence.draft import flip
from conclave.testing.evidence.pki import integer

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
ANY = b"\x05\0"


def report(**fields: int | bytes) -> Change:
    return lambda d: d.report.set(**fields)


def certificate(name: str, **fields: Any) -> Change:
    return lambda d: d.certificates[name].set(**fields)


def extension(end: str, value: bytes | None) -> Change:
    """Another value of one of the leaf's extensions; None: none."""
    return lambda d: d.values.pop(end) if value is None else d.values.update({end: value})


def critical(name: str) -> Change:
    return lambda d: d.certificates[name].extensions.update({"1.3.6.1.4.1.99999.1": (True, ANY)})


def signer(**keys: str) -> Change:
    return lambda d: d.signers.update(keys)


def signature(change: Callable[[int, int], tuple[int, int]]) -> Change:
    """Another r and s of the report's signature."""

    def swap(data: bytes) -> bytes:
        r, s = change(int.from_bytes(data[:72], "little"), int.from_bytes(data[72:144], "little"))
        return r.to_bytes(72, "little") + s.to_bytes(72, "little") + data[144:]

    return lambda d: d.at_signature("report", swap)


def member(name: str, value: Any) -> Change:
    return lambda d: d.endorsements.update({name: value})


def text(change: Callable[[bytes], bytes]) -> Change:
    return lambda d: d.after_signing("endorsements", change)


def crl(**fields: Any) -> Change:
    return lambda d: d.crl.set(**fields)


def chain(*names: str) -> Change:
    return lambda d: d.chain.__setitem__(slice(None), names)


def own_root(d: AmdDraft) -> None:
    """A root of the same name and another key, and everything below it."""
    d.certificates["ark"].key = "other"
    d.signers.update({"ark": "other", d.issuer: "other", "crl": "other"})


def root_of_genoa(d: AmdDraft) -> None:
    name = {"CN": "ARK-Genoa"}
    d.certificates["ark"].set(subject=name, issuer=name)
    d.certificates["ask"].issuer = name
    d.crl = None
    d.pinned = "ark"


def leaf_as_authority(d: AmdDraft) -> None:
    """The endorsement key of one chip signs one for another."""
    d.certificates["fake"] = d.certificates[d.leaf]
    d.certificates[d.leaf] = AmdPki.create(now=NOW).certificates("Milan", "vcek")["vcek"].set(key="stranger")
    d.certificates[d.leaf].issuer = d.certificates["fake"].subject
    d.signers.update({d.leaf: "vcek", "fake": "ask", "report": "stranger"})
    d.chain = ["fake", "ask"]


def authority_below(d: AmdDraft) -> None:
    """An intermediate that its issuer's path length does not allow."""
    middle = AmdPki.create(now=NOW).certificates("Milan", "vcek")["ask"]
    d.certificates["middle"] = middle.set(key="asvk", issuer=d.certificates["ask"].subject, subject={"CN": "middle"})
    d.certificates["vcek"].issuer = middle.subject
    d.signers.update({"middle": "ask", "vcek": "asvk"})
    d.chain = ["middle", "ask"]
    d.pinned = "ask"


def microcode(level: int) -> Change:
    return report(reported_tcb=b"\4\2\0\0\0\0\x18" + bytes((level,)))


def parse(c: Cases) -> None:
    bad = "report-format"
    c.refuse(bad, "SNP-1", "empty", "No bytes at all.", lambda d: d.after_signing("report", lambda _: b""))
    c.refuse(bad, "SNP-1", "short", "The last byte is missing.", lambda d: d.after_signing("report", lambda r: r[:-1]))
    c.refuse(bad, "SNP-1", "long", "A byte after the report.", lambda d: setattr(d, "trailing", b"\0"))
    for version in (0, 1, 4, 6, 0x02000000):
        comment = f"Version {version}, which is not defined."
        c.refuse("report-version", "SNP-1", f"version-{version}", comment, report(version=version))
    for number, at in enumerate((0, 0, 0, 0, 0), 1):
        name = f"reserved{number}"
        comment = f"The {('first', 'second', 'third', 'fourth', 'last')[number - 1]} reserved field is not zero."
        c.refuse(bad, "SNP-2", f"reserved-{number}", comment, lambda d, n=name, a=at: d.report.set(**{n: 1 << a}))
    c.refuse(bad, "SNP-2", "reserved-last-bit", "The last reserved bit.", report(reserved5=1 << 1215))
    c.refuse(
        bad,
        "SNP-2",
        "reserved-behind-signature",
        "The last byte of all is not zero.",
        lambda d: d.at_signature("report", lambda s: s[:-1] + b"\1"),
    )
    for name in ("cpuid_family", "cpuid_model", "cpuid_stepping"):
        comment = "Version 2 has no CPUID: its bytes are reserved."
        c.refuse(bad, "SNP-2", f"v2-{name}".replace("_", "-"), comment, report(**{name: 1}), version=2)
    for name in ("launch_mit_vector", "current_mit_vector"):
        comment = "Version 3 has no mitigation vectors: their bytes are reserved."
        c.refuse(bad, "SNP-2", f"v3-{name}".replace("_", "-"), comment, report(**{name: 1}))
    for name, policy, comment in (
        ("policy-one", 0x1001F, "The policy bit that is always one is zero."),
        ("policy-zero", 0, "No bit of the policy is set."),
        ("policy-25", 0x3001F | 1 << 25, "Policy bit 25, which version 3 does not define."),
        ("policy-26", 0x3001F | 1 << 26, "Policy bit 26, which nobody defines."),
        ("policy-63", 0x3001F | 1 << 63, "The last policy bit."),
    ):
        c.refuse(bad, "SNP-3", name, comment, report(policy=policy))
    c.refuse(bad, "SNP-3", "v5-policy-26", "Policy bit 26, in version 5.", report(policy=0x3001F | 1 << 26), version=5)
    c.refuse(bad, "SNP-3", "vmpl-4", "There are four privilege levels.", report(vmpl=4))
    c.refuse(bad, "SNP-3", "vmpl-host", "A report that the hypervisor asked for.", report(vmpl=0xFFFFFFFF))
    c.refuse(bad, "SNP-4", "algorithm-0", "No signature algorithm.", report(signature_algorithm=0))
    c.refuse(bad, "SNP-4", "algorithm-2", "An unknown signature algorithm.", report(signature_algorithm=2))
    c.refuse(bad, "SNP-4", "key-2", "An unknown kind of signing key.", report(flags=2 << 2))
    c.refuse(bad, "SNP-4", "key-reserved", "A reserved bit beside the kind of key.", report(flags=1 << 5))
    c.refuse(bad, "SNP-4", "key-reserved-last", "The last bit beside the kind of key.", report(flags=1 << 31))
    high = 1 << 384
    c.refuse(bad, "SNP-4", "r-high", "r has a bit above its 48 bytes.", signature(lambda r, s: (r | high, s)))
    c.refuse(bad, "SNP-4", "s-high", "s has a bit above its 48 bytes.", signature(lambda r, s: (r, s | high)))
    c.refuse(
        bad,
        "SNP-4",
        "big-endian",
        "r and s big-endian, at the end of their fields.",
        signature(
            lambda r, s: tuple(int.from_bytes(n.to_bytes(72, "big"), "little") for n in (r, s))  # type: ignore[arg-type,return-value]
        ),
    )


def signatures(c: Cases) -> None:
    bad = "report-signature"
    c.refuse("report-unsigned", "SNP-5", "unsigned", "The report says that no key signed it.", report(flags=7 << 2))
    for name, comment, change in (
        ("r-bit", "One bit of r.", signature(lambda r, s: (r ^ 1, s))),
        ("s-bit", "One bit of s.", signature(lambda r, s: (r, s ^ 1))),
        ("r-zero", "r is zero.", signature(lambda _, s: (0, s))),
        ("s-zero", "s is zero.", signature(lambda r, _: (r, 0))),
        ("both-zero", "r and s are zero.", signature(lambda _, __: (0, 0))),
        ("r-order", "r is the order of the curve.", signature(lambda _, s: (ORDER, s))),
        ("s-order", "s is the order of the curve.", signature(lambda r, _: (r, ORDER))),
        ("r-ones", "r is the largest number that fits.", signature(lambda _, s: ((1 << 384) - 1, s))),
        ("swapped", "s stands where r belongs.", signature(lambda r, s: (s, r))),
        ("stranger", "Signed by a key that nobody vouches for.", signer(report="stranger")),
        ("other-chip", "Signed by another key of the same PKI.", signer(report="vlek")),
    ):
        c.refuse(bad, "SNP-12", name, comment, change)
    c.refuse(
        bad,
        "SNP-12",
        "other-platform",
        "The endorsements of another chip of the same product.",
        text(lambda _: AmdPki.create(now=NOW, seed=b"another").snp().endorsements),
    )
    c.refuse(
        "vcek-extensions",
        "SNP-10",
        "without-any",
        "No extension at all.",
        lambda d: d.values.clear(),
    )
    for name in ("guest_svn", "report_data", "measurement", "host_data", "reported_tcb", "launch_tcb"):
        at = {n: o for n, o, _ in LAYOUT}[name]
        c.refuse(
            bad,
            "SNP-12",
            f"changed-{name}".replace("_", "-"),
            f"{name} was changed after signing.",
            lambda d, at=at: d.after_signing("report", lambda r: flip(r, at)),
        )
    c.refuse(
        bad,
        "SNP-12",
        "debug-hidden",
        "The debug bit was cleared after signing.",
        lambda d: d.after_signing("report", lambda r: flip(r, 0x0A, 3)),
        debug=True,
    )
    c.refuse(
        bad,
        "SNP-12",
        "curve",
        "The key is on P-256, its signature as long as it must be.",
        do(certificate("vcek", key="p256:vcek"), signer(report="vcek")),
    )
    c.refuse(
        bad,
        "SNP-12",
        "curve-brainpool",
        "The key is on another curve of 384 bits.",
        do(certificate("vcek", key="b384:vcek"), signer(report="b384:vcek")),
    )
    c.refuse(bad, "SNP-12", "rsa-leaf", "The endorsement key is an RSA key.", certificate("vcek", key="other"))


def chains(c: Cases) -> None:
    bad = "vcek-chain"
    for name, comment, change in (
        ("vcek-bit", "A bit of the signature on the VCEK.", lambda d: d.at_signature("vcek", flip)),
        ("ask-bit", "A bit of the signature on the ASK.", lambda d: d.at_signature("ask", flip)),
        ("ark-bit", "A bit of the signature on the ARK: another certificate.", lambda d: d.at_signature("ark", flip)),
        ("vcek-stranger", "Another key signed the VCEK.", signer(vcek="other")),
        ("ask-stranger", "Another key signed the ASK.", signer(ask="other")),
        ("vcek-pkcs1", "The ASK signed the VCEK by PKCS 1, as AMD does not.", signer(vcek="pkcs1:ask")),
        ("own-root", "A root of the same name, and everything below it.", own_root),
        ("vcek-issuer", "The VCEK names another issuer.", certificate("vcek", issuer={"CN": "SEV-Rome"})),
        ("ask-issuer", "The ASK names another issuer.", certificate("ask", issuer={"CN": "ARK-Rome"})),
        ("ask-no-authority", "The ASK is no authority.", certificate("ask", ca=False, path_length=None)),
        ("ask-no-basic", "The ASK does not say whether it is one.", certificate("ask", ca=None)),
        ("ask-usage", "The ASK's key is not for certificates.", certificate("ask", usage=("crl_sign",))),
        (
            "ark-path-length",
            "The ARK allows no authority below it.",
            do(certificate("ark", path_length=0), lambda d: setattr(d, "pinned", "ark")),
        ),
        (
            "ark-no-authority",
            "A pinned root that is no authority.",
            do(certificate("ark", ca=False), lambda d: setattr(d, "pinned", "ark")),
        ),
        ("path-length", "An authority below one that allows none.", authority_below),
        ("leaf-as-authority", "One chip's key vouches for another's.", leaf_as_authority),
        ("vcek-critical", "A critical extension that nobody knows, in the VCEK.", critical("vcek")),
        ("ask-critical", "A critical extension that nobody knows, in the ASK.", critical("ask")),
        (
            "ark-critical",
            "A critical extension that nobody knows, in the ARK.",
            do(critical("ark"), lambda d: setattr(d, "pinned", "ark")),
        ),
        ("ask-twice", "The ASK twice, no ARK.", chain("ask", "ask")),
        ("ark-twice", "The ARK twice, no ASK.", chain("ark", "ark")),
        ("asvk", "The issuer of VLEKs.", do(other_issuer("vlek", "Milan", "asvk"), chain("asvk", "ark"))),
        ("vcek-by-ark", "The ARK itself signed the VCEK.", by_ark),
        (
            "pinned-leaf",
            "The VCEK itself is pinned: no chain at all.",
            lambda d: setattr(d, "pinned", "vcek"),
        ),
        (
            "pinned-issuer",
            "The ASK is pinned: the chain is too short.",
            lambda d: setattr(d, "pinned", "ask"),
        ),
    ):
        c.refuse(bad, "SNP-7", name, comment, change)
    for name, comment, change in (
        ("issuer-product", "VCEK and ASK of one product, a pinned ARK of another.", root_of_genoa),
        ("other-product", "A VCEK of Genoa under the authorities of Milan.", extension("2", der(0x16, b"Genoa-B1"))),
        (
            "vlek-issuer",
            "An ASVK signed a VCEK.",
            do(
                certificate("ask", subject={"CN": "SEV-VLEK-Milan"}),
                certificate("vcek", issuer={"CN": "SEV-VLEK-Milan"}),
            ),
        ),
    ):
        c.refuse(bad, "SNP-11", name, comment, change)
    c.refuse(
        "vlek-chain",
        "SNP-7",
        "vlek-stranger",
        "Another key signed the VLEK.",
        signer(vlek="other"),
        leaf="vlek",
    )
    c.refuse(
        "vlek-chain",
        "SNP-11",
        "ask-of-vlek",
        "An ASK signed a VLEK.",
        do(certificate("asvk", subject={"CN": "SEV-Milan"}), certificate("vlek", issuer={"CN": "SEV-Milan"})),
        leaf="vlek",
    )
    for name in ("vcek", "ask", "ark"):
        pin = (lambda d: setattr(d, "pinned", "ark")) if name == "ark" else (lambda d: None)
        c.refuse(
            "vcek-expired",
            "SNP-8",
            f"{name}-expired",
            f"The {name.upper()} expired a second ago.",
            do(certificate(name, not_after=NOW - timedelta(seconds=1)), pin),
        )
        c.refuse(
            "vcek-expired",
            "SNP-8",
            f"{name}-future",
            f"The {name.upper()} is valid from the next second on.",
            do(certificate(name, not_before=NOW + timedelta(seconds=1)), pin),
        )
    c.refuse("vcek-expired", "SNP-8", "before", "A clock before the VCEK was issued.", later=-31 * DAY)
    c.refuse(
        "vcek-expired", "SNP-8", "after", "Eight years later.", crl(next_update=NOW + 9000 * DAY), later=2920 * DAY
    )
    c.refuse(
        "vlek-expired",
        "SNP-8",
        "vlek-expired",
        "A VLEK is valid for a year.",
        crl(next_update=NOW + 9000 * DAY),
        later=366 * DAY,
        leaf="vlek",
    )


def other_issuer(leaf: str, product: str, name: str) -> Change:
    """Another issuer of the same vendor, for the chain."""

    def change(d: AmdDraft) -> None:
        d.certificates[name] = AmdPki.create(now=NOW).certificates(product, leaf)[name]
        d.signers[name] = "ark"

    return change


def by_ark(d: AmdDraft) -> None:
    d.certificates["vcek"].issuer = d.certificates["ark"].subject
    d.signers["vcek"] = "ark"


def lists(c: Cases) -> None:
    for name, comment, change in (
        ("crl-bit", "A bit of the list's signature.", lambda d: d.at_signature("crl", flip)),
        ("crl-stranger", "Another key signed the list.", signer(crl="other")),
        ("crl-by-ask", "The ASK signed the list, in its own name.", crl_by_ask),
        ("crl-by-ask-as-ark", "The ASK signed the list in the ARK's name.", signer(crl="ask")),
        ("crl-issuer", "The list names another issuer.", crl(issuer={"CN": "ARK-Rome"})),
        ("crl-other-product", "The list of another product's ARK.", crl(issuer=ark_of("Genoa"))),
        ("crl-critical", "The list has a critical extension.", crl(extensions={"1.3.6.1.4.1.99999.1": (True, ANY)})),
        ("crl-delta", "A list of changes only.", crl(extensions={"2.5.29.27": (True, integer(1))})),
        (
            "crl-entry-changed",
            "The list's number was changed after signing.",
            lambda d: d.after_signing("crl", renumber),
        ),
    ):
        c.refuse("ark-crl-issuer", "SNP-9", name, comment, change)
    c.refuse(
        "ark-crl-expired", "SNP-9", "crl-expired", "The list is over.", crl(next_update=NOW - timedelta(seconds=1))
    )
    c.refuse("ark-crl-expired", "SNP-9", "crl-future", "A list of tomorrow.", crl(this_update=NOW + DAY))
    for name in ("ask", "ark"):
        comment = f"The list revokes the {name.upper()}."
        c.refuse(
            "vcek-revoked",
            "SNP-9",
            f"crl-{name}",
            comment,
            lambda d, n=name: d.crl.revoked.append(d.certificates[n].serial),
        )
    c.refuse(
        "vcek-revoked",
        "SNP-9",
        "crl-several",
        "The ASK is the last of many.",
        lambda d: d.crl.revoked.extend([*range(1000, 1100), d.certificates["ask"].serial]),
    )
    c.refuse(
        "vlek-revoked",
        "SNP-9",
        "crl-asvk",
        "The list revokes the ASVK.",
        lambda d: d.crl.revoked.append(d.certificates["asvk"].serial),
        leaf="vlek",
    )
    c.accept(
        "SNP-9",
        "crl-zero",
        "The list names serial number 0: endorsement keys have all that number, and it is no list of their issuer.",
        lambda d: d.crl.revoked.append(0),
        claims={"debug": False, "remarks": ["smt-allowed"]},
    )
    c.accept(
        "SNP-9",
        "no-crl",
        "Without a list.",
        lambda d: setattr(d, "crl", None),
        claims={"debug": False, "remarks": ["revocation-unknown", "smt-allowed"]},
    )


def ark_of(product: str) -> dict[str, str]:
    return AmdPki.create(now=NOW).certificates(product, "vcek")["ark"].subject


def renumber(data: bytes) -> bytes:
    at = data.index(bytes.fromhex("0603551d14")) + 5 + 2
    return flip(data, at + 2)


def crl_by_ask(d: AmdDraft) -> None:
    d.crl.issuer = d.certificates["ask"].subject
    d.signers["crl"] = "ask"


def keys(c: Cases) -> None:
    bad = "vcek-extensions"
    for end, what in (
        ("1", "structure version"),
        ("2", "product name"),
        ("3.1", "boot loader's number"),
        ("3.2", "TEE's number"),
        ("3.3", "SNP firmware's number"),
        ("3.4", "first reserved number"),
        ("3.7", "last reserved number"),
        ("3.8", "microcode's number"),
        ("4", "chip id"),
    ):
        name = f"without-{end.replace('.', '-')}"
        c.refuse(bad, "SNP-10", name, f"The VCEK has no {what}.", extension(end, None))
    c.refuse(bad, "SNP-10", "without-fmc", "A VCEK of Turin without FMC.", extension("3.9", None), product="Turin")
    for name, comment, change in (
        ("structure-2", "A later structure.", extension("1", integer(2))),
        ("structure-type", "The structure version is no number.", extension("1", der(4, b"\0"))),
        ("product-rome", "A product that cannot do it.", extension("2", der(0x16, b"Rome-B0"))),
        ("product-case", "A product in lower case.", extension("2", der(0x16, b"milan"))),
        ("product-empty", "A product without a name.", extension("2", der(0x16, b""))),
        ("product-type", "The product's name is of another type.", extension("2", der(0x0C, b"Milan-B0"))),
        (
            "product-long-form",
            "The length of the product's name in its long form.",
            extension("2", b"\x16\x81\x08Milan-B0"),
        ),
        ("product-length", "The product's name is longer than it says.", extension("2", b"\x16\x05Milan-B0")),
        ("product-suffix", "More than a stepping behind the name.", extension("2", der(0x16, b"Milan-B0-Genoa"))),
        ("number-256", "A number above a byte.", extension("3.3", integer(256))),
        ("number-negative", "A number below zero.", extension("3.3", b"\x02\x01\xff")),
        ("number-padded", "A number with a byte too many.", extension("3.3", b"\x02\x02\x00\x18")),
        ("number-long-form", "A number's length in its long form.", extension("3.3", b"\x02\x81\x01\x18")),
        ("number-475", "A number of two bytes.", extension("3.8", integer(475))),
        ("number-trailing-long", "A byte after a number of two bytes.", extension("3.8", b"\2\2\0\xdb\0")),
        ("number-128", "128 in one byte, which is below zero.", do(extension("3.8", b"\2\1\x80"), microcode(128))),
        ("number-type", "A number of another type.", extension("3.3", b"\x0a\x01\x18")),
        ("number-trailing", "A byte after a number.", extension("3.3", b"\x02\x01\x18\0")),
        ("number-empty", "A number without contents.", extension("3.3", b"\x02\x00")),
        ("chip-63", "A chip id of 63 bytes.", lambda d: d.values.update({"4": d.values["4"][1:]})),
        ("chip-65", "A chip id of 65 bytes.", lambda d: d.values.update({"4": d.values["4"] + b"\0"})),
        ("chip-8", "A chip id of 8 bytes, as Turin has.", lambda d: d.values.update({"4": d.values["4"][:8]})),
        ("chip-wrapped", "A chip id in an octet string.", lambda d: d.values.update({"4": der(4, d.values["4"])})),
        ("chip-and-provider", "Both a chip id and a provider.", extension("5", der(0x16, b"cloud"))),
        ("fmc", "A Milan with FMC.", extension("3.9", integer(1))),
    ):
        c.refuse(bad, "SNP-10", name, comment, change)
    c.refuse(
        bad,
        "SNP-10",
        "turin-chip-64",
        "A chip id of 64 bytes, as Milan has.",
        lambda d: d.values.update({"4": d.values["4"] * 8}),
        product="Turin",
    )
    for name, comment, value in (
        ("provider-empty", "A provider without a name.", der(0x16, b"")),
        ("provider-long", "A provider's name of 65 characters.", der(0x16, b"x" * 65)),
        ("provider-control", "A line end in a provider's name.", der(0x16, b"a\nb")),
        ("provider-type", "A provider's name of another type.", der(0x0C, b"cloud")),
        ("provider-bytes", "A provider's name outside ASCII.", der(0x16, b"clo\xfcd")),
    ):
        c.refuse("vlek-extensions", "SNP-10", name, comment, extension("5", value), leaf="vlek")
    c.refuse("vlek-extensions", "SNP-10", "provider-none", "A VLEK of nobody.", extension("5", None), leaf="vlek")
    c.refuse(
        "report-signing-key",
        "SNP-11",
        "vcek-as-vlek",
        "A VCEK, where the report says VLEK.",
        report(flags=4),
    )
    c.refuse(
        "report-signing-key",
        "SNP-11",
        "vlek-as-vcek",
        "A VLEK, where the report says VCEK.",
        report(flags=0),
        leaf="vlek",
    )
    for name, comment, change in (
        ("cpuid-genoa", "The processor is a Genoa, its key a Milan's.", report(cpuid_model=0x11)),
        ("cpuid-siena", "The processor is a Siena, its key a Milan's.", report(cpuid_model=0xA0)),
        ("cpuid-turin", "The processor is a Turin, its key a Milan's.", report(cpuid_family=0x1A)),
        ("cpuid-zero", "The processor has no family.", report(cpuid_family=0, cpuid_model=0, cpuid_stepping=0)),
    ):
        c.refuse("vcek-product", "SNP-11", name, comment, change)
    for product, family, models in (
        ("Milan", 0x19, (0x10, 0xFF)),
        ("Genoa", 0x19, (0x0F, 0x20, 0x9F, 0xB0)),
        ("Turin", 0x1A, (0x20, 0xA0)),
    ):
        for model in models:
            c.refuse(
                "vcek-product",
                "SNP-11",
                f"{product.lower()}-model-{model:02x}",
                f"No {product} has model {model:02X}h.",
                report(cpuid_family=family, cpuid_model=model),
                product=product,
            )
    c.refuse(
        "vlek-product",
        "SNP-11",
        "vlek-cpuid",
        "The processor is a Genoa, its VLEK of Milan.",
        report(cpuid_model=0x11),
        leaf="vlek",
    )
    c.refuse(
        "vcek-product",
        "SNP-11",
        "genoa-cpuid",
        "The processor is a Milan, its key a Genoa's.",
        report(cpuid_model=0x01),
        product="Genoa",
    )
    c.refuse(
        "vcek-product",
        "SNP-11",
        "turin-cpuid",
        "The processor is of a family of before, its key a Turin's.",
        report(cpuid_family=0x19),
        product="Turin",
        version=5,
    )


def bindings(c: Cases) -> None:
    ends = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
    for name, end in ends.items():
        comment = f"The certificate is for a higher {name}."
        c.refuse("vcek-tcb", "SNP-13", f"tcb-{name}", comment, extension(end, integer(LEVELS[name] + 1)))
    c.refuse(
        "vcek-tcb",
        "SNP-13",
        "tcb-lower",
        "The certificate is for a lower boot loader: the host keeps an old one.",
        extension("3.1", integer(LEVELS["bootloader"] - 1)),
    )
    c.refuse(
        "vcek-tcb", "SNP-13", "tcb-reserved", "A reserved number of the certificate.", extension("3.5", integer(1))
    )
    c.refuse(
        "vcek-tcb",
        "SNP-13",
        "tcb-reported-reserved",
        "A reserved byte of the reported TCB.",
        report(reported_tcb=b"\4\2\0\1\0\0\x18\xdb"),
    )
    c.refuse(
        "vcek-tcb",
        "SNP-13",
        "tcb-fmc",
        "The certificate is for another FMC.",
        extension("3.9", integer(2)),
        product="Turin",
        version=5,
    )
    c.refuse(
        "vcek-tcb",
        "SNP-13",
        "tcb-layout",
        "A Turin that reports its TCB as Milan does.",
        report(reported_tcb=b"\4\2\0\0\0\0\x18\xdb"),
        product="Turin",
        version=5,
    )
    c.refuse(
        "vlek-tcb",
        "SNP-13",
        "vlek-tcb",
        "The VLEK is for another microcode.",
        extension("3.8", integer(LEVELS["microcode"] - 1)),
        leaf="vlek",
    )
    chip = lambda d: d.values.update({"4": flip(d.values["4"])})  # noqa: E731
    c.refuse("vcek-chip", "SNP-14", "chip", "The certificate is for another chip.", chip)
    c.refuse("vcek-chip", "SNP-14", "turin-chip", "The same, with 8 bytes.", chip, product="Turin", version=5)
    c.refuse(
        "vcek-chip",
        "SNP-14",
        "turin-chip-behind",
        "The chip id of a Turin has bytes behind its eight.",
        lambda d: d.report.set(chip_id=d.report["chip_id"][:8] + b"\1" + bytes(55)),
        product="Turin",
        version=5,
    )


def endorsements(c: Cases) -> None:
    bad = "endorsements-format"
    for name, comment, change in (
        ("json", "Not JSON.", text(lambda t: t[:-1])),
        ("json-empty", "No bytes.", text(lambda _: b"")),
        ("json-array", "An array.", text(lambda _: b"[]")),
        ("json-null", "null.", text(lambda _: b"null")),
        ("json-trailing", "Something after the object.", text(lambda t: t + b"{}")),
        ("json-utf-8", "Bytes that are not UTF-8.", text(lambda t: t.replace(b"BEGIN", b"BEG\xffN", 1))),
        ("json-escaped", "A character outside ASCII.", text(lambda t: t.replace(b"BEGIN", b"BEG\\u0130N", 1))),
        ("json-twice", "A member twice.", text(lambda t: t[:-1] + b',"crl":""}')),
        ("json-deep", "Nested too deeply.", text(lambda t: t[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}")),
        ("json-number", "A number of 5000 digits.", text(lambda t: t[:-1] + b',"x":' + b"9" * 5000 + b"}")),
        ("json-nan", "A number that is none.", text(lambda t: t[:-1] + b',"x":NaN}')),
        ("too-large", "One byte above 512 KiB.", text(lambda t: t + b" " * (524289 - len(t)))),
        ("extra", "A member that nobody knows.", member("x", "")),
        ("certificate-missing", "No certificate.", member("certificate", None)),
        ("chain-missing", "No chain.", member("chain", None)),
        ("crl-missing", "No list, and no word of it.", member("crl", None)),
        ("certificate-empty", "An empty certificate.", member("certificate", "")),
        ("chain-empty", "An empty chain.", member("chain", "")),
        ("crl-null", "A list that is null.", text(lambda t: swapped(t, "crl", None))),
        ("chain-list", "A chain that is a list.", member("chain", ["x", "y"])),
        ("certificate-hex", "Not hexadecimal.", member("certificate", "zz")),
        (
            "certificate-odd",
            "An odd number of digits.",
            text(lambda t: t.replace(b'"certificate":"3', b'"certificate":"')),
        ),
        (
            "certificate-space",
            "Space between the digits.",
            text(lambda t: t.replace(b'"certificate":"30', b'"certificate":"3 0')),
        ),
        (
            "certificate-spaces",
            "Space between two bytes.",
            text(lambda t: t.replace(b'"certificate":"30', b'"certificate":"30 ')),
        ),
        ("certificate-short", "A certificate that is cut.", lambda d: d.after_signing("vcek", lambda b: b[:-1])),
        ("certificate-long", "A byte after the certificate.", lambda d: d.after_signing("vcek", lambda b: b + b"\0")),
        ("certificate-other", "No certificate, but DER.", member("certificate", "3003020101")),
        ("certificate-version", "A certificate of version 1 with extensions.", certificate("vcek", version=1)),
        ("certificate-text", "PEM where hex belongs.", member("certificate", "-----BEGIN CERTIFICATE-----")),
        ("chain-text", "A chain that is no PEM.", member("chain", "ASK ARK")),
        ("chain-one", "One certificate.", chain("ask")),
        ("chain-three", "Three certificates.", chain("ask", "ark", "ark")),
        ("chain-nine", "Nine certificates.", chain(*["ask"] * 9)),
        ("chain-between", "Text between the certificates.", text(lambda t: t.replace(b"-----BEGIN", b"x-----BEGIN"))),
        ("chain-base64", "A character that is no base64.", text(lambda t: t.replace(b"\\nMII", b"\\nM!I", 1))),
        ("certificate-large", "A certificate of more than 8192 bytes.", padded("vcek")),
        ("chain-large", "An ASK of more than 8192 bytes.", padded("ask")),
        ("chain-cut", "An ASK that is cut.", lambda d: d.after_signing("ask", lambda b: b[:-1])),
        ("crl-hex", "A list that is not hexadecimal.", member("crl", "0g")),
        ("crl-cut", "A list that is cut.", lambda d: d.after_signing("crl", lambda b: b[:-1])),
        ("crl-long", "A byte after the list.", lambda d: d.after_signing("crl", lambda b: b + b"\0")),
        ("crl-no-end", "A list that does not say how long it is valid.", crl(next_update=None)),
        (
            "crl-certificate",
            "A certificate where the list belongs.",
            lambda d: member("crl", d.certificate("ask").hex())(d),
        ),
    ):
        c.refuse(bad, "SNP-6", name, comment, change)


def padded(name: str) -> Change:
    """A long extension, not critical."""
    value = (False, der(4, bytes(8192)))
    return lambda d: d.certificates[name].extensions.update({"1.3.6.1.4.1.99999.2": value})


def swapped(data: bytes, name: str, value: Any) -> bytes:
    return json.dumps(json.loads(data) | {name: value}).encode()


def passing(c: Cases) -> None:
    smt = ["smt-allowed"]
    for product in ("Milan", "Genoa", "Turin"):
        for version in (2, 3, 5):
            name = f"{product.lower()}-v{version}"
            c.accept(
                "SNP-16",
                name,
                f"{product}, report version {version}.",
                claims={"debug": False, "remarks": smt},
                product=product,
                version=version,
                report_data=bytes(range(64)),
            )
    for product in ("Milan", "Turin"):
        c.accept(
            "SNP-15",
            f"{product.lower()}-vlek",
            f"{product}, signed by a cloud's key: the report names no chip.",
            claims={"debug": False, "remarks": ["masked-chip-id", *smt, "vlek"]},
            product=product,
            leaf="vlek",
        )
    for spec, name, comment, change, remarks in (
        ("SNP-12", "twin", "The signature's twin: n - s.", signature(lambda r, s: (r, ORDER - s)), smt),
        ("SNP-6", "largest", "Endorsements of 512 KiB.", text(lambda t: t + b" " * (524288 - len(t))), smt),
        ("SNP-10", "microcode-128", "A number of 128.", do(extension("3.8", integer(128)), microcode(128)), smt),
        ("SNP-8", "edge", "Certificate and list begin and end at this very second.", edge, smt),
        ("SNP-6", "chain-root-first", "ARK before ASK.", chain("ark", "ask"), smt),
        (
            "SNP-14",
            "masked",
            "The operator masked the chip id.",
            report(chip_id=bytes(64)),
            ["masked-chip-id", *smt],
        ),
        ("SNP-16", "mask-chip-key", "The chip's key is not to be used.", report(flags=2), ["mask-chip-key", *smt]),
        ("SNP-16", "vmpl", "Asked for from VMPL 3.", report(vmpl=3), [*smt, "vmpl-above-zero"]),
        ("SNP-16", "no-smt", "Without hyper-threading.", report(policy=0x2001F), []),
        ("SNP-16", "aliases", "Memory was not checked.", report(platform_info=5), ["alias-check-missing", *smt]),
        (
            "SNP-16",
            "agent",
            "A migration agent.",
            report(policy=0x7001F, report_id_ma=b"\1" * 32),
            ["migration-agent", *smt],
        ),
    ):
        c.accept(spec, name, comment, change, claims={"debug": False, "remarks": remarks})
    for product, models in (("Milan", (0, 0x0F)), ("Genoa", (0x10, 0x1F, 0xA0, 0xAF)), ("Turin", (0, 0x1F))):
        for model in models:
            c.accept(
                "SNP-11",
                f"{product.lower()}-model-{model:02x}",
                f"Model {model:02X}h is a {product}.",
                report(cpuid_model=model),
                claims={"debug": False, "remarks": smt},
                product=product,
            )
    for product, tcb in (
        ("Milan", b"\4\2\5\6\7\x08\x18\xdb"),
        ("Genoa", b"\4\2\5\6\7\x08\x18\xdb"),
        ("Turin", b"\1\4\2\x18\6\7\x08\xdb"),
    ):
        c.accept(
            "SNP-13",
            f"{product.lower()}-tcb",
            "Reserved numbers that certificate and report agree on.",
            do(reserved_numbers, report(reported_tcb=tcb)),
            claims={"debug": False, "remarks": smt},
            product=product,
        )
    c.accept(
        "SNP-10",
        "provider-64",
        "A provider's name of 64 characters.",
        extension("5", der(0x16, b"x" * 64)),
        claims={"debug": False, "remarks": ["masked-chip-id", *smt, "vlek"]},
        leaf="vlek",
    )
    c.accept("SNP-16", "debug", "Debugging is allowed, and said.", claims={"debug": True, "remarks": smt}, debug=True)


def reserved_numbers(d: AmdDraft) -> None:
    """5 to 8, where the product has them."""
    d.values.update({f"3.{i}": integer(i + 1) for i in (4, 5, 6, 7) if f"3.{i}" in d.values})


def edge(d: AmdDraft) -> None:
    d.certificates["vcek"].set(not_before=NOW, not_after=NOW)
    d.crl.set(this_update=NOW, next_update=NOW)


def facts(d: AmdDraft) -> dict[str, Any]:
    periods = [(c.not_before, c.not_after) for c in d.certificates.values()]
    issued = d.certificates[d.leaf].not_before
    if d.crl is not None:
        periods.append((d.crl.this_update, d.crl.next_update))
        issued = d.crl.this_update
    chip = d.report["chip_id"] if d.leaf == "vlek" else d.chip_id.ljust(64, b"\0")
    return {
        "measurements": {
            name: d.report[name].hex() for name in ("measurement", "host_data", "id_key_digest", "author_key_digest")
        },
        "report_data": d.report["report_data"].hex(),
        "platform": chip.hex() if any(chip) else "",
        **window(periods, [issued]),
    }


def cases() -> list[Case]:
    c = Cases("snp", AmdPki.create(now=NOW).snp, facts)
    for part in (passing, parse, signatures, chains, lists, keys, bindings, endorsements):
        part(c)
    return c.found
