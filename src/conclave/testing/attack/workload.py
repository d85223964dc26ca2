"""Workloads as authors write them: a module with a function `workload`, and perhaps one named `check`.

For tests. The module is the author's, and runs with the author's rights.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conclave.errors import Error, FormatError
from conclave.testing.attack.attack import Attack

_SUFFIX: Final = "_workload"


class WorkloadError(Error):
    """The workload fails already with an honest operator, so that nothing could be learnt from it."""

    code = "workload"


@dataclass(frozen=True, slots=True)
class AuthorsWorkload:
    """Two functions; see `Workload`."""

    workload: Callable[[Attack], None]
    checks: Callable[[Attack], None] | None = None
    rehearsals: int = 1

    def run(self, attack: Attack) -> None:
        """See Workload."""
        self.workload(attack)

    def check(self, attack: Attack) -> None:
        """See Workload."""
        if self.checks is not None:
            self.checks(attack)


def load_workload(path: Path) -> AuthorsWorkload:
    """The workload in a Python file.

    Raises:
        FormatError: it has no function `workload(attack)`.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    name = f"conclave_attack_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FormatError(f"{path.name} is no Python file; a workload is one, with a function `workload(attack)`")
    module = importlib.util.module_from_spec(spec)
    # What it imports lies beside it.
    sys.path.insert(0, str(path.resolve().parent))
    # Where dataclasses and tracebacks look for it.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise FormatError(f"{path.name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    workload, check = getattr(module, "workload", None), getattr(module, "check", None)
    if not callable(workload):
        raise FormatError(f"{path.name} has no function `workload(attack)`")
    return AuthorsWorkload(workload, check)


def beside(path: Path) -> Path | None:
    """The workload that belongs to an enclave by its name: `poll_workload.py` to `poll.py`; None: there is none."""
    found = path / "workload.py" if path.is_dir() else path.with_name(_stem(path) + f"{_SUFFIX}.py")
    return found if found.is_file() else None


def _stem(path: Path) -> str:
    return path.name.partition(":")[0].removesuffix(".py")
