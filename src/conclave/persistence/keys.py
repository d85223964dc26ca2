"""Keys of a table in order, a page at a time.

Pure. The order is that of code points, which is also that of their UTF-8 bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from itertools import islice
from typing import Final

# A list of this many moves 4 KiB on average for an insertion, less than it takes to find the place.
_CHUNK: Final = 1024


def after(key: str) -> str:
    """The least key that is greater."""
    return key + "\0"


def beyond(prefix: str) -> str | None:
    """The least text greater than all that begin so; None if there is none."""
    rest = prefix.rstrip(chr(0x10FFFF))
    return rest[:-1] + chr(ord(rest[-1]) + 1) if rest else None


class SortedKeys:
    """A set of keys as sorted lists of bounded size, none empty. What a change costs hardly grows with their number."""

    __slots__ = ("_chunks", "_lows")

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Take keys that are in order already, each once."""
        source = iter(keys)
        self._chunks: list[list[str]] = []
        while chunk := list(islice(source, _CHUNK * 3 // 4)):
            self._chunks.append(chunk)
        # What each chunk begins with, or was before that was removed: the one before ends below it.
        self._lows = [chunk[0] for chunk in self._chunks]

    def add(self, key: str) -> None:
        """Put in a key that is not there."""
        if not self._chunks:
            self._chunks.append([key])
            self._lows.append(key)
            return
        at = self._chunk_of(key)
        if key < self._lows[at]:
            self._lows[at] = key
        chunk = self._chunks[at]
        insort(chunk, key)
        if len(chunk) > _CHUNK:
            # What grows at its end, as logs do, leaves full lists behind.
            half = _CHUNK if chunk[-1] is key else _CHUNK // 2
            self._chunks.insert(at + 1, chunk[half:])
            self._lows.insert(at + 1, chunk[half])
            del chunk[half:]

    def remove(self, key: str) -> None:
        """Take out a key that is there."""
        at = self._chunk_of(key)
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, key)]
        if not chunk:
            del self._chunks[at], self._lows[at]
        elif at and len(chunk) < _CHUNK // 8 and len(self._chunks[at - 1]) < _CHUNK // 2:
            self._chunks[at - 1] += chunk
            del self._chunks[at], self._lows[at]

    def page(self, low: str, high: str | None, limit: int, *, reverse: bool = False) -> list[str]:
        """Some keys from `low` on that are less than `high`, at most `limit`; none only if there are none.

        Args:
            high: None is no end.
            reverse: from the end, in falling order.
        """
        if not self._chunks or (high is not None and low >= high):
            return []
        if reverse:
            return self._page_back(low, high, limit)
        at = self._chunk_of(low)
        begin = bisect_left(self._chunks[at], low)
        if begin == len(self._chunks[at]):
            at, begin = at + 1, 0
            if at == len(self._chunks):
                return []
        found = self._chunks[at][begin : begin + limit]
        if high is not None and found[-1] >= high:
            del found[bisect_left(found, high) :]
        return found

    def _page_back(self, low: str, high: str | None, limit: int) -> list[str]:
        at = len(self._chunks) - 1 if high is None else bisect_left(self._lows, high) - 1
        if at < 0:
            return []
        end = len(self._chunks[at]) if high is None else bisect_left(self._chunks[at], high)
        if not end:
            at -= 1
            if at < 0:
                return []
            end = len(self._chunks[at])
        found = self._chunks[at][max(end - limit, 0) : end]
        if found[0] < low:
            del found[: bisect_left(found, low)]
        found.reverse()
        return found

    def _chunk_of(self, key: str) -> int:
        return max(bisect_right(self._lows, key) - 1, 0)
