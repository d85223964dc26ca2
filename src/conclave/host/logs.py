"""A host's log: few events, few fields, and no word that could tie two mails together.

Runs in the untrusted host, whose operator may not be the one who reads logs. An event or
field that is not listed here is not written, whatever somebody passes; nor is a value of
another shape than its field's. No request is logged.

Spec: spec/http.md (HTTP-23).
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import traceback
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

FORMATS: Final = ("console", "json", "none")
EVENTS: Final = frozenset(
    {
        "serving",
        "launched",
        "refused",
        "exited",
        "ended",
        "halted",
        "restarting",
        "endorsements",
        "outbox",
        "store",
        "failed",
        "draining",
        "drained",
        "stopped",
        "tls-loaded",
        "tls-refused",
        "library",
    }
)
# Letters and hyphens alone: no identifier of ours, which are hexadecimal digits, is one.
_WORD: Final = re.compile(r"[a-z]{1,24}(-[a-z]{1,24}){0,4}")
_CLASS: Final = re.compile(r"[A-Z][A-Za-z]{0,48}")
_PLACE: Final = re.compile(r"[a-z_]{1,32}\.py:[0-9]{1,5}")
_SHAPES: Final = {
    "code": _WORD,
    "mode": _WORD,
    "sandbox": _WORD,
    "tee": _WORD,
    "signal": re.compile("SIG[A-Z]{2,6}"),
    "error": _CLASS,
    "where": _PLACE,
    "library": _WORD,
    "severity": _WORD,
}
_NUMBERS: Final = frozenset({"status", "seconds", "connections", "revocation_level"})
FIELDS: Final = frozenset(_SHAPES) | _NUMBERS
_OWN: Final = frozenset({"level", "timestamp"})


def allowed(logger: object, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: what may be written of this record."""
    event = fields.get("event")
    if not isinstance(event, str) or event not in EVENTS:
        raise structlog.DropEvent
    kept: dict[str, Any] = {"event": event}
    for name, value in fields.items():
        shape = _SHAPES.get(name)
        number = name in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool)
        if name in _OWN or number or (shape is not None and isinstance(value, str) and shape.fullmatch(value)):
            kept[name] = value
    return kept


class Log:
    """Writes events of a host."""

    def __init__(self, form: str, *, stream: TextIO | None = None) -> None:
        """`form` is one of FORMATS; `stream` is standard error if not given."""
        self._form = form
        renderer: Any = (
            structlog.processors.JSONRenderer()
            if form == "json"
            else structlog.dev.ConsoleRenderer(colors=False, sort_keys=False)
        )
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(stream or sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                allowed,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                renderer,
            ],
        )

    def event(self, name: str, **fields: object) -> None:
        """Write one event, as far as it is listed."""
        if self._form != "none":
            self._logger.info(name, **fields)

    def trouble(self, name: str, **fields: object) -> None:
        """The same, of something that an operator should look at."""
        if self._form != "none":
            self._logger.warning(name, **fields)

    def platform(self, event: dict[str, Any], *, stopping: bool = False) -> None:
        """What platform, enclave and outbox report; `Host(on_event=…)`. Of a stop, an end is no trouble."""
        kind = str(event.get("event"))
        fields = {name: value for name, value in event.items() if name in FIELDS}
        # The code of a launch is the bundle's, all others are of errors.
        bad = kind == "refused" or (kind in ("ended", "exited") and not stopping)
        bad = bad or ("code" in fields and kind != "launched")
        (self.trouble if bad else self.event)(kind, **fields)

    def failure(self, error: BaseException | None) -> None:
        """A bug, by class and place; its text may hold anything, and stays out."""
        if error is None:
            self.trouble("failed", error="NoAnswer")
            return
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        self.trouble("failed", error=type(error).__name__, where=where)

    def adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have what the event loop and libraries would print go through here, without their texts."""

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self.failure(context.get("exception"))

        loop.set_exception_handler(handle)
        root = logging.getLogger()
        root.handlers[:] = [_Handler(self.trouble)]
        root.setLevel(logging.WARNING)


class _Handler(logging.Handler):
    """Records of other libraries: whose, and how bad."""

    def __init__(self, write: Callable[..., None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """logging: one record."""
        self._write("library", library=record.name.partition(".")[0], severity=record.levelname.lower())
