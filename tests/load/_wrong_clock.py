"""Runs a module with a clock that is wrong by as many seconds as stand in a file: `_wrong_clock.py FILE MODULE …`."""

from __future__ import annotations

import datetime
import runpy
import sys
import time
from pathlib import Path
from typing import Any

_real_time, _Real = time.time, datetime.datetime
_file = Path(sys.argv[1])


def _wrong() -> float:
    return float(_file.read_text() or "0")


class _Meta(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _Real)


class _Wrong(_Real, metaclass=_Meta):  # type: ignore[misc]
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _Real.now(tz) + datetime.timedelta(seconds=_wrong())


time.time = lambda: _real_time() + _wrong()
sys.argv = sys.argv[2:]
module = sys.argv[0] if not sys.argv[0].startswith("serve") else "conclave.cli"
if module == "conclave.cli":
    sys.argv.insert(0, "conclave")
# What is imported early keeps what it compares with; ours comes after.
import cryptography.x509  # noqa: E402, F401
import httpx2  # noqa: E402, F401
import msgspec  # noqa: E402, F401

datetime.datetime = _Wrong  # type: ignore[misc]
sys.path.insert(0, str(Path.cwd()))
runpy.run_module(module, run_name="__main__", alter_sys=False)
