"""One bounded GET at a vendor's service.

Untrusted; whatever answers is hostile. No redirect is followed, TLS certificates are
verified, an answer is read only up to its size and for a limited time.

Spec: spec/endorsements.md section 7.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2

from conclave.errors import FormatError

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 20.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_HEADERS: Final = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "conclave"}


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long to wait, in seconds: for a connection, and for the whole answer."""

    connect_seconds: float = CONNECT_SECONDS
    answer_seconds: float = ANSWER_SECONDS


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (their names in any case) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Failure(Exception):
    """No document came of it.

    Attributes:
        code: one word of spec/endorsements.md section 8.
        retry_after: what a header of that name said, or "".
        everywhere: concerns the whole service, not only this document.
    """

    def __init__(self, code: str, message: str, *, retry_after: str = "", everywhere: bool = False) -> None:
        self.code = code
        self.retry_after = retry_after
        self.everywhere = everywhere
        super().__init__(message)


def check_address(url: str) -> None:
    """Refuse an address that gives the connection away.

    Raises:
        FormatError: neither https, nor http on this machine.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if not host or parts.username or parts.fragment or not url.isascii():
        raise FormatError("the address of a service is not a URL with a host", code="service-address")
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        raise FormatError("the address of a service begins with https://", code="service-address")


class Transport:
    """A client of one service."""

    def __init__(self, *, ca_file: Path | None, limits: TimeLimits) -> None:
        """Raises OSError if the file cannot be read."""
        self._limits = limits
        verify: ssl.SSLContext | bool = True
        if ca_file is not None:
            verify = ssl.create_default_context(cafile=str(ca_file))
        self._client = httpx2.AsyncClient(
            verify=verify,
            follow_redirects=False,
            timeout=httpx2.Timeout(limits.answer_seconds, connect=limits.connect_seconds),
            limits=httpx2.Limits(max_connections=4, max_keepalive_connections=2),
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def get(self, url: str, *, max_size: int, headers: Mapping[str, str] | None = None) -> Answer:
        """The answer with status 200. Raises Failure for everything else."""
        try:
            async with (
                asyncio.timeout(self._limits.answer_seconds),
                self._client.stream("GET", url, headers={**_HEADERS, **(headers or {})}) as answer,
            ):
                _check_status(answer.status_code, answer.headers.get("retry-after", ""))
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise Failure("vendor-content", "the answer is compressed, which was not asked for")
                body = bytearray()
                async for part in answer.aiter_raw():
                    body += part
                    if len(body) > max_size:
                        raise Failure("vendor-content", f"the answer has more than {max_size} bytes")
                return Answer(answer.status_code, answer.headers, bytes(body))
        except (TimeoutError, httpx2.TimeoutException):
            raise Failure("vendor-slow", "the service does not answer in time", everywhere=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ssl.SSLError, OSError) as error:
            tls = isinstance(error.__cause__ or error.__context__, ssl.SSLError) or "CERTIFICATE" in str(error)
            what = "its TLS certificate is not accepted" if tls else "the connection fails or breaks off"
            raise Failure("vendor-unreachable", f"the service cannot be reached: {what}", everywhere=True) from None


def _check_status(status: int, retry_after: str) -> None:
    if status == 200:
        return
    if status in (404, 410):
        raise Failure("vendor-missing", f"the service has no such document (status {status})")
    if status in (429, 503):
        raise Failure(
            "vendor-busy", f"the service asks to wait (status {status})", retry_after=retry_after, everywhere=True
        )
    if 300 <= status < 400:
        raise Failure("vendor-redirect", f"the service points elsewhere (status {status}), which is not followed")
    if 400 <= status < 500:
        raise Failure("vendor-refused", f"the service refuses the request (status {status})")
    raise Failure("vendor-failed", f"the service failed (status {status})")
