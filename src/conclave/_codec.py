"""The one canonical encoding: typed MessagePack with every field required.

Runs everywhere; decodes untrusted bytes. msgspec accepts duplicate keys and
non-minimal integers, so form is proven by encoding again and comparing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgspec

from conclave.errors import FormatError

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of wire records: a map whose keys are the fields, in their order."""


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def encode(value: object) -> bytes:
    """Encode a record, or plain lists, maps, bytes, text, integers and None."""
    return _encoder.encode(value)


def decode(kind: type[T], data: bytes | memoryview, *, max_size: int, what: str) -> T:
    """Decode untrusted bytes into `kind`, in canonical form only.

    Args:
        kind: a `Record` subclass.
        data: untrusted.
        max_size: largest size in bytes that is looked at.
        what: our own name for the object, used in messages.

    Raises:
        FormatError: too large, not MessagePack, wrong fields, or another
            encoding of the same value.
    """
    if len(data) > max_size:
        raise FormatError(f"{what} has {len(data)} bytes, at most {max_size} are allowed")
    try:
        value = _decoder(kind).decode(data)  # type: ignore[arg-type]
        canonical = _encoder.encode(value) == data
    except (msgspec.MsgspecError, RecursionError, UnicodeError, ValueError):
        raise FormatError(f"{what} is not well-formed") from None
    if not canonical:
        raise FormatError(f"{what} is not in canonical form")
    return value  # type: ignore[no-any-return]
