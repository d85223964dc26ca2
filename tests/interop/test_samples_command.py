"""Captured evidence through `conclave verify`: what its record expects, and what the table in the manual says.

The samples are no part of this repository; without them the tests say so and skip.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests._evidence import ABSENT, evidence_dir, samples
from tests._verified import Outcome, Verify, verifier

from conclave.cli._answer import Answer

ROOT = Path(__file__).parents[2]
KINDS = ("sgx", "tdx", "snp", "nitro")
SAMPLES = [sample for kind in KINDS for sample in samples(kind)]
SECOND = timedelta(seconds=1)
# Why a sample does not verify, in the words of its record, and the code that it gets.
REASONS = {
    "certification data type 3 (encrypted PPID, CPUSVN, PCESVN, PCEID): no PCK certificate in the sample": (
        "endorsements-missing"
    ),
    "leaf certificate does not parse": "document-chain",
    "pck chain: the PCK certificate is not issued by the next certificate": "pck-chain",
    "qe mrsigner": "qe-mrsigner",
    "quote signature": "quote-signature",
    "tcb not supported (no matching level)": "tcb-unsupported",
    "tcb_info expired": "tcb-info-expired",
}
SIGNATURE = {"snp": "report-signature", "nitro": "document-signature"}
# For samples that are valid at no time: one at which their certificates are.
SOME_TIME = {"sgx": "2020-06-01T00:00:00Z", "nitro": "2021-09-09T10:19:20Z"}
pytestmark = pytest.mark.skipif(not SAMPLES, reason=ABSENT)
each = pytest.mark.parametrize("sample", SAMPLES, ids=lambda p: p.name)


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    return verifier(capsys)


def meta(sample: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((sample / "meta.json").read_text())
    return known


def trusted(sample: Path) -> tuple[object, ...]:
    """The root of a test PKI, for the two samples that have one."""
    return ("--roots", sample) if (sample / "trusted_root.pem").exists() else ()


def expected_code(kind: str, expected: dict[str, Any]) -> str:
    return SIGNATURE.get(kind, "") if expected["reason"] == "signature" else REASONS[expected["reason"]]


def check(answer: Answer, known: dict[str, Any], expected: dict[str, Any], facts: dict[str, Any]) -> None:
    """An answer against a record: `facts` are those of the quote itself, also where `expected` is an alternate's."""
    kind = known["kind"]
    if expected["verdict"] != "valid":
        assert (answer.verdict, answer.code) == ("not-authentic", expected_code(kind, expected))
        return
    assert (answer.verdict, answer.code, answer.tee) == ("authentic", None, kind)
    assert answer.tcb_status == expected.get("tcb_status")
    assert answer.debug == facts["debug"]
    assert answer.measurements == facts["measurements"]
    assert answer.report_data == facts["report_data"]
    if kind in ("sgx", "tdx"):
        # Records name the advisories of the platform's level; ours are those of all parts.
        platform = answer.details["advisories"]["platform"]
        assert platform == sorted(expected.get("advisory_ids") or [])
        assert set(platform) <= set(answer.advisories)
    others = facts.keys() & answer.details.keys() - {"advisories"}
    assert {name: answer.details[name] for name in others} == {name: facts[name] for name in others}


@each
def test_a_sample(sample: Path, verify: Verify) -> None:
    known = meta(sample)
    at = known["valid_at"] or SOME_TIME[known["kind"]]
    answer = verify(sample, "--at", at, *trusted(sample), "--json").answer
    check(answer, known, known["expected"], known["expected"])
    if answer.verdict == "authentic":
        assert [answer.valid_from, answer.valid_until] == known["valid_window"]


@each
def test_a_sample_without_its_record(sample: Path, tmp_path: Path, verify: Verify) -> None:
    """Nothing is taken from `meta.json`: the issuers of an AMD key come from another folder just as well."""
    known = meta(sample)
    at = known["valid_at"] or SOME_TIME[known["kind"]]
    place = tmp_path / "sample"
    shutil.copytree(sample, place, ignore=shutil.ignore_patterns("meta.json"))
    options = ["--at", at, *trusted(place), "--json"]
    if known["kind"] == "snp":
        assert verify(place, *options).answer.code == "endorsements-missing"
        for name in known["chain"]:
            shutil.copy(sample.parents[1] / name, place)
    assert verify(place, *options).answer == verify(sample, "--at", at, *trusted(sample), "--json").answer


@each
def test_a_sample_outside_its_window(sample: Path, verify: Verify) -> None:
    known = meta(sample)
    if known["expected"]["verdict"] != "valid":
        return
    for moment, step in zip(map(datetime.fromisoformat, known["valid_window"]), (-SECOND, SECOND), strict=True):
        outcome = verify(sample, "--at", (moment + step).isoformat(), *trusted(sample), "--json")
        assert (outcome.status, outcome.answer.verdict) == (20, "not-authentic")
        assert (outcome.answer.code or "").endswith("-expired")


ALTERNATES = [(s, other) for s in SAMPLES for other in meta(s).get("alternates", [])]


@pytest.mark.parametrize(("sample", "other"), ALTERNATES, ids=lambda p: p.name if isinstance(p, Path) else "")
def test_other_endorsements_for_the_same_quote(
    sample: Path, other: dict[str, Any], tmp_path: Path, verify: Verify
) -> None:
    known = meta(sample)
    shutil.copy(sample / other["collateral"], tmp_path / "collateral.json")
    for source in (sample, sample / "quote.bin"):
        answer = verify(source, "--at", other["valid_at"], "--endorsements", tmp_path, "--json").answer
        check(answer, known, other["expected"], known["expected"])


