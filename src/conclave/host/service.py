"""A host as a process of its own: ports, signals, and the order of a stop.

Runs in the untrusted host.

Spec: spec/http.md (HTTP-20 to HTTP-24).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from conclave.host.host import Host, Launched
from conclave.host.logs import Log
from conclave.host.metrics import Metrics
from conclave.host.operation import Operation
from conclave.host.place import Place
from conclave.host.server import Server
from conclave.host.signals import Signals
from conclave.host.states.opening import open_state
from conclave.host.stores import open_store
from conclave.host.tls import Tls


class Service:
    """One host, served until a signal ends it."""

    def __init__(
        self,
        launch: Callable[[], Launched],
        *,
        place: Place,
        operators: Place | None = None,
        store: str = "",
        store_timeout_seconds: float = 10.0,
        tls: tuple[Path, Path] | None = None,
        log: str = "console",
        drain_seconds: float = 20.0,
        show: Callable[[dict[str, Any]], None] | None = None,
        peers: Iterable[str] = (),
        witnesses: Mapping[str, str] | None = None,
    ) -> None:
        """Opens the store and reads the certificate; nothing listens before `run`.

        Args:
            launch: starts the platform with the bundle.
            place: where clients are served.
            operators: where `/metrics` is served, and health too; None: beside the clients' resources.
            store: URL of the store for posted mail and state; "": in memory.
            tls: certificate chain and key.
            log: one of `conclave.host.logs.FORMATS`.
            drain_seconds: how long a stop waits for what is under way.
            show: told each platform event, for what a debug enclave prints.
            peers: URLs of hosts whose enclaves this one may call.
            witnesses: URLs of its witnesses, by the names that its class has for them.

        Raises:
            FormatError, StoreError, TransportError: store or certificate cannot be used.
        """
        self._log = Log(log)
        self._place, self._operators = place, operators
        self._drain_seconds = drain_seconds
        self._tls = None if tls is None else Tls(*tls)
        self._signals = Signals(self._log, self._tls)
        self._metrics = Metrics()
        opened = open_store(store, timeout_seconds=store_timeout_seconds, alone=True) if store else None
        kept = None if opened is None else self._metrics.store(opened)
        state = None if kept is None else self._metrics.state(open_state(store, kept))
        self.host = Host(
            launch,
            on_event=partial(self._told, show),
            peers=peers,
            witnesses=witnesses,
            store=kept,
            state=state,
        )
        self.health = self.host.health
        inner = Operation(self.health, metrics=None if operators else self._metrics, others=self.host)
        self._server = Server(inner, mail=self.host.mail, on_failure=self._log.failure)
        self._desk = Server(Operation(self.health, metrics=self._metrics), on_failure=self._log.failure)

    def _told(self, show: Callable[[dict[str, Any]], None] | None, event: dict[str, Any]) -> None:
        self._log.platform(event, stopping=self._signals.asked)
        if show is not None:
            show(event)

    async def run(self, announce: Callable[[str], None]) -> int:
        """Start, serve, and stop when told; the exit status.

        Raises:
            BundleError, PlatformError: the enclave does not start.
            TransportError: another program was faster at a port, or the store cannot be read.
        """
        self._log.adopt(asyncio.get_running_loop())
        self._signals.watch()
        starting = asyncio.create_task(self.host.start())
        asked = asyncio.create_task(self._signals.wait())
        try:
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                with suppress(asyncio.CancelledError):
                    await starting
            else:
                starting.result()
                await self._serve(announce, asked)
        finally:
            asked.cancel()
            await self.host.stop()
        self._log.event("stopped")
        return self._signals.status

    async def _serve(self, announce: Callable[[str], None], asked: asyncio.Task[Any]) -> None:
        """The order of a stop: tell who asks, take nothing new, finish what is under way, flush, end the enclave."""
        self._metrics.watch(self.host, self._server, self._desk)
        try:
            desk = None if self._operators is None else await self._desk.start(self._operators)
            url = await self._server.start(self._place, tls=None if self._tls is None else self._tls.context)
            if desk is not None:
                print(f"operators   {desk}")
            # What start-up made stays for good: keep the collector off it.
            gc.collect()
            gc.freeze()
            announce(url)
            self._log.event("serving")
            await asked
            began = time.monotonic()
            self.health.draining = True
            self._log.event("draining", connections=len(self._server.connections), signal=self._signals.name)
            await self._server.stop(self._drain_seconds)
            self._log.event("drained", seconds=round(time.monotonic() - began, 3))
        finally:
            self.health.draining = True
            await self._server.stop(0)
            # Stays to the end: who looks at /readyz sees why.
            await self._desk.stop(0)
