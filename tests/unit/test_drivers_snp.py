"""SEV-SNP: derived keys that never enter the author's process, and the host's certificates."""

from __future__ import annotations

import ctypes
import errno
import hmac
import json
import os
import struct
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.imitations.nsm import SevGuestDevice
from tests.imitations.processor import Snp
from tests.imitations.tsm import Memory, Tsm, table, table_of

from conclave._crypto import Secret
from conclave.attestation import snp
from conclave.enclave.drivers import Mounted
from conclave.enclave.drivers.certificates import hints, parse_table
from conclave.enclave.drivers.sevguest import SevGuest
from conclave.enclave.drivers.tee import bound_parts, check_echo, key_from, offered_to, policy_root
from conclave.enclave.drivers.tsm import Reports, SnpTee
from conclave.errors import PlatformError, UnsupportedPolicy

NOW = datetime.now(UTC).replace(microsecond=0)
PROGRAM = Mounted(bytes(range(32)), b"\5" * 32, 3, 4)


class Guest:
    """A guest, its device, and a driver whose runtime has started."""

    def __init__(self, path: Path, *, mounted: Mounted = PROGRAM, vmpl: int = 0, **launch: Any) -> None:
        path.write_bytes(b"")
        self.processor = Snp(NOW, mounted.bundle_id)
        self.tsm = Tsm(self.processor, floor=vmpl)
        self.device = SevGuestDevice(self.processor, **launch)
        self.guest = SevGuest(path, ioctl=self.device.ioctl)
        self.tee = SnpTee(Reports(Memory(self.tsm)), self.guest, places=())

    def key(self, policy: str = "code", mounted: Mounted = PROGRAM) -> bytes:
        self.tee.identity(mounted)
        return self.tee.sealing_key(policy)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sev-guest"


@pytest.mark.spec("DRV-18")
def test_what_is_mixed_into_the_processors_key(path: Path) -> None:
    key = Guest(path).key()
    assert Guest(path).key() == key
    for change in ({"chip": b"another"}, {"measurement": b"another runtime"}, {"vmpl": 1}):
        assert Guest(path, **change).key() != key, change
    debuggable = Guest(path)
    debuggable.device.launch[0] = b"a policy that lets the host debug"
    assert debuggable.key() != key
    # Older firmware cannot ask for the key of a newer one.
    old = Guest(path)
    device_evidence = old.processor.evidence
    report = device_evidence(bytes(64)).raw
    older = report[:0x1E0] + bytes(8) + report[0x1E8:]
    old.processor.evidence = lambda data: type("Built", (), {"raw": older})()  # type: ignore[method-assign]
    old.tsm.table = b""
    assert old.key() != key


@pytest.mark.spec("DRV-18")
def test_the_request_byte_for_byte(path: Path) -> None:
    reader, writer = os.pipe()

    def ioctl(descriptor: int, number: int, call: bytearray) -> None:
        version, request, response, error = struct.unpack("=B7xQQQ", call)
        assert (number, version, error, len(call)) == (0xC0205301, 1, 0, 32)
        os.write(writer, ctypes.string_at(request, 32))
        ctypes.memmove(response, bytes(32) + b"k" * 32, 64)

    path.write_bytes(b"")
    found = SevGuest(path, ioctl=ioctl).roots(level=2, tcb=0x1122334455667788, bound={("code", 0): b"b"})
    request = os.read(reader, 100)
    os.close(reader)
    os.close(writer)
    assert request == bytes.fromhex("00000000 00000000 2900000000000000 02000000 00000000 8877665544332211")
    # And what is made of the answer.
    root = policy_root(Secret(b"k" * 32), tee="snp", policy="code", bound=b"b")
    assert key_from(found["code", 0], b"c") == key_from(root, b"c")


