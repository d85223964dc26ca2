from __future__ import annotations

import hashlib
import json
import os
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from conclave.attestation import Anchors, verify_evidence
from conclave.attestation._x509 import Certificate
from conclave.attestation.dcap import parse_quote, verify_quote
from conclave.attestation.dcap.pck import pck_extension
from conclave.errors import Error, ExpiredError, PlatformError, RevokedError, SignatureError, UnsupportedPolicy
from conclave.platform import machine as module
from conclave.platform import pki
from conclave.platform.machine import Machine
from conclave.platform.quote import report_body
from conclave.platform.vendor import PARTS, Vendor

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
IDENTITY: dict[str, Any] = {
    "code": b"c" * 32,
    "signer": b"s" * 32,
    "product_id": 7,
    "revocation_level": 3,
    "context": b"context",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("processor")
    Machine.open(directory, now=NOW)
    return directory


def quote(machine: Machine, **changes: bytes) -> bytes:
    return machine.quote(**({"report_data": b"r" * 64, "config_id": b"i" * 64, "mrenclave": b"m" * 32} | changes))


def test_a_directory_is_a_machine(place: Path, tmp_path: Path) -> None:
    first, again, other = (Machine.open(p, now=NOW) for p in (place, place, tmp_path / "new" / "one"))
    assert first.anchor == again.anchor == hashlib.sha256(first.root_der).hexdigest()
    assert first.endorsements() == again.endorsements()
    assert first.anchor != other.anchor
    assert first.sealing_key("code", **IDENTITY) == again.sealing_key("code", **IDENTITY)
    assert first.sealing_key("code", **IDENTITY) != other.sealing_key("code", **IDENTITY)


def test_only_the_owner_reads_a_machine(place: Path) -> None:
    for path in (place / "machine").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name
    assert not [p for p in place.iterdir() if p.name != "machine"]


def test_no_machine_is_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="there is no simulated machine"):
        Machine.open(tmp_path, create=False)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(PlatformError, match="cannot make a simulated machine"):
        Machine.open(file / "below")


def test_a_machine_made_by_an_early_release_is_used_on(tmp_path: Path) -> None:
    machine = Machine.open(tmp_path, now=NOW)
    identity = {"code": bytes(32), "signer": bytes(32), "product_id": 0, "revocation_level": 0, "context": b""}
    before = machine.anchor, machine.sealing_key("code", **identity)
    settings = json.loads((tmp_path / "machine" / "settings.json").read_text())
    early = {"secret": settings["secret"], "fmspc": settings["fmspc"], "status": "UpToDate"}
    early |= {"advisories": [], "number": 4, "issued": "2026-11-24T20:34:01.174043+00:00"}
    (tmp_path / "machine" / "settings.json").write_text(json.dumps(early))
    (tmp_path / "machine" / "pck.key").write_bytes(bytes.fromhex(settings["pck_key"]))
    for _ in range(2):
        later = Machine.open(tmp_path, now=NOW)
        assert (later.anchor, later.sealing_key("code", **identity)) == before
        assert later.vendor.number == 5
    quote = later.quote(report_data=bytes(64), config_id=bytes(64), mrenclave=bytes(32))
    anchors = Anchors({}, simulated=True)
    assert verify_evidence(quote, later.endorsements(), kind="sgx", anchors=anchors, now=NOW)[0] == "simulated"


def test_a_machine_that_somebody_else_made_meanwhile(tmp_path: Path) -> None:
    theirs = Machine.open(tmp_path, now=NOW)
    module._create(tmp_path, NOW)
    assert Machine.open(tmp_path, now=NOW).anchor == theirs.anchor
    assert [p.name for p in tmp_path.iterdir()] == ["machine"]


