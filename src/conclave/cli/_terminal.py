"""Text for a terminal. Whatever a peer or a file wrote is hostile to it."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from typing import Final

WIDTH: Final = 100


def safe(text: str) -> str:
    """The text, with what would steer a terminal shown as its code."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def show(lines: Iterable[str]) -> None:
    """Print them; what the terminal's encoding lacks is shown as its code."""
    encoding = sys.stdout.encoding or "ascii"
    print("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding))


def wrapped(first: str, text: str, *, indent: int) -> list[str]:
    """Lines of at most `WIDTH` columns: `first`, then safe text, its further lines indented."""
    lines = textwrap.wrap(safe(text), WIDTH - indent, break_on_hyphens=False) or [""]
    return [f"{first:<{indent}}{lines[0]}".rstrip(), *(" " * indent + line for line in lines[1:])]