@pytest.mark.spec("DRV-19")
def test_the_processors_key_stays_out_of_this_process(path: Path) -> None:
    reader, writer = os.pipe()
    guest = Guest(path)
    ioctl = guest.device.ioctl

    def watched(descriptor: int, number: int, call: bytearray) -> int:
        os.write(writer, os.getpid().to_bytes(4, "big"))
        return ioctl(descriptor, number, call)

    guest.guest._ioctl = watched
    guest.key()
    asked = int.from_bytes(os.read(reader, 100), "big")
    os.close(reader)
    os.close(writer)
    # It was asked once, by a process that is gone, and its memory with it.
    assert asked != os.getpid()
    with pytest.raises(ChildProcessError):
        os.waitpid(asked, os.WNOHANG)


@pytest.mark.spec("DRV-19", "DRV-6")
def test_a_child_that_dies_gives_no_keys(path: Path) -> None:
    guest = Guest(path)

    def die(*arguments: Any) -> Any:
        os._exit(9)

    guest.guest._ioctl = die
    with pytest.raises(UnsupportedPolicy, match=r"the process that derives keys died.*take one from the KDS"):
        guest.key()

    def fail(*arguments: Any) -> Any:
        raise MemoryError

    guest.guest._ioctl = fail
    with pytest.raises(UnsupportedPolicy, match="died"):
        guest.key()


@pytest.mark.spec("DRV-3", "DRV-6")
def test_no_keys_and_why(path: Path) -> None:
    guest = Guest(path)
    guest.device.status = 0x16
    with pytest.raises(UnsupportedPolicy, match=r"derives no key \(status 0x16\)"):
        guest.key()
    guest = Guest(path)
    guest.device.fault = errno.EIO
    with pytest.raises(UnsupportedPolicy, match="/dev/sev-guest: Input/output error"):
        guest.key()
    guest = Guest(path)
    path.unlink()
    with pytest.raises(UnsupportedPolicy, match="/dev/sev-guest: No such file"):
        guest.key()
    assert len(guest.tee.evidence(bytes(64)).data) == 1184


@pytest.mark.spec("DRV-19", "DRV-6")
@pytest.mark.parametrize(
    "answer", [b"", b"\0", b"\0" + bytes(11 * 32 - 1), b"\0" + bytes(11 * 32 + 1), b"\1" + b"x" * 96]
)
def test_half_an_answer_is_none(path: Path, answer: bytes) -> None:
    guest = Guest(path)
    guest.guest._answer = lambda *arguments: answer  # type: ignore[method-assign]
    with pytest.raises(UnsupportedPolicy, match="gave no derived keys"):
        guest.key()


@pytest.mark.spec("DRV-6")
@pytest.mark.parametrize(("status", "key"), [(0x16, b"k" * 32), (0, bytes(32))])
def test_a_status_counts_and_so_does_a_key_of_zeros(path: Path, status: int, key: bytes) -> None:
    def ioctl(descriptor: int, number: int, call: bytearray) -> None:
        room = struct.unpack("=B7xQQQ", call)[2]
        ctypes.memmove(room, status.to_bytes(4, "little") + bytes(28) + key, 64)

    path.write_bytes(b"")
    with pytest.raises(PlatformError, match="derives no key"):
        SevGuest(path, ioctl=ioctl).roots(level=0, tcb=0, bound={("code", 0): b"b"})


@pytest.mark.spec("DRV-1")
def test_evidence_that_nobody_could_hand_out() -> None:
    check_echo(b"x", b"x", bytes(65536))
    with pytest.raises(PlatformError, match="65537 bytes"):
        check_echo(b"x", b"x", bytes(65537))
    for echo in (None, b"y", b""):
        with pytest.raises(PlatformError, match="other report data"):
            check_echo(echo, b"x", b"")


@pytest.mark.spec("DRV-3")
def test_no_keys_for_a_bundle_that_was_not_launched(path: Path) -> None:
    guest = Guest(path)
    other = Mounted(PROGRAM.code, PROGRAM.signer, 9, 9)
    with pytest.raises(UnsupportedPolicy, match="gave none to this runtime"):
        guest.key(mounted=other)


