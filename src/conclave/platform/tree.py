"""The runtime: one root tree with interpreter, libraries and our enclave side.

Runs in the simulated platform. The tree is what the sandbox mounts as `/`, and
its digest is MRENCLAVE: interpreter, standard library without tests, the shared
libraries they and manylinux wheels need, the enclave's packages, the bootstrap.

Spec: spec/host-channel.md section 4, spec/claims.md section 2.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conclave import __version__
from conclave.bundle import bytecode
from conclave.bundle.lockfile import PROVIDED
from conclave.errors import PlatformError
from conclave.platform import shelf

# Our own modules inside an enclave; each package is listed with what of it goes in.
ENCLAVE_MODULES: Final = (
    "__init__",
    "_chunkheader",
    "_codec",
    "_crypto/__init__",
    "_framing",
    "_lazy",
    "_mailheader",
    "_memory",
    "attestation/__init__",
    "attestation/claims",
    "bundle/__init__",
    "bundle/manifest",
    "enclave/__init__",
    "enclave/_author",
    "enclave/_posts",
    "enclave/_release",
    "enclave/_roster",
    "enclave/_runtime",
    "enclave/_sandbox",
    "enclave/_service",
    "enclave/_streams",
    "enclave/drivers/__init__",
    "enclave/drivers/cbor",
    "enclave/drivers/certificates",
    "enclave/drivers/fields",
    "enclave/drivers/files",
    "enclave/drivers/gramine",
    "enclave/drivers/nsm",
    "enclave/drivers/selection",
    "enclave/drivers/sevguest",
    "enclave/drivers/simulated",
    "enclave/drivers/tee",
    "enclave/drivers/tsm",
    "enclave/sdk",
    "errors",
    "mail/__init__",
    "mail/_wire",
    "mail/contexts",
    "mail/conversation",
    "mail/mailbox",
    "mail/padding",
    "mail/post",
    "mail/session",
    "mail/stream",
    "rpc/__init__",
    "rpc/interface",
    "rpc/types",
)
# Loaded only by enclaves whose state persists.
STATE_MODULES: Final = (
    "enclave/_anchors",
    "enclave/_fetches",
    "enclave/_loading",
    "enclave/_state",
    "enclave/_transactions",
    "mail/memory",
    "persistence/__init__",
    "persistence/context",
    "persistence/keys",
    "persistence/log",
    "persistence/map",
    "persistence/ordered",
    "persistence/ranges",
    "persistence/records",
    "persistence/replay",
    "persistence/snapshots",
    "persistence/table",
    "persistence/versions",
    "persistence/witness",
)
# Loaded only by enclaves that call others or declare callers: a client's core, the verifiers.
PEER_MODULES: Final = (
    "attestation/_der",
    "attestation/_x509",
    "attestation/anchors",
    "attestation/appraisal",
    "attestation/binding",
    "attestation/constraint",
    "attestation/dcap/__init__",
    "attestation/dcap/_claims",
    "attestation/dcap/_json",
    "attestation/dcap/_layout",
    "attestation/dcap/collateral",
    "attestation/dcap/pck",
    "attestation/dcap/quote",
    "attestation/dcap/tcb",
    "attestation/dcap/verify",
    "attestation/evidence",
    "attestation/nitro/__init__",
    "attestation/nitro/cbor",
    "attestation/nitro/document",
    "attestation/nitro/verify",
    "attestation/reference",
    "attestation/security",
    "attestation/snp/__init__",
    "attestation/snp/endorsements",
    "attestation/snp/facts",
    "attestation/snp/key",
    "attestation/snp/report",
    "attestation/snp/verify",
    "attestation/tcb",
    "attestation/verify",
    "client/__init__",
    "client/_box",
    "client/_hosts",
    "client/_log",
    "client/core",
    "client/identity",
    "enclave/_callers",
    "enclave/_clock",
    "enclave/_fetches",
    "enclave/_peers",
)
# What more is loaded where the entry is an ASGI application.
ASGI_MODULES: Final = ("enclave/asgi", "rpc/http")
PACKED: Final = tuple(dict.fromkeys((*ENCLAVE_MODULES, *STATE_MODULES, *PEER_MODULES, *ASGI_MODULES)))
_OUR_ROOT: Final = Path(importlib.util.find_spec("conclave").submodule_search_locations[0])  # type: ignore[union-attr,index]
_LEFT_OUT: Final = frozenset(
    {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "lib-dynload", "pydoc_data"}
    | {"site-packages", "test", "tests", "tkinter", "turtledemo", "venv"}
)
_LEFT_OUT_PREFIXES: Final = ("config-", "_tkinter", "_test", "xx")
# What manylinux wheels may expect to find (PEP 599 and later policies), as far as
# it is here.
_MANYLINUX: Final = (
    *("libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libnsl.so.1", "libpthread.so.0", "libresolv.so.2"),
    *("librt.so.1", "libstdc++.so.6", "libutil.so.1", "libz.so.1"),
)
_LIBRARY_PLACES: Final = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib")
LOADER: Final = "lib64/ld-linux-x86-64.so.2"
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
INTERPRETER: Final = "runtime/bin/python3"
BOOTSTRAP: Final = "runtime/bootstrap.py"
MOUNT_POINTS: Final = ("bundle", "tmp")


@dataclass(frozen=True, slots=True)
class RuntimeTree:
    """A tree on disk and its measurement (32 bytes)."""

    root: Path
    measurement: bytes


def cache_directory() -> Path:
    """Where trees are kept: they hold nothing secret and many machines share one."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "conclave" / "runtime"


