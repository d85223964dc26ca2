"""SEV-SNP and TDX over configfs-tsm: every way a report can go wrong, and what names the bundle."""

from __future__ import annotations

import errno
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.imitations.gramine import Registers
from tests.imitations.processor import EMPTY, Snp, Tdx, extend
from tests.imitations.tsm import Entry, Memory, Tsm

from conclave.enclave.drivers import Mounted
from conclave.enclave.drivers.sevguest import SevGuest
from conclave.enclave.drivers.tee import Tee
from conclave.enclave.drivers.tsm import Reports, SnpTee, TdxTee
from conclave.errors import PlatformError

NOW = datetime.now(UTC).replace(microsecond=0)
PROGRAM = Mounted(bytes(range(32)), b"\5" * 32, 3, 4)
NAME = PROGRAM.bundle_id
ZEROS = bytes(16)


class Rig:
    """One imitated guest and its driver; counts what the driver does."""

    def __init__(self, processor: Any, **options: Any) -> None:
        self.processor = processor
        self.tsm = Tsm(processor, **options)
        self.registers = Registers(processor)
        self.pauses: list[float] = []
        self.writes: list[tuple[str, bytes]] = []
        rig = self

        class Watched(Memory):
            def write(self, path: str, data: bytes) -> None:
                rig.writes.append((path.partition("/")[2], data))
                super().write(path, data)

        reports = Reports(Watched(self.tsm), sleep=self.pauses.append)
        self.tee: Tee
        if processor.kind == "snp":
            self.tee = SnpTee(reports, SevGuest(__file__ + ".absent"), places=())  # type: ignore[arg-type]
        else:
            self.tee = TdxTee(reports, registers=Memory(self.registers), places=())


@pytest.fixture(params=["snp", "tdx"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(Snp(NOW, NAME) if request.param == "snp" else Tdx(NOW, NAME + ZEROS))


DATA = bytes(range(64))


@pytest.mark.spec("DRV-11", "DRV-12")
def test_one_report_one_entry_one_write(rig: Rig) -> None:
    assert rig.tee.evidence(DATA).data
    assert [data for name, data in rig.writes if name == "inblob"] == [DATA]
    assert rig.tsm.reports == 1
    assert not rig.tsm.entries
    assert not rig.pauses


@pytest.mark.spec("DRV-11", "DRV-6")
@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.EFBIG, errno.ENXIO, errno.ENOMEM])
def test_errors_of_the_kernel_are_told_and_leave_no_entry(rig: Rig, code: int) -> None:
    rig.tsm.faults = [code]
    with pytest.raises(PlatformError, match="configfs-tsm"):
        rig.tee.evidence(DATA)
    assert not rig.tsm.entries
    assert not rig.pauses
    assert rig.tee.evidence(DATA).data


@pytest.mark.spec("DRV-14")
@pytest.mark.parametrize("code", [errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.EAGAIN])
def test_not_now_is_tried_again(rig: Rig, code: int) -> None:
    rig.tsm.faults = [code] * 4
    assert rig.tee.evidence(DATA).data
    assert rig.pauses == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.spec("DRV-14", "DRV-6")
def test_not_now_for_ever_comes_to_an_end(rig: Rig) -> None:
    rig.tsm.faults = [errno.ETIMEDOUT] + [errno.EBUSY] * 100
    with pytest.raises(PlatformError, match="busy"):
        rig.tee.evidence(DATA)
    assert len(rig.pauses) == 4
    assert len(rig.tsm.faults) == 96
    assert not rig.tsm.entries


def intruder(times: int, change: Callable[[Entry], None]) -> Callable[[Entry], None]:
    left = [times]

    def act(entry: Entry) -> None:
        if left[0]:
            left[0] -= 1
            entry.write_generation += 1
            change(entry)

    return act


@pytest.mark.spec("DRV-13")
def test_who_writes_in_between_is_noticed(rig: Rig) -> None:
    rig.tsm.intruder = intruder(2, lambda entry: setattr(entry, "inblob", b"x" * 64))
    evidence = rig.tee.evidence(DATA)
    assert DATA in evidence.data
    assert rig.tsm.reports >= 2


