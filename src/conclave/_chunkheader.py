"""The public header of a stream's chunks: what the host sees and may not alter.

Runs at every party, the untrusted host included. Holds no keys.

Spec: spec/mail.md section 8, spec/http.md (HTTP-10).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from conclave.errors import FormatError

CHUNK_MAGIC: Final = b"CMS1"
CHUNK_HEADER: Final = struct.Struct(">4sB3s16sQI")
# What is authenticated and hidden: a private header of 8 bytes, content, zeros; then the tag.
MAX_CONTENT: Final = 256 * 1024
CHUNK_PRIVATE: Final = struct.Struct(">B3sI")
SMALLEST_CHUNK: Final = CHUNK_HEADER.size + CHUNK_PRIVATE.size + 16
MAX_CHUNK: Final = SMALLEST_CHUNK + MAX_CONTENT
# Of one `POST /stream`, and so of one CHUNKS frame.
MAX_CHUNKS: Final = 4
MAX_UPLOAD: Final = MAX_CHUNKS * (4 + MAX_CHUNK)
_SIZE: Final = struct.Struct(">I")
_ZERO: Final = b"\0\0\0"

Bytes = bytes | bytearray | memoryview


def chunk_address(data: Bytes) -> tuple[int, bytes, int, int]:
    """Check a chunk's form; its direction, session id, counter of the mail that opened the stream, and number.

    Raises:
        FormatError: it is no chunk.
    """
    if not SMALLEST_CHUNK <= len(data) <= MAX_CHUNK:
        raise FormatError(f"not a chunk: {len(data)} bytes, a chunk has {SMALLEST_CHUNK} to {MAX_CHUNK}")
    magic, direction, zero, session_id, counter, number = CHUNK_HEADER.unpack_from(data)
    if magic != CHUNK_MAGIC or direction not in (1, 2) or zero != _ZERO or number == 0:
        raise FormatError("not a chunk: wrong magic, direction, reserved bytes or number")
    return direction, session_id, counter, number


def split_chunks(data: memoryview) -> Iterator[memoryview]:
    """The parts of `size (4) ‖ part` one after the other.

    Raises:
        FormatError: truncated or extended.
    """
    at = 0
    while at < len(data):
        if len(data) - at < 4:
            raise FormatError("chunks are cut off: sizes do not add up")
        (size,) = _SIZE.unpack_from(data, at)
        if len(data) - at - 4 < size:
            raise FormatError("chunks are cut off: sizes do not add up")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def upload_address(data: bytes) -> tuple[bytes, int]:
    """Check the form of what a client uploads at once; session id and counter of its one stream.

    Raises:
        FormatError: no chunk, too many, not of one stream, or not to the enclave.
    """
    stream: tuple[bytes, int] | None = None
    for count, chunk in enumerate(split_chunks(memoryview(data))):
        direction, session_id, counter, _ = chunk_address(chunk)
        if direction != 1 or count >= MAX_CHUNKS or (stream is not None and stream != (session_id, counter)):
            raise FormatError(f"not 1 to {MAX_CHUNKS} chunks of one stream to the enclave")
        stream = session_id, counter
    if stream is None:
        raise FormatError(f"not 1 to {MAX_CHUNKS} chunks of one stream to the enclave")
    return stream
