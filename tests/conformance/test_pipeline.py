"""Enclaves that call enclaves: each verifies the other, on two machines, through renewals and restarts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests._processes import children

from conclave._crypto import SigningKey, sha256
from conclave.bundle import Bundle
from conclave.client import AsyncClient, Client
from conclave.errors import CallError
from conclave.host import Host
from conclave.platform import start_platform
from conclave.testing import HostServer

SCORER = """
import os
from conclave.enclave import Enclave, rpc

class Scorer(Enclave):
    callers = {"cleaner": None, "auditor": None}

    def on_start(self) -> None:
        self.boot = os.urandom(8).hex()

    @rpc
    def allow(self, name: str, constraint: str) -> None:
        self.allow_caller(name, constraint)

    @rpc(callers="cleaner")
    async def score(self, total: int) -> list[str]:
        return [str(total * 2), self.boot, self.caller.result.claims.code.hex(), ",".join(self.caller.names)]

    @rpc(callers="auditor")
    def audit(self) -> str:
        return "audited"

    @rpc
    def whoami(self) -> str:
        return "nobody" if self.caller is None else ",".join(sorted(self.caller.names))

    @rpc
    async def ask_back(self, url: str, constraint: str) -> int:
        return await self.peer(url, constraint, introduce=False).call("number", returns=int)

    @rpc
    def set_clock(self, days: int) -> None:
        # What a host does that turns the clock, seen from inside.
        import datetime
        from conclave.enclave import _clock
        _clock.host_time = lambda: datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
"""

CLEANER = """
import sys
from conclave.enclave import Enclave, rpc
from conclave.errors import Error

class Cleaner(Enclave):
    @rpc
    async def clean(self, url: str, constraint: str, values: list[int]) -> list[str]:
        peer = self.peer(url, constraint, attempts=12)
        return await peer.call("score", sum(v for v in values if v >= 0), returns=list[str])

    @rpc
    async def call(self, url: str, constraint: str, method: str, introduce: bool) -> str:
        peer = self.peer(url, constraint, introduce=introduce, attempts=2, timeout_seconds=20)
        try:
            return await peer.call(method, returns=str)
        except Error as error:
            return f"{type(error).__name__} {getattr(error, 'type_name', '')}: {error}"

    @rpc
    def number(self) -> int:
        return 42

    @rpc
    def loaded(self) -> list[str]:
        return [m for m in ("conclave.attestation.verify", "conclave.client.core", "httpx2") if m in sys.modules]

    @rpc
    async def round_trip(self, url: str, constraint: str, own_url: str, own_constraint: str) -> int:
        peer = self.peer(url, constraint, introduce=False)
        return await peer.call("ask_back", own_url, own_constraint, returns=int)
