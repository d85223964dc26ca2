"""A mutable mapping from text in order of its keys, all of it made from a scan.

Pure.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class OrderedMap(MutableMapping[str, T], Generic[T]):
    """What the plain and the typed map share: everything in order of keys, taken as one goes.

    The order is that of code points, which is that of the keys' UTF-8 bytes. An iteration gives what
    was there when it took its first item: changes made meanwhile are allowed and do not appear in it.
    """

    __slots__ = ()

    def scan(
        self, prefix: str = "", *, start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, T]]:
        """Items in order of their keys, taken as one goes.

        Args:
            prefix: what the keys begin with.
            start: the least key, if it is there; with the prefix.
            stop: the first key that is not given any more; with the prefix.
            reverse: from the end.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self.scan())

    def __reversed__(self) -> Iterator[str]:
        return (key for key, _ in self.scan(reverse=True))

    def keys(self) -> KeysView[str]:
        """The keys, in order."""
        return _Keys(self)

    def values(self) -> ValuesView[T]:
        """The values, in order of their keys."""
        return _Values(self)

    def items(self) -> ItemsView[str, T]:
        """Keys and values, in order of the keys."""
        return _Items(self)

    def popitem(self, *, last: bool = True) -> tuple[str, T]:
        """Remove the last item, or the first, and return it.

        Raises:
            KeyError: the map is empty.
        """
        found = next(self.scan(reverse=last), None)
        if found is None:
            raise KeyError("popitem(): the map is empty")
        del self[found[0]]
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        if len(self) != len(other):
            return False
        missing = object()
        return all(other.get(key, missing) == value for key, value in self.items())


class _Keys(KeysView[str]):
    _mapping: OrderedMap[Any]

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._mapping)


class _Values(ValuesView[T]):
    _mapping: OrderedMap[T]

    def __iter__(self) -> Iterator[T]:
        return (value for _, value in self._mapping.scan())

    def __reversed__(self) -> Iterator[T]:
        return (value for _, value in self._mapping.scan(reverse=True))


class _Items(ItemsView[str, T]):
    _mapping: OrderedMap[T]

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return self._mapping.scan()

    def __reversed__(self) -> Iterator[tuple[str, T]]:
        return self._mapping.scan(reverse=True)
