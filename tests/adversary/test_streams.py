"""An operator, and clients, against streams: T-34 and T-35."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest

from conclave._chunkheader import CHUNK_MAGIC, MAX_CHUNK, MAX_CHUNKS, MAX_UPLOAD, split_chunks
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.errors import CallError, Error, OverloadedError, StreamError
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
import asyncio, resource
from collections.abc import AsyncIterator
from conclave.enclave import Enclave, rpc


class Victim(Enclave):
    def on_start(self) -> None:
        self.started = []
        self.seen = b""
        self.failed = []

    @rpc
    async def down(self, size: int) -> AsyncIterator[bytes]:
        self.started.append("down")
        for at in range(0, size, 1000):
            yield b"%07d" % at + bytes(993)

    @rpc
    async def up(self, data: AsyncIterator[bytes]) -> int:
        self.started.append("up")
        self.seen = b""
        try:
            async for item in data:
                self.seen += item
        except BaseException as error:
            self.failed.append(type(error).__name__)
            raise
        return len(self.seen)

    @rpc
    async def echo(self, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for item in data:
            yield item

    @rpc
    async def waits(self) -> AsyncIterator[bytes]:
        self.started.append("waits")
        await asyncio.Event().wait()
        yield b""

    @rpc
    async def flood(self) -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    @rpc
    def facts(self) -> tuple[int, list[str], bytes, list[str]]:
        return len(self._context.streams), self.started, self.seen, self.failed

    @rpc
    def memory(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""

Only = Callable[[Bundle], str]
DATA = b"".join(b"%07d" % at + bytes(9993) for at in range(0, 900_000, 10_000))


def join(chunks: list[bytes]) -> bytes:
    return b"".join(len(c).to_bytes(4, "big") + c for c in chunks)


def split(body: bytes) -> list[bytes]:
    return [bytes(c) for c in split_chunks(memoryview(body))]


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("victim", SOURCE, mode="debug")


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle, hostile=True) as running:
        running.operator.streaming = True
        yield running


@pytest.fixture
def client(server: HostServer, bundle: Bundle, only: Only) -> Iterator[Client]:
    with Client(server.url, constraint=only(bundle), timeout_seconds=4) as made:
        made.call("facts")
        yield made
        server.operator.behave()
        assert no_streams(made)


def no_streams(client: Client) -> bool:
    until = time.monotonic() + 20
    while client.call("facts")[0] and time.monotonic() < until:
        time.sleep(0.02)
    return client.call("facts")[0] == 0


class Operator:
    """Attacks on the chunks of a download: what each of them becomes, by its place."""

    def __init__(self, attack: Callable[[list[bytes]], list[bytes]]) -> None:
        self.kept: list[bytes] = []
        self.attack = attack
        self.done = False

    def __call__(self, part: bytes) -> list[bytes]:
        if not part.startswith(CHUNK_MAGIC) or self.done:
            return [part]
        self.kept.append(part)
        if len(self.kept) < 4:
            return []
        self.done = True
        return self.attack(self.kept)


def flip(chunk: bytes, at: int) -> bytes:
    return chunk[:at] + bytes((chunk[at] ^ 1,)) + chunk[at + 1 :]


DOWN = {
    "reordered": lambda c: [c[0], c[2], c[1], c[3]],
    "duplicated": lambda c: [c[0], c[0], *c[1:]],
    "dropped": lambda c: [c[0], *c[2:]],
    "altered": lambda c: [c[0], flip(c[1], 60), *c[2:]],
    "renumbered": lambda c: [c[0], c[2][:32] + c[1][32:36] + c[2][36:], *c[2:]],
    "cut": lambda c: [c[0], c[1][:-1], *c[2:]],
    "extended": lambda c: [c[0], c[1] + b"\0", *c[2:]],
    "foreign": lambda c: [c[0], b"CMS1" + bytes(400), *c[2:]],
    "huge": lambda c: [c[0], bytes(MAX_CHUNK + 1), *c[2:]],
}


@pytest.mark.spec("T-34", "MAIL-21")
@pytest.mark.parametrize("name", DOWN)
def test_a_download_is_changed_on_its_way(client: Client, server: HostServer, name: str) -> None:
    server.operator.on_part = Operator(DOWN[name])
    got = []
    with pytest.raises(StreamError):
        got += list(client.call_stream("down", 400_000))
    # What came before was right, or nothing did.
    assert [item[:7] for item in got] == [b"%07d" % at for at in range(0, len(got) * 1000, 1000)]


@pytest.mark.spec("T-34", "MAIL-22")
def test_a_download_without_its_end(client: Client, server: HostServer) -> None:
    # Each chunk is kept back until the next has come: the last, which says that it is all, never leaves.
    kept: list[bytes] = []

    def all_but_the_last(part: bytes) -> list[bytes]:
        if not part.startswith(CHUNK_MAGIC):
            return [part]
        kept.append(part)
        return kept[-2:-1]

    assert len(list(client.call_stream("down", 400_000))) == 400
    server.operator.on_part = all_but_the_last
    got = []
    with pytest.raises(StreamError, match="before the enclave ended it"):  # noqa: PT012
        for item in client.call_stream("down", 400_000):
            got.append(item)
    assert 0 < len(got) < 400
    assert [item[:7] for item in got] == [b"%07d" % at for at in range(0, len(got) * 1000, 1000)]


@pytest.mark.spec("T-34", "MAIL-21")
def test_chunks_and_heads_of_another_stream(client: Client, server: HostServer) -> None:
    first = len(server.operator.parts)
    assert len(list(client.call_stream("down", 5000))) == 5
    old = server.operator.parts[first:]
    # Replayed: the head of the stream before, or its chunks behind the new head.
    server.operator.on_part = lambda part: old if not part.startswith(CHUNK_MAGIC) else []
    with pytest.raises(StreamError):
        client.call_stream("down", 5000)
    server.operator.on_part = lambda part: [part, *old[1:]] if not part.startswith(CHUNK_MAGIC) else []
    with pytest.raises(StreamError):
        list(client.call_stream("down", 5000))
    server.operator.behave()
    # The answer of an ordinary call is no head, and the head of a stream is no answer.
    first = len(server.operator.parts)
    assert client.call("memory") > 0
    ordinary = server.operator.parts[first]
    server.operator.on_part = lambda part: [ordinary]
    with pytest.raises(StreamError):
        client.call_stream("down", 5000)


UP = {
    "reordered": lambda c: [c[1], c[0], *c[2:]],
    "duplicated": lambda c: [c[0], c[0], *c[1:-1]],
    "dropped": lambda c: c[1:],
    "altered": lambda c: [c[0], flip(c[1], 200), *c[2:]],
    "cut": lambda c: [c[0], c[1][:-1], *c[2:]],
    "emptied": lambda c: [],
}


@pytest.mark.spec("T-34", "MAIL-21", "MAIL-22")
@pytest.mark.parametrize("name", UP)
def test_an_upload_is_changed_on_its_way(client: Client, server: HostServer, name: str) -> None:
    failed = len(client.call("facts")[3])
    attacked: list[bytes] = []

    def attack(body: bytes) -> bytes:
        chunks = split(body)
        if attacked or len(chunks) < 4:
            return body
        attacked.append(body)
        return join(UP[name](chunks))

    server.operator.on_upload = attack
    stream = client.call_stream("up", upload=io.BytesIO(DATA), returns=int)
    with pytest.raises((StreamError, CallError)):
        stream.result()
    server.operator.behave()
    assert attacked
    assert no_streams(client)
    # The author saw the beginning of what was sent, and then that it broke off.
    _, _, seen, failures = client.call("facts")
    assert DATA.startswith(seen)
    assert len(failures) == failed + 1


@pytest.mark.spec("T-34", "MAIL-22")
def test_an_upload_is_refused_while_its_source_waits_for_the_reply(client: Client, server: HostServer) -> None:
    answered = threading.Event()
    waited: list[bool] = []
    uploads = 0

    def attack(body: bytes) -> bytes:
        nonlocal uploads
        uploads += 1
        return b"" if uploads == 2 else body

    def turns() -> Iterator[bytes]:
        yield b"one"
        assert answered.wait(10)
        yield b"two"
        # Nobody answers that, so nothing more is said.
        answered.clear()
        waited.append(answered.wait(20))

    server.operator.on_upload = attack
    stream = client.call_stream("echo", upload=turns())
    assert next(stream) == b"one"
    answered.set()
    with pytest.raises(StreamError):
        next(stream)
    assert not waited, "the refusal was noticed only when the source went on"
    answered.set()
    server.operator.behave()
    assert no_streams(client)


@pytest.mark.spec("T-34", "MAIL-20")
def test_a_replayed_stream_call_runs_nothing(client: Client, server: HostServer) -> None:
    assert client.call_stream("up", upload=io.BytesIO(DATA), returns=int).result() == len(DATA)
    call = next(r for r in reversed(server.operator.requests) if r[24:32] == server.operator.uploads[-1][28:36])
    uploads = server.operator.uploads[-3:]
    started = client.call("facts")[1]
    with httpx2.Client(base_url=server.url, timeout=20) as http:
        for _ in range(3):
            assert http.post("/mail", content=call).status_code == 422
        for upload in uploads:
            assert http.post("/stream", content=upload).status_code == 409
    assert client.call("facts")[1] == started


@pytest.mark.spec("T-34")
def test_a_replayed_upload_is_refused_while_the_stream_runs(client: Client, server: HostServer) -> None:
    going = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield b"first"
        going.wait(20)
        yield b"second"

    before = len(server.operator.uploads)
    stream = client.call_stream("up", upload=slowly(), returns=int)
    while len(server.operator.uploads) == before:
        time.sleep(0.01)
    with httpx2.Client(base_url=server.url, timeout=20) as http:
        until = time.monotonic() + 10
        while client.call("facts")[2] != b"first" and time.monotonic() < until:
            time.sleep(0.01)
        assert http.post("/stream", content=server.operator.uploads[before]).status_code == 422
    going.set()
    assert stream.result() == len(b"firstsecond")
    assert client.call("facts")[2] == b"firstsecond"


@pytest.mark.spec("T-34")
def test_a_host_that_withholds(client: Client, server: HostServer) -> None:
    server.operator.on_request = lambda body: None
    with pytest.raises(StreamError, match="within 4 seconds"):
        client.call_stream("down", 1000)
    server.operator.behave()
    # Mails count in their session: the one that was swallowed was a stream call, and nothing waits for it.
    assert client.call("memory") > 0
    server.operator.on_part = lambda part: [] if part.startswith(CHUNK_MAGIC) else [part]
    stream = client.call_stream("waits")
    with pytest.raises(StreamError, match="within 4 seconds"):
        next(stream)


@pytest.mark.spec("T-34")
def test_a_host_that_takes_no_upload(client: Client, server: HostServer) -> None:
    server.operator.on_upload = lambda body: b"something else"
    stream = client.call_stream("up", upload=io.BytesIO(DATA), returns=int)
    with pytest.raises(StreamError, match=r"was not taken.*is the host still running and reachable\?"):
        stream.result()


@pytest.mark.spec("T-34")
def test_a_host_that_drips(client: Client, server: HostServer) -> None:
    part = bytes(MAX_CHUNK)

    def drip(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"4\r\n" + b"\0\0\1\0" + b"\r\n")
        try:
            for at in range(600):
                sock.sendall(b"1\r\n" + part[at : at + 1] + b"\r\n")
                time.sleep(0.1)
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        client._addresses._mail[0] = httpx2.URL(f"http://127.0.0.1:{listener.getsockname()[1]}/mail")
        try:
            with pytest.raises(StreamError, match="nothing authentic"):
                client.call_stream("down", 1000)
        finally:
            client._addresses._mail[0] = httpx2.URL(server.url + "/mail")


@pytest.mark.spec("HTTP-10")
def test_malformed_uploads_do_not_reach_the_enclave(client: Client, server: HostServer) -> None:
    assert client.call_stream("up", upload=io.BytesIO(DATA), returns=int).result() == len(DATA)
    good = next(u for u in reversed(server.operator.uploads) if len(split(u)) >= 4)
    chunks = split(good)
    back = next(p for p in reversed(server.operator.parts) if p.startswith(CHUNK_MAGIC))
    link = server.host._link
    assert link is not None
    asked = link.next_request
    with httpx2.Client(base_url=server.url, timeout=20) as http:
        for wrong in (
            b"",
            good[:-1],
            good + b"\0",
            b"\0\0\0\0",
            join([split(server.operator.uploads[-1])[-1]] * (MAX_CHUNKS + 1)),
            join([chunks[0], flip(chunks[1], 10)]),
            join([back]),
            join([flip(chunks[0], 0)]),
        ):
            answer = http.post("/stream", content=wrong)
            assert answer.status_code == 400
            assert answer.json()["error"] == "format"
        assert link.next_request == asked
        assert http.post("/stream", content=bytes(MAX_UPLOAD + 1)).status_code == 413
        assert http.get("/stream").status_code == 405
        # Well formed, and of no stream that there is.
        assert http.post("/stream", content=good).status_code == 409


@pytest.mark.spec("T-35", "MAIL-26", "HTTP-12")
def test_clients_that_open_streams_and_read_none(
    server: HostServer, serve: Callable[..., HostServer], bundle: Bundle, only: Only
) -> None:
    with serve(bundle) as other, Client(other.url, constraint=only(bundle)) as honest:
        honest.call("facts")
        streams = []
        hostile = [Client(other.url, constraint=only(bundle)) for _ in range(3)]
        try:
            for client in hostile:
                streams += [client.call_stream("flood") for _ in range(32)]
                with pytest.raises(OverloadedError):
                    client.call_stream("flood")
            assert honest.call("facts")[0] == 96
            assert len(list(honest.call_stream("down", 100_000))) == 100
            assert honest.call("memory") < 200 * 1024
            link = other.host._link
            assert link is not None
            assert max(ask.chunks for ask in link._asks.values()) <= MAX_CHUNKS + 2
        finally:
            for client in hostile:
                client.close()
        assert no_streams(honest)


@pytest.mark.spec("T-35", "MAIL-26")
def test_clients_that_open_streams_and_fall_silent(
    author: Callable[..., Bundle], serve: Callable[..., HostServer], only: Only
) -> None:
    """One waits for chunks that never come, the other for somebody to take its own: both are given up."""
    impatient = SOURCE.replace("(Enclave):", "(Enclave):\n    stream_idle_seconds = 0.9\n")
    bundle, silence = author("impatient", impatient, mode="debug"), threading.Event()

    def nothing() -> Iterator[bytes]:
        silence.wait(20)
        yield b""

    with serve(bundle) as server, Client(server.url, constraint=only(bundle)) as honest:
        with Client(server.url, constraint=only(bundle)) as hostile:
            streams = [hostile.call_stream("up", upload=nothing()), hostile.call_stream("flood")]
            assert honest.call("facts")[0] == 2
            until = time.monotonic() + 8
            while honest.call("facts")[0] and time.monotonic() < until:
                time.sleep(0.02)
            left, _, _, failed = honest.call("facts")
            silence.set()
            del streams
        assert (left, failed) == (0, ["StreamError"])


def test_every_error_is_ours(client: Client, server: HostServer) -> None:
    """Random changes of what the host passes on: an error of the library, or the right items."""
    import random

    chance = random.Random(5)

    def change(part: bytes) -> list[bytes]:
        if chance.random() < 0.9:
            return [part]
        data = bytearray(part)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return [bytes(data)]

    server.operator.on_part = change
    for _ in range(40):
        got: list[bytes] = []
        try:
            for item in client.call_stream("down", 6000):
                got.append(item)
            assert len(got) == 6
        except Error:
            pass
        assert [item[:7] for item in got] == [b"%07d" % at for at in range(0, len(got) * 1000, 1000)]
