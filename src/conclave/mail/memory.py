"""What channels keep in the state of a log, so that a request runs once though the enclave restarts.

Runs inside the enclave, without IO. Rows come back only from records that
authenticated; they are decoded strictly all the same.

Spec: spec/mail.md section 13 (MAIL-64, MAIL-65).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Protocol, TypeVar

import msgspec

from conclave import _crypto
from conclave._mailheader import NONE
from conclave.errors import FormatError, StateError
from conclave.mail._wire import FLAG_LAST, Reply
from conclave.mail.padding import Padding

# First bytes of the keys of rows: the mailbox's own. What else is kept in the same space has others.
CHANNEL: Final = b"c"
REQUEST: Final = b"q"
CLOSED: Final = b"x"
FORGOT: Final = b"f"
_IDENTITY: Final = slice(1, 33)
_STRAND: Final = slice(33, 41)
_SEQUENCE: Final = slice(41, 49)
_NUMBER_SIZE: Final = 8
# Beside each request.
_FORGOTTEN_AT_ONCE: Final = 16

T = TypeVar("T")
# Identity, topic, strand.
Key = tuple[bytes, str, int]


class Memory(Protocol):
    """The state of a log, as far as mail needs it.

    Attributes:
        log_id: 32 bytes: openings have to name it.
        rows: what was restored; read once, at the start.
    """

    @property
    def log_id(self) -> bytes: ...

    @property
    def rows(self) -> Mapping[bytes, bytes]: ...

    def put(self, key: bytes, value: bytes | None, *, lazily: bool = False) -> None:
        """A row changed; None: it is gone. It belongs to the next record.

        Args:
            lazily: no record need be made for this alone: what is lost with it does no harm.
        """

    def check(self, context: bytes, identity: bytes) -> int:
        """The version of a context (72 bytes) that this log gave to this client; 0 for none (zeros).

        Raises:
            RollbackError: it is genuine, and not in this history.
            StateError: any other: the log never gave it to this client.
        """

    def context(self, identity: bytes) -> bytes:
        """The context (72 bytes) of the newest sealed record, for one client."""

    def mark(self, head: bytes, body: bytes | memoryview) -> bytes:
        """Recognises the two again, in every boot of the log, and tells nobody else of them."""


class StableMarker:
    """Marks of requests that hold in every boot: where a log is, in place of `Marker`."""

    __slots__ = ("_mark",)

    def __init__(self, memory: Memory) -> None:
        self._mark = memory.mark

    def mark(self, head: bytes, body: bytes) -> bytes:
        """A mark of these two, the same in every boot."""
        # Its size stands first: what belongs to which of them is no one's choice.
        return self._mark(bytes((len(head),)) + head, body)

    def fits(self, mark: bytes, head: bytes, body: bytes) -> bool:
        """Whether that mark was made of these two."""
        return _crypto.same(mark, self.mark(head, body))


class Finished:
    """Which requests of a channel are done: all below a number, and runs of them above it.

    There are never more runs than requests that were started and are not done, of which a
    channel has 1024 at most.
    """

    __slots__ = ("_starts", "_stops", "low")

    def __init__(self, low: int = 0, runs: list[int] | None = None) -> None:
        """Begin, or go on: `runs` are first and end of each, in turn. Raises ValueError."""
        edges = runs or []
        ascending = all(a < b for a, b in zip([low, *edges], edges, strict=False))
        if len(edges) % 2 or not ascending or not 0 <= low <= (edges or [low])[-1] < NONE:
            raise ValueError("runs of numbers are ascending, apart from each other, and end somewhere")
        self.low = low
        self._starts, self._stops = edges[::2], edges[1::2]

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return number < self.low or (at >= 0 and number < self._stops[at])

    @property
    def runs(self) -> list[int]:
        """First and end of each run above `low`, in turn."""
        return [edge for run in zip(self._starts, self._stops, strict=True) for edge in run]

    @property
    def end(self) -> int:
        """Nothing from here on is done."""
        return self._stops[-1] if self._stops else self.low

    def after(self, number: int) -> int:
        """The first from there on that is not done."""
        if number < self.low:
            return self.low
        at = bisect_right(self._starts, number) - 1
        return self._stops[at] if at >= 0 and number < self._stops[at] else number

    def add(self, number: int) -> None:
        """One more is done."""
        if number in self:
            return
        starts, stops = self._starts, self._stops
        if number == self.low:
            self.low = number + 1
            if starts and starts[0] == self.low:
                self.low = stops.pop(0)
                del starts[0]
            return
        at = bisect_right(starts, number)
        joins_before, joins_after = at > 0 and stops[at - 1] == number, at < len(starts) and starts[at] == number + 1
        if joins_before and joins_after:
            stops[at - 1] = stops.pop(at)
            del starts[at]
        elif joins_before:
            stops[at - 1] = number + 1
        elif joins_after:
            starts[at] = number
        else:
            starts.insert(at, number)
            stops.insert(at, number + 1)


class _ChannelRow(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    low: int
    runs: list[int]
    next_reply: int
    used: int


class _ReplyRow(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    kind: int
    sequence: int
    acknowledged: int
    body: bytes
    envelope: bytes
    padding: str | None


class _RequestRow(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    mark: bytes
    padding: str
    replies: list[_ReplyRow]


class Answered(msgspec.Struct, frozen=True):
    """A request that is done, and whose replies its client may lack."""

    sequence: int
    mark: bytes
    padding: Padding
    replies: list[Reply]


class Kept(msgspec.Struct):
    """One channel as rows had it."""

    finished: Finished
    next_reply: int
    used: int
    answered: list[Answered]


class Restored(msgspec.Struct):
    """All that rows say.

    Attributes:
        closed: strands that were given up, and how many requests each had taken.
        forgot: whether older ones are no longer known by name.
    """

    channels: dict[Key, Kept]
    closed: dict[Key, int]
    forgot: bool


_encode = msgspec.msgpack.Encoder().encode
_channel_row = msgspec.msgpack.Decoder(_ChannelRow).decode
_request_row = msgspec.msgpack.Decoder(_RequestRow).decode


def key_of(prefix: bytes, channel: Key, sequence: int | None = None) -> bytes:
    """Under which a row of that channel, or of one of its requests, is kept."""
    identity, topic, strand = channel
    number = b"" if sequence is None else sequence.to_bytes(_NUMBER_SIZE, "big")
    return prefix + identity + strand.to_bytes(_NUMBER_SIZE, "big") + number + topic.encode("ascii")


class ChannelRows:
    """The rows of one channel."""

    __slots__ = ("_channel", "_memory", "_row", "finished")

    def __init__(self, memory: Memory, channel: Key, finished: Finished | None = None) -> None:
        self._memory = memory
        self._channel = channel
        self._row = key_of(CHANNEL, channel)
        self.finished = finished or Finished()

    def finish(
        self, sequence: int, mark: bytes, padding: Padding, replies: list[Reply], *, next_reply: int, used: int
    ) -> None:
        """A request is done: its replies are kept until they are acknowledged."""
        self.finished.add(sequence)
        kept = [
            _ReplyRow(
                reply.kind,
                reply.sequence,
                reply.acknowledged,
                reply.body,
                reply.envelope,
                None if reply.padding is padding or reply.padding is None else str(reply.padding),
            )
            for reply in replies
        ]
        put = self._memory.put
        put(key_of(REQUEST, self._channel, sequence), _encode(_RequestRow(mark, str(padding), kept)))
        put(self._row, _encode(_ChannelRow(self.finished.low, self.finished.runs, next_reply, used)))

    def acknowledged(self, sequence: int) -> None:
        """Its client has all replies to that request."""
        # If this is lost they are kept once more, until the client says so again.
        self._memory.put(key_of(REQUEST, self._channel, sequence), None, lazily=True)

    def close(self, taken: int, requests: list[int]) -> None:
        """The strand is given up; with it the replies to those requests."""
        put = self._memory.put
        put(key_of(CLOSED, self._channel), taken.to_bytes(_NUMBER_SIZE, "big"))
        put(self._row, None)
        for sequence in requests:
            put(key_of(REQUEST, self._channel, sequence), None)


class LogRows:
    """All rows of the mailbox in a log."""

    def __init__(self, log: Memory) -> None:
        self._log = log
        # Closed strands that are forgotten, whose rows are still to be removed.
        self._forgotten: deque[Key] = deque()

    def restore(self) -> Restored:
        """What earlier boots left. Raises StateError."""
        return restore(self._log.rows)

    def marker(self) -> StableMarker:
        """What recognises requests."""
        return StableMarker(self._log)

    def channel(self, key: Key, finished: Finished | None = None) -> ChannelRows:
        """The rows of one channel."""
        return ChannelRows(self._log, key, finished)

    def forget(self, strands: Iterable[Key]) -> None:
        """Those closed strands are known by their marks alone."""
        self._log.put(FORGOT, b"")
        self._forgotten.extend(strands)

    def tidy(self) -> None:
        """Remove some rows of what is forgotten: all at once would be a record without end."""
        for _ in range(min(_FORGOTTEN_AT_ONCE, len(self._forgotten))):
            self._log.put(key_of(CLOSED, self._forgotten.popleft()), None, lazily=True)


def restore(rows: Mapping[bytes, bytes]) -> Restored:
    """Read all rows of the mailbox; others are left alone.

    Raises:
        StateError: they are not what a mailbox wrote.
    """
    try:
        return _restore(rows)
    except (msgspec.MsgspecError, FormatError, ValueError, IndexError):
        raise StateError(
            "the records of this log are authentic, and their rows of mail are not what this release writes: "
            "start it with the release that wrote them"
        ) from None


def _restore(rows: Mapping[bytes, bytes]) -> Restored:
    restored = Restored({}, {}, FORGOT in rows)
    for key, value in _of(rows, CHANNEL):
        row = _channel_row(value)
        finished = Finished(row.low, row.runs)
        restored.channels[_channel(key, 41)] = Kept(finished, row.next_reply, row.used, [])
    for key, value in _of(rows, REQUEST):
        kept = restored.channels.get(_channel(key, 49))
        answered = _answered(int.from_bytes(key[_SEQUENCE], "big"), value)
        if kept is None or answered.sequence not in kept.finished:
            raise FormatError("a request that is done, of a channel that does not know of it")
        kept.answered.append(answered)
    for key, value in _of(rows, CLOSED):
        restored.closed[_channel(key, 41)] = int.from_bytes(value, "big")
    return restored


def _of(rows: Mapping[bytes, bytes], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    return ((key, value) for key, value in rows.items() if key.startswith(prefix))


def _channel(key: bytes, topic: int) -> Key:
    return key[_IDENTITY], key[topic:].decode("ascii"), int.from_bytes(key[_STRAND], "big")


def _answered(sequence: int, value: bytes) -> Answered:
    row = _request_row(value)
    padding, count = Padding.parse(row.padding), len(row.replies)
    replies = [
        Reply(
            kept.kind,
            FLAG_LAST if number == count else 0,
            kept.sequence,
            kept.acknowledged,
            sequence,
            count if number == count else 0,
            kept.body,
            kept.envelope,
            padding if kept.padding is None else Padding.parse(kept.padding),
        )
        for number, kept in enumerate(row.replies, 1)
    ]
    return Answered(sequence, row.mark, padding, replies)
