"""Typed calls: what crosses, how it is described, what is refused."""

from __future__ import annotations

import contextlib
import datetime
import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conclave import _codec
from conclave.enclave import Enclave, RpcError, rpc
from conclave.errors import FormatError
from conclave.rpc.interface import decode_call, decode_result, encode_call, interface_of
from conclave.rpc.types import describe


@dataclass
class Point:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)


class Tree(msgspec.Struct):
    value: int
    children: list[Tree] = []


class Branch(msgspec.Struct):
    leaves: int


class Sample(Enclave):
    @rpc
    def plain(self, a: int, b: str = "b", c: float = 1.5) -> str:
        return ""

    @rpc(retry=False)
    async def rich(self, point: Point, tree: Tree | None = None) -> dict[str, list[Point]]:
        return {}

    @rpc
    def nothing(self) -> None: ...

    @rpc
    def one(self, amount: int) -> int:
        return amount

    def private(self, anything):  # type: ignore[no-untyped-def]
        """Not marked, so not part of the interface."""


METHODS = interface_of(Sample).methods


@pytest.mark.spec("RPC-5")
def test_the_schema_is_sorted_canonical_and_complete() -> None:
    interface = interface_of(Sample)
    assert sorted(METHODS) == ["nothing", "one", "plain", "rich"]
    assert _codec._decoder(Any).decode(interface.encode()) == [
        None,
        [
            ["nothing", [], "none", True, None],
            ["one", [["amount", "int", False]], "int", True, None],
            ["plain", [["a", "int", False], ["b", "str", True], ["c", "float", True]], "str", True, None],
            [
                "rich",
                [
                    ["point", "record Point{x:int,y?:int,tags?:list<str>}", False],
                    ["tree", "union<none,record Tree{value:int,children?:list<ref Tree>}>", True],
                ],
                "dict<str,list<record Point{x:int,y?:int,tags?:list<str>}>>",
                False,
                None,
            ],
        ],
    ]
    assert interface.digest() == interface_of(Sample).digest()

    class Other(Sample):
        @rpc
        def nothing(self, more: int = 0) -> None: ...

    assert interface_of(Other).digest() != interface.digest()


@pytest.mark.spec("RPC-7")
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (bool, "bool"),
        (None, "none"),
        (Any, "any"),
        (list, "list"),
        (list[int], "list<int>"),
        (dict[str, bytes], "dict<str,bytes>"),
        (set[int], "set<int>"),
        (frozenset[str], "frozenset<str>"),
        (tuple, "tuple<>"),
        (tuple[int, str], "tuple<int,str>"),
        (tuple[int, ...], "tuple<int,...>"),
        (Optional[int], "union<int,none>"),  # noqa: UP045
        (int | str | None, "union<int,none,str>"),
        (Literal["b", "a", 1], "literal<'a','b',1>"),
        (Annotated[int, "meta"], "int"),
    ],
)
def test_descriptions(kind: object, text: str) -> None:
    assert describe(kind) == text


@pytest.mark.spec("RPC-7")
@pytest.mark.parametrize("kind", [object, complex, Callable, type, "text", list[object], dict[str, complex], Exception])
def test_types_that_do_not_cross(kind: object) -> None:
    with pytest.raises(TypeError, match="cannot cross an RPC boundary"):
        describe(kind)


@pytest.mark.spec("RPC-7")
def test_signatures_that_do_not_cross() -> None:
    def refused(method: Callable[..., Any], match: str) -> None:
        kind = type("Bad", (Enclave,), {"method": rpc(method)})
        with pytest.raises(TypeError, match=match):
            interface_of(kind)

    refused(lambda self, a: None, "'a' needs a type annotation")

    def no_return(self, a: int): ...  # type: ignore[no-untyped-def]
    def star(self, *a: int) -> None: ...  # type: ignore[no-untyped-def]
    def keyword(self, *, a: int) -> None: ...  # type: ignore[no-untyped-def]
    def unknown(self, a: Missing) -> None: ...  # type: ignore[no-untyped-def,name-defined]  # noqa: F821

    refused(no_return, "needs a return annotation")
    refused(star, "do not cross")
    refused(keyword, "do not cross")
    refused(unknown, "'Missing' cannot be resolved")


class Shade(enum.Enum):
    DARK = 1


@pytest.mark.spec("RPC-7")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (datetime.datetime, "datetime.datetime"),
        (Shade, f"{__name__}.Shade"),
        (object, "object"),
        (dict[str, complex], "complex"),
        (Iterator[complex], "complex"),
    ],
)
def test_a_type_that_does_not_cross_is_told_with_its_place(kind: object, name: str) -> None:
    def method(self: object, x: int) -> int:
        return x

    for place, shown in (("x", "parameter 'x'"), ("return", "result")):
        method.__annotations__ = {"x": int, "return": int, place: kind}
        told = re.escape(f"Bad.method: {shown}: {name} cannot cross an RPC boundary; use bool")
        with pytest.raises(TypeError, match=told):
            interface_of(type("Bad", (Enclave,), {"method": rpc(method)}))