@pytest.mark.spec("DRV-20", "BOOT-3")
def test_the_device_must_be_out_of_reach(path: Path) -> None:
    guest = Guest(path)
    with pytest.raises(PlatformError, match="still open to author code"):
        guest.tee.check_closed()
    path.unlink()
    guest.tee.check_closed()
    assert not guest.guest.opens()


@pytest.mark.skipif(os.geteuid() == 0, reason="modes do not bind root")
def test_a_device_that_can_only_be_read_is_in_reach(path: Path) -> None:
    guest = Guest(path)
    path.chmod(0o400)
    with pytest.raises(PlatformError, match="still open"):
        guest.tee.check_closed()


@pytest.mark.spec("DRV-3")
def test_what_each_policy_binds() -> None:
    parts = bound_parts(PROGRAM)
    assert len(parts) == 11
    assert parts["code", 4] == PROGRAM.bundle_id
    for level in range(5):
        assert parts["signer", level] == b"\5" * 32 + bytes((0, level))
        assert parts["product", level] == b"\5" * 32 + b"\0\3" + bytes((0, level))
    unsigned = Mounted(PROGRAM.code, bytes(32), 3, 4)
    assert set(bound_parts(unsigned)) == {("code", 4)}
    assert (offered_to(PROGRAM), offered_to(unsigned)) == (("code", "signer", "product"), ("code",))


@pytest.mark.spec("DRV-29")
def test_keys_of_higher_levels_never_enter_this_process(path: Path) -> None:
    guest = Guest(path)
    key = guest.key("signer")
    assert {level for _, level in guest.tee._roots} == {0, 1, 2, 3, 4}
    newer = Mounted(b"\6" * 32, PROGRAM.signer, PROGRAM.product_id, 5)
    upgraded = Guest(path, mounted=newer)
    assert upgraded.key("signer", newer) != key
    assert upgraded.tee.sealing_key("signer", level=4) == key


@pytest.mark.spec("DRV-29")
def test_more_levels_than_a_pipe_holds(path: Path) -> None:
    newest = Mounted(PROGRAM.code, PROGRAM.signer, PROGRAM.product_id, 2612)
    guest = Guest(path, mounted=newest)
    guest.key("signer", newest)
    assert guest.tee.sealing_key("signer", level=4) == Guest(path).key("signer")


# Certificates ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> Any:
    return Snp(NOW).evidence(bytes(64))


@pytest.mark.spec("DRV-17", "DRV-27")
def test_hints_are_endorsements(built: Any) -> None:
    found = hints(table_of(built))
    assert json.loads(found) == json.loads(built.endorsements)
    snp.verify_report(snp.parse_report(built.raw), found, anchors=built.anchors, now=NOW)


@pytest.mark.spec("DRV-17")
def test_a_part_of_the_certificates(built: Any) -> None:
    parts = parse_table(table_of(built))
    assert set(parts) == {"vcek", "ask", "ark", "crl"}
    leaf = parts["vcek"]
    assert json.loads(hints(table({"vcek": leaf}))) == {"certificate": leaf.hex(), "chain": "", "crl": ""}
    assert json.loads(hints(table({"vlek": leaf})))["certificate"] == leaf.hex()
    unknown = "11" * 16
    assert json.loads(hints(table({unknown: b"x", "vcek": leaf, "ark": b""})))["certificate"] == leaf.hex()
    for nothing in (b"", bytes(24), bytes(4096), table({}), table({"ask": b"x"}), table({unknown: b"x"})):
        assert hints(nothing) == b""


@pytest.mark.spec("DRV-17")
def test_certificates_in_the_other_form(built: Any) -> None:
    members = json.loads(built.endorsements)
    parts = parse_table(table_of(built))
    text = members["chain"].encode()
    ask, ark = (piece + b"-----END CERTIFICATE-----\n" for piece in text.split(b"-----END CERTIFICATE-----\n")[:2])
    assert json.loads(hints(table({**parts, "ask": ask, "ark": ark}))) == members
    # What only looks like it is passed on as it is.
    odd = b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"
    assert json.loads(hints(table({"vcek": odd})))["certificate"] == odd.hex()


