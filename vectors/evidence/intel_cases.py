"""SGX and TDX: a quote with its endorsements, one thing changed at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from case import Case, Cases, Change, do, window

from conclave.platform.pki import der, sgx_extension
from conclave.testing.evidence import IntelDraft, IntelPki
from conclave.testing.evidence.draft import flip
from conclave.testing.evidence.intel import SGX_EXTENSION
from conclave.testing.evidence.pki import integer

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
DOCUMENTS = ("tcb_info", "qe_identity")
TD_QE = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
SGX_QE = bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff")
OFFSETS = {
    "sgx": {"cpu_svn": 0, "attributes": 48, "mrenclave": 64, "report_data": 320},
    "tdx": {"tee_tcb_svn": 0, "td_attributes": 120, "mrtd": 136, "report_data": 520},
}
SHAPE = "DCAP-1"
TRAILING = "DCAP-2"
CHAIN_FORM = "DCAP-3"
KIND = "DCAP-4"
JSON = "DCAP-5"
MEMBERS = "DCAP-6"
DOCUMENT = "DCAP-7"
IDENTIFIERS = "DCAP-8"
CHAIN = "DCAP-9"
EXTENSION = "DCAP-10"
QUOTE_SIGNATURES = "DCAP-11"
SIGNER = "DCAP-12"
PERIOD = "DCAP-13"
REVOCATION = "DCAP-14"
MATCH = "DCAP-15"
QE = "DCAP-16"
UNSUPPORTED = "DCAP-17"
LEVEL = "DCAP-18"
REVOKED = "DCAP-19"
MODULE = "DCAP-20"
STATUS = "DCAP-21"
DEBUG = "DCAP-22"
REMARKS = "DCAP-23"
CLAIMS = "DCAP-24"
# How JSON is written, whatever it says.
STRICT = {"json", "empty", "trailing", "key-twice", "key-twice-deep", "number-long", "number-11", "number-fraction"}
STRICT |= {"number-nan", "issued-no-zone", "issued-offset", "issued-fraction", "issued-day-32"}


def header(**fields: int | bytes) -> Change:
    return lambda d: d.header.set(**fields)


def body(**fields: int | bytes) -> Change:
    return lambda d: d.body.set(**fields)


def qe(**fields: int | bytes) -> Change:
    return lambda d: d.qe_report.set(**fields)


def field(**values: Any) -> Change:
    return lambda d: [setattr(d, name, value) for name, value in values.items()]


def size(**deltas: int) -> Change:
    return lambda d: d.sizes.update(deltas)


def certificate(name: str, **fields: Any) -> Change:
    return lambda d: d.certificates[name].set(**fields)


def critical(name: str) -> Change:
    return lambda d: d.certificates[name].extensions.update({"1.3.6.1.4.1.99999.1": (True, b"\5\0")})


def signer(**keys: str) -> Change:
    return lambda d: d.signers.update(keys)


def pin(name: str) -> Change:
    return lambda d: setattr(d, "pinned", name)


def chain(which: str, *names: str) -> Change:
    return lambda d: d.chains.update({which: list(names)})


def signature(layer: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda d: d.at_signature(layer, change)


def numbers(layer: str, change: Callable[[int, int], tuple[int, int]]) -> Change:
    """Another r and s."""

    def swap(data: bytes) -> bytes:
        return b"".join(
            n.to_bytes(32, "big") for n in change(int.from_bytes(data[:32], "big"), int.from_bytes(data[32:], "big"))
        )

    return signature(layer, swap)


def before(layer: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda d: d.before_signing(layer, change)


def after(layer: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda d: d.after_signing(layer, change)


def said(document: str, **members: Any) -> Change:
    """Other members of TCB info or QE identity."""
    return lambda d: getattr(d, document).update(members)


def without(document: str, name: str) -> Change:
    return lambda d: getattr(d, document).pop(name)


def level(**members: Any) -> Change:
    return lambda d: d.level.update(members)


def component(which: str, number: int, svn: Any) -> Change:
    return lambda d: d.level["tcb"][which][number - 1].update(svn=svn)


def sgx(end: str, value: bytes | None) -> Change:
    """Another value of the PCK certificate's SGX extension; None: none."""
    return lambda d: d.sgx.pop(end) if value is None else d.sgx.update({end: value})


def member(name: str, value: Any) -> Change:
    return lambda d: d.endorsements.update({name: value})


def text(change: Callable[[bytes], bytes]) -> Change:
    return after("endorsements", change)


def crl(name: str, **fields: Any) -> Change:
    return lambda d: getattr(d, name).set(**fields)


def revoke(name: str, who: str) -> Change:
    return lambda d: getattr(d, name).revoked.append(d.certificates[who].serial)


def module(number: int, **members: Any) -> Change:
    return lambda d: d.tcb_info["tdxModuleIdentities"][number].update(members)


def own_root(d: IntelDraft) -> None:
    """A root of the same name and another key, and everything below it."""
    d.certificates["root"].key = "stranger"
    d.signers.update({"root": "stranger", "pck_ca": "stranger", "tcb_signer": "stranger", "root_crl": "stranger"})


def new(d: IntelDraft, name: str, like: str, *, above: str, **fields: Any) -> None:
    """Another certificate, signed by the key of the one above."""
    draft = IntelPki.create(now=NOW).certificates()[like]
    fields = {"key": name, "subject": {"CN": name}, "issuer": d.certificates[above].subject} | fields
    d.certificates[name] = draft.set(**fields)
    d.signers[name] = d.certificates[above].key


def leaf_as_authority(d: IntelDraft) -> None:
    """A processor's key vouches for another processor."""
    d.sgx, values = {}, d.sgx
    extension = {SGX_EXTENSION: (False, sgx_extension(values.items()))}
    d.certificates["pck"].extensions.update(extension)
    new(d, "fake", "pck", above="pck", extensions=extension)
    d.signers["qe_report"] = "fake"
    d.chains["quote"] = ["fake", "pck", "pck_ca", "root"]


def longer(d: IntelDraft) -> None:
    """A second CA between, which the root allows."""
    d.certificates["root"].path_length = None
    d.certificates["pck_ca"].path_length = None
    new(d, "between", "pck_ca", above="pck_ca", path_length=0)
    d.certificates["pck"].issuer = d.certificates["between"].subject
    d.signers.update({"pck": "between", "pck_crl": "between"})
    d.chains["quote"] = ["pck", "between", "pck_ca", "root"]
    d.pinned = "root"


def by_root(d: IntelDraft) -> None:
    d.certificates["pck"].issuer = d.certificates["root"].subject
    d.signers["pck"] = "root"
    d.chains["quote"] = ["pck", "root"]


def document_by_pck(document: str) -> Change:
    """The processor itself signs that it is up to date."""

    def change(d: IntelDraft) -> None:
        d.signers[document] = "pck"
        d.chains[document] = ["pck", "pck_ca", "root"]

    return change


def document_by_ca_signer(document: str) -> Change:
    """A certificate of the right name, but issued by the PCK CA."""

    def change(d: IntelDraft) -> None:
        new(d, "fake", "tcb_signer", above="pck_ca", subject=d.certificates["tcb_signer"].subject)
        d.signers[document] = "fake"
        d.chains[document] = ["fake", "pck_ca", "root"]

    return change


def document_by_ca(document: str) -> Change:
    def change(d: IntelDraft) -> None:
        d.signers[document] = "pck_ca"
        d.chains[document] = ["pck_ca", "root"]

    return change


def document_by_root(document: str) -> Change:
    def change(d: IntelDraft) -> None:
        d.signers[document] = "root"
        d.chains[document] = ["root"]

    return change


def document_signer(document: str, **fields: Any) -> Change:
    """A signer of its own for one document."""

    def change(d: IntelDraft) -> None:
        subject = {"CN": "Another TCB Signing"}
        new(d, "second", "tcb_signer", above="root", **({"subject": subject} | fields))
        d.signers[document] = "second"
        d.chains[document] = ["second", "root"]

    return change


def quotes(c: Cases, tee: str) -> None:
    bad = "quote-format"
    report_size = 384 if tee == "sgx" else 584
    start = 48 + report_size
    c.refuse(bad, SHAPE, "empty", "No bytes.", after("quote", lambda _: b""))
    c.refuse(bad, SHAPE, "header-cut", "47 bytes.", after("quote", lambda q: q[:47]))
    c.refuse(bad, SHAPE, "body-cut", "The report is cut.", after("quote", lambda q: q[: start - 1]))
    c.refuse(bad, SHAPE, "size-cut", "The size of what follows is cut.", after("quote", lambda q: q[: start + 3]))
    c.refuse(bad, SHAPE, "no-signature", "Nothing after the report.", after("quote", lambda q: q[:start] + bytes(4)))
    c.refuse(bad, SHAPE, "short", "The last byte is missing.", after("quote", lambda q: q[:-1]))
    c.refuse(bad, SHAPE, "size-less", "The signature data is a byte shorter than it is.", size(signature_data=-1))
    c.refuse(bad, SHAPE, "size-more", "The signature data is a byte longer than it is.", size(signature_data=1))
    c.refuse(bad, SHAPE, "size-huge", "The signature data is 4 GB long.", size(signature_data=0x70000000))
    c.refuse(bad, SHAPE, "chain-less", "The chain is a byte shorter than it is.", size(chain=-1))
    c.refuse(bad, SHAPE, "chain-more", "The chain is a byte longer than it is.", size(chain=1))
    c.refuse(bad, SHAPE, "auth-more", "The authentication data reaches beyond the end.", size(qe_auth=60000))
    c.refuse(bad, SHAPE, "too-large", "More than 65536 bytes.", field(trailing=bytes(65536)))
    for version in (0, 1, 2, 6, 0xFFFF):
        c.refuse("quote-version", SHAPE, f"version-{version}", f"Version {version}.", header(version=version))
    for kind, what in ((0, "Reserved."), (1, "EPID."), (3, "ECDSA P-384."), (0xFFFF, "The largest.")):
        c.refuse("quote-key-type", SHAPE, f"key-type-{kind}", what, header(attestation_key_type=kind))


