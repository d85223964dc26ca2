"""`conclave endorsements`: out of one machine as a folder, into another, or refused as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests._vendors import (
    DAY,
    NOW,
    Operator,
    Platform,
    amd_platform,
    simulated,
)

from conclave.cli import main
from conclave.errors import ExpiredError, FormatError
from conclave.host.endorsements.cache import Cache
from conclave.host.endorsements.exchange import read_folder, write_folder
from conclave.testing import VendorServer


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    return simulated(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def vendors() -> Iterator[VendorServer]:
    with VendorServer() as server:
        yield server


@pytest.fixture
def folder(vendors: VendorServer, machine: Platform, tmp_path: Path) -> Path:
    """An export of one Intel and one AMD platform, made at NOW."""
    platform = amd_platform()
    vendors.publish_intel(machine.endorsements)
    vendors.publish_amd("Milan", **platform.published)
    operator = Operator(vendors, tmp_path / "cache")
    operator.ask(machine)
    operator.ask(platform)
    write_folder(Cache(tmp_path / "cache", warn=print).documents(), tmp_path / "folder", now=NOW)
    vendors.requests.clear()
    return tmp_path / "folder"


@pytest.mark.spec("END-20", "END-21", "END-24")
def test_across_the_gap(vendors: VendorServer, machine: Platform, folder: Path, tmp_path: Path) -> None:
    """What was stapled on one side is stapled on the other, byte for byte, and no network is used."""
    found = read_folder(folder, now=NOW + DAY)
    assert len(found) == 7
    Cache(tmp_path / "far", warn=print).store(*found)
    near, far = Operator(vendors, tmp_path / "cache"), Operator(vendors, tmp_path / "far", intel=None, amd=None)
    for platform in (machine, amd_platform()):
        far.clock.time = NOW + 29 * DAY
        assert far.ask(platform) == near.ask(platform)
    assert not vendors.requests


@pytest.mark.spec("END-20")
def test_the_folder_holds_plain_files(folder: Path, machine: Platform) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["format"] == "conclave/1 endorsements"
    assert manifest["created"] == "2026-03-01T12:00:00Z"
    assert manifest["valid_until"] == "2026-03-31T12:00:00Z"
    names = {"manifest.json"}
    for each in manifest["documents"]:
        names |= {each["file"], each["chain_file"]} - {""}
        assert hashlib.sha256((folder / each["file"]).read_bytes()).hexdigest() == each["sha256"]
        assert each["issued"] < each["valid_until"]
    assert names == {p.name for p in folder.iterdir()}
    parts = json.loads(machine.endorsements)
    assert (folder / "intel-root-crl.crl").read_bytes() == bytes.fromhex(parts["root_ca_crl"])
    (tcb,) = folder.glob("intel-sgx-tcb-*-standard.json")
    assert json.loads(tcb.read_bytes())["tcbInfo"] == json.loads(parts["tcb_info"])
    assert (folder / "amd-vcek-milan-chain.pem").read_text() == amd_platform().chain


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def resign(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in a file, and their digest in the manifest."""
    (folder / name).write_bytes(data)

    def change(manifest: dict[str, Any]) -> None:
        for each in manifest["documents"]:
            for kind in ("file", "chain_file"):
                if each[kind] == name:
                    each[kind.replace("file", "sha256")] = hashlib.sha256(data).hexdigest()

    edit(folder, change)


def _swap(folder: Path) -> None:
    platform = amd_platform("Genoa")
    resign(folder, "amd-vcek-milan-crl.crl", platform.crl)


