"""The snapshots of one state store in a directory: one file each, which has its name once it is complete.

Runs in the untrusted host, in a thread, as the only writer of its directory.

Spec: spec/stores.md section 5 (STORE-21).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from conclave.errors import StoreConflict, StoreDamaged
from conclave.host.states.items import HEADER, item_at, pack
from conclave.host.states.store import MAX_ITEM, Snapshot
from conclave.host.stores.local import sync_directory

NEW: Final = "new-snapshot"
_NAME: Final = re.compile(r"snapshot-([0-9]{20})-([0-9a-f]{32})")
# magic, where the manifest begins: the last bytes of a complete snapshot
_END: Final = struct.Struct(">4sQ")
_END_MAGIC: Final = b"CSE1"


class Snapshots:
    """Reads, writes and deletes. Every call may raise OSError."""

    def __init__(self, directory: Path) -> None:
        """Touches nothing yet."""
        self._directory = directory
        self._new: BinaryIO | None = None
        self._begun: tuple[Snapshot, int] | None = None

    def newest(self) -> Snapshot | None:
        """The complete one of the highest version."""
        found = self._all()
        return found[-1] if found else None

    def put(self, snapshot: Snapshot, index: int, chunk: bytes) -> None:
        """See `StateStore.put_chunk`.

        Raises:
            StoreConflict: it follows no other of its snapshot.
        """
        if index == 1:
            self.abandon()
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            self._new = os.fdopen(os.open(self._directory / NEW, flags, 0o600), "wb", buffering=0)
            self._begun = snapshot, 0
        if self._new is None or self._begun != (snapshot, index - 1):
            raise StoreConflict("a snapshot's chunk does not follow the one before it")
        try:
            _write(self._new, pack([(index, chunk)]))
        except OSError:
            # Its room is needed.
            with suppress(OSError):
                self.abandon()
            raise
        self._begun = snapshot, index

    def complete(self, snapshot: Snapshot, manifest: bytes) -> None:
        """See `StateStore.complete`."""
        if self._path(snapshot).exists():
            return
        if self._new is None or self._begun is None or self._begun[0] != snapshot:
            raise StoreConflict("a snapshot's manifest follows no chunk of it")
        at = self._new.tell()
        _write(self._new, pack([(0, manifest)]) + _END.pack(_END_MAGIC, at))
        os.fsync(self._new.fileno())
        (self._directory / NEW).replace(self._path(snapshot))
        sync_directory(self._directory)
        self._new.close()
        self._new, self._begun = None, None

    def manifest(self, snapshot: Snapshot) -> bytes:
        """What `complete` was given. Raises StoreDamaged."""
        return self._ends(snapshot)[0]

    def chunks(self, snapshot: Snapshot) -> Iterator[bytes]:
        """Its chunks, in order. Raises StoreDamaged."""
        end = self._ends(snapshot)[1]
        due = 1
        with self._path(snapshot).open("rb") as file:
            while file.tell() < end:
                head = file.read(HEADER.size)
                size = HEADER.unpack(head)[1] if len(head) == HEADER.size else MAX_ITEM + 1
                found = item_at(head + file.read(size), 0) if size <= MAX_ITEM else None
                if found is None or found.number != due:
                    raise StoreDamaged(f"the snapshot of version {snapshot.version} has no whole chunk {due}")
                yield found.data
                due += 1

    def forget(self) -> None:
        """Delete all but the newest, and what never became complete; not what is being written."""
        for old in self._all()[:-1]:
            self._path(old).unlink(missing_ok=True)
        if self._new is None:
            (self._directory / NEW).unlink(missing_ok=True)

    def abandon(self) -> None:
        """End the snapshot that is being written."""
        new, self._new, self._begun = self._new, None, None
        if new is not None:
            new.close()
            (self._directory / NEW).unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(self._path(one).stat().st_size for one in self._all())

    def _ends(self, snapshot: Snapshot) -> tuple[bytes, int]:
        with self._path(snapshot).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _END.size))
            end = file.read(_END.size)
            if len(end) == _END.size and end.startswith(_END_MAGIC):
                at = _END.unpack(end)[1]
                if 0 <= size - at - _END.size <= HEADER.size + MAX_ITEM:
                    file.seek(at)
                    found = item_at(file.read(size - at - _END.size), 0)
                    if found is not None and found.number == 0:
                        return found.data, at
        raise StoreDamaged(f"the snapshot of version {snapshot.version} has no whole manifest")

    def _all(self) -> list[Snapshot]:
        names = sorted(filter(None, map(_NAME.fullmatch, os.listdir(self._directory))), key=lambda name: name[0])
        return [Snapshot(bytes.fromhex(name[2]), int(name[1])) for name in names]

    def _path(self, snapshot: Snapshot) -> Path:
        return self._directory / f"snapshot-{snapshot.version:020d}-{snapshot.snapshot_id.hex()}"


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