@pytest.mark.spec("DRV-13", "DRV-6")
def test_who_writes_without_end_is_refused(rig: Rig) -> None:
    rig.tsm.intruder = intruder(10**6, lambda entry: None)
    with pytest.raises(PlatformError, match="somebody else keeps writing"):
        rig.tee.evidence(DATA)
    assert not rig.tsm.entries
    assert sum(name == "inblob" for name, _ in rig.writes) == 5


@pytest.mark.spec("DRV-1")
def test_a_report_over_something_else_is_not_handed_out(rig: Rig) -> None:
    """A race that the generation does not show."""
    rig.tsm.intruder = lambda entry: setattr(entry, "inblob", b"x" * 64)
    with pytest.raises(PlatformError, match="other report data"):
        rig.tee.evidence(DATA)


@pytest.mark.spec("DRV-15")
def test_another_provider(rig: Rig) -> None:
    for provider in ("arm_cca_guest", "sev_guest" if rig.processor.kind == "tdx" else "tdx_guest", "sev_guest\nx"):
        rig.tsm.provider = provider
        with pytest.raises(PlatformError, match="not those of"):
            rig.tee.evidence(DATA)
    rig.tsm.provider = ""
    with pytest.raises(PlatformError, match="no SEV-SNP or TDX guest"):
        rig.tee.evidence(DATA)


