"""Frames of the host channel and the platform channel, without IO.

Runs at both ends of both channels; each end distrusts the other.

Spec: spec/host-channel.md section 1 (CHAN-1 to CHAN-4).
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

from conclave.errors import FormatError

MAX_PAYLOAD = 17 * 1024 * 1024
HEADER = struct.Struct(">IB3sQ")
_ZERO = b"\0\0\0"


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
    INSTANCE = 65
    REPLY = 66
    DONE = 67
    ERROR = 68
    SIGNED = 69
    FAILED = 70
    FETCH = 72


class PlatformKind(IntEnum):
    """Frame kinds of the platform channel."""

    IDENTITY = 1
    EVIDENCE = 2
    SEALING_KEY = 3
    IDENTITY_IS = 129
    EVIDENCE_IS = 130
    SEALING_KEY_IS = 131
    REFUSED = 192


class Frame(msgspec.Struct, frozen=True):
    """One frame: its kind, the request it belongs to (0 if none), its payload."""

    kind: int
    request: int
    payload: bytes


def pack(kind: int, request: int, payload: bytes | bytearray = b"") -> bytes:
    """One frame as bytes. Raises ValueError if our own payload is too large."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"frame payload of {len(payload)} bytes exceeds {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), kind, _ZERO, request) + payload


class FrameReader:
    """Turns bytes, in whatever pieces they come, into frames.

    Memory is bounded by one frame plus what one `feed` brings.
    """

    def __init__(self, kinds: type[IntEnum], *, max_payload: int = MAX_PAYLOAD) -> None:
        self._kinds = frozenset(int(k) for k in kinds)
        self._max = max_payload
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Add received bytes and return the frames they complete.

        Raises:
            FormatError: unknown kind, reserved bytes set, or payload too large.
                The channel must then be closed.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            with memoryview(buffer) as view:
                frames, at = self._split(view)
            del buffer[:at]
        else:
            # Mostly whole frames arrive: only what is left over is kept.
            with memoryview(data) as view:
                frames, at = self._split(view)
                buffer += view[at:]
        return frames

    def _split(self, view: memoryview) -> tuple[list[Frame], int]:
        frames: list[Frame] = []
        at, length = 0, len(view)
        while length - at >= HEADER.size:
            size, kind, reserved, request = HEADER.unpack_from(view, at)
            if kind not in self._kinds or reserved != _ZERO:
                raise FormatError("frame of an unknown kind or with reserved bytes set")
            if size > self._max:
                raise FormatError(f"frame payload of {size} bytes exceeds {self._max}")
            end = at + HEADER.size + size
            if end > length:
                break
            frames.append(Frame(kind, request, bytes(view[at + HEADER.size : end])))
            at = end
        return frames, at

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)
