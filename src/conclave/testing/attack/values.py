"""Arguments for methods of which nothing is known but the described types.

Pure: the same chance gives the same values. Reads the descriptions of spec/rpc.md section 2.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from conclave.errors import FormatError

_BRACKETS: Final = {"<": ">", "{": "}"}
_DEEPEST: Final = 6
# Long enough to be found if it appeared anywhere in plain.
_WORD: Final = 20


@dataclass(frozen=True, slots=True)
class Values:
    """Makes values.

    Attributes:
        chance: where they come from.
        words: every text and every bytes value that was made.
    """

    chance: random.Random
    words: list[bytes]

    def of(self, described: str, depth: int = 0) -> Any:
        """A value of a described type, as it crosses.

        Raises:
            FormatError: the description is of no type for which there are values, such as a stream.
        """
        if described in _PLAIN:
            return _PLAIN[described](self)
        name, bracket, rest = _split(described)
        if depth > _DEEPEST or (bracket and not rest.endswith(_BRACKETS[bracket])):
            raise FormatError(f"no values are made for the type {described[:60]}")
        parts = _parts(rest[:-1])
        if name == "list":
            return [self.of(parts[0], depth + 1) for _ in range(self.chance.randint(0, 3))] if parts else []
        if name in ("set", "frozenset"):
            return list({repr(v): v for v in (self.of(p, depth + 1) for p in parts * 2)}.values())
        if name == "dict":
            return {self.of(parts[0], depth + 1): self.of(parts[1], depth + 1) for _ in range(2)} if parts else {}
        if name == "tuple":
            return [self.of(part, depth + 1) for part in parts if part != "..."]
        if name == "union":
            return self.of(self.chance.choice(parts), depth + 1)
        if name == "literal":
            return self.chance.choice([ast.literal_eval(part) for part in parts])
        if name.startswith("record "):
            fields = [part.partition(":")[::2] for part in parts]
            return {field.rstrip("?"): self.of(kind, depth + 1) for field, kind in fields}
        raise FormatError(f"no values are made for the type {described[:60]}")

    def word(self) -> str:
        """A text that appears nowhere by chance."""
        text = "".join(self.chance.choices("abcdefghijklmnopqrstuvwxyz", k=_WORD))
        self.words.append(text.encode())
        return text


_PLAIN: Final[dict[str, Callable[[Values], Any]]] = {
    "bool": lambda v: v.chance.random() < 0.5,
    "int": lambda v: v.chance.choice((0, 1, 2, 3, 7, 10, 100)),
    "float": lambda v: v.chance.choice((0.0, 0.5, 1.0, 2.25, 100.0)),
    "str": lambda v: v.word(),
    "bytes": lambda v: v.word().encode(),
    "none": lambda v: None,
    "any": lambda v: v.word(),
    "list": lambda v: [v.word()],
    "set": lambda v: [v.word()],
    "frozenset": lambda v: [v.word()],
    "dict": lambda v: {v.word(): 1},
    "tuple": lambda v: [v.word()],
}


def _split(described: str) -> tuple[str, str, str]:
    """Name, opening bracket and what follows it."""
    for at, letter in enumerate(described):
        if letter in _BRACKETS:
            return described[:at], letter, described[at + 1 :]
    return described, "", ""


def _parts(text: str) -> list[str]:
    """What stands between commas that are in no bracket and no quotes."""
    parts, depth, quote, begin = [], 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            # Descriptions quote as `repr` does: a quote inside is escaped.
            quote = "" if letter == quote and text[at - 1] != "\\" else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "<{":
            depth += 1
        elif letter in ">}":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[begin:at])
            begin = at + 1
    return [*parts, text[begin:]] if text else []
