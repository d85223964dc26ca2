"""RPC by Mail, 1 and 64 KiB echoed, against what one would otherwise serve it with.

Ours: `conclave serve` (its own HTTP server on uvloop) and the sandboxed enclave
process behind it, under the simulated TEE. Theirs: one uvicorn worker with a bare
ASGI echo, plain and with TLS 1.3, and with a FastAPI JSON echo over TLS 1.3. The
same load generator drives all (`_common.py`); servers run in processes of their own.

Two figures of ours. `mail`: mails are sealed before and opened after the clock,
which measures the server. `mail_with_client`: the client's sealing and opening runs
inside the clock, in the load generator. The clients of TLS always encrypt inside it.

Measured: responses a second and the server's processor time a request, all its
processes included, with 64 and with 16 requests in flight; the median time of one
request alone. Rounds take all in turn; ratios are of one round, then the median.
"""

from __future__ import annotations

import json
import ssl
import tempfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

from _common import HERE, Server, Stream, certificate, connect, emit, in_flight, middle, one_by_one, post, trust
from _common import response_body as body_of

from conclave._crypto import DecryptionKey, SigningKey, random_bytes
from conclave.attestation import AttestationResult
from conclave.bundle import build
from conclave.client import Client
from conclave.client.core import split_mails
from conclave.mail import ClientSession, Conversation, Reply, ReplyKind, Request, RequestKind
from conclave.rpc.interface import decode_result, encode_call

ROUNDS = 5
# Requests of one round, all connections together; of 64 KiB an eighth of that.
TOTAL = {
    "mail": 15_360,
    "mail_with_client": 15_360,
    "uvicorn": 20_480,
    "uvicorn_tls": 20_480,
    "fastapi_json_tls": 5_120,
}
ALONE = 1000
WARM_UP = 512
SIZES = (1024, 65536)
IN_FLIGHT = (64, 16)
ENCLAVE = """
from conclave.enclave import Enclave, rpc


class Echo(Enclave):
    @rpc
    def echo(self, data: bytes) -> bytes:
        return data
"""


