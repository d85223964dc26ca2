"""The clients: synchronous and asynchronous drivers of one core.

Runs at the relying party. See `core` for what is trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar, cast

import httpx2

from conclave.attestation import AttestationResult, Constraint, ReferenceValues
from conclave.client._box import Box
from conclave.client._hosts import MAX_HOSTS, ClientEvent, Hosts
from conclave.client._http import (
    Addresses,
    Arriving,
    OnProgress,
    answer_of,
    no_answer,
    told,
    trusted,
    watched,
    watched_async,
)
from conclave.client._log import check_log_id
from conclave.client._pace import ConstantRate, Pace, TaskTicker, ThreadTicker, Turn, paced
from conclave.client._state import ClientState
from conclave.client._streams import AsyncStream, Background, Stream
from conclave.client._upload import Source
from conclave.client.core import Answer, ClientCore, Exchange, Opened, Pause, ReceivedMail, Resumed
from conclave.client.identity import Identity
from conclave.errors import Error, FormatError, TransportError
from conclave.mail.padding import Padding, padme
from conclave.rpc.interface import Interface, interface_of

if TYPE_CHECKING:
    from conclave.persistence.context import SignedStatement

E = TypeVar("E")
T = TypeVar("T")
Work = Callable[[], Generator[Exchange | Pause | Turn, Answer, T]]
_DAY_SECONDS = 86400.0
_LIMITS = httpx2.Limits(max_connections=256, max_keepalive_connections=256)


def _constraint(value: str | Constraint | Path) -> Constraint:
    if isinstance(value, Constraint):
        return value
    if isinstance(value, Path):
        return _constraint_in(value)
    if not isinstance(value, str):
        raise TypeError(
            "constraint= takes a line such as 'C:<digest>', a Constraint, or the Path of a file that holds one, "
            f"got {type(value).__name__}"
        )
    if ":" not in value:
        raise FormatError("this is no constraint, such as 'C:<digest>'; give the name of a file as Path(...)")
    return Constraint.parse(value.strip())


def _constraint_in(path: Path) -> Constraint:
    try:
        line = path.read_text().strip()
    except UnicodeDecodeError:
        raise FormatError(f"{path} holds no constraint: it is no text") from None
    if not line:
        raise FormatError(f"{path} is empty; expected a constraint as `conclave build` prints it")
    try:
        return Constraint.parse(line)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def _urls(url: str | Sequence[str]) -> tuple[str, ...]:
    # What is neither is refused as the one address that it is not.
    several = isinstance(url, Iterable) and not isinstance(url, str | bytes)
    urls = tuple(url) if several else (cast(str, url),)
    if not 0 < len(urls) <= MAX_HOSTS:
        raise ValueError(f"give 1 to {MAX_HOSTS} urls")
    return urls


def _check_identity(identity: Identity | None) -> None:
    if identity is not None and not isinstance(identity, Identity):
        raise TypeError(
            f"identity= takes an Identity, got {type(identity).__name__}; Identity.load(path) reads one from its file"
        )


class _Deadline:
    """When a call ends, whatever it is doing then."""

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not 0 < seconds < math.inf:
            raise ValueError("a time-out is a positive number of seconds")
        self._seconds = seconds
        self._until = math.inf if seconds is None else time.monotonic() + seconds
        self._mailed = False

    def left(self, seconds: float) -> float:
        """So much of it as is left; 0: it is over."""
        return max(0.0, min(seconds, self._until - time.monotonic()))

    def over(self, step: Exchange | Pause | Turn) -> bool:
        """Whether it is, and that step is no longer done."""
        # Once there is a mail to be sent it stands in its topic's line, and leaves with the next one at the latest.
        self._mailed = self._mailed or (isinstance(step, Exchange) and step.mails)
        return not self.left(1.0)

    @property
    def error(self) -> TransportError:
        known = "the outcome is unknown" if self._mailed else "no request was sent"
        return TransportError(f"no reply within {self._seconds:g} seconds, {known}")


_clients: weakref.WeakSet[_Base] = weakref.WeakSet()


def _forked() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_forked)


class _Base:
    def __init__(
        self,
        url: str | Sequence[str],
        *,
        constraint: str | Constraint | Path,
        identity: Identity | None = None,
        padding: Padding = padme,
        pace: ConstantRate | None = None,
        timeout_seconds: float = 30.0,
        deadline_seconds: float | None = None,
        attempts: int = 6,
        reference: ReferenceValues | None = None,
        box: Box | None = None,
        on_event: Callable[[ClientEvent], None] | None = None,
        state: str | os.PathLike[str] | None = None,
        durable: bool = False,
        accept_log: bytes | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: where the host serves, for example `http://127.0.0.1:8765`; or several, of
                interchangeable replicas: the client stays with one that works. Untrusted.
            constraint: which enclaves to accept: the line, its parsed form, or a file.
            identity: who the enclave will see; None makes one for this object.
            padding: how mails are padded, but for calls of a stub whose class says more.
            pace: a `ConstantRate` at which mails leave, real ones or not.
            timeout_seconds: how long one request waits for the host.
            deadline_seconds: how long a call may take in all, with whatever is tried again;
                None: as long as its attempts take.
            attempts: how often a request is sent before `TransportError`.
            reference: which measurements are which release, from `load_reference_values`;
                None for what this library knows by itself.
            box: where posted mail is received, from `Box.restore`; None: the one that the
                saved state has, or else one that is gone with this object, with what is posted to it.
            on_event: is told what the client does besides: verify, wait, try again, fail over.
                It runs in the caller's thread; what it raises is logged and changes nothing.
            state: a file that keeps requests without an answer (`resume`) and the box across
                restarts, encrypted under the identity's key, which must be given too. One client at a time.
            durable: wait for the disk before each request leaves: then not even a loss of
                power loses one; costs some milliseconds each.
            accept_log: id of a log (32 bytes) that may take the place of the one that the saved state has
                pinned; see the method of that name.

        Raises:
            FormatError: the constraint does not parse, or the file of the state holds none.
            StateError: the state is in use by another client, of another identity, or cannot be written.
        """
        urls = _urls(url)
        self._closed = self._used = False
        self._addresses = Addresses(urls)
        _check_identity(identity)
        if attempts < 1:
            raise ValueError(f"attempts= takes a number from 1, got {attempts}")
        _Deadline(timeout_seconds)
        _Deadline(deadline_seconds)
        if state is not None and identity is None:
            raise ValueError(
                "saved state is encrypted under the identity: give identity=, as from Identity.load_or_create"
            )
        check_log_id(accept_log)
        self._timeout = timeout_seconds
        self._deadline = deadline_seconds
        self._on_event = on_event
        # Before the state is opened: a rate that cannot be kept opens nothing.
        self._pace = None if pace is None else Pace(pace, padding)
        accepted = _constraint(constraint)
        saved = None if state is None or identity is None else ClientState(state, identity, durable=durable)
        try:
            self._core = ClientCore(
                constraint=accepted,
                identity=identity,
                padding=padding,
                attempts=attempts,
                reference=reference,
                hosts=Hosts(len(urls)),
                box=box,
                state=saved,
                accept_log=accept_log,
            )
        except BaseException:
            if saved is not None:
                saved.close()
            raise
        self._core.only_topic = None if pace is None else pace.topic
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._addresses.shown}{', closed' if self._closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: its keys belong to one process. "
            "Make a client in each process; an identity can be shared through its file"
        )

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        if getattr(self, "_used", False) and not self._closed:
            warn(f"unclosed {self!r}: use it in a `with` block, or close it", ResourceWarning, source=self)

    def _after_fork(self) -> None:
        self._core.forked()
        # What keeps a constant rate does not run in the child: waiting for its turn would never end.
        self._closed = self._closed or self._pace is not None

    def _begin(self, timeout_seconds: float | None) -> _Deadline:
        if self._closed:
            raise RuntimeError("this client is closed; make another one")
        self._used = True
        return _Deadline(self._deadline if timeout_seconds is None else timeout_seconds)

    def _mailing(self, make: Work[T]) -> Work[T]:
        """The same work, where there is a pace each mail at its turn."""
        pace = self._pace
        return make if pace is None else lambda: paced(pace, make, cover=self._core.cover)

    def _check_interface(self, interface: Interface) -> None:
        self._core.check_interface(interface)
        if self._pace is not None:
            self._pace.check_interface(interface)

    def _tell(self) -> None:
        events = self._core.hosts.events
        while events:
            try:
                event = events.popleft()
            except IndexError:
                # Another thread told it.
                return
            if self._on_event is not None:
                told(self._on_event, event)

    @property
    def identity(self) -> Identity:
        """Who the enclave sees."""
        return self._core.identity

    @property
    def box(self) -> Box:
        """Where posted mail is received."""
        return self._core.box

    @property
    def unanswered(self) -> int:
        """How many requests earlier processes left in the saved state; `resume` repeats them."""
        return 0 if self._core.state is None else len(self._core.state.left)

    @property
    def refused_mails(self) -> int:
        """How many things the host passed off as the enclave's mail, or gave a second time."""
        return self._core.refused_mails

    @property
    def statement(self) -> SignedStatement | None:
        """The newest that the enclave signed about its state; None of an enclave without, or before it was asked.

        Others can verify it. Where two clients hold statements on one version of one log that differ, the host
        showed them two histories.
        """
        return self._core.log.statement

    def accept_log(self, log_id: bytes) -> None:
        """Consent to go on with an enclave that has another log than the one this client knew.

        Nothing that was sent to the old log is sent to the new one: what is unanswered fails with unknown outcome.

        Args:
            log_id: `LogReplaced.new`, once its operator could say what became of the old one. Exactly this log is
                accepted; a host that shows yet another one raises `LogReplaced` again.
        """
        self._core.accept_log(log_id)

    @property
    def instance(self) -> AttestationResult:
        """The verified instance. Raises RuntimeError before the first contact."""
        if self._core.instance is None:
            raise RuntimeError("nothing was verified yet: call verify() or any method first")
        return self._core.instance


