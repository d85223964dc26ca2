"""Where attacks take place: a simulated machine, built programs, and the one address that clients know.

For tests. One for each enclave that is attacked; each run of a schedule has boots of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from conclave import _codec
from conclave._crypto import SigningKey
from conclave.attestation.claims import parse_instance_info
from conclave.bundle import Bundle, build
from conclave.errors import Error
from conclave.host.exchange import Receive, Scope, Send
from conclave.host.place import Place
from conclave.host.server import Server
from conclave.platform.machine import Machine
from conclave.testing.attack.boot import Boot

T = TypeVar("T")
_START_SECONDS: Final = 180.0
_WORK_SECONDS: Final = 60.0
_REMEMBERED: Final = 8


class Operator(Protocol):
    """Who gets all requests of one run's clients."""

    async def __call__(self, path: str, scope: Scope, receive: Receive, send: Send) -> None: ...


class Hosting:
    """Everything that outlives a run.

    Attributes:
        program: the enclave that is attacked, in debug mode.
        other: the same source in release mode: another program of the same author.
        url: below it, each run has an address of its own.
        infos: instance info of boots of the program that have ended, oldest first.
        crashes: what our own code raised while it answered clients.
    """

    def __init__(self, path: Path, *, on_progress: Callable[[str], None] = lambda text: None) -> None:
        """Nothing is built before the block.

        Args:
            path: a Python file with one Enclave class, a project directory, or module:attribute of an ASGI application.
        """
        self._path = path
        self._on_progress = on_progress
        self._author = SigningKey.generate()
        self._place = Path(tempfile.mkdtemp(prefix="conclave-attack-"))
        self._numbers = itertools.count(1)
        self._stop = asyncio.Event()
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._operators: dict[str, Operator] = {}
        self._spare: asyncio.Task[Boot] | None = None
        self.infos: list[bytes] = []
        self.crashes: list[Exception] = []
        self.program: Bundle
        self.other: Bundle
        self.url = ""

    def __enter__(self) -> Self:
        try:
            self.program = self._build("debug")
            self.other = self._build("release")
            self._thread.start()
            self.url = self._started.result(_START_SECONDS)
        except BaseException:
            shutil.rmtree(self._place, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        shutil.rmtree(self._place, ignore_errors=True)

    def _build(self, mode: str) -> Bundle:
        # Signed, because state can be bound to an author.
        output = self._place / f"{mode}.enclave"
        return build(self._path, output, mode=mode, signing_key=self._author, on_progress=self._on_progress)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = Server(self._answer, on_failure=self._failed)
        self._started.set_result(await server.start(Place("127.0.0.1", 0)))
        await self._stop.wait()
        await server.stop(0)
        if self._spare is not None:
            # Cancelled, it would leave a process behind.
            with suppress(Error):
                await (await self._spare).kill()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, run, rest = scope["path"].split("/", 2)
        operator = self._operators.get(run)
        if operator is None:
            # A client of a run that is over.
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await operator(rest, scope, receive, send)

    def _failed(self, error: Exception | None) -> None:
        if error is not None and not isinstance(error, HungUp):
            self.crashes.append(error)

    def run(self, work: Coroutine[Any, Any, T], *, seconds: float = _WORK_SECONDS) -> T:
        """Run a coroutine where the hosts run."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def serve(self, operator: Operator) -> str:
        """Have an operator answer; gives the address."""
        name = f"run-{next(self._numbers)}"
        self._operators = {name: operator}
        return f"{self.url}/{name}"

    # Boots ----------------------------------------------------------------------------

    def new_place(self) -> Path:
        """A path where nothing is."""
        return self._place / f"store-{next(self._numbers)}"

    async def boot(self, program: Bundle, place: Path | None = None) -> Boot:
        """A boot that serves. Raises as `Host.start`.

        Args:
            place: its store; None: a new one.
        """
        return await Boot(program, self._place / "machine", place or self.new_place()).start()

    async def fresh(self) -> Boot:
        """A boot with an empty store, of which there is one in advance."""
        spare, self._spare = self._spare, None
        boot = await (self.boot(self.program) if spare is None else spare)
        self._spare = asyncio.create_task(self.boot(self.program))
        return boot

    def remember(self, *boots: Boot) -> None:
        """Keep instance info of boots that end."""
        self.infos += [boot.info for boot in boots if boot.info and boot.program is self.program]
        del self.infos[:-_REMEMBERED]

    # Instance info ----------------------------------------------------------------------

    def dated(self, info: bytes, days: float) -> bytes:
        """The same instance info with endorsements that the vendor issued so many days from now, which may be < 0."""
        machine = Machine.open(self._place / "machine", create=False)
        parsed = parse_instance_info(info)
        issued = datetime.now(UTC) + timedelta(days=days)
        return _codec.encode(
            {
                "version": 1,
                "format": parsed.format,
                "evidence": parsed.evidence,
                "endorsements": machine.foresee(lambda vendor: vendor, now=issued),
                "claims": parsed.claims,
            }
        )


class HungUp(Exception):
    """The operator closed the connection instead of answering."""
