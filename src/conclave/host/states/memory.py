"""A state store that lasts as long as the host: for development and tests.

Runs in the untrusted host.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from conclave.errors import StoreConflict
from conclave.host.states.store import NONE_YET, Item, Snapshot, What


class MemoryStates:
    """See `StateStore`."""

    def __init__(self) -> None:
        """Empty."""
        self._items: dict[int, bytes] = {}
        self._last = NONE_YET
        self._begun: tuple[Snapshot, list[bytes]] | None = None
        self._complete: tuple[Snapshot, bytes, list[bytes]] | None = None

    async def read(self) -> AsyncGenerator[tuple[What, bytes], None]:
        """See `StateStore`."""
        after = NONE_YET
        if self._complete is not None:
            snapshot, manifest, chunks = self._complete
            after = snapshot.version
            yield What.MANIFEST, manifest
            for chunk in chunks:
                yield What.CHUNK, chunk
        for version in range(after + 1, self._last + 1):
            yield What.ITEM, self._items[version]

    async def append(self, items: Sequence[Item]) -> None:
        """See `StateStore`."""
        if all(self._items.get(version) == data for version, data in items):
            return
        if items[0][0] != self._last + 1:
            raise StoreConflict(f"the log ends with version {self._last}, version {items[0][0]} does not follow")
        self._items |= dict(items)
        self._last = items[-1][0]

    async def put_chunk(self, snapshot: Snapshot, index: int, chunk: bytes) -> None:
        """See `StateStore`."""
        if index == 1:
            self._begun = snapshot, []
        if self._begun is None or self._begun[0] != snapshot or index != len(self._begun[1]) + 1:
            raise StoreConflict("the chunk follows no other of its snapshot")
        self._begun[1].append(chunk)

    async def complete(self, snapshot: Snapshot, manifest: bytes) -> None:
        """See `StateStore`."""
        if self._complete is not None and self._complete[:2] == (snapshot, manifest):
            return
        if self._begun is None or self._begun[0] != snapshot:
            raise StoreConflict("a snapshot's manifest follows no chunk of it")
        self._complete = snapshot, manifest, self._begun[1]
        self._begun = None

    async def forget(self) -> None:
        """See `StateStore`."""
        if self._complete is not None:
            self._items = {v: data for v, data in self._items.items() if v > self._complete[0].version}

    async def close(self) -> None:
        """See `StateStore`."""
