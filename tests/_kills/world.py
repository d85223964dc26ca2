"""Hosts with their enclaves, killed at random moments and started again, and the way of clients to them."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from tests._kills import ledger
from tests._kills.boots import RECORD
from tests._kills.nursery import Nursery, Request
from tests._kills.record import TOLD, Findings, Recorder

from conclave import _crypto
from conclave.attestation import Constraint
from conclave.bundle import build, read_bundle, unpack
from conclave.client.core import Answer, ClientCore, Exchange, Pause
from conclave.platform.machine import Machine

T = TypeVar("T")
# A safety net far above what any machine needs.
DEADLINE_SECONDS: Final = 120.0
_client_core: Any = importlib.import_module("conclave.client.core")
_GONE: Final = Answer(0, text="the host is not there")


class Place:
    """A directory with the bundle and the machine; made once, used by many worlds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        bundle = build(Path(ledger.__file__), path / "ledger.enclave", mode="debug")
        unpack(read_bundle(bundle.path), path / "bundle")
        Machine.open(path / "machine")
        self.constraint = Constraint.parse(f"C:{bundle.code.hex()} SEC:INSECURE")

    def new(self, path: Path) -> Path:
        """A place for one world."""
        path.mkdir()
        for name in ("bundle", "machine"):
            (path / name).symlink_to(self.path / name)
        return path


