"""HTTP exchanges that an enclave asks for: with hosts of other enclaves, and with its own.

Runs in the untrusted host, which is the operator's: the enclave may be hostile to it.
Only addresses that the operator named are fetched from, and of those only what a host
of enclaves, or a witness, serves; no redirect is followed.

Spec: spec/host-channel.md section 2 (CHAN-10 to CHAN-12).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from conclave import _codec
from conclave._framing import MAX_PAYLOAD
from conclave.errors import FormatError

if TYPE_CHECKING:
    import httpx2

MAX_OUTSTANDING: Final = 128
MAX_HELD: Final = 128 * 1024 * 1024
TIMEOUT_SECONDS: Final = 120.0
# What the core of a client asks for; with the host's own enclave, its instance info alone.
_SERVED: Final = frozenset({("GET", "/instance"), ("POST", "/mail"), ("POST", "/challenge")})
_WITNESSED: Final = frozenset({("POST", "/witness/head"), ("POST", "/witness/advance")})
# An enclave names a witness, and never learns where it is.
_WITNESS: Final = "witness:"
_MAIL_TYPE: Final = "application/vnd.conclave.mail"
_WITNESS_TYPE: Final = "application/vnd.conclave.witness"
_LARGEST: Final = MAX_PAYLOAD - 2
_LARGEST_OF_WITNESS: Final = 64 * 1024
Answer = Callable[[bytes], None]


class _Fetch(_codec.Record, frozen=True):
    url: str
    method: str
    path: str
    body: bytes


class _Failure(Exception):
    """Ends an exchange with one of the words of the spec."""


class Fetcher:
    """Makes the exchanges of one boot after another."""

    def __init__(
        self,
        peers: Iterable[str],
        *,
        witnesses: Mapping[str, str] | None = None,
        info: Callable[[], bytes | None],
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Nothing is fetched by itself.

        Args:
            peers: the addresses of hosts that the enclave may call, as it writes them.
            witnesses: the addresses of its witnesses, by the names that it has for them.
            info: the instance info of the host's own enclave.
            timeout_seconds: how long one exchange may take in all.
        """
        self._peers = frozenset(url.rstrip("/") for url in peers)
        self._witnesses = {f"{_WITNESS}{name}": url.rstrip("/") for name, url in (witnesses or {}).items()}
        self._info = info
        self._timeout = timeout_seconds
        self._http: httpx2.AsyncClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = 0

    def take(self, payload: bytes, answer: Answer) -> None:
        """Make one exchange; `answer` gets the payload of its FETCHED frame."""
        if len(self._tasks) >= MAX_OUTSTANDING or self._held + len(payload) > MAX_HELD:
            answer(_failed(b"busy"))
            return
        task = asyncio.get_running_loop().create_task(self._make(payload, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def clear(self) -> None:
        """Give up what is under way: the boot that asked is gone."""
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        """Close connections."""
        self.clear()
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def _make(self, payload: bytes, answer: Answer) -> None:
        held = len(payload)
        self._held += held
        try:
            async with asyncio.timeout(self._timeout):
                said = await self._exchange(payload)
        except _Failure as failure:
            said = _failed(failure.args[0])
        except TimeoutError:
            said = _failed(b"timeout")
        finally:
            self._held -= held
        answer(said)

    async def _exchange(self, payload: bytes) -> bytes:
        try:
            asked = _codec.decode(_Fetch, payload, max_size=MAX_PAYLOAD, what="fetch frame")
        except FormatError:
            raise _Failure(b"refused") from None
        if (asked.method, asked.path) == ("GET", "/instance") and not asked.url:
            info = self._info()
            return _answered(503, b"") if info is None else _answered(200, info)
        if asked.url in self._witnesses and (asked.method, asked.path) in _WITNESSED:
            return await self._fetch(asked, self._witnesses[asked.url], _WITNESS_TYPE, _LARGEST_OF_WITNESS)
        if asked.url not in self._peers or (asked.method, asked.path) not in _SERVED:
            raise _Failure(b"refused")
        return await self._fetch(asked, asked.url, _MAIL_TYPE, _LARGEST)

    async def _fetch(self, asked: _Fetch, url: str, content_type: str, largest: int) -> bytes:
        import httpx2

        if self._http is None:
            limits = httpx2.Limits(max_connections=MAX_OUTSTANDING, max_keepalive_connections=MAX_OUTSTANDING)
            self._http = httpx2.AsyncClient(timeout=self._timeout, limits=limits, follow_redirects=False)
        headers = {"content-type": content_type, "accept-encoding": "identity"}
        body = bytearray()
        try:
            async with self._http.stream(
                asked.method, url + asked.path, content=asked.body, headers=headers
            ) as response:
                try:
                    async for part in response.aiter_raw():
                        self._held += len(part)
                        body += part
                        if len(body) > largest or self._held > MAX_HELD:
                            raise _Failure(b"large")
                except httpx2.HTTPError:
                    # Mails that came whole count: they authenticate themselves.
                    if asked.path != "/mail":
                        raise
                return _answered(response.status_code, bytes(body))
        except httpx2.ConnectError:
            raise _Failure(b"connect") from None
        except httpx2.TimeoutException:
            raise _Failure(b"timeout") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError):
            raise _Failure(b"broken") from None
        finally:
            self._held -= len(body)


def _answered(status: int, body: bytes) -> bytes:
    return status.to_bytes(2, "big") + body


def _failed(word: bytes) -> bytes:
    return _answered(0, word)
