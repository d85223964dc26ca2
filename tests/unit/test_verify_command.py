"""`conclave verify`: every option, every verdict, every exit status, whatever it is pointed at."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import os
import re
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests._verified import Outcome, Verify, verifier

from conclave import _crypto
from conclave.attestation import InstanceClaims, InstanceInfo, ReferenceValues, bundle_id, sign_reference_values
from conclave.attestation._x509 import split_pem
from conclave.attestation.claims import MAX_INFO
from conclave.attestation.dcap import parse_quote
from conclave.attestation.nitro import parse_document
from conclave.attestation.snp import parse_report
from conclave.cli._answer import schema
from conclave.cli._artefact import Artefact
from conclave.cli._folders import Places
from conclave.cli._steps import BINDING, CODES, LIVENESS, STEPS, advice
from conclave.cli._verify import Question, judge
from conclave.host.endorsements.documents import Document, parse_name, read_document
from conclave.host.endorsements.exchange import write_folder
from conclave.platform.machine import Machine
from conclave.testing.evidence import AmdPki, AwsPki, BuiltEvidence, IntelPki
from conclave.testing.evidence.draft import fingerprint
from conclave.testing.verifier import vendor_root

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
AT = ("--at", "2026-03-01T12:00:00Z")
SECOND = timedelta(seconds=1)
FILES = {"sgx": "quote.bin", "tdx": "quote.bin", "snp": "report.bin", "nitro": "document.cbor"}
NAMED = {"sgx": "quote", "tdx": "quote", "snp": "snp", "nitro": "nitro"}
CODE = "c0" * 32
PROGRAM = f"C:{CODE} RUNTIME:conclave-9.9.9"
# Codes of what fails before any signature could be checked.
PARSING = re.compile(
    r"[a-z-]+-format|quote-(version|key-type|tee|body|certification)|report-version|document-algorithm", re.ASCII
)
TEES = ("sgx", "tdx", "snp", "nitro")

Built = dict[str, BuiltEvidence]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    return verifier(capsys)


@pytest.fixture(scope="module")
def built() -> Built:
    """Evidence of every vendor's shape that passes under its test root."""
    intel = IntelPki.create(now=NOW)
    return {
        "sgx": intel.sgx(report_data=bytes(range(64))),
        "tdx": intel.tdx(),
        "snp": AmdPki.create(now=NOW).snp(report_data=bytes(range(64))),
        "nitro": AwsPki.create(now=NOW).nitro(),
    }


def root_of(case: BuiltEvidence) -> bytes:
    """The root certificate, as evidence or endorsements carry it."""
    if case.tee == "nitro":
        chain: tuple[bytes, ...] = parse_document(case.raw).cabundle
    elif case.tee == "snp":
        chain = split_pem(json.loads(case.endorsements)["chain"].encode())
    else:
        chain = parse_quote(case.raw).chain
    return next(der for der in chain if fingerprint(der) in case.anchors)


def folder(place: Path, case: BuiltEvidence) -> Path:
    """The layout of a sample: evidence, its endorsements, and the issuers beside all SEV-SNP evidence."""
    sample = place / case.tee / "sample"
    sample.mkdir(parents=True)
    (sample / FILES[case.tee]).write_bytes(case.raw)
    if case.tee in ("sgx", "tdx"):
        (sample / "collateral.json").write_bytes(case.endorsements)
    elif case.tee == "snp":
        given = json.loads(case.endorsements)
        (sample / "vcek.der").write_bytes(bytes.fromhex(given["certificate"]))
        (place / "roots" / "amd").mkdir(parents=True)
        for number, der in enumerate(split_pem(given["chain"].encode())):
            (place / "roots" / "amd" / f"{number}.pem").write_text(ssl.DER_cert_to_PEM_cert(der))
    return sample


def roots(place: Path, *cases: BuiltEvidence) -> tuple[str, Path]:
    """Options that name a folder with the roots of these, one PEM, one DER in a folder below."""
    found = place / "trusted"
    for number, case in enumerate(cases):
        (found / "below").mkdir(parents=True, exist_ok=True)
        der = root_of(case)
        (found / f"{number}.pem").write_text("a comment\n" + ssl.DER_cert_to_PEM_cert(der))
        (found / "below" / f"{number}.der").write_bytes(der)
    return "--roots", found


# Authenticity alone.


