"""CBOR as far as the Nitro Secure Module speaks it (RFC 8949).

Runs inside the enclave. The encoder makes requests; the decoder reads answers and
the payload of a document, bounded in size and depth. Text keys and small integer
keys, no floats, no tags but that of COSE_Sign1.
"""

from __future__ import annotations

from typing import Final

from conclave.errors import FormatError

Value = int | bytes | str | bool | None | list["Value"] | dict["str | int", "Value"]

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF
_WORDS: Final = {20: False, 21: True, 22: None}
_COSE_SIGN1: Final = 18
_MAX_DEPTH: Final = 8
_MAX_ITEMS: Final = 256


def encode(value: Value) -> bytes:
    """Deterministic encoding: shortest heads, definite lengths, the order given."""
    match value:
        case None | bool():
            return _head(_SIMPLE, {False: 20, True: 21, None: 22}[value])
        case int() if value >= 0:
            return _head(_UNSIGNED, value)
        case bytes():
            return _head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            return _head(_TEXT, len(text)) + text
        case list():
            return _head(_ARRAY, len(value)) + b"".join(map(encode, value))
        case dict():
            return _head(_MAP, len(value)) + b"".join(encode(k) + encode(v) for k, v in value.items())
    raise TypeError(f"not a value of an NSM request: {type(value).__name__}")


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    size = next(s for s in (1, 2, 4, 8) if number < 1 << 8 * s)
    return bytes([major << 5 | 23 + size.bit_length()]) + number.to_bytes(size, "big")


def decode(data: bytes) -> Value:
    """One value and nothing behind it. Raises FormatError."""
    reader = _Reader(data)
    try:
        value = reader.value(0)
    except (IndexError, UnicodeDecodeError):
        raise FormatError("CBOR ends early, or has text that is not UTF-8") from None
    if reader.at != len(data):
        raise FormatError("CBOR has bytes behind its value")
    return value


class _Reader:
    """A place in bytes that are read from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def value(self, depth: int) -> Value:
        if depth > _MAX_DEPTH:
            raise FormatError("CBOR is nested too deeply")
        first = self._data[self.at]
        self.at += 1
        major, short = first >> 5, first & 31
        if major == _SIMPLE:
            if short not in _WORDS:
                raise FormatError("CBOR holds a value that the NSM has no use for")
            return _WORDS[short]
        if major in (_ARRAY, _MAP):
            count = None if short == _INDEFINITE else self._number(short)
            return self._list(count, depth) if major == _ARRAY else self._map(count, depth)
        number = self._number(short)
        if major == _UNSIGNED:
            return number
        if major == _NEGATIVE:
            return -1 - number
        if major == _TAG:
            if number != _COSE_SIGN1 or depth:
                raise FormatError("CBOR holds a tag that the NSM has no use for")
            return self.value(depth + 1)
        content = self._take(number)
        return content if major == _BYTES else content.decode()

    def _number(self, short: int) -> int:
        if short < 24:
            return short
        if short > 27:
            raise FormatError("CBOR holds an unknown head")
        size = 1 << short - 24
        number = int.from_bytes(self._take(size), "big")
        if number < (24 if size == 1 else 1 << 4 * size):
            raise FormatError("CBOR holds a number in a longer form than it needs")
        return number

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise FormatError("CBOR ends early")
        self.at += size
        return self._data[self.at - size : self.at]

    def _more(self, done: int, count: int | None) -> bool:
        """Whether a list or map goes on; takes the mark that ends one of indefinite length."""
        if count is None and self._data[self.at] == _BREAK:
            self.at += 1
            return False
        if max(done, count or 0) > _MAX_ITEMS:
            raise FormatError("CBOR holds too many items")
        return count is None or done < count

    def _list(self, count: int | None, depth: int) -> Value:
        found: list[Value] = []
        while self._more(len(found), count):
            found.append(self.value(depth + 1))
        return found

    def _map(self, count: int | None, depth: int) -> Value:
        found: dict[str | int, Value] = {}
        while self._more(len(found), count):
            key = self.value(depth + 1)
            if isinstance(key, bool) or not isinstance(key, str | int) or key in found:
                raise FormatError("CBOR holds a key that is neither text nor number, or stands there twice")
            found[key] = self.value(depth + 1)
        return found
