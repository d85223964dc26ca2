"""Compiling on all cores, and what becomes of its processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests._processes import children

BUILDER = """
from conclave.bundle.bytecode import compile_all
source = b"x = [" + b"(1, y), " * 20_000 + b"]"
compile_all([(f"a{n}.py", source) for n in range(5_000)], "/bundle/")
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", BUILDER]) as builder:
        workers: list[int] = []
        # Each is bound to the builder before its first work, which takes it some time.
        while not all(lives(w) and Path(f"/proc/{w}/stat").read_text().split()[13] > "0" for w in workers or [0]):
            assert builder.poll() is None
            time.sleep(0.02)
            workers = children(builder.pid)
        builder.kill()
    for _ in range(500):
        if not any(map(lives, workers)):
            return
        time.sleep(0.02)
    for worker in workers:
        subprocess.run(["kill", "-KILL", str(worker)], check=False)
    raise AssertionError("its workers are still there")
