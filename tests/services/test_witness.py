"""Witnesses as real processes: killed at any moment, raced for by two forks, reached through a host's exchanges."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest
from tests._witness import Branch
from tests.conftest import Serve, only

from conclave import _codec
from conclave._crypto import SigningKey
from conclave._framing import Frame, Kind
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.enclave._anchors import Anchors, exchange_by
from conclave.enclave._fetches import Fetches
from conclave.errors import Error, RollbackError
from conclave.host.fetch import Fetcher
from conclave.host.states.opening import open_state
from conclave.host.stores import open_store
from conclave.persistence import Anchor
from conclave.persistence.witness import (
    ForkWitnessed,
    Head,
    HeadRequest,
    Step,
    WitnessClient,
    advance_request,
    log_id_of,
    read_answer,
)
from conclave.testing import HostServer

COMMAND = [sys.executable, "-m", "conclave.cli", "witness"]
NONCE = bytes(32)


class Process:
    """A witness that can be killed and started again, at one port with one store."""

    def __init__(self, place: Path, name: str = "tower", store: str = "sqlite") -> None:
        self.name = name
        self._file = place / f"{name}.key"
        made = subprocess.run([*COMMAND, "key", str(self._file)], capture_output=True, text=True, check=True)
        self.key = bytes.fromhex(made.stdout.split()[-1])
        self._store = f"{store}:{place / name}"
        self._port = "0"
        self._running: subprocess.Popen[str] | None = None
        # A connection that a killed witness left is of no use: each request has its own.
        self._http = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0))
        self.url = ""

    def start(self, *arguments: str) -> None:
        command = [*COMMAND, "--key", str(self._file), "--store", self._store, "--port", self._port, "--log", "none"]
        self._running = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
        assert self._running.stdout is not None
        assert self._running.stdout.readline().split() == ["public", self.key.hex()]
        self.url = self._running.stdout.readline().split()[1]
        self._port = self.url.rpartition(":")[2]

    def end(self, number: signal.Signals) -> int:
        running, self._running = self._running, None
        if running is None:
            return 0
        running.send_signal(number)
        status = running.wait(30)
        assert running.stdout is not None
        running.stdout.close()
        return status

    def post(self, path: str, body: bytes) -> httpx2.Response:
        return self._http.post(self.url + path, content=body)

    def sending(self, path: str, body: bytes) -> socket.socket:
        """A connection on which that request was sent."""
        connection = socket.create_connection(("127.0.0.1", int(self._port)))
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        return connection

    def head(self, log: SigningKey) -> Head | None:
        answer = self.post("/witness/head", _codec.encode(HeadRequest(version=1, log_key=log.public, nonce=NONCE)))
        assert answer.status_code == 200, answer.text
        standing = read_answer(answer.content, key=self.key, log_key=log.public, nonce=NONCE)
        return None if standing is None else standing.step.new

    def advance(self, log: SigningKey, previous: Head | None, new: Head) -> int:
        step = Step(log_key=log.public, previous=previous, new=new)
        return self.post("/witness/advance", _codec.encode(advance_request(log, step, NONCE))).status_code


@contextmanager
def witnesses(place: Path, *names: str, store: str = "sqlite") -> Iterator[list[Process]]:
    made = [Process(place, name, store) for name in names]
    try:
        for process in made:
            process.start()
        yield made
    finally:
        for process in made:
            process.end(signal.SIGKILL)


def enclave(branch: Branch, towers: list[Process], quorum: int) -> tuple[Anchors, Fetcher]:
    """What one boot has of its witnesses, through what its host has."""
    fetcher = Fetcher([], witnesses={tower.name: tower.url for tower in towers}, info=lambda: None)

    def send(kind: int, number: int, payload: bytes) -> None:
        fetcher.take(payload, lambda answer: fetches.fetched(Frame(Kind.FETCHED, number, answer)))

    fetches = Fetches(send)

    async def newest(version: int | None) -> Head:
        return branch.newest

    anchors = Anchors(
        [WitnessClient(tower.name, tower.key, anchor_key=branch.anchor, contains=branch.contains) for tower in towers],
        quorum,
        log_id=log_id_of(branch.anchor.public),
        newest=newest,
        exchange=exchange_by(fetches),
    )
    return anchors, fetcher


@pytest.mark.slow
@pytest.mark.spec("WIT-7")
@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_killed_between_requests_and_in_them(tmp_path: Path, store: str) -> None:
    """What was answered is there after kill -9; what was not may be, and then stays."""
    branch = Branch(SigningKey.generate())
    with witnesses(tmp_path, "tower", store=store) as (tower,):
        known: Head | None = None
        chance = random.Random(store)
        for turn in range(8):
            if turn % 2:
                # Killed while it works on one: the request is there, and nobody reads an answer.
                step = Step(log_key=branch.anchor.public, previous=known, new=branch.commit())
                body = _codec.encode(advance_request(branch.anchor, step, NONCE))
                with tower.sending("/witness/advance", body):
                    time.sleep(chance.uniform(0, 0.006))
                    tower.end(signal.SIGKILL)
                tower.start()
                found = tower.head(branch.anchor)
                assert found in (known, branch.newest)
                known = found
            else:
                assert tower.advance(branch.anchor, known, branch.commit()) == 200
                known = branch.newest
                tower.end(signal.SIGKILL)
                tower.start()
                assert tower.head(branch.anchor) == known
            twin = Branch(branch.anchor).newest
            assert tower.advance(branch.anchor, None, twin) == 409
        assert tower.end(signal.SIGTERM) == 0


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.spec("WIT-5", "WIT-12", "WIT-13")
async def test_two_forks_race(tmp_path: Path) -> None:
    """Two enclaves from one state, each with a host that behaves: one is anchored, the other halts with proof."""
    start = Branch(SigningKey.generate())
    with witnesses(tmp_path, "north", "south", "west") as towers:
        keys = {tower.name: tower.key.hex() for tower in towers}
        branches = [Branch(start.anchor, start) for _ in range(2)]
        made = [enclave(branch, towers, 2) for branch in branches]
        results = await asyncio.gather(*(anchors.anchored() for anchors, _ in made), return_exceptions=True)
        forks = [result for result in results if isinstance(result, ForkWitnessed)]
        anchored = [result for result in results if not isinstance(result, BaseException)]
        assert len(anchored) <= 1
        assert len(forks) + len(anchored) == 2
        for anchor in anchored:
            anchor.verify(keys, 2, log_id=log_id_of(start.anchor.public), version=1)
        # Whoever comes from the state before them is caught at the first word.
        late, fetcher = enclave(Branch(start.anchor, start), towers, 2)
        with pytest.raises(RollbackError):
            await late.anchored()
        for anchors, its in (*made, (late, fetcher)):
            await anchors.close()
            await its.close()


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.spec("WIT-14")
async def test_a_witness_goes_and_comes_back(tmp_path: Path) -> None:
    branch = Branch(SigningKey.generate())
    with witnesses(tmp_path, "north", "south", "west") as towers:
        anchors, fetcher = enclave(branch, towers, 2)
        await anchors.anchored()
        towers[0].end(signal.SIGKILL)
        branch.commit()
        assert {c.witness for c in (await anchors.anchored()).countersignatures} == {"south", "west"}
        towers[1].end(signal.SIGKILL)
        branch.commit()
        waiting = asyncio.create_task(anchors.anchored())
        await asyncio.to_thread(towers[0].start)
        assert {c.witness for c in (await waiting).countersignatures} == {"north", "west"}
        await anchors.close()
        await fetcher.close()


@pytest.mark.slow
@pytest.mark.spec("WIT-9")
def test_what_the_command_takes(tmp_path: Path) -> None:
    branch = Branch(SigningKey.generate())
    with witnesses(tmp_path, "tower") as (tower,):
        assert httpx2.get(f"{tower.url}/healthz").json() == {"status": "lives"}
        assert httpx2.get(f"{tower.url}/readyz").json() == {"status": "ready"}
        tower.end(signal.SIGTERM)
        tower.start("--allow", log_id_of(branch.anchor.public).hex(), "--logs", "1")
        assert tower.advance(branch.anchor, None, branch.newest) == 200
        other = Branch(SigningKey.generate())
        answer = tower.advance(other.anchor, None, other.newest)
        assert answer == 403
        tower.end(signal.SIGTERM)
        tower.start("--logs", "1")
        assert tower.advance(other.anchor, None, other.newest) == 507
        assert tower.end(signal.SIGINT) == 130
    said = partial(subprocess.run, capture_output=True, text=True, check=False)
    key = str(tmp_path / "tower.key")
    for arguments, wanted in (
        (["key", key], "a key is not overwritten"),
        (["--key", str(tmp_path / "none"), "--store", "sqlite:x"], "no such file"),
        (["--key", __file__, "--store", "sqlite:x"], "conclave witness key"),
        (["--key", key, "--store", "x"], "not a store"),
        (["--key", key, "--store", f"sqlite:{tmp_path}/x", "--allow", "ab"], "64 hex digits"),
        (["--key", key, "--store", f"sqlite:{tmp_path}/x", "--tls-cert", "x"], "go together"),
        (["--key", key, "--store", f"sqlite:{tmp_path}/x", "--log", "xml"], "--log is one of"),
    ):
        done = said([*COMMAND, *arguments])
        assert done.returncode == 1
        assert wanted in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.spec("WIT-9")
def test_hostile_clients_harm_nobody_else(tmp_path: Path) -> None:
    branch = Branch(SigningKey.generate())
    with witnesses(tmp_path, "tower") as (tower,):
        tower.end(signal.SIGTERM)
        tower.start("--logs", "20")
        assert tower.advance(branch.anchor, None, branch.newest) == 200
        strangers = [SigningKey.generate() for _ in range(40)]
        statuses = [tower.advance(key, None, branch.newest) for key in strangers]
        assert statuses == [200] * 19 + [507] * 21
        for body in (b"", b"\xff" * 1024, bytes(2048)):
            assert tower.post("/witness/advance", body).status_code in (400, 413)
            assert tower.post("/witness/head", body).status_code in (400, 413)
        # Steps in its name, which it did not sign.
        for key in strangers:
            step = Step(log_key=branch.anchor.public, previous=branch.newest, new=Branch(key).commit())
            forged = _codec.encode(advance_request(key, step, NONCE))
            assert tower.post("/witness/advance", forged).status_code == 403
        before = branch.newest
        assert tower.advance(branch.anchor, before, branch.commit()) == 200
        assert tower.head(branch.anchor) == branch.newest
        assert tower.head(strangers[-1]) is None


AUCTION = """
from conclave.enclave import Enclave, rpc
from conclave.persistence import Anchor