"""


@pytest.fixture(scope="module")
def scorer(author: Callable[..., Bundle]) -> Bundle:
    return author("scorer", SCORER)


@pytest.fixture(scope="module")
def cleaner(author: Callable[..., Bundle]) -> Bundle:
    return author("cleaner", CLEANER)


def host(machine: Path, bundle: Bundle, *, restart: bool = False, **options: object) -> HostServer:
    return HostServer(Host(lambda: start_platform(machine, bundle.path), restart=restart, **options))  # type: ignore[arg-type]


@contextmanager
def pair(
    tmp: Path, cleaner: Bundle, scorer: Bundle, *, restart: bool = False
) -> Iterator[tuple[HostServer, HostServer]]:
    """The scorer and the cleaner, each on a machine of its own; the cleaner's host may fetch from the scorer's."""
    with (
        host(tmp / "machine-b", scorer, restart=restart) as b,
        host(tmp / "machine-a", cleaner, restart=restart, peers=[b.url]) as a,
    ):
        yield a, b


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, cleaner: Bundle, scorer: Bundle
) -> Iterator[tuple[HostServer, HostServer]]:
    with pair(tmp_path_factory.mktemp("pipeline"), cleaner, scorer) as both:
        yield both


@pytest.mark.spec("MAIL-45", "MAIL-46", "RPC-14")
def test_each_verifies_the_other(
    served: tuple[HostServer, HostServer], cleaner: Bundle, scorer: Bundle, only: Callable[[Bundle], str]
) -> None:
    a, b = served
    with Client(b.url, constraint=only(scorer)) as owner, Client(a.url, constraint=only(cleaner)) as client:
        assert owner.call("whoami") == "nobody"
        with pytest.raises(CallError) as caught:
            owner.call("score", 1)
        assert caught.value.type_name == "NotIntroduced"
        owner.call("allow", "cleaner", only(cleaner))
        total, _, code, names = client.call("clean", b.url, only(scorer), [1, -7, 20])
        assert (total, code, names) == ("42", cleaner.code.hex(), "cleaner")
        assert client.call("call", b.url, only(scorer), "whoami", True) == "cleaner"
        said = client.call("call", b.url, only(scorer), "audit", True)
        assert said.startswith(
            "CallError NotIntroduced: this method is for enclaves that introduced themselves as auditor"
        )


@pytest.mark.spec("MAIL-46")
def test_a_wrong_constraint_either_way(
    served: tuple[HostServer, HostServer], cleaner: Bundle, scorer: Bundle, only: Callable[[Bundle], str]
) -> None:
    a, b = served
    with Client(b.url, constraint=only(scorer)) as owner, Client(a.url, constraint=only(cleaner)) as client:
        # The cleaner wants another program than the scorer: it sends nothing but the request for instance info.
        said = client.call("call", b.url, "C:" + "1" * 64 + " SEC:INSECURE", "whoami", True)
        assert said.startswith("AppraisalError")
        assert "this is another program" in said
        # It wants real hardware.
        assert client.call("call", b.url, "C:" + scorer.code.hex(), "whoami", True).startswith("ChainError")
        # The scorer wants another program than the cleaner.
        owner.call("allow", "cleaner", "C:" + "2" * 64 + " SEC:INSECURE")
        said = client.call("call", b.url, only(scorer), "score", True)
        assert said.startswith("CallError NotIntroduced: refused as every caller that is declared: cleaner: the ")
        assert "auditor: no constraint was set yet" in said
        # Real hardware, where the cleaner has a simulated TEE.
        owner.call("allow", "cleaner", f"C:{cleaner.code.hex()} SEC:SECURE")
        assert "simulated TEE" in client.call("call", b.url, only(scorer), "score", True)
        # And as it should be, with another name too.
        owner.call("allow", "cleaner", only(cleaner))
        owner.call("allow", "auditor", only(cleaner))
        assert client.call("call", b.url, only(scorer), "audit", True) == "audited"
        assert client.call("call", b.url, only(scorer), "whoami", True) == "auditor,cleaner"
        # A constraint that is replaced takes back what it accepted.
        owner.call("allow", "auditor", "C:" + "3" * 64 + " SEC:INSECURE")
        assert client.call("call", b.url, only(scorer), "whoami", True) == "nobody"
        assert "as auditor" in client.call("call", b.url, only(scorer), "audit", True)
        assert client.call("call", b.url, only(scorer), "whoami", True) == "cleaner"


@pytest.mark.spec("MAIL-45")
def test_an_enclave_without_callers_refuses_introductions(
    tmp_path: Path, cleaner: Bundle, only: Callable[[Bundle], str]
) -> None:
    with (
        host(tmp_path / "b", cleaner) as b,
        host(tmp_path / "a", cleaner, peers=[b.url + "/"]) as a,
        Client(a.url, constraint=only(cleaner)) as client,
    ):
        # What verifies others is loaded by the first call to one, and no HTTP library ever.
        assert client.call("loaded") == []
        said = client.call("call", b.url, only(cleaner), "number", True)
        assert client.call("loaded") == ["conclave.attestation.verify", "conclave.client.core"]
        assert said == "CallError NotIntroduced: this enclave declares no callers; call it with introduce=False"
        # As an ordinary client it is served.
        assert client.call("call", b.url, only(cleaner), "number", False) == (
            "FormatError : number(): the enclave's result does not have the declared type: expected str, got int"
        )


@pytest.mark.spec("MAIL-48")
def test_calls_in_a_circle(tmp_path: Path, cleaner: Bundle, scorer: Bundle, only: Callable[[Bundle], str]) -> None:
    """A calls B, whose handler calls A: no loop waits for itself."""
    with (
        host(tmp_path / "b", scorer) as b,
        host(tmp_path / "a", cleaner, peers=[b.url]) as a,
        Client(a.url, constraint=only(cleaner)) as client,
    ):
        b.host._fetcher._peers = frozenset({a.url})
        assert client.call("round_trip", b.url, only(scorer), a.url, only(cleaner)) == 42


@pytest.mark.spec("MAIL-47", "MAIL-49")
def test_introductions_end_and_time_does_not_go_back(
    tmp_path: Path, cleaner: Bundle, scorer: Bundle, only: Callable[[Bundle], str]
) -> None:
    with (
        pair(tmp_path, cleaner, scorer) as (a, b),
        Client(b.url, constraint=only(scorer)) as owner,
        Client(a.url, constraint=only(cleaner)) as client,
    ):

        def ask() -> str:
            return str(client.call("call", b.url, only(scorer), "whoami", True))

        def clean() -> str:
            return str(client.call("clean", b.url, only(scorer), [1])[0])

        owner.call("allow", "cleaner", only(cleaner))
        assert ask() == "cleaner"
        # A day later it is an ordinary client, until a call makes it introduce itself again.
        owner.call("set_clock", 2)
        assert ask() == "nobody"
        assert clean() == "2"
        assert ask() == "cleaner"
        # The endorsements end: nobody is accepted on them any more.
        owner.call("set_clock", 40)
        assert ask() == "nobody"
        said = client.call("call", b.url, only(scorer), "score", True)
        assert said.startswith("CallError NotIntroduced: refused as every caller")
        assert "expired" in said
        # The host turns the clock back behind the issue date of what was accepted: it counts as that date.
        owner.call("set_clock", -20)
        owner.call("allow", "cleaner", only(cleaner))
        assert clean() == "2"


SIGNED_SCORER = SCORER.replace('"cleaner": None', '"cleaner": "S:SIGNER PROD:7 SEC:INSECURE"')
SETTINGS = "# /// script\n# dependencies = []\n# [tool.conclave]\n# product-id = 7\n# ///\n"


@pytest.mark.slow
@pytest.mark.spec("MAIL-47")
def test_restarts_of_either_side_under_calls(
    tmp_path: Path, author: Callable[..., Bundle], only: Callable[[Bundle], str]
) -> None:
    """Keys of the caller are renewed all the while; either enclave dies again and again, and no call is lost."""
    key = SigningKey.generate()
    signer = sha256(key.public).hex()
    scorer = author("scorer", SIGNED_SCORER.replace("SIGNER", signer))
    cleaner = author("cleaner", SETTINGS + CLEANER, signing_key=key)
    boots: Counter[str] = Counter()

    with (
        host(tmp_path / "b", scorer, restart=True, renew_seconds=0.7) as b,
        host(tmp_path / "a", cleaner, restart=True, peers=[b.url], renew_seconds=0.5) as a,
    ):

        async def calls(client: AsyncClient, number: int, stop: asyncio.Event) -> None:
            count = 0
            while not stop.is_set():
                count += 1
                said = await client.call("clean", b.url, only(scorer), [number, count, -5], topic=f"t{number}")
                assert said[0] == str(2 * (number + count))
                boots[said[1]] += 1

        async def drive() -> None:
            stop = asyncio.Event()
            client = AsyncClient(a.url, constraint=only(cleaner), timeout_seconds=60, attempts=12)
            async with client, asyncio.timeout(300), asyncio.TaskGroup() as group:
                for number in range(8):
                    group.create_task(calls(client, number, stop))
                for round_ in range(4):
                    seen = sum(boots.values())
                    while sum(boots.values()) < seen + 20:
                        await asyncio.sleep(0.02)
                    victim = (a, b)[round_ % 2].host._process
                    assert victim is not None
                    for child in children(victim.pid):
                        os.kill(child, signal.SIGKILL)
                seen = sum(boots.values())
                while sum(boots.values()) < seen + 20:
                    await asyncio.sleep(0.02)
                stop.set()

        asyncio.run(drive())
        assert len(boots) == 3, "the scorer died twice"
