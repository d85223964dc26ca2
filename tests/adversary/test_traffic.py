"""The operator watches sizes, frames, counters and order (T-39)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from tests._claims import claims_of
from tests._wiretap import Recorded, wiretap

from conclave._crypto import SigningKey
from conclave._framing import Frame, Kind
from conclave._mailheader import parse_mail
from conclave.bundle import Bundle
from conclave.client import AsyncClient, Client, ConstantRate, fixed
from conclave.enclave import Enclave, Mail, RpcError, rpc
from conclave.enclave._service import Service
from conclave.enclave.drivers import Evidence
from conclave.errors import CallError
from conclave.mail import ClientSession, Conversation, RequestKind
from conclave.rpc.interface import encode_call, interface_of
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = '''
from datetime import timedelta
from conclave.enclave import Enclave, RpcError, fixed, rpc


class Refused(RpcError):
    """Declared: its message reaches the caller."""


class Quiet(Enclave):
    padding = fixed(2048)
    release_every = timedelta(milliseconds=10)

    @rpc
    def work(self, act: str, size: int) -> bytes:
        if act == "refuse":
            raise Refused("x" * size)
        if act == "fail":
            raise RuntimeError
        return bytes(size)
'''
RATE = ConstantRate(timedelta(milliseconds=20))
MAILS = 24
# Nothing here takes as long: whoever waits longer waits for what does not come.
PATIENCE_SECONDS = 15.0


class Refused(RpcError):
    """Declared: its message reaches the caller."""


class Quiet(Enclave):
    padding = fixed(2048)

    @rpc
    def work(self, act: str, size: int) -> bytes: ...


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("quiet", SOURCE)


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle) as running:
        yield running


def _busy(stub: Any) -> None:
    """All that a client could give away: results, errors, what does not fit."""
    acts = [("return", 0), ("return", 1900), ("refuse", 3), ("refuse", 4000), ("fail", 0), ("return", 9000)]

    def some(act: str, size: int) -> None:
        with suppress(CallError):
            stub.work(act, size)

    threads = [threading.Thread(target=some, args=act) for act in acts]
    for thread in threads:
        thread.start()
    with pytest.raises(ValueError, match="does not fit"):
        stub.work("x" * 5000, 1)
    for thread in threads:
        thread.join()


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "what should have come did not"
        time.sleep(0.01)


def _settled(mails: list[Recorded]) -> list[Recorded]:
    """Without those at the start, whose number depends on when the first answer comes."""
    return [m for m in mails if len(m.request.body) < 2048]


@pytest.mark.spec("T-39", "MAIL-42", "MAIL-43", "MAIL-44")
def test_a_busy_and_an_idle_client_look_alike(
    server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    seen: list[list[Recorded]] = []
    for busy in (True, False):
        with (
            wiretap(server.url) as tap,
            Client(
                tap.url, constraint=only(bundle), padding=fixed(1024), pace=RATE, deadline_seconds=PATIENCE_SECONDS
            ) as client,
        ):
            stub = client.stub(Quiet)
            _until(lambda tap=tap: _settled(tap.mails()))
            if busy:
                _busy(stub)
                assert stub.work("return", 5) == bytes(5)
            _until(lambda tap=tap: len(_settled(tap.mails())) >= MAILS)
        seen.append(tap.mails())
    for mails in seen:
        assert all(m.answer.head.startswith("HTTP/1.1 200") for m in mails)
        # One after the other, without gap or repetition, and with an answer for each.
        counters = sorted(int.from_bytes(m.request.body[24:32], "big") for m in mails)
        assert counters == list(range(len(mails)))
        answers = sorted(int.from_bytes(m.answer.body[28:36], "big") for m in mails)
        assert answers == list(range(len(mails)))
        openings = {m.shape for m in mails} - {m.shape for m in _settled(mails)}
        assert len(openings) == 1
    one, other = ([m.shape for m in _settled(mails)][:MAILS] for mails in seen)
    assert one == other
    assert len(set(one)) == 1
    ((request, answer),) = set(one)
    assert request[1] == 68 + 1024 + 16
    assert answer[1:] == (4 + 68 + 2048 + 16, ())


@pytest.mark.spec("T-39", "MAIL-42")
@pytest.mark.anyio
async def test_the_asynchronous_client_looks_alike_too(
    server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with wiretap(server.url) as tap:
        async with AsyncClient(
            tap.url, constraint=only(bundle), padding=fixed(1024), pace=RATE, deadline_seconds=PATIENCE_SECONDS
        ) as client:
            stub = await client.stub(Quiet)
            results = await asyncio.gather(*(stub.work("return", n) for n in range(5)))
            assert results == [bytes(n) for n in range(5)]
            with pytest.raises(CallError):
                await stub.work("refuse", 1)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(_settled(tap.mails())) < 12:
                    await asyncio.sleep(0.01)
            # Before it closes: a cover may be under way then, whose answer says that the connection ends.
            shapes = {m.shape for m in _settled(tap.mails())}
        with pytest.raises(RuntimeError, match="closed"):
            await client.call("work", "return", 1)
        assert len(shapes) == 1
        # Closing ended it.
        assert client._ticker is not None
        assert client._ticker._task is not None
        assert client._ticker._task.done()
        assert not client._ticker._covers


@pytest.mark.spec("MAIL-42")
def test_what_a_paced_client_cannot_hide_it_refuses(
    server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with Client(
        server.url, constraint=only(bundle), padding=fixed(1024), pace=RATE, deadline_seconds=PATIENCE_SECONDS
    ) as client:
        for act in (
            lambda: client.call("work", "return", 1, topic="other"),
            lambda: client.mail(b"", envelope=b"seen"),
            lambda: client.call_stream("work"),
        ):
            with pytest.raises(ValueError, match=r"constant rate"):
                act()
        # Another padding would be another size: the client's own holds.
        assert client.call("work", "return", 1, returns=bytes, padding=fixed(4096)) == bytes(1)


@pytest.mark.spec("T-39", "MAIL-43")
def test_words_about_what_cannot_be_decrypted_leave_at_once(
    serve: Callable[..., HostServer], author: Callable[..., Bundle], only: Callable[[Bundle], str]
) -> None:
    """An hour from tick to tick: only what tells nothing comes back."""
    bundle = author("slow", SOURCE.replace("milliseconds=10", "hours=1"))
    with serve(bundle, hostile=True) as server, Client(server.url, constraint=only(bundle)) as client:
        client.challenge()
        thread = threading.Thread(target=lambda: _swallow(client), daemon=True)
        thread.start()
        _until(lambda: server.operator.requests)
        mail = server.operator.requests[0]
        bad = mail[:-1] + bytes([mail[-1] ^ 1])
        assert server.run(server.operator.inject("POST", "/mail", bad))[0] == 422
        assert not server.operator.answers


POSTS = """
from datetime import timedelta
from conclave.enclave import Enclave, Post, fixed, rpc


