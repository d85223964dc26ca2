"""The public header of encrypted mail: what the host sees and may not alter.

Runs at every party, the untrusted host included. Holds no keys.

Spec: spec/mail.md section 3.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from conclave.errors import FormatError

MAGIC: Final = b"CML1"
HEADER: Final = struct.Struct(">4sBBH16sQ32sI")
OPENING_SIZE: Final = 1168 + 1601 + 16
SMALLEST_CIPHERTEXT: Final = 40 + 16
MAX_ENVELOPE: Final = 4096
MAX_MAIL: Final = 16 * 1024 * 1024 + 8192
NONE: Final = 2**64 - 1
ZERO_SALT: Final = bytes(32)

POST_MAGIC: Final = b"CMP1"
# magic, zero, envelope size, box id, claims digest, sealed, ciphertext size
POST_HEADER: Final = struct.Struct(">4sHH16s64s1168sI")
SMALLEST_POST: Final = 312 + 64 + 16

TO_ENCLAVE: Final = 1
TO_CLIENT: Final = 2
FLAG_OPENING: Final = 1
# The same header, with all that decides what follows it in one piece.
_FIELDS: Final = struct.Struct(">8s16sQ32sI")
_FRONT: Final = struct.Struct(">4sBBH")
_OPENINGS: Final = {(TO_ENCLAVE, 0): 0, (TO_ENCLAVE, FLAG_OPENING): OPENING_SIZE, (TO_CLIENT, 0): 0}
# Most mails have neither opening nor envelope.
_BARE: Final = {_FRONT.pack(MAGIC, direction, 0, 0): direction for direction in (TO_ENCLAVE, TO_CLIENT)}


class EncryptedMail(msgspec.Struct, frozen=True, gc=False):
    """A mail as the host sees it. Nothing in it is authentic yet.

    Attributes:
        associated: every byte before the ciphertext, authenticated with it.
    """

    direction: int
    session_id: bytes
    counter: int
    reply_salt: bytes
    opening: bytes
    envelope: bytes
    associated: bytes
    ciphertext: bytes | memoryview


class PostedMail(msgspec.Struct, frozen=True):
    """A posted mail as the host sees it. Nothing in it is authentic yet.

    Attributes:
        box: for whom, as the host's outbox knows it.
        claims_digest: of the instance that wrote it.
        associated: every byte before the ciphertext, authenticated with it.
    """

    box: bytes
    claims_digest: bytes
    sealed: bytes
    envelope: bytes
    associated: bytes
    ciphertext: bytes


def address_of(data: bytes | bytearray | memoryview) -> tuple[int, bytes, int, bool]:
    """Check a mail's form; its direction, session id and counter, and whether it brings the session's opening.

    Raises:
        FormatError: it is no mail.
    """
    direction, session_id, counter, _, opening_end, _ = _parts(data)
    return direction, session_id, counter, opening_end > HEADER.size


def _parts(data: bytes | bytearray | memoryview) -> tuple[int, bytes, int, bytes, int, int]:
    """Direction, session id, counter, salt, end of the opening, start of the ciphertext."""
    whole = len(data)
    if not HEADER.size <= whole <= MAX_MAIL:
        raise FormatError(f"not a mail: {whole} bytes, a mail has {HEADER.size} to {MAX_MAIL}")
    front, session_id, counter, salt, size = _FIELDS.unpack_from(data)
    direction = _BARE.get(front)
    opening_end = start = HEADER.size
    if direction is None:
        direction, opening_size, envelope_size = _front(front)
        opening_end += opening_size
        start = opening_end + envelope_size
    if counter == NONE or (direction == TO_ENCLAVE and salt != ZERO_SALT):
        raise FormatError("mail with an unknown counter or salt")
    if whole != start + size or size < SMALLEST_CIPHERTEXT:
        raise FormatError("mail sizes do not add up: truncated or extended")
    return direction, session_id, counter, salt, opening_end, start


def _front(front: bytes) -> tuple[int, int, int]:
    """Direction, and sizes of opening and envelope."""
    magic, direction, flags, envelope_size = _FRONT.unpack(front)
    if magic != MAGIC:
        raise FormatError("not a mail: wrong magic")
    opening_size = _OPENINGS.get((direction, flags))
    if opening_size is None or envelope_size > MAX_ENVELOPE:
        raise FormatError("mail with an unknown direction, flag or size")
    return direction, opening_size, envelope_size


def parse_mail(data: bytes | memoryview) -> EncryptedMail:
    """Read the public parts of a mail; the ciphertext is not copied. Raises FormatError."""
    direction, session_id, counter, salt, opening_end, start = _parts(data)
    view = memoryview(data)
    associated = bytes(view[:start])
    opening = envelope = b""
    if start > HEADER.size:
        opening, envelope = associated[HEADER.size : opening_end], associated[opening_end:]
    return EncryptedMail(direction, session_id, counter, salt, opening, envelope, associated, view[start:])


def parse_post(data: bytes) -> PostedMail:
    """Read the public parts of a posted mail. Raises FormatError."""
    if not POST_HEADER.size <= len(data) <= MAX_MAIL:
        raise FormatError(f"not a posted mail: {len(data)} bytes, it has {POST_HEADER.size} to {MAX_MAIL}")
    magic, zero, envelope_size, box, claims_digest, sealed, size = POST_HEADER.unpack_from(data)
    if magic != POST_MAGIC or zero:
        raise FormatError("not a posted mail: wrong magic, or a reserved field is set")
    start = POST_HEADER.size + envelope_size
    if envelope_size > MAX_ENVELOPE or size < SMALLEST_POST or len(data) != start + size:
        raise FormatError("posted mail whose sizes do not add up: truncated or extended")
    return PostedMail(box, claims_digest, sealed, data[POST_HEADER.size : start], data[:start], data[start:])
