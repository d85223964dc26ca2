"""What an enclave commits, on its way to the state store; what the store holds, on its way to the next boot.

Runs in the untrusted host. Nobody relies on it: records are sealed and chained. What it owes
its enclave is order and durability: nothing that comes after a commit leaves the host before
that commit is on the store (`gate`), and a boot is given all that the ones before it committed.

Spec: spec/host-channel.md section 2 (CHAN-13, CHAN-16 to CHAN-23).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

from conclave._framing import Kind
from conclave._stateheader import SNAPSHOT_HEADER, BootHeader, parse_chunk, parse_commit
from conclave.errors import FormatError, StoreConflict, StoreDamaged, StoreError, StoreFull, StoreUnavailable
from conclave.host.outbox import Mark, Outbox
from conclave.host.states import NONE_YET, Item, MemoryStates, Snapshot, StateStore, What

# So much is written at one time.
BATCH_BYTES: Final = 8 * 1024 * 1024
BATCH_ITEMS: Final = 4096
RETRY_SECONDS: Final = 0.1
MOST_RETRY_SECONDS: Final = 5.0
# A write that takes longer is trouble that an operator should know of.
SLOW_SECONDS: Final = 10.0
_FINAL_SECONDS: Final = 5.0
_END: Final = bytes([What.END])
_UNREADABLE: Final = bytes([What.UNREADABLE])
Durable = Callable[[], None]


class Way(Protocol):
    """The host channel of one boot, as far as it is needed here."""

    def tell(self, kind: Kind, request: int, payload: bytes) -> None:
        """Send a frame; nothing if the enclave is gone."""

    async def drained(self) -> None:
        """Wait until the enclave has taken most of what was sent. Raises TransportError: it is gone."""


@dataclass(slots=True)
class _Pending:
    version: int
    payload: bytes
    posts: bytes
    durable: Durable


@dataclass(slots=True)
class _Piece:
    """One frame of a snapshot."""

    snapshot: Snapshot
    index: int
    chunk: bytes
    kept: Durable


class Journal:
    """One log over one state store, which no other host may extend."""

    def __init__(
        self,
        store: StateStore | None = None,
        *,
        outbox: Outbox,
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is read before a boot loads.

        Args:
            store: None keeps everything in memory.
            outbox: takes the posted mail of commits once they are durable.
            on_event: told when the store fails and when it works again.
            lost: ends the boot: somebody else extended the log.
        """
        self._store: StateStore = store or MemoryStates()
        self._outbox = outbox
        self._on_event = on_event
        self._lost = lost
        self._way: Way | None = None
        self._loaded = False
        self._log_id = b""
        # The log that the newest boot was given; empty: there was none, and it began one.
        self.found = b""
        # Newest version that a boot committed, and that is durable.
        self._last = self._durable = NONE_YET
        self._pending: deque[_Pending] = deque()
        # Versions whose mail the outbox does not have on its store yet.
        self._posting: deque[int] = deque()
        self._handed: Mark | None = None
        self._pieces: deque[_Piece] = deque()
        self._refused: Snapshot | None = None
        self._work, self._pieced, self._moved = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.figures = Figures()
        # Why nothing is written at the moment; empty while all is well.
        self.trouble = ""

    # Life ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to keep what is committed."""
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._keep())]

    async def stop(self) -> None:
        """Write what waits, as far as the store takes it now, and stop."""
        self.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FINAL_SECONDS):
                while self._pending and not self.trouble:
                    await self._next_move()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        with suppress(TimeoutError, StoreError):
            async with asyncio.timeout(_FINAL_SECONDS):
                await self._store.close()

    @property
    def waiting(self) -> int:
        """How many commits are not on the store yet."""
        return len(self._pending)

    def end(self) -> None:
        """The boot is gone: what it committed is still kept; no other boot may commit before it has loaded."""
        self._loaded, self._way = False, None

    # Loading -------------------------------------------------------------------------

    async def load(self, way: Way, request: int) -> None:
        """Give a boot what lies on the store, in pieces as it takes them.

        All that was committed before is durable by then, or will never be.

        Raises:
            StoreError: it cannot be read; the boot was told.
            TransportError: the boot is gone.
        """
        self.end()
        await self._settle()
        self._log_id, self._last = b"", NONE_YET
        self.figures.begin()
        try:
            async with aclosing(self._store.read()) as pieces:
                async for what, data in pieces:
                    way.tell(Kind.STORED, request, bytes([what]) + self._seen(what, data))
                    await way.drained()
        except FormatError as error:
            way.tell(Kind.STORED, request, _UNREADABLE)
            raise StoreDamaged(f"the state store holds what is no state: {error}") from None
        except StoreError:
            way.tell(Kind.STORED, request, _UNREADABLE)
            raise
        self._durable, self.found = self._last, self._log_id
        self._loaded, self._way = True, way
        way.tell(Kind.STORED, request, _END)
        with suppress(StoreError):
            await self._store.forget()

    async def _settle(self) -> None:
        """End what the last boot left: its commits are finished, its snapshot is given up."""
        while self._pending:
            await self._next_move()
        if self._pieces:
            self._tasks[1].cancel()
            with suppress(asyncio.CancelledError):
                await self._tasks[1]
            self._pieces.clear()
            self._tasks[1] = asyncio.create_task(self._keep())

    def _seen(self, what: What, data: bytes) -> bytes:
        """What the enclave is given of it; posted mail that the outbox does not have goes there."""
        if what == What.MANIFEST:
            header = parse_chunk(data)
            self._last = header.version
            self._know(header.boot)
        elif what == What.ITEM:
            commit = parse_commit(data)
            self._last = commit.version
            self._know(commit.boot)
            self.figures.add(len(data))
            if commit.posts and not self._has(commit.version):
                self._post(commit.version, commit.posts, lambda: None)
            return commit.record
        return data

    def _know(self, boot: BootHeader | None) -> None:
        if boot is not None:
            self._log_id = boot.log_id

    def _has(self, version: int) -> bool:
        mark = self._handed or self._outbox.mark
        return mark is not None and mark[0] == self._log_id and mark[1] >= version

    # Commits -------------------------------------------------------------------------

    def commit(self, payload: bytes, durable: Durable) -> None:
        """Keep what a COMMIT frame brought; `durable` is called once it and its mail are on the stores.

        Raises:
            FormatError: that is no commit, it does not follow the one before it, or this boot did not load.
        """
        commit = parse_commit(payload)
        if not self._loaded or commit.version != self._last + 1:
            raise FormatError("a commit before state was loaded, or of a version that is not the next one")
        self._know(commit.boot)
        self._last = commit.version
        self.figures.add(len(payload), committed=True)
        self._pending.append(_Pending(commit.version, payload, commit.posts, durable))
        self._work.set()

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._pending:
                batch = self._batch()
                if not await self._append(batch):
                    break
                self._durable = batch[-1].version
                for one in batch:
                    self._pending.popleft()
                    if one.posts:
                        self._post(one.version, one.posts, one.durable)
                    else:
                        one.durable()
                if self._way is not None:
                    self._way.tell(Kind.COMMITTED, 0, self._durable.to_bytes(8, "big"))
                self._move()

    def _batch(self) -> list[_Pending]:
        batch = [self._pending[0]]
        size = len(batch[0].payload)
        for one in islice(self._pending, 1, BATCH_ITEMS):
            size += len(one.payload)
            if size > BATCH_BYTES:
                break
            batch.append(one)
        return batch

    async def _append(self, batch: list[_Pending]) -> bool:
        """The same bytes until they are there. False: they never will be."""
        items: list[Item] = [(one.version, one.payload) for one in batch]
        delay = RETRY_SECONDS
        slow = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._slow)
        try:
            while True:
                try:
                    for one in batch:
                        if one.posts:
                            await self._outbox.keep_senders(one.posts)
                    await self._store.append(items)
                    break
                except StoreConflict:
                    self._conflict()
                    return False
                except StoreError as error:
                    self._fails("full" if isinstance(error, StoreFull) else "not reachable", error)
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, MOST_RETRY_SECONDS)
        finally:
            slow.cancel()
        if self.trouble:
            self.trouble = ""
            self._on_event({"event": "store", "text": "the store takes state again"})
        return True

    def _slow(self) -> None:
        self._fails("slow", StoreUnavailable(f"a write takes longer than {SLOW_SECONDS:g} seconds"))

    def _fails(self, why: str, error: StoreError) -> None:
        if not self.trouble:
            self.trouble = (
                f"the host's state store is {why}: what the enclave committed and all that came after it wait"
            )
            self._on_event({"event": "store", "code": error.code, "text": f"{self.trouble}; {error}"})

    def _conflict(self) -> None:
        text = (
            "another host extended this log on the same state store: this boot ends, and the next one begins with what "
            "is there; give each host a store of its own"
        )
        self._on_event({"event": "store", "code": StoreConflict.code, "text": text})
        self._pending.clear()
        self.end()
        self._move()
        self._lost()

    # Mail of commits -----------------------------------------------------------------

    def _post(self, version: int, posts: bytes, durable: Durable) -> None:
        def there() -> None:
            self._posting.popleft()
            durable()
            self._move()

        self._handed = self._log_id, version
        self._posting.append(version)
        self._outbox.put(posts, there, mark=self._handed)

    # Snapshots -----------------------------------------------------------------------

    def snapshot(self, payload: bytes, kept: Durable) -> None:
        """Keep what a SNAPSHOT frame brought; `kept` is called once it takes no memory here.

        Raises:
            FormatError: it is no piece of a snapshot, is of a version that there is not, or this boot did not load.
        """
        if len(payload) < SNAPSHOT_HEADER.size:
            raise FormatError("a piece of a snapshot that is cut off")
        snapshot_id, index, version = SNAPSHOT_HEADER.unpack_from(payload)
        chunk = payload[SNAPSHOT_HEADER.size :]
        header = parse_chunk(chunk)
        if (header.snapshot_id, header.index, header.version) != (snapshot_id, index, version):
            raise FormatError("a piece of another snapshot than its frame says")
        if not self._loaded or version > self._last:
            raise FormatError("a snapshot before state was loaded, or of a version that was never committed")
        self._pieces.append(_Piece(Snapshot(snapshot_id, version), index, chunk, kept))
        if index == 1:
            self.figures.mark()
        self._pieced.set()

    async def _keep(self) -> None:
        while True:
            await self._pieced.wait()
            self._pieced.clear()
            while self._pieces:
                piece = self._pieces[0]
                try:
                    await self._take(piece)
                except StoreError as error:
                    self._refused = piece.snapshot
                    text = f"a snapshot was not kept, and the log stays long until the next one: {error}"
                    self._on_event({"event": "store", "code": error.code, "text": text})
                self._pieces.popleft()
                piece.kept()

    async def _take(self, piece: _Piece) -> None:
        snapshot = piece.snapshot
        if piece.index == 1:
            self._refused = None
        if snapshot == self._refused:
            return
        if piece.index:
            await self._store.put_chunk(snapshot, piece.index, piece.chunk)
            return
        # What a snapshot stands for is forgotten: by then it must be durable itself, and its mail be elsewhere.
        while self._durable < snapshot.version or (self._posting and self._posting[0] <= snapshot.version):
            await self._next_move()
        await self._store.complete(snapshot, piece.chunk)
        self.figures.completed()
        with suppress(StoreError):
            await self._store.forget()

    def _move(self) -> None:
        self._moved.set()

    async def _next_move(self) -> None:
        self._moved.clear()
        await self._moved.wait()


class Figures:
    """Sums since the host began, and what lies beyond the newest complete snapshot."""

    def __init__(self) -> None:
        self.commits = self.committed_bytes = 0
        self.records = self.bytes = 0
        # As of the beginning of a snapshot that is under way.
        self._marked = (0, 0)

    def begin(self) -> None:
        """A boot loads: what lies there is counted anew."""
        self.records = self.bytes = 0
        self._marked = (0, 0)

    def add(self, size: int, *, committed: bool = False) -> None:
        """One more record lies there."""
        self.records += 1
        self.bytes += size
        if committed:
            self.commits += 1
            self.committed_bytes += size

    def mark(self) -> None:
        """A snapshot begins."""
        self._marked = self.records, self.bytes

    def completed(self) -> None:
        """It is complete."""
        self.records -= self._marked[0]
        self.bytes -= self._marked[1]
        self._marked = (0, 0)
