"""Streams over a real host and a real enclave: what authors and clients may rely on."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from conclave.bundle import Bundle
from conclave.client import AsyncClient, Client
from conclave.enclave import Enclave, rpc
from conclave.errors import CallError
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = '''
import asyncio, hashlib
from collections.abc import AsyncIterator, Iterator
from conclave.enclave import Enclave, RpcError, rpc


class Refused(RpcError):
    """Declared."""


class Pipe(Enclave):
    def on_start(self) -> None:
        self.ended = []
        self.taken = 0

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
    def facts(self) -> tuple[int, list[str]]:
        return len(self._context.streams), self.ended
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
    def facts(self) -> tuple[int, list[str]]: ...


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