def sgx_quotes(c: Cases) -> None:
    bad = "quote-format"
    c.refuse(bad, TRAILING, "long", "A byte after the quote: version 3 has none.", field(trailing=b"\0"))
    c.refuse("quote-tee", SHAPE, "v3-tdx", "Version 3 is for SGX only.", header(reserved=0x81))
    c.refuse("quote-tee", SHAPE, "v3-tee", "Version 3 has no other TEE.", header(reserved=1))
    c.refuse("quote-tee", SHAPE, "v4-tee", "A TEE that nobody knows.", header(tee_type=0x82), version=4)
    c.refuse("quote-body", SHAPE, "v5-body-0", "A body of no type.", field(body_type=0), version=5)
    c.refuse("quote-body", SHAPE, "v5-body-td", "A TD report in a quote of SGX.", field(body_type=2), version=5)
    c.refuse("quote-body", SHAPE, "v5-body-6", "A body of a type that nobody knows.", field(body_type=6), version=5)
    c.refuse("quote-body", SHAPE, "v5-tee", "An SGX report in a quote of TDX.", header(tee_type=0x81), version=5)
    c.refuse("quote-body", SHAPE, "v5-size-less", "The report is a byte shorter than it is.", size(body=-1), version=5)
    c.refuse("quote-body", SHAPE, "v5-size-more", "The report is a byte longer than it is.", size(body=1), version=5)
    for number in range(1, 5):
        name = f"reserved{number}"
        comment = f"Reserved field {number} of the report is not zero."
        c.refuse(bad, SHAPE, f"reserved-{number}", comment, lambda d, n=name: d.body.set(**{n: 1}))
        comment = f"Reserved field {number} of the quoting enclave's report is not zero."
        c.refuse(bad, SHAPE, f"qe-reserved-{number}", comment, lambda d, n=name: d.qe_report.set(**{n: 1}))
    c.refuse(bad, SHAPE, "reserved-last", "The last reserved bit of the report.", body(reserved4=1 << 335))


def tdx_quotes(c: Cases) -> None:
    c.refuse("quote-tee", SHAPE, "v3", "Version 3 is for SGX only.", header(version=3))
    c.refuse("quote-tee", SHAPE, "tee", "A TEE that nobody knows.", header(tee_type=0x82))
    for kind, what in ((0, "no type"), (1, "SGX"), (4, "the extended TD report"), (5, "a type that nobody knows")):
        c.refuse("quote-body", SHAPE, f"v5-body-{kind}", f"A body of {what}.", field(body_type=kind), version=5)
    c.refuse("quote-body", SHAPE, "v5-body-15", "A TD report 1.0 that says 1.5.", field(body_type=3), version=5)
    c.refuse("quote-body", SHAPE, "v5-body-10", "A TD report 1.5 that says 1.0.", field(body_type=2), version=5, body=3)
    c.refuse("quote-body", SHAPE, "v5-tee", "A TD report in a quote of SGX.", header(tee_type=0), version=5)
    c.refuse("quote-body", SHAPE, "v5-size-less", "The report is a byte shorter than it is.", size(body=-1), version=5)
    c.refuse("quote-body", SHAPE, "v5-size-more", "The report is a byte longer than it is.", size(body=1), version=5)
    for kind in (1, 5, 7):
        c.refuse("quote-certification", KIND, f"outer-{kind}", "No QE report.", field(outer_certification=kind))
    for name, comment, change in (
        ("outer-less", "The certification data is a byte shorter than it is.", size(certification=-1)),
        (
            "outer-trailing",
            "A byte after the certification data, within the signature data.",
            do(size(signature_data=1), after("quote", lambda q: q + b"\0")),
        ),
        ("outer-more", "The certification data is a byte longer than it is.", size(certification=1)),
    ):
        c.refuse("quote-format", SHAPE, name, comment, change)
    c.refuse(
        "quote-format",
        SHAPE,
        "inner-trailing",
        "A byte after the chain, within the certification data.",
        do(size(chain=-1), after("chain", lambda p: p + b"\0")),
    )


def certifications(c: Cases) -> None:
    bad = "quote-certification"
    for name, comment, change in (
        ("chain-text", "No PEM.", after("chain", lambda _: b"-no chain")),
        ("chain-base64", "A character that is no base64.", after("chain", lambda p: p.replace(b"\nMII", b"\nM!I", 1))),
        (
            "chain-between",
            "Text between the certificates.",
            after("chain", lambda p: p.replace(b"END", b"END", 1) + b"x"),
        ),
        ("chain-nine", "Nine certificates.", chain("quote", "pck", "pck_ca", *["root"] * 7)),
        ("chain-empty", "An empty chain.", after("chain", lambda _: b"")),
        ("chain-der-cut", "DER that is cut.", after("chain", lambda _: b"\x30\x82\x01")),
        ("chain-der-nine", "Nine certificates in DER.", lambda d: in_der(d, *["root"] * 9)),
        ("type-0", "Certification data of no type.", field(certification=0)),
        ("type-4", "A certificate alone, which nobody writes.", field(certification=4)),
        ("type-7", "A platform manifest.", field(certification=7)),
        (
            "type-3-size",
            "An encrypted platform id of a byte too few.",
            field(certification=3, certification_data=bytes(403)),
        ),
        ("type-1-size", "A platform id of a byte too many.", field(certification=1, certification_data=bytes(37))),
    ):
        c.refuse(bad, CHAIN_FORM if name.startswith("chain") else KIND, name, comment, change)
    for kind, length in ((2, 276), (3, 404)):
        c.refuse(
            "certification-unsupported",
            IDENTIFIERS,
            f"type-{kind}",
            "A platform id that only the vendor can read.",
            field(certification=kind, certification_data=bytes(length)),
        )
    c.refuse(
        "certification-unsupported",
        IDENTIFIERS,
        "type-1-alone",
        "A platform id, and no chain in the endorsements either.",
        do(platform_id(), member("pck_certificate_chain", None)),
    )
    for name, comment, change in (
        ("type-1-ppid", "The chain is of another processor than the quote names.", platform_id(ppid=bytes(16))),
        ("type-1-pce-id", "The chain is of another provisioning enclave.", platform_id(pce_id=b"\1\0")),
    ):
        c.refuse("pck-mismatch", IDENTIFIERS, name, comment, change)


def platform_id(*, ppid: bytes | None = None, pce_id: bytes = bytes(2)) -> Change:
    """The quote names its processor; the endorsements have the chain."""

    def change(d: IntelDraft) -> None:
        named = d.sgx["1"][2:] if ppid is None else ppid
        d.certification = 1
        d.certification_data = named + bytes((2,)) * 16 + b"\x0b\0" + pce_id

    return change


def pck_chains(c: Cases, tee: str) -> None:
    bad = "pck-chain"
    for name, comment, change in (
        ("pck-bit", "A bit of the signature on the PCK certificate.", lambda d: d.at_signature("pck", flip)),
        ("pck-ca-bit", "A bit of the signature on the PCK CA.", lambda d: d.at_signature("pck_ca", flip)),
        ("pck-stranger", "A stranger signed the PCK certificate.", signer(pck="stranger")),
        ("pck-ca-stranger", "A stranger signed the PCK CA.", signer(pck_ca="stranger")),
        ("own-root", "A root of the same name, and everything below it.", own_root),
        ("pck-ca-no-authority", "The PCK CA is none.", certificate("pck_ca", ca=False, path_length=None)),
        ("leaf-as-authority", "One processor's key vouches for another.", leaf_as_authority),
    ):
        c.refuse(bad, CHAIN, name, comment, change)
    if tee == "tdx":
        return
    for name, comment, change in (
        (
            "root-bit",
            "A bit of the signature on the root: another certificate.",
            lambda d: d.at_signature("root", flip),
        ),
        ("pck-by-tcb-signer", "The TCB signer signed the PCK certificate.", signer(pck="tcb_signer")),
        ("pck-issuer", "The PCK certificate names another issuer.", certificate("pck", issuer={"CN": "another"})),
        ("pck-ca-issuer", "The PCK CA names another issuer.", certificate("pck_ca", issuer={"CN": "another"})),
        ("pck-ca-no-basic", "The PCK CA does not say whether it is one.", certificate("pck_ca", ca=None)),
        ("pck-ca-usage", "The PCK CA's key is not for certificates.", certificate("pck_ca", usage=("crl_sign",))),
        (
            "root-no-authority",
            "A pinned root that is no authority.",
            do(certificate("root", ca=False, path_length=None), pin("root")),
        ),
        (
            "root-path-length",
            "The root allows no authority below it.",
            do(certificate("root", path_length=0), pin("root")),
        ),
        ("longer", "A second CA between.", longer),
        ("path-length", "A second CA below one that allows none.", do(longer, certificate("pck_ca", path_length=0))),
        ("by-root", "The root itself signed the PCK certificate.", by_root),
        ("pck-critical", "A critical extension that nobody knows, in the PCK certificate.", critical("pck")),
        ("pck-ca-critical", "A critical extension that nobody knows, in the PCK CA.", critical("pck_ca")),
        ("root-critical", "A critical extension that nobody knows, in the root.", do(critical("root"), pin("root"))),
        ("chain-without-ca", "The chain lacks the CA.", chain("quote", "pck", "root")),
        ("chain-without-root", "The chain lacks the root.", chain("quote", "pck", "pck_ca")),
        ("chain-without-pck", "The chain lacks the PCK certificate.", chain("quote", "pck_ca", "root")),
        ("chain-pck-only", "The PCK certificate alone.", chain("quote", "pck")),
        ("chain-root-only", "The root alone.", chain("quote", "root")),
        ("chain-pck-twice", "The PCK certificate twice, no CA.", chain("quote", "pck", "pck", "root")),
        ("pck-pinned", "The PCK certificate itself is pinned.", pin("pck")),
        ("ca-pinned", "The PCK CA is pinned: the chain is too short.", pin("pck_ca")),
        ("pck-cut", "The PCK certificate is cut.", after("pck", lambda b: b[:-1])),
        ("pck-long", "A byte after the PCK certificate.", after("pck", lambda b: b + b"\0")),
        ("pck-extension-twice", "A PCK certificate with two SGX extensions.", extension_twice),
        ("pck-garbage", "DER that is no certificate.", after("pck", lambda _: b"\x30\x03\x02\x01\x01")),
        ("pck-garbage-empty", "DER of an empty certificate.", after("pck", lambda _: b"\x30\x02\x30\0")),
        ("pck-ca-cut", "The PCK CA is cut.", after("pck_ca", lambda b: b[:-1])),
        ("pck-version-1", "A PCK certificate of version 1 with extensions.", certificate("pck", version=1)),
    ):
        c.refuse(bad, CHAIN, name, comment, change)
    for name in ("pck", "pck_ca", "root"):
        label, pinned = name.replace("_", "-"), [pin("root")] if name == "root" else []
        c.refuse(
            "pck-expired",
            PERIOD,
            f"{label}-expired",
            f"{name} expired a second ago.",
            do(certificate(name, not_after=NOW - SECOND), *pinned),
        )
        c.refuse(
            "pck-expired",
            PERIOD,
            f"{label}-future",
            f"{name} is valid from the next second on.",
            do(certificate(name, not_before=NOW + SECOND), *pinned),
        )
    for name, comment, days in (("day-before", "A clock two days before.", -2), ("month-later", "A month later.", 30)):
        c.refuse("tcb-info-expired", PERIOD, name, comment, later=days * DAY)
    c.refuse("pck-expired", PERIOD, "years-later", "Seven years later.", later=7 * 365 * DAY)
    c.refuse("pck-expired", PERIOD, "years-before", "Two years before.", later=-2 * 365 * DAY)


