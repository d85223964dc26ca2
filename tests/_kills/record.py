"""What all processes of a kill test write down in one file: it outlives whoever wrote, and keeps their order."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

# Of a size that no page cuts in two: an entry is there or not. What, whose, key id, nonce or a number.
_ENTRY = struct.Struct(">sB30s32s")
NONCE, STARTED, LOADED, TOLD, DIED = b"N", b"S", b"L", b"T", b"D"
# Where in its work a process ended itself.
ENCRYPTED, SENDING, WRITING = range(3)


class Recorder:
    """One process's handle."""

    def __init__(self, path: Path, world: int = 0) -> None:
        """Make the file if there is none.

        Args:
            world: of several hosts of one enclave, which.
        """
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._world = world

    def nonce(self, key_id: bytes, nonce: bytes) -> None:
        """For `_crypto.on_encrypt`; of the key, its name alone."""
        os.write(self._file, _ENTRY.pack(NONCE, self._world, nonce, key_id))

    def number(self, what: bytes, number: int = 0, world: int | None = None) -> None:
        """A version, or nothing but that it happened."""
        place = self._world if world is None else world
        os.write(self._file, _ENTRY.pack(what, place, number.to_bytes(8, "big", signed=True), b""))

    def close(self) -> None:
        os.close(self._file)


def entries(path: Path) -> Iterator[tuple[bytes, int, bytes, bytes]]:
    """What, whose, nonce or number, key id."""
    data = path.read_bytes()
    assert len(data) % _ENTRY.size == 0
    return _ENTRY.iter_unpack(data)


class Findings:
    """What the record says of all boots together.

    Attributes:
        nonces: how many encryptions there were.
        keys: under how many keys.
        repeated: how many of them used a nonce a second time.
        boots: how many came as far as to have read the state, by world.
        newest: the highest version that a boot began with.
        early: boots that began with less than a client of their world had been told of before.
        started: how often the author's code began.
        died: how often processes ended within an encryption, a frame or a write.
    """

    def __init__(self, path: Path) -> None:
        seen: set[bytes] = set()
        keys: set[bytes] = set()
        told: dict[int, int] = {}
        self.boots: dict[int, int] = {}
        self.nonces = self.repeated = self.started = 0
        self.newest = -1
        self.died = [0, 0, 0]
        self.early: list[tuple[int, int]] = []
        for what, world, content, key in entries(path):
            if what == NONCE:
                self.nonces += 1
                self.repeated += (use := key + content[:12]) in seen
                seen.add(use)
                keys.add(key)
                continue
            number = int.from_bytes(content[:8], "big", signed=True)
            if what == TOLD:
                told[world] = max(number, told.get(world, -1))
            elif what == LOADED:
                self.boots[world] = self.boots.get(world, 0) + 1
                self.newest = max(self.newest, number)
                if number < told.get(world, -1):
                    self.early.append((number, told[world]))
            elif what == STARTED:
                self.started += 1
            elif what == DIED:
                self.died[number] += 1
        self.keys = len(keys)
