"""Evidence and vendors' documents read without keys: what they are, and what is refused."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._evidence import ABSENT, evidence_dir, samples
from tests._vendors import (
    DAY,
    NOW,
    Platform,
    amd_platform,
    certificate,
    pem,
    refusal,
    report,
    revocation_list,
    simulated,
)

from conclave.errors import FormatError
from conclave.host.endorsements import amd, der, intel
from conclave.host.endorsements.documents import (
    ChipCertificate,
    FamilyChain,
    FamilyList,
    PckList,
    QeIdentity,
    RootList,
    TcbInfo,
    Wanted,
    form,
    is_evaluation,
    parse_name,
    qe_identity,
    read_document,
    tcb_info,
)
from conclave.host.endorsements.platform import (
    AmdPlatform,
    IntelPlatform,
    NitroPlatform,
    patch_levels,
    read_platform,
    tcb_version,
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    return simulated(tmp_path_factory.mktemp("machine"))


# Evidence ----------------------------------------------------------------------------------


@pytest.mark.spec("END-2")
def test_a_simulated_quote(machine: Platform) -> None:
    found = read_platform(machine.evidence, "sgx")
    assert isinstance(found, IntelPlatform)
    fmspc = json.loads(json.loads(machine.endorsements)["tcb_info"])["fmspc"].lower()
    assert (found.tee, found.fmspc, found.ca, found.pce_id) == ("sgx", fmspc, "platform", "0000")
    assert str(found) == f"sgx FMSPC {fmspc} (platform CA)"


@pytest.mark.spec("END-2")
@pytest.mark.parametrize("kind", ["sgx", "tdx"])
def test_platforms_of_samples_are_those_of_their_endorsements(kind: str) -> None:
    if not samples(kind):
        pytest.skip(ABSENT)
    seen = 0
    for place in samples(kind):
        collateral = place / "collateral.json"
        raw = (place / "quote.bin").read_bytes()
        if refusal(lambda raw=raw: read_platform(raw, kind)) == "quote-certificate":  # type: ignore[misc]
            # Certification data of types 1 and 3, as the README of the samples lists.
            assert "sgx-testpki" in place.name or "type3" in place.name
            continue
        found = read_platform(raw, kind)
        assert isinstance(found, IntelPlatform)
        if collateral.exists():
            parts = json.loads(collateral.read_bytes())
            assert json.loads(parts["tcb_info"])["fmspc"].lower() == found.fmspc
            if parts["pck_crl"]:
                listed = x509.load_der_x509_crl(bytes.fromhex(parts["pck_crl"]))
                assert listed.issuer.public_bytes() == found.issuer
            seen += 1
    assert seen >= {"sgx": 22, "tdx": 17}[kind]


@pytest.mark.spec("END-2")
def test_platforms_of_amd_samples_are_those_of_their_certificates() -> None:
    if not samples("snp"):
        pytest.skip(ABSENT)
    for place in samples("snp"):
        meta = json.loads((place / "meta.json").read_bytes())
        found = read_platform((place / "report.bin").read_bytes(), "snp")
        assert isinstance(found, AmdPlatform)
        assert meta["product"] in found.products
        assert len(found.products) == (2 if meta["quote_version"] == 2 else 1)
        described = amd.describe((place / f"{found.key}.der").read_bytes())
        assert described == ChipCertificate(found.key, meta["product"], found.hwid, found.tcb.hex())


@pytest.mark.spec("END-2")
@pytest.mark.parametrize(
    ("cpuid", "product"),
    [
        ((0x19, 0x00), "Milan"),
        ((0x19, 0x0F), "Milan"),
        ((0x19, 0x10), "Genoa"),
        ((0x19, 0x1F), "Genoa"),
        ((0x19, 0xA0), "Genoa"),
        ((0x19, 0xAF), "Genoa"),
        ((0x1A, 0x00), "Turin"),
        ((0x1A, 0x1F), "Turin"),
        ((0x19, 0x20), None),
        ((0x19, 0xB0), None),
        ((0x1A, 0x20), None),
        ((0x17, 0x31), None),
    ],
)
def test_processor_families(cpuid: tuple[int, int], product: str | None) -> None:
    evidence = report(cpuid=bytes((*cpuid, 1)), tcb=bytes(8), chip=bytes(range(64)))
    if product is None:
        with pytest.raises(FormatError, match="processor family"):
            read_platform(evidence, "snp")
    else:
        found = read_platform(evidence, "snp")
        assert isinstance(found, AmdPlatform)
        assert found.products == (product,)
        assert len(found.hwid) == (16 if product == "Turin" else 128)


@pytest.mark.spec("END-2")
def test_reports_that_name_no_platform() -> None:
    with pytest.raises(FormatError) as caught:
        read_platform(report(tcb=bytes(8), chip=b""), "snp")
    assert caught.value.code == "report-chip"
    for bad in (
        report(tcb=bytes(8), chip=b"1", signing=7),
        report(version=1, tcb=bytes(8), chip=b"1"),
        report(version=6, tcb=bytes(8), chip=b"1"),
        report(tcb=bytes(8), chip=b"1") + b"\0",
        b"",
    ):
        with pytest.raises(FormatError) as caught:
            read_platform(bad, "snp")
        assert caught.value.code == "report-format"
    hidden = read_platform(report(tcb=bytes(8), chip=b"", signing=1), "snp")
    assert isinstance(hidden, AmdPlatform)
    assert (hidden.key, hidden.hwid) == ("vlek", "")


@pytest.mark.spec("END-2")
def test_every_length_of_a_quote_is_refused(machine: Platform) -> None:
    end = machine.evidence.index(b"-----END CERTIFICATE-----") + 25
    for size in range(0, end, 7):
        with pytest.raises(FormatError):
            read_platform(machine.evidence[:size], "sgx")


@pytest.mark.spec("END-2")
@pytest.mark.parametrize(
    ("at", "value", "code"),
    [
        (0, b"\x02\0", "quote-format"),
        (0, b"\x04\0", "quote-format"),
        (0, b"\x06\0", "quote-format"),
        (4, b"\x81\0\0\0", "quote-format"),
        (432, b"\xff\xff\xff\xff", "quote-format"),
        (48 + 384 + 4 + 576, b"\xff\xff", "quote-format"),
    ],
)
def test_quotes_that_are_none(machine: Platform, at: int, value: bytes, code: str) -> None:
    quote = machine.evidence[:at] + value + machine.evidence[at + len(value) :]
    with pytest.raises(FormatError) as caught:
        read_platform(quote, "sgx")
    assert caught.value.code == code


@pytest.mark.spec("END-2", "END-26")
def test_a_chain_of_very_many_elements_takes_no_time(machine: Platform) -> None:
    at = machine.evidence.index(b"-----BEGIN")
    chain = b"\x30\0" * 60000
    for body in (chain, b"\x30\x83" + len(chain).to_bytes(3, "big") + chain):
        lengths = (at - 436 + len(body)).to_bytes(4, "little"), len(body).to_bytes(4, "little")
        quote = machine.evidence[:432] + lengths[0] + machine.evidence[436 : at - 4] + lengths[1] + body
        began = time.process_time()
        with pytest.raises(FormatError) as caught:
            read_platform(quote, "sgx")
        assert caught.value.code == "quote-certificate"
        assert time.process_time() - began < 0.5


@pytest.mark.spec("END-2")
def test_quotes_of_another_kind(machine: Platform) -> None:
    with pytest.raises(FormatError, match="a quote of sgx, not of tdx"):
        read_platform(machine.evidence, "tdx")
    at = machine.evidence.index(b"-----BEGIN") - 6
    with pytest.raises(FormatError) as caught:
        read_platform(machine.evidence[:at] + b"\x01" + machine.evidence[at + 1 :], "sgx")
    assert caught.value.code == "quote-certificate"
    with pytest.raises(FormatError) as caught:
        read_platform(
            machine.evidence.replace(b"-----BEGIN CERTIFICATE-----\nM", b"-----BEGIN CERTIFICATE-----\nN"), "sgx"
        )
    assert caught.value.code == "quote-certificate"
    with pytest.raises(FormatError) as caught:
        read_platform(bytes(131073), "sgx")
    assert caught.value.code == "evidence-size"
    assert read_platform(b"", "nitro") == NitroPlatform()
    with pytest.raises(ValueError, match="kind"):
        read_platform(b"", "sev")


@pytest.mark.spec("END-2")
def test_patch_levels_and_back() -> None:
    tcb = bytes((1, 2, 3, 4, 5, 6, 7, 8))
    assert patch_levels(tcb, "Milan") == {"blSPL": 1, "teeSPL": 2, "snpSPL": 7, "ucodeSPL": 8}
    assert patch_levels(tcb, "Turin") == {"fmcSPL": 1, "blSPL": 2, "teeSPL": 3, "snpSPL": 4, "ucodeSPL": 8}
    for product in ("Milan", "Genoa", "Turin"):
        levels = patch_levels(tcb, product)
        assert patch_levels(tcb_version(levels, product), product) == levels


# Documents ---------------------------------------------------------------------------------


@pytest.mark.spec("END-3")
@pytest.mark.parametrize(
    "wanted",
    [
        RootList(),
        PckList("processor"),
        PckList("platform"),
        TcbInfo("sgx", "00906ed50000"),
        TcbInfo("tdx", "00906ed50000", "early"),
        QeIdentity("tdx", "17"),
        ChipCertificate("vcek", "Milan", "ab" * 64, "04" * 8),
        ChipCertificate("vcek", "Turin", "ab" * 8, "04" * 8),
        ChipCertificate("vlek", "Genoa", "", "04" * 8),
        FamilyChain("vlek", "Milan"),
        FamilyList("vcek", "Turin"),
    ],
)
def test_names_and_back(wanted: Wanted) -> None:
    assert parse_name(wanted.name) == wanted
    assert form(wanted).max_size > 0
    for other in (wanted.name + "-", wanted.name.upper(), "../" + wanted.name, wanted.name + "\n"):
        with pytest.raises(FormatError):
            parse_name(other)


def test_evaluations() -> None:
    assert all(map(is_evaluation, ("standard", "early", "1", "999999999")))
    assert not any(map(is_evaluation, ("", "late", "0", "-1", "1234567890", "1 ", "١")))


def parts(machine: Platform) -> dict[str, str]:
    found: dict[str, str] = json.loads(machine.endorsements)
    return found


def tcb(machine: Platform, **changes: object) -> bytes:
    text = json.dumps(json.loads(parts(machine)["tcb_info"]) | changes, separators=(",", ":"))
    return f'{{"tcbInfo":{text},"signature":"{"0" * 128}"}}'.encode()


@pytest.mark.spec("END-3")
def test_the_signed_text_is_kept_as_it_was_sent(machine: Platform) -> None:
    """Spaces, order of members and escapes included: the signature is over them."""
    odd = '{ "b" : 1,\t"a":"\\u0041/\\/" , "a":2}'
    assert tcb_info(f' {{"signature":"{"aB" * 64}", "tcbInfo" : {odd} , "more":[]}} '.encode()) == (odd, "aB" * 64)
    assert qe_identity(f'{{"enclaveIdentity":{odd},"signature":"{"0" * 128}"}}'.encode())[0] == odd


@pytest.mark.spec("END-3")
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"fmspc": "00906ED50000"}, "document-other"),
        ({"id": "TDX"}, "document-other"),
        ({"id": ""}, "document-other"),
        ({"version": 4}, "document-other"),
        ({"version": "3"}, "document-format"),
        ({"issueDate": "yesterday"}, "document-format"),
        ({"issueDate": "2026-03-01T12:00:00"}, "document-format"),
        ({"nextUpdate": "2026-03-01T12:00:00Z"}, "document-format"),
        ({"nextUpdate": "2020-03-01T12:00:00Z"}, "document-format"),
        ({"nextUpdate": None}, "document-format"),
        ({"note": "é"}, None),
        ({"note": "x" * 100000}, "document-size"),
    ],
)
def test_tcb_info_is_what_was_wanted(machine: Platform, changes: dict[str, object], code: str | None) -> None:
    fmspc = json.loads(parts(machine)["tcb_info"])["fmspc"].lower()
    chain = parts(machine)["tcb_info_issuer_chain"].encode()
    body = tcb(machine, **changes)
    if code is None:
        found = read_document(TcbInfo("sgx", fmspc), body, chain, fetched=NOW)
        assert found.window.valid_until == NOW + 30 * DAY
        return
    with pytest.raises(FormatError) as caught:
        read_document(TcbInfo("sgx", fmspc), body, chain, fetched=NOW)
    assert caught.value.code == code


@pytest.mark.spec("END-3")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"tcbInfo":1,"signature":""}',
        b'{"tcbInfo":{},"signature":"' + b"0" * 128 + b'"}',
        b'{"tcbInfo":{"a":"\xc3\xa9"},"signature":"' + b"0" * 128 + b'"}',
        b'{"tcbInfo":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b',"signature":"' + b"0" * 128 + b'"}',
        b"[" * 90000,
        b"\xff\xfe",
    ],
)
def test_json_that_is_no_tcb_info(machine: Platform, body: bytes) -> None:
    chain = parts(machine)["tcb_info_issuer_chain"].encode()
    with pytest.raises(FormatError) as caught:
        read_document(TcbInfo("sgx", "00906ed50000"), body, chain, fetched=NOW)
    assert caught.value.code == "document-format"


@pytest.mark.spec("END-3")
def test_identities_and_lists_of_another(machine: Platform) -> None:
    given = parts(machine)
    body = f'{{"enclaveIdentity":{given["qe_identity"]},"signature":"{given["qe_identity_signature"]}"}}'.encode()
    chain = given["qe_identity_issuer_chain"].encode()
    assert read_document(QeIdentity("sgx"), body, chain, fetched=NOW)
    pck, root = bytes.fromhex(given["pck_crl"]), bytes.fromhex(given["root_ca_crl"])
    pck_chain = given["pck_crl_issuer_chain"].encode()
    assert read_document(PckList("platform"), pck, pck_chain, fetched=NOW)
    assert read_document(RootList(), root, b"", fetched=NOW)
    platform, genoa = amd_platform(), amd_platform("Genoa")
    times = {"begin": NOW - DAY, "end": NOW + DAY}
    wrong: list[tuple[Wanted, bytes, bytes]] = [
        (QeIdentity("tdx"), body, chain),
        (PckList("processor"), pck, pck_chain),
        (PckList("platform"), root, pck_chain),
        (PckList("platform"), pck, chain),
        (RootList(), pck, b""),
        (FamilyList("vcek", "Milan"), genoa.crl, b""),
        (FamilyChain("vcek", "Milan"), genoa.chain.encode(), b""),
        (FamilyChain("vlek", "Milan"), platform.chain.encode(), b""),
        (amd.describe(platform.certificate), amd_platform(chip=b"x" * 64).certificate, b""),
        (amd.describe(platform.certificate), amd_platform(key="vlek").certificate, b""),
        (ChipCertificate("vcek", "Milan", bytes(range(1, 65)).hex(), "05" * 8), platform.certificate, b""),
        (amd.describe(platform.certificate), platform.certificate.replace(b"SEV-VCEK", b"SEV-XCEK"), b""),
    ]
    for wanted, wrong_body, wrong_chain in wrong:
        with pytest.raises(FormatError) as caught:
            read_document(wanted, wrong_body, wrong_chain, fetched=NOW)
        assert caught.value.code in ("document-other", "document-format"), wanted
    # A chain where none belongs, and none where one belongs.
    for wanted, odd_body, odd_chain in ((RootList(), root, chain), (PckList("platform"), pck, b"")):
        with pytest.raises(FormatError, match="issuer chain"):
            read_document(wanted, odd_body, odd_chain, fetched=NOW)
    # A chain that is none: too short, not by its own root, in the wrong order.
    ark, ask = certificate("ARK-Milan", "ARK-Milan", **times), certificate("SEV-Milan", "ARK-Milan", **times)
    for odd in (
        pem(ark),
        pem(ask, ask),
        pem(ark, ask),
        pem(ask, certificate("ARK-Milan", "x", **times)),
        pem(ask, ark, ark),
    ):
        with pytest.raises(FormatError):
            read_document(FamilyChain("vcek", "Milan"), odd.encode(), b"", fetched=NOW)
    # A list that ends before it begins is refused.
    late = revocation_list("ARK-Milan", begin=NOW, end=NOW + timedelta(seconds=1))
    swapped = late.replace(b"260301120000Z", b"260301120009Z")
    with pytest.raises(FormatError, match="ends before"):
        read_document(FamilyList("vcek", "Milan"), swapped, b"", fetched=NOW)


@pytest.mark.spec("END-3")
def test_no_document_outlives_its_signers(machine: Platform) -> None:
    times = {"begin": NOW - DAY, "end": NOW + 3 * DAY}
    chain = pem(certificate("signer", "root", **times), certificate("root", "root", **times)).encode()
    fmspc = json.loads(parts(machine)["tcb_info"])["fmspc"].lower()
    found = read_document(TcbInfo("sgx", fmspc), tcb(machine), chain, fetched=NOW)
    assert found.window.valid_until == NOW + 3 * DAY


@pytest.mark.spec("END-3")
def test_forms_of_a_list(machine: Platform) -> None:
    body = bytes.fromhex(parts(machine)["root_ca_crl"])
    pem_form = x509.load_der_x509_crl(body).public_bytes(Encoding.PEM)
    for sent in (body, body.hex().encode(), body.hex().upper().encode() + b"\r\n", pem_form, b"\n" + pem_form + b"\n"):
        assert intel.read_answer(RootList(), sent, {}) == (body, b"")
    for sent in (b"", b"<html>", b"zz", b"-----BEGIN X509 CRL-----", pem_form + pem_form, "0é".encode()):
        with pytest.raises(FormatError):
            read_document(RootList(), *intel.read_answer(RootList(), sent, {}), fetched=NOW)


@pytest.mark.spec("END-3")
def test_chain_headers(machine: Platform) -> None:
    chain = parts(machine)["tcb_info_issuer_chain"]
    wanted = QeIdentity("sgx")
    for text in (quote(chain), quote(chain, safe=""), chain.replace("\n", "%0A"), quote(chain.replace("\n", "\r\n"))):
        _, found = intel.read_answer(wanted, b"", {"SGX-Enclave-Identity-Issuer-Chain": text})
        assert found.decode() == chain
    for headers in ({}, {"SGX-Enclave-Identity-Issuer-Chain": "x"}, {"SGX-Enclave-Identity-Issuer-Chain": "%ff"}):
        with pytest.raises(FormatError):
            intel.read_answer(wanted, b"", headers)


# DER ---------------------------------------------------------------------------------------


@pytest.mark.spec("END-26")
@pytest.mark.parametrize(
    "data",
    [
        "",
        "30",
        "3001",
        "3080",
        "308100",
        "30817f" + "00" * 127,
        "3082007f" + "00" * 127,
        "3085000000000000",
        "1f0100",
        "300000",
    ],
)
def test_der_that_is_none(data: str) -> None:
    with pytest.raises(FormatError):
        der.single(bytes.fromhex(data))


@pytest.mark.spec("END-26")
def test_certificates_read_as_cryptography_reads_them() -> None:
    place = evidence_dir()
    found = [amd_platform().certificate, *der.pem_certificates(amd_platform("Turin").chain.encode())]
    if place is not None:
        for path in (place / "roots").rglob("*.pem"):
            found += der.pem_certificates(path.read_bytes())
    for each in found:
        ours, theirs = der.certificate(each), x509.load_der_x509_certificate(each)
        assert ours.subject == theirs.subject.public_bytes()
        assert ours.issuer == theirs.issuer.public_bytes()
        assert (ours.not_before, ours.not_after) == (theirs.not_valid_before_utc, theirs.not_valid_after_utc)
        assert len(ours.extensions) == len(theirs.extensions)
    listed = x509.load_der_x509_crl(amd_platform().crl)
    ours_list = der.revocation_list(amd_platform().crl)
    assert (ours_list.this_update, ours_list.next_update) == (listed.last_update_utc, listed.next_update_utc)


@pytest.mark.spec("END-26")
@pytest.mark.parametrize(
    "text", [b"260301120000", b"2603011200Z", b"991332000000Z", b"260301120000z", b"2603 1120000Z", b"\xff" * 13]
)
def test_times_that_are_none(text: bytes) -> None:
    body = amd_platform().crl
    at = body.index(b"\x17\x0d") + 2
    if len(text) != 13:
        text = text.ljust(13, b" ")
    with pytest.raises(FormatError):
        der.revocation_list(body[:at] + text + body[at + 13 :])


@pytest.mark.spec("END-26")
def test_years_after_2049() -> None:
    far = certificate("a", "b", begin=NOW, end=datetime(2077, 1, 1, tzinfo=UTC))
    assert der.certificate(far).not_after.year == 2077
    near = certificate("a", "b", begin=NOW, end=datetime(2049, 12, 31, tzinfo=UTC))
    assert der.certificate(near).not_after.year == 2049
    # Two digits from 50 on are of the last century.
    assert der.certificate(near.replace(b"491231000000Z", b"501231000000Z")).not_after.year == 1950


@pytest.mark.spec("END-26")
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_altered_documents_give_a_value_or_a_format_error(data: st.DataObject) -> None:
    platform = amd_platform()
    cases: list[tuple[Wanted, bytes]] = [
        (amd.describe(platform.certificate), platform.certificate),
        (FamilyList("vcek", "Milan"), platform.crl),
        (FamilyChain("vcek", "Milan"), platform.chain.encode()),
    ]
    wanted, body = data.draw(st.sampled_from(cases))
    at = data.draw(st.integers(0, len(body) - 1))
    size = data.draw(st.integers(0, 4))
    altered = body[:at] + data.draw(st.binary(max_size=4)) + body[at + size :]
    code = refusal(lambda: read_document(wanted, altered, b"", fetched=NOW))
    assert not code or code.startswith("document-")


@pytest.mark.spec("END-26")
def test_pem_without_end_takes_no_time() -> None:
    for text in (
        b"-----BEGIN CERTIFICATE-----" + b"\n" * 200000,
        b"\n" * 200000,
        b"-----BEGIN CERTIFICATE-----" * 10000,
    ):
        with pytest.raises(FormatError):
            der.pem_certificates(text)


def test_certificate_facts_need_extensions_once() -> None:
    twice = certificate("a", "b", {"2": b"\x05\0", "3.1": b"\x05\0"}, begin=NOW, end=NOW + DAY)
    oid = bytes.fromhex("2b060104019c78010301")
    altered = twice.replace(oid, oid[:-1] + b"\x01", 1)
    assert der.certificate(altered)
    body = certificate("a", "b", {"3.2": b"\x05\0", "3.1": b"\x05\0"}, begin=NOW, end=NOW + DAY)
    with pytest.raises(FormatError, match="extensions"):
        der.certificate(body.replace(bytes.fromhex("2b060104019c78010302"), oid))
