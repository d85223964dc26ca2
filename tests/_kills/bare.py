"""An enclave process whose host is the test: it is given whatever the test likes for its state."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests._kills.boots import RECORD
from tests._kills.nursery import Nursery
from tests._kills.record import STARTED, entries

from conclave._framing import Frame, FrameReader, Kind, pack
from conclave.host.states import What

Piece = tuple[int, bytes]
# Kinds in which what an enclave made of its state could leave it.
_LEAVES = frozenset({Kind.COMMIT, Kind.SNAPSHOT, Kind.INSTANCE, Kind.REPLY, Kind.DONE, Kind.POST})


@dataclass(frozen=True)
class Start:
    """What became of a start.

    Attributes:
        refused: the enclave's words; empty if it did start.
        commits: records that it made, without posted mail.
        began: whether the author's code began.
    """

    refused: str
    commits: list[bytes]
    began: bool


def start(nursery: Nursery, place: Path, pieces: Sequence[Piece], *, bundle: str = "bundle") -> Start:
    """Start an enclave with that for its state, up to its evidence or its refusal.

    Args:
        pieces: what STORED frames bring, the end included.
    """
    began = _began(place)
    ours, theirs = socket.socketpair()
    output, held = os.pipe()
    with ours:
        nursery.enclave({"bundle": bundle}, theirs, held)
        theirs.close()
        os.close(held)
        frames = _frames(ours, pieces)
    # It has ended: all that it wrote down is there.
    os.read(output, 1)
    os.close(output)
    refused = [frame.payload.decode() for frame in frames if frame.kind == Kind.FAILED]
    commits = []
    for frame in frames:
        if frame.kind == Kind.COMMIT:
            size = int.from_bytes(frame.payload[8:12], "big")
            commits.append(frame.payload[12 : 12 + size])
    if refused:
        assert not _LEAVES & {Kind(frame.kind) for frame in frames}
    return Start(refused[0] if refused else "", commits, _began(place) > began)


def _began(place: Path) -> int:
    path = place / RECORD
    return sum(what == STARTED for what, *_ in entries(path)) if path.exists() else 0


def _frames(channel: socket.socket, pieces: Sequence[Piece]) -> list[Frame]:
    """All that it says until it is ready, or ends."""
    reader = FrameReader(Kind)
    frames: list[Frame] = []
    channel.settimeout(60)
    while data := _received(channel):
        for frame in reader.feed(data):
            frames.append(frame)
            if frame.kind == Kind.LOAD:
                answer = b"".join(pack(Kind.STORED, frame.request, bytes([what]) + piece) for what, piece in pieces)
                # It may have seen enough before the end.
                with suppress(ConnectionError):
                    channel.sendall(answer)
                    if not any(what in (What.END, What.UNREADABLE) for what, _ in pieces):
                        channel.shutdown(socket.SHUT_WR)
            elif frame.kind == Kind.INSTANCE:
                return frames
    return frames


def _received(channel: socket.socket) -> bytes:
    try:
        return channel.recv(1 << 20)
    except ConnectionError:
        return b""
