"""When to ask a vendor, when to wait, when to give up: decisions without IO.

Untrusted. Time and chance come in as arguments.

Spec: spec/endorsements.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final

from conclave.host.endorsements.documents import (
    ChipCertificate,
    FamilyChain,
    FamilyList,
    PckList,
    QeIdentity,
    RootList,
    TcbInfo,
    Window,
)

CLOCK_SKEW: Final = timedelta(minutes=5)
MINIMUM_AGE: Final = timedelta(minutes=10)
FIRST_DELAY: Final = timedelta(seconds=2)
LONGEST_DELAY: Final = timedelta(hours=1)
MISSING_FOR: Final = timedelta(hours=1)
LONGEST_RETRY_AFTER: Final = timedelta(days=1)
# How old a document may become before it is asked for again, although it is still valid. AMD's keys and
# what certifies them age alike: a new signing key comes with new certificates below it.
MAXIMUM_AGE: Final[dict[type, timedelta]] = {
    RootList: timedelta(days=1),
    PckList: timedelta(days=1),
    TcbInfo: timedelta(days=1),
    QeIdentity: timedelta(days=1),
    ChipCertificate: timedelta(days=7),
    FamilyChain: timedelta(days=7),
    FamilyList: timedelta(days=1),
}


class Act(Enum):
    """What to do about one document."""

    USE = "use"
    REFRESH = "refresh"
    KEEP = "keep"
    FETCH = "fetch"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Held:
    """A document in hand: when it was fetched, how long it is valid, how old it may become."""

    fetched: datetime
    window: Window
    maximum_age: timedelta

    def usable(self, now: datetime) -> bool:
        """Whether a client whose clock is right accepts it."""
        return self.window.issued - CLOCK_SKEW <= now <= self.window.valid_until

    def due(self) -> datetime:
        """When to ask for it again: at its greatest age, or when half of the time left to it has passed."""
        left = (self.window.valid_until - self.fetched) / 2
        return self.fetched + max(MINIMUM_AGE, min(self.maximum_age, left))


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong the last times.

    Attributes:
        failures: in a row.
        until: nothing is asked before this time.
        missing: the vendor said that there is no such document.
        code: the last failure's word.
    """

    failures: int
    until: datetime
    missing: bool
    code: str


def decide(held: Held | None, trouble: Trouble | None, pause: datetime | None, now: datetime) -> Act:
    """What to do about one document.

    Args:
        held: the newest in hand.
        trouble: of this document.
        pause: until when its vendor told us to leave it alone.
        now: aware UTC time.
    """
    usable = held is not None and held.usable(now)
    if held is not None and usable and held.fetched - CLOCK_SKEW <= now < held.due():
        return Act.USE
    waits = trouble is not None and ahead(trouble.until, now)
    if not waits and not (pause is not None and ahead(pause, now)):
        return Act.REFRESH if usable else Act.FETCH
    if usable:
        return Act.KEEP
    return Act.REFUSE if waits and trouble is not None and trouble.missing else Act.WAIT


def ahead(until: datetime, now: datetime) -> bool:
    """Whether to wait for it. What lies further ahead than any wait is from a clock that was wrong."""
    return now < until <= now + LONGEST_RETRY_AFTER + CLOCK_SKEW


def failed(
    before: Trouble | None, *, code: str, missing: bool, retry_after: timedelta | None, now: datetime, chance: float
) -> Trouble:
    """Trouble after one more failure.

    Waits double from 2 seconds to an hour, each shortened at random by up to half,
    so that hosts that failed together do not come back together. What the vendor
    asks for is never undercut.

    Args:
        chance: from 0 up to 1.
    """
    # What fails together, before anybody could wait, counts once.
    together = before is not None and now < before.until
    failures = 1 if before is None else before.failures + (not together)
    delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures - 1, 16)) * (1 - chance / 2)
    if missing:
        delay = max(delay, MISSING_FOR)
    if retry_after is not None:
        delay = max(delay, retry_after)
    until = max(now + delay, before.until) if before is not None and ahead(before.until, now) else now + delay
    return Trouble(failures, until, missing, code)


def retry_after(text: str, now: datetime) -> timedelta | None:
    """How long a `Retry-After` header asks to wait (RFC 9110 section 10.2.3); None if it says nothing.

    A day at most: a vendor's slip must not silence a host for ever.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        wait = timedelta(seconds=min(int(text[:9]), 10**8))
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        wait = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now
    return min(max(wait, timedelta(0)), LONGEST_RETRY_AFTER)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A rate limit: `burst` requests at once, then one in each `interval`.

    Attributes:
        left: requests that may go now, as of `at`.
    """

    burst: int
    interval: timedelta
    left: float
    at: datetime

    @classmethod
    def full(cls, burst: int, interval: timedelta, now: datetime) -> Bucket:
        return cls(burst, interval, float(burst), now)

    def take(self, now: datetime) -> tuple[Bucket, timedelta]:
        """Take one: the bucket afterwards, and how long to wait before sending."""
        gained = max(timedelta(0), now - self.at) / self.interval
        left = min(float(self.burst), self.left + gained) - 1
        return replace(self, left=left, at=max(now, self.at)), max(timedelta(0), -left * self.interval)
