"""An enclave that dies again and again, and keys that change, under 64 calls in flight."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests._processes import children

from conclave._mailheader import TO_ENCLAVE, parse_mail
from conclave.bundle import Bundle
from conclave.client import AsyncClient
from conclave.client.core import split_mails
from conclave.errors import TransportError
from conclave.host import Host
from conclave.platform import start_platform
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

IN_FLIGHT = 64
KILLS = 100
RENEWALS = 30
# A safety net far above what any machine needs; nothing is decided by time.
DEADLINE_SECONDS = 500

SOURCE = """
import asyncio
import os

from conclave.enclave import Enclave, rpc


class Target(Enclave):
    def on_start(self) -> None:
        self.boot = os.urandom(8).hex()
        self.runs: dict[str, int] = {}

    @rpc
    async def echo(self, token: str, data: bytes) -> list[str]:
        self.runs[token] = self.runs.get(token, 0) + 1
        # Others run meanwhile, so that a kill finds calls half done.
        await asyncio.sleep(0)
        return [token, data[::-1].hex(), self.boot, str(self.runs[token])]

    @rpc(retry=False)
    def once(self, token: str, data: bytes) -> list[str]:
        self.runs[token] = self.runs.get(token, 0) + 1
        return [token, data[::-1].hex(), self.boot, str(self.runs[token])]
"""


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("target", SOURCE)


class Recorder(Host):
    """A host that keeps what an operator sees: which counter of which key encrypted what."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.used: dict[bytes, bytes] = {}
        self.repeats: list[str] = []
        self.salts: dict[bytes, set[bytes]] = {}

    def _see(self, data: bytes) -> None:
        mail = parse_mail(data)
        place = bytes((mail.direction,)) + mail.session_id + mail.reply_salt + mail.counter.to_bytes(8, "big")
        digest = hashlib.sha256(data).digest()[:8]
        # A retry sends the identical bytes: nothing is encrypted twice.
        if self.used.setdefault(place, digest) != digest:
            self.repeats.append(place.hex())
        if mail.direction != TO_ENCLAVE:
            self.salts.setdefault(mail.session_id, set()).add(mail.reply_salt)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/mail":
            await super().__call__(scope, receive, send)
            return
        sent, answered = bytearray(), bytearray()

        async def receiving() -> Any:
            message = await receive()
            sent.extend(message.get("body", b""))
            return message

        async def sending(message: Any) -> None:
            answered.extend(message.get("body", b""))
            await send(message)

        await super().__call__(scope, receiving, sending)
        for mail in [bytes(sent), *split_mails(bytes(answered))]:
            if mail[:4] == b"CML1":
                self._see(mail)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held() -> Counter[str]:
    """What this process, which is host and clients, holds by number."""
    gc.collect()
    kinds = Counter(type(o).__name__ for o in gc.get_objects())
    names = ("Task", "Future", "Ask", "Link", "socket", "ClientSession", "AeadKey", "Popen", "_GatheringFuture")
    return Counter({"descriptors": len(os.listdir("/proc/self/fd"))} | {n: kinds[n] for n in names})


class Load:
    """64 callers that call until told to stop, and what became of their calls."""

    def __init__(self, url: str, constraint: str) -> None:
        self.url, self.constraint = url, constraint
        self.answers: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.digests: set[bytes] = set()
        self.stopping = False
        self._progress = asyncio.Condition()

    async def run(self, drive: Callable[[Load], Awaitable[None]]) -> None:
        clients = [AsyncClient(self.url, constraint=self.constraint, timeout_seconds=60) for _ in range(8)]
        async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
            callers = [group.create_task(self._calls(clients[n % 8], n)) for n in range(IN_FLIGHT)]
            await drive(self)
            self.stopping = True
            await asyncio.wait(callers)
        for client in clients:
            await client.aclose()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._progress:
            await self._progress.wait_for(condition)

    async def _calls(self, client: AsyncClient, number: int) -> None:
        count = 0
        while not self.stopping:
            count += 1
            method, token, data = ("once", "echo", "echo")[count % 3], f"{number}/{count}", os.urandom(number * 9 + 1)
            retry = method == "echo"
            try:
                # Four callers to a channel, so that one's retries stand in line with the others'.
                answer = await client.call(method, token, data, topic=f"t{number // 8 % 2}", retry=retry)
            except TransportError as error:
                self.errors[f"{method}: {str(error).partition(',')[0].partition(':')[0]}"] += 1
            else:
                assert answer == [token, data[::-1].hex(), answer[2], "1"], "another call's answer, or run twice"
                self.answers[answer[2]] += 1
            assert client._core.instance is not None
            self.digests.add(client._core.instance.claims_digest)
            async with self._progress:
                self._progress.notify_all()


