"""Runs a host in a thread, on a free port of the loopback interface.

For tests and demonstrations: the server is real, clients reach it over HTTP.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from conclave.bundle import build
from conclave.host import Host
from conclave.host.operation import Operation
from conclave.host.place import Place
from conclave.host.server import Limits, Server
from conclave.platform import start_platform
from conclave.testing.hostile import HostileHost

T = TypeVar("T")


class HostServer:
    """One host and the event loop it runs in.

    Attributes:
        url: where it serves.
        server: the HTTP server.
    """

    def __init__(
        self,
        host: Host,
        *,
        hostile: bool = False,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        """Nothing is served before the block begins.

        Args:
            port: on which; 0 for any that is free.
        """
        self.host = host
        self.operator = HostileHost(host)
        self.health = host.health
        # An operator who looks into each mail has no short way for it.
        self.server = (
            Server(self.operator)
            if hostile
            else Server(Operation(self.health, others=host), mail=host.mail, limits=limits)
        )
        self._tls = tls
        self._port = port
        self._stop = asyncio.Event()
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.url = ""

    def _main(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self.host.start()
        except BaseException as error:
            self._started.set_exception(error)
            return
        try:
            self._started.set_result(await self.server.start(Place("127.0.0.1", self._port), tls=self._tls))
            await self._stop.wait()
            await self.server.stop(0)
        finally:
            await self.host.stop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the host's event loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = self._started.result(180)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


@dataclass(frozen=True, slots=True)
class ServedEnclave:
    """An enclave that runs: where, and the constraint that accepts exactly it."""

    url: str
    constraint: str


@contextmanager
def serve_enclave(path: Path) -> Iterator[ServedEnclave]:
    """Build an enclave in debug mode, run it under the simulated TEE and serve it.

    The simulated machine is new, and gone with the block.

    Args:
        path: a Python file with one Enclave class, a project directory, or module:attribute of an ASGI application.

    Raises:
        BundleError, PlatformError: it does not build, or does not start.
    """
    with tempfile.TemporaryDirectory(prefix="conclave-test-") as place:
        bundle = build(path, Path(place) / "test.enclave", mode="debug")
        host = Host(lambda: start_platform(Path(place) / "machine", bundle.path))
        with HostServer(host) as server:
            yield ServedEnclave(server.url, f"C:{bundle.code.hex()} SEC:INSECURE")
