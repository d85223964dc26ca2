"""What persistent state costs: a durable commit, many of them, a restart, and detection.

`commit`: one small change of the map, sealed by the log, in a record, appended by the host's file
store and synchronised, at several numbers of keys; against a bare append of as many bytes with
fdatasync, SQLite (WAL, synchronous FULL) updating one row, and sealing the whole map anew
into one file, as R3's Conclave did. One after the other without a pause, in turns of 50: whatever
comes after a pause is slower, a bare append too. `group`: transactions of one change each, 64 in a record, while
the store writes those before. `restart`: a log of a million keys, as a snapshot and records
after it, read from the disk and opened. `detection`: what a call costs the enclave with contexts,
against the same service without: they are neither checked nor made.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median

from _common import emit, middle
from bench_steps import BATCH, Calls

from conclave._crypto import AeadKey, Secret, random_bytes
from conclave._framing import Kind
from conclave.enclave._state import State
from conclave.host.states import What
from conclave.host.states.files import FileStates
from conclave.persistence.log import Log

SIZES = (1_000, 160_000, 1_000_000)
ROUNDS = 3
CHANGES = 8192
TURNS, TURN, WHOLE = 60, 50, 5
GROUPS, GROUP = 1600, 64
BUNDLE = bytes(32)
# A name that costs nothing to look up.
COMMIT = Kind.COMMIT


def _key(bundle: bytes, level: int) -> Secret:
    return Secret(bytes(32))


def _name(number: int) -> str:
    return f"key-{number:09d}"


def _value() -> bytes:
    return random_bytes(32)


def _changes(keys: int) -> Iterator[tuple[str, bytes]]:
    """What is changed, without end: made beforehand, since it is neither ours nor theirs."""
    names = [_name(n * 7919 % keys) for n in range(CHANGES)]
    # Twice, so that each time a key has another value than the last time.
    return cycle([(name, _value()) for name in names * 2])


class Committer:
    """An enclave's state over a log of its own, and the host's store, in one process."""

    def __init__(self, place: Path, keys: int) -> None:
        self.log = Log.begin(key=_key, bundle_id=BUNDLE, level=0)
        self.log.table.apply((_name(n), _value()) for n in range(keys))
        self.items: list[tuple[int, bytes]] = []
        self.state = State(self.log, self._take, full=lambda: True)
        self.store = FileStates(place)
        self._changes = _changes(keys)

    def _take(self, kind: int, request: int, *payload: bytes) -> None:
        if kind == COMMIT:
            self.items.append((self.log.version, payload[1]))

    async def open(self) -> None:
        async for _ in self.store.read():
            pass
        await self.write()

    async def write(self) -> None:
        """Make what is committed durable."""
        items, self.items = self.items, []
        if items:
            await self.store.append(items)

    def change(self) -> None:
        """One transaction that changes one key."""
        key, value = next(self._changes)
        work = self.state.begin()
        work.transaction.set(key, value)
        self.state.commit(work, [], 0)
        self.state.end(work)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e6


class Raw:
    """A bare file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT)

    def append(self, size: int) -> None:
        """So many bytes, durable."""
        os.write(self._file, bytes(size))
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


class Sqlite:
    """A table of as many keys."""

    def __init__(self, path: Path, keys: int) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("pragma journal_mode=wal")
        self._database.execute("pragma synchronous=full")
        self._database.execute("create table map (key text primary key, value blob) without rowid")
        self._database.execute("begin")
        self._database.executemany("insert into map values (?, ?)", ((_name(n), _value()) for n in range(keys)))
        self._database.execute("commit")
        self._changes = _changes(keys)

    def change(self) -> None:
        """One row."""
        key, value = next(self._changes)
        self._database.execute("update map set value = ? where key = ?", (value, key))

    def close(self) -> None:
        self._database.close()


class Whole:
    """The map sealed as one, at each change."""

    def __init__(self, path: Path, log: Log) -> None:
        self._path, self._log = path, log
        self._key = AeadKey(Secret.random())
        self._count = 0

    def change(self) -> None:
        """All keys, into one file that replaces the last."""
        import msgspec

        plain = msgspec.msgpack.encode(self._log.table.current)
        self._count += 1
        sealed = self._key.encrypt(self._count.to_bytes(12, "big"), plain, b"")
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(file, sealed)
        os.fdatasync(file)
        os.close(file)