class Tells(Enclave):
    padding = fixed(2048)
    release_every = timedelta(milliseconds=10)

    @rpc
    def tell(self, sizes: list[int]) -> None:
        for size in sizes:
            self.post(self.sender, bytes(size))
        self.post_together([Post(self.sender, bytes(size)) for size in sizes])
"""


@pytest.mark.spec("T-39", "MAIL-34", "MAIL-43")
def test_posted_mails_have_one_size_under_release(
    serve: Callable[..., HostServer], author: Callable[..., Bundle], only: Callable[[Bundle], str]
) -> None:
    bundle = author("tells", POSTS)
    with (
        serve(bundle) as server,
        Client(server.url, constraint=only(bundle), deadline_seconds=PATIENCE_SECONDS) as client,
    ):
        sizes = [0, 1, 300, 1600]
        client.call("tell", sizes)

        async def kept() -> list[bytes]:
            outbox = server.host.outbox
            return [mail for _, mail in await outbox.read(client.box.id, 0, most_bytes=2**30)]

        mails = server.run(kept())
        assert len(mails) == 2 * len(sizes)
        assert len({len(mail) for mail in mails}) == 1
        assert [len(mail.body) for mail in client.poll()] == 2 * sizes


# A host that acts, and counts time in ticks of its own making ---------------------------------------------------


class Thinks(Enclave):
    """Its handlers wait for the test, and its ticks for the host below."""

    padding = fixed(1024)
    release_every = timedelta(hours=1)

    def on_start(self) -> None:
        self.go = [asyncio.Event() for _ in range(2)]

    @rpc
    async def think(self, which: int) -> int:
        await self.go[which].wait()
        return which

    async def on_mail(self, mail: Mail) -> bytes:
        for event in self.go:
            await event.wait()
            mail.reply(b"one more")
        return b"last"


class Act:
    """One boot whose host does what it likes, and writes down all that it sees."""

    def __init__(self) -> None:
        # Time (in ticks), kind, request id, and of a mail: size, whose it is, counter.
        self.trace: list[tuple[Any, ...]] = []
        self.answers: list[bytes] = []
        self.ticks = 0
        self.enclave = Thinks()
        self.service = Service(
            enclave=self.enclave,
            interface=interface_of(Thinks),
            claims=lambda encryption, signing: claims_of(encryption, signing),
            evidence=lambda _: Evidence("simulated", b"", b""),
            roster=(),
            quorum=0,
            send=self._see,
            debug=False,
        )
        self.sessions: list[bytes] = []

    def client(self) -> Conversation:
        claims = self.service.claims
        session = ClientSession(
            claims_digest=claims.digest(),
            encryption_key=claims.encryption_key,
            identity=SigningKey.generate(),
            reply_key=claims.encryption_key,
            topic="t",
            padding=fixed(1024),
        )
        self.sessions.append(session.session_id)
        conversation = Conversation()
        conversation.use(session, new_boot=False)
        return conversation

    def _see(self, kind: int, request: int, *payload: bytes) -> None:
        data = b"".join(payload)
        what: tuple[int, ...] = ()
        if data and kind in (Kind.REPLY, Kind.DONE):
            mail = parse_mail(data)
            what = (len(data), self.sessions.index(mail.session_id), mail.counter)
            self.answers.append(data)
        self.trace.append((self.ticks, Kind(kind).name, int(request), *what))

    def give(self, request: int, mail: bytes) -> None:
        self.service.handle([Frame(Kind.MAIL, request, mail)])

    async def tick(self) -> None:
        await settle()
        self.ticks += 1
        assert self.service._release is not None
        self.service._release.tick()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


PROBES = 4


async def probed(moments: tuple[int, int], kind: RequestKind) -> list[tuple[Any, ...]]:
    """What a host sees that gives a mail again and again, while parts of its handler end at these moments.

    Args:
        moments: the numbers of the probes before which the two events come.
    """
    act = Act()
    ours = act.client()
    body = encode_call("think", [1]) if kind == RequestKind.CALL else b""
    item = ours.add(kind, body)
    for number in range(5 * PROBES):
        for event, moment in zip(act.enclave.go, moments, strict=True):
            if moment == number:
                event.set()
        await settle()
        # Each id but the first is used for two probes.
        act.give(1 + (number + 1) // 2, item.encrypted)
        if number % PROBES == PROBES - 1:
            await act.tick()
    for _ in range(3):
        await act.tick()
    for mail in act.answers:
        ours.receive(mail)
    assert item.done
    # Each mail was answered to its end, once.
    assert sum(kind == "DONE" for _, kind, *_ in act.trace) == 5 * PROBES
    return act.trace


@pytest.mark.spec("T-39", "MAIL-43")
@pytest.mark.anyio
@pytest.mark.parametrize("kind", [RequestKind.CALL, RequestKind.MAIL])
async def test_a_host_that_gives_a_mail_again_and_again_sees_only_ticks(kind: RequestKind) -> None:
    seen = []
    for tick in range(4):
        first = tick * PROBES
        traces = [
            await probed((first + a, first + b), kind)
            for a, b in [(0, 0), (0, 1), (1, 1), (1, 3), (2, 2), (2, 3), (3, 3)]
            if first + a > 0
        ]
        assert all(trace == traces[0] for trace in traces)
        seen.append(traces[0])
    # What ends before the first ticks leaves together; later ones are known by their ticks.
    assert [trace == seen[0] for trace in seen] == [True, True, False, False]
    assert seen[2] != seen[3]


@pytest.mark.spec("T-39", "MAIL-43")
@pytest.mark.anyio
@pytest.mark.parametrize("ids", [(1, 2, 3), (3, 2, 1), (1, 1, 1)])
async def test_order_and_counters_at_a_tick_are_those_in_which_the_mails_came(ids: tuple[int, int, int]) -> None:
    """Whichever of two handlers is ready first, and whatever ids the host gave their mails."""
    for ready in ((0, 1), (1, 0)):
        act = Act()
        one, other = act.client(), act.client()
        calls = [
            one.add(RequestKind.CALL, encode_call("think", [0])),
            other.add(RequestKind.CALL, encode_call("think", [1])),
        ]
        for request, mail in zip(ids, [calls[0].encrypted, calls[1].encrypted, one.cover().encrypted], strict=True):
            act.give(request, mail)
        for which in ready:
            act.enclave.go[which].set()
            await settle()
        await act.tick()
        assert act.trace == []
        await act.tick()
        size = 68 + 1024 + 16
        # The cover was answered first, and is encrypted last.
        assert act.trace == [
            (2, "DONE", ids[0], size, 0, 0),
            (2, "DONE", ids[1], size, 1, 0),
            (2, "DONE", ids[2], size, 0, 1),
        ]


@pytest.mark.spec("T-39", "MAIL-43")
@pytest.mark.anyio
async def test_a_word_under_the_id_of_a_mail_brings_nothing_forward() -> None:
    """Else a host that gives a mail just before a tick would see whether its handler was done by then."""
    act = Act()
    ours = act.client()
    act.enclave.go[0].set()
    act.give(7, ours.add(RequestKind.CALL, encode_call("think", [0])).encrypted)
    act.give(7, b"no mail")
    act.service.handle([Frame(Kind.CHALLENGE, 7, bytes(32))])
    assert [kind for _, kind, _ in act.trace] == ["ERROR", "SIGNED"]
    await act.tick()
    assert len(act.trace) == 2
    await act.tick()
    assert act.trace[2][:3] == (2, "DONE", 7)


def _swallow(client: Client) -> None:
    with suppress(Exception):
        client.call("work", "return", 1)
