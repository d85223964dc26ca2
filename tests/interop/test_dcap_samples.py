"""Captured evidence of real Intel processors gets the verdict that its record expects.

The samples are no part of this repository; without them the tests say so and skip.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from tests._evidence import ABSENT, evidence_dir

from conclave.attestation import _x509
from conclave.attestation.anchors import ANCHORS
from conclave.attestation.dcap import Quote, parse_quote, verify_quote
from conclave.attestation.evidence import EvidenceClaims
from conclave.errors import ChainError, Error, ExpiredError, FormatError, SignatureError, VerificationError

SECOND = timedelta(seconds=1)
SEED = 20261124
BINARY = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")
# Why each sample that is not valid is refused; and what those without a time are judged at.
REASONS = {
    "tcb_info expired": "tcb-info-expired",
    "quote signature": "quote-signature",
    "pck chain: the PCK certificate is not issued by the next certificate": "pck-chain",
    "tcb not supported (no matching level)": "tcb-unsupported",
    "qe mrsigner": "qe-mrsigner",
    "certification data type 3 (encrypted PPID, CPUSVN, PCESVN, PCEID): no PCK certificate in the sample": (
        "certification-unsupported"
    ),
}
SOME_TIME = datetime(2020, 6, 1, tzinfo=UTC)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@dataclass(frozen=True)
class Sample:
    """A quote with one set of endorsements."""

    place: Path
    collateral: str
    meta: dict[str, Any]
    expected: dict[str, Any]
    valid_at: str | None

    @property
    def raw(self) -> bytes:
        return (self.place / "quote.bin").read_bytes()

    @property
    def parts(self) -> dict[str, str]:
        """The members of the endorsements, with the PCK chain where the quote carries none; empty if there are none."""
        path = self.place / self.collateral
        parts: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        chain = self.place / "pck_cert_chain.pem"
        return parts | ({"pck_certificate_chain": chain.read_text()} if parts and chain.exists() else {})

    @property
    def endorsements(self) -> bytes:
        return json.dumps(self.parts).encode() if self.parts else b""

    @property
    def anchors(self) -> frozenset[str]:
        if "trust_root" not in self.meta:
            return ANCHORS[self.meta["kind"]]
        (root,) = _x509.split_pem((self.place / "trusted_root.pem").read_bytes())
        return frozenset({hashlib.sha256(root).hexdigest()})

    @property
    def now(self) -> datetime:
        return moment(self.valid_at) if self.valid_at else SOME_TIME

    def verify(
        self, *, raw: bytes | None = None, endorsements: bytes | None = None, now: datetime | None = None
    ) -> EvidenceClaims:
        quote = parse_quote(self.raw if raw is None else raw)
        given = self.endorsements if endorsements is None else endorsements
        return verify_quote(quote, given, anchors=self.anchors, now=now or self.now)


def load() -> dict[str, Sample]:
    root = evidence_dir()
    found: dict[str, Sample] = {}
    for path in sorted([*root.glob("sgx/*/meta.json"), *root.glob("tdx/*/meta.json")]) if root else []:
        meta = json.loads(path.read_text())
        found[path.parent.name] = Sample(path.parent, "collateral.json", meta, meta["expected"], meta["valid_at"])
        for other in meta.get("alternates", []):
            name = f"{path.parent.name} {other['collateral']}"
            found[name] = Sample(path.parent, other["collateral"], meta, other["expected"], other["valid_at"])
    return found


SAMPLES = load()
QUOTES = [n for n in SAMPLES if " " not in n]
VALID = [n for n, s in SAMPLES.items() if s.expected["verdict"] == "valid"]
INVALID = [n for n in SAMPLES if n not in VALID]
pytestmark = pytest.mark.skipif(not SAMPLES, reason=ABSENT)


def sample(name: str) -> Sample:
    if name not in SAMPLES:
        pytest.skip(f"the sample {name} is not here")
    return SAMPLES[name]


def test_all_of_them_are_judged() -> None:
    kinds = [SAMPLES[n].meta["kind"] for n in QUOTES]
    assert (kinds.count("sgx"), kinds.count("tdx")) == (26, 17)
    assert (len(VALID), len(INVALID), len(SAMPLES)) == (44, 9, 53)


@pytest.mark.spec("DCAP-18", "DCAP-19", "DCAP-20", "DCAP-21", "DCAP-22", "DCAP-23", "DCAP-24")
@pytest.mark.parametrize("name", VALID)
def test_a_valid_sample(name: str) -> None:
    case = sample(name)
    expected = case.expected
    claims = case.verify()
    assert (claims.tee, claims.tcb_status) == (case.meta["kind"], expected["tcb_status"])
    for part, member in (("platform", "tcb_platform_status"), ("qe", "qe_status"), ("tdx_module", "tdx_module_status")):
        assert claims.statuses.get(part) == expected.get(member, claims.statuses.get(part))
    # The records name the advisories of the platform's level; ours are those of all parts.
    assert claims.details["advisories"]["platform"] == sorted(expected.get("advisory_ids") or [])
    assert set(claims.details["advisories"]["platform"]) <= set(claims.advisories)
    main = case.meta["expected"]
    assert claims.debug is main["debug"]
    assert dict(claims.measurements) == main["measurements"]
    assert claims.report_data is not None
    assert claims.report_data.hex() == main["report_data"]
    assert claims.details["fmspc"] == case.meta.get("fmspc", claims.details["fmspc"])
    assert claims.details["quote_version"] == case.meta["quote_version"]
    assert claims.anchor in case.anchors
    assert ("revocation-unknown" in claims.remarks) is ("no-crls" in name)
    if case.collateral == "collateral.json":
        assert [claims.valid_from, claims.valid_until] == [moment(t) for t in case.meta["valid_window"]]


@pytest.mark.spec("DCAP-13", "DCAP-24")
@pytest.mark.parametrize("name", [n for n in SAMPLES if SAMPLES[n].meta.get("valid_window")])
def test_a_time_just_outside_the_window_is_refused_as_expired(name: str) -> None:
    case = sample(name)
    if case in [SAMPLES[n] for n in VALID]:
        claims = case.verify()
        begin, end = claims.valid_from, claims.valid_until
        for now in (begin, end):
            assert case.verify(now=now) == claims
    else:
        begin, end = (moment(t) for t in case.meta["valid_window"])
    for now in (begin - SECOND, end + SECOND):
        with pytest.raises(ExpiredError) as caught:
            case.verify(now=now)
        assert caught.value.code.endswith("-expired")


@pytest.mark.spec("DCAP-8", "DCAP-17")
@pytest.mark.parametrize("name", INVALID)
def test_a_sample_that_is_not_valid(name: str) -> None:
    case = sample(name)
    parse_quote(case.raw)
    with pytest.raises(VerificationError) as caught:
        case.verify()
    assert caught.value.code == REASONS[case.expected["reason"]]


# It does not read TCB info 2, wants both lists, and refuses by policies of its own.
NOT_JUDGED = ("Debug mode", "SEPT_VE_DISABLE", "MR service TD", "sgxtcbcomponents", "root CA CRL")
JUDGED = [n for n in SAMPLES if SAMPLES[n].parts and not SAMPLES[n].meta.get("trust_root")]


def oracle(case: Sample) -> tuple[str, tuple[str, ...]]:
    """Status and advisories, or "refused" and its reason, by the vendor-independent library dcap-qvl."""
    parts = {k: bytes.fromhex(v) if k in BINARY else v for k, v in case.parts.items()}
    try:
        report = dcap_qvl.verify(case.raw, dcap_qvl.QuoteCollateralV3(**parts), int(case.now.timestamp()))
    except ValueError as error:
        return "refused", (str(error),)
    return report.status, tuple(sorted(set(report.advisory_ids)))


@pytest.mark.parametrize("name", JUDGED)
def test_the_oracle_agrees_wherever_it_judges(name: str) -> None:
    case = sample(name)
    status, found = oracle(case)
    if status == "refused":
        assert name in INVALID or any(reason in found[0] for reason in NOT_JUDGED)
    else:
        ours = case.verify()
        assert (ours.tcb_status, ours.advisories) == (status, found)


def test_the_oracle_judges_most_of_them() -> None:
    answers = [oracle(SAMPLES[n])[0] for n in JUDGED]
    assert (len(answers), answers.count("refused")) == (48, 24)


# The corner cases that the samples were collected for.

TRAILING = {
    "phala-tdx-v4-uptodate": 70,
    "google-tdx-v4-no-tcb-match": 39,
    "google-tdx-v4-ccel": 3065,
    "trustee-tdx-v4-outofdate": 70,
    "trustee-tdx-v4-azure": 70,
    "oasis-tdx-v4-no-crls-trailing": 70,
}


@pytest.mark.spec("DCAP-2")
@pytest.mark.parametrize("name", QUOTES)
def test_bytes_after_the_quote_proper(name: str) -> None:
    assert parse_quote(sample(name).raw).trailing == TRAILING.get(name, 0)


@pytest.mark.spec("DCAP-2")
@pytest.mark.parametrize("name", ["phala-tdx-v4-uptodate", "google-tdx-v5-uptodate"])
def test_what_is_behind_a_quote_says_nothing(name: str) -> None:
    case = sample(name)
    proper = case.raw[: len(case.raw) - TRAILING.get(name, 0)]
    plain = case.verify(raw=proper)
    for more in (b"\0", b"x" * 100, proper):
        claims = case.verify(raw=proper + more)
        assert claims.details["trailing_bytes"] == len(more)
        assert (claims.measurements, claims.tcb_status) == (plain.measurements, plain.tcb_status)
    with pytest.raises(FormatError, match="more than 65536"):
        parse_quote(proper + bytes(65537 - len(proper)))


@pytest.mark.spec("DCAP-3")
@pytest.mark.parametrize("name", QUOTES)
def test_the_chain_comes_leaf_first(name: str) -> None:
    chain = parse_quote(sample(name).raw).chain
    parsed = [_x509.Certificate(c, what="any") for c in chain]
    names = [c.common_name for c in parsed]
    if name in ("intel-qvl-sample-sgx-testpki", "fortanix-sgx-certdata-type3"):
        assert not chain
        return
    assert names[0] == "Intel SGX PCK Certificate"
    assert names[1] in ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
    assert names[2:] == ["Intel SGX Root CA"]


@pytest.mark.spec("DCAP-3")
def test_a_chain_out_of_order_and_without_nul() -> None:
    case = sample("fortanix-sgx-corrupted-signature")
    raw = (case.place / "quote_uncorrupted.bin").read_bytes()
    quote = parse_quote(raw)
    assert tuple(_x509.split_pem(quote.certification)) == (quote.chain[0], quote.chain[2], quote.chain[1])
    assert quote.certification.endswith(b"-")
    # Everything that it proves by itself holds; there are no endorsements to go on with.
    with pytest.raises(FormatError) as caught:
        case.verify(raw=raw)
    assert caught.value.code == "endorsements-format"


@pytest.mark.spec("DCAP-3")
def test_a_chain_in_der_root_first() -> None:
    quote = parse_quote(sample("intel-qvl-sample-tdx-testpki").raw)
    assert quote.certification[:1] == b"0"
    assert quote.certification.index(quote.chain[2]) == 0


@pytest.mark.spec("DCAP-9")
def test_both_editions_of_the_root_are_anchors_of_one_another() -> None:
    # The same key in two certificates: a chain that carries one verifies under either.
    case = sample("phala-sgx-config-and-swh")
    quote = parse_quote(case.raw)
    pinned = sorted(ANCHORS["sgx"])
    carried = {hashlib.sha256(c).hexdigest() for c in quote.chain} & set(pinned)
    assert len(carried) == 1
    roots = [(case.place.parents[1] / "roots" / "intel" / f"{n}.pem").read_bytes() for n in (
        "sgx_root_ca", "sgx_root_ca_variant_20180521_2033_fc64f8")]  # fmt: skip
    for pem in roots:
        (root,) = _x509.split_pem(pem)
        changed = carrying(quote, case.raw, (*quote.chain[:2], root))
        claims = verify_quote(parse_quote(changed), case.endorsements, anchors=ANCHORS["sgx"], now=case.now)
        assert claims.anchor == hashlib.sha256(root).hexdigest()
        assert claims.tcb_status == case.expected["tcb_status"]


def carrying(quote: Quote, raw: bytes, chain: tuple[bytes, ...]) -> bytes:
    """A version 3 quote with another chain, in DER."""
    auth = raw[len(quote.signed) + 4 :][: -len(quote.certification) - 4] + len(b"".join(chain)).to_bytes(4, "little")
    auth += b"".join(chain)
    return quote.signed + len(auth).to_bytes(4, "little") + auth


@pytest.mark.spec("DCAP-8")
def test_a_processor_that_the_quote_names_in_the_clear() -> None:
    case = sample("intel-qvl-sample-sgx-testpki")
    assert parse_quote(case.raw).certification_type == 1
    assert case.verify().tcb_status == "UpToDate"
    without = {k: v for k, v in case.parts.items() if k != "pck_certificate_chain"}
    with pytest.raises(VerificationError) as caught:
        case.verify(endorsements=json.dumps(without).encode())
    assert caught.value.code == "certification-unsupported"
    # PPID, PCESVN and PCE id: the certificate must be of the processor that is named.
    for at, code in ((-34, "pck-mismatch"), (-20, "pck-mismatch")):
        changed = bytearray(case.raw)
        changed[at] ^= 1
        with pytest.raises(VerificationError) as caught:
            case.verify(raw=bytes(changed))
        assert caught.value.code == code


@pytest.mark.parametrize("name", ["intel-qvl-sample-sgx-testpki", "intel-qvl-sample-tdx-testpki"])
def test_the_vendors_test_keys_are_not_the_vendors(name: str) -> None:
    case = sample(name)
    with pytest.raises(ChainError) as caught:
        verify_quote(parse_quote(case.raw), case.endorsements, anchors=ANCHORS["sgx"], now=case.now)
    assert caught.value.code == "pck-chain"


@pytest.mark.spec("DCAP-23")
def test_what_policy_has_to_know() -> None:
    assert "service-td" in sample("openenclave-tdx-v5-servicetd").verify().remarks
    assert "migratable" in sample("openenclave-tdx-v5-servicetd").verify().remarks
    assert "sept-ve-enabled" in sample("trustee-tdx-v4-azure").verify().remarks
    assert "sept-ve-enabled" not in sample("google-tdx-v4-ccel").verify().remarks
    relaunch = sample("openenclave-tdx-v5-relaunch-advised").verify()
    assert "relaunch-advised" in relaunch.remarks
    assert (relaunch.statuses["tdx_module"], relaunch.statuses["current_tdx_module"]) == ("OutOfDate", "UpToDate")
    assert "smt" in sample("cmc-sgx-outofdate").verify().remarks
    assert not sample("azure-sgx-release").verify().remarks


# Hostile hosts.


@pytest.mark.parametrize("name", QUOTES)
def test_every_truncation_is_refused_or_ends_behind_the_quote(name: str) -> None:
    raw = sample(name).raw
    proper = len(raw) - TRAILING.get(name, 0)
    for size in range(proper):
        with pytest.raises(FormatError):
            parse_quote(raw[:size])
    for size in range(proper, len(raw)):
        assert parse_quote(raw[:size]).trailing == size - proper


@pytest.mark.spec("DCAP-11", "DCAP-12")
@pytest.mark.parametrize("name", VALID)
def test_a_flipped_bit_in_what_is_signed_is_refused(name: str) -> None:
    case = sample(name)
    chance = random.Random(f"{SEED} {name}")
    raw, quote, parts = case.raw, parse_quote(case.raw), case.parts
    signed = [quote.signed, quote.signature, quote.attestation_key, quote.qe_report, quote.qe_report_signature]
    signed += [quote.qe_auth_data] if quote.qe_auth_data else []
    for part in signed:
        start = raw.index(part)
        for _ in range(6):
            changed = bytearray(raw)
            changed[start + chance.randrange(len(part))] ^= 1 << chance.randrange(8)
            with pytest.raises((FormatError, VerificationError)):
                case.verify(raw=bytes(changed))
    for member in ("tcb_info", "qe_identity", *BINARY):
        for _ in range(3 if parts[member] else 0):
            text = bytearray.fromhex(parts[member]) if member in BINARY else bytearray(parts[member].encode())
            text[chance.randrange(len(text))] ^= 1 << chance.randrange(7)
            value = text.hex() if member in BINARY else text.decode()
            with pytest.raises((FormatError, VerificationError)):
                case.verify(endorsements=json.dumps(parts | {member: value}).encode())


@pytest.mark.parametrize("name", ["azure-sgx-release", "phala-tdx-v4-uptodate"])
def test_a_flipped_bit_in_the_certificates_changes_nothing_or_is_refused(name: str) -> None:
    case = sample(name)
    quote = parse_quote(case.raw)
    before, start = case.verify(), case.raw.index(quote.certification)
    chance = random.Random(SEED)
    for _ in range(300):
        changed = bytearray(case.raw)
        changed[start + chance.randrange(len(quote.certification))] ^= 1 << chance.randrange(8)
        try:
            # White space of the PEM form, or the copy of the root that is not needed.
            assert case.verify(raw=bytes(changed)) == before
        except (FormatError, VerificationError):
            continue


@pytest.mark.spec("DCAP-15")
def test_endorsements_of_another_platform() -> None:
    for kind in ("sgx", "tdx"):
        cases = [SAMPLES[n] for n in VALID if SAMPLES[n].meta["kind"] == kind and "fmspc" in SAMPLES[n].meta]
        for case, other in zip(cases, [*cases[1:], cases[0]], strict=True):
            if case.meta["fmspc"] == other.meta["fmspc"] and case.meta["pck_ca"] == other.meta["pck_ca"]:
                continue
            with pytest.raises(Error) as caught:
                case.verify(endorsements=other.endorsements, now=other.now)
            assert isinstance(caught.value, VerificationError)


@pytest.mark.spec("DCAP-15", "DCAP-16")
def test_endorsements_of_the_other_tee() -> None:
    sgx, tdx = sample("cmc-sgx-outofdate"), sample("oasis-tdx-v4-outofdate")
    documents = ("tcb_info", "qe_identity")
    for one, other in ((sgx, tdx), (tdx, sgx)):
        for name, code in zip(documents, ("tcb-info-mismatch", "qe-identity-mismatch"), strict=True):
            taken = {k: v for k, v in other.parts.items() if k.startswith(name)}
            with pytest.raises(VerificationError) as caught:
                one.verify(endorsements=json.dumps(one.parts | taken).encode(), now=tdx.now)
            assert caught.value.code == code


def test_a_signature_of_another_quote() -> None:
    one, other = sample("azure-sgx-release"), sample("azure-sgx-prodid")
    mixed = parse_quote(one.raw).signed + other.raw[len(parse_quote(other.raw).signed) :]
    with pytest.raises(SignatureError):
        one.verify(raw=mixed)
