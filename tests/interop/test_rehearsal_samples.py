"""Rehearsals on captured evidence: real platforms, and what the vendor really published later.

The samples are no part of this repository; without them the tests say so and skip.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests._evidence import ABSENT, evidence_dir, samples

from conclave.attestation import Constraint
from conclave.attestation.announced import announce, in_force, parse_announcement
from conclave.attestation.gaps import Gap
from conclave.attestation.rehearse import Enclave, Situation, rehearse
from conclave.cli import main
from conclave.cli._artefact import read_artefact
from conclave.cli._folders import Places, find_endorsements

pytestmark = pytest.mark.skipif(evidence_dir() is None, reason=ABSENT)
CONSTRAINTS = {
    name: Constraint.parse(line, program=False)
    for name, line in {"secure": "SEC:SECURE", "stale": "SEC:STALE", "insecure": "SEC:INSECURE"}.items()
}


def meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta.json").read_text())


def enclave(folder: Path) -> Enclave:
    artefact = read_artefact(folder)
    kind = artefact.kind
    return Enclave(folder.name, kind, artefact.data, find_endorsements(kind, artefact.data, Places(folder)) or b"")


def with_alternates() -> list[Any]:
    found = []
    for folder in samples("sgx") + samples("tdx"):
        for alternate in meta(folder).get("alternates", ()):
            found.append(pytest.param(folder, alternate, id=f"{folder.name}-{alternate['valid_at'][:10]}"))
    return found


@pytest.mark.parametrize(("folder", "alternate"), with_alternates())
def test_one_platform_under_what_the_vendor_says_at_two_times(folder: Path, alternate: dict[str, Any]) -> None:
    facts = meta(folder)
    sides = {
        datetime.fromisoformat(facts["valid_at"]): (enclave(folder), facts["expected"]["tcb_status"]),
        datetime.fromisoformat(alternate["valid_at"]): (None, alternate["expected"]["tcb_status"]),
    }
    announced = parse_announcement((folder / alternate["collateral"]).read_bytes())
    (other,) = announce([enclave(folder)], [announced])
    (first, (before, said)), (second, (after, later)) = sorted(sides.items())
    now, then = Situation((before or other,), first), Situation((after or other,), second)
    for outcome in rehearse(now, then, CONSTRAINTS):
        assert (outcome.now.tcb_status, outcome.then.tcb_status) == (said, later)
        assert outcome.now.security is not None
        assert outcome.then.security is not None
        if outcome.now.security == "INSECURE":
            # Debug, a service domain, or a host that may inject exceptions: no update changes that.
            assert outcome.then.security == "INSECURE"
            assert outcome.now.accepted == outcome.then.accepted == (outcome.constraint == "insecure")
            continue
        assert (
            outcome.now.accepted == {"secure": said == "UpToDate", "stale": True, "insecure": False}[outcome.constraint]
        )
        assert outcome.loses_access == (outcome.constraint == "secure" and said == "UpToDate" != later)


def test_who_would_lose_access_by_an_early_tcb_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluation 19 of June 2025 beside 17, both valid: what an operator would have read a year early."""
    place = evidence_dir()
    assert place is not None
    folder = place / "sgx" / "phala-sgx-config-and-swh"
    later = json.loads((folder / "collateral-eval19-v2-202506.json").read_text())
    early = tmp_path / "early.json"
    early.write_text(f'{{"tcbInfo":{later["tcb_info"]},"signature":"{later["tcb_info_signature"]}"}}')
    advisories = "INTEL-SA-00289,INTEL-SA-00615"
    arguments = ["tcb", "rehearse", str(folder), "--at", "2025-06-26T08:57:51Z", "--announced", str(early), "--json"]
    for line in ("SEC:STALE", f"SEC:SECURE ADVISORIES:{advisories}", "SEC:SECURE"):
        arguments += ["--constraint", line]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    found = json.loads(capsys.readouterr().out)
    assert caught.value.code == 10
    assert [p["loses_access"] for p in found["pairs"]] == [False, True, False]
    stale, advised, _ = found["pairs"]
    assert (stale["now"]["tcb_status"], stale["then"]["tcb_status"]) == (
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDateConfigurationNeeded",
    )
    assert (advised["now"]["security"], advised["then"]["security"]) == ("SECURE", "STALE")
    # Its TCB info is of version 2, which names no components.
    assert {g["part"]: g["needs"] for g in advised["then"]["gaps"]} == {
        "CPU component 1": 13,
        "CPU component 2": 13,
        "CPU component 7": 12,
    }


def test_what_real_platforms_lack() -> None:
    place = evidence_dir()
    assert place is not None
    folder = place / "tdx" / "teepot-tdx-v4-uptodate"
    before = (enclave(folder),)
    announced = parse_announcement((folder / "collateral-eval21-v3-202606.json").read_bytes())
    after = announce(before, [announced])
    now = datetime.fromisoformat(meta(folder)["valid_at"])
    then = in_force(before, after, now)
    assert then == datetime.fromisoformat("2026-06-12T22:44:48Z")
    (outcome,) = rehearse(Situation(before, now), Situation(after, then), {"secure": CONSTRAINTS["secure"]})
    assert outcome.loses_access
    assert outcome.then.gaps == (
        Gap("CPU component 1 (BIOS: Early Microcode Update)", 7, 9),
        Gap("CPU component 2 (OS/VMM: SGX Late Microcode Update)", 7, 9),
        Gap("CPU component 5 (BIOS)", 3, 4),
        Gap("CPU component 8 (OS/VMM: SEAMLDR ACM)", 3, 6),
        Gap("TDX component 3 (OS/VMM: TDX Late Microcode Update)", 7, 9),
        Gap("TDX module", 5, 13),
    )


@pytest.mark.parametrize("kind", ["sgx", "tdx", "snp", "nitro"])
def test_every_sample_fares_the_same_when_nothing_changes(kind: str) -> None:
    """And as its record expects: what is valid verifies, what is not is refused by every constraint."""
    for folder in samples(kind):
        facts = meta(folder)
        if facts["valid_at"] is None:
            continue
        situation = Situation((enclave(folder),), datetime.fromisoformat(facts["valid_at"]))
        for outcome in rehearse(situation, situation, CONSTRAINTS):
            assert outcome.now == outcome.then, folder.name
            valid = facts["expected"]["verdict"] == "valid" and "testpki" not in folder.name
            assert (outcome.now.security is not None) == valid, (folder.name, outcome.now)
            if valid:
                assert outcome.now.tcb_status == (facts["expected"].get("tcb_status") or "")
