"""The state of one boot: transactions, one record for each batch, and what leaves with it.

Runs inside the enclave. What the host stored is hostile until it authenticates;
what leaves carries a context, by which clients catch a host that forgets.

Spec: spec/state.md.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Final

import msgspec

from conclave._crypto import SigningKey, sha256
from conclave._framing import Kind, Send
from conclave.enclave._posts import Plan, Posted
from conclave.enclave._release import now
from conclave.errors import StateError
from conclave.mail._wire import version_of
from conclave.persistence.context import Context, SignedStatement
from conclave.persistence.log import Change, Log
from conclave.persistence.map import PersistentMap
from conclave.persistence.snapshots import PLACE
from conclave.persistence.table import Transaction

# Of one transaction: changes, replies and posted mail together.
MAX_TRANSACTION: Final = 15 * 1024 * 1024
# Above it a record is sealed, before another transaction is added.
_FULL: Final = 2 * 1024 * 1024
# Of a row in a record, beside its key and value.
_ROW: Final = 16
# So much is written at least before a snapshot, and then as much as the last one took.
_SNAPSHOT_BYTES: Final = 16 * 1024 * 1024
_TOLD: Final = 8192
_PAUSE_SECONDS: Final = 0.002
# Version, size of the record.
_COMMIT_HEAD: Final = struct.Struct(">QI")
# Looking a member up costs more than the rest of sending a frame.
_COMMIT: Final = Kind.COMMIT


class Work(msgspec.Struct, eq=False):
    """What one run of a handler does, until it is committed or forgotten.

    Attributes:
        version: of the state that it reads.
        known: the version that its client knew of when it asked.
        ended: committed or given up; a task that the handler left behind may have it still.
    """

    transaction: Transaction
    version: int
    known: int
    replies: list[tuple[bytes, bytes]] = []
    plans: list[Plan] = []
    size: int = 0
    ended: bool = False

    # Not what is in it.
    __repr__ = object.__repr__

    def add(self, size: int) -> None:
        """So much more is to leave with it. Raises ValueError if that is too much."""
        if self.size + size > MAX_TRANSACTION:
            raise ValueError(f"replies and posted mail of one handler have at most {MAX_TRANSACTION} bytes together")
        self.size += size


class Whole:
    """What is done within is done whole, or this boot ends: a state that no record describes answers nobody."""

    __slots__ = ("_break",)

    def __init__(self, broken: Callable[[], None]) -> None:
        self._break = broken

    def __enter__(self) -> None:
        """Nothing is done yet."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._break()


