"""Frames: any pieces give the same frames; what is no frame closes the channel."""

from __future__ import annotations

import pytest

from conclave._framing import HEADER, MAX_PAYLOAD, Frame, FrameReader, Kind, pack
from conclave.errors import FormatError


@pytest.mark.spec("CHAN-2")
@pytest.mark.parametrize("piece", [1, 3, 16, 17, 1000])
def test_any_pieces_give_the_same_frames(piece: int) -> None:
    data = pack(Kind.MAIL, 7, b"body") + pack(Kind.STOP, 0) + pack(Kind.REPLY, 2**64 - 1, bytes(100))
    reader = FrameReader(Kind)
    frames = [f for at in range(0, len(data), piece) for f in reader.feed(data[at : at + piece])]
    assert frames == [Frame(1, 7, b"body"), Frame(3, 0, b""), Frame(66, 2**64 - 1, bytes(100))]
    assert not reader.partial


@pytest.mark.spec("CHAN-1")
@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(0, 0, b"\0\0\0", 1),
        HEADER.pack(0, 200, b"\0\0\0", 1),
        HEADER.pack(0, Kind.MAIL, b"\0\0\1", 1),
        HEADER.pack(101, Kind.MAIL, b"\0\0\0", 1),
    ],
)
def test_what_is_no_frame(header: bytes) -> None:
    assert FrameReader(Kind, max_payload=100).feed(HEADER.pack(100, Kind.MAIL, b"\0\0\0", 1)) == []
    with pytest.raises(FormatError):
        FrameReader(Kind, max_payload=100).feed(header)


def test_our_own_frames_are_bounded() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        pack(Kind.MAIL, 1, bytes(MAX_PAYLOAD + 1))
