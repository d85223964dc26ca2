"""The container of a bundle: a deterministic, uncompressed ZIP.

Runs at build time and on the platform. Archives are untrusted: an archive is
accepted only if writing its parts again gives the same bytes, so it has exactly
one reading.

Spec: spec/bundle.md section 3 (BND-5 to BND-9).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from conclave import _crypto
from conclave.attestation.claims import bundle_id
from conclave.bundle import wheels
from conclave.bundle.manifest import MAX_MANIFEST, MAX_TOTAL, FileEntry, Manifest, parse_manifest
from conclave.errors import BundleError, SignatureError

# Local header, central directory entry and end record (APPNOTE.TXT 4.3.7, 4.3.12,
# 4.3.16): stored, version 2.0, made on Unix, 1980-01-01, mode 0644.
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_DATE: Final = 1 << 5 | 1
_FLAGS: Final = 0
_MODE: Final = 0o100644 << 16
MAX_ENTRIES: Final = 65_000
SIGNATURE_SIZE: Final = 96
_PART: Final = 1024 * 1024
# What zipfile raises for bytes that are no archive; OSError is seeking to nowhere.
_UNREADABLE: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    EOFError,
    OverflowError,
    RuntimeError,
    KeyError,
    OSError,
    struct.error,
)


def _local(name: bytes, crc: int, size: int) -> bytes:
    return _LOCAL.pack(b"PK\3\4", 20, _FLAGS, 0, 0, _DATE, crc, size, size, len(name), 0) + name


def _central(name: bytes, crc: int, size: int, offset: int) -> bytes:
    made_by = 3 << 8 | 20
    fields = (made_by, 20, _FLAGS, 0, 0, _DATE, crc, size, size, len(name), 0, 0, 0, 0, _MODE, offset)
    return _CENTRAL.pack(b"PK\1\2", *fields) + name


def _end(count: int, size: int, offset: int) -> bytes:
    return _END.pack(b"PK\5\6", 0, 0, count, count, size, offset, 0)


def write_archive(target: BinaryIO, parts: Iterable[tuple[str, bytes]]) -> None:
    """Write parts in the given order. Same parts, same bytes. At most 2 GiB.

    Raises:
        BundleError: too many parts or bytes.
    """
    at, central, count = 0, bytearray(), 0
    for name, data in parts:
        raw, crc = name.encode(), zlib.crc32(data)
        header = _local(raw, crc, len(data))
        central += _central(raw, crc, len(data), at)
        target.write(header)
        target.write(data)
        at += len(header) + len(data)
        count += 1
        if count > MAX_ENTRIES or at > MAX_TOTAL:
            raise BundleError(f"more than {MAX_ENTRIES} files or {MAX_TOTAL} bytes do not go into a bundle")
    target.write(central)
    target.write(_end(count, len(central), at))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose archive, digests and signature were checked.

    Attributes:
        code: SHA-256 of the manifest.
        signer: SHA-256 of the author's public key; zeros if unsigned.
    """

    path: Path
    manifest: Manifest
    manifest_bytes: bytes
    code: bytes
    signer: bytes
    signature: bytes

    @property
    def bundle_id(self) -> bytes:
        """What the TEE names."""
        return bundle_id(
            code=self.code,
            signer=self.signer,
            product_id=self.manifest.product_id,
            revocation_level=self.manifest.revocation_level,
        )

    def wheel_names(self) -> list[str]:
        """File names of the wheels inside."""
        return [w.path for w in self.manifest.wheels]

    def wheel(self, name: str) -> bytes:
        """The original bytes of a wheel."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(f"wheels/{name}")


def read_bundle(path: Path) -> Bundle:
    """Read and check a whole bundle: form, digests, signature.

    Raises:
        BundleError: saying what is wrong.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _check(path, file, archive)
        except _UNREADABLE:
            raise BundleError("not a bundle, or truncated; bundles are made by `conclave build`") from None