class State:
    """One log, and what this boot adds to it. On the enclave's loop but for reads."""

    def __init__(self, log: Log, send: Send, *, full: Callable[[], bool], written: int = 0, snapshot: int = 0) -> None:
        """Write this boot's record: from now on the log is its own.

        Args:
            send: queues one frame to the host.
            full: whether the host has to read before more is made for it than must be.
            written: bytes of records since the last snapshot.
            snapshot: bytes of that snapshot.
        """
        self.log = log
        self._send = send
        self._full = full
        self._work: ContextVar[Work | None] = ContextVar("conclave_work", default=None)
        self.map = PersistentMap(lambda: self.work.transaction)
        # Contexts of this log, and whose they are.
        self._told: dict[bytes, bytes] = {}
        # Of the record that is sealed next.
        self._changes: list[tuple[str, bytes | None]] = []
        self._rows: dict[bytes, bytes | None] = {}
        self._posted: list[Posted] = []
        self._floor = log.floor
        self._size = 0
        self._due = False
        # Frames that wait for it.
        self._held: list[tuple[int, int, tuple[bytes, ...]]] = []
        self._scheduled = self._ticks = False
        self._halted = self._broken = False
        self.whole = Whole(self._break)
        # Told that nothing leaves any more: the boot has to end.
        self.broken: Callable[[], None] = lambda: None
        # Told which version a client has seen, whenever it shows one.
        self.seen: Callable[[bytes, int], None] = lambda identity, version: None
        self._written, self._snapshot_size = written, snapshot
        self._snapshot: Iterator[bytes] | None = None
        # Up to which version the host says that its store has it; digests of that one and of later ones, in order.
        self._durable, self._first = -1, log.version + 1
        self._digests: deque[tuple[int, bytes]] = deque()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._commit_frame(log.boot_entry(), [])

    # Transactions --------------------------------------------------------------------

    @property
    def work(self) -> Work:
        """Of the handler that runs here. Raises RuntimeError outside of one."""
        work = self.running
        if work is None:
            raise RuntimeError("self.map is there within handlers; elsewhere call self.atomically(function)")
        return work

    @property
    def running(self) -> Work | None:
        """The same; None outside of a handler."""
        work = self._work.get()
        return None if work is None or work.ended else work

    def begin(self, known: int = 0) -> Work:
        """A run of a handler begins in this context.

        Args:
            known: which version its client knows of.
        """
        # What a batch has committed is readable before it is sealed, and has the next version.
        log = self.log
        work = Work(log.table.begin(), log.version + self._due, known)
        self._work.set(work)
        return work

    def end(self, work: Work) -> None:
        """The run is over, committed or not."""
        work.ended = True
        work.transaction.release()
        if self._work.get() is work:
            self._work.set(None)

    def make_room(self, size: int) -> None:
        """Seal what waits, if so much more would make a large record of it. Never while a transaction is half put."""
        if self._size and self._size + size > _FULL:
            # Also what needs no record of its own: together with more it might not fit one.
            self._due = True
            self.flush()

    def demand(self) -> None:
        """Raises StateError: this boot commits nothing any more."""
        if self._halted or self._broken:
            raise StateError(
                "this boot has stopped: nothing is committed any more; the next one goes on from its records"
            )

    def commit(self, work: Work, posted: list[Posted], size: int) -> None:
        """What a run changed is there for all that come after it, and goes into the next record.

        There is room for it (`make_room`), and nothing may fail any more: `whole`.

        Args:
            size: of all that leaves with it.
        """
        # Here, not when it ends: what a task that it left behind does from now on is no part of it.
        work.ended = True
        self._due = True
        self._size += size
        self._changes += work.transaction.commit()
        self._posted += posted
        self._schedule()

    def _break(self) -> None:
        self._broken = True
        self._held.clear()
        self.broken()

    def raise_floor(self, seconds: int) -> None:
        """Time is not before that, in seconds since 1970: said by the next record, whatever that is for."""
        self._floor = max(self._floor, seconds)

    # What mail keeps (`mail.memory.Memory`) --------------------------------------------

    @property
    def log_id(self) -> bytes:
        """See `Memory`."""
        return self.log.log_id

    @property
    def rows(self) -> Mapping[bytes, bytes]:
        """See `Memory`."""
        return self.log.rows

    def put(self, key: bytes, value: bytes | None, *, lazily: bool = False) -> None:
        """See `Memory`."""
        self._rows[key] = value
        if value is None:
            self.log.rows.pop(key, None)
        else:
            self.log.rows[key] = value
            self._size += len(value)
        self._size += len(key) + _ROW
        if not lazily:
            self._due = True
            self._schedule()

    def check(self, context: bytes, identity: bytes) -> int:
        """See `Memory`."""
        if self._told.get(context) == identity:
            version = version_of(context)
        else:
            known = self.log.check(context, identity)
            if known is None:
                return 0
            version = known.version
            self._remember(context, identity)
        self.seen(identity, version)
        return version

    def context(self, identity: bytes) -> bytes:
        """See `Memory`."""
        context = self.log.context(identity)
        self._remember(context, identity)
        return context

    def _remember(self, context: bytes, identity: bytes) -> None:
        """What was good once is good for the whole boot: most clients show what they were told last."""
        if len(self._told) >= _TOLD:
            self._told.clear()
        self._told[context] = identity

    def mark(self, head: bytes, body: bytes | memoryview) -> bytes:
        """See `Memory`."""
        return self.log.marks.tag(b"state/1 request", head, body)

    # Frames --------------------------------------------------------------------------

    def send(self, kind: int, request: int, *payload: bytes) -> None:
        """Queue a frame behind the record of what was committed before it."""
        if self._broken:
            return
        self._held.append((kind, request, payload))
        self._schedule()

    def at_ticks(self) -> Callable[[], None]:
        """What seals, from now on called at ticks only, before anything else leaves."""
        self._ticks = True
        return self.flush

    def hold(self) -> None:
        """A batch begins, at whose end `flush` is called."""
        self._scheduled = True

    def _schedule(self) -> None:
        """Seal at the end of this turn of the loop at the latest."""
        if not self._scheduled and not self._ticks:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Seal what was committed as one record, and let go of what waits for it."""
        self._scheduled = False
        if self._broken:
            return
        if self._due and not self._halted:
            with self.whole:
                self._seal()
        if self._held:
            held, self._held = self._held, []
            for kind, request, payload in held:
                self._send(kind, request, *map(now, payload))

    def _seal(self) -> None:
        posted, mail = self._posted, list(self._rows.items())
        posts = [(one.box, one.number, sha256(one.body)) for one in posted]
        entry = self.log.record(Change(self._changes, mail, posts, self._floor))
        parts: list[bytes] = []
        for one in posted:
            made = one.make(context=self.log.context(one.identity))
            parts += [len(made).to_bytes(4, "big"), made]
        self._changes, self._rows, self._posted = [], {}, []
        self._size, self._due = 0, False
        self._commit_frame(entry, parts)

    def _commit_frame(self, entry: bytes, posts: list[bytes]) -> None:
        version, size = self.log.version, len(entry)
        self._send(_COMMIT, 0, _COMMIT_HEAD.pack(version, size), entry, *posts)
        self._digests.append((version, self.log.digest))
        self._written += size
        if self._written >= _SNAPSHOT_BYTES and self._written >= self._snapshot_size and self._snapshot is None:
            self._written = self._snapshot_size = 0
            self._snapshot = self.log.snapshot()
            # It is of now, when all that is in the table is in records.
            self._step()

    def _step(self) -> None:
        """One more chunk of the snapshot, between batches, if the host takes it."""
        assert self._snapshot is not None
        loop = asyncio.get_running_loop()
        if not self._full():
            try:
                chunk = next(self._snapshot, None)
            except BaseException:
                # The next one is another; this one stays incomplete.
                self._snapshot = None
                raise
            if chunk is None or self._halted:
                self._snapshot = None
                return
            self._snapshot_size += len(chunk)
            self._send(Kind.SNAPSHOT, 0, chunk[PLACE], chunk)
        loop.call_later(_PAUSE_SECONDS, self._step)

    def signed(self, refused: Context | None, key: SigningKey, claims_digest: bytes) -> SignedStatement:
        """What this state is, signed; with a refused context: that this is no part of it."""
        return SignedStatement.sign(self.log.statement(refused), key, claims_digest)

    # Durability ----------------------------------------------------------------------

    def committed(self, payload: bytes) -> None:
        """The host says up to which version the store has it. Its word: for order, never for safety."""
        self._durable = max(self._durable, min(int.from_bytes(payload[:8], "big"), self.log.version))
        while self._digests and self._digests[0][0] < self._durable:
            self._digests.popleft()
        waiting, self._waiting = self._waiting, []
        for version, future in waiting:
            if version > self._durable:
                self._waiting.append((version, future))
            elif not future.done():
                future.set_result(None)

    async def newest(self, version: int | None) -> Context:
        """The newest state that is on the store, once it is of this boot, and at or after that version."""
        version = max(self._first, version or 0)
        if version > self._durable:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((version, future))
            await future
        return Context(self._durable, self.log.boot, self._digests[0][1], b"")

    def halt(self) -> None:
        """Seal nothing any more, but what was committed before: this history is not the one that clients have seen."""
        self.flush()
        self._halted = True