class Auction(Enclave):
    persistence = "code"
    witnesses = {"north": "%s", "south": "%s", "west": "%s"}
    witness_quorum = 2

    @rpc
    def bid(self, amount: int) -> None:
        self.map.of(int)[f"bid/{amount}"] = amount

    @rpc
    async def price(self) -> tuple[int, Anchor]:
        bids = [amount for _, amount in self.map.of(int).scan("bid/")]
        return max(bids), await self.anchored(self.version)
"""


@pytest.mark.slow
@pytest.mark.spec("T-50", "WIT-12", "WIT-15", "WIT-16")
def test_enclaves_forked_from_one_store(author: Callable[..., Bundle], serve: Serve, tmp_path: Path) -> None:
    """Real enclaves, one for each bidder, from one state: at most one of them ever tells its price."""
    with witnesses(tmp_path, "north", "south", "west") as towers:
        keys = {tower.name: tower.key.hex() for tower in towers}
        bundle = author("auction", AUCTION % tuple(keys.values()))
        urls = {tower.name: tower.url for tower in towers}

        def running(place: str) -> HostServer:
            url = f"file:{tmp_path / place}"
            store = open_store(url, alone=True)
            return serve(bundle, store=store, state=open_state(url, store), witnesses=urls)

        with running("state") as server, Client(server.url, constraint=only(bundle)) as client:
            client.call("bid", 10)
            price, anchor = client.call("price", returns=tuple[int, Anchor])
            log_id = client.instance.claims.log_id
            assert log_id is not None
            anchor.verify(keys, 2, log_id=log_id, version=1)
            assert price == 10
        for number in range(3):
            shutil.copytree(tmp_path / "state", tmp_path / f"fork{number}")

        def ask(number: int) -> int | Error:
            with running(f"fork{number}") as server, Client(server.url, constraint=only(bundle)) as client:
                try:
                    client.call("bid", 11 + number)
                    found, anchor = client.call("price", returns=tuple[int, Anchor])
                    anchor.verify(keys, 2, log_id=log_id, version=3)
                    return int(found)
                except Error as error:
                    return error

        with ThreadPoolExecutor(3) as pool:
            told = list(pool.map(ask, range(3)))
        prices = [found for found in told if isinstance(found, int)]
        assert len(prices) <= 1
        assert {found.code for found in told if isinstance(found, Error)} == {"rollback"}
        # What was before all of them is caught as well.
        shutil.rmtree(tmp_path / "fork0")
        shutil.copytree(tmp_path / "state", tmp_path / "fork0")
        if prices:
            again = ask(0)
            assert isinstance(again, RollbackError)
            assert again.evidence
