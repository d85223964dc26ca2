"""A whole host, and at the other end of its channel an enclave that speaks frames and nothing else."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests._state import boot_header, chunk, commit, record, snapshot

from conclave import _codec
from conclave._framing import Frame, FrameReader, Kind, pack
from conclave.errors import PlatformError, StoreDamaged
from conclave.host import Host
from conclave.host.metrics import Metrics
from conclave.host.states import MemoryStates, StateStore, What
from conclave.host.states.files import FileStates

pytestmark = pytest.mark.slow
_PLATFORM = "import sys; print({!r}, flush=True); sys.stdin.read()"
_LAUNCHED = json.dumps({"event": "launched", "endorsements": "", "bundle_id": "00"})
INSTANCE = _codec.encode({"claims": b"c", "format": "sgx", "evidence": b"", "hints": b""})


@dataclass
class Launched:
    process: subprocess.Popen[bytes]
    channel: socket.socket


class Boots:
    """Launches boots; each is this program, which answers as the test says."""

    def __init__(self, live: Callable[[Boot], Awaitable[None]]) -> None:
        self._live = live
        self._loop = asyncio.get_running_loop()
        self.boots: list[Boot] = []
        self.tasks: list[asyncio.Future[None]] = []

    def launch(self) -> Launched:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        process = subprocess.Popen(
            [sys.executable, "-c", _PLATFORM.format(_LAUNCHED)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        boot = Boot(theirs, len(self.boots))
        self.boots.append(boot)
        self._loop.call_soon_threadsafe(lambda: self.tasks.append(asyncio.ensure_future(self._live(boot))))
        return Launched(process, ours)


class Boot:
    """The enclave's end of one channel."""

    def __init__(self, channel: socket.socket, number: int) -> None:
        self.number = number
        self.channel = channel
        self._reader = FrameReader(Kind)
        self._frames: list[Frame] = []
        self.stored: list[tuple[int, bytes]] = []
        self.version = -1

    async def send(self, *frames: tuple[int, int, bytes]) -> None:
        await asyncio.get_running_loop().sock_sendall(self.channel, b"".join(pack(*frame) for frame in frames))

    async def receive(self, kind: int) -> Frame:
        """The next frame of that kind; others are dropped."""
        async with asyncio.timeout(20):
            while True:
                for at, frame in enumerate(self._frames):
                    if frame.kind == kind:
                        del self._frames[: at + 1]
                        return frame
                data = await asyncio.get_running_loop().sock_recv(self.channel, 1 << 20)
                if not data:
                    raise EOFError
                self._frames += self._reader.feed(data)

    async def load(self) -> None:
        await self.send((Kind.LOAD, 1, b""))
        while not self.stored or self.stored[-1][0] not in (What.END, What.UNREADABLE):
            payload = (await self.receive(Kind.STORED)).payload
            self.stored.append((payload[0], payload[1:]))
        self.version = len([what for what, _ in self.stored if what == What.ITEM]) - 1

    async def start(self) -> None:
        """As an enclave with state does."""
        await self.load()
        self.version += 1
        boot = boot_header(self.number + 1)
        await self.send((Kind.COMMIT, 0, commit(self.version, boot=boot)), (Kind.INSTANCE, 0, INSTANCE))

    async def commit(self, *bodies: bytes) -> None:
        for body in bodies:
            self.version += 1
            await self.send((Kind.COMMIT, 0, commit(self.version, body)))

    async def committed(self, version: int) -> None:
        while int.from_bytes((await self.receive(Kind.COMMITTED)).payload, "big") < version:
            pass

    def end(self) -> None:
        """All that was sent arrives before the end does."""
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


def hosted(
    live: Callable[[Boot], Awaitable[None]],
    work: Callable[[Host, Boots], Awaitable[None]],
    state: StateStore | None = None,
    *,
    events: list[dict[str, Any]] | None = None,
) -> None:
    told = [] if events is None else events

    async def main() -> None:
        boots = Boots(live)
        host = Host(boots.launch, state=state, on_event=told.append)
        try:
            await host.start()
            await work(host, boots)
        finally:
            for boot in boots.boots:
                boot.channel.close()
            await host.stop()
            for task in boots.tasks:
                task.cancel()

    asyncio.run(main())


