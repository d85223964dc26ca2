"""A hostile or broken enclave against its host: T-20. The host stays, and says what happened."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from conclave import _codec
from conclave._framing import HEADER, FrameReader, Kind, PlatformKind, pack
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.errors import Error, PlatformError, TransportError
from conclave.host import Host
from conclave.testing import HostServer

pytestmark = [pytest.mark.slow, pytest.mark.spec("T-20")]

SOURCE = """
import os, threading
from conclave.enclave import Enclave, rpc

class Hostile(Enclave):
    @rpc
    def ping(self) -> str:
        return "pong"

    @rpc(retry=False)
    def write_host(self, data: bytes) -> None:
        os.set_blocking(3, True)
        os.write(3, data)

    @rpc(retry=False)
    def write_platform(self, data: bytes) -> str:
        os.write(4, data)
        return "written"

    @rpc(retry=False)
    def ask_without_reading(self, frame: bytes) -> int:
        asked = 0
        try:
            while asked < 100_000:
                os.write(4, frame * 100)
                asked += 100
        except (BrokenPipeError, ConnectionResetError):
            pass
        return asked

    @rpc(retry=False)
    def leave(self) -> None:
        os._exit(7)

    @rpc
    def shout(self, mebibytes: int) -> None:
        for _ in range(mebibytes):
            os.write(1, b"x" * (1 << 20))
            os.write(2, bytes(range(256)) * 4096)
"""


@pytest.fixture(scope="module", params=["release", "debug"])
def bundle(author: Callable[..., Bundle], request: pytest.FixtureRequest) -> Bundle:
    return author("hostile", SOURCE, mode=request.param)


@pytest.mark.parametrize(
    "data",
    [
        os.urandom(64),
        HEADER.pack(2**32 - 1, 66, bytes(3), 1),
        pack(Kind.REPLY, 1, b"no mail") + os.urandom(64),
        pack(Kind.INSTANCE, 0, b"junk"),
        pack(Kind.INSTANCE, 0, _codec.encode({"claims": b"", "format": "x", "evidence": b"", "hints": b""})),
    ],
    ids=["random", "huge", "reply and junk", "junk instance", "unknown format"],
)
def test_author_code_that_writes_into_the_host_channel(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str], data: bytes
) -> None:
    with serve(bundle, restart=True) as server, Client(server.url, constraint=only(bundle)) as client:
        before = client.verify().claims.boot_nonce
        # Its own answer may still pass, if it came together with the junk.
        with contextlib.suppress(TransportError):
            client.call("write_host", data, retry=False)
        # Nobody else is the worse for it: a new boot, verified anew.
        assert client.call("ping", topic="other") == "pong"
        assert client.instance.claims.boot_nonce != before


def test_author_code_that_writes_into_the_platform_channel(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with serve(bundle) as server, Client(server.url, constraint=only(bundle)) as client:
        assert client.call("write_platform", os.urandom(1000), retry=False) == "written"
        assert client.call("ping") == "pong"
        # Its TEE gives it nothing any more, so renewal is refused, in a word and at once.
        before = server.host.info
        server.run(server.host._renew())
        assert server.host.info == before
        assert client.call("ping") == "pong"


def test_author_code_that_asks_its_platform_and_does_not_read(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with serve(bundle) as server, Client(server.url, constraint=only(bundle)) as client:
        # The platform neither waits for it nor keeps answers for it: it hangs up.
        asked = client.call("ask_without_reading", pack(PlatformKind.EVIDENCE, 1, bytes(64)), retry=False)
        assert 0 < asked < 100_000
        assert client.call("ping") == "pong"
        assert server.host._process is not None
        assert server.host._process.poll() is None


def test_an_exit_in_the_middle_of_a_call(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with serve(bundle) as server, Client(server.url, constraint=only(bundle), attempts=1) as client:
        with pytest.raises(TransportError, match="ended while it handled the mail"):
            client.call("leave", retry=False)
        assert httpx2.get(f"{server.url}/readyz").status_code == 503
        assert httpx2.get(f"{server.url}/instance").json()["error"] == "starting"


def test_output_without_end(serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]) -> None:
    printed: list[int] = []

    def listen(event: dict[str, object]) -> None:
        if event["event"] == "output":
            printed.append(len(str(event["text"])))

    with serve(bundle, on_event=listen) as server, Client(server.url, constraint=only(bundle)) as client:
        client.call("shout", 40)
        assert client.call("ping") == "pong"
    if bundle.manifest.mode == "release":
        assert printed == []
    else:
        assert 0 < sum(printed) <= 2 * 16 * 1024 * 1024


# An enclave played by the test: the other end of the host channel.


@dataclass
class Played:
    process: subprocess.Popen[bytes]
    channel: socket.socket


class Stage:
    """A host whose enclave is this object."""

    def __init__(self, **options: object) -> None:
        self.options = options
        self.enclave: socket.socket | None = None
        instance = {"claims": b"c", "format": "sgx", "evidence": b"e", "hints": b""}
        self.opening = pack(Kind.INSTANCE, 0, _codec.encode(instance))

    def launch(self) -> Played:
        ours, self.enclave = socket.socketpair()
        self.enclave.settimeout(60)
        event = json.dumps({"event": "launched", "endorsements": "00"})
        program = f"import sys; print({event!r}, flush=True); sys.stdin.read()"
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.enclave.sendall(self.opening)
        return Played(process, ours)

    def serve(self) -> HostServer:
        return HostServer(Host(self.launch, restart=False, **self.options))  # type: ignore[arg-type]

    def frame(self) -> tuple[int, int]:
        assert self.enclave is not None
        (frame,) = FrameReader(Kind).feed(self.enclave.recv(1 << 20))
        return frame.kind, frame.request


def mail() -> bytes:
    """Sixty-eight bytes of header and the smallest ciphertext: a mail to a host."""
    return b"CML1\1\0\0\0" + os.urandom(16) + bytes(8 + 32) + (56).to_bytes(4, "big") + bytes(56)


@pytest.mark.parametrize(
    "opening",
    [b"", b"\0" * 100, os.urandom(100), pack(Kind.INSTANCE, 0, b"junk"), pack(Kind.FAILED, 0, b"\xff\xfe no")],
    ids=["silence", "zeros", "random", "junk instance", "failed"],
)
def test_a_start_that_goes_wrong_is_told(opening: bytes) -> None:
    stage = Stage()
    stage.opening = opening
    if not opening:
        launch = stage.launch

        def ends() -> Played:
            played = launch()
            assert stage.enclave is not None
            stage.enclave.close()
            return played

        stage.launch = ends  # type: ignore[method-assign]
    with pytest.raises(PlatformError), stage.serve():
        pass


def test_answers_to_nobody_are_dropped() -> None:
    stage = Stage()
    with stage.serve() as server, httpx2.Client(base_url=server.url, timeout=20) as http:
        assert stage.enclave is not None
        # One that commits what it never loaded keeps to no protocol, and is ended: see test_state_host.
        for kind in set(Kind) - {Kind.LOAD, Kind.COMMIT, Kind.SNAPSHOT}:
            stage.enclave.sendall(pack(kind, 10**6, b"nobody asked"))
        stage.enclave.sendall(pack(Kind.REPLY, 0, b"no mail at all") * 1000)
        assert http.get("/instance").status_code == 200


@pytest.mark.spec("CHAN-10")
def test_fetches_from_where_the_operator_does_not_let_it() -> None:
    """It asks its host, which stands in the operator's network, for what only that network reaches."""
    came: list[str] = []

    def internal() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    came.append(connection.recv(100).split(b" HTTP")[0].decode())
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=internal, daemon=True).start()
        stage = Stage(peers=[url])
        with stage.serve():
            assert stage.enclave is not None

            def fetched(url: str, path: str = "/instance") -> bytes:
                asked = {"url": url, "method": "GET", "path": path, "body": b""}
                stage.enclave.sendall(pack(Kind.FETCH, 1, _codec.encode(asked)))
                (frame,) = FrameReader(Kind).feed(stage.enclave.recv(1 << 20))
                assert frame.kind == Kind.FETCHED
                return frame.payload

            for other in (f"{url}/admin", f"{url}/", url.replace("127.0.0.1", "localhost"), "http://169.254.169.254"):
                assert fetched(other) == b"\0\0refused"
            assert fetched(url, "/admin") == b"\0\0refused"
            assert came == []
            assert fetched(url) == b"\0\xc8secret"
            assert came == ["GET /instance"]
            stage.enclave.close()


