"""Any bytes at the host's HTTP entrance: one clear answer, and honest clients go on."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest

from conclave.bundle import Bundle
from conclave.client import Client
from conclave.errors import Error, FormatError, TransportError
from conclave.testing import HostServer

pytestmark = [pytest.mark.slow, pytest.mark.spec("T-14")]

SOURCE = """
from conclave.enclave import Enclave, Mail, rpc

class Echo(Enclave):
    def on_mail(self, mail: Mail) -> bytes:
        return mail.body

    @rpc
    def echo(self, data: bytes) -> bytes:
        return data
"""


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("echo", SOURCE)


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle) as running:
        yield running


@pytest.fixture
def http(server: HostServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture(autouse=True)
def _still_serving(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> Iterator[None]:
    yield
    with Client(server.url, constraint=only(bundle)) as client:
        assert client.call("echo", b"alive", returns=bytes) == b"alive"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("GET", "/", b"", 404, "no such resource"),
        ("GET", "/mail", b"", 405, "method"),
        ("POST", "/instance", b"", 405, "method"),
        ("POST", "/mail", b"", 400, "format"),
        ("POST", "/mail", b"CML1" + bytes(60), 400, "format"),
        ("POST", "/mail", bytes(5000), 400, "format"),
        ("POST", "/challenge", b"short", 400, "format"),
        ("POST", "/challenge", bytes(33), 400, "format"),
        ("POST", "/challenge", bytes(65), 413, "too large"),
    ],
)
def test_refusals(http: httpx2.Client, method: str, path: str, body: bytes, status: int, word: str) -> None:
    answer = http.request(method, path, content=body)
    assert answer.status_code == status
    assert answer.json()["error"] == word
    assert answer.json()["detail"]


@pytest.mark.spec("HTTP-2")
def test_a_body_above_the_limit_is_refused_by_its_announcement(server: HostServer) -> None:
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=20) as raw:
        raw.sendall(b"POST /mail HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 413 " in raw.recv(1000)


@pytest.mark.spec("HTTP-2")
def test_a_chunked_body_above_the_limit_is_refused_on_the_way(server: HostServer) -> None:
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=20) as raw:
        raw.sendall(b"POST /mail HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
        try:
            for _ in range(40):
                raw.sendall(chunk)
        except OSError:
            return
        answer = raw.recv(1000)
        assert answer == b"" or b" 413 " in answer


def test_random_and_mutated_mails(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    chance = random.Random(7)
    with (
        serve(bundle, hostile=True, patience_seconds=0.0) as server,
        httpx2.Client(base_url=server.url, timeout=20) as http,
        Client(server.url, constraint=only(bundle)) as client,
    ):
        client.call("echo", b"seed")
        seed = server.operator.requests[-1]
        for _ in range(300):
            mail = bytearray(seed)
            for _ in range(chance.randint(1, 8)):
                mail[chance.randrange(len(mail) if chance.random() < 0.3 else 72)] = chance.randrange(256)
            cut = chance.choice([len(mail), chance.randrange(len(mail))])
            status = http.post("/mail", content=bytes(mail[:cut])).status_code
            assert status in (200, 400, 409, 422, 429), status
        assert client.call("echo", b"alive", returns=bytes) == b"alive"


def test_a_client_that_goes_away_in_the_middle(server: HostServer) -> None:
    address = server.url.removeprefix("http://").split(":")
    for sent in (b"POST /mail HTTP/1.1\r\nHo", b"POST /mail HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf"):
        with socket.create_connection((address[0], int(address[1])), timeout=20) as raw:
            raw.sendall(sent)


@pytest.mark.spec("HTTP-1")
def test_early_mails_wait_for_their_turn(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    """Delayed on its way, the first of two mails arrives second; the host puts them in order."""
    with serve(bundle, hostile=True) as server, Client(server.url, constraint=only(bundle)) as client:
        client.call("echo", b"0")
        requests: list[bytes] = []
        server.operator.on_request = lambda mail: requests.append(mail)
        client._timeout = 2.0
        client._core._attempts = 1
        done = [threading.Thread(target=_quietly, args=(client, n)) for n in range(2)]
        for n, thread in enumerate(done):
            thread.start()
            while len(requests) <= n:
                time.sleep(0.005)
        for thread in done:
            thread.join()
        server.operator.behave()
        # The operator now hands them in, the second one first, at the same time.
        answers: dict[int, int] = {}

        def hand_in(n: int) -> None:
            answers[n] = httpx2.post(f"{server.url}/mail", content=requests[n], timeout=20).status_code

        second = threading.Thread(target=hand_in, args=(1,))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        hand_in(0)
        second.join()
        assert answers == {0: 200, 1: 200}


def _quietly(client: Client, n: int) -> None:
    with contextlib.suppress(Error):
        client.call("echo", bytes([n]))


class _Raw:
    """A host that answers with bytes of the test's choosing."""

    def __init__(self, *parts: bytes, pause_seconds: float = 0.0) -> None:
        self._parts = parts
        self._pause = pause_seconds
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(100_000)
                for part in self._parts:
                    connection.sendall(part)
                    self._stop.wait(self._pause)

    def close(self) -> None:
        self._stop.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: "


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"\0" * 1000,),
        (b"HTTP/1.1 999 ?\r\n\r\n",),
        (HEAD + b"10\r\n\r\nshort",),
        (HEAD + b"99999999999999\r\n\r\n" + bytes(1000),),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
        (b"HTTP/1.1 200 OK\r\n" + b"A: " + b"x" * 200_000 + b"\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *(b"100000\r\n" + bytes(1 << 20) + b"\r\n",) * 20),
    ],
    ids=["nothing", "zeros", "status", "short", "endless", "gzip", "redirect", "chunks", "header", "large"],
)
def test_a_host_that_answers_anything(parts: tuple[bytes, ...]) -> None:
    """One error of the tree, soon, in little memory; nothing is followed."""
    host = _Raw(*parts)
    try:
        client = Client(host.url, constraint="C:" + "0" * 64, timeout_seconds=2, attempts=1)
        with client, pytest.raises((TransportError, FormatError)):
            client.verify()
    finally:
        host.close()


def test_a_host_that_drips_for_ever() -> None:
    host = _Raw(HEAD + b"1000000\r\n\r\n", *(b"x",) * 100_000, pause_seconds=0.05)
    try:
        client = Client(host.url, constraint="C:" + "0" * 64, timeout_seconds=1, attempts=1)
        with client, pytest.raises(TransportError, match="no answer within 1 seconds"):
            client.verify()
    finally:
        host.close()
