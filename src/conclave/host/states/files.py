"""A state store in a directory of an ordinary file system: a log of files, and snapshots beside it.

Runs in the untrusted host. One handle at a time, by a lock that ends with its process.

Spec: spec/stores.md section 5.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from conclave.errors import StoreDamaged
from conclave.host.states.segments import Segments
from conclave.host.states.snapshots import Snapshots
from conclave.host.states.store import NONE_YET, Item, Snapshot, What
from conclave.host.states.worker import Worker
from conclave.host.stores.local import hold, sync_directory

LOCK: Final = "lock"
# So much is read before whoever reads takes it.
_READ_BYTES: Final = 2 * 1024 * 1024
_Piece = tuple[What, bytes]


class FileStates:
    """See `StateStore`. The directory is made by the first operation."""

    def __init__(self, directory: Path) -> None:
        """Touches nothing yet."""
        self._directory = directory
        self._lock: BinaryIO | None = None
        self._segments = Segments(directory)
        self._snapshots = Snapshots(directory)
        # A large snapshot on its way to the disk must not hold up the log.
        self._log = Worker("state-log")
        self._rest = Worker("state-snapshots")

    async def read(self) -> AsyncGenerator[_Piece, None]:
        """See `StateStore`."""
        pieces = self._pieces()
        while some := await self._log.run(lambda: _some(pieces)):
            for piece in some:
                yield piece

    async def append(self, items: Sequence[Item]) -> None:
        """See `StateStore`."""
        await self._log.run_quick(self._append, items)

    async def put_chunk(self, snapshot: Snapshot, index: int, chunk: bytes) -> None:
        """See `StateStore`."""
        if index == 1:
            await self._log.run(self._roll)
        await self._rest.run(lambda: self._snapshots.put(snapshot, index, chunk))

    async def complete(self, snapshot: Snapshot, manifest: bytes) -> None:
        """See `StateStore`."""
        await self._rest.run(lambda: self._snapshots.complete(snapshot, manifest))

    async def forget(self) -> None:
        """See `StateStore`."""
        await self._log.run(self._open)
        await self._rest.run(self._snapshots.forget)
        await self._log.run(self._drop)

    async def close(self) -> None:
        """See `StateStore`."""
        if self._lock is not None:
            await self._rest.run(self._snapshots.abandon)
            await self._log.run(self._close)
        self._log.close()
        self._rest.close()

    # In a thread ---------------------------------------------------------------------

    def _open(self) -> None:
        if self._lock is not None:
            return
        if not self._directory.is_dir():
            self._directory.mkdir(mode=0o700)
            sync_directory(self._directory.parent)
        lock = hold(self._directory / LOCK)
        try:
            self._segments.open()
            newest = self._snapshots.newest()
            if newest is not None and self._segments.last < newest.version:
                raise StoreDamaged(f"the log ends before version {newest.version}, of which there is a snapshot")
        except BaseException:
            self._segments.close()
            lock.close()
            raise
        self._lock = lock

    def _close(self) -> None:
        self._segments.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def _append(self, items: Sequence[Item]) -> None:
        if self._lock is None:
            self._open()
        self._segments.append(items)

    def _roll(self) -> None:
        self._open()
        self._segments.roll()

    def _drop(self) -> None:
        newest = self._snapshots.newest()
        if newest is not None:
            self._segments.drop(newest.version)

    def _pieces(self) -> Iterator[_Piece]:
        self._open()
        newest = self._snapshots.newest()
        after = NONE_YET
        if newest is not None:
            after = newest.version
            yield What.MANIFEST, self._snapshots.manifest(newest)
            for chunk in self._snapshots.chunks(newest):
                yield What.CHUNK, chunk
        for _, data in self._segments.items(after):
            yield What.ITEM, data


def _some(pieces: Iterator[_Piece]) -> list[_Piece]:
    """The next ones, up to a size; none: there are no more."""
    found: list[_Piece] = []
    size = 0
    for piece in pieces:
        found.append(piece)
        size += len(piece[1]) + 64
        if size >= _READ_BYTES:
            break
    return found