@pytest.mark.spec("DRV-17")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"offset": 0}, "overlap or lie outside"),
        ({"offset": 24 * 5 - 1}, "overlap or lie outside"),
        ({"offset": 24 * 5 + 1}, "overlap or lie outside"),
        ({"offset": 1 << 31}, "overlap or lie outside"),
        ({"length": 1 << 31}, "overlap or lie outside"),
        ({"length": 0xFFFFFFFF, "offset": 0xFFFFFFFF}, "overlap or lie outside"),
    ],
    ids=str,
)
def test_tables_that_point_where_they_must_not(built: Any, change: dict[str, int], told: str) -> None:
    good = bytearray(table_of(built))
    for name, value in change.items():
        at = {"offset": 16, "length": 20}[name]
        good[at : at + 4] = value.to_bytes(4, "little")
    with pytest.raises(PlatformError, match=told):
        parse_table(bytes(good))


@pytest.mark.spec("DRV-17")
def test_tables_of_another_form(built: Any) -> None:
    good = table_of(built)
    with pytest.raises(PlatformError, match="overlap or lie outside"):
        parse_table(good[:-1])
    with pytest.raises(PlatformError, match="does not end"):
        parse_table(good[:100])
    with pytest.raises(PlatformError, match="more than 32 entries"):
        parse_table(table({f"{n:032x}": b"x" for n in range(1, 40)}))
    with pytest.raises(PlatformError, match="twice"):
        parse_table(good[:24] + good[:24] + bytes(24) + good[24:])
    assert set(parse_table(table({"vcek": b"abc", "ask": b"d"}, gap=7))) == {"vcek", "ask"}


@pytest.mark.spec("DRV-17", "DRV-6")
@given(st.binary(max_size=400), st.integers(0, 100))
def test_any_table_is_read_or_refused(data: bytes, at: int) -> None:
    good = table({"vcek": b"abc", "ask": b"defg"})
    for raw in (data, good[:at] + data[:4] + good[at + 4 :]):
        with suppress(PlatformError):
            hints(raw)


@pytest.mark.spec("DRV-17")
def test_more_hints_than_anybody_carries(built: Any) -> None:
    assert hints(table({"vcek": bytes(40_000)})) == b""


@pytest.mark.spec("DRV-17", "DRV-6")
def test_a_bad_table_stops_evidence(path: Path) -> None:
    guest = Guest(path)
    guest.tsm.table = table({"vcek": b"x"})[:-1]
    with pytest.raises(PlatformError, match="certificate table"):
        guest.tee.evidence(bytes(64))
    assert not guest.tsm.entries


# The key schedule, by hand ---------------------------------------------------------------


def hkdf(salt: bytes, secret: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block."""
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\1", "sha256")


@pytest.mark.spec("DRV-3")
def test_keys_are_as_the_specification_says() -> None:
    device = bytes(range(16))
    for tee, policy, bound in (("snp", "signer", b"\5" * 34), ("sgx", "code", b"\6" * 32)):
        root = hkdf(
            b"conclave/1 %b device key" % tee.encode(),
            device,
            b"conclave/1 sealing root %b\0%b" % (policy.encode(), bound),
        )
        key = hmac.digest(root, b"conclave/1 sealing key\0context\1", "sha256")
        assert key_from(policy_root(Secret(device), tee=tee, policy=policy, bound=bound), b"context") == key
    page = (Path(__file__).parents[2] / "spec" / "drivers.md").read_text()
    for label in ("conclave/1 <kind> device key", "conclave/1 sealing root <policy>", "conclave/1 sealing key"):
        assert page.count(f'"{label}"') == 1
