"""Transports for httpx2: ordinary HTTP requests, inside mail.

Runs at the relying party. The host sees mails, as with any other client; what is
asked and answered is between this process and the verified enclave.

Spec: spec/asgi.md section 4.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, NoReturn

import httpx2

from conclave.client.client import AsyncClient, Client
from conclave.errors import CallError, Error, FormatError, TransportError
from conclave.rpc.http import (
    HOP_BY_HOP,
    BadRequest,
    HeadReader,
    HttpExchange,
    RequestHead,
    ResponseHead,
    check_request,
)

_SCHEMES: Final = ("http", "https")


class MailTransport(httpx2.BaseTransport):
    """Carries the requests of an `httpx2.Client` to an enclave that serves an ASGI application.

    Scheme and authority of a URL do not choose the enclave: this object does. They are
    what the application finds in the header `host`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        """Prepare a transport; nothing is sent yet.

        Args:
            url: where the host serves. Untrusted.
            options: of `Client`: `constraint`, which is required, `identity` and the others.
        """
        self.client = Client(url, **options)
        self._checked = False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; called by httpx2.

        Raises:
            httpx2.RequestError: nothing of the enclave's application came, or not all of it.
            VerificationError, AppraisalError: the host offers another enclave than the constraint accepts.
        """
        head = _head(request)
        assert isinstance(request.stream, httpx2.SyncByteStream)
        try:
            if not self._checked:
                self.client.stub(HttpExchange)
                self._checked = True
            body = b"".join(request.stream)
            parts = iter([self.client.call("request", head, body, returns=bytes, retry=False)])
            made, rest = _first(parts)
        except (CallError, FormatError, TransportError) as error:
            _raise(error, request)
        return httpx2.Response(made.status, headers=made.headers, stream=_Body(rest, parts, request))

    def close(self) -> None:
        """Close the connections to the host."""
        self.client.close()


class AsyncMailTransport(httpx2.AsyncBaseTransport):
    """The same for an `httpx2.AsyncClient`; requests may be under way together."""

    def __init__(self, url: str, **options: Any) -> None:
        self.client = AsyncClient(url, **options)
        self._checked = False

    __init__.__doc__ = MailTransport.__init__.__doc__

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; see `MailTransport.handle_request`."""
        head = _head(request)
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        try:
            if not self._checked:
                await self.client.stub(HttpExchange)
                self._checked = True
            body = b"".join([part async for part in request.stream])

            async def call() -> AsyncIterator[bytes]:
                yield await self.client.call("request", head, body, returns=bytes, retry=False)

            parts = call()
            made, rest = await _first_of(parts)
        except (CallError, FormatError, TransportError) as error:
            _raise(error, request)
        return httpx2.Response(made.status, headers=made.headers, stream=_AsyncBody(rest, parts, request))

    async def aclose(self) -> None:
        """Close the connections to the host."""
        await self.client.aclose()


def _head(request: httpx2.Request) -> RequestHead:
    """What goes inside mail of a request. Raises httpx2.RequestError: it does not fit there."""
    if request.url.scheme not in _SCHEMES:
        raise httpx2.UnsupportedProtocol(
            "mail carries http and https URLs; WebSockets do not go inside mail, stream the response instead",
            request=request,
        )
    path, _, query = request.url.raw_path.partition(b"?")
    headers = [(n, v) for n, v in request.headers.raw if n.lower() not in HOP_BY_HOP or n.lower() == b"upgrade"]
    head = RequestHead(method=request.method, path=path, query=query, headers=headers)
    try:
        check_request(head)
    except BadRequest as error:
        raise httpx2.LocalProtocolError(f"this request does not go inside mail: {error}", request=request) from None
    return head


def _raise(error: Error, request: httpx2.Request) -> NoReturn:
    """Our error as one of httpx2's, for callers that know no other."""
    if isinstance(error, TransportError):
        raise httpx2.NetworkError(str(error), request=request) from error
    raise httpx2.RemoteProtocolError(str(error), request=request) from error


def _first(parts: Iterator[bytes]) -> tuple[ResponseHead, bytes]:
    reader = HeadReader()
    for part in parts:
        whole = reader.feed(part)
        if whole is not None:
            return whole
    raise FormatError("the enclave's response ended before its head was whole")


async def _first_of(parts: AsyncIterator[bytes]) -> tuple[ResponseHead, bytes]:
    reader = HeadReader()
    async for part in parts:
        whole = reader.feed(part)
        if whole is not None:
            return whole
    raise FormatError("the enclave's response ended before its head was whole")


class _Body(httpx2.SyncByteStream):
    """A response's body as it comes."""

    def __init__(self, first: bytes, parts: Iterator[bytes], request: httpx2.Request) -> None:
        self._first, self._parts, self._request = first, parts, request

    def __iter__(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
        try:
            yield from self._parts
        except Error as error:
            _raise(error, self._request)

    def close(self) -> None:
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()


class _AsyncBody(httpx2.AsyncByteStream):
    def __init__(self, first: bytes, parts: AsyncIterator[bytes], request: httpx2.Request) -> None:
        self._first, self._parts, self._request = first, parts, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._first:
            yield self._first
        try:
            async for part in self._parts:
                yield part
        except Error as error:
            _raise(error, self._request)

    async def aclose(self) -> None:
        close = getattr(self._parts, "aclose", None)
        if close is not None:
            await close()
