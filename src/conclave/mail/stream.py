"""Streams: chunks of one direction under the key of the mail that opened it.

Pure state machines without IO, at both ends. A stream is outside the channel's
sequence and outside exactly-once: what is lost is lost, and said.

Spec: spec/mail.md section 8 (MAIL-20 to MAIL-24).
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from conclave._chunkheader import (
    CHUNK_HEADER,
    CHUNK_MAGIC,
    CHUNK_PRIVATE,
    MAX_CHUNK,
    MAX_CONTENT,
    SMALLEST_CHUNK,
    Bytes,
    chunk_address,
)
from conclave._crypto import TAG_SIZE, AeadKey
from conclave.errors import DecryptionError, FormatError, SessionError
from conclave.mail._wire import MAX_BODY
from conclave.mail.padding import Padding, padme

MAX_ITEM: Final = MAX_BODY
MAX_NUMBER: Final = 2**32 - 1
# Items that wait for more, to go together: each takes memory beside its bytes.
_MAX_TOGETHER: Final = 1024
FLAG_FINAL: Final = 1
FLAG_ITEM: Final = 2
FLAG_ERROR: Final = 4
FLAG_PACKED: Final = 8
_FLAGS: Final = FLAG_FINAL | FLAG_ITEM | FLAG_ERROR | FLAG_PACKED
_SIZE: Final = struct.Struct(">I")
_FULL: Final = CHUNK_PRIVATE.size + MAX_CONTENT
_ZERO: Final = b"\0\0\0"
_HEAD: Final = CHUNK_HEADER.size
# The nonce is counter and number, which stand at the end of the header.
_NONCE: Final = slice(24, 36)


class _Scratch(threading.local):
    """Room for one plaintext, of each thread: fresh pages for every chunk cost more than the encryption.

    What it holds leaves it encrypted, or as a copy.
    """

    def __init__(self) -> None:
        self.plain = bytearray(_FULL)
        self.view = memoryview(self.plain)


_scratch = _Scratch()


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """What one chunk says: authentic once opened.

    Attributes:
        final: nothing follows.
        item: an item ends with it. Content without this mark goes on in the next chunk.
        error: the sender failed; the content is its reason, a call error or nothing.
        packed: the content is a series of whole items, each `size (4) ‖ item`.
    """

    final: bool
    item: bool
    error: bool
    content: bytes
    packed: bool = False


class ChunkSealer:
    """Encrypts the chunks of one stream, each number once."""

    __slots__ = ("_alive", "_associated", "_ended", "_key", "_number", "_padding")

    def __init__(
        self,
        key: AeadKey,
        *,
        direction: int,
        session_id: bytes,
        counter: int,
        padding: Padding = padme,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """For one counter there may be one sealer: sessions make it with the mail that opens the stream."""
        self._key = key
        self._associated = bytearray(CHUNK_HEADER.pack(CHUNK_MAGIC, direction, _ZERO, session_id, counter, 0))
        self._number = 0
        self._ended = False
        self._padding = padding
        self._alive = alive

    @property
    def ended(self) -> bool:
        """Whether the final chunk was made."""
        return self._ended

    def seal(
        self, content: Bytes, *, final: bool = False, item: bool = False, error: bool = False, packed: bool = False
    ) -> tuple[bytes, bytes]:
        """The next chunk: its public header and what follows, which nobody needs to join.

        Raises:
            SessionError: after the final chunk, after 2^32 - 1 of them, or in a forked process.
            ValueError: more content than a chunk holds.
        """
        size = len(content)
        if size > MAX_CONTENT:
            raise ValueError(f"a chunk holds at most {MAX_CONTENT} bytes")
        if self._ended or self._number >= MAX_NUMBER or not self._alive():
            raise SessionError("this stream has ended in this process")
        self._number += 1
        self._ended = final
        end = CHUNK_PRIVATE.size + size
        padded = _FULL if size == MAX_CONTENT else _padded(self._padding, end)
        plain, view = _scratch.plain, _scratch.view
        flags = (FLAG_FINAL if final else 0) | (FLAG_ITEM if item else 0) | (FLAG_ERROR if error else 0)
        if packed:
            flags |= FLAG_PACKED
        CHUNK_PRIVATE.pack_into(plain, 0, flags, _ZERO, size)
        plain[CHUNK_PRIVATE.size : end] = content
        if padded > end:
            plain[end:padded] = bytes(padded - end)
        associated = _numbered(self._associated, self._number)
        return associated, self._key.encrypt(associated[_NONCE], view[:padded], associated)


def _numbered(head: bytearray, number: int) -> bytes:
    """The public header of a stream's chunk with that number."""
    head[-4:] = number.to_bytes(4, "big")
    return bytes(head)


def _padded(padding: Padding, size: int) -> int:
    try:
        return min(padding(size), _FULL)
    except ValueError:
        # Sizes that a policy for whole mails does not know: a stream's length shows in any case.
        return _FULL


