"""Documents on disk: whole or not there, whatever happens to the files."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests._vendors import NOW, Operator, Platform, amd_platform, simulated

from conclave import _codec
from conclave.errors import PlatformError
from conclave.host.endorsements import amd, cache
from conclave.host.endorsements.cache import Cache
from conclave.host.endorsements.documents import Document, FamilyChain, read_document
from conclave.host.endorsements.schedule import Trouble
from conclave.testing import VendorServer


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def place(tmp_path: Path, warnings: list[str]) -> Cache:
    return Cache(tmp_path / "cache", warn=warnings.append)


@pytest.fixture(scope="module")
def document() -> Document:
    body = amd_platform().certificate
    return read_document(amd.describe(body), body, b"", fetched=NOW)


@pytest.fixture(scope="module")
def chain() -> Document:
    return read_document(FamilyChain("vcek", "Milan"), amd_platform().chain.encode(), b"", fetched=NOW)


def only_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").glob("*.document")
    return path


@pytest.mark.spec("END-15")
def test_what_is_stored_is_there_after_a_restart(
    place: Cache, tmp_path: Path, document: Document, chain: Document, warnings: list[str]
) -> None:
    assert place.load(document.wanted) is None
    place.store(document, chain)
    again = Cache(tmp_path / "cache", warn=warnings.append)
    assert again.load(document.wanted) == document
    assert list(again.documents()) == [chain, document] or list(again.documents()) == [document, chain]
    assert not warnings
    assert oct((tmp_path / "cache").stat().st_mode)[-3:] == "700"
    assert oct(only_file_of(tmp_path, document).stat().st_mode)[-3:] == "600"


def only_file_of(tmp_path: Path, document: Document) -> Path:
    return tmp_path / "cache" / f"{document.wanted.name}.document"


@pytest.mark.spec("END-15")
def test_every_cut_and_every_flip_is_noticed(
    place: Cache, tmp_path: Path, document: Document, warnings: list[str]
) -> None:
    place.store(document)
    path = only_file(tmp_path)
    good = path.read_bytes()
    damaged = [good[:size] for size in range(0, len(good), 11)] + [good + b"\0", good[1:]]
    damaged += [good[:at] + bytes((good[at] ^ 1 << at % 8,)) + good[at + 1 :] for at in range(0, len(good), 13)]
    for number, data in enumerate(damaged, 1):
        path.write_bytes(data)
        assert place.load(document.wanted) is None
        assert len(warnings) == number
        assert not path.exists()
    assert set(warnings) == {f"{path.name} in the cache of endorsements is damaged; it is removed"}
    path.write_bytes(good)
    assert place.load(document.wanted) == document


@pytest.mark.spec("END-15")
def test_files_that_are_not_ours(
    place: Cache, tmp_path: Path, document: Document, chain: Document, warnings: list[str]
) -> None:
    """A right digest alone is not enough: version, name and shape count too."""
    place.store(document)
    path = only_file(tmp_path)

    def write(file: str, /, **changes: object) -> None:
        fields = {
            "version": 1,
            "name": document.wanted.name,
            "fetched": int(NOW.timestamp()),
            "body": document.body,
            "chain": b"",
        } | changes
        data = _codec.encode(fields)
        (tmp_path / "cache" / file).write_bytes(hashlib.sha256(data).digest() + data)

    write(path.name)
    assert place.load(document.wanted) == document
    for changes in (
        {"version": 2},
        {"name": chain.wanted.name},
        {"body": amd_platform("Genoa").certificate},
        {"body": b""},
        {"chain": b"x"},
        {"fetched": 10**18},
    ):
        write(path.name, **changes)
        assert place.load(document.wanted) is None
    write("nonsense.document", name="nonsense")
    write(path.name)
    assert list(place.documents()) == [document]
    assert len(warnings) == 7
    # Neither waited for nor followed.
    os.mkfifo(only_file_of(tmp_path, chain))
    assert place.load(chain.wanted) is None
    only_file_of(tmp_path, chain).unlink()
    only_file_of(tmp_path, chain).symlink_to(path)
    assert place.load(chain.wanted) is None
    assert len(warnings) == 9


@pytest.mark.spec("END-12", "END-15")
def test_trouble_is_remembered(place: Cache, tmp_path: Path, warnings: list[str]) -> None:
    trouble = Trouble(3, NOW + timedelta(seconds=1.5), True, "vendor-missing")
    assert place.trouble("amd") is None
    place.store_trouble("amd", trouble)
    again = Cache(tmp_path / "cache", warn=warnings.append)
    assert again.trouble("amd") == trouble
    path = tmp_path / "cache" / "amd.trouble"
    good = path.read_bytes()
    for data in (b"", good[:-1], good[:40] + b"x" + good[41:]):
        path.write_bytes(data)
        assert again.trouble("amd") is None
    again.store_trouble("amd", trouble)
    again.store_trouble("amd", None)
    again.store_trouble("amd", None)
    assert again.trouble("amd") is None
    path.write_bytes(hashlib.sha256(b"\x80").digest() + b"\x80")
    assert again.trouble("amd") is None
    assert len(warnings) == 4


@pytest.mark.spec("END-15")
def test_what_an_interrupted_writer_left_is_swept(place: Cache, tmp_path: Path, warnings: list[str]) -> None:
    old, new = tmp_path / "cache" / ".new-old", tmp_path / "cache" / ".new-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Cache(tmp_path / "cache", warn=warnings.append)
    assert not old.exists()
    assert new.exists()


@pytest.mark.spec("END-15", "END-27")
def test_the_cache_is_bounded(place: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_DOCUMENTS", 3)
    made = []
    for number in range(5):
        body = amd_platform(chip=bytes((number + 1,)) * 64).certificate
        made.append(read_document(amd.describe(body), body, b"", fetched=NOW))
        place.store(made[-1])
        os.utime(only_file_of(tmp_path, made[-1]), (number, number))
    assert [d for d in made if place.load(d.wanted)] == made[2:]
    for number in range(5):
        place.store_trouble(f"t{number}", Trouble(1, NOW, False, "vendor-slow"))
        os.utime(tmp_path / "cache" / f"t{number}.trouble", (number, number))
    assert [n for n in range(5) if place.trouble(f"t{n}")] == [2, 3, 4]


def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match="cannot use") as caught:
        Cache(tmp_path / "file", warn=print)
    assert caught.value.code == "cache-unusable"


# Full disk, races, sudden death -------------------------------------------------------------


@contextmanager
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for next to nothing; without the right to mount one, files that must not grow."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield place
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.spec("END-16")
def test_a_full_disk_changes_nothing(tmp_path: Path, document: Document) -> None:
    with full_disk(tmp_path) as place:
        small = Cache(place / "cache", warn=print)
        (place / "cache" / f"{document.wanted.name}.document").write_bytes(b"")
        many = [document] * 20
        with pytest.raises(OSError, match=r"No space|File too large"):
            small.store(*many)
        assert not list((place / "cache").glob(".new-*"))
        assert (place / "cache" / f"{document.wanted.name}.document").read_bytes() == b""


@pytest.mark.spec("END-16")
def test_a_full_disk_does_not_stop_stapling(tmp_path: Path) -> None:
    platform: Platform = simulated(tmp_path / "machine")
    with VendorServer() as vendors, full_disk(tmp_path) as place:
        vendors.publish_intel(platform.endorsements)
        operator = Operator(vendors, place / "cache")
        if os.path.ismount(place):
            (place / "filler").write_bytes(bytes(4096))
        given = operator.ask(platform)
        assert any("cannot write the cache" in e["text"] for e in operator.events)
        # From memory.
        assert operator.ask(platform) == given
        assert len(vendors.requests) == 4


@pytest.mark.spec("END-15")
def test_writers_and_readers_at_the_same_time(
    place: Cache, tmp_path: Path, document: Document, warnings: list[str]
) -> None:
    other = replace(document, fetched=NOW + timedelta(days=1))
    place.store(document)
    stop = threading.Event()

    def write(each: Document) -> None:
        own = Cache(tmp_path / "cache", warn=warnings.append)
        while not stop.is_set():
            own.store(each)

    writers = [threading.Thread(target=write, args=(d,)) for d in (document, other)]
    for writer in writers:
        writer.start()
    seen = {place.load(document.wanted) for _ in range(300)}
    stop.set()
    for writer in writers:
        writer.join()
    assert seen <= {document, other}
    assert not warnings


def _write_for_ever(place: Path, document: Document) -> None:
    own = Cache(place, warn=print)
    while True:
        own.store(document)


@pytest.mark.spec("END-15")
def test_a_writer_that_is_killed(place: Cache, tmp_path: Path, document: Document, warnings: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    for delay in range(8):
        writer = context.Process(target=_write_for_ever, args=(tmp_path / "cache", document))
        writer.start()
        time.sleep(0.004 * delay + 0.01)
        writer.kill()
        writer.join()
        assert place.load(document.wanted) in (document, None)
    assert place.load(document.wanted) == document
    assert not warnings


@pytest.mark.spec("END-8")
def test_one_at_a_time_even_in_two_caches(place: Cache, tmp_path: Path) -> None:
    other = Cache(tmp_path / "cache", warn=print)
    inside: list[str] = []

    async def enter(which: Cache, name: str) -> None:
        async with which.exclusive("amd-vcek-milan-chain"):
            inside.append(f"{name} in")
            await asyncio.sleep(0.03)
            inside.append(f"{name} out")

    async def main() -> None:
        await asyncio.gather(enter(place, "a"), enter(other, "b"))

    asyncio.run(main())
    assert inside in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])


@pytest.mark.spec("END-8")
def test_a_lock_that_cannot_be_had_does_not_stop_anybody(
    place: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with place.exclusive("x"), Cache(tmp_path / "cache", warn=print).exclusive("x"):
            pass
        (tmp_path / "cache" / "locks" / "y").mkdir()
        async with place.exclusive("y"):
            pass

    monkeypatch.setattr(cache, "_LOCK_SECONDS", 0.05)
    asyncio.run(main())