class Channel:
    """One client: an identity of its own, a session with the verified instance, and its mails."""

    def __init__(self, instance: AttestationResult, port: int, size: int) -> None:
        self._size = size
        self.session = ClientSession(
            claims_digest=instance.claims_digest,
            encryption_key=instance.claims.encryption_key,
            identity=SigningKey.generate(),
            reply_key=DecryptionKey.generate().public,
            topic="default",
            log_id=instance.claims.log_id,
        )
        self.conversation = Conversation()
        self.conversation.use(self.session, new_boot=False)
        self._replies: list[bytes] = []
        self._sent: list[bytes] = []
        # The first mail carries the opening; its reply makes the session an established one.
        with connect(port) as sock:
            for request in self._live(1):
                sock.sendall(request)
                data = sock.recv(65536)
                while (body := body_of(data)) is None:
                    data += sock.recv(65536)
                self._take(body)

    def sealed(self, count: int) -> Stream:
        """Mails that are sealed now, each acknowledging all replies it will have been sent after."""
        first = self.conversation.acknowledged
        requests = []
        for sequence in range(first, first + count):
            data = random_bytes(self._size)
            self._sent.append(data)
            request = Request(RequestKind.CALL, 0, sequence, sequence, encode_call("echo", [data]))
            requests.append(_post(self.session.encrypt(request)))
        return Stream(requests, self._replies.append)

    def check(self) -> None:
        """Open and check the replies to mails that were sealed before."""
        if len(self._replies) != len(self._sent):
            raise RuntimeError("replies are missing")
        for body, data in zip(self._replies, self._sent, strict=True):
            (mail,) = split_mails(body)
            _check(self.session.decrypt(mail), data)

    def live(self, count: int) -> Stream:
        """Mails that are sealed when they are due, by the client's own state machine."""
        return Stream(self._live(count), self._take)

    def _live(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            self._data = random_bytes(self._size)
            self._item = self.conversation.add(RequestKind.CALL, encode_call("echo", [self._data]))
            yield _post(self._item.encrypted)

    def _take(self, body: bytes) -> None:
        for mail in split_mails(body):
            self.conversation.receive(mail)
        if not self._item.done:
            raise RuntimeError("no last reply")
        _check(self._item.replies[-1], self._data)


def _post(mail: bytes) -> bytes:
    return post("/mail", "application/vnd.conclave.mail", mail)


def _check(reply: Reply, data: bytes) -> None:
    if reply.kind != ReplyKind.RESULT or decode_result(reply.body, bytes) != data:
        raise RuntimeError("another reply than the echo")


class Mail:
    """Our side."""

    def __init__(self, server: Server, instance: AttestationResult, size: int, *, live: bool) -> None:
        self.server = server
        self._instance = instance
        self._size = size
        self._live = live

    def throughput(self, each: int, connections: int) -> float:
        """Responses a second with all connections busy."""
        channels = [self._channel() for _ in range(connections)]
        seconds = in_flight(self.server.port, [self._stream(c, each) for c in channels])
        if not self._live:
            for channel in channels:
                channel.check()
        return each * connections / seconds

    def latency(self, count: int) -> float:
        """Median seconds of one request alone."""
        channel = self._channel()
        times = one_by_one(self.server.port, self._stream(channel, count))
        if not self._live:
            channel.check()
        return median(times)

    def _channel(self) -> Channel:
        return Channel(self._instance, self.server.port, self._size)

    def _stream(self, channel: Channel, count: int) -> Stream:
        return channel.live(count) if self._live else channel.sealed(count)


class Plain:
    """A server that gets one request over and over."""

    def __init__(self, server: Server, request: bytes, answer: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.server = server
        self._request = request
        self._answer = answer
        self._tls = tls

    def throughput(self, each: int, connections: int) -> float:
        """Responses a second with all connections busy."""
        bodies: list[bytes] = []
        streams = [Stream(repeat(self._request, each), bodies.append) for _ in range(connections)]
        seconds = in_flight(self.server.port, streams, self._tls)
        self._check(bodies, each * connections)
        return each * connections / seconds

    def latency(self, count: int) -> float:
        """Median seconds of one request alone."""
        bodies: list[bytes] = []
        times = one_by_one(self.server.port, Stream(repeat(self._request, count), bodies.append), self._tls)
        self._check(bodies, count)
        return median(times)

    def _check(self, bodies: list[bytes], count: int) -> None:
        if len(bodies) != count or set(bodies) != {self._answer}:
            raise RuntimeError("another answer than the echo")


Figures = dict[str, dict[str, list[float]]]


def busy(sides: dict[str, Mail | Plain], size: int, connections: int) -> Figures:
    """All sides in turn, round by round, with so many requests in flight."""
    found: Figures = {name: {"per_second": [], "server_cpu_us": []} for name in sides}
    for side in sides.values():
        side.throughput(WARM_UP // connections, connections)
    for _ in range(ROUNDS):
        for name, side in sides.items():
            each = TOTAL[name] // connections // (1 if size == SIZES[0] else 8)
            before = side.server.cpu_seconds()
            found[name]["per_second"].append(side.throughput(each, connections))
            used = side.server.cpu_seconds() - before
            found[name]["server_cpu_us"].append(used / (each * connections) * 1e6)
    return found


def alone(sides: dict[str, Mail | Plain]) -> Figures:
    """All sides in turn, one request at a time."""
    found: Figures = {name: {"p50_us": []} for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            found[name]["p50_us"].append(side.latency(ALONE) * 1e6)
    return found


def report(name: str, found: Figures) -> None:
    """Medians and ratios, as one line."""
    figures: dict[str, Any] = {n: {what: middle(v) for what, v in f.items()} for n, f in found.items()}
    ratios = {
        mine: {
            other: {
                what: middle(a / b for a, b in zip(found[mine][what], found[other][what], strict=True))
                for what in found[mine]
            }
            for other in found
            if not other.startswith("mail")
        }
        for mine in ("mail", "mail_with_client")
    }
    ours = {n: f for n, f in figures.items() if n.startswith("mail")}
    theirs = {n: f for n, f in figures.items() if not n.startswith("mail")}
    emit(name, ours=ours, theirs=theirs, ratios=ratios, rounds=ROUNDS)


def main() -> None:
    """Start everything, measure, report."""
    with tempfile.TemporaryDirectory(prefix="bench-rpc-") as place_name:
        place = Path(place_name)
        (place / "echo.py").write_text(ENCLAVE)
        bundle = build(place / "echo.py", place / "echo.enclave", mode="debug")
        cert, key = certificate(place)
        tls = trust(cert)
        servers = HERE / "_servers.py"
        with (
            Server("-m", "conclave.cli", "serve", bundle.path, "--port", "0", "--platform", place / "machine") as mail,
            Server(servers, "echo") as plain,
            Server(servers, "echo", cert, key) as echo_tls,
            Server(servers, "json", cert, key) as json_tls,
            Client(mail.url, constraint=f"C:{bundle.code.hex()} SEC:INSECURE") as client,
        ):
            instance = client.verify()
            for size in SIZES:
                text = "x" * size
                item = json.dumps({"data": text}, separators=(",", ":")).encode()
                request = post("/", "application/octet-stream", text.encode())
                sides: dict[str, Mail | Plain] = {
                    "mail": Mail(mail, instance, size, live=False),
                    "mail_with_client": Mail(mail, instance, size, live=True),
                    "uvicorn": Plain(plain, request, text.encode()),
                    "uvicorn_tls": Plain(echo_tls, request, text.encode(), tls),
                    "fastapi_json_tls": Plain(json_tls, post("/", "application/json", item), item, tls),
                }
                for connections in IN_FLIGHT:
                    report(f"rpc_{size // 1024}kib_{connections}", busy(sides, size, connections))
                report(f"rpc_{size // 1024}kib_alone", alone(sides))


if __name__ == "__main__":
    main()
