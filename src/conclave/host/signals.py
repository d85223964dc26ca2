"""What a service does when it is told to stop, or to read its certificate again.

Runs in the untrusted host.

Spec: spec/http.md (HTTP-20 to HTTP-24).
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

from conclave.errors import TransportError
from conclave.host.logs import Log
from conclave.host.tls import Tls

# A stop by the service manager is a success, one from the keyboard is what shells expect.
_STATUS: Final = {signal.SIGTERM: 0, signal.SIGINT: 130}


class Signals:
    """One signal asks for a stop, a second one ends the process at once; SIGHUP loads the certificate."""

    def __init__(self, log: Log, tls: Tls | None) -> None:
        """Nothing is watched before `watch`."""
        self._log = log
        self._tls = tls
        self._asked = asyncio.Event()
        self._first: signal.Signals | None = None

    def watch(self) -> None:
        """Obey from now on, on the running loop."""
        loop = asyncio.get_running_loop()
        for number in _STATUS:
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    async def wait(self) -> None:
        """Until a stop is asked for."""
        await self._asked.wait()

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self._first is not None

    @property
    def name(self) -> str:
        """Of the signal that asked; empty if none did."""
        return "" if self._first is None else self._first.name

    @property
    def status(self) -> int:
        """The exit status."""
        return 0 if self._first is None else _STATUS[self._first]

    def _end(self, number: signal.Signals) -> None:
        if self._first is not None:
            # What it started ends with it.
            os._exit(128 + number)
        self._first = number
        self._asked.set()

    def _reload(self) -> None:
        if self._tls is None:
            return
        try:
            self._tls.reload()
        except TransportError:
            self._log.trouble("tls-refused")
        else:
            self._log.event("tls-loaded")
