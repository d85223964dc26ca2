"""Wheels: fetched by digest, unpacked by us.

Runs at build time and on the platform. A wheel is untrusted until its digest is
the lock's; its contents are restricted all the same, because what it unpacks to
is what runs.

Spec: spec/bundle.md section 4 (BND-10 to BND-13).
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from conclave.bundle.manifest import MAX_FILES, MAX_TOTAL, check_path
from conclave.errors import BundleError

_FILE_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,200}\.whl\Z")
# What zipfile and its decompressors raise for bytes that are no archive.
_UNREADABLE: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    ValueError,
    RuntimeError,
    OSError,
    OverflowError,
    KeyError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
_LINK: Final = 0o120000


def members(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """Files of a wheel, refused if it holds anything odd.

    Raises:
        BundleError: scripts, `.data`, `.pth`, links, escaping or clashing paths,
            or more bytes than it declares.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            yield from _members(wheel, name)
    except _UNREADABLE as error:
        raise BundleError(f"{name}: not a readable wheel ({type(error).__name__})") from None


def _members(wheel: zipfile.ZipFile, name: str) -> Iterator[tuple[str, bytes]]:
    entries = wheel.infolist()
    if len(entries) > MAX_FILES or sum(e.file_size for e in entries) > MAX_TOTAL:
        raise BundleError(f"{name}: too many files or bytes")
    seen: set[str] = set()
    for entry in entries:
        path = entry.filename
        if path.endswith("/"):
            continue
        check_path(path)
        if path.lower() in seen:
            raise BundleError(f"{name}: two files called {path[:200]!r}, but for case")
        seen.add(path.lower())
        if (entry.external_attr >> 16) & 0o170000 == _LINK:
            raise BundleError(f"{name}: {path[:200]!r} is a link")
        if path.endswith(".pth") or ".data/" in path or "__pycache__" in path.split("/"):
            raise BundleError(f"{name}: {path[:200]!r} is of a kind that bundles do not take (.pth, .data, byte code)")
        with wheel.open(entry) as stream:
            data = stream.read(entry.file_size + 1)
        if len(data) != entry.file_size:
            raise BundleError(f"{name}: {path[:200]!r} has another size than declared")
        yield path, data


def fetch(requirement: str, digests: frozenset[str], cache: Path, on_progress: Callable[[str], None]) -> Path:
    """The wheel for `name==version`, from the cache or downloaded, checked by digest.

    Raises:
        BundleError: no wheel for this Python and platform has one of the digests.
    """
    cache.mkdir(parents=True, exist_ok=True)
    index = cache / "index"
    index.mkdir(exist_ok=True)
    for digest in sorted(digests):
        note = index / digest
        if note.exists():
            path = cache / note.read_text()
            if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                return path
    on_progress(f"fetching {requirement} (once)")
    with tempfile.TemporaryDirectory(dir=cache) as place:
        lines = " ".join([requirement, *(f"--hash=sha256:{d}" for d in sorted(digests))])
        (Path(place) / "requirements").write_text(lines + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--only-binary", ":all:", "-d", place, "-r", f"{place}/requirements"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(place).glob("*.whl"))
        if done.returncode != 0 or len(found) != 1 or not _FILE_NAME.match(found[0].name):
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise BundleError(f"no wheel for {requirement} with a digest of the lock could be fetched: {last[:300]}")
        digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
        if digest not in digests:
            raise BundleError(f"the wheel for {requirement} does not have a digest of the lock")
        target = cache / found[0].name
        os.replace(found[0], target)
        (index / digest).write_text(target.name)
    return target
