"""What the load tests share: hosts and callers as processes of their own, and figures of both.

`CONCLAVE_LOAD_SECONDS` (`make load`) makes a long run of each; without it they are short. Nothing is
decided by time: a run ends after so many rounds, in each of which every caller got an answer,
and for long runs not before the seconds are over.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests._processes import children

from conclave._crypto import DecryptionKey, SigningKey, random_bytes
from conclave.attestation import AttestationResult
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.client.core import split_mails
from conclave.errors import TransportError
from conclave.mail import ClientSession, ReplyKind, Request, RequestKind
from conclave.rpc.interface import encode_call

HERE = Path(__file__).parent
SECONDS = float(os.environ.get("CONCLAVE_LOAD_SECONDS", "0"))
# A safety net far above what any machine needs.
DEADLINE_SECONDS = 300 + 10 * SECONDS

SOURCE = '''
import asyncio
import os
from collections.abc import AsyncIterator

from conclave.enclave import Enclave, rpc
from conclave.errors import OverloadedError


class Target(Enclave):
    """Knows within a boot what it handled: each caller's numbers only grow."""

    def on_start(self) -> None:
        self.boot = os.urandom(8).hex()
        self.last: dict[str, int] = {}
        self.open = 0

    def count(self, caller: str, number: int) -> list[str]:
        twice = number <= self.last.get(caller, -1)
        self.last[caller] = max(number, self.last.get(caller, -1))
        return [self.boot, "2" if twice else "1"]

    @rpc
    async def run(self, caller: str, number: int) -> list[str]:
        # Others run meanwhile, so that a kill finds calls half done.
        await asyncio.sleep(0)
        return self.count(caller, number)

    @rpc
    def me(self) -> bytes:
        return self.address(self.sender)

    @rpc
    def tell(self, caller: str, number: int, to: bytes) -> list[str]:
        counted = self.count(caller, number)
        try:
            self.post(to, f"{caller} {number}".encode())
        except OverloadedError:
            # Its reader is slower than they who post: nothing was promised.
            return [*counted, "full"]
        return counted

    @rpc
    async def zeros(self, size: int) -> AsyncIterator[bytes]:
        self.open += 1
        try:
            part = bytes(65536)
            while size > 0:
                yield part[:size]
                size -= len(part)
        finally:
            self.open -= 1

    @rpc
    def streams(self) -> int:
        return self.open
