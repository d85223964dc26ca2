"""The simulated TEE: plays the processor, in a process of its own.

Whoever owns the machine owns it; it protects nothing from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conclave._lazy import lazily

if TYPE_CHECKING:
    from conclave.platform.launch import Launched, start_platform
    from conclave.platform.machine import Machine
    from conclave.platform.tree import bootstrap_command, runtime_tree

__all__ = ["Launched", "Machine", "bootstrap_command", "runtime_tree", "start_platform"]

__getattr__ = lazily(
    __name__,
    {
        "Launched": "launch",
        "Machine": "machine",
        "bootstrap_command": "tree",
        "runtime_tree": "tree",
        "start_platform": "launch",
    },
)
