"""What makes a client comfortable, over real hosts and real enclaves: restarts, several hosts,
deadlines, notebooks, threads, forks."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import copy
import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from conclave._mailheader import parse_mail
from conclave.bundle import Bundle
from conclave.client import AsyncClient, Client, ClientEvent, ConstantRate, Identity
from conclave.errors import SequenceError, TransportError
from conclave.mail import fixed
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
from conclave.enclave import Enclave, Mail, rpc

class Counter(Enclave):
    def on_start(self) -> None:
        self.seen = []

    def on_mail(self, mail: Mail) -> bytes:
        return mail.body

    @rpc
    def put(self, token: str) -> int:
        self.seen.append(token)
        return self.seen.count(token)

    @rpc(retry=False)
    def put_once(self, token: str) -> int:
        self.seen.append(token)
        return self.seen.count(token)

    @rpc
    def size(self, data: bytes) -> int:
        return len(data)
"""


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("comforts", SOURCE)


@pytest.fixture(scope="module")
def running(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle, hostile=True, patience_seconds=0.0) as server:
        yield server


@pytest.fixture
def server(running: HostServer) -> Iterator[HostServer]:
    running.operator.behave()
    yield running
    running.operator.behave()


@pytest.fixture
def constraint(bundle: Bundle, only: Callable[[Bundle], str]) -> str:
    return only(bundle)


# Restarts --------------------------------------------------------------------------


@pytest.mark.spec("MAIL-50")
def test_a_restarted_client_without_saved_state_goes_on(server: HostServer, constraint: str, tmp_path: Path) -> None:
    for n in range(3):
        identity = Identity.load_or_create(tmp_path / "me")
        with Client(server.url, constraint=constraint, identity=identity) as client:
            # The very same first call each time: none is taken for the one before.
            assert client.call("put", "restarted") == n + 1


@pytest.mark.spec("MAIL-50", "MAIL-10")
def test_two_devices_of_one_identity_on_one_topic(server: HostServer, constraint: str) -> None:
    me = Identity.generate()
    with (
        Client(server.url, constraint=constraint, identity=me) as one,
        Client(server.url, constraint=constraint, identity=me) as other,
    ):
        counts = [client.call("put", "device") for _ in range(5) for client in (one, other)]
    assert counts == list(range(1, 11))


KILLED = """
import sys
from pathlib import Path
from conclave.client import Client, Identity
url, constraint, place, method, token = sys.argv[1:]
identity = Identity.load_or_create(Path(place) / "me")
client = Client(url, constraint=constraint, identity=identity, state=Path(place) / "state", timeout_seconds=600)
client.verify()
print("calls", flush=True)
client.call(method, token, topic="work", retry=method == "put")
"""