def extensions(c: Cases) -> None:
    bad = "pck-extension"
    c.refuse(bad, EXTENSION, "sgx-none", "No SGX extension.", field(sgx={}))
    for end, what in (
        ("1", "PPID"),
        ("2.1", "first component"),
        ("2.16", "last component"),
        ("2.17", "PCESVN"),
        ("2.18", "CPUSVN"),
        ("3", "PCE id"),
        ("4", "FMSPC"),
        ("5", "type"),
    ):
        c.refuse(
            bad, EXTENSION, f"sgx-without-{end.replace('.', '-')}", f"The extension has no {what}.", sgx(end, None)
        )
    for name, comment, change in (
        ("sgx-extra", "A member that nobody knows.", sgx("8", integer(1))),
        ("sgx-component-19", "A component that nobody knows.", sgx("2.19", integer(1))),
        ("sgx-flag-4", "A configuration that nobody knows.", sgx("7.4", b"\1\1\0")),
        ("sgx-ppid-15", "A PPID of 15 bytes.", sgx("1", der(4, bytes(15)))),
        ("sgx-fmspc-5", "An FMSPC of five bytes.", sgx("4", der(4, bytes(5)))),
        ("sgx-fmspc-text", "An FMSPC as text.", sgx("4", der(0x0C, b"abcdef"))),
        ("sgx-pce-id-3", "A PCE id of three bytes.", sgx("3", der(4, bytes(3)))),
        ("sgx-cpu-svn-17", "A CPUSVN of 17 bytes.", sgx("2.18", der(4, bytes(17)))),
        ("sgx-component-256", "A component above a byte.", sgx("2.3", integer(256))),
        ("sgx-component-negative", "A component below zero.", sgx("2.3", b"\2\1\xff")),
        ("sgx-component-padded", "A component with a byte too many.", sgx("2.3", b"\2\2\0\2")),
        ("sgx-component-long", "A component's length in its long form.", sgx("2.3", b"\2\x81\1\2")),
        ("sgx-component-empty", "A component without contents.", sgx("2.3", b"\2\0")),
        ("sgx-component-type", "A component of another type.", sgx("2.3", b"\4\1\2")),
        ("sgx-pce-svn-65536", "A PCESVN above two bytes.", sgx("2.17", integer(65536))),
        ("sgx-type-3", "A type that nobody knows.", sgx("5", b"\x0a\1\3")),
        ("sgx-type-integer", "A type that is no enumeration.", sgx("5", b"\2\1\0")),
        ("sgx-instance-15", "A platform instance of 15 bytes.", sgx("6", der(4, bytes(15)))),
        ("sgx-flag-value", "A configuration that is neither true nor false.", sgx("7.2", b"\1\1\1")),
        ("sgx-twice", "The FMSPC twice.", twice),
        ("sgx-other-oid", "An FMSPC below another OID.", other_oid),
        ("sgx-oid-padded", "An OID with a byte too many.", renamed(PREFIX + b"\x80\4")),
        ("sgx-oid-empty", "An OID without contents.", renamed(b"")),
        ("sgx-oid-cut", "An OID that is cut.", renamed(PREFIX + b"\x84")),
        ("sgx-tag-long", "A tag of more than one byte.", raw_extension(lambda e: b"\x3f\x1f" + e[1:])),
        ("sgx-length-more", "The extension is a byte longer than it is.", raw_extension(lambda e: longer_by(e, 1))),
        ("sgx-length-padded", "A length with a byte too many.", raw_extension(lambda e: b"\x30\x83\0" + e[2:])),
        ("sgx-length-open", "A length that is left open.", raw_extension(lambda e: b"\x30\x80" + e[4:] + b"\0\0")),
        ("sgx-trailing", "A byte after the extension.", raw_extension(lambda e: e + b"\0")),
        ("sgx-empty", "An empty extension.", raw_extension(lambda _: b"")),
        ("sgx-other-extension", "Another extension in its place.", other_extension),
        ("sgx-member-empty", "A member without contents.", extra_member(der(0x30, b""))),
        ("sgx-member-one", "A member without value.", extra_member(der(0x30, der(6, PREFIX + b"\x08")))),
        ("sgx-member-three", "A member with two values.", extra_member(der(0x30, der(6, PREFIX + b"\x06") + ANY * 2))),
        ("sgx-octets", "The extension in an octet string.", raw_extension(lambda e: der(4, e))),
        ("sgx-cut", "An extension that is cut.", raw_extension(lambda e: e[:-1])),
    ):
        c.refuse(bad, EXTENSION, name, comment, change)


def raw_extension(change: Callable[[bytes], bytes]) -> Change:
    def swap(d: IntelDraft) -> None:
        value = change(sgx_extension(d.sgx.items()))
        d.sgx = {}
        d.certificates["pck"].extensions[SGX_EXTENSION] = (False, value)

    return swap


def extra_member(member: bytes) -> Change:
    return raw_extension(lambda e: longer_by(e, len(member)) + member)


ANY = b"\5\0"
PREFIX = bytes.fromhex("2a864886f84d010d01")


def longer_by(data: bytes, more: int) -> bytes:
    """A DER value with a length of two bytes that says more than there is."""
    return data[:2] + (int.from_bytes(data[2:4], "big") + more).to_bytes(2, "big") + data[4:]


def renamed(identifier: bytes) -> Change:
    """The FMSPC under an OID of these contents."""
    value = der(4, bytes(6))

    def change(d: IntelDraft) -> None:
        rest = {end: v for end, v in d.sgx.items() if end != "4"}
        member = der(0x30, der(6, identifier) + value)
        raw_extension(lambda _: der(0x30, sgx_extension(rest.items())[4:] + member))(d)

    return change


def twice(d: IntelDraft) -> None:
    value = sgx_extension([*d.sgx.items()])
    again = sgx_extension([("4", der(4, bytes(6)))])[2:]
    raw_extension(lambda _: der(0x30, value[4:] + again))(d)


def other_extension(d: IntelDraft) -> None:
    value = sgx_extension(d.sgx.items())
    d.sgx = {}
    d.certificates["pck"].extensions["1.2.840.113741.1.13.2"] = (False, value)


def extension_twice(d: IntelDraft) -> None:
    """Intel's word, and another."""
    other = d.sgx | {"4": der(4, bytes(6))}
    d.certificates["pck"].extensions[f"{SGX_EXTENSION}#2"] = (False, sgx_extension(other.items()))


def other_oid(d: IntelDraft) -> None:
    raw_extension(lambda e: e.replace(bytes.fromhex("2a864886f84d010d0104"), bytes.fromhex("2a864886f84d010d0204")))(d)


def signatures(c: Cases, tee: str) -> None:
    for layer, code, what in (
        ("qe_report", "qe-report-signature", "quoting enclave's report"),
        ("quote", "quote-signature", "quote"),
    ):
        label = layer.replace("_", "-")
        changes: list[tuple[str, str, Change]] = [
            ("r-bit", "One bit of r", signature(layer, lambda s: flip(s, 31))),
            ("s-bit", "One bit of s", signature(layer, lambda s: flip(s, 63))),
            ("stranger", "A stranger's signature", signer(**{layer: "stranger"})),
        ]
        if tee == "sgx":
            changes += [
                ("r-zero", "r is zero", numbers(layer, lambda _, s: (0, s))),
                ("s-zero", "s is zero", numbers(layer, lambda r, _: (r, 0))),
                ("r-order", "r is the order of the curve", numbers(layer, lambda _, s: (ORDER, s))),
                ("s-order", "s is the order of the curve", numbers(layer, lambda r, _: (r, ORDER))),
                ("ones", "The largest numbers that fit", signature(layer, lambda _: b"\xff" * 64)),
                ("zeros", "Zeros", signature(layer, lambda _: bytes(64))),
                ("swapped", "s stands where r belongs", numbers(layer, lambda r, s: (s, r))),
                ("little-endian", "r and s little-endian", signature(layer, lambda s: s[31::-1] + s[:31:-1])),
                ("by-ca", "The PCK CA's signature", signer(**{layer: "pck_ca"})),
            ]
        for name, comment, change in changes:
            c.refuse(code, QUOTE_SIGNATURES, f"{label}-{name}", f"{comment}: {what}.", change)
    c.refuse("quote-signature", QUOTE_SIGNATURES, "quote-by-pck", "The PCK key signed the quote.", signer(quote="pck"))
    for name in ("report_data", "cpu_svn" if tee == "sgx" else "tee_tcb_svn", "mrenclave" if tee == "sgx" else "mrtd"):
        at = OFFSETS[tee][name]
        c.refuse(
            "quote-signature",
            QUOTE_SIGNATURES,
            f"changed-{name.replace('_', '-')}",
            f"{name} was changed after signing.",
            after("quote", lambda q, at=at: flip(q, 48 + at)),
        )
    at = OFFSETS[tee]["attributes" if tee == "sgx" else "td_attributes"]
    c.refuse(
        "quote-signature",
        QUOTE_SIGNATURES,
        "debug-hidden",
        "The debug bit was cleared after signing.",
        after("quote", lambda q: flip(q, 48 + at, 1 if tee == "sgx" else 0)),
        debug=True,
    )
    c.refuse(
        "quote-signature",
        QUOTE_SIGNATURES,
        "changed-header",
        "The header's user data was changed after signing.",
        after("quote", lambda q: flip(q, 28)),
    )
    c.refuse(
        "qe-report-signature",
        QUOTE_SIGNATURES,
        "changed-qe-mrsigner",
        "The quoting enclave's signer was changed after signing.",
        after("qe_report", lambda r: flip(r, 128)),
    )
    for name, comment, change in (
        ("binding-zero", "The quoting enclave certified nothing.", field(binding=bytes(64))),
        ("binding-key", "The quoting enclave certified another key.", field(binding=b"\1" * 32 + bytes(32))),
        ("binding-auth", "The authentication data was changed after signing.", changed_auth),
        ("binding-tail", "Something behind the digest.", lambda d: setattr(d, "binding", d.bound[:63] + b"\1")),
        ("binding-key-swapped", "The host put its own key in place of the certified one.", own_key),
    ):
        c.refuse("qe-binding", QUOTE_SIGNATURES, name, comment, change)
    if tee == "tdx":
        return
    c.refuse("qe-report-signature", QUOTE_SIGNATURES, "pck-curve-k256", "A PCK key on secp256k1.", pck_key("k256:pck"))
    c.refuse(
        "qe-report-signature",
        QUOTE_SIGNATURES,
        "pck-curve-p384",
        "A PCK key on P-384, its signature as long as it must be.",
        do(certificate("pck", key="p384:pck")),
    )
    for name, comment, point in (
        ("point-zero", "The attestation key is zero.", bytes(64)),
        ("point-off-curve", "The attestation key is no point of the curve.", b"\1" * 64),
        ("point-ones", "The attestation key is larger than the field.", b"\xff" * 64),
    ):
        c.refuse("quote-signature", QUOTE_SIGNATURES, name, comment, field(point=point))


