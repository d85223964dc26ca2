"""Builds a bundle from source and lock. Same input, same bytes.

Runs on the author's machine. Never resolves versions and never runs code of a
dependency, except that the author's module is imported once, in a process of its
own, to learn its interface.

Spec: spec/bundle.md sections 2 to 5.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

from conclave import _crypto
from conclave._crypto import SigningKey
from conclave.bundle import bytecode, wheels
from conclave.bundle.archive import SIGNATURE_SIZE, Bundle, read_bundle, write_archive
from conclave.bundle.lockfile import PROVIDED, read_lock
from conclave.bundle.manifest import FileEntry, Limits, Manifest, check_environment, parse_manifest
from conclave.bundle.source import Source, read_source
from conclave.errors import BundleError

Progress = Callable[[str], None]
PYTHON_TAG: Final = f"cp{sys.version_info.major}{sys.version_info.minor}"
COMPILER: Final = f"{sys.implementation.name}-{platform.python_version()}"
PLATFORM_TAG: Final = "x86_64-linux"
# One BLAS thread unless declared: more only contend inside a sandbox.
_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# What packages of the runtime bring beside the module of their name.
_PROVIDED_BESIDE: Final = ("_cffi_backend",)
_ALWAYS_PURE: Final = "-none-any.whl"
_MEMORY_MIB: Final = 2048
_TEMPORARY_MIB: Final = 64


def cache_directory() -> Path:
    """Where wheels and byte code are kept between builds."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "conclave"


