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
from tests._wiretap import Recorded, wiretap

from conclave.bundle import Bundle
from conclave.client import AsyncClient, Client, ConstantRate, fixed
from conclave.enclave import Enclave, RpcError, rpc
from conclave.errors import CallError
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
    while not condition():
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
            Client(tap.url, constraint=only(bundle), padding=fixed(1024), pace=RATE) as client,
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
        async with AsyncClient(tap.url, constraint=only(bundle), padding=fixed(1024), pace=RATE) as client:
            stub = await client.stub(Quiet)
            results = await asyncio.gather(*(stub.work("return", n) for n in range(5)))
            assert results == [bytes(n) for n in range(5)]
            with pytest.raises(CallError):
                await stub.work("refuse", 1)
            while len(_settled(tap.mails())) < 12:
                await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="closed"):
            await client.call("work", "return", 1)
        assert len({m.shape for m in _settled(tap.mails())}) == 1
        # Closing ended it.
        assert client._ticker is not None
        assert client._ticker._task is not None
        assert client._ticker._task.done()
        assert not client._ticker._covers


@pytest.mark.spec("MAIL-42")
def test_what_a_paced_client_cannot_hide_it_refuses(
    server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with Client(server.url, constraint=only(bundle), padding=fixed(1024), pace=RATE) as client:
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
    with serve(bundle) as server, Client(server.url, constraint=only(bundle)) as client:
        sizes = [0, 1, 300, 1600]
        client.call("tell", sizes)

        async def kept() -> list[bytes]:
            outbox = server.host.outbox
            return [mail for _, mail in await outbox.read(client.box.id, 0, most_bytes=2**30)]

        mails = server.run(kept())
        assert len(mails) == 2 * len(sizes)
        assert len({len(mail) for mail in mails}) == 1
        assert [len(mail.body) for mail in client.poll()] == 2 * sizes


def _swallow(client: Client) -> None:
    with suppress(Exception):
        client.call("work", "return", 1)
