"""The committed table of a log, and optimistic transactions over it.

Pure. A transaction reads one snapshot, sees its own changes over it and remembers
what it read. If nothing of that changed meanwhile, its changes may be committed:
then all committed transactions had the same effect as one after the other, in the
order of their commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from enum import Enum
from typing import Final

import msgspec

from conclave.persistence.ranges import Range, covers
from conclave.persistence.versions import RELEASED, Reader, Versions

# What one transaction may change, as `_cost` counts it: what a record holds, with room for its other parts.
MAX_CHANGES: Final = 15 * 1024 * 1024
_OVERHEAD: Final = 16


class Table(Versions[bytes]):
    """Committed keys and values of one log."""

    @classmethod
    def load(cls, items: Iterable[tuple[str, bytes]]) -> Table:
        """A table of these items.

        Args:
            items: in rising order of their keys.

        Raises:
            ValueError: out of order, or a key twice.
        """
        return cls(_rising(items))

    def begin(self) -> Transaction:
        """A transaction over what is committed now. The caller must commit or release it."""
        return Transaction(self, self.snapshot())


def _rising(items: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    last: str | None = None
    for item in items:
        key = item[0]
        if last is not None and key <= last:
            raise ValueError("the items of a table must come in rising order of their keys, each once")
        last = key
        yield item


class _Gone(Enum):
    GONE = "deleted by this transaction"


_GONE: Final = _Gone.GONE
_Own = bytes | _Gone


class Transaction(msgspec.Struct, eq=False):
    """Changes over a snapshot, and what was read for them. Made by `Table.begin`.

    For one thread at a time. Whoever wants it committed asks `conflicts` and calls `commit`, with no
    other commit between.
    """

    _table: Table
    _reader: Reader[bytes]
    # Its changes; in order and with versions from the first scan on that has to show some.
    _own: dict[str, _Own] = {}
    _versions: Versions[_Own] | None = None
    # What was looked for; what was scanned.
    _read: set[str] = set()
    _ranges: list[Range] = []
    # How many keys more there are than in the snapshot, from when their number is first asked for.
    _more: int | None = None
    # Own snapshots of scans that ended.
    _ended: list[Reader[_Own]] = []
    size_bytes: int = 0

    # Not what is read and written.
    __repr__ = object.__repr__

    def __len__(self) -> int:
        if self._more is None:
            self._more = sum(self._adds(key, None, value) for key, value in self._own.items())
        return len(self._reader) + self._more

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> bytes | None:
        """The value; None if there is none."""
        own = self._own.get(key)
        if own is not None:
            return None if own is _GONE else own
        self._read.add(key)
        return self._reader.get(key)

    def set(self, key: str, value: bytes) -> None:
        """Set a value, without looking at the old one.

        Raises:
            ValueError: the transaction would change more than MAX_CHANGES. It changed nothing, and may go on.
        """
        self._put(key, value)

    def delete(self, key: str) -> None:
        """Remove a key.

        Raises:
            KeyError: it is not there.
            ValueError: as `set`.
        """
        if self.get(key) is None:
            raise KeyError(key)
        self._put(key, _GONE)

    def clear(self) -> None:
        """Remove all keys, or none.

        Raises:
            ValueError: as `set`.
        """
        size = sum(_cost(key, _GONE) for key, value in self._own.items() if value is _GONE)
        found = []
        for key, _ in self.scan():
            size += _cost(key, _GONE)
            if size > MAX_CHANGES:
                raise _too_large(size)
            found.append(key)
        for key in found:
            self._replace(key, self._own.get(key), _GONE)
        self.size_bytes = size

    def scan(self, low: str = "", high: str | None = None, *, reverse: bool = False) -> Iterator[tuple[str, bytes]]:
        """Items whose keys are at least `low` and less than `high` (None: no end), in order.

        They are as they were when the first was taken: what this transaction changes later is not among them.
        """
        looked = Range(low, high, reverse)
        self._ranges.append(looked)
        items = self._reader.scan(low, high, reverse=reverse)
        if not self._own:
            for item in items:
                looked.last = item[0]
                yield item
        else:
            if self._versions is None:
                self._versions = Versions(sorted(self._own.items()))
                self._own = self._versions.current
            own = self._versions.snapshot()
            try:
                for key, value in _merged(items, own.scan(low, high, reverse=reverse), reverse):
                    looked.last = key
                    if value is not _GONE:
                        yield key, value
            finally:
                # Not released here: this may run at any moment, also while a change is under way.
                self._ended.append(own)
        looked.done = True

    @property
    def only_read(self) -> bool:
        """Whether nothing was set or deleted, not even to what it was."""
        return not self._own

    def changes(self) -> list[tuple[str, bytes | None]]:
        """What a commit now would change of the table, in order of keys; None removes."""
        newest = self._table.current.get
        changes: list[tuple[str, bytes | None]] = []
        for key, own in self._own.items():
            value = None if own is _GONE else own
            if newest(key) != value:
                changes.append((key, value))
        if len(changes) > 1:
            changes.sort()
        return changes

    def commit(self) -> list[tuple[str, bytes | None]]:
        """Change the table, and tell what that changed, as `changes`. It is released by that."""
        changes = self.changes()
        # Before: a reader less for whom the old values were kept.
        self.release()
        self._table.apply(changes)
        return changes

    def conflicts(self) -> bool:
        """Whether something that this read, or looked for and did not find, is another now."""
        if self._table.commit == self._reader.commit:
            return False
        if any(map(self._differs, self._table.changed_lately() & self._read)):
            return True
        sized = self._more is not None
        if not self._ranges and not sized:
            return False
        changed = self._table.changed_since(self._reader.commit)
        if sized and self._size_differs(changed):
            return True
        covered = covers(self._ranges)
        return any(covered(key) and self._differs(key) for key in changed)

    def release(self) -> None:
        """Give up the snapshot and what was changed: every use is a RuntimeError. Twice does nothing."""
        self._reader.release()
        # What is set now would be nobody's.
        self._own = RELEASED

    def _put(self, key: str, value: _Own) -> None:
        size = self.size_bytes + _cost(key, value)
        old = self._own.get(key)
        if old is not None:
            size -= _cost(key, old)
        if size > MAX_CHANGES:
            raise _too_large(size)
        if self._more is None and self._versions is None:
            self._own[key] = value
        else:
            self._replace(key, old, value)
        self.size_bytes = size

    def _replace(self, key: str, old: _Own | None, value: _Own) -> None:
        if self._more is not None:
            self._more += self._adds(key, old, value)
        if self._versions is None:
            self._own[key] = value
        else:
            while self._ended:
                self._ended.pop().release()
            self._versions.apply(((key, value),))

    def _adds(self, key: str, old: _Own | None, value: _Own) -> int:
        """How many keys more that is."""
        was = self._reader.get(key) is not None if old is None else old is not _GONE
        return (value is not _GONE) - was

    def _differs(self, key: str) -> bool:
        return self._reader.get(key) != self._table.get(key)

    def _size_differs(self, changed: Set[str]) -> bool:
        if len(self._reader) != len(self._table):
            return True
        own = self._own.keys() & changed
        return any((self._reader.get(key) is None) != (self._table.get(key) is None) for key in own)


def _cost(key: str, value: _Own) -> int:
    """Bytes that a change may take in a record."""
    size = 0 if value is _GONE else len(value)
    return _OVERHEAD + (len(key) if key.isascii() else len(key.encode())) + size


def _too_large(size: int) -> ValueError:
    return ValueError(
        f"a transaction may change {MAX_CHANGES} bytes (keys, values and {_OVERHEAD} for each change), "
        f"and this would make it {size}; do it in several"
    )


def _merged(
    base: Iterator[tuple[str, bytes]], own: Iterator[tuple[str, _Own]], reverse: bool
) -> Iterator[tuple[str, _Own]]:
    """Both in order; of the same key the transaction's own."""
    old, new = next(base, None), next(own, None)
    while old is not None or new is not None:
        if new is None or (old is not None and (old[0] > new[0] if reverse else old[0] < new[0])):
            assert old is not None
            yield old
            old = next(base, None)
        else:
            if old is not None and old[0] == new[0]:
                old = next(base, None)
            yield new
            new = next(own, None)
