"""The same with nothing faked: `conclave serve`, platform and sandbox as processes, clients over HTTP in threads."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests._processes import children
from tests.load._rig import HostProcess, until

from conclave.bundle import Bundle
from conclave.client import Client


class Caller:
    """One client in a thread, that calls until it is told to stop, and knows what each answer must be."""

    def __init__(self, host: HostProcess, name: str) -> None:
        self.done = 0
        self.failed: BaseException | None = None
        self._host = host
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        digest = b""
        try:
            with Client(self._host.url, constraint=self._host.constraint, attempts=1000) as client:
                while not self._stop.is_set():
                    digest = hashlib.sha256(digest + self.done.to_bytes(8, "big")).digest()
                    answer = client.call("add", self._name, self.done, bytes(500), returns=list[Any])
                    assert answer[:2] == [self.done, digest], (self._name, self.done, answer)
                    self.done += 1
                self.total, _, self.boots, self.version = client.call("audit", returns=list[int])
        except BaseException as error:
            self.failed = error

    def stop(self) -> None:
        """Wait for what is under way, and for the last look. Raises what it found."""
        self._stop.set()
        self._thread.join(120)
        if self.failed is not None:
            raise self.failed
        assert not self._thread.is_alive()


def besiege(bundle: Bundle, place: Path, *, kills: int, callers: int, seed: int) -> dict[str, Any]:
    """Kill host, platform and enclave in turn at random moments; the figures, once all was found in order."""
    chance, killed, began = random.Random(seed), Counter[str](), time.monotonic()
    host = HostProcess(bundle, place)
    with host:
        clients = [Caller(host, f"caller {number}") for number in range(callers)]

        def answered() -> None:
            marks = [client.done for client in clients]
            until(
                lambda: all(c.failed or c.done > mark for c, mark in zip(clients, marks, strict=True)),
                "an answer for every client",
            )

        answered()
        for number in range(kills):
            what = ("host", "enclave", "platform")[number % 3]
            if number % 4 == 0:
                answered()
            time.sleep(chance.uniform(0, 0.3))
            if what == "host":
                host.kill()
                host.start()
            elif what == "enclave":
                host.kill_enclave()
            else:
                until(lambda: bool(children(host.pid)), "a platform")
                with suppress(ProcessLookupError, IndexError):
                    os.kill(children(host.pid)[0], signal.SIGKILL)
            killed[what] += 1
        answered()
        for client in clients:
            client.stop()
    last = max(clients, key=lambda client: client.version)
    calls = sum(client.done for client in clients)
    # Nothing else was added by anybody.
    assert last.total == calls
    return {
        "seconds": round(time.monotonic() - began),
        "killed": dict(killed),
        "calls": calls,
        "boots": last.boots,
        "version": last.version,
    }
