"""Who may import whom, what an enclave loads, what is public (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import conclave
from conclave.platform.tree import ENCLAVE_MODULES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "conclave"

_LEAVES = {"errors", "_chunkheader", "_codec", "_framing", "_lazy", "_mailheader"}
_PURE = _LEAVES | {"_crypto", "attestation", "bundle", "mail", "rpc", ""}
# The host holds no keys: of the packages it may know parsers only.
ALLOWED = {
    "errors": set(),
    "_codec": {"errors"},
    "_framing": {"errors"},
    "_mailheader": {"errors"},
    "_chunkheader": {"errors"},
    "_crypto": {"errors"},
    "attestation": _LEAVES | {"_crypto", "attestation", ""},
    "bundle": _LEAVES | {"_crypto", "attestation.claims", "bundle"},
    "mail": _LEAVES | {"_crypto", "mail"},
    "rpc": _LEAVES | {"_crypto", "mail.padding", "rpc", "enclave"},
    "enclave": _PURE | {"enclave"},
    "client": _PURE | {"client"},
    "host": _LEAVES | {"host"},
    "platform": _PURE | {"platform"},
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


def test_trusted_closure() -> None:
    """TRUSTED_CLOSURE.txt lists exactly what an enclave without dependencies loads."""
    program = (
        "import sys; before = set(sys.modules)\n"
        "from conclave.enclave import _runtime, _sandbox\n"
        "print('\\n'.join(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('conclave', 'cryptography', 'msgspec', 'cffi', '_cffi_backend', 'pycparser'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    listed = (ROOT / "TRUSTED_CLOSURE.txt").read_text()
    assert done.stdout == listed, "the trusted closure changed; review it, then write it to TRUSTED_CLOSURE.txt"
    ours = {m for m in done.stdout.split() if m.split(".")[0] == "conclave"}
    packed = {"conclave." + m.replace("/__init__", "").replace("/", ".") for m in ENCLAVE_MODULES} - {
        "conclave.__init__"
    }
    assert ours - {"conclave"} <= packed
    # Nothing is measured that is not loaded.
    assert packed <= ours


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
