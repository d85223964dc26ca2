"""Who may import whom, what an enclave loads, what is public (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import conclave
from conclave.platform.tree import ASGI_MODULES, ENCLAVE_MODULES, PACKED, PEER_MODULES, STATE_MODULES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "conclave"

_LEAVES = {"errors", "_chunkheader", "_codec", "_framing", "_lazy", "_mailheader", "_memory", "_stateheader"}
_PURE = _LEAVES | {"_crypto", "attestation", "bundle", "mail", "rpc", "persistence", ""}
# The host holds no keys: of the packages it may know parsers only.
ALLOWED = {
    "errors": set(),
    "_codec": {"errors"},
    "_framing": {"errors"},
    "_mailheader": {"errors"},
    "_memory": set(),
    "_stateheader": {"errors"},
    "_chunkheader": {"errors"},
    "_crypto": {"errors"},
    "attestation": _LEAVES | {"_crypto", "attestation", ""},
    "bundle": _LEAVES | {"_crypto", "attestation.claims", "bundle"},
    "mail": _LEAVES | {"_crypto", "mail"},
    "rpc": _LEAVES | {"_crypto", "mail.padding", "rpc", "enclave"},
    "persistence": _LEAVES | {"_crypto", "mail.padding", "persistence"},
    # An enclave that calls others drives the part of a client that does no IO.
    "enclave": _PURE | {"enclave", "client.core", "client.identity"},
    "client": _PURE | {"client"},
    "host": _LEAVES | {"host"},
    "platform": _PURE | {"platform"},
    # A witness holds a key and no enclave: of the host it has the server and the stores, which hold none.
    "witness": _LEAVES
    | {"_crypto", "persistence.witness", "witness"}
    | {f"host.{name}" for name in ("answers", "connection", "exchange", "health", "logs", "operation", "place")}
    | {f"host.{name}" for name in ("server", "signals", "stores", "tls")},
}


def imports(path: Path) -> set[str]:
    """Our own modules that a file imports, without the leading `conclave.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "conclave":
                found |= {f"conclave.{a.name}" if not a.name.startswith("__") else "conclave" for a in node.names}
            else:
                found.add(node.module)
    return {name.partition(".")[2] for name in found if name == "conclave" or name.startswith("conclave.")}


def _allowed(name: str, zone: set[str]) -> bool:
    return any(name == a or (a and name.startswith(f"{a}.")) for a in zone)


@pytest.mark.parametrize("package", ALLOWED)
def test_zones(package: str) -> None:
    place = SOURCE / package
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    for path in files:
        for name in imports(path):
            assert _allowed(name, ALLOWED[package]), f"{path.relative_to(SOURCE)} imports conclave.{name}"


def test_only_named_modules_touch_cryptography() -> None:
    allowed = {"_crypto/__init__.py", "attestation/_x509.py"}
    # The simulated processor makes certificates and quotes; it verifies nothing.
    allowed |= {"platform/pki.py"}
    # So does the evidence builder, for tests.
    allowed |= {"testing/evidence/pki.py"}
    for path in SOURCE.rglob("*.py"):
        names = {a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
        if any(n == "cryptography" or n.startswith("cryptography.") for n in names):
            assert str(path.relative_to(SOURCE)) in allowed


_OURS = "('conclave', 'cryptography', 'msgspec', 'cffi', '_cffi_backend', 'pycparser', 'cbor2')"


def _loads(*statements: str) -> str:
    """The modules, ours and of libraries, that a program has loaded after these statements."""
    listing = f"print('\\n'.join(sorted(m for m in sys.modules if m.split('.')[0] in {_OURS})))"
    program = "\n".join(("import sys", *statements, listing))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def _packed(modules: Iterable[str]) -> set[str]:
    return {"conclave." + m.replace("/__init__", "").replace("/", ".") for m in modules} - {"conclave.__init__"}


_ORDINARY = "from conclave.enclave import _runtime, _sandbox"
_WITH_PEERS = "from conclave.enclave import _callers, _peers"
_WITH_STATE = "from conclave.enclave import _loading, _transactions; from conclave.mail import memory"
_WITH_WITNESSES = "from conclave.enclave import _anchors"
_WITH_ASGI = "from conclave.enclave import asgi"


def test_trusted_closure() -> None:
    """TRUSTED_CLOSURE.txt lists exactly what an enclave without dependencies loads."""
    loaded = _loads(_ORDINARY)
    listed = (ROOT / "TRUSTED_CLOSURE.txt").read_text()
    assert loaded == listed, "the trusted closure changed; review it, then write it to TRUSTED_CLOSURE.txt"
    ours = {m for m in loaded.split() if m.split(".")[0] == "conclave"}
    packed = _packed(ENCLAVE_MODULES)
    assert ours - {"conclave"} <= packed
    # Nothing is measured as an ordinary enclave's that is not loaded.
    assert packed <= ours


def test_trusted_closure_of_peers() -> None:
    """TRUSTED_CLOSURE_PEERS.txt lists what more an enclave loads that calls others or is called by some."""
    ordinary = set(_loads(_ORDINARY).split())
    more = [m for m in _loads(_ORDINARY, _WITH_PEERS).split() if m not in ordinary]
    listed = (ROOT / "TRUSTED_CLOSURE_PEERS.txt").read_text().split()
    assert more == listed, "what peers load changed; review it, then write it to TRUSTED_CLOSURE_PEERS.txt"
    assert {m for m in more if m.split(".")[0] == "conclave"} == _packed(PEER_MODULES)
    # Of the client it is the part that does no IO.
    assert not {m for m in _loads(_ORDINARY, _WITH_PEERS, "assert 'httpx2' not in sys.modules").split() if "httpx" in m}


def test_trusted_closure_of_state() -> None:
    """TRUSTED_CLOSURE_STATE.txt lists what more an enclave loads whose state persists, witnesses included."""
    ordinary = set(_loads(_ORDINARY).split())
    more = [m for m in _loads(_ORDINARY, _WITH_STATE, _WITH_WITNESSES).split() if m not in ordinary]
    listed = (ROOT / "TRUSTED_CLOSURE_STATE.txt").read_text().split()
    assert more == listed, "what state loads changed; review it, then write it to TRUSTED_CLOSURE_STATE.txt"
    assert {m for m in more if m.split(".")[0] == "conclave"} == _packed(STATE_MODULES)


@pytest.mark.spec("ASGI-2")
def test_trusted_closure_of_applications() -> None:
    """TRUSTED_CLOSURE_ASGI.txt lists what more an enclave loads whose entry is an ASGI application."""
    ordinary = set(_loads(_ORDINARY).split())
    more = [m for m in _loads(_ORDINARY, _WITH_ASGI).split() if m not in ordinary]
    listed = (ROOT / "TRUSTED_CLOSURE_ASGI.txt").read_text().split()
    assert more == listed, "what applications load changed; review it, then write it to TRUSTED_CLOSURE_ASGI.txt"
    assert set(more) == _packed(ASGI_MODULES)


def test_what_is_packed() -> None:
    assert set(PACKED) == {*ENCLAVE_MODULES, *STATE_MODULES, *PEER_MODULES, *ASGI_MODULES}
    assert len(PACKED) == len(set(PACKED))


def public_names() -> list[str]:
    names = []
    for package in ["conclave", *(f"conclave.{m.name}" for m in pkgutil.iter_modules(conclave.__path__))]:
        if package.rpartition(".")[2].startswith("_") or package in ("conclave.cli", "conclave.demo"):
            continue
        module = importlib.import_module(package)
        exported = getattr(module, "__all__", None)
        if package == "conclave.errors":
            exported = [n for n, v in vars(module).items() if isinstance(v, type)]
        names += [f"{package}.{name}" for name in exported or ()]
        for name in exported or ():
            assert getattr(module, name).__doc__, f"{package}.{name} has no docstring"
    return sorted(names)


def test_public_api() -> None:
    listed = (ROOT / "PUBLIC_API.txt").read_text().split()
    assert public_names() == listed, "the public names changed; review, then write them to PUBLIC_API.txt"