async def commits(keys: int) -> None:
    """One after the other."""
    with tempfile.TemporaryDirectory(prefix="bench-state-", dir=Path.cwd()) as name:
        place = Path(name)
        ours = Committer(place / "ours", keys)
        await ours.open()
        raw, rows, whole = Raw(place / "raw"), Sqlite(place / "sqlite", keys), Whole(place / "whole", ours.log)
        gc.collect()
        gc.freeze()
        found: dict[str, list[float]] = {"ours": [], "raw": [], "sqlite": [], "whole": []}
        ours.change()
        ours.state.flush()
        size = len(ours.items[0][1])
        with closing(raw), closing(rows):
            # In turn, each compared with its neighbours, since a disk and a machine have their moods.
            for _ in range(TURNS):
                times = []
                for _ in range(TURN):
                    began = time.perf_counter()
                    ours.state.hold()
                    ours.change()
                    ours.state.flush()
                    await ours.write()
                    times.append((time.perf_counter() - began) * 1e6)
                found["ours"].append(median(times))
                found["raw"].append(median(_timed(lambda: raw.append(size)) for _ in range(TURN)))
                found["sqlite"].append(median(_timed(rows.change) for _ in range(TURN)))
            # It takes long: a few times, after all the others.
            sealing = [_timed(whole.change) for _ in range(WHOLE)]
            found["whole"] = [median(sealing)] * TURNS
        await ours.store.close()
        gc.unfreeze()
        emit(
            f"state_commit_{keys}",
            ours={"us": middle(found["ours"]), "record_bytes": size},
            theirs={f"{kind}_us": middle(found[kind]) for kind in ("raw", "sqlite", "whole")},
            ratios={
                f"over_{kind}": middle(a / b for a, b in zip(found["ours"], found[kind], strict=True))
                for kind in ("raw", "sqlite", "whole")
            },
            rounds=TURNS,
        )


async def groups() -> None:
    """Records of 64 transactions, one being written while the next is made."""
    with tempfile.TemporaryDirectory(prefix="bench-state-", dir=Path.cwd()) as name:
        ours = Committer(Path(name) / "ours", 160_000)
        await ours.open()
        rows = Sqlite(Path(name) / "sqlite", 160_000)
        found: dict[str, list[float]] = {"ours": [], "enclave": [], "sqlite": []}
        gc.collect()
        gc.freeze()
        for _ in range(ROUNDS):
            began, busy = time.perf_counter(), 0.0
            writing: asyncio.Task[None] | None = None
            for _ in range(GROUPS):
                start = time.thread_time()
                ours.state.hold()
                for _ in range(GROUP):
                    ours.change()
                ours.state.flush()
                busy += time.thread_time() - start
                if writing is None or writing.done():
                    writing = asyncio.create_task(ours.write())
                await asyncio.sleep(0)
            if writing is not None:
                await writing
            await ours.write()
            found["ours"].append(GROUPS * GROUP / (time.perf_counter() - began))
            found["enclave"].append(busy / (GROUPS * GROUP) * 1e6)
            began = time.perf_counter()
            for _ in range(20):
                rows._database.execute("begin")
                for _ in range(GROUP):
                    rows.change()
                rows._database.execute("commit")
            found["sqlite"].append(20 * GROUP / (time.perf_counter() - began))
        rows.close()
        await ours.store.close()
        gc.unfreeze()
        emit(
            "state_group",
            ours={"changes_per_s": middle(found["ours"]), "us_per_change": middle(found["enclave"])},
            theirs={"sqlite_per_s": middle(found["sqlite"])},
            ratios={"over_sqlite": middle(a / b for a, b in zip(found["ours"], found["sqlite"], strict=True))},
            rounds=ROUNDS,
        )


