"""Posted mail, kept on a store until its client fetched it, or it expired.

Runs in the untrusted host. Nobody relies on it: a client believes only what
decrypts and is signed. What it owes its enclave is durability: replies that come
after posted mail leave only once that mail is on the store (`gate`).

Spec: spec/http.md section 2 (HTTP-13 to HTTP-19), spec/host-channel.md section 2.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from conclave._mailheader import POST_HEADER, parse_post
from conclave.errors import FormatError, StoreConflict, StoreError, StoreFull
from conclave.host.stores import BlobStore

MAILS: Final = "outbox/mails/"
CLAIMS: Final = "outbox/claims/"
INSTANCES: Final = "outbox/instances/"
# The highest number ever given, as of when a blob was last deleted.
LAST: Final = "outbox/last"
# So much goes into one blob: a blob is deleted when none of its mails is wanted any more.
GROUP_BYTES: Final = 1024 * 1024
CACHE_BYTES: Final = 64 * 1024 * 1024
SWEEP_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 0.1
MOST_RETRY_SECONDS: Final = 5.0
ROOM, FULL = b"\0", b"\1"
_MAGIC: Final = b"CMO1"
# Mails of commits: the log, and the version up to which the outbox has them.
_MAGIC_MARKED: Final = b"CMO2"
_HEAD: Final = struct.Struct(">4sQ")
_MARK: Final = struct.Struct(">32sQ")
# The highest number, and if there is a mark: the sequence of the blob that set it, and that mark.
_LAST_MARKED: Final = struct.Struct(">QQ32sQ")
_MAIL: Final = struct.Struct(">QI")
_NUMBER: Final = 8
# Blobs that are read at one time. More are no faster: most of what each takes is the way to a thread and back.
_LOADS: Final = 16
Mark = tuple[bytes, int]
# Far above any time in microseconds; beyond it a blob is damaged.
_MOST_NUMBER: Final = 2**62
_FINAL_SECONDS: Final = 5.0
_INSTANCE: Final = re.compile(re.escape(INSTANCES) + "[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """What a host keeps at most (HTTP-17).

    A box that is half full is announced to the enclave, which then posts no more
    to it: what it had posted until then still fits.
    """

    keep_seconds: float = 7 * 86_400.0
    mails_per_box: int = 4096
    bytes_per_box: int = 128 * 1024 * 1024
    mails: int = 1_000_000
    bytes: int = 2 * 1024 * 1024 * 1024
    claims: int = 200_000
    readers: int = 4096
    readers_per_box: int = 8


class InMemory:
    """A store that lasts as long as the host: for development and tests."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """See `BlobStore`."""
        have = self._blobs.get(name)
        if expected is not None and expected != ("" if have is None else hashlib.sha256(have).hexdigest()):
            raise StoreConflict("the blob is another than expected")
        self._blobs[name] = data
        return hashlib.sha256(data).hexdigest()

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """See `BlobStore`."""
        have = self._blobs.get(name)
        return None if have is None else (have, hashlib.sha256(have).hexdigest())

    async def list(self, prefix: str) -> list[str]:
        """See `BlobStore`."""
        return sorted(n for n in self._blobs if n.startswith(prefix))

    async def delete(self, name: str) -> None:
        """See `BlobStore`."""
        self._blobs.pop(name, None)

    async def close(self) -> None:
        """See `BlobStore`."""


def split_posts(payload: bytes) -> Iterator[bytes]:
    """The mails of a POST frame, as far as they are whole."""
    at = 0
    while at + 4 <= len(payload):
        size = int.from_bytes(payload[at : at + 4], "big")
        if at + 4 + size > len(payload):
            return
        yield payload[at + 4 : at + 4 + size]
        at += 4 + size


@dataclass(slots=True)
class _Blob:
    """One blob of mails and those of them that still wait."""

    name: str
    at: float
    waiting: set[tuple[bytes, int]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Entry:
    blob: _Blob
    offset: int
    size: int
    digest: bytes


@dataclass(slots=True)
class _Box:
    entries: dict[int, _Entry] = field(default_factory=dict)
    size: int = 0
    last: int = 0
    full: bool = False
    # Who waits, each for the word whether there is something new.
    readers: set[asyncio.Future[bool]] = field(default_factory=set)


@dataclass(slots=True)
class _Group:
    """What one POST frame brought: visible at one moment."""

    mails: list[bytes]
    size: int
    durable: Callable[[], None]
    mark: Mark | None = None


class Outbox:
    """Boxes of posted mail over one store, which no other host may use."""

    def __init__(
        self,
        store: BlobStore | None = None,
        *,
        limits: OutboxLimits | None = None,
        now: Callable[[], float] | None = None,
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        tell: Callable[[bytes], None] = lambda payload: None,
    ) -> None:
        """Nothing is read before `start`.

        Args:
            store: where mails lie; None keeps them in memory.
            now: seconds since 1970. A clock that jumps changes when mails expire, no more. None:
                the clock as it is now, going on evenly, so that a jump of it expires nothing.
            on_event: told when the store fails and when it works again.
            tell: has the enclave told which boxes are full (payload of a ROOM frame).
        """
        self._store: BlobStore = store or InMemory()
        self.limits = limits or OutboxLimits()
        self._now = now or _even_clock()
        self._on_event = on_event
        self._tell = tell
        self._boxes: dict[bytes, _Box] = {}
        self._blobs: dict[str, _Blob] = {}
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached = 0
        self._mails = self._size = 0
        self._last = self._last_kept = self._ahead = 0
        self._all_full = False
        self._next = 0
        self._pending: deque[_Group] = deque()
        self._work = asyncio.Event()
        self._owners: OrderedDict[bytes, bytes] = OrderedDict()
        self._capabilities: dict[bytes, bytes] = {}
        # All who wait, longest first.
        self._readers: OrderedDict[asyncio.Future[bool], None] = OrderedDict()
        self._infos: OrderedDict[bytes, bytes] = OrderedDict()
        self._info_names: set[str] = set()
        self._wanted: dict[bytes, int] = {}
        self._to_delete: set[str] = set()
        self._to_store: dict[str, bytes] = {}
        self._tasks: list[asyncio.Task[None]] = []
        # Which blob set the mark.
        self._marked = -1
        # The log whose mail came last, and the version up to which all its mail is on the store.
        self.mark: Mark | None = None
        self.dropped = 0
        # Why nothing is written at the moment; empty while all is well.
        self.trouble = ""

    # Life ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what lies on the store, and begin to keep mail.

        Raises:
            StoreError: it cannot be read.
        """
        for name in await self._store.list(CLAIMS):
            box, _, digest = name.removeprefix(CLAIMS).partition("-")
            with suppress(ValueError):
                self._own(bytes.fromhex(box), bytes.fromhex(digest))
        self._info_names = {n for n in await self._store.list(INSTANCES) if _INSTANCE.fullmatch(n)}
        last = await self._store.get(LAST)
        if last is not None and len(last[0]) in (_NUMBER, _LAST_MARKED.size):
            self._last = self._last_kept = int.from_bytes(last[0][:_NUMBER], "big")
            if len(last[0]) > _NUMBER:
                _, self._marked, log_id, version = _LAST_MARKED.unpack(last[0])
                self.mark = log_id, version
                # Of two blobs the later one's mark counts, also where the earlier one is deleted.
                self._next = self._marked + 1
        names = await self._store.list(MAILS)
        for at in range(0, len(names), _LOADS):
            some = names[at : at + _LOADS]
            for name, found in zip(some, await asyncio.gather(*map(self._store.get, some)), strict=True):
                self._next = max(self._next, _sequence(name) + 1)
                if found is not None:
                    self._index(name, found[0])
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._sweep())]

    async def stop(self) -> None:
        """Write what waits, as far as the store takes it now, and stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FINAL_SECONDS):
                while self._pending and not self.trouble:
                    await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._store.close()

    # Keeping -------------------------------------------------------------------------

    def sizes(self) -> dict[str, int]:
        """Boxes, mails and their bytes that are kept, and frames of mail that are not on the store yet."""
        return {"boxes": len(self._boxes), "mails": self._mails, "bytes": self._size, "waiting": len(self._pending)}

    def put(self, payload: bytes, durable: Callable[[], None], *, mark: Mark | None = None) -> None:
        """Keep what a POST frame brought; `durable` is called once it is on the store.

        Mail of a commit comes with its log and version, in order: `mark` says after a restart which mail is here.
        What is no posted mail is dropped, and so is what exceeds the limits: an
        enclave that heeds ROOM frames never sends it.
        """
        mails = [mail for mail in split_posts(payload) if self._take(mail)]
        self._pending.append(_Group(mails, len(payload), durable, mark))
        self._work.set()

    def _take(self, mail: bytes) -> bool:
        try:
            header = parse_post(mail)
        except FormatError:
            return False
        box = self._boxes.get(header.box)
        limits = self.limits
        if (
            self._mails > limits.mails + limits.mails // 8
            or self._size > limits.bytes + limits.bytes // 8
            or (
                box is not None
                and (len(box.entries) >= limits.mails_per_box or box.size + len(mail) > limits.bytes_per_box)
            )
        ):
            self.dropped += 1
            return False
        return True

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._pending:
                groups = [self._pending[0]]
                size = groups[0].size
                for group in islice(self._pending, 1, 256):
                    size += group.size
                    if size > GROUP_BYTES:
                        break
                    groups.append(group)
                await self._commit(groups)
                for group in groups:
                    self._pending.popleft()
                    group.durable()

    async def _commit(self, groups: list[_Group]) -> None:
        """One blob for all of them, tried until it is there; then all are visible."""
        mails = [mail for group in groups for mail in group.mails]
        if not mails:
            return
        delay = RETRY_SECONDS
        now = self._now()
        blob = self._pack(mails, now, next((group.mark for group in reversed(groups) if group.mark), None))
        while True:
            try:
                for digest in {_digest(mail) for mail in mails}:
                    await self._keep_info(digest)
                name = f"{MAILS}{self._next:020d}"
                self._next += 1
                # Never over another blob: it may be the one whose writing seemed to fail.
                await self._store.put(name, blob, expected="")
                break
            except StoreConflict:
                continue
            except StoreError as error:
                self._fails(error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, MOST_RETRY_SECONDS)
        if self.trouble:
            self.trouble = ""
            self._on_event({"event": "store", "text": "the store takes posted mail again"})
        self._index(name, blob)

    def _fails(self, error: StoreError) -> None:
        if not self.trouble:
            why = "full" if isinstance(error, StoreFull) else "not reachable"
            self.trouble = f"the host's store is {why}: posted mail and the replies after it wait"
            self._on_event({"event": "store", "code": error.code, "text": f"{self.trouble}; {error}"})

    def _pack(self, mails: list[bytes], now: float, mark: Mark | None) -> bytes:
        head = _HEAD.pack(_MAGIC_MARKED if mark else _MAGIC, int(now))
        parts = [head, _MARK.pack(*mark)] if mark else [head]
        for mail in mails:
            # Times, so that a host whose store was lost does not begin again below what clients have; and above all
            # before, whatever the clock does: a client whose box is empty by now knows the last that was in it.
            number = int(now * 1e6) + self._ahead
            if number <= self._last:
                # From there on it runs with the clock again: numbers do not count other clients' mails.
                self._ahead += self._last + 1 - number
                number = self._last + 1
            self._last = number
            parts += [_MAIL.pack(self._last, len(mail)), mail]
        return b"".join(parts)

    def _index(self, name: str, data: bytes) -> None:
        """Make the mails of a blob visible, all at one moment."""
        if len(data) < _HEAD.size or data[:4] not in (_MAGIC, _MAGIC_MARKED):
            return
        # Written by a clock that ran ahead, it is kept from now on and no longer.
        blob = _Blob(name, min(float(_HEAD.unpack_from(data)[1]), self._now()))
        at = _HEAD.size
        if data[:4] == _MAGIC_MARKED and len(data) >= at + _MARK.size:
            if _sequence(name) > self._marked:
                self._marked = _sequence(name)
                self.mark = _MARK.unpack_from(data, at)
            at += _MARK.size
        woken = []
        while at + _MAIL.size <= len(data):
            number, size = _MAIL.unpack_from(data, at)
            at += _MAIL.size
            mail = data[at : at + size]
            if len(mail) < size or size < POST_HEADER.size:
                break
            key = _box_of(mail)
            box = self._boxes.get(key) or _Box()
            if number not in box.entries and number <= _MOST_NUMBER:
                self._boxes[key] = box
                box.entries[number] = _Entry(blob, at, size, digest := _digest(mail))
                box.last = max(box.last, number)
                self._last = max(self._last, number)
                box.size += size
                self._mails += 1
                self._size += size
                self._wanted[digest] = self._wanted.get(digest, 0) + 1
                blob.waiting.add((key, number))
                woken.append((key, box))
            at += size
        if not blob.waiting:
            self._to_delete.add(name)
            return
        self._blobs[name] = blob
        self._remember(name, data)
        for key, box in woken:
            for reader in box.readers:
                _tell(reader, new=True)
            self._fullness(key, box)

    def _remember(self, name: str, data: bytes) -> None:
        if name not in self._cache:
            self._cache[name] = data
            self._cached += len(data)
        self._cache.move_to_end(name)
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            self._cached -= len(self._cache.popitem(last=False)[1])

    # Fullness ------------------------------------------------------------------------

    def _fullness(self, key: bytes, box: _Box) -> None:
        limits = self.limits
        share = max(len(box.entries) / limits.mails_per_box, box.size / limits.bytes_per_box)
        if not box.full and share >= 0.5:
            box.full = True
            self._tell(FULL + key)
        elif box.full and share < 0.25:
            box.full = False
            self._tell(ROOM + key)
        whole = max(self._mails / limits.mails, self._size / limits.bytes)
        if self._all_full != (whole >= 1 or (self._all_full and whole >= 0.9)):
            self._all_full = not self._all_full
            self._tell(FULL if self._all_full else ROOM)

    def fullness(self) -> list[bytes]:
        """Payloads of the ROOM frames that a new boot has to be told."""
        full = [key for key, box in self._boxes.items() if box.full]
        payloads = [FULL] if self._all_full else []
        return payloads + ([FULL + b"".join(full)] if full else [])

    # Clients -------------------------------------------------------------------------

    async def claim(self, box: bytes, capability: bytes) -> bool:
        """Give a box to whoever has that capability. False: somebody else has it.

        Raises:
            StoreError: the claim could not be written.
        """
        digest = hashlib.sha256(capability).digest()
        owner = self._owners.get(box)
        if owner is not None:
            return secrets.compare_digest(owner, digest)
        if digest in self._capabilities:
            return False
        # Taken before it is written: of two at the same time one must lose.
        self._own(box, digest)
        try:
            await self._store.put(_claim_name(box, digest), b"1")
            # It may have been pushed out before, and not yet be deleted.
            self._to_delete.discard(_claim_name(box, digest))
        except BaseException:
            self._disown(box)
            raise
        if len(self._owners) > self.limits.claims:
            idle = next((b for b in self._owners if b not in self._boxes), box)
            self._to_delete.add(_claim_name(idle, self._owners[idle]))
            self._disown(idle)
        return box in self._owners

    def _own(self, box: bytes, digest: bytes) -> None:
        if box not in self._owners and len(box) == 16 and len(digest) == 32:
            self._owners[box] = digest
            self._capabilities[digest] = box

    def _disown(self, box: bytes) -> None:
        digest = self._owners.pop(box, None)
        if digest is not None:
            self._capabilities.pop(digest, None)

    def box_of(self, capability: bytes) -> bytes | None:
        """Which box that capability opens."""
        box = self._capabilities.get(hashlib.sha256(capability).digest())
        if box is not None:
            self._owners.move_to_end(box)
        return box

    async def read(self, key: bytes, after: int, *, most_bytes: int) -> list[tuple[int, bytes]]:
        """Mails of a box with a higher number, in order; at least one if there is any.

        A number that no mail has reached is of a history that this host has lost,
        and then counts as none.

        Raises:
            StoreError: the store does not give them.
        """
        box = self._boxes.get(key)
        if box is None:
            return []
        after = 0 if after > box.last else after
        found: list[tuple[int, bytes]] = []
        size = 0
        for number, entry in sorted((n, e) for n, e in list(box.entries.items()) if n > after):
            size += entry.size
            if found and size > most_bytes:
                break
            data = self._cache.get(entry.blob.name)
            if data is None:
                blob = await self._store.get(entry.blob.name)
                if blob is None:
                    self._remove(key, number)
                    continue
                data = blob[0]
            self._remember(entry.blob.name, data)
            found.append((number, data[entry.offset : entry.offset + entry.size]))
        return found

    def crowded(self, key: bytes) -> bool:
        """Whether no more may wait for that box."""
        box = self._boxes.get(key)
        return box is not None and len(box.readers) >= self.limits.readers_per_box

    async def wait(self, key: bytes, seconds: float, *, after: int | None = None) -> bool:
        """Wait for something new in a box.

        Where too many wait, whoever has waited longest makes room: boxes are free, and
        one who claims many must not keep all others from waiting.

        Args:
            after: what was read last; what came since then ends the wait at once.

        Returns:
            False: too many wait for that box, or it made room for another reader.
        """
        if self.crowded(key):
            return False
        box = self._boxes.setdefault(key, _Box())
        if after is not None and any(n > (0 if after > box.last else after) for n in box.entries):
            return True
        if len(self._readers) >= self.limits.readers:
            _tell(self._readers.popitem(last=False)[0], new=False)
        reader: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._readers[reader] = None
        box.readers.add(reader)
        try:
            async with asyncio.timeout(seconds):
                return await reader
        except TimeoutError:
            return True
        finally:
            self._readers.pop(reader, None)
            box.readers.discard(reader)
            self._forget(key, box)

    def delete(self, key: bytes, below: int, *, first: int = 0) -> None:
        """Drop mails whose number is lower, and not before `first`; the store follows when it can."""
        box = self._boxes.get(key)
        for number in [n for n in box.entries if first <= n < below] if box is not None else ():
            self._remove(key, number)

    def _remove(self, key: bytes, number: int) -> None:
        box = self._boxes.get(key)
        # Its client may have deleted it while a reader waited for the store.
        entry = None if box is None else box.entries.pop(number, None)
        if box is None or entry is None:
            return
        box.size -= entry.size
        self._mails -= 1
        self._size -= entry.size
        self._wanted[entry.digest] -= 1
        if not self._wanted[entry.digest]:
            del self._wanted[entry.digest]
        entry.blob.waiting.discard((key, number))
        if not entry.blob.waiting:
            del self._blobs[entry.blob.name]
            self._to_delete.add(entry.blob.name)
            gone = self._cache.pop(entry.blob.name, None)
            self._cached -= 0 if gone is None else len(gone)
        self._fullness(key, box)
        self._forget(key, box)

    def _forget(self, key: bytes, box: _Box) -> None:
        if not box.entries and not box.readers and self._boxes.get(key) is box:
            del self._boxes[key]

    # Senders -------------------------------------------------------------------------

    def announce(self, claims: bytes, info: bytes) -> None:
        """Instance info as it is handed out now; kept while mail of that instance is."""
        digest = hashlib.sha512(b"conclave/1 instance-claims\0" + claims).digest()
        self._infos[digest] = info
        self._infos.move_to_end(digest)
        if len(self._infos) > 4:
            self._infos.popitem(last=False)
        if digest in self._wanted or _info_name(digest) in self._info_names:
            self._to_store[_info_name(digest)] = info

    async def info(self, digest: bytes) -> bytes | None:
        """Instance info of a boot that posted mail, by its claims digest. Raises StoreError."""
        known = self._infos.get(digest)
        if known is not None or _info_name(digest) not in self._info_names:
            return known
        found = await self._store.get(_info_name(digest))
        return None if found is None else found[0]

    async def keep_senders(self, payload: bytes) -> None:
        """Have on the store who sends these mails, before a commit is that they belong to.

        If this host ends in between, the next one gives them to their clients, long after their boot is gone.

        Raises:
            StoreError: it is not there.
        """
        for digest in {_digest(mail) for mail in split_posts(payload) if len(mail) >= POST_HEADER.size}:
            await self._keep_info(digest)

    async def _keep_info(self, digest: bytes) -> None:
        name = _info_name(digest)
        if name not in self._info_names and digest in self._infos:
            await self._store.put(name, self._infos[digest])
            self._info_names.add(name)
            self._to_delete.discard(name)

    # Tidying -------------------------------------------------------------------------

    async def _sweep(self) -> None:
        while True:
            self.expire()
            await self._tidy()
            await asyncio.sleep(SWEEP_SECONDS)

    def expire(self) -> None:
        """Drop what is older than may be kept, and what no mail needs any more."""
        oldest = self._now() - self.limits.keep_seconds
        for blob in [b for b in self._blobs.values() if b.at < oldest]:
            for key, number in list(blob.waiting):
                self._remove(key, number)
        if not self._infos:
            # Before the first boot has loaded its state, mail of earlier ones may still come out of it.
            return
        coming = {_digest(mail) for group in self._pending for mail in group.mails}
        for name in self._info_names:
            digest = bytes.fromhex(name.removeprefix(INSTANCES))
            if digest not in self._wanted and digest not in self._infos and digest not in coming:
                self._to_delete.add(name)

    async def _tidy(self) -> None:
        """Bring the store up to date, as far as it takes that now."""
        with suppress(StoreError):
            for name, info in list(self._to_store.items()):
                await self._store.put(name, info)
                self._info_names.add(name)
                self._to_store.pop(name, None)
            if self._to_delete and self._last > self._last_kept:
                last = self._last
                await self._store.put(LAST, self._last_blob())
                self._last_kept = last
            for name in [*self._to_delete]:
                if name not in self._to_delete:
                    # Wanted again since then.
                    continue
                await self._store.delete(name)
                self._info_names.discard(name)
                self._to_delete.discard(name)

    def _last_blob(self) -> bytes:
        if self.mark is None:
            return self._last.to_bytes(_NUMBER, "big")
        return _LAST_MARKED.pack(self._last, self._marked, *self.mark)


def _even_clock() -> Callable[[], float]:
    """Seconds since 1970 as the clock says now; what is set later changes nothing."""
    began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: began + time.clock_gettime(time.CLOCK_BOOTTIME)


def _tell(reader: asyncio.Future[bool], *, new: bool) -> None:
    if not reader.done():
        reader.set_result(new)


def _sequence(name: str) -> int:
    digits = name.removeprefix(MAILS)
    return int(digits) if digits.isdigit() else 0


def _claim_name(box: bytes, digest: bytes) -> str:
    return f"{CLAIMS}{box.hex()}-{digest.hex()}"


def _info_name(digest: bytes) -> str:
    return INSTANCES + digest.hex()


def _box_of(mail: bytes) -> bytes:
    return mail[8:24]


def _digest(mail: bytes) -> bytes:
    return mail[24:88]
