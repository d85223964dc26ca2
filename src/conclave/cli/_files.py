"""Files that somebody else may have made: ordinary ones only, read up to a size."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conclave.attestation.constraint import MAX_LENGTH, Constraint
from conclave.cli._terminal import safe
from conclave.errors import FormatError

MISUSE: Final = "usage"
MAX_FILES: Final = 1000
_EXPECTED: Final = "expected a constraint as `conclave build` prints it"


def misuse(why: str) -> FormatError:
    """The error for what was asked wrongly: no verdict about anything."""
    return FormatError(why, code=MISUSE)


def read_file(path: Path, *, limit: int) -> bytes:
    """An ordinary file's bytes, at most one more than `limit`.

    Raises:
        FormatError: `usage`: a directory, a pipe, a device.
        OSError: it cannot be read.
    """
    # Not blocking: opening a pipe would wait for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # Not `fdopen` at once, which names a folder by the number of its descriptor.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise misuse(f"{safe(str(path))} is not an ordinary file")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit + 1)


def read_if_there(path: Path, *, limit: int) -> bytes | None:
    """The same; None if there is no such file."""
    try:
        return read_file(path, limit=limit)
    except FileNotFoundError:
        return None


def constraint_line(text: str, *, program: bool = True) -> str:
    """A constraint as options take it, the line itself or a file that holds it; it parses.

    Args:
        text: what the option says.
        program: as for `Constraint.parse`.

    Raises:
        FormatError: `usage`: the file holds no text, or too much. `format`: it does not parse.
        OSError: it cannot be read.
    """
    if not text.strip():
        raise misuse(f"the constraint is empty; {_EXPECTED}, or a file that holds one")
    if ":" in text and not _is_there(text):
        Constraint.parse(text.strip(), program=program)
        return text.strip()
    line = _line_in(Path(text))
    try:
        Constraint.parse(line, program=program)
    except FormatError as error:
        raise FormatError(f"{safe(text)}: {error}") from None
    return line


def _line_in(path: Path) -> str:
    data = read_file(path, limit=MAX_LENGTH)
    try:
        if len(data) > MAX_LENGTH:
            raise ValueError
        line = data.decode().strip()
    except ValueError:
        raise misuse(f"{safe(str(path))} holds no constraint") from None
    if not line:
        raise misuse(f"{safe(str(path))} is empty; {_EXPECTED}")
    return line


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        # A constraint may be longer than any file's name.
        return False


def files_in(directory: Path, *, deep: bool) -> Iterator[Path]:
    """The ordinary files of a folder, and of those below it if `deep`; at most 1000.

    Raises:
        FormatError: `usage`: there are more.
        OSError: a folder cannot be read.
    """
    count = 0
    for place, below, names in os.walk(directory, onerror=_raise):
        below[:] = sorted(below) if deep else []
        for name in sorted(names):
            path = Path(place, name)
            # A link that leads nowhere is nothing; pipes and devices are no certificates.
            if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
                continue
            count += 1
            if count > MAX_FILES:
                raise misuse(f"{safe(str(directory))} holds more than {MAX_FILES} files")
            yield path


def _raise(error: OSError) -> None:
    raise error
