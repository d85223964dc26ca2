"""Imports an author's module at build time and prints entry and interface.

Runs in a subprocess of `conclave build`, outside any enclave, with the author's
own code: it has the author's rights and no secrets.

Prints one JSON line: {"entry", "interface"} or {"error"}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from types import ModuleType


def describe(module_name: str, attribute: str = "") -> tuple[str, bytes]:
    """Entry (`module:attribute`) and encoded interface of an enclave.

    Args:
        attribute: names an enclave class or an ASGI application; without, the module
            has exactly one enclave class.

    Raises:
        TypeError: there is no such thing, or its types do not cross.
    """
    from conclave.rpc.interface import check_handlers, interface_of

    module = importlib.import_module(module_name)
    name, cls = _named(module, attribute) if attribute else _only(module)
    interface = interface_of(cls)
    check_handlers(cls, interface)
    return f"{module_name}:{name}", interface.encode()


def _only(module: ModuleType) -> tuple[str, type]:
    from conclave.enclave import Enclave

    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Enclave) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise TypeError(
            f"{module.__name__} must define exactly one subclass of conclave.enclave.Enclave, found: {names}; "
            "an ASGI application is named as module:attribute"
        )
    return classes[0].__name__, classes[0]


def _named(module: ModuleType, attribute: str) -> tuple[str, type]:
    from conclave.enclave import Enclave

    try:
        value = getattr(module, attribute)
    except AttributeError:
        raise TypeError(f"{module.__name__} has nothing called {attribute}") from None
    if isinstance(value, type) and issubclass(value, Enclave):
        return attribute, value
    from conclave.enclave.asgi import enclave_of

    return attribute, enclave_of(value)


def _where(error: BaseException, root: str) -> str:
    """One line that names the author's own line, not the importer's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
    place = f"{os.path.relpath(frames[-1].filename, root)}, line {frames[-1].lineno}: " if frames else ""
    return place + "".join(traceback.format_exception_only(error)).strip()


def main() -> None:
    """Arguments: import path of the source, of its wheels, the module's name, the attribute's or nothing."""
    root, site, module, attribute = sys.argv[1:]
    sys.path[1:1] = [root, site]
    # What the author's module prints at import goes to standard error.
    answers = os.dup(1)
    os.dup2(2, 1)
    answer: dict[str, str]
    try:
        entry, interface = describe(module, attribute)
        answer = {"entry": entry, "interface": interface.hex()}
    except TypeError as error:
        answer = {"error": str(error)}
    except BaseException as error:
        answer = {"error": _where(error, root)}
    os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
