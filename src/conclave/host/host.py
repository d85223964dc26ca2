"""The common host: runs one enclave and gives it to clients over HTTP (ASGI).

Untrusted: it sees ciphertext, sizes and times. What it learns of an error is one
word.

Spec: spec/http.md; spec/host-channel.md section 4.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from conclave import _codec
from conclave._framing import Frame, Kind
from conclave._mailheader import MAX_MAIL, TO_ENCLAVE, address_of
from conclave.errors import BundleError, Error, FormatError, PlatformError, TransportError
from conclave.host.link import Ask, Link
from conclave.host.order import Reorder
from conclave.host.outbox import Outbox

if TYPE_CHECKING:
    from conclave.host.endorsements import EndorsementSource

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

INFO_TYPE: Final = b"application/vnd.conclave.instance-info"
MAILS_TYPE: Final = b"application/vnd.conclave.mails"
START_SECONDS: Final = 120.0
SWEEP_SECONDS: Final = 2.0
RENEW_SECONDS: Final = 86_400.0
STAPLE_SECONDS: Final = 3600.0
STAPLE_AGAIN_SECONDS: Final = 60.0
_STATUS: Final = {
    b"format": (400, "not a mail the enclave can read"),
    b"decryption": (422, "the enclave could not decrypt this mail"),
    b"session": (409, "the enclave does not know this session; verify the instance again"),
    b"overloaded": (429, "the enclave has no room; try later"),
    b"stopping": (503, "the enclave is stopping"),
}


class Launched(Protocol):
    """What a TEE driver's host half gives: the platform process and the channel."""

    @property
    def process(self) -> subprocess.Popen[bytes]: ...
    @property
    def channel(self) -> socket.socket: ...


class _Evidence(_codec.Record, frozen=True):
    claims: bytes
    evidence: bytes


class Refusal(Exception):
    """An HTTP error answer."""

    def __init__(self, status: int, word: str, detail: str) -> None:
        self.status = status
        self.word = word
        self.detail = detail
        super().__init__(detail)