def test_a_union_that_decoding_could_not_tell_apart_is_told_with_its_method() -> None:
    def method(self: object, x: Tree | Branch) -> None: ...

    with pytest.raises(TypeError, match=r"Bad\.method: .*Tree"):
        interface_of(type("Bad", (Enclave,), {"method": rpc(method)}))


@pytest.mark.spec("RPC-1")
def test_binding_is_pythons() -> None:
    plain = METHODS["plain"]
    assert plain.bind((1,), {}) == [1]
    assert plain.bind((1, "x"), {}) == [1, "x"]
    assert plain.bind((), {"a": 1, "c": 2.0}) == [1, "b", 2.0]
    with pytest.raises(TypeError, match=r"one\(amount\) takes 1 argument, got 2"):
        METHODS["one"].bind((1, 2), {})
    for args, kwargs in (((), {}), ((1, "b", 1.0, 4), {}), ((1,), {"a": 1}), ((1,), {"d": 1}), ((), {"b": "x"})):
        with pytest.raises(TypeError, match=r"plain\("):
            plain.bind(args, kwargs)


@pytest.mark.spec("RPC-1", "RPC-2")
def test_arguments_from_untrusted_bytes() -> None:
    def decode(name: str, *arguments: object) -> tuple[Any, ...]:
        called, rest = decode_call(encode_call(name, list(arguments)))
        assert called == name
        return METHODS[name].decode_arguments(rest)

    assert decode("plain", 1) == (1,)
    assert decode("plain", 1, "x", 2) == (1, "x", 2.0)
    assert decode("nothing") == ()
    assert decode("rich", Point(1, 2, ["a"]), Tree(1, [Tree(2)])) == (Point(1, 2, ["a"]), Tree(1, [Tree(2)]))
    for name, arguments, said in (
        ("plain", [], "plain(a, b=…, c=…) takes 1 to 3 arguments, got 0"),
        ("plain", [1, "a", 1.0, 4], "plain(a, b=…, c=…) takes 1 to 3 arguments, got 4"),
        ("one", [], "one(amount) takes 1 argument, got 0"),
        ("plain", ["SECRET"], "argument 'a' is not int"),
        ("plain", [1, b"SECRET"], "argument 'b' is not str"),
        ("plain", [True], "argument 'a' is not int"),
        ("nothing", [1], "nothing() takes 0 arguments, got 1"),
        ("rich", [{"x": "SECRET"}], "argument 'point' is not record Point"),
        ("rich", [{"x": 1}, {"value": 1, "children": [5]}], "argument 'tree' is not union"),
    ):
        with pytest.raises(FormatError, match=re.escape(said)) as refused:
            decode(name, *arguments)  # type: ignore[misc]
        assert "SECRET" not in str(refused.value)


@pytest.mark.spec("RPC-2")
@given(st.binary(max_size=200))
def test_any_bytes_give_arguments_or_one_error(data: bytes) -> None:
    try:
        name, rest = decode_call(data)
    except FormatError:
        rest = data
        name = "plain"
    for method in METHODS.values():
        with contextlib.suppress(FormatError):
            method.decode_arguments(rest)
    assert isinstance(name, str)


def test_deep_nesting_is_an_error() -> None:
    for data in (b"\x91" * 100_000, b"\x91\x82\xa5value\x01\xa8children\x91" * 5000):
        for method in METHODS.values():
            with pytest.raises(FormatError):
                method.decode_arguments(data)


@pytest.mark.spec("RPC-4")
def test_results() -> None:
    assert decode_result(msgspec.msgpack.encode(Point(1)), Point) == Point(1)
    for data, kind in ((b"", int), (b"\xa1x", int), (b"\x01\x02", int), (b"\xc1", Any), (b"\x91" * 5000, Any)):
        with pytest.raises(FormatError, match="does not have the declared type"):
            decode_result(data, kind)


@pytest.mark.spec("RPC-4")
@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (b"\xa6SECRET", int, "expected int, got str"),
        (b"\xc0", Point, "expected record Point{x:int,y?:int,tags?:list<str>}, got none"),
        (b"\x91\xa6SECRET", list[int], "expected list<int>, got list"),
        (b"\xa6SECRET", Shade, "expected Shade, got str"),
        (b"\xc1", int, "expected int, got no MessagePack value"),
    ],
)
def test_a_result_of_another_type_is_told_with_its_method(data: bytes, kind: object, said: str) -> None:
    with pytest.raises(FormatError) as refused:
        decode_result(data, kind, method="echo")
    assert str(refused.value) == f"echo(): the enclave's result does not have the declared type: {said}"
    with pytest.raises(FormatError, match=r"^the enclave's result"):
        decode_result(data, kind)


def test_what_cannot_be_encoded_is_the_callers_mistake() -> None:
    with pytest.raises(TypeError, match="cannot be encoded"):
        encode_call("plain", [object()])
    with pytest.raises(TypeError, match="cannot be encoded"):
        encode_call("plain", [2**70])
    for name in ("", "x" * 129):
        with pytest.raises(ValueError, match="1 to 128 bytes"):
            encode_call(name, [])


def test_declared_errors_are_exceptions() -> None:
    assert issubclass(RpcError, Exception)
