"""The imitations behave as the kernel and Gramine do: what the drivers' tests rest on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.imitations import mounts
from tests.imitations.processor import EMPTY, Sgx, Snp, Tdx, extend

from conclave.enclave.drivers import gramine, tsm

NOW = datetime.now(UTC).replace(microsecond=0)

pytestmark = pytest.mark.skipif(bool(mounts.why_not()), reason=f"no imitation can be mounted: {mounts.why_not()}")


def refuses(code: int, work: Callable[[], Any]) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011
        work()
    assert refused.value.errno == code


def read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = b""
        while more := os.read(descriptor, 1000):
            data += more
        return data
    finally:
        os.close(descriptor)


def write(path: Path, *pieces: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for piece in pieces:
            assert os.write(descriptor, piece) == len(piece)
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def snp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mounts.Machine]:
    with mounts.mounted(tmp_path_factory.mktemp("snp"), mounts.tsm_parts, Snp(NOW)) as machine:
        yield machine


@pytest.fixture
def entry(snp: mounts.Machine) -> Iterator[Path]:
    path = snp.root / tsm.PLACE / "entry"
    path.mkdir()
    yield path
    path.rmdir()


def test_attributes_come_with_the_entry_and_go_with_it(snp: mounts.Machine) -> None:
    report = snp.root / tsm.PLACE
    path = report / "name"
    path.mkdir()
    refuses(errno.EEXIST, path.mkdir)
    names = {"generation", "provider", "inblob", "outblob", "auxblob", "privlevel", "privlevel_floor"}
    assert set(os.listdir(path)) == names
    assert os.listdir(report) == ["name"]
    # Not empty, and yet it goes.
    path.rmdir()
    assert not path.exists()
    refuses(errno.ENOENT, path.rmdir)
    refuses(errno.ENOENT, lambda: read(path / "generation"))


def test_no_provider_no_entry(snp: mounts.Machine) -> None:
    snp.set(tsm.PLACE, "provider", "")
    refuses(errno.ENXIO, (snp.root / tsm.PLACE / "name").mkdir)
    snp.set(tsm.PLACE, "provider", "sev_guest")


def test_a_binary_attribute_is_taken_at_close(entry: Path) -> None:
    assert read(entry / "generation") == b"0\n"
    descriptor = os.open(entry / "inblob", os.O_WRONLY)
    assert os.write(descriptor, b"a" * 32) == 32
    assert os.write(descriptor, b"b" * 32) == 32
    assert read(entry / "generation") == b"0\n"
    refuses(errno.EINVAL, lambda: read(entry / "outblob"))
    os.close(descriptor)
    assert read(entry / "generation") == b"1\n"
    assert b"a" * 32 + b"b" * 32 in read(entry / "outblob")


def test_another_size_is_told_when_the_report_is_read(entry: Path) -> None:
    for size in (1, 63):
        write(entry / "inblob", bytes(size))
        refuses(errno.EINVAL, lambda: read(entry / "outblob"))
    refuses(errno.EFBIG, lambda: write(entry / "inblob", bytes(65)))
    assert read(entry / "generation") == b"2\n"


def test_a_report_is_made_once_for_what_was_written(snp: mounts.Machine, entry: Path) -> None:
    before = snp.get(tsm.PLACE, "reports")
    write(entry / "inblob", b"c" * 64)
    first = read(entry / "outblob")
    assert read(entry / "outblob") == first
    assert read(entry / "auxblob")
    assert snp.get(tsm.PLACE, "reports") == before + 1
    write(entry / "privlevel", b"0")
    read(entry / "outblob")
    assert snp.get(tsm.PLACE, "reports") == before + 2
    assert read(entry / "generation") == b"2\n"


def test_modes_hold_for_root_too(entry: Path) -> None:
    for name in ("inblob", "privlevel"):
        refuses(errno.EACCES, lambda name=name: read(entry / name))  # type: ignore[misc]
    for name in ("outblob", "generation", "provider", "privlevel_floor"):
        refuses(errno.EACCES, lambda name=name: write(entry / name, b"x"))  # type: ignore[misc]


def test_privilege_levels(snp: mounts.Machine, entry: Path) -> None:
    assert read(entry / "privlevel_floor") == b"0\n"
    snp.set(tsm.PLACE, "floor", 2)
    try:
        for level in (b"4", b"1", b"x", b""):
            if level:
                refuses(errno.EINVAL, lambda level=level: write(entry / "privlevel", level))  # type: ignore[misc]
        write(entry / "privlevel", b"2")
    finally:
        snp.set(tsm.PLACE, "floor", 0)


def test_faults_are_those_of_the_report(snp: mounts.Machine, entry: Path) -> None:
    write(entry / "inblob", bytes(64))
    snp.set(tsm.PLACE, "faults", [errno.EBUSY, errno.EIO])
    refuses(errno.EBUSY, lambda: read(entry / "outblob"))
    refuses(errno.EIO, lambda: read(entry / "outblob"))
    assert len(read(entry / "outblob")) == 1184


def test_tdx_has_fewer_attributes_and_registers_that_extend(tmp_path: Path) -> None:
    with mounts.mounted(tmp_path / "tdx", mounts.tsm_parts, Tdx(NOW)) as machine:
        path = machine.root / tsm.PLACE / "name"
        path.mkdir()
        assert set(os.listdir(path)) == {"generation", "provider", "inblob", "outblob"}
        assert read(path / "provider") == b"tdx_guest\n"
        path.rmdir()
        register = machine.root / tsm.REGISTERS / "rtmr3:sha384"
        assert read(register) == EMPTY
        refuses(errno.EINVAL, lambda: write(register, bytes(32)))
        write(register, b"d" * 48)
        write(register, b"e" * 48)
        assert read(register) == extend(extend(EMPTY, b"d" * 48), b"e" * 48)
        refuses(errno.ENOENT, lambda: write(register.with_name("mrconfigid"), bytes(48)))


def test_gramine(tmp_path: Path) -> None:
    with mounts.mounted(tmp_path / "sgx", mounts.sgx_parts, Sgx(NOW, bytes(32))) as machine:
        place = machine.root / gramine.PLACE
        assert read(place / "attestation_type") == b"dcap"
        assert bytes(64) in read(place / "quote")
        # Report data stays, and what is short is filled up.
        write(place / "user_report_data", b"f" * 64)
        assert b"f" * 64 in read(place / "quote")
        assert b"f" * 64 in read(place / "quote")
        write(place / "user_report_data", b"g")
        assert b"g" + bytes(63) in read(place / "quote")
        assert len(read(place / "keys" / "_sgx_mrenclave")) == 16
        # Who holds the file open reads the quote of when it was opened.
        with open(place / "quote", "rb", buffering=0) as file:
            write(place / "user_report_data", b"h" * 64)
            assert b"h" * 64 not in file.read(8192)
        machine.set(gramine.PLACE, "kind", "none")
        refuses(errno.ENOENT, lambda: read(place / "quote"))
        machine.set(gramine.PLACE, "kind", "direct")
        assert os.listdir(place) == ["keys"]
