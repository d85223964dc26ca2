"""`conclave witness`: run an outside witness, and make its key."""

from __future__ import annotations

from pathlib import Path

from conclave.errors import FormatError


def key_command(path: Path) -> int:
    """Make a key file, and print what enclaves are to be told of it."""
    from conclave.witness.keys import make_key

    try:
        key = make_key(path)
    except FileExistsError:
        raise FormatError(f"{path} is there already, and a key is not overwritten; choose another name") from None
    print(f"key         {path}: keep it secret, and never on two machines with a store each")
    print(f"public      {key.public.hex()}")
    return 0


def show_command(path: Path) -> int:
    """Print the public half of a key."""
    from conclave.witness.keys import load_key

    print(load_key(path).public.hex())
    return 0


def witness_command(
    *,
    key: Path,
    store: str,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    logs: int,
    allow: tuple[str, ...],
    log: str,
) -> int:
    """Serve until a signal comes."""
    from conclave.cli._config import LOGS
    from conclave.host.place import Place
    from conclave.witness.keys import load_key

    if (tls_cert is None) != (tls_key is None):
        raise FormatError("--tls-cert and --tls-key go together")
    if log not in LOGS:
        raise FormatError(f"--log is one of: {', '.join(LOGS)}")
    allowed = frozenset(_log_id(text) for text in allow)
    signing = load_key(key)
    place = Place(host, port)

    import uvloop

    from conclave.host.server import allow_descriptors
    from conclave.witness.ledger import Bounds
    from conclave.witness.service import Service

    allow_descriptors()
    service = Service(
        signing,
        store=store,
        place=place,
        tls=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        bounds=Bounds(logs=logs),
        allowed=allowed,
        log=log,
    )

    def announce(url: str) -> None:
        print(f"public      {signing.public.hex()}")
        print(f"serving     {url}", flush=True)

    return uvloop.run(service.run(announce))


def _log_id(text: str) -> bytes:
    try:
        log_id = bytes.fromhex(text)
    except ValueError:
        log_id = b""
    if len(log_id) != 32:
        raise FormatError("--allow takes a log id, 64 hex digits")
    return log_id
