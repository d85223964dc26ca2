"""`conclave tcb`: what it prints, its exit statuses, and what it says to mistakes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.test_rehearse import answer, out_of_date
from tests.unit.test_verify import claims, info

from conclave.attestation import verify as verifier
from conclave.cli import main
from conclave.cli._rehearsal import Rehearsal, schema
from conclave.cli._tcb import parse_time
from conclave.errors import FormatError
from conclave.host.endorsements.documents import QeIdentity, RootList, TcbInfo, read_document
from conclave.host.endorsements.exchange import write_folder
from conclave.platform.machine import Machine
from conclave.testing.evidence import AmdPki, AwsPki, IntelPki

ROOT = Path(__file__).parents[2]
SAID = claims()
PROGRAM = f"C:{SAID.code.hex()} RUNTIME:{SAID.runtime}"


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def tcb(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as caught:
            main(["tcb", *(str(a) for a in arguments)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Done(int(caught.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A machine, and instance info of an enclave on it."""
    machine = Machine.open(tmp_path / "platform")
    (tmp_path / "one.instance").write_bytes(info(machine))
    (tmp_path / "clients.txt").write_text(f"# all clients\n\n{PROGRAM}\n{PROGRAM} SEC:STALE\n{PROGRAM} SEC:INSECURE\n")
    return tmp_path


# Simulated machines.


