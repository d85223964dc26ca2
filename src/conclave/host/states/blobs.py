"""A state store over any blob store: one blob for what is appended together, one for each chunk of a snapshot.

Runs in the untrusted host. A batch is created under the version it begins with, and only if
nobody else created one: of two hosts that continue one log, one is refused.

Spec: spec/stores.md section 5 (STORE-25).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import pairwise
from typing import Final

from conclave.errors import StoreConflict, StoreDamaged
from conclave.host.states.items import Found, pack, unpack
from conclave.host.states.store import NONE_YET, Item, Snapshot, What
from conclave.host.stores import BlobStore

LOG: Final = "state/log/"
SNAPSHOTS: Final = "state/snapshots/"
# A host that was away while another one continued the log, made a snapshot and deleted what was before it would find no
# blob where its next one goes. So each looks for snapshots this often, and deletes only what has been superfluous for
# longer than that and an operation together take.
LOOK_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 60.0
# Blobs that are read or deleted at one time.
_AT_ONCE: Final = 8
_LOG_NAME: Final = re.compile(re.escape(LOG) + "([0-9]{20})")
_SNAPSHOT_NAME: Final = re.compile(re.escape(SNAPSHOTS) + "([0-9]{20})-([0-9a-f]{32})/([0-9]{10})")


class BlobStates:
    """See `StateStore`. The blob store stays open when this is closed."""

    def __init__(self, blobs: BlobStore, *, grace_seconds: float = GRACE_SECONDS) -> None:
        """Touches nothing yet.

        Args:
            grace_seconds: how long what is superfluous stays; 0 where no other host can be.
        """
        self._grace = grace_seconds
        self._looked = -LOOK_SECONDS
        # What was superfluous, and since when this handle knows.
        self._old: dict[str, float] = {}
        self._blobs = blobs
        self._begun: tuple[Snapshot, int] | None = None
        # Where the log ends, once this handle knows, and what it wrote last.
        self._last: int | None = None
        self._written: list[Item] = []

    async def read(self) -> AsyncGenerator[tuple[What, bytes], None]:
        """See `StateStore`."""
        newest = await self._newest()
        due, end = 0, NONE_YET
        if newest is not None:
            snapshot, chunks = newest
            yield What.MANIFEST, await self._get(_chunk_name(snapshot, 0))
            async for data in self._all([_chunk_name(snapshot, index) for index in range(1, chunks + 1)]):
                yield What.CHUNK, data
            due = snapshot.version + 1
        names = await self._log()
        self._last, self._written = None, []
        wanted = [name for name, following in pairwise([*names, ""]) if not following or _first(following) > due]
        async for data in self._all(wanted):
            for found in _whole(data):
                if found.number > due:
                    raise StoreDamaged(f"the log has no whole item of version {due}")
                if found.number == due:
                    yield What.ITEM, found.data
                    due += 1
                end = found.number
        if end < due - 1:
            raise StoreDamaged(f"the log ends before version {due - 1}, of which there is a snapshot")
        self._last = end

    async def append(self, items: Sequence[Item]) -> None:
        """See `StateStore`."""
        if list(items) == self._written:
            return
        if self._last is None:
            self._last = await self._end()
        if items[0][0] != self._last + 1:
            raise StoreConflict(f"the log ends with version {self._last}, version {items[0][0]} does not follow")
        await self._look(self._last)
        await self._create(f"{LOG}{items[0][0]:020d}", pack(items))
        self._last, self._written = items[-1][0], list(items)

    async def put_chunk(self, snapshot: Snapshot, index: int, chunk: bytes) -> None:
        """See `StateStore`."""
        if index == 1:
            self._begun = snapshot, 0
        if self._begun != (snapshot, index - 1):
            raise StoreConflict("a snapshot's chunk does not follow the one before it")
        await self._create(_chunk_name(snapshot, index), chunk)
        self._begun = snapshot, index

    async def complete(self, snapshot: Snapshot, manifest: bytes) -> None:
        """See `StateStore`."""
        if self._begun is None or self._begun[0] != snapshot:
            if await self._blobs.get(_chunk_name(snapshot, 0)) is not None:
                return
            raise StoreConflict("a snapshot's manifest follows no chunk of it")
        due = [_chunk_name(snapshot, index) for index in range(1, self._begun[1] + 1)]
        if not set(due) <= set(await self._blobs.list(SNAPSHOTS)):
            raise StoreConflict("another host deleted chunks of the snapshot")
        await self._create(_chunk_name(snapshot, 0), manifest)
        self._begun = None

    async def forget(self) -> None:
        """See `StateStore`."""
        newest = await self._newest()
        kept = [one for one in (newest[0] if newest else None, self._begun[0] if self._begun else None) if one]
        old = [name for name in await self._blobs.list(SNAPSHOTS) if _snapshot(name) not in kept]
        if newest is not None:
            due = newest[0].version + 1
            names = await self._log()
            old += [name for name, following in pairwise(names) if _first(following) <= due]
        now = time.monotonic()
        self._old = {name: self._old.get(name, now) for name in old}
        for some in _some([name for name, since in self._old.items() if now - since >= self._grace]):
            await asyncio.gather(*map(self._blobs.delete, some))

    async def close(self) -> None:
        """See `StateStore`."""

    async def _look(self, last: int) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            newest = await self._newest()
            if newest is not None and newest[0].version > last:
                raise StoreConflict("another host continued this log, and made a snapshot of it")
            self._looked = now

    async def _create(self, name: str, data: bytes) -> None:
        """What is there already, and the same, was written by an attempt whose answer was lost."""
        try:
            await self._blobs.put(name, data, expected="")
        except StoreConflict:
            found = await self._blobs.get(name)
            if found is None or found[0] != data:
                raise StoreConflict("another host continued this log, or writes the same snapshot") from None

    async def _end(self) -> int:
        """The newest version that lies there."""
        names = await self._log()
        if names:
            return [found.number for found in _whole(await self._get(names[-1]))][-1]
        newest = await self._newest()
        return NONE_YET if newest is None else newest[0].version

    async def _log(self) -> list[str]:
        return [name for name in await self._blobs.list(LOG) if _LOG_NAME.fullmatch(name)]

    async def _newest(self) -> tuple[Snapshot, int] | None:
        """The complete snapshot of the highest version, and the number of its chunks."""
        found: dict[Snapshot, int] = {}
        complete = set()
        for name in await self._blobs.list(SNAPSHOTS):
            snapshot = _snapshot(name)
            if snapshot is not None:
                index = int(name[-10:])
                found[snapshot] = max(index, found.get(snapshot, 0))
                complete |= set() if index else {snapshot}
        newest = max(complete, key=lambda one: (one.version, one.snapshot_id), default=None)
        return None if newest is None else (newest, found[newest])

    async def _all(self, names: list[str]) -> AsyncGenerator[bytes, None]:
        for some in _some(names):
            for data in await asyncio.gather(*map(self._get, some)):
                yield data

    async def _get(self, name: str) -> bytes:
        found = await self._blobs.get(name)
        if found is None:
            raise StoreDamaged("a blob of the log or of a snapshot is missing")
        return found[0]


def _some(names: list[str]) -> Iterator[list[str]]:
    return (names[at : at + _AT_ONCE] for at in range(0, len(names), _AT_ONCE))


def _whole(data: bytes) -> Iterator[Found]:
    end = 0
    for found in unpack(data):
        end = found.end
        yield found
    if end != len(data):
        raise StoreDamaged("a blob of the log is not as it was written")


def _first(name: str) -> int:
    return int(name.removeprefix(LOG))


def _snapshot(name: str) -> Snapshot | None:
    parts = _SNAPSHOT_NAME.fullmatch(name)
    return None if parts is None else Snapshot(bytes.fromhex(parts[2]), int(parts[1]))


def _chunk_name(snapshot: Snapshot, index: int) -> str:
    return f"{SNAPSHOTS}{snapshot.version:020d}-{snapshot.snapshot_id.hex()}/{index:010d}"