def test_killed_a_hundred_times(bundle: Bundle, machine: Path, only: Callable[[Bundle], str]) -> None:
    launches: list[Any] = []

    def launch() -> Any:
        launches.append(start_platform(machine, bundle.path))
        return launches[-1]

    host = Recorder(launch)
    samples: list[tuple[int, Counter[str]]] = []
    killed: set[str] = set()

    async def kill(load: Load) -> None:
        for number in range(KILLS):
            # The boot that answers now has answered a round of calls.
            await load.until(lambda: any(n >= IN_FLIGHT for boot, n in load.answers.items() if boot not in killed))
            killed.update(load.answers)
            assert host._process is not None
            platform = host._process.pid
            victims = children(platform) if number % 4 else [platform]
            assert victims, "the platform runs no enclave"
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            if number in (KILLS // 4, KILLS - 1):
                samples.append((resident_bytes(), held()))
        await load.until(lambda: any(boot not in killed for boot in load.answers))

    before = set(children("self"))
    with HostServer(host) as server:
        load = Load(server.url, only(bundle))
        asyncio.run(load.run(kill))
        assert len(load.answers) >= KILLS
        # Nothing is left of the hundred: one platform with one enclave, no waiting request.
        assert len(set(children("self")) - before) == 1
        assert host._link is not None
        assert host._link._asks == {}
        assert len(list((machine).rglob("enclave-*"))) <= 2
    assert set(children("self")) <= before

    # One start for each death, and every call that got no answer says what is known of it.
    assert len(launches) == KILLS + 1
    assert set(load.errors) <= {
        "once: the enclave restarted",
        "once: no reply after 6 attempts",
        "echo: no reply after 6 attempts",
        "once: the host gives no instance info",
        "echo: the host gives no instance info",
    }
    assert sum(load.answers.values()) > KILLS * IN_FLIGHT
    (early, few), (late, many) = samples
    assert late - early < 24 * 2**20, f"{(late - early) / 2**20:.1f} MiB more after {KILLS} kills than after a quarter"
    for name, count in many.items():
        # In flight are 64 calls at any time, each with a task, a socket, a request.
        assert count <= few[name] + 4 * IN_FLIGHT, f"{name}: {few[name]} became {count}"
    assert host.repeats == []
    # Each boot draws a reply salt of its own for each session it accepts.
    salts = [salt for several in host.salts.values() for salt in several]
    assert len(salts) == len(set(salts)) > KILLS


def test_keys_that_change_under_load(bundle: Bundle, machine: Path, only: Callable[[Bundle], str]) -> None:
    host = Recorder(lambda: start_platform(machine, bundle.path), restart=False, renew_seconds=0.5)
    infos: set[bytes] = set()

    async def watch(load: Load) -> None:
        # Newcomers verify and open to whatever key is the newest; the others go on.
        while len(infos) < RENEWALS:
            async with AsyncClient(load.url, constraint=load.constraint) as newcomer:
                result = await newcomer.verify()
                infos.add(result.claims_digest)
                seen = sum(load.answers.values())
                assert (await newcomer.call("echo", os.urandom(8).hex(), b"new"))[1] == b"wen".hex()
                await load.until(lambda seen=seen: sum(load.answers.values()) > seen + IN_FLIGHT)  # type: ignore[misc]

    with HostServer(host) as server:
        load = Load(server.url, only(bundle))
        asyncio.run(load.run(watch))
    assert not load.errors
    assert len(load.answers) == 1, "the enclave was started again"
    assert sum(load.answers.values()) > RENEWALS * IN_FLIGHT
    assert len(infos) >= RENEWALS
    assert host.repeats == []
