"""The host's exchanges for its enclave, against servers that behave and servers that do not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from conclave import _codec
from conclave.enclave._fetches import Fetch
from conclave.host import fetch
from conclave.host.fetch import Fetcher

pytestmark = pytest.mark.anyio


@contextmanager
def server(answer: Callable[[socket.socket], None], *, heads: list[bytes] | None = None) -> Iterator[str]:
    """Does that with each connection; the head and what of the body came along was read, and is in `heads`."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                head = connection.recv(65536)
                if ended.is_set():
                    return
                if heads is not None:
                    heads.append(head)
                answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = listening.getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        ended.set()
        with socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(b"end")
        thread.join(10)
        listening.close()


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def asked(url: str, method: str = "GET", path: str = "/instance", body: bytes = b"") -> bytes:
    return _codec.encode(Fetch(url=url, method=method, path=path, body=body))


async def fetched(fetcher: Fetcher, payload: bytes) -> bytes:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    fetcher.take(payload, answer.set_result)
    async with asyncio.timeout(30):
        return await answer


def made(*peers: str, info: bytes | None = None, timeout_seconds: float = 20.0) -> Fetcher:
    return Fetcher(peers, info=lambda: info, timeout_seconds=timeout_seconds)


@pytest.mark.spec("CHAN-10")
async def test_what_is_fetched() -> None:
    with server(lambda c: c.sendall(http("503 Service Unavailable", b"later"))) as url:
        fetcher = made(url + "/")
        assert await fetched(fetcher, asked(url)) == b"\x01\xf7later"
        assert await fetched(fetcher, asked(url, "POST", "/mail", b"a mail")) == b"\x01\xf7later"
        assert await fetched(fetcher, asked(url, "POST", "/challenge", bytes(32))) == b"\x01\xf7later"
        await fetcher.close()


@pytest.mark.spec("CHAN-10")
@pytest.mark.parametrize(
    ("suffix", "method", "path"),
    [
        ("", "GET", "/"),
        ("", "GET", "/admin"),
        ("", "DELETE", "/mail"),
        ("", "GET", "/instance?x=y"),
        ("", "POST", "/../instance"),
        ("/", "GET", "/instance"),
        (".evil.example", "GET", "/instance"),
        ("@evil.example", "GET", "/instance"),
        ("/elsewhere", "GET", "/instance"),
    ],
)
async def test_what_is_not_fetched(suffix: str, method: str, path: str) -> None:
    connections: list[int] = []
    with server(lambda c: connections.append(1)) as url:
        fetcher = made(url)
        assert await fetched(fetcher, asked(url + suffix, method, path)) == b"\0\0refused"
        await fetcher.close()
    assert not connections


@pytest.mark.spec("CHAN-10")
async def test_nothing_is_fetched_by_default() -> None:
    fetcher = made()
    for payload in (asked("http://127.0.0.1:1"), asked("http://169.254.169.254"), b"", b"\xff" * 50, bytes(9)):
        assert await fetched(fetcher, payload) == b"\0\0refused"


@pytest.mark.spec("CHAN-10")
async def test_its_own_instance_info() -> None:
    assert await fetched(made(), asked("")) == b"\x01\xf7"
    assert await fetched(made(info=b"own"), asked("")) == b"\0\xc8own"
    assert await fetched(made(info=b"own"), asked("", "POST", "/mail")) == b"\0\0refused"


@pytest.mark.spec("CHAN-10")
async def test_no_redirect_is_followed() -> None:
    connections: list[int] = []
    with server(lambda c: connections.append(1)) as other:
        moved = http("307 Temporary Redirect", b"", f"location: {other}/instance")
        with server(lambda c: c.sendall(moved)) as url:
            fetcher = made(url, other)
            assert await fetched(fetcher, asked(url)) == (307).to_bytes(2, "big")
            await fetcher.close()
    assert not connections


