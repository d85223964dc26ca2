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
# Where a log is: after the private header, in both directions, and after that in replies.
CONTEXT_SIZE: Final = 72
NO_CONTEXT: Final = bytes(CONTEXT_SIZE)
ECHO: Final = struct.Struct(">Q")
REQUEST_STATE_SIZE: Final = CONTEXT_SIZE
REPLY_STATE_SIZE: Final = CONTEXT_SIZE + ECHO.size

FLAG_NO_RETRY: Final = 1
FLAG_UPLOAD: Final = 2
FLAG_STATEMENT: Final = 4
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
    HALTED = 11
    STATEMENT = 12
    CONTEXT = 13


# Looking up the member of an enumeration costs more than comparing it.
_CALL: Final = RequestKind.CALL
_REPLY_KINDS: Final = frozenset(ReplyKind)
_ANSWERS_OUTSIDE: Final = frozenset(
    {ReplyKind.STREAM, ReplyKind.CALL_ERROR, ReplyKind.OVERLOADED, ReplyKind.NOT_ADMITTED, ReplyKind.CLOSED}
    | {ReplyKind.COVER, ReplyKind.HALTED, ReplyKind.CONTEXT}
)
# In order of a channel: only these may ask for a statement.
_ASK: Final = frozenset({RequestKind.MAIL, RequestKind.CALL, RequestKind.INTRODUCTION})
# Kind, flags, and whether it is outside the sequence.
_REQUESTS: Final = frozenset(
    {(int(kind), flags, False) for kind in _ASK for flags in (0, FLAG_NO_RETRY)}
    | {
        (int(kind), flags, True)
        for kind in (RequestKind.ACKNOWLEDGE, RequestKind.COVER)
        for flags in (0, FLAG_NO_RETRY)
    }
    | {(int(RequestKind.STREAM), flags, True) for flags in (0, FLAG_UPLOAD)}
)
# Where there is a log.
_STATEFUL_REQUESTS: Final = _REQUESTS | {
    (int(kind), flags | FLAG_STATEMENT, False) for kind in _ASK for flags in (0, FLAG_NO_RETRY)
}
_ABOUT_STATE: Final = frozenset({ReplyKind.HALTED, ReplyKind.STATEMENT, ReplyKind.CONTEXT})
# Those that tell a client nothing of the state, and echo nothing.
BARE: Final = frozenset({ReplyKind.HALTED, ReplyKind.CONTEXT})


def asks(kind: int) -> bool:
    """Whether a request of this kind may ask for a signed statement."""
    return kind in _ASK


def version_of(context: bytes) -> int:
    """The version that a state context names; 0 for none."""
    return int.from_bytes(context[:8], "big")


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
    if len(body) > MAX_BODY:
        raise ValueError(f"a mail body has at most {MAX_BODY} bytes")
    if envelope and len(envelope) > MAX_ENVELOPE:
        raise ValueError(f"an envelope has at most {MAX_ENVELOPE} bytes")


