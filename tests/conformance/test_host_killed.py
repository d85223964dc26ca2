"""The host process killed at any instruction, over and over: nothing that the enclave acknowledged is lost,
and nothing is handled twice within a boot.

`CONCLAVE_KILLS` says how often, for a longer run than the suite's.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from conclave.bundle import Bundle
from conclave.client import Box, Client, Identity
from conclave.errors import TransportError

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CONCLAVE_KILLS", "30"))
CALLERS = 3

SOURCE = '''
from conclave.enclave import Enclave, rpc


class Ledger(Enclave):
    def on_start(self) -> None:
        self.times = {}

    @rpc
    def me(self) -> bytes:
        return self.address(self.sender)

    @rpc
    def tell(self, token: str, to: bytes) -> int:
        """Handles a token: counts it, posts it, and says how often it was handled in this boot."""
        self.times[token] = self.times.get(token, 0) + 1
        self.post(to, f"{token} {self.times[token]}".encode())
        return self.times[token]
'''


class HostProcess:
    """`conclave serve`, to be killed."""

    def __init__(self, bundle: Bundle, place: Path, machine: Path) -> None:
        self._command = [
            *(sys.executable, "-m", "conclave.cli", "serve", str(bundle.path), "--platform", str(machine)),
            *("--store", f"file:{place / 'store'}"),
        ]
        self._environment = {**os.environ, "XDG_STATE_HOME": str(place)}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> threading.Event:
        """Start it; the event is set when it serves, or has ended."""
        process = subprocess.Popen(
            [*self._command, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )
        assert process.stdout is not None
        stdout, serves = process.stdout, threading.Event()

        def read() -> None:
            for line in stdout:
                if line.startswith("constraint"):
                    serves.set()
            serves.set()

        threading.Thread(target=read, daemon=True).start()
        self.process = process
        return serves

    def kill(self) -> None:
        """At this instruction, whichever it is."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(30) == -signal.SIGKILL


class Receiver:
    """Polls all the while, and is restarted with what it kept of its box as often as the host is."""

    def __init__(self, url: str, constraint: str) -> None:
        self.identity, self.box = Identity.generate(), Box.generate()
        self._url, self._constraint = url, constraint
        self.seen: set[str] = set()
        self.counts: set[str] = set()
        self.refused = 0

    def client(self) -> Client:
        return Client(
            self._url, constraint=self._constraint, identity=self.identity, box=self.box, timeout_seconds=5, attempts=2
        )

    def poll(self, client: Client, seconds: float) -> int:
        """One poll; what it gives is written down before it is acknowledged."""
        mails = client.poll(wait_seconds=seconds)
        for mail in mails:
            token, _, count = mail.body.decode().partition(" ")
            self.seen.add(token)
            self.counts.add(count)
        return len(mails)

    def run(self, stop: threading.Event) -> None:
        chance = random.Random(2)
        while not stop.is_set():
            # A client that is killed, too: what it exported knows nothing of what it had not acknowledged.
            kept = self.box.export()
            with self.client() as client:
                for _ in range(chance.randint(1, 20)):
                    with suppress(TransportError):
                        self.poll(client, 0.2)
                    if stop.is_set():
                        break
                self.refused += client.refused_mails
                kept = self.box.export() if chance.random() < 0.7 else kept
            self.box = Box.restore(kept)


def callers(
    url: str, constraint: str, address: bytes, stop: threading.Event
) -> tuple[list[threading.Thread], set[str], set[int]]:
    """Clients that have tokens handled, and what the enclave acknowledged of them."""
    acknowledged: set[str] = set()
    times: set[int] = set()

    def work(name: int) -> None:
        with Client(url, constraint=constraint, attempts=60, timeout_seconds=10) as client:
            for n in itertools.count():
                if stop.is_set():
                    return
                token = f"{name}-{n}"
                # No answer: the outcome is unknown, and nothing was promised.
                with suppress(TransportError):
                    times.add(client.call("tell", token, address, returns=int))
                    acknowledged.add(token)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(CALLERS)]
    return threads, acknowledged, times


@pytest.mark.spec("HTTP-16", "CHAN-13")
def test_a_host_that_is_killed(
    author: Callable[..., Bundle], only: Callable[[Bundle], str], machine: Path, tmp_path: Path
) -> None:
    bundle = author("ledger", SOURCE)
    host = HostProcess(bundle, tmp_path, machine)
    url, constraint, chance = f"http://127.0.0.1:{host.port}", only(bundle), random.Random(1)
    serves = host.start()
    assert serves.wait(120)
    receiver = Receiver(url, constraint)
    with receiver.client() as client:
        address = client.call("me", returns=bytes)
        assert client.poll() == []
    stop, done = threading.Event(), threading.Event()
    threads, acknowledged, times = callers(url, constraint, address, stop)
    polling = threading.Thread(target=receiver.run, args=(done,))
    try:
        for thread in (*threads, polling):
            thread.start()
        for n in range(KILLS):
            # Wherever in its start-up it may be; when it has just begun to serve; mostly while it is at work.
            before = len(acknowledged)
            assert not n % 5 or serves.wait(120)
            while n % 5 > 1 and len(acknowledged) == before:
                assert host.process is not None
                assert host.process.poll() is None, "it ended by itself"
                time.sleep(0.005)
            time.sleep(chance.uniform(0.0, 0.3))
            host.kill()
            serves = host.start()
        assert serves.wait(120)
        stop.set()
        for thread in threads:
            thread.join(120)
        done.set()
        polling.join(60)
        with receiver.client() as client:
            while receiver.poll(client, 1.0):
                pass
    finally:
        stop.set()
        done.set()
        host.kill()
    assert acknowledged - receiver.seen == set()
    # A reply, and a mail, say how often the token was handled in that boot.
    assert times == {1}
    assert receiver.counts == {"1"}
    assert len(acknowledged) >= KILLS * 3 // 5
