"""What a host counts of itself while it works: sums, and nothing about anybody.

Runs in the untrusted host.

Spec: spec/http.md (HTTP-22).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

# Batches of 1, 2-3, 4-7, … frames.
BATCH_CLASSES: Final = 12


@dataclass(slots=True)
class Way:
    """One direction of the host channel."""

    frames: int = 0
    size: int = 0
    batches: list[int] = field(default_factory=lambda: [0] * BATCH_CLASSES)

    def add(self, frames: int, size: int) -> None:
        """So many frames and bytes went together."""
        if frames:
            self.frames += frames
            self.batches[min(frames.bit_length(), BATCH_CLASSES) - 1] += 1
        self.size += size


@dataclass(slots=True)
class Counts:
    """Sums since the host process began."""

    to_enclave: Way = field(default_factory=Way)
    to_host: Way = field(default_factory=Way)
    mails: int = 0
    starts: int = 0
    renewals: int = 0
    # Boots that found their state rolled back or forked.
    halts: int = 0
