"""The simulated TEE: plays the processor, in a process of its own.

Whoever owns the machine owns it; it protects nothing from them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conclave.platform.launch import Launched, start_platform
    from conclave.platform.machine import Machine
    from conclave.platform.tree import bootstrap_command, runtime_tree

__all__ = ["Launched", "Machine", "bootstrap_command", "runtime_tree", "start_platform"]

_PLACES = {
    "Launched": "launch",
    "Machine": "machine",
    "bootstrap_command": "tree",
    "runtime_tree": "tree",
    "start_platform": "launch",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value
