"""State contexts at a client: what it was told of a log, and replies that contradict what was said before.

Runs at the client, without IO. A context is the enclave's word, authentic in a
session or a posted mail: what contradicts it is a history other than the one that
this client saw.

Spec: spec/mail.md section 13 (MAIL-61 to MAIL-63).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from conclave.errors import FormatError, RollbackError
from conclave.mail._wire import BARE, CONTEXT_SIZE, NO_CONTEXT, Reply, version_of

# Version, boot and digest; what follows is the tag, which is the log's own business.
_SAID: Final = 56
# Of how many boots a client holds what no other one has answered to. More than two take late mail of as many boots.
MAX_HELD: Final = 64
# A host that withholds one reply for long makes room for no more than this.
_MOST_ABOVE: Final = 4096


class Contexts:
    """What a client was told of one log: the newest state context of each boot that it heard of.

    One in all is not enough. Posted mail and heads of streams come late: a client that has version
    7 of one boot and is then told version 5 of another cannot know which history lacks what, and
    has to show both. What a boot answered to is in its history, and need not be shown any more.
    """

    __slots__ = ("_boots", "_held")

    def __init__(self, saved: bytes = b"") -> None:
        """Begin, or go on with what was saved. Raises FormatError."""
        if len(saved) % CONTEXT_SIZE or len(saved) > MAX_HELD * CONTEXT_SIZE:
            raise FormatError(
                f"state contexts have {CONTEXT_SIZE} bytes each, not {len(saved)}, and are {MAX_HELD} at most"
            )
        contexts = [saved[at : at + CONTEXT_SIZE] for at in range(0, len(saved), CONTEXT_SIZE)]
        # By boot. Versions stand first, big-endian, so that the greatest of contexts is the newest.
        self._held = {_boot_of(context): context for context in contexts if context != NO_CONTEXT}
        # Which boot an instance is, once it said something.
        self._boots: dict[bytes, bytes] = {}

    @property
    def saved(self) -> bytes:
        """All of them, for saved state."""
        return b"".join(sorted(self._held.values()))

    @property
    def newest(self) -> bytes:
        """72 bytes, of the highest version; zeros while there is none."""
        return max(self._held.values(), default=NO_CONTEXT)

    @property
    def version(self) -> int:
        """The version that it names."""
        return version_of(self.newest)

    def shown(self, instance: bytes) -> bytes:
        """What the next mail to an instance (its claims digest) shows; zeros while there is nothing.

        One of another boot, if there is any: only what others said can prove anything.
        """
        boot = self._boots.get(instance)
        others = [context for of, context in self._held.items() if of != boot]
        return max(others) if others else self.newest

    def own(self, context: bytes, instance: bytes) -> bool:
        """Whether this instance is known to be of the boot that said it, or it says nothing."""
        return context == NO_CONTEXT or _boot_of(context) == self._boots.get(instance)

    def take(self, context: bytes, *, instance: bytes) -> None:
        """Learn what an instance (its claims digest) said. An older context is late, and no news.

        Raises:
            RollbackError: it contradicts what this client knows; nothing changed.
        """
        version, boot = version_of(context), _boot_of(context)
        for known in self._held.values():
            if version_of(known) == version and context[:_SAID] != known[:_SAID]:
                raise RollbackError(
                    f"there are two histories of this enclave's state: version {version} was shown to this client in "
                    "two different forms. The host runs it twice from one state, or put back an older one: rely on "
                    "nothing it says now; ask its operator, and other clients"
                )
        if boot not in self._held or version > version_of(self._held[boot]):
            self._held[boot] = context
            if len(self._held) > MAX_HELD:
                del self._held[_boot_of(min(self._held.values()))]
        self._boots.pop(instance, None)
        self._boots[instance] = boot
        if len(self._boots) > MAX_HELD:
            del self._boots[next(iter(self._boots))]

    def answered(self, context: bytes, *, instance: bytes, shown: bytes | None) -> None:
        """Learn the context of an answer; of what its mail had shown of another boot, that it is in the same history.

        Raises:
            RollbackError: as `take`.
        """
        self.take(context, instance=instance)
        boot = _boot_of(context)
        if shown is not None and _boot_of(shown) != boot and self._held.get(_boot_of(shown), shown)[:8] <= shown[:8]:
            self._held.pop(_boot_of(shown), None)


def _boot_of(context: bytes) -> bytes:
    return context[8:24]


def check_echo(reply: Reply, shown: int) -> None:
    """Check a reply against the version that the request it answers had shown.

    Raises:
        RollbackError: it answers what was shown with something else, or with an older state.
    """
    if reply.kind in BARE:
        return
    if reply.echo != shown or (reply.context and version_of(reply.context) < shown):
        raise RollbackError(
            f"the enclave's state went back: this client had shown it version {shown}, and the answer is of version "
            f"{version_of(reply.context)}, to one that showed {reply.echo}. Rely on nothing that it says now"
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
