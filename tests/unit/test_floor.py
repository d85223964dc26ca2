"""The floor of time in sealed state: what raises it, and what carries it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests._stored import OPTIONS, restore

from conclave._framing import Kind
from conclave.attestation.appraisal import AttestationResult
from conclave.enclave._clock import Clock
from conclave.enclave._state import State
from conclave.persistence.log import Log

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 1, 12, 0, 0, 700_000, tzinfo=UTC)
SECONDS = int(NOW.timestamp())


def accepted(valid_from: datetime) -> AttestationResult:
    return cast(AttestationResult, SimpleNamespace(evidence=SimpleNamespace(valid_from=valid_from)))


class Boot:
    """A state, its clock, and the entries that the host was given."""

    def __init__(self, log: Log, entries: list[bytes]) -> None:
        self.entries = entries
        self.state = State(log, self._send, full=lambda: False)
        # A host that says it is 1970.
        self.clock = Clock(
            lambda: datetime.fromtimestamp(1, UTC), floor=self.state.log.floor, raised=self.state.raise_floor
        )

    def _send(self, kind: int, request: int, *payload: Any) -> None:
        if kind == Kind.COMMIT:
            self.entries.append(bytes(payload[1]))

    def write(self, value: bytes) -> None:
        self.state.put(b"row", value)
        self.state.flush()

    def again(self) -> Boot:
        return Boot(restore(self.entries), list(self.entries))


def first() -> Boot:
    return Boot(Log.begin(**OPTIONS), [])


@pytest.mark.spec("STATE-41", "MAIL-49")
async def test_a_floor_that_rose_is_in_the_next_record() -> None:
    boot = first()
    assert boot.clock.now().year == 1970
    boot.write(b"1")
    boot.clock.accept(accepted(NOW))
    # It makes none of its own.
    boot.state.flush()
    assert len(boot.entries) == 2
    assert boot.again().clock.now().year == 1970
    boot.write(b"2")
    assert boot.again().clock.now() == NOW.replace(microsecond=0)


@pytest.mark.spec("STATE-41", "MAIL-49")
async def test_a_floor_outlives_every_boot_and_does_not_fall() -> None:
    boot = first()
    boot.clock.accept(accepted(NOW))
    boot.write(b"1")
    for number in range(3):
        boot = boot.again()
        assert boot.state.log.floor == SECONDS
        boot.clock.accept(accepted(NOW - timedelta(days=1)))
        boot.write(b"%d" % number)
    later = NOW + timedelta(days=1)
    boot.clock.accept(accepted(later))
    boot.clock.accept(accepted(NOW))
    boot.write(b"x")
    assert boot.again().clock.now() == later.replace(microsecond=0)


@pytest.mark.spec("STATE-41")
async def test_a_snapshot_has_the_floor() -> None:
    boot = first()
    boot.clock.accept(accepted(NOW))
    boot.write(b"1")
    chunks = list(boot.state.log.snapshot())
    assert restore([], chunks).floor == SECONDS


@pytest.mark.spec("MAIL-49")
def test_the_clock_tells_of_what_is_newer_alone() -> None:
    told: list[int] = []
    clock = Clock(lambda: NOW, floor=SECONDS, raised=told.append)
    for days in (-1, 0, 2, 1):
        clock.accept(accepted(NOW.replace(microsecond=0) + timedelta(days=days)))
    assert told == [SECONDS + 2 * 86400]
    assert clock.now() == NOW.replace(microsecond=0) + timedelta(days=2)
