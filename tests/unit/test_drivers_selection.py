"""Which TEE there is follows from the machine; fields are where real processors put them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests._evidence import ABSENT, evidence_dir
from tests.imitations import mounts
from tests.imitations.processor import Sgx, Snp, Tdx
from tests.imitations.tsm import Tsm

from conclave.enclave.drivers import fields, find, gramine, nsm, selection, tsm
from conclave.enclave.drivers.files import Folder
from conclave.errors import PlatformError

NOW = datetime.now(UTC).replace(microsecond=0)
MOUNT = pytest.mark.skipif(bool(mounts.why_not()), reason=f"no imitation can be mounted: {mounts.why_not()}")


@contextmanager
def platform_fd(make: Any) -> Iterator[None]:
    """Within the block, the platform's channel is a copy of this: the real number belongs to the test runner.

    The copy is not closed: what was found may have closed it, and the number may be somebody else's by then.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "PLATFORM_FD", os.dup(make.fileno()))
        yield


@pytest.fixture
def no_platform() -> Iterator[None]:
    with open(os.devnull) as nothing, platform_fd(nothing):
        yield


@pytest.fixture
def root(tmp_path: Path, no_platform: None) -> Path:
    for place in (gramine.PLACE, tsm.PLACE, nsm.PLACE):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    return tmp_path


@pytest.mark.spec("DRV-5")
def test_none(root: Path) -> None:
    with pytest.raises(PlatformError) as refused:
        find(root)
    for part in (
        "simulated: no channel of a platform process",
        "sgx: no /dev/attestation",
        "snp and tdx: /sys/kernel/config/tsm/report: No such file",
        "nitro: /dev/nsm: No such file",
    ):
        assert part in str(refused.value)


@pytest.mark.spec("DRV-5")
def test_gramine_without_sgx_is_none(root: Path) -> None:
    (root / gramine.PLACE / "keys").mkdir(parents=True)
    with pytest.raises(PlatformError, match="so Gramine runs without SGX"):
        find(root)


@pytest.mark.spec("DRV-5")
def test_one_by_its_device(root: Path) -> None:
    (root / nsm.PLACE).write_bytes(b"")
    assert find(root).kind == "nitro"


@pytest.mark.spec("DRV-5")
def test_a_platform_channel_is_a_socket(root: Path) -> None:
    ours, theirs = socket.socketpair()
    with platform_fd(theirs):
        found = find(root)
        assert found.kind == "simulated"
        found._channel.detach()  # type: ignore[attr-defined]
        # More than one: nobody may choose.
        (root / nsm.PLACE).write_bytes(b"")
        with pytest.raises(PlatformError, match=r"more than one TEE \(simulated, nitro\)"):
            find(root)
    ours.close()
    theirs.close()


@pytest.mark.spec("DRV-5")
def test_nothing_of_the_hosts_chooses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TEE", "CONCLAVE_TEE", "CONCLAVE_DRIVER", "CONCLAVE_ROOT"):
        monkeypatch.setenv(name, "nitro")
    monkeypatch.setattr("sys.argv", ["bootstrap", "--tee", "nitro"])
    with pytest.raises(PlatformError, match="offers no TEE"):
        find(root)


@pytest.mark.spec("DRV-5")
@pytest.mark.parametrize(
    ("provider", "kind"), [("sev_guest", "snp"), ("tdx_guest", "tdx"), ("arm_cca_guest", None), ("", None)]
)
def test_configfs_by_its_provider(root: Path, monkeypatch: pytest.MonkeyPatch, provider: str, kind: str | None) -> None:
    from tests.imitations.tsm import Memory

    imitation = Tsm(Snp(NOW), provider=provider)
    monkeypatch.setattr("conclave.enclave.drivers.selection.Folder", lambda place: Memory(imitation))
    if kind:
        found = find(root)
        assert found.kind == kind
        assert found.places == [str(root / tsm.PLACE)]
    else:
        with pytest.raises(PlatformError, match=r"provider that is not known|No such device or address"):
            find(root)
    assert not imitation.entries