def test_evidence_that_nobody_asked_for_ends_the_boot() -> None:
    """With each the host would ask the vendor again: an enclave could have it shut out there."""
    stage = Stage()
    with stage.serve() as server:
        assert stage.enclave is not None
        before = server.host.info
        stage.enclave.settimeout(5)
        stage.enclave.sendall(stage.opening.replace(b"evidence\xc4\x01e", b"evidence\xc4\x01f"))
        assert stage.enclave.recv(1) == b""
        assert server.host.info in (before, None)


def test_replies_without_end_wait_for_the_client() -> None:
    """The client does not read: the host holds a bounded part, the enclave has to wait."""
    stage = Stage()
    with stage.serve() as server:
        assert stage.enclave is not None
        address = server.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as raw:
            body = mail()
            raw.sendall(b"POST /mail HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            _, request = stage.frame()
            sent = 0
            stage.enclave.settimeout(2)
            reply = pack(Kind.REPLY, request, bytes(1 << 20))
            try:
                while sent < 1 << 30:
                    stage.enclave.sendall(reply)
                    sent += len(reply)
            except TimeoutError:
                pass
            assert 0 < sent < 200 << 20


def test_silence_costs_one_waiting_request_only() -> None:
    stage = Stage()
    with stage.serve() as server, httpx2.Client(base_url=server.url, timeout=1) as http:
        with pytest.raises(httpx2.TimeoutException):
            http.post("/mail", content=mail())
        assert http.get("/readyz").status_code == 200
        assert stage.enclave is not None
        # The client has gone: its place among those who wait is free again.
        link = server.host._link
        assert link is not None
        until = time.monotonic() + 20
        while link._asks:
            assert time.monotonic() < until
            time.sleep(0.05)
        answered: list[int] = []
        waiting = threading.Thread(
            target=lambda: answered.append(httpx2.post(f"{server.url}/mail", content=mail(), timeout=20).status_code)
        )
        stage.enclave.recv(1 << 20)
        waiting.start()
        kind, request = stage.frame()
        assert kind == Kind.MAIL
        stage.enclave.sendall(pack(Kind.ERROR, request, b"a word the host does not know"))
        waiting.join()
        assert answered == [502]


@pytest.mark.parametrize("mode", ["auto", "landlock"])
def test_a_host_that_is_stopped_stops_everything(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str], machine: Path, mode: str
) -> None:
    (machine / "enclave-left").mkdir()
    with serve(bundle, sandbox="landlock"):
        # What a platform that was killed left behind is removed by the next one.
        assert not (machine / "enclave-left").exists()
    before = set(machine.glob("enclave-*"))
    with serve(bundle, sandbox=mode) as server, Client(server.url, constraint=only(bundle)) as client:
        client.call("ping")
        process = server.host._process
        assert process is not None
    assert process.poll() is not None
    with Client(server.url, constraint=only(bundle), attempts=1) as client, pytest.raises(Error):
        client.call("ping")
    assert set(machine.glob("enclave-*")) <= before