FILES = [
    "settings.json",
    "attestation.key",
    *(f"{n}.{e}" for n in ("root", "ca", "tcb") for e in ("key", "crt")),
]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_machine(tmp_path: Path, name: str) -> None:
    Machine.open(tmp_path, now=NOW)
    path = tmp_path / "machine" / name
    good = path.read_bytes()
    ed = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    for bad in (b"", b"junk", good[: len(good) // 2], good + b"\0", b"{}", b"[]", ed, None):
        path.unlink(missing_ok=True)
        if bad is not None:
            path.write_bytes(bad)
        with pytest.raises(PlatformError, match="is damaged; delete that directory"):
            Machine.open(tmp_path, now=NOW)
    path.write_bytes(good)
    Machine.open(tmp_path, now=NOW)


def test_a_key_of_an_unknown_kind(tmp_path: Path) -> None:
    # It once escaped as an exception of a dependency.
    Machine.open(tmp_path, now=NOW)
    path = tmp_path / "machine" / "root.key"
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes((good[at] ^ 2,)) + good[at + 1 :])
        try:
            Machine.open(tmp_path, now=NOW)
        except Error as error:
            if not isinstance(error, PlatformError):
                raise


@pytest.mark.parametrize(
    "change",
    [
        {"secret": 1},
        {"secret": "zz"},
        {"fmspc": None},
        {"issued": "then"},
        {"issued": 1},
        {"issued": "2026-03-01T12:00:00"},
        {"unknown": 1},
        {"tcb": {"platform": [2] * 16, "qe": 8}},
        {"tcb": {"platform": [256] * 17, "qe": 8}},
        {"tcb": {"platform": [65536] * 17, "qe": 8}},
        {"pck": "zz"},
        {"pck": "00"},
        {"pck_key": "00"},
        {"serials": ["zz"], "issued": "2020-01-01T00:00:00Z"},
        {"vendor": {"levels": [], "qe_levels": []}},
        {
            "vendor": {
                "levels": [{"versions": [1], "date": "2020-01-01T00:00:00Z"}],
                "qe_levels": [{"versions": [1], "date": "2020-01-01T00:00:00Z"}],
            },
            "issued": "2020-01-01T00:00:00Z",
        },
    ],
)
def test_settings_that_say_nonsense(tmp_path: Path, change: dict[str, Any]) -> None:
    Machine.open(tmp_path, now=NOW)
    path = tmp_path / "machine" / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PlatformError, match="damaged"):
        Machine.open(tmp_path, now=NOW)


