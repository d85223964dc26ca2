"""Streams over a real host and a real enclave: what authors and clients may rely on."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from conclave._chunkheader import MAX_CHUNKS
from conclave.bundle import Bundle
from conclave.client import AsyncClient, Client
from conclave.enclave import Enclave, rpc
from conclave.errors import CallError, FormatError, OverloadedError, StreamError, TransportError
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = '''
import asyncio, hashlib, resource
from collections.abc import AsyncIterator, Iterator
from conclave.enclave import Enclave, RpcError, rpc


class Refused(RpcError):
    """Declared."""


class Pipe(Enclave):
    def on_start(self) -> None:
        self.ended = []
        self.taken = 0
        self.gate = asyncio.Event()

    @rpc
    async def digest(self, data: AsyncIterator[bytes], name: str = "sha256") -> bytes:
        digest = hashlib.new(name)
        async for part in data:
            digest.update(part)
        return digest.digest()

    @rpc
    async def zeros(self, size: int) -> AsyncIterator[bytes]:
        try:
            part = bytes(65536)
            while size > 0:
                yield part[:size]
                size -= len(part)
        finally:
            self.ended.append("zeros")

    @rpc
    async def echo(self, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in data:
            yield part

    @rpc
    def count(self, to: int) -> Iterator[int]:
        try:
            for n in range(to):
                yield n
        finally:
            self.ended.append("count")

    @rpc
    async def double(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for n in numbers:
            yield 2 * n

    @rpc
    async def breaks(self, after: int) -> AsyncIterator[int]:
        for n in range(after):
            yield n
        raise Refused("no more")

    @rpc
    async def forever(self) -> AsyncIterator[int]:
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            self.ended.append("forever")

    @rpc
    async def sink(self, data: AsyncIterator[bytes]) -> int:
        try:
            async for part in data:
                self.taken += len(part)
            return self.taken
        finally:
            self.ended.append("sink")

    @rpc
    async def kinds(self, data: AsyncIterator[int | str]) -> list[int | str]:
        return [item async for item in data]

    @rpc
    async def sizes(self, data: AsyncIterator[bytes]) -> list[int]:
        return [len(item) async for item in data]

    @rpc
    async def one(self, data: AsyncIterator[bytes]) -> bytes:
        async for item in data:
            return item
        return b""

    @rpc
    async def grudging(self, data: AsyncIterator[bytes]) -> int:
        await self.gate.wait()
        return sum([len(item) async for item in data])

    @rpc
    async def stuck(self) -> AsyncIterator[int]:
        try:
            await asyncio.Event().wait()
            yield 0
        except asyncio.CancelledError:
            self.ended.append("stuck")
            raise

    @rpc
    async def wrong(self) -> AsyncIterator[bytes]:
        yield "no bytes"

    @rpc
    async def exits(self) -> AsyncIterator[int]:
        yield 1
        raise SystemExit(3)

    @rpc
    async def plain(self, n: int) -> int:
        return n

    @rpc
    def open_gate(self) -> None:
        self.gate.set()

    @rpc
    def facts(self) -> tuple[int, list[str]]:
        return len(self._context.streams), self.ended

    @rpc
    def memory(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
'''


class Pipe(Enclave):
    """The same interface, on the client's side."""

    @rpc
    async def digest(self, data: AsyncIterator[bytes], name: str = "sha256") -> bytes: ...
    @rpc
    def zeros(self, size: int) -> AsyncIterator[bytes]: ...
    @rpc
    def echo(self, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]: ...
    @rpc
    def count(self, to: int) -> Iterator[int]: ...
    @rpc
    def double(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]: ...
    @rpc
    def breaks(self, after: int) -> AsyncIterator[int]: ...
    @rpc
    def forever(self) -> AsyncIterator[int]: ...
    @rpc
    async def sink(self, data: AsyncIterator[bytes]) -> int: ...
    @rpc
    async def kinds(self, data: AsyncIterator[int | str]) -> list[int | str]: ...
    @rpc
    async def sizes(self, data: AsyncIterator[bytes]) -> list[int]: ...
    @rpc
    async def one(self, data: AsyncIterator[bytes]) -> bytes: ...
    @rpc
    async def grudging(self, data: AsyncIterator[bytes]) -> int: ...
    @rpc
    def stuck(self) -> AsyncIterator[int]: ...
    @rpc
    def wrong(self) -> AsyncIterator[bytes]: ...
    @rpc
    def exits(self) -> AsyncIterator[int]: ...
    @rpc
    async def plain(self, n: int) -> int: ...
    @rpc
    def open_gate(self) -> None: ...
    @rpc
    def facts(self) -> tuple[int, list[str]]: ...
    @rpc
    def memory(self) -> int: ...


