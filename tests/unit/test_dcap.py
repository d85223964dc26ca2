"""Quotes that verify, with one thing changed, signed again where a signature covers it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from conclave.attestation import _x509, dcap, verify
from conclave.attestation.dcap import parse_endorsements, parse_sgx_quote, verify_sgx_quote
from conclave.errors import (
    ChainError,
    Error,
    ExpiredError,
    FormatError,
    RevokedError,
    SignatureError,
    VerificationError,
)
from conclave.platform import pki
from conclave.platform.machine import ATTRIBUTES, Machine
from conclave.platform.pki import Pki

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
EVIDENCE = Path(__file__).parents[2].parent / "shared" / "evidence"
# Where the parts of a quote of the simulated machine lie.
SIGNATURE, KEY, QE_REPORT, QE_SIGNATURE, QE_AUTH, CERTIFICATION = 436, 500, 564, 948, 1012, 1046


@dataclass(frozen=True)
class Case:
    machine: Machine
    other: Machine
    quote: bytes
    endorsements: dict[str, str]
    root: bytes
    now: datetime = NOW

    @property
    def keys(self) -> Pki:
        return self.machine._pki

    def verify(self) -> dcap.SgxClaims:
        data = json.dumps(self.endorsements).encode()
        return verify_sgx_quote(parse_sgx_quote(self.quote), data, root_der=self.root, now=self.now)

    def but(self, **members: str) -> Case:
        return replace(self, endorsements=self.endorsements | members)

    def signed(self, name: str, key: ec.EllipticCurvePrivateKey | None = None, **fields: object) -> Case:
        """Another TCB info or QE identity, with the signature of the signer of both."""
        text = json.dumps(json.loads(self.endorsements[name]) | fields, separators=(",", ":"))
        signature = pki.raw_signature(key or self.keys.tcb_key, text.encode())
        return self.but(**{name: text, f"{name}_signature": signature.hex()})

    def level(self, **fields: Any) -> Case:
        level = json.loads(self.endorsements["tcb_info"])["tcbLevels"][0]
        return self.signed("tcb_info", tcbLevels=[level | fields])

    def qe_level(self, **fields: Any) -> Case:
        level = json.loads(self.endorsements["qe_identity"])["tcbLevels"][0]
        return self.signed("qe_identity", tcbLevels=[level | fields])

    def crl(self, name: str, issuer: str, *, key: str = "", revoked: tuple[str, ...] = (), now: datetime = NOW) -> Case:
        serials = tuple(getattr(self.keys, r).serial_number for r in revoked)
        signer = getattr(self.keys, f"{key or issuer}_key")
        return self.but(**{name: pki._crl(getattr(self.keys, issuer), signer, now=now, revoked=serials).hex()})

    def at(self, offset: int, value: bytes) -> Case:
        return replace(self, quote=self.quote[:offset] + value + self.quote[offset + len(value) :])

    def flip(self, offset: int) -> Case:
        return self.at(offset, bytes((self.quote[offset] ^ 1,)))

    def body(self, offset: int, value: bytes) -> Case:
        """Another header or report body, signed by the attestation key."""
        changed = self.at(offset, value)
        return changed.at(SIGNATURE, pki.raw_signature(self.machine._attestation_key, changed.quote[:432]))

    def qe_report(self, offset: int, value: bytes) -> Case:
        """Another report of the quoting enclave, signed by the PCK key."""
        changed = self.at(QE_REPORT + offset, value)
        report = changed.quote[QE_REPORT:QE_SIGNATURE]
        return changed.at(QE_SIGNATURE, pki.raw_signature(self.keys.pck_key, report))

    def certification(self, data: bytes, *, kind: int = 5, size: int | None = None) -> Case:
        auth = self.quote[SIGNATURE:CERTIFICATION] + struct.pack("<HI", kind, len(data) if size is None else size)
        auth += data
        return replace(self, quote=self.quote[:432] + struct.pack("<I", len(auth)) + auth)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    machine = Machine.open(tmp_path_factory.mktemp("one"), now=NOW)
    other = Machine.open(tmp_path_factory.mktemp("other"), now=NOW)
    quote = machine.quote(report_data=bytes(range(64)), config_id=bytes(range(100, 164)), mrenclave=bytes(range(32)))
    return Case(machine, other, quote, json.loads(machine.endorsements()), machine.root_der)


def flipped(text: str) -> str:
    """Hex with one bit changed near the end, inside the signature."""
    data = bytearray.fromhex(text)
    data[-3] ^= 1
    return data.hex()


def pem(*certificates: bytes) -> bytes:
    return b"".join(
        b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(c) + b"-----END CERTIFICATE-----\n" for c in certificates
    )


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


@pytest.mark.spec("CLM-8")
def test_the_evidence_that_all_others_are_made_from_verifies(case: Case) -> None:
    claims = case.verify()
    assert claims.tcb_status == "UpToDate"
    assert claims.advisories == ()
    assert claims.oldest_issue_date == NOW


def test_the_fields_of_a_quote_are_where_the_layout_says(case: Case) -> None:
    quote = parse_sgx_quote(case.quote)
    assert quote.raw == case.quote
    assert quote.mrenclave == bytes(range(32))
    assert quote.config_id == bytes(range(100, 164))
    assert quote.report_data == bytes(range(64))
    assert not quote.debug
    assert quote.chain == (der(case.keys.pck), der(case.keys.ca), der(case.keys.root))
    assert parse_sgx_quote(case.at(96, b"\x87").quote).debug


def test_the_layout_tiles_the_report_body() -> None:
    sizes = {
        "cpu svn": 16, "misc select": 4, "reserved": 12, "extended product id": 16, "attributes": 16, "mrenclave": 32,
        "reserved 2": 32, "mrsigner": 32, "reserved 3": 32, "config id": 64, "product": 2, "svn": 2, "config svn": 2,
        "reserved 4": 42, "family id": 16, "report data": 64,
    }  # fmt: skip
    offsets, at = {}, dcap.BODY
    for name, size in sizes.items():
        offsets[name] = at
        at += size
    assert at == dcap.BODY + dcap.BODY_SIZE
    assert offsets["attributes"] == dcap._ATTRIBUTES
    assert offsets["mrenclave"] == dcap._MRENCLAVE
    assert offsets["config id"] == dcap._CONFIGID
    assert offsets["report data"] == dcap._REPORT_DATA


# What is authentic but says something worth knowing.


@pytest.mark.parametrize("status", [s for s in pki.STATUSES if s != "Revoked"])
def test_every_status_the_vendor_gives_is_told(case: Case, status: str) -> None:
    claims = case.level(tcbStatus=status, advisoryIDs=["INTEL-SA-2", "INTEL-SA-1", "INTEL-SA-2"]).verify()
    assert claims.tcb_status == status
    assert claims.advisories == ("INTEL-SA-1", "INTEL-SA-2")


def test_an_outdated_quoting_enclave_counts(case: Case) -> None:
    assert case.qe_level(tcbStatus="OutOfDate").verify().tcb_status == "OutOfDate"


@pytest.mark.parametrize(
    "change",
    [
        lambda c, t: c.signed("tcb_info", issueDate=f"{t:%Y-%m-%dT%H:%M:%SZ}"),
        lambda c, t: c.signed("qe_identity", issueDate=f"{t:%Y-%m-%dT%H:%M:%SZ}"),
        lambda c, t: c.crl("pck_crl", "ca", now=t),
        lambda c, t: c.crl("root_ca_crl", "root", now=t),
    ],
)
def test_the_oldest_of_four_issue_dates_counts(case: Case, change: Callable[[Case, datetime], Case]) -> None:
    older = NOW - 3 * DAY
    assert change(case, older).verify().oldest_issue_date == older


def test_the_chain_of_the_crl_is_carried_and_not_trusted(case: Case) -> None:
    # The CRL is checked under the CA of the quote's own chain, so nothing here can help a liar.
    foreign = json.loads(case.other.endorsements())["pck_crl_issuer_chain"]
    assert case.but(pck_crl_issuer_chain=foreign).verify().tcb_status == "UpToDate"


# What is refused.

EXPIRED: dict[str, Callable[[Case], Case]] = {
    "a month later": lambda c: replace(c, now=NOW + 31 * DAY),
    "before any of it was issued": lambda c: replace(c, now=NOW - DAY),
    "before 1970": lambda c: replace(c, now=datetime(1960, 1, 1, tzinfo=UTC)),
    "in the year 9999": lambda c: replace(c, now=datetime(9999, 12, 31, tzinfo=UTC)),
    "old CRL of the CA": lambda c: c.crl("pck_crl", "ca", now=NOW - 31 * DAY),
    "old CRL of the root": lambda c: c.crl("root_ca_crl", "root", now=NOW - 31 * DAY),
    "TCB info expired": lambda c: c.signed("tcb_info", nextUpdate="2026-02-28T00:00:00Z"),
    "TCB info of the future": lambda c: c.signed("tcb_info", issueDate="2026-03-02T00:00:00Z"),
    "QE identity expired": lambda c: c.signed("qe_identity", nextUpdate="2026-02-28T00:00:00Z"),
    "QE identity of the future": lambda c: c.signed("qe_identity", issueDate="2026-03-02T00:00:00Z"),
}
REVOKED: dict[str, Callable[[Case], Case]] = {
    "PCK certificate": lambda c: c.crl("pck_crl", "ca", revoked=("pck",)),
    "PCK CA": lambda c: c.crl("root_ca_crl", "root", revoked=("ca",)),
    "signer of TCB info": lambda c: c.crl("root_ca_crl", "root", revoked=("tcb",)),
    "TCB level": lambda c: c.level(tcbStatus="Revoked"),
    "TCB level of the QE": lambda c: c.qe_level(tcbStatus="Revoked"),
}
UNSIGNED: dict[str, Callable[[Case], Case]] = {
    "QE SVN of the header": lambda c: c.flip(8),
    "user data of the header": lambda c: c.flip(28),
    "CPU SVN": lambda c: c.flip(48),
    "attributes": lambda c: c.flip(96),
    "measurement": lambda c: c.flip(112),
    "config id": lambda c: c.flip(240),
    "report data": lambda c: c.flip(431),
    "quote signature": lambda c: c.flip(SIGNATURE + 5),
    "QE report": lambda c: c.flip(QE_REPORT),
    "QE report data": lambda c: c.flip(QE_REPORT + 320),
    "QE report signature": lambda c: c.flip(QE_SIGNATURE + 5),
    "TCB info": lambda c: c.but(tcb_info=c.endorsements["tcb_info"].replace('"pcesvn":11', '"pcesvn":10')),
    "TCB info signature": lambda c: c.but(tcb_info_signature=flipped(c.endorsements["tcb_info_signature"])),
    "TCB info signed by another": lambda c: c.signed("tcb_info", c.other._pki.tcb_key),
    "QE identity": lambda c: c.but(qe_identity=c.endorsements["qe_identity"].replace('"isvsvn":8', '"isvsvn":7')),
    "QE identity signature": lambda c: c.but(qe_identity_signature=flipped(c.endorsements["qe_identity_signature"])),
    "QE identity signed by another": lambda c: c.signed("qe_identity", c.other._pki.tcb_key),
    "CRL of the CA": lambda c: c.but(pck_crl=flipped(c.endorsements["pck_crl"])),
    "CRL of the CA signed by the root": lambda c: c.crl("pck_crl", "ca", key="root"),
    "CRL of the root": lambda c: c.but(root_ca_crl=flipped(c.endorsements["root_ca_crl"])),
    "CRL of the root from its CA": lambda c: c.crl("root_ca_crl", "ca"),
    "CRL of another CA": lambda c: c.but(pck_crl=json.loads(c.other.endorsements())["pck_crl"]),
}
PEM = "-----BEGIN CERTIFICATE-----"
CHAIN: dict[str, Callable[[Case], Case]] = {
    "another root": lambda c: replace(c, root=c.other.root_der),
    "another machine's TCB signer": lambda c: c.but(
        tcb_info_issuer_chain=json.loads(c.other.endorsements())["tcb_info_issuer_chain"]
    ),
    "another machine's QE identity signer": lambda c: c.but(
        qe_identity_issuer_chain=json.loads(c.other.endorsements())["qe_identity_issuer_chain"]
    ),
    "CRL of the root for its CA": lambda c: c.crl("pck_crl", "root"),
    "TCB info signed by the processor's own PCK key": lambda c: c.signed("tcb_info", c.keys.pck_key).but(
        tcb_info_issuer_chain=pki.pem(c.keys.pck, c.keys.ca, c.keys.root)
    ),
    "QE identity signed by the processor's own PCK key": lambda c: c.signed("qe_identity", c.keys.pck_key).but(
        qe_identity_issuer_chain=pki.pem(c.keys.pck, c.keys.ca, c.keys.root)
    ),
    "TCB info signed by the CA": lambda c: c.signed("tcb_info", c.keys.ca_key).but(
        tcb_info_issuer_chain=pki.pem(c.keys.ca, c.keys.root)
    ),
    "the quote's chain without its CA": lambda c: c.certification(pem(der(c.keys.pck), der(c.keys.root))),
    "signer chain holds no certificate": lambda c: c.but(tcb_info_issuer_chain=pem(b"junk").decode()),
}
MISFIT: dict[str, Callable[[Case], Case]] = {
    "QE vendor": lambda c: c.body(12, bytes(16)),
    "attestation key that the QE did not certify": lambda c: c.flip(KEY + 10),
    "QE authentication data": lambda c: c.flip(QE_AUTH + 2),
    "debug attribute": lambda c: c.body(96, struct.pack("<Q", 0x87)),
    "TCB info of another processor family": lambda c: c.signed("tcb_info", fmspc="000000000000"),
    "TCB info of another PCE": lambda c: c.signed("tcb_info", pceId="0001"),
    "TCB info without levels": lambda c: c.signed("tcb_info", tcbLevels=[]),
    "status that SGX does not have": lambda c: c.level(tcbStatus="TDRelaunchAdvised"),
    "PCE below every level": lambda c: c.level(tcb={"sgxtcbcomponents": [{"svn": 2}] * 16, "pcesvn": 12}),
    "CPU below every level": lambda c: c.level(tcb={"sgxtcbcomponents": [{"svn": 3}] * 16, "pcesvn": 11}),
    "QE of another signer": lambda c: c.qe_report(128, bytes(32)),
    "another product of the QE's signer": lambda c: c.qe_report(256, b"\2\0"),
    "QE attributes": lambda c: c.qe_report(48, b"\x01"),
    "QE in debug mode": lambda c: c.qe_report(48, b"\x13"),
    "QE misc select": lambda c: c.qe_report(16, b"\1"),
    "QE below every level": lambda c: c.qe_report(258, b"\7\0"),
    "the quote's leaf is the TCB signer": lambda c: c.certification(pem(der(c.keys.tcb), der(c.keys.root))),
    "no signature of TCB info": lambda c: c.but(tcb_info_signature=""),
}
SHAPE: dict[str, Callable[[Case], Case]] = {
    "version 4": lambda c: c.at(0, b"\4"),
    "attestation key type": lambda c: c.at(2, b"\3"),
    "TEE type of TDX": lambda c: c.at(4, b"\x81"),
    "nothing": lambda c: replace(c, quote=b""),
    "certification data of another kind": lambda c: c.certification(c.quote[CERTIFICATION + 6 :], kind=1),
    "certification data claims more": lambda c: c.certification(b"x" * 9, size=10),
    "certification data claims less": lambda c: c.certification(c.quote[CERTIFICATION + 6 :] + b"\n", size=100),
    "trailing byte": lambda c: replace(c, quote=c.quote + b"\0"),
    "trailing byte that is counted": lambda c: replace(
        c, quote=c.quote[:432] + struct.pack("<I", len(c.quote) - 435) + c.quote[436:] + b"\0"
    ),
    "trailing byte that is not counted": lambda c: replace(
        c, quote=c.quote[:432] + struct.pack("<I", len(c.quote) - 437) + c.quote[436:]
    ),
    "chain is not PEM": lambda c: c.certification(b"junk" * 100),
    "chain is empty": lambda c: c.certification(b""),
    "chain with text between": lambda c: c.certification(pem(der(c.keys.pck)) + b"x" + pem(der(c.keys.ca))),
    "chain with wrong base64": lambda c: c.certification(b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----"),
    "TCB info chain is empty": lambda c: c.but(tcb_info_issuer_chain=""),
    "QE identity chain is junk": lambda c: c.but(qe_identity_issuer_chain="junk"),
    "unknown TCB status": lambda c: c.level(tcbStatus="Fine"),
    "unknown QE status": lambda c: c.qe_level(tcbStatus="Fine"),
    "TCB info of TDX": lambda c: c.signed("tcb_info", id="TDX"),
    "TCB info of version 2": lambda c: c.signed("tcb_info", version=2),
    "TCB info of version 4": lambda c: c.signed("tcb_info", version=4),
    "QE identity of TDX": lambda c: c.signed("qe_identity", id="TD_QE"),
    "QE identity of version 1": lambda c: c.signed("qe_identity", version=1),
    "issue date of another form": lambda c: c.signed("tcb_info", issueDate="2026-03-01 12:00:00"),
    "issue date that does not exist": lambda c: c.signed("tcb_info", issueDate="2026-02-30T12:00:00Z"),
    "issue date is a number": lambda c: c.signed("qe_identity", issueDate=1),
    "TCB info expires some time": lambda c: c.signed("tcb_info", nextUpdate="soon"),
    "QE identity expires some time": lambda c: c.signed("qe_identity", nextUpdate="soon"),
    "TCB info says nothing": lambda c: c.but(tcb_info="{}"),
    "QE identity without a date": lambda c: c.but(qe_identity='{"id":"QE","version":2}'),
    "TCB info is a list": lambda c: c.but(tcb_info="[]"),
    "TCB info is not JSON": lambda c: c.but(tcb_info="{"),
    "a member too many": lambda c: c.but(pck_certificate_chain=""),
    "a member too few": lambda c: replace(
        c, endorsements={k: v for k, v in c.endorsements.items() if k != "pck_crl_issuer_chain"}
    ),
    "a member that is a number": lambda c: c.but(pck_crl=1),  # type: ignore[arg-type]
    "a member that is not ASCII": lambda c: c.but(pck_crl_issuer_chain="ü"),
    "no CRL of the CA": lambda c: c.but(pck_crl=""),
    "no CRL of the root": lambda c: c.but(root_ca_crl=""),
    "CRL is not hex": lambda c: c.but(pck_crl="zz"),
    "CRL one byte short": lambda c: c.but(root_ca_crl=c.endorsements["root_ca_crl"][:-2]),
    "CRL of an unknown version": lambda c: c.but(pck_crl=c.endorsements["pck_crl"].replace("020101", "020103", 1)),
}


def refused(case: Case, error: type[Error], change: Callable[[Case], Case]) -> None:
    case.verify()
    with pytest.raises(Error) as caught:
        change(case).verify()
    assert type(caught.value) is error, caught.value
    # Messages are our own words: nothing of evidence, endorsements or dcap-qvl.
    assert str(caught.value).isprintable()
    assert "Caused by" not in str(caught.value)


@pytest.mark.spec("CLM-8")
@pytest.mark.parametrize("name", EXPIRED)
def test_expired(case: Case, name: str) -> None:
    refused(case, ExpiredError, EXPIRED[name])


@pytest.mark.spec("CLM-8")
@pytest.mark.parametrize("name", REVOKED)
def test_revoked(case: Case, name: str) -> None:
    refused(case, RevokedError, REVOKED[name])


@pytest.mark.parametrize("name", UNSIGNED)
def test_altered_without_its_signature(case: Case, name: str) -> None:
    refused(case, SignatureError, UNSIGNED[name])


@pytest.mark.parametrize("name", CHAIN)
def test_wrong_issuer(case: Case, name: str) -> None:
    refused(case, ChainError, CHAIN[name])


@pytest.mark.parametrize("name", MISFIT)
def test_signed_but_it_does_not_fit(case: Case, name: str) -> None:
    refused(case, VerificationError, MISFIT[name])


@pytest.mark.parametrize("name", SHAPE)
def test_wrong_shape(case: Case, name: str) -> None:
    refused(case, FormatError, SHAPE[name])


def test_debug_evidence_says_so(case: Case) -> None:
    with pytest.raises(VerificationError, match="debug bit"):
        MISFIT["debug attribute"](case).verify()


def test_certificates_expire_while_endorsements_are_fresh(case: Case) -> None:
    later = NOW + timedelta(days=365 * 20 + 1)
    text = case.keys.endorsements(now=later, status="UpToDate", advisories=(), number=2)
    refused(case, ExpiredError, lambda c: replace(c, now=later, endorsements=json.loads(text)))


def test_certificates_of_the_future(case: Case) -> None:
    keys = Pki.create(fmspc=bytes(6), ppid=bytes(16), now=NOW + DAY)
    settings = {"secret": "", "fmspc": ""}
    machine = Machine(Path(), settings, keys, pki.private_der(ec.generate_private_key(ec.SECP256R1())))
    quote = machine.quote(report_data=bytes(64), config_id=bytes(64), mrenclave=bytes(32))
    text = keys.endorsements(now=NOW, status="UpToDate", advisories=(), number=2)
    refused(case, ExpiredError, lambda c: replace(c, quote=quote, endorsements=json.loads(text), root=machine.root_der))


def test_a_status_that_only_the_library_knows_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(status="Fine", advisory_ids=[])
    monkeypatch.setattr(dcap_qvl, "verify_with_root_ca", lambda *a: answer)
    with pytest.raises(VerificationError, match="does not know"):
        case.verify()


def test_truncated_anywhere(case: Case) -> None:
    for size in [*range(0, 1100, 7), *range(1100, len(case.quote), 53), len(case.quote) - 1]:
        with pytest.raises(FormatError):
            parse_sgx_quote(case.quote[:size])
    with pytest.raises(FormatError, match="not an SGX ECDSA quote"):
        parse_sgx_quote(case.quote[:1019])


def test_a_chain_has_at_most_eight_certificates(case: Case) -> None:
    one = der(case.keys.root)
    assert len(_x509.split_pem(pem(*[one] * 8))) == 8
    with pytest.raises(FormatError, match="too long"):
        _x509.split_pem(pem(*[one] * 9))
    assert _x509.split_pem(pem(one) + b"\0") == (one,)


@pytest.mark.parametrize("text", [b"QQ==QQ==", b"QQ=", b"Q", b"=", b"QQ==="])
def test_a_chain_in_wrong_base64(text: bytes) -> None:
    with pytest.raises(FormatError, match="not PEM"):
        _x509.split_pem(b"-----BEGIN CERTIFICATE-----\n" + text + b"\n-----END CERTIFICATE-----\n")


@pytest.mark.parametrize("filler", [b"\n", b" ", b"A", b"-"])
def test_a_hostile_chain_costs_linear_time(filler: bytes) -> None:
    # Quadratic matching would need minutes for this.
    for tail in (b"", b"-----END", b"-----END CERTIFICATE-----"):
        with pytest.raises(FormatError):
            _x509.split_pem(b"-----BEGIN CERTIFICATE-----" + filler * 300_001 + tail + b"x")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000])
def test_endorsements_that_are_something_else(data: bytes) -> None:
    with pytest.raises(FormatError, match="endorsements are not well-formed"):
        parse_endorsements(data)


def test_the_size_of_a_quote_is_what_it_says(case: Case) -> None:
    right = int.from_bytes(case.quote[432:436], "little")
    for wrong in (0, right - 1, right + 1, 2**32 - 1):
        with pytest.raises(FormatError, match="quote: sizes do not add up"):
            parse_sgx_quote(case.at(432, struct.pack("<I", wrong)).quote)


def test_names_of_endorsements_are_no_endorsements() -> None:
    with pytest.raises(FormatError, match="not well-formed"):
        parse_endorsements(json.dumps([*dcap._TEXTS, *dcap._BYTES]).encode())


@pytest.mark.parametrize(
    "date", ["2026-3-1T12:00:00Z", "2026-03-01T12:00:00+00:00", "2026-03-01T12:00:00Z\n", "", None]
)
def test_dates_have_one_form(case: Case, date: object) -> None:
    for name in ("tcb_info", "qe_identity"):
        changed = case.signed(name, issueDate=date)
        with pytest.raises(FormatError, match="endorsements are not well-formed"):
            parse_endorsements(json.dumps(changed.endorsements).encode())


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 4000))
def test_any_bytes_as_a_quote(data: bytes, at: int) -> None:
    start = bytes.fromhex("0300020000000000")
    for quote in (data, start + data, start + bytes(at) + data):
        with contextlib.suppress(FormatError):
            parse_sgx_quote(quote)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=500) | st.recursive(
    st.none() | st.booleans() | st.text(max_size=8) | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from((*dcap._TEXTS, *dcap._BYTES, "issueDate")), inner)).map(lambda v: json.dumps(v).encode())
)  # fmt: skip
def test_any_bytes_as_endorsements(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_endorsements(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_byte_gives_an_error_of_ours_or_the_same_claims(case: Case, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(("quote", *case.endorsements)))
    value = case.quote if name == "quote" else case.endorsements[name].encode()
    at = data.draw(st.integers(0, len(value) - 1))
    byte = data.draw(st.integers(0, 255) if name == "quote" else st.sampled_from(b'0123456789abcdefABC{}",:= \n-'))
    value = value[:at] + bytes((byte,)) + value[at + 1 :]
    changed = replace(case, quote=value) if name == "quote" else case.but(**{name: value.decode()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            claims = changed.verify()
        except (FormatError, VerificationError):
            return
    before = case.verify()
    assert replace(claims, quote=before.quote) == before
    assert claims.quote.raw[:CERTIFICATION] == case.quote[:CERTIFICATION]


def test_every_byte_of_both_crls_counts(case: Case) -> None:
    # A CRL of an unknown version once escaped as an exception of a dependency.
    for name in ("pck_crl", "root_ca_crl"):
        data = bytes.fromhex(case.endorsements[name])
        for at in range(len(data)):
            changed = data[:at] + bytes((data[at] ^ 2,)) + data[at + 1 :]
            with pytest.raises((FormatError, VerificationError)):
                case.but(**{name: changed.hex()}).verify()


# Evidence of real processors, captured by others; not part of this repository.

REAL = {
    "azure-sgx-release": "OutOfDate",
    "cmc-sgx-outofdate": "OutOfDate",
    "enarx-sgx-xeon-outofdate": "OutOfDate",
    "integritee-sgx-oodcn": "OutOfDateConfigurationNeeded",
    "oasis-sgx-swh-2025": "SWHardeningNeeded",
    "phala-sgx-config-and-swh": "ConfigurationAndSWHardeningNeeded",
    "teepot-sgx-emr-outofdate": "OutOfDate",
    "teepot-sgx-swh-1": "SWHardeningNeeded",
}


def real(name: str) -> tuple[bytes, bytes, dict[str, Any]]:
    place = EVIDENCE / "sgx" / name
    if not place.is_dir():
        pytest.skip("captured evidence of real processors is not here (../shared/evidence)")
    endorsements = (place / "collateral.json").read_bytes()
    return (place / "quote.bin").read_bytes(), endorsements, json.loads((place / "meta.json").read_text())


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@pytest.mark.spec("CLM-7", "CLM-8")
@pytest.mark.parametrize("name", REAL)
def test_a_real_processor_under_the_pinned_root_of_its_vendor(name: str) -> None:
    raw, endorsements, meta = real(name)
    quote = parse_sgx_quote(raw)
    root = quote.chain[-1]
    assert hashlib.sha256(root).hexdigest() in verify._vendor_roots["sgx"]
    captured = moment(meta["valid_at"])
    claims = verify_sgx_quote(quote, endorsements, root_der=root, now=captured)
    expected = meta["expected"]
    assert claims.tcb_status == REAL[name] == expected["tcb_status"]
    assert set(claims.advisories) == set(expected["advisory_ids"])
    assert quote.mrenclave.hex() == expected["measurements"]["mrenclave"]
    assert quote.report_data.hex() == expected["report_data"]
    assert quote.debug is expected["debug"]
    # The same evidence, with one thing wrong.
    begin, end = (moment(t) for t in meta["valid_window"])
    for now in (begin - DAY, end + DAY):
        with pytest.raises(ExpiredError):
            verify_sgx_quote(quote, endorsements, root_der=root, now=now)
    altered = parse_sgx_quote(raw[:400] + bytes((raw[400] ^ 1,)) + raw[401:])
    with pytest.raises(SignatureError):
        verify_sgx_quote(altered, endorsements, root_der=root, now=captured)


def test_a_real_enclave_in_debug_mode() -> None:
    raw, endorsements, meta = real("teepot-sgx-debug")
    quote = parse_sgx_quote(raw)
    assert quote.debug
    with pytest.raises(VerificationError, match="debug bit"):
        verify_sgx_quote(quote, endorsements, root_der=quote.chain[-1], now=moment(meta["valid_at"]))


@pytest.mark.spec("CLM-7")
@pytest.mark.parametrize("name", ["sgx_root_ca", "sgx_root_ca_variant_20180521_2033_fc64f8"])
def test_the_pins_are_those_of_the_vendors_root(name: str) -> None:
    path = EVIDENCE / "roots" / "intel" / f"{name}.pem"
    if not path.is_file():
        pytest.skip("the vendors' root certificates are not here (../shared/evidence)")
    (root,) = _x509.split_pem(path.read_bytes())
    assert hashlib.sha256(root).hexdigest() in verify._vendor_roots["sgx"]
    assert _x509.is_self_signed_root(root, "Intel SGX Root CA")


def test_simulated_attributes_are_those_of_a_release_enclave() -> None:
    flags, _ = struct.unpack("<QQ", ATTRIBUTES)
    assert flags & 0x02 == 0
    assert flags & 0x80, "without KSS a report has no CONFIGID"
