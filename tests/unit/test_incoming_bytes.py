"""What a server counts of bodies on their way in: from when they come until nobody holds them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.unit.test_heads import Recorder

from conclave._mailheader import HEADER, MAGIC, TO_ENCLAVE, ZERO_SALT
from conclave.host.connection import Connection, Limits
from conclave.host.exchange import passed_on
from conclave.host.order import Reorder
from conclave.host.routes import Routes
from conclave.host.server import Server

pytestmark = pytest.mark.spec("HTTP-7")

SIZE = 1000


def post(path: str, size: int = SIZE) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()


async def answer(send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Stage:
    """One connection to a server whose application does what a test says; no mail goes the short way."""

    def __init__(self, work: Callable[[Any, Any, Any], Awaitable[None]] | None = None, limit: int = 10 * SIZE) -> None:
        self.release = asyncio.Event()
        self.server = Server(work or self._read_and_wait, mail=lambda *_: False, limits=Limits(collected_bytes=limit))
        self.connection, self.transport = Connection(self.server), Recorder()
        self.connection.connection_made(self.transport)

    async def _read_and_wait(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await self.release.wait()
        if scope["path"] == "/tells":
            passed_on(scope)
            await asyncio.Event().wait()
        await answer(send)

    async def bring(self, data: bytes) -> int:
        """What is counted once that has come."""
        self.connection.data_received(data)
        return await self.counted()

    async def counted(self) -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return self.server.collected


PATHS = pytest.mark.parametrize("path", ["/mail", "/stream", "/outbox", "/nowhere"])


@PATHS
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("cut", [1, SIZE // 2, SIZE])
def test_a_body_counts_until_its_answer(path: str, twice: bool, cut: int) -> None:
    async def run() -> None:
        stage = Stage()
        if twice:
            # The head of the second one is known then, if it is a mail's.
            stage.release.set()
            assert await stage.bring(post(path) + bytes(SIZE)) == 0
            stage.release.clear()
        assert await stage.bring(post(path) + bytes(cut)) == cut
        if cut < SIZE:
            assert await stage.bring(bytes(SIZE - cut)) == SIZE
        stage.release.set()
        assert await stage.counted() == 0
        assert stage.transport.written.count(b" 204 ") == 1 + twice

    asyncio.run(run())


def test_what_was_passed_on_counts_no_more_though_its_answer_takes_long() -> None:
    async def run() -> None:
        stage = Stage()
        assert await stage.bring(post("/tells") + bytes(SIZE)) == SIZE
        stage.release.set()
        assert await stage.counted() == 0
        assert not stage.transport.written
        stage.connection.connection_lost(None)
        assert stage.server.collected == 0

    asyncio.run(run())


@PATHS
def test_what_an_application_holds_counts_though_its_client_has_gone(path: str) -> None:
    async def run() -> None:
        stage = Stage()
        assert await stage.bring(post(path) + bytes(SIZE)) == SIZE
        stage.connection.connection_lost(None)
        assert await stage.counted() == SIZE
        stage.release.set()
        assert await stage.counted() == 0

    asyncio.run(run())


@PATHS
@pytest.mark.parametrize("end", ["eof_received", "connection_lost", "time", "too much"])
def test_half_a_body_counts_until_it_is_given_up(path: str, end: str) -> None:
    async def run() -> None:
        stage = Stage(limit=SIZE // 2)
        assert await stage.bring(post(path) + bytes(SIZE // 2)) == SIZE // 2
        if end == "eof_received":
            stage.connection.eof_received()
        elif end == "connection_lost":
            stage.connection.connection_lost(None)
        elif end == "too much":
            await stage.bring(b"x")
            assert stage.transport.written.startswith(b"HTTP/1.1 503 ")
        else:
            for _ in range(Limits().body_seconds + 2):
                stage.connection.sweep(1)
            assert stage.transport.written.startswith(b"HTTP/1.1 408 ")
        assert await stage.counted() == 0
        stage.connection.connection_lost(None)
        assert await stage.counted() == 0

    asyncio.run(run())


@PATHS
def test_bodies_that_wait_behind_another_request_count(path: str) -> None:
    async def run() -> None:
        stage = Stage()
        await stage.bring(post("/first", 0))
        assert await stage.bring((post(path) + bytes(SIZE)) * 2 + post(path) + b"x") == 2 * SIZE + 1
        stage.connection.connection_lost(None)
        assert await stage.counted() == 0

    asyncio.run(run())


@PATHS
@pytest.mark.parametrize("how", ["fails", "is cancelled", "says nothing", "reads nothing"])
def test_however_an_application_ends(path: str, how: str) -> None:
    async def work(scope: Any, receive: Any, send: Any) -> None:
        if how == "reads nothing":
            await answer(send)
            return
        await receive()
        if how == "fails":
            raise ValueError("a test says so")
        if how == "is cancelled":
            await asyncio.Event().wait()

    async def run() -> None:
        stage = Stage(work)
        counted = await stage.bring(post(path) + bytes(SIZE))
        if how == "is cancelled":
            assert counted == SIZE
            task = stage.connection._line[0].task
            assert task is not None
            task.cancel()
        assert await stage.counted() == 0

    asyncio.run(run())


class Slow:
    """An enclave that answers nothing."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def ask(self, kind: Any, payload: bytes) -> Slow:
        self.payloads.append(payload)
        return self

    async def more(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("path", ["/mail", "/stream"])
def test_what_the_enclave_was_sent_is_held_no_more(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conclave.host.routes.upload_address", lambda data: None)
    body = HEADER.pack(MAGIC, TO_ENCLAVE, 0, 0, bytes(16), 0, ZERO_SALT, SIZE) + bytes(SIZE)

    async def run() -> None:
        slow: Any = Slow()
        nothing: Any = None
        routes = Routes(Reorder(), outbox=nothing, health=nothing, link=lambda: slow, info=lambda: None)
        stage = Stage(routes.serve)
        # Not at once: what the test itself holds is no copy of it.
        await stage.bring(post(path, len(body)) + body[:-1])
        assert stage.server.collected == len(body) - 1
        assert await stage.bring(body[-1:]) == 0
        assert slow.payloads == [body]
        # The list, and the call that counts.
        assert sys.getrefcount(slow.payloads.pop()) <= 2
        stage.connection.connection_lost(None)

    asyncio.run(run())
