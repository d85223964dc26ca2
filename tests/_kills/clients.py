"""Clients of the ledger that never give up, and what must hold of every answer they get."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from tests._kills.ledger import KEPT
from tests._kills.world import DEADLINE_SECONDS, HostLine, World

from conclave.client import Identity
from conclave.errors import CallError, TransportError

_MODULUS: Final = 2**256


class Client:
    """One client that does one thing after the other, several at a time.

    Attributes:
        done: how many requests were answered.
    """

    def __init__(self, world: World, line: HostLine, name: str, *, depth: int = 1, filler: int = 0) -> None:
        self.world = world
        self.line = line
        self.name = name
        self.depth = depth
        self.filler = filler
        self.identity = Identity.generate()
        self.core = world.core(identity=self.identity)
        self.done = 0
        self.digest = b""

    async def ready(self) -> None:
        """Verify; from now on requests take their places in the order in which they are made."""
        await self.world.drive(self.core.verify(), lambda: self.line)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call until there is an answer."""
        steps = self.core.call(method, list(arguments), returns=Any, topic="default", retry=True)
        try:
            return await self.world.drive(steps, lambda: self.line)
        finally:
            self.line.told(self.core)

    async def one(self, number: int) -> Any:
        """Request the next thing."""
        raise NotImplementedError

    def check(self, number: int, answer: Any) -> None:
        """What the answer must be."""
        raise NotImplementedError

    async def end(self) -> None:
        """What the state must be in the end."""
        count, digest, kept = await self.call("look", self.name)
        assert (count, digest) == (self.done, self.digest), (self.name, count, self.done)
        assert kept == list(range(max(0, self.done - KEPT), self.done))

    def follow(self, number: int) -> bytes:
        """The digest of everything up to this."""
        self.digest = hashlib.sha256(self.digest + number.to_bytes(8, "big")).digest()
        return self.digest

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Go on until that; then wait for what is under way."""
        await self.ready()
        number, under_way = 0, deque[asyncio.Task[Any]]()
        try:
            while under_way or not stopped():
                while len(under_way) < self.depth and not stopped():
                    under_way.append(asyncio.create_task(self.one(number + len(under_way))))
                if under_way:
                    answer = await under_way[0]
                    under_way.popleft()
                    self.check(number, answer)
                    number += 1
                    self.done += 1
                    # Time goes into kills, not into answers.
                    await asyncio.sleep(self.world.chance.uniform(0, 0.03))
        finally:
            for task in under_way:
                task.cancel()


class Adder(Client):
    """Knows what each answer must be, to the byte."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.totals: list[int] = []

    async def one(self, number: int) -> Any:
        return await self.call("add", self.name, number, bytes(self.filler))

    def check(self, number: int, answer: Any) -> None:
        count, digest, total = answer
        assert (count, digest) == (number, self.follow(number)), (self.name, number, count)
        self.totals.append(total)


class Writer(Client):
    """Only writes: what became of it, it asks in the end."""

    async def one(self, number: int) -> Any:
        return await self.call("put", self.name, number, bytes(self.filler))

    def check(self, number: int, answer: Any) -> None:
        assert answer is None
        self.follow(number)


