"""Endorsements and root certificates from folders, for evidence that came as a file.

Everything found here is untrusted, root certificates from `--roots` excepted, which
the user chose. Nothing is checked beyond what tells one file from another: the
verifiers refuse what does not fit.

Spec: spec/verify.md section 3.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conclave.attestation import _x509
from conclave.attestation.claims import MAX_ENDORSEMENTS
from conclave.cli._exported import exported
from conclave.cli._files import files_in, misuse, read_file, read_if_there
from conclave.cli._terminal import safe
from conclave.errors import ChainError

MAX_CERTIFICATES: Final = 262144
_WHOLE: Final = ("endorsements.json", "collateral.json")
_MARK: Final = b"-----BEGIN CERTIFICATE-----"
_PEM: Final = re.compile(_MARK + rb"([A-Za-z0-9+/=\s]++)-----END CERTIFICATE-----")
_ENDINGS: Final = (".pem", ".crt", ".cer")
_PCK_MEMBER: Final = b'"pck_certificate_chain"'


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look.

    Attributes:
        evidence: the folder of the evidence, or None for a file alone.
        endorsements: the folder that the user named: it takes the other's place.
        roots: the folder of root certificates that the user named.
    """

    evidence: Path | None = None
    endorsements: Path | None = None
    roots: Path | None = None

    @property
    def first(self) -> Path | None:
        """Where endorsements are taken from."""
        return self.endorsements or self.evidence


def find_endorsements(kind: str, evidence: bytes, places: Places) -> bytes | None:
    """The endorsements for this evidence, in the form that its verifier takes; None if there are none.

    Raises:
        FormatError: `usage`: a file is of no use to anybody, such as a pipe.
        OSError: a file cannot be read.
    """
    place = places.first
    if place is None or kind == "nitro":
        return None
    whole = _first(place, _WHOLE, limit=MAX_ENDORSEMENTS)
    if kind == "snp":
        return whole if whole is not None else _of_amd(place, places) or exported(place, kind, evidence)
    if whole is None:
        return exported(place, kind, evidence)
    return _with_pck_chain(whole, places)


def find_roots(directory: Path) -> frozenset[str]:
    """SHA-256 of the root certificates in a folder and those below it, in hex.

    Raises:
        FormatError: `usage`: there are none, or something that ought to be a certificate is not.
        OSError: something cannot be read.
    """
    found = [_certificate(der, name) for name, der in _certificates(directory, deep=True)]
    roots = frozenset(c.fingerprint for c in found if c is not None and c.signed_by(c))
    if not roots:
        raise misuse(f"{safe(str(directory))} holds no root certificate (PEM or DER)")
    return roots


def _with_pck_chain(collateral: bytes, places: Places) -> bytes:
    """Put `pck_cert_chain.pem` into the text, whose other bytes stay: the verifier is to see them as they are."""
    found = [read_if_there(p / "pck_cert_chain.pem", limit=MAX_CERTIFICATES) for p in _given(places)]
    chain = next((c for c in found if c), None)
    text = collateral.lstrip()
    if chain is None or not text.startswith(b"{") or _PCK_MEMBER in text:
        return collateral
    member = _PCK_MEMBER + b":" + json.dumps(chain.decode("latin-1")).encode()
    return b"{" + member + b"," + text[1:]


def _given(places: Places) -> list[Path]:
    return [p for p in (places.endorsements, places.evidence) if p]


def _of_amd(place: Path, places: Places) -> bytes | None:
    leaf = _first(place, ("vcek.der", "vlek.der"), limit=MAX_CERTIFICATES)
    issuers = None if leaf is None else _issuers(leaf, places)
    if leaf is None or issuers is None:
        return None
    crl = read_if_there(place / "crl.der", limit=MAX_ENDORSEMENTS) or b""
    chain = "".join(ssl.DER_cert_to_PEM_cert(der) for der in issuers)
    return json.dumps({"certificate": leaf.hex(), "chain": chain, "crl": crl.hex()}).encode()


def _issuers(leaf: bytes, places: Places) -> tuple[bytes, ...] | None:
    """The signing key's certificate and the root's, by name; of several, the one that made the signature."""
    key = _certificate(leaf)
    if key is None:
        # So that the verifier may say that it does not parse.
        return ()
    found = [c for _, der in _issuer_candidates(places) if (c := _certificate(der)) is not None]
    signer = _issuer(key, [c for c in found if c.subject != c.issuer])
    root = signer and _issuer(signer, [c for c in found if c.subject == c.issuer])
    return (signer.der, root.der) if signer and root else None


def _issuer(of: _x509.Certificate, candidates: list[_x509.Certificate]) -> _x509.Certificate | None:
    named = [c for c in candidates if c.subject == of.issuer]
    return next((c for c in named if of.signed_by(c)), named[0] if named else None)


def _issuer_candidates(places: Places) -> Iterator[tuple[str, bytes]]:
    for place in _given(places):
        yield from _certificates(place, deep=False)
    if places.roots:
        yield from _certificates(places.roots, deep=True)
    beside = places.evidence.parent.parent / "roots" / "amd" if places.evidence else None
    if beside and beside.is_dir():
        yield from _certificates(beside, deep=False)


def _certificates(directory: Path, *, deep: bool) -> Iterator[tuple[str, bytes]]:
    """DER of whatever may be a certificate, and the path of the file if it ought to be one."""
    for path in files_in(directory, deep=deep):
        data = read_file(path, limit=MAX_CERTIFICATES)
        if len(data) > MAX_CERTIFICATES:
            continue
        if _MARK in data:
            found = [_decoded(match[1]) for match in _PEM.finditer(data)]
            # What begins and does not end is shown as what it is: no certificate.
            found += [b""] * (data.count(_MARK) - len(found))
            # Other files may quote certificates in a notation of their own, as JSON does.
            name = str(path) if path.suffix.lower() in _ENDINGS else ""
            yield from ((name, der) for der in found)
        elif data[:1] == b"\x30":
            yield "", data


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError:
        return b""


def _certificate(der: bytes, name: str = "") -> _x509.Certificate | None:
    """Parse it; None if it is none. With the name of a file that calls it one, that is an error."""
    try:
        return _x509.Certificate(der, what="root")
    except ChainError:
        if name:
            raise misuse(f"{safe(name)} does not hold a certificate, although it says so") from None
        return None


def _first(place: Path, names: Iterable[str], *, limit: int) -> bytes | None:
    return next((d for d in (read_if_there(place / name, limit=limit) for name in names) if d is not None), None)
