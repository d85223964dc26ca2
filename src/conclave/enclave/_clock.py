"""The time inside an enclave that verifies others.

Runs inside the enclave. The clock is the host's, and it may go any way; it cannot go
back behind what a vendor has signed, in an enclave with state not by starting it again either.

Spec: spec/mail.md section 9 (MAIL-49), spec/state.md section 8 (STATE-41).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from conclave.attestation.appraisal import AttestationResult


def host_time() -> datetime:
    """What the host's clock says."""
    return datetime.now(UTC)


class Clock:
    """`now = max(host clock, floor)`: the floor is the newest issue date that was accepted."""

    def __init__(
        self,
        host: Callable[[], datetime] = lambda: host_time(),
        *,
        floor: int = 0,
        raised: Callable[[int], None] = lambda floor: None,
    ) -> None:
        """Begin where earlier boots ended.

        Args:
            floor: in seconds since 1970; 0: none.
            raised: told of each higher one, rounded down, before it is reckoned with.
        """
        self._host = host
        self._floor = datetime.fromtimestamp(floor, UTC) if floor else None
        self._raised = raised

    def now(self) -> datetime:
        """Aware UTC time, never before the floor."""
        told = self._host()
        return told if self._floor is None else max(told, self._floor)

    def accept(self, result: AttestationResult) -> None:
        """Raise the floor to the newest issue date of what a constraint accepted."""
        # Everything that was used is valid from there on: its latest issue date.
        newest = result.evidence.valid_from
        if self._floor is None or newest > self._floor:
            self._raised(int(newest.timestamp()))
            self._floor = newest