def runtime_tree(
    directory: Path | None = None, *, held: bool = False, on_progress: Callable[[str], None] = lambda text: None
) -> RuntimeTree:
    """The tree for this interpreter and release, made on first use.

    The measurement is taken of what lies there: a tree that was touched since is
    measured again, and then is another runtime.

    Args:
        held: it stays as long as this process lives; otherwise for some minutes.

    Raises:
        PlatformError: it cannot be made.
    """
    place = (directory or cache_directory()) / _key()
    root = place / "root"

    def make(place: Path) -> None:
        on_progress("preparing the runtime (once)")
        _make(place)
        shelf.prune(place.parent)

    try:
        descriptor = shelf.hold(place, make, content="root")
        try:
            return RuntimeTree(root, _measured(place, root))
        finally:
            if not held:
                os.close(descriptor)
    except OSError as error:
        raise PlatformError(
            f"the runtime tree in {place} cannot be made or read: {error.strerror}; XDG_CACHE_HOME says where it goes"
        ) from None


# Measurement -------------------------------------------------------------------------


def measure(root: Path) -> bytes:
    """SHA-256 over path, kind, mode, size and contents of everything below `root`."""
    digest = hashlib.sha256(b"conclave/1 runtime tree\0")
    for path, status in _walk(root):
        name = os.path.relpath(path, root).encode()
        if stat.S_ISLNK(status.st_mode):
            kind, body = b"l", os.readlink(path).encode()
        elif stat.S_ISDIR(status.st_mode):
            kind, body = b"d", b""
        else:
            kind, body = b"x" if status.st_mode & 0o100 else b"f", _file_digest(path)
        for part in (name, kind, body):
            digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def _file_digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(root) as entries:
        found = sorted(entries, key=lambda e: e.name)
    for entry in found:
        status = entry.stat(follow_symlinks=False)
        yield entry.path, status
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def _trace(root: Path) -> str:
    """Changes whenever a file below `root` was written, moved or replaced."""
    digest = hashlib.sha256()
    for path, s in _walk(root):
        # A directory's times change when a bundle is mounted nowhere near it, but
        # not its contents' names, so only files count.
        times = "" if stat.S_ISDIR(s.st_mode) else f"{s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}"
        digest.update(f"{path} {s.st_mode} {s.st_size if times else 0} {times}\n".encode())
    return digest.hexdigest()


