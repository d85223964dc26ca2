"""Ten thousand kills of hosts and enclaves, also over stores that are not well: nothing is lost, nothing comes twice.

`CONCLAVE_LOAD_KILLS` says how many; without a long run (`make load`) there are few.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests._kills import ledger
from tests._kills.clients import siege
from tests._kills.processes import besiege
from tests._kills.world import Place, world
from tests.load._rig import report, scaled

from conclave.bundle import Bundle

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CONCLAVE_LOAD_KILLS", scaled(40, 10_000)))
LINES = scaled(1, 12)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("faults", ["none", "second", "full", "slow"])
def test_kills_at_random_moments(faults: str, place: Place, tmp_path: Path) -> None:
    """As many as were asked for of a host whose store is well, a tenth of that with each way in which it is not."""

    async def main() -> None:
        kills = KILLS if faults == "none" else KILLS // 10
        async with world(place, tmp_path / "world", seed=KILLS) as here:
            # Of them some end by themselves, within a write or between an encryption and what comes of it.
            figures = await siege(
                here, kills=-(-kills // LINES), lines=LINES, enclave_dies=0.1, host_dies=0.2, faults=faults
            )
        report(f"killed, store faults: {faults}", **figures)

    asyncio.run(main())


def test_kills_of_real_processes(author: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = author("ledger", Path(ledger.__file__).read_text())
    report("real processes killed", **besiege(bundle, tmp_path, kills=scaled(3, 30), callers=scaled(2, 6), seed=2))
