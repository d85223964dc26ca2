"""CBOR as far as attestation documents use it: no tags, no duplicates, nothing after the item.

Runs at the relying party, on hostile bytes. Memory and time are bounded by the size
of the input, which the caller bounds.

Spec: spec/nitro.md section 3. Format: RFC 8949.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final, NoReturn

import cbor2

from conclave.errors import FormatError

# An array or map, one within it.
_DEPTH: Final = 2


class _NoTags(dict[int, Callable[..., NoReturn]]):
    """A decoder for every tag, which refuses: the library's own ones would build dates, patterns, cycles."""

    def __missing__(self, tag: int) -> Callable[..., NoReturn]:
        return _refuse


def _refuse(*_: object) -> NoReturn:
    raise ValueError


_NO_TAGS: Final = _NoTags()


def decode(data: bytes, *, indefinite: bool) -> Any:
    """The one item that these bytes are.

    What it is made of is for the caller to check: numbers that are no integers, and
    simple values, are not refused here.

    Args:
        data: all of it. Untrusted.
        indefinite: whether lengths may be left open.

    Raises:
        FormatError: `document-format`.
    """
    stream = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            stream,
            semantic_decoders=_NO_TAGS,
            max_depth=_DEPTH,
            allow_indefinite=indefinite,
            allow_duplicate_keys=False,
        ).decode()
    except Exception:
        raise malformed("it is not CBOR of the permitted kind") from None
    if stream.tell() != len(data):
        raise malformed("bytes follow its end")
    return value


def encode(value: object) -> bytes:
    """The preferred encoding."""
    return cbor2.dumps(value)


def malformed(why: str) -> FormatError:
    """The error for a document that is not of the documented form."""
    return FormatError(f"attestation document: {why}", code="document-format")
