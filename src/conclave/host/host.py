"""The common host: runs one enclave, from launch over renewals to its end, and serves it.

Untrusted: it sees ciphertext, sizes and times. It is an ASGI application, whose
routes are in `routes`.

Spec: spec/host-channel.md section 4.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from conclave import _codec
from conclave._framing import Frame, Kind
from conclave.errors import BundleError, Error, FormatError, PlatformError, StoreError, TransportError
from conclave.host.counts import Counts
from conclave.host.exchange import Body, Exchange, Receive, Scope, Send
from conclave.host.fetch import Fetcher
from conclave.host.health import Health
from conclave.host.journal import Journal
from conclave.host.link import Ask, Link
from conclave.host.order import Reorder
from conclave.host.outbox import Outbox, OutboxLimits
from conclave.host.routes import Routes

if TYPE_CHECKING:
    from conclave.host.endorsements import EndorsementSource
    from conclave.host.states import StateStore
    from conclave.host.stores import BlobStore

FORMATS: Final = frozenset({"sgx", "tdx", "snp", "nitro"})
START_SECONDS: Final = 120.0
# An enclave takes at most five for its author's `on_stop`.
STOP_SECONDS: Final = 6.0
# What a platform reported last is there when it has ended; nobody waits for one that has left its output to others.
_LAST_WORDS_SECONDS: Final = 1.0
# How long after a start that failed the next one is tried.
RESTART_SECONDS: Final = 0.05
MOST_RESTART_SECONDS: Final = 5.0
SWEEP_SECONDS: Final = 2.0
RENEW_SECONDS: Final = 86_400.0
# The certificates of a Nitro document are valid for three hours: whoever comes later could not verify it.
NITRO_RENEW_SECONDS: Final = 3_600.0
# How often an enclave may have its key renewed: it does not decide how often a vendor is asked.
RENEW_AGAIN_SECONDS: Final = 60.0
STAPLE_SECONDS: Final = 3600.0
STAPLE_AGAIN_SECONDS: Final = 60.0

HALTED: Final = (
    "the enclave stopped: this host's state store lacks records that clients have seen; it was restored from a "
    "backup, or two hosts run from copies of one store"
)


class Launched(Protocol):
    """What a TEE driver's host half gives: the platform process and the channel."""

    @property
    def process(self) -> subprocess.Popen[bytes]: ...
    @property
    def channel(self) -> socket.socket: ...


