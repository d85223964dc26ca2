"""Intel's JSON documents, read strictly: one meaning for one text.

Runs at the relying party, on hostile text: endorsements come from the host, and the
documents inside are read before their signatures are known to be right.

Spec: spec/dcap.md section 3 (DCAP-5).
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from itertools import accumulate
from typing import Any, Final, NoReturn

from conclave.errors import FormatError

MAX_DEPTH: Final = 32
# Objects and arrays, brackets inside of strings included: those of Intel's documents have some thousand.
MAX_ITEMS: Final = 16384
MAX_DIGITS: Final = 10
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_ASIDE: Final = bytes(c for c in range(256) if c not in b"[]{}")
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\dZ", re.ASCII)
_ADVISORY: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class Members:
    """The members of one object, taken by name and type.

    Each method raises FormatError with the document's code if the member is missing, or of another type or range.
    """

    def __init__(self, value: object, code: str) -> None:
        if not isinstance(value, dict):
            raise _malformed(code)
        self._value: dict[str, Any] = value
        self.code = code

    @property
    def names(self) -> set[str]:
        return set(self._value)

    def text(self, name: str) -> str:
        value = self._value.get(name)
        if not isinstance(value, str):
            raise _malformed(self.code)
        return value

    def hex(self, name: str, size: int | None = None) -> bytes:
        """Hexadecimal digits of either case and nothing else."""
        text = self.text(name)
        try:
            value = bytes.fromhex(text)
        except ValueError:
            raise _malformed(self.code) from None
        # fromhex passes over white space.
        if 2 * len(value) != len(text) or size not in (None, len(value)):
            raise _malformed(self.code)
        return value

    def number(self, name: str, most: int) -> int:
        """From 0 to `most`."""
        value = self._value.get(name)
        if type(value) is not int or not 0 <= value <= most:
            raise _malformed(self.code)
        return value

    def moment(self, name: str) -> datetime:
        text = self.text(name)
        try:
            if not _MOMENT.fullmatch(text):
                raise ValueError
            return datetime.fromisoformat(text)
        except ValueError:
            raise _malformed(self.code) from None

    def members(self, name: str) -> Members:
        return Members(self._value.get(name), self.code)

    def array(self, name: str) -> list[Members]:
        return [Members(v, self.code) for v in self._values(name)]

    def svns(self, name: str) -> tuple[int, ...]:
        """The `svn` of each of 16 components."""
        try:
            return self.sixteen([v["svn"] for v in self._values(name)])
        except (TypeError, KeyError):
            raise _malformed(self.code) from None

    def sixteen(self, values: list[Any]) -> tuple[int, ...]:
        """Numbers from 0 to 65535. A component has at most 255, but Intel's own samples list levels above it."""
        if len(values) != 16 or not all(type(v) is int and 0 <= v <= 0xFFFF for v in values):
            raise _malformed(self.code)
        return tuple(values)

    def advisories(self) -> tuple[str, ...]:
        """`advisoryIDs`, which may be missing."""
        found = self._values("advisoryIDs") if "advisoryIDs" in self._value else []
        if not all(isinstance(v, str) and _ADVISORY.fullmatch(v) for v in found):
            raise _malformed(self.code)
        return tuple(found)

    def get(self, name: str) -> object:
        return self._value.get(name)

    def _values(self, name: str) -> list[Any]:
        value = self._value.get(name)
        if not isinstance(value, list):
            raise _malformed(self.code)
        return value


def parse(data: bytes, *, code: str) -> Members:
    """An object in ASCII, each of its keys once, with no fractions. Raises FormatError.

    It holds at most 16384 objects and arrays, nested at most 32 deep.
    """
    # Pairs that enclose nothing are taken out, level by level; what is left is too deep, or not in pairs.
    brackets = data.translate(_BRACKETS, _ASIDE)
    if len(brackets) > 2 * MAX_ITEMS:
        raise _malformed(code)
    for _ in range(MAX_DEPTH // 2):
        brackets = brackets.replace(b"[]", b"")
    deepest = max(accumulate(1 if b == ord("[") else -1 for b in brackets), default=0)
    if deepest > MAX_DEPTH // 2 or not data.isascii():
        raise _malformed(code)
    try:
        # As text: of bytes, the decoder would guess the encoding.
        value = json.loads(
            data.decode(), object_pairs_hook=_once, parse_int=_integer, parse_float=_never, parse_constant=_never
        )
    # Brackets inside of strings count too, and can mislead the count; then the decoder's own limit holds.
    except (ValueError, RecursionError):
        raise _malformed(code) from None
    return Members(value, code)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError
    return int(text)


def _never(text: str) -> NoReturn:
    raise ValueError


def _malformed(code: str) -> FormatError:
    what = code.removesuffix("-format").replace("-", " ")
    return FormatError(f"{what}: not well-formed, or of a form that is not known", code=code)
