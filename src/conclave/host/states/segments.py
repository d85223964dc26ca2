"""The log of one state store in a directory: files of items, each file the continuation of the one before it.

Runs in the untrusted host, in a thread, as the only writer of its directory. Of the last file
the rest is allocated beforehand and zero, so that a write changes neither the file's size nor its
map of blocks, and `fdatasync` has the data alone to write.

Spec: spec/stores.md section 5 (STORE-22 to STORE-24).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from conclave.errors import StoreConflict, StoreDamaged
from conclave.host.states.items import HEADER, MAGIC, Found, item_at, pack
from conclave.host.states.store import MAX_ITEM, NONE_YET, Item
from conclave.host.stores.local import sync_directory

SEGMENT_BYTES: Final = 64 * 1024 * 1024
# So much is allocated at one time.
STEP_BYTES: Final = 4 * 1024 * 1024
PREFIX: Final = "log-"
_DIGITS: Final = 20


@dataclass(slots=True)
class _Newest:
    """The file that is written to."""

    file: int
    end: int
    room: int
    # What follows `end` may not be zero: a write failed.
    dirty: bool = False


@dataclass(slots=True)
class Segments:
    """Reads and appends. Every call may raise OSError."""

    directory: Path
    last: int = NONE_YET
    # First version of each file, in order.
    firsts: list[int] = field(default_factory=list)
    _newest: _Newest | None = None
    _roll: bool = False
    # What was appended last: it may be given again.
    _written: list[Item] = field(default_factory=list)

    def open(self) -> None:
        """Find the end of the log. What a killed writer left unfinished there is cut off before the next write.

        Raises:
            StoreDamaged: what follows the last whole item is not the remains of one write.
        """
        self.firsts = sorted(
            int(name.removeprefix(PREFIX))
            for name in os.listdir(self.directory)
            if name.startswith(PREFIX) and len(name) == len(PREFIX) + _DIGITS and name[len(PREFIX) :].isdigit()
        )
        self.last, self._written = NONE_YET, []
        # The names of files that a killed writer had begun: what is appended there must not go with its name.
        sync_directory(self.directory)
        if not self.firsts:
            return
        first = self.firsts[-1]
        self.last, batch, end = first - 1, NONE_YET, 0
        for found in self._file(first):
            self.last, batch, end = found.number, found.batch, found.end
        file = os.open(self._path(first), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        newest = _Newest(file, end, os.fstat(file).st_size)
        try:
            rest = os.pread(file, newest.room - end, end)
            if rest.strip(b"\0"):
                self._check_torn(rest, {batch, self.last + 1})
                newest.dirty = True
        except BaseException:
            os.close(file)
            raise
        self._newest = newest

    def _check_torn(self, rest: bytes, batches: set[int]) -> None:
        """Of one write any part may be there. What a later write left says that the earlier one was acknowledged."""
        at = rest.find(MAGIC)
        while at >= 0:
            found = item_at(rest, at)
            if found is not None and found.batch not in batches:
                raise StoreDamaged(f"the log has no whole item of version {self.last + 1}, and has later ones")
            at = rest.find(MAGIC, at + 1)

    def append(self, items: Sequence[Item]) -> None:
        """Add items; they are on the disk when this returns.

        Raises:
            StoreConflict: their versions do not continue the log.
        """
        first = items[0][0]
        if first != self.last + 1:
            if list(items) == self._written:
                return
            raise StoreConflict(f"the log ends with version {self.last}, version {first} does not follow")
        data = pack(items)
        newest, size = self._newest, len(data)
        if newest is None or (newest.end and (self._roll or newest.end + size > SEGMENT_BYTES)):
            newest = self._begin(first)
        if newest.dirty:
            self._clean(newest)
        at = newest.end
        if at + size > newest.room:
            _grow(newest, at + size)
        newest.dirty = True
        _write(newest.file, data, at)
        os.fdatasync(newest.file)
        newest.dirty = False
        newest.end = at + size
        self.last = items[-1][0]
        self._written = list(items)

    def roll(self) -> None:
        """Have the next item begin a new file, so that the present ones can be deleted as a whole."""
        self._roll = True

    def items(self, after: int) -> Iterator[Item]:
        """Items with a higher version, in order.

        Raises:
            StoreDamaged: one is missing or not whole.
        """
        due = after + 1
        for first, following in pairwise([*self.firsts, self.last + 1]):
            if following <= due:
                continue
            for found in self._file(first):
                if found.number >= due:
                    if found.number != due:
                        raise _missing(due)
                    yield found.number, found.data
                    due += 1
        if due <= self.last:
            raise _missing(due)

    def drop(self, upto: int) -> None:
        """Delete files that hold no item above that version; the newest file always stays."""
        kept = len(self.firsts)
        while len(self.firsts) > 1 and self.firsts[1] <= upto + 1:
            self._path(self.firsts[0]).unlink(missing_ok=True)
            del self.firsts[0]
        if len(self.firsts) != kept:
            sync_directory(self.directory)

    def close(self) -> None:
        """Give the file back; if it was written to, without the room that was allocated beforehand."""
        newest, self._newest = self._newest, None
        if newest is not None:
            if self._written:
                with suppress(OSError):
                    os.ftruncate(newest.file, newest.end)
            os.close(newest.file)

    def _begin(self, first: int) -> _Newest:
        if self._newest is not None:
            os.ftruncate(self._newest.file, self._newest.end)
            os.fsync(self._newest.file)
            os.close(self._newest.file)
            self._newest = None
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self._path(first), flags, 0o600)
        try:
            sync_directory(self.directory)
        except BaseException:
            # Nothing is written to a file that may lose its name.
            os.close(file)
            raise
        self._newest, self._roll = _Newest(file, 0, 0), False
        if first not in self.firsts:
            self.firsts.append(first)
        return self._newest

    @staticmethod
    def _clean(newest: _Newest) -> None:
        os.ftruncate(newest.file, newest.end)
        os.fsync(newest.file)
        newest.room, newest.dirty = newest.end, False

    def _file(self, first: int) -> Iterator[Found]:
        """Whole items of one file from its beginning, each the next after the one before it."""
        due = first
        with self._path(first).open("rb") as file:
            while head := file.read(HEADER.size):
                size = HEADER.unpack(head)[1] if len(head) == HEADER.size and head.startswith(MAGIC) else MAX_ITEM + 1
                found = item_at(head + file.read(size), 0) if size <= MAX_ITEM else None
                if found is None or found.number != due:
                    return
                yield Found(found.number, found.batch, found.data, file.tell())
                due += 1

    def _path(self, first: int) -> Path:
        return self.directory / f"{PREFIX}{first:0{_DIGITS}d}"


def _grow(newest: _Newest, needed: int) -> None:
    """Allocate: a write that has its room cannot be half done for want of it."""
    for room in (max(needed, newest.room + STEP_BYTES), needed):
        try:
            os.posix_fallocate(newest.file, newest.room, room - newest.room)
            newest.room = room
            return
        except OSError as error:
            refused = error
    raise refused


def _write(file: int, data: bytes, at: int) -> None:
    done = os.pwrite(file, data, at)
    while done < len(data):
        done += os.pwrite(file, memoryview(data)[done:], at + done)


def _missing(version: int) -> StoreDamaged:
    return StoreDamaged(f"the log has no whole item of version {version}")
