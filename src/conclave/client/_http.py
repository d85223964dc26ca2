"""One HTTP exchange of a client, but for the waiting: requests, bounds, time-outs.

Runs at the relying party. Whatever comes back is bounded in size and time, and is
believed only where the core verifies it.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Final

import httpx2

from conclave.client.core import Answer, Exchange

OnProgress = Callable[[int, int], None]
_LIMIT: Final = 17 * 1024 * 1024
_PIECE: Final = 64 * 1024
_LIKE: Final = ", such as http://127.0.0.1:8765"
_PORTS: Final = range(1, 65536)
# Finding that nobody is there takes no longer than this, whatever a call may take.
_CONNECT_SECONDS: Final = 10.0
# Nothing is decompressed on the way: what expands is chosen by the host.
_HEADERS: Final = [(b"content-type", b"application/vnd.conclave.mail"), (b"accept-encoding", b"identity")]
logger = logging.getLogger("conclave.client")


@cache
def trusted() -> ssl.SSLContext:
    """The authorities that every client of this process trusts for TLS: to read them takes longer than many calls."""
    return httpx2.create_ssl_context()


def told(callback: Callable[..., None], *args: object) -> None:
    """Call what the user gave. It watches the protocol: what it raises is logged, and changes nothing."""
    try:
        callback(*args)
    except Exception:
        logger.exception("a callback of a client raised; it goes on")


def parse_url(text: str) -> httpx2.URL:
    """The address of a host. Messages repeat nothing of it, since it may hold a password.

    Raises:
        TypeError: no text.
        ValueError: no such address.
    """
    if not isinstance(text, str):
        raise TypeError(f"a url is a str{_LIKE}, got {type(text).__name__}")
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"a url begins with http:// or https://{_LIKE}")
    try:
        url = httpx2.URL(text)
        # As the resolver will: it takes no label that is empty or too long.
        name = url.raw_host.decode("ascii").encode("idna")
        # What no name can hold was escaped; an IPv6 address may have it before its zone.
        if b"%" in name and b":" not in name:
            raise UnicodeError
    except (httpx2.InvalidURL, UnicodeError):
        raise ValueError(f"the url cannot be read: it takes a host and perhaps a port{_LIKE}") from None
    if not url.host:
        raise ValueError(f"the url names no host; expected one{_LIKE}")
    if url.port is not None and url.port not in _PORTS:
        raise ValueError(f"the port of a url is a number from 1 to 65535, got {url.port}")
    return url


def shown(url: httpx2.URL) -> str:
    """Where a request goes, without the password that a URL may hold."""
    return f"{url.scheme}://{url.netloc.decode()}"


class Addresses:
    """The hosts' addresses, and requests to them."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self.shown = ", ".join(shown(parse_url(url)) for url in urls)
        self._bases = [url.rstrip("/") for url in urls]
        self._mail = [httpx2.URL(base + "/mail") for base in self._bases]

    def request(self, step: Exchange, timeout_seconds: float, content: object) -> httpx2.Request:
        """What the step asks for. Built here because httpx2's own way costs a third more of a call."""
        url = self._mail[step.host] if step.path == "/mail" else httpx2.URL(self._bases[step.host] + step.path)
        connect = min(timeout_seconds, _CONNECT_SECONDS)
        timeout = {"connect": connect, "read": timeout_seconds, "write": timeout_seconds, "pool": timeout_seconds}
        headers = _HEADERS
        if step.bearer:
            headers = [*_HEADERS, (b"authorization", b"Bearer " + step.bearer.encode())]
        if not isinstance(content, bytes):
            headers = [*headers, (b"content-length", str(len(step.body)).encode())]
        return httpx2.Request(
            step.method,
            url,
            headers=headers,
            content=content,  # type: ignore[arg-type]
            extensions={"timeout": timeout},
        )


class Arriving:
    """What arrives of an answer, bounded in size and time: a host may drip for ever."""

    def __init__(self, step: Exchange, timeout_seconds: float) -> None:
        self.data = bytearray()
        self._limit = _LIMIT * (8 if step.mails else 1)
        self._until = time.monotonic() + timeout_seconds

    def add(self, part: bytes) -> None:
        """Take a part. Raises httpx2.HTTPError beyond the bounds."""
        self.data += part
        if len(self.data) > self._limit:
            raise httpx2.DecodingError("the answer is too large")
        if time.monotonic() > self._until:
            raise httpx2.ReadTimeout("the answer takes too long")


def answer_of(response: httpx2.Response, arrived: Arriving) -> Answer:
    """Status, body and the host's hint when to come back."""
    hint = response.headers.get("retry-after", "") if response.status_code in (429, 503) else ""
    seconds = float(hint) if hint.isascii() and hint.isdigit() and len(hint) < 6 else 0.0
    return Answer(response.status_code, bytes(arrived.data), retry_after=seconds)


def unreachable(error: httpx2.ConnectError) -> str:
    """Why there is no connection, in words of ours."""
    address = shown(error.request.url)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the TLS certificate of {address} is of another name, or not trusted here; "
                "SSL_CERT_FILE names authorities"
            )
        if isinstance(cause, ssl.SSLError):
            return f"TLS fails at {address}; does the host serve http://?"
        if isinstance(cause, socket.gaierror):
            return f"the name in {address} does not resolve to an address; is it spelt right, is there a network?"
        cause = cause.__cause__ or cause.__context__
    return f"nothing answers at {address}; is the host running?"


def no_answer(error: Exception, timeout_seconds: float) -> Answer:
    """Status 0, and what went wrong in words of ours."""
    if isinstance(error, httpx2.ConnectError):
        return Answer(0, text=unreachable(error))
    if isinstance(error, httpx2.TimeoutException):
        return Answer(0, text=f"no answer within {timeout_seconds:g} seconds")
    if isinstance(error, httpx2.DecodingError):
        return Answer(0, text="the host's answer is too large or badly encoded")
    return Answer(0, text=f"the connection to the host broke ({type(error).__name__})")


def watched(body: bytes, on_progress: OnProgress) -> Iterator[bytes]:
    """A body in pieces, with word of how much of it was taken."""
    for at in range(0, len(body), _PIECE):
        yield body[at : at + _PIECE]
        told(on_progress, min(at + _PIECE, len(body)), len(body))


async def watched_async(body: bytes, on_progress: OnProgress) -> AsyncIterator[bytes]:
    """The same for an asynchronous client."""
    for piece in watched(body, on_progress):
        yield piece
