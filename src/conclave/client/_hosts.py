"""Which host a client talks to, how long it waits between attempts, and what it tells meanwhile.

Runs at the relying party. Hosts are untrusted: one is left for the next because it
does not answer, never because of what it says of the enclave. Which instance each
has is verified anew (`core`).

Spec: spec/mail.md section 6 (MAIL-54).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from conclave import _crypto

FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 2.0
# A host may ask for more patience than we would have, not for any amount of it.
LONGEST_HINT_SECONDS: Final = 10.0
MAX_HOSTS: Final = 64
_MAX_EVENTS: Final = 1024


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """Something a client does besides sending what it was given; for `on_event`.

    Attributes:
        kind: `verifying`, `verified`, `waiting` (before it tries again), `retrying`,
            `failed over` (to `host`), or `unanswered` (saved state holds requests
            without an answer; see `resume`).
        host: number of the address in the list given to the client, from 0.
        attempt: which attempt failed, from 1; 0 where that says nothing.
        seconds: how long it waits.
        reason: why, in our own words.
    """

    kind: str
    host: int
    attempt: int = 0
    seconds: float = 0.0
    reason: str = ""


class Hosts:
    """The addresses of one enclave's interchangeable replicas; stays with one that works."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.current = 0
        # Told by the driver outside its lock; bounded in case it never does.
        self.events: deque[ClientEvent] = deque(maxlen=_MAX_EVENTS)

    def leave(self, host: int, reason: str) -> bool:
        """Go on to the next host, unless somebody left that one already. False: there is no other."""
        if self.count == 1:
            return False
        if host == self.current:
            self.current = (host + 1) % self.count
            self.tell("failed over", reason=reason)
        return True

    def tell(self, kind: str, *, attempt: int = 0, seconds: float = 0.0, reason: str = "") -> None:
        """Queue an event."""
        self.events.append(ClientEvent(kind, self.current, attempt, seconds, reason))


def delay_seconds(attempt: int, hint_seconds: float = 0.0) -> float:
    """Exponential back-off with full jitter; a host's `Retry-After` makes it longer, within bounds.

    The randomness is the system's: clients that were forked together do not come back together.
    """
    # Beyond this exponent the bound has long been reached.
    longest = min(FIRST_DELAY_SECONDS * 2.0 ** min(attempt, 16), LONGEST_DELAY_SECONDS)
    part = int.from_bytes(_crypto.random_bytes(6), "big") / 2**48
    return max(part * longest, min(hint_seconds, LONGEST_HINT_SECONDS))
