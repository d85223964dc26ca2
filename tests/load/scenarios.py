"""A served enclave under load and under faults; each scenario gives figures, and fails if something was lost.

Everything is real: `conclave serve` in a process of its own, its enclave, clients over
sockets. The clients' process is this one.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from conclave._mailheader import HEADER, MAGIC, TO_ENCLAVE, ZERO_SALT
from conclave.bundle import Bundle
from conclave.client import AsyncClient
from conclave.errors import Error

SOURCE = """
from conclave.enclave import Enclave, rpc


class Echo(Enclave):
    @rpc
    def echo(self, number: int, data: bytes) -> int:
        return number
"""


@dataclass
class Figures:
    """What one scenario found."""

    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    host_mib: tuple[float, float] = (0.0, 0.0)
    enclave_mib: tuple[float, float] = (0.0, 0.0)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        errors = ", ".join(f"{count} {name}" for name, count in sorted(self.errors.items())) or "0"
        host, enclave = (f"{a:.0f} → {b:.0f}" for a, b in (self.host_mib, self.enclave_mib))
        return f"{self.requests} in {self.seconds:.0f} s | {errors} | {host} | {enclave} | {'; '.join(self.notes)}"


class Host:
    """`conclave serve`, which can be killed and started again at its address."""

    def __init__(self, bundle: Bundle, place: Path, *arguments: str, descriptors: int | None = None) -> None:
        self._bundle, self._place, self._arguments = bundle, place, arguments
        self._descriptors = descriptors
        self.constraint = f"C:{bundle.code.hex()} SEC:INSECURE"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = ("127.0.0.1", self.port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "conclave.cli", "serve", str(self._bundle.path), "--port", str(self.port)]
        command += ["--platform", str(self._place / "machine"), "--store", f"file:{self._place / 'store'}"]
        self.process = subprocess.Popen(
            [*command, "--log", "none", *self._arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("constraint"):
                if self._descriptors is not None:
                    # Below what the host counts on: it meets the end of its descriptors, not its own limit.
                    limit = (self._descriptors, self._descriptors)
                    resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, limit)
                return
        raise AssertionError("the host did not start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def enclave(self) -> int:
        """The process of the author's code: the last of the host's descendants."""
        assert self.process is not None
        found = [self.process.pid]
        while below := _children(found[-1]):
            found.append(below[-1])
        return found[-1]

    def memory(self) -> tuple[float, float]:
        """MiB of host and enclave."""
        assert self.process is not None
        return _mib(self.process.pid), _mib(self.enclave())


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return sorted(found)


def _mib(pid: int) -> float:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024
    return 0.0


@contextmanager
def hosted(bundle: Bundle, place: Path, *arguments: str, descriptors: int | None = None) -> Iterator[Host]:
    host = Host(bundle, place, *arguments, descriptors=descriptors)
    host.start()
    try:
        yield host
    finally:
        host.stop()


@asynccontextmanager
async def crowd(host: Host, count: int, figures: Figures) -> AsyncIterator[None]:
    """So many clients that call without a pause until the block ends."""
    over = asyncio.Event()

    async def one(client: AsyncClient, me: int) -> None:
        number = me << 32
        while not over.is_set():
            number += 1
            try:
                answer = await client.call("echo", number, bytes(64))
            except Error as error:
                figures.errors[error.code] += 1
                await asyncio.sleep(0.05)
            else:
                figures.requests += 1
                figures.wrong += answer != number

    clients = [AsyncClient(host.url, constraint=host.constraint) for _ in range(count)]
    tasks = [asyncio.create_task(one(client, me)) for me, client in enumerate(clients)]
    began = time.monotonic()
    try:
        yield
        over.set()
        await asyncio.gather(*tasks)
        figures.seconds = time.monotonic() - began
    finally:
        for task in tasks:
            task.cancel()
        for client in clients:
            await client.aclose()


async def _measured(host: Host, figures: Figures, clients: int, work: Callable[[], object]) -> None:
    """Warm up, look at memory, do the work under load, look again."""
    async with crowd(host, clients, figures):
        await asyncio.sleep(2)
        first = host.memory()
        result = work()
        if asyncio.iscoroutine(result):
            await result
        last = host.memory()
    figures.host_mib, figures.enclave_mib = (first[0], last[0]), (first[1], last[1])
    assert figures.wrong == 0
    assert figures.requests > 0


async def steady(host: Host, seconds: float, clients: int) -> Figures:
    """Concurrent clients, and nothing else."""
    figures = Figures()
    await _measured(host, figures, clients, lambda: asyncio.sleep(seconds))
    assert not figures.errors
    figures.notes.append(f"{figures.requests / figures.seconds:.0f} a second")
    return figures


async def enclave_killed(host: Host, seconds: float, clients: int) -> Figures:
    """The enclave dies again and again; clients go on by themselves."""
    figures = Figures()
    kills = 0

    async def work() -> None:
        nonlocal kills
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            os.kill(host.enclave(), signal.SIGKILL)
            kills += 1
            await _ready(host)
            await asyncio.sleep(1)

    await _measured(host, figures, clients, work)
    figures.notes.append(f"killed {kills} times")
    return figures


async def host_killed(host: Host, seconds: float, clients: int) -> Figures:
    """The host dies, and comes back at its address."""
    figures = Figures()
    kills = 0

    async def work() -> None:
        nonlocal kills
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            host.kill()
            kills += 1
            await asyncio.to_thread(host.start)
            await asyncio.sleep(2)

    await _measured(host, figures, clients, work)
    figures.notes.append(f"killed {kills} times")
    return figures


async def _ready(host: Host) -> None:
    async with httpx2.AsyncClient() as http:
        while True:
            with suppress(httpx2.HTTPError):
                if (await http.get(f"{host.url}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.05)


async def descriptors(host: Host, connections: int) -> Figures:
    """More connections than the host has descriptors: those that are there are served, and all are when they leave."""
    figures = Figures()
    held: list[socket.socket] = []
    async with AsyncClient(host.url, constraint=host.constraint) as client:
        await client.call("echo", 1, b"")
        first = host.memory()
        for _ in range(connections):
            with suppress(OSError):
                held.append(socket.create_connection(host.address, timeout=5))
        for number in range(20):
            figures.requests += await client.call("echo", number, b"") == number
        assert figures.requests == 20
        for sock in held:
            sock.close()
        await _ready(host)
        async with AsyncClient(host.url, constraint=host.constraint) as another:
            assert await another.call("echo", 7, b"") == 7
        last = host.memory()
    figures.host_mib, figures.enclave_mib = (first[0], last[0]), (first[1], last[1])
    figures.notes.append(f"{connections} connections")
    return figures


async def slow_and_half_closed(host: Host, seconds: float, clients: int, bad: int) -> Figures:
    """Clients that send a byte now and then, half-close, or never read, beside honest ones."""
    figures = Figures()
    heads = (b"POST /mail HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", b"GET /instance HTTP/1.1\r\nHo")
    stop = asyncio.Event()

    async def creep(number: int) -> None:
        while not stop.is_set():
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(*host.address)
                writer.write(heads[number % 2])
                if number % 3 == 0 and writer.can_write_eof():
                    writer.write_eof()
                with suppress(OSError, TimeoutError):
                    while not stop.is_set() and not writer.is_closing():
                        if number % 3:
                            writer.write(b"x")
                        async with asyncio.timeout(1):
                            if not await reader.read(1):
                                break
                writer.close()
            await asyncio.sleep(0.1)

    async def work() -> None:
        creeping = [asyncio.create_task(creep(number)) for number in range(bad)]
        await asyncio.sleep(seconds)
        stop.set()
        await asyncio.gather(*creeping)

    await _measured(host, figures, clients, work)
    assert not figures.errors
    figures.notes.append(f"{bad} bad clients")
    return figures


async def unknown_channels(host: Host, count: int) -> Figures:
    """Mails of sessions that never were, each another: all are refused, and nothing of them is kept."""
    figures = Figures()
    began = time.monotonic()
    first = host.memory()
    left = count

    async def flood() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection(*host.address)
        while left > 0:
            part = min(16, left)
            left -= part
            for _ in range(part):
                header = HEADER.pack(MAGIC, TO_ENCLAVE, 0, 0, secrets.token_bytes(16), 0, ZERO_SALT, 256)
                body = header + bytes(256)
                writer.write(b"POST /mail HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            for _ in range(part):
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")).split()[1])
                await reader.readexactly(size)
                figures.requests += 1
                figures.errors[head[9:12].decode()] += 1
        writer.close()

    await asyncio.gather(*(flood() for _ in range(8)))
    figures.seconds = time.monotonic() - began
    last = host.memory()
    figures.host_mib, figures.enclave_mib = (first[0], last[0]), (first[1], last[1])
    assert figures.errors.keys() == {"409"}
    return figures


async def disk_full(bundle: Bundle, place: Path, seconds: float, clients: int) -> Figures:
    """The store's disk has no room, then has some again: calls that post nothing go on all the time."""
    figures = Figures()
    with hosted(bundle, place) as host:

        async def work() -> None:
            ballast = place / "ballast"
            with suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            await asyncio.sleep(seconds / 2)
            ballast.unlink()
            await asyncio.sleep(seconds / 2)
            await _ready(host)

        await _measured(host, figures, clients, work)
    return figures


async def store_gone(bundle: Bundle, place: Path, seconds: float, clients: int) -> Figures:
    """The store is gone, then back: the host says so, calls go on, and it heals by itself."""
    figures = Figures()
    with hosted(bundle, place) as host:

        async def work() -> None:
            store = place / "store"
            store.rename(place / "elsewhere")
            await asyncio.sleep(seconds / 2)
            async with httpx2.AsyncClient() as http:
                assert (await http.get(f"{host.url}/readyz")).json()["reasons"] == ["store"]
            (place / "elsewhere").rename(store)
            await asyncio.sleep(max(seconds / 2, 1.5))
            await _ready(host)

        await _measured(host, figures, clients, work)
    assert not figures.errors
    return figures
