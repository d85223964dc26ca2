"""What the attacks of the demonstration share: how a refusal is told from a success.

Runs on one machine, as a test would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from conclave.errors import Error, TransportError


class Told(Exception):
    """Something went otherwise than told."""


def refusal(kind: type[Error], act: Callable[[], object], contains: str) -> str:
    """Run an attempt that must raise `kind`; returns its message in one line."""
    try:
        act()
    except kind as error:
        text = f"{type(error).__name__}: {error}" if not isinstance(error, TransportError) else str(error)
        if contains and contains not in f"{getattr(error, 'type_name', '')} {text}":
            raise Told(f"refused otherwise: {text}") from None
        line = " ".join(text.split())
        return line if len(line) <= 150 else line[:149] + "…"
    raise Told("it went through")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise Told("waited in vain")
        time.sleep(0.005)


class Background:
    """Runs an attempt in a thread and keeps the error it ends with."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self._act()
        except Exception as error:
            self._error = error

    def result(self) -> Exception | None:
        """The error, once it ended."""
        self._thread.join(30)
        return self._error