Only = Callable[[Bundle], str]


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("pipe", SOURCE, mode="debug")


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle) as running:
        yield running


@pytest.fixture
def client(server: HostServer, bundle: Bundle, only: Only) -> Iterator[Client]:
    with Client(server.url, constraint=only(bundle), timeout_seconds=10) as made:
        yield made


SIZES = (0, 1, 65535, 65536, 65537, 3 * 1024 * 1024 + 7)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_any_size_both_ways(client: Client, size: int) -> None:
    pipe = client.stub(Pipe)
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert pipe.digest(io.BytesIO(data)) == hashlib.sha256(data).digest()  # type: ignore[arg-type,comparison-overlap]
    assert b"".join(pipe.zeros(size)) == bytes(size)  # type: ignore[arg-type]
    assert b"".join(pipe.echo(data)) == data  # type: ignore[arg-type]


def test_asynchronous_client(server: HostServer, bundle: Bundle, only: Only) -> None:
    async def numbers() -> AsyncIterator[int]:
        for n in range(100):
            yield n

    async def work() -> None:
        async with AsyncClient(server.url, constraint=only(bundle), timeout_seconds=10) as client:
            pipe = await client.stub(Pipe)
            assert [n async for n in pipe.double(numbers())] == list(range(0, 200, 2))
            assert [n async for n in pipe.count(50)] == list(range(50))
            assert await pipe.digest([b"a", b"b"], name="sha1") == hashlib.sha1(b"ab").digest()
            parts = await asyncio.gather(*(_all(pipe.zeros(10**6)) for _ in range(8)))
            assert [len(p) for p in parts] == [10**6] * 8

    asyncio.run(work())