def _first(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["documents"][0]
    return found


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "export-format"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "export-format"),
    "half a manifest": (
        lambda f: (f / "manifest.json").write_bytes((f / "manifest.json").read_bytes()[:300]),
        "export-format",
    ),
    "deep manifest": (lambda f: (f / "manifest.json").write_text("[" * 100000), "export-format"),
    "large manifest": (lambda f: (f / "manifest.json").write_bytes(b" " * 1048577), "export-format"),
    "newer format": (lambda f: edit(f, lambda m: m.update(format="conclave/2 endorsements")), "export-format"),
    "unknown member": (lambda f: edit(f, lambda m: m.update(more=1)), "export-format"),
    "nothing": (lambda f: edit(f, lambda m: m.update(documents=[])), "export-format"),
    "twice": (lambda f: edit(f, lambda m: m["documents"].append(_first(m))), "export-format"),
    "too much": (
        lambda f: edit(f, lambda m: m.update(documents=[_first(m) | {"name": str(n)} for n in range(1025)])),
        "export-format",
    ),
    "unknown document": (lambda f: edit(f, lambda m: _first(m).update(name="intel-qve")), "export-format"),
    "escaping name": (lambda f: edit(f, lambda m: _first(m).update(name="../../x")), "export-format"),
    "no time": (lambda f: edit(f, lambda m: _first(m).update(fetched="today")), "export-format"),
    "missing file": (lambda f: (f / "intel-root-crl.crl").unlink(), "export-file"),
    "missing chain": (lambda f: (f / "intel-pck-crl-platform.chain.pem").unlink(), "export-file"),
    "cut short": (
        lambda f: (f / "intel-root-crl.crl").write_bytes((f / "intel-root-crl.crl").read_bytes()[:-1]),
        "export-file",
    ),
    "altered": (
        lambda f: (f / "amd-vcek-milan-chain.pem").write_text(amd_platform("Genoa").chain),
        "export-file",
    ),
    "huge": (lambda f: (f / "intel-root-crl.crl").write_bytes(bytes(1 << 20)), "export-file"),
    "a link": (lambda f: _link(f / "intel-root-crl.crl"), "export-file"),
    "a folder": (lambda f: _folder(f / "intel-root-crl.crl"), "export-file"),
    "another's contents": (_swap, "export-foreign"),
    "no document": (lambda f: resign(f, "intel-root-crl.crl", b"<html>"), "export-foreign"),
    "a chain that is none": (lambda f: resign(f, "intel-pck-crl-platform.chain.pem", b"x"), "export-foreign"),
    "another file name": (lambda f: edit(f, lambda m: _first(m).update(file="../x")), "export-foreign"),
    "another date": (
        lambda f: edit(f, lambda m: _first(m).update(valid_until="2099-01-01T00:00:00Z")),
        "export-foreign",
    ),
    "an extra file": (lambda f: (f / "notes.txt").write_text("x"), "export-foreign"),
}


def _link(path: Path) -> None:
    moved = path.parent.parent / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.spec("END-21")
@pytest.mark.parametrize("case", WRONG)
def test_folders_that_are_refused(folder: Path, case: str) -> None:
    harm, code = WRONG[case]
    harm(folder)
    with pytest.raises(FormatError) as caught:
        read_folder(folder, now=NOW)
    assert caught.value.code == code


@pytest.mark.spec("END-21")
def test_every_file_cut_short_is_refused(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for size in (0, 1, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:size])
            # Without its last line feed a manifest is the same manifest.
            if not (path.name == "manifest.json" and size == len(good) - 1):
                with pytest.raises(FormatError):
                    read_folder(folder, now=NOW)
        path.write_bytes(good)
    assert read_folder(folder, now=NOW)


@pytest.mark.spec("END-22")
def test_times_at_which_it_is_refused(folder: Path) -> None:
    assert read_folder(folder, now=NOW + 30 * DAY)
    assert read_folder(folder, now=NOW - timedelta(minutes=5))
    for when, said in (
        (NOW + 30 * DAY + timedelta(seconds=1), "expired at 2026-03-31"),
        (NOW - DAY, "check the clock"),
    ):
        with pytest.raises(ExpiredError, match=said) as caught:
            read_folder(folder, now=when)
        assert caught.value.code == "export-expired"


@pytest.mark.spec("END-20")
def test_a_place_with_something_in_it_is_left_alone(folder: Path, tmp_path: Path) -> None:
    documents = read_folder(folder, now=NOW)
    (tmp_path / "file").write_text("mine")
    for place in (folder, tmp_path / "file"):
        with pytest.raises(FormatError) as caught:
            write_folder(documents, place, now=NOW)
        assert caught.value.code == "export-place"
    (tmp_path / "empty").mkdir()
    write_folder(documents, tmp_path / "empty", now=NOW)
    assert read_folder(tmp_path / "empty", now=NOW) == documents
    assert not list(tmp_path.glob(".*"))


# The command --------------------------------------------------------------------------------