@pytest.mark.spec("CHAN-16", "CHAN-17")
@pytest.mark.parametrize("kind", ["none", "files"])
def test_an_enclave_that_dies_and_finds_its_state(kind: str, tmp_path: Path) -> None:
    """What it committed the moment before is in what the next boot loads."""

    async def work(host: Host, boots: Boots) -> None:
        await boots.boots[0].commit(b"one", b"two", b"three")
        boots.boots[0].end()
        await until(lambda: len(boots.boots) == 2 and host.info is not None)
        expected = [record(0, boot=boot_header(1)), record(1, b"one"), record(2, b"two"), record(3, b"three")]
        assert boots.boots[1].stored == [*((What.ITEM, one) for one in expected), (What.END, b"")]
        await boots.boots[1].commit(b"more")
        await boots.boots[1].committed(5)

    hosted(Boot.start, work, FileStates(tmp_path / "state") if kind == "files" else None)
    if kind == "files":

        async def again(host: Host, boots: Boots) -> None:
            assert [what for what, _ in boots.boots[0].stored] == [What.ITEM] * 6 + [What.END]

        hosted(Boot.start, again, FileStates(tmp_path / "state"))


@pytest.mark.spec("HTTP-22")
def test_figures_of_state() -> None:
    metrics = Metrics()

    def figure(name: str) -> float:
        (line,) = [line for line in metrics.text().decode().splitlines() if line.startswith(name + " ")]
        return float(line.rpartition(" ")[2])

    async def work(host: Host, boots: Boots) -> None:
        metrics.watch(host)
        await boots.boots[0].commit(b"one", b"two")
        await boots.boots[0].committed(2)
        await until(lambda: figure("conclave_state_commits_total") == 3)
        assert figure("conclave_state_waiting") == 0
        assert figure("conclave_state_log_records") == 3
        assert figure("conclave_state_bytes_total") == figure("conclave_state_log_bytes") > 3 * 28
        count = figure('conclave_store_seconds_count{operation="append"}')
        assert 1 <= count <= 3
        await boots.boots[0].send((Kind.SNAPSHOT, 0, snapshot(1, 1, 2)), (Kind.SNAPSHOT, 0, snapshot(1, 0, 2)))
        await until(lambda: figure("conclave_state_log_records") == figure("conclave_state_log_bytes") == 0)
        assert figure("conclave_state_commits_total") == 3

    hosted(Boot.start, work, metrics.state(MemoryStates()))


@pytest.mark.spec("CHAN-23")
def test_instance_info_is_given_out_once_the_log_is_there() -> None:
    class Held(MemoryStates):
        def __init__(self) -> None:
            super().__init__()
            self.may = asyncio.Event()

        async def append(self, items: Any) -> None:
            await self.may.wait()
            await super().append(items)

    async def main() -> None:
        store, boots = Held(), Boots(Boot.start)
        host = Host(boots.launch, state=store)
        starting = asyncio.create_task(host.start())
        await until(lambda: host.journal.figures.commits == 1)
        await asyncio.sleep(0.05)
        assert host.info is None
        store.may.set()
        await starting
        assert host.info is not None
        boots.boots[0].channel.close()
        await host.stop()

    asyncio.run(main())


@pytest.mark.spec("CHAN-22")
def test_a_halted_enclave_is_told_to_the_operator() -> None:
    events: list[dict[str, Any]] = []

    async def work(host: Host, boots: Boots) -> None:
        assert await host.health.reasons() == []
        await boots.boots[0].send((Kind.HALTED, 0, bytes(128)), (Kind.HALTED, 0, bytes(128)))
        await until(lambda: host.halted)
        assert await host.health.reasons() == ["halted"]
        (told,) = [event for event in events if event["event"] == "halted"]
        assert "restored from a backup, or two hosts run from copies" in told["text"]
        assert host.counts.halts == 1
        metrics = Metrics()
        metrics.watch(host)
        assert b"conclave_enclave_halted 1.0" in metrics.text()
        # Nothing else: a word of an enclave ends no service but its own.
        assert host.info is not None
        boots.boots[0].end()
        await until(lambda: len(boots.boots) == 2 and host.info is not None)
        assert await host.health.reasons() == []

    hosted(Boot.start, work, events=events)


