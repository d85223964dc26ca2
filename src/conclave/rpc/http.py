"""HTTP requests and responses as values inside mail, with their bounds.

Runs in an enclave that serves an ASGI application, and in clients of one. Heads
come from the peer: to an enclave they are hostile until checked here.

Spec: spec/asgi.md sections 1 and 2.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final

from conclave import _codec
from conclave.errors import FormatError
from conclave.rpc.interface import rpc

MAX_HEADERS: Final = 256
MAX_TARGET: Final = 16 * 1024
MAX_HEAD: Final = 48 * 1024
# Bodies up to this size go beside the head; larger ones, and those of unknown size, after it.
MAX_WHOLE: Final = 256 * 1024
# What concerns one connection has no meaning inside mail.
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)
_ONCE: Final = (b"host", b"content-length", b"content-type", b"authorization")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
# ASGI has methods in capitals; `get` would be one method to some frameworks, and another to others.
_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Z-]{1,32}\Z")
_TARGET: Final = re.compile(rb"/[!-~]*\Z|\*\Z")
_QUERY: Final = re.compile(rb"[!-~]*\Z")
_VALUE: Final = re.compile(rb"(?![ \t])[^\x00-\x08\x0a-\x1f\x7f]*(?<![ \t])\Z")
_SIZE: Final = re.compile(rb"[0-9]{1,18}\Z")

Headers = list[tuple[bytes, bytes]]


class RequestHead(_codec.Record, frozen=True):
    """All of a request but its body.

    Attributes:
        path: percent-encoded, without the query string.
        query: percent-encoded, without the question mark.
        headers: in the client's order; the same name may come again.
    """

    method: str
    path: bytes
    query: bytes
    headers: Headers


class ResponseHead(_codec.Record, frozen=True):
    """All of a response but its body."""

    status: int
    headers: Headers


class BadRequest(Exception):
    """A head that no application shall see; `status` is the answer."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


class HttpExchange:
    """The interface of every enclave that serves HTTP. A reply is `encode_head` ‖ body."""

    @rpc(retry=False)
    def request(self, head: RequestHead, body: bytes) -> AsyncIterator[bytes]:
        """A request with its body."""
        raise NotImplementedError

    @rpc(retry=False)
    def upload(self, head: RequestHead, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """A request whose body comes after it."""
        raise NotImplementedError


def check_request(head: RequestHead) -> int | None:
    """Refuse a head that breaks a bound or the grammar of HTTP.

    Returns:
        The size of the body that it announces, if it does.

    Raises:
        BadRequest: with 400, 414, 431 or 501.
    """
    if not _METHOD.match(head.method):
        raise BadRequest(400, "the method is not a token of at most 32 characters, in capitals")
    if len(head.path) + len(head.query) > MAX_TARGET:
        raise BadRequest(414, f"path and query string are longer than {MAX_TARGET} bytes")
    if not _TARGET.match(head.path) or b"?" in head.path or b"#" in head.path or not _QUERY.match(head.query):
        raise BadRequest(400, "the path begins with / and is percent-encoded, as is the query string")
    if len(head.headers) > MAX_HEADERS or _size(head.headers) > MAX_HEAD - MAX_TARGET:
        raise BadRequest(431, f"more than {MAX_HEADERS} headers, or more than {MAX_HEAD - MAX_TARGET} bytes of them")
    seen: set[bytes] = set()
    for name, value in head.headers:
        lower = name.lower()
        if not _TOKEN.match(name) or not _VALUE.match(value):
            raise BadRequest(
                400, "a header's name is no token, or its value has control characters or spaces around it"
            )
        if lower == b"upgrade":
            raise BadRequest(501, "WebSockets and other upgrades do not go inside mail; stream the response instead")
        if lower in HOP_BY_HOP:
            raise BadRequest(400, "a header that concerns one connection does not go inside mail")
        if lower in _ONCE and lower in seen:
            raise BadRequest(400, "host, content-length, content-type and authorization come once at most")
        seen.add(lower)
    try:
        return announced_size(head.headers)
    except ValueError as error:
        raise BadRequest(400, str(error)) from None


def announced_size(headers: Headers) -> int | None:
    """What content-length says of a body, if it is there.

    Raises:
        ValueError: it comes twice, or is no number of at most 18 digits.
    """
    sizes = [value for name, value in headers if name.lower() == b"content-length"]
    if len(sizes) > 1 or not all(map(_SIZE.match, sizes)):
        raise ValueError("content-length is one number of at most 18 digits")
    return int(sizes[0]) if sizes else None


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) + 8 for name, value in headers)


def encode_head(head: ResponseHead) -> bytes:
    """How a reply begins: size (4) ‖ head.

    Raises:
        ValueError: it is no head of HTTP, or exceeds the bounds.
    """
    if not _is_response(head):
        raise ValueError("a response has a status of 200 to 999, and headers without control characters")
    encoded = _codec.encode(head)
    if len(head.headers) > MAX_HEADERS or len(encoded) > MAX_HEAD:
        raise ValueError(f"a response has at most {MAX_HEADERS} headers and {MAX_HEAD} bytes of them")
    return len(encoded).to_bytes(4, "big") + encoded


def _is_response(head: ResponseHead) -> bool:
    return 200 <= head.status <= 999 and all(_TOKEN.match(n) and _VALUE.match(v) for n, v in head.headers)


class HeadReader:
    """Takes the head off the front of a reply, however that is cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, part: bytes) -> tuple[ResponseHead, bytes] | None:
        """Take a part; gives the head, and what of the body came with it, once it is whole.

        Raises:
            FormatError: not a head.
        """
        self._buffer += part
        size = int.from_bytes(self._buffer[:4], "big") if len(self._buffer) >= 4 else 0
        if size > MAX_HEAD:
            raise FormatError(f"the response's head has more than {MAX_HEAD} bytes")
        if len(self._buffer) < 4 or len(self._buffer) < 4 + size:
            return None
        head = _codec.decode(ResponseHead, bytes(self._buffer[4 : 4 + size]), max_size=MAX_HEAD, what="response head")
        if not _is_response(head):
            raise FormatError("the response's head is no head of HTTP")
        return head, bytes(self._buffer[4 + size :])
