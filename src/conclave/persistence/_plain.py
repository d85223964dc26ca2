"""A table without its index, until the real one is here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self


class PlainView:
    def __init__(self, items: dict[str, bytes]) -> None:
        self._items = items

    def scan(self) -> Iterator[tuple[str, bytes]]:
        return iter(sorted(self._items.items()))

    def release(self) -> None:
        self._items = {}


class Table:
    def __init__(self) -> None:
        self._items: dict[str, bytes] = {}

    @classmethod
    def load(cls, items: Iterable[tuple[str, bytes]]) -> Self:
        table = cls()
        table._items = dict(items)
        return table

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> bytes | None:
        return self._items.get(key)

    def apply(self, changes: Iterable[tuple[str, bytes | None]]) -> None:
        for key, value in changes:
            if value is None:
                self._items.pop(key, None)
            else:
                self._items[key] = value

    def snapshot(self) -> PlainView:
        return PlainView(dict(self._items))
