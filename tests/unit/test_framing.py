"""Frames: any pieces give the same frames; what is no frame closes the channel."""

from __future__ import annotations

import pytest

from conclave._framing import HEADER, MAX_PAYLOAD, Frame, FrameReader, Kind, pack
from conclave.errors import FormatError


@pytest.mark.spec("CHAN-2")
@pytest.mark.parametrize("piece", [1, 3, 16, 17, 1000])
@pytest.mark.parametrize("buffer_size", [16, 17, 100, 65536])
def test_any_pieces_give_the_same_frames(piece: int, buffer_size: int) -> None:
    data = pack(Kind.MAIL, 7, b"body") + pack(Kind.STOP, 0) + pack(Kind.REPLY, 2**64 - 1, bytes(100))
    reader = FrameReader(Kind, buffer_size=buffer_size)
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


def test_room_for_a_large_frame_is_not_kept() -> None:
    reader = FrameReader(Kind, buffer_size=64)
    assert reader.feed(pack(Kind.MAIL, 1, bytes(10_000))) == [Frame(1, 1, bytes(10_000))]
    assert len(reader.space()) == 64


def test_views_are_for_the_kinds_that_were_asked_for() -> None:
    reader = FrameReader(Kind, views=frozenset({Kind.MAIL}))
    mail, reply = reader.feed(pack(Kind.MAIL, 1, b"mail") + pack(Kind.REPLY, 1, b"reply"))
    assert isinstance(mail.payload, memoryview)
    assert bytes(mail.payload) == b"mail"
    assert isinstance(reply.payload, bytes)


def test_our_own_frames_are_bounded() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        pack(Kind.MAIL, 1, bytes(MAX_PAYLOAD + 1))
