"""The barrier in a real enclave with state: a roster that came in a mail, whose members come back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from tests.conftest import Serve, only

from conclave.bundle import Bundle
from conclave.client import Client
from conclave.errors import CallError

pytestmark = pytest.mark.slow

SOURCE = """
from conclave.enclave import Enclave, Roster, rpc


class Joint(Enclave):
    persistence = "code"

    def on_start(self) -> None:
        self.joint = None

    @rpc
    def begin(self, members: list[bytes], quorum: int) -> bytes:
        self.joint = Roster.of(members, quorum)
        return self.joint.digest

    @rpc
    def give(self, roster: bytes, number: int) -> None:
        self.joint.agree(self.sender, roster)
        self.map.of(int)[self.sender.hex()] = number

    @rpc
    def agree(self, roster: bytes) -> None:
        self.joint.agree(self.sender, roster)

    @rpc
    def close(self) -> None:
        self.joint.check(self.sender)
        self.map.of(int)["closed"] = self.version

    @rpc
    def look(self) -> bool:
        self.joint.check(self.sender)
        closed = self.map.of(int).get("closed")
        return closed is not None and self.joint.reached(closed)

    @rpc
    async def total(self) -> int:
        numbers = self.map.of(int)
        await self.stable(numbers["closed"], self.joint)
        return sum(number for key, number in numbers.scan() if key != "closed")
"""


@pytest.mark.spec("BAR-1", "BAR-3", "BAR-4", "BAR-6")
def test_a_result_waits_for_members_who_come_back(author: Callable[..., Bundle], serve: Serve) -> None:
    bundle = author("joint", SOURCE)
    with (
        serve(bundle) as server,
        Client(server.url, constraint=only(bundle)) as ada,
        Client(server.url, constraint=only(bundle)) as grace,
        Client(server.url, constraint=only(bundle)) as stranger,
    ):
        digest = ada.call("begin", [ada.identity.public, grace.identity.public], 2)
        ada.call("give", digest, 1)
        with pytest.raises(CallError, match="not in this roster"):
            stranger.call("give", digest, 100)
        with pytest.raises(CallError, match="another roster"):
            grace.call("give", bytes(32), 2)
        ada.call("close")
        told: list[int] = []
        waiting = threading.Thread(target=lambda: told.append(ada.call("total", topic="result")))
        waiting.start()
        # Whoever comes without having agreed changes nothing, and neither do strangers.
        assert [grace.call("look") for _ in range(3)] == [False] * 3
        with pytest.raises(CallError, match="not in this roster"):
            stranger.call("look")
        assert not told
        # She knows of the end already, and now agrees.
        grace.call("agree", digest)
        waiting.join(60)
        assert told == [1]
        assert ada.call("look")
        assert grace.call("total") == 1
