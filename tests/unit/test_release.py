"""What leaves an enclave at ticks, and what the counters of its mails tell: T-39."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest

from conclave._crypto import DecryptionKey, SigningKey
from conclave._framing import Frame, Kind
from conclave._mailheader import NONE, parse_mail
from conclave.enclave import Enclave, rpc
from conclave.enclave._release import Release, seal_later
from conclave.enclave._streams import Bounds, Streams
from conclave.errors import FormatError
from conclave.mail import ClientSession, EnclaveSession, Reply, ReplyKind, Request, RequestKind, padme
from conclave.mail.mailbox import Handled
from conclave.rpc.interface import CallFailure, interface_of

pytestmark = pytest.mark.anyio
DIGEST = bytes(64)
KEY = DecryptionKey.generate()
_sender: ContextVar[bytes] = ContextVar("sender")


class Ends(Enclave):
    @rpc
    async def soon(self) -> AsyncIterator[bytes]:
        yield b"x"

    @rpc
    async def late(self) -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b"x"


def session() -> EnclaveSession:
    ours = ClientSession(
        claims_digest=DIGEST,
        encryption_key=KEY.public,
        identity=SigningKey.generate(),
        reply_key=KEY.public,
        topic="t",
    )
    mail = parse_mail(ours.encrypt(Request(RequestKind.MAIL, 0, 0, 0, b"")))
    return EnclaveSession(mail.opening, key=KEY, claims_digest=DIGEST)


@pytest.mark.spec("T-39", "MAIL-43")
async def test_heads_and_refusals_of_streams_tell_only_when_their_calls_came() -> None:
    """Their counters are given when the call arrives: what the handler does afterwards moves none."""
    left: list[tuple[int, int, bytes]] = []
    release = Release(timedelta(hours=1), lambda kind, request, *data: left.append((kind, request, b"".join(data))))
    enclave, methods = Ends(), interface_of(Ends).methods

    def prepare(request: Request, sender: bytes) -> Any:
        name = request.body.decode()
        if name not in methods:
            raise FormatError("no such method")
        return getattr(enclave, name), methods[name], ()

    streams = Streams(
        send=release.send,
        prepare=prepare,
        failure=lambda error: CallFailure(type="error", message=""),
        pool=None,
        bounds=Bounds(),
    )
    end = session()

    def call(route: int, name: bytes) -> None:
        request = Request(RequestKind.STREAM, 0, NONE, 0, name)
        streams.start(request, end, route, release.arrived(route), sender=_sender, padding=padme)

    plain = Reply(ReplyKind.RESULT, 1, 0, 1, 0, 1, b"")
    # One that answered before any stream began, and leaves after: it is encrypted at its tick.
    release.send(Kind.DONE, release.arrived(1), seal_later(end, plain))
    for route, name in ((2, b"late"), (3, b"none"), (4, b"soon"), (5, b"late")):
        call(route, name)
    for _ in range(20):
        await asyncio.sleep(0)
    assert left == []
    for _ in range(2):
        release.tick()
    heads = {}
    for _, route, data in left:
        heads.setdefault(route, data)
    assert [parse_mail(heads[route]).counter for route in (2, 3, 4, 5, 1)] == [0, 1, 2, 3, 4]
    # They leave in the order in which their calls came.
    assert list(heads) == [1, 2, 3, 4, 5]
    for route in (2, 5):
        streams._by_route[route].task.cancel()  # type: ignore[union-attr]
    await asyncio.sleep(0)


@pytest.mark.spec("MAIL-43")
async def test_of_streams_that_were_dropped_nothing_is_kept() -> None:
    """They never end with DONE: what waits for that would wait for the whole boot."""
    left: list[int] = []
    release = Release(timedelta(hours=1), lambda kind, request, *data: left.append(kind))
    enclave, method = Ends(), interface_of(Ends).methods["late"]
    streams = Streams(
        send=release.send,
        prepare=lambda request, sender: (enclave.late, method, ()),
        failure=lambda error: CallFailure(type="error", message=""),
        pool=None,
        bounds=Bounds(),
    )
    end, request = session(), Request(RequestKind.STREAM, 0, NONE, 0, b"")
    for route in range(1, 6):
        ticket = release.arrived(route)
        streams.start(request, end, route, ticket, sender=_sender, padding=padme)
        await asyncio.sleep(0)
        streams.drop(Frame(Kind.DROP, route, b""))
    for _ in range(4):
        await asyncio.sleep(0)
        release.tick()
    assert left == [Kind.REPLY] * 5
    assert len(streams) == 0
    assert {name: value for name, value in vars(release).items() if isinstance(value, list | dict) and value} == {}


@pytest.mark.spec("MAIL-43")
def test_where_a_boot_halts_whoever_waits_gets_a_word_at_once_whether_it_is_done_or_not() -> None:
    """The host chooses the moment: what differed then would tell which handlers had ended."""
    left: list[tuple[int, int, bytes]] = []
    release = Release(timedelta(hours=1), lambda kind, request, *data: left.append((kind, request, b"".join(data))))
    end, reply = session(), Reply(ReplyKind.RESULT, 1, 0, 1, 0, 1, b"")
    for route, done in ((1, True), (2, False)):
        handled = Handled(b"", end, route, padme, [reply] if done else [], done=done)
        release.wait(release.arrived(route), handled)
    release.give_up(b"stopping")
    assert left == [(Kind.ERROR, 1, b"stopping"), (Kind.ERROR, 2, b"stopping")]
    for _ in range(3):
        release.tick()
    assert len(left) == 2
