"""An HTTP/1.1 server for one ASGI application, with a short way for mail.

Runs in the untrusted host. `POST /mail` goes from the parser into the host's
callback and its answer from there to the socket: no task, no ASGI. Everything
else is ASGI (without lifespan and WebSockets).

Spec: spec/http.md section 3.
"""

from __future__ import annotations

import asyncio
import resource
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from conclave.errors import PlatformError
from conclave.host.connection import Connection, Limits
from conclave.host.exchange import App, Body, Exchange
from conclave.host.heads import Heads
from conclave.host.place import Place

__all__ = ["DRAIN_SECONDS", "Limits", "Server", "allow_descriptors"]

DRAIN_SECONDS: Final = 20.0
# Descriptors that a host needs beside its clients' connections.
_RESERVED: Final = 64
# So many connections there are at least.
_LEAST: Final = 16
_BACKLOG: Final = 2048
_HANDSHAKE_SECONDS: Final = 10
# Connections above the limit that get an answer; more than these are cut, for an answer holds a descriptor.
_ANSWERED: Final = 16

# Takes a mail that came whole; False: not now, or none, and the application says why.
TakeMail = Callable[[Body, Exchange], bool]


def allow_descriptors() -> None:
    """Raise this process's own limit of descriptors to what a server with all its connections needs, if it may.

    Raises:
        PlatformError: it may not have as many as a host needs for itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _RESERVED + _LEAST:
        raise PlatformError(
            f"this process may open {hard} files; a host needs {_RESERVED + _LEAST} at least: raise `ulimit -Hn`"
        )
    wanted = Limits().connections + _BACKLOG + _RESERVED
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


class Server:
    """Serves an application at one place.

    Attributes:
        connections: all that are open.
        heads: those of mails that were taken before.
        collected: bytes of bodies that came and were not passed on yet, see `Exchange.counted`.
        refused: how many requests the server itself refused, by status.
        answers: how many were answered, by route and status.
        draining: nothing new is taken.
    """

    def __init__(
        self,
        app: App,
        *,
        mail: TakeMail | None = None,
        limits: Limits | None = None,
        on_failure: Callable[[Exception | None], None] | None = None,
    ) -> None:
        """Nothing listens before `start`.

        Args:
            app: an ASGI application.
            mail: the short way of `POST /mail`; without it the application gets that too.
            limits: what is taken; the number of connections is lowered to what the process may have open.
            on_failure: told what an application raised, or None if it gave no whole answer.
        """
        self.app = app
        self.mail = mail
        limits = limits or Limits()
        most = max(_LEAST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _RESERVED)
        self.limits = replace(limits, connections=min(limits.connections, most))
        self.connections: set[Connection] = set()
        self.heads = Heads()
        self.collected = 0
        self.refused: Counter[int] = Counter()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.draining = False
        self._on_failure = on_failure or (lambda error: None)
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()

    async def start(self, place: Place, *, tls: ssl.SSLContext | None = None) -> str:
        """Listen.

        Args:
            place: where; given back by `stop`.
            tls: a server's context; without it HTTP is spoken in the clear.

        Returns:
            The URL.

        Raises:
            TransportError: another program was faster.
        """
        loop = asyncio.get_running_loop()
        place.listen(_BACKLOG)
        self._listeners = [
            await loop.create_server(
                lambda: Connection(self),
                sock=taken,
                backlog=_BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else _HANDSHAKE_SECONDS,
            )
            for taken in place.sockets
        ]
        self._sweeper = asyncio.create_task(self._sweep())
        return place.url("http" if tls is None else "https")

    async def stop(self, grace_seconds: float = DRAIN_SECONDS) -> None:
        """Take nothing new, finish what is under way for so long, then cut."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._empty.wait()
        for connection in list(self.connections):
            connection.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        # Aborted connections tell their applications in the next turn.
        await asyncio.sleep(0)

    @property
    def crowded(self) -> bool:
        """Whether so many connections are open that one more is not even answered."""
        return len(self.connections) > self.limits.connections + _ANSWERED

    def left(self, connection: Connection) -> None:
        """A connection has closed."""
        if self.draining and not self.connections:
            self._empty.set()

    def failed(self, error: Exception | None) -> None:
        """An application has failed."""
        self._on_failure(error)

    def _unload(self) -> None:
        """Cut off who holds most of what nobody reads, if it is too much."""
        slow = [connection for connection in self.connections if connection.unsent]
        over = sum(connection.unsent for connection in slow) - self.limits.unsent_bytes
        for connection in sorted(slow, key=lambda c: c.unsent, reverse=True) if over > 0 else ():
            if over <= 0:
                break
            over -= connection.unsent
            connection.transport.abort()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1)
            scarce = len(self.connections) > self.limits.connections * 3 // 4
            idle = self.limits.idle_seconds // 4 if scarce else self.limits.idle_seconds
            for connection in list(self.connections):
                connection.sweep(idle)
            self._unload()