'''


def scaled(short: int, long: int) -> int:
    """How many in the suite, and how many in a long run."""
    return long if SECONDS else short


def report(scenario: str, **figures: object) -> None:
    """One line of figures; `-s` shows it."""
    print(f"load: {scenario}: {json.dumps(figures, sort_keys=False)}", flush=True)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must come. How long says nothing."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.02)


# Processes ---------------------------------------------------------------------------


def pss_mib(pid: int) -> float:
    """Proportional set size; 0 of a process that has gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


class HostProcess:
    """`conclave serve`, to be measured, hindered and killed.

    Attributes:
        events: what it said on its standard error.
    """

    def __init__(
        self,
        bundle: Bundle,
        place: Path,
        *,
        store: str = "",
        store_timeout_seconds: float = 10,
        descriptors: int = 0,
        file_bytes: int = 0,
        clock: Path | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            store: the URL of a store instead of a directory in `place`.
            store_timeout_seconds: how long one of its operations may take.
            descriptors: how many it may have open; 0: as many as we.
            file_bytes: how large its files may become.
            clock: a file with the seconds by which its clock is wrong.
        """
        limits = [f"ulimit -n {descriptors}"] if descriptors else []
        # In units of 512 bytes, as the standard has it.
        limits += [f"ulimit -f {file_bytes // 512}"] if file_bytes else []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command = [
            *("sh", "-c", "; ".join([*limits, 'exec "$@"']), "sh", sys.executable),
            *(["-m", "conclave.cli"] if clock is None else [str(HERE / "_wrong_clock.py"), str(clock)]),
            *("serve", str(bundle.path), "--platform", str(place / "machine"), "--port", str(self.port)),
            *("--store", store or f"file:{place / 'store'}", "--store-timeout-seconds", str(store_timeout_seconds)),
        ]
        self._environment = {**os.environ, "XDG_STATE_HOME": str(place)}
        self.url = f"http://127.0.0.1:{self.port}"
        self.constraint = f"C:{bundle.code.hex()} SEC:INSECURE"
        self.process: subprocess.Popen[str] | None = None
        self.events: list[str] = []

    def start(self) -> None:
        """Start it, and wait until it serves."""
        process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environment
        )
        self.process = process
        assert process.stdout is not None
        threading.Thread(target=lambda: self.events.extend(process.stderr or ()), daemon=True).start()
        for line in process.stdout:
            if line.startswith("constraint"):
                return
        raise AssertionError(f"the host did not start: {self.events}")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def enclave(self) -> int:
        """The process of the author's code; 0 while there is none."""
        pids = children(self.pid)
        inner = [child for pid in pids for child in children(pid)]
        # Within its namespaces it has a parent that only waits.
        return next((leaf for pid in inner for leaf in (*children(pid), pid)), 0)

    def kill(self) -> None:
        """At this instruction, whichever it is."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def kill_enclave(self) -> None:
        """The same for its enclave, once there is one."""
        until(lambda: self.enclave != 0, "an enclave")
        with suppress(ProcessLookupError):
            os.kill(self.enclave, signal.SIGKILL)

    def memory(self) -> dict[str, float]:
        """What host, enclave and descriptors take now."""
        return {
            "host_mib": round(pss_mib(self.pid), 1),
            "enclave_mib": round(pss_mib(self.enclave), 1),
            "descriptors": self.descriptors(),
        }

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("it did not end on SIGTERM") from None


class Callers:
    """Honest clients in processes of their own, which call until told to stop; see `_callers`."""

    def __init__(
        self,
        host: HostProcess,
        count: int,
        *,
        processes: int = 1,
        attempts: int = 60,
        to: bytes = b"",
        clock: Path | None = None,
    ) -> None:
        """Nothing runs before the block.

        Args:
            attempts: of each call.
            to: an address that each call has a mail posted to.
            clock: a file with the seconds by which their clocks are wrong.
        """
        run = ["-m"] if clock is None else [str(HERE / "_wrong_clock.py"), str(clock)]
        self._commands = [
            [
                *(sys.executable, *run, "tests.load._callers"),
                *(host.url, host.constraint, f"{n}-{random_bytes(4).hex()}", str(count // processes), str(attempts)),
                to.hex(),
            ]
            for n in range(processes)
        ]
        self._processes: list[subprocess.Popen[str]] = []
        self._rounds: list[int] = []
        self._failures = 0
        self._tallies: list[dict[str, Any]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for number, command in enumerate(self._commands):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent.parent
            )
            self._processes.append(process)
            self._rounds.append(0)
            self._threads.append(threading.Thread(target=self._read, args=(number, process), daemon=True))
            self._threads[-1].start()
        return self

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round"):
                self._rounds[number] += 1
            elif line.startswith("failed"):
                self._failures += 1
            else:
                self._tallies.append(json.loads(line))

    def rounds(self, count: int = 1) -> None:
        """Wait until every caller was answered so many times more, and began after now."""
        marks = [done + count + 1 for done in self._rounds]
        until(
            lambda: all(done >= mark for done, mark in zip(self._rounds, marks, strict=True)) or self._ended(),
            "an answer for every caller",
        )
        assert not self._ended(), "a process of callers ended"

    def failures(self) -> None:
        """Wait until a call fails that they expect to."""
        mark = self._failures
        until(lambda: self._failures > mark or self._ended(), "a call that fails")
        assert not self._ended(), "a process of callers ended"

    def _ended(self) -> bool:
        return any(process.poll() is not None for process in self._processes)

    def stop(self) -> Tally:
        """Let all calls end, and say what became of them."""
        for process in self._processes:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
        for process, thread in zip(self._processes, self._threads, strict=True):
            process.wait(DEADLINE_SECONDS)
            thread.join(60)
        assert len(self._tallies) == len(self._processes), "a process of callers failed"
        return Tally(self._tallies)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for process, thread in zip(self._processes, self._threads, strict=True):
            thread.join(60)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


class Tally:
    """What became of all calls.

    Attributes:
        full: how many were answered that the reader's box is full.
        acknowledged: what was posted, as the answers say.
    """

    def __init__(self, parts: Sequence[dict[str, Any]]) -> None:
        self.answered = sum(part["answered"] for part in parts)
        self.twice = sum(part["twice"] for part in parts)
        self.wrong = sum(part["wrong"] for part in parts)
        self.full = sum(part["full"] for part in parts)
        self.errors: Counter[str] = Counter()
        for part in parts:
            self.errors.update(part["errors"])
        self.boots = len({boot for part in parts for boot in part["boots"]})
        self.acknowledged = {f"{caller} {n}" for part in parts for caller, numbers in part["told"] for n in numbers}

    def figures(self) -> dict[str, object]:
        return {
            "requests": self.answered + sum(self.errors.values()),
            "errors": dict(self.errors),
            "wrong": self.wrong,
            "handled twice": self.twice,
            "boots": self.boots,
            **({"posted": len(self.acknowledged)} if self.acknowledged else {}),
            **({"box full": self.full} if self.full else {}),
        }


class Reader:
    """Who reads what is posted to it, all the while and through whatever happens to the host."""

    def __init__(self, host: HostProcess) -> None:
        """Nothing runs before the block."""
        self._client = Client(host.url, constraint=host.constraint, attempts=60)
        self._bodies: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._failed: BaseException | None = None

    def __enter__(self) -> Self:
        self._client.__enter__()
        self.address = self._client.call("me", returns=bytes)
        self._client.poll()
        self._thread.start()
        return self

    def _read(self) -> None:
        try:
            while not self._stop.is_set():
                self._poll(1)
        except BaseException as error:
            self._failed = error

    def _poll(self, wait_seconds: float) -> bool:
        """Whether there may be more."""
        try:
            mails = self._client.poll(wait_seconds=wait_seconds)
        except TransportError:
            time.sleep(0.05)
            return True
        self._bodies += [mail.body.decode() for mail in mails]
        return bool(mails)

    def all(self) -> list[str]:
        """Everything that was posted, in the order in which it came; read once."""
        self._stop.set()
        self._thread.join(DEADLINE_SECONDS)
        assert self._failed is None, self._failed
        until(lambda: not self._poll(0), "the end of the mail")
        return self._bodies

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(60)
        self._client.__exit__(kind, error, trace)


# Raw ---------------------------------------------------------------------------------


def head(path: str, size: int, method: str = "POST", more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {size}\r\n\r\n".encode()


def exchange(sock: socket.socket, data: bytes) -> tuple[int, bytes]:
    """Send a request, and read its answer whole."""
    sock.sendall(data)
    return answer(sock)


def answer(sock: socket.socket) -> tuple[int, bytes]:
    """Status and body of the one answer that comes. Raises ConnectionError."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += _some(sock)
    top, _, body = got.partition(b"\r\n\r\n")
    lengths = [line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    size = int(lengths[0].partition(b":")[2]) if lengths else 0
    while len(body) < size:
        body += _some(sock)
    return int(top[9:12]), body


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ConnectionError("the host closed the connection")
    return data


def connected(host: HostProcess) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", host.port), timeout=DEADLINE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Channels:
    """Clients with an identity each that share one connection and one reply key, as behind a proxy."""

    def __init__(self, instance: AttestationResult, sock: socket.socket) -> None:
        self._instance = instance
        self._sock = sock
        self._reply_key = DecryptionKey.generate().public
        self.sessions: list[list[Any]] = []

    def grow(self, count: int) -> Iterator[int]:
        """Open so many, one call each; the number opened after each."""
        while len(self.sessions) < count:
            session = ClientSession(
                claims_digest=self._instance.claims_digest,
                encryption_key=self._instance.claims.encryption_key,
                identity=SigningKey(random_bytes(32)),
                reply_key=self._reply_key,
                topic="default",
            )
            self.sessions.append([session, 0])
            self.call(len(self.sessions) - 1)
            yield len(self.sessions)

    def call(self, number: int) -> int:
        """A call on one of them; how many milliseconds it took."""
        took = self.ask(number)
        assert took is not None
        return took

    def ask(self, number: int) -> int | None:
        """The same; None: the enclave has that channel no more."""
        session, sequence = self.sessions[number]
        body = encode_call("run", [f"channel {number}", sequence])
        mail = session.encrypt(Request(RequestKind.CALL, 0, sequence, sequence, body))
        began = time.monotonic()
        status, answered = exchange(self._sock, head("/mail", len(mail)) + mail)
        took = time.monotonic() - began
        if status == 409:
            return None
        assert status == 200, answered
        (reply,) = split_mails(answered)
        assert session.decrypt(reply).kind == ReplyKind.RESULT
        self.sessions[number][1] = sequence + 1
        return round(took * 1000)
