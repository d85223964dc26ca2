"""State contexts at a client: the newest of a log, and replies that contradict what was said before.

Runs at the client, without IO. A context is the enclave's word, authentic in a
session or a posted mail: what contradicts it is a history other than the one that
this client saw.

Spec: spec/mail.md section 13 (MAIL-61 to MAIL-63).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from conclave.errors import FormatError, RollbackError
from conclave.mail._wire import CONTEXT_SIZE, NO_CONTEXT, version_of

# Version, boot and digest; what follows is the tag, which is the log's own business.
_SAID: Final = 56
# A host that withholds one reply for long makes room for no more than this.
_MOST_ABOVE: Final = 4096


class Contexts:
    """The newest state context that a client has of one log: what it shows in each of its mails."""

    __slots__ = ("_newest",)

    def __init__(self, newest: bytes = b"") -> None:
        """Begin, or go on with what was saved. Raises FormatError."""
        if newest and len(newest) != CONTEXT_SIZE:
            raise FormatError(f"a state context has {CONTEXT_SIZE} bytes, not {len(newest)}")
        self._newest = newest or NO_CONTEXT

    @property
    def newest(self) -> bytes:
        """72 bytes; zeros while there is none."""
        return self._newest

    @property
    def version(self) -> int:
        """The version that it names."""
        return version_of(self._newest)

    def take(self, context: bytes) -> None:
        """Learn a context. An older one is late, and no news.

        Raises:
            RollbackError: it contradicts the newest.
        """
        newest, version = self._newest, version_of(context)
        if newest == NO_CONTEXT or version > self.version:
            self._newest = context
        elif version == self.version and context[:_SAID] != newest[:_SAID]:
            raise RollbackError(
                f"there are two histories of this enclave's state: version {version} was shown to this client in two "
                "different forms. The host runs it twice from one state, or put back an older one: rely on nothing it "
                "says now; ask its operator, and other clients"
            )


class VersionOrder:
    """The versions that replies of one session named, by their counters: they never fall."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        # In order. Of those below which nothing can come any more, the last one is kept.
        self._seen: list[tuple[int, int]] = []

    def check(self, counter: int, version: int) -> None:
        """Raises RollbackError: an earlier reply named a later version, or the other way round."""
        at = bisect_left(self._seen, (counter, 0))
        before = self._seen[at - 1][1] if at else 0
        after = self._seen[at][1] if at < len(self._seen) else version
        if not before <= version <= after:
            raise RollbackError(
                f"the enclave's state went back: this reply is of version {version}, where one that was sent before it "
                f"is of version {before} and one after it of {after}. Rely on nothing that it says now"
            )

    def add(self, counter: int, version: int, *, below: int) -> None:
        """Remember one that was checked; all replies with counters below `below` were received."""
        seen = self._seen
        seen.insert(bisect_left(seen, (counter, 0)), (counter, version))
        done = max(bisect_left(seen, (below, 0)), len(seen) - _MOST_ABOVE)
        if done > 1:
            del seen[: done - 1]
