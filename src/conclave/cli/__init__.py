"""The command line. Each command is one thin module; heavy imports wait for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from conclave.errors import Error


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `conclave`. A user's mistake is one line, never a traceback."""
    from cyclopts import CycloptsError

    from conclave.cli._app import app
    from conclave.cli._terminal import safe

    try:
        result: Any = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        # 2 and above are for what commands find out.
        command = " ".join(("conclave", *(error.command_chain or ()), "--help"))
        # Its list of commands is cut after a few; the help has them all.
        text = safe(str(error)).partition(" Available commands:")[0].rstrip(".")
        print(f"error (usage): {text}; see `{command}`", file=sys.stderr)
        raise SystemExit(1) from None
    except Error as error:
        print(f"error ({error.code}): {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        print(f"error: {safe(_explained(error))}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(result if isinstance(result, int) else 0)


def _explained(error: OSError) -> str:
    """What the system refused, in words about the file that was asked for."""
    # Files are written aside and renamed: the second name is the one that was meant.
    name = error.filename2 or error.filename
    if not isinstance(name, str | bytes | os.PathLike):
        return error.strerror or str(error)
    path = Path(os.fsdecode(name))
    if isinstance(error, FileNotFoundError):
        return f"no such file: {path}" if path.parent.is_dir() else f"no such folder: {path.parent}"
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, and a file is needed"
    if isinstance(error, NotADirectoryError):
        return f"no such file: {path}; part of that path is a file, not a folder"
    if isinstance(error, PermissionError):
        return f"no permission for {path}; check its owner and mode, and those of its folder"
    return f"{error.strerror or error} ({path})"