@pytest.mark.spec("VER-1", "VER-3", "VER-6", "VER-13")
@pytest.mark.parametrize("tee", TEES)
def test_a_folder_under_a_root_given_by_hand(tee: str, built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built[tee]
    answer = verify(folder(tmp_path, case), *roots(tmp_path, case), *AT, "--json").answer
    assert (answer.verdict, answer.tee, answer.security) == ("authentic", tee, "INSECURE")
    assert "custom-root" in answer.remarks
    assert "the root was given by hand: no vendor stands behind it" in answer.reasons
    assert {answer.anchor} == case.anchors
    assert answer.at == "2026-03-01T12:00:00Z"
    assert answer.tcb_status == ("UpToDate" if tee in ("sgx", "tdx") else None)
    assert answer.report_data == (None if tee == "nitro" else (bytes(range(64)) if tee != "tdx" else bytes(64)).hex())
    assert answer.claims is None
    assert answer.debug is False
    assert "\nNOT" not in verify(folder(tmp_path / "again", case), *roots(tmp_path, case), *AT).out


@pytest.mark.spec("VER-5", "VER-13")
@pytest.mark.parametrize("tee", TEES)
def test_without_it_the_vendors_roots_count(tee: str, built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built[tee]
    sample = folder(tmp_path, case)
    answer = verify(sample, *AT, "--json").answer
    chain = {"snp": "vcek-chain", "nitro": "document-chain"}.get(tee, "pck-chain")
    assert (answer.verdict, answer.code) == ("not-authentic", chain)
    # The same bytes, once their root is a vendor's.
    with vendor_root(root_of(case), tee=tee, measurement=bytes(48)):
        answer = verify(sample, *AT, "--json").answer
    assert answer.verdict == "authentic"
    assert "custom-root" not in answer.remarks
    assert answer.security == {"snp": "STALE"}.get(tee, "SECURE")


@pytest.mark.spec("VER-6")
def test_a_vendors_root_given_by_hand_stays_that_vendors(built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built["sgx"]
    sample = folder(tmp_path, case)
    with vendor_root(root_of(case), tee="sgx", measurement=bytes(32)):
        assert "custom-root" not in verify(sample, *roots(tmp_path, case), *AT, "--json").answer.remarks
    with vendor_root(root_of(case), tee="snp", measurement=bytes(48)):
        assert verify(sample, *roots(tmp_path, case), *AT, "--json").answer.code == "pck-chain"


@pytest.mark.spec("VER-6")
def test_only_roots_are_roots(built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built["sgx"]
    sample = folder(tmp_path, case)
    leaf, authority, _ = parse_quote(case.raw).chain
    place = tmp_path / "trusted"
    place.mkdir()
    (place / "authority.pem").write_text(ssl.DER_cert_to_PEM_cert(authority))
    (place / "leaf.der").write_bytes(leaf)
    said = verify(sample, "--roots", place, *AT, "--json")
    assert (said.status, said.out) == (1, "")
    assert "holds no root certificate" in said.err
    # Beside a root they change nothing, and other files are passed over.
    (place / "list.der").write_bytes(b"\x30\x03\x02\x01\x01")
    (place / "README").write_text("-----BEGIN CERTIFICATE-----")
    os.mkfifo(place / "pipe")
    (place / "nowhere").symlink_to("missing")
    assert verify(sample, *roots(tmp_path, case), *AT, "--json").answer.verdict == "authentic"
    # Other roots in place of the right one.
    for path in place.rglob("[0-9].*"):
        path.unlink()
    assert verify(sample, *roots(tmp_path, built["nitro"]), *AT, "--json").answer.code == "pck-chain"


@pytest.mark.spec("VER-11")
@pytest.mark.parametrize("tee", TEES)
def test_outside_the_period_it_is_expired(tee: str, built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built[tee]
    sample, trusted = folder(tmp_path, case), roots(tmp_path, case)
    answer = verify(sample, *trusted, *AT, "--json").answer
    begin, end = (datetime.fromisoformat(t) for t in (answer.valid_from or "", answer.valid_until or ""))
    made = NOW if tee == "nitro" else begin
    for moment in (made, end):
        assert verify(sample, *trusted, "--at", moment.isoformat(), "--json").answer.verdict == "authentic"
    for moment in (begin - SECOND, end + SECOND):
        refused = verify(sample, *trusted, "--at", moment.isoformat(), "--json").answer
        assert refused.verdict == "not-authentic"
        assert (refused.code or "").endswith("-expired")


@pytest.mark.spec("VER-4")
def test_times(built: Built, tmp_path: Path, verify: Verify) -> None:
    sample, trusted = folder(tmp_path, built["sgx"]), roots(tmp_path, built["sgx"])
    for text in ("2026-03-01T13:00:00+01:00", "2026-03-01 12:00:00.5Z", "20260301T120000Z"):
        answer = verify(sample, *trusted, "--at", text, "--json").answer
        assert (answer.verdict, answer.at) == ("authentic", "2026-03-01T12:00:00Z")
    for text in ("2026-03-01T12:00:00", "2026-03-01", "noon", "0001-01-01T00:00:00+14:00", "2026-02-30T00:00:00Z"):
        said = verify(sample, "--at", text, "--json")
        assert (said.status, said.out) == (1, "")
        assert "--at takes a time with its zone" in said.err
    # Now, which is long after the documents of this evidence ended.
    assert (verify(sample, *trusted, "--json").answer.code or "").endswith("-expired")


# Shapes and places.


@pytest.mark.spec("VER-1", "VER-3")
@pytest.mark.parametrize("tee", TEES)
def test_a_file_and_a_folder_of_endorsements(tee: str, built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built[tee]
    file = tmp_path / "evidence"
    file.write_bytes(case.raw)
    trusted = roots(tmp_path, case)
    alone = verify(file, *trusted, *AT, "--json").answer
    if tee == "nitro":
        assert alone.verdict == "authentic"
        return
    assert (alone.verdict, alone.code) == ("not-authentic", "endorsements-missing")
    given = tmp_path / "given"
    given.mkdir()
    assert verify(file, "--endorsements", given, *trusted, *AT, "--json").answer.code == "endorsements-missing"
    (given / "endorsements.json").write_bytes(case.endorsements)
    assert verify(file, "--endorsements", given, *trusted, *AT, "--json").answer.verdict == "authentic"
    # It is taken in place of what lies beside the evidence, good or bad.
    sample = folder(tmp_path, case)
    (given / "endorsements.json").write_bytes(b"")
    answer = verify(sample, "--endorsements", given, *trusted, *AT, "--json").answer
    assert (answer.verdict, answer.code) == ("malformed", "endorsements-format")


@pytest.mark.spec("VER-3")
def test_issuers_of_a_report_from_every_place(built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built["snp"]
    sample = folder(tmp_path, case)
    (tmp_path / "roots").rename(tmp_path / "elsewhere")
    signer, root = ((tmp_path / "elsewhere" / "amd" / f"{n}.pem").read_bytes() for n in range(2))
    trusted = roots(tmp_path, case)
    # The root is there; the signing key's certificate is not.
    assert verify(sample, *trusted, *AT, "--json").answer.code == "endorsements-missing"
    (sample / "chain.pem").write_bytes(signer + root)
    assert verify(sample, *trusted, *AT, "--json").answer.verdict == "authentic"
    (sample / "chain.pem").rename(trusted[1] / "below" / "chain.pem")
    assert verify(sample, *trusted, *AT, "--json").answer.verdict == "authentic"
    # Of several of one name, the one that signed: another PKI's has the same names.
    other = json.loads(AmdPki.create(now=NOW, seed=b"other").snp().endorsements)["chain"]
    (sample / "a.pem").write_text(other)
    assert verify(sample, *trusted, *AT, "--json").answer.verdict == "authentic"
    (sample / "crl.der").write_bytes(bytes.fromhex(json.loads(case.endorsements)["crl"]))
    assert "revocation-unknown" not in verify(sample, *trusted, *AT, "--json").answer.remarks
    (sample / "crl.der").write_bytes(b"no list")
    assert verify(sample, *trusted, *AT, "--json").answer.code == "endorsements-format"
    (sample / "crl.der").unlink()
    (sample / "vcek.der").write_bytes(b"no certificate")
    assert verify(sample, *trusted, *AT, "--json").answer.code == "endorsements-format"


@pytest.mark.spec("VER-3")
def test_a_chain_beside_a_quote_that_carries_none(tmp_path: Path, verify: Verify) -> None:
    intel = IntelPki.create(now=NOW)
    case = intel.sgx(change=lambda d: _name_by_ppid(d, intel))
    given = json.loads(case.endorsements)
    chain = given.pop("pck_certificate_chain")
    sample = folder(tmp_path, case)
    (sample / "collateral.json").write_text("\n " + json.dumps(given))
    trusted = roots(tmp_path, intel.sgx())
    assert verify(sample, *trusted, *AT, "--json").answer.code == "certification-unsupported"
    (sample / "pck_cert_chain.pem").write_text(chain)
    assert verify(sample, *trusted, *AT, "--json").answer.verdict == "authentic"
    (sample / "pck_cert_chain.pem").write_bytes(b"\xff\0")
    assert verify(sample, *trusted, *AT, "--json").answer.code == "endorsements-format"
    # A member that is there already stays; text that is no object stays as it is.
    (sample / "collateral.json").write_bytes(case.endorsements)
    assert verify(sample, *trusted, *AT, "--json").answer.verdict == "authentic"
    (sample / "collateral.json").write_text("[]")
    assert verify(sample, *trusted, *AT, "--json").answer.code == "endorsements-format"
    # Nothing at all: its processor's certificate is among what is missing.
    (sample / "collateral.json").unlink()
    assert verify(sample, *trusted, *AT, "--json").answer.code == "endorsements-missing"
    assert "  1. certification            FAILED" in verify(sample, *trusted, *AT, "--explain").out


def _name_by_ppid(draft: Any, intel: IntelPki) -> None:
    draft.certification = 1
    draft.certification_data = intel.ppid + bytes((16,)) * 16 + b"\x0d\0" + b"\0\0"


@pytest.mark.spec("VER-3")
@pytest.mark.parametrize("tee", ["sgx", "tdx", "snp"])
def test_documents_that_were_exported(tee: str, built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built[tee]
    given, place = json.loads(case.endorsements), tmp_path / "exported"

    def document(name: str, body: bytes, chain: str = "") -> Document:
        return read_document(parse_name(name), body, chain.encode(), fetched=NOW)

    if tee == "snp":
        report = parse_report(case.raw)
        name = f"amd-vcek-milan-{report.field('chip_id').hex()}-{report.field('reported_tcb').hex()}"
        documents = [
            document(name, bytes.fromhex(given["certificate"])),
            document("amd-vcek-milan-chain", given["chain"].encode()),
            document("amd-vcek-milan-crl", bytes.fromhex(given["crl"])),
        ]
    else:
        fmspc = json.loads(given["tcb_info"])["fmspc"].lower()
        documents = [
            document("intel-root-crl", bytes.fromhex(given["root_ca_crl"])),
            document("intel-pck-crl-platform", bytes.fromhex(given["pck_crl"]), given["pck_crl_issuer_chain"]),
        ]
        for evaluation in ("17", "standard", "early"):
            for name, member, kind in (
                (f"intel-{tee}-tcb-{fmspc}-{evaluation}", "tcb_info", "tcbInfo"),
                (f"intel-{tee}-qe-{evaluation}", "qe_identity", "enclaveIdentity"),
            ):
                # Only the standard evaluation is what it was; of another the text is altered.
                text = given[member] if evaluation == "standard" else given[member].replace("17", "18")
                signature = given[f"{member}_signature"]
                body = f'{{"{kind}": {text}, "signature": "{signature}"}}'.encode()
                documents.append(document(name, body, given[f"{member}_issuer_chain"]))
    write_folder(documents, place, now=NOW)
    file = tmp_path / "evidence"
    file.write_bytes(case.raw)
    options = ("--endorsements", place, *roots(tmp_path, case), *AT, "--json")
    answer = verify(file, *options).answer
    assert answer.verdict == "authentic"
    assert "revocation-unknown" not in answer.remarks
    if tee != "snp":
        (place / f"intel-{tee}-qe-standard.json").unlink()
        assert verify(file, *options).answer.code == "tcb-info-signature"
    else:
        (place / "amd-vcek-milan-crl.crl").unlink()
        assert "revocation-unknown" in verify(file, *options).answer.remarks
    for path in place.glob("*-chain.pem" if tee == "snp" else "*-tcb-*.json"):
        path.write_bytes(b"\xff")
    assert verify(file, *options).answer.code == "endorsements-missing"
    file.write_bytes(case.raw[:100])
    assert verify(file, *options).answer.verdict == "malformed"


@pytest.mark.spec("VER-1", "VER-10")
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "evidence-unknown"),
        (b"\x03", "evidence-unknown"),
        (b"no evidence", "evidence-unknown"),
        (b"PK\3\4", "evidence-unknown"),
        (bytes(2000), "evidence-unknown"),
        (bytes.fromhex("0300020000000000"), "quote-format"),
        (bytes.fromhex("0400020081000000"), "quote-format"),
        (bytes.fromhex("0600020000000000") + bytes(2000), "quote-version"),
        (bytes.fromhex("02000000") + bytes(1179), "report-format"),
        (bytes.fromhex("04000000") + bytes(1180), "report-version"),
        (b"\x84\x44", "document-format"),
        (b"\xd2\x84\x44", "document-format"),
        (b"\x85\xa7version\x01\xa6format", "format"),
        (bytes(MAX_INFO + 1), "evidence-size"),
        (b"\x85\xa7version\x01\xa6format" + bytes(MAX_INFO), "evidence-size"),
    ],
)
def test_what_does_not_parse(data: bytes, code: str, tmp_path: Path, verify: Verify) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    answer = verify(file, "--json").answer
    assert (answer.verdict, answer.code) == ("malformed", code)
    assert verify(file).out.startswith(f"MALFORMED ({code}): ")
    assert f"MALFORMED ({code}): " in verify(file, "--explain").out
    assert verify(file, "--constraint", "SEC:STALE").status == 30


@pytest.mark.spec("VER-1", "VER-10", "VER-13")
def test_in_a_folder_the_name_says_what_it_is(tmp_path: Path, verify: Verify) -> None:
    for name in set(FILES.values()):
        code = f"{name.partition('.')[0]}-format"
        place = tmp_path / name
        place.mkdir()
        (place / name).write_bytes(b"anything")
        (place / "meta.json").write_text('{"chain": ["/etc/passwd"], "trust_root": "x", "valid_at": "never"}')
        assert verify(place, "--json").answer.code == code


@pytest.mark.spec("VER-10", "VER-11")
def test_every_vector_gets_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vectors' evidence in folders: verdict by the kind of error, code as expected."""
    place = ROOT / "vectors" / "evidence"
    seen = set()
    for path in sorted(place.glob("*.json")):
        case = json.loads(path.read_text())
        raw, given = (
            gzip.decompress((place / "blobs" / f"{case[part]}.gz").read_bytes()) if case[part] else None
            for part in ("evidence", "endorsements")
        )
        monkeypatch.setattr("conclave.cli._verify.find_endorsements", lambda *_, given=given: given)
        now, anchors = datetime.fromisoformat(case["now"]), frozenset(case["anchors"])
        artefact = Artefact(raw or b"", NAMED[case["tee"]])
        answer = judge(Question(artefact, None, now, None, Places(), anchors, None)).answer
        verdict = "malformed" if PARSING.fullmatch(case["expect"]) else "not-authentic"
        verdict = "authentic" if case["expect"] == "authentic" else verdict
        assert (answer.verdict, answer.code or "authentic") == (verdict, case["expect"]), path.stem
        seen.add(verdict)
    assert len(seen) == 3


@pytest.mark.spec("VER-1")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    start=st.sampled_from([b"", b"\3\0\2\0", b"\4\0\2\0\x81\0\0\0", b"\2\0\0\0", bytes.fromhex("8444a1013822a0")]),
    rest=st.binary(max_size=2000),
)
def test_any_bytes_get_an_answer(start: bytes, rest: bytes) -> None:
    question = Question(Artefact(start + rest), None, NOW, None, Places(), frozenset(), None)
    assert judge(question).answer.verdict in ("malformed", "not-authentic")


# Policy on evidence alone.


@pytest.mark.spec("VER-7", "VER-8", "VER-13")
@pytest.mark.parametrize("tee", TEES)
def test_a_constraint_on_evidence_alone(tee: str, built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built[tee]
    sample = folder(tmp_path, case)
    with vendor_root(root_of(case), tee=tee, measurement=bytes(48), minimum_tcb={"snp-milan": "0.0.0.0"}):
        (sample / "crl.der").write_bytes(bytes.fromhex(json.loads(case.endorsements or b"{}").get("crl", "")))
        facts = verify(sample, *AT, "--json").answer
        assert (facts.verdict, facts.security, facts.reasons) == ("authentic", "SECURE", [])
        accepting = f"TEE:{tee} RUNTIME:{facts.runtime_measurement} CHIP:{facts.chip}"
        accepted = verify(sample, *AT, "--constraint", accepting, "--json").answer
        assert (accepted.verdict, accepted.code, accepted.failures) == ("accepted", None, [])
        assert accepted.measurements == facts.measurements
        assert verify(sample, *AT, "--constraint", accepting).out.startswith("ACCEPTED\n  tee ")
        line = tmp_path / "constraint"
        line.write_text(accepting + "\n")
        assert verify(sample, *AT, "--constraint", line).status == 0
        # Everything that does not hold is named, and what verified is told.
        bad = f"C:{'0' * 64} REVOKE:1 SEC:INSECURE EXPIRE:P0D TEE:{tee} CHIP:{'0' * 64}"
        answer = verify(sample, *AT, "--constraint", bad, "--json").answer
        assert (answer.verdict, answer.code, answer.tee) == ("refused", "appraisal", tee)
        clauses = [failure.partition(":")[0] for failure in answer.failures]
        assert clauses == ["C/S", "REVOKE", "SEC", "EXPIRE", "RUNTIME", "CHIP"]
        said = verify(sample, *AT, "--constraint", bad)
        assert said.status == 10
        assert said.out.splitlines()[0] == "REFUSED (appraisal): the constraint refuses this enclave:"
        assert len(said.out.splitlines()) == 7


@pytest.mark.spec("VER-8", "VER-13")
def test_evidence_of_a_tee_that_is_not_accepted_is_refused_unread(built: Built, tmp_path: Path, verify: Verify) -> None:
    sample = folder(tmp_path, built["nitro"])
    (sample / "document.cbor").write_bytes(b"anything at all")
    said = verify(sample, *AT, "--constraint", "TEE:sgx,tdx", "--json")
    assert (said.status, said.answer.verdict, said.answer.tee) == (10, "refused", None)
    assert [f.partition(":")[0] for f in said.answer.failures] == ["TEE"]
    assert "expected sgx, tdx, got evidence of nitro" in verify(sample, "--constraint", "TEE:sgx,tdx", "--explain").out


@pytest.mark.spec("VER-6")
def test_roots_and_a_constraint(built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built["tdx"]
    sample, trusted = folder(tmp_path, case), roots(tmp_path, case)
    measured = verify(sample, *trusted, *AT, "--json").answer.runtime_measurement
    assert verify(sample, *trusted, *AT, "--constraint", f"SEC:INSECURE RUNTIME:{measured}").status == 0
    refused = verify(sample, *trusted, *AT, "--constraint", f"SEC:STALE RUNTIME:{measured}", "--json").answer
    assert [f.partition(":")[0] for f in refused.failures] == ["SEC"]


def test_reference_values(built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built["snp"]
    sample, key = folder(tmp_path, case), _crypto.SigningKey(bytes(32))
    trusted = roots(tmp_path, case)
    facts = verify(sample, *trusted, *AT, "--json").answer
    assert any("no minimum TCB version is known" in reason for reason in facts.reasons)
    values = ReferenceValues(
        version=1, number=1, issued="2026-03-01", releases={"r": {"snp": [facts.runtime_measurement or ""]}},
        bundles={}, minimum_tcb={"snp-milan": "0.0.0.0"},
    )  # fmt: skip
    file, publisher = tmp_path / "values", _crypto.sha256(key.public).hex()
    file.write_bytes(sign_reference_values(values, key))
    options = (*trusted, *AT, "--reference", file, "--publisher", publisher, "--json")
    assert not any("minimum" in reason for reason in verify(sample, *options).answer.reasons)
    accepted = verify(sample, *options, "--constraint", "SEC:INSECURE RUNTIME:r").answer
    assert accepted.verdict == "accepted"
    for wrong, said in (
        (("--reference", file), "go together"),
        (("--publisher", publisher), "go together"),
        (("--reference", file, "--publisher", "12"), "64 hex digits"),
        (("--reference", file, "--publisher", "0" * 64), "another publisher"),
        (("--reference", sample / FILES["snp"], "--publisher", publisher), "reference values"),
        (("--reference", tmp_path / "missing", "--publisher", publisher), "no such file"),
    ):
        outcome = verify(sample, *AT, *wrong, "--json")
        assert (outcome.status, outcome.out) == (1, "")
        assert said in outcome.err


# Instance info and running hosts.


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine.open(tmp_path_factory.mktemp("machine"), now=NOW)


KEY = _crypto.SigningKey(b"k" * 32)


def instance_info(machine: Machine, **changes: Any) -> bytes:
    parts: dict[str, Any] = {"code": bytes.fromhex(CODE), "signer": b"s" * 32, "product_id": 7, "revocation_level": 3}
    claims = InstanceClaims(
        version=1, bundle_id=bundle_id(**parts), **parts, runtime="conclave-9.9.9", sandbox="namespaces",
        mode="release", suite=_crypto.SUITE_ID, encryption_key=bytes(1216), signing_key=KEY.public,
        boot_nonce=bytes(32), log_id=None, kds_constraint=None, interface=bytes(32),
    )  # fmt: skip
    quoted = {"report_data": claims.digest(), "config_id": claims.bundle_id + bytes(32), "mrenclave": bytes(range(32))}
    quote = machine.quote(**(quoted | {k: v for k, v in changes.items() if k in quoted}))
    said = {"evidence": quote, "endorsements": machine.endorsements(), "claims": claims.encode()}
    return InstanceInfo(version=1, format="sgx", **(said | {k: v for k, v in changes.items() if k in said})).encode()


@pytest.mark.spec("VER-5", "VER-7", "VER-8", "VER-13")
def test_saved_instance_info(machine: Machine, tmp_path: Path, verify: Verify) -> None:
    file = tmp_path / "instance"
    file.write_bytes(instance_info(machine))
    alone = verify(file, *AT, "--json").answer
    assert (alone.verdict, alone.tee, alone.security) == ("authentic", "simulated", "INSECURE")
    assert alone.claims is not None
    assert (alone.claims.code, alone.claims.mode, alone.claims.log_id) == (CODE, "release", None)
    assert alone.report_data == alone.claims.claims_digest
    accepted = verify(file, *AT, "--constraint", f"{PROGRAM} SEC:INSECURE", "--json").answer
    assert accepted.verdict == "accepted"
    assert accepted.claims == alone.claims
    said = verify(file, *AT, "--constraint", f"{PROGRAM} SEC:INSECURE").out
    assert re.match(r"ACCEPTED\n  tee +simulated\n  security +INSECURE\n  tcb status +UpToDate\n", said)
    assert "  log                  stateless" in said
    refused = verify(file, *AT, "--constraint", f"C:{'0' * 64} PROD:9 SEC:INSECURE S:{'1' * 64}", "--json").answer
    assert [f.partition(":")[0] for f in refused.failures] == ["C/S", "PROD", "RUNTIME"]
    assert refused.claims == alone.claims
    # The simulated machine's root counts only where the constraint asks for it.
    answer = verify(file, *AT, "--constraint", PROGRAM, "--json").answer
    assert (answer.verdict, answer.code) == ("not-authentic", "chain")
    assert "SEC:INSECURE" in answer.message
    # A constraint on an instance names a program.
    outcome = verify(file, *AT, "--constraint", "SEC:INSECURE", "--json")
    assert (outcome.status, outcome.out) == (1, "")
    assert "names at least one program" in outcome.err


@pytest.mark.spec("VER-6")
def test_a_simulated_machine_beside_named_roots(machine: Machine, built: Built, tmp_path: Path, verify: Verify) -> None:
    file = tmp_path / "instance"
    file.write_bytes(instance_info(machine))
    trusted = roots(tmp_path, built["sgx"])
    assert verify(file, *trusted, *AT, "--json").answer.code == "chain"
    assert verify(file, *trusted, *AT, "--constraint", f"{PROGRAM} SEC:INSECURE", "--json").answer.tee == "simulated"
    (trusted[1] / "machine.der").write_bytes(machine.root_der)
    answer = verify(file, *trusted, *AT, "--json").answer
    assert (answer.verdict, answer.tee, answer.security) == ("authentic", "sgx", "INSECURE")
    assert "custom-root" in answer.remarks


@pytest.mark.spec("VER-3")
def test_endorsements_for_instance_info(machine: Machine, tmp_path: Path, verify: Verify) -> None:
    file, given = tmp_path / "instance", tmp_path / "given"
    file.write_bytes(instance_info(machine, endorsements=b""))
    answer = verify(file, *AT, "--json").answer
    assert (answer.verdict, answer.code) == ("not-authentic", "endorsements-missing")
    given.mkdir()
    (given / "collateral.json").write_bytes(machine.endorsements())
    assert verify(file, *AT, "--endorsements", given, "--json").answer.verdict == "authentic"
    file.write_bytes(instance_info(machine, endorsements=b"{}"))
    assert verify(file, *AT, "--json").answer.code == "endorsements-format"
    assert verify(file, *AT, "--endorsements", given, "--json").answer.verdict == "authentic"


@pytest.mark.parametrize(
    ("changes", "verdict", "code"),
    [
        ({"config_id": bytes(64)}, "not-authentic", "binding"),
        ({"report_data": bytes(64)}, "not-authentic", "binding"),
        ({"claims": b"\xc0"}, "malformed", "format"),
        ({"evidence": b"\x03\0\x02\0"}, "malformed", "quote-format"),
    ],
)
def test_instance_info_that_is_not_authentic(
    changes: dict[str, bytes], verdict: str, code: str, machine: Machine, tmp_path: Path, verify: Verify
) -> None:
    file = tmp_path / "instance"
    file.write_bytes(instance_info(machine, **changes))
    answer = verify(file, *AT, "--json").answer
    assert (answer.verdict, answer.code) == (verdict, code)
    if code == "binding":
        assert " 15. binding                  FAILED: " in verify(file, *AT, "--explain").out


@contextmanager
def host(
    info: bytes, *, key: _crypto.SigningKey = KEY, digest: bytes = bytes(64), **paths: tuple[int, bytes]
) -> Iterator[str]:
    """A host of one instance info that answers challenges with a key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*paths.get("instance", (200, info)))

        def do_POST(self) -> None:
            nonce = self.rfile.read(int(self.headers["content-length"]))
            assert (self.path, len(nonce)) == ("/challenge", 32)
            own = bytes(32)
            self._send(*paths.get("challenge", (200, own + key.sign("challenge", digest, nonce + own))))

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # A client that has read enough hangs up.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.spec("VER-9", "VER-12")
def test_a_running_host(machine: Machine, tmp_path: Path, verify: Verify) -> None:
    info = instance_info(machine)
    file = tmp_path / "instance"
    file.write_bytes(info)
    saved = verify(file, *AT, "--json").answer
    assert saved.claims is not None
    digest = bytes.fromhex(saved.claims.claims_digest)
    with host(info, digest=digest) as url:
        assert verify(url, *AT, "--json").answer == saved
        accepted = verify(url, *AT, "--constraint", f"{PROGRAM} SEC:INSECURE", "--json").answer
        assert accepted.verdict == "accepted"
        assert verify(url, *AT, "--constraint", f"C:{'0' * 64} SEC:INSECURE").status == 10
        told = verify(url, *AT, "--explain").out
        assert " 15. binding " in told
        assert " 16. liveness                 the verified instance signed a fresh challenge" in told
    # Somebody else answers, with instance info that was true once.
    for wrong in ({"key": _crypto.SigningKey(bytes(32)), "digest": digest}, {"digest": bytes(64)}):
        with host(info, **wrong) as url:  # type: ignore[arg-type]
            answer = verify(url, *AT, "--json").answer
            assert (answer.verdict, answer.code) == ("not-authentic", "challenge-signature")
            assert " 16. liveness                 FAILED" in verify(url, *AT, "--explain").out
    # Nobody answers: no verdict.
    with host(info, challenge=(404, bytes(200))) as url:
        outcome = verify(url, *AT, "--json")
        assert (outcome.status, outcome.out) == (1, "")
        assert "no answer to the challenge" in outcome.err
    with host(info, instance=(503, b"")) as url:
        outcome = verify(url, "--json")
        assert (outcome.status, outcome.out) == (1, "")
        assert "503" in outcome.err
    # A web server that is no host of ours.
    with host(info, instance=(404, b"<html>")) as url:
        assert "is this the URL of a conclave host?" in verify(url, "--json").err
    for body, code in ((b"<html>", "format"), (bytes(MAX_INFO + 10), "evidence-size")):
        with host(info, instance=(200, body)) as url:
            assert verify(url, "--json").answer.code == code
    outcome = verify("http://127.0.0.1:1", "--json")
    assert (outcome.status, outcome.out) == (1, "")
    assert "is the host running?" in outcome.err


# Mistakes.


@pytest.mark.spec("VER-2", "VER-12")
def test_mistakes_have_no_verdict(built: Built, machine: Machine, tmp_path: Path, verify: Verify) -> None:
    sample = folder(tmp_path, built["sgx"])
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "both").mkdir()
    for name in FILES.values():
        (tmp_path / "both" / name).write_bytes(b"")
    piped = tmp_path / "piped"
    piped.mkdir()
    os.mkfifo(piped / "quote.bin")
    withpipe = folder(tmp_path / "p", built["sgx"])
    (withpipe / "collateral.json").unlink()
    os.mkfifo(withpipe / "collateral.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "long").write_bytes(b"C" * 20000)
    corrupt = tmp_path / "corrupt"
    corrupt.mkdir()
    (corrupt / "root.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "root.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(1001):
        (many / str(number)).touch()
    for arguments, said in (
        ((), "requires an argument"),
        ((sample, "--nonsense"), "Unknown option"),
        ((sample, "--json=maybe"), "Invalid"),
        ((sample, "--at"), "requires an argument"),
        ((sample, "extra", "more"), "Unused"),
        ((tmp_path / "missing",), "no such file"),
        ((tmp_path / "missing\x1b[2J",), "no such file"),
        ((sample / "quote.bin" / "x",), "part of that path is a file"),
        ((tmp_path / "empty",), "this one has none"),
        ((tmp_path / "both",), "this one has several"),
        ((tmp_path / "pipe",), "is not an ordinary file"),
        ((piped,), "is not an ordinary file"),
        ((withpipe, *AT), "is not an ordinary file"),
        (("/dev/zero",), "is not an ordinary file"),
        ((sample, "--constraint", "nonsense:"), "unknown clause"),
        ((sample, "--constraint", "C:12"), "64 hexadecimal digits"),
        ((sample, "--constraint", "RUNTIME:x " * 5000), "at most"),
        ((sample, "--constraint", tmp_path / "missing"), "no such file"),
        ((sample, "--constraint", tmp_path / "binary"), "holds no constraint"),
        ((sample, "--constraint", tmp_path / "long"), "holds no constraint"),
        ((sample, "--constraint", tmp_path / "pipe"), "is not an ordinary file"),
        ((sample, "--endorsements", tmp_path / "missing"), "takes a folder"),
        ((sample, "--endorsements", sample / "quote.bin"), "takes a folder"),
        ((sample, "--roots", tmp_path / "missing"), "takes a folder"),
        ((sample, "--roots", tmp_path / "empty"), "holds no root certificate"),
        ((sample, "--roots", corrupt), "does not hold a certificate"),
        ((sample, "--roots", cut), "does not hold a certificate"),
        ((sample, "--roots", many), "more than 1000 files"),
        ((sample, "--explain"), "leave one out"),
        (("http://[", "--at", "2026-03-01T12:00:00Z"), "the url cannot be read"),
    ):
        outcome = verify(*arguments, "--json")
        assert (outcome.status, outcome.out) == (1, ""), arguments
        assert said in outcome.err
        assert "Traceback" not in outcome.err
        assert "\x1b" not in outcome.err


@pytest.mark.spec("VER-12")
def test_what_may_not_be_read(built: Built, tmp_path: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = folder(tmp_path, built["sgx"])
    opened = os.open

    def forbidden(path: Any, *rest: Any, **options: Any) -> int:
        # As the system says it to everybody but root, who runs tests in containers.
        if str(path).endswith("collateral.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "open", forbidden)
    for arguments in ((sample,), (sample / "collateral.json",), (sample, "--roots", sample)):
        outcome = verify(*arguments, "--json")
        assert (outcome.status, outcome.out) == (1, "")
        assert "no permission for" in outcome.err


# Form, and words.


@pytest.mark.spec("VER-13")
def test_the_schema_is_that_of_the_answer() -> None:
    text = (ROOT / "spec" / "verify.schema.json").read_text()
    assert text == json.dumps(schema(), indent=2) + "\n", "write it anew from conclave.cli._answer.schema()"
    answer = schema()["$defs"]["Answer"]
    assert answer["additionalProperties"] is False
    assert answer["required"] == list(answer["properties"])
    page = (ROOT / "spec" / "verify.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert set(answer["properties"]) <= named


@pytest.mark.spec("VER-14", "VER-15")
@pytest.mark.parametrize("tee", TEES)
def test_an_explanation(tee: str, built: Built, tmp_path: Path, verify: Verify) -> None:
    case = built[tee]
    sample, trusted = folder(tmp_path, case), roots(tmp_path, case)
    good = verify(sample, *trusted, *AT, "--explain")
    bad = verify(sample, *AT, "--explain")
    assert (good.status, bad.status) == (0, 20)
    for number, name in enumerate(STEPS[tee], 1):
        assert f"{number:>3}. {name} " in good.out
        assert f"{number:>3}. {name} " in bad.out
    assert "INSECURE: the operator may see or change what is inside." in good.out
    assert "because the root was given by hand" in good.out
    assert good.out.rstrip().splitlines()[-1].startswith("AUTHENTIC: genuine")
    failed = [line for line in bad.out.splitlines() if "FAILED" in line]
    assert len(failed) == 1
    assert re.search(r"(PCK chain|path) +FAILED", failed[0])
    assert "What to do: " in bad.out
    refused = verify(sample, *trusted, *AT, "--constraint", "SEC:SECURE", "--explain")
    assert "\n  - SEC: expected SECURE" in refused.out
    readable(good, bad, refused)


def readable(*outcomes: Outcome) -> None:
    for outcome in outcomes:
        assert max(map(len, outcome.out.splitlines())) <= 100
        assert "\x1b" not in outcome.out
        assert all(c.isprintable() or c == "\n" for c in outcome.out)


@pytest.mark.spec("VER-15")
def test_what_a_certificate_says_does_not_reach_the_terminal(tmp_path: Path, verify: Verify) -> None:
    evil = "\x1b[2J\x07 \u202edetpecca\nAUTHENTIC " + "x" * 200

    def named(draft: Any) -> None:
        draft.certificates["pck"].subject = draft.certificates["pck"].subject | {"CN": evil}

    case = IntelPki.create(now=NOW).sgx(change=named)
    sample, trusted = folder(tmp_path, case), roots(tmp_path, case)
    told = verify(sample, *trusted, *AT, "--explain")
    assert told.status == 0
    assert r"\u001b[2J\u0007 \u202edetpecca\u000aAUTHENTIC" in told.out.replace("\n" + " " * 30, "")
    readable(told, verify(sample, *trusted, *AT))


@pytest.mark.spec("VER-15")
def test_a_terminal_that_knows_ascii_alone(
    built: Built, tmp_path: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", narrow)
    assert verify(folder(tmp_path, built["snp"]), *roots(tmp_path, built["snp"]), *AT, "--explain").status == 0
    assert b"SEV-VCEK \\u2190 SEV-Milan" in narrow.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.spec("VER-14")
def test_the_steps_are_the_verifiers_own(built: Built, tmp_path: Path) -> None:
    from conclave.attestation import Anchors, verify_evidence

    for tee, case in built.items():
        anchors = Anchors.of_vendors(given=case.anchors)
        _, claims = verify_evidence(case.raw, case.endorsements, kind=tee, anchors=anchors, now=NOW)
        assert tuple(s.name for s in claims.steps) == STEPS[tee]
    assert BINDING != LIVENESS


@pytest.mark.spec("VER-14")
def test_every_code_belongs_to_a_step_and_has_advice() -> None:
    """The codes of the vectors, which are those of the specifications."""
    for path in (ROOT / "vectors" / "evidence").glob("*.json"):
        case = json.loads(path.read_text())
        code = case["expect"]
        if code != "authentic":
            step = CODES[case["tee"]].get(code, 0)
            of_evidence = PARSING.fullmatch(code) and not code.startswith(("endorsements", "tcb", "qe", "root", "pck"))
            assert (step == 0) == bool(of_evidence), code
            assert step < len(STEPS[case["tee"]])
            assert advice(code).endswith(".")


@pytest.mark.spec("VER-14")
def test_steps_that_held_before_are_shown_as_such(tmp_path: Path, verify: Verify) -> None:
    intel = IntelPki.create(now=NOW)
    case = intel.sgx(change=lambda d: d.tcb_info.update(fmspc="000000000000"))
    said = verify(folder(tmp_path, case), *roots(tmp_path, case), *AT, "--explain").out
    states = re.findall(r"^ *\d+\. .{25}(ok|FAILED|not reached)", said, re.MULTILINE)
    assert states == ["ok"] * 9 + ["FAILED"] + ["not reached"] * 4
    # The level of the quoting enclave and the platform's give one code: what lies between is not claimed.
    case = intel.sgx(change=lambda d: d.qe_level["tcb"].update(isvsvn=60000))
    said = verify(folder(tmp_path / "2", case), *roots(tmp_path, case), *AT, "--explain").out
    assert "NOT AUTHENTIC (tcb-unsupported)" in said
    assert re.findall(r"^ *\d+\. .{25}(ok|FAILED|not reached)", said, re.MULTILINE) == [
        *["ok"] * 10, "FAILED", "not reached",
    ]  # fmt: skip