@pytest.mark.spec("CHAN-16", "STORE-20")
def test_a_damaged_store_ends_the_start_and_stays_as_it_is(tmp_path: Path) -> None:
    async def fill() -> None:
        store = FileStates(tmp_path / "state")
        for version in range(5):
            await store.append([(version, commit(version, bytes(100), boot=boot_header() if not version else b""))])
        await store.close()

    asyncio.run(fill())
    (log,) = (tmp_path / "state").glob("log-*")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)

    async def never(host: Host, boots: Boots) -> None:
        raise AssertionError("it started")

    events: list[dict[str, Any]] = []
    with pytest.raises(StoreDamaged, match="no whole item of version"):
        hosted(Boot.load, never, FileStates(tmp_path / "state"), events=events)
    assert log.read_bytes() == bytes(data)
    assert any("the state store cannot be read" in str(event) for event in events)


def test_a_state_larger_than_any_buffer(tmp_path: Path) -> None:
    """It comes whole, in order, while the enclave takes it slowly."""

    async def work(host: Host, boots: Boots) -> None:
        pieces = [bytes([number]) * (1 << 20) for number in range(40)]
        await boots.boots[0].commit(b"one")
        for index, piece in enumerate(pieces, 1):
            await boots.boots[0].send((Kind.SNAPSHOT, 0, snapshot(1, index, 1, piece)))
        await boots.boots[0].send((Kind.SNAPSHOT, 0, snapshot(1, 0, 1)))
        await until(lambda: host.journal.figures.records == 0)
        boots.boots[0].end()
        await until(lambda: len(boots.boots) == 2 and bool(boots.boots[1].stored))
        await until(lambda: boots.boots[1].stored[-1][0] == What.END)
        found = boots.boots[1].stored
        assert found[0] == (What.MANIFEST, chunk(1, 0, 1))
        assert found[1:-1] == [(What.CHUNK, chunk(1, index, 1, piece)) for index, piece in enumerate(pieces, 1)]

    async def live(boot: Boot) -> None:
        await (boot.start() if boot.number == 0 else boot.load())

    hosted(live, work, FileStates(tmp_path / "state"))


def test_an_enclave_that_loads_twice_loses_its_channel() -> None:
    async def live(boot: Boot) -> None:
        await boot.start()
        if boot.number == 0:
            await boot.send((Kind.LOAD, 2, b""))

    async def work(host: Host, boots: Boots) -> None:
        await until(lambda: len(boots.boots) == 2 and host.info is not None)

    hosted(live, work)


def test_an_enclave_that_ends_while_it_loads() -> None:
    """A boot that takes nothing of a large answer, and goes: the next one gets it all."""
    store = MemoryStates()

    async def live(boot: Boot) -> None:
        if boot.number == 0:
            await boot.send((Kind.LOAD, 1, b""))
            await boot.receive(Kind.STORED)
            boot.channel.close()
        else:
            await boot.start()

    async def main() -> None:
        await store.append([(0, commit(0, boot=boot_header()))])
        for version in range(1, 60):
            await store.append([(version, commit(version, bytes(1 << 20)))])
        boots = Boots(live)
        host = Host(boots.launch, state=store)
        with pytest.raises(PlatformError, match="ended before it was ready"):
            await host.start()
        await host.stop()
        again = Boots(Boot.start)
        host = Host(again.launch, state=store)
        await host.start()
        assert len(again.boots[0].stored) == 61
        again.boots[0].channel.close()
        await host.stop()

    asyncio.run(main())
