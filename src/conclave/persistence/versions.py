"""An ordered table in memory that readers see as it was when they began.

Pure. What a commit replaces is kept as long as a reader may ask for it: with no
reader a commit costs nothing more, and after the oldest one ended, what only it
could see goes, at once if it is little.

One thread commits, and takes and releases snapshots. Others may read from these:
points without a lock, ranges with one held for a page, as it is while the index
changes. A point read is right because of two orders, on an interpreter that runs
one thread at a time: a commit notes the old value before it puts the new one, and
a reader looks at the newest before it looks at what was noted. So it either sees
no change, or sees the note.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Set
from threading import Lock
from typing import Any, Final, Generic, NoReturn, TypeVar

import msgspec

from conclave.persistence.keys import SortedKeys, after

V = TypeVar("V")

# The first page of a scan is small, since most are short; later ones grow to this.
_FIRST_PAGE: Final = 32
_PAGE: Final = 512
# How much of what readers left behind a commit or the end of a reader clears: well under a millisecond.
_FORGOTTEN_AT_ONCE: Final = 256


class Versions(Generic[V]):
    """Keys in order with values, versions of which live as long as their readers.

    `commit` numbers the changes made to this object, from 0.
    """

    __slots__ = ("_index", "_lock", "_noted", "_readers", "_undo", "commit", "current")

    def __init__(self, items: Iterable[tuple[str, V]] = ()) -> None:
        """Take items in rising order of their keys, each once."""
        self.commit = 0
        self.current: dict[str, V] = dict(items)
        # Keys that are there now or that some reader may see.
        self._index = SortedKeys(self.current)
        # For each key that changed lately: commits in rising order, and the value that each replaced.
        self._undo: dict[str, list[tuple[int, V | None]]] = {}
        # What was noted, by commit, oldest first.
        self._noted: deque[tuple[int, str]] = deque()
        # How many readers see which commit, oldest first: they begin in order.
        self._readers: OrderedDict[int, int] = OrderedDict()
        # Of the index.
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.current)

    def get(self, key: str) -> V | None:
        """The newest value; None if there is none."""
        return self.current.get(key)

    def apply(self, changes: Iterable[tuple[str, V | None]]) -> None:
        """Commit changes, all at once for whoever reads.

        Args:
            changes: keys with their new values; None removes, and does nothing where nothing is.
        """
        current, undo = self.current, self._undo
        commit = self.commit + 1
        newest = next(reversed(self._readers)) if self._readers else None
        for key, value in changes:
            old = current.get(key)
            if old is None:
                if value is None:
                    continue
                if key not in undo:
                    with self._lock:
                        self._index.add(key)
            if newest is not None:
                self._note(key, commit, old, newest)
            if value is not None:
                current[key] = value
            else:
                del current[key]
                if key not in undo:
                    with self._lock:
                        self._index.remove(key)
        self.commit = commit
        if self._noted:
            self._forget()

    def snapshot(self) -> Reader[V]:
        """Read what is committed now, whatever comes. The caller must release it."""
        self._readers[self.commit] = self._readers.get(self.commit, 0) + 1
        return Reader(self.commit, self, self.current, len(self.current))

    def changed_lately(self) -> Set[str]:
        """All keys that changed after what the oldest reader sees, and maybe more. A view."""
        return self._undo.keys()

    def changed_since(self, commit: int) -> set[str]:
        """Keys that changed after a commit that some active reader sees."""
        found: set[str] = set()
        for number, key in reversed(self._noted):
            if number <= commit:
                break
            found.add(key)
        return found

    def _note(self, key: str, commit: int, old: V | None, newest: int) -> None:
        """Keep what a commit replaces, unless no reader began since the last time."""
        versions = self._undo.get(key)
        if versions is None:
            self._undo[key] = [(commit, old)]
        elif versions[-1][0] > newest:
            return
        else:
            if len(versions) > 2 * len(self._readers) + 1:
                # A key that changes often, under one old reader and many short ones.
                versions = self._undo[key] = self._needed(versions)
            versions.append((commit, old))
        self._noted.append((commit, key))

    def _needed(self, versions: list[tuple[int, V | None]]) -> list[tuple[int, V | None]]:
        """Those that a reader sees. A new list: others may be reading the old one."""
        readers, begin = list(self._readers), 0
        kept = []
        for version in versions:
            end = bisect_left(readers, version[0])
            if begin < end:
                kept.append(version)
            begin = end
        return kept

    def _release(self, commit: int) -> None:
        left = self._readers[commit] - 1
        if left:
            self._readers[commit] = left
            return
        del self._readers[commit]
        if self._noted:
            self._forget()

    def _forget(self) -> None:
        """Drop what no reader can see any more, a part of it at a time: a long reader leaves much behind."""
        oldest = next(iter(self._readers), self.commit)
        for _ in range(min(_FORGOTTEN_AT_ONCE, len(self._noted))):
            if self._noted[0][0] > oldest:
                break
            key = self._noted.popleft()[1]
            versions = self._undo.get(key)
            if versions is None:
                continue
            if versions[-1][0] <= oldest:
                del self._undo[key]
                if key not in self.current:
                    with self._lock:
                        self._index.remove(key)
            elif versions[0][0] <= oldest:
                self._undo[key] = versions[bisect_left(versions, (oldest + 1,)) :]


class _Released(dict[str, NoReturn]):
    """Takes the place of a reader's values once it was released."""

    def get(self, *_: object) -> NoReturn:
        raise RuntimeError("this snapshot was released; read within the handler that it belongs to")


# For any type of values: there are none.
RELEASED: Final[Any] = _Released()


class Reader(msgspec.Struct, Generic[V], eq=False):
    """One commit of a table, read while later ones happen. Made by `Versions.snapshot`.

    After `release` every read is a RuntimeError.
    """

    commit: int
    _table: Versions[V]
    _current: dict[str, V]
    _size: int

    # Not what is read.
    __repr__ = object.__repr__

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> V | None:
        """The value as of this snapshot; None if there was none. From any thread."""
        value = self._current.get(key)
        versions = self._table._undo.get(key)
        if versions is None:
            return value
        # Less than every version of a later commit, greater than all others.
        at = bisect_left(versions, (self.commit + 1,))
        return versions[at][1] if at < len(versions) else value

    def scan(self, low: str = "", high: str | None = None, *, reverse: bool = False) -> Iterator[tuple[str, V]]:
        """Items whose keys are at least `low` and less than `high` (None: no end), in order. From any thread."""
        table, limit = self._table, _FIRST_PAGE
        while True:
            self._current.get("")  # An error if it was released.
            with table._lock:
                keys = table._index.page(low, high, limit, reverse=reverse)
            if not keys:
                return
            for item in self._values(keys):
                # An iterator that outlives its reader must not feed the next one: nobody would check what it read.
                if self._current is RELEASED:
                    break
                yield item
            if reverse:
                high = keys[-1]
            else:
                low = after(keys[-1])
            limit = min(limit * 4, _PAGE)

    def _values(self, keys: list[str]) -> list[tuple[str, V]]:
        # The newest first, then what was noted: the order that `get` has.
        found = list(map(self._current.get, keys))
        if self._table._undo:
            found = list(map(self.get, keys))
        return [(key, value) for key, value in zip(keys, found, strict=True) if value is not None]

    def release(self) -> None:
        """Give up the snapshot. Twice does nothing."""
        if self._current is not RELEASED:
            self._current = RELEASED
            self._table._release(self.commit)