def test_a_machine_through_a_recovery(tcb: Any, place: Path) -> None:
    platform = ("--platform", place / "platform")
    first = tcb("show", *platform)
    assert first.status == 0
    assert first.out.splitlines()[1:3] == [
        f"version     CPUSVN {'02' * 16}, PCESVN 11, quoting enclave 8",
        f"platform    UpToDate, level of {datetime.now(UTC).date()}",
    ]
    assert "to do" not in first.out
    published = tcb("publish", "--advisory", "INTEL-SA-2", "--advisory", "INTEL-SA-1", "--part", "cpu", *platform)
    assert "platform    OutOfDate (INTEL-SA-1, INTEL-SA-2), level of" in published.out
    assert "vendor      evaluation 2, 2 levels" in published.out
    assert "to do       conclave tcb update" in published.out
    updated = tcb("update", *platform, "--json")
    assert updated.json["newest"] is True
    assert updated.json["cpu_svn"] == "0303" + "02" * 14
    assert updated.json["platform"]["status"] == "UpToDate"
    assert [level["status"] for level in updated.json["levels"]] == ["UpToDate", "OutOfDate"]
    declared = tcb("declare", "SWHardeningNeeded", "--advisory", "INTEL-SA-3", *platform, "--json")
    assert declared.json["platform"] == updated.json["platform"] | {
        "status": "SWHardeningNeeded",
        "advisories": ["INTEL-SA-3"],
    }
    assert "expired     crl\n" in tcb("expire", "crl", *platform).out
    assert "expired     crl, tcb-info\n" in tcb("expire", "tcb-info", *platform).out
    assert "revoked     platform\n" in tcb("revoke", *platform).out
    assert "revoked     ca, platform\n" in tcb("revoke", "ca", *platform).out
    restored = tcb("restore", *platform, "--json").json
    assert (restored["revoked"], restored["expired"], restored["platform"]["status"]) == ([], [], "UpToDate")
    assert restored["cpu_svn"] == updated.json["cpu_svn"]
    qe = tcb("publish", "--part", "qe", "--part", "pce", "--date", "2030-01-31", *platform, "--json").json
    assert (qe["qe"]["status"], qe["platform"]["status"]) == ("OutOfDate", "OutOfDate")
    assert qe["levels"][0]["date"] == "2030-01-31T00:00:00+00:00"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("publish", "--date", "yesterday"), "the date of a TCB level is a date such as 2026-01-31"),
        (("publish", "--date", "2001-01-01"), "cannot be older than the one before it"),
        (("publish", "--advisory", "sa\x1b[31m"), "the id of an advisory is such as"),
        (("publish", "--part", "qe", "--status-of-older", "SWHardeningNeeded"), "the status of a quoting enclave"),
        (("publish", "--part", "bios"), "bios"),
        (("declare", "Fine"), "Fine"),
        (("declare", "OutOfDate", "--advisory", ""), "the id of an advisory is such as"),
        (("revoke", "root"), "root"),
        (("expire", "root"), "root"),
        (("expire",), "requires an argument"),
    ],
)
def test_mistakes_with_a_machine(tcb: Any, place: Path, arguments: tuple[str, ...], said: str) -> None:
    before = (place / "platform" / "machine" / "settings.json").read_bytes()
    done = tcb(*arguments, "--platform", place / "platform")
    assert done.status == 1
    assert said in done.err + done.out
    assert (place / "platform" / "machine" / "settings.json").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [("show",), ("publish",), ("declare", "OutOfDate"), ("update",), ("revoke",), ("expire", "crl"), ("restore",)],
)
def test_no_machine_is_made(tcb: Any, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = tcb(*arguments, "--platform", tmp_path / "none")
    assert (done.status, done.out) == (1, "")
    assert "there is no simulated machine in" in done.err
    assert not list(tmp_path.iterdir())


COMMANDS = ("rehearse", "show", "publish", "declare", "update", "revoke", "expire", "restore")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(tcb: Any, command: str) -> None:
    done = tcb(command, "--help")
    assert done.status == 0
    assert f"Example: conclave tcb {command}" in done.out
    assert command in tcb("--help").out


# The rehearsal.


@pytest.mark.spec("TCB-16")
def test_the_schema_is_that_of_the_answer() -> None:
    assert json.loads((ROOT / "spec" / "tcb-rehearsal.schema.json").read_text()) == schema()


@pytest.mark.spec("TCB-6", "TCB-14", "TCB-16")
def test_what_a_simulated_vendor_would_publish(tcb: Any, place: Path) -> None:
    settings = (place / "platform" / "machine" / "settings.json").read_bytes()
    given = (place / "one.instance", "--constraint", place / "clients.txt", "--platform", place / "platform")
    today = datetime.now(UTC).date()
    done = tcb("rehearse", *given, "--publish", today, "--advisory", "INTEL-SA-1", "--json")
    assert done.status == 10
    found = msgspec.json.decode(done.out, type=Rehearsal)
    assert found.losers == 1
    assert list(found.constraints) == [f"{place / 'clients.txt'}:{n}" for n in (3, 4, 5)]
    first, second, third = found.pairs
    assert (first.now.accepted, first.then.accepted, first.loses_access) == (True, False, True)
    assert (first.now.code, first.then.code) == (None, "appraisal")
    assert (second.now.security, second.then.security, second.then.accepted) == ("SECURE", "STALE", True)
    assert second.then.advisories == ["INTEL-SA-1"]
    assert {(g.part, g.has, g.needs) for g in first.then.gaps} == {("CPU component 1", 2, 3), ("CPU component 2", 2, 3)}
    assert (third.now.security, third.loses_access) == ("INSECURE", False)
    assert [e.changes for e in found.enclaves] == [True]
    words = tcb("rehearse", *given, "--publish", today)
    assert words.status == 10
    assert "LOSES ACCESS" in words.out
    assert "update: CPU component 1 is 2, and has to be 3" in words.out
    assert words.out.endswith("1 of 3 lose access\n")
    # Nothing was published, and the machine is as it was.
    assert (place / "platform" / "machine" / "settings.json").read_bytes() == settings
    # What the vendor says already, and hosts do not staple yet.
    fine = tcb("rehearse", *given)
    assert fine.status == 0
    assert fine.out.endswith("nobody loses access\n")
    tcb("publish", "--platform", place / "platform")
    assert tcb("rehearse", *given).status == 10
    tcb("revoke", "--platform", place / "platform")
    revoked = tcb("rehearse", *given, "--json").json
    assert {p["then"]["code"] for p in revoked["pairs"]} == {"pck-revoked"}
    assert revoked["losers"] == 3


@pytest.mark.spec("TCB-11")
def test_time_alone(tcb: Any, place: Path) -> None:
    given = ("rehearse", place / "one.instance", "--constraint", f"{PROGRAM} SEC:INSECURE")
    later = (datetime.now(UTC) + timedelta(days=40)).strftime("%Y-%m-%dT%H:%M:%SZ")
    done = tcb(*given, "--advance-to", later, "--json")
    assert done.status == 10
    assert done.json["then"] == later
    assert done.json["pairs"][0]["constraint"] == "constraint 1"
    assert done.json["pairs"][0]["then"]["code"] == "tcb-info-expired"
    expires = done.json["enclaves"][0]["expires"]
    assert [e["renewable"] for e in expires] == [True] * 4 + [False] * 4
    assert "only the vendor can renew it" not in tcb(*given, "--advance-to", later).out
    soon = tcb(*given, "--advance-to", (datetime.now(UTC) + timedelta(days=2)).date())
    assert soon.status == 0
    assert soon.out.count("expires:") == 1
    # A simulated vendor can be asked what it would publish then.
    assert tcb(*given, "--advance-to", later, "--platform", place / "platform").status == 0
    then = tcb(*given, "--at", later, "--advance-to", later, "--json").json
    assert not then["pairs"][0]["now"]["accepted"]


NOW = datetime.now(UTC).replace(microsecond=0)
INTEL, AMD, AWS = IntelPki.create(now=NOW), AmdPki.create(now=NOW), AwsPki.create(now=NOW)


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of evidence, and what is announced."""
    roots = {"sgx": INTEL.anchors, "tdx": INTEL.anchors, "snp": AMD.anchors["Milan"], "nitro": AWS.anchors}
    monkeypatch.setattr(verifier, "_vendor_roots", roots)
    later = INTEL.sgx(change=out_of_date)
    built = {"quote.bin": INTEL.sgx(), "report.bin": AMD.snp(), "document.cbor": AWS.nitro()}
    for name, evidence in built.items():
        folder = tmp_path / evidence.tee
        folder.mkdir()
        (folder / name).write_bytes(evidence.raw)
        if evidence.endorsements:
            (folder / "endorsements.json").write_bytes(evidence.endorsements)
    (tmp_path / "early.json").write_bytes(answer(later))
    (tmp_path / "whole.json").write_bytes(later.endorsements)
    # As `conclave endorsements export --evaluation early` writes it.
    members = json.loads(later.endorsements)
    early = [
        read_document(wanted, body, members[f"{name}_issuer_chain"].encode(), fetched=NOW)
        for wanted, body, name in (
            (TcbInfo("sgx", INTEL.fmspc.hex(), "early"), answer(later), "tcb_info"),
            (QeIdentity("sgx", "early"), answer(later, "qe_identity"), "qe_identity"),
        )
    ]
    root = read_document(RootList(), bytes.fromhex(members["root_ca_crl"]), b"", fetched=NOW)
    tdx = json.loads(INTEL.tdx().endorsements)
    wanted = TcbInfo("tdx", INTEL.fmspc.hex(), "early")
    other = read_document(wanted, answer(INTEL.tdx()), tdx["tcb_info_issuer_chain"].encode(), fetched=NOW)
    write_folder([*early, root, other], tmp_path / "exported", now=NOW)
    write_folder([other], tmp_path / "foreign", now=NOW)
    return tmp_path


@pytest.mark.spec("TCB-9")
@pytest.mark.parametrize("announced", ["early.json", "whole.json", "exported"])
def test_what_the_vendor_announced(tcb: Any, samples: Path, announced: str) -> None:
    sources = [samples / tee for tee in ("sgx", "snp", "nitro")]
    arguments = (
        *sources,
        "--constraint",
        "SEC:SECURE",
        "--constraint",
        "SEC:STALE",
        "--announced",
        samples / announced,
    )
    done = tcb("rehearse", *arguments, "--json")
    assert done.status == 10
    assert done.json["losers"] == 1
    assert [e["changes"] for e in done.json["enclaves"]] == [True, False, False]
    lost = [p for p in done.json["pairs"] if p["loses_access"]]
    assert [(p["enclave"], p["constraint"]) for p in lost] == [(str(samples / "sgx"), "constraint 1")]
    foreign = tcb("rehearse", *arguments[:-1], samples / "foreign")
    assert (foreign.status, foreign.out) == (1, "")
    assert "another kind of platform" in foreign.err
    words = tcb("rehearse", *arguments)
    assert "update: CPU component 1 (BIOS: Early Microcode Update) is 2, and has to be 4" in words.out
    # One file, with its endorsements elsewhere.
    lacking = tcb("rehearse", samples / "sgx" / "quote.bin", *arguments[3:])
    assert (lacking.status, lacking.out) == (1, "")
    assert "no endorsements beside it" in lacking.err
    apart = (samples / "sgx" / "quote.bin", "--endorsements", samples / "sgx", *arguments[3:])
    assert tcb("rehearse", *apart, "--json").json["losers"] == 1


@pytest.mark.spec("TCB-15")
def test_a_minimum_to_come(tcb: Any, samples: Path) -> None:
    arguments = (samples / "snp", "--constraint", "SEC:STALE", "--constraint", "SEC:SECURE", "--json")
    found = tcb("rehearse", *arguments, "--minimum", "snp-milan@0.0.0.0")
    assert found.status == 0
    assert [p["gains_access"] for p in found.json["pairs"]] == [False, True]
    assert found.json["gainers"] == 1
    high = tcb("rehearse", *arguments, "--minimum", "snp-milan@255.0.0.0", "--minimum", "snp-genoa@255.0.0.0")
    assert [p["then"]["security"] for p in high.json["pairs"]] == ["STALE", "STALE"]
    assert high.json["pairs"][0]["then"]["gaps"][0]["needs"] == 255


def test_reference_values_of_a_publisher(tcb: Any, samples: Path) -> None:
    from conclave.attestation import ReferenceValues, sign_reference_values
    from conclave.bundle.keys import generate_key, load_signing_key

    generate_key(samples / "publisher.key")
    key = load_signing_key(samples / "publisher.key")
    minimum = {"snp-milan": "0.0.0.0"}
    values = ReferenceValues(version=1, number=1, issued="2026-11-24", releases={}, bundles={}, minimum_tcb=minimum)
    (samples / "values").write_bytes(sign_reference_values(values, key))
    publisher = hashlib.sha256(key.public).hexdigest()
    arguments = (
        "rehearse",
        samples / "snp",
        "--constraint",
        "SEC:SECURE",
        "--minimum",
        "snp-milan@255.0.0.0",
        "--json",
    )
    known = tcb(*arguments, "--reference", samples / "values", "--publisher", publisher)
    assert known.status == 10
    for wrong in (("--reference", samples / "values"), ("--publisher", publisher)):
        assert "go together" in tcb(*arguments, *wrong).err
    other = tcb(*arguments, "--reference", samples / "values", "--publisher", "0" * 64)
    assert "another publisher" in other.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name the enclaves"),
        (("one.instance",), "say what is to come"),
        (("one.instance", "--publish", "2030-01-01"), "name its directory with --platform"),
        (("one.instance", "--platform", "platform", "--advisory", "A-1"), "say what --publish would publish"),
        (("one.instance", "--platform", "platform", "--part", "cpu"), "say what --publish would publish"),
        (("one.instance", "--platform", "platform", "--publish", "2001-01-01"), "cannot be older"),
        (("one.instance", "--platform", "none"), "there is no simulated machine"),
        (("one.instance", "--platform", "other"), "none of these enclaves runs on that simulated machine"),
        (("one.instance", "--advance-to", "soon"), "--advance-to is a date such as"),
        (("one.instance", "--advance-to", "2030-01-01T00:00:00"), "a time with its zone"),
        (("one.instance", "--at", "", "--advance-to", "2030-01-01"), "--at is a date such as"),
        (("one.instance", "--minimum", "snp-milan"), "the minimum of snp-milan is"),
        (("one.instance", "--minimum", "sgx@2026-01-01"), "Intel gives a status itself"),
        (("one.instance", "--minimum", "snp-rome@1.2.3.4"), "minimums for"),
        (("one.instance", "--announced", "text.txt"), "text.txt: what was announced is neither"),
        (("one.instance", "--announced", "missing"), "no such file: "),
        (("one.instance", "--announced", "empty"), "holds no TCB info or QE identity"),
        (("text.txt", "--advance-to", "2030-01-01"), "text.txt: neither instance info nor"),
        (("broken.instance", "--advance-to", "2030-01-01"), "broken.instance: instance info"),
        (("empty", "--advance-to", "2030-01-01"), "a folder of evidence has one of"),
        (("missing", "--advance-to", "2030-01-01"), "no such file: "),
        (("http://127.0.0.1:1", "--advance-to", "2030-01-01"), "is the host running?"),
    ],
)
def test_mistakes(
    tcb: Any, place: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(place)
    Machine.open(place / "other")
    (place / "text.txt").write_text("nothing of the kind")
    (place / "broken.instance").write_bytes((place / "one.instance").read_bytes()[:-1])
    (place / "empty").mkdir()
    done = tcb("rehearse", *arguments, "--constraint", "clients.txt")
    assert (done.status, done.out) == (1, "")
    assert said in done.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 constraints"),
        ("# none\n\n", "there are 0"),
        ("SEC:FINE\n", "file.txt:1: SEC: takes"),
        ("SEC:STALE\nnonsense\n", "file.txt:2: unknown clause"),
        ("SEC:STALE " + " " * 20_000 + "\n", "at most 16384 characters"),
        ("SEC:STALE\n" * 10_001, "there are 10001"),
    ],
)
def test_constraints_that_are_none(
    tcb: Any, place: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(place)
    (place / "file.txt").write_text(text)
    done = tcb("rehearse", "one.instance", "--advance-to", "2030-01-01", "--constraint", "file.txt")
    assert (done.status, done.out) == (1, "")
    assert said.removeprefix("0 ") in done.err


def test_constraint_files_that_are_no_text(tcb: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "file.txt").write_bytes(b"\xff\xfe")
    arguments = ("rehearse", "one.instance", "--advance-to", "2030-01-01", "--constraint")
    assert "holds no constraints" in tcb(*arguments, "file.txt").err
    assert "no such file" in tcb(*arguments, "missing").err
    assert "not an ordinary file" in tcb(*arguments, "platform").err


def test_hostile_text_is_shown_as_what_it_is(tcb: Any, samples: Path) -> None:
    def steering(draft: Any) -> None:
        out_of_date(draft)
        draft.tcb_info["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][0]["type"] = "\x1b[2Jgone"

    folder = samples / "sgx\x1b[2J"
    folder.mkdir()
    built = INTEL.sgx(change=steering)
    (folder / "quote.bin").write_bytes(built.raw)
    (folder / "endorsements.json").write_bytes(built.endorsements)
    done = tcb("rehearse", folder, "--constraint", "SEC:SECURE", "--advance-to", "2030-01-01", "--at", NOW.isoformat())
    assert "\x1b" not in done.out
    later = (NOW + timedelta(days=1)).isoformat()
    done = tcb("rehearse", folder, "--constraint", "SEC:SECURE", "--advance-to", later)
    assert "\x1b" not in done.out
    assert "\\u001b[2Jgone" in done.out
    assert tcb("rehearse", folder, "--constraint", "SEC:SECURE", "--advance-to", later, "--json").json["losers"] == 0


def test_times() -> None:
    assert parse_time("x", "2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert parse_time("x", "2026-01-31T12:00:00+02:00") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    for text in ("", "2026-01-31T12:00", "2026-13-01", "0001-01-01T00:00:00+10:00", "today", "2026-01-3é"):
        with pytest.raises(FormatError) as caught:
            parse_time("x", text)
        assert caught.value.code == "usage"
