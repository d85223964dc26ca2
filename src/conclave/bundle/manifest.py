"""The manifest: everything a bundle is, in one canonical record.

Runs at build time, on the platform and inside the enclave. `code`, the identity
of a bundle, is SHA-256 of its encoding.

Spec: spec/bundle.md section 2 (BND-1 to BND-4).
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from conclave import _codec
from conclave.errors import BundleError, FormatError

MAX_MANIFEST: Final = 32 * 1024 * 1024
MAX_FILES: Final = 100_000
MAX_TOTAL: Final = 2 * 1024**3
MODES: Final = ("release", "debug")
ROOTS: Final = ("app", "site")
_PATH = re.compile(r"[A-Za-z0-9_+@~!()\[\]{}',=#$%^&; .-]+(/[A-Za-z0-9_+@~!()\[\]{}',=#$%^&; .-]+)*\Z")
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\Z")
_ENTRY = re.compile(r"[A-Za-z_]\w{0,127}(\.[A-Za-z_]\w{0,127})*:[A-Za-z_]\w{0,127}\Z", re.ASCII)
_COMPILER = re.compile(r"[a-z]{1,16}-[0-9a-z.+]{1,32}\Z")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}\Z")
_FORBIDDEN_VARIABLES: Final = ("LD_", "PYTHON", "LC_", "GLIBC_", "MALLOC_", "PATH", "HOME")


class FileEntry(_codec.Record, frozen=True):
    """One file that exists after unpacking: path below the bundle, size, SHA-256."""

    path: str
    size: int
    sha256: bytes


class Limits(_codec.Record, frozen=True):
    """Resources the enclave asks for."""

    memory_mib: int
    temporary_mib: int


class Manifest(_codec.Record, frozen=True):
    """All of a bundle. Lists are sorted; every field is required."""

    version: int
    name: str
    release: str
    product_id: int
    revocation_level: int
    mode: str
    python: str
    platform: str
    compiler: str
    entry: str
    interface: bytes
    environment: list[tuple[str, str]]
    roster: list[bytes]
    quorum: int
    limits: Limits
    key_specs: list[bytes]
    metrics: list[str]
    wheels: list[FileEntry]
    files: list[FileEntry]

    def encode(self) -> bytes:
        """The canonical encoding."""
        return _codec.encode(self)


def check_path(path: str) -> None:
    """Refuse paths that escape, hide or surprise. Raises BundleError."""
    parts = path.split("/")
    if len(path) > 512 or not _PATH.match(path) or any(p in (".", "..") or p != p.strip(" ") for p in parts):
        raise BundleError(f"a path in the bundle has a form that is not allowed: {path[:128]!r}")


def check_environment(name: str, value: str) -> None:
    """Refuse variables that change loader or interpreter. Raises BundleError."""
    if not _VARIABLE.match(name) or name.startswith(_FORBIDDEN_VARIABLES) or "\0" in value or len(value) > 1024:
        raise BundleError(
            f"environment: {name[:64]!r} cannot be declared; names are A-Z 0-9 _ and none that steers loader, "
            "locale or interpreter"
        )


def _sorted_unique(entries: list[FileEntry], what: str) -> None:
    paths = [e.path for e in entries]
    if paths != sorted(set(paths)) or len({p.lower() for p in paths}) != len(paths):
        raise BundleError(f"manifest: {what} are not sorted, or two differ only by case")
    folders = {p[:at].lower() for p in paths for at, letter in enumerate(p) if letter == "/"}
    for entry in entries:
        check_path(entry.path)
        if entry.path.lower() in folders:
            raise BundleError(f"manifest: {entry.path[:128]!r} is a file and a folder")
        if len(entry.sha256) != 32 or not 0 <= entry.size <= MAX_TOTAL:
            raise BundleError(f"manifest: {what} with a wrong size or digest")


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest from untrusted bytes. Raises BundleError."""
    try:
        manifest = _codec.decode(Manifest, data, max_size=MAX_MANIFEST, what="manifest")
    except FormatError as error:
        raise BundleError(str(error)) from None
    if manifest.version != 1:
        raise BundleError("manifest: only version 1 is known; use a newer release of the runtime")
    if not _NAME.match(manifest.name) or not 0 < len(manifest.release) <= 64 or not manifest.release.isascii():
        raise BundleError("manifest: name or release has a form that is not allowed")
    if not (0 <= manifest.product_id <= 65535 and 0 <= manifest.revocation_level <= 65534):
        raise BundleError("manifest: product id is 0 to 65535, revocation level 0 to 65534")
    if manifest.mode not in MODES or not _ENTRY.match(manifest.entry):
        raise BundleError("manifest: unknown mode, or an entry that is not module:Class")
    if not _COMPILER.match(manifest.compiler):
        raise BundleError("manifest: the compiler is a name and a release, for example cpython-3.11.7")
    if len(manifest.files) > MAX_FILES or sum(f.size for f in manifest.files) > MAX_TOTAL:
        raise BundleError(f"manifest: more than {MAX_FILES} files or {MAX_TOTAL} bytes")
    _sorted_unique(manifest.files, "files")
    _sorted_unique(manifest.wheels, "wheels")
    if any(f.path.split("/")[0] not in ROOTS or "/" not in f.path for f in manifest.files):
        raise BundleError("manifest: files are below app/ and site/")
    if [n for n, _ in manifest.environment] != sorted({n for n, _ in manifest.environment}):
        raise BundleError("manifest: environment is not sorted and unique")
    for name, value in manifest.environment:
        check_environment(name, value)
    _check_roster(manifest)
    if manifest.key_specs or manifest.metrics:
        raise BundleError("manifest: key specs and metrics are not known to this release")
    return manifest


def _check_roster(manifest: Manifest) -> None:
    members = manifest.roster
    if members != sorted(set(members)) or any(len(m) != 32 for m in members):
        raise BundleError("manifest: the roster is a sorted list of different 32-byte keys")
    if not (0 < manifest.quorum <= len(members) if members else manifest.quorum == 0):
        raise BundleError("manifest: the quorum is between 1 and the size of the roster, 0 without one")


def check_files(directory: Path, manifest: Manifest, *, contents: bool) -> None:
    """Refuse a bundle directory that holds anything the manifest does not list.

    Args:
        directory: where the bundle lies, mounted by the host unless something measured it.
        manifest: of the bundle that the TEE names.
        contents: whether to compare every file's digest too. Names and sizes are enough only
            where the contents were measured by whoever mounted them: the simulated platform.

    Raises:
        BundleError: naming the first difference.
    """
    listed = {f.path: f for f in manifest.files}
    paths = (*listed, *(f"{root}/" for root in ROOTS))
    folders = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"}
    found = 0
    stack = [(os.fspath(directory), "")]
    while stack:
        place, prefix = stack.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    # An empty directory is a package to the interpreter.
                    if path not in folders:
                        raise BundleError(f"{path[:200]!r} is not in the manifest")
                    stack.append((entry.path, path + "/"))
                elif path not in ("manifest", "signature"):
                    if not entry.is_file(follow_symlinks=False) or listed.get(path) is None:
                        raise BundleError(f"{path[:200]!r} is not in the manifest")
                    if entry.stat(follow_symlinks=False).st_size != listed[path].size:
                        raise BundleError(f"{path[:200]!r} has another size than the manifest says")
                    if contents and _digest(entry.path) != listed[path].sha256:
                        raise BundleError(f"{path[:200]!r} differs from what the manifest says")
                    found += 1
    if found != len(listed):
        raise BundleError("files that the manifest lists are missing")


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
