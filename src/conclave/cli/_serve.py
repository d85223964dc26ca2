"""`conclave run` and `conclave serve`: launch under the simulated TEE and serve."""

from __future__ import annotations

import asyncio
import gc
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from conclave.cli._build import constraint_for, progress
from conclave.cli._places import outbox_store, platform_directory
from conclave.errors import PlatformError

if TYPE_CHECKING:
    from conclave.platform import Launched


def build_and_serve(
    path: Path,
    *,
    port: int,
    address: str,
    platform: Path | None,
    sandbox: str,
    constraint_file: Path | None,
    peers: tuple[str, ...] = (),
) -> int:
    """Build in debug mode into a temporary place, and serve that."""
    from conclave.bundle import build

    _check(peers)
    with tempfile.TemporaryDirectory(prefix="conclave-run-") as place:
        bundle = build(path, Path(place) / "run.enclave", mode="debug", on_progress=progress)
        line = constraint_for(bundle, simulated=True)
        target = constraint_file or path.with_suffix(".constraint")

        def announce(url: str) -> None:
            target.write_text(line + "\n")
            print("enclave     debug mode on the simulated TEE: INSECURE, for development only")
            print("delivery    stateless: nothing survives a restart; at least once across restarts")
            print(f"serving     {url}")
            print(f"constraint  {line}")
            print(f"written to  {target}", flush=True)

        return _serve(Path(place) / "run.enclave", port, address, platform, sandbox, announce, peers)


def serve_bundle(
    bundle: Path,
    *,
    tee: str,
    port: int,
    address: str,
    platform: Path | None,
    sandbox: str,
    store: str | None,
    peers: tuple[str, ...] = (),
) -> int:
    """Serve a bundle that was built before."""
    from conclave.bundle import read_bundle

    _check(peers)
    if tee != "simulated":
        raise PlatformError(f"no driver for the TEE '{tee[:32]}' here; available: simulated")
    made = read_bundle(bundle)
    line = constraint_for(made, simulated=True)

    def announce(url: str) -> None:
        print("platform    simulated TEE: INSECURE, protects nothing from this machine's operator")
        print(f"serving     {url}")
        print(f"constraint  {line}", flush=True)

    return _serve(bundle, port, address, platform, sandbox, announce, peers, store or outbox_store(made.code))


def _check(peers: tuple[str, ...]) -> None:
    if not all(url.startswith(("http://", "https://")) for url in peers):
        raise PlatformError("--peer takes the URL of a host, which begins with http:// or https://")


def _serve(
    bundle: Path,
    port: int,
    address: str,
    platform: Path | None,
    sandbox: str,
    announce: Callable[[str], None],
    peers: tuple[str, ...],
    store: str | None = None,
) -> int:
    from conclave.host.stores import open_store
    from conclave.platform import start_platform

    directory = platform_directory(platform)
    # The platform measures and launches while this process loads its server.
    first = [start_platform(directory, bundle, sandbox=sandbox)]

    def launch() -> Launched:
        return first.pop() if first else start_platform(directory, bundle, sandbox=sandbox)

    import uvloop

    from conclave.host import Host, log_to_stderr
    from conclave.host.server import Server, allow_descriptors

    allow_descriptors()
    kept = None if store is None else open_store(store)
    host = Host(launch, on_event=log_to_stderr, peers=peers, store=kept)

    status = 0

    async def main() -> None:
        await host.start()
        server = Server(host, mail=host.mail)
        try:
            url = await server.start(address, port)
            stop = asyncio.Event()

            def end(number: int) -> None:
                nonlocal status
                # As for every command that is interrupted.
                status = 130 if number == signal.SIGINT else 0
                stop.set()

            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, end, number)
            # What start-up made stays for good: keep the collector off it.
            gc.collect()
            gc.freeze()
            announce(url)
            await stop.wait()
            await server.stop()
        finally:
            await host.stop()

    uvloop.run(main())
    return status
