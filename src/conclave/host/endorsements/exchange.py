"""Cached documents as a folder of plain files, for machines without a network.

Untrusted. A folder is imported whole or not at all: every file has the digest that
the manifest gives, is the document that its name says, and is valid now. It is not
signed; clients verify what is stapled.

Format: spec/endorsements.md section 9.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from conclave.errors import ExpiredError, FormatError
from conclave.host.endorsements.cache import MAX_DOCUMENTS, read_regular
from conclave.host.endorsements.documents import Document, form, parse_name, read_document
from conclave.host.endorsements.schedule import CLOCK_SKEW

FORMAT: Final = "conclave/1 endorsements"
MANIFEST: Final = "manifest.json"
MAX_MANIFEST: Final = 1048576
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    file: str
    sha256: str
    fetched: str
    issued: str
    valid_until: str
    chain_file: str = ""
    chain_sha256: str = ""


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    created: str
    valid_until: str
    documents: list[_File]


def write_folder(documents: Iterable[Document], directory: Path, *, now: datetime) -> datetime:
    """Write a folder that `read_folder` takes; returns until when all of it is valid.

    Args:
        documents: at least one.
        directory: made here; if it exists it must be empty.
        now: aware UTC time.

    Raises:
        FormatError: `export-place`: there is something already.
        OSError: nothing was left behind.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FormatError(f"{directory} exists and is not an empty folder", code="export-place")
    listed = list(documents)
    end = min(d.window.valid_until for d in listed)
    directory.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        entries = [_write(place, d) for d in listed]
        manifest = _Manifest(FORMAT, _text(now), _text(end), entries)
        text = json.dumps(msgspec.to_builtins(manifest), indent=1) + "\n"
        (place / MANIFEST).write_text(text)
        place.chmod(0o755)
        place.rename(directory)
    except OSError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return end


def _write(place: Path, document: Document) -> _File:
    name = document.wanted.name
    file, chain_file = _file_names(document)
    (place / file).write_bytes(document.body)
    if chain_file:
        (place / chain_file).write_bytes(document.chain)
    return _File(
        name,
        file,
        hashlib.sha256(document.body).hexdigest(),
        _text(document.fetched),
        _text(document.window.issued),
        _text(document.window.valid_until),
        chain_file,
        hashlib.sha256(document.chain).hexdigest() if chain_file else "",
    )


def _file_names(document: Document) -> tuple[str, str]:
    kept, name = form(document.wanted), document.wanted.name
    return name + kept.ending, f"{name}.chain.pem" if kept.has_chain else ""


def read_folder(directory: Path, *, now: datetime) -> tuple[Document, ...]:
    """Everything in a folder, each file checked.

    Args:
        directory: written by `write_folder`, somewhere. Untrusted.
        now: aware UTC time at which all must be valid.

    Raises:
        FormatError: `export-format`: no manifest, or not of this form; `export-file`: a file is
            missing, cut short or altered; `export-foreign`: one is not what its name says, or not listed.
        ExpiredError: `export-expired`: documents are no longer valid, or not yet.
    """
    # 1. The manifest.
    manifest = _manifest(directory)
    # 2. Each file has its digest, and nothing else is there.
    documents = [_read(directory, entry) for entry in manifest.documents]
    listed = {MANIFEST} | {f for d in documents for f in _file_names(d) if f}
    strange = sorted(p.name for p in directory.iterdir() if p.name not in listed)
    if strange:
        raise FormatError(f"{len(strange)} files are not in the manifest", code="export-foreign")
    # 3. All of it is valid now.
    for document in documents:
        window = document.window
        if now > window.valid_until:
            when = _text(window.valid_until)
            raise ExpiredError(f"{document.wanted.name} expired at {when}; export again", code="export-expired")
        if now < window.issued - CLOCK_SKEW:
            when = _text(window.issued)
            raise ExpiredError(
                f"{document.wanted.name} is valid only from {when}; check the clock", code="export-expired"
            )
    return tuple(documents)


def _manifest(directory: Path) -> _Manifest:
    try:
        data = _contents(directory / MANIFEST, MAX_MANIFEST)
    except FormatError:
        raise FormatError(f"{directory} is not a folder of exported endorsements", code="export-format") from None
    try:
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        raise FormatError("the manifest does not parse", code="export-format") from None
    if manifest.format != FORMAT:
        raise FormatError("the manifest is of another format than is known here", code="export-format")
    names = [d.name for d in manifest.documents]
    if not names or len(names) > MAX_DOCUMENTS or len(set(names)) != len(names):
        raise FormatError("the manifest lists nothing, too much, or something twice", code="export-format")
    return manifest


def _read(directory: Path, entry: _File) -> Document:
    try:
        wanted = parse_name(entry.name)
        fetched = datetime.strptime(entry.fetched, _TIME).replace(tzinfo=UTC)
    except (FormatError, ValueError):
        raise FormatError("the manifest lists a document of an unknown kind", code="export-format") from None
    kept = form(wanted)
    body = _digested(directory / (wanted.name + kept.ending), kept.max_size, entry.sha256)
    chain = b""
    if kept.has_chain:
        chain = _digested(directory / f"{wanted.name}.chain.pem", kept.max_size, entry.chain_sha256)
    try:
        document = read_document(wanted, body, chain, fetched=fetched)
    except FormatError as error:
        raise FormatError(f"{wanted.name} is not what its name says: {error}", code="export-foreign") from None
    said = (entry.file, entry.chain_file, entry.issued, entry.valid_until)
    if said != (*_file_names(document), _text(document.window.issued), _text(document.window.valid_until)):
        raise FormatError(f"{wanted.name}: the manifest says something else than the file", code="export-foreign")
    return document


def _digested(path: Path, limit: int, digest: str) -> bytes:
    data = _contents(path, limit)
    if hashlib.sha256(data).hexdigest() != digest:
        raise FormatError(f"{path.name} is cut short or altered", code="export-file")
    return data


def _contents(path: Path, limit: int) -> bytes:
    try:
        data = read_regular(path, limit + 1)
    except OSError as error:
        raise FormatError(f"{path.name} cannot be read: {error.strerror}", code="export-file") from None
    if len(data) > limit:
        raise FormatError(f"{path.name} has more than {limit} bytes", code="export-file")
    return data


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(_TIME)