class ChunkOpener:
    """Decrypts the chunks of one stream: the next number only."""

    __slots__ = ("_ended", "_expected", "_head", "_key", "_number")

    def __init__(self, key: AeadKey, *, direction: int, session_id: bytes, counter: int) -> None:
        self._key = key
        self._head = bytearray(CHUNK_HEADER.pack(CHUNK_MAGIC, direction, _ZERO, session_id, counter, 0))
        self._number = 1
        # The public header of the one chunk that is taken next, if there is one.
        self._expected = _numbered(self._head, 1)
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the final chunk was seen: without it, a stream is truncated."""
        return self._ended

    def open(self, data: Bytes) -> Chunk:
        """Decrypt the next chunk; anything else changes nothing.

        Raises:
            FormatError: no chunk, or authentic but malformed inside.
            DecryptionError: of another stream, altered, repeated, out of order, or after the final one.
        """
        associated, view = self._expected, memoryview(data)
        if view[:_HEAD] != associated or not SMALLEST_CHUNK <= len(view) <= MAX_CHUNK:
            # No chunk at all, or not this one.
            chunk_address(data)
            raise DecryptionError
        padded = len(view) - _HEAD - TAG_SIZE
        plain, into = _scratch.plain, _scratch.view
        self._key.decrypt_into(associated[_NONCE], view[_HEAD:], associated, into[:padded])
        flags, zero, size = CHUNK_PRIVATE.unpack_from(plain)
        end = CHUNK_PRIVATE.size + size
        if flags & ~_FLAGS or zero != _ZERO or plain.count(0, end, padded) != padded - end:
            raise FormatError("a chunk's private header or padding is malformed")
        final, item, error = bool(flags & FLAG_FINAL), bool(flags & FLAG_ITEM), bool(flags & FLAG_ERROR)
        packed = bool(flags & FLAG_PACKED)
        if (error and (item or not final)) or (packed and not item):
            raise FormatError("a chunk with marks that do not go together")
        self._ended = final
        if final or self._number == MAX_NUMBER:
            # No header is equal to that.
            self._expected = b""
        else:
            self._number += 1
            self._expected = _numbered(self._head, self._number)
        return Chunk(final, item, error, bytes(into[CHUNK_PRIVATE.size : end]), packed)


class Items:
    """Joins the contents of chunks to items, each of at most `MAX_ITEM` bytes."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of the item that has begun."""
        return self._size

    def add(self, chunk: Chunk) -> list[bytes]:
        """The items that this chunk completes.

        Raises:
            FormatError: an item that is too large, or that the end cut off, or items badly packed.
        """
        if chunk.item and not chunk.packed and not self._parts:
            # A chunk holds less than an item may have.
            return [chunk.content]
        if chunk.packed:
            if self._parts:
                raise FormatError("packed items within an item")
            return unpack(chunk.content)
        if not chunk.error:
            self._size += len(chunk.content)
            if self._size > MAX_ITEM:
                raise FormatError(f"an item of a stream has at most {MAX_ITEM} bytes")
            if chunk.item:
                parts, self._parts, self._size = self._parts, [], 0
                return [chunk.content if not parts else b"".join((*parts, chunk.content))]
            if chunk.content:
                self._parts.append(chunk.content)
            if chunk.final and self._parts:
                raise FormatError("the stream ended within an item")
        return []


def unpack(content: bytes) -> list[bytes]:
    """The items of a packed chunk.

    Raises:
        FormatError: none, or sizes that do not add up.
    """
    items: list[bytes] = []
    at, end = 0, len(content)
    while at + _SIZE.size <= end:
        (size,) = _SIZE.unpack_from(content, at)
        at += _SIZE.size + size
        items.append(content[at - size : at])
    if at != end or not items:
        raise FormatError("packed items whose sizes do not add up")
    return items


class Packer:
    """Items on their way into chunks: small ones together, large ones in pieces."""

    __slots__ = ("_at", "_items", "size")

    def __init__(self) -> None:
        self._items: deque[Bytes] = deque()
        # How much of the first has gone.
        self._at = 0
        # Bytes that wait, as packed items take them.
        self.size = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether what waits need not wait for more."""
        return self.size > MAX_CONTENT or len(self._items) > _MAX_TOGETHER

    def add(self, item: Bytes) -> None:
        """Take one item.

        Raises:
            ValueError: it is too large.
        """
        size = len(item)
        if size > MAX_ITEM:
            raise ValueError(f"an item of a stream has at most {MAX_ITEM} bytes, not {size}")
        self._items.append(item)
        self.size += _SIZE.size + size

    def next(self) -> tuple[Bytes, bool, bool]:
        """The next chunk's content, whether an item ends with it, and whether it is packed. There must be an item."""
        items, at = self._items, self._at
        first = items[0]
        size = len(first)
        if size - at > MAX_CONTENT:
            self._at += MAX_CONTENT
            self.size -= MAX_CONTENT
            return memoryview(first)[at : self._at], False, False
        items.popleft()
        self._at = 0
        self.size -= _SIZE.size + size - at
        if at:
            return memoryview(first)[at:], True, False
        room = MAX_CONTENT - 2 * _SIZE.size - size
        if not items or len(items[0]) > room:
            return first, True, False
        parts: list[Bytes] = [_SIZE.pack(size), first]
        while items and len(items[0]) <= room:
            more = items.popleft()
            size = len(more)
            parts += (_SIZE.pack(size), more)
            room -= _SIZE.size + size
            self.size -= _SIZE.size + size
        return b"".join(parts), True, True
