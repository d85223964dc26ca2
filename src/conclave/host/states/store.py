"""What every state store is: one log of items in order, and snapshots that stand for its beginning.

Runs in the untrusted host. What is kept is sealed; a store knows versions and sizes.

Spec: spec/stores.md section 5, spec/host-channel.md section 2.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

# No version yet: the first item has the next one.
NONE_YET: Final = -1
MAX_ITEM: Final = 17 * 1024 * 1024
Item = tuple[int, bytes]


class What(IntEnum):
    """What a STORED frame brings."""

    MANIFEST = 0
    CHUNK = 1
    ITEM = 2
    END = 3
    UNREADABLE = 4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which snapshot a chunk is of: its id, and the version whose state it holds."""

    snapshot_id: bytes
    version: int


class StateStore(Protocol):
    """A log that only grows, by one item for each version, and its snapshots.

    Nothing is written at the same time as another thing through one handle but chunks of snapshots.
    """

    def read(self) -> AsyncGenerator[tuple[What, bytes], None]:
        """The newest complete snapshot, its manifest first and then its chunks in order; then the items after it.

        Raises:
            StoreDamaged: something is missing, or not as it was written.
            StoreUnavailable: the store is gone or refuses.
        """

    async def append(self, items: Sequence[Item]) -> None:
        """Add items, whose versions follow each other and the last one's; all are durable when this returns.

        Each item is there whole or not at all, and none without those before it. After an error the same items may
        be given again: what was written of them is recognised.

        Raises:
            StoreConflict: another has that version; nothing was written.
            StoreFull: no room; nothing that will be read as an item was written.
            StoreDamaged, StoreUnavailable: the items are there, or not.
        """

    async def put_chunk(self, snapshot: Snapshot, index: int, chunk: bytes) -> None:
        """Keep a chunk, 1, 2, 3 and so on; the first one ends any other snapshot that is not complete.

        Raises:
            StoreError: it is not kept, and its snapshot never becomes complete.
        """

    async def complete(self, snapshot: Snapshot, manifest: bytes) -> None:
        """Make a snapshot complete: all of it is durable when this returns.

        Raises:
            StoreError: it is not complete, or it is.
        """

    async def forget(self) -> None:
        """Delete what the newest complete snapshot made superfluous, and snapshots that never became complete.

        Raises:
            StoreError: some of it is left.
        """

    async def close(self) -> None:
        """Let go of files and connections; the store can no longer be used."""