class Client(_Base):
    """A synchronous client, safe to use from several threads."""

    def __init__(self, url: str | Sequence[str], **options: Any) -> None:
        super().__init__(url, **options)
        self._lock = threading.Lock()
        self._http_client: httpx2.Client | None = None
        self._ticker = None if self._pace is None else ThreadTicker(self._pace, self._cover)
        self._background: Background | None = None

    __init__.__doc__ = _Base.__init__.__doc__

    def __enter__(self) -> Self:
        if self._ticker is not None:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and end what streams; the client cannot be used after that."""
        self._closed = True
        if self._ticker is not None:
            self._ticker.close()
        http, self._http_client = self._http_client, None
        if http is not None:
            http.close()
        background, self._background = self._background, None
        if background is not None:
            background.close()
        with self._lock:
            self._core.close()

    @property
    def _http(self) -> httpx2.Client:
        with self._lock:
            if self._closed:
                # By another thread, in the middle of a call.
                raise RuntimeError("this client is closed; make another one")
            if self._http_client is None:
                self._http_client = httpx2.Client(verify=trusted(), limits=_LIMITS)
            return self._http_client

    def _after_fork(self) -> None:
        super()._after_fork()
        self._ticker = None
        # Another thread of the parent may have held the lock; its connections stay the parent's.
        self._lock, self._http_client, self._background = threading.Lock(), None, None

    def _run(self, make: Work[T], *, timeout_seconds: float | None = None, on_progress: OnProgress | None = None) -> T:
        """Drive steps; the core's state is touched under the lock, IO happens outside."""
        deadline = self._begin(timeout_seconds)
        steps = make()
        answer: Answer | None = None
        try:
            while True:
                with self._lock:
                    try:
                        step = next(steps) if answer is None else steps.send(answer)
                        if deadline.over(step):
                            step = steps.throw(deadline.error)
                    except StopIteration as stop:
                        return cast(T, stop.value)
                self._tell()
                if isinstance(step, Pause):
                    time.sleep(deadline.left(step.seconds))
                    answer = Answer(0)
                elif isinstance(step, Turn):
                    assert self._ticker is not None
                    answer = self._ticker.wait(step, deadline.left(_DAY_SECONDS))
                else:
                    answer = self._exchange(step, deadline.left(self._timeout + step.wait_seconds), on_progress)
        finally:
            with self._lock:
                steps.close()
            self._tell()

    def _exchange(self, step: Exchange, seconds: float, on_progress: OnProgress | None) -> Answer:
        content = step.body if on_progress is None or not step.mails else watched(step.body, on_progress)
        try:
            response = self._http.send(self._addresses.request(step, seconds, content), stream=True)
            arrived = Arriving(step, seconds)
            try:
                for part in response.iter_raw():
                    arrived.add(part)
            except httpx2.HTTPError:
                # Mails that came whole count: they authenticate themselves.
                if not step.mails:
                    raise
            finally:
                response.close()
            return answer_of(response, arrived)
        except httpx2.HTTPError as error:
            return no_answer(error, seconds)

    def _cover(self) -> None:
        pace = self._pace
        assert pace is not None
        # Nobody waits for it; what is wrong with the enclave or the host, the next call tells.
        with suppress(Error, RuntimeError):
            self._run(lambda: paced(pace, self._core.cover, granted=True))

    def verify(self) -> AttestationResult:
        """Fetch and verify the instance now. Raises what refuses it."""
        return self._run(self._core.verify)

    def challenge(self) -> None:
        """Check that the verified instance is alive now."""
        self._run(self._core.challenge)

    def call(
        self,
        method: str,
        *args: Any,
        topic: str = "default",
        returns: Any = Any,
        retry: bool = True,
        padding: Padding | None = None,
        timeout_seconds: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Call an `@rpc` method by name, with positional arguments.

        Args:
            padding: how the call is padded; None for this client's own padding.
            timeout_seconds: how long the call may take in all; None: the client's `deadline_seconds`.
            on_progress: is told `(sent, total)` in bytes while a large body leaves; again
                from the start for each attempt. What it raises is logged.

        Returns:
            Its result, decoded as `returns`.

        Raises:
            CallError: the author's code refused or failed.
            TransportError: no reply; the outcome is unknown, unless it says that no request was sent.
            SequenceError: the host withheld an earlier mail of this topic.

        After the last two a mail that was sent is still under way, as the host may deliver it at
        any time: the client keeps it, and sends it again before the topic's next one.
        """
        return self._run(
            self._mailing(
                lambda: self._core.call(method, list(args), returns=returns, topic=topic, retry=retry, padding=padding)
            ),
            timeout_seconds=timeout_seconds,
            on_progress=on_progress,
        )

    def call_stream(
        self,
        method: str,
        *args: Any,
        upload: Source | None = None,
        items: Any = bytes,
        returns: Any = bytes,
        topic: str = "default",
        padding: Padding | None = None,
        timeout_seconds: float | None = None,
    ) -> Stream[Any]:
        """Call an `@rpc` method that takes or returns a stream.

        Outside the topic's order and outside exactly-once: never retried.

        Args:
            args: the other arguments, in order.
            upload: what the method's iterator gets: bytes, a file opened for reading in
                binary, or any iterable, which is then read in another thread.
            items: the type of the uploaded items; of `bytes` they cross as they are.
            returns: the type of the items that come back, or of the result.
            timeout_seconds: how long the enclave may be silent; None: as for other
                requests. An enclave that works without a word says every second that it lives.

        Returns:
            What to iterate, or to ask for its `result()`. The call was accepted.

        Raises:
            CallError: the enclave refuses the call.
            StreamError: the host did not bring an answer; whether the handler runs is unknown.
        """
        with self._lock:
            if self._background is None:
                self._background = Background()
            background = self._background

        async def open_call() -> Opened:
            return opened

        async def refused(status: int) -> Exception:
            return await asyncio.to_thread(self._run, lambda: self._core.stream_refused(status, topic=topic))

        opened = self._run(
            lambda: self._core.open_stream(method, list(args), topic=topic, upload=upload is not None, padding=padding)
        )
        made: AsyncStream[Any] = AsyncStream(
            open_call,
            lambda: background.http,
            self._addresses,
            upload=upload,
            upload_raw=items is bytes,
            returns=returns,
            timeout_seconds=self._timeout if timeout_seconds is None else timeout_seconds,
            guard=self._lock,
            refused=refused,
        )
        background.run(made.begin())
        return Stream(made, background)

    def mail(
        self,
        body: bytes,
        *,
        topic: str = "default",
        envelope: bytes = b"",
        padding: Padding | None = None,
        timeout_seconds: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[ReceivedMail]:
        """Send a mail and return the enclave's replies to it, in its order; options as in `call`."""
        return self._run(
            self._mailing(lambda: self._core.mail(body, topic=topic, envelope=envelope, padding=padding)),
            timeout_seconds=timeout_seconds,
            on_progress=on_progress,
        )

    def resume(self, *, timeout_seconds: float | None = None) -> list[Resumed]:
        """Repeat what an earlier process with the same saved state left without an answer.

        In the same boot, or in any boot of the same log, under the same numbers: what the enclave had
        already done is answered from its memory, not run again. In another boot of an enclave
        without a log, as new requests; calls that are not retried fail instead. What was sent to
        a log that was replaced fails.

        Returns:
            What became of each, in their order. They are forgotten with that.

        Raises:
            TransportError, VerificationError, AppraisalError: all of it stays for another time.
        """
        return self._run(self._core.resume, timeout_seconds=timeout_seconds)

    def poll(self, *, topic: str = "default", wait_seconds: float = 0.0) -> list[ReceivedMail]:
        """Mail that was posted on a topic without being asked for, in this boot or an earlier one.

        Each is handed out once. The next poll of the topic acknowledges what this one
        gave; until then enclave and host keep it, for a client that fails before it
        was done with it. One thread at a time polls a topic.

        Raises:
            TransportError: the host gives no mail.
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
            mails: list[ReceivedMail] = []
            # What ends with the deadline of a call is tried anew, as anything that the host does.
            with contextlib.suppress(TransportError):
                mails = self._run(lambda: self._core.listen(topic=topic))
            yield from mails

    def acknowledge(self, *, topic: str = "default") -> None:
        """Be done with what the last poll of a topic gave, as its next one would be."""
        self._run(lambda: self._core.acknowledge(topic=topic))

    def stub(
        self,
        cls: type[E],
        *,
        topic: str = "default",
        timeout_seconds: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> E:
        """Typed calls: an object with the `@rpc` methods of an enclave class.

        Args:
            cls: the class, as the enclave was built from it.
            topic: the channel of its calls.
            timeout_seconds: of each call; see `call`, and `call_stream` for methods with streams.
                Stubs cost little: have one for each need.
            on_progress: of each call; see `call`. Streams report no progress.

        Raises:
            AppraisalError: the class differs from what the enclave was built from.
        """
        interface = interface_of(cls)
        if self._core.instance is None:
            self.verify()
        self._check_interface(interface)
        return cast(E, _Stub(self, interface, _Options(topic, timeout_seconds, on_progress)))


class AsyncClient(_Base):
    """An asynchronous client; calls may be in flight together."""

    def __init__(self, url: str | Sequence[str], **options: Any) -> None:
        super().__init__(url, **options)
        self._http_client: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker = None if self._pace is None else TaskTicker(self._pace, self._cover)

    __init__.__doc__ = _Base.__init__.__doc__

    async def __aenter__(self) -> Self:
        if self._ticker is not None:
            self._ticker.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close connections; the client cannot be used after that."""
        self._closed = True
        if self._ticker is not None:
            await self._ticker.close()
        self._core.close()
        http, self._http_client = self._http_client, None
        if http is not None and self._loop is asyncio.get_running_loop():
            await http.aclose()

    def _http(self) -> httpx2.AsyncClient:
        """Connections belong to an event loop; one loop after the other may have them."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and self._loop.is_running():
                raise RuntimeError("this client is in use by another event loop; make one for each, or use Client")
            # What the loop before had open ended with it.
            self._loop, self._http_client = loop, None
        if self._http_client is None:
            self._http_client = httpx2.AsyncClient(verify=trusted(), limits=_LIMITS)
        return self._http_client

    def _after_fork(self) -> None:
        super()._after_fork()
        self._ticker = None
        self._loop = self._http_client = None

    async def _run(
        self, make: Work[T], *, timeout_seconds: float | None = None, on_progress: OnProgress | None = None
    ) -> T:
        deadline = self._begin(timeout_seconds)
        http = self._http()
        steps = make()
        answer: Answer | None = None
        try:
            while True:
                try:
                    step = next(steps) if answer is None else steps.send(answer)
                    if deadline.over(step):
                        step = steps.throw(deadline.error)
                except StopIteration as stop:
                    return cast(T, stop.value)
                self._tell()
                if isinstance(step, Pause):
                    await asyncio.sleep(deadline.left(step.seconds))
                    answer = Answer(0)
                elif isinstance(step, Turn):
                    assert self._ticker is not None
                    answer = await self._ticker.wait(step, deadline.left(_DAY_SECONDS))
                else:
                    answer = await self._exchange(
                        http, step, deadline.left(self._timeout + step.wait_seconds), on_progress
                    )
        finally:
            steps.close()
            self._tell()

    async def _exchange(
        self, http: httpx2.AsyncClient, step: Exchange, seconds: float, on_progress: OnProgress | None
    ) -> Answer:
        content = step.body if on_progress is None or not step.mails else watched_async(step.body, on_progress)
        try:
            response = await http.send(self._addresses.request(step, seconds, content), stream=True)
            arrived = Arriving(step, seconds)
            try:
                async for part in response.aiter_raw():
                    arrived.add(part)
            except httpx2.HTTPError:
                if not step.mails:
                    raise
            finally:
                await response.aclose()
            return answer_of(response, arrived)
        except httpx2.HTTPError as error:
            return no_answer(error, seconds)

    async def _cover(self) -> None:
        pace = self._pace
        assert pace is not None
        with suppress(Error, RuntimeError):
            await self._run(lambda: paced(pace, self._core.cover, granted=True))

    async def verify(self) -> AttestationResult:
        """Fetch and verify the instance now. Raises what refuses it."""
        return await self._run(self._core.verify)

    async def challenge(self) -> None:
        """Check that the verified instance is alive now."""
        await self._run(self._core.challenge)

    async def call(
        self,
        method: str,
        *args: Any,
        topic: str = "default",
        returns: Any = Any,
        retry: bool = True,
        padding: Padding | None = None,
        timeout_seconds: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """See `Client.call`."""
        return await self._run(
            self._mailing(
                lambda: self._core.call(method, list(args), returns=returns, topic=topic, retry=retry, padding=padding)
            ),
            timeout_seconds=timeout_seconds,
            on_progress=on_progress,
        )

    def call_stream(
        self,
        method: str,
        *args: Any,
        upload: Source | None = None,
        items: Any = bytes,
        returns: Any = bytes,
        topic: str = "default",
        padding: Padding | None = None,
        timeout_seconds: float | None = None,
    ) -> AsyncStream[Any]:
        """See `Client.call_stream`. Nothing is sent before it is awaited, entered or iterated.

        `upload` may be asynchronous too; a plain iterable is read in another thread.
        """
        uploads = upload is not None
        return AsyncStream(
            lambda: self._run(
                lambda: self._core.open_stream(method, list(args), topic=topic, upload=uploads, padding=padding)
            ),
            self._http,
            self._addresses,
            upload=upload,
            upload_raw=items is bytes,
            returns=returns,
            timeout_seconds=self._timeout if timeout_seconds is None else timeout_seconds,
            guard=nullcontext(),
            refused=lambda status: self._run(lambda: self._core.stream_refused(status, topic=topic)),
        )

    async def mail(
        self,
        body: bytes,
        *,
        topic: str = "default",
        envelope: bytes = b"",
        padding: Padding | None = None,
        timeout_seconds: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[ReceivedMail]:
        """See `Client.mail`."""
        return await self._run(
            self._mailing(lambda: self._core.mail(body, topic=topic, envelope=envelope, padding=padding)),
            timeout_seconds=timeout_seconds,
            on_progress=on_progress,
        )

    async def resume(self, *, timeout_seconds: float | None = None) -> list[Resumed]:
        """See `Client.resume`."""
        return await self._run(self._core.resume, timeout_seconds=timeout_seconds)

    async def poll(self, *, topic: str = "default", wait_seconds: float = 0.0) -> list[ReceivedMail]:
        """See `Client.poll`."""
        return await self._run(lambda: self._core.poll(topic=topic, wait_seconds=wait_seconds))

    async def listen(self, *, topic: str = "default") -> AsyncIterator[ReceivedMail]:
        """See `Client.listen`."""
        while True:
            mails: list[ReceivedMail] = []
            with contextlib.suppress(TransportError):
                mails = await self._run(lambda: self._core.listen(topic=topic))
            for mail in mails:
                yield mail

    async def acknowledge(self, *, topic: str = "default") -> None:
        """See `Client.acknowledge`."""
        await self._run(lambda: self._core.acknowledge(topic=topic))

    async def stub(
        self,
        cls: type[E],
        *,
        topic: str = "default",
        timeout_seconds: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Typed calls; each method of the stub is awaited. See `Client.stub`."""
        interface = interface_of(cls)
        if self._core.instance is None:
            await self.verify()
        self._check_interface(interface)
        return _Stub(self, interface, _Options(topic, timeout_seconds, on_progress))


@dataclass(frozen=True, slots=True)
class _Options:
    """What all calls of one stub have in common."""

    topic: str
    timeout_seconds: float | None
    on_progress: OnProgress | None


class _Stub(Generic[E]):
    """The `@rpc` methods of an enclave class, each a call."""

    def __init__(self, client: Client | AsyncClient, interface: Any, options: _Options) -> None:
        for method in interface.methods.values():
            setattr(self, method.name, _caller(client, method, options))

    def __getattr__(self, name: str) -> NoReturn:
        # Asked only for what was not set above.
        raise AttributeError(f"the class has no @rpc method {name!r}; it has {', '.join(sorted(vars(self))) or 'none'}")


def _caller(client: Client | AsyncClient, method: Any, options: _Options) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = method.bind(args, kwargs)
        if method.streams:
            return _stream(client, method, arguments, options)
        return client.call(
            method.name,
            *arguments,
            topic=options.topic,
            returns=method.return_type,
            retry=method.retry,
            padding=method.padding,
            timeout_seconds=options.timeout_seconds,
            on_progress=options.on_progress,
        )

    call.__name__ = method.name
    return call


def _stream(client: Client | AsyncClient, method: Any, arguments: list[Any], options: _Options) -> Any:
    others, upload = method.split(arguments)
    items = bytes if method.upload is None else method.upload.item
    stream = client.call_stream(
        method.name,
        *others,
        upload=upload,
        items=items,
        returns=method.return_type,
        topic=options.topic,
        padding=method.padding,
        timeout_seconds=options.timeout_seconds,
    )
    return stream if method.download is not None else stream.result()
