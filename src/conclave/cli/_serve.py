"""`conclave run` and `conclave serve`: launch under the simulated TEE and serve."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from conclave.cli._build import constraint_for, progress
from conclave.cli._config import Settings, witnesses_of
from conclave.cli._places import outbox_store, platform_directory
from conclave.cli._terminal import safe
from conclave.errors import PlatformError

if TYPE_CHECKING:
    from conclave.host import Host
    from conclave.platform import Launched

_WORKPLACE: Final = "conclave-run-"


def build_and_serve(
    path: Path,
    *,
    port: int,
    address: str,
    platform: Path | None,
    sandbox: str,
    constraint_file: Path | None,
    peers: tuple[str, ...] = (),
    witnesses: tuple[str, ...] = (),
) -> int:
    """Build in debug mode into a temporary place, and serve that."""
    from conclave.bundle import build

    _check(peers)
    witnesses_of(witnesses)
    with _workplace() as place:
        bundle = build(path, place / "run.enclave", mode="debug", on_progress=progress)
        line = constraint_for(bundle, simulated=True)
        target = constraint_file or _beside(path, bundle.manifest.name)

        def announce(url: str, host: Host) -> None:
            target.write_text(line + "\n")
            print("enclave     debug mode on the simulated TEE: INSECURE, for development only")
            print(f"delivery    {delivery(bundle.manifest.interface, _log_id(host), stored=False)}")
            print(f"serving     {url}")
            print(f"constraint  {line}")
            print(f"written to  {target}", flush=True)

        settings = Settings(
            bundle=str(place / "run.enclave"),
            host=address,
            port=port,
            platform="" if platform is None else str(platform),
            sandbox=sandbox,
            log="none",
            peer=peers,
            witness=witnesses,
        )
        return _serve(settings, announce, logged=False)


@contextmanager
def _workplace() -> Iterator[Path]:
    """A directory for as long as this command runs. Those of commands that were killed go."""
    from conclave.platform import shelf

    for left in Path(tempfile.gettempdir()).glob(f"{_WORKPLACE}*"):
        shelf.remove_unless_held(left)
    with tempfile.TemporaryDirectory(prefix=_WORKPLACE) as made:
        place = Path(made)
        # Another command may have taken it for one that was left.
        held = shelf.hold(place, lambda missing: missing.mkdir(mode=0o700, exist_ok=True))
        try:
            yield place
        finally:
            os.close(held)


def _beside(path: Path, name: str) -> Path:
    """Beside the enclave, also where that is `module:attribute`; in a project's folder, under the project's name."""
    if path.is_dir():
        return path / f"{name}.constraint"
    return path.with_name(path.name.partition(":")[0]).with_suffix(".constraint")


def serve_bundle(settings: Settings) -> int:
    """Serve a bundle that was built before."""
    from conclave.bundle import read_bundle

    _check(settings.peer)
    if settings.tee != "simulated":
        raise PlatformError(f"no driver for the TEE '{settings.tee[:32]}' here; available: simulated")
    bundle = read_bundle(Path(settings.bundle))
    line = constraint_for(bundle, simulated=True)
    store = settings.store or outbox_store(bundle.code)

    def announce(url: str, host: Host) -> None:
        log_id = _log_id(host)
        print("platform    simulated TEE: INSECURE, protects nothing from this machine's operator")
        if log_id is not None:
            log = f", log {log_id.hex()[:8]}…" if host.journal.found else ": new, begins a log of its own"
            print(f"state       {shown(store)}{log}")
        print(f"delivery    {delivery(bundle.manifest.interface, log_id, stored=True)}")
        print(f"serving     {url}")
        print(f"constraint  {line}", flush=True)

    return _serve(replace(settings, store=store), announce, logged=True)


def _log_id(host: Host) -> bytes | None:
    """Of the log that the enclave's state is in; None: it keeps none. The enclave's word, unverified."""
    from conclave.attestation.claims import parse_claims, parse_instance_info

    return parse_claims(parse_instance_info(host.info or b"").claims).log_id


def shown(store: str) -> str:
    """A store's URL without what may be a password."""
    kind, _, _ = store.partition(":")
    if kind not in ("postgresql", "postgres"):
        return safe(store)
    try:
        where = urlsplit(store).hostname
    except ValueError:
        where = None
    return f"{kind}://{safe(where or '')}/…"


def delivery(interface: bytes, log_id: bytes | None, *, stored: bool) -> str:
    """What becomes of a call when the enclave restarts.

    Args:
        interface: the schema in the bundle's manifest.
        log_id: of the log that the enclave's state is in, if it keeps one.
        stored: whether that outlives the host.
    """
    if _speaks_http(interface):
        return "a request runs at most once; GET, HEAD and OPTIONS are sent once more; nothing survives a restart"
    if log_id is None:
        return "stateless: nothing survives a restart; at least once across restarts"
    if stored:
        return "exactly once, also across restarts of the enclave and of this host"
    return "exactly once; the state lasts as long as this command (for longer: conclave serve --store)"


def _speaks_http(interface: bytes) -> bool:
    """Whether it has the methods of an ASGI application, whatever their padding."""
    from conclave.rpc import interface_of
    from conclave.rpc.http import HttpExchange

    found = _methods(interface)
    return all(method in found for method in _methods(interface_of(HttpExchange).encode()))


def _methods(interface: bytes) -> list[Any]:
    """Name, parameters, result and whether it may be retried, of each."""
    try:
        return [method[:4] for method in msgspec.msgpack.decode(interface)[1]]
    except (msgspec.MsgspecError, LookupError, TypeError):
        # Whoever built this bundle wrote something else; its clients will tell.
        return []


def _check(peers: tuple[str, ...]) -> None:
    if not all(url.startswith(("http://", "https://")) for url in peers):
        raise PlatformError("--peer takes the URL of a host, which begins with http:// or https://")


def _serve(settings: Settings, announce: Callable[[str, Host], None], *, logged: bool) -> int:
    """Serve. What a debug enclave prints is in no log, and shown; what happens is shown unless it is `logged`."""
    from conclave.host.place import Place
    from conclave.platform import start_platform

    place = Place(settings.host, settings.port)
    operators = None if settings.metrics_port < 0 else Place(settings.metrics_host, settings.metrics_port)
    directory = platform_directory(Path(settings.platform) if settings.platform else None)
    bundle = Path(settings.bundle)
    # The platform measures and launches while this process loads its server.
    first = [start_platform(directory, bundle, sandbox=settings.sandbox)]

    def launch() -> Launched:
        return first.pop() if first else start_platform(directory, bundle, sandbox=settings.sandbox)

    import uvloop

    from conclave.host.host import log_to_stderr, output_to_stderr
    from conclave.host.server import allow_descriptors
    from conclave.host.service import Service

    allow_descriptors()
    service = Service(
        launch,
        place=place,
        operators=operators,
        store=settings.store,
        store_timeout_seconds=settings.store_timeout_seconds,
        tls=(Path(settings.tls_cert), Path(settings.tls_key)) if settings.tls_cert else None,
        log=settings.log,
        drain_seconds=settings.drain_seconds,
        show=output_to_stderr if logged else log_to_stderr,
        peers=settings.peer,
        witnesses=witnesses_of(settings.witness),
    )
    return uvloop.run(service.run(lambda url: announce(url, service.host)))
