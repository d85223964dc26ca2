"""What scans of a transaction looked at, so that a key that comes into it or goes is noticed.

Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from operator import itemgetter

from conclave.persistence.keys import after


class Range:
    """Keys of the snapshot that a scan looked at: of `low` to `high`, as far as it came."""

    __slots__ = ("done", "high", "last", "low", "reverse")

    def __init__(self, low: str, high: str | None, reverse: bool) -> None:
        self.low = low
        self.high = high
        self.reverse = reverse
        self.last: str | None = None
        self.done = False

    def bounds(self) -> tuple[str, str | None]:
        """From here on, and less than that; None is no end."""
        if self.done:
            return self.low, self.high
        if self.last is None:
            return self.low, self.low
        return (self.last, self.high) if self.reverse else (self.low, after(self.last))


def covers(ranges: Iterable[Range]) -> Callable[[str], bool]:
    """Tells whether a key is in one of the ranges."""
    lows: list[str] = []
    highs: list[str | None] = []
    for low, high in sorted((r.bounds() for r in ranges), key=itemgetter(0)):
        if lows and (highs[-1] is None or low <= highs[-1]):
            highs[-1] = None if highs[-1] is None or high is None else max(highs[-1], high)
        else:
            lows.append(low)
            highs.append(high)

    def covered(key: str) -> bool:
        at = bisect_right(lows, key) - 1
        if at < 0:
            return False
        high = highs[at]
        return high is None or key < high

    return covered
