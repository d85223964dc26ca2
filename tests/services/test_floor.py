"""The time of an enclave with state does not go back by starting it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conformance.test_pipeline import CLEANER, SCORER, host
from tests.services.test_state import serving

from conclave.bundle import Bundle
from conclave.client import Client

KEEPING = SCORER.replace("callers =", 'persistence = "code"\n    callers =')
DAYS_AGO = -20


@pytest.mark.spec("MAIL-49", "STATE-41")
def test_a_restart_does_not_turn_time_back(
    tmp_path: Path, author: Callable[..., Bundle], only: Callable[[Bundle], str]
) -> None:
    scorer, cleaner = author("keeping", KEEPING), author("cleaner", CLEANER)

    def accepted(*, days: int) -> str:
        """What the scorer says to the cleaner, in a boot of its own whose host has that time."""
        with (
            serving(scorer, tmp_path) as b,
            host(tmp_path / "machine-a", cleaner, peers=[b.url]) as a,
            Client(b.url, constraint=only(scorer)) as owner,
            Client(a.url, constraint=only(cleaner)) as client,
        ):
            owner.call("set_clock", days)
            owner.call("allow", "cleaner", only(cleaner))
            return str(client.call("call", b.url, only(scorer), "whoami", True))

    # Before it accepted anything, it believes its host: nothing is valid yet.
    assert "NotIntroduced" in accepted(days=DAYS_AGO)
    assert accepted(days=0) == "cleaner"
    # From now on it is no earlier than what was accepted, in whatever boot.
    for _ in range(2):
        assert accepted(days=DAYS_AGO) == "cleaner"
