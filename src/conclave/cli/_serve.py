"""`conclave run` and `conclave serve`: launch under the simulated TEE and serve."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from conclave.cli._build import constraint_for, progress
from conclave.cli._config import Settings, witnesses_of
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
    witnesses: tuple[str, ...] = (),
) -> int:
    """Build in debug mode into a temporary place, and serve that."""
    from conclave.bundle import build

    _check(peers)
    witnesses_of(witnesses)
    with tempfile.TemporaryDirectory(prefix="conclave-run-") as place:
        bundle = build(path, Path(place) / "run.enclave", mode="debug", on_progress=progress)
        line = constraint_for(bundle, simulated=True)
        target = constraint_file or _beside(path, bundle.manifest.name)

        def announce(url: str, info: bytes) -> None:
            target.write_text(line + "\n")
            print("enclave     debug mode on the simulated TEE: INSECURE, for development only")
            print(f"delivery    {_delivery(info)}")
            print(f"serving     {url}")
            print(f"constraint  {line}")
            print(f"written to  {target}", flush=True)

        settings = Settings(
            bundle=str(Path(place) / "run.enclave"),
            host=address,
            port=port,
            platform="" if platform is None else str(platform),
            sandbox=sandbox,
            log="none",
            peer=peers,
            witness=witnesses,
        )
        return _serve(settings, announce, debug=True)


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

    def announce(url: str, info: bytes) -> None:
        print("platform    simulated TEE: INSECURE, protects nothing from this machine's operator")
        print(f"serving     {url}")
        print(f"constraint  {line}", flush=True)

    return _serve(replace(settings, store=settings.store or outbox_store(bundle.code)), announce)


def _delivery(info: bytes) -> str:
    """What becomes of a call when the enclave restarts."""
    from conclave.attestation.claims import parse_claims, parse_instance_info

    if parse_claims(parse_instance_info(info).claims).log_id is None:
        return "stateless: nothing survives a restart; at least once across restarts"
    return "exactly once; the state lasts as long as this command (for longer: conclave serve --store)"


def _check(peers: tuple[str, ...]) -> None:
    if not all(url.startswith(("http://", "https://")) for url in peers):
        raise PlatformError("--peer takes the URL of a host, which begins with http:// or https://")


def _serve(settings: Settings, announce: Callable[[str, bytes], None], *, debug: bool = False) -> int:
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

    from conclave.host import log_to_stderr
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
        show=log_to_stderr if debug else None,
        peers=settings.peer,
        witnesses=witnesses_of(settings.witness),
    )
    return uvloop.run(service.run(lambda url: announce(url, service.host.info or b"")))
