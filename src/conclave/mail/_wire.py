"""Layout of a mail's inside: topic, private header, body.

Runs at every party; parses untrusted bytes. Holds no keys.

Spec: spec/mail.md section 5.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import Final, cast

import msgspec

from conclave._mailheader import MAX_ENVELOPE, NONE
from conclave.errors import FormatError
from conclave.mail.padding import Padding

PRIVATE: Final = struct.Struct(">BBHIQQQQ")
SEALED_SIZE: Final = 1168
MARK_SHIFT: Final = 40
# From here on a copy costs more than what avoids it.
LARGE: Final = 16 * 1024
MAX_BODY: Final = 16 * 1024 * 1024 - 65536


FLAG_NO_RETRY: Final = 1
FLAG_UPLOAD: Final = 2
FLAG_LAST: Final = 1
FLAG_OUTSIDE: Final = 2

_TOPIC = re.compile(rb"[A-Za-z0-9_./-]{1,255}\Z")


class RequestKind(IntEnum):
    """Kinds of mail from client to enclave."""

    MAIL = 0
    CALL = 1
    ACKNOWLEDGE = 2
    STREAM = 3
    COVER = 4
    INTRODUCTION = 5


class ReplyKind(IntEnum):
    """Kinds of mail from enclave to client."""

    MAIL = 0
    RESULT = 1
    CALL_ERROR = 2
    SEQUENCE_ERROR = 3
    OVERLOADED = 4
    ACCEPTED = 5
    NOT_ADMITTED = 6
    STREAM = 7
    COVER = 8
    INTRODUCED = 9
    CLOSED = 10


# Looking up the member of an enumeration costs more than comparing it.
_CALL: Final = RequestKind.CALL
_STREAM: Final = RequestKind.STREAM
_REQUEST_KINDS: Final = frozenset(RequestKind)
_REPLY_KINDS: Final = frozenset(ReplyKind)
_OUTSIDE: Final = frozenset({RequestKind.ACKNOWLEDGE, RequestKind.STREAM, RequestKind.COVER})
_ANSWERS_OUTSIDE: Final = frozenset(
    {ReplyKind.STREAM, ReplyKind.CALL_ERROR, ReplyKind.OVERLOADED, ReplyKind.NOT_ADMITTED, ReplyKind.CLOSED}
    | {ReplyKind.COVER}
)


def strand_mark(claims_digest: bytes) -> int:
    """The upper 24 bits of every strand that began under these claims (MAIL-50)."""
    return int.from_bytes(claims_digest[:3], "big")


def check_topic(topic: str) -> bytes:
    """The topic as bytes. Raises ValueError if it has another form."""
    raw = topic.encode("utf-8", "replace")
    if not _TOPIC.match(raw):
        raise ValueError("a topic has 1 to 255 characters of A-Z a-z 0-9 - _ . /")
    return raw


def check_sizes(body: bytes, envelope: bytes) -> None:
    """Raises ValueError if no mail can carry them."""
    if len(envelope) > MAX_ENVELOPE:
        raise ValueError(f"an envelope has at most {MAX_ENVELOPE} bytes")
    if len(body) > MAX_BODY:
        raise ValueError(f"a mail body has at most {MAX_BODY} bytes")


class Request(msgspec.Struct, frozen=True, gc=False):
    """What a client says: authentic once decrypted.

    Attributes:
        body: of a large call that was decrypted, a memoryview: its arguments are decoded from where they lie.
        posted: posted mails with a lower number were received.
        strand: which numbering of the topic `sequence` belongs to; the session's.
        padding: how this one is padded, where that is not the session's choice. Not sent.
    """

    kind: int
    flags: int
    sequence: int
    acknowledged: int
    body: bytes
    envelope: bytes = b""
    posted: int = 0
    strand: int = 0
    padding: Padding | None = None


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What an enclave says: authentic once decrypted.

    Attributes:
        answers: sequence of the request, or `NONE`; where `outside`, its counter.
        expected: for a sequence error, the sequence the enclave waits for; for a
            closed strand, the one it waited for; for a last reply, how many replies
            the request has.
        padding: as in a request.
    """

    kind: int
    flags: int
    sequence: int
    acknowledged: int
    answers: int
    expected: int
    body: bytes
    envelope: bytes = b""
    padding: Padding | None = None

    @property
    def last(self) -> bool:
        """Whether no further reply to that request follows."""
        return bool(self.flags & FLAG_LAST)

    @property
    def outside(self) -> bool:
        """Whether it answers a stream call or a cover, and so nothing in the sequence."""
        return bool(self.flags & FLAG_OUTSIDE)


