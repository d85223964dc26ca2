"""Padding policies: how large a plaintext is made before it is encrypted.

Runs at both ends. A policy maps the size of private header and body to a size
not smaller; equal results give mails of equal size on the wire.

Spec: spec/mail.md section 5 (MAIL-1). Padmé: PURBs, PoPETs 2019(4).
"""

from __future__ import annotations

from collections.abc import Callable

Padding = Callable[[int], int]

MINIMUM = 256


def padme(size: int) -> int:
    """Padmé, at least 256: at most 12 % more, leaks O(log log size) bits."""
    if size <= MINIMUM:
        return MINIMUM
    exponent = size.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (size + mask) & ~mask


def fixed(size_bytes: int) -> Padding:
    """Everything becomes `size_bytes`; larger contents are a ValueError."""
    if size_bytes < MINIMUM:
        raise ValueError(f"a fixed size is at least {MINIMUM} bytes")
    return buckets(size_bytes)


def buckets(*sizes_bytes: int) -> Padding:
    """The smallest of these sizes that fits; nothing fits: ValueError."""
    ordered = tuple(sorted(sizes_bytes))
    if not ordered or ordered[0] < MINIMUM:
        raise ValueError(f"give at least one size, each at least {MINIMUM} bytes")

    def policy(size: int) -> int:
        for candidate in ordered:
            if size <= candidate:
                return candidate
        raise ValueError(f"a mail of {size} bytes does not fit the largest padded size {ordered[-1]}")

    return policy
