"""State in files: what a write that was cut off leaves, what damage is, and what is synchronised when."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from conclave.errors import StoreDamaged, StoreFull, StoreUnavailable
from conclave.host.states import Item, Snapshot, What, segments
from conclave.host.states.files import FileStates
from conclave.host.states.items import HEADER, MAGIC, item_at, pack

ITEMS: list[Item] = [(version, bytes([version]) * (50 + version)) for version in range(12)]


def run(directory: Path, work: Callable[[FileStates], Awaitable[None]]) -> None:
    async def main() -> None:
        store = FileStates(directory)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(main())


def written(directory: Path, *batches: list[Item]) -> Path:
    """A log of these writes, as a host that ended leaves it."""

    async def work(store: FileStates) -> None:
        for batch in batches:
            await store.append(batch)

    run(directory, work)
    (log,) = directory.glob("log-*")
    return log


def found(directory: Path) -> list[bytes]:
    data: list[bytes] = []

    async def work(store: FileStates) -> None:
        data.extend([content async for _, content in store.read()])

    run(directory, work)
    return data


def contents(items: list[Item]) -> list[bytes]:
    return [data for _, data in items]


@pytest.mark.spec("STORE-23")
@pytest.mark.parametrize("zeros", [0, 5000])
def test_a_write_that_was_cut_off_at_any_byte(tmp_path: Path, zeros: int) -> None:
    """Whole items of it may stay, nothing else does, and the log goes on after them."""
    log = written(tmp_path / "state", ITEMS[:2], ITEMS[2:5])
    whole = log.read_bytes()
    first = len(pack(ITEMS[:2]))
    ends = [first + len(pack(ITEMS[2:n])) if n > 2 else first for n in range(2, 6)]
    for size in range(first, len(whole) + 1, 7):
        log.write_bytes(whole[:size] + bytes(zeros))
        stays = 2 + sum(size >= end for end in ends[1:])

        async def work(store: FileStates, stays: int = stays) -> None:
            assert [content async for _, content in store.read()] == contents(ITEMS[:stays])
            await store.append([(stays, b"another")])

        run(tmp_path / "state", work)
        assert found(tmp_path / "state") == [*contents(ITEMS[:stays]), b"another"]


@pytest.mark.spec("STORE-23")
def test_a_write_whose_later_sectors_alone_reached_the_disk(tmp_path: Path) -> None:
    log = written(tmp_path / "state", ITEMS[:2], ITEMS[2:6])
    whole = bytearray(log.read_bytes())
    first = len(pack(ITEMS[:2]))
    whole[first : first + 120] = bytes(120)
    log.write_bytes(whole)
    assert found(tmp_path / "state") == contents(ITEMS[:2])
    # Who only looks changes nothing.
    assert log.read_bytes() == bytes(whole)

    async def work(store: FileStates) -> None:
        await store.append(ITEMS[2:3])
        await store.append(ITEMS[3:4])
        # As a host that is killed now leaves it.
        shutil.copytree(tmp_path / "state", tmp_path / "killed")

    run(tmp_path / "state", work)
    assert found(tmp_path / "killed") == found(tmp_path / "state") == contents(ITEMS[:4])
    assert log.stat().st_size == first + len(pack(ITEMS[2:3])) + len(pack(ITEMS[3:4]))


@pytest.mark.spec("STORE-23", "STORE-20")
def test_damage_before_a_later_write_is_never_cut(tmp_path: Path) -> None:
    """Any byte of what a later write proves to have been acknowledged."""
    log = written(tmp_path / "state", ITEMS[:2], ITEMS[2:5], ITEMS[5:6])
    whole = log.read_bytes()
    for at in range(0, len(pack(ITEMS[:2])) + len(pack(ITEMS[2:5])), 5):
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        log.write_bytes(damaged)
        with pytest.raises(StoreDamaged, match="no whole item of version"):
            found(tmp_path / "state")
        with pytest.raises(StoreDamaged):
            run(tmp_path / "state", lambda store: store.append([(6, b"six")]))
        assert log.read_bytes() == bytes(damaged)


@pytest.mark.spec("STORE-20")
@pytest.mark.parametrize("how", ["gone", "cut", "flipped", "another's"])
def test_damage_of_an_earlier_file(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 300)
    place = tmp_path / "state"
    run(place, lambda store: _each(store, ITEMS))
    files = sorted(place.glob("log-*"))
    assert len(files) > 3
    assert found(place) == contents(ITEMS)
    victim = files[1]
    data = victim.read_bytes()
    if how == "gone":
        victim.unlink()
    else:
        changed = {"cut": data[:-1], "flipped": data[:-1] + b"x", "another's": files[0].read_bytes()}[how]
        victim.write_bytes(changed)
    with pytest.raises(StoreDamaged, match=f"no whole item of version {int(victim.name[4:])}|no whole item of version"):
        found(place)
    victim.write_bytes(data)
    assert found(place) == contents(ITEMS)


async def _each(store: FileStates, items: list[Item]) -> None:
    for item in items:
        await store.append([item])


async def _snapshot(store: FileStates, version: int, *chunks: bytes) -> None:
    snapshot = Snapshot(bytes([version]) * 16, version)
    for index, chunk in enumerate(chunks, 1):
        await store.put_chunk(snapshot, index, chunk)
    await store.complete(snapshot, b"manifest %d" % version)


@pytest.mark.spec("STORE-20")
def test_damage_of_a_snapshot_at_any_byte(tmp_path: Path) -> None:
    place = tmp_path / "state"

    async def work(store: FileStates) -> None:
        await _each(store, ITEMS[:3])
        await _snapshot(store, 2, b"one", b"two" * 20)
        await store.forget()

    run(place, work)
    (file,) = place.glob("snapshot-*")
    whole = file.read_bytes()
    assert found(place) == [b"manifest 2", b"one", b"two" * 20]
    for at in range(0, len(whole), 3):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            file.write_bytes(damaged)
            # A part of the offset in the last bytes decides nothing if the manifest is found all the same.
            with pytest.raises(StoreDamaged):
                found(place)
            assert file.read_bytes() == damaged


@pytest.mark.spec("STORE-20")
def test_a_log_that_ends_before_its_snapshot(tmp_path: Path) -> None:
    place = tmp_path / "state"

    async def work(store: FileStates) -> None:
        await _each(store, ITEMS[:3])
        await _snapshot(store, 2, b"one")

    run(place, work)
    for log in place.glob("log-*"):
        log.unlink()
    with pytest.raises(StoreDamaged, match="ends before version 2"):
        found(place)


@pytest.mark.spec("STORE-21", "STORE-22")
def test_files_that_a_snapshot_stands_for_are_deleted(tmp_path: Path) -> None:
    place = tmp_path / "state"

    async def work(store: FileStates) -> None:
        await _each(store, ITEMS[:4])
        await _snapshot(store, 3, b"one")
        await _each(store, ITEMS[4:6])
        assert len(list(place.glob("log-*"))) == 2
        await store.forget()
        assert [log.name for log in place.glob("log-*")] == [f"log-{4:020d}"]
        await _snapshot(store, 5, b"two")
        await store.forget()
        assert len(list(place.glob("snapshot-*"))) == 1
        # The newest file of the log says where it ends.
        assert [log.name for log in place.glob("log-*")] == [f"log-{4:020d}"]
        await _each(store, ITEMS[6:7])

    run(place, work)
    (place / "new-snapshot").write_bytes(b"half")
    assert found(place) == [b"manifest 5", b"two", *contents(ITEMS[6:7])]
    run(place, FileStates.forget)
    assert not (place / "new-snapshot").exists()


class Calls:
    """System calls of the log, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.fail: dict[str, list[OSError]] = {}
        for name in ("pwrite", "fdatasync", "fsync", "posix_fallocate", "ftruncate"):
            monkeypatch.setattr(segments.os, name, self._wrapped(name))

    def _wrapped(self, name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(file: int, *arguments: object) -> object:
            self.made.append(f"{name} {Path(os.readlink(f'/proc/self/fd/{file}')).name}")
            if self.fail.get(name):
                error = self.fail[name].pop()
                if name == "pwrite":
                    # Half of it is there.
                    data, at = arguments
                    real(file, bytes(data)[: len(bytes(data)) // 2], at)  # type: ignore[call-overload]
                raise error
            return real(file, *arguments)

        return call


@pytest.mark.spec("STORE-22", "STORE-18")
def test_one_write_and_one_synchronisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    log = f"log-{0:020d}"

    async def work(store: FileStates) -> None:
        await store.append(ITEMS[:1])
        # The name of the new file is durable too.
        assert "fsync state" in calls.made
        assert calls.made[-2:] == [f"pwrite {log}", f"fdatasync {log}"]
        calls.made.clear()
        await store.append(ITEMS[1:9])
        assert calls.made == [f"pwrite {log}", f"fdatasync {log}"]
        assert (tmp_path / "state" / log).stat().st_size == segments.STEP_BYTES

    run(tmp_path / "state", work)
    # Nothing but items is left of it when it is closed.
    assert (tmp_path / "state" / log).stat().st_size == len(pack(ITEMS[:1])) + len(pack(ITEMS[1:9]))


@pytest.mark.spec("STORE-22")
@pytest.mark.parametrize("killed", [False, True])
def test_a_file_whose_name_is_not_durable_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Neither by the handle that began it, nor by one that finds it after a kill."""
    real, failing, made = segments.sync_directory, [False], list[str]()
    write = segments.os.pwrite

    def synchronise(directory: Path) -> None:
        if failing[0]:
            raise OSError(errno.EIO, "no")
        made.append("names")
        real(directory)

    def written(*arguments: Any) -> int:
        made.append("data")
        return write(*arguments)

    monkeypatch.setattr(segments, "sync_directory", synchronise)
    monkeypatch.setattr(segments.os, "pwrite", written)
    second = tmp_path / "second"

    async def work(store: FileStates) -> None:
        await store.append(ITEMS[:1])
        await store.put_chunk(Snapshot(b"s" * 16, 0), 1, b"chunk")
        failing[0] = True
        with pytest.raises(StoreUnavailable):
            await store.append(ITEMS[1:2])
        failing[0] = False
        made.clear()
        if killed:
            shutil.copytree(tmp_path / "state", second)
        else:
            await store.append(ITEMS[1:2])

    run(tmp_path / "state", work)
    if killed:
        made.clear()
        run(second, lambda store: store.append(ITEMS[1:2]))
    assert made[:2] == ["names", "data"]


@pytest.mark.spec("STORE-24")
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fdatasync"])
def test_a_write_that_fails_is_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Shorter items in its place leave nothing of it to be read; and the same ones are written anew."""
    monkeypatch.setattr(segments, "STEP_BYTES", 64)
    calls = Calls(monkeypatch)
    large: list[Item] = [(1, b"L" * 3000), (2, b"M" * 3000)]
    for again, after in ((large, large), ([(1, b"s")], [(1, b"s")])):
        place, killed = tmp_path / str(len(again)), tmp_path / f"killed-{len(again)}"

        async def work(
            store: FileStates, again: list[Item] = again, place: Path = place, killed: Path = killed
        ) -> None:
            await store.append(ITEMS[:1])
            full = OSError(errno.ENOSPC, "no space")
            for _ in range(2):
                # Room is asked for twice: for more than is needed, and for that.
                calls.fail = {call: [full] * (2 if call == "posix_fallocate" else 1)}
                with pytest.raises(StoreFull):
                    await store.append(large)
            calls.made.clear()
            await store.append(again)
            # What the failed synchronisation may have dropped is written again.
            assert any(made.startswith("pwrite") for made in calls.made)
            await store.append([(again[-1][0] + 1, b"next")])
            # As a host that is killed now leaves it.
            shutil.copytree(place, killed)

        run(place, work)
        assert found(killed) == found(place) == [*contents([ITEMS[0], *after]), b"next"]


@pytest.mark.spec("STORE-26")
def test_one_handle_at_a_time(tmp_path: Path) -> None:
    async def work(store: FileStates) -> None:
        await store.append(ITEMS[:1])
        other = FileStates(tmp_path / "state")
        with pytest.raises(StoreUnavailable, match="another host uses this store"):
            await other.append(ITEMS[1:2])
        with pytest.raises(StoreUnavailable):
            _ = [piece async for piece in other.read()]
        await other.close()
        await store.append(ITEMS[1:2])

    run(tmp_path / "state", work)
    assert found(tmp_path / "state") == contents(ITEMS[:2])


def test_a_closed_store_refuses(tmp_path: Path) -> None:
    async def main() -> None:
        store = FileStates(tmp_path / "state")
        await store.append(ITEMS[:1])
        await store.close()
        for work in (store.append(ITEMS[1:2]), store.forget()):
            with pytest.raises(StoreUnavailable, match="closed"):
                await work

    asyncio.run(main())


def test_the_layout_of_an_item() -> None:
    """As the table of the specification says it."""
    data = pack([(7, b"seven"), (8, b"eight")])
    assert data[:4] == MAGIC == b"CSI1"
    assert (int.from_bytes(data[4:8], "big"), HEADER.size) == (5, 28)
    assert [int.from_bytes(data[at : at + 8], "big") for at in (12, 20, 45, 53)] == [7, 7, 8, 7]
    assert data[28:33] == b"seven"
    second = item_at(data, 33)
    assert second is not None
    assert (second.number, second.batch, second.data, second.end) == (8, 7, b"eight", len(data))
    for at in range(len(data) - 33):
        flipped = bytearray(data)
        flipped[33 + at] ^= 1
        assert item_at(bytes(flipped), 33) is None


def test_what_is_given_while_a_snapshot_is_read(tmp_path: Path) -> None:
    """A snapshot file has its manifest last, and gives it first."""

    async def work(store: FileStates) -> None:
        await _each(store, ITEMS[:2])
        await _snapshot(store, 1, b"a", b"b", b"c")
        pieces = [piece async for piece in store.read()]
        assert pieces == [
            (What.MANIFEST, b"manifest 1"),
            (What.CHUNK, b"a"),
            (What.CHUNK, b"b"),
            (What.CHUNK, b"c"),
        ]

    run(tmp_path / "state", work)
