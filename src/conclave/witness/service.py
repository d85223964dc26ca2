"""A witness as a process: a port, signals, and the order of a stop.

Spec: spec/witness.md section 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from conclave._crypto import SigningKey
from conclave.host.connection import Limits
from conclave.host.health import Health
from conclave.host.logs import Log
from conclave.host.operation import Operation
from conclave.host.place import Place
from conclave.host.server import Server
from conclave.host.signals import Signals
from conclave.host.stores import open_store
from conclave.host.tls import Tls
from conclave.witness.app import Witness
from conclave.witness.ledger import Bounds, Ledger

_DRAIN_SECONDS: Final = 10.0
# Requests are small: what strangers may have lying about is, too.
_LIMITS: Final = Limits(collected_bytes=16 * 1024 * 1024, unsent_bytes=16 * 1024 * 1024, head_bytes=8 * 1024)


class Service:
    """One witness, served until a signal ends it."""

    def __init__(
        self,
        key: SigningKey,
        *,
        store: str,
        place: Place,
        tls: tuple[Path, Path] | None = None,
        bounds: Bounds | None = None,
        allowed: frozenset[bytes] = frozenset(),
        log: str = "console",
    ) -> None:
        """Opens the store and reads the certificate; nothing listens before `run`.

        Raises:
            FormatError, StoreError, TransportError: store or certificate cannot be used.
        """
        self._place = place
        self._log = Log(log)
        self._tls = None if tls is None else Tls(*tls)
        self._signals = Signals(self._log, self._tls)
        self._store = open_store(store, alone=True)
        self._ledger = Ledger(self._store, key, bounds=bounds, allowed=allowed)
        self._health = Health(up=lambda: True, store=self._store)
        self._server = Server(
            Operation(self._health, others=Witness(self._ledger)), limits=_LIMITS, on_failure=self._log.failure
        )

    async def run(self, announce: Callable[[str], None]) -> int:
        """Serve, and stop when told; the exit status.

        Raises:
            TransportError: another program was faster at the port, or the store cannot be read.
        """
        self._log.adopt(asyncio.get_running_loop())
        self._signals.watch()
        try:
            await self._ledger.start()
            announce(await self._server.start(self._place, tls=None if self._tls is None else self._tls.context))
            self._log.event("serving")
            await self._signals.wait()
            self._health.draining = True
            await self._server.stop(_DRAIN_SECONDS)
        finally:
            await self._server.stop(0)
            await self._store.close()
        self._log.event("stopped")
        return self._signals.status
