"""Byte code, compiled at build time and measured: same source, same bytes.

Runs at build time. The files are PEP 552 pycs with unchecked hashes: inside the
enclave nobody compares them with their source, because both were measured.

Spec: spec/bundle.md section 5 (BND-14).
"""

from __future__ import annotations

import ctypes
import marshal
import signal
import sys
from collections.abc import Iterable
from importlib.util import MAGIC_NUMBER, source_hash
from typing import Final

SUFFIX: Final = f".cpython-{sys.version_info.major}{sys.version_info.minor}.pyc"
_UNCHECKED_HASH: Final = (1).to_bytes(4, "little")
# Later marshal versions note which objects are shared, which depends on what the
# compiling process did before.
_MARSHAL_VERSION: Final = 2
_PART: Final = 50
_PR_SET_PDEATHSIG: Final = 1


def path_of(path: str) -> str:
    """`a/b.py` to `a/__pycache__/b.cpython-3xx.pyc`."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/__pycache__/{name[:-3]}{SUFFIX}"


def compile_source(data: bytes, name: str) -> bytes | None:
    """Byte code of one file; None if it does not compile.

    Args:
        name: the file name that tracebacks will show.
    """
    try:
        code = compile(data, name, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, RecursionError):
        return None
    return MAGIC_NUMBER + _UNCHECKED_HASH + source_hash(data) + marshal.dumps(code, _MARSHAL_VERSION)


def compile_all(sources: Iterable[tuple[str, bytes]], prefix: str) -> list[tuple[str, bytes]]:
    """Byte code of many files, on all cores: (path of the pyc, its bytes).

    Args:
        prefix: what goes before a path in tracebacks, for example `/bundle/`.
    """
    chosen = [(path, data, prefix) for path, data in sources if path.endswith(".py")]
    parts = [chosen[i : i + _PART] for i in range(0, len(chosen), _PART)]
    if len(parts) < 2:
        return [made for part in parts for made in _compile_part(part)]
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(initializer=_end_with_the_builder) as pool:
        return [made for part in pool.map(_compile_part, parts) for made in part]


def _end_with_the_builder() -> None:
    """Workers wait for work for ever, also when a signal has ended who gives it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _compile_part(part: list[tuple[str, bytes, str]]) -> list[tuple[str, bytes]]:
    made = ((path_of(path), compile_source(data, prefix + path)) for path, data, prefix in part)
    return [(path, code) for path, code in made if code is not None]
