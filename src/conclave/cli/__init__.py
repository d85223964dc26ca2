"""The command line. Each command is one thin module; heavy imports wait for it."""

from __future__ import annotations

import sys
from typing import Any

from conclave.errors import Error


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `conclave`. A user's mistake is one line, never a traceback."""
    from cyclopts import CycloptsError

    from conclave.cli._app import app
    from conclave.cli._terminal import safe

    try:
        result: Any = app(arguments, exit_on_error=False)
    except CycloptsError:
        # It is said already, on standard error; 2 and above are for what commands find out.
        raise SystemExit(1) from None
    except Error as error:
        print(f"error ({error.code}): {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except FileNotFoundError as error:
        print(f"error: no such file: {safe(str(error.filename))}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        where = f" ({safe(str(error.filename))})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(result if isinstance(result, int) else 0)