class Request(msgspec.Struct, frozen=True, gc=False):
    """What a client says: authentic once decrypted.

    Attributes:
        body: of a large call that was decrypted, a memoryview: its arguments are decoded from where they lie.
        posted: posted mails with a lower number were received.
        strand: which numbering of the topic `sequence` belongs to; the session's.
        context: the newest state context that the client has of the log; empty where there is no log.
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
    context: bytes = b""

    @property
    def version(self) -> int:
        """The version that its state context names: what every answer to it echoes."""
        return version_of(self.context)


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What an enclave says: authentic once decrypted.

    Attributes:
        answers: sequence of the request, or `NONE`; where `outside`, its counter.
        expected: for a sequence error, the sequence the enclave waits for; for a
            closed strand, the one it waited for; for a last reply, how many replies
            the request has.
        padding: as in a request.
        context: the state context for this client; empty where there is no log.
        echo: the version of the context that the answered request carried.
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
    context: bytes = b""
    echo: int = 0

    @property
    def last(self) -> bool:
        """Whether no further reply to that request follows."""
        return bool(self.flags & FLAG_LAST)

    @property
    def outside(self) -> bool:
        """Whether it answers a stream call or a cover, and so nothing in the sequence."""
        return bool(self.flags & FLAG_OUTSIDE)


def _end(plaintext: bytes, zero: int, start: int, size: int) -> int:
    """Where the body ends."""
    end = start + size
    # An authentic peer that pads with anything but zeros has another idea of the
    # format; refusing keeps two readers from disagreeing about the body. A body that
    # would end behind the plaintext leaves a negative number of zeros.
    if zero != 0 or plaintext.count(0, end) != len(plaintext) - end:
        raise FormatError("private header or padding is malformed")
    return end


def parse_request(plaintext: bytes, envelope: bytes, *, stateful: bool = False) -> Request:
    """Read a decrypted mail of a client, of a session with a log or without. Raises FormatError."""
    kind, flags, zero, size, sequence, acknowledged, posted, strand = PRIVATE.unpack_from(plaintext)
    start, forms, context = PRIVATE.size, _REQUESTS, b""
    if stateful:
        start, forms = start + REQUEST_STATE_SIZE, _STATEFUL_REQUESTS
        context = plaintext[PRIVATE.size : start]
    end = _end(plaintext, zero, start, size)
    if (kind, flags, sequence == NONE) not in forms:
        raise FormatError("a request of an unknown kind, or with flags or a sequence that its kind does not have")
    body = plaintext[start:end] if end <= LARGE or kind != _CALL else cast(bytes, memoryview(plaintext)[start:end])
    return Request(kind, flags, sequence, acknowledged, body, envelope, posted, strand, None, context)


def parse_reply(plaintext: bytes, envelope: bytes, *, stateful: bool = False) -> Reply:
    """Read a decrypted mail of an enclave, of a session with a log or without. Raises FormatError."""
    kind, flags, zero, size, sequence, acknowledged, answers, expected = PRIVATE.unpack_from(plaintext)
    start = PRIVATE.size + REPLY_STATE_SIZE if stateful else PRIVATE.size
    body = plaintext[start : _end(plaintext, zero, start, size)]
    if kind not in _REPLY_KINDS or flags & ~(FLAG_LAST | FLAG_OUTSIDE):
        raise FormatError("private header with an unknown kind or flag")
    context, echo = b"", 0
    if stateful:
        context, (echo,) = plaintext[PRIVATE.size : start - ECHO.size], ECHO.unpack_from(plaintext, start - ECHO.size)
        bare = kind in BARE
        if bare != (context == NO_CONTEXT) or (bare and echo):
            raise FormatError("a reply whose state context does not go with its kind")
    elif kind in _ABOUT_STATE:
        raise FormatError("a reply about the state of a log, where there is none")
    if kind in _ABOUT_STATE and (sequence != NONE or expected or (kind in BARE) != bool(flags & FLAG_LAST)):
        raise FormatError("a reply about state that is in the sequence, or no last one")
    if flags & FLAG_OUTSIDE:
        if kind not in _ANSWERS_OUTSIDE or sequence != NONE or (expected and kind != ReplyKind.CLOSED):
            raise FormatError("an answer outside the sequence that cannot be one")
    elif kind in (ReplyKind.STREAM, ReplyKind.COVER):
        raise FormatError("a stream or cover that answers nothing of its kind")
    return Reply(kind, flags, sequence, acknowledged, answers, expected, body, envelope, None, context, echo)


def request_plaintext(
    request: Request, strand: int, default: Padding, *, flags: int = 0, context: bytes = b""
) -> bytes:
    """What to encrypt of a request: private header, body and zeros. Raises ValueError if it is too large.

    Args:
        flags: more than its own.
        context: of the log that the session's opening names.
    """
    header = PRIVATE.pack(
        request.kind,
        request.flags | flags,
        0,
        len(request.body),
        request.sequence,
        request.acknowledged,
        request.posted,
        strand,
    )
    return _pad(header + context if context else header, request, default)


def reply_plaintext(reply: Reply, default: Padding, context: bytes) -> bytes:
    """The same of a reply."""
    kind, body = reply.kind, reply.body
    header = PRIVATE.pack(
        kind, reply.flags, 0, len(body), reply.sequence, reply.acknowledged, reply.answers, reply.expected
    )
    if context:
        header += NO_CONTEXT + ECHO.pack(0) if kind in BARE else context + ECHO.pack(reply.echo)
    return _pad(header, reply, default)


def _pad(header: bytes, packed: Request | Reply, default: Padding) -> bytes:
    body = packed.body
    check_sizes(body, packed.envelope)
    size = len(header) + len(body)
    # One copy: bodies may be large.
    return b"".join((header, body, bytes((packed.padding or default)(size) - size)))
