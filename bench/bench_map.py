"""The persistent map in memory: reading, writing and scanning inside a transaction, and committing one.

Ours is `PersistentMap` over a `Table`: it records what is read, keeps its changes apart until the commit, and checks
keys and values. Theirs are a plain `dict` and `sortedcontainers.SortedDict`, which do none of that. `scan` takes 100
items in order from a random key (of the `dict`, any 100). `change` is a whole transaction: begin, read one value, write
it, validate, apply; of theirs a read and a write. What a commit costs on disk is not in this figure.

Processor microseconds of one operation in this one process, a side at a time, on the same random keys.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from itertools import islice

from _common import emit, middle
from sortedcontainers import SortedDict

from conclave.persistence.map import PersistentMap
from conclave.persistence.table import Table

ROUNDS = 9
SIZES = (1000, 160_000, 1_000_000)
EACH = 1000
SCAN = 100

Work = Callable[[list[str]], object]


def cpu_us(work: Work, keys: list[str]) -> float:
    """Processor microseconds for each key."""
    began = time.process_time()
    work(keys)
    return (time.process_time() - began) / len(keys) * 1e6


class Ours:
    """The map within one transaction, and transactions one after the other."""

    def __init__(self, items: list[tuple[str, bytes]]) -> None:
        began = time.process_time()
        self._table = Table.load(items)
        self.load_seconds = time.process_time() - began
        self._transaction = self._table.begin()
        self._map = PersistentMap(lambda: self._transaction)

    def again(self) -> None:
        """A new transaction, which has read and changed nothing."""
        self._transaction.release()
        self._transaction = self._table.begin()

    def read(self, keys: list[str]) -> None:
        for key in keys:
            self._map[key]

    def write(self, keys: list[str]) -> None:
        for key in keys:
            self._map[key] = b"another value"

    def scan(self, keys: list[str]) -> None:
        for key in keys:
            drain(islice(self._map.scan(start=key), SCAN))

    def change(self, keys: list[str]) -> None:
        for key in keys:
            self.again()
            self._map[key] = self._map[key][:-1] + b"+"
            if self._transaction.conflicts():
                raise RuntimeError("nobody else writes")
            self._transaction.commit()


class Theirs:
    """A mapping that has no transactions."""

    def __init__(self, items: dict[str, bytes]) -> None:
        self._items = items

    def read(self, keys: list[str]) -> None:
        for key in keys:
            self._items[key]

    def write(self, keys: list[str]) -> None:
        for key in keys:
            self._items[key] = b"another value"

    def scan(self, keys: list[str]) -> None:
        for _ in keys:
            drain(islice(self._items.items(), SCAN))

    def change(self, keys: list[str]) -> None:
        for key in keys:
            self._items[key] = self._items[key][:-1] + b"+"


class Sorted(Theirs):
    """The same in order."""

    def scan(self, keys: list[str]) -> None:
        items = self._items
        for key in keys:
            drain((k, items[k]) for k in islice(items.irange(key), SCAN))  # type: ignore[attr-defined]


def drain(items: Iterable[object]) -> None:
    """Take them all."""
    for _ in items:
        pass


def measure(size: int) -> None:
    """One line of results."""
    items = [(f"user/{n:09}", b"value of %d" % n) for n in range(size)]
    ours, plain, in_order = Ours(items), Theirs(dict(items)), Sorted(SortedDict(items))
    names = [key for key, _ in items]
    chance = random.Random(1)
    kinds = ("read", "write", "scan", "change")
    sides: dict[str, Ours | Theirs] = {"ours": ours, "dict": plain, "sorteddict": in_order}
    found: dict[str, dict[str, list[float]]] = {side: {kind: [] for kind in kinds} for side in sides}
    for turn in range(ROUNDS):
        # Who comes first finds the keys of this round far away.
        order = [*sides][turn % 3 :] + [*sides][: turn % 3]
        keys = chance.choices(names, k=EACH)
        for kind in kinds:
            ours.again()
            for side in order:
                work = getattr(sides[side], kind)
                found[side][kind].append(cpu_us(work, keys[:100] if kind == "scan" else keys))
    emit(
        f"map_{size}",
        ours={f"{kind}_us": middle(found["ours"][kind]) for kind in kinds}
        | {"load_seconds": middle([ours.load_seconds])},
        theirs={f"{side}_{kind}_us": middle(found[side][kind]) for side in ("dict", "sorteddict") for kind in kinds},
        ratios={
            f"{kind}_over_{side}": middle(a / b for a, b in zip(found["ours"][kind], found[side][kind], strict=True))
            for side in ("dict", "sorteddict")
            for kind in kinds
        },
        rounds=ROUNDS,
    )


def main() -> None:
    """Measure and report."""
    for size in SIZES:
        measure(size)


if __name__ == "__main__":
    main()
