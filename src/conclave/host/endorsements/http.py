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
from functools import cache
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


# What each failure means, and whether it concerns the whole service.
FAILURES: Final = {
    "vendor-unreachable": ("the connection fails or breaks off", True),
    "vendor-tls": ("its TLS certificate is not accepted", True),
    "vendor-slow": ("it does not answer in time", True),
    "vendor-busy": ("it asks to wait", True),
    "vendor-paced": ("requests to it are spaced, and too many are waiting", False),
    "vendor-failed": ("it failed", False),
    "vendor-missing": ("it has no such document", False),
    "vendor-refused": ("it refuses the request", False),
    "vendor-redirect": ("it points elsewhere, which is not followed", False),
    "vendor-content": ("its answer is not the document asked for", False),
    "vendor-expired": ("the document that it gives is expired, or not valid yet", False),
}


class Failure(Exception):
    """No document came of it.

    Attributes:
        code: a key of `FAILURES`.
        retry_after: what a header of that name said, or "".
        everywhere: concerns the whole service, not only this document.
    """

    def __init__(self, code: str, detail: str = "", *, retry_after: str = "") -> None:
        self.code = code
        self.retry_after = retry_after
        meaning, self.everywhere = FAILURES[code]
        super().__init__(f"{meaning} ({detail})" if detail else meaning)


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


@cache
def _usual_authorities() -> ssl.SSLContext:
    # Reading a hundred certificates takes longer than a request.
    return httpx2.create_ssl_context()


class Transport:
    """A client of one service."""

    def __init__(self, *, ca_file: Path | None, limits: TimeLimits) -> None:
        """Raises OSError if the file cannot be read."""
        self._limits = limits
        self._client = httpx2.AsyncClient(
            verify=_usual_authorities() if ca_file is None else ssl.create_default_context(cafile=str(ca_file)),
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
                    raise Failure("vendor-content", "it is compressed, which was not asked for")
                body = bytearray()
                async for part in answer.aiter_raw():
                    body += part
                    if len(body) > max_size:
                        raise Failure("vendor-content", f"it has more than {max_size} bytes")
                return Answer(answer.status_code, answer.headers, bytes(body))
        except (TimeoutError, httpx2.TimeoutException):
            raise Failure("vendor-slow") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ssl.SSLError, OSError) as error:
            raise Failure("vendor-tls" if _is_about_certificates(error) else "vendor-unreachable") from None


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_status(status: int, retry_after: str) -> None:
    if status == 200:
        return
    if status in (404, 410):
        code = "vendor-missing"
    elif status in (429, 503):
        code = "vendor-busy"
    elif 300 <= status < 400:
        code = "vendor-redirect"
    else:
        code = "vendor-refused" if 400 <= status < 500 else "vendor-failed"
    raise Failure(code, f"status {status}", retry_after=retry_after if code == "vendor-busy" else "")
