"""HTTP that is meant to harm: refused with a status and advice, seen by no enclave, in nobody's way."""

from __future__ import annotations

import json
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from conclave._chunkheader import MAX_UPLOAD
from conclave._mailheader import FLAG_OPENING, HEADER, MAGIC, MAX_MAIL, OPENING_SIZE, TO_ENCLAVE, ZERO_SALT
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.host import Host
from conclave.host.server import Limits
from conclave.platform import start_platform
from conclave.testing import HostServer

pytestmark = [pytest.mark.slow, pytest.mark.spec("T-32"), pytest.mark.spec("T-33")]

SOURCE = """
from conclave.enclave import Enclave, rpc

class Echo(Enclave):
    @rpc
    def echo(self, data: bytes) -> bytes:
        return data
"""
LIMITS = Limits(head_seconds=1, body_seconds=1, idle_seconds=4, linger_seconds=1, send_seconds=2)
PATIENCE = 30
CONNECTIONS = 2000


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("echo", SOURCE)


@pytest.fixture(scope="module")
def server(machine: Path, bundle: Bundle) -> Iterator[HostServer]:
    with HostServer(Host(lambda: start_platform(machine, bundle.path), restart=False), limits=LIMITS) as running:
        yield running


@pytest.fixture(autouse=True)
def _others_are_served(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> Iterator[None]:
    """Whatever a test did: the enclave saw none of it, and an honest client is answered."""
    before = asked(server)
    yield
    assert asked(server) == before
    with Client(server.url, constraint=only(bundle)) as client:
        assert client.call("echo", b"alive", returns=bytes) == b"alive"


def asked(server: HostServer) -> int:
    """How many requests went over the host channel so far."""
    link = server.host._link
    assert link is not None
    return link.next_request


def connect(server: HostServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def rest(sock: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = b""
    with suppress(ConnectionError):
        while more := sock.recv(65536):
            data += more
    return data


def answers(data: bytes) -> list[tuple[int, dict[str, str]]]:
    """Status and JSON body of each answer."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        size = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length"))
        body, data = data[:size], data[size:]
        found.append((int(head[9:12]), json.loads(body) if b"json" in head else {}))
    return found


def refused(server: HostServer, data: bytes, status: int, word: str) -> None:
    with connect(server) as sock:
        sock.sendall(data)
        ((found, body),) = answers(rest(sock))
    assert (found, body["error"]) == (status, word)
    assert len(body["detail"]) > 10


HOST = b"Host: a\r\n"
POST = b"POST /mail HTTP/1.1\r\n" + HOST


@pytest.mark.spec("HTTP-4")
@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 501, "method"),
        (b"BREW /pot HTTP/1.1\r\n" + HOST + b"\r\n", 501, "method"),
        (b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n", 501, "method"),
        (b"GET /instance HTTP/2.0\r\n" + HOST + b"\r\n", 505, "version"),
        (b"GET /instance HTTP/1.9\r\n" + HOST + b"\r\n", 505, "version"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version"),
        (b"GET /instance HTTP/1.1\r\n\r\n", 400, "format"),
        (b"GET /instance HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400, "format"),
        (b"GET /instance HTTP/1.1\r\n" + HOST + b"a b: c\r\n\r\n", 400, "format"),
        (b"GET /instance HTTP/1.1\r\n" + HOST + b"a: c\r\n folded\r\n\r\n", 400, "format"),
        (b"GET /instance HTTP/1.1\r\n" + HOST + b"a: \x00\r\n\r\n", 400, "format"),
        (b"GET /instance HTTP/1.1\n" + HOST + b"\n", 400, "format"),
        (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400, "format"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "too large"),
        (b"GET /instance HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 40_000 + b"\r\n\r\n", 431, "too large"),
        (b"GET /instance HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 9000 + b"\r\n", 431, "too large"),
        (POST + b"Expect: the-unexpected\r\nContent-Length: 3\r\n\r\nabc", 417, "expectation"),
        (POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc", 501, "upgrade"),
    ],
)
def test_what_is_no_request(server: HostServer, data: bytes, status: int, word: str) -> None:
    refused(server, data, status, word)


@pytest.mark.spec("HTTP-5")
@pytest.mark.parametrize(
    ("headers", "body", "status", "word"),
    [
        (b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc", 400, "format"),
        (b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abc", 400, "format"),
        (b"Content-Length: 3, 3\r\n", b"abc", 400, "format"),
        (b"Content-Length: +3\r\n", b"abc", 400, "format"),
        (b"Content-Length: -3\r\n", b"abc", 400, "format"),
        (b"Content-Length: 0x3\r\n", b"abc", 400, "format"),
        (b"Content-Length: 99999999999999999999\r\n", b"", 400, "format"),
        (b"Content-Length : 3\r\n", b"abc", 400, "format"),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n", 400, "format"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"0\r\n\r\n", 400, "format"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n", 400, "format"),
        (b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n", 501, "coding"),
        (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n", 501, "coding"),
        (b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n", 501, "coding"),
        (b"Transfer-Encoding:\x0bchunked\r\n", b"0\r\n\r\n", 400, "format"),
        (b"Transfer-Encoding: chunked\r\n", b"zz\r\nabc\r\n0\r\n\r\n", 400, "format"),
        (b"Transfer-Encoding: chunked\r\n", b"-3\r\nabc\r\n0\r\n\r\n", 400, "format"),
        (b"Transfer-Encoding: chunked\r\n", b"0x3\r\nabc\r\n0\r\n\r\n", 400, "format"),
        (b"Transfer-Encoding: chunked\r\n", b"fffffffffffffffff\r\nabc", 400, "format"),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nabcd\r\n0\r\n\r\n", 400, "format"),
        (b"Transfer-Encoding: chunked\r\n", b"3\nabc\n0\n\n", 400, "format"),
        (
            b"Transfer-Encoding: chunked\r\n",
            b"1\r\na\r\n" * 4 + b"0\r\nA: " + b"a" * 40_000 + b"\r\n\r\n",
            431,
            "too large",
        ),
        (b"Content-Length: %d\r\n" % (MAX_MAIL + 1), b"", 413, "too large"),
    ],
)
def test_lengths_that_two_readers_could_read_differently(
    server: HostServer, headers: bytes, body: bytes, status: int, word: str
) -> None:
    # A second request rides behind: it must not be answered, nor taken for a body.
    refused(server, POST + headers + b"\r\n" + body + b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", status, word)


@pytest.mark.spec("HTTP-5")
def test_old_http_has_no_chunks(server: HostServer) -> None:
    refused(server, b"POST /mail HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "format")


@pytest.mark.spec("HTTP-6")
@pytest.mark.parametrize(
    "data",
    [
        b"GET /instance HTTP/1.1\r\nHo",
        POST + b"Content-Length: 1000\r\n\r\nhalf of it",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"POST /challenge HTTP/1.1\r\n" + HOST + b"Content-Length: 32\r\n\r\nhalf",
    ],
)
def test_what_never_ends_is_told_so(server: HostServer, data: bytes) -> None:
    refused(server, data, 408, "timeout")


@pytest.mark.spec("HTTP-6")
def test_a_byte_now_and_then_is_too_slow(server: HostServer) -> None:
    with connect(server) as sock:
        sock.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        sock.settimeout(0.2)
        answer = b""
        until = time.monotonic() + PATIENCE
        while not answer and time.monotonic() < until:
            sock.sendall(b"x")
            with suppress(TimeoutError):
                answer = sock.recv(65536)
        assert answers(answer)[0][0] == 408


@pytest.mark.spec("HTTP-6")
def test_a_connection_that_says_nothing_is_closed(server: HostServer) -> None:
    with connect(server) as sock:
        assert rest(sock) == b""
    with connect(server) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        # Answered, and closed when nothing more came.
        assert [status for status, _ in answers(rest(sock))] == [200]


@pytest.mark.spec("HTTP-6")
def test_who_does_not_read_is_cut_off(server: HostServer) -> None:
    with connect(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /instance HTTP/1.1\r\n" + HOST + b"\r\n"
        until = time.monotonic() + PATIENCE
        sock.settimeout(0.5)
        cut = False
        while not cut and time.monotonic() < until:
            try:
                sock.sendall(request)
            except TimeoutError:
                continue
            except ConnectionError:
                cut = True
        assert cut


def test_half_closed_is_answered(server: HostServer) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert [status for status, _ in answers(rest(sock))] == [200]


def test_pipelined_requests_are_answered_in_order_and_garbage_behind_them_is_refused(server: HostServer) -> None:
    with connect(server) as sock:
        sock.sendall((b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n") * 5 + b"garbage\r\n\r\n")
        assert [status for status, _ in answers(rest(sock))] == [200] * 5 + [501]


def test_more_requests_than_may_wait(server: HostServer) -> None:
    with connect(server) as sock:
        sock.sendall((b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n") * 2000)
        statuses = [status for status, _ in answers(rest(sock))]
    assert statuses == [200] * LIMITS.pipelined + [503]


def test_nothing_behind_a_last_request_is_read(server: HostServer) -> None:
    last = b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    with connect(server) as sock:
        sock.sendall(last + b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert [status for status, _ in answers(rest(sock))] == [200]


@pytest.mark.spec("HTTP-7")
def test_thousands_of_idle_connections(server: HostServer) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(CONNECTIONS, (soft - 200) // 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ExitStack() as stack:
        for number in range(count):
            sock = stack.enter_context(connect(server))
            sock.sendall(b"GET /instance HTTP/1.1\r\nHo"[: number % 26])
        with httpx2.Client(base_url=server.url, timeout=PATIENCE) as http:
            assert http.get("/health").status_code == 200
    # KiB for each: both ends of a connection live in this process.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * count


@pytest.mark.spec("HTTP-7")
def test_one_connection_more_than_there_may_be(machine: Path, bundle: Bundle) -> None:
    host = Host(lambda: start_platform(machine, bundle.path), restart=False)
    with HostServer(host, limits=Limits(connections=2)) as small, connect(small) as first, connect(small) as second:
        for sock in (first, second):
            sock.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
            assert b" 200 " in sock.recv(65536)
        with connect(small) as third:
            ((status, body),) = answers(rest(third))
        assert (status, body["error"]) == (503, "overloaded")


@pytest.mark.spec("HTTP-7")
def test_bodies_on_their_way_are_bounded_all_together(machine: Path, bundle: Bundle) -> None:
    host = Host(lambda: start_platform(machine, bundle.path), restart=False)
    with HostServer(host, limits=Limits(collected_bytes=1_000_000)) as small, ExitStack() as stack:
        socks = [stack.enter_context(connect(small)) for _ in range(4)]
        for number, sock in enumerate(socks[:3]):
            sock.sendall(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(300_000))
            # One after the other, or another one than the last is refused.
            assert reaches(small, (number + 1) * 300_000)
        with suppress(ConnectionError):
            socks[3].sendall(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(300_000))
        assert answers(socks[3].recv(65536))[0][0] == 503
        for sock in socks:
            sock.close()
        assert reaches(small, 0)


def reaches(server: HostServer, counted: int) -> bool:
    """Whether soon so many bytes of bodies are on their way."""
    until = time.monotonic() + PATIENCE
    while server.server.collected != counted and time.monotonic() < until:
        time.sleep(0.01)
    return server.server.collected == counted


@pytest.mark.spec("HTTP-7")
@pytest.mark.parametrize("size", [10_000, 300_000])
def test_early_mails_that_wait_are_on_their_way(machine: Path, bundle: Bundle, size: int) -> None:
    """Whoever makes up sessions, each with a mail ahead of its time, would have 16 MiB of each kept for 5 seconds."""
    host = Host(lambda: start_platform(machine, bundle.path), restart=False)

    def early() -> bytes:
        rest = size - HEADER.size - OPENING_SIZE
        head = HEADER.pack(MAGIC, TO_ENCLAVE, FLAG_OPENING, 0, os.urandom(16), 5, ZERO_SALT, rest)
        return POST + b"Content-Length: %d\r\n\r\n" % size + head + bytes(OPENING_SIZE + rest)

    with HostServer(host, limits=Limits(collected_bytes=3 * size + size // 2)) as small, ExitStack() as stack:
        socks = [stack.enter_context(connect(small)) for _ in range(4)]
        for number, sock in enumerate(socks[:3]):
            sock.sendall(early())
            assert reaches(small, (number + 1) * size)
        with suppress(ConnectionError):
            socks[3].sendall(early())
        assert answers(rest(socks[3]))[0][0] == 503
        for sock in (*socks[:2], socks[3]):
            sock.close()
        until = time.monotonic() + PATIENCE
        while len(small.server.connections) > 1 and time.monotonic() < until:
            time.sleep(0.01)
        # Their clients have gone; the mails are still here.
        assert small.server.collected == 3 * size
        assert answers(socks[2].recv(65536))[0][0] == 409
        assert reaches(small, 0)


@pytest.mark.spec("HTTP-7")
def test_uploads_are_on_their_way(machine: Path, bundle: Bundle) -> None:
    host = Host(lambda: start_platform(machine, bundle.path), restart=False)
    upload = b"POST /stream HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n"
    with HostServer(host, limits=Limits(collected_bytes=1_000_000)) as small, ExitStack() as stack:
        socks = [stack.enter_context(connect(small)) for _ in range(4)]
        for number, sock in enumerate(socks[:3]):
            sock.sendall(upload % MAX_UPLOAD + bytes(300_000))
            assert reaches(small, (number + 1) * 300_000)
        with suppress(ConnectionError):
            socks[3].sendall(upload % MAX_UPLOAD + bytes(300_000))
        assert answers(rest(socks[3]))[0][0] == 503
        for sock in socks[:3]:
            sock.close()
        assert reaches(small, 0)
        with connect(small) as sock:
            # Whole, and no chunks: nothing is kept of what is refused.
            sock.sendall(upload % 300_000 + bytes(300_000))
            assert answers(sock.recv(65536))[0][0] == 400
            assert reaches(small, 0)


@pytest.mark.spec("HTTP-8")
def test_a_body_is_asked_for(server: HostServer) -> None:
    with connect(server) as sock:
        sock.sendall(b"POST /challenge HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"short")
        sock.shutdown(socket.SHUT_WR)
        found = rest(sock)
    assert answers(found)[0][0] == 400
    with connect(server) as sock:
        sock.sendall(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (MAX_MAIL + 1))
        # Refused before it is sent.
        assert answers(rest(sock))[0][0] == 413


@pytest.mark.spec("HTTP-8")
def test_versions_and_heads(server: HostServer) -> None:
    for request, kept in (
        (b"GET /health HTTP/1.0\r\n\r\n", False),
        (b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET http://a/health HTTP/1.1\r\n" + HOST + b"\r\n", True),
    ):
        with connect(server) as sock:
            sock.sendall(request)
            data = sock.recv(65536)
            assert answers(data)[0] == (200, {"status": "ok"})
            assert (b"connection: close" not in data) == kept
    with connect(server) as sock:
        sock.sendall(b"HEAD /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        head = rest(sock)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")
    with httpx2.Client(base_url=server.url, timeout=PATIENCE) as http:
        options = http.options("/mail")
        assert options.status_code == 204
        assert options.headers["allow"] == "POST, OPTIONS"
        assert http.get("/mail").headers["allow"] == "POST, OPTIONS"
        assert "access-control-allow-origin" not in options.headers


@pytest.mark.spec("HTTP-9")
def test_a_stop_finishes_what_is_under_way(machine: Path, bundle: Bundle) -> None:
    host = Host(lambda: start_platform(machine, bundle.path), restart=False)
    with HostServer(host) as stopping, connect(stopping) as idle, connect(stopping) as busy:
        idle.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b" 200 " in idle.recv(65536)
        busy.sendall(b"POST /challenge HTTP/1.1\r\n" + HOST + b"Content-Length: 32\r\n\r\n" + bytes(31))
        until = time.monotonic() + PATIENCE
        while sum(bool(c._line) for c in stopping.server.connections) < 1 and time.monotonic() < until:
            time.sleep(0.01)

        async def finish() -> None:
            await stopping.server.stop(PATIENCE)

        ending = threading.Thread(target=stopping.run, args=(finish(),))
        ending.start()
        assert rest(idle) == b""
        with pytest.raises(OSError, match=r"refused|reset"):
            connect(stopping)
        busy.sendall(bytes(1))
        assert rest(busy).startswith(b"HTTP/1.1 200 ")
        ending.join(PATIENCE)
        assert not stopping.server.connections


def test_tls(machine: Path, bundle: Bundle, only: Callable[[Bundle], str], tmp_path: Path) -> None:
    """Mail and large answers through the server's own TLS, and a client that speaks none."""
    context, trusting = _tls(tmp_path)
    host = Host(lambda: start_platform(machine, bundle.path), restart=False)
    with HostServer(host, limits=LIMITS, tls=context) as secure:
        assert secure.url.startswith("https://")
        with httpx2.Client(base_url=secure.url, verify=trusting, timeout=PATIENCE) as http:
            assert http.get("/health").json() == {"status": "ok"}
            assert http.post("/mail", content=bytes(100_000)).status_code == 400
        port = int(secure.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
            assert b"200" not in rest(sock)


def _tls(place: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (place / "crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (place / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "crt", place / "key")
    return context, ssl.create_default_context(cafile=place / "crt")
