"""Memory of an idle enclave, against an idle FastAPI worker and a bare interpreter.

Ours is `conclave serve` of examples/hello.py after one call: the host, the platform
process (which a real TEE does not have) and the enclave, by role. Theirs, the same
greeting by one uvicorn worker with FastAPI after one request. PSS: pages that several
processes share count in parts. Rounds start all anew.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from _common import HERE, Server, connect, emit, middle, post

from conclave.bundle import build
from conclave.client import Client

ROUNDS = 5
HELLO = HERE.parent / "examples" / "hello.py"


def pss_mib(pid: int) -> float:
    """Proportional set size of one process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no Pss")


def children(pid: int) -> list[int]:
    """Processes that this one started."""
    return [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]


def descendants(pid: int) -> list[int]:
    """The same, and theirs."""
    return [d for child in children(pid) for d in (child, *descendants(child))]


def main() -> None:
    """Measure and report."""
    found: dict[str, list[float]] = {n: [] for n in ("enclave", "platform", "host", "fastapi", "interpreter")}
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as place_name:
        place = Path(place_name)
        bundle = build(HELLO, place / "hello.enclave", mode="release")
        for _ in range(ROUNDS):
            with (
                Server("-m", "conclave.cli", "serve", bundle.path, "--port", "0", "--platform", place / "m") as server,
                Client(server.url, constraint=f"C:{bundle.code.hex()} SEC:INSECURE") as client,
            ):
                client.call("greet", "World")
                assert server._process is not None
                host = server._process.pid
                (platform,) = children(host)
                found["host"].append(pss_mib(host))
                found["platform"].append(pss_mib(platform))
                found["enclave"].append(sum(pss_mib(pid) for pid in descendants(platform)))
            with Server(HERE / "_servers.py", "hello") as theirs, connect(theirs.port) as sock:
                sock.sendall(post("/?name=World", "application/json", b""))
                sock.recv(65536)
                assert theirs._process is not None
                found["fastapi"].append(pss_mib(theirs._process.pid))
            bare = subprocess.Popen(
                [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert bare.stdout is not None
            bare.stdout.readline()
            found["interpreter"].append(pss_mib(bare.pid))
            bare.communicate(b"\n")
    emit(
        "memory_idle",
        ours={name: {"pss_mib": middle(found[name])} for name in ("enclave", "platform", "host")},
        theirs={name: {"pss_mib": middle(found[name])} for name in ("fastapi", "interpreter")},
        ratios={
            name: middle(a / b for a, b in zip(found["enclave"], found[name], strict=True))
            for name in ("fastapi", "interpreter")
        },
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