class Host:
    """An ASGI application around one enclave, restarted when it dies."""

    def __init__(
        self,
        launch: Callable[[], Launched],
        *,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        restart: bool = True,
        renew_seconds: float = RENEW_SECONDS,
        patience_seconds: float | None = None,
        endorsements: EndorsementSource | None = None,
        evidence_kind: str = "sgx",
    ) -> None:
        """Nothing runs before `start`.

        Args:
            launch: starts the platform with the bundle; called again for restarts.
            on_event: told each platform event, for logs.
            restart: whether an enclave that died is started again.
            renew_seconds: how often the instance's encryption key and evidence change.
            patience_seconds: how long an early mail waits for those before it.
            endorsements: where the vendor's endorsements come from; without, the
                platform gives its own, as the simulated one does.
            evidence_kind: `sgx`, `tdx`, `snp` or `nitro`.
        """
        self._launch = launch
        self._on_event = on_event or (lambda event: None)
        self._restart = restart
        self._renew_seconds = renew_seconds
        self._order = Reorder() if patience_seconds is None else Reorder(patience_seconds)
        self._outbox = Outbox()
        self._link: Link | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._source = endorsements
        self._kind = evidence_kind
        self._endorsements: bytes | None = None
        self._evidence: _Evidence | None = None
        self._given = asyncio.Event()
        self._ready: asyncio.Future[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._stapler: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost = asyncio.Event()
        self.info: bytes | None = None
        self.launched: dict[str, Any] = {}

    # Life ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the enclave and wait for its first evidence.

        Raises:
            BundleError, PlatformError: the platform or the enclave refused.
        """
        if self._source is not None:
            self._stapler = asyncio.create_task(self._staple(self._source))
        try:
            await self._boot()
        except BaseException:
            if self._stapler is not None:
                self._stapler.cancel()
            raise
        self._supervisor = asyncio.create_task(self._supervise())
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Stop the enclave."""
        for task in (self._supervisor, self._sweeper, self._stapler):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self._end()

    async def _end(self) -> None:
        self.info = None
        link, process = self._link, self._process
        if link is not None:
            link.stop()
            await asyncio.sleep(0)
            link.close()
        if process is not None:
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.to_thread(process.wait)
        for task in list(self._tasks):
            task.cancel()

    async def _supervise(self) -> None:
        delay = 0.05
        while True:
            try:
                async with asyncio.timeout(self._renew_seconds):
                    await self._lost.wait()
            except TimeoutError:
                await self._renew()
                continue
            await self._end()
            if not self._restart:
                return
            began = time.monotonic()
            with suppress(BundleError, PlatformError):
                await self._boot()
            delay = 0.05 if time.monotonic() - began > 5 else min(delay * 2, 5.0)
            if self._lost.is_set():
                await asyncio.sleep(delay)

    async def _sweep(self) -> None:
        """Give up requests that wait for long once their clients have gone."""
        while True:
            link = self._link
            mark = 0 if link is None else link.next_request
            await asyncio.sleep(SWEEP_SECONDS)
            for ask in [] if link is None or link is not self._link else link.waiting_since(mark):
                leaves, ask.leaves = ask.leaves, None
                if leaves is not None and link is not None:
                    task = asyncio.create_task(_drop_when(leaves(), link, ask))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _renew(self) -> None:
        if self._link is None:
            return
        with suppress(TransportError, TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                for frame in await self._link.ask(Kind.RENEW).more():
                    self._instance(frame)

    async def _boot(self) -> None:
        self._lost.clear()
        self._endorsements, self._evidence = None, None
        self._order.clear()
        self._outbox.clear()
        self._ready = asyncio.get_running_loop().create_future()
        try:
            launched = await asyncio.to_thread(self._launch)
        except OSError as error:
            self._lost.set()
            raise PlatformError(f"the platform process did not start: {error.strerror}") from None
        self._process = launched.process
        loop = asyncio.get_running_loop()
        # What a boot still says when the next one has begun is not of that one.
        gone = partial(self._gone, self._ready)
        _, self._link = await loop.create_connection(lambda: Link(self._unasked, gone), sock=launched.channel)
        self._follow(launched.process, self._ready)
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready
        except TimeoutError:
            await self._end()
            raise PlatformError(f"the enclave did not start within {START_SECONDS:.0f} seconds") from None
        except (BundleError, PlatformError):
            self._lost.set()
            await self._end()
            raise

    def _follow(self, process: subprocess.Popen[bytes], boot: asyncio.Future[None]) -> None:
        """Read the platform's events in the background, for as long as it is that boot."""
        loop = asyncio.get_running_loop()
        assert process.stdout is not None
        stream = process.stdout

        def tell(event: dict[str, Any]) -> None:
            if boot is self._ready:
                self._event(event)

        def read() -> None:
            for line in stream:
                with suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        with suppress(RuntimeError):
                            loop.call_soon_threadsafe(tell, event)
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, {"event": "ended"})

        task = asyncio.create_task(asyncio.to_thread(read))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _event(self, event: dict[str, Any]) -> None:
        self._on_event(event)
        kind = event.get("event")
        if kind == "launched":
            self.launched = event
            self._endorse(event)
        elif kind == "endorsements":
            self._endorse(event)
        elif kind == "refused":
            error = BundleError if event.get("code") == "bundle" else PlatformError
            self._fail(self._ready, error(str(event.get("message"))))
        elif kind in ("exited", "ended"):
            self._fail(self._ready, PlatformError("the enclave ended before it was ready"))

    def _endorse(self, event: dict[str, Any]) -> None:
        if self._source is None:
            self._endorsements = bytes.fromhex(event["endorsements"])
            self._publish()

    async def _staple(self, source: EndorsementSource) -> None:
        """Publish new evidence with endorsements from the source, and newer endorsements as there are some."""
        while True:
            self._given.clear()
            given, again = self._evidence, STAPLE_SECONDS
            if given is not None:
                try:
                    found = await source.endorsements(given.evidence, self._kind)
                except Error as error:
                    again = STAPLE_AGAIN_SECONDS
                    self._on_event({"event": "endorsements", "code": error.code, "text": str(error)})
                    self._fail(self._ready, PlatformError(f"no endorsements for this platform: {error}"))
                else:
                    self._endorsements = found if given is self._evidence else self._endorsements
                # New evidence with the last endorsements is better than keys that are no more.
                if given is self._evidence:
                    self._publish()
            with suppress(TimeoutError):
                async with asyncio.timeout(again):
                    await self._given.wait()

    @staticmethod
    def _fail(boot: asyncio.Future[None] | None, error: Exception) -> None:
        if boot is not None and not boot.done():
            boot.set_exception(error)

    def _gone(self, boot: asyncio.Future[None]) -> None:
        if boot is not self._ready:
            return
        self.info = None
        self._link = None
        self._lost.set()
        self._order.clear()
        loop = asyncio.get_running_loop()
        # The platform's own word, if it has one, arrives a moment later.
        loop.call_later(1.0, self._fail, boot, PlatformError("the enclave ended before it was ready"))

    def _unasked(self, frame: Frame) -> None:
        if frame.kind == Kind.INSTANCE:
            # Once a boot: more would have an enclave decide how often a vendor is asked.
            if self._evidence is None:
                self._instance(frame)
            elif self._link is not None:
                self._link.close()
        elif frame.kind == Kind.REPLY:
            self._outbox.put(frame.payload, time.monotonic())
        elif frame.kind == Kind.FAILED:
            self._fail(
                self._ready, PlatformError(f"the enclave refused to start: {frame.payload.decode('utf-8', 'replace')}")
            )

    def _instance(self, frame: Frame) -> None:
        if frame.kind != Kind.INSTANCE:
            return
        try:
            self._evidence = _codec.decode(_Evidence, frame.payload, max_size=131072, what="instance frame")
        except FormatError:
            if self._link is not None:
                self._link.close()
            return
        self._given.set()
        if self._source is None:
            self._publish()

    def _publish(self) -> None:
        """Hand out instance info once the enclave and its platform have both spoken."""
        given = self._evidence
        if given is None or self._endorsements is None:
            return
        self.info = _codec.encode(
            {
                "version": 1,
                "format": self._kind,
                "evidence": given.evidence,
                "endorsements": self._endorsements,
                "claims": given.claims,
            }
        )
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    # HTTP ----------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            if scope["path"] == "/mail" and scope["method"] == "POST":
                await self._mail(await _body(scope, receive, MAX_MAIL), receive, send)
            else:
                await self._other(scope, receive, send)
        except Refusal as refusal:
            body = json.dumps({"error": refusal.word, "detail": refusal.detail}).encode()
            await _respond(send, refusal.status, b"application/json", body)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _linked(self) -> Link:
        if self._link is None or self.info is None:
            raise Refusal(503, "starting", "the enclave is not running at the moment; try again")
        return self._link

    def _ask(self, kind: Kind, payload: bytes) -> Ask:
        try:
            return self._linked().ask(kind, payload)
        except TransportError as error:
            raise Refusal(429, "overloaded", str(error)) from None

    async def _mail(self, data: bytes, receive: Receive, send: Send) -> None:
        try:
            direction, session_id, counter = address_of(data)
        except FormatError as error:
            raise Refusal(400, "format", str(error)) from None
        if direction != TO_ENCLAVE:
            raise Refusal(400, "format", "this is a mail for a client")
        if not self._order.in_turn(session_id, counter):
            await self._order.turn(session_id, counter)
        ask = self._ask(Kind.MAIL, data)
        ask.leaves = partial(_left, receive)
        frames = await ask.more()
        if not frames:
            raise Refusal(502, "enclave", "the enclave ended while it handled this mail")
        if frames[0].kind == Kind.ERROR:
            status, detail = _STATUS.get(frames[0].payload, (502, "the enclave answered something unknown"))
            raise Refusal(status, frames[0].payload.decode("ascii", "replace"), detail)
        if ask.done:
            await _respond(send, 200, MAILS_TYPE, _join(frames))
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", MAILS_TYPE)]})
        while frames:
            await send({"type": "http.response.body", "body": _join(frames), "more_body": True})
            if ask.done:
                break
            frames = await ask.more()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if path == "/instance" and method == "GET":
            self._linked()
            await _respond(send, 200, INFO_TYPE, self.info or b"")
        elif path == "/health" and method == "GET":
            self._linked()
            await _respond(send, 200, b"application/json", b'{"status":"ok"}')
        elif path == "/challenge" and method == "POST":
            frames = await self._ask(Kind.CHALLENGE, await _body(scope, receive, 64)).more()
            if not frames or frames[0].kind != Kind.SIGNED:
                raise Refusal(400, "format", "a challenge has 32 bytes")
            await _respond(send, 200, b"application/octet-stream", frames[0].payload)
        elif path.startswith("/outbox/"):
            await self._box(scope, path.removeprefix("/outbox/"), send)
        elif path in ("/mail", "/instance", "/health", "/challenge"):
            raise Refusal(405, "method", f"{path} does not take {method}")
        else:
            raise Refusal(404, "no such resource", "see spec/http.md for what a host serves")

    async def _box(self, scope: Scope, name: str, send: Send) -> None:
        query = dict(p.split("=", 1) for p in scope["query_string"].decode("ascii", "replace").split("&") if "=" in p)
        if scope["method"] == "POST":
            try:
                session_id = bytes.fromhex(name)
            except ValueError:
                session_id = b""
            if len(session_id) != 16:
                raise Refusal(400, "format", "a session id is 32 hex digits")
            box = self._outbox.claim(session_id)
            if box is None:
                raise Refusal(409, "session", "this session's outbox was claimed already")
            await _respond(send, 201, b"application/json", json.dumps({"box": box}).encode())
        elif scope["method"] == "GET":
            mails = await self._outbox.read(name, min(_number(query.get("wait", "0")), 30.0))
            if mails is None:
                raise Refusal(404, "no such resource", "no such outbox")
            await _respond(send, 200, MAILS_TYPE, b"".join(len(m).to_bytes(4, "big") + m for m in mails))
        elif scope["method"] == "DELETE":
            if not self._outbox.delete(name, int(_number(query.get("below", "0")))):
                raise Refusal(404, "no such resource", "no such outbox")
            await _respond(send, 204, b"text/plain", b"")
        else:
            raise Refusal(405, "method", "an outbox takes POST, GET and DELETE")


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drop_when(left: Awaitable[None], link: Link, ask: Ask) -> None:
    await left
    link.drop(ask)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 2**53:
        raise Refusal(400, "format", "not a number in range")
    return value


def _join(frames: Iterable[Frame]) -> bytes:
    return b"".join(len(f.payload).to_bytes(4, "big") + f.payload for f in frames if f.kind == Kind.REPLY)


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise Refusal(413, "too large", f"at most {limit} bytes are taken")
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts = [body]
        size = len(body)
        while message.get("more_body"):
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise Refusal(413, "too large", f"at most {limit} bytes are taken")
        body = b"".join(parts)
    if len(body) > limit:
        raise Refusal(413, "too large", f"at most {limit} bytes are taken")
    return body


async def _respond(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def log_to_stderr(event: dict[str, Any]) -> None:
    """Print what a debug enclave prints (release enclaves print nothing) and progress."""
    if event.get("event") == "progress":
        print(f"  {event.get('text')}", file=sys.stderr)
    elif event.get("event") == "output":
        sys.stderr.write(str(event.get("text")))
    elif event.get("event") == "endorsements":
        print(f"  endorsements: {event.get('text')}", file=sys.stderr)
