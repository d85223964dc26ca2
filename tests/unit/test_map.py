"""The map that authors use: a mutable mapping in order, with bounds and clear errors, and its typed view."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable, ItemsView, KeysView, MutableMapping, ValuesView
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from conclave.errors import StateError
from conclave.persistence.map import MAX_KEY, MAX_VALUE, PersistentMap, TypedMap
from conclave.persistence.ordered import OrderedMap
from conclave.persistence.table import Table, Transaction

# In order of code points; UTF-16 has the last two the other way round.
ITEMS = [("a", b"1"), ("b", b"2"), ("b/1", b"3"), ("b/2", b"4"), ("c", b"5"), ("\uffff", b"6"), ("\U0001f600", b"7")]


@pytest.fixture
def transaction() -> Transaction:
    return Table.load(ITEMS).begin()


@pytest.fixture
def plain(transaction: Transaction) -> PersistentMap:
    return PersistentMap(lambda: transaction)


class Visit(msgspec.Struct):
    who: str
    at: datetime


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


# As a mapping ------------------------------------------------------------------------


def test_it_is_a_mutable_mapping(plain: PersistentMap) -> None:
    assert isinstance(plain, MutableMapping)
    assert (plain["a"], plain.get("a"), plain.get("x"), plain.get("x", b"0"), plain.get("x", 0)) == (
        *(b"1", b"1", None, b"0", 0),
    )
    assert "a" in plain
    assert "x" not in plain
    assert len(plain) == 7
    assert plain == dict(ITEMS)
    assert dict(plain) == dict(ITEMS)
    assert plain != {**dict(ITEMS), "a": b"x"}
    assert plain != {**dict(ITEMS), "x": b"1"}
    assert plain != [*ITEMS]
    plain["x"] = b"8"
    del plain["a"]
    assert plain != dict(ITEMS)
    with pytest.raises(KeyError, match="a"):
        plain["a"]
    with pytest.raises(KeyError, match="a"):
        del plain["a"]
    with pytest.raises(TypeError, match="unhashable"):
        hash(plain)


def test_what_comes_with_a_mutable_mapping(plain: PersistentMap) -> None:
    assert plain.pop("a") == b"1"
    assert plain.pop("a", None) is None
    with pytest.raises(KeyError):
        plain.pop("a")
    assert plain.setdefault("a", b"new") == b"new"
    assert plain.setdefault("b", b"new") == b"2"
    plain.update({"c": b"x"}, d=b"y")
    plain.update([("e", b"z")])
    assert [plain[key] for key in "abcde"] == [b"new", b"2", b"x", b"y", b"z"]
    assert plain.popitem() == ("\U0001f600", b"7")
    assert plain.popitem(last=False) == ("a", b"new")
    plain.clear()
    assert (len(plain), list(plain), bool(plain)) == (0, [], False)
    with pytest.raises(KeyError, match="empty"):
        plain.popitem()


def test_order_is_that_of_utf_8(plain: PersistentMap) -> None:
    assert list(plain) == [key for key, _ in ITEMS] == sorted(plain, key=str.encode)
    assert list(reversed(plain)) == [key for key, _ in ITEMS[::-1]]
    keys, values, items = plain.keys(), plain.values(), plain.items()
    assert (isinstance(keys, KeysView), isinstance(values, ValuesView), isinstance(items, ItemsView)) == (True,) * 3
    for view, want in (keys, [k for k, _ in ITEMS]), (values, [v for _, v in ITEMS]), (items, ITEMS):
        assert list(view) == want
        assert list(reversed(view)) == want[::-1]  # type: ignore[call-overload]
        assert len(view) == 7
        assert want[3] in view
    assert keys & {"a", "x"} == {"a"}
    # Views are of the map as it is when they are looked at.
    del plain["c"]
    assert len(keys) == len(list(values)) == 6


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({}, ITEMS),
        ({"prefix": "b"}, ITEMS[1:4]),
        ({"prefix": "b/"}, ITEMS[2:4]),
        ({"prefix": "x"}, []),
        ({"prefix": "\U0001f600"}, ITEMS[6:]),
        ({"start": "b"}, ITEMS[1:]),
        ({"stop": "b/2"}, ITEMS[:3]),
        ({"start": "b", "stop": "c"}, ITEMS[1:4]),
        ({"start": "c", "stop": "b"}, []),
        ({"start": "", "stop": ""}, []),
        ({"prefix": "b/", "start": "b/2"}, ITEMS[3:4]),
        ({"prefix": "b/", "start": "a", "stop": "z"}, ITEMS[2:4]),
        ({"prefix": "b/", "stop": "b/2"}, ITEMS[2:3]),
        ({"prefix": "b/", "start": "c"}, []),
        ({"prefix": "b/", "stop": "a"}, []),
    ],
)
def test_scans(plain: PersistentMap, arguments: dict[str, str], found: list[Any]) -> None:
    assert list(plain.scan(**arguments)) == found
    assert list(plain.scan(**arguments, reverse=True)) == found[::-1]


@pytest.mark.parametrize("arguments", [{"prefix": b"b"}, {"start": 1}, {"stop": b"c"}])
def test_bounds_are_text(plain: PersistentMap, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(arguments))} of the map is str"):
        plain.scan(**arguments)


def test_a_loop_may_change_the_map(plain: PersistentMap) -> None:
    for key, value in plain.items():
        del plain[key]
        plain[f"old/{key}"] = value
    assert list(plain) == [f"old/{key}" for key, _ in ITEMS]


def test_iterations_take_no_more_than_they_give(plain: PersistentMap, transaction: Transaction) -> None:
    assert next(iter(plain.keys())) == "a"
    assert next(iter(plain.values())) == b"1"
    assert next(iter(plain.items())) == ("a", b"1")
    assert next(plain.of(bytes).scan("c", stop="c"), None) is None
    transaction._table.apply([("b", b"x")])
    assert not transaction.conflicts()


# Keys, values and who may use it -----------------------------------------------------


@pytest.mark.parametrize("key", ["k", "é" * 512, "\U0010ffff" * 256, "\0", "k" * MAX_KEY, " "])
def test_keys(plain: PersistentMap, key: str) -> None:
    plain[key] = b""
    assert plain[key] == b""


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "has 0 bytes of UTF-8; 1 to 1024 are allowed"),
        ("k" * 1025, "has 1025 bytes of UTF-8; 1 to 1024 are allowed"),
        ("é" * 513, "has 1026 bytes of UTF-8"),
        ("a\ud800", "lone surrogate"),
    ],
)
def test_keys_that_are_none(plain: PersistentMap, key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plain[key] = b""
    assert not isinstance(caught.value, UnicodeError)
    assert caught.value.__cause__ is None
    assert (key in plain, plain.get(key)) == (False, None)


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m[b"a"],
        lambda m: m.get(1),
        lambda m: b"a" in m,
        lambda m: m.__setitem__(1, b""),
        lambda m: m.__delitem__(b"a"),
        lambda m: m.pop(None),
    ],
)
def test_keys_are_text(plain: PersistentMap, use: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="a key of the map is str, not"):
        use(plain)


def test_a_key_is_kept_as_plain_text(plain: PersistentMap, transaction: Transaction) -> None:
    class Name(enum.StrEnum):
        ANA = "a"
        NEW = "new"

    plain[Name.NEW] = b"x"
    assert plain[Name.ANA] == b"1"
    assert [type(key) for key, _ in transaction.changes()] == [str]


def test_values_that_could_change_are_copied(plain: PersistentMap) -> None:
    array = bytearray(b"x")
    plain["array"], plain["view"] = array, memoryview(array)
    array[0] = 0
    assert (plain["array"], plain["view"]) == (b"x", b"x")


@pytest.mark.parametrize(
    ("value", "advice"), [("text", r"not str; self.map.of\(str\)"), (5, r"not int; self.map.of\(TYPE\)"), (None, "of")]
)
def test_values_are_bytes(plain: PersistentMap, value: Any, advice: str) -> None:
    with pytest.raises(TypeError, match=advice):
        plain["a"] = value


def test_the_largest_value(plain: PersistentMap) -> None:
    plain["a"] = bytes(MAX_VALUE)
    with pytest.raises(ValueError, match=f"has {MAX_VALUE + 1} bytes; at most {MAX_VALUE} are allowed"):
        plain["a"] = bytes(MAX_VALUE + 1)
    assert len(plain["a"]) == MAX_VALUE


def test_outside_of_a_handler() -> None:
    def current() -> Transaction:
        raise RuntimeError("self.map is used within handlers")

    plain = PersistentMap(current)
    uses: list[Callable[[], object]] = [
        *(
            lambda: plain["a"],
            lambda: len(plain),
            lambda: list(plain),
            lambda: plain.scan(),
            lambda: plain.of(int)["a"],
        ),
        *(lambda: plain.update(a=b""), plain.clear, lambda: "a" in plain),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="within handlers"):
            use()
    assert repr(plain) == "<PersistentMap: outside of a handler>"


def test_what_it_shows_of_itself_is_no_content(plain: PersistentMap) -> None:
    assert repr(plain) == str(plain) == "<PersistentMap: keys: 7>"
    assert repr(plain.of(Point)) == "<TypedMap of Point: keys: 7>"
    assert "'" not in repr(plain.items())


# Typed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Visit, Visit("Ana", datetime(2026, 1, 2, tzinfo=UTC))),
        (Point, Point(1, 2)),
        (str, "text"),
        (bytes, b"bytes"),
        (int, 5),
        (bool, True),
        (float, 0.5),
        (dict[str, float], {"a": 0.5}),
        (list[Point], [Point(1)]),
        (int | None, None),
        (Any, [1, {"a": None}]),
    ],
)
def test_values_of_a_type(transaction: Transaction, kind: Any, value: Any) -> None:
    transaction.clear()
    typed: TypedMap[Any] = PersistentMap(lambda: transaction).of(kind)
    typed["k"] = value
    assert typed["k"] == value
    assert type(typed["k"]) is type(value)
    assert list(typed.items()) == list(typed.scan("k")) == [("k", value)]
    assert list(typed.values()) == [value]
    assert typed == {"k": value}
    assert typed.setdefault("k", value) == typed.pop("k") == value
    typed.update({"a": value, "b": value})
    assert (list(typed), len(typed), "a" in typed, typed.get("c")) == (["a", "b"], 2, True, None)
    assert typed.popitem(last=False) == ("a", value)
    del typed["b"]
    typed["c"] = value
    typed.clear()
    assert not typed
    with pytest.raises(KeyError):
        typed["k"]


@pytest.mark.parametrize(
    ("kind", "value"), [(Point, (1, 2)), (int, "5"), (str, b""), (Point, Point("x")), (int, 2**64), (str, "\ud800")]
)
def test_values_of_another_type_are_not_kept(plain: PersistentMap, kind: Any, value: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"cannot be read back as {kind.__name__}; .* \.of\({kind.__name__}\)"
    ) as caught:
        plain.of(kind)["new"] = value
    assert caught.value.__cause__ is None
    assert "new" not in plain


def test_a_value_that_does_not_decode(plain: PersistentMap) -> None:
    plain["secret"] = json.dumps({"password": "hunter2"}).encode()
    typed = plain.of(Visit)
    uses: list[Callable[[], object]] = [
        lambda: typed["secret"],
        lambda: list(typed.values()),
        lambda: typed.pop("secret"),
    ]
    for use in uses:
        with pytest.raises(StateError, match=r"the value of '[a-z]+' does not decode as Visit; ") as caught:
            use()
        assert "hunter2" not in str(caught.value)
        assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)
    # It can be removed all the same.
    del typed["secret"]


def test_a_type_that_cannot_be_kept(plain: PersistentMap) -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        plain.of(dict[str, int] | dict[int, str])


def test_both_maps_share_their_order(plain: PersistentMap) -> None:
    plain.clear()
    typed = plain.of(int)
    assert isinstance(typed, OrderedMap)
    typed.update({key: n for n, (key, _) in enumerate(ITEMS)})
    assert list(typed) == [key for key, _ in ITEMS]
    assert list(typed.scan("b", start="b/", reverse=True)) == [("b/2", 3), ("b/1", 2)]
    assert plain["b"] == b"\x01"
