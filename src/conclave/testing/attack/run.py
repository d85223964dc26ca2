"""What is known of one run: what happened, and what did not hold.

Pure.
"""

from __future__ import annotations

import linecache
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conclave.errors import Error
from conclave.testing.attack.schedule import Schedule

_OURS: Final = str(Path(__file__).parent)
_LONGEST: Final = 2000


@dataclass(frozen=True, slots=True)
class Line:
    """Something that happened: at which request, to or by which client, and what, in words.

    Attributes:
        turn: how many requests the clients had made.
    """

    turn: int
    client: str
    text: str
    by_operator: bool = False


class Promise(AssertionError):
    """Something that holds for every enclave does not; the docstring of a subclass says what."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that should have held, and did not.

    Attributes:
        place: where it is demanded; two runs with one place found the same.
        statement: the line that demands it; "" for what is promised of every enclave.
        message: what was wrong.
    """

    place: str
    statement: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What an exception of the workload says."""
        if isinstance(error, Promise):
            return cls(f"of every enclave: {type(error).__doc__}", "", str(error))
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if not frame.filename.startswith(_OURS)]
        # The innermost line of the file in which the workload begins: what it calls may be anybody's.
        own = [frame for frame in theirs if frame.filename == theirs[0].filename]
        text = "".join(traceback.format_exception_only(error)).strip()[:_LONGEST]
        if not own:
            return cls(type(error).__name__, "", text)
        file, line = own[-1].filename, own[-1].lineno or 0
        return cls(f"{Path(file).name}, line {line}", linecache.getline(file, line).strip(), text)


@dataclass(frozen=True, slots=True)
class Run:
    """One schedule, held against one workload.

    Attributes:
        requests: how many requests the clients made.
        cut_short: the error of the library that ended the workload early; that is the protection at work.
        output: the last lines that the enclave printed.
    """

    schedule: Schedule
    story: tuple[Line, ...]
    requests: int
    failure: Failure | None
    cut_short: Error | None
    output: tuple[str, ...] = ()
