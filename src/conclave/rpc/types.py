"""Types that may cross an RPC boundary, and their one textual description.

Runs at build time, in the enclave and in typed clients. Trusts the author's
annotations. The description is part of the measured interface schema, so two
programs that describe a type alike agree on its encoding.

Spec: spec/rpc.md section 2.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from typing import Any

import msgspec

_PLAIN: dict[Any, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    bytes: "bytes",
    type(None): "none",
    None: "none",
    Any: "any",
}
_CONTAINERS: dict[Any, str] = {list: "list", set: "set", frozenset: "frozenset", dict: "dict"}


_STREAMS: dict[Any, tuple[bool, bool]] = {
    collections.abc.Iterator: (False, False),
    collections.abc.Iterable: (False, False),
    collections.abc.Generator: (False, True),
    collections.abc.AsyncIterator: (True, False),
    collections.abc.AsyncIterable: (True, False),
    collections.abc.AsyncGenerator: (True, True),
}


@dataclasses.dataclass(frozen=True, slots=True)
class StreamType:
    """The annotation of a stream.

    Attributes:
        item: type of the items. Those of `bytes` cross as they are, all others as MessagePack.
        asynchronous: whether it is iterated with `async for`.
        generator: whether it is annotated as a generator, which only a result may be.
    """

    item: Any
    text: str
    asynchronous: bool
    generator: bool

    @property
    def raw(self) -> bool:
        """Whether items are bytes that cross as they are."""
        return self.item is bytes


def stream_type(annotation: Any) -> StreamType | None:
    """The stream that an annotation of a parameter or result means, or None.

    Raises:
        TypeError: its items do not cross, or a generator that is sent something.
    """
    kind = _STREAMS.get(typing.get_origin(annotation))
    if kind is None:
        return None
    item, *others = typing.get_args(annotation)
    if any(other not in (None, type(None)) for other in others):
        raise TypeError(f"{_name(annotation)} cannot cross an RPC boundary: a generator only yields")
    return StreamType(item, f"stream<{describe(item)}>", *kind)


def describe(annotation: Any) -> str:
    """Describe a type by structure.

    Raises:
        TypeError: a type that does not cross; the message says what does.
    """
    return _describe(annotation, ())


def _describe(annotation: Any, inside: tuple[type, ...]) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _describe(args[0], inside)
    if origin is typing.Literal:
        return "literal<" + ",".join(sorted(repr(a) for a in args)) + ">"
    if origin in (typing.Union, types.UnionType):
        return "union<" + ",".join(sorted(_describe(a, inside) for a in args)) + ">"
    if origin is tuple or annotation is tuple:
        parts = ["..." if a is Ellipsis else _describe(a, inside) for a in args]
        return "tuple<" + ",".join(parts) + ">"
    if origin in _CONTAINERS:
        return f"{_CONTAINERS[origin]}<" + ",".join(_describe(a, inside) for a in args) + ">"
    if annotation in _CONTAINERS:
        return _CONTAINERS[annotation]
    if isinstance(annotation, type) and (
        dataclasses.is_dataclass(annotation) or issubclass(annotation, msgspec.Struct)
    ):
        return _record(annotation, inside)
    raise TypeError(
        f"{_name(annotation)} cannot cross an RPC boundary; use bool, int, float, str, bytes, None, list, tuple, "
        "dict, set, unions, Literal, dataclasses or msgspec structs; iterators of them as one parameter or as result"
    )


def _name(annotation: Any) -> str:
    """As an author writes it: `datetime.datetime`, not `<class 'datetime.datetime'>`."""
    if not isinstance(annotation, type) or isinstance(annotation, types.GenericAlias):
        return repr(annotation)
    module = "" if annotation.__module__ == "builtins" else f"{annotation.__module__}."
    return module + annotation.__qualname__


def _record(kind: type, inside: tuple[type, ...]) -> str:
    if kind in inside:
        return f"ref {kind.__name__}"
    hints = typing.get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        names = [(f.name, not _required(f)) for f in dataclasses.fields(kind)]
    else:
        names = [(f.name, not f.required) for f in msgspec.structs.fields(kind)]
    parts = [f"{name}{'?' if optional else ''}:{_describe(hints[name], (*inside, kind))}" for name, optional in names]
    return f"record {kind.__name__}{{" + ",".join(parts) + "}"


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
