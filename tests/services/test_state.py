"""An enclave whose state persists, as a real one under a real host, over real disks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from conclave.bundle import Bundle, build
from conclave.client import Client, Identity
from conclave.errors import CallError, PlatformError
from conclave.host import Host
from conclave.host.states.opening import open_state
from conclave.host.stores import open_store
from conclave.platform import start_platform
from conclave.testing import HostServer

LEDGER = '''
import asyncio
import time
from collections.abc import AsyncIterator

from conclave.enclave import Enclave, RpcError, rpc


class No(RpcError):
    """Refused on purpose."""


class Ledger(Enclave):
    persistence = "code"

    def on_start(self):
        self.runs = 0
        starts = self.map.of(int)
        starts["starts"] = starts.get("starts", 0) + 1

    async def on_stop(self):
        stops = self.map.of(int)
        stops["stops"] = stops.get("stops", 0) + 1

    @rpc
    def add(self, name: str, amount: int) -> int:
        counts = self.map.of(int)
        counts[name] = counts.get(name, 0) + amount
        return counts[name]

    @rpc
    def get(self, name: str) -> int:
        return self.map.of(int).get(name, 0)

    @rpc
    def names(self, prefix: str) -> list[str]:
        return [name for name, _ in self.map.scan(prefix)]

    @rpc
    def fail(self, name: str) -> None:
        self.map.of(int)[name] = 99
        self.post(self.sender, b"never")
        raise No("on purpose")

    @rpc
    def tell(self, text: str) -> int:
        self.post(self.sender, text.encode())
        counts = self.map.of(int)
        counts["told"] = counts.get("told", 0) + 1
        return counts["told"]

    @rpc
    async def slowly(self, name: str) -> int:
        self.runs += 1
        counts = self.map.of(int)
        before = counts.get(name, 0)
        await asyncio.sleep(0.05)
        counts[name] = before + 1
        return self.runs

    @rpc
    def in_thread(self, name: str) -> int:
        counts = self.map.of(int)
        before = counts.get(name, 0)
        time.sleep(0.05)
        counts[name] = before + 1
        return before

    @rpc
    async def twice(self, name: str) -> tuple[int, int]:
        counts = self.map.of(int)
        first = counts.get(name, 0)
        await asyncio.sleep(0.3)
        return first, counts.get(name, 0)

    @rpc
    async def total(self, numbers: AsyncIterator[int]) -> int:
        counts = self.map.of(int)
        async for number in numbers:
            counts["total"] = counts.get("total", 0) + number
        return counts["total"]

    @rpc
    async def listed(self, write: bool) -> AsyncIterator[str]:
        for name, _ in self.map.scan():
            yield name
        if write:
            self.map.of(int)["listed"] = 1

    @rpc
    async def beside(self, name: str) -> None:
        def work() -> None:
            counts = self.map.of(int)
            counts[name] = counts.get(name, 0) + 1

        asyncio.get_running_loop().call_later(0.05, self.atomically, work)

    @rpc
    async def outside(self) -> str:
        found = asyncio.get_running_loop().create_future()

        def look() -> None:
            try:
                self.map.get("x")
            except RuntimeError as error:
                found.set_result(str(error))

        import contextvars

        asyncio.get_running_loop().call_later(0.01, look, context=contextvars.Context())
        return await found

    def on_mail(self, mail):
        mail.reply(b"one")
        if mail.body == b"raise":
            raise No("on purpose")
        return b"two"
'''
Start = Callable[[], AbstractContextManager[HostServer]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("ledger"), LEDGER)


def make(place: Path, source: str, name: str = "ledger") -> Bundle:
    (place / f"{name}.py").write_text(source)
    return build(place / f"{name}.py", place / f"{name}.enclave", mode="debug")


@contextmanager
def serving(bundle: Bundle, place: Path) -> Iterator[HostServer]:
    """A host of this bundle over the disk and the machine in a folder."""
    (place / "disk").mkdir(exist_ok=True)
    blobs = open_store(f"file:{place / 'disk'}", alone=True)
    host = Host(
        lambda: start_platform(place / "machine", bundle.path),
        store=blobs,
        state=open_state(f"file:{place / 'disk'}", blobs),
        restart=False,
    )
    with HostServer(host) as server:
        yield server


@pytest.fixture
def start(bundle: Bundle, tmp_path: Path) -> Start:
    return lambda: serving(bundle, tmp_path)


def client(server: HostServer, bundle: Bundle, identity: Identity | None = None) -> Client:
    return Client(server.url, constraint=f"C:{bundle.code.hex()} SEC:INSECURE", identity=identity)


def test_what_handlers_changed_outlives_the_enclave(bundle: Bundle, start: Start) -> None:
    ada = Identity.generate()
    logs = set()
    for turn in range(1, 4):
        with start() as server, client(server, bundle, ada) as c:
            assert c.call("add", "a", turn) == sum(range(turn + 1))
            assert (c.call("get", "starts"), c.call("get", "stops")) == (turn, turn - 1)
            logs.add(c.verify().claims.log_id)
    assert len(logs) == 1


def test_a_handler_that_raises_leaves_no_trace(bundle: Bundle, start: Start) -> None:
    with start() as server, client(server, bundle) as c:
        c.call("add", "a", 1)
        with pytest.raises(CallError, match="on purpose"):
            c.call("fail", "a")
        assert c.call("get", "a") == 1
        with pytest.raises(CallError, match="on purpose"):
            c.mail(b"raise")
        assert [mail.body for mail in c.mail(b"go on")] == [b"one", b"two"]
        assert c.call("tell", "hello") == 1
        assert [mail.body for mail in c.poll(wait_seconds=5)] == [b"hello"]
        assert c.poll() == []


def test_posted_mail_goes_on_from_boot_to_boot(bundle: Bundle, start: Start) -> None:
    ada = Identity.generate()
    for turn in range(3):
        with start() as server, client(server, bundle, ada) as c:
            assert c.call("tell", f"turn {turn}") == turn + 1
            assert [mail.body for mail in c.poll(wait_seconds=5)] == [f"turn {turn}".encode()]


def test_handlers_beside_each_other_lose_nothing(bundle: Bundle, start: Start) -> None:
    with start() as server:
        clients = [client(server, bundle) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            runs = list(pool.map(lambda c: c.call("slowly", "n"), clients))
        assert clients[0].call("get", "n") == 8
        # Somebody had to run again.
        assert max(runs) > 8
        for c in clients:
            c.close()


def test_threads_lose_nothing(tmp_path: Path) -> None:
    threaded = make(tmp_path, LEDGER.replace('persistence = "code"', 'persistence = "code"\n    threads = 4'))
    with serving(threaded, tmp_path) as server:
        clients = [client(server, threaded) for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            before = sorted(pool.map(lambda c: c.call("in_thread", "n"), clients))
        assert before == list(range(6))
        assert clients[0].call("get", "n") == 6
        for c in clients:
            c.close()


def test_a_handler_reads_one_version(bundle: Bundle, start: Start) -> None:
    with start() as server, client(server, bundle) as one, client(server, bundle) as other:
        other.call("add", "a", 1)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(one.call, "twice", "a")
            threading.Event().wait(0.1)
            other.call("add", "a", 1)
            assert len(set(reading.result())) == 1


def test_streams_and_the_map(bundle: Bundle, start: Start) -> None:
    with start() as server, client(server, bundle) as c:
        with c.call_stream("total", upload=[1, 2, 3], items=int, returns=int) as stream:
            before = c._core.log.contexts.version
            assert stream.result() == 6
            # Whoever was told of it knows the state that has it.
            assert c._core.log.contexts.version > before
        assert c.call("get", "total") == 6
        with c.call_stream("listed", False, returns=str) as stream:
            assert list(stream) == ["starts", "total"]
        # What was told left before anything of it could be kept.
        with c.call_stream("listed", True, returns=str) as stream, pytest.raises(CallError):
            list(stream)
        assert c.call("get", "listed") == 0


def test_tasks_beside_handlers(bundle: Bundle, start: Start) -> None:
    with start() as server, client(server, bundle) as c:
        c.call("beside", "x")
        for _ in range(100):
            if c.call("get", "x"):
                break
            threading.Event().wait(0.02)
        assert c.call("get", "x") == 1
        assert "self.atomically" in c.call("outside")


def test_a_program_of_another_code_does_not_get_it(bundle: Bundle, start: Start, tmp_path: Path) -> None:
    with start() as server, client(server, bundle) as c:
        c.call("add", "a", 1)
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "disk").rglob("*") if p.is_file())
    other = make(tmp_path, LEDGER + "\n# another program\n")
    with pytest.raises(PlatformError, match=r"another program.*conclave state reset STORE"), serving(other, tmp_path):
        pass
    after = sorted((p.name, p.read_bytes()) for p in (tmp_path / "disk").rglob("*") if p.is_file())
    assert [item for item in before if item[1]] == [item for item in after if item[1]]
    with start() as server, client(server, bundle) as c:
        assert c.call("get", "a") == 1


def test_an_unsigned_program_has_no_author_whose_state_it_could_be(tmp_path: Path) -> None:
    unsigned = make(tmp_path, LEDGER.replace('persistence = "code"', 'persistence = "signer"'))
    with pytest.raises(PlatformError, match="KDS"), serving(unsigned, tmp_path):
        pass
