"""`self.map`: what an author sees of the table.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, cast, overload

import msgspec

from conclave.errors import StateError
from conclave.persistence.keys import beyond
from conclave.persistence.ordered import OrderedMap
from conclave.persistence.table import Transaction

T = TypeVar("T")

MAX_KEY: Final = 1024
MAX_VALUE: Final = 8 * 1024 * 1024
_encode: Final = msgspec.msgpack.Encoder().encode


class PersistentMap(OrderedMap[bytes]):
    """The enclave's map: text to bytes, kept across restarts, changed by transactions.

    Usable within handlers; each has its own transaction. Keys are 1 to 1024 bytes of UTF-8, and texts that
    differ in one code point are different keys: nothing is normalised. Values have at most 8 MiB.
    """

    __slots__ = ("_current",)

    def __init__(self, current: Callable[[], Transaction]) -> None:
        """Make a map.

        Args:
            current: gives the transaction of the running handler, and raises RuntimeError outside of one.
        """
        self._current = current

    def __getitem__(self, key: str) -> bytes:
        value = self._current().get(key if type(key) is str else _text(key, "a key"))
        if value is None:
            raise KeyError(key)
        return value

    @overload
    def get(self, key: str, /) -> bytes | None: ...
    @overload
    def get(self, key: str, /, default: bytes | T) -> bytes | T: ...
    def get(self, key: str, /, default: object = None) -> object:
        """The value, or the default."""
        value = self._current().get(key if type(key) is str else _text(key, "a key"))
        return default if value is None else value

    def __contains__(self, key: object) -> bool:
        return _text(key, "a key") in self._current()

    def __setitem__(self, key: str, value: bytes | bytearray | memoryview) -> None:
        self._current().set(_key(key), _value(value))

    def __delitem__(self, key: str) -> None:
        self._current().delete(_text(key, "a key"))

    def __len__(self) -> int:
        return len(self._current())

    def scan(
        self, prefix: str = "", *, start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, bytes]]:
        """Items in order of their keys, taken as one goes."""
        low, high = _text(prefix, "prefix"), beyond(_text(prefix, "prefix"))
        if start is not None:
            low = max(low, _text(start, "start"))
        if stop is not None:
            high = _text(stop, "stop") if high is None else min(high, _text(stop, "stop"))
        return self._current().scan(low, high, reverse=reverse)

    def clear(self) -> None:
        """Remove everything. It counts as a change of every key.

        Raises:
            ValueError: more than one transaction may change; nothing was removed.
        """
        self._current().clear()

    @overload
    def of(self, kind: type[T]) -> TypedMap[T]: ...
    @overload
    def of(self, kind: object) -> TypedMap[Any]: ...
    def of(self, kind: Any) -> TypedMap[Any]:
        """The same map with values of a type, as MessagePack.

        Args:
            kind: a msgspec struct, a dataclass, or a built-in type such as `str`, `int` or `dict[str, float]`.

        Raises:
            TypeError: MessagePack cannot hold that type.
        """
        return TypedMap(self, kind)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._size()}>"

    def _size(self) -> str:
        try:
            return f"keys: {len(self)}"
        except RuntimeError:
            return "outside of a handler"


class TypedMap(OrderedMap[T]):
    """A persistent map whose values have a type. Made by `PersistentMap.of`."""

    __slots__ = ("_decode", "_map", "_name")

    def __init__(self, plain: PersistentMap, kind: Any) -> None:
        self._map = plain
        self._name = kind.__qualname__ if isinstance(kind, type) else str(kind)
        try:
            self._decode = cast("Callable[[bytes], T]", msgspec.msgpack.Decoder(kind).decode)
        except TypeError as error:
            raise TypeError(f"values of type {self._name} cannot be kept: {error}") from None

    def __getitem__(self, key: str) -> T:
        return self._read(key, self._map[key])

    def __contains__(self, key: object) -> bool:
        return key in self._map

    def __setitem__(self, key: str, value: T) -> None:
        try:
            data = _encode(value)
            self._decode(data)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
            raise TypeError(
                f"a value of type {type(value).__name__} was given, which cannot be read back as {self._name}; "
                f"this map was made by .of({self._name})"
            ) from None
        self._map[key] = data

    def __delitem__(self, key: str) -> None:
        del self._map[key]

    def __len__(self) -> int:
        return len(self._map)

    def scan(
        self, prefix: str = "", *, start: str | None = None, stop: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, T]]:
        """Items in order of their keys, decoded as one goes."""
        items = self._map.scan(prefix, start=start, stop=stop, reverse=reverse)
        return ((key, self._read(key, data)) for key, data in items)

    def clear(self) -> None:
        """Remove everything, as `PersistentMap.clear`."""
        self._map.clear()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._name}: {self._map._size()}>"

    def _read(self, key: str, data: bytes) -> T:
        try:
            return self._decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise StateError(
                f"the value of {key!r} does not decode as {self._name}; "
                f"it was written as another type: read it as that one, or as bytes"
            ) from None


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} of the map is str, not {type(value).__name__}")
    return str.__str__(value)


def _key(key: object) -> str:
    text = _text(key, "a key")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("a key of the map has a lone surrogate, which UTF-8 cannot hold") from None
    if not 1 <= size <= MAX_KEY:
        raise ValueError(f"a key of the map has {size} bytes of UTF-8; 1 to {MAX_KEY} are allowed")
    return text


def _value(value: object) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        advice = "; self.map.of(str) keeps text" if isinstance(value, str) else "; self.map.of(TYPE) keeps other types"
        raise TypeError(f"a value of the map is bytes, not {type(value).__name__}{advice}")
    data = value if type(value) is bytes else bytes(value)
    if len(data) > MAX_VALUE:
        raise ValueError(f"a value of the map has {len(data)} bytes; at most {MAX_VALUE} are allowed")
    return data
