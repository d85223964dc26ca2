"""Imports an author's module at build time and prints entry and interface.

Runs in a subprocess of `conclave build`, outside any enclave, with the author's
own code: it has the author's rights and no secrets. That code finds what it will
find in the enclave and nothing else, so that a module which is missing there is
missing here.

Prints one JSON line: {"entry", "interface"} or {"error"}, with {"missing"} beside it
for a module that is nowhere.

Spec: spec/bundle.md section 3 (BND-16).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import sysconfig
import traceback
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conclave.enclave import Enclave
    from conclave.rpc.interface import Interface


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
    _check_reachable(cls, interface)
    return f"{module_name}:{name}", interface.encode()


def _check_reachable(cls: type[Enclave], interface: Interface) -> None:
    from conclave.enclave import Enclave

    if not interface.methods and cls.on_mail is Enclave.on_mail:
        raise TypeError(
            f"{cls.__name__} has no @rpc method and no on_mail: nothing could call it; "
            "mark with @rpc what clients may call"
        )


def _only(module: ModuleType) -> tuple[str, type[Enclave]]:
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


def _named(module: ModuleType, attribute: str) -> tuple[str, type[Enclave]]:
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
    """One line that names the author's own line, not the importer's; without one, an error of ours is its text."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
    if not frames and isinstance(error, TypeError):
        return str(error)
    place = f"{os.path.relpath(frames[-1].filename, root)}, line {frames[-1].lineno}: " if frames else ""
    return place + "".join(traceback.format_exception_only(error)).strip()


def _close(places: list[str], runtime: list[str]) -> None:
    """Leave to imports what an enclave has: the standard library, the runtime's packages, the bundle."""
    # Loaded while the place where they lie, beside all else that is installed here, is still searched.
    for name in runtime:
        importlib.import_module(name)
    library = sysconfig.get_path("stdlib")
    modules = sysconfig.get_config_var("DESTSHARED") or os.path.join(library, "lib-dynload")
    sys.path[:] = [library, modules, *places]
    # Packages that are installed to be edited are found by finders of their own.
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]


def _missing(error: ModuleNotFoundError) -> str:
    """The top-level module that is nowhere; nothing where only a part of one is."""
    name = (error.name or "").partition(".")[0]
    return "" if not name or name in sys.modules or PathFinder.find_spec(name) else name


def main() -> None:
    """Arguments: folder with `site` and `app` as an enclave has them, the module's name, the attribute's or nothing.

    After them, names of the runtime's packages.
    """
    place, module, attribute, *runtime = sys.argv[1:]
    root = os.path.join(place, "app")
    _close([os.path.join(place, "site"), root], runtime)
    # What the author's module prints at import goes to standard error.
    answers = os.dup(1)
    os.dup2(2, 1)
    answer: dict[str, str]
    try:
        entry, interface = describe(module, attribute)
        answer = {"entry": entry, "interface": interface.hex()}
    except ModuleNotFoundError as error:
        answer = {"error": _where(error, root), "missing": _missing(error)}
    except BaseException as error:
        answer = {"error": _where(error, root)}
    os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