def pck_key(name: str) -> Change:
    return do(certificate("pck", key=name), signer(qe_report=name))


def changed_auth(d: IntelDraft) -> None:
    d.binding = d.bound
    d.qe_auth = flip(d.qe_auth)


def own_key(d: IntelDraft) -> None:
    d.binding = d.bound
    d.point = d.ring.ec("stranger").point
    d.signers["quote"] = "stranger"


def endorsements(c: Cases) -> None:
    bad = "endorsements-format"
    names = (
        "pck_crl_issuer_chain",
        "root_ca_crl",
        "pck_crl",
        "tcb_info_issuer_chain",
        "tcb_info",
        "tcb_info_signature",
        "qe_identity_issuer_chain",
        "qe_identity",
        "qe_identity_signature",
    )
    for name in names:
        label = name.replace("_", "-")
        c.refuse(bad, MEMBERS, f"{label}-missing", f"No {name}.", member(name, None))
        c.refuse(bad, MEMBERS, f"{label}-number", f"{name} is a number.", member(name, 1))
    for name, comment, change in (
        ("json", "Not JSON.", text(lambda t: t[:-1])),
        ("json-empty", "No bytes.", text(lambda _: b"")),
        ("json-array", "An array.", text(lambda _: b"[]")),
        ("json-trailing", "Something after the object.", text(lambda t: t + b"{}")),
        ("json-utf-8", "Bytes that are not UTF-8.", text(lambda t: t.replace(b"BEGIN", b"BEG\xffN", 1))),
        ("json-escaped", "A character outside ASCII.", text(lambda t: t.replace(b"BEGIN", b"BEG\\u0130N", 1))),
        ("json-twice", "A member twice.", text(lambda t: t[:-1] + b',"pck_crl":""}')),
        ("json-deep", "Nested too deeply.", text(lambda t: t[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}")),
        ("json-number", "A number of 5000 digits.", text(lambda t: t[:-1] + b',"x":' + b"9" * 5000 + b"}")),
        ("json-nan", "A number that is none.", text(lambda t: t[:-1] + b',"x":NaN}')),
        ("json-large", "One byte above 512 KiB.", text(lambda t: t + b" " * (524289 - len(t)))),
        ("extra", "A member that nobody knows.", member("x", "")),
        ("tcb-info-object", "TCB info as an object.", lambda d: d.endorsements.update(tcb_info=d.tcb_info)),
        ("signature-63", "A signature of 63 bytes.", signature("tcb_info", lambda s: s[:-1])),
        ("signature-65", "A signature of 65 bytes.", signature("qe_identity", lambda s: s + b"\0")),
        ("signature-empty", "An empty signature.", member("tcb_info_signature", "")),
        ("signature-hex", "A signature that is no hex.", member("tcb_info_signature", "z" * 128)),
        ("signature-odd", "An odd number of digits.", member("tcb_info_signature", "1" * 127)),
        (
            "signature-spaces",
            "Space between the digits.",
            text(lambda t: t.replace(b'tcb_info_signature":"', b'tcb_info_signature":" ')),
        ),
        ("crl-hex", "A list that is no hex.", member("pck_crl", "zz")),
        (
            "crl-spaces",
            "Space between the digits of a list.",
            text(lambda t: t.replace(b'pck_crl":"3082', b'pck_crl":"30 82')),
        ),
        ("tcb-chain-empty", "An empty chain of the TCB info.", member("tcb_info_issuer_chain", "")),
        ("tcb-chain-text", "A chain of the TCB info that is no PEM.", member("tcb_info_issuer_chain", "signer")),
        ("tcb-chain-nine", "Nine certificates.", chain("tcb_info", "tcb_signer", *["root"] * 8)),
        ("qe-chain-text", "A chain of the QE identity that is no PEM.", member("qe_identity_issuer_chain", "signer")),
        ("pck-chain-text", "A chain of the PCK certificate that is no PEM.", member("pck_certificate_chain", "PCK")),
    ):
        c.refuse(bad, JSON if re.search("json|hex|odd|spaces", name) else MEMBERS, name, comment, change)


def documents(c: Cases, tee: str) -> None:
    """TCB info and QE identity: what is the same for both."""
    for name in DOCUMENTS:
        label = name.replace("_", "-")
        bad = f"{label}-format"
        moments: list[tuple[str, Any]] = [
            ("no-zone", "2026-06-01T12:00:00"),
            ("offset", "2026-06-01T12:00:00+00:00"),
            ("fraction", "2026-06-01T12:00:00.5Z"),
            ("day-32", "2026-05-32T12:00:00Z"),
            ("number", 1780315200),
        ]
        shapes: list[tuple[str, str, Change]] = [
            ("json", "is no JSON", before(name, lambda t: t[:-1])),
            ("empty", "is empty", before(name, lambda _: b"")),
            ("array", "is an array", before(name, lambda _: b"[]")),
            ("trailing", "has something after the object", before(name, lambda t: t + b"x")),
            ("key-twice", "has a key twice", before(name, lambda t: t[:-1] + b',"version":3}')),
            ("key-twice-deep", "has a key twice, in a level", before(name, doubled_status)),
            (
                "number-long",
                "has a number of 5000 digits",
                before(name, lambda t: t[:-1] + b',"x":' + b"1" * 5000 + b"}"),
            ),
            ("number-fraction", "has a number with a fraction", before(name, lambda t: t[:-1] + b',"x":1.5}')),
            ("number-nan", "has a number that is none", before(name, lambda t: t[:-1] + b',"x":Infinity}')),
            ("number-11", "has a number of 11 digits", before(name, lambda t: t[:-1] + b',"x":12345678901}')),
            ("version-0", "has version 0", said(name, version=0)),
            ("version-4", "has version 4", said(name, version=4)),
            ("version-text", "has a version as text", said(name, version="3")),
            ("version-true", "has a version that is true", said(name, version=True)),
            ("id-other", "is of an unknown kind", said(name, id="SGXX")),
            (
                "id-lower",
                "has its id in lower case",
                lower_id(name),
            ),
            ("id-missing", "has no id", without(name, "id")),
            ("number-large", "has an evaluation number of 2^31", said(name, tcbEvaluationDataNumber=2**31)),
            ("number-missing", "has no evaluation number", without(name, "tcbEvaluationDataNumber")),
            ("number-negative", "has an evaluation number below zero", said(name, tcbEvaluationDataNumber=-1)),
            ("issued-missing", "does not say when it was issued", without(name, "issueDate")),
            ("next-missing", "does not say when the next comes", without(name, "nextUpdate")),
            ("levels-missing", "has no levels", without(name, "tcbLevels")),
            ("levels-object", "has an object for its levels", said(name, tcbLevels={})),
            ("level-text", "has text for a level", said(name, tcbLevels=["UpToDate"])),
            ("status-unknown", "has a status that nobody knows", levels(name, tcbStatus="Fine")),
            ("status-case", "has a status in lower case", levels(name, tcbStatus="uptodate")),
            ("status-missing", "has a level without status", levels(name, tcbStatus=None)),
            ("date-missing", "has a level without date", levels(name, tcbDate=None)),
            ("tcb-missing", "has a level without versions", levels(name, tcb=None)),
            ("advisories-text", "has text for advisories", levels(name, advisoryIDs="INTEL-SA-1")),
            ("advisory-number", "has a number for an advisory", levels(name, advisoryIDs=[1])),
            ("advisory-control", "has a line end in an advisory", levels(name, advisoryIDs=["INTEL-SA-1\n"])),
        ]
        shapes += [(f"issued-{k}", "has an issue date of another form", said(name, issueDate=v)) for k, v in moments]
        chosen = (
            shapes
            if tee == "sgx"
            else [s for s in shapes if s[0] in ("json", "version-4", "id-other", "status-unknown")]
        )
        for short, comment, change in chosen:
            c.refuse(bad, JSON if short in STRICT else DOCUMENT, f"{label}-{short}", f"The {name} {comment}.", change)
        for short, comment, change in (
            ("unicode", "is not ASCII", before(name, lambda t: t.replace(b"UpToDate", "UpToD\u0430te".encode()))),
            ("deep", "is nested 33 deep, the endorsements included", before(name, lambda t: nested(t, 31))),
        ):
            if tee == "sgx":
                # The endorsements' own bounds come first.
                c.refuse("endorsements-format", JSON, f"{label}-{short}", f"The {name} {comment}.", change)
        for short, comment, change in (
            ("bit", "a bit of its signature changed", signature(name, flip)),
            ("stranger", "a stranger's signature", signer(**{name: "stranger"})),
            ("changed", "a date changed after signing", after(name, lambda t: t.replace(b"2026-05-31", b"2026-05-30"))),
            ("reformatted", "a space added after signing", after(name, lambda t: t + b" ")),
            ("zeros", "a signature of zeros", signature(name, lambda s: bytes(len(s)))),
            ("by-pck-key", "the PCK key's signature beside the signer's chain", signer(**{name: "pck"})),
        ):
            c.refuse(f"{label}-signature", SIGNER, f"{label}-sig-{short}", f"The {name} with {comment}.", change)
        for short, comment, change in (
            ("by-pck", "signed by the processor itself", document_by_pck(name)),
            ("by-pck-ca", "signed by the PCK CA", document_by_ca(name)),
            ("by-root", "signed by the root itself", document_by_root(name)),
            (
                "by-below-ca",
                "signed by a certificate of the right name that the PCK CA issued",
                document_by_ca_signer(name),
            ),
            (
                "signer-name",
                "signed by a certificate for another use",
                document_signer(name, subject={"CN": "Another"}),
            ),
            (
                "signer-nameless",
                "signed by a certificate without a common name",
                document_signer(name, subject={"O": "TCB Signing"}),
            ),
            ("signer-authority", "signed by an authority", document_signer(name, ca=True, usage=("key_cert_sign",))),
            (
                "signer-critical",
                "whose signer has a critical extension that nobody knows",
                document_signer(name, extensions={"1.3.6.1.4.1.99999.1": (True, b"\5\0")}),
            ),
            ("signer-stranger", "whose signer a stranger signed", do(document_signer(name), signer(second="stranger"))),
            ("signer-cut", "whose signer is cut", do(document_signer(name), after("second", lambda b: b[:-1]))),
            ("signer-only-root", "whose chain is the root", chain(name, "root")),
        ):
            if tee == "sgx" or short.startswith("by-"):
                c.refuse(f"{label}-chain", SIGNER, f"{label}-{short}", f"The {name} {comment}.", change)
        for short, comment, change in (
            ("expired", "is over since a second", said(name, nextUpdate="2026-06-01T11:59:59Z")),
            ("future", "is issued in a second", said(name, issueDate="2026-06-01T12:00:01Z")),
            ("signer-expired", "has a signer that expired a second ago", document_signer(name, not_after=NOW - SECOND)),
            ("signer-future", "has a signer of the next second", document_signer(name, not_before=NOW + SECOND)),
        ):
            c.refuse(f"{label}-expired", PERIOD, f"{label}-{short}", f"The {name} {comment}.", change)


def lower_id(name: str) -> Change:
    return lambda d: getattr(d, name).update(id=getattr(d, name)["id"].lower())


def levels(name: str, **members: Any) -> Change:
    """Other members of the first level; None takes one away."""

    def change(d: IntelDraft) -> None:
        first = getattr(d, name)["tcbLevels"][0]
        for key, value in members.items():
            first.pop(key, None)
            if value is not None:
                first[key] = value

    return change


def doubled_status(data: bytes) -> bytes:
    return data.replace(b'"tcbStatus":"UpToDate"', b'"tcbStatus":"Revoked","tcbStatus":"UpToDate"', 1)


def nested(data: bytes, depth: int) -> bytes:
    return data[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"


def tcb_infos(c: Cases, tee: str) -> None:
    bad = "tcb-info-format"
    shapes: list[tuple[str, str, Change]] = [
        ("fmspc-missing", "no FMSPC", without("tcb_info", "fmspc")),
        ("fmspc-5", "an FMSPC of five bytes", said("tcb_info", fmspc="0011223344")),
        ("fmspc-hex", "an FMSPC that is no hex", said("tcb_info", fmspc="00112233445g")),
        ("fmspc-spaces", "space in its FMSPC", said("tcb_info", fmspc="00 11 22 33 44 55")),
        ("fmspc-number", "a number for its FMSPC", said("tcb_info", fmspc=1)),
        ("pce-id-missing", "no PCE id", without("tcb_info", "pceId")),
        ("pce-id-1", "a PCE id of one byte", said("tcb_info", pceId="00")),
        ("tcb-type-1", "a TCB type that nobody knows", said("tcb_info", tcbType=1)),
        ("tcb-type-missing", "no TCB type", without("tcb_info", "tcbType")),
        ("components-15", "15 components", lambda d: d.level["tcb"]["sgxtcbcomponents"].pop()),
        ("components-17", "17 components", lambda d: d.level["tcb"]["sgxtcbcomponents"].append({"svn": 0})),
        ("components-missing", "no components", lambda d: d.level["tcb"].pop("sgxtcbcomponents")),
        ("components-object", "an object for its components", lambda d: d.level["tcb"].update(sgxtcbcomponents={})),
        ("component-text", "text for a component", lambda d: d.level["tcb"]["sgxtcbcomponents"].__setitem__(3, "2")),
        ("component-65536", "a component above two bytes", component("sgxtcbcomponents", 4, 65536)),
        ("component-negative", "a component below zero", component("sgxtcbcomponents", 4, -1)),
        ("component-true", "a component that is true", component("sgxtcbcomponents", 4, True)),
        ("component-null", "a component that is null", component("sgxtcbcomponents", 4, None)),
        (
            "component-svn-missing",
            "a component without a version",
            lambda d: d.level["tcb"]["sgxtcbcomponents"][3].clear(),
        ),
        ("pce-svn-missing", "no PCESVN", lambda d: d.level["tcb"].pop("pcesvn")),
        ("pce-svn-65536", "a PCESVN above two bytes", lambda d: d.level["tcb"].update(pcesvn=65536)),
        (
            "second-level",
            "a second level that is malformed",
            lambda d: d.tcb_info["tcbLevels"].append({"tcbStatus": "UpToDate"}),
        ),
    ]
    if tee == "tdx":
        shapes = [
            ("tdx-components-15", "15 TDX components", lambda d: d.level["tcb"]["tdxtcbcomponents"].pop()),
            ("tdx-components-missing", "no TDX components", lambda d: d.level["tcb"].pop("tdxtcbcomponents")),
            ("tdx-component-65536", "a TDX component above two bytes", component("tdxtcbcomponents", 4, 65536)),
            ("module-missing", "no TDX module", without("tcb_info", "tdxModule")),
            ("module-text", "text for the TDX module", said("tcb_info", tdxModule="TDX")),
            ("module-signer-47", "a signer of 47 bytes", lambda d: d.tcb_info["tdxModule"].update(mrsigner="00" * 47)),
            (
                "module-mask-7",
                "a mask of seven bytes",
                lambda d: d.tcb_info["tdxModule"].update(attributesMask="FF" * 7),
            ),
            (
                "module-attributes-9",
                "attributes of nine bytes",
                lambda d: d.tcb_info["tdxModule"].update(attributes="00" * 9),
            ),
            ("modules-object", "an object for the modules", said("tcb_info", tdxModuleIdentities={})),
            (
                "modules-twice",
                "a module twice",
                lambda d: d.tcb_info["tdxModuleIdentities"].append(d.tcb_info["tdxModuleIdentities"][0]),
            ),
            (
                "modules-twice-case",
                "a module twice, once in lower case",
                lambda d: d.tcb_info["tdxModuleIdentities"].append(
                    d.tcb_info["tdxModuleIdentities"][0] | {"id": "tdx_01"}
                ),
            ),
            ("modules-id-number", "a number for a module's id", module(0, id=1)),
            (
                "modules-levels-missing",
                "a module without levels",
                lambda d: d.tcb_info["tdxModuleIdentities"][0].pop("tcbLevels"),
            ),
            (
                "modules-status",
                "a status that is not for modules",
                module(
                    0,
                    tcbLevels=[
                        {"tcb": {"isvsvn": 5}, "tcbDate": "2026-05-31T12:00:00Z", "tcbStatus": "SWHardeningNeeded"}
                    ],
                ),
            ),
            (
                "modules-svn",
                "a version above two bytes",
                module(
                    0,
                    tcbLevels=[{"tcb": {"isvsvn": 65536}, "tcbDate": "2026-05-31T12:00:00Z", "tcbStatus": "UpToDate"}],
                ),
            ),
            ("version-2", "version 2, which has no TDX", said("tcb_info", version=2)),
        ]
    else:
        c.refuse(
            bad, DOCUMENT, "tcb-info-v2-id", "TCB info 2 that says its kind.", said("tcb_info", id="SGX"), tcb_info=2
        )
        c.refuse(
            bad,
            DOCUMENT,
            "tcb-info-v2-component-missing",
            "TCB info 2 without its last component.",
            lambda d: d.level["tcb"].pop("sgxtcbcomp16svn"),
            tcb_info=2,
        )
        c.refuse(
            bad,
            DOCUMENT,
            "tcb-info-v2-component-65536",
            "TCB info 2 with a component above two bytes.",
            lambda d: d.level["tcb"].update(sgxtcbcomp05svn=65536),
            tcb_info=2,
        )
        c.refuse(
            bad,
            DOCUMENT,
            "tcb-info-v3-form-2",
            "TCB info 3 in the form of 2.",
            lambda d: d.tcb_info_2().tcb_info.update(version=3, id="SGX"),
        )
    for name, comment, change in shapes:
        c.refuse(bad, DOCUMENT, f"tcb-info-{name}", f"TCB info with {comment}.", change)
    for name, comment, change in (
        ("fmspc", "of another kind of platform", said("tcb_info", fmspc="00112233AABB")),
        ("pce-id", "of another provisioning enclave", said("tcb_info", pceId="0001")),
        ("pck-fmspc", "of another kind than the PCK certificate's", sgx("4", der(4, b"\0\x11\x22\x33\xaa\xbb"))),
        ("pck-pce-id", "of another provisioning enclave than the PCK certificate's", sgx("3", der(4, b"\0\1"))),
    ):
        c.refuse("tcb-info-mismatch", MATCH, f"mismatch-{name}", f"TCB info {comment}.", change)


def qe_identity_1(threshold: int) -> Change:
    """The version before: no levels, one threshold."""

    def change(d: IntelDraft) -> None:
        for name in ("tcbLevels", "tcbEvaluationDataNumber"):
            del d.qe_identity[name]
        d.qe_identity.update(version=1, isvsvn=threshold)

    return change


def qe_identities(c: Cases, tee: str) -> None:
    bad = "qe-identity-format"
    if tee == "sgx":
        for name, comment, change in (
            ("mrsigner-31", "a signer of 31 bytes", said("qe_identity", mrsigner="00" * 31)),
            ("mrsigner-missing", "no signer", without("qe_identity", "mrsigner")),
            ("product-missing", "no product", without("qe_identity", "isvprodid")),
            ("product-65536", "a product above two bytes", said("qe_identity", isvprodid=65536)),
            ("product-text", "text for its product", said("qe_identity", isvprodid="1")),
            ("misc-3", "a MISCSELECT of three bytes", said("qe_identity", miscselect="000000")),
            ("misc-mask-missing", "no mask for MISCSELECT", without("qe_identity", "miscselectMask")),
            ("attributes-15", "attributes of 15 bytes", said("qe_identity", attributes="00" * 15)),
            ("mask-17", "a mask of 17 bytes", said("qe_identity", attributesMask="00" * 17)),
            ("svn-missing", "a level without a version", lambda d: d.qe_level["tcb"].clear()),
            ("svn-65536", "a version above two bytes", lambda d: d.qe_level["tcb"].update(isvsvn=65536)),
            ("svn-text", "text for a version", lambda d: d.qe_level["tcb"].update(isvsvn="8")),
            (
                "status-sw",
                "a status that is not for quoting enclaves",
                lambda d: d.qe_level.update(tcbStatus="SWHardeningNeeded"),
            ),
            ("version-3", "a later version", said("qe_identity", version=3)),
            ("1-threshold", "version 1 and no threshold", do(qe_identity_1(8), without("qe_identity", "isvsvn"))),
            ("1-tdx", "version 1, which has no TDX", said("qe_identity", version=1, id="TD_QE")),
        ):
            c.refuse(bad, DOCUMENT, f"qe-identity-{name}", f"QE identity with {comment}.", change)
    other = "TD_QE" if tee == "sgx" else "QE"
    c.refuse(
        "qe-identity-mismatch", QE, "qe-other-tee", "The QE identity of the other TEE.", said("qe_identity", id=other)
    )
    swapped = int.from_bytes(bytes.fromhex("12000000000000000000000000000000"), "little")
    for code, name, comment, change in (
        ("qe-vendor", "qe-vendor", "A quoting enclave of another vendor.", header(qe_vendor_id=bytes(16))),
        ("qe-mrsigner", "qe-mrsigner", "A quoting enclave of another signer.", qe(mrsigner=b"\1" * 32)),
        (
            "qe-mrsigner",
            "qe-identity-mrsigner",
            "An identity of another signer.",
            said("qe_identity", mrsigner="11" * 32),
        ),
        ("qe-product", "qe-product", "Another enclave of Intel's.", qe(isv_prod_id=3)),
        ("qe-product", "qe-identity-product", "An identity of another product.", said("qe_identity", isvprodid=3)),
        ("qe-misc-select", "qe-misc", "A quoting enclave with extended information.", qe(misc_select=1)),
        ("qe-misc-select", "qe-misc-last", "The last bit of its MISCSELECT.", qe(misc_select=1 << 31)),
        ("qe-attributes", "qe-debug", "A quoting enclave that can be debugged.", qe(attributes=0x13)),
        ("qe-attributes", "qe-no-provision", "A quoting enclave without the provisioning key.", qe(attributes=0x01)),
        ("qe-attributes", "qe-attributes", "A quoting enclave that is not initialised.", qe(attributes=0x10)),
        (
            "qe-attributes",
            "qe-identity-attributes",
            "An identity with other attributes.",
            said("qe_identity", attributes=f"{swapped:032x}"),
        ),
        ("tcb-unsupported", "qe-svn", "A quoting enclave older than every level.", qe(isv_svn=7)),
        ("tcb-unsupported", "qe-levels-none", "A QE identity without a level.", said("qe_identity", tcbLevels=[])),
        (
            "tcb-revoked",
            "qe-revoked",
            "The quoting enclave's level is revoked.",
            lambda d: d.qe_level.update(tcbStatus="Revoked"),
        ),
    ):
        c.refuse(code, {"tcb-unsupported": UNSUPPORTED, "tcb-revoked": REVOKED}.get(code, QE), name, comment, change)
    if tee == "sgx":
        c.refuse(
            "qe-mrsigner",
            QE,
            "qe-of-tdx",
            "The quoting enclave of TDX.",
            lambda d: d.qe_report.set(mrsigner=TD_QE, isv_prod_id=2),
        )
    else:
        c.refuse(
            "qe-mrsigner",
            QE,
            "qe-of-sgx",
            "The quoting enclave of SGX.",
            lambda d: d.qe_report.set(mrsigner=SGX_QE, isv_prod_id=1),
        )


def lists(c: Cases, tee: str) -> None:
    for name, what, authority in (("root_crl", "root-crl", "root"), ("pck_crl", "pck-crl", "pck_ca")):
        changes: list[tuple[str, str, str, Change]] = [
            ("issuer", "stranger", "a stranger signed", signer(**{name: "stranger"})),
            ("issuer", "bit", "a bit of the signature changed of", lambda d, n=name: d.at_signature(n, flip)),
            ("issuer", "name", "another name issued", crl(name, issuer={"CN": "another"})),
            ("expired", "expired", "a second ago ended", crl(name, next_update=NOW - SECOND)),
            ("expired", "future", "the next second begins", crl(name, this_update=NOW + SECOND)),
        ]
        if tee == "sgx":
            changes += [
                ("issuer", "by-tcb-signer", "the TCB signer signed", signer(**{name: "tcb_signer"})),
                ("issuer", "by-pck", "the PCK key signed", signer(**{name: "pck"})),
                (
                    "issuer",
                    "critical",
                    "that has a critical extension:",
                    crl(name, extensions={"1.3.6.1.4.1.99999.1": (True, b"\5\0")}),
                ),
                ("issuer", "delta", "that has changes only:", crl(name, extensions={"2.5.29.27": (True, integer(1))})),
                ("format", "cut", "that is cut:", after(name, lambda b: b[:-1])),
                ("format", "long", "that has a byte after it:", after(name, lambda b: b + b"\0")),
                ("format", "no-end", "that does not end:", crl(name, next_update=None)),
            ]
        for kind, short, comment, change in changes:
            c.refuse(
                f"{what}-{kind}",
                {"expired": PERIOD, "format": MEMBERS}.get(kind, REVOCATION),
                f"{what}-{short}",
                f"The list of the {authority} that {comment} it.".replace("that that", "that"),
                change,
            )
    for code, name, comment, change in (
        ("pck-revoked", "revoked-pck", "The CA revoked the PCK certificate.", revoke("pck_crl", "pck")),
        (
            "pck-revoked",
            "revoked-serial-0",
            "The CA revoked the PCK certificate, which has number 0.",
            do(certificate("pck", serial=0), lambda d: d.pck_crl.revoked.append(0)),
        ),
        ("pck-ca-revoked", "revoked-pck-ca", "The root revoked the PCK CA.", revoke("root_crl", "pck_ca")),
        (
            "tcb-signer-revoked",
            "revoked-tcb-signer",
            "The root revoked the TCB signer.",
            revoke("root_crl", "tcb_signer"),
        ),
        (
            "tcb-signer-revoked",
            "revoked-qe-signer",
            "The root revoked the signer of the QE identity alone.",
            do(document_signer("qe_identity"), revoke("root_crl", "second")),
        ),
        (
            "tcb-signer-revoked",
            "revoked-tcb-info-signer",
            "The root revoked the signer of the TCB info alone.",
            do(document_signer("tcb_info"), revoke("root_crl", "second")),
        ),
    ):
        c.refuse(code, REVOCATION, name, comment, change)
    if tee == "sgx":
        c.refuse(
            "pck-revoked",
            REVOCATION,
            "revoked-last",
            "The PCK certificate is the last of many.",
            do(lambda d: d.pck_crl.revoked.extend(range(1000, 1100)), revoke("pck_crl", "pck")),
        )
        c.refuse(
            "pck-ca-revoked",
            REVOCATION,
            "revoked-without-pck-crl",
            "The root revoked the PCK CA; its own list is missing.",
            do(revoke("root_crl", "pck_ca"), field(pck_crl=None)),
        )
        c.refuse(
            "pck-revoked",
            REVOCATION,
            "revoked-without-root-crl",
            "The CA revoked the PCK certificate; the root's list is missing.",
            do(revoke("pck_crl", "pck"), field(root_crl=None)),
        )
        c.refuse(
            "tcb-info-chain",
            SIGNER,
            "other-pki",
            "The endorsements of a platform under another root.",
            text(lambda _: IntelPki.create(now=NOW, seed=b"another").sgx().endorsements),
        )
        c.refuse("root-crl-issuer", REVOCATION, "lists-swapped", "Each list in the other's place.", text(swap_lists))


def swap_lists(data: bytes) -> bytes:
    members = json.loads(data)
    members["root_ca_crl"], members["pck_crl"] = members["pck_crl"], members["root_ca_crl"]
    return json.dumps(members).encode()


def tcb_levels(c: Cases, tee: str) -> None:
    none = "tcb-unsupported"
    c.refuse("tcb-revoked", REVOKED, "level-revoked", "The platform's level is revoked.", level(tcbStatus="Revoked"))
    c.refuse(none, UNSUPPORTED, "levels-none", "TCB info without a level.", said("tcb_info", tcbLevels=[]))
    for number in (1, 9, 16) if tee == "sgx" else (16,):
        c.refuse(
            none,
            UNSUPPORTED,
            f"component-{number}",
            f"Component {number} is older than every level.",
            component("sgxtcbcomponents", number, 3),
        )
        c.refuse(
            none,
            UNSUPPORTED,
            f"pck-component-{number}",
            f"Component {number} of the PCK certificate is older.",
            sgx(f"2.{number}", integer(1)),
        )
    c.refuse(
        none,
        UNSUPPORTED,
        "pce-svn",
        "The provisioning enclave is older than every level.",
        lambda d: d.level["tcb"].update(pcesvn=12),
    )
    c.refuse(
        none,
        UNSUPPORTED,
        "pck-pce-svn",
        "The PCK certificate's PCESVN is older than every level.",
        sgx("2.17", integer(10)),
    )
    if tee == "sgx":
        c.refuse(
            none,
            UNSUPPORTED,
            "v2-component",
            "Component 16 is older than every level, in TCB info 2.",
            lambda d: d.level["tcb"].update(sgxtcbcomp16svn=3),
            tcb_info=2,
        )
        c.refuse(
            "tcb-revoked",
            REVOKED,
            "v2-revoked",
            "The platform's level is revoked, in TCB info 2.",
            level(tcbStatus="Revoked"),
            tcb_info=2,
        )
        c.refuse(
            "tcb-info-mismatch", MATCH, "tdx-info", "TCB info of TDX.", lambda d: setattr(d, "tcb_info", td_info())
        )


def td_info() -> dict[str, Any]:
    return IntelPki.create(now=NOW).tdx_draft().tcb_info


def tdx_levels(c: Cases) -> None:
    none, other = "tcb-unsupported", "tdx-module-mismatch"
    c.refuse(
        "tcb-info-mismatch",
        MATCH,
        "sgx-info",
        "TCB info of SGX.",
        lambda d: setattr(d, "tcb_info", IntelPki.create(now=NOW).sgx_draft().tcb_info),
    )
    c.refuse(
        none,
        UNSUPPORTED,
        "tdx-component-3",
        "TDX component 3 is older than every level.",
        component("tdxtcbcomponents", 3, 7),
    )
    c.refuse(
        none,
        UNSUPPORTED,
        "tdx-component-16",
        "TDX component 16 is older than every level.",
        component("tdxtcbcomponents", 16, 1),
    )
    c.refuse(
        none,
        UNSUPPORTED,
        "tdx-report-svn",
        "The TD report's third version is older than every level.",
        body(tee_tcb_svn=bytes((5, 1, 5)) + bytes(13)),
    )
    c.refuse(
        none,
        UNSUPPORTED,
        "tdx-component-1",
        "TDX 1.0: component 1 is older than every level.",
        component("tdxtcbcomponents", 1, 6),
        module=0,
    )
    c.refuse(
        none,
        UNSUPPORTED,
        "module-old",
        "The TDX module is older than every level.",
        body(tee_tcb_svn=bytes((2, 1, 6)) + bytes(13)),
    )
    c.refuse(none, UNSUPPORTED, "module-unknown", "A TDX module of a version that is not listed.", module=2)
    c.refuse(
        none,
        UNSUPPORTED,
        "modules-none",
        "No TDX module is listed by version.",
        without("tcb_info", "tdxModuleIdentities"),
    )
    c.refuse(none, UNSUPPORTED, "modules-levels-none", "The TDX module has no level.", module(0, tcbLevels=[]))
    c.refuse(
        "tcb-revoked",
        REVOKED,
        "module-revoked",
        "The TDX module's level is revoked.",
        lambda d: d.tcb_info["tdxModuleIdentities"][0]["tcbLevels"][0].update(tcbStatus="Revoked"),
    )
    v5 = {"version": 5, "body": 3}
    c.refuse(
        none,
        UNSUPPORTED,
        "current-old",
        "The TDX module that runs now is older than every level.",
        body(tee_tcb_svn2=bytes((2, 1, 6)) + bytes(13)),
        **v5,
    )
    c.refuse(
        none,
        UNSUPPORTED,
        "current-unknown",
        "The TDX module that runs now is not listed.",
        body(tee_tcb_svn2=bytes((5, 2, 6)) + bytes(13)),
        **v5,
    )
    c.refuse(
        none,
        UNSUPPORTED,
        "current-component",
        "The third version that runs now is older than every level.",
        body(tee_tcb_svn2=bytes((5, 1, 5)) + bytes(13)),
        **v5,
    )
    c.refuse(
        "tcb-revoked",
        REVOKED,
        "current-revoked",
        "The level of the TDX module that runs now is revoked.",
        do(
            body(tee_tcb_svn2=bytes((3, 1, 6)) + bytes(13)),
            lambda d: d.tcb_info["tdxModuleIdentities"][0]["tcbLevels"][1].update(tcbStatus="Revoked"),
        ),
        **v5,
    )
    for name, comment, change, options in (
        ("mrsignerseam", "A TDX module of another signer.", body(mrsignerseam=b"\1" * 48), {}),
        ("module-signer", "An identity of another signer.", module(0, mrsigner="11" * 48), {}),
        ("module-0-signer", "TDX 1.0: a module of another signer.", body(mrsignerseam=b"\1" * 48), {"module": 0}),
        (
            "module-0-identity",
            "TDX 1.0: an identity of another signer.",
            lambda d: d.tcb_info["tdxModule"].update(mrsigner="11" * 48),
            {"module": 0},
        ),
        (
            "module-3-signer",
            "The third version's identity is of another signer.",
            module(1, mrsigner="11" * 48),
            {"module": 3},
        ),
        ("seam-attributes", "A TDX module with an attribute.", body(seam_attributes=1), {}),
        ("seam-attributes-debug", "A TDX module that can be debugged.", body(seam_attributes=1 << 63), {}),
        ("seam-attributes-identity", "An identity with an attribute.", module(0, attributes="01" + "00" * 7), {}),
        (
            "seam-attributes-masked",
            "An attribute that the identity's mask leaves out.",
            do(body(seam_attributes=1), module(0, attributesMask="00" * 8)),
            {},
        ),
    ):
        c.refuse(other, MODULE, name, comment, change, **options)


# ICSSD, LASS, SEPT_VE_DISABLE, PKS, KL, TPA, PERFMON.
KNOWN_TD = sum(1 << bit for bit in (16, 27, 28, 30, 31, 62, 63))
ADVICE = ["TEST-SA-00001"]
BELOW = {
    "tcb": {"sgxtcbcomponents": [{"svn": 1}] * 16, "pcesvn": 5, "tdxtcbcomponents": [{"svn": 0}] * 16},
    "tcbDate": "2024-03-13T00:00:00Z",
    "tcbStatus": "OutOfDate",
    "advisoryIDs": ["TEST-SA-00003"],
}


def passing(c: Cases, tee: str) -> None:
    parts = ["platform", "qe", *(["tdx_module"] if tee == "tdx" else [])]

    def claims(status: str = "UpToDate", *remarks: str, debug: bool = False, **said: Any) -> dict[str, Any]:
        statuses = {part: said.pop(part, "UpToDate") for part in (*parts, *said.pop("more", ()))}
        advisories = said.pop("advisories", [])
        assert not said
        return {
            "debug": debug,
            "remarks": sorted({"dynamic-platform", *remarks}),
            "tcb_status": status,
            "statuses": {k: v for k, v in statuses.items() if v},
            "advisories": advisories,
        }

    def passes(spec: str, name: str, comment: str, change: Change | None, told: dict[str, Any], **options: Any) -> None:
        c.accept(spec, name, comment, change, claims=told, **options)

    for status in ("SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate"):
        if tee == "sgx" or status == "OutOfDate":
            change = level(tcbStatus=status, advisoryIDs=ADVICE)
            told = claims(status, platform=status, advisories=ADVICE)
            passes(STATUS, f"status-{status.lower()}", f"A platform of status {status}.", change, told)
    passes(
        LEVEL,
        "second-level",
        "A platform that reaches the second level only.",
        do(lambda d: d.tcb_info["tcbLevels"].append(BELOW), component("sgxtcbcomponents", 2, 3)),
        claims("OutOfDate", platform="OutOfDate", advisories=["TEST-SA-00003"]),
    )
    passes(
        STATUS,
        "qe-outofdate",
        "The platform needs configuration, the quoting enclave is out of date.",
        do(level(tcbStatus="ConfigurationNeeded"), lambda d: d.qe_level.update(tcbStatus="OutOfDate")),
        claims("OutOfDateConfigurationNeeded", platform="ConfigurationNeeded", qe="OutOfDate"),
    )
    passes(
        REVOCATION,
        "no-lists",
        "Without revocation lists.",
        field(root_crl=None, pck_crl=None),
        claims("UpToDate", "revocation-unknown"),
    )
    passes(
        REVOCATION,
        "other-revoked",
        "The lists name others.",
        do(lambda d: d.pck_crl.revoked.append(4711), lambda d: d.root_crl.revoked.append(4711)),
        claims(),
    )
    for name, other in (("root_crl", "PCK CA's"), ("pck_crl", "root's")):
        comment = f"With the {other} list alone."
        missing = claims("UpToDate", "revocation-unknown")
        passes(REVOCATION, f"no-{name.replace('_', '-')}", comment, field(**{name: None}), missing)
    if tee == "sgx":
        passes(
            REVOCATION,
            "serial-0",
            "The CA revoked number 1; the PCK certificate has 0.",
            do(certificate("pck", serial=0), lambda d: d.pck_crl.revoked.append(1)),
            claims(),
        )
        passes(
            CHAIN,
            "ca-no-usage",
            "The PCK CA does not say what its key is for.",
            certificate("pck_ca", usage=None),
            claims(),
        )
        passes(CHAIN, "root-editions", "Another certificate of the root's key comes first.", two_roots, claims())
        known = body(attributes=(0x4F5).to_bytes(8, "little") + b"\3" + bytes(7))
        passes(REMARKS, "attributes-known", "Every attribute whose meaning is published.", known, claims())
        unknown = body(attributes=b"\x8d" + bytes(7) + b"\3" + bytes(7))
        told = claims("UpToDate", "unknown-attributes")
        passes(REMARKS, "attributes", "An attribute that nobody knows.", unknown, told)
        passes(PERIOD, "edge", "All that ages begins and ends at this very second.", edge, claims())
        for version in (3, 4, 5):
            passes(SHAPE, f"v{version}", f"Quote version {version}.", None, claims(), version=version)
        passes(
            MEMBERS,
            "crl-chain-text",
            "The chain of the PCK CA is carried, not used.",
            member("pck_crl_issuer_chain", "CA"),
            claims(),
        )
        passes(DOCUMENT, "tcb-info-2", "TCB info 2.", None, claims(), tcb_info=2)
        for document in DOCUMENTS:
            label = document.replace("_", "-")
            passes(
                JSON,
                f"{label}-nested",
                f"The {document} is nested 32 deep, the endorsements included.",
                before(document, lambda t: nested(t, 30)),
                claims(),
            )
            passes(
                DOCUMENT,
                f"{label}-extra",
                f"The {document} has members that Intel may add.",
                said(document, tdxModuleIdentities=5, new={"a": [1]}),
                claims(),
            )
            passes(
                DOCUMENT,
                f"{label}-number-largest",
                f"The largest evaluation number of the {document}.",
                said(document, tcbEvaluationDataNumber=2**31 - 1),
                claims(),
            )
        passes(
            STATUS,
            "hardening-outofdate",
            "The platform needs hardening, the quoting enclave is out of date.",
            do(level(tcbStatus="SWHardeningNeeded"), lambda d: d.qe_level.update(tcbStatus="OutOfDate")),
            claims("OutOfDate", platform="SWHardeningNeeded", qe="OutOfDate"),
        )
        passes(MEMBERS, "largest", "Endorsements of 512 KiB.", text(lambda t: t + b" " * (524288 - len(t))), claims())
        passes(DOCUMENT, "qe-identity-1", "QE identity 1.", qe_identity_1(8), claims())
        old_qe = claims("OutOfDate", qe="OutOfDate")
        passes(LEVEL, "qe-identity-1-old", "A quoting enclave below the threshold.", qe_identity_1(9), old_qe)
        passes(DEBUG, "debug", "A debug enclave, and said.", None, claims(debug=True), debug=True)
        passes(
            IDENTIFIERS,
            "type-1",
            "A platform id; the chain is in the endorsements.",
            platform_id(),
            claims(),
        )
        passes(IDENTIFIERS, "type-1-short", "A platform id without PCE id.", platform_id(pce_id=b""), claims())
        for name, comment, change in (
            ("chain-order", "The root in the middle of the chain.", chain("quote", "pck", "root", "pck_ca")),
            ("chain-nul", "A NUL after the chain.", after("chain", lambda p: p + b"\0")),
            ("chain-der", "The chain in DER, root first.", in_der),
            ("chain-eight", "Eight certificates.", chain("quote", "pck", "pck_ca", *["root"] * 6)),
            ("chain-der-eight", "Eight certificates in DER.", lambda d: in_der(d, *["root"] * 6, "pck_ca", "pck")),
        ):
            passes(CHAIN_FORM, name, comment, change, claims())
        passes(
            LEVEL,
            "level-unreachable",
            "A level above what a component can have, before the platform's.",
            lambda d: d.tcb_info["tcbLevels"].insert(0, unreachable(d.level)),
            claims(),
        )
        passes(
            QUOTE_SIGNATURES,
            "twin",
            "The twin of each signature: n - s.",
            do(numbers("quote", lambda r, s: (r, ORDER - s)), numbers("qe_report", lambda r, s: (r, ORDER - s))),
            claims(),
        )
        single = claims()
        single["remarks"] = []
        passes(
            EXTENSION,
            "large-versions",
            "A component above 127 and a PCESVN of two bytes.",
            do(sgx("2.1", integer(200)), sgx("2.17", integer(258))),
            claims(),
        )
        passes(
            EXTENSION,
            "largest-versions",
            "The largest component, PCESVN and type.",
            do(sgx("2.1", integer(255)), sgx("2.17", integer(65535)), sgx("5", b"\x0a\1\2")),
            claims(),
        )
        passes(EXTENSION, "processor", "A PCK certificate of one processor.", one_processor, single)
        passes(
            EXTENSION,
            "flags",
            "A platform with hyper-threading and cached keys.",
            do(sgx("7.2", b"\1\1\xff"), sgx("7.3", b"\1\1\xff")),
            claims("UpToDate", "cached-keys", "smt"),
        )
        return
    for version, report in ((4, 2), (5, 2)):
        passes(
            SHAPE, f"v{version}-{report}", f"Quote version {version}, TD report 1.0.", None, claims(), version=version
        )
    v5: dict[str, Any] = {"version": 5, "body": 3}
    current = {"more": ("current_platform", "current_tdx_module")}
    passes(CLAIMS, "v5-3", "Quote version 5, TD report 1.5.", None, claims(**current), **v5)
    passes(MODULE, "module-0", "TDX 1.0: no module has levels of its own.", None, claims(tdx_module=""), module=0)
    passes(MODULE, "module-3", "The third version of the TDX module.", None, claims(), module=3)
    passes(DEBUG, "debug", "A debug TD, and said.", None, claims(debug=True), debug=True)
    passes(TRAILING, "largest", "A buffer of 65536 bytes.", after("quote", lambda q: q.ljust(65536, b"\0")), claims())
    passes(TRAILING, "trailing", "A buffer larger than its quote.", field(trailing=bytes(100)), claims())
    for name, comment, bits, remark in (
        ("attributes-known", "Every attribute whose meaning is published.", KNOWN_TD, []),
        ("sept-ve", "A TD that sees exceptions of its private memory.", 0, ["sept-ve-enabled"]),
        ("migratable", "A TD that can migrate.", 1 << 28 | 1 << 29, ["migratable", "hidden-service-td"]),
        ("attributes", "A TD attribute that nobody knows.", 1 << 28 | 1 << 40, ["unknown-attributes"]),
    ):
        passes(REMARKS, name, comment, body(td_attributes=bits), claims("UpToDate", *remark))
    passes(
        REMARKS,
        "service-td",
        "A TD that a service TD watches over.",
        body(mrservicetd=b"\1" * 48),
        claims("UpToDate", "service-td", **current),
        **v5,
    )
    old = bytes((3, 1, 6)) + bytes(13)
    advice = ["TEST-SA-00002"]
    passes(
        MODULE,
        "module-outofdate",
        "The TDX module is out of date.",
        body(tee_tcb_svn=old),
        claims("OutOfDate", tdx_module="OutOfDate", advisories=advice),
    )
    passes(
        STATUS,
        "still-outofdate",
        "Launched under an old TDX module, which still runs.",
        body(tee_tcb_svn=old, tee_tcb_svn2=old),
        claims(
            "OutOfDate",
            tdx_module="OutOfDate",
            current_tdx_module="OutOfDate",
            advisories=advice,
            more=("current_platform", "current_tdx_module"),
        ),
        **v5,
    )
    passes(
        STATUS,
        "downgraded",
        "Launched under a newer TDX module than runs.",
        body(tee_tcb_svn2=old),
        claims(
            "OutOfDate",
            current_tdx_module="OutOfDate",
            advisories=advice,
            more=("current_platform", "current_tdx_module"),
        ),
        **v5,
    )
    passes(
        STATUS,
        "relaunch-configuration",
        "Launched under an old TDX module, on a platform that needs configuration.",
        do(body(tee_tcb_svn=old), one_down),
        claims(
            "TDRelaunchAdvisedConfigurationNeeded",
            "relaunch-advised",
            platform="ConfigurationNeeded",
            current_platform="ConfigurationNeeded",
            tdx_module="OutOfDate",
            advisories=advice,
            more=("current_platform", "current_tdx_module"),
        ),
        **v5,
    )
    passes(
        STATUS,
        "relaunch",
        "Launched under an old TDX module, which was updated since.",
        body(tee_tcb_svn=old),
        claims("TDRelaunchAdvised", "relaunch-advised", tdx_module="OutOfDate", advisories=advice, **current),
        **v5,
    )


def two_roots(d: IntelDraft) -> None:
    subject = d.certificates["root"].subject
    new(d, "edition", "root", above="root", key="root", subject=subject, serial=1)
    d.chains["quote"] = ["pck", "pck_ca", "edition", "root"]


def one_down(d: IntelDraft) -> None:
    """The platform needs configuration."""
    d.level.update(tcbStatus="ConfigurationNeeded")


def in_der(d: IntelDraft, *names: str) -> None:
    d.after_signing("chain", lambda _: b"".join(d.certificate(n) for n in names or ("root", "pck_ca", "pck")))


def unreachable(of: dict[str, Any]) -> dict[str, Any]:
    components = [{"svn": 256}, *of["tcb"]["sgxtcbcomponents"][1:]]
    return of | {"tcb": of["tcb"] | {"sgxtcbcomponents": components}, "tcbStatus": "Revoked"}


def one_processor(d: IntelDraft) -> None:
    d.sgx = {end: value for end, value in d.sgx.items() if end[0] not in "67"} | {"5": b"\x0a\1\0"}


def edge(d: IntelDraft) -> None:
    for name in ("pck", "tcb_signer"):
        d.certificates[name].set(not_before=NOW, not_after=NOW)
    for name in DOCUMENTS:
        getattr(d, name).update(issueDate="2026-06-01T12:00:00Z", nextUpdate="2026-06-01T12:00:00Z")
    for crl in (d.root_crl, d.pck_crl):
        crl.set(this_update=NOW, next_update=NOW)


def facts(d: IntelDraft) -> dict[str, Any]:
    def moment(text: str) -> datetime:
        return datetime.fromisoformat(text)

    names = {"pck", "pck_ca", "root", d.chains["tcb_info"][0], d.chains["qe_identity"][0]}
    periods = [(d.certificates[n].not_before, d.certificates[n].not_after) for n in sorted(names)]
    aging = [(moment(t["issueDate"]), moment(t["nextUpdate"])) for t in (d.tcb_info, d.qe_identity)]
    aging += [(crl.this_update, crl.next_update) for crl in (d.root_crl, d.pck_crl) if crl]
    if d.tee == "sgx":
        measurements: dict[str, Any] = {n: d.body[n].hex() for n in ("mrenclave", "mrsigner", "attributes", "cpu_svn")}
        numbers = {n: int.from_bytes(d.body[n], "little") for n in ("isv_prod_id", "isv_svn")}
        measurements |= numbers
    else:
        measurements = {n: d.body[n].hex() for n in d.body.names if n != "report_data"}
    return {
        "measurements": measurements,
        "report_data": d.body["report_data"].hex(),
        "platform": d.sgx["1"][2:].hex(),
        **window([*periods, *aging], [begin for begin, _ in aging]),
    }


def cases() -> list[Case]:
    pki = IntelPki.create(now=NOW)
    s, t = Cases("sgx", pki.sgx, facts), Cases("tdx", pki.tdx, facts)
    for c in (s, t):
        passing(c, c.tee)
        quotes(c, c.tee)
        pck_chains(c, c.tee)
        signatures(c, c.tee)
        documents(c, c.tee)
        tcb_infos(c, c.tee)
        qe_identities(c, c.tee)
        lists(c, c.tee)
        tcb_levels(c, c.tee)
    for part in (sgx_quotes, certifications, extensions, endorsements):
        part(s)
    for part in (tdx_quotes, tdx_levels):
        part(t)
    return [*s.found, *t.found]
