"""Enclaves that call enclaves: each verifies the other, on two machines, through renewals and restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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


@pytest.mark.spec("MAIL-45", "MAIL-46")
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
        assert said.startswith("CallError NotIntroduced: this method is for enclaves that introduced themselves as auditor")