@pytest.mark.spec("DRV-15", "DRV-6")
def test_reports_of_another_layout(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    good = rig.processor.evidence(DATA).raw
    version = (3).to_bytes(2, "little")
    for raw in (
        b"",
        good[:40],
        good[:-1] if rig.processor.kind == "snp" else good[:600],
        version + good[2:],
        bytes(700),
    ):
        built = type("Built", (), {"raw": raw})()
        if rig.processor.kind == "snp":
            rig.tsm.table = b""
            if raw == version + good[2:]:
                continue
        monkeypatch.setattr(rig.processor, "evidence", lambda data, built=built: built)
        with pytest.raises(PlatformError):
            rig.tee.evidence(DATA)


@pytest.mark.spec("DRV-6", "DRV-1")
def test_more_than_anybody_takes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    good = rig.processor.evidence(DATA)
    built = type("Built", (), {"raw": good.raw + bytes(70_000), "endorsements": good.endorsements})()
    monkeypatch.setattr(rig.processor, "evidence", lambda data: built)
    with pytest.raises(PlatformError, match=r"more than 65536 bytes|too many"):
        rig.tee.evidence(DATA)


@pytest.mark.spec("DRV-6")
@pytest.mark.parametrize("name", ["generation", "privlevel_floor"])
@pytest.mark.parametrize("said", ["", "x\n", "-1\n", "1 2\n", "9" * 30 + "\n", "1" * 100])
def test_numbers_that_are_none(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(Snp(NOW, NAME))
    opened = rig.tsm.open

    def odd(entry: str, attribute: str, *, writing: bool) -> Any:
        handle = opened(entry, attribute, writing=writing)
        if attribute == name:
            handle._show = lambda: said  # type: ignore[attr-defined]
        return handle

    monkeypatch.setattr(rig.tsm, "open", odd)
    with pytest.raises(PlatformError):
        rig.tee.evidence(DATA)
    assert not rig.tsm.entries


# SEV-SNP ---------------------------------------------------------------------------------


@pytest.mark.spec("DRV-12")
@pytest.mark.parametrize("floor", [0, 1, 3])
def test_the_least_privilege_level_there_is(floor: int) -> None:
    rig = Rig(Snp(NOW, NAME), floor=floor)
    report = rig.tee.evidence(DATA).data
    assert report[0x30] == floor
    assert rig.writes == [("privlevel", b"%d" % floor), ("inblob", DATA)]


def test_a_privilege_level_that_does_not_exist() -> None:
    rig = Rig(Snp(NOW, NAME), floor=4)
    with pytest.raises(PlatformError, match="privilege level"):
        rig.tee.evidence(DATA)


@pytest.mark.spec("DRV-16", "DRV-2", "CLM-1")
def test_host_data_names_the_bundle() -> None:
    rig = Rig(Snp(NOW, NAME))
    assert rig.tee.identity(PROGRAM).bundle_id == NAME
    # Another launch: the driver says what it finds, and the runtime compares.
    assert Rig(Snp(NOW, b"\7" * 32)).tee.identity(PROGRAM).bundle_id == b"\7" * 32
    assert dict(rig.writes)["inblob"] == bytes(64)


@pytest.mark.spec("DRV-16")
def test_nobody_named_a_bundle() -> None:
    with pytest.raises(PlatformError, match="HOST_DATA is empty"):
        Rig(Snp(NOW)).tee.identity(PROGRAM)


# TDX -------------------------------------------------------------------------------------

ONCE = extend(EMPTY, NAME + ZEROS)


@pytest.mark.spec("DRV-21", "DRV-2", "CLM-1")
def test_mrconfigid_names_the_bundle() -> None:
    rig = Rig(Tdx(NOW, NAME + ZEROS, rtmr3=b"\1" * 48))
    assert rig.tee.identity(PROGRAM).bundle_id == NAME
    assert rig.registers.extensions == 0
    assert Rig(Tdx(NOW, b"\7" * 32 + ZEROS)).tee.identity(PROGRAM).bundle_id == b"\7" * 32


@pytest.mark.spec("DRV-21")
@pytest.mark.parametrize("at", [32, 47])
def test_mrconfigid_of_another_form(at: int) -> None:
    odd = bytearray(NAME + ZEROS)
    odd[at] = 1
    with pytest.raises(PlatformError, match="MRCONFIGID holds something else"):
        Rig(Tdx(NOW, bytes(odd))).tee.identity(PROGRAM)


@pytest.mark.spec("DRV-21", "DRV-2", "CLM-1")
def test_rtmr3_is_extended_once() -> None:
    rig = Rig(Tdx(NOW))
    for _ in range(3):
        assert rig.tee.identity(PROGRAM).bundle_id == NAME
    assert rig.registers.extensions == 1
    assert rig.processor.rtmr3 == ONCE


@pytest.mark.spec("DRV-21")
@pytest.mark.parametrize(
    "held",
    [b"\1" * 48, extend(ONCE, NAME + ZEROS), extend(EMPTY, NAME), extend(EMPTY, b"\7" * 32 + ZEROS), NAME + ZEROS],
    ids=["something", "twice", "without padding", "another bundle", "not extended"],
)
def test_rtmr3_that_holds_something_else(held: bytes) -> None:
    rig = Rig(Tdx(NOW, rtmr3=held))
    with pytest.raises(PlatformError, match="RTMR3 holds something else"):
        rig.tee.identity(PROGRAM)
    assert rig.registers.extensions == 0


@pytest.mark.spec("DRV-21")
def test_rtmr3_that_does_not_become_what_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(Tdx(NOW))
    monkeypatch.setattr("tests.imitations.gramine.extend", lambda old, data: b"\1" * 48)
    with pytest.raises(PlatformError, match="RTMR3 holds something else"):
        rig.tee.identity(PROGRAM)


@pytest.mark.spec("DRV-21", "DRV-6")
def test_a_kernel_without_register_files(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(Tdx(NOW))
    monkeypatch.setattr(rig.registers, "files", dict)
    with pytest.raises(PlatformError, match="launch the guest with the bundle id in MRCONFIGID"):
        rig.tee.identity(PROGRAM)


@pytest.mark.spec("DRV-15")
@pytest.mark.parametrize(
    ("at", "value"), [(4, 0), (0, 3), (0, 6), (48, 1), (48, 4), (50, 0x49)], ids=lambda value: str(value)
)
def test_quotes_of_version_five_of_another_form(at: int, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(Tdx(NOW, NAME + ZEROS, version=5, body=3))
    good = bytearray(rig.processor.evidence(DATA).raw)
    assert rig.tee.evidence(DATA).data == bytes(good)
    good[at] = value
    built = type("Built", (), {"raw": bytes(good)})()
    monkeypatch.setattr(rig.processor, "evidence", lambda data: built)
    with pytest.raises(PlatformError, match="the quote is"):
        rig.tee.evidence(DATA)
