"""Transactions that overlap have the effect of one after the other, in the order of their commits.

Each transaction's steps are kept with what they gave. When it may commit, the same steps are taken
again on a plain dictionary with all that was committed before: they must give the same. When it may
not, something that it read must be another now.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from conclave.persistence import versions
from conclave.persistence.table import Table, Transaction
from conclave.persistence.versions import Reader

# In UTF-16 the last two come in the other order.
KEYS = ["a", "a\0", "aa", "b", "c", "\uffff", "\U0001f600"]
Model = dict[str, bytes]

some_key = st.sampled_from(KEYS)
some_value = st.binary(max_size=1)
some_bound = st.one_of(st.none(), some_key)


def in_range(model: Model, low: str, high: str | None, reverse: bool) -> list[tuple[str, bytes]]:
    found = [(k, v) for k, v in model.items() if k >= low and (high is None or k < high)]
    return sorted(found, key=lambda item: item[0].encode(), reverse=reverse)


def take(model: Model, name: str, *args: Any) -> Any:
    """One step on a plain dictionary, and what it gives."""
    match name, args:
        case "get", (key,):
            return model.get(key)
        case "set", (key, value):
            model[key] = value
        case "delete", (key,):
            return model.pop(key, None) is not None
        case "len", ():
            return len(model)
        case "clear", ():
            model.clear()
        case "scan", (low, high, reverse, count):
            return in_range(model, low, high, reverse)[:count]
    return None


def really(transaction: Transaction, name: str, *args: Any) -> Any:
    """The same step on a transaction."""
    match name, args:
        case "get", (key,):
            return transaction.get(key)
        case "set", (key, value):
            transaction.set(key, value)
        case "delete", (key,):
            with suppress(KeyError):
                transaction.delete(key)
                return True
            return False
        case "len", ():
            return len(transaction)
        case "clear", ():
            transaction.clear()
        case "scan", (low, high, reverse, count):
            return list(islice(transaction.scan(low, high, reverse=reverse), count))
    return None


@dataclass
class Walk:
    """An iteration under way: what it is, what is still to come, and its place among the steps."""

    real: Iterator[tuple[str, bytes]]
    left: list[tuple[str, bytes]]
    bounds: tuple[str, str | None, bool]
    given: list[tuple[str, bytes]]
    place: int

    def step(self) -> tuple[tuple[Any, ...], Any]:
        """As if all that it gave so far had been taken where it began: so it is told to be."""
        # It learns that there is no more only by asking for more.
        return ("scan", *self.bounds, len(self.given)), list(self.given)


@dataclass
class Running:
    """A transaction, what it should see, and its steps so far."""

    real: Transaction
    seen: Model
    began: Model
    steps: list[tuple[tuple[Any, ...], Any]] = field(default_factory=list)
    walks: list[Walk] = field(default_factory=list)
    # What it may have read: keys, bounds of scans, whether the number of keys.
    looked: set[str] = field(default_factory=set)
    ranges: list[tuple[str, str | None]] = field(default_factory=list)
    sized: bool = False

    def read_any_of(self, changed: set[str], resized: bool) -> bool:
        within = any(low <= k and (high is None or k < high) for low, high in self.ranges for k in changed)
        return bool(changed & self.looked) or within or (self.sized and (resized or bool(changed)))


class Transactions(RuleBasedStateMachine):
    running = Bundle("running")
    readers = Bundle("readers")

    @initialize(items=st.dictionaries(some_key, some_value))
    def begin(self, items: Model) -> None:
        self.model = dict(items)
        self.table = Table.load(sorted(items.items()))
        # Everything that sees an earlier state, and what it must see there.
        self.views: list[tuple[Reader[bytes], Model]] = []

    @rule(target=running)
    def transaction(self) -> Running:
        it = Running(self.table.begin(), dict(self.model), dict(self.model))
        self.views.append((it.real._reader, it.began))
        return it

    @rule(
        it=running,
        step=st.one_of(
            st.tuples(st.just("get"), some_key),
            st.tuples(st.just("set"), some_key, some_value),
            st.tuples(st.just("delete"), some_key),
            st.tuples(st.just("len")),
            st.tuples(st.just("clear")),
            st.tuples(st.just("scan"), some_key, some_bound, st.booleans(), st.integers(0, 9)),
        ),
    )
    def step(self, it: Running, step: tuple[Any, ...]) -> None:
        gives = really(it.real, *step)
        assert gives == take(it.seen, *step)
        it.steps.append((step, gives))
        match step:
            case "get" | "delete", key:
                it.looked.add(key)
            case ("len",):
                it.sized = True
            case ("clear",):
                it.ranges.append(("", None))
            case "scan", low, high, reverse, count if count:
                end = len(gives) < count
                last = gives[-1][0] if gives else ""
                if reverse:
                    it.ranges.append((low if end else last, high))
                else:
                    it.ranges.append((low, high if end else last + "\0"))

    @rule(it=running, low=some_key, high=some_bound, reverse=st.booleans())
    def walk(self, it: Running, low: str, high: str | None, reverse: bool) -> None:
        """Begin an iteration that other steps come between."""
        walk = Walk(
            it.real.scan(low, high, reverse=reverse),
            in_range(it.seen, low, high, reverse),
            (low, high, reverse),
            [],
            len(it.steps),
        )
        it.steps.append(walk.step())
        it.walks.append(walk)
        it.ranges.append((low, high))
        self.walk_on(it, len(it.walks) - 1, 1)

    @rule(it=running, which=st.integers(0, 3), count=st.integers(1, 20))
    def walk_on(self, it: Running, which: int, count: int) -> None:
        if which < len(it.walks):
            walk = it.walks[which]
            found = list(islice(walk.real, count))
            assert found == walk.left[:count]
            del walk.left[:count]
            walk.given += found
            it.steps[walk.place] = walk.step()

    @rule(it=consumes(running))
    def commit(self, it: Running) -> None:
        if it.real.conflicts():
            self.abandon(it)
            changed = {k for k in KEYS if it.began.get(k) != self.model.get(k)}
            assert it.read_any_of(changed, len(it.began) != len(self.model)), "a conflict without a cause"
            return
        serial = dict(self.model)
        for step, gave in it.steps:
            assert take(serial, *step) == gave, "committed, but not as if it came after all before it"
        # Exactly what changes, and no more.
        assert it.real.commit() == [(k, serial.get(k)) for k in sorted(KEYS) if serial.get(k) != self.model.get(k)]
        self.abandon(it)
        self.model = serial

    @rule(it=consumes(running))
    def abandon(self, it: Running) -> None:
        it.real.release()
        self.views = [view for view in self.views if view[0] is not it.real._reader]

    @rule(changes=st.lists(st.tuples(some_key, st.one_of(st.none(), some_value)), max_size=3))
    def other(self, changes: list[tuple[str, bytes | None]]) -> None:
        """A commit without a transaction; also of the same key twice."""
        self.table.apply(changes)
        for key, value in changes:
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value

    @rule(target=readers)
    def snapshot(self) -> Reader[bytes]:
        self.views.append((self.table.snapshot(), dict(self.model)))
        return self.views[-1][0]

    @rule(reader=consumes(readers))
    def release(self, reader: Reader[bytes]) -> None:
        reader.release()
        self.views = [view for view in self.views if view[0] is not reader]

    @invariant()
    def everyone_sees_their_state(self) -> None:
        if not hasattr(self, "table"):
            return
        for reader, model in self.views:
            assert {k: reader.get(k) for k in KEYS} == {k: model.get(k) for k in KEYS}
            assert list(reader.scan()) == in_range(model, "", None, False)
            assert len(reader) == len(model)
        assert self.table.current == self.model
        kept = self.table._undo
        assert sorted(self.table.current.keys() | kept.keys()) == self.table._index.page("", None, 999)
        if not self.views:
            assert not kept
            assert not self.table._noted


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_FIRST_PAGE", 1)
    monkeypatch.setattr(versions, "_PAGE", 3)


def test_transactions_are_serialisable() -> None:
    run_state_machine_as_test(Transactions, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