async def _all(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([part async for part in stream])


@pytest.mark.spec("RPC-10")
def test_an_error_in_the_middle(client: Client) -> None:
    stream = client.call_stream("breaks", 3, returns=int)
    assert [next(stream), next(stream), next(stream)] == [0, 1, 2]
    with pytest.raises(CallError, match="no more") as raised:
        next(stream)
    assert raised.value.type_name == "Refused"


def test_items_keep_their_types_and_boundaries(client: Client) -> None:
    pipe = client.stub(Pipe)
    mixed = [1, "two", 3]
    assert pipe.kinds(iter(mixed)) == mixed  # type: ignore[arg-type,comparison-overlap]
    parts = [b"", b"x", bytes(65536), bytes(65537), bytes(3_000_000), b"", b"end"]
    assert pipe.sizes(iter(parts)) == [len(p) for p in parts]  # type: ignore[arg-type,comparison-overlap]
    assert list(client.call_stream("echo", upload=iter(parts))) == parts
    # One item needs more chunks than the enclave sends at once.
    (whole,) = client.call_stream("echo", upload=[os.urandom(1) * 4_000_000])
    assert len(whole) == 4_000_000


@pytest.mark.spec("RPC-9")
def test_calls_of_the_wrong_kind(client: Client) -> None:
    for method, upload in (("plain", None), ("facts", None), ("zeros", [b"x"]), ("digest", None), ("none", None)):
        with pytest.raises(CallError) as refused:
            client.call_stream(method, *([1] if method in ("plain", "zeros") else []), upload=upload)
        assert refused.value.type_name == "InvalidCall"
    for method in ("digest", "zeros"):
        with pytest.raises(CallError, match="by a stream call"):
            client.call(method, *([1] if method == "zeros" else []))
    with pytest.raises(CallError, match="argument 'size' is not int"):
        client.call_stream("zeros", "many")
    with pytest.raises(CallError, match="takes 1 argument, got 0"):
        client.call_stream("zeros")


@pytest.mark.spec("RPC-9")
def test_items_of_the_wrong_type(client: Client) -> None:
    with pytest.raises(CallError, match="does not have the declared type"):
        client.call_stream("double", upload=["x"], items=str, returns=int).result()
    with pytest.raises(FormatError, match="declared type"):
        list(client.call_stream("count", 3, returns=str))
    with pytest.raises(CallError, match="the enclave's code failed"):
        list(client.call_stream("wrong"))
    with pytest.raises(TypeError, match="this stream is of bytes"):
        client.call_stream("digest", upload=[1]).result()
    with pytest.raises(FormatError, match="without a result"):
        client.call_stream("count", 0, returns=int).result()
    with pytest.raises(FormatError, match="iterate it"):
        client.call_stream("count", 5, returns=int).result()
    assert _streams(client) == 0


@pytest.mark.spec("RPC-10")
def test_an_upload_that_its_owner_gives_up(client: Client) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"some"
        raise ValueError("of the caller")

    before = client.call("facts")[1].count("sink")
    with pytest.raises(ValueError, match="of the caller"):
        client.call_stream("sink", upload=breaks(), returns=int).result()
    assert _ended(client, "sink", before + 1)


def test_an_exit_of_the_author_ends_one_stream(client: Client) -> None:
    stream = client.call_stream("exits", returns=int)
    assert next(stream) == 1
    with pytest.raises(CallError, match="the enclave's code failed"):
        next(stream)
    assert client.call("plain", 3) == 3


def _streams(client: Client) -> int:
    """How many streams the enclave has, once those that end have ended."""
    until = time.monotonic() + 20
    while (count := client.call("facts")[0]) and time.monotonic() < until:
        time.sleep(0.02)
    return int(count)


def _ended(client: Client, name: str, times: int) -> bool:
    until = time.monotonic() + 20
    while client.call("facts")[1].count(name) < times and time.monotonic() < until:
        time.sleep(0.02)
    return bool(client.call("facts")[1].count(name) == times) and _streams(client) == 0


@pytest.mark.spec("RPC-11", "HTTP-11")
@pytest.mark.parametrize("method", ["forever", "stuck", "zeros", "count"])
def test_a_caller_that_leaves_cancels_the_handler(client: Client, method: str) -> None:
    before = client.call("facts")[1].count(method)
    arguments = [2**40] if method in ("zeros", "count") else []
    with client.call_stream(method, *arguments, returns=bytes if method == "zeros" else int) as stream:
        if method != "stuck":
            next(stream)
    assert _ended(client, method, before + 1)


@pytest.mark.spec("RPC-11")
def test_a_caller_that_leaves_in_the_middle_of_its_upload(client: Client) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(65536)

    before = client.call("facts")[1].count("sink")
    stream = client.call_stream("sink", upload=endless(), returns=int)
    time.sleep(0.2)
    stream.close()
    assert _ended(client, "sink", before + 1)
    # So does one whose process is gone.
    with Client(client._addresses._bases[0], constraint=client._core.constraint) as other:
        other.call_stream("sink", upload=endless(), returns=int)
    assert _ended(client, "sink", before + 2)


def test_a_cancelled_task_cancels_the_handler(server: HostServer, bundle: Bundle, only: Only, client: Client) -> None:
    before = client.call("facts")[1].count("forever")

    async def work() -> None:
        async with AsyncClient(server.url, constraint=only(bundle), timeout_seconds=10) as other:

            async def read() -> None:
                async with other.call_stream("forever", returns=int) as stream:
                    async for _ in stream:
                        started.set()

            started = asyncio.Event()
            task = asyncio.create_task(read())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())
    assert _ended(client, "forever", before + 1)


def test_a_handler_that_takes_a_part_only(client: Client) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(65536)

    assert client.call_stream("one", upload=endless(), returns=bytes).result() == bytes(65536)
    assert _streams(client) == 0