def kill_in_a_call(server: HostServer, constraint: str, place: Path, *, method: str, after: bool) -> None:
    """A process that dies in a call: before the enclave has it, or after."""
    arrived = threading.Event()

    def swallow(mail: bytes) -> bytes | None:
        if after:
            asyncio.run_coroutine_threadsafe(
                server.operator.inject("POST", "/mail", mail), server._loop
            ).add_done_callback(lambda _: arrived.set())
        else:
            arrived.set()
        return None

    server.operator.on_request = swallow
    command = [sys.executable, "-c", KILLED, server.url, constraint, str(place), method, place.name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert arrived.wait(120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.operator.behave()


@pytest.mark.spec("MAIL-53", "MAIL-11")
@pytest.mark.parametrize("after", [False, True])
def test_a_killed_process_is_succeeded_by_another(
    server: HostServer, constraint: str, tmp_path: Path, after: bool
) -> None:
    kill_in_a_call(server, constraint, tmp_path, method="put", after=after)
    events: list[ClientEvent] = []
    options: dict[str, Any] = {"identity": Identity.load(tmp_path / "me"), "state": tmp_path / "state"}
    with Client(server.url, constraint=constraint, on_event=events.append, **options) as client:
        assert client.unanswered == 1
        token = tmp_path.name
        # Nobody has to wait for it: another call is of another strand.
        assert client.call("put", token) == (2 if after else 1)
        (resumed,) = client.resume()
        assert (resumed.topic, resumed.method, resumed.arguments) == ("work", "put", [token])
        # It ran once: before its process died, or now.
        assert resumed.result(int) == (1 if after else 2)
        assert client.call("put", token) == 3
        assert (client.resume(), client.unanswered) == ([], 0)
    assert events[0].kind == "unanswered"
    with Client(server.url, constraint=constraint, **options) as client:
        assert client.unanswered == 0


@pytest.mark.spec("MAIL-53", "MAIL-52", "MAIL-12")
def test_in_another_boot_it_is_a_new_call_or_none(
    server: HostServer, serve: Callable[..., HostServer], bundle: Bundle, constraint: str, tmp_path: Path
) -> None:
    for method in ("put", "put_once"):
        place = tmp_path / method
        place.mkdir()
        kill_in_a_call(server, constraint, place, method=method, after=False)
    with serve(bundle) as other:
        for method in ("put", "put_once"):
            place = tmp_path / method
            options: dict[str, Any] = {"identity": Identity.load(place / "me"), "state": place / "state"}
            with Client(other.url, constraint=constraint, **options) as client:
                (resumed,) = client.resume()
                if method == "put":
                    assert resumed.result(int) == 1
                else:
                    with pytest.raises(TransportError, match="not retried"):
                        resumed.result(int)
                assert client.unanswered == 0


@pytest.mark.spec("MAIL-53")
def test_what_cannot_be_repeated_now_stays(server: HostServer, constraint: str, tmp_path: Path) -> None:
    kill_in_a_call(server, constraint, tmp_path, method="put", after=True)
    options: dict[str, Any] = {"identity": Identity.load(tmp_path / "me"), "state": tmp_path / "state"}
    with Client(server.url, constraint=constraint, attempts=1, **options) as client:
        server.operator.on_answer = lambda _: b""
        with pytest.raises(TransportError):
            client.resume()
        assert client.unanswered == 1
    server.operator.behave()
    with Client(server.url, constraint=constraint, **options) as client:
        (resumed,) = client.resume()
        assert resumed.error is None


# Copies, forks, threads ------------------------------------------------------------


def uses(server: HostServer) -> list[tuple[bytes, int]]:
    """(session, counter) of every different ciphertext that the host saw."""
    mails = {mail for mail in server.operator.requests}
    return [(mail.session_id, mail.counter) for mail in map(parse_mail, mails)]


@pytest.mark.spec("MAIL-15", "MAIL-50", "MAIL-2")
def test_forks_of_a_live_client(server: HostServer, constraint: str) -> None:
    with Client(server.url, constraint=constraint) as client:
        assert client.call("put", "forks") == 1
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    counts = [client.call("put", "forks") for _ in range(4)]
                    code = 0 if len(set(counts)) == 4 else 2
                os._exit(code)
            children.append(child)
        mine = [client.call("put", "forks") for _ in range(4)]
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
        assert len(set(mine)) == 4
        # Each of the 17 calls ran, and each once.
        assert client.call("put", "forks") == 18
    assert len(uses(server)) == len(set(uses(server)))


def test_saved_state_stays_with_the_parent(server: HostServer, constraint: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"identity": Identity.generate(), "state": tmp_path / "state"}
    with Client(server.url, constraint=constraint, **options) as client:
        assert client.call("put", "parent") == 1
        child = os.fork()
        if child == 0:
            try:
                client.call("put", "parent")
            except Exception as error:
                os._exit(42 if "stays with the parent" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        assert client.call("put", "parent") == 2


def test_thirty_two_threads(serve: Callable[..., HostServer], bundle: Bundle, constraint: str) -> None:
    with serve(bundle, hostile=True) as server:
        with Client(server.url, constraint=constraint) as client, ThreadPoolExecutor(32) as pool:
            counts = list(pool.map(lambda n: client.call("put", "threads", topic=f"t{n % 8}"), range(256)))
        assert sorted(counts) == list(range(1, 257))
        assert len(uses(server)) == len(set(uses(server)))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_is_neither_pickled_nor_copied(kind: Any, constraint: str) -> None:
    client = kind("http://user:SECRET@127.0.0.1:1", constraint=constraint)
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            act(client)
    assert "SECRET" not in repr(client)
    assert "127.0.0.1:1" in repr(client)


def test_after_the_end(server: HostServer, constraint: str) -> None:
    client = Client(server.url, constraint=constraint)
    with client:
        client.verify()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.call("put", "closed")
    assert repr(client).endswith("closed>")

    async def later() -> None:
        async with AsyncClient(server.url, constraint=constraint) as other:
            await other.verify()
        with pytest.raises(RuntimeError, match="closed"):
            await other.call("put", "closed")

    asyncio.run(later())
    forgotten = Client(server.url, constraint=constraint)
    forgotten.verify()
    with pytest.warns(ResourceWarning, match="unclosed <Client"):
        forgotten.__del__()
    forgotten.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Client(server.url, constraint=constraint).__del__()


# Notebooks -------------------------------------------------------------------------


def test_a_notebook(server: HostServer, constraint: str) -> None:
    """Cells as a notebook runs them: compiled with top-level await, in a loop that runs already."""
    cells = [
        "from conclave.client import AsyncClient, Client",
        "client = Client(url, constraint=constraint)",
        "first = client.call('put', 'notebook')",
        "other = AsyncClient(url, constraint=constraint)",
        "second = await other.call('put', 'notebook')",
        "import asyncio\nmore = await asyncio.gather(*(other.call('put', 'notebook') for _ in range(5)))",
        "client.close()",
        "await other.aclose()",
    ]

    async def session() -> dict[str, Any]:
        names: dict[str, Any] = {"url": server.url, "constraint": constraint}
        for cell in cells:
            code = compile(cell, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, names)
            if inspect.iscoroutine(result):
                await result
        return names

    names = asyncio.run(session())
    assert (names["first"], names["second"], sorted(names["more"])) == (1, 2, [3, 4, 5, 6, 7])


def test_one_event_loop_after_the_other(server: HostServer, constraint: str) -> None:
    client = AsyncClient(server.url, constraint=constraint)
    counts = [asyncio.run(client.call("put", "loops")) for _ in range(3)]
    assert counts == [1, 2, 3]

    async def meanwhile() -> None:
        await client.call("put", "loops")
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(client.call("put", "loops")))
        await client.aclose()

    asyncio.run(meanwhile())


# Time, hosts, progress -------------------------------------------------------------


def test_a_deadline_ends_a_call_whatever_it_does(server: HostServer, constraint: str) -> None:
    with Client(server.url, constraint=constraint, timeout_seconds=60.0) as client:
        assert client.call("put", "deadline") == 1
        server.operator.on_request = lambda _: None
        with pytest.raises(TransportError, match=r"within 0\.5 seconds, the outcome is unknown"):
            client.call("put", "deadline", timeout_seconds=0.5)
        server.operator.behave()
        assert client.call("put", "deadline") == 3

        async def other() -> None:
            async with AsyncClient(server.url, constraint=constraint, deadline_seconds=0.5) as asynchronous:
                await asynchronous.verify()
                server.operator.on_answer = lambda _: b""
                with pytest.raises(TransportError, match="outcome is unknown"):
                    await asynchronous.call("put", "other")

        asyncio.run(other())
    with pytest.raises(ValueError, match="time-out"):
        Client(server.url, constraint=constraint, deadline_seconds=0)


def test_a_deadline_while_it_verifies_sent_nothing(server: HostServer, constraint: str) -> None:
    def slowly(info: bytes) -> bytes:
        time.sleep(0.6)
        return info

    nothing = r"within 0\.5 seconds, no request was sent"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, constraint=constraint, deadline_seconds=0.5) as client:
            with pytest.raises(TransportError, match=nothing):
                client.call("put", "verifying")
            with pytest.raises(TransportError, match=nothing):
                client.verify()

        async def other() -> None:
            async with AsyncClient(url, constraint=constraint, deadline_seconds=0.5) as asynchronous:
                with pytest.raises(TransportError, match=nothing):
                    await asynchronous.call("put", "verifying")

        asyncio.run(other())
    # Nor is it later: no mail is left behind.
    with Client(server.url, constraint=constraint, timeout_seconds=60.0) as client:
        server.operator.on_info = slowly
        with pytest.raises(TransportError, match=nothing):
            client.call("put", "verifying", timeout_seconds=0.5)
        server.operator.behave()
        assert client.call("put", "verifying") == 1


@pytest.mark.spec("MAIL-54")
def test_another_host_takes_over(
    serve: Callable[..., HostServer], bundle: Bundle, constraint: str, author: Callable[..., Bundle]
) -> None:
    events: list[ClientEvent] = []
    wrong = author("impostor", SOURCE.replace("Counter", "Impostor"))
    with serve(bundle) as second, serve(wrong) as impostor, contextlib.ExitStack() as stack:
        going = stack.enter_context(contextlib.ExitStack())
        first = going.enter_context(serve(bundle))
        urls = ["http://127.0.0.1:1", first.url, impostor.url, second.url]
        client = stack.enter_context(Client(urls, constraint=constraint, on_event=events.append, timeout_seconds=20))
        assert client.call("put", "hosts") == 1
        before = client.instance.claims.boot_nonce
        assert client.call("put", "hosts") == 2
        going.close()
        # What is not to be repeated is not given to another boot; what may be is.
        with pytest.raises(TransportError, match="not retried"):
            client.call("put_once", "hosts", retry=False)
        assert client.call("put", "hosts") == 1
        assert client.instance.claims.boot_nonce != before
        assert client.call("put", "hosts") == 2
    moves = [event.host for event in events if event.kind == "failed over"]
    assert moves == [1, 2, 3]
    assert "refused (appraisal)" in next(e.reason for e in events if e.kind == "failed over" and e.host == 3)
    assert {"verifying", "verified", "waiting"} <= {event.kind for event in events}


def test_progress_and_callbacks_that_raise(server: HostServer, constraint: str) -> None:
    told: list[tuple[int, int]] = []

    def watch(sent: int, total: int) -> None:
        told.append((sent, total))
        raise ValueError("a callback's own trouble")

    def listen(event: ClientEvent) -> None:
        raise ValueError("a callback's own trouble")

    body = bytes(1_000_000)
    with Client(server.url, constraint=constraint, on_event=listen) as client:
        assert client.call("size", body, on_progress=watch) == len(body)
    total = told[0][1]
    assert total > len(body)
    assert [sent for sent, _ in told] == [*range(65536, total, 65536), total]
    told.clear()

    async def other() -> int:
        async with AsyncClient(server.url, constraint=constraint) as client:
            return int(await client.call("size", body, on_progress=watch))

    assert asyncio.run(other()) == len(body)
    assert told[-1] == (total, total)


def test_stubs_have_a_time_and_progress_of_their_own(server: HostServer, constraint: str) -> None:
    scope: dict[str, Any] = {}
    exec(SOURCE, scope)
    body = bytes(200_000)
    told: list[tuple[int, int]] = []

    def watch(sent: int, total: int) -> None:
        told.append((sent, total))

    with Client(server.url, constraint=constraint, timeout_seconds=60.0) as client:
        plain = client.stub(scope["Counter"])
        assert plain.size(body) == len(body)
        assert told == []
        assert client.stub(scope["Counter"], on_progress=watch).size(body) == len(body)
        assert told[-1][0] == told[-1][1] > len(body)
        server.operator.on_request = lambda _: None
        with pytest.raises(TransportError, match=r"within 0\.5 seconds"):
            client.stub(scope["Counter"], timeout_seconds=0.5).put("stub")
    server.operator.behave()
    told.clear()

    async def other() -> int:
        async with AsyncClient(server.url, constraint=constraint) as client:
            stub = await client.stub(scope["Counter"], timeout_seconds=60.0, on_progress=watch)
            return int(await stub.size(body))

    assert asyncio.run(other()) == len(body)
    assert told[-1][0] == told[-1][1]


def test_connections_are_used_again(server: HostServer, constraint: str) -> None:
    with Client(server.url, constraint=constraint) as client:
        client.verify()
        connections = set(server.server.connections)
        for _ in range(20):
            client.call("put", "connections")
        # The one that verification opened carried all of them.
        assert set(server.server.connections) <= connections


def test_a_sequence_error_is_still_one(server: HostServer, constraint: str) -> None:
    with Client(server.url, constraint=constraint) as client:
        assert client.call("put", "gap") == 1
        client._core._topics["default"].conversation._next = 9
        with pytest.raises(SequenceError, match="expected sequence 1, got 9"):
            client.call("put", "gap")


def test_a_constant_rate_ends_in_a_fork(server: HostServer, constraint: str) -> None:
    rate = ConstantRate(every=timedelta(milliseconds=50))
    with Client(server.url, constraint=constraint, pace=rate, padding=fixed(4096)) as client:
        assert client.call("put", "paced") == 1
        child = os.fork()
        if child == 0:
            try:
                client.call("put", "paced")
            except RuntimeError:
                client.close()
                os._exit(42)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        assert client.call("put", "paced") == 2
