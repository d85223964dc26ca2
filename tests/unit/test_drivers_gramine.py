"""SGX under Gramine: what the pseudo-files may answer, and what the driver makes of it."""

from __future__ import annotations

import errno
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.imitations.gramine import Attestation
from tests.imitations.processor import Sgx
from tests.imitations.tsm import Memory, refuse

from conclave.enclave.drivers import Mounted
from conclave.enclave.drivers.gramine import GramineTee
from conclave.errors import PlatformError, UnsupportedPolicy

NOW = datetime.now(UTC).replace(microsecond=0)
PROGRAM = Mounted(bytes(range(32)), b"\5" * 32, 3, 4)
DATA = bytes(range(64))


@pytest.fixture
def device() -> Attestation:
    return Attestation(Sgx(NOW, PROGRAM.bundle_id))


@pytest.fixture
def tee(device: Attestation) -> GramineTee:
    return GramineTee(Memory(device))


@pytest.mark.spec("DRV-7")
@pytest.mark.parametrize(
    ("kind", "told"), [("none", "'none'"), ("epid", "'epid'"), ("", "'unknown'"), ("d\x1b[31m", "'unknown'")]
)
def test_another_attestation_type_is_named(device: Attestation, tee: GramineTee, kind: str, told: str) -> None:
    device.kind = kind
    with pytest.raises(PlatformError, match=f"attestation type is {told}"):
        tee.identity(PROGRAM)


@pytest.mark.spec("DRV-7", "DRV-6")
def test_gramine_without_sgx(device: Attestation, tee: GramineTee) -> None:
    device.kind = "direct"
    with pytest.raises(PlatformError, match="attestation_type: No such file"):
        tee.identity(PROGRAM)
    with pytest.raises(PlatformError, match="user_report_data: No such file"):
        tee.evidence(DATA)


@pytest.mark.spec("DRV-9", "CLM-1")
def test_the_identity_is_the_mounted_bundle(tee: GramineTee) -> None:
    assert tee.identity(PROGRAM).bundle_id == PROGRAM.bundle_id
    assert tee.identity(PROGRAM).sandbox == "none"


@pytest.mark.spec("DRV-1", "DRV-8")
def test_quotes_over_something_else(device: Attestation, tee: GramineTee, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DATA in tee.evidence(DATA).data
    # What two threads without the lock would do.
    monkeypatch.setattr(device, "_take", lambda data: None)
    with pytest.raises(PlatformError, match="other report data"):
        tee.evidence(b"x" * 64)


@pytest.mark.spec("DRV-1", "DRV-6")
def test_quotes_that_are_none(device: Attestation, tee: GramineTee, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tee.evidence(DATA).data
    tdx = good[:4] + b"\x81\0\0\0" + good[8:]
    for raw in (b"", good[:431], b"\4\0" + good[2:], tdx, bytes(500)):
        monkeypatch.setattr(device.processor, "evidence", lambda data, raw=raw: type("Built", (), {"raw": raw})())
        with pytest.raises(PlatformError, match="not an SGX quote of version 3"):
            tee.evidence(DATA)
    monkeypatch.setattr(device.processor, "evidence", lambda data: type("Built", (), {"raw": good + bytes(70_000)})())
    with pytest.raises(PlatformError, match="too many bytes"):
        tee.evidence(DATA)
    device.refuses = True
    with pytest.raises(PlatformError, match="quote: Permission denied"):
        tee.evidence(DATA)


@pytest.mark.spec("DRV-10", "DRV-3")
def test_keys_are_those_of_the_measurement(
    device: Attestation, tee: GramineTee, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="identity comes first"):
        tee.sealing_key("code")
    tee.identity(PROGRAM)
    asked: list[str] = []
    opened = device.open

    def watched(name: str, *, writing: bool) -> Any:
        asked.append(name)
        return opened(name, writing=writing)

    monkeypatch.setattr(device, "open", watched)
    key = tee.sealing_key("code", b"context")
    assert asked == ["keys/_sgx_mrenclave"]
    for policy in ("signer", "product"):
        with pytest.raises(UnsupportedPolicy, match=r"binds keys to the exact program alone.*take one from the KDS"):
            tee.sealing_key(policy)
    # Another measurement, another key.
    device.processor.launch(b"\7" * 32)
    assert tee.sealing_key("code", b"context") != key
    monkeypatch.setattr(device.processor, "sealing_key", lambda name: bytes(15))
    with pytest.raises(PlatformError, match="15 bytes, not 16"):
        tee.sealing_key("code")


def test_refusals_of_the_library_os(device: Attestation, tee: GramineTee, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, *, writing: bool) -> Any:
        raise refuse(errno.EACCES)

    tee.identity(PROGRAM)
    monkeypatch.setattr(device, "open", broken)
    for work in (lambda: tee.identity(PROGRAM), lambda: tee.evidence(DATA), lambda: tee.sealing_key("code")):
        with pytest.raises(PlatformError, match="Permission denied"):
            work()
