"""Every test runs with a recorder on each AEAD encryption, and may start enclaves."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conclave import _crypto
from conclave.bundle import Bundle, build
from conclave.host import Host
from conclave.platform import start_platform
from conclave.testing import HostServer

_seen: set[bytes] = set()
_repeats: list[str] = []


def _record(key_id: bytes, nonce: bytes) -> None:
    use = key_id + nonce
    if use in _seen:
        _repeats.append(nonce.hex())
        raise AssertionError("a (key, nonce) pair was used twice")
    _seen.add(use)


_crypto.on_encrypt = _record


@pytest.fixture(autouse=True)
def _no_repeated_nonce(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails even where the code under test swallowed the recorder's complaint."""
    _repeats.clear()
    yield
    wanted = request.node.get_closest_marker("repeats_a_nonce") is not None
    assert bool(_repeats) == wanted, f"(key, nonce) used twice: {_repeats}"


Author = Callable[..., Bundle]
Serve = Callable[..., HostServer]


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one simulated machine."""
    return tmp_path_factory.mktemp("machine")


@pytest.fixture(scope="session")
def author(tmp_path_factory: pytest.TempPathFactory) -> Author:
    """Builds a bundle from source text: author("name", source, mode=…)."""

    def make(name: str, source: str, *, mode: str = "release", **options: object) -> Bundle:
        place = tmp_path_factory.mktemp(name)
        path = place / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        return build(path, place / f"{name}.enclave", mode=mode, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def serve(machine: Path) -> Serve:
    """A real host with a real enclave: `with serve(bundle, hostile=True) as server`."""

    def make(
        bundle: Bundle, *, hostile: bool = False, sandbox: str = "auto", restart: bool = False, **options: object
    ) -> HostServer:
        host = Host(
            lambda: start_platform(machine, bundle.path, sandbox=sandbox),
            restart=restart,
            **options,  # type: ignore[arg-type]
        )
        return HostServer(host, hostile=hostile)

    return make


def only(bundle: Bundle) -> str:
    """The constraint that accepts exactly this bundle on a simulated TEE."""
    return f"C:{bundle.code.hex()} SEC:INSECURE"


@pytest.fixture(name="only", scope="session")
def _only() -> Callable[[Bundle], str]:
    return only


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