def _check(path: Path, file: BinaryIO, archive: zipfile.ZipFile) -> Bundle:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES or sum(e.file_size for e in entries) > MAX_TOTAL:
        raise BundleError("the archive is too large")
    if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
        raise BundleError("the archive has compressed entries; bundles are stored")
    names = [e.filename for e in entries]
    if not names or names[0] != "manifest" or archive.getinfo("manifest").file_size > MAX_MANIFEST:
        raise BundleError("the archive does not begin with a manifest")
    manifest_bytes = archive.read("manifest")
    manifest = parse_manifest(manifest_bytes)
    signed = len(names) > 1 and names[1] == "signature"
    signature = archive.read("signature") if signed and entries[1].file_size == SIGNATURE_SIZE else b""
    if signed and not signature:
        raise BundleError("the signature has another size than 96 bytes")
    contents = names[2 if signed else 1 :]
    listed = {f"wheels/{w.path}": w for w in manifest.wheels}
    listed |= {_stored_name(f.path): f for f in manifest.files if not _from_wheel(f.path)}
    if contents != sorted(listed):
        raise BundleError("the archive holds other files than its manifest lists")
    _check_bytes(file, entries, listed)
    signer = _check_signature(manifest_bytes, signature)
    return Bundle(path, manifest, manifest_bytes, _crypto.sha256(manifest_bytes), signer, signature)


def _check_bytes(file: BinaryIO, entries: list[zipfile.ZipInfo], listed: dict[str, FileEntry]) -> None:
    """One pass: the file is what `write_archive` writes, and holds what is listed."""
    file.seek(0)
    at, central = 0, bytearray()
    for entry in entries:
        name, size = entry.filename.encode(), entry.file_size
        header = _local(name, entry.CRC, size)
        if file.read(len(header)) != header:
            raise BundleError("the archive is not in canonical form; build it again")
        digest, left = hashlib.sha256(), size
        while left and (part := file.read(min(left, _PART))):
            digest.update(part)
            left -= len(part)
        expected = listed.get(entry.filename)
        if expected is not None and (size != expected.size or digest.digest() != expected.sha256):
            raise BundleError(f"{entry.filename[:200]!r} differs from what the manifest says")
        central += _central(name, entry.CRC, size, at)
        at += len(header) + size
    rest = bytes(central) + _end(len(entries), len(central), at)
    if file.read(len(rest) + 1) != rest:
        raise BundleError("the archive is not in canonical form; build it again")


def _check_signature(manifest: bytes, signature: bytes) -> bytes:
    if not signature:
        return bytes(32)
    try:
        _crypto.verify_signature(signature[:32], "bundle", _crypto.ZERO_DIGEST, manifest, signature[32:])
    except SignatureError:
        raise BundleError("the author's signature does not verify") from None
    return _crypto.sha256(signature[:32])


def _is_bytecode(path: str) -> bool:
    return "/__pycache__/" in path


def _from_wheel(path: str) -> bool:
    return path.startswith("site/") and not _is_bytecode(path)


def _stored_name(path: str) -> str:
    return f"bytecode/{path}" if _is_bytecode(path) else path


def unpack(bundle: Bundle, directory: Path) -> None:
    """Write a checked bundle's files below `directory`, which must not exist.

    `manifest`, `signature`, `app/`, `site/`: read-only files with fixed modes.
    Appears whole or not at all.

    Raises:
        BundleError: a wheel holds something else than the manifest lists.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".unpack-", dir=directory.parent))
    try:
        for path, data in _contents(bundle):
            _put(place / path, data)
        _put(place / "manifest", bundle.manifest_bytes)
        if bundle.signature:
            _put(place / "signature", bundle.signature)
        (place / "app").mkdir(exist_ok=True)
        (place / "site").mkdir(exist_ok=True)
        for folder, _, _ in os.walk(place):
            os.chmod(folder, 0o755)  # noqa: S103
        try:
            place.rename(directory)
        except OSError:
            if not directory.exists():
                raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _contents(bundle: Bundle) -> Iterator[tuple[str, bytes]]:
    """Every file that the manifest lists, its digest checked again."""
    listed = {f.path: f for f in bundle.manifest.files}
    with zipfile.ZipFile(bundle.path) as archive:
        for wheel in bundle.manifest.wheels:
            for name, data in wheels.members(_part(archive, f"wheels/{wheel.path}"), wheel.path):
                yield f"site/{name}", _same(data, listed.pop(f"site/{name}", None), name)
        for path, entry in listed.items():
            yield path, _same(_part(archive, _stored_name(path)), entry, path)


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except _UNREADABLE:
        raise BundleError(f"{name[:200]!r} differs from what the manifest says") from None


def _same(data: bytes, entry: FileEntry | None, name: str) -> bytes:
    if entry is None or hashlib.sha256(data).digest() != entry.sha256:
        raise BundleError(f"{name[:200]!r} differs from what the manifest says")
    return data


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)
