"""NVIDIA reports that verify, with one thing changed, signed again where a signature covers it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from tests._nvidia import (
    COMPOSITE,
    DAY,
    DEVICE_ROOT,
    FOREVER,
    FWID,
    FWID_OID,
    NONCE,
    NOW,
    SERIAL,
    TCB_INFO,
    YEAR,
    Link,
    Nvidia,
    certify,
    composite,
    device_information,
    fingerprint,
    fwid,
    pem,
    tcb_info,
    tlv,
)

from conclave.attestation.nvidia import parse_report, verify_report
from conclave.attestation.nvidia.device import read_device
from conclave.errors import BindingError, ChainError, Error, ExpiredError, FormatError, SignatureError

CHIPS = ("GH100", "GB100", "LS_10")
SECOND = timedelta(seconds=1)


def refused(case: Nvidia, kind: type[Error], code: str, **options: Any) -> None:
    with pytest.raises(Error) as caught:
        case.verify(**options)
    assert type(caught.value) is kind, caught.value
    assert caught.value.code == code


# What passes.


@pytest.mark.spec("GPU-5", "GPU-7", "GPU-8", "GPU-9", "GPU-10")
@pytest.mark.parametrize("chip", CHIPS)
def test_the_evidence_that_all_others_are_made_from_verifies(chip: str) -> None:
    case = Nvidia(chip)
    claims = case.verify()
    switch = chip == "LS_10"
    assert claims.kind == ("switch" if switch else "gpu")
    assert claims.architecture == {"GH100": "HOPPER", "GB100": "BLACKWELL", "LS_10": "LS10"}[chip]
    assert (claims.chip, claims.device_id) == (chip, f"NVIDIA:{chip}:{SERIAL}")
    leaf, device, *_, root = case.certificates()
    assert (claims.certificate, claims.device_certificate) == (fingerprint(leaf), fingerprint(device))
    assert {claims.anchor} == case.anchors == {fingerprint(root)}
    assert claims.driver_version == (None if switch else "550.90.07")
    assert claims.vbios_version == ("96.10.55.00.01" if switch else "96.00.5E.00.01")
    assert claims.measurements == {index: f"{index:02x}" * 48 for index in range(1, 65)}
    assert claims.nonce == NONCE
    assert claims.mode == ""
    assert claims.details["fwid"] == FWID.hex()
    assert claims.details["responder_nonce"] == bytes(range(200, 232)).hex()
    assert [s.name for s in claims.steps] == ["path", "signature", "device", "firmware", "nonce", "claims"]
    assert (claims.valid_from, claims.valid_until) == (NOW - 3 * YEAR, FOREVER)
    json.dumps(dict(claims.details))


@pytest.mark.spec("GPU-11")
def test_what_a_gpu_says_of_itself_is_told() -> None:
    said = {34: b"\1\0", 36: b"\1\0", 22: bytes(range(16)), 21: b"\x55", 11: b"\x55", 35: b"GH100\0", 33: b"\7\7"}
    claims = Nvidia(fields=said).verify()
    assert claims.mode == "SPT"
    told = claims.details
    assert told["switch_pdis"] == ["0001020304050607", "08090a0b0c0d0e0f"]
    assert (told["nvdec0_status"], told["protected_pcie_status"]) == ("disabled", "disabled")
    assert (told["chip_sku"], told["project"], told["project_sku_mod"]) == ("882", "1010", "")
    assert (told["opaque_data_version"], told["feature_flag"], told["chip_info"]) == (1, 1, "GH100")
    assert told["measurement_counts"] == [0, 1, 4, 1]
    assert told["sys_enable_status"] == "0707"
    assert told["vbios_version_raw"] == "005e009601000000"
    assert claims.remarks == {"revocation-unknown"}


@pytest.mark.spec("GPU-11")
def test_what_is_not_known_is_told_as_it_is() -> None:
    claims = Nvidia(fields={200: b"\1\2", 11: b"\x77"}).verify()
    assert claims.details["field_200"] == "0102"
    assert claims.details["nvdec0_status"] == "77"
    # Numbers mean something else in a switch.
    switch = Nvidia("LS_10", fields={36: b"\1", 32: b"\2"}).verify()
    assert (switch.details["field_36"], switch.details["field_32"], switch.mode) == ("01", "02", "")
    assert switch.details["pdi"] == "203eb31ad9ed0008"


@pytest.mark.spec("GPU-11")
@pytest.mark.parametrize(
    ("version", "flag", "mode", "remark"),
    [
        (b"\1", b"\0", "MPT", None),
        (b"\1", b"\1", "SPT", None),
        (b"\1", b"\2", "PPCIE", "protected-pcie"),
        (b"\1", b"\3", "", "mode-unknown"),
        (b"\1", None, "", "mode-unknown"),
        (b"\0", b"\2", "", None),
        (None, b"\2", "", None),
    ],
)
def test_modes(version: bytes | None, flag: bytes | None, mode: str, remark: str | None) -> None:
    claims = Nvidia(fields={34: version, 36: flag}).verify()
    assert claims.mode == mode
    assert claims.remarks == {"revocation-unknown"} | ({remark} if remark else set())


def test_protected_pcie_by_its_status() -> None:
    assert "protected-pcie" in Nvidia(fields={21: b"\xaa"}).verify().remarks


@pytest.mark.spec("GPU-11")
@pytest.mark.parametrize(
    ("flags", "debug", "words"),
    [
        (None, None, set()),
        (0x00000001, False, set()),
        (0x80000001, False, {"not-configured"}),
        (0x10000001, True, {"debug"}),
        (0x70000000, True, {"not-secure", "recovery", "debug"}),
        (0x0FC00000, False, {"not-replay-protected", "not-integrity-protected", "not-runtime-measured",
                             "not-immutable", "not-tcb", "bit-9"}),
    ],
)  # fmt: skip
def test_flags_of_the_firmware(flags: int | None, debug: bool | None, words: set[str]) -> None:
    claims = Nvidia("GB100", extension=(TCB_INFO, tcb_info(flags=flags))).verify()
    assert claims.debug is debug
    assert claims.remarks == {"revocation-unknown"} | words
    assert claims.details["svn"] == 3


def test_a_certificate_without_flags_says_nothing_of_debugging() -> None:
    claims = Nvidia().verify()
    assert claims.debug is None
    assert claims.details["svn"] is None


# Time.


@pytest.mark.spec("GPU-6")
def test_outside_of_any_certificates_time_it_is_expired() -> None:
    device = Link("GH100 A01 GSP BROM", "device", begin=NOW - DAY, end=NOW + DAY)
    case = Nvidia(links={"device": device})
    claims = case.verify()
    assert (claims.valid_from, claims.valid_until) == (NOW - DAY, NOW + DAY)
    for edge, outside in ((NOW - DAY, -SECOND), (NOW + DAY, SECOND)):
        assert case.but(now=edge).verify()
        refused(case.but(now=edge + outside), ExpiredError, "gpu-expired")
    refused(case.but(now=datetime(1960, 1, 1, tzinfo=UTC)), ExpiredError, "gpu-expired")
    refused(Nvidia(leaf={"end": NOW - DAY}), ExpiredError, "gpu-expired")


# Chains.

CHAINS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "root alone": lambda c: c[-1:],
    "no root": lambda c: c[:-1],
    "one missing": lambda c: c[:2] + c[3:],
    "one twice": lambda c: [*c[:2], c[1], *c[2:]],
    "one too many": lambda c: [*c, certify(Link("Another", "another"), Link("Another", "another"))],
    "root twice": lambda c: [*c, c[-1]],
    "last two exchanged": lambda c: [*c[:3], c[4], c[3]],
    "no certificate": lambda c: [*c[:4], b"\x30\x00"],
    "another root of that name": lambda c: [
        *c[:4], certify(Link(DEVICE_ROOT.name, "other"), Link(DEVICE_ROOT.name, "other"))
    ],
}  # fmt: skip


@pytest.mark.spec("GPU-5")
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_that_is_none_is_refused(name: str) -> None:
    refused(Nvidia(chain=CHAINS[name]), ChainError, "gpu-chain")


@pytest.mark.spec("GPU-5")
def test_a_link_that_another_key_signed() -> None:
    def exchanged(chain: list[bytes]) -> list[bytes]:
        forged = certify(Link("GH100 A01 GSP BROM", "device"), Link("NVIDIA GH100 Provisioner ICA 1", "other"))
        return [chain[0], forged, *chain[2:]]

    refused(Nvidia(chain=exchanged), ChainError, "gpu-chain")


@pytest.mark.spec("GPU-5")
@pytest.mark.parametrize(
    "changes",
    [
        {"provisioner": Link("NVIDIA GH100 Provisioner ICA 1", "provisioner", ca=False)},
        {"family": Link("NVIDIA GH100 Identity", "family", path_length=1)},
        {
            "provisioner": Link(
                "NVIDIA GH100 Provisioner ICA 1",
                "provisioner",
                extensions=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True),),
            )
        },
    ],
)
def test_a_link_that_may_not_issue(changes: dict[str, Link]) -> None:
    refused(Nvidia(links=changes), ChainError, "gpu-chain")


@pytest.mark.spec("GPU-8")
@pytest.mark.parametrize("gone", ["device", "provisioner", "family"])
def test_the_chain_has_no_fewer_than_five_steps(gone: str) -> None:
    refused(Nvidia(links={gone: None}), ChainError, "gpu-chain")


@pytest.mark.spec("GPU-8")
def test_the_chain_has_no_more_than_five_steps() -> None:
    case = Nvidia(links={"root": Link("Another family", "another"), "above": DEVICE_ROOT})
    chain = case.certificates()
    assert len(chain) == 6
    with pytest.raises(ChainError) as caught:
        verify_report(parse_report(case.report()), pem(chain), nonce=NONCE, anchors=Nvidia().anchors, now=NOW)
    assert caught.value.code == "gpu-chain"


@pytest.mark.spec("GPU-7")
def test_the_certificate_of_the_device_did_not_sign() -> None:
    """The chain without its first certificate, which leads to the root all the same."""
    refused(Nvidia(chain=lambda c: c[1:]), SignatureError, "gpu-report-signature")


@pytest.mark.spec("GPU-5")
def test_an_anchor_that_is_not_pinned_is_refused() -> None:
    case = Nvidia()
    chain, report = case.certificates(), parse_report(case.report())
    for anchors in (frozenset[str](), frozenset({fingerprint(chain[3])}), frozenset({fingerprint(chain[0])})):
        with pytest.raises(ChainError) as caught:
            verify_report(report, pem(chain), nonce=NONCE, anchors=anchors, now=NOW)
        assert caught.value.code == "gpu-chain"


@pytest.mark.spec("GPU-5")
@pytest.mark.parametrize("text", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"])
def test_certificates_are_pem(text: bytes) -> None:
    case = Nvidia()
    good = pem(case.certificates())
    for chain in (text, good + b"x", good * 2, good + b"\n" * 32768):
        with pytest.raises(FormatError) as caught:
            verify_report(parse_report(case.report()), chain, nonce=NONCE, anchors=case.anchors, now=NOW)
        assert caught.value.code == "gpu-chain-format"


# Signature, firmware, nonce.


@pytest.mark.spec("GPU-7")
def test_another_key_did_not_sign() -> None:
    refused(Nvidia(signer="other"), SignatureError, "gpu-report-signature")
    refused(Nvidia(leaf={"key": "other"}), SignatureError, "gpu-report-signature")


@pytest.mark.spec("GPU-7")
def test_a_key_of_another_curve_signs_nothing() -> None:
    refused(Nvidia(leaf={"key": "p256"}), SignatureError, "gpu-report-signature")


@pytest.mark.spec("GPU-7")
def test_a_signature_of_zeros_does_not_verify() -> None:
    case = Nvidia()
    report = parse_report(case.body() + bytes(96))
    with pytest.raises(SignatureError):
        verify_report(report, pem(case.certificates()), nonce=NONCE, anchors=case.anchors, now=NOW)


@pytest.mark.spec("GPU-9")
def test_the_report_is_of_the_certified_firmware() -> None:
    refused(Nvidia(fields={20: bytes(48)}), BindingError, "gpu-firmware")
    refused(Nvidia(extension=(COMPOSITE, composite(digest=bytes(48)))), BindingError, "gpu-firmware")
    # Older firmware does not name itself; its key stands for it.
    claims = Nvidia(fields={20: None}).verify()
    assert claims.details["fwid"] == FWID.hex()
    assert claims.steps[3].detail == "not named by the report"


@pytest.mark.spec("GPU-10")
def test_the_nonce_is_compared() -> None:
    for other in (bytes(32), NONCE[:31], NONCE + b"\0", b""):
        refused(Nvidia(), BindingError, "gpu-nonce", nonce=other)
    refused(Nvidia(nonce=bytes(32)), BindingError, "gpu-nonce")
    claims = Nvidia(nonce=bytes(32)).verify(nonce=None)
    assert "nonce-unchecked" in claims.remarks
    assert claims.nonce == bytes(32)
    assert "nonce-unchecked" not in Nvidia().verify().remarks


# The certificate of the report key.

SHA256_OID = bytes.fromhex("0609608648016503040201")
SEQ = 0x30
EXTENSIONS: dict[str, tuple[str, bytes]] = {
    "composite of version 2": (COMPOSITE, composite(version=2)),
    "composite of version 0": (COMPOSITE, composite(version=0)),
    "composite with a tail": (COMPOSITE, composite() + b"\0"),
    "composite that is empty": (COMPOSITE, tlv(SEQ)),
    "composite of something else": (COMPOSITE, b"\5\0"),
    "composite without firmware": (COMPOSITE, tlv(SEQ, b"\2\1\1", tlv(SEQ))),
    "composite with more": (COMPOSITE, tlv(SEQ, b"\2\1\1", tlv(SEQ), fwid(), fwid())),
    "composite whose key is none": (COMPOSITE, tlv(SEQ, b"\2\1\1", b"\5\0", fwid())),
    "firmware by SHA-256": (COMPOSITE, tlv(SEQ, b"\2\1\1", tlv(SEQ), fwid(bytes(32), SHA256_OID))),
    "firmware of 32 bytes": (COMPOSITE, tlv(SEQ, b"\2\1\1", tlv(SEQ), fwid(bytes(32)))),
    "firmware by another algorithm": (COMPOSITE, tlv(SEQ, b"\2\1\1", tlv(SEQ), fwid(FWID, SHA256_OID))),
    "firmware as another string": (COMPOSITE, tlv(SEQ, b"\2\1\1", tlv(SEQ), tlv(SEQ, FWID_OID, tlv(3, FWID)))),
    "firmware with more": (COMPOSITE, tlv(SEQ, b"\2\1\1", tlv(SEQ), tlv(SEQ, FWID_OID, tlv(4, FWID), b"\5\0"))),
    "TCB info under the other name": (COMPOSITE, tcb_info()),
    "composite under the other name": (TCB_INFO, composite()),
    "TCB info without firmware": (TCB_INFO, tlv(SEQ, tlv(0x80, b"NVIDIA"))),
    "TCB info with no firmware": (TCB_INFO, tlv(SEQ, tlv(0xA6))),
    "TCB info with too much firmware": (TCB_INFO, tlv(SEQ, tlv(0xA6, *[tlv(SEQ, FWID_OID, tlv(4, FWID))] * 9))),
    "TCB info with bad firmware second": (TCB_INFO, tlv(SEQ, tlv(0xA6, fwid(), b"\5\0"))),
    "TCB info out of order": (TCB_INFO, tlv(SEQ, tlv(0xA6, fwid()), tlv(0x80, b"NVIDIA"))),
    "TCB info with a member twice": (TCB_INFO, tlv(SEQ, tlv(0x80, b"a"), tlv(0x80, b"b"), tlv(0xA6, fwid()))),
    "TCB info with firmware twice": (TCB_INFO, tlv(SEQ, tlv(0x86, b"a"), tlv(0xA6, fwid()))),
    "TCB info with a plain member": (TCB_INFO, tlv(SEQ, tlv(0x04, b"a"), tlv(0xA6, fwid()))),
    "flags of 16 bits": (TCB_INFO, tlv(SEQ, tlv(0xA6, fwid()), tlv(0x87, b"\0\x80\0"))),
    "flags with unused bits": (TCB_INFO, tlv(SEQ, tlv(0xA6, fwid()), tlv(0x87, b"\1\x80\0\0\0"))),
    "security version that is negative": (TCB_INFO, tlv(SEQ, tlv(0x83, b"\xff"), tlv(0xA6, fwid()))),
    "neither": ("1.2.3.4", composite()),
}


@pytest.mark.spec("GPU-8")
@pytest.mark.parametrize("name", EXTENSIONS)
def test_the_extension_has_its_one_form(name: str) -> None:
    refused(Nvidia(extension=EXTENSIONS[name]), ChainError, "gpu-certificate")


@pytest.mark.spec("GPU-8")
def test_there_is_one_extension() -> None:
    both = tuple(
        (x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), False)
        for oid, value in ((COMPOSITE, composite()), (TCB_INFO, tcb_info()))
    )
    named = ((device_information(f"NVIDIA:GH100:{SERIAL}"), False),)
    refused(Nvidia(leaf={"extensions": (*named, *both)}), ChainError, "gpu-certificate")
    assert Nvidia(leaf={"extensions": (*named, both[0])}).verify()
    refused(Nvidia(leaf={"extensions": both[:1]}), ChainError, "gpu-certificate")


NAMES: dict[str, Any] = {
    "unknown chip": device_information(f"NVIDIA:GA100:{SERIAL}"),
    "another vendor": device_information(f"AMD:GH100:{SERIAL}"),
    "short serial number": device_information("NVIDIA:GH100:48B0"),
    "no serial number": device_information("NVIDIA:GH100:"),
    "serial number in lower case": device_information(f"NVIDIA:GH100:{SERIAL.lower()}"),
    "something behind": device_information(f"NVIDIA:GH100:{SERIAL}\n"),
    "something before": device_information(f" NVIDIA:GH100:{SERIAL}"),
    "another kind of name": device_information(f"NVIDIA:GH100:{SERIAL}", oid="1.3.6.1.4.1.412.274.2"),
    "another kind of text": device_information(f"NVIDIA:GH100:{SERIAL}", tag=0x16),
    "a host name": x509.SubjectAlternativeName([x509.DNSName("gpu.example")]),
    "two names": x509.SubjectAlternativeName(
        [*device_information(f"NVIDIA:GH100:{SERIAL}"), *device_information(f"NVIDIA:GB100:{SERIAL}")]
    ),
    "two texts": x509.SubjectAlternativeName(
        [x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1"), tlv(SEQ, tlv(0x0C, b"NVIDIA")))]
    ),
}


@pytest.mark.spec("GPU-8")
@pytest.mark.parametrize("name", NAMES)
def test_the_certificate_names_a_known_device(name: str) -> None:
    refused(Nvidia(information=NAMES[name]), ChainError, "gpu-certificate")


class Raw:
    """A certificate by its extensions alone: the library would not parse, or make, all that is tried here."""

    authority = False

    def __init__(self, name: bytes) -> None:
        self._extensions = {"2.5.29.15": b"\3\2\7\x80", "2.5.29.17": name, COMPOSITE: composite()}

    def extension(self, oid: str) -> bytes | None:
        return self._extensions.get(oid)


OID = tlv(6, bytes.fromhex("2b06010401831c821201"))
TEXT = tlv(0x0C, f"NVIDIA:GH100:{SERIAL}".encode())


@pytest.mark.spec("GPU-8")
def test_the_name_has_its_one_encoding() -> None:
    assert read_device(Raw(tlv(SEQ, tlv(0xA0, OID, tlv(0xA0, TEXT))))).chip == "GH100"  # type: ignore[arg-type]
    for name in (
        tlv(SEQ, tlv(0xA4, OID, tlv(0xA0, TEXT))),
        tlv(SEQ, tlv(0xA0, OID, tlv(0xA1, TEXT))),
        tlv(SEQ, tlv(0xA0, OID, tlv(0xA0, TEXT, TEXT))),
        tlv(SEQ, tlv(0xA0, OID, tlv(0xA0, TEXT), TEXT)),
        tlv(SEQ, tlv(0xA0, OID, tlv(0xA0, TEXT))) + b"\0",
        tlv(0x31, tlv(0xA0, OID, tlv(0xA0, TEXT))),
        b"",
    ):
        with pytest.raises(ChainError) as caught:
            read_device(Raw(name))  # type: ignore[arg-type]
        assert caught.value.code == "gpu-certificate"


@pytest.mark.spec("GPU-8")
@pytest.mark.parametrize("changes", [{"usage": ""}, {"usage": "none"}, {"ca": True}, {"ca": True, "usage": "both"}])
def test_the_key_is_for_signing_reports(changes: dict[str, Any]) -> None:
    refused(Nvidia(leaf=changes), ChainError, "gpu-certificate")


# NVIDIA's own fields, once their signature holds.

FIELDS: dict[str, tuple[str, dict[int, bytes | None]]] = {
    "no VBIOS version": ("GH100", {6: None}),
    "empty VBIOS version": ("GH100", {6: b""}),
    "short VBIOS version": ("GH100", {6: bytes(7)}),
    "long VBIOS version": ("GH100", {6: bytes(9)}),
    "VBIOS version with more": ("GH100", {6: bytes.fromhex("005e009601000001")}),
    "VBIOS version as a text": ("GH100", {6: b"96.10.55.00.01"}),
    "no driver version": ("GH100", {3: None}),
    "empty driver version": ("GH100", {3: b"\0"}),
    "driver version not printable": ("GH100", {3: b"550\x07"}),
    "driver version not ASCII": ("GH100", {3: b"550\xe9"}),
    "driver version with a zero within": ("GH100", {3: b"550\0.90"}),
    "short firmware id": ("GH100", {20: FWID[:47]}),
    "counts that end within one": ("GH100", {12: bytes(7)}),
    "switches that end within one": ("GH100", {22: bytes(15)}),
    "status of no byte": ("GH100", {11: b""}),
    "flag of too many bytes": ("GH100", {36: bytes(9)}),
    "version of own fields of too many bytes": ("GH100", {34: bytes(9)}),
    "switch: no version": ("LS_10", {6: None}),
    "switch: version as bytes": ("LS_10", {6: bytes.fromhex("005e009601000000")}),
    "switch: version with more": ("LS_10", {6: b"96.10.55.00.01\0"}),
    "switch: short version": ("LS_10", {6: b"96.10.55.00"}),
}


@pytest.mark.spec("GPU-11")
@pytest.mark.parametrize("name", FIELDS)
def test_own_fields_have_their_one_form(name: str) -> None:
    chip, fields = FIELDS[name]
    refused(Nvidia(chip, fields=fields), FormatError, "gpu-report-format")