@pytest.mark.spec("MAIL-25", "HTTP-12")
def test_a_slow_reader_slows_nobody_else_down(server: HostServer, client: Client) -> None:
    slow = [client.call_stream("zeros", 2**40) for _ in range(12)]
    try:
        for stream in slow:
            next(stream)
        # The host holds at most its window of each, and everything else runs.
        for _ in range(20):
            assert client.call("plain", 7) == 7
        assert len(b"".join(client.call_stream("zeros", 10**7))) == 10**7
        link = server.host._link
        assert link is not None
        asks = [ask for ask in link._asks.values() if ask.chunks]
        assert all(ask.chunks <= MAX_CHUNKS + 2 for ask in asks)
        assert client.call("memory") < 200 * 1024
    finally:
        for stream in slow:
            stream.close()
    assert _streams(client) == 0


@pytest.mark.spec("MAIL-25")
def test_a_slow_handler_holds_little_of_the_upload(client: Client) -> None:
    given = 0

    def endless() -> Iterator[bytes]:
        nonlocal given
        while given < 2**30:
            given += 65536
            yield bytes(65536)

    stream = client.call_stream("grudging", upload=endless(), returns=int)
    # The enclave says every second that it lives: the call is open for longer than that.
    time.sleep(2.5)
    held = given
    # A batch under way, the next one, and what the enclave holds.
    assert held <= 64 * 65536
    assert client.call("plain", 1) == 1
    stream.close()
    assert _streams(client) == 0


def test_the_enclave_lives_while_its_handler_is_silent(server: HostServer, bundle: Bundle, only: Only) -> None:
    with Client(server.url, constraint=only(bundle), timeout_seconds=2) as client:
        stream = client.call_stream("stuck", returns=int)
        failed: list[BaseException] = []
        from threading import Thread

        def read() -> None:
            try:
                next(stream)
            except BaseException as error:
                failed.append(error)

        thread = Thread(target=read, daemon=True)
        thread.start()
        thread.join(5)
        assert thread.is_alive()
        assert not failed
        stream.close()
        thread.join(10)
        assert _streams(client) == 0


@pytest.mark.spec("MAIL-26")
def test_streams_of_one_identity_are_bounded(server: HostServer, bundle: Bundle, only: Only, client: Client) -> None:
    open_streams = [client.call_stream("stuck", returns=int) for _ in range(32)]
    with pytest.raises(OverloadedError, match="as many streams"):
        client.call_stream("stuck", returns=int)
    # Another identity has its own, and a stream that ended makes room.
    with Client(server.url, constraint=only(bundle)) as other:
        assert list(other.call_stream("count", 2, returns=int)) == [0, 1]
    open_streams.pop().close()
    until = time.monotonic() + 20
    while client.call("facts")[0] > 31 and time.monotonic() < until:
        time.sleep(0.02)
    assert list(client.call_stream("count", 2, returns=int)) == [0, 1]
    for stream in open_streams:
        stream.close()
    assert _streams(client) == 0


def test_many_streams_and_calls_side_by_side(server: HostServer, bundle: Bundle, only: Only) -> None:
    async def work() -> None:
        async with AsyncClient(server.url, constraint=only(bundle), timeout_seconds=30) as client:
            data = os.urandom(700_000)

            async def echo() -> bool:
                return await _all(client.call_stream("echo", upload=io.BytesIO(data))) == data

            async def call(n: int) -> bool:
                return bool(await client.call("plain", n) == n)

            assert all(await asyncio.gather(*(echo() for _ in range(16)), *(call(n) for n in range(200))))

    asyncio.run(work())


SIZE = int(os.environ.get("CONCLAVE_STREAM_MIB", "256")) << 20