@pytest.mark.spec("CHAN-11")
async def test_servers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(lambda c: None) as url:
        fetcher = made(url)
        assert await fetched(fetcher, asked(url)) == b"\0\0broken"
    assert await fetched(fetcher, asked(url)) == b"\0\0connect"
    with server(lambda c: c.sendall(b"SSH-2.0-nothing\r\n")) as url:
        assert await fetched(made(url), asked(url)) == b"\0\0broken"
    with server(lambda c: (c.recv(1), None)[1]) as url:
        assert await fetched(made(url, timeout_seconds=0.2), asked(url)) == b"\0\0timeout"
    monkeypatch.setattr(fetch, "_LARGEST", 1000)
    with server(lambda c: c.sendall(http("200 OK", bytes(1001)))) as url:
        assert await fetched(made(url), asked(url)) == b"\0\0large"
    # Whole mails count, though the connection breaks behind them; half of anything else does not.
    half = http("200 OK", bytes(500))[:-100]
    with server(lambda c: c.sendall(half)) as url:
        fetcher = made(url)
        assert await fetched(fetcher, asked(url, "POST", "/mail")) == b"\0\xc8" + bytes(400)
        assert await fetched(fetcher, asked(url)) == b"\0\0broken"
        assert fetcher._held == 0


@pytest.mark.spec("CHAN-11")
async def test_bounds_and_the_end_of_a_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_OUTSTANDING", 3)
    answers: list[bytes] = []
    release = threading.Event()
    with server(lambda c: (release.wait(30), None)[1]) as url:
        fetcher = made(url)
        for _ in range(4):
            fetcher.take(asked(url), answers.append)
        assert answers == [b"\0\0busy"]
        fetcher.clear()
        while fetcher._tasks:
            await asyncio.sleep(0)
        assert answers == [b"\0\0busy"]
        assert fetcher._held == 0
        monkeypatch.setattr(fetch, "MAX_HELD", 10)
        fetcher.take(asked(url), answers.append)
        assert answers == [b"\0\0busy"] * 2
        release.set()
        await fetcher.close()


@pytest.mark.spec("CHAN-10")
async def test_witnesses_have_names_and_serve_two_things() -> None:
    requests: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(http("409 Conflict", b"elsewhere"))

    with server(answer, heads=requests) as url, server(answer) as other:
        fetcher = Fetcher([other], witnesses={"tower": url + "/"}, info=lambda: None)
        for path in ("/witness/head", "/witness/advance"):
            assert await fetched(fetcher, asked("witness:tower", "POST", path, b"body")) == b"\x01\x99elsewhere"
        assert all(b"content-type: application/vnd.conclave.witness" in head.lower() for head in requests)
        assert len(requests) == 2
        for where, method, path in (
            ("witness:tower", "GET", "/witness/head"),
            ("witness:tower", "POST", "/mail"),
            ("witness:tower", "GET", "/instance"),
            ("witness:tower", "POST", "/witness/head/../advance"),
            ("witness:", "POST", "/witness/head"),
            ("witness:other", "POST", "/witness/head"),
            ("witness:Tower", "POST", "/witness/head"),
            ("tower", "POST", "/witness/head"),
            # Neither by its address, nor as a host of enclaves.
            (url, "POST", "/witness/head"),
            (other, "POST", "/witness/head"),
        ):
            assert await fetched(fetcher, asked(where, method, path)) == b"\0\0refused"
        assert len(requests) == 2
        await fetcher.close()


@pytest.mark.spec("CHAN-10", "CHAN-11")
async def test_a_witness_that_talks_without_end() -> None:
    with server(lambda c: c.sendall(http("200 OK", bytes(64 * 1024 + 1)))) as url:
        fetcher = Fetcher([], witnesses={"tower": url}, info=lambda: None)
        assert await fetched(fetcher, asked("witness:tower", "POST", "/witness/head")) == b"\0\0large"
        assert fetcher._held == 0
        await fetcher.close()
