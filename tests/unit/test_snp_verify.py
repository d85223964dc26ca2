"""SEV-SNP evidence that verifies, with one thing changed, signed again where a signature covers it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from tests._amd import CPUID, DAY, HWID, NOW, TCB, YEAR, Amd, authority, integer, pem, text

from conclave.attestation.snp import parse_report, verify_report
from conclave.errors import (
    BindingError,
    ChainError,
    Error,
    ExpiredError,
    FormatError,
    RevokedError,
    SignatureError,
    VerificationError,
)

PRODUCTS = ("Milan", "Genoa", "Turin")
KINDS = ("VCEK", "VLEK")
SECOND = timedelta(seconds=1)


def refused(case: Amd, kind: type[Error], code: str) -> None:
    with pytest.raises(Error) as caught:
        case.verify()
    assert type(caught.value) is kind, caught.value
    assert caught.value.code == code


# What passes.


@pytest.mark.spec("SNP-7", "SNP-11", "SNP-12", "SNP-13", "SNP-14")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("version", [2, 3, 5])
def test_the_evidence_that_all_others_are_made_from_verifies(product: str, kind: str, version: int) -> None:
    case = Amd(product, kind, fields={"version": version})
    claims = case.verify()
    assert claims.tee == "snp"
    assert {claims.anchor} == case.anchors
    assert (claims.tcb_status, claims.statuses, claims.advisories, claims.tcb_date) == ("", {}, (), None)
    assert not claims.debug
    assert claims.report_data == bytes(range(64))
    assert claims.measurements == {
        "measurement": bytes(range(48)).hex(),
        "host_data": bytes(range(32)).hex(),
        "id_key_digest": bytes(48).hex(),
        "author_key_digest": bytes(48).hex(),
    }
    assert claims.details["product"] == product
    assert claims.details["signing_key"] == kind
    assert claims.details["reported_tcb"] == TCB[product]
    assert [s.name for s in claims.steps] == [
        "signing key", "endorsements", "path", "revocation", "product", "signature", "TCB version", "chip", "claims",
    ]  # fmt: skip


@pytest.mark.spec("SNP-16")
def test_what_the_report_says_is_told_and_never_refused() -> None:
    fields: dict[str, int | bytes] = {
        "version": 5,
        "policy": (1 << 26) - 1,
        "platform_info": 0x85,
        "vmpl": 3,
        "guest_svn": 9,
        "key_info": 3,
        "report_id_ma": bytes(range(32)),
        "current_build": 21, "current_minor": 55, "current_major": 1,
        "committed_build": 20, "committed_minor": 54, "committed_major": 1,
        "launch_mit_vector": 5,
        "current_mit_vector": 7,
    }  # fmt: skip
    claims = Amd("Genoa", fields=fields, crl={}).verify()
    assert claims.debug
    assert claims.remarks == {
        "mask-chip-key", "smt-allowed", "migration-agent", "vmpl-above-zero", "alias-check-missing",
    }  # fmt: skip
    told = claims.details
    assert told["policy"] == "0x3ffffff"
    assert told["abi"] == "255.255"
    assert told["policy_flags"] == [
        "smt", "migrate_ma", "debug", "single_socket", "cxl_allow", "mem_aes_256_xts", "rapl_dis", "ciphertext_hiding",
        "page_swap_disable",
    ]  # fmt: skip
    assert told["platform_flags"] == ["smt_en", "ecc_en", "tio_en"]
    assert (told["vmpl"], told["guest_svn"], told["mask_chip_key"], told["author_key_en"]) == (3, 9, 1, 1)
    assert (told["current_version"], told["committed_version"]) == ("1.55.21", "1.54.20")
    assert (told["launch_mit_vector"], told["current_mit_vector"]) == ("05" + "00" * 7, "07" + "00" * 7)
    assert told["tcb"] == {"boot_loader": 10, "tee": 0, "snp": 23, "microcode": 84}
    assert told["cpuid_fam_model_step"] == "191101"
    assert told["crl_number"] == 7
    assert told["csp_id"] is None
    json.dumps(dict(told))


def test_before_a_version_its_fields_are_not_told() -> None:
    told = Amd(fields={"version": 2}).verify().details
    assert told["cpuid_fam_model_step"] is None
    assert "launch_mit_vector" not in told
    assert "alias-check-missing" not in Amd(fields={"version": 2, "platform_info": 0}).verify().remarks
    assert "alias-check-missing" in Amd(fields={"version": 3, "platform_info": 0}).verify().remarks


def test_a_migration_agent_is_told_whether_allowed_or_associated() -> None:
    assert "migration-agent" not in Amd(fields={"report_id_ma": bytes(32)}).verify().remarks
    assert "migration-agent" in Amd(fields={"report_id_ma": bytes(31) + b"\1"}).verify().remarks
    assert "migration-agent" in Amd(fields={"policy": 0x60000}).verify().remarks
    assert "smt-allowed" not in Amd(fields={"policy": 0x20000}).verify().remarks


def test_the_parts_of_a_turin_tcb_version() -> None:
    assert Amd("Turin").verify().details["tcb"] == {"fmc": 1, "boot_loader": 1, "tee": 1, "snp": 4, "microcode": 81}


@pytest.mark.spec("SNP-11")
@pytest.mark.parametrize(
    ("product", "family", "model"),
    [("Milan", 0x19, 0x0F), ("Genoa", 0x19, 0x1F), ("Genoa", 0x19, 0xA0), ("Genoa", 0x19, 0xAF), ("Turin", 0x1A, 0x1F)],
)
def test_models_of_a_product(product: str, family: int, model: int) -> None:
    claims = Amd(product, fields={"cpuid_family": family, "cpuid_model": model, "cpuid_stepping": 2}).verify()
    assert claims.details["cpuid_fam_model_step"] == bytes((family, model, 2)).hex()


@pytest.mark.spec("SNP-14")
@pytest.mark.parametrize("product", PRODUCTS)
def test_the_platform_is_the_chip_of_the_certificate(product: str) -> None:
    chip = HWID[product].ljust(64, b"\0").hex()
    assert Amd(product).verify().platform == chip
    masked = Amd(product, fields={"chip_id": bytes(64), "key_info": 2}).verify()
    assert masked.platform == chip
    assert {"masked-chip-id", "mask-chip-key"} <= masked.remarks


@pytest.mark.spec("SNP-15")
def test_a_key_of_a_provider_names_no_chip() -> None:
    claims = Amd(kind="VLEK").verify()
    assert claims.platform == ""
    assert {"vlek", "masked-chip-id"} <= claims.remarks
    assert claims.details["csp_id"] == "CN=cloud.example"
    said = Amd(kind="VLEK", fields={"chip_id": bytes(range(64))}).verify()
    assert said.platform == bytes(range(64)).hex()
    assert "masked-chip-id" not in said.remarks


# Time and revocation.


@pytest.mark.spec("SNP-8")
def test_the_window_is_that_of_everything_used() -> None:
    claims = Amd().verify()
    assert (claims.valid_from, claims.valid_until) == (NOW - 30 * DAY, NOW + 7 * YEAR)
    assert claims.oldest_issue_date == NOW - 30 * DAY
    listed = Amd(crl={}).verify()
    assert (listed.valid_from, listed.valid_until) == (NOW - 10 * DAY, NOW - 10 * DAY + YEAR)
    assert listed.oldest_issue_date == NOW - 10 * DAY
    assert "revocation-unknown" in claims.remarks
    assert "revocation-unknown" not in listed.remarks


@pytest.mark.spec("SNP-8", "SNP-9")
@pytest.mark.parametrize("kind", KINDS)
def test_outside_of_it_evidence_is_expired(kind: str) -> None:
    case = Amd(kind=kind)
    for edge, outside in ((NOW - 30 * DAY, -SECOND), (NOW + 7 * YEAR, SECOND)):
        assert case.but(now=edge).verify()
        refused(case.but(now=edge + outside), ExpiredError, f"{kind.lower()}-expired")
    refused(case.but(now=datetime(1960, 1, 1, tzinfo=UTC)), ExpiredError, f"{kind.lower()}-expired")
    refused(case.but(now=datetime(9999, 12, 31, tzinfo=UTC)), ExpiredError, f"{kind.lower()}-expired")
    listed = case.but(crl={})
    for edge, outside in ((NOW - 10 * DAY, -SECOND), (NOW - 10 * DAY + YEAR, SECOND)):
        assert listed.but(now=edge).verify()
        refused(listed.but(now=edge + outside), ExpiredError, "ark-crl-expired")


@pytest.mark.spec("SNP-8")
def test_an_issuer_that_expired_counts() -> None:
    old = authority("SEV-Milan", "ARK-Milan", "ask", "ark", serial=0x10001, end=NOW - DAY)
    case = Amd()
    refused(case.but(members={"chain": pem(old, case.ark)}), ExpiredError, "vcek-expired")


@pytest.mark.spec("SNP-9")
@pytest.mark.parametrize(
    ("kind", "serial"), [("VCEK", 0x10001), ("VLEK", 0x10101), ("VCEK", 0x10000), ("VLEK", 0x10000)]
)
def test_a_revoked_issuer_is_refused(kind: str, serial: int) -> None:
    refused(Amd(kind=kind, crl={"revoked": (5, serial)}), RevokedError, f"{kind.lower()}-revoked")


@pytest.mark.spec("SNP-9")
def test_the_list_is_not_about_keys_of_another_issuer() -> None:
    # The endorsement key has serial number 1 here, which the ARK gave to something else.
    assert Amd(serial_zero=False, crl={"revoked": (1,)}).verify()


@pytest.mark.spec("SNP-9")
@pytest.mark.parametrize("crl", [{"by": "ask"}, {"name": "ARK-Genoa"}, {"by": "ask", "name": "SEV-Milan"}])
def test_a_list_of_another_authority_is_refused(crl: dict[str, str]) -> None:
    refused(Amd(crl=crl), ChainError, "ark-crl-issuer")


# Keys, chains, extensions.


@pytest.mark.spec("SNP-5")
def test_a_report_that_is_not_signed_is_refused_by_name() -> None:
    for signature in (bytes(72), b"\1" * 48 + bytes(24)):
        fields: dict[str, int | bytes] = {"key_info": 7 << 2, "signature_r": signature, "signature_s": signature}
        refused(Amd(fields=fields), SignatureError, "report-unsigned")


@pytest.mark.spec("SNP-12")
def test_another_key_did_not_sign() -> None:
    refused(Amd(signer="other"), SignatureError, "report-signature")
    refused(Amd(certified="other"), SignatureError, "report-signature")


@pytest.mark.spec("SNP-12")
def test_a_signature_of_zeros_does_not_verify() -> None:
    for name in ("signature_r", "signature_s"):
        refused(Amd(fields={name: bytes(72)}), SignatureError, "report-signature")


@pytest.mark.spec("SNP-11")
@pytest.mark.parametrize(("kind", "number"), [("VCEK", 1), ("VLEK", 0)])
def test_the_report_and_the_certificate_name_one_kind_of_key(kind: str, number: int) -> None:
    refused(Amd(kind=kind, fields={"key_info": number << 2}), BindingError, "report-signing-key")


CHAINS: dict[str, Callable[[Amd], Amd]] = {
    "of another product": lambda c: c.but(members={"chain": pem(Amd("Genoa").issuer, Amd("Genoa").ark)}),
    "of another kind": lambda c: c.but(members={"chain": pem(Amd(kind="VLEK").issuer, c.ark)}),
    "root twice": lambda c: c.but(members={"chain": pem(c.ark, c.ark)}),
    "issuer twice": lambda c: c.but(members={"chain": pem(c.issuer, c.issuer)}),
    "another root of that name": lambda c: c.but(
        members={"chain": pem(c.issuer, authority("ARK-Milan", "ARK-Milan", "ask", "ask", serial=0x10000))}
    ),
    "an issuer that another key signed": lambda c: c.but(
        members={"chain": pem(authority("SEV-Milan", "ARK-Milan", "ask", "asvk", serial=0x10001), c.ark)}
    ),
    "an issuer that is no authority": lambda c: c.but(ca=False),
    "an issuer with another name": lambda c: c.but(issuer_name="SEV-Genoa"),
    "an issuer of the other kind's name": lambda c: c.but(issuer_name="SEV-VLEK-Milan"),
    "a root with another name": lambda c: c.but(root_name="ARK-Genoa"),
    "the root for the key": lambda c: c.but(members={"certificate": c.ark.hex()}),
    "the issuer for the key": lambda c: c.but(members={"certificate": c.issuer.hex()}),
}


@pytest.mark.spec("SNP-7", "SNP-11")
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_that_is_not_this_keys_is_refused(name: str) -> None:
    refused(CHAINS[name](Amd()), ChainError, "vcek-chain")


@pytest.mark.spec("SNP-7")
def test_the_order_of_the_issuers_does_not_count() -> None:
    case = Amd()
    assert case.but(members={"chain": pem(case.ark, case.issuer)}).verify()


@pytest.mark.spec("SNP-7")
def test_an_anchor_that_is_not_pinned_is_refused() -> None:
    case = Amd()
    for anchors in (frozenset[str](), Amd("Genoa").anchors):
        with pytest.raises(ChainError) as caught:
            verify_report(parse_report(case.report()), case.endorsements(), anchors=anchors, now=NOW)
        assert caught.value.code == "vcek-chain"


@pytest.mark.spec("SNP-7")
def test_pinning_the_issuer_is_not_pinning_the_root() -> None:
    case = Amd()
    anchors = frozenset({hashlib.sha256(case.issuer).hexdigest()})
    with pytest.raises(ChainError) as caught:
        verify_report(parse_report(case.report()), case.endorsements(), anchors=anchors, now=NOW)
    assert caught.value.code == "vcek-chain"


EXTENSIONS: dict[str, dict[str, bytes | None]] = {
    "no structure version": {"1": None},
    "unknown structure version": {"1": integer(2)},
    "no product": {"2": None},
    "unknown product": {"2": text("Naples")},
    "product with a tail": {"2": text("Milan-B0x")},
    "product in lower case": {"2": text("milan")},
    "product as UTF8String": {"2": b"\x0c\x05Milan"},
    "product with a long length": {"2": b"\x16\x81\x05Milan"},
    "product longer than it says": {"2": b"\x16\x04Milan"},
    "product shorter than it says": {"2": b"\x16\x06Milan"},
    "product is not ASCII": {"2": b"\x16\x05Mil\xe4n"},
    "product is empty": {"2": b"\x16\x00"},
    "negative part": {"3.8": b"\x02\x01\xdb"},
    "part above 255": {"3.8": b"\x02\x02\x01\x00"},
    "part not in its shortest form": {"3.1": b"\x02\x02\x00\x04"},
    "part with a tail": {"3.1": b"\x02\x01\x04\x00"},
    "part of another type": {"3.1": b"\x0a\x01\x04"},
    "part that is empty": {"3.1": b""},
    "part of no bytes": {"3.1": b"\x02\x00"},
    "FMC where there is none": {"3.9": integer(0)},
    "neither chip nor provider": {"4": None},
    "chip and provider": {"5": text("CN=cloud.example")},
    "short hardware id": {"4": bytes(63)},
    "long hardware id": {"4": bytes(65)},
    "hardware id of the other length": {"4": bytes(8)},
    "hardware id in a string of its own": {"4": b"\x04\x40" + bytes(64)},
    **{f"no part {arc}": {f"3.{arc}": None} for arc in range(1, 9)},
}


@pytest.mark.spec("SNP-10")
@pytest.mark.parametrize("name", EXTENSIONS)
def test_extensions_have_their_one_form(name: str) -> None:
    refused(Amd(arcs=EXTENSIONS[name]), ChainError, "vcek-extensions")


@pytest.mark.spec("SNP-10")
@pytest.mark.parametrize(
    "arcs", [{"3.9": None}, {"3.1": None}, {"4": bytes(64)}, {"4": bytes(7)}, {"3.9": b"\x02\x02\x00\x01"}]
)
def test_extensions_of_turin_have_their_one_form(arcs: dict[str, bytes | None]) -> None:
    refused(Amd("Turin", arcs=arcs), ChainError, "vcek-extensions")


@pytest.mark.spec("SNP-10")
def test_turin_has_no_fourth_part() -> None:
    # Its layout has eight parts without it; what is not part of the TCB version is not asked about.
    assert Amd("Turin", arcs={"3.4": integer(9)}).verify().details["tcb"]["fmc"] == 1


@pytest.mark.spec("SNP-10", "SNP-15")
@pytest.mark.parametrize(
    "provider", [b"\x16\x00", text("x" * 65), text("a\nb"), b"\x16\x02\xc3\xa4", b"\x0c\x01a", b""]
)
def test_a_provider_is_a_short_printable_name(provider: bytes) -> None:
    refused(Amd(kind="VLEK", arcs={"5": provider}), ChainError, "vlek-extensions")
    assert Amd(kind="VLEK", arcs={"5": text("x" * 64)}).verify().details["csp_id"] == "x" * 64


@pytest.mark.spec("SNP-11")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [3, 5])
def test_the_processor_is_of_the_certified_product(kind: str, version: int) -> None:
    for product in PRODUCTS:
        for family, model, _ in (
            *(CPUID[p] for p in PRODUCTS if p != product),
            (0x17, 1, 0),
            (0, 0, 0),
            (0x1A, 0x20, 0),
        ):
            fields = {"version": version, "cpuid_family": family, "cpuid_model": model}
            refused(Amd(product, kind, fields=fields), BindingError, f"{kind.lower()}-product")


@pytest.mark.spec("SNP-11")
@pytest.mark.parametrize("product", ["Genoa", "Turin"])
def test_a_certificate_of_another_product_than_its_issuer(product: str) -> None:
    arcs: dict[str, bytes | None] = {"2": text(product), "3.9": integer(4) if product == "Turin" else None}
    if product == "Turin":
        arcs["4"] = bytes(8)
    refused(Amd(arcs=arcs), ChainError, "vcek-chain")


@pytest.mark.spec("SNP-13")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_the_tcb_version_is_the_certificates(product: str, kind: str) -> None:
    tcb = bytes.fromhex(TCB[product])
    for at in range(8):
        for value in ((tcb[at] + 1) % 256, (tcb[at] - 1) % 256):
            reported = tcb[:at] + bytes([value]) + tcb[at + 1 :]
            refused(Amd(product, kind, fields={"reported_tcb": reported}), BindingError, f"{kind.lower()}-tcb")
    for arc in ("3.1", "3.8"):
        refused(Amd(product, kind, arcs={arc: integer(0x7F)}), BindingError, f"{kind.lower()}-tcb")
    # The other TCB versions are told, not compared.
    others = {f"{which}_tcb": bytes(8) for which in ("current", "committed", "launch")}
    assert Amd(product, kind, fields=others).verify()


@pytest.mark.spec("SNP-13")
def test_the_layout_of_a_tcb_version_is_the_products() -> None:
    # The same four numbers, as a processor of the other layout would write them.
    refused(Amd("Turin", fields={"reported_tcb": bytes.fromhex("0101000000000451")}), BindingError, "vcek-tcb")
    refused(Amd("Milan", fields={"reported_tcb": bytes.fromhex("00040018000000db")}), BindingError, "vcek-tcb")


@pytest.mark.spec("SNP-14")
@pytest.mark.parametrize("product", PRODUCTS)
def test_the_chip_is_the_certificates(product: str) -> None:
    chip = HWID[product].ljust(64, b"\0")
    for at in (0, 7, 8, 63):
        other = chip[:at] + bytes([chip[at] ^ 1]) + chip[at + 1 :]
        refused(Amd(product, fields={"chip_id": other}), BindingError, "vcek-chip")
        refused(Amd(product, fields={"chip_id": other, "key_info": 2}), BindingError, "vcek-chip")
    size = len(HWID[product])
    refused(Amd(product, arcs={"4": bytes(size - 1) + b"\1"}), BindingError, "vcek-chip")


# Hostile endorsements.

MEMBERS: dict[str, Callable[[Amd], bytes]] = {
    "nothing": lambda c: b"",
    "no JSON": lambda c: b"{",
    "not UTF-8": lambda c: b'{"certificate": "\xff"}',
    "a list": lambda c: b"[]",
    "a number": lambda c: b"1",
    "null": lambda c: b"null",
    "missing member": lambda c: _without(c, "crl"),
    "missing certificate": lambda c: _without(c, "certificate"),
    "unknown member": lambda c: c.but(members={"more": ""}).endorsements(),
    "repeated member": lambda c: b'{"crl": "", ' + c.endorsements()[1:],
    "null member": lambda c: c.but(members={"crl": None}).endorsements(),
    "list as member": lambda c: c.but(members={"chain": ["a"]}).endorsements(),
    "something after": lambda c: c.endorsements() + b"{}",
    "deep nesting": lambda c: b"[" * 500_000,
    "deep objects": lambda c: b'{"certificate":' * 30_000,
    "too large": lambda c: c.endorsements() + b" " * 524_288,
    "many digits": lambda c: b"1" * 400_000,
    "no hex": lambda c: c.but(members={"certificate": "zz"}).endorsements(),
    "hex with spaces": lambda c: c.but(members={"certificate": " " + c.certificate().hex()}).endorsements(),
    "odd hex": lambda c: c.but(members={"certificate": c.certificate().hex()[:-1]}).endorsements(),
    "empty certificate": lambda c: c.but(members={"certificate": ""}).endorsements(),
    "not ASCII": lambda c: c.but(members={"certificate": "\u0661\u0662"}).endorsements(),
    "certificate cut": lambda c: c.but(members={"certificate": c.certificate().hex()[:-2]}).endorsements(),
    "certificate with a tail": lambda c: c.but(members={"certificate": c.certificate().hex() + "00"}).endorsements(),
    "certificate of zeros": lambda c: c.but(members={"certificate": "00" * 1000}).endorsements(),
    "certificate too large": lambda c: c.but(members={"certificate": "30" * 8193}).endorsements(),
    "no chain": lambda c: c.but(members={"chain": ""}).endorsements(),
    "one issuer": lambda c: c.but(members={"chain": pem(c.ark)}).endorsements(),
    "three issuers": lambda c: c.but(members={"chain": pem(c.issuer, c.issuer, c.ark)}).endorsements(),
    "issuer too large": lambda c: c.but(members={"chain": pem(b"0" * 8193, c.ark)}).endorsements(),
    "text in the chain": lambda c: c.but(members={"chain": "x" + pem(c.issuer, c.ark)}).endorsements(),
    "broken base64": lambda c: c.but(members={"chain": pem(c.issuer, c.ark).replace("M", "-", 1)}).endorsements(),
    "issuer of zeros": lambda c: c.but(members={"chain": pem(bytes(500), c.ark)}).endorsements(),
    "no list": lambda c: c.but(members={"crl": "00"}).endorsements(),
    "list cut": lambda c: c.but(members={"crl": c.but(crl={}).list().hex()[:-2]}).endorsements(),
    "certificate as list": lambda c: c.but(members={"crl": c.ark.hex()}).endorsements(),
}


def _without(case: Amd, member: str) -> bytes:
    members = json.loads(case.endorsements())
    del members[member]
    return json.dumps(members).encode()


@pytest.mark.spec("SNP-6")
@pytest.mark.parametrize("name", MEMBERS)
def test_malformed_endorsements_are_refused(name: str) -> None:
    case = Amd()
    with pytest.raises(FormatError) as caught:
        verify_report(parse_report(case.report()), MEMBERS[name](case), anchors=case.anchors, now=NOW)
    assert caught.value.code == "endorsements-format"


@pytest.mark.spec("SNP-6")
def test_a_certificate_has_at_most_8192_bytes() -> None:
    spare = 8192 - len(Amd(arcs={"99": bytes(6000)}).certificate()) + 6000
    assert len(Amd(arcs={"99": bytes(spare)}).certificate()) == 8192
    assert Amd(arcs={"99": bytes(spare)}).verify()
    refused(Amd(arcs={"99": bytes(spare + 1)}), FormatError, "endorsements-format")


@pytest.mark.spec("SNP-6")
def test_upper_case_hex_is_hex() -> None:
    case = Amd()
    assert case.but(members={"certificate": case.certificate().hex().upper()}).verify()


@pytest.mark.spec("SNP-6")
def test_hostile_endorsements_cost_little() -> None:
    case = Amd()
    report = parse_report(case.report())
    tracemalloc.start()
    began = time.process_time()
    for data in (
        b"[" * 524_288,
        b'{"crl":"' + b"a" * 524_000,
        b'{"a":[' * 80_000,
        json.dumps({"crl": "00" * 260_000}).encode(),
    ):
        with pytest.raises(FormatError):
            verify_report(report, data, anchors=case.anchors, now=NOW)
    spent, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 2
    assert peak < 32 << 20


def test_any_endorsements_give_claims_or_an_error() -> None:
    chance = random.Random(2)
    case = Amd(crl={})
    report, whole = parse_report(case.report()), case.endorsements()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.choice(b'0123456789abcdef"{}:, ')
        with contextlib.suppress(FormatError, VerificationError):
            verify_report(report, bytes(data), anchors=case.anchors, now=NOW)


@pytest.mark.spec("SNP-12")
def test_any_signed_bit_of_a_report_counts() -> None:
    case = Amd("Turin", fields={"version": 5})
    whole, endorsements = case.report(), case.endorsements()
    chance = random.Random(3)
    for bit in sorted(chance.sample(range(0x2A0 * 8), 700)):
        raw = bytearray(whole)
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Error) as caught:
            verify_report(parse_report(bytes(raw)), endorsements, anchors=case.anchors, now=NOW)
        assert caught.value.code in (
            "report-format", "report-version", "report-signature", "report-signing-key", "vcek-product",
        ), bit  # fmt: skip


@pytest.mark.spec("SNP-7")
def test_any_signed_bit_of_the_certificates_counts() -> None:
    case = Amd()
    report, chance = parse_report(case.report()), random.Random(4)
    for member, whole in (("certificate", case.certificate()), ("issuer", case.issuer), ("root", case.ark)):
        signed = len(x509.load_der_x509_certificate(whole).tbs_certificate_bytes) if member != "certificate" else 600
        for bit in chance.sample(range(4 * 8, (4 + signed) * 8), 60):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            made = bytes(data)
            members = {
                "certificate": {"certificate": made.hex()},
                "issuer": {"chain": pem(made, case.ark)},
                "root": {"chain": pem(case.issuer, made)},
            }[member]
            with pytest.raises(Error) as caught:
                verify_report(report, case.but(members=members).endorsements(), anchors=case.anchors, now=NOW)
            assert caught.value.code in ("endorsements-format", "vcek-chain"), (member, bit)
