"""Copied and restored client state, and hosts that lie to who goes on from it: T-42, T-43."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conclave._mailheader import parse_mail
from conclave.bundle import Bundle
from conclave.client import Client, Identity
from conclave.errors import MailError, TransportError, WrongKeyError
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
from conclave.enclave import Enclave, rpc

class Ledger(Enclave):
    def on_start(self) -> None:
        self.seen = []

    @rpc
    def put(self, token: str) -> int:
        self.seen.append(token)
        return self.seen.count(token)

    @rpc
    def count(self, token: str) -> int:
        return self.seen.count(token)
"""


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("ledger", SOURCE)


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


def unfinished(server: HostServer, constraint: str, place: Path, token: str) -> dict[str, Any]:
    """Saved state in which a call that the enclave ran has no answer; how to open it."""
    options: dict[str, Any] = {"identity": Identity.generate(), "state": place / "state"}
    with Client(server.url, constraint=constraint, attempts=1, **options) as client:
        client.call("put", token)
        server.operator.on_answer = lambda _: b""
        with contextlib.suppress(TransportError):
            client.call("put", token)
        server.operator.behave()
    return options


@pytest.mark.spec("T-42", "MAIL-53", "MAIL-11")
def test_copies_of_saved_state_run_nothing_twice_and_lose_nothing_silently(
    server: HostServer, constraint: str, tmp_path: Path
) -> None:
    options = unfinished(server, constraint, tmp_path, "copies")
    outcomes = []
    with contextlib.ExitStack() as stack:
        clients = []
        for n in range(3):
            shutil.copy(tmp_path / "state", tmp_path / f"copy{n}")
            copy = {**options, "state": tmp_path / f"copy{n}"}
            clients.append(stack.enter_context(Client(server.url, constraint=constraint, **copy)))
        for client in clients:
            (resumed,) = client.resume()
            outcomes.append(resumed.result(int))
        # One request, which ran once; every copy hears the same of it.
        assert outcomes == [2, 2, 2]
        assert clients[0].call("count", "copies") == 2
        # And then each is a client of its own: equal calls are different ones.
        assert sorted(client.call("put", "copies") for client in clients) == [3, 4, 5]
    # A backup from before, restored after all of that.
    with Client(server.url, constraint=constraint, **options) as client:
        (resumed,) = client.resume()
        assert resumed.result(int) == 2
        assert client.call("put", "copies") == 6


@pytest.mark.spec("T-42", "MAIL-53")
def test_a_copy_of_saved_state_is_nothing_to_who_has_not_the_identity(
    server: HostServer, constraint: str, tmp_path: Path
) -> None:
    unfinished(server, constraint, tmp_path, "WHAT-WAS-ASKED")
    data = (tmp_path / "state").read_bytes()
    assert b"WHAT-WAS-ASKED" not in data
    with pytest.raises(WrongKeyError):
        Client(server.url, constraint=constraint, identity=Identity.generate(), state=tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == data


COPY = """
import sys
from pathlib import Path
from conclave.client import Client, Identity
from conclave.errors import Error
url, constraint, place, state = sys.argv[1:]
identity = Identity.load(Path(place) / "me")
with Client(url, constraint=constraint, identity=identity, state=Path(place) / state) as client:
    print(client.resume()[0].result(int), *(client.call("put", "processes") for _ in range(5)))
"""


@pytest.mark.spec("T-42", "MAIL-2", "MAIL-50")
def test_no_key_and_nonce_is_used_twice_by_copies_in_processes_of_their_own(
    server: HostServer, constraint: str, tmp_path: Path
) -> None:
    options = unfinished(server, constraint, tmp_path, "processes")
    options["identity"].save(tmp_path / "me")
    processes = []
    for n in range(3):
        shutil.copy(tmp_path / "state", tmp_path / f"copy{n}")
        command = [sys.executable, "-c", COPY, server.url, constraint, str(tmp_path), f"copy{n}"]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    # The unfinished one ran once, the fifteen new ones once each.
    assert [line[0] for line in said] == ["2", "2", "2"]
    assert sorted(int(count) for line in said for count in line[1:]) == list(range(3, 18))
    # What the operator collected: no session and counter with two ciphertexts.
    mails = [parse_mail(mail) for mail in set(server.operator.requests)]
    assert len({(mail.session_id, mail.counter) for mail in mails}) == len(mails)
    assert len({mail.session_id for mail in mails}) >= 7


@pytest.mark.spec("T-43", "MAIL-9", "MAIL-53")
def test_replies_of_the_process_before_are_nothing_to_its_successor(
    server: HostServer, constraint: str, tmp_path: Path
) -> None:
    options = unfinished(server, constraint, tmp_path, "replays")
    withheld = server.operator.answers[-1]
    server.operator.on_answer = lambda _: withheld
    with Client(server.url, constraint=constraint, attempts=2, **options) as client:
        with pytest.raises(TransportError, match="nothing authentic"):
            client.resume()
        assert client.unanswered == 1
        assert client.refused_mails
        # The host lets its answers through at last: the enclave tells from memory what it was.
        server.operator.behave()
        (resumed,) = client.resume()
        assert resumed.result(int) == 2
        assert client.call("count", "replays") == 2


@pytest.mark.spec("T-43", "MAIL-10", "MAIL-51")
def test_sequence_errors_count_only_from_the_enclave(server: HostServer, constraint: str, tmp_path: Path) -> None:
    # A genuine sequence error of another session: the enclave's word, and not to this client.
    with Client(server.url, constraint=constraint, attempts=1) as other:
        assert other.call("put", "lies") == 1
        other._core._topics["default"].conversation._next = 7
        with pytest.raises(MailError):
            other.call("put", "lies")
    lie = server.operator.answers[-1]
    options = unfinished(server, constraint, tmp_path, "victim")
    for answer in (lie, b"\0\0\0\7nothing", os.urandom(300)):
        server.operator.on_answer = lambda _, answer=answer: answer  # type: ignore[misc]
        with (
            Client(server.url, constraint=constraint, attempts=2, **options) as client,
            pytest.raises(TransportError, match="nothing authentic"),
        ):
            client.resume()
    server.operator.behave()
    with Client(server.url, constraint=constraint, **options) as client:
        assert client.resume()[0].result(int) == 2


@pytest.mark.spec("T-43", "MAIL-52")
def test_a_host_that_alternates_between_two_boots_makes_nothing_run_twice_in_one(
    serve: Callable[..., HostServer], bundle: Bundle, constraint: str, server: HostServer
) -> None:
    with (
        serve(bundle, hostile=True) as second,
        Client(server.url, constraint=constraint, attempts=4, timeout_seconds=2.0) as client,
    ):
        assert client.call("put", "before") == 1
        infos = [host.run(host.operator.inject("GET", "/instance"))[1] for host in (second, server)]
        handed: list[asyncio.Task[tuple[int, bytes]]] = []

        def deliver(mail: bytes) -> None:
            # It reaches the first boot, if it is for that one, and no answer comes back.
            handed.append(asyncio.ensure_future(server.operator.inject("POST", "/mail", mail)))

        server.operator.on_request = deliver
        # After each mail the other boot is shown.
        server.operator.on_info = lambda _: infos[(len(handed) + 1) % 2]
        with pytest.raises(TransportError, match="the outcome is unknown"):
            client.call("put", "alternating")
        server.operator.behave()
        assert len(handed) == 2
        with Client(server.url, constraint=constraint) as witness:
            assert witness.call("count", "alternating") == 1
