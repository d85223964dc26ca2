"""What one more channel costs: memory of enclave and host, and the time of a call, at 100 to 100,000 channels.

Ours: `conclave serve` and its sandboxed enclave under the simulated TEE. Each channel is
a client with an identity of its own, opened by one call of 64 bytes over one connection;
then calls on channels drawn at random, one at a time. Theirs: idle keep-alive connections
to uvicorn with TLS 1.3, as many as the descriptors of this process allow (a channel holds no
connection). PSS of all the server's processes; the platform process is left out.
"""

from __future__ import annotations

import random
import resource
import socket
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from _common import HERE, Server, certificate, connect, emit, middle, post, response_body, trust
from bench_memory import children, descendants, pss_mib

from conclave._crypto import DecryptionKey, SigningKey, random_bytes
from conclave.attestation import AttestationResult
from conclave.bundle import build
from conclave.client import Client
from conclave.client.core import split_mails
from conclave.mail import ClientSession, Request, RequestKind
from conclave.rpc.interface import encode_call

CHANNELS = (100, 10_000, 100_000)
CONNECTIONS = (100, 5_000)
CALLS = 2_000
ENCLAVE = """
from conclave.enclave import Enclave, rpc


class Echo(Enclave):
    @rpc
    def echo(self, data: bytes) -> bytes:
        return data
"""
CALL = encode_call("echo", [bytes(64)])


class Channels:
    """Clients that share one connection and one reply key, as a proxy in front of many would."""

    def __init__(self, instance: AttestationResult, sock: socket.socket) -> None:
        self._instance = instance
        self._sock = sock
        self._reply_key = DecryptionKey.generate().public
        self._sessions: list[tuple[ClientSession, int]] = []

    def grow(self, count: int) -> None:
        """Open channels until there are so many."""
        while len(self._sessions) < count:
            session = ClientSession(
                claims_digest=self._instance.claims_digest,
                encryption_key=self._instance.claims.encryption_key,
                identity=SigningKey(random_bytes(32)),
                reply_key=self._reply_key,
                topic="default",
            )
            self._sessions.append((session, 0))
            self._call(len(self._sessions) - 1)

    def call(self) -> float:
        """Seconds of one call on any of the channels, the client's cryptography left out."""
        return self._call(random.randrange(len(self._sessions)))

    def _call(self, number: int) -> float:
        session, sequence = self._sessions[number]
        request = post(
            "/mail",
            "application/vnd.conclave.mail",
            session.encrypt(Request(RequestKind.CALL, 0, sequence, sequence, CALL)),
        )
        began = perf_counter()
        body = _exchange(self._sock, request)
        seconds = perf_counter() - began
        (mail,) = split_mails(body)
        session.decrypt(mail)
        self._sessions[number] = (session, sequence + 1)
        return seconds


def _exchange(sock: socket.socket, request: bytes) -> bytes:
    sock.sendall(request)
    data = sock.recv(65536)
    while (body := response_body(data)) is None:
        more = sock.recv(65536)
        if not more:
            raise ConnectionError("the server closed the connection")
        data += more
    return body


def mail(place: Path) -> dict[str, dict[str, float]]:
    """Our side."""
    (place / "echo.py").write_text(ENCLAVE)
    bundle = build(place / "echo.py", place / "echo.enclave", mode="release")
    found: dict[str, dict[str, float]] = {}
    with (
        Server("-m", "conclave.cli", "serve", bundle.path, "--port", "0", "--platform", place / "machine") as server,
        Client(server.url, constraint=f"C:{bundle.code.hex()} SEC:INSECURE") as client,
        connect(server.port) as sock,
    ):
        channels = Channels(client.verify(), sock)
        channels.grow(10)
        assert server._process is not None
        host = server._process.pid
        (platform,) = children(host)

        def memory() -> tuple[float, float]:
            return sum(pss_mib(pid) for pid in descendants(platform)), pss_mib(host)

        first = memory()
        for count in CHANNELS:
            channels.grow(count)
            times = [channels.call() for _ in range(CALLS)]
            now = memory()
            found[str(count)] = {
                "enclave_mib": middle([now[0]]),
                "host_mib": middle([now[1]]),
                "enclave_kib_each": middle([(now[0] - first[0]) * 1024 / (count - 10)]),
                "host_kib_each": middle([(now[1] - first[1]) * 1024 / (count - 10)]),
                "p50_us": middle([median(times) * 1e6]),
                "p99_us": middle([sorted(times)[len(times) * 99 // 100] * 1e6]),
            }
    return found


def tls(place: Path) -> dict[str, dict[str, float]]:
    """Their side: connections that stay open."""
    cert, key = certificate(place)
    context = trust(cert)
    request = post("/", "application/octet-stream", bytes(64))
    found: dict[str, dict[str, float]] = {}
    with Server(HERE / "_servers.py", "echo", cert, key) as server:
        assert server._process is not None
        pid = server._process.pid
        socks = [connect(server.port, context) for _ in range(10)]
        first = pss_mib(pid)
        for count in CONNECTIONS:
            while len(socks) < count:
                socks.append(connect(server.port, context))
                _exchange(socks[-1], request)
            times = []
            for _ in range(CALLS):
                # The server closes what was idle for five seconds: use those that were opened last.
                began = perf_counter()
                _exchange(socks[-1], request)
                times.append(perf_counter() - began)
            now = pss_mib(pid)
            found[str(count)] = {
                "server_mib": middle([now]),
                "server_kib_each": middle([(now - first) * 1024 / (count - 10)]),
                "p50_us": middle([median(times) * 1e6]),
            }
        for sock in socks:
            sock.close()
    return found


def main() -> None:
    """Measure and report."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="bench-channels-") as place:
        ours, theirs = mail(Path(place)), tls(Path(place))
    last, their_last = ours[str(CHANNELS[-1])], theirs[str(CONNECTIONS[-1])]
    ratios = {
        "kib_each_over_tls_connection": middle(
            [(last["enclave_kib_each"] + last["host_kib_each"]) / their_last["server_kib_each"]]
        ),
        "p50_most_over_fewest": middle([last["p50_us"] / ours[str(CHANNELS[0])]["p50_us"]]),
    }
    emit("channels", ours=ours, theirs=theirs, ratios=ratios, rounds=1)


if __name__ == "__main__":
    main()