@MOUNT
@pytest.mark.spec("DRV-5")
def test_mounted_machines(tmp_path: Path, no_platform: None) -> None:
    for n, (make, processor) in enumerate(((mounts.sgx_parts, Sgx(NOW)), (mounts.tsm_parts, Tdx(NOW)))):
        with mounts.mounted(tmp_path / str(n), make, processor) as machine:
            assert find(machine.root).kind == processor.kind
    with mounts.mounted(tmp_path / "both", both) as machine, pytest.raises(PlatformError, match="sgx, snp"):
        find(machine.root)


def both() -> mounts.Parts:
    return mounts.sgx_parts(Sgx(NOW)) | mounts.tsm_parts(Snp(NOW))


@pytest.mark.spec("DRV-6")
def test_files_that_are_really_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    folder.mkdir("entry")
    (tmp_path / "entry" / "word").write_bytes(b"0123456789")
    assert folder.read("entry/word", 10) == b"0123456789"
    with pytest.raises(PlatformError, match="word has more than 9 bytes"):
        folder.read("entry/word", 9)
    folder.write("entry/word", b"abc")
    assert folder.read("entry/word", 10) == b"abc3456789"
    monkeypatch.setattr("os.write", lambda descriptor, data: len(data) - 1)
    with pytest.raises(OSError, match="2 of 3 bytes"):
        folder.write("entry/word", b"abc")
    before = len(os.listdir("/proc/self/fd"))
    for work in (lambda: folder.write("entry/word", b"abc"), lambda: folder.read("entry/word", 1)):
        with pytest.raises((OSError, PlatformError)):
            work()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.spec("DRV-15")
@pytest.mark.parametrize(("version", "body", "size"), [(4, 2, 48 + 584), (5, 2, 54 + 584), (5, 3, 54 + 648)])
def test_every_cut_of_a_quote(version: int, body: int, size: int) -> None:
    raw = Tdx(NOW, version=version, body=body).evidence(bytes(range(64))).raw
    assert fields.TdQuote(raw[:size]).report_data == bytes(range(64))
    for cut in range(size):
        with pytest.raises(PlatformError, match="the quote is"):
            fields.TdQuote(raw[:cut])
    if version == 5:
        with pytest.raises(PlatformError, match="another body"):
            fields.TdQuote(raw[:48] + b"\1\0" + bytes(4) + raw[54:])


# Fields of captured evidence -------------------------------------------------------------


def samples(kind: str) -> list[Path]:
    place = evidence_dir()
    return sorted((place / kind).iterdir()) if place else []


def expected(sample: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sample / "meta.json").read_text())["expected"]
    return found


@pytest.mark.skipif(evidence_dir() is None, reason=ABSENT)
@pytest.mark.spec("DRV-1", "DRV-15", "DRV-16", "DRV-21", "DRV-25")
def test_fields_of_real_evidence() -> None:
    seen = 0
    for sample in samples("sgx"):
        raw = (sample / "quote.bin").read_bytes()
        assert fields.sgx_report_data(raw).hex() == expected(sample)["report_data"], sample.name
        seen += 1
    for sample in samples("tdx"):
        quote, found = fields.TdQuote((sample / "quote.bin").read_bytes()), expected(sample)
        assert quote.report_data.hex() == found["report_data"], sample.name
        assert quote.mrconfigid.hex() == found["measurements"]["mrconfigid"], sample.name
        assert quote.rtmr3.hex() == found["measurements"]["rtmr3"], sample.name
        seen += 1
    for sample in samples("snp"):
        report, found = fields.SnpReport((sample / "report.bin").read_bytes()), expected(sample)
        assert report.report_data.hex() == found["report_data"], sample.name
        assert report.host_data.hex() == found["measurements"]["host_data"], sample.name
        seen += 1
    for sample in samples("nitro"):
        if expected(sample)["verdict"] != "valid":
            continue
        data, found = nsm.user_data((sample / "document.cbor").read_bytes()), expected(sample)
        given = found.get("user_data")
        assert (data.hex() if data is not None else None) == given, sample.name
        seen += 1
    assert seen == 74
