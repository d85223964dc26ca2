"""An enclave that is killed again and again under load: every caller hears, nothing grows, no nonce comes twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from conclave import _crypto
from conclave._mailheader import TO_CLIENT, address_of
from conclave.bundle import Bundle
from conclave.client import AsyncClient
from conclave.client.core import split_mails
from conclave.errors import TransportError
from conclave.host import Host
from conclave.platform import start_platform
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
import os
from conclave.enclave import Enclave, rpc


class Mirror(Enclave):
    def on_start(self) -> None:
        self.boot = os.urandom(8)
        self.ran = set()

    def turn(self, data: bytes) -> bytes:
        first = data[:8] not in self.ran
        self.ran.add(data[:8])
        return self.boot + (data[::-1] if first else b"ran twice in one boot")

    @rpc
    def again(self, data: bytes) -> bytes:
        return self.turn(data)

    @rpc(retry=False)
    def once(self, data: bytes) -> bytes:
        return self.turn(data)
"""

CLIENTS = 4
CALLERS = 64
ANSWERS = 64
SIZES = (0, 100, 1024, 4096, 70_000)
NOT_RETRIED = "the enclave restarted before it answered, and this call is not retried"


class Watched(Host):
    """The common host, and what any operator can note of the mail that passes."""

    def __init__(self, launch: Callable[[], Any], **options: Any) -> None:
        super().__init__(launch, **options)
        self.requests: dict[tuple[bytes, int], bytes] = {}
        self.replies: set[tuple[bytes, bytes, int]] = set()
        self.salts: dict[bytes, bytes] = {}
        self.faults: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/mail":
            await super().__call__(scope, receive, send)
            return
        parts: list[bytes] = []
        status = 0

        async def receiving() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    self._request(b"".join(parts))
            return message

        async def sending(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            if status == 200:
                for mail in split_mails(message.get("body", b"")):
                    self._reply(mail)
            await send(message)

        await super().__call__(scope, receiving, sending)

    def _request(self, mail: bytes) -> None:
        _, session_id, counter = address_of(mail)
        # A retry is the same bytes; anything else under this counter uses a nonce twice.
        digest = _crypto.sha256(mail)
        if self.requests.setdefault((session_id, counter), digest) != digest:
            self.faults.append(f"request {session_id.hex()} {counter} has two texts")

    def _reply(self, mail: bytes) -> None:
        direction, session_id, counter = address_of(mail)
        salt = mail[32:64]
        use = (session_id, salt, counter)
        if direction != TO_CLIENT or use in self.replies:
            self.faults.append(f"reply {session_id.hex()} {counter} comes twice")
        if self.salts.setdefault(salt, session_id) != session_id:
            self.faults.append(f"salt {salt.hex()} serves two sessions")
        self.replies.add(use)


class Load:
    """Callers that are in a call at every moment, and what became of the calls."""

    def __init__(self, clients: list[AsyncClient]) -> None:
        self.clients = clients
        self.outcomes: Counter[str] = Counter()
        self.boots: Counter[bytes] = Counter()
        self.in_flight = 0
        self._made = 0
        self._stop = False
        self._answered = asyncio.Event()

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have 64 callers call until the work is done; ends when each has heard."""
        self._stop = False
        async with asyncio.TaskGroup() as group:
            for n in range(CALLERS):
                group.create_task(self._caller(n))
            await work()
            self._stop = True

    async def _caller(self, n: int) -> None:
        client = self.clients[n % len(self.clients)]
        # Two channels for each client; on each, calls that are repeated and calls that are not.
        topic, retry = f"topic{n // 4 % 2}", n // 8 % 4 != 0
        while not self._stop:
            self._made += 1
            data = self._made.to_bytes(8, "big") + os.urandom(SIZES[self._made % len(SIZES)])
            self.in_flight += 1
            try:
                answer = await client.call("again" if retry else "once", data, returns=bytes, topic=topic, retry=retry)
            except TransportError as error:
                self.outcomes[str(error)] += 1
            else:
                assert answer[8:] == data[::-1], answer[8:40]
                self.outcomes["answer"] += 1
                self.boots[answer[:8]] += 1
                self._answered.set()
            finally:
                self.in_flight -= 1

    async def answers_of_a_new_boot(self, count: int) -> None:
        """Wait until a boot that never answered before has given so many answers."""
        old = set(self.boots)
        while sum(n for boot, n in self.boots.items() if boot not in old) < count:
            self._answered.clear()
            await self._answered.wait()


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def kill(host: Host, what: str) -> None:
    assert host._process is not None
    pid = host._process.pid
    if what == "enclave":
        while below := children(pid):
            (pid,) = below
    os.kill(pid, signal.SIGKILL)


@pytest.mark.spec("MAIL-2", "MAIL-12")
def test_killed_a_hundred_times(author: Callable[..., Bundle], machine: Path, only: Callable[[Bundle], str]) -> None:
    bundle = author("mirror", SOURCE)
    host = Watched(lambda: start_platform(machine, bundle.path), restart=True)

    async def main(url: str) -> None:
        import time

        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(AsyncClient(url, constraint=only(bundle))) for _ in range(CLIENTS)
            ]
            load = Load(clients)

            async def kills(count: int) -> None:
                for n in range(count):
                    t = time.monotonic()
                    await load.answers_of_a_new_boot(ANSWERS)
                    print(f"{time.monotonic() - t:.2f}", sum(load.boots.values()), end="  ", flush=True)
                    assert load.in_flight == CALLERS
                    kill(host, "platform" if n % 10 == 9 else "enclave")
                await load.answers_of_a_new_boot(ANSWERS)

            async with asyncio.timeout(400):
                await load.run(lambda: kills(20))
            print(load.outcomes, len(load.boots), host.faults)
            print([len(c._core._topics) for c in clients], [c.refused_mails for c in clients])

    with HostServer(host) as server:
        asyncio.run(main(server.url))
