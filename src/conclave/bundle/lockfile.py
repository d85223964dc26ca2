"""Locks: an enclave's dependencies, pinned by version and SHA-256.

Runs on the author's machine. Making a lock is the only step that resolves
versions and the only one that needs uv; building reads what is pinned.

Spec: spec/bundle.md section 4 (BND-10).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from conclave import _crypto
from conclave.bundle.source import Source, read_source
from conclave.errors import BundleError

# Part of every runtime: its version wins, and it never goes into a bundle.
PROVIDED: Final = ("cbor2", "cffi", "cryptography", "msgspec", "pycparser")
_HEADER: Final = "# conclave lock 1 "
_PIN: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)\Z")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})\Z")


def _fingerprint(source: Source) -> str:
    return _crypto.sha256("\n".join(sorted(source.dependencies)).encode()).hex()


def provided() -> dict[str, str]:
    """Versions of the packages that the runtime brings."""
    from importlib.metadata import version

    return {name: version(name) for name in PROVIDED}


def lock(path: Path) -> Path:
    """Resolve an enclave's dependencies and write the lock beside it.

    Raises:
        BundleError: uv is missing, or cannot resolve; its reason is in the text.
    """
    source = read_source(path)
    lines = [_HEADER + _fingerprint(source)]
    if source.dependencies:
        constraints = "".join(f"{n}=={v}\n" for n, v in provided().items())
        lines += _resolve("\n".join(source.dependencies), constraints)
    source.lock.write_text("\n".join(lines) + "\n")
    return source.lock


def _resolve(wanted: str, constraints: str) -> list[str]:
    import tempfile

    command = _uv()
    with tempfile.TemporaryDirectory() as place:
        Path(place, "in").write_text(wanted + "\n")
        Path(place, "constraints").write_text(constraints)
        command += ["pip", "compile", "-q", "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate"]
        command += ["--python", sys.executable, "--only-binary", ":all:"]
        command += ["-c", f"{place}/constraints", f"{place}/in"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[:600]
        raise BundleError(
            f"the dependencies cannot be resolved (the runtime brings {', '.join(PROVIDED)} in versions of its own): "
            f"{reason}"
        )
    return [line for line in done.stdout.splitlines() if line.strip() and not line.startswith("--index")]


def _uv() -> list[str]:
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv")
    if found is None:
        raise BundleError("`conclave lock` needs uv: pip install 'conclave-core[build]'")
    return [found]


def read_lock(source: Source) -> dict[str, tuple[str, frozenset[str]]]:
    """Pinned packages of a source: name to version and accepted SHA-256 digests.

    What the runtime provides is checked and left out.

    Raises:
        BundleError: no lock, a stale one, or another version than the runtime's.
    """
    if not source.lock.exists():
        if not source.dependencies:
            return {}
        raise BundleError(f"{source.lock.name} is missing: run `{source.lock_command}` to pin the dependencies")
    try:
        first, _, rest = source.lock.read_text(encoding="utf-8").partition("\n")
    except UnicodeDecodeError:
        raise BundleError(f"{source.lock.name} is not UTF-8 text: run `{source.lock_command}`") from None
    if first != _HEADER + _fingerprint(source):
        raise BundleError(
            f"{source.lock.name} belongs to other dependencies than declared now: run `{source.lock_command}`"
        )
    pins = parse_lock(rest, source.lock.name, again=source.lock_command)
    for name, version in provided().items():
        if name in pins and pins.pop(name)[0] != version:
            raise BundleError(
                f"{source.lock.name} pins another {name} than the runtime's {version}, which wins inside an enclave: "
                f"run `{source.lock_command}`"
            )
    return pins


def parse_lock(text: str, where: str, *, again: str = "conclave lock PATH") -> dict[str, tuple[str, frozenset[str]]]:
    """The pins of a lock, below its first line. Raises BundleError naming `where`, and what makes it `again`."""
    pins: dict[str, tuple[str, frozenset[str]]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        line = line.split(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        requirement, *hashes = line.split()
        requirement = requirement.partition(";")[0]
        pin = _PIN.match(requirement)
        digests = [_HASH.match(h) for h in hashes if h.startswith("--hash")]
        if pin is None or not digests or not all(digests):
            raise BundleError(f"{where}: every line is name==version with sha256 hashes; run `{again}`")
        name = re.sub(r"[-_.]+", "-", pin[1]).lower()
        if name in pins:
            raise BundleError(f"{where}: {name} is pinned twice")
        pins[name] = pin[2], frozenset(d[1] for d in digests if d)
    return pins