class Shell:
    """`conclave endorsements …` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object, status: int = 0) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["endorsements", *map(str, arguments)])
        said = self._capsys.readouterr()
        assert caught.value.code == status, said
        return said.err if status else said.out


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """A simulated machine of now: the command takes the time from the system."""
    return simulated(tmp_path_factory.mktemp("machine"), now=datetime.now(UTC))


@pytest.mark.spec("END-20", "END-21", "END-23")
def test_export_and_import(vendors: VendorServer, today: Platform, tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "quote").write_bytes(today.evidence)
    vendors.publish_intel(today.endorsements)
    given = ("--cache", tmp_path / "near")
    fetched = shell("export", tmp_path / "carry", "--evidence", tmp_path / "quote", "--intel", vendors.url, *given)
    assert fetched.startswith(f"exported 4 documents to {tmp_path / 'carry'}, all valid until ")
    assert len(vendors.requests) == 4
    # Again from the cache, with no address at all.
    facts = json.loads(shell("export", tmp_path / "again", "--evidence", tmp_path / "quote", *given, "--json"))
    assert [d["valid"] for d in facts["documents"]] == [True] * 4
    everything = json.loads(shell("export", tmp_path / "everything", *given, "--json"))
    assert everything["documents"] == facts["documents"]
    assert len(vendors.requests) == 4

    far = ("--cache", tmp_path / "far")
    taken = json.loads(shell("import", tmp_path / "carry", *far, "--json"))
    assert [d["name"] for d in taken["imported"]] == [d["name"] for d in facts["documents"]]
    assert shell("import", tmp_path / "carry", *far) == "imported 0 documents; 4 here are as new or newer\n"
    listed = shell("list", *far)
    assert listed.startswith("4 documents in ")
    assert listed.count("valid until") == 4
    assert json.loads(shell("list", *far, "--json"))["documents"] == facts["documents"]
    operator = Operator(vendors, tmp_path / "far", datetime.now(UTC), intel=None, amd=None)
    assert json.loads(operator.ask(today)) == json.loads(today.endorsements)


@pytest.mark.spec("END-20", "END-25")
def test_export_of_a_platform_with_a_vlek(vendors: VendorServer, tmp_path: Path, shell: Shell) -> None:
    platform = amd_platform(key="vlek", now=datetime.now(UTC).replace(microsecond=0))
    vendors.publish_amd("Milan", **platform.published)
    (tmp_path / "report").write_bytes(platform.evidence)
    (tmp_path / "vlek.der").write_bytes(platform.certificate)
    given = ("--evidence", tmp_path / "report", "--amd", vendors.url, "--cache", tmp_path / "cache")
    refused = shell("export", tmp_path / "carry", *given, status=1)
    assert "error (endorsements-missing)" in refused
    assert "came with the machine" in refused
    shell("export", tmp_path / "carry", *given, "--certificate", tmp_path / "vlek.der", "--no-revocation-lists")
    assert len(list((tmp_path / "carry").iterdir())) == 3


@pytest.mark.spec("END-23")
def test_import_keeps_what_is_newer(tmp_path: Path, shell: Shell) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    place = tmp_path / "machine"
    with VendorServer() as vendors:
        older = simulated(place, now=now - 2 * DAY)
        vendors.publish_intel(older.endorsements)
        Operator(vendors, tmp_path / "old", now - 2 * DAY).ask(older)
        newer = simulated(place, now=now)
        vendors.publish_intel(newer.endorsements)
        Operator(vendors, tmp_path / "new", now).ask(newer)
    shell("export", tmp_path / "carry", "--cache", tmp_path / "old")
    assert shell("import", tmp_path / "carry", "--cache", tmp_path / "new").startswith("imported 0 documents; 4 here")
    operator = Operator(vendors, tmp_path / "new", now, intel=None)
    assert json.loads(operator.ask(newer)) == json.loads(newer.endorsements)


@pytest.mark.spec("END-20", "END-21", "END-22")
def test_mistakes_get_one_line(
    vendors: VendorServer, today: Platform, folder: Path, tmp_path: Path, shell: Shell
) -> None:
    (tmp_path / "quote").write_bytes(today.evidence)
    (tmp_path / "text").write_text("no evidence")
    cache = ("--cache", tmp_path / "empty")
    named = ("export", tmp_path / "out", "--evidence", tmp_path / "quote", *cache)
    for arguments, said in (
        (("export", tmp_path / "out", *cache), "error (endorsements-missing): there is nothing to export"),
        (named, "error (endorsements-missing): there is no intel-root-crl; import it"),
        ((*named, "--intel", "http://pccs.example"), "error (service-address)"),
        ((*named, "--intel", vendors.url, "--evaluation", "late"), "error (service-setting)"),
        (("export", tmp_path / "out", "--evidence", tmp_path / "text", *cache), "error (quote-format)"),
        (("export", tmp_path / "out", "--evidence", tmp_path / "missing", *cache), "no such file"),
        (("import", tmp_path / "nothing", *cache), "error (export-format)"),
        (("import", folder, *cache), "error (export-expired): "),
    ):
        error = shell(*arguments, status=1)
        assert said in error
        # What was tried is said before, one line each.
        assert len([line for line in error.splitlines() if not line.startswith("warning: ")]) == 1
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "empty").glob("*.document"))


@pytest.mark.spec("END-21")
def test_an_import_that_fails_changes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last file is bad, or the disk is full at the last: none of the documents is there."""
    found = read_folder(folder, now=NOW)
    place = Cache(tmp_path / "far", warn=print)
    stage, staged = place._stage, []

    def full(data: bytes) -> str:
        staged.append(data)
        if len(staged) == len(found):
            raise OSError(28, "No space left on device")
        return stage(data)

    monkeypatch.setattr(place, "_stage", full)
    with pytest.raises(OSError, match="No space"):
        place.store(*found)
    assert {p.name for p in (tmp_path / "far").iterdir()} == {"locks"}