def _end(plaintext: bytes, zero: int, size: int) -> int:
    """Where the body ends."""
    end = PRIVATE.size + size
    # An authentic peer that pads with anything but zeros has another idea of the
    # format; refusing keeps two readers from disagreeing about the body. A body that
    # would end behind the plaintext leaves a negative number of zeros.
    if zero != 0 or plaintext.count(0, end) != len(plaintext) - end:
        raise FormatError("private header or padding is malformed")
    return end


def parse_request(plaintext: bytes, envelope: bytes) -> Request:
    """Read a decrypted mail of a client. Raises FormatError."""
    kind, flags, zero, size, sequence, acknowledged, posted, strand = PRIVATE.unpack_from(plaintext)
    end = _end(plaintext, zero, size)
    stream = kind == _STREAM
    if kind not in _REQUEST_KINDS or flags & ~(FLAG_UPLOAD if stream else FLAG_NO_RETRY):
        raise FormatError("private header with an unknown kind or flag")
    if (kind in _OUTSIDE) != (sequence == NONE):
        raise FormatError("acknowledgements, stream calls and covers are outside the sequence, the rest is in it")
    if kind == _CALL and end > LARGE:
        body = cast(bytes, memoryview(plaintext)[PRIVATE.size : end])
    else:
        body = plaintext[PRIVATE.size : end]
    return Request(kind, flags, sequence, acknowledged, body, envelope, posted, strand)


def parse_reply(plaintext: bytes, envelope: bytes) -> Reply:
    """Read a decrypted mail of an enclave. Raises FormatError."""
    kind, flags, zero, size, sequence, acknowledged, answers, expected = PRIVATE.unpack_from(plaintext)
    body = plaintext[PRIVATE.size : _end(plaintext, zero, size)]
    if kind not in _REPLY_KINDS or flags & ~(FLAG_LAST | FLAG_OUTSIDE):
        raise FormatError("private header with an unknown kind or flag")
    if flags & FLAG_OUTSIDE:
        if kind not in _ANSWERS_OUTSIDE or sequence != NONE or (expected and kind != ReplyKind.CLOSED):
            raise FormatError("an answer outside the sequence that cannot be one")
    elif kind in (ReplyKind.STREAM, ReplyKind.COVER):
        raise FormatError("a stream or cover that answers nothing of its kind")
    return Reply(kind, flags, sequence, acknowledged, answers, expected, body, envelope)


def request_plaintext(request: Request, strand: int, default: Padding) -> bytes:
    """What to encrypt of a request: private header, body and zeros. Raises ValueError if it is too large."""
    header = PRIVATE.pack(
        request.kind,
        request.flags,
        0,
        len(request.body),
        request.sequence,
        request.acknowledged,
        request.posted,
        strand,
    )
    return _pad(header, request, default)


def reply_plaintext(reply: Reply, default: Padding) -> bytes:
    """The same of a reply."""
    header = PRIVATE.pack(
        reply.kind,
        reply.flags,
        0,
        len(reply.body),
        reply.sequence,
        reply.acknowledged,
        reply.answers,
        reply.expected,
    )
    return _pad(header, reply, default)


def _pad(header: bytes, packed: Request | Reply, default: Padding) -> bytes:
    check_sizes(packed.body, packed.envelope)
    size = PRIVATE.size + len(packed.body)
    # One copy: bodies may be large.
    return b"".join((header, packed.body, bytes((packed.padding or default)(size) - size)))
