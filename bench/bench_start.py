"""Starting an enclave to its first verified reply, against starting a plain service.

Ours, for examples/hello.py: build time is not counted; a client made afresh verifies
the instance, opens a session and decrypts the greeting.
- `warm`: from `start_platform` on, in a process that has imported what it needs.
- `cold_machine`: the same with a new simulated machine, whose keys and certificates
  are made first.
- `process`: from starting `conclave serve` as a new process, on the warm machine.
Theirs, `process`: a new process with one uvicorn worker and a FastAPI application that
greets, to its first reply, over plain HTTP. The runtime tree exists in all of them.

`steps`: where the time of `warm` goes. `launch`: platform process, its measuring and
laying out, to the start of the enclave's process. `boot`: interpreter, runtime, the
author's class, keys, evidence. `serve`: the HTTP server. `verify`: instance info
fetched and verified. `call`: session opened, call made, reply decrypted.

Rounds take all in turn; ratios are of one round, then the median.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import HERE, Server, connect, emit, middle, post, response_body

from conclave.bundle import Bundle, build
from conclave.client import Client
from conclave.host import Host
from conclave.platform import start_platform
from conclave.testing import HostServer

ROUNDS = 7
HELLO = HERE.parent / "examples" / "hello.py"


def _greet(url: str, bundle: Bundle) -> None:
    with Client(url, constraint=f"C:{bundle.code.hex()} SEC:INSECURE") as client:
        if client.call("greet", "World", returns=str) != "Hello World, you are number 1.":
            raise RuntimeError("another greeting")


STEPS = ("launch", "boot", "serve", "verify", "call")


class _Timed(Host):
    """A host that notes when the enclave's process was started and when its evidence came."""

    def __init__(self, machine: Path, bundle: Bundle) -> None:
        self.marks: dict[str, float] = {}
        super().__init__(lambda: start_platform(machine, bundle.path), on_event=self._note, restart=False)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("event") == "launched":
            self.marks["launch"] = time.perf_counter()

    async def start(self) -> None:
        await super().start()
        self.marks["boot"] = time.perf_counter()


def inside(bundle: Bundle, machine: Path, steps: dict[str, list[float]] | None = None) -> float:
    """Seconds from `start_platform` to the verified reply."""
    began = time.perf_counter()
    host = _Timed(machine, bundle)
    with HostServer(host) as server:
        host.marks["serve"] = time.perf_counter()
        with Client(server.url, constraint=f"C:{bundle.code.hex()} SEC:INSECURE") as client:
            client.verify()
            host.marks["verify"] = time.perf_counter()
            if client.call("greet", "World", returns=str) != "Hello World, you are number 1.":
                raise RuntimeError("another greeting")
            host.marks["call"] = time.perf_counter()
    if steps is not None:
        last = began
        for name in STEPS:
            steps[name].append(host.marks[name] - last)
            last = host.marks[name]
    return host.marks["call"] - began


def process(bundle: Bundle, machine: Path) -> float:
    """Seconds from a new host process to the verified reply."""
    began = time.perf_counter()
    with Server("-m", "conclave.cli", "serve", bundle.path, "--port", "0", "--platform", machine) as server:
        _greet(server.url, bundle)
        return time.perf_counter() - began


def fastapi() -> float:
    """Seconds from a new FastAPI process to its reply."""
    began = time.perf_counter()
    with Server(HERE / "_servers.py", "hello") as server, connect(server.port) as sock:
        sock.sendall(post("/?name=World", "application/json", b""))
        data = sock.recv(65536)
        while (body := response_body(data)) is None:
            data += sock.recv(65536)
        if body != b'"Hello World, you are number 1."':
            raise RuntimeError("another greeting")
        return time.perf_counter() - began


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory(prefix="bench-start-") as place_name:
        place = Path(place_name)
        bundle = build(HELLO, place / "hello.enclave", mode="debug")
        machine = place / "machine"

        def cold() -> float:
            fresh = place / "fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            return inside(bundle, fresh)

        steps: dict[str, list[float]] = {name: [] for name in STEPS}
        sides: dict[str, Callable[[], float]] = {
            "warm": lambda: inside(bundle, machine, steps),
            "cold_machine": cold,
            "process": lambda: process(bundle, machine),
            "fastapi": fastapi,
        }
        found: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side()
        for _ in range(ROUNDS):
            for name, side in sides.items():
                found[name].append(side())
    theirs = found.pop("fastapi")
    emit(
        "start_hello",
        ours={name: {"seconds": middle(times)} for name, times in found.items()}
        | {"steps": {name: middle(times) for name, times in steps.items()}},
        theirs={"process": {"seconds": middle(theirs)}},
        ratios={n: {"fastapi": middle(a / b for a, b in zip(v, theirs, strict=True))} for n, v in found.items()},
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