class Failing(Client):
    """Every other call fails, after it changed something."""

    async def one(self, number: int) -> Any:
        try:
            return await self.call(
                "fail" if number % 2 else "put", self.name, number // 2, *([] if number % 2 else [b""])
            )
        except CallError as error:
            return error

    def check(self, number: int, answer: Any) -> None:
        if number % 2:
            assert isinstance(answer, CallError)
            assert answer.type_name == "Refused"
            assert str(number // 2) in str(answer)
            # Not counted among what is done.
            self.done -= 1
        else:
            assert answer is None
            self.follow(number // 2)


class Mover(Client):
    """Its calls run beside each other, and the loser of two again."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.places: set[int] = set()
        self.sum = 0

    async def one(self, number: int) -> Any:
        return await self.call("move", self.name, number, number % 3, (number + 1) % 3, number)

    def check(self, number: int, answer: Any) -> None:
        assert answer not in self.places
        self.places.add(answer)
        self.sum += int.from_bytes(hashlib.sha256(number.to_bytes(8, "big")).digest(), "big")

    async def end(self) -> None:
        assert self.places == set(range(self.done))
        count, total = await self.call("moves", self.name)
        assert (count, int.from_bytes(total, "big")) == (self.done, self.sum % _MODULUS)


class Mailer(Client):
    """Sends mails, each of which has two answers."""

    async def one(self, number: int) -> Any:
        body = f"{self.name} {number}".encode()
        steps = self.core.mail(body, topic="default", envelope=b"")
        try:
            return await self.world.drive(steps, lambda: self.line)
        finally:
            self.line.told(self.core)

    def check(self, number: int, answer: Any) -> None:
        assert [mail.body for mail in answer] == [b"%d" % number, self.follow(number)], (self.name, number)


class Listener(Client):
    """Has a mail posted to itself with each call, and reads them all the while."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.heard: list[bytes] = []

    async def one(self, number: int) -> Any:
        return await self.call("tell", self.name, number)

    def check(self, number: int, answer: Any) -> None:
        assert answer == number
        self.follow(number)

    async def listen(self, stopped: Callable[[], bool]) -> None:
        """Read until that, and until all that was promised is there."""
        await self.ready()
        while not (stopped() and len(self.heard) >= self.done):
            steps = self.core.poll(topic="default", wait_seconds=0.05)
            # A host that is not there at the moment.
            with suppress(TransportError):
                self.heard += [mail.body for mail in await self.world.drive(steps, lambda: self.line)]

    async def run(self, stopped: Callable[[], bool]) -> None:
        ended = False
        listening = asyncio.create_task(self.listen(lambda: ended))
        await super().run(stopped)
        ended = True
        async with asyncio.timeout(60):
            await listening

    async def end(self) -> None:
        await super().end()
        # Each once. Not in their order: a mail waits while nobody can say whose it is, and others do not wait for it.
        assert sorted(self.heard) == sorted(b"%d %d" % (n, n) for n in range(self.done))


def crowd(world: World, line: HostLine) -> list[Client]:
    """One or two of each kind."""
    return [
        Adder(world, line, "adder", depth=3),
        Adder(world, line, "large", filler=900),
        Writer(world, line, "writer", depth=8, filler=100),
        Failing(world, line, "failing", depth=2),
        Mover(world, line, "mover", depth=3),
        Mailer(world, line, "mailer", depth=2),
        Listener(world, line, "listener"),
    ]


async def settle(clients: list[Client]) -> dict[str, int]:
    """Everything that must hold of the whole, once nothing is under way."""
    for client in clients:
        await client.end()
    totals = [total for client in clients if isinstance(client, Adder) for total in client.totals]
    added, accounts, boots, version = await clients[0].call("audit")
    # Each addition happened once, and nothing else was added.
    assert sorted(totals) == list(range(1, added + 1))
    assert accounts == 0
    assert all(client.core.refused_mails == 0 for client in clients)
    return {"boots": boots, "version": version}


async def siege(world: World, *, kills: int, lines: int = 1, **config: Any) -> dict[str, Any]:
    """Clients that go on whatever is killed; the figures of it, once all that must hold was found to hold.

    Args:
        kills: of each host and its enclave, beside those that end by themselves.
        lines: so many hosts, with an enclave and clients of their own each, side by side.
        config: of the hosts and enclaves; see `boots`.
    """
    began, stopped, figures = time.monotonic(), False, []
    hosts = [await world.host(f"host-{number}", **config) for number in range(lines)]
    crowds = [crowd(world, line) for line in hosts]

    async def kill(line: HostLine) -> None:
        done = 0
        await line.answered(20)
        while done < kills:
            done += await world.kill(line)
            if done % 25 == 0:
                # Also between kills that never let a start come to its end.
                await line.answered(10)

    async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as clients:
        for client in (client for some in crowds for client in some):
            clients.create_task(client.run(lambda: stopped))
        async with asyncio.TaskGroup() as killers:
            for line in hosts:
                killers.create_task(kill(line))
        stopped = True
        # A client that is never answered is found, too.
        limit.reschedule(asyncio.get_running_loop().time() + DEADLINE_SECONDS)
    for some in crowds:
        figures.append(await settle(some))
    for line in hosts:
        await line.stop()
    found = world.findings()
    assert found.repeated == 0
    assert not found.early
    assert not world.nursery.errors, world.nursery.errors
    # An enclave that was killed before it was ready is the one reason why a host may give up.
    events = [event for line in hosts for event in line.events]
    refused = {event["text"] for event in events if event["event"] == "refused"}
    assert refused <= {"the enclave ended before it was ready", "the platform process did not start: Broken pipe"}
    return {
        "seconds": round(time.monotonic() - began),
        "kills": sum(world.killed.values()) + sum(found.died),
        "killed": dict(sorted(world.killed.items())),
        "ended in an encryption, a frame, a write": found.died,
        "lives of hosts": sum(line.lives for line in hosts),
        "boots that read the state": sum(found.boots.values()),
        "boots of which a record stayed": sum(one["boots"] for one in figures),
        "answers": sum(line.answers for line in hosts),
        "versions": sum(one["version"] for one in figures),
        "nonces": found.nonces,
        "keys": found.keys,
        "store trouble": sum(event["event"] == "store" for event in events),
    }