def _measured(place: Path, root: Path) -> bytes:
    note = place / "measured.json"
    trace = _trace(root)
    try:
        known = json.loads(note.read_bytes())
        if known["trace"] == trace:
            return bytes.fromhex(known["measurement"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    measurement = measure(root)
    temporary = note.with_name(f".measured.{os.getpid()}")
    temporary.write_text(json.dumps({"trace": trace, "measurement": measurement.hex()}))
    temporary.replace(note)
    return measurement


# Making ------------------------------------------------------------------------------


def _key() -> str:
    """Names a tree by what goes into it."""
    digest = hashlib.sha256(f"{__version__} {sys.version} {_interpreter()}".encode())
    for name in (*PACKED, "enclave/bootstrap"):
        digest.update((_OUR_ROOT / f"{name}.py").read_bytes())
    # Directory names tell versions; asking each package's metadata takes a tenth of a start.
    names = tuple(f"{name}-" for name in PROVIDED)
    specs = (importlib.util.find_spec(name) for name in PROVIDED)
    sites = {Path(spec.origin).parents[1] for spec in specs if spec is not None and spec.origin is not None}
    installed = {entry for site in sites for entry in os.listdir(site)}
    for entry in sorted(e for e in installed if e.startswith(names) and e.endswith(".dist-info")):
        digest.update(entry.encode() + b"\n")
    return f"{sys.implementation.cache_tag}-{digest.hexdigest()[:16]}"


def _interpreter() -> Path:
    return Path(os.path.realpath(sys.executable))


def _make(place: Path) -> None:
    if sysconfig.get_platform() != "linux-x86_64":
        raise PlatformError("the simulated TEE runs on x86-64 Linux")
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
    try:
        root = work / "root"
        _fill(root)
        for folder, _, _ in os.walk(work):
            os.chmod(folder, 0o755)  # noqa: S103
        try:
            work.rename(place)
        except OSError as error:
            # Another process brought one first. Whether that one still is there, the caller looks.
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fill(root: Path) -> None:
    runtime = root / "runtime"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = runtime / "lib" / version
    # 1. Interpreter and standard library.
    _copy(_interpreter(), root / INTERPRETER, executable=True)
    stdlib = Path(sysconfig.get_path("stdlib"))
    _copy_tree(stdlib, library)
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    _copy_tree(dynload, library / "lib-dynload")
    # 2. The packages of the enclave's side.
    for name in PROVIDED:
        _copy_distribution(name, runtime / "site")
    for name in PACKED:
        _copy(_OUR_ROOT / f"{name}.py", runtime / "site" / "conclave" / f"{name}.py")
    _copy(_OUR_ROOT / "enclave" / "bootstrap.py", root / BOOTSTRAP)
    # 3. Shared libraries.
    _copy_libraries(root)
    # 4. Byte code.
    sources = [(str(p.relative_to(root)), p.read_bytes()) for p in sorted(runtime.rglob("*.py"))]
    for path, code in bytecode.compile_all(sources, "/"):
        target = root / path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(code)
        target.chmod(0o644)
    for name in MOUNT_POINTS:
        (root / name).mkdir()


def _copy(source: Path, target: Path, *, executable: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if executable else 0o644)


def _copy_tree(source: Path, target: Path) -> None:
    for folder, folders, files in os.walk(source):
        folders[:] = [f for f in folders if f not in _LEFT_OUT and not f.startswith(_LEFT_OUT_PREFIXES)]
        for name in files:
            if name.endswith((".py", ".so")) and not name.startswith(_LEFT_OUT_PREFIXES):
                path = Path(folder, name)
                if name.endswith(".so") and _needs_missing(path):
                    continue
                _copy(path, target / path.relative_to(source))


def _copy_distribution(name: str, site: Path) -> None:
    from importlib.metadata import files

    for file in files(name) or ():
        if ".." in file.parts or file.suffix in (".pyc", ".pyi") or file.name in ("INSTALLER", "RECORD", "REQUESTED"):
            continue
        _copy(Path(str(file.locate())), site / str(file))


def _needed(paths: list[Path]) -> dict[str, str]:
    """Shared libraries that binaries load: soname to path; missing ones map to ''."""
    done = subprocess.run(["ldd", *map(str, paths)], capture_output=True, text=True, check=False)
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if "=>" in words:
            target = words[words.index("=>") + 1]
            found[words[0]] = target if target.startswith("/") else ""
    return found


def _needs_missing(path: Path) -> bool:
    return "" in _needed([path]).values()


def _copy_libraries(root: Path) -> None:
    binaries = [root / INTERPRETER, *sorted((root / "runtime").rglob("*.so"))]
    own = os.fspath(root)
    for soname, place in sorted(_needed(binaries).items()):
        if place and not place.startswith(own):
            _copy(Path(place), root / LIBRARIES / soname, executable=True)
    for soname in _MANYLINUX:
        place_of = next((Path(d, soname) for d in _LIBRARY_PLACES if Path(d, soname).exists()), None)
        if place_of is not None:
            _copy(place_of, root / LIBRARIES / soname, executable=True)
    _copy(Path("/", LOADER), root / LOADER, executable=True)
    (root / "lib").mkdir()
    (root / "lib" / "x86_64-linux-gnu").symlink_to("../usr/lib/x86_64-linux-gnu")


def bootstrap_command(root: str) -> list[str]:
    """How the measured bootstrap is started, with the tree's own loader and libraries.

    Args:
        root: the tree, or "" where it is the root directory.
    """
    loader = [f"{root}/{LOADER}", "--library-path", f"{root}/{LIBRARIES}"]
    return [*loader, f"{root}/{INTERPRETER}", "-I", "-S", f"{root}/{BOOTSTRAP}"]
