"""The journal: commits in order, durable before what follows them; a boot is given all of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests._posts import BOXES, frame, mail
from tests._posts import Failing as FailingBlobs
from tests._state import LOG, boot_header, chunk, commit, record, snapshot

from conclave._framing import Kind
from conclave._stateheader import parse_commit
from conclave.errors import FormatError, StoreDamaged, StoreError, StoreFull, StoreUnavailable
from conclave.host.journal import Journal
from conclave.host.outbox import InMemory, Outbox
from conclave.host.states import Item, MemoryStates, Snapshot, StateStore, What
from conclave.host.states.files import FileStates


class Enclave:
    """What a boot was told."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, bytes]] = []

    def tell(self, kind: Kind, request: int, payload: bytes) -> None:
        self.frames.append((kind, request, payload))

    async def drained(self) -> None:
        await asyncio.sleep(0)

    def stored(self) -> list[tuple[int, bytes]]:
        return [(payload[0], payload[1:]) for kind, _, payload in self.frames if kind == Kind.STORED]

    def committed(self) -> list[int]:
        return [int.from_bytes(payload, "big") for kind, _, payload in self.frames if kind == Kind.COMMITTED]


class Failing(MemoryStates):
    """A state store that fails or waits while told to."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.held: asyncio.Event | None = None
        self.batches: list[list[int]] = []

    async def append(self, items: Sequence[Item]) -> None:
        self.batches.append([version for version, _ in items])
        if self.held is not None:
            await self.held.wait()
        if self.error is not None:
            raise self.error
        await super().append(items)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def opened(store: StateStore | None = None, **options: Any) -> tuple[Journal, Outbox]:
    outbox = options.pop("outbox", None) or Outbox()
    await outbox.start()
    journal = Journal(store, outbox=outbox, **options)
    journal.start()
    return journal, outbox


async def close(journal: Journal, outbox: Outbox) -> None:
    await journal.stop()
    await outbox.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_boot_is_given_what_was_committed(kind: str, tmp_path: Path) -> None:
    store: StateStore = MemoryStates() if kind == "memory" else FileStates(tmp_path / "state")

    async def work() -> None:
        journal, outbox = await opened(store)
        first, durable = Enclave(), []
        await journal.load(first, 1)
        assert first.frames == [(Kind.STORED, 1, bytes([What.END]))]
        journal.commit(commit(0, boot=boot_header()), lambda: durable.append(0))
        for version in range(1, 5):
            journal.commit(commit(version, b"%d" % version), lambda version=version: durable.append(version))
        assert durable == []
        await until(lambda: len(durable) == 5)
        assert durable == [0, 1, 2, 3, 4]
        assert first.committed()[-1] == 4
        second = Enclave()
        await journal.load(second, 7)
        assert {request for _, request, _ in second.frames} == {7}
        assert second.stored() == [
            (What.ITEM, record(0, boot=boot_header())),
            *((What.ITEM, record(version, b"%d" % version)) for version in range(1, 5)),
            (What.END, b""),
        ]
        await close(journal, outbox)

    run(work)


BOOT = commit(0, boot=boot_header())


async def begun(store: StateStore | None = None, **options: Any) -> tuple[Journal, Outbox, Enclave]:
    """A journal whose boot has loaded and committed its boot record."""
    journal, outbox = await opened(store, **options)
    enclave = Enclave()
    await journal.load(enclave, 1)
    journal.commit(BOOT, lambda: None)
    await until(lambda: enclave.committed() == [0])
    return journal, outbox, enclave


@pytest.mark.spec("CHAN-17", "CHAN-19")
def test_what_comes_while_one_write_runs_goes_with_the_next() -> None:
    async def work() -> None:
        store = Failing()
        journal, outbox, enclave = await begun(store)
        store.held = asyncio.Event()
        durable: list[int] = []
        for version in range(1, 8):
            journal.commit(commit(version), lambda version=version: durable.append(version))
            if version == 1:
                await until(lambda: store.batches[-1] == [1])
        await asyncio.sleep(0.01)
        assert durable == []
        store.held.set()
        await until(lambda: len(durable) == 7)
        assert store.batches == [[0], [1], [2, 3, 4, 5, 6, 7]]
        assert durable == [1, 2, 3, 4, 5, 6, 7]
        # Once for all that became durable together.
        await until(lambda: enclave.committed() == [0, 1, 7])
        await close(journal, outbox)

    run(work)


@pytest.mark.spec("CHAN-17")
@pytest.mark.parametrize("payload", [commit(1), commit(3), BOOT, b"", commit(2)[:-1], commit(2)[:11], bytes(64)])
def test_a_commit_that_does_not_follow(payload: bytes) -> None:
    async def work() -> None:
        journal, outbox, _ = await begun()
        journal.commit(commit(1), lambda: None)
        with pytest.raises(FormatError):
            journal.commit(payload, lambda: None)
        await close(journal, outbox)

    run(work)


@pytest.mark.spec("CHAN-17")
def test_a_boot_that_did_not_load() -> None:
    async def work() -> None:
        journal, outbox = await opened()
        with pytest.raises(FormatError, match="before state was loaded"):
            journal.commit(BOOT, lambda: None)
        await journal.load(Enclave(), 1)
        journal.commit(BOOT, lambda: None)
        journal.end()
        with pytest.raises(FormatError, match="before state was loaded"):
            journal.commit(commit(1), lambda: None)
        with pytest.raises(FormatError, match="before state was loaded"):
            journal.snapshot(snapshot(1, 1, 0), lambda: None)
        await close(journal, outbox)

    run(work)


@pytest.mark.spec("CHAN-18")
@pytest.mark.parametrize("error", [StoreFull("x"), StoreUnavailable("x"), StoreDamaged("x")])
def test_a_store_that_refuses_gets_the_same_bytes_until_it_takes_them(
    error: StoreError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conclave.host.journal.RETRY_SECONDS", 0.001)

    async def work() -> None:
        store, events = Failing(), list[dict[str, Any]]()
        journal, outbox, enclave = await begun(store, on_event=events.append)
        store.error, durable = error, list[int]()
        for version in (1, 2, 3):
            journal.commit(commit(version), lambda version=version: durable.append(version))
        await until(lambda: len(store.batches) > 4)
        journal.commit(commit(4), lambda: durable.append(4))
        await until(lambda: len(store.batches) > 7)
        assert durable == []
        assert all(batch == [1, 2, 3] for batch in store.batches[1:])
        assert journal.trouble.startswith("the host's state store is")
        store.error = None
        await until(lambda: durable == [1, 2, 3, 4])
        assert journal.trouble == ""
        assert [event.get("code", "") for event in events] == [error.code, ""]
        assert enclave.committed()[-1] == 4
        await close(journal, outbox)

    run(work)


@pytest.mark.spec("CHAN-18")
def test_a_log_that_another_host_continued() -> None:
    """None of it is offered again, the boot ends, and the next one begins with what is there."""

    async def work() -> None:
        store, events, lost = Failing(), list[dict[str, Any]](), list[bool]()
        journal, outbox, _ = await begun(store, on_event=events.append, lost=lambda: lost.append(True))
        await MemoryStates.append(store, [(1, commit(1, b"theirs"))])
        durable: list[int] = []
        journal.commit(commit(1, b"ours"), lambda: durable.append(1))
        journal.commit(commit(2, b"ours"), lambda: durable.append(2))
        await until(lambda: lost == [True])
        assert "another host" in events[-1]["text"]
        with pytest.raises(FormatError):
            journal.commit(commit(3, b"ours"), lambda: None)
        tries = len(store.batches)
        second = Enclave()
        await journal.load(second, 1)
        assert second.stored()[1:] == [(What.ITEM, record(1, b"theirs")), (What.END, b"")]
        journal.commit(commit(2, b"after theirs"), lambda: durable.append(22))
        await until(lambda: durable == [22])
        assert len(store.batches) == tries + 1
        await close(journal, outbox)

    run(work)


@pytest.mark.spec("CHAN-16")
def test_a_boot_loads_when_what_the_last_one_committed_is_durable() -> None:
    async def work() -> None:
        store = Failing()
        journal, outbox, first = await begun(store)
        store.held = asyncio.Event()
        for version in (1, 2, 3):
            journal.commit(commit(version), lambda: None)
        journal.end()
        second = Enclave()
        loading = asyncio.create_task(journal.load(second, 1))
        await asyncio.sleep(0.02)
        assert second.frames == []
        store.held.set()
        await loading
        assert [what for what, _ in second.stored()] == [What.ITEM] * 4 + [What.END]
        # The one that is gone is told nothing.
        assert first.committed() == [0]
        journal.commit(commit(4), lambda: None)
        await until(lambda: second.committed() == [4])
        await close(journal, outbox)

    run(work)


class Broken(MemoryStates):
    """A state store that gives something, and then fails."""

    def __init__(self, *pieces: tuple[What, bytes], error: Exception | None = None) -> None:
        super().__init__()
        self.pieces, self.broken = pieces, error

    async def read(self) -> AsyncGenerator[tuple[What, bytes], None]:
        for piece in self.pieces:
            yield piece
        if self.broken is not None:
            raise self.broken


@pytest.mark.spec("CHAN-16")
@pytest.mark.parametrize(
    "store",
    [
        Broken(error=StoreUnavailable("gone")),
        Broken((What.ITEM, BOOT), error=StoreDamaged("no item")),
        Broken((What.ITEM, b"no item")),
        Broken((What.MANIFEST, b"no manifest")),
    ],
)
def test_a_store_that_cannot_be_read(store: Broken) -> None:
    async def work() -> None:
        journal, outbox = await opened(store)
        enclave = Enclave()
        with pytest.raises((StoreUnavailable, StoreDamaged)):
            await journal.load(enclave, 1)
        assert enclave.stored()[-1] == (What.UNREADABLE, b"")
        with pytest.raises(FormatError):
            journal.commit(commit(1), lambda: None)
        await close(journal, outbox)

    run(work)


@pytest.mark.spec("CHAN-16")
def test_a_large_state_is_read_as_it_is_taken() -> None:
    """Of a store that never ends, a boot that takes three pieces has three read for it."""

    class Endless(MemoryStates):
        read_pieces = 0

        async def read(self) -> AsyncGenerator[tuple[What, bytes], None]:
            while True:
                self.read_pieces += 1
                yield What.CHUNK, bytes(100)

    class Slow(Enclave):
        async def drained(self) -> None:
            if len(self.frames) >= 3:
                await asyncio.Event().wait()

    async def work() -> None:
        store = Endless()
        journal, outbox = await opened(store)
        loading = asyncio.create_task(journal.load(Slow(), 1))
        await asyncio.sleep(0.02)
        assert store.read_pieces == 3
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await close(journal, outbox)

    run(work)


# Snapshots ---------------------------------------------------------------------------


def send(journal: Journal, number: int, version: int, chunks: int, *, complete: bool = True) -> list[int]:
    """The pieces of a snapshot; the list has the indices of those that are kept."""
    kept: list[int] = []
    for index in [*range(1, chunks + 1), *([0] if complete else [])]:
        journal.snapshot(snapshot(number, index, version, b"%d" % index), lambda index=index: kept.append(index))
    return kept


@pytest.mark.spec("CHAN-20")
@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_snapshot_stands_for_the_records_before_it(kind: str, tmp_path: Path) -> None:
    store: StateStore = MemoryStates() if kind == "memory" else FileStates(tmp_path / "state")

    async def work() -> None:
        journal, outbox, enclave = await begun(store)
        for version in range(1, 6):
            journal.commit(commit(version), lambda: None)
        kept = send(journal, 1, 5, 2, complete=False)
        for version in range(6, 9):
            journal.commit(commit(version), lambda: None)
        await until(lambda: kept == [1, 2])
        second = Enclave()
        assert journal.figures.records == 9
        journal.snapshot(snapshot(1, 0, 5, b"m"), lambda: kept.append(0))
        await until(lambda: kept == [1, 2, 0] and enclave.committed()[-1] == 8)
        assert journal.figures.records == 3
        await journal.load(second, 1)
        assert journal.figures.records == 3
        assert second.stored() == [
            (What.MANIFEST, chunk(1, 0, 5, b"m")),
            (What.CHUNK, chunk(1, 1, 5, b"1")),
            (What.CHUNK, chunk(1, 2, 5, b"2")),
            *((What.ITEM, record(version)) for version in range(6, 9)),
            (What.END, b""),
        ]
        await close(journal, outbox)

    run(work)


@pytest.mark.spec("CHAN-20")
def test_a_snapshot_waits_for_what_it_stands_for() -> None:
    async def work() -> None:
        store = Failing()
        journal, outbox, _ = await begun(store)
        store.held = asyncio.Event()
        journal.commit(commit(1), lambda: None)
        kept = send(journal, 1, 1, 1)
        await until(lambda: kept == [1])
        await asyncio.sleep(0.01)
        assert kept == [1]
        assert [what async for what, _ in store.read()] == [What.ITEM]
        store.held.set()
        await until(lambda: kept == [1, 0])
        assert [what async for what, _ in store.read()] == [What.MANIFEST, What.CHUNK]
        await close(journal, outbox)

    run(work)


@pytest.mark.spec("CHAN-20")
def test_a_chunk_that_is_not_kept_ends_its_snapshot_alone() -> None:
    class Refusing(MemoryStates):
        refuses = True

        async def put_chunk(self, snapshot: Snapshot, index: int, chunk: bytes) -> None:
            if index == 2 and self.refuses:
                raise StoreFull("no room")
            await super().put_chunk(snapshot, index, chunk)

    async def work() -> None:
        store, events = Refusing(), list[dict[str, Any]]()
        journal, outbox, _ = await begun(store, on_event=events.append)
        kept = send(journal, 1, 0, 3)
        await until(lambda: kept == [1, 2, 3, 0])
        assert [what async for what, _ in store.read()] == [What.ITEM]
        assert [event["code"] for event in events] == ["store-full"]
        store.refuses = False
        kept = send(journal, 2, 0, 3)
        await until(lambda: kept == [1, 2, 3, 0])
        assert [what async for what, _ in store.read()] == [What.MANIFEST, What.CHUNK, What.CHUNK, What.CHUNK]
        await close(journal, outbox)

    run(work)


@pytest.mark.spec("CHAN-20")
@pytest.mark.parametrize(
    "payload",
    [
        snapshot(1, 1, 1),
        snapshot(1, 1, 0)[:28] + chunk(2, 1, 0),
        snapshot(1, 1, 0)[:28] + chunk(1, 2, 0),
        snapshot(1, 1, 0)[:-1],
        snapshot(1, 1, 0)[:27],
        b"",
    ],
)
def test_no_piece_of_a_snapshot(payload: bytes) -> None:
    async def work() -> None:
        journal, outbox, _ = await begun()
        with pytest.raises(FormatError):
            journal.snapshot(payload, lambda: None)
        await close(journal, outbox)

    run(work)


# Mail of commits ---------------------------------------------------------------------


def posting(version: int, body: bytes) -> bytes:
    return commit(version, posts=frame(mail(0, body)))


async def bodies(outbox: Outbox) -> list[bytes]:
    """What lies in the box, each mail whole."""
    return [found for _, found in await outbox.read(BOXES[0], 0, most_bytes=1 << 30)]


@pytest.mark.spec("CHAN-21", "CHAN-13")
def test_mail_of_a_commit_is_in_the_outbox_once_the_commit_is_durable() -> None:
    async def work() -> None:
        store, blobs = Failing(), FailingBlobs()
        journal, outbox, _ = await begun(store, outbox=Outbox(blobs))
        store.held, blobs.held = asyncio.Event(), asyncio.Event()
        durable: list[int] = []
        journal.commit(posting(1, b"one"), lambda: durable.append(1))
        journal.commit(commit(2), lambda: durable.append(2))
        await asyncio.sleep(0.01)
        assert outbox.sizes()["waiting"] == 0
        store.held.set()
        await until(lambda: outbox.sizes()["waiting"] == 1)
        # The reply waits for both.
        assert durable == [2]
        blobs.held.set()
        await until(lambda: durable == [2, 1])
        assert len(await bodies(outbox)) == 1
        assert outbox.mark == (LOG, 1)
        await close(journal, outbox)

    run(work)


class Ends(MemoryStates):
    """Once it has a commit of that version, nothing is written any more anywhere: the host is gone."""

    def __init__(self, blobs: FailingBlobs, version: int) -> None:
        super().__init__()
        self._blobs = blobs
        self._version = version

    async def append(self, items: Sequence[Item]) -> None:
        await super().append(items)
        if items[-1][0] == self._version:
            self._blobs.error = StoreUnavailable("gone")


@pytest.mark.spec("CHAN-21")
def test_who_sent_the_mail_of_a_commit_is_known_after_whatever_the_host_is_killed_at() -> None:
    """The commit is durable, its mail is in no outbox yet, and the boot that made both is gone for good."""

    async def work() -> None:
        blobs, claims = FailingBlobs(), b"claims"
        store = Ends(blobs, 1)
        sender = hashlib.sha512(b"conclave/1 instance-claims\0" + claims).digest()
        posted = mail(0, b"one", digest=sender)
        outbox = Outbox(blobs)
        outbox.announce(claims, b"instance info")
        journal, _, _ = await begun(store, outbox=outbox)
        durable: list[int] = []
        journal.commit(commit(1, posts=frame(posted)), lambda: durable.append(1))
        await until(lambda: journal._durable == 1)
        await until(lambda: bool(outbox.trouble))
        assert not durable
        for task in [*journal._tasks, *outbox._tasks]:
            task.cancel()
        # The next host: what it tidies up before its enclave has loaded is not what that brings back.
        blobs.error = None
        journal, again = await opened(store, outbox=Outbox(blobs))
        again.expire()
        await again._tidy()
        await journal.load(Enclave(), 1)
        again.announce(b"claims of the next boot", b"its info")
        again.expire()
        await again._tidy()
        await until(lambda: again.sizes()["waiting"] == 0)
        assert await bodies(again) == [posted]
        assert await again.info(sender) == b"instance info"
        await close(journal, again)

    run(work)


# Mails as a client saw them, and the numbers that they had.
Seen = dict[bytes, set[int]]


class Kill(BaseException):
    """The process ends here."""


class Killed(InMemory):
    """A blob store whose host is killed before or after an operation, once."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Kill

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        self._step()
        etag = await super().put(name, data, expected=expected)
        self._step()
        return etag

    async def delete(self, name: str) -> None:
        self._step()
        await super().delete(name)
        self._step()