def build(
    path: Path,
    output: Path | None = None,
    *,
    mode: str = "release",
    signing_key: SigningKey | None = None,
    signature: bytes | None = None,
    compiler: str = COMPILER,
    on_progress: Progress = lambda text: None,
) -> Bundle:
    """Build a bundle.

    Args:
        path: a Python file with one enclave class, a project directory, or `module:attribute` in one of both.
        output: the file to write; default `NAME-VERSION.enclave` in the working directory.
        mode: `release`, or `debug`, whose output reaches the host.
        signing_key: signs the manifest.
        signature: made elsewhere over `signing_request`: public key (32) ‖ signature (64).
        compiler: what the manifest names as the interpreter's release; `reproduce` alone says another than this one.

    Raises:
        BundleError: saying what is wrong with source, lock, wheels or signature.
    """
    source = read_source(path)
    manifest, contents = _assemble(source, mode, compiler, on_progress)
    encoded = manifest.encode()
    parse_manifest(encoded)
    if signing_key is not None:
        signature = signing_key.public + signing_key.sign("bundle", _crypto.ZERO_DIGEST, encoded)
    if signature is not None and len(signature) != SIGNATURE_SIZE:
        raise BundleError("a signature is 96 bytes: public key (32) and Ed25519 signature (64)")
    target = output or Path(f"{manifest.name}-{manifest.release}.enclave")
    head = [("manifest", encoded), *([("signature", signature)] if signature else [])]
    rest = ((name, contents[name]()) for name in sorted(contents))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(temporary, "w+b") as file:
            write_archive(file, chain(head, rest))
        bundle = read_bundle(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return replace(bundle, path=target)


def signing_request(bundle: Bundle) -> bytes:
    """The bytes an author signs with Ed25519, on whatever machine holds the key."""
    return _crypto.signed_message("bundle", _crypto.ZERO_DIGEST, bundle.manifest_bytes)


def _assemble(
    source: Source, mode: str, compiler: str, on_progress: Progress
) -> tuple[Manifest, dict[str, Callable[[], bytes]]]:
    if mode not in ("release", "debug"):
        raise BundleError("mode is release or debug")
    files: dict[str, FileEntry] = {}
    contents: dict[str, Callable[[], bytes]] = {}
    # 1. Wheels, as their original bytes.
    entries, native, site = _wheels(source, files, contents, on_progress)
    # 2. The author's files.
    for name, place in source.files.items():
        data = place.read_bytes()
        _add(files, contents, f"app/{name}", data)
        if name.endswith(".py"):
            code = bytecode.compile_source(data, f"/bundle/app/{name}")
            if code is not None:
                _add(files, contents, bytecode.path_of(f"app/{name}"), code, stored="bytecode/")
    # 3. The interface, from the class itself.
    settings = source.settings
    environment = _environment(settings.get("environment", {}))
    entry, interface = _describe(source, site, dict(environment))
    roster = sorted(_member(m) for m in settings.get("roster", []))
    manifest = Manifest(
        version=1,
        name=source.name,
        release=source.release,
        product_id=settings.get("product-id", 0),
        revocation_level=settings.get("revocation-level", 0),
        mode=mode,
        python=PYTHON_TAG,
        platform=PLATFORM_TAG if native else "any",
        compiler=compiler,
        entry=entry,
        interface=interface,
        environment=environment,
        roster=roster,
        quorum=settings.get("quorum", len(roster)),
        limits=Limits(
            memory_mib=settings.get("memory-mib", _MEMORY_MIB),
            temporary_mib=settings.get("temporary-mib", _TEMPORARY_MIB),
        ),
        key_specs=[],
        metrics=[],
        wheels=entries,
        files=[files[name] for name in sorted(files)],
    )
    return manifest, contents


def _member(text: Any) -> bytes:
    try:
        key = bytes.fromhex(text)
    except (TypeError, ValueError):
        key = b""
    if len(key) != 32:
        raise BundleError("[tool.conclave] roster: a member is a client's public key, 64 hex digits")
    return key


def _environment(declared: dict[str, Any]) -> list[tuple[str, str]]:
    for name, value in declared.items():
        if not isinstance(value, str):
            raise BundleError("[tool.conclave] environment: values are strings")
        check_environment(name, value)
    return sorted({**_ENVIRONMENT, **declared}.items())


def _add(
    files: dict[str, FileEntry],
    contents: dict[str, Callable[[], bytes]],
    path: str,
    data: bytes,
    *,
    stored: str = "",
) -> None:
    if path in files:
        raise BundleError(f"two files would be unpacked to {path!r}")
    files[path] = FileEntry(path=path, size=len(data), sha256=_crypto.sha256(data))
    contents[stored + path] = lambda: data


def _wheels(
    source: Source,
    files: dict[str, FileEntry],
    contents: dict[str, Callable[[], bytes]],
    on_progress: Progress,
) -> tuple[list[FileEntry], bool, list[Path]]:
    entries: list[FileEntry] = []
    places: list[Path] = []
    native = False
    cache = cache_directory()
    for name, (version, digests) in sorted(read_lock(source).items()):
        place = wheels.fetch(f"{name}=={version}", digests, cache / "wheels", on_progress)
        data = place.read_bytes()
        native |= not place.name.endswith(_ALWAYS_PURE)
        entries.append(FileEntry(path=place.name, size=len(data), sha256=_crypto.sha256(data)))
        contents[f"wheels/{place.name}"] = place.read_bytes
        members = []
        for member, body in wheels.members(data, place.name):
            path = f"site/{member}"
            if path in files:
                raise BundleError(f"{place.name}: {path!r} is in another wheel too")
            files[path] = FileEntry(path=path, size=len(body), sha256=_crypto.sha256(body))
            members.append((path, body))
        for path, code in _bytecode(place.name, data, members, cache / "bytecode", on_progress):
            _add(files, contents, path, code, stored="bytecode/")
        places.append(place)
    return sorted(entries, key=lambda e: e.path), native, places


def _bytecode(
    name: str, data: bytes, members: list[tuple[str, bytes]], cache: Path, on_progress: Progress
) -> Iterator[tuple[str, bytes]]:
    """Byte code of a wheel's files, from the cache or compiled on all cores."""
    kept = cache / f"{hashlib.sha256(data).hexdigest()}{bytecode.SUFFIX}.zip"
    if not kept.exists():
        # Test suites inside wheels are never imported and a third of their code.
        sources = [(p, b) for p, b in members if p.endswith(".py") and "tests" not in p.split("/")]
        on_progress(f"compiling {name} ({len(sources)} files, once)")
        cache.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        write_archive(buffer, bytecode.compile_all(sources, "/bundle/"))
        temporary = kept.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(kept)
    with zipfile.ZipFile(kept) as archive:
        for entry in archive.namelist():
            yield entry, archive.read(entry)


def _describe(source: Source, site: list[Path], environment: dict[str, str]) -> tuple[str, bytes]:
    """Import the author's module in a process of its own, from what is packed and nothing else (BND-16)."""
    with tempfile.TemporaryDirectory(prefix="conclave-build-") as place:
        for name, file in source.files.items():
            _write(Path(place, "app", name), file.read_bytes())
        for wheel in site:
            for member, body in wheels.members(wheel.read_bytes(), wheel.name):
                _write(Path(place, "site", member), body)
        # Without the working directory on the import path: it may hold modules of any name.
        command = [sys.executable, "-B", "-P", "-m", "conclave.rpc.describe", place]
        command += [source.module, source.attribute, *PROVIDED, *_PROVIDED_BESIDE]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment}
        )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise BundleError(f"{source.module} ended the process that imported it (status {done.returncode})") from None
    if "error" in answer:
        advice = _advice(source, answer["missing"]) if answer.get("missing") else ""
        raise BundleError(f"{source.module} cannot be built: {answer['error'].strip()}{advice}")
    return answer["entry"], bytes.fromhex(answer["interface"])


def _write(target: Path, body: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(body)


def _advice(source: Source, missing: str) -> str:
    """What to do about a module that is not in the bundle."""
    for name in (missing, f"{missing}.py"):
        if (source.root / name).exists():
            return f'; {name} is here and not packed: put "{name}" into `include` of [tool.conclave]'
    where = "[project] in pyproject.toml" if source.path.is_dir() else "the `# /// script` block"
    return (
        f"; the bundle does not have it: declare the package it comes from in `dependencies` of {where} "
        f"and run `{source.lock_command}`"
    )
