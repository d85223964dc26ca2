"""Layout of a mail's inside: topic, private header, body.

Runs at every party; parses untrusted bytes. Holds no keys.

Spec: spec/mail.md section 5.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import Final

import msgspec

from conclave._mailheader import NONE
from conclave.errors import FormatError

PRIVATE: Final = struct.Struct(">BBHIQQQQ")
SEALED_SIZE: Final = 1168
MAX_BODY: Final = 16 * 1024 * 1024 - 65536


FLAG_NO_RETRY: Final = 1
FLAG_UPLOAD: Final = 2
FLAG_LAST: Final = 1
FLAG_OF_STREAM: Final = 2

_TOPIC = re.compile(rb"[A-Za-z0-9_./-]{1,255}\Z")


class RequestKind(IntEnum):
    """Kinds of mail from client to enclave."""

    MAIL = 0
    CALL = 1
    ACKNOWLEDGE = 2
    STREAM = 3
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
    INTRODUCED = 9
    CLOSED = 10


_REQUEST_KINDS: Final = frozenset(RequestKind)
_REPLY_KINDS: Final = frozenset(ReplyKind)
_OF_STREAM: Final = frozenset(
    {ReplyKind.STREAM, ReplyKind.CALL_ERROR, ReplyKind.OVERLOADED, ReplyKind.NOT_ADMITTED, ReplyKind.CLOSED}
)


def check_topic(topic: str) -> bytes:
    """The topic as bytes. Raises ValueError if it has another form."""
    raw = topic.encode("utf-8", "replace")
    if not _TOPIC.match(raw):
        raise ValueError("a topic has 1 to 255 characters of A-Z a-z 0-9 - _ . /")
    return raw


class Request(msgspec.Struct, frozen=True):
    """What a client says: authentic once decrypted.

    Attributes:
        strand: which numbering of the topic `sequence` belongs to; the session's.
    """

    kind: int
    flags: int
    sequence: int
    acknowledged: int
    body: bytes
    envelope: bytes = b""
    strand: int = 0


class Reply(msgspec.Struct, frozen=True):
    """What an enclave says: authentic once decrypted.

    Attributes:
        answers: sequence of the request, or `NONE`; of a stream call, its counter.
        expected: for a sequence error, the sequence the enclave waits for; for a
            closed strand, the one it waited for; for a last reply, how many replies
            the request has.
    """

    kind: int
    flags: int
    sequence: int
    acknowledged: int
    answers: int
    expected: int
    body: bytes
    envelope: bytes = b""

    @property
    def last(self) -> bool:
        """Whether no further reply to that request follows."""
        return bool(self.flags & FLAG_LAST)

    @property
    def of_stream(self) -> bool:
        """Whether it answers a stream call, and so nothing in the sequence."""
        return bool(self.flags & FLAG_OF_STREAM)


def _unpad(plaintext: bytes) -> tuple[tuple[int, ...], bytes]:
    fields = PRIVATE.unpack_from(plaintext)
    end = PRIVATE.size + fields[3]
    # An authentic peer that pads with anything but zeros has another idea of the
    # format; refusing keeps two readers from disagreeing about the body. A body that
    # would end behind the plaintext leaves a negative number of zeros.
    if fields[2] != 0 or plaintext.count(0, end) != len(plaintext) - end:
        raise FormatError("private header or padding is malformed")
    return fields, plaintext[PRIVATE.size : end]


def parse_request(plaintext: bytes, envelope: bytes) -> Request:
    """Read a decrypted mail of a client. Raises FormatError."""
    (kind, flags, _, _, sequence, acknowledged, zero, strand), body = _unpad(plaintext)
    stream = kind == RequestKind.STREAM
    if kind not in _REQUEST_KINDS or flags & ~(FLAG_UPLOAD if stream else FLAG_NO_RETRY) or zero:
        raise FormatError("private header with an unknown kind or flag")
    if (stream or kind == RequestKind.ACKNOWLEDGE) != (sequence == NONE):
        raise FormatError("acknowledgements and stream calls are outside the sequence, everything else is in it")
    return Request(kind, flags, sequence, acknowledged, body, envelope, strand)


def parse_reply(plaintext: bytes, envelope: bytes) -> Reply:
    """Read a decrypted mail of an enclave. Raises FormatError."""
    (kind, flags, _, _, sequence, acknowledged, answers, expected), body = _unpad(plaintext)
    if kind not in _REPLY_KINDS or flags & ~(FLAG_LAST | FLAG_OF_STREAM):
        raise FormatError("private header with an unknown kind or flag")
    if flags & FLAG_OF_STREAM:
        if kind not in _OF_STREAM or sequence != NONE or (expected and kind != ReplyKind.CLOSED):
            raise FormatError("an answer to a stream call that cannot be one")
    elif kind == ReplyKind.STREAM:
        raise FormatError("a stream that answers no stream call")
    return Reply(kind, flags, sequence, acknowledged, answers, expected, body, envelope)


def pack_request(request: Request, strand: int) -> bytes:
    """Private header and body, not yet padded."""
    return (
        PRIVATE.pack(
            request.kind, request.flags, 0, len(request.body), request.sequence, request.acknowledged, 0, strand
        )
        + request.body
    )


def pack_reply(reply: Reply) -> bytes:
    """Private header and body, not yet padded."""
    return (
        PRIVATE.pack(
            reply.kind,
            reply.flags,
            0,
            len(reply.body),
            reply.sequence,
            reply.acknowledged,
            reply.answers,
            reply.expected,
        )
        + reply.body
    )
