"""What a hostile operator gives to the enclave and to the client, step by step; the enclave is a list."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conclave.testing.attack.hosting import Hosting, HungUp
from conclave.testing.attack.operator import HostileOperator
from conclave.testing.attack.run import Line
from conclave.testing.attack.schedule import read


class Listed:
    """A boot that answers every mail with its number."""

    runs = True
    failed = ended = spoilt = False
    info = b"info"
    host = None

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def ask(self, scope: Any, body: bytes) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        self.got.append(body)
        return 200, b"answer %d" % len(self.got), []


class Scene:
    """An operator between one enclave and clients that send what they are told to."""

    def __init__(self, schedule: str) -> None:
        self.story: list[Line] = []
        # Nothing of the hosting is used but what was remembered of boots that ended.
        hosting = Hosting.__new__(Hosting)
        hosting.infos = []
        self.operator = HostileOperator(hosting, read(schedule), self.story)
        self.boot = Listed()
        self.operator.fleet.main = self.boot  # type: ignore[assignment]

    def send(self, *mails: tuple[str, bytes]) -> list[bytes | None]:
        """What each client gets; None: the connection ended."""

        async def all_of_them() -> list[bytes | None]:
            return [await self.exchange(client, body) for client, body in mails]

        return asyncio.run(all_of_them())

    async def exchange(self, client: str, body: bytes) -> bytes | None:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "", "query_string": b"", "headers": []}
        try:
            await self.operator(f"{client}/mail", scope, receive, send)
        except HungUp:
            return None
        return b"".join(m.get("body", b"") for m in sent)


A, B, C = ("alice", b"a" * 100), ("bob", b"b" * 100), ("alice", b"c" * 100)


@pytest.mark.parametrize(
    ("schedule", "given", "answered"),
    [
        ("", [A[1], B[1], C[1]], [b"answer 1", b"answer 2", b"answer 3"]),
        ("2:drop:request", [A[1], C[1]], [b"answer 1", None, b"answer 2"]),
        ("2:drop:answer", [A[1], B[1], C[1]], [b"answer 1", None, b"answer 3"]),
        ("1:delay:request:0", [A[1], B[1], C[1]], [None, b"answer 2", b"answer 3"]),
        ("1:delay:request:1", [B[1], A[1], C[1]], [None, b"answer 1", b"answer 3"]),
        ("2:duplicate:first", [A[1], B[1], B[1], C[1]], [b"answer 1", b"answer 2", b"answer 4"]),
        ("2:duplicate:second", [A[1], B[1], B[1], C[1]], [b"answer 1", b"answer 3", b"answer 4"]),
        ("3:replay:request:0", [A[1], B[1], B[1], C[1]], [b"answer 1", b"answer 2", b"answer 4"]),
        ("3:replay:all", [A[1], B[1], A[1], B[1], C[1]], [b"answer 1", b"answer 2", b"answer 5"]),
        ("3:replay:answer", [A[1], B[1], C[1]], [b"answer 1", b"answer 2", b"answer 1"]),
        ("3:cross-wire:answer", [A[1], B[1], C[1]], [b"answer 1", b"answer 2", b"answer 2"]),
        ("2:truncate:request:9", [A[1], B[1][:9], C[1]], [b"answer 1", b"answer 2", b"answer 3"]),
        ("2:truncate:answer:3", [A[1], B[1], C[1]], [b"answer 1", b"ans", b"answer 3"]),
        ("2:alter:answer:7", [A[1], B[1], C[1]], [b"answer 1", b"answer 3", b"answer 3"]),
        ("2:stale:info", [A[1], C[1]], [b"answer 1", b"", b"answer 2"]),
        # Two that are due at once take two requests; in the order of their names.
        ("1:drop:request 1:drop:answer", [A[1], C[1]], [None, None, b"answer 2"]),
    ],
)
def test_what_reaches_the_enclave_and_the_client(schedule: str, given: list[bytes], answered: list[bytes]) -> None:
    scene = Scene(schedule)
    assert scene.send(A, B, C) == answered
    assert scene.boot.got == given
    assert len(scene.story) == len(schedule.split())


def test_everything_that_passes_is_seen() -> None:
    scene = Scene("2:drop:answer")
    scene.send(A, B)
    assert scene.operator.seen == [A[1], b"answer 1", B[1], b"answer 2"]


def test_an_operator_that_behaves_does_nothing_more() -> None:
    scene = Scene("1:delay:request:0 2:drop:request 3:drop:request")

    async def play() -> list[bytes | None]:
        scene.operator.fleet.boots = []
        first = await scene.exchange(*A)
        await scene.operator.behave()
        return [first, await scene.exchange(*B), await scene.exchange(*C)]

    assert asyncio.run(play()) == [None, b"answer 1", b"answer 2"]
    assert scene.boot.got == [B[1], C[1]]


def test_a_mail_is_held_until_another_one_has_passed() -> None:
    scene = Scene("1:reorder:request")

    async def play() -> list[bytes | None]:
        return list(await asyncio.gather(scene.exchange(*A), scene.exchange(*B)))

    assert asyncio.run(play()) == [b"answer 2", b"answer 1"]
    assert scene.boot.got == [B[1], A[1]]
