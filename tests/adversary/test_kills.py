"""Hosts and enclaves that are killed at any instruction: what clients were told of stays, and nothing happens twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests._kills.clients import Adder, siege
from tests._kills.world import HostLine, Place, world

from conclave.attestation import Constraint, verify_instance
from conclave.errors import RollbackError
from conclave.persistence.context import Statement

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("kills"))


def test_kills_at_random_moments(place: Place, tmp_path: Path) -> None:
    async def main() -> None:
        async with world(place, tmp_path / "world", seed=1) as here:
            figures = await siege(here, kills=90, lines=2, enclave_dies=0.1, host_dies=0.2)
        assert figures["kills"] >= 180
        # Of every kind.
        assert len(figures["killed"]) >= 8
        assert all(figures["ended in an encryption, a frame, a write"])
        assert figures["nonces"] > figures["answers"]

    asyncio.run(main())


@pytest.mark.parametrize("faults", ["second", "full", "slow"])
def test_kills_over_a_store_that_is_not_well(faults: str, place: Place, tmp_path: Path) -> None:
    async def main() -> None:
        async with world(place, tmp_path / "world", seed=2) as here:
            figures = await siege(here, kills=15, host_dies=0.2, faults=faults)
        assert figures["store trouble"] or faults == "slow"

    asyncio.run(main())


class Traveller(Adder):
    """Goes to either of two hosts.

    Attributes:
        branch: from which of them it has an answer, since there are two.
        sent: how often it called, answered or not: what left and was not answered is sent again before the next one.
        seen: how many of its calls had been handled by the last that was answered.
    """

    branch: HostLine | None = None
    sent = 0
    seen = 0

    async def visits(self, line: HostLine) -> RollbackError | None:
        """Call there; the error with which that ended."""
        try:
            await self.visit(line)
        except RollbackError as error:
            return error
        return None

    async def visit(self, line: HostLine) -> None:
        """Call there. Raises RollbackError."""
        self.line = line
        self.sent += 1
        count, _, _ = await self.call("add", self.name, self.sent, b"")
        assert self.seen <= count < self.sent
        _, _, numbers = await self.call("look", self.name)
        # In order, and each once.
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == self.sent
        self.seen, self.branch = count + 1, line


@pytest.mark.spec("MAIL-57", "MAIL-58")
def test_two_enclaves_from_one_state(place: Place, tmp_path: Path) -> None:
    """Who comes to the one with what the other told it is told; nobody is without cause; no nonce is used twice."""

    async def main() -> dict[str, int]:
        chance, seen = random.Random(3), Counter[str]()
        async with world(place, tmp_path / "world", seed=3) as here:
            one = await here.host("one")
            travellers = [Traveller(here, one, f"traveller {n}") for n in range(6)]
            for _ in range(3):
                for client in travellers:
                    await client.visit(one)
                    client.branch = None
            two = await here.fork(one, "two")
            halted = {one: False, two: False}
            for _ in range(120):
                client, line = chance.choice(travellers), chance.choice((one, two))
                told = client.branch not in (None, line)
                halted[line] |= told
                error = await client.visits(line)
                assert halted[line] == (error is not None), str(error)
                if error is None:
                    seen["answered"] += 1
                else:
                    _refusal(error, here.constraint)
                    seen["told of it" if told else "at a host that had stopped"] += 1
                if chance.random() < (0.5 if halted[line] else 0.05):
                    # The next boot knows nothing of it, until the next client comes.
                    here.nursery.kill(line.name, *chance.choice((("host", "enclave"), ("enclave",))))
                    halted[line] = False
            for line in (one, two):
                await line.stop()
            assert here.findings().repeated == 0
            assert not here.nursery.errors
            assert all(any(event["event"] == "halted" for event in line.events) for line in (one, two))
        return seen

    seen = asyncio.run(main())
    assert all(seen[what] > 10 for what in ("told of it", "at a host that had stopped", "answered")), seen


def _refusal(error: RollbackError, constraint: Constraint) -> Statement:
    """What an enclave signed, verified as a stranger would."""
    signed = error.evidence[0]
    instance = verify_instance(signed.instance_info, constraint, now=datetime.now(UTC))
    assert instance.claims_digest == signed.claims_digest
    statement: Statement = signed.verify(instance.claims.signing_key)
    assert statement.refused_version is not None
    return statement
