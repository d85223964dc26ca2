"""SGX quotes that verify, with one thing changed, signed again where a signature covers it."""

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
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._evidence import ABSENT, evidence_dir

from conclave.attestation import _x509, verify
from conclave.attestation.anchors import ANCHORS
from conclave.attestation.dcap import parse_endorsements, parse_quote, verify_quote
from conclave.attestation.dcap.collateral import BYTES, TEXTS
from conclave.attestation.evidence import EvidenceClaims
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
from conclave.platform import pki
from conclave.platform.machine import Machine
from conclave.platform.pki import Pki
from conclave.platform.quote import ATTRIBUTES
from conclave.platform.vendor import FIRST, STATUSES, Vendor

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
# Where the parts of a quote of the simulated machine lie.
SIGNATURE, KEY, QE_REPORT, QE_SIGNATURE, QE_AUTH, CERTIFICATION = 436, 500, 564, 948, 1012, 1046


@dataclass(frozen=True)
class Case:
    machine: Machine
    other: Machine
    quote: bytes
    endorsements: dict[str, str]
    anchor: str
    now: datetime = NOW

    @property
    def keys(self) -> Pki:
        return self.machine._pki

    def verify(self) -> EvidenceClaims:
        data = json.dumps(self.endorsements).encode()
        return verify_quote(parse_quote(self.quote), data, anchors=frozenset({self.anchor}), now=self.now)

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

    def tdx(self) -> Case:
        """TCB info of the same processor for TDX."""
        levels = json.loads(self.endorsements["tcb_info"])["tcbLevels"]
        levels[0]["tcb"]["tdxtcbcomponents"] = [{"svn": 0}] * 16
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        return self.signed("tcb_info", id="TDX", tcbLevels=levels, tdxModule=module)

    def leaf(self, extension: bytes | None) -> Case:
        """A PCK certificate with another extension, or none."""
        keys = self.keys
        pck = pki._certificate("PCK", keys.pck_key, keys.ca, keys.ca_key, now=NOW, authority=False, extension=extension)
        return self.certification(pem(der(pck), der(keys.ca), der(keys.root)))

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
    return Case(machine, other, quote, json.loads(machine.endorsements()), machine.anchor)


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
    quote = parse_quote(case.quote)
    assert (quote.version, quote.tee, quote.body_type, quote.trailing) == (3, "sgx", 1, 0)
    assert quote.signed == case.quote[:432]
    assert quote.body["mrenclave"] == bytes(range(32))
    assert quote.body["config_id"] == bytes(range(100, 164))
    assert quote.report_data == bytes(range(64))
    assert quote.attestation_key == case.quote[KEY:QE_REPORT]
    assert quote.qe_report == case.quote[QE_REPORT:QE_SIGNATURE]
    assert not quote.debug
    assert quote.chain == (der(case.keys.pck), der(case.keys.ca), der(case.keys.root))
    assert parse_quote(case.at(96, b"\x87").quote).debug


# What is authentic but says something worth knowing.


@pytest.mark.parametrize("status", [s for s in STATUSES if s != "Revoked"])
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


@pytest.mark.spec("DCAP-14")
@pytest.mark.parametrize("without", [("pck_crl",), ("root_ca_crl",), ("pck_crl", "root_ca_crl")])
def test_without_a_list_revocation_is_unknown_and_that_is_told(case: Case, without: tuple[str, ...]) -> None:
    assert case.verify().remarks == frozenset()
    assert case.but(**dict.fromkeys(without, "")).verify().remarks == {"revocation-unknown"}


@pytest.mark.spec("DCAP-22")
def test_debug_is_told_and_not_refused(case: Case) -> None:
    claims = case.body(96, struct.pack("<Q", 0x87)).verify()
    assert claims.debug
    assert claims.tcb_status == "UpToDate"


def test_an_unused_chain_beside_the_quotes_own_changes_nothing(case: Case) -> None:
    given = case.but(pck_certificate_chain=pki.pem(case.other._pki.pck, case.other._pki.ca, case.other._pki.root))
    assert given.verify() == case.verify()


# What is refused.