class KilledStates(MemoryStates):
    """The same of a state store; it shares the count of steps."""

    def __init__(self, blobs: Killed) -> None:
        super().__init__()
        self._blobs = blobs

    async def append(self, items: Sequence[Item]) -> None:
        self._blobs._step()
        await super().append(items)
        self._blobs._step()

    async def complete(self, snapshot: Snapshot, manifest: bytes) -> None:
        self._blobs._step()
        await super().complete(snapshot, manifest)
        self._blobs._step()

    async def forget(self) -> None:
        self._blobs._step()
        await super().forget()
        self._blobs._step()


@pytest.mark.spec("CHAN-21")
def test_mail_of_commits_whatever_the_host_is_killed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step of each write, and again at some after that: every mail of what is durable comes once, in order."""
    monkeypatch.setattr("conclave.host.outbox.SWEEP_SECONDS", 0.0)
    reached = 0
    ever: dict[int, bytes] = {}

    async def boot(store: MemoryStates, blobs: Killed, seen: Seen, turn: int) -> bool:
        """One host, until it has done its work or is killed. False: killed."""
        outbox = Outbox(blobs)
        try:
            await outbox.start()
        except Kill:
            return False
        journal = Journal(store, outbox=outbox)
        journal.start()
        enclave = Enclave()
        work = asyncio.create_task(_live(journal, outbox, enclave, seen, turn))
        tasks = [*journal._tasks, *outbox._tasks, work]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert done
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        lived = work in done and work.exception() is None
        assert lived or any(isinstance(one, Kill) for one in ended), ended
        return lived

    async def _live(journal: Journal, outbox: Outbox, enclave: Enclave, seen: Seen, turn: int) -> None:
        await journal.load(enclave, 1)
        version = journal._last + 1
        journal.commit(commit(version, boot=boot_header(turn)), lambda: None)
        for number in range(1, 4):
            journal.commit(posting(version + number, b"%d.%d" % (turn, number)), lambda: None)
            await _fetch(outbox, seen)
        kept = send(journal, turn, version + 2, 1)
        await until(lambda: bool(enclave.committed()) and enclave.committed()[-1] == version + 3)
        await until(lambda: kept == [1, 0] and not journal._posting)
        await _fetch(outbox, seen)
        await outbox._tidy()

    async def _fetch(outbox: Outbox, seen: Seen) -> None:
        """A client takes what is there, and has the host delete it."""
        found = await outbox.read(BOXES[0], 0, most_bytes=1 << 30)
        for number, content in found:
            seen.setdefault(content, set()).add(number)
        if found:
            outbox.delete(BOXES[0], found[-1][0] + 1)
        await asyncio.sleep(0)

    async def schedule(first: int, second: int) -> bool:
        blobs = Killed(first)
        store = KilledStates(blobs)
        seen: Seen = {}
        killed = not await boot(store, blobs, seen, 1)
        blobs.left = second
        await boot(store, blobs, seen, 2)
        blobs.left = 0
        assert await boot(store, blobs, seen, 3)
        posted = [parse_commit(data).posts[4:] for _, data in sorted(ever.items())]
        # A number for each mail: a second one would be another mail to its client.
        numbers = [sorted(seen.get(content, ())) for content in posted if content]
        assert all(len(of_one) == 1 for of_one in numbers), (first, second, numbers)
        assert numbers == sorted(numbers)
        assert len(seen) == len(numbers)
        return killed

    append = MemoryStates.append

    async def remember(self: MemoryStates, items: Sequence[Item]) -> None:
        await append(self, items)
        ever.update(dict(items))

    monkeypatch.setattr(MemoryStates, "append", remember)
    for first in range(1, 200):
        ever.clear()
        if not asyncio.run(schedule(first, 0)):
            break
        reached = first
        ever.clear()
        asyncio.run(schedule(first, 1 + first % 11))
    assert reached > 15
