"""What `conclave verify` was pointed at: instance info, or one vendor's evidence, by its shape.

Every byte is untrusted. Recognising proves nothing: it only chooses the parser, which
then takes the bytes or refuses them.

Spec: spec/verify.md section 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conclave.attestation.claims import MAX_INFO
from conclave.cli._files import misuse, read_file
from conclave.cli._terminal import safe
from conclave.errors import FormatError

NO_URL: Final = "the address of a host begins with http:// or https://"
_HOST_AND_PORT: Final = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}/?\Z")
INSTANCE: Final = "instance"
# What a folder of evidence holds, one of them, and what that says about its shape.
FILES: Final = {"quote.bin": "quote", "report.bin": "snp", "document.cbor": "nitro"}
_INSTANCE_INFO: Final = b"\x85\xa7version\x01\xa6format"
_TDX: Final = bytes.fromhex("81000000")
_REPORT_VERSIONS: Final = range(1, 16)
# COSE_Sign1: an array of four, with or without its tag.
_DOCUMENTS: Final = (b"\x84", b"\xd2\x84")


@dataclass(frozen=True, slots=True)
class Artefact:
    """Bytes that somebody gave.

    Attributes:
        data: at most one byte more than instance info may have.
        named: `quote`, `snp` or `nitro` if a folder's file name says so; else empty.
        folder: where the evidence lies with its endorsements; None for a file alone.
    """

    data: bytes
    named: str = ""
    folder: Path | None = None

    @property
    def kind(self) -> str:
        """`instance`, `sgx`, `tdx`, `snp` or `nitro`.

        Raises:
            FormatError: `evidence-unknown` or `evidence-size`.
        """
        if len(self.data) > MAX_INFO:
            raise FormatError(f"it has more than {MAX_INFO} bytes", code="evidence-size")
        return _kind(self.named or _shape(self.data), self.data)


def is_url(source: str) -> bool:
    """Whether this is meant as the address of a host.

    Raises:
        FormatError: `usage`: an address of another kind, or without its beginning.
    """
    if source.startswith(("http://", "https://")):
        return True
    if "://" in source or (_HOST_AND_PORT.match(source) and not Path(source).exists()):
        raise misuse(NO_URL)
    return False


def read_artefact(path: Path) -> Artefact:
    """Read a file, or the evidence in a folder.

    Raises:
        FormatError: `usage`: a folder of another layout, a pipe, a device.
        OSError: it cannot be read.
    """
    if not path.is_dir():
        return Artefact(read_file(path, limit=MAX_INFO))
    present = [name for name in FILES if (path / name).exists()]
    if len(present) != 1:
        found = "several" if present else "none"
        raise misuse(f"{safe(str(path))}: a folder of evidence has one of {', '.join(FILES)}; this one has {found}")
    return Artefact(read_file(path / present[0], limit=MAX_INFO), FILES[present[0]], path.resolve())


def _shape(data: bytes) -> str:
    if data.startswith(_INSTANCE_INFO):
        return INSTANCE
    if data.startswith(_DOCUMENTS):
        return "nitro"
    version, rest = int.from_bytes(data[:2], "little"), data[2:4]
    # A report's version has four bytes; in a quote, two of them are the kind of key, never zero.
    if version in _REPORT_VERSIONS and len(rest) == 2:
        return "quote" if any(rest) else "snp"
    raise FormatError(
        "neither instance info nor a quote, report or attestation document; `conclave inspect` knows other files",
        code="evidence-unknown",
    )


def _kind(shape: str, data: bytes) -> str:
    if shape != "quote":
        return shape
    return "tdx" if data[4:8] == _TDX else "sgx"