Change = Callable[[Case], Case]
EXPIRED: dict[str, tuple[str, Change]] = {
    "a month later": ("tcb-info-expired", lambda c: replace(c, now=NOW + 31 * DAY)),
    "before any of it was issued": ("pck-expired", lambda c: replace(c, now=NOW - DAY)),
    "before 1970": ("pck-expired", lambda c: replace(c, now=datetime(1960, 1, 1, tzinfo=UTC))),
    "in the year 9999": ("pck-expired", lambda c: replace(c, now=datetime(9999, 12, 31, tzinfo=UTC))),
    "old CRL of the CA": ("pck-crl-expired", lambda c: c.crl("pck_crl", "ca", now=NOW - 31 * DAY)),
    "old CRL of the root": ("root-crl-expired", lambda c: c.crl("root_ca_crl", "root", now=NOW - 31 * DAY)),
    "TCB info expired": ("tcb-info-expired", lambda c: c.signed("tcb_info", nextUpdate="2026-02-28T00:00:00Z")),
    "TCB info of the future": ("tcb-info-expired", lambda c: c.signed("tcb_info", issueDate="2026-03-02T00:00:00Z")),
    "QE identity expired": (
        "qe-identity-expired", lambda c: c.signed("qe_identity", nextUpdate="2026-02-28T00:00:00Z")
    ),
    "QE identity of the future": (
        "qe-identity-expired", lambda c: c.signed("qe_identity", issueDate="2026-03-02T00:00:00Z")
    ),
}  # fmt: skip
REVOKED: dict[str, tuple[str, Change]] = {
    "PCK certificate": ("pck-revoked", lambda c: c.crl("pck_crl", "ca", revoked=("pck",))),
    "PCK CA": ("pck-ca-revoked", lambda c: c.crl("root_ca_crl", "root", revoked=("ca",))),
    "signer of TCB info": ("tcb-signer-revoked", lambda c: c.crl("root_ca_crl", "root", revoked=("tcb",))),
    "TCB level": ("tcb-revoked", lambda c: c.level(tcbStatus="Revoked")),
    "TCB level of the QE": ("tcb-revoked", lambda c: c.qe_level(tcbStatus="Revoked")),
}
UNSIGNED: dict[str, tuple[str, Change]] = {
    "QE SVN of the header": ("quote-signature", lambda c: c.flip(8)),
    "user data of the header": ("quote-signature", lambda c: c.flip(28)),
    "CPU SVN": ("quote-signature", lambda c: c.flip(48)),
    "attributes": ("quote-signature", lambda c: c.flip(96)),
    "measurement": ("quote-signature", lambda c: c.flip(112)),
    "config id": ("quote-signature", lambda c: c.flip(240)),
    "report data": ("quote-signature", lambda c: c.flip(431)),
    "quote signature": ("quote-signature", lambda c: c.flip(SIGNATURE + 5)),
    "QE report": ("qe-report-signature", lambda c: c.flip(QE_REPORT)),
    "QE report data": ("qe-report-signature", lambda c: c.flip(QE_REPORT + 320)),
    "QE report signature": ("qe-report-signature", lambda c: c.flip(QE_SIGNATURE + 5)),
    "TCB info": (
        "tcb-info-signature",
        lambda c: c.but(tcb_info=c.endorsements["tcb_info"].replace('"pcesvn":11', '"pcesvn":10')),
    ),
    "TCB info signature": (
        "tcb-info-signature", lambda c: c.but(tcb_info_signature=flipped(c.endorsements["tcb_info_signature"]))
    ),
    "TCB info signed by another": ("tcb-info-signature", lambda c: c.signed("tcb_info", c.other._pki.tcb_key)),
    "QE identity": (
        "qe-identity-signature",
        lambda c: c.but(qe_identity=c.endorsements["qe_identity"].replace('"isvsvn":8', '"isvsvn":7')),
    ),
    "QE identity signature": (
        "qe-identity-signature",
        lambda c: c.but(qe_identity_signature=flipped(c.endorsements["qe_identity_signature"])),
    ),
    "QE identity signed by another": ("qe-identity-signature", lambda c: c.signed("qe_identity", c.other._pki.tcb_key)),
}  # fmt: skip
UNBOUND: dict[str, tuple[str, Change]] = {
    "attestation key that the QE did not certify": ("qe-binding", lambda c: c.flip(KEY + 10)),
    "QE authentication data": ("qe-binding", lambda c: c.flip(QE_AUTH + 2)),
    "the second half of the QE's report data": ("qe-binding", lambda c: c.qe_report(352, b"\1")),
}
CHAIN: dict[str, tuple[str, Change]] = {
    "another root": ("pck-chain", lambda c: replace(c, anchor=c.other.anchor)),
    "the CA is pinned": ("pck-chain", lambda c: replace(c, anchor=fingerprint(c.keys.ca))),
    "the PCK certificate is pinned": ("pck-chain", lambda c: replace(c, anchor=fingerprint(c.keys.pck))),
    "another machine's TCB signer": (
        "tcb-info-chain",
        lambda c: c.but(tcb_info_issuer_chain=json.loads(c.other.endorsements())["tcb_info_issuer_chain"]),
    ),
    "another machine's QE identity signer": (
        "qe-identity-chain",
        lambda c: c.but(qe_identity_issuer_chain=json.loads(c.other.endorsements())["qe_identity_issuer_chain"]),
    ),
    "CRL of the root for its CA": ("pck-crl-issuer", lambda c: c.crl("pck_crl", "root")),
    "CRL of the CA": ("pck-crl-issuer", lambda c: c.but(pck_crl=flipped(c.endorsements["pck_crl"]))),
    "CRL of the CA signed by the root": ("pck-crl-issuer", lambda c: c.crl("pck_crl", "ca", key="root")),
    "CRL of the root": ("root-crl-issuer", lambda c: c.but(root_ca_crl=flipped(c.endorsements["root_ca_crl"]))),
    "CRL of the root from its CA": ("root-crl-issuer", lambda c: c.crl("root_ca_crl", "ca")),
    "CRL of another CA": ("pck-crl-issuer", lambda c: c.but(pck_crl=json.loads(c.other.endorsements())["pck_crl"])),
    "TCB info signed by the processor's own PCK key": (
        "tcb-info-chain",
        lambda c: c.signed("tcb_info", c.keys.pck_key).but(
            tcb_info_issuer_chain=pki.pem(c.keys.pck, c.keys.ca, c.keys.root)
        ),
    ),
    "QE identity signed by the processor's own PCK key": (
        "qe-identity-chain",
        lambda c: c.signed("qe_identity", c.keys.pck_key).but(
            qe_identity_issuer_chain=pki.pem(c.keys.pck, c.keys.ca, c.keys.root)
        ),
    ),
    "TCB info signed by the CA": (
        "tcb-info-chain",
        lambda c: c.signed("tcb_info", c.keys.ca_key).but(tcb_info_issuer_chain=pki.pem(c.keys.ca, c.keys.root)),
    ),
    "TCB info signed by the root": (
        "tcb-info-chain",
        lambda c: c.signed("tcb_info", c.keys.root_key).but(tcb_info_issuer_chain=pki.pem(c.keys.root)),
    ),
    "TCB info signed by a certificate for another use": (
        "tcb-info-chain",
        lambda c: c.signed("tcb_info").but(tcb_info_issuer_chain=pki.pem(issued(c.keys, "Conclave Other Signing"))),
    ),
    "TCB info signed by an authority of that name": (
        "tcb-info-chain",
        lambda c: c.signed("tcb_info").but(
            tcb_info_issuer_chain=pki.pem(issued(c.keys, "Conclave TCB Signing", authority=True))
        ),
    ),
    "the quote's chain without its CA": (
        "pck-chain", lambda c: c.certification(pem(der(c.keys.pck), der(c.keys.root)))
    ),
    "the quote's leaf is the TCB signer": (
        "pck-chain", lambda c: c.certification(pem(der(c.keys.tcb), der(c.keys.root)))
    ),
    "a certificate of the quote is junk": (
        "pck-chain", lambda c: c.certification(pem(der(c.keys.pck), b"junk", der(c.keys.root)))
    ),
    "signer chain holds no certificate": (
        "tcb-info-chain", lambda c: c.but(tcb_info_issuer_chain=pem(b"junk").decode())
    ),
}  # fmt: skip
MISFIT: dict[str, tuple[str, Change]] = {
    "QE vendor": ("qe-vendor", lambda c: c.body(12, bytes(16))),
    "TCB info of another processor family": (
        "tcb-info-mismatch", lambda c: c.signed("tcb_info", fmspc="000000000000")
    ),
    "TCB info of another PCE": ("tcb-info-mismatch", lambda c: c.signed("tcb_info", pceId="0001")),
    "TCB info of TDX": ("tcb-info-mismatch", lambda c: c.tdx()),
    "QE identity of TDX": ("qe-identity-mismatch", lambda c: c.signed("qe_identity", id="TD_QE")),
    "TCB info without levels": ("tcb-unsupported", lambda c: c.signed("tcb_info", tcbLevels=[])),
    "QE identity without levels": ("tcb-unsupported", lambda c: c.signed("qe_identity", tcbLevels=[])),
    "PCE below every level": (
        "tcb-unsupported", lambda c: c.level(tcb={"sgxtcbcomponents": [{"svn": 2}] * 16, "pcesvn": 12})
    ),
    "CPU below every level": (
        "tcb-unsupported", lambda c: c.level(tcb={"sgxtcbcomponents": [{"svn": 3}] * 16, "pcesvn": 11})
    ),
    "one component below every level": (
        "tcb-unsupported",
        lambda c: c.level(tcb={"sgxtcbcomponents": [{"svn": 2}] * 15 + [{"svn": 3}], "pcesvn": 11}),
    ),
    "a level above what a component can have": (
        "tcb-unsupported",
        lambda c: c.level(tcb={"sgxtcbcomponents": [{"svn": 258}] + [{"svn": 2}] * 15, "pcesvn": 11}),
    ),
    "QE of another signer": ("qe-mrsigner", lambda c: c.qe_report(128, bytes(32))),
    "another product of the QE's signer": ("qe-product", lambda c: c.qe_report(256, b"\2\0")),
    "QE attributes": ("qe-attributes", lambda c: c.qe_report(48, b"\x01")),
    "QE in debug mode": ("qe-attributes", lambda c: c.qe_report(48, b"\x13")),
    "QE misc select": ("qe-misc-select", lambda c: c.qe_report(16, b"\1")),
    "QE below every level": ("tcb-unsupported", lambda c: c.qe_report(258, b"\7\0")),
    "the PCK certificate names no processor": ("pck-extension", lambda c: c.leaf(None)),
    "the PCK certificate's extension is empty": ("pck-extension", lambda c: c.leaf(b"\x30\0")),
    "the PCK certificate's extension is junk": ("pck-extension", lambda c: c.leaf(b"junk")),
}  # fmt: skip
SHAPE: dict[str, tuple[str, Change]] = {
    "version 4": ("quote-certification", lambda c: c.at(0, b"\4")),
    "version 5": ("quote-body", lambda c: c.at(0, b"\5")),
    "version 2": ("quote-version", lambda c: c.at(0, b"\2")),
    "version 6": ("quote-version", lambda c: c.at(0, b"\6")),
    "version 259": ("quote-version", lambda c: c.at(0, b"\3\1")),
    "attestation key type": ("quote-key-type", lambda c: c.at(2, b"\3")),
    "TEE type of TDX": ("quote-tee", lambda c: c.at(4, b"\x81")),
    "TEE type that nobody knows": ("quote-tee", lambda c: c.at(4, b"\1")),
    "nothing": ("quote-format", lambda c: replace(c, quote=b"")),
    "more than a quote may have": ("quote-format", lambda c: c.certification(bytes(65536))),
    "a reserved field of the report": ("quote-format", lambda c: c.body(68, b"\1")),
    "a reserved field of the QE report": ("quote-format", lambda c: c.qe_report(20, b"\1")),
    "certification data of another kind": (
        "quote-certification", lambda c: c.certification(c.quote[CERTIFICATION + 6 :], kind=1)
    ),
    "certification data of a kind that nobody knows": (
        "quote-certification", lambda c: c.certification(c.quote[CERTIFICATION + 6 :], kind=4)
    ),
    "certification data claims more": ("quote-format", lambda c: c.certification(b"x" * 9, size=10)),
    "certification data claims less": (
        "quote-format", lambda c: c.certification(c.quote[CERTIFICATION + 6 :] + b"\n", size=100)
    ),
    "trailing byte": ("quote-format", lambda c: replace(c, quote=c.quote + b"\0")),
    "trailing byte that is counted": (
        "quote-format",
        lambda c: replace(c, quote=c.quote[:432] + struct.pack("<I", len(c.quote) - 435) + c.quote[436:] + b"\0"),
    ),
    "trailing byte that is not counted": (
        "quote-format",
        lambda c: replace(c, quote=c.quote[:432] + struct.pack("<I", len(c.quote) - 437) + c.quote[436:]),
    ),
    "chain is not PEM": ("quote-certification", lambda c: c.certification(b"junk" * 100)),
    "chain is empty": ("quote-certification", lambda c: c.certification(b"")),
    "chain with text between": (
        "quote-certification", lambda c: c.certification(pem(der(c.keys.pck)) + b"x" + pem(der(c.keys.ca)))
    ),
    "chain with wrong base64": (
        "quote-certification",
        lambda c: c.certification(b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----"),
    ),
    "chain of nine certificates": ("quote-certification", lambda c: c.certification(pem(*[der(c.keys.ca)] * 9))),
    "DER chain of nine certificates": ("quote-certification", lambda c: c.certification(der(c.keys.ca) * 9)),
    "DER chain and a NUL": ("quote-certification", lambda c: c.certification(der(c.keys.pck) + b"\0")),
    "TCB info chain is empty": ("endorsements-format", lambda c: c.but(tcb_info_issuer_chain="")),
    "QE identity chain is junk": ("endorsements-format", lambda c: c.but(qe_identity_issuer_chain="junk")),
    "unknown TCB status": ("tcb-info-format", lambda c: c.level(tcbStatus="Fine")),
    "status that a platform does not have": ("tcb-info-format", lambda c: c.level(tcbStatus="TDRelaunchAdvised")),
    "unknown QE status": ("qe-identity-format", lambda c: c.qe_level(tcbStatus="Fine")),
    "status that a QE does not have": ("qe-identity-format", lambda c: c.qe_level(tcbStatus="SWHardeningNeeded")),
    "TCB info of TDX without a module": ("tcb-info-format", lambda c: c.signed("tcb_info", id="TDX")),
    "TCB info of nothing": ("tcb-info-format", lambda c: c.signed("tcb_info", id="QE")),
    "TCB info of another type": ("tcb-info-format", lambda c: c.signed("tcb_info", tcbType=1)),
    "TCB info of version 2 with the id of version 3": ("tcb-info-format", lambda c: c.signed("tcb_info", version=2)),
    "TCB info of version 4": ("tcb-info-format", lambda c: c.signed("tcb_info", version=4)),
    "QE identity of another enclave": ("qe-identity-format", lambda c: c.signed("qe_identity", id="QVE")),
    "QE identity of version 1 in the form of 2": ("qe-identity-format", lambda c: c.signed("qe_identity", version=1)),
    "QE identity of version 3": ("qe-identity-format", lambda c: c.signed("qe_identity", version=3)),
    "issue date of another form": (
        "tcb-info-format", lambda c: c.signed("tcb_info", issueDate="2026-03-01 12:00:00")
    ),
    "issue date that does not exist": (
        "tcb-info-format", lambda c: c.signed("tcb_info", issueDate="2026-02-30T12:00:00Z")
    ),
    "issue date is a number": ("qe-identity-format", lambda c: c.signed("qe_identity", issueDate=1)),
    "TCB info expires some time": ("tcb-info-format", lambda c: c.signed("tcb_info", nextUpdate="soon")),
    "QE identity expires some time": ("qe-identity-format", lambda c: c.signed("qe_identity", nextUpdate="soon")),
    "TCB info says nothing": ("tcb-info-format", lambda c: c.but(tcb_info="{}")),
    "QE identity without a date": ("qe-identity-format", lambda c: c.but(qe_identity='{"id":"QE","version":2}')),
    "TCB info is a list": ("tcb-info-format", lambda c: c.but(tcb_info="[]")),
    "TCB info is not JSON": ("tcb-info-format", lambda c: c.but(tcb_info="{")),
    "a member too many": ("endorsements-format", lambda c: c.but(pck_certificate="")),
    "a chain that is empty": ("endorsements-format", lambda c: c.but(pck_certificate_chain="")),
    "a member too few": (
        "endorsements-format",
        lambda c: replace(c, endorsements={k: v for k, v in c.endorsements.items() if k != "pck_crl_issuer_chain"}),
    ),
    "a member that is a number": ("endorsements-format", lambda c: c.but(pck_crl=1)),  # type: ignore[arg-type]
    "a member that is not ASCII": ("endorsements-format", lambda c: c.but(pck_crl_issuer_chain="ü")),
    "no signature of TCB info": ("endorsements-format", lambda c: c.but(tcb_info_signature="")),
    "a signature of QE identity that is too long": (
        "endorsements-format", lambda c: c.but(qe_identity_signature=c.endorsements["qe_identity_signature"] + "00")
    ),
    "CRL is not hex": ("endorsements-format", lambda c: c.but(pck_crl="zz")),
    "CRL with white space": ("endorsements-format", lambda c: c.but(pck_crl=c.endorsements["pck_crl"] + "  ")),
    "CRL one byte short": ("root-crl-format", lambda c: c.but(root_ca_crl=c.endorsements["root_ca_crl"][:-2])),
    "CRL of an unknown version": (
        "pck-crl-format", lambda c: c.but(pck_crl=c.endorsements["pck_crl"].replace("020101", "020103", 1))
    ),
}  # fmt: skip


def issued(keys: Pki, common: str, *, authority: bool = False) -> x509.Certificate:
    """A certificate of the TCB signer's key, issued by the root."""
    return pki._certificate(common, keys.tcb_key, keys.root, keys.root_key, now=NOW, authority=authority)


def fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(der(certificate)).hexdigest()


def refused(case: Case, error: type[Error], expected: tuple[str, Change]) -> None:
    code, change = expected
    case.verify()
    with pytest.raises(Error) as caught:
        change(case).verify()
    assert (type(caught.value), caught.value.code) == (error, code), caught.value
    # Messages are our own words: nothing of evidence or endorsements.
    assert str(caught.value).isprintable()


@pytest.mark.spec("CLM-8", "DCAP-13")
@pytest.mark.parametrize("name", EXPIRED)
def test_expired(case: Case, name: str) -> None:
    refused(case, ExpiredError, EXPIRED[name])


@pytest.mark.spec("CLM-8", "DCAP-14", "DCAP-19")
@pytest.mark.parametrize("name", REVOKED)
def test_revoked(case: Case, name: str) -> None:
    refused(case, RevokedError, REVOKED[name])


@pytest.mark.spec("DCAP-11", "DCAP-12")
@pytest.mark.parametrize("name", UNSIGNED)
def test_altered_without_its_signature(case: Case, name: str) -> None:
    refused(case, SignatureError, UNSIGNED[name])


@pytest.mark.spec("DCAP-11")
@pytest.mark.parametrize("name", UNBOUND)
def test_another_key_than_the_quoting_enclave_certified(case: Case, name: str) -> None:
    refused(case, BindingError, UNBOUND[name])


@pytest.mark.spec("DCAP-9", "DCAP-12", "DCAP-14")
@pytest.mark.parametrize("name", CHAIN)
def test_wrong_issuer(case: Case, name: str) -> None:
    refused(case, ChainError, CHAIN[name])


@pytest.mark.spec("DCAP-10", "DCAP-15", "DCAP-17")
@pytest.mark.parametrize("name", MISFIT)
def test_signed_but_it_does_not_fit(case: Case, name: str) -> None:
    refused(case, VerificationError, MISFIT[name])


@pytest.mark.spec("DCAP-1", "DCAP-4", "DCAP-5", "DCAP-6", "DCAP-7")
@pytest.mark.parametrize("name", SHAPE)
def test_wrong_shape(case: Case, name: str) -> None:
    refused(case, FormatError, SHAPE[name])


def test_certificates_expire_while_endorsements_are_fresh(case: Case) -> None:
    later = NOW + timedelta(days=365 * 20 + 1)
    text = case.keys.endorsements(Vendor.first(NOW), now=later)
    refused(case, ExpiredError, ("pck-expired", lambda c: replace(c, now=later, endorsements=json.loads(text))))


def test_certificates_of_the_future(case: Case) -> None:
    keys = Pki.create(fmspc=bytes(6), ppid=bytes(16), now=NOW + DAY)
    machine = Machine(Path(), b"", FIRST, keys, pki.private_der(pki.new_private()))
    quote = machine.quote(report_data=bytes(64), config_id=bytes(64), mrenclave=bytes(32))
    text = keys.endorsements(Vendor.first(NOW), now=NOW)
    changed = replace(case, quote=quote, endorsements=json.loads(text), anchor=machine.anchor)
    refused(case, ExpiredError, ("pck-expired", lambda c: changed))


def test_truncated_anywhere(case: Case) -> None:
    for size in range(len(case.quote)):
        with pytest.raises(FormatError):
            parse_quote(case.quote[:size])


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
    with pytest.raises(FormatError, match="endorsements: "):
        parse_endorsements(data)


def test_the_size_of_a_quote_is_what_it_says(case: Case) -> None:
    right = int.from_bytes(case.quote[432:436], "little")
    for wrong in (0, right - 1, right + 1, 2**32 - 1):
        with pytest.raises(FormatError, match="quote: "):
            parse_quote(case.at(432, struct.pack("<I", wrong)).quote)


def test_names_of_endorsements_are_no_endorsements() -> None:
    with pytest.raises(FormatError, match="not well-formed"):
        parse_endorsements(json.dumps([*TEXTS, *BYTES]).encode())


def test_a_time_without_a_zone_is_a_bug_of_the_caller(case: Case) -> None:
    with pytest.raises(ValueError, match="aware"):
        replace(case, now=datetime(2026, 3, 1)).verify()


@pytest.mark.parametrize(
    "date", ["2026-3-1T12:00:00Z", "2026-03-01T12:00:00+00:00", "2026-03-01T12:00:00Z\n", "", None]
)
def test_dates_have_one_form(case: Case, date: object) -> None:
    for name in ("tcb_info", "qe_identity"):
        changed = case.signed(name, issueDate=date)
        with pytest.raises(FormatError, match="not well-formed"):
            parse_endorsements(json.dumps(changed.endorsements).encode())


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 4000))
def test_any_bytes_as_a_quote(data: bytes, at: int) -> None:
    starts = [bytes.fromhex(s) for s in ("0300020000000000", "0400020081000000", "0500020081000000")]
    for quote in (data, *(s + data for s in starts), *(s + bytes(at) + data for s in starts)):
        with contextlib.suppress(FormatError):
            parse_quote(quote)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=500) | st.recursive(
    st.none() | st.booleans() | st.text(max_size=8) | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from((*TEXTS, *BYTES, "issueDate")), inner)).map(lambda v: json.dumps(v).encode())
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
    assert claims == case.verify()