class _Evidence(_codec.Record, frozen=True):
    claims: bytes
    format: str
    evidence: bytes
    hints: bytes


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
        store: BlobStore | None = None,
        outbox: OutboxLimits | None = None,
        state: StateStore | None = None,
        peers: Iterable[str] = (),
        witnesses: Mapping[str, str] | None = None,
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
            store: where posted mail is kept, of this host alone (`open_store(…, alone=True)`);
                closed by `stop`. None: in memory, so that a host that ends loses it.
            outbox: how much posted mail, and how long.
            state: where the enclave's state is kept, of this host alone; closed by `stop`. None: in memory.
            peers: URLs of hosts whose enclaves this one may call.
            witnesses: URLs of the witnesses that its class declares, by their names there.
        """
        self._launch = launch
        self._on_event = on_event or (lambda event: None)
        self._restart = restart
        self._renew_seconds = renew_seconds
        self.outbox = Outbox(store, limits=outbox, on_event=self._on_event, tell=self._tell)
        self.journal = Journal(state, outbox=self.outbox, on_event=self._on_event, lost=self._give_up)
        # The enclave has proof that its state was rolled back or forked.
        self.halted = False
        self.health = Health(
            up=lambda: self.info is not None,
            keeps=lambda: not (self.outbox.trouble or self.journal.trouble),
            halted=lambda: self.halted,
            store=store,
        )
        self._routes = Routes(
            Reorder() if patience_seconds is None else Reorder(patience_seconds),
            outbox=self.outbox,
            health=self.health,
            link=lambda: None if self.info is None else self._link,
            info=lambda: self.info,
        )
        self._fetcher = Fetcher(peers, witnesses=witnesses, info=lambda: self.info)
        self._link: Link | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._following: asyncio.Task[None] | None = None
        # With which the last boot ended, as its platform says.
        self._status: int | None = None
        self._source = endorsements
        # Evidence of some TEEs needs none; then they are known, and empty.
        self._endorsements: bytes | None = None
        self._evidence: _Evidence | None = None
        self._given = asyncio.Event()
        self._ready: asyncio.Future[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._stapler: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._renewed = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost = asyncio.Event()
        self.counts = Counts()
        self.info: bytes | None = None
        self.launched: dict[str, Any] = {}

    # Life ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the enclave and wait for its first evidence.

        Raises:
            BundleError, PlatformError: the platform or the enclave refused.
            StoreError: the store of posted mail, or of state, cannot be read.
        """
        await self.outbox.start()
        self.journal.start()
        if self._source is not None:
            self._stapler = asyncio.create_task(self._staple(self._source))
        try:
            await self._boot()
        except BaseException:
            if self._stapler is not None:
                self._stapler.cancel()
            await self.journal.stop()
            await self.outbox.stop()
            raise
        self._supervisor = asyncio.create_task(self._supervise())
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Stop the enclave."""
        for task in (self._supervisor, self._sweeper, self._stapler, self._renewing):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self._end()
        await self.journal.stop()
        await self.outbox.stop()
        await self._fetcher.close()

    async def _end(self) -> None:
        self.info = None
        link, process = self._link, self._process
        if link is not None:
            link.stop()
        if process is not None:
            # Of an enclave that has ended by itself the platform has yet to hear, and with which status.
            asked = link is not None and not self._lost.is_set()
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, STOP_SECONDS if asked else _LAST_WORDS_SECONDS)
        if link is not None:
            link.close()
        if process is not None:
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.to_thread(process.wait)
        if self._following is not None:
            await asyncio.wait({self._following}, timeout=_LAST_WORDS_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        await self._unload()

    async def _unload(self) -> None:
        """No boot is there that would take what lies on the state store."""
        self.journal.end()
        loading, self._loading = self._loading, None
        if loading is not None:
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading

    async def _supervise(self) -> None:
        delay, ran = RESTART_SECONDS, True
        while True:
            try:
                async with asyncio.timeout(self._renew_after()):
                    await self._lost.wait()
            except TimeoutError:
                await self._renew()
                continue
            await self._end()
            if not self._restart:
                return
            if ran:
                self._on_event({"event": "restarting"} | ({} if self._status is None else {"status": self._status}))
            ran = await self._boot_again()
            if self._lost.is_set():
                await asyncio.sleep(delay)
                delay = min(2 * delay, MOST_RESTART_SECONDS)
            else:
                delay = RESTART_SECONDS

    async def _boot_again(self) -> bool:
        """Whether the enclave has started. Why not is told, and the next attempt may fare better."""
        try:
            await self._boot()
        except (BundleError, PlatformError, StoreError) as error:
            self._on_event({"event": "restarting", "code": error.code, "text": str(error)})
            return False
        return True

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

    def _renew_after(self) -> float:
        given = self._evidence
        nitro = given is not None and given.format == "nitro"
        return min(self._renew_seconds, NITRO_RENEW_SECONDS) if nitro else self._renew_seconds

    async def _renew(self) -> None:
        if self._link is None:
            return
        self._renewed = time.monotonic()
        with suppress(TransportError, TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                for frame in await self._link.ask(Kind.RENEW).more():
                    self._instance(frame)
                self.counts.renewals += 1

    async def _renew_soon(self) -> None:
        """The enclave asks for it: its key has served many sessions."""
        await asyncio.sleep(self._renewed + RENEW_AGAIN_SECONDS - time.monotonic())
        await self._renew()

    async def _boot(self) -> None:
        self._lost.clear()
        self._endorsements, self._evidence, self._status = None, None, None
        self.halted = False
        self._routes.clear()
        self._ready = asyncio.get_running_loop().create_future()
        try:
            launched = await asyncio.to_thread(self._launch)
        except (OSError, RuntimeError) as error:
            # RuntimeError: no thread could be started.
            self._lost.set()
            reason = error.strerror if isinstance(error, OSError) else "no more threads"
            raise PlatformError(f"the platform process did not start: {reason}") from None
        self._process = launched.process
        self.counts.starts += 1
        loop = asyncio.get_running_loop()
        # What a boot still says when the next one has begun is not of that one.
        gone = partial(self._gone, self._ready)
        # There before its first frame is.
        self._link = link = Link(self._unasked, gone, self.outbox.put, state=self.journal)
        link.counts = self.counts
        await loop.create_connection(lambda: link, sock=launched.channel)
        for payload in self.outbox.fullness():
            self._tell(payload)
        self._follow(launched.process, self._ready)
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready
        except TimeoutError:
            await self._end()
            raise PlatformError(f"the enclave did not start within {START_SECONDS:.0f} seconds") from None
        except (BundleError, PlatformError, StoreError):
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

        self._following = task = asyncio.create_task(asyncio.to_thread(read))
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
            status = event.get("status")
            self._status = status if isinstance(status, int) else self._status
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
                    found = await source.endorsements(given.evidence, given.format, given.hints)
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
        self.journal.end()
        self._fetcher.clear()
        self._lost.set()
        self._routes.release()
        loop = asyncio.get_running_loop()
        # The platform's own word, if it has one, arrives a moment later.
        loop.call_later(1.0, self._fail, boot, PlatformError("the enclave ended before it was ready"))

    def _tell(self, payload: bytes) -> None:
        if self._link is not None:
            self._link.tell(Kind.ROOM, 0, payload)

    def _unasked(self, frame: Frame) -> None:
        if frame.kind == Kind.INSTANCE:
            # Once a boot: more would have an enclave decide how often a vendor is asked.
            if self._evidence is None:
                self._instance(frame)
            elif self._link is not None:
                self._link.close()
        elif frame.kind == Kind.FETCH:
            if self._link is not None:
                self._fetcher.take(frame.payload, partial(self._link.tell, Kind.FETCHED, frame.request))
        elif frame.kind == Kind.LOAD:
            self._load(frame.request)
        elif frame.kind == Kind.HALTED:
            self._halt()
        elif frame.kind == Kind.SPENT:
            if self._renewing is None or self._renewing.done():
                self._renewing = asyncio.create_task(self._renew_soon())
        elif frame.kind == Kind.FAILED:
            self._fail(
                self._ready, PlatformError(f"the enclave refused to start: {frame.payload.decode('utf-8', 'replace')}")
            )

    def _load(self, request: int) -> None:
        link = self._link
        if link is None:
            return
        if self._loading is not None:
            # Once a boot.
            link.close()
            return
        self._loading = asyncio.create_task(self._give_state(link, request, self._ready))

    async def _give_state(self, link: Link, request: int, boot: asyncio.Future[None] | None) -> None:
        try:
            await self.journal.load(link, request)
        except StoreError as error:
            self._on_event({"event": "store", "code": error.code, "text": f"the state store cannot be read: {error}"})
            self._fail(boot, error)
        except TransportError:
            # The boot ended meanwhile, and whoever waits for it knows.
            return

    def _give_up(self) -> None:
        if self._link is not None:
            self._link.close()

    def _halt(self) -> None:
        if not self.halted:
            self.halted = True
            self.counts.halts += 1
            self._on_event({"event": "halted", "code": "rollback", "text": HALTED})

    def _instance(self, frame: Frame) -> None:
        if frame.kind != Kind.INSTANCE:
            return
        try:
            given = _codec.decode(_Evidence, frame.payload, max_size=262144, what="instance frame")
            if given.format not in FORMATS:
                raise FormatError("the enclave's evidence has no format that is known here")
        except FormatError:
            if self._link is not None:
                self._link.close()
            return
        self._evidence = given
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
                "format": given.format,
                "evidence": given.evidence,
                "endorsements": self._endorsements,
                "claims": given.claims,
            }
        )
        self.outbox.announce(given.claims, self.info)
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    @property
    def in_flight(self) -> int:
        """How many requests the enclave has not answered."""
        return 0 if self._link is None else self._link.waiting

    # HTTP ----------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._routes.serve(scope, receive, send)

    @property
    def mail(self) -> Callable[[Body, Exchange], bool]:
        """The short way of `POST /mail`, for `Server(host, mail=host.mail)`; see `Routes.take`."""
        return self._routes.take

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _drop_when(left: Awaitable[None], link: Link, ask: Ask) -> None:
    await left
    link.drop(ask)


def log_to_stderr(event: dict[str, Any]) -> None:
    """Print what a debug enclave prints (release enclaves print nothing), progress, and what goes wrong."""
    kind = event.get("event")
    if kind == "progress":
        print(f"  {event.get('text')}", file=sys.stderr)
    elif kind == "output":
        output_to_stderr(event)
    elif kind == "restarting":
        print(f"  {_restarting(event)}", file=sys.stderr)
    elif kind == "halted":
        print(f"  HALTED: {event.get('text')}", file=sys.stderr)
    elif kind == "store":
        print(f"  store: {event.get('text')}", file=sys.stderr)
    elif kind == "endorsements":
        print(f"  endorsements: {event.get('text')}", file=sys.stderr)


def output_to_stderr(event: dict[str, Any]) -> None:
    """Print what a debug enclave prints, and nothing else."""
    if event.get("event") == "output":
        sys.stderr.write(str(event.get("text")))
        sys.stderr.flush()


def _restarting(event: dict[str, Any]) -> str:
    if "text" in event:
        return f"the enclave does not start again: {event['text']}; trying again"
    status = event.get("status")
    how = "" if status is None else f" (signal {-status})" if status < 0 else f" (status {status})"
    return f"the enclave ended{how}; starting it again: what it held in memory is gone"
