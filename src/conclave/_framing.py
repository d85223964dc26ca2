"""Frames of the host channel and the platform channel, without IO.

Runs at both ends of both channels; each end distrusts the other.

Spec: spec/host-channel.md section 1 (CHAN-1 to CHAN-4).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Protocol, cast

import msgspec

from conclave.errors import FormatError

MAX_PAYLOAD = 17 * 1024 * 1024
BUFFER_SIZE = 64 * 1024
HEADER = struct.Struct(">IB3sQ")
_ZERO = b"\0\0\0"
# The same header, with kind and reserved bytes in one word.
_FIELDS = struct.Struct(">IIQ")


class Kind(IntEnum):
    """Frame kinds of both channels; see the tables of the spec."""

    MAIL = 1
    CHALLENGE = 2
    STOP = 3
    RENEW = 4
    CHUNKS = 5
    CREDIT = 6
    DROP = 7
    FETCHED = 8
    ROOM = 9
    STORED = 10
    COMMITTED = 11
    INSTANCE = 65
    REPLY = 66
    DONE = 67
    ERROR = 68
    SIGNED = 69
    FAILED = 70
    POST = 71
    FETCH = 72
    SPENT = 73
    LOAD = 74
    COMMIT = 75
    SNAPSHOT = 76
    HALTED = 77


class PlatformKind(IntEnum):
    """Frame kinds of the platform channel."""

    IDENTITY = 1
    EVIDENCE = 2
    SEALING_KEY = 3
    IDENTITY_IS = 129
    EVIDENCE_IS = 130
    SEALING_KEY_IS = 131
    REFUSED = 192


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame: its kind, the request it belongs to (0 if none), its payload.

    A payload that was not copied is a memoryview, at readers that ask for those only.
    """

    kind: int
    request: int
    payload: bytes


class Send(Protocol):
    """Queues one frame, whose payload is these parts one after the other."""

    def __call__(self, kind: int, request: int, *payload: bytes) -> None: ...


def pack(kind: int, request: int, payload: bytes | bytearray = b"") -> bytes:
    """One frame as bytes. Raises ValueError if our own payload is too large."""
    return head(kind, request, len(payload)) + payload


def head(kind: int, request: int, size: int) -> bytes:
    """What precedes a payload of that size, for writers that do not join. Raises ValueError if it is too large."""
    if size > MAX_PAYLOAD:
        raise ValueError(f"frame payload of {size} bytes exceeds {MAX_PAYLOAD}")
    return HEADER.pack(size, kind, _ZERO, request)


def _refused(length: int, most: int) -> FormatError:
    if length > most:
        return FormatError(f"frame payload of {length} bytes exceeds {most}")
    return FormatError("frame of an unknown kind or with reserved bytes set")


class FrameReader:
    """Turns bytes, in whatever pieces they come, into frames.

    Bytes are received into `space()` and then announced by `received()`. Memory is
    bounded by one frame plus one buffer.
    """

    def __init__(
        self,
        kinds: type[IntEnum],
        *,
        max_payload: int = MAX_PAYLOAD,
        buffer_size: int = BUFFER_SIZE,
        views: frozenset[int] = frozenset(),
    ) -> None:
        """Allocate the buffer.

        Args:
            views: kinds whose payloads are not copied: they are memoryviews, good until the next `space()`.
        """
        # By the word that names a kind in the header.
        self._kinds = {int(kind) << 24: int(kind) for kind in kinds}
        self._max = max_payload
        self._views = frozenset(kind << 24 for kind in views)
        self._size = buffer_size
        self._buffer = memoryview(bytearray(buffer_size))
        self._start = self._end = 0
        # Bytes from `_start` on that the frame which has begun needs.
        self._needed = HEADER.size

    def space(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._start:
            left = self._end - self._start
            if left:
                self._buffer[:left] = self._buffer[self._start : self._end]
            elif len(self._buffer) > self._size:
                # One large frame came, and its room is not kept.
                self._buffer = memoryview(bytearray(self._size))
            self._start, self._end = 0, left
        if self._end == len(self._buffer):
            # As large as what came, at most doubled: a claimed size alone allocates nothing.
            larger = memoryview(bytearray(min(self._needed, 2 * self._end)))
            larger[: self._end] = self._buffer[: self._end]
            self._buffer = larger
        return self._buffer[self._end :]

    def received(self, size: int) -> list[Frame]:
        """Take so many bytes that lie in `space()` now, and return the frames they complete.

        Raises:
            FormatError: unknown kind, reserved bytes set, or payload too large.
                The channel must then be closed.
        """
        self._end += size
        frames: list[Frame] = []
        buffer, at, end = self._buffer, self._start, self._end
        kinds, views, most, head_size, unpack = self._kinds, self._views, self._max, HEADER.size, _FIELDS.unpack_from
        self._needed = head_size
        while end - at >= head_size:
            length, word, request = unpack(buffer, at)
            if word not in kinds or length > most:
                raise _refused(length, most)
            start = at + head_size
            after = start + length
            if after > end:
                self._needed = after - at
                break
            payload = buffer[start:after]
            # A view is not hashable and does not last; whoever asked for it knows.
            frames.append(Frame(kinds[word], request, cast(bytes, payload) if word in views else bytes(payload)))
            at = after
        self._start = at
        return frames

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take bytes that lie elsewhere; raises as `received`."""
        frames: list[Frame] = []
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                space = self.space()
                size = min(len(space), len(view) - at)
                space[:size] = view[at : at + size]
                frames += self.received(size)
                at += size
        return frames

    def rest(self) -> bytes:
        """What came and is part of no whole frame, for another reader to go on with."""
        return bytes(self._buffer[self._start : self._end])

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._end > self._start
