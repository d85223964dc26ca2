"""The table of a log: order, snapshots while commits go on, and transactions."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

from conclave.persistence import keys
from conclave.persistence import table as table_module
from conclave.persistence.keys import SortedKeys, after, beyond
from conclave.persistence.ranges import Range, covers
from conclave.persistence.table import MAX_CHANGES, Table, Transaction

MIB = 1024 * 1024


def commit(table: Table, transaction: Transaction) -> bool:
    """What the runtime does at the end of a handler."""
    good = not transaction.conflicts()
    if good:
        transaction.commit()
    transaction.release()
    return good


def put(table: Table, **items: bytes | None) -> None:
    table.apply(items.items())


# Keys --------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [16, 1024])
@pytest.mark.parametrize("shrink", [0.3, 0.7])
def test_keys_stay_in_order(chunk: int, shrink: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_CHUNK", chunk)
    chance = random.Random(1)
    model = {str(n) for n in range(0, 3000, 2)}
    found = SortedKeys(sorted(model))
    for turn in range(6000):
        key = str(chance.randrange(3000))
        if key in model and chance.random() < shrink:
            model.remove(key)
            found.remove(key)
        elif key not in model:
            model.add(key)
            found.add(key)
        if turn % 50:
            continue
        low, high = str(chance.randrange(3000)), chance.choice([None, str(chance.randrange(3000))])
        want = sorted(k for k in model if k >= low and (high is None or k < high))
        assert pages(found, low, high) == want
        assert pages(found, low, high, reverse=True) == want[::-1]
    assert all(found._chunks)
    # Few chunks even after many removals: what a change costs depends on it.
    assert len(found._chunks) <= 2 + 8 * len(model) // chunk + len(model) // (chunk // 8)


def pages(found: SortedKeys, low: str, high: str | None, *, reverse: bool = False) -> list[str]:
    taken: list[str] = []
    while page := found.page(low, high, 7, reverse=reverse):
        assert len(page) <= 7
        taken += page
        low, high = (low, page[-1]) if reverse else (after(page[-1]), high)
    return taken


def test_no_keys() -> None:
    found = SortedKeys()
    assert found.page("", None, 9) == found.page("", None, 9, reverse=True) == []
    found.add("a")
    found.remove("a")
    assert found.page("", None, 9) == found.page("", None, 9, reverse=True) == []


def test_a_key_before_all_others_is_found_from_both_sides() -> None:
    found = SortedKeys(["m", "n"])
    found.add("a")
    assert found.page("", "b", 9) == found.page("", "b", 9, reverse=True) == ["a"]
    assert found.page("", "a", 9) == found.page("", "a", 9, reverse=True) == []
    found.remove("a")
    assert found.page("", "m", 9) == found.page("", "m", 9, reverse=True) == []


def test_what_grows_at_its_end_leaves_full_lists() -> None:
    found = SortedKeys()
    for n in range(10_000):
        found.add(f"{n:06}")
    assert len(found._chunks) == 10


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("", None), ("a", "b"), ("a\U0010ffff", "b"), ("\U0010ffff", None), ("a\ud7ff", "a\ud800"), ("user/", "user0")],
)
def test_the_end_of_a_prefix(prefix: str, end: str | None) -> None:
    assert beyond(prefix) == end


# Snapshots ---------------------------------------------------------------------------


def test_load_takes_items_in_rising_order_only() -> None:
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
    assert list(reader.scan(reverse=True)) == [("c", b"3"), ("b", b"2"), ("a", b"1")]
    assert (reader.get("a"), reader.get("d")) == (b"1", None)
    assert "b" in reader
    assert "d" not in reader
    assert len(reader) == 3
    assert (table.get("a"), table.get("b"), len(table), table.commit) == (None, b"y", 2, 2)


def test_a_released_snapshot_is_not_read() -> None:
    reader = Table.load([("a", b"1"), ("b", b"2")]).snapshot()
    begun, under_way, at_its_end = reader.scan(), reader.scan(), reader.scan("b")
    assert next(under_way) == ("a", b"1")
    assert next(at_its_end) == ("b", b"2")
    reader.release()
    reader.release()
    for read in (
        lambda: reader.get("a"),
        lambda: "a" in reader,
        lambda: next(begun),
        lambda: next(under_way),
        lambda: next(at_its_end),
    ):
        with pytest.raises(RuntimeError, match="released"):
            read()


@pytest.mark.parametrize("end", [Transaction.release, Transaction.commit])
@pytest.mark.parametrize("had", [False, True])
def test_nothing_is_set_in_a_transaction_that_is_over(end: Callable[[Transaction], object], had: bool) -> None:
    table = Table.load([("a", b"1")])
    transaction = table.begin()
    if had:
        transaction.set("b", b"2")
        assert len(list(transaction.scan())) == 2
    end(transaction)
    for use in (
        lambda: transaction.set("c", b""),
        lambda: transaction.delete("a"),
        lambda: transaction.get("a"),
        lambda: list(transaction.scan()),
        transaction.clear,
    ):
        with pytest.raises(RuntimeError, match="released"):
            use()


def test_what_is_shown_of_them_is_not_what_they_hold() -> None:
    table = Table.load([("secret key", b"secret value")])
    transaction = table.begin()
    transaction.set("another secret", b"secret")
    assert "secret" not in repr(table) + repr(transaction) + repr(table.snapshot())


def test_without_readers_nothing_is_kept() -> None:
    table = Table()
    for n in range(100):
        table.apply([(str(n % 7), b"%d" % n)])
        assert not table._undo
        assert not table._noted


def test_what_only_old_readers_see_goes_with_them() -> None:
    table = Table()
    readers = []
    for n in range(50):
        readers.append(table.snapshot())
        table.apply([(str(n), b"x"), ("every", b"%d" % n)])
        table.apply([(str(n), None)])
    assert len(table._index.page("", None, 999)) == 51
    for n, reader in enumerate(readers):
        assert reader.get("every") == (b"%d" % (n - 1) if n else None)
        reader.release()
        assert len(table._undo) == (50 - n if n < 49 else 0)
        assert len(table._undo.get("every", ())) == 49 - n
    assert table._index.page("", None, 999) == ["every"]
    assert not table._noted


def test_what_a_long_reader_leaves_behind_goes_bit_by_bit() -> None:
    table = Table.load((f"{n:05}", b"") for n in range(10_000))
    reader = table.snapshot()
    for n in range(10_000):
        table.apply([(f"{n:05}", None)])
    reader.release()
    assert len(table._undo) == 10_000 - 256
    for turn in range(20):
        # While it lasts, everybody sees what they should.
        key = f"{9000 + turn:05}"
        table.apply([(key, b"new")])
        reader = table.snapshot()
        table.apply([(key, b"newer"), ("other", b"%d" % turn)])
        assert (reader.get(key), len(list(reader.scan()))) == (b"new", len(reader))
        reader.release()
    assert not table._undo
    assert table._index.page("", None, 99) == sorted(table.current)


def test_an_old_reader_does_not_keep_what_short_ones_saw() -> None:
    table = Table.load([("hot", b"first")])
    old, short = table.snapshot(), table.snapshot()
    for n in range(1000):
        table.apply([("hot", b"%d" % n)])
        assert len(table._undo["hot"]) <= 6
        assert old.get("hot") == b"first"
        assert short.get("hot") == (b"%d" % (n - 1) if n else b"first")
        short.release()
        short = table.snapshot()


def test_short_readers_that_end_before_a_commit_keep_nothing_more() -> None:
    table = Table.load([("hot", b"first")])
    old = table.snapshot()
    for n in range(1000):
        transaction = table.begin()
        transaction.set("hot", b"%d" % n)
        assert commit(table, transaction)
    assert table._undo == {"hot": [(1, b"first")]}
    assert len(table._noted) == 1
    old.release()


def test_what_a_commit_costs_does_not_grow_with_the_number_of_keys() -> None:
    # Steps of the interpreter, not time: the same on every machine.
    def steps(count: int) -> int:
        table = Table.load((f"{n:07}", b"") for n in range(count))
        chance, taken = random.Random(1), 0

        def count_lines(*_: object) -> Callable[..., object]:
            nonlocal taken
            taken += 1
            return count_lines

        for _ in range(100):
            key = f"{chance.randrange(count):07}"
            sys.settrace(count_lines)
            try:
                transaction = table.begin()
                transaction.set(key, transaction.get(key) or b"1")
                transaction.set(key + "x", b"")
                commit(table, transaction)
            finally:
                sys.settrace(None)
        return taken

    assert steps(100_000) < steps(1000) * 1.1


# Transactions ------------------------------------------------------------------------


def test_a_transaction_sees_its_own_changes_and_no_others() -> None:
    table = Table.load([("a", b"1"), ("b", b"2")])
    first, second = table.begin(), table.begin()
    first.set("c", b"3")
    first.delete("a")
    assert list(first.scan()) == [("b", b"2"), ("c", b"3")]
    assert len(first) == 2
    assert "a" not in first
    assert list(second.scan()) == [("a", b"1"), ("b", b"2")]
    assert commit(table, first)
    assert list(second.scan()) == [("a", b"1"), ("b", b"2")]
    assert not commit(table, second)


def test_only_real_changes() -> None:
    table = Table.load([("a", b"1"), ("b", b"2")])
    transaction = table.begin()
    transaction.set("a", b"1")
    transaction.set("new", b"")
    transaction.delete("new")
    transaction.delete("b")
    transaction.set("b", b"2")
    assert transaction.changes() == []
    transaction.set("z", b"")
    transaction.delete("a")
    assert transaction.changes() == [("a", None), ("z", b"")]


def test_a_value_set_back_to_what_it_was_is_a_change_if_it_is_another_now() -> None:
    table = Table.load([("a", b"1")])
    transaction = table.begin()
    transaction.set("a", b"1")
    put(table, a=b"2")
    assert not transaction.conflicts()
    assert transaction.changes() == [("a", b"1")]


def test_what_is_not_there_is_not_deleted() -> None:
    table = Table.load([("a", b"1")])
    transaction = table.begin()
    transaction.delete("a")
    for key in ("a", "b"):
        with pytest.raises(KeyError):
            transaction.delete(key)
    put(table, b=b"")
    assert transaction.conflicts()


READS: list[tuple[str, Callable[[Transaction], object], dict[str, bytes | None], bool]] = [
    ("a key", lambda t: t.get("b"), {"b": b"x"}, True),
    ("a key that was deleted", lambda t: t.get("b"), {"b": None}, True),
    ("a key that was not there", lambda t: t.get("c"), {"c": b""}, True),
    ("another key", lambda t: t.get("b"), {"a": None, "c": b""}, False),
    ("set without a look", lambda t: t.set("b", b""), {"b": b"x"}, False),
    ("own change", lambda t: (t.set("b", b""), t.get("b")), {"b": b"x"}, False),
    ("deleting", lambda t: t.delete("b"), {"b": b"x"}, True),
    ("all", lambda t: list(t.scan()), {"zz": b""}, True),
    ("all, from the end", lambda t: list(t.scan(reverse=True)), {"0": b""}, True),
    ("a range: a phantom within", lambda t: list(t.scan("b", "e")), {"c": b""}, True),
    ("a range: gone from it", lambda t: list(t.scan("b", "e")), {"d": None}, True),
    ("a range: at its end", lambda t: list(t.scan("b", "d")), {"d": b"x"}, False),
    ("a range: before it", lambda t: list(t.scan("b", "d")), {"a": b"x"}, False),
    ("an empty range", lambda t: list(t.scan("x", "y")), {"xx": b""}, True),
    ("the first: before it", lambda t: next(t.scan("a2")), {"a3": b""}, True),
    ("the first: after it", lambda t: next(t.scan("a2")), {"c": b"", "d": None}, False),
    ("the last: after it", lambda t: next(t.scan(reverse=True)), {"x": b""}, True),
    ("the last: before it", lambda t: next(t.scan(reverse=True)), {"b": None, "c": b""}, False),
    ("no look", lambda t: t.scan(), {"a": None}, False),
    ("how many", len, {"x": b""}, True),
    ("how many: others change", len, {"a": b"x"}, False),
    ("how many: as many", len, {"x": b"", "a": None}, False),
    ("how many, with one set", lambda t: (t.set("x", b""), len(t)), {"x": b"", "a": None}, True),
    ("the same again", lambda t: (t.get("b"), list(t.scan())), {"b": b"2"}, False),
]


@pytest.mark.parametrize(("read", "changed", "conflict"), [r[1:] for r in READS], ids=[r[0] for r in READS])
def test_what_is_a_conflict(
    read: Callable[[Transaction], object], changed: dict[str, bytes | None], conflict: bool
) -> None:
    table = Table.load([("a", b"1"), ("b", b"2"), ("d", b"4")])
    transaction = table.begin()
    kept = read(transaction)
    table.apply(changed.items())
    assert transaction.conflicts() is conflict
    del kept


def looked(low: str, high: str | None, *, last: str | None = None, done: bool = False, reverse: bool = False) -> Range:
    made = Range(low, high, reverse)
    made.last, made.done = last, done
    return made


@pytest.mark.parametrize(
    ("ranges", "covered"),
    [
        ([], ""),
        ([looked("b", "e", done=True)], "bcd"),
        ([looked("b", None, done=True)], "bcdefg"),
        ([looked("b", "e", last="c")], "bc"),
        ([looked("b", "f", last="d", reverse=True)], "de"),
        ([looked("b", "f")], ""),
        ([looked("b", "c", done=True), looked("c", "d", done=True)], "bc"),
        ([looked("b", "f", done=True), looked("c", "d", done=True)], "bcde"),
        ([looked("b", None, done=True), looked("c", "d", done=True)], "bcdefg"),
        ([looked("e", "f", done=True), looked("a", "b", done=True)], "ae"),
    ],
)
def test_what_scans_looked_at(ranges: list[Range], covered: str) -> None:
    inside = covers(ranges)
    assert "".join(filter(inside, "abcdefg")) == covered


def test_what_changed_and_changed_back_is_no_conflict() -> None:
    table = Table.load([("a", b"1")])
    transaction = table.begin()
    assert list(transaction.scan())
    put(table, a=b"2", b=b"")
    assert transaction.conflicts()
    put(table, a=b"1", b=None)
    assert not transaction.conflicts()


def test_write_skew_is_caught() -> None:
    table = Table.load([("alice", b"on call"), ("bob", b"on call")])
    both = [table.begin(), table.begin()]
    for transaction, leaves in zip(both, ("alice", "bob"), strict=True):
        if sum(value == b"on call" for _, value in transaction.scan()) > 1:
            transaction.set(leaves, b"off")
    assert [commit(table, transaction) for transaction in both] == [True, False]
    assert b"on call" in table.current.values()


def test_an_iteration_gives_what_was_there_when_it_began() -> None:
    table = Table.load([(key, key.encode()) for key in "aceg"])
    transaction = table.begin()
    transaction.set("b", b"own")
    transaction.delete("c")
    seen = []
    for key, value in transaction.scan():
        seen.append((key, value))
        transaction.delete(key)
        transaction.set(key + "+", b"")
        transaction.set("f", b"")
    assert seen == [("a", b"a"), ("b", b"own"), ("e", b"e"), ("g", b"g")]
    assert [key for key, _ in transaction.scan()] == ["a+", "b+", "e+", "f", "g+"]
    # Also where nothing was changed before.
    transaction = table.begin()
    for key, _ in transaction.scan():
        transaction.set("1" + key, b"")
        transaction.set(key + "1", b"")
    assert len(transaction) == 12


def test_iterations_that_are_given_up_keep_nothing() -> None:
    table = Table.load([(str(n), b"") for n in range(9)])
    transaction = table.begin()
    for n in range(1000):
        transaction.set("own", b"%d" % n)
        assert next(transaction.scan("own")) == ("own", b"%d" % n)
    assert transaction._versions is not None
    assert len(transaction._versions._undo.get("own", ())) <= 1
    assert len(transaction._ended) <= 1


def test_the_limit_leaves_the_transaction_usable() -> None:
    table = Table()
    transaction = table.begin()
    for n in range(14):
        transaction.set(chr(65 + n), bytes(MIB))
    with pytest.raises(ValueError, match=f"may change {MAX_CHANGES} bytes .* would make it {15 * MIB + 14 * 17 + 20}"):
        transaction.set("more", bytes(MIB))
    assert "more" not in transaction
    transaction.set("A", b"")
    transaction.set("more", bytes(MIB))
    assert commit(table, transaction)
    assert len(table) == 15


def test_the_limit_counts_bytes_of_keys_and_every_change() -> None:
    table = Table()
    transaction = table.begin()
    transaction.set("é", b"123")
    assert transaction.size_bytes == 2 + 3 + 16
    transaction.set("é", b"1")
    assert transaction.size_bytes == 2 + 1 + 16
    transaction.delete("é")
    assert transaction.size_bytes == 2 + 16


def test_clear_removes_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "MAX_CHANGES", 50_000)
    few, many = (Table.load((f"{n:04}", b"") for n in range(count)) for count in (2000, 3000))
    transaction = few.begin()
    transaction.set("own", bytes(40_000))
    transaction.delete("own")
    transaction.set("z", bytes(49_000))
    transaction.clear()
    assert (len(transaction), list(transaction.scan())) == (0, [])
    assert transaction.size_bytes == 2000 * 20 + 17 + 19
    assert commit(few, transaction)
    assert len(few) == 0
    transaction = many.begin()
    with pytest.raises(ValueError, match="do it in several"):
        transaction.clear()
    assert (len(transaction), transaction.changes(), transaction.size_bytes) == (3000, [], 0)


# Threads -----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["point", "page"])
def test_a_commit_at_any_moment_of_a_read_is_not_seen(which: str) -> None:
    table = Table.load([("a", b"before"), ("b", b"")])

    class Interrupted(dict[str, bytes]):
        """Another thread commits just before and just after the reader looks at the newest value."""

        def get(self, key: str, default: object = None) -> bytes | None:  # type: ignore[override]
            put(table, a=b"just before")
            value = table.current.get(key)
            put(table, a=b"just after")
            return value

    reader = table.snapshot()
    reader._current = Interrupted()
    assert (reader.get("a") if which == "point" else next(reader.scan())[1]) == b"before"


def test_the_order_of_keys_is_read_under_the_lock() -> None:
    table = Table.load([("a", b"")])

    class Watched(SortedKeys):
        def page(self, low: str, high: str | None, limit: int, *, reverse: bool = False) -> list[str]:
            assert table._lock.locked()
            return super().page(low, high, limit, reverse=reverse)

    table._index = Watched(["a"])
    reader = table.snapshot()
    assert list(reader.scan()) == list(reader.scan(reverse=True)) == [("a", b"")]
    assert not table._lock.locked()


@pytest.fixture
def many_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_read_one_state_while_another_commits(many_switches: None) -> None:
    # Every commit moves one unit: whoever sees a mixture of commits sees another sum.
    names = [f"{n:02}" for n in range(40)]
    table = Table.load([(name, b"100") for name in names])
    wrong: list[object] = []
    # What the committing thread began for readers, and what it has to end; nothing: there are no more.
    begun: SimpleQueue[Transaction | None] = SimpleQueue()
    ended: SimpleQueue[Transaction] = SimpleQueue()

    def read(which: int) -> None:
        try:
            while (transaction := begun.get()) is not None:
                if which % 2:
                    total = sum(int(transaction.get(name) or 0) for name in names)
                else:
                    total = sum(int(value) for _, value in transaction.scan(reverse=bool(which % 4)))
                if total != 4000:
                    wrong.append(total)
                ended.put(transaction)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    chance, reading, read_through = random.Random(1), 0, 0
    for _ in range(5000):
        while reading < 6:
            begun.put(table.begin())
            reading += 1
        while not ended.empty():
            ended.get().release()
            reading, read_through = reading - 1, read_through + 1
        transaction = table.begin()
        source, target = chance.sample(names, 2)
        left = int(transaction.get(source) or 0) - 1
        if left:
            transaction.set(source, b"%d" % left)
        elif source in transaction:
            transaction.delete(source)
        else:
            transaction.release()
            continue
        transaction.set(target, b"%d" % (int(transaction.get(target) or 0) + 1))
        assert commit(table, transaction)
    for _ in threads:
        begun.put(None)
    for thread in threads:
        thread.join()
    assert not wrong
    assert read_through
    while not ended.empty():
        ended.get().release()
    for _ in range(100):
        table.apply([])
    assert not table._undo