async def restart(keys: int) -> None:
    """From the disk to a log that can go on."""
    with tempfile.TemporaryDirectory(prefix="bench-state-", dir=Path.cwd()) as name:
        ours = Committer(Path(name) / "ours", keys)
        await ours.open()
        from conclave.host.states import Snapshot

        version, pieces = ours.log.version, list(ours.log.snapshot())
        snapshot = Snapshot(pieces[0][8:24], version)
        for index, chunk in enumerate(pieces[:-1], 1):
            await ours.store.put_chunk(snapshot, index, chunk)
        await ours.store.complete(snapshot, pieces[-1])
        for _ in range(100):
            ours.state.hold()
            for _ in range(GROUP):
                ours.change()
            ours.state.flush()
        await ours.write()
        await ours.store.close()
        size = sum(map(len, pieces))
        del ours, pieces
        found = []
        for _ in range(ROUNDS):
            gc.collect()
            began = time.perf_counter()
            store = FileStates(Path(name) / "ours")
            stored = [(int(what), bytes(data)) async for what, data in store.read()]
            log = Log.restore(_entries(stored), key=_key, bundle_id=BUNDLE, level=0)
            found.append(time.perf_counter() - began)
            assert len(log.table) == keys
            await store.close()
            del log, stored
        emit(
            f"state_restart_{keys}",
            ours={"s": middle(found), "snapshot_mib": round(size / 2**20)},
            theirs={},
            ratios={},
            rounds=ROUNDS,
        )


def _entries(stored: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """As the host gives it; nothing was posted, so an item is an entry."""
    yield from stored
    yield int(What.END), b""


class Plain(State):
    """A state whose contexts are neither made nor looked at."""

    def check(self, context: bytes, identity: bytes) -> int:
        """Whatever it is."""
        return 0

    def context(self, identity: bytes) -> bytes:
        """Always the same."""
        self._same = getattr(self, "_same", b"") or self.log.context(identity)
        return self._same


def _service(kind: type[State]) -> Calls:
    log = Log.begin(key=_key, bundle_id=BUNDLE, level=0)
    return Calls(1024, state=kind(log, lambda *frame: None, full=lambda: True))


async def detection() -> None:
    """Calls of 1 KiB, 32 in a record."""
    found: dict[str, list[float]] = {"on": [], "off": [], "stateless": []}
    makers = {"on": partial(_service, State), "off": partial(_service, Plain), "stateless": partial(Calls, 1024)}
    for _ in range(ROUNDS * 3):
        services = {name: make() for name, make in makers.items()}
        batches = {name: calls.batches() for name, calls in services.items()}
        times: dict[str, list[float]] = {name: [] for name in makers}
        for turn in range(len(batches["on"])):
            for name, calls in services.items():
                began = time.process_time()
                calls.run([batches[name][turn]])
                times[name].append((time.process_time() - began) / BATCH * 1e6)
        for name, some in times.items():
            found[name].append(median(some))
    emit(
        "state_detection",
        ours={f"{name}_us": middle(found[name]) for name in found},
        theirs={},
        ratios={
            "on_over_off": middle(a / b for a, b in zip(found["on"], found["off"], strict=True)),
            "state_over_stateless": middle(a / b for a, b in zip(found["on"], found["stateless"], strict=True)),
        },
        rounds=ROUNDS * 3,
    )


CLIENTS = 4_000


def _growth(state: bool) -> float:
    """KiB of each client that made one call, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:

        def fresh() -> State | None:
            if not state:
                return None
            log = Log.begin(key=_key, bundle_id=BUNDLE, level=0)
            return State(log, lambda *frame: None, full=lambda: True)

        async def grow() -> float:
            tracemalloc.start()
            # What is made once is no client's.
            Calls(32, fresh(), channels=1)
            before = _held()
            many = Calls(32, fresh(), channels=CLIENTS)
            many.forget_clients()
            return (_held() - before) / CLIENTS

        os.write(writer, str(asyncio.run(grow())).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        value = float(said.read())
    os.waitpid(child, 0)
    return value


def _held() -> float:
    """Of Python's objects; expanded keys, of which an enclave has 4,096 at most, come on top."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0] / 1024


def memory() -> None:
    """What a client takes: its session and its channel, and of those with state its rows and its contexts."""
    found = {kept: [_growth(kept) for _ in range(ROUNDS)] for kept in (True, False)}
    emit(
        "state_memory",
        ours={"kib_per_client": middle(found[True])},
        theirs={"stateless_kib_per_client": middle(found[False])},
        ratios={"state_over_stateless": middle(a / b for a, b in zip(found[True], found[False], strict=True))},
        rounds=ROUNDS,
    )


async def main() -> None:
    """Measure and report."""
    await detection()
    for keys in SIZES:
        await commits(keys)
    await groups()
    await restart(SIZES[-1])


if __name__ == "__main__":
    memory()
    asyncio.run(main())