def test_every_byte_of_both_crls_counts(case: Case) -> None:
    # A CRL of an unknown version once escaped as an exception of a dependency.
    before = case.verify()
    for name in ("pck_crl", "root_ca_crl"):
        data = bytes.fromhex(case.endorsements[name])
        accepted = []
        for at in range(len(data)):
            changed = data[:at] + bytes((data[at] ^ 2,)) + data[at + 1 :]
            try:
                assert case.but(**{name: changed.hex()}).verify() == before
                accepted.append(at)
            except (FormatError, VerificationError):
                continue
        # How many bits of the signature's last byte are unused: 2 instead of none, where they happen to be zero.
        assert all(data[at - 2] == 3 and at > len(data) - 80 for at in accepted), accepted


@pytest.mark.spec("CLM-7")
@pytest.mark.parametrize("name", ["sgx_root_ca", "sgx_root_ca_variant_20180521_2033_fc64f8"])
def test_the_pins_are_those_of_the_vendors_root(name: str) -> None:
    place = evidence_dir()
    if place is None:
        pytest.skip(ABSENT)
    (root,) = _x509.split_pem((place / "roots" / "intel" / f"{name}.pem").read_bytes())
    assert hashlib.sha256(root).hexdigest() in ANCHORS["sgx"] == ANCHORS["tdx"] == verify._vendor_roots["sgx"]
    assert _x509.is_self_signed_root(root, "Intel SGX Root CA")


def test_simulated_attributes_are_those_of_a_release_enclave() -> None:
    flags, _ = struct.unpack("<QQ", ATTRIBUTES)
    assert flags & 0x02 == 0
    assert flags & 0x80, "without KSS a report has no CONFIGID"