class HostLine:
    """One host as clients see it: there or not."""

    def __init__(self, world: World, name: str, number: int, config: Request) -> None:
        self.name = name
        self.number = number
        self.config = {**config, "name": name, "world": number}
        self.directory = world.place / name
        self.lives = 0
        self.answers = 0
        self._answered = asyncio.Event()
        self._world = world
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._asked = 0
        self._writer: asyncio.StreamWriter | None = None
        self._up = asyncio.Event()
        self._held = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, and again whenever it is gone, until `stop`."""
        self._held = False
        self._task = asyncio.create_task(self._keep())
        await self._up.wait()

    async def _keep(self) -> None:
        while not self._held:
            ours, theirs = socket.socketpair()
            self._world.nursery.fork(self.name, self.config, theirs)
            theirs.close()
            self.lives += 1
            reader, self._writer = await asyncio.open_connection(sock=ours)
            self._up.set()
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    size = int.from_bytes(await reader.readexactly(4), "big")
                    number, status, body = msgspec.msgpack.decode(await reader.readexactly(size))
                    self._done(number, Answer(status, body))
            self._up.clear()
            self._writer.close()
            self._writer = None
            for number in list(self._waiting):
                self._done(number, _GONE)

    def _done(self, number: int, answer: Answer) -> None:
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result(answer)

    async def ask(self, exchange: Exchange) -> Answer:
        """What this host answers, if it lives so long."""
        if self._writer is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self._up.wait()
        if self._writer is None or self._writer.is_closing():
            await asyncio.sleep(0.001)
            return _GONE
        self._asked += 1
        number, self._waiting[self._asked] = self._asked, asyncio.get_running_loop().create_future()
        data = msgspec.msgpack.encode([number, exchange.method, exchange.path, exchange.bearer, exchange.body])
        self._writer.write(len(data).to_bytes(4, "big") + data)
        return await self._waiting[number]

    def told(self, core: ClientCore) -> None:
        """A client has an answer: whatever it was told of must be there from now on."""
        self.answers += 1
        self._answered.set()
        self._world.recorder.number(TOLD, core.log.contexts.version, self.number)

    async def answered(self, count: int = 1) -> None:
        """Wait for so many answers."""
        end = self.answers + count
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.answers < end:
                self._answered.clear()
                await self._answered.wait()

    async def stop(self) -> None:
        """Kill host and enclave, and leave it so."""
        self._held = True
        self._world.nursery.kill(self.name, "host", "enclave")
        if self._task is not None:
            await self._task

    @property
    def snapshot(self) -> bool:
        """Whether one is being written."""
        return (self.directory / "state" / "new-snapshot").exists()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it told its operator, in all its lives."""
        path = self._world.place / f"{self.name}.events"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class World:
    """All that is there at one time.

    Attributes:
        killed: how often what was killed, and when.
    """

    def __init__(self, place: Path, nursery: Nursery, constraint: Constraint, seed: int) -> None:
        self.place = place
        self.nursery = nursery
        self.constraint = constraint
        self.chance = random.Random(seed)
        self.killed: Counter[str] = Counter()
        self.recorder = Recorder(place / RECORD)
        self.hosts: dict[str, HostLine] = {}

    async def host(self, name: str = "one", **config: Any) -> HostLine:
        """Start a host."""
        line = self.hosts.setdefault(name, HostLine(self, name, len(self.hosts) + 1, config))
        await line.start()
        return line

    async def fork(self, old: HostLine, name: str) -> HostLine:
        """A second host with a copy of all that the first one has; both begin from there."""
        await old.stop()
        shutil.copytree(old.directory, self.place / name)
        await old.start()
        return await self.host(name, **{k: v for k, v in old.config.items() if k not in ("name", "world")})

    def core(self, **options: Any) -> ClientCore:
        """A client, which tries again for as long as it takes."""
        return ClientCore(constraint=self.constraint, attempts=10**6, **options)

    async def drive(self, steps: Generator[Exchange | Pause, Answer, T], where: Callable[[], HostLine]) -> T:
        """Do what a client's steps ask for."""
        answer: Answer | None = None
        while True:
            try:
                step = next(steps) if answer is None else steps.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if isinstance(step, Pause):
                await asyncio.sleep(min(step.seconds, 0.005))
                answer = Answer(0)
            else:
                answer = await where().ask(step)

    async def kill(self, line: HostLine) -> bool:
        """Kill host or enclave or both at some moment, in a way that makes every kind of moment frequent.

        Returns:
            Whether there was anything at that moment.
        """
        chance = self.chance
        when = chance.choice(("starting", "starting", "working", "working", "snapshot"))
        if when == "working":
            await line.answered(chance.randint(1, 6))
            await asyncio.sleep(chance.uniform(0, 0.004))
        elif when == "starting":
            await asyncio.sleep(chance.uniform(0, 0.06))
        else:
            end = line.answers + 60
            while not line.snapshot and line.answers < end:
                await asyncio.sleep(0.0003)
            when = "snapshot" if line.snapshot else "working"
            await asyncio.sleep(chance.uniform(0, 0.003) * chance.random())
        what = chance.choice((("enclave",), ("enclave",), ("host",), ("host",), ("host", "enclave")))
        killed = self.nursery.kill(line.name, *what)
        if killed:
            self.killed[f"{' and '.join(sorted(set(killed)))}, {when}"] += 1
        return bool(killed)

    def findings(self) -> Findings:
        """What all processes wrote down."""
        return Findings(self.place / RECORD)


@asynccontextmanager
async def world(place: Place, path: Path, *, seed: int) -> AsyncIterator[World]:
    """A world without hosts yet. Nonces of this process are recorded with those of all others."""
    verify, before = _client_core.verify_instance, _crypto.on_encrypt
    # All clients verify the same instance: the same function of the same bytes.
    _client_core.verify_instance = _remembered(verify)
    with Nursery(place.new(path), seed=seed) as nursery:
        here = World(path, nursery, place.constraint, seed)

        def record(key_id: bytes, nonce: bytes) -> None:
            here.recorder.nonce(key_id, nonce)
            if before is not None:
                before(key_id, nonce)

        _crypto.on_encrypt = record
        try:
            yield here
        finally:
            _crypto.on_encrypt = before
            _client_core.verify_instance = verify
            for line in here.hosts.values():
                await line.stop()
            here.recorder.close()


def _remembered(verify: Callable[..., Any]) -> Callable[..., Any]:
    results: dict[bytes, Any] = {}

    def verifying(info: bytes, constraint: Constraint, **options: Any) -> Any:
        if info not in results:
            results.clear()
            results[info] = verify(info, constraint, **options)
        return results[info]

    return verifying