def test_there_are_all_kinds() -> None:
    counted = [sum(s.parent.name == kind for s in SAMPLES) for kind in KINDS]
    assert counted == [26, 17, 15, 19]
    assert len(ALTERNATES) == 10


@pytest.mark.spec("VER-6")
@pytest.mark.parametrize("name", ["sgx/intel-qvl-sample-sgx-testpki", "tdx/intel-qvl-sample-tdx-testpki"])
def test_a_test_pki_needs_its_root(name: str, tmp_path: Path, verify: Verify) -> None:
    place = evidence_dir()
    assert place is not None
    sample = place / name
    at = ("--at", meta(sample)["valid_at"])
    for roots in ((), ("--roots", place / "roots")):
        answer = verify(sample, *at, *roots, "--json").answer
        assert (answer.verdict, answer.code) == ("not-authentic", "pck-chain")
    shutil.copy(sample / "trusted_root.pem", tmp_path)
    answer = verify(sample, *at, "--roots", tmp_path, "--json").answer
    if answer.tee == "sgx":
        assert (answer.verdict, answer.security, answer.remarks) == ("authentic", "INSECURE", ["custom-root"])
    else:
        assert answer.code == "qe-mrsigner"


@pytest.mark.spec("VER-6")
def test_the_vendors_own_roots_by_hand(verify: Verify) -> None:
    place = evidence_dir()
    assert place is not None
    for name in ("sgx/cmc-sgx-outofdate", "snp/mstav-turin-v5", "nitro/mysten-pcr16"):
        at = ("--at", meta(place / name)["valid_at"], "--json")
        assert verify(place / name, "--roots", place / "roots", *at).answer == verify(place / name, *at).answer


@pytest.mark.spec("VER-7", "VER-8")
def test_policy_on_real_evidence(verify: Verify) -> None:
    place = evidence_dir()
    assert place is not None
    sample = place / "snp" / "mstav-milan-v3"
    at = ("--at", meta(sample)["valid_at"])
    facts = verify(sample, *at, "--json").answer
    line = f"TEE:snp SEC:STALE RUNTIME:{facts.runtime_measurement} TCB:snp-milan@{facts.tcb_version} CHIP:{facts.chip}"
    assert verify(sample, *at, "--constraint", line).status == 0
    refused = verify(sample, *at, "--constraint", line.replace("STALE", "SECURE"), "--json").answer
    assert [f.partition(":")[0] for f in refused.failures] == ["SEC"]
    debug = place / "nitro" / "evervault-debug-1"
    at = ("--at", meta(debug)["valid_at"])
    refused = verify(debug, *at, "--constraint", "EXPIRE:P0D", "--json").answer
    assert [f.partition(":")[0] for f in refused.failures] == ["SEC", "EXPIRE", "RUNTIME"]
    assert (refused.tee, refused.debug) == ("nitro", True)


@pytest.mark.parametrize(
    ("name", "options", "status"),
    [
        ("sgx/cmc-sgx-outofdate", (), 0),
        ("tdx/google-tdx-v5-uptodate", (), 0),
        ("snp/mstav-turin-v5", ("--constraint", "TEE:snp"), 10),
        ("snp/cmc-milan-v2-tampered", (), 20),
        ("nitro/mysten-pcr16", ("--roots", "missing"), 1),
    ],
)
def test_the_command_itself(name: str, options: tuple[str, ...], status: int) -> None:
    place = evidence_dir()
    assert place is not None
    command = [str(Path(sys.executable).with_name("conclave")), "verify", str(place / name), *options]
    command += ["--at", meta(place / name)["valid_at"]]
    machine, person = (
        subprocess.run([*command, how], capture_output=True, text=True, check=False) for how in ("--json", "--explain")
    )
    assert (machine.returncode, person.returncode) == (status, status)
    if status == 1:
        assert machine.stdout == person.stdout == ""
        assert "--roots takes a folder" in machine.stderr
        return
    answer = Outcome(machine.returncode, machine.stdout, machine.stderr).answer
    assert msgspec.json.decode(machine.stdout, type=Answer) == answer
    assert max(map(len, person.stdout.splitlines())) <= 100
    assert "\x1b" not in person.stdout
    assert person.stderr == ""


def test_a_file_cut_short_is_malformed(tmp_path: Path, verify: Verify) -> None:
    for sample in SAMPLES[::9]:
        name = next(n for n in ("quote.bin", "report.bin", "document.cbor") if (sample / n).exists())
        raw = (sample / name).read_bytes()
        for size in (0, 1, 3, 100, 431, len(raw) // 2):
            (tmp_path / name).write_bytes(raw[:size])
            assert verify(tmp_path, "--json").answer.verdict == "malformed"
            assert verify(tmp_path / name, "--json").answer.verdict == "malformed"
        (tmp_path / name).unlink()


@pytest.mark.slow
def test_the_table_in_the_manual_is_what_the_command_says() -> None:
    place = evidence_dir()
    assert place is not None
    made = runpy.run_path(str(ROOT / "docs" / "evidence_samples.py"))["page"](place)
    assert made == (ROOT / "docs" / "evidence-samples.md").read_text(), "run docs/evidence_samples.py"
    rows = re.findall(r"^\| (?:sgx|tdx|snp|nitro) \|.*$", made, re.MULTILINE)
    assert len(rows) == len(SAMPLES) + len(ALTERNATES) + 2