def test_more_than_the_enclave_has_memory(server: HostServer, bundle: Bundle, only: Only) -> None:
    """Up and down at once; CONCLAVE_STREAM_MIB=4096 for what the documentation says."""
    part = os.urandom(65536)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(SIZE // len(part)):
            yield part

    async def work() -> tuple[int, int]:
        async with AsyncClient(server.url, constraint=only(bundle), timeout_seconds=60) as client:
            size = 0
            async for piece in client.call_stream("echo", upload=source()):
                assert piece == part
                size += len(piece)
            return size, await client.call("memory", returns=int)

    gc.collect()
    size, peak_kib = asyncio.run(work())
    assert size == SIZE
    assert peak_kib < 200 * 1024, f"the enclave used {peak_kib} KiB"
    print(f"{size >> 20} MiB up and down: the enclave used at most {peak_kib >> 10} MiB")


def test_a_host_that_dies(serve: Callable[..., HostServer], bundle: Bundle, only: Only) -> None:
    with serve(bundle, restart=True) as server, Client(server.url, constraint=only(bundle), attempts=20) as client:
        stream = client.call_stream("forever", returns=int)
        next(stream)
        assert server.host._process is not None
        server.host._process.kill()
        with pytest.raises(StreamError):
            list(stream)
        # The next stream call is not retried; what follows it finds the new instance.
        until = time.monotonic() + 60
        while True:
            try:
                assert list(client.call_stream("count", 2, returns=int)) == [0, 1]
                break
            except TransportError:
                assert time.monotonic() < until
                time.sleep(0.2)


THREADS = """
import time
from collections.abc import Iterator
from conclave.enclave import Enclave, rpc


class Threads(Enclave):
    threads = 4
    stream_idle_seconds = 2.0

    def on_start(self) -> None:
        self.ended = []

    @rpc
    def total(self, data: Iterator[bytes]) -> int:
        try:
            return sum(map(len, data))
        finally:
            self.ended.append("total")

    @rpc
    def upper(self, words: Iterator[str], last: str = "end") -> Iterator[str]:
        try:
            for word in words:
                yield word.upper()
            yield last
        finally:
            self.ended.append("upper")

    @rpc
    def facts(self) -> tuple[int, list[str]]:
        return len(self._context.streams), self.ended
"""


@pytest.mark.spec("RPC-11", "MAIL-22")
def test_plain_methods_in_threads(serve: Callable[..., HostServer], author: Callable[..., Bundle], only: Only) -> None:
    bundle = author("threads", THREADS, mode="debug")

    def endless() -> Iterator[str]:
        while True:
            yield "x" * 1000

    with serve(bundle) as server, Client(server.url, constraint=only(bundle)) as client:
        assert client.call_stream("total", upload=bytes(10_000_000), returns=int).result() == 10_000_000
        words = client.call_stream("upper", "over", upload=["a", "b"], items=str, returns=str)
        assert list(words) == ["A", "B", "over"]
        with client.call_stream("upper", upload=endless(), items=str, returns=str) as stream:
            next(stream)
        assert _ended(client, "upper", 2)

        # Who is silent for too long has broken off.
        hold = io.BytesIO()
        hold.read = lambda size=-1: time.sleep(5) or b""  # type: ignore[method-assign,assignment]
        with pytest.raises(CallError, match="the enclave's code failed"):
            client.call_stream("total", upload=hold, returns=int).result()
        assert _ended(client, "total", 2)


@pytest.mark.spec("RPC-8")
@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("def f(self, data: Iterator[bytes]) -> None: ...", "threads = 2 or more"),
        ("async def f(self, data: Iterator[bytes]) -> None: ...", "as AsyncIterator"),
        ("async def f(self, a: AsyncIterator[int], b: AsyncIterator[int]) -> None: ...", "takes one stream"),
        ("async def f(self, a: AsyncIterator[int] = None) -> None: ...", "without a default"),
        ("async def f(self, a: list[AsyncIterator[int]]) -> None: ...", "cannot cross"),
        ("async def f(self, a: AsyncIterator[object]) -> None: ...", "cannot cross"),
        ("async def f(self, a: AsyncGenerator[int, None]) -> None: ...", "takes one stream"),
        ("def f(self) -> Generator[int, str, None]: ...", "only yields"),
    ],
)
def test_what_a_build_refuses(author: Callable[..., Bundle], method: str, message: str) -> None:
    from conclave.errors import BundleError

    source = (
        "from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator\n"
        f"from conclave.enclave import Enclave, rpc\n\n\nclass Refused(Enclave):\n    @rpc\n    {method}\n"
    )
    with pytest.raises(BundleError, match=message):
        author("refused", source)
