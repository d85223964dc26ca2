"""How often something may happen: token buckets.

Pure; the caller has the clock.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_NAMES: Final = 10_000


@dataclass(slots=True)
class Bucket:
    """Lets `burst` through at once, and `per_second` in the long run."""

    per_second: float
    burst: float
    left: float
    at: float

    def take(self, now: float) -> bool:
        """Whether one more may happen now; it is counted if it may."""
        self.left = min(self.burst, self.left + (now - self.at) * self.per_second)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Buckets:
    """One for each name; the least used are forgotten, and begin full again."""

    def __init__(self, per_second: float, burst: float) -> None:
        """All are full."""
        self._per_second = per_second
        self._burst = burst
        self._of: OrderedDict[bytes, Bucket] = OrderedDict()

    def take(self, name: bytes, now: float) -> bool:
        """Whether one more may happen under that name now; it is counted if it may."""
        bucket = self._of.setdefault(name, Bucket(self._per_second, self._burst, self._burst, now))
        self._of.move_to_end(name)
        if len(self._of) > MAX_NAMES:
            self._of.popitem(last=False)
        return bucket.take(now)
