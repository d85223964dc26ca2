"""Public names that load their module on first use.

Runs everywhere. An enclave must not load what only clients need, so packages with
parts for both hand out names this way.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazily(package: str, places: dict[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` (PEP 562).

    Args:
        package: the package's `__name__`.
        places: public name to the submodule that defines it; beginning with a dot, to one of a
            package beside this one.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{places[name]}", package), name)

    return get
