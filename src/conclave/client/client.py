"""The clients: synchronous and asynchronous drivers of one core.

Runs at the relying party. See `core` for what is trusted.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import httpx2

from conclave.attestation import AttestationResult, Constraint, ReferenceValues
from conclave.client._box import Box
from conclave.client.core import Answer, ClientCore, Exchange, Pause, ReceivedMail
from conclave.client.identity import Identity
from conclave.mail.padding import Padding, padme
from conclave.rpc.interface import interface_of

E = TypeVar("E")
T = TypeVar("T")
_LIMIT = 17 * 1024 * 1024
# Nothing is decompressed on the way: what expands is chosen by the host.
_HEADERS = {"content-type": "application/vnd.conclave.mail", "accept-encoding": "identity"}


def _constraint(value: str | Constraint | Path) -> Constraint:
    if isinstance(value, Constraint):
        return value
    return Constraint.parse((value.read_text() if isinstance(value, Path) else value).strip())


def _no_answer(error: Exception, timeout_seconds: float) -> Answer:
    if isinstance(error, httpx2.ConnectError):
        return Answer(0, text="nothing answers at that address; is the host running?")
    if isinstance(error, httpx2.TimeoutException):
        return Answer(0, text=f"no answer within {timeout_seconds:g} seconds")
    if isinstance(error, httpx2.DecodingError):
        return Answer(0, text="the host's answer is too large or badly encoded")
    return Answer(0, text=f"the connection to the host broke ({type(error).__name__})")


def _more(step: Exchange, timeout_seconds: float) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if step.bearer:
        more["headers"] = {"authorization": f"Bearer {step.bearer}"}
    if step.wait_seconds:
        more["timeout"] = timeout_seconds + step.wait_seconds
    return more


class _Body:
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


class _Base:
    def __init__(
        self,
        url: str,
        *,
        constraint: str | Constraint | Path,
        identity: Identity | None = None,
        padding: Padding = padme,
        timeout_seconds: float = 30.0,
        attempts: int = 6,
        reference: ReferenceValues | None = None,
        box: Box | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: where the host serves, for example `http://127.0.0.1:8765`. Untrusted.
            constraint: which enclaves to accept: the line, its parsed form, or a file.
            identity: who the enclave will see; None makes one for this object.
            padding: how mails are padded.
            timeout_seconds: how long one request waits for the host.
            attempts: how often a request is sent before `TransportError`.
            reference: which measurements are which release, from `load_reference_values`;
                None for what this library knows by itself.
            box: where posted mail is received, from `Box.restore`; None makes one that
                is gone with this object, and what is posted to it then.

        Raises:
            FormatError: the constraint does not parse.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError("url begins with http:// or https://")
        self._core = ClientCore(
            constraint=_constraint(constraint),
            identity=identity,
            padding=padding,
            attempts=attempts,
            reference=reference,
            box=box,
        )
        self._url = url.rstrip("/")
        self._timeout = timeout_seconds

    @property
    def identity(self) -> Identity:
        """Who the enclave sees."""
        return self._core.identity

    @property
    def box(self) -> Box:
        """Where posted mail is received."""
        return self._core.box

    @property
    def refused_mails(self) -> int:
        """How many things the host passed off as the enclave's mail, or gave a second time."""
        return self._core.refused_mails

    @property
    def instance(self) -> AttestationResult:
        """The verified instance. Raises RuntimeError before the first contact."""
        if self._core.instance is None:
            raise RuntimeError("nothing was verified yet: call verify() or any method first")
        return self._core.instance