def test_endorsements_are_issued_again_after_a_day(tmp_path: Path) -> None:
    day = timedelta(days=1)
    first = Machine.open(tmp_path, now=NOW)
    published = first.endorsements()
    assert not first.reissue(NOW + day - timedelta(seconds=1))
    assert Machine.open(tmp_path, now=NOW + day - timedelta(seconds=1)).endorsements() == published
    assert first.reissue(NOW + day)
    later = first.endorsements()
    assert later != published
    assert not Machine.open(tmp_path, now=NOW + day).reissue(NOW + day)
    # A clock that went back would leave endorsements of the future.
    assert first.reissue(NOW)
    assert first.endorsements() not in (published, later)
    (tmp_path / "machine" / "endorsements").unlink()
    assert first.reissue(NOW)
    assert first.endorsements()


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    module._write(path, b"before")
    monkeypatch.setattr(os, "fdopen", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        module._write(path, b"after")
    assert path.read_bytes() == b"before"


def verified(machine: Machine, now: datetime = NOW) -> tuple[str, tuple[str, ...]]:
    anchors = frozenset({machine.anchor})
    claims = verify_quote(parse_quote(quote(machine)), machine.endorsements(), anchors=anchors, now=now)
    return claims.tcb_status, claims.advisories


# TCB recovery.


def test_what_the_vendor_says_stays(tmp_path: Path) -> None:
    machine = Machine.open(tmp_path, now=NOW)
    assert verified(machine) == ("UpToDate", ())
    machine.tell(lambda v: v.declare(machine.tcb, "OutOfDate", advisories=("INTEL-SA-00001",)), now=NOW)
    again = Machine.open(tmp_path, now=NOW + timedelta(days=3))
    assert verified(machine, NOW + timedelta(days=3)) == verified(again, NOW + timedelta(days=3))
    assert verified(again, NOW + timedelta(days=3)) == ("OutOfDate", ("INTEL-SA-00001",))
    info = json.loads(json.loads(again.endorsements())["tcb_info"])
    assert info["tcbEvaluationDataNumber"] == 2


def raised(vendor: Vendor) -> Vendor:
    return vendor.publish(date=NOW, advisories=("INTEL-SA-00002",), parts=PARTS)


@pytest.mark.spec("TCB-1", "TCB-2")
def test_a_machine_is_out_of_date_until_it_is_updated_and_starts_again(tmp_path: Path) -> None:
    machine = Machine.open(tmp_path, now=NOW)
    before = quote(machine)
    machine.tell(raised, now=NOW)
    assert verified(machine) == ("OutOfDate", ("INTEL-SA-00002",))
    newest = machine.update(now=NOW)
    assert newest == machine.vendor.newest != machine.tcb
    # What runs has the version with which it started.
    assert verified(machine)[0] == "OutOfDate"
    patched = Machine.open(tmp_path, now=NOW)
    assert patched.tcb == newest
    assert patched.anchor == machine.anchor
    assert verified(patched) == ("UpToDate", ())
    # The processor says of itself what the vendor certified of it.
    parsed = parse_quote(quote(patched))
    assert parsed.body["cpu_svn"] == newest.cpu_svn == bytes((3, 3, *(2,) * 14))
    extension = pck_extension(Certificate(parsed.chain[0], what="pck"))
    assert (extension.components, extension.cpu_svn, extension.pce_svn) == (newest.cpu_svn, newest.cpu_svn, 12)
    assert extension.fmspc == pck_extension(Certificate(parse_quote(before).chain[0], what="pck")).fmspc
    assert extension.ppid == pck_extension(Certificate(parse_quote(before).chain[0], what="pck")).ppid
    assert struct.unpack_from("<HH", quote(patched), 8) == (9, 12)
    assert struct.unpack("<H", parsed.qe["isv_svn"]) == (9,)
    # Nothing more to do: the certificate stays.
    assert patched.update(now=NOW) == newest
    assert parse_quote(quote(Machine.open(tmp_path, now=NOW))).chain == parsed.chain


@pytest.mark.spec("TCB-2")
def test_each_version_has_its_own_certified_key(tmp_path: Path) -> None:
    machine = Machine.open(tmp_path, now=NOW)
    machine.tell(raised, now=NOW)
    machine.update(now=NOW)
    patched = Machine.open(tmp_path, now=NOW)
    old, new = (parse_quote(quote(m)) for m in (machine, patched))
    certificates = [Certificate(q.chain[0], what="pck") for q in (old, new)]
    assert certificates[0].serial != certificates[1].serial
    with pytest.raises(SignatureError):
        certificates[1].verify(old.qe_report_signature, old.qe_report, code="x")
    # A machine that claims the newer version in its reports is still known by its certificate.
    assert old.chain[1:] == new.chain[1:]


@pytest.mark.spec("TCB-2")
def test_an_update_leaves_the_sealing_keys(tmp_path: Path) -> None:
    machine = Machine.open(tmp_path, now=NOW)
    before = [machine.sealing_key(p, **IDENTITY) for p in ("code", "signer", "product")]
    machine.tell(raised, now=NOW)
    machine.update(now=NOW)
    patched = Machine.open(tmp_path, now=NOW)
    assert [patched.sealing_key(p, **IDENTITY) for p in ("code", "signer", "product")] == before


@pytest.mark.spec("TCB-4")
@pytest.mark.parametrize(("what", "code"), [("platform", "pck-revoked"), ("ca", "pck-ca-revoked")])
def test_a_revoked_machine_stays_revoked_after_an_update(tmp_path: Path, what: str, code: str) -> None:
    machine = Machine.open(tmp_path, now=NOW)
    machine.tell(lambda vendor: vendor.revoke(what), now=NOW)
    machine.tell(raised, now=NOW)
    machine.update(now=NOW)
    for of in (machine, Machine.open(tmp_path, now=NOW + timedelta(days=2))):
        with pytest.raises(RevokedError) as caught:
            verified(of, NOW + timedelta(days=2))
        assert caught.value.code == code
    machine.tell(lambda vendor: vendor.restore(machine.tcb), now=NOW)
    assert verified(machine)[0] == "UpToDate"


@pytest.mark.spec("TCB-5")
@pytest.mark.parametrize(
    ("what", "code"),
    [("crl", "root-crl-expired"), ("tcb-info", "tcb-info-expired"), ("qe-identity", "qe-identity-expired")],
)
def test_what_expired_is_not_published_anew(tmp_path: Path, what: str, code: str) -> None:
    machine = Machine.open(tmp_path, now=NOW)
    machine.tell(lambda vendor: vendor.expire(what), now=NOW)
    for moment in (NOW, NOW + timedelta(days=2)):
        machine.reissue(moment)
        with pytest.raises(ExpiredError) as caught:
            verified(machine, moment)
        assert caught.value.code == code
    machine.tell(lambda vendor: vendor.restore(machine.tcb), now=NOW)
    assert verified(machine)[0] == "UpToDate"


@pytest.mark.spec("TCB-6")
def test_what_would_be_published_changes_nothing(tmp_path: Path) -> None:
    machine = Machine.open(tmp_path, now=NOW)
    files = {p.name: p.read_bytes() for p in (tmp_path / "machine").iterdir()}
    foreseen = machine.foresee(raised, now=NOW)
    claims = verify_quote(parse_quote(quote(machine)), foreseen, anchors=frozenset({machine.anchor}), now=NOW)
    assert (claims.tcb_status, claims.advisories) == ("OutOfDate", ("INTEL-SA-00002",))
    assert verified(machine) == ("UpToDate", ())
    assert {p.name: p.read_bytes() for p in (tmp_path / "machine").iterdir()} == files


def test_two_processes_that_change_one_machine(tmp_path: Path) -> None:
    # A platform that published anew once took back what another process had made the vendor say.
    running, other = Machine.open(tmp_path, now=NOW), Machine.open(tmp_path, now=NOW)
    other.tell(raised, now=NOW)
    running.reissue(NOW + timedelta(days=2))
    assert running.vendor == other.vendor
    assert verified(running, NOW + timedelta(days=2))[0] == "OutOfDate"
    threads = [Thread(target=lambda: running.tell(raised, now=NOW)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.vendor.number == 10
    assert len(other.vendor.levels) == 10


# Quotes.


@pytest.mark.spec("CLM-1")
def test_a_quote_holds_what_platform_and_enclave_said(place: Path) -> None:
    machine = Machine.open(place, now=NOW)
    raw = machine.quote(report_data=b"r" * 64, config_id=b"i" * 64, mrenclave=b"m" * 32, product=258, svn=772)
    parsed = parse_quote(raw)
    assert (parsed.report_data, parsed.body["config_id"]) == (b"r" * 64, b"i" * 64)
    assert parsed.body["mrenclave"] == b"m" * 32
    assert struct.unpack_from("<HH", raw, 48 + 256) == (258, 772)
    assert raw[48 + 176 : 48 + 192] == bytes(16)
    assert verified(machine)[0] == "UpToDate"


@pytest.mark.parametrize("part", ["report_data", "config_id", "mrenclave"])
def test_a_part_of_another_size_is_a_bug_of_the_caller(place: Path, part: str) -> None:
    machine = Machine.open(place, now=NOW)
    for value in (b"", bytes(31), bytes(65)):
        with pytest.raises(ValueError, match="another size"):
            quote(machine, **{part: value})


def test_two_wrong_sizes_do_not_make_a_right_one() -> None:
    with pytest.raises(ValueError, match="another size"):
        report_body(
            measurement=bytes(33), signer=bytes(31), attributes=bytes(16), product=0, svn=0, report_data=bytes(64)
        )


# Sealing keys.


@pytest.mark.spec("PLAT-2")
@pytest.mark.parametrize(
    ("policy", "bound"),
    [
        ("code", {"code"}),
        ("signer", {"signer", "revocation_level"}),
        ("product", {"signer", "product_id", "revocation_level"}),
    ],
)
def test_a_sealing_key_belongs_to_what_its_policy_binds(place: Path, policy: str, bound: set[str]) -> None:
    machine = Machine.open(place, now=NOW)
    key = machine.sealing_key(policy, **IDENTITY)
    assert len(key) == 32
    others = {
        "code": b"d" * 32,
        "signer": b"t" * 32,
        "product_id": 8,
        "revocation_level": 4,
        "context": b"another",
    }
    for name, value in others.items():
        changed = machine.sealing_key(policy, **(IDENTITY | {name: value}))
        assert (changed != key) == (name in bound | {"context"}), name


@pytest.mark.spec("PLAT-2")
def test_policies_share_no_key(place: Path) -> None:
    machine = Machine.open(place, now=NOW)
    level, product = (3).to_bytes(2, "big"), (7).to_bytes(2, "big")
    keys = [machine.sealing_key(p, **IDENTITY) for p in ("code", "signer", "product")]
    # Contexts that continue where another policy's identity ends.
    keys += [machine.sealing_key("signer", **(IDENTITY | {"context": c})) for c in (product + level, b"\0", b"")]
    assert len(set(keys)) == len(keys)


@pytest.mark.spec("PLAT-2")
def test_policies_that_nobody_can_have(place: Path) -> None:
    machine = Machine.open(place, now=NOW)
    unsigned = IDENTITY | {"signer": bytes(32)}
    for policy in ("signer", "product"):
        with pytest.raises(UnsupportedPolicy, match="no author to bind to"):
            machine.sealing_key(policy, **unsigned)
    assert machine.sealing_key("code", **unsigned) == machine.sealing_key("code", **IDENTITY)
    for policy in ("", "CODE", "code\0", "machine"):
        with pytest.raises(UnsupportedPolicy, match="the policies are"):
            machine.sealing_key(policy, **IDENTITY)


@pytest.mark.spec("PLAT-3")
def test_a_key_of_a_lower_level_is_that_levels(place: Path) -> None:
    machine = Machine.open(place, now=NOW)
    for policy in ("signer", "product"):
        keys = [machine.sealing_key(policy, **(IDENTITY | {"revocation_level": level})) for level in range(5)]
        assert [machine.sealing_key(policy, **IDENTITY, level=level) for level in range(4)] == keys[:4]
        assert machine.sealing_key(policy, **IDENTITY) == keys[3]
        for level in (4, 65535, -1):
            with pytest.raises(UnsupportedPolicy, match=f"of revocation level 3 has no key of level {level}"):
                machine.sealing_key(policy, **IDENTITY, level=level)
    assert machine.sealing_key("code", **IDENTITY, level=3) == machine.sealing_key("code", **IDENTITY)
    for level in (2, 4):
        with pytest.raises(UnsupportedPolicy, match="under that policy"):
            machine.sealing_key("code", **IDENTITY, level=level)


# Encodings of the PKI that are written by hand.


def test_der_lengths() -> None:
    assert pki.der(4, b"x" * 127)[:2] == b"\x04\x7f"
    assert pki.der(4, b"x" * 128)[:3] == b"\x04\x81\x80"
    assert pki.der(4, b"x" * 256)[:4] == b"\x04\x82\x01\x00"


def test_keys_read_and_written() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert pki.private_der(pki.load_private(pki.private_der(key))) == pki.private_der(key)
    ed = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ValueError, match="not an elliptic-curve key"):
        pki.load_private(ed)
