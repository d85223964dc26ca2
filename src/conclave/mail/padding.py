"""Padding policies: how large a plaintext is made before it is encrypted.

Runs at both ends. A policy maps the size of private header and body to a size
not smaller; equal results give mails of equal size on the wire. Its text form is
part of the measured interface schema, so both ends pad a method alike.

Spec: spec/mail.md section 5 (MAIL-1, MAIL-40). Padmé: PURBs, PoPETs 2019(4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from conclave.errors import FormatError

MINIMUM: Final = 256
# The largest plaintext of a mail, rounded up: what every policy can be asked for.
MAXIMUM: Final = 16 * 1024 * 1024
MAX_BUCKETS: Final = 64
# The private header, which is padded together with the body.
HEADER: Final = 40

_SIZES = re.compile(r"(fixed|buckets)((?: [1-9][0-9]{0,7})+)\Z")


class DoesNotFit(ValueError):
    """A mail is larger than the largest size its padding allows; nothing was sent."""


@dataclass(frozen=True, slots=True)
class Padding:
    """A padding policy: `padme`, or what `fixed` and `buckets` return.

    Call it with a size to get the padded size; `str` gives the text form.

    Attributes:
        sizes_bytes: the padded sizes, ascending; none of them stands for Padmé.
    """

    sizes_bytes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError if these are no sizes of a policy."""
        sizes = self.sizes_bytes
        if len(sizes) > MAX_BUCKETS or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"give at most {MAX_BUCKETS} padded sizes, each once")
        if sizes and not MINIMUM <= sizes[0] <= sizes[-1] <= MAXIMUM:
            raise ValueError(f"a padded size has {MINIMUM} to {MAXIMUM} bytes")

    def __call__(self, size: int) -> int:
        """The padded size of private header (40 bytes) and body. Raises DoesNotFit."""
        sizes = self.sizes_bytes
        if not sizes:
            return _padme(size)
        for candidate in sizes:
            if size <= candidate:
                return candidate
        raise DoesNotFit(
            f"this does not fit the padding '{self}', headers of {HEADER} bytes included (120 where state persists): "
            "say less, or choose a larger size"
        )

    def __str__(self) -> str:
        if not self.sizes_bytes:
            return "padme"
        name = "fixed" if len(self.sizes_bytes) == 1 else "buckets"
        return " ".join((name, *map(str, self.sizes_bytes)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a text form, which has one spelling only.

        Raises:
            FormatError: it is none.
        """
        match = _SIZES.match(text)
        try:
            padding = cls(tuple(map(int, match[2].split())) if match else ())
        except ValueError as error:
            raise FormatError(f"a padding has impossible sizes: {error}") from None
        if str(padding) != text:
            raise FormatError("a padding is 'padme', 'fixed SIZE' or 'buckets SIZE SIZE …' with ascending sizes")
        return padding

    @property
    def room(self) -> int:
        """How large a body may be."""
        return (self.sizes_bytes or (MAXIMUM,))[-1] - HEADER

    @property
    def largest(self) -> Padding:
        """Everything in the largest size: for what stands in place of something that did not fit."""
        return Padding(self.sizes_bytes[-1:])

    @property
    def is_fixed(self) -> bool:
        """Whether there is one size only, so that a size tells nothing."""
        return len(self.sizes_bytes) == 1


@lru_cache(maxsize=1024)
def _padme(size: int) -> int:
    """At most 12 % more, at least 256; leaks O(log log size) bits."""
    if size <= MINIMUM:
        return MINIMUM
    exponent = size.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (size + mask) & ~mask


padme: Final = Padding()


def fixed(size_bytes: int) -> Padding:
    """Everything becomes `size_bytes`; larger contents are a ValueError.

    The size counts a header of 40 bytes besides the body.
    """
    return buckets(size_bytes)


def buckets(*sizes_bytes: int) -> Padding:
    """The smallest of these sizes that fits; nothing fits: ValueError.

    Each size counts a header of 40 bytes besides the body.
    """
    if not sizes_bytes:
        raise ValueError(f"give at least one padded size, of {MINIMUM} bytes or more")
    return Padding(tuple(sorted(sizes_bytes)))