class Client(_Base):
    """A synchronous client, safe to use from several threads."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._lock = threading.Lock()
        self._http = httpx2.Client(base_url=self._url, timeout=self._timeout, headers=_HEADERS)

    __init__.__doc__ = _Base.__init__.__doc__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def _run(self, make: Callable[[], Generator[Exchange | Pause, Answer, T]]) -> T:
        """Drive steps; the core's state is touched under the lock, IO happens outside."""
        steps = make()
        answer: Answer | None = None
        while True:
            with self._lock:
                try:
                    step = next(steps) if answer is None else steps.send(answer)
                except StopIteration as stop:
                    return cast(T, stop.value)
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                answer = Answer(0)
            else:
                answer = self._exchange(step)

    def _exchange(self, step: Exchange) -> Answer:
        try:
            with self._http.stream(step.method, step.path, content=step.body, **_more(step, self._timeout)) as response:
                body = _Body(step, self._timeout + step.wait_seconds)
                try:
                    for part in response.iter_raw():
                        body.add(part)
                except httpx2.HTTPError:
                    # Mails that came whole count: they authenticate themselves.
                    if not step.mails:
                        raise
                return Answer(response.status_code, bytes(body.data))
        except httpx2.HTTPError as error:
            return _no_answer(error, self._timeout)

    def verify(self) -> AttestationResult:
        """Fetch and verify the instance now. Raises what refuses it."""
        return self._run(self._core.verify)

    def challenge(self) -> None:
        """Check that the verified instance is alive now."""
        self._run(self._core.challenge)

    def call(self, method: str, *args: Any, topic: str = "default", returns: Any = Any, retry: bool = True) -> Any:
        """Call an `@rpc` method by name, with positional arguments.

        Returns:
            Its result, decoded as `returns`.

        Raises:
            CallError: the author's code refused or failed.
            TransportError: no reply; the outcome is unknown.
            SequenceError: the host withheld an earlier mail of this topic.

        After the last two the mail is still under way, as the host may deliver it at
        any time: the client keeps it, and sends it again before the topic's next one.
        """
        return self._run(lambda: self._core.call(method, list(args), returns=returns, topic=topic, retry=retry))

    def mail(self, body: bytes, *, topic: str = "default", envelope: bytes = b"") -> list[ReceivedMail]:
        """Send a mail and return the enclave's replies to it, in its order."""
        return self._run(lambda: self._core.mail(body, topic=topic, envelope=envelope))

    def poll(self, *, topic: str = "default", wait_seconds: float = 0.0) -> list[ReceivedMail]:
        """Mail that was posted on a topic without being asked for, in this boot or an earlier one.

        Each is handed out once. The next poll of the topic acknowledges what this one
        gave; until then enclave and host keep it, for a client that fails before it
        was done with it. One thread at a time polls a topic.
        """
        return self._run(lambda: self._core.poll(topic=topic, wait_seconds=wait_seconds))

    def listen(self, *, topic: str = "default") -> Iterator[ReceivedMail]:
        """Mail that was posted on a topic, as it comes, for as long as it is asked for.

        Goes on when the host is away for a while. What was taken is acknowledged when
        more is waited for.

        Raises:
            VerificationError, AppraisalError: the instance that runs now is refused.
        """
        while True:
            yield from self._run(lambda: self._core.listen(topic=topic))

    def acknowledge(self, *, topic: str = "default") -> None:
        """Be done with what the last poll of a topic gave, as its next one would be."""
        self._run(lambda: self._core.acknowledge(topic=topic))

    def stub(self, cls: type[E], *, topic: str = "default") -> E:
        """Typed calls: an object with the `@rpc` methods of an enclave class.

        Raises:
            AppraisalError: the class differs from what the enclave was built from.
        """
        interface = interface_of(cls)
        if self._core.instance is None:
            self.verify()
        self._core.check_interface(interface)
        return cast(E, _Stub(self, interface, topic))


class AsyncClient(_Base):
    """An asynchronous client; calls may be in flight together."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        limits = httpx2.Limits(max_connections=256, max_keepalive_connections=256)
        self._http = httpx2.AsyncClient(base_url=self._url, timeout=self._timeout, headers=_HEADERS, limits=limits)

    __init__.__doc__ = _Base.__init__.__doc__

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def _run(self, make: Callable[[], Generator[Exchange | Pause, Answer, T]]) -> T:
        steps = make()
        answer: Answer | None = None
        while True:
            try:
                step = next(steps) if answer is None else steps.send(answer)
            except StopIteration as stop:
                return cast(T, stop.value)
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                answer = Answer(0)
            else:
                answer = await self._exchange(step)

    async def _exchange(self, step: Exchange) -> Answer:
        try:
            async with self._http.stream(
                step.method, step.path, content=step.body, **_more(step, self._timeout)
            ) as response:
                body = _Body(step, self._timeout + step.wait_seconds)
                try:
                    async for part in response.aiter_raw():
                        body.add(part)
                except httpx2.HTTPError:
                    if not step.mails:
                        raise
                return Answer(response.status_code, bytes(body.data))
        except httpx2.HTTPError as error:
            return _no_answer(error, self._timeout)

    async def verify(self) -> AttestationResult:
        """Fetch and verify the instance now. Raises what refuses it."""
        return await self._run(self._core.verify)

    async def challenge(self) -> None:
        """Check that the verified instance is alive now."""
        await self._run(self._core.challenge)

    async def call(
        self, method: str, *args: Any, topic: str = "default", returns: Any = Any, retry: bool = True
    ) -> Any:
        """See `Client.call`."""
        return await self._run(lambda: self._core.call(method, list(args), returns=returns, topic=topic, retry=retry))

    async def mail(self, body: bytes, *, topic: str = "default", envelope: bytes = b"") -> list[ReceivedMail]:
        """See `Client.mail`."""
        return await self._run(lambda: self._core.mail(body, topic=topic, envelope=envelope))

    async def poll(self, *, topic: str = "default", wait_seconds: float = 0.0) -> list[ReceivedMail]:
        """See `Client.poll`."""
        return await self._run(lambda: self._core.poll(topic=topic, wait_seconds=wait_seconds))

    async def listen(self, *, topic: str = "default") -> AsyncIterator[ReceivedMail]:
        """See `Client.listen`."""
        while True:
            for mail in await self._run(lambda: self._core.listen(topic=topic)):
                yield mail

    async def acknowledge(self, *, topic: str = "default") -> None:
        """See `Client.acknowledge`."""
        await self._run(lambda: self._core.acknowledge(topic=topic))

    async def stub(self, cls: type[E], *, topic: str = "default") -> Any:
        """Typed calls; each method of the stub is awaited. See `Client.stub`."""
        interface = interface_of(cls)
        if self._core.instance is None:
            await self.verify()
        self._core.check_interface(interface)
        return _Stub(self, interface, topic)


class _Stub(Generic[E]):
    """The `@rpc` methods of an enclave class, each a call."""

    def __init__(self, client: Client | AsyncClient, interface: Any, topic: str) -> None:
        for method in interface.methods.values():
            setattr(self, method.name, _caller(client, method, topic))


def _caller(client: Client | AsyncClient, method: Any, topic: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = method.bind(args, kwargs)
        return client.call(method.name, *arguments, topic=topic, returns=method.return_type, retry=method.retry)

    call.__name__ = method.name
    return call
