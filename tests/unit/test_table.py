"""The table of a log: order, snapshots while commits go on, and transactions."""

from __future__ import annotations

import random

import pytest

from conclave.persistence.table import MAX_CHANGES, Table, Transaction


def commit(table: Table, transaction: Transaction) -> bool:
    """What the runtime does at the end of a handler."""
    good = not transaction.conflicts()
    changes = transaction.changes() if good else []
    transaction.release()
    table.apply(changes)
    return good


def put(table: Table, **items: bytes | None) -> None:
    table.apply(items.items())


def test_scans_are_in_order_both_ways_and_within_bounds() -> None:
    chance = random.Random(1)
    table, model = Table(), {}
    for _ in range(20_000):
        key = str(chance.randrange(4000))
        value = None if chance.random() < 0.4 else key.encode()
        table.apply([(key, value)])
        if value is None:
            model.pop(key, None)
        else:
            model[key] = value
    reader = table.snapshot()
    for low, high in [("", None), ("2", None), ("", "3"), ("15", "31"), ("3", "2"), ("zz", None), ("", "")]:
        want = sorted((k, v) for k, v in model.items() if k >= low and (high is None or k < high))
        assert list(reader.scan(low, high)) == want
        assert list(reader.scan(low, high, reverse=True)) == want[::-1]
    assert len(reader) == len(model) == len(table)
    reader.release()


def test_load_takes_items_in_order_only() -> None:
    items = [(f"{n:05}", b"%d" % n) for n in range(3000)]
    table = Table.load(iter(items))
    reader = table.snapshot()
    assert list(reader.scan()) == items
    for wrong in ([("b", b""), ("a", b"")], [("a", b""), ("a", b"")]):
        with pytest.raises(ValueError, match="rising order"):
            Table.load(wrong)


def test_a_snapshot_stays_as_it_was() -> None:
    table = Table.load([("a", b"1"), ("b", b"2"), ("c", b"3")])
    reader = table.snapshot()
    put(table, a=b"x", b=None, d=b"4")
    put(table, a=None, b=b"y", d=None)
    assert list(reader.scan()) == [("a", b"1"), ("b", b"2"), ("c", b"3")]
    assert reader.get("a") == b"1"
    assert reader.get("d") is None
    assert len(reader) == 3
    reader.release()
    with pytest.raises(RuntimeError, match="released"):
        reader.get("a")
    with pytest.raises(RuntimeError, match="released"):
        next(reader.scan())


def test_a_transaction_sees_its_own_changes_and_no_others() -> None:
    table = Table.load([("a", b"1"), ("b", b"2")])
    first, second = table.begin(), table.begin()
    first.set("c", b"3")
    first.delete("a")
    assert list(first.scan()) == [("b", b"2"), ("c", b"3")]
    assert len(first) == 2
    assert list(second.scan()) == [("a", b"1"), ("b", b"2")]
    assert commit(table, first)
    assert not commit(table, second)


def test_a_phantom_is_a_conflict() -> None:
    table = Table.load([("a", b"1"), ("c", b"3")])
    transaction = table.begin()
    assert list(transaction.scan("a", "z"))
    transaction.set("sum", b"2")
    put(table, b=b"2")
    assert transaction.conflicts()


def test_the_limit_leaves_the_transaction_usable() -> None:
    table = Table()
    transaction = table.begin()
    for n in range(14):
        transaction.set(str(n), bytes(1024 * 1024))
    with pytest.raises(ValueError, match=str(MAX_CHANGES)):
        transaction.set("more", bytes(1024 * 1024))
    transaction.set("0", b"")
    transaction.set("more", bytes(1024 * 1024))
    assert commit(table, transaction)
    assert len(table) == 15
