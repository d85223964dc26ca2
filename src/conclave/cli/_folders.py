"""Endorsements and root certificates from folders, for evidence that came as a file.

Everything found here is untrusted, root certificates from `--roots` excepted, which
the user chose. Nothing is checked beyond what tells one file from another: the
verifiers refuse what does not fit.

Spec: spec/verify.md section 3.
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from conclave.attestation import _x509
from conclave.attestation.claims import MAX_ENDORSEMENTS
from conclave.attestation.dcap import parse_quote
from conclave.attestation.dcap.pck import pck_extension
from conclave.attestation.snp import parse_report
from conclave.cli._files import misuse, read_file, read_if_there
from conclave.cli._terminal import safe
from conclave.errors import ChainError, Error

MAX_FILES: Final = 1000
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


def find_endorsements(kind: str, evidence: bytes, places: Places) -> bytes:
    """The endorsements for this evidence, in the form that its verifier takes; empty if there are none.

    Raises:
        FormatError: `usage`: a file is of no use to anybody, such as a pipe.
        OSError: a file cannot be read.
    """
    place = places.first
    if place is None or kind == "nitro":
        return b""
    whole = next((d for d in (read_if_there(place / name, limit=MAX_ENDORSEMENTS) for name in _WHOLE) if d), None)
    if kind == "snp":
        return whole or _of_amd(place, places) or _exported(_exported_amd, place, evidence)
    return _with_pck_chain(whole, places) if whole else _exported(_exported_intel, place, evidence, kind)


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


# AMD: a certificate, and its issuers from wherever they are --------------------------------


def _of_amd(place: Path, places: Places) -> bytes:
    names = ("vcek.der", "vlek.der")
    leaf = next((d for d in (read_if_there(place / name, limit=MAX_CERTIFICATES) for name in names) if d), None)
    if leaf is None:
        return b""
    issuers = _issuers(leaf, places)
    if issuers is None:
        return b""
    crl = read_if_there(place / "crl.der", limit=MAX_ENDORSEMENTS) or b""
    return _amd(leaf, "".join(ssl.DER_cert_to_PEM_cert(der) for der in issuers), crl)


def _amd(leaf: bytes, chain: str, crl: bytes) -> bytes:
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
    for path in _files(directory, deep=deep):
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


def _files(directory: Path, *, deep: bool) -> Iterator[Path]:
    count = 0
    for place, below, names in os.walk(directory, onerror=_raise):
        below[:] = sorted(below) if deep else []
        for name in sorted(names):
            path = Path(place, name)
            # A link that leads nowhere is nothing; pipes and devices are no certificates.
            if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
                continue
            count += 1
            if count > MAX_FILES:
                raise misuse(f"{safe(str(directory))} holds more than {MAX_FILES} files")
            yield path


def _raise(error: OSError) -> None:
    raise error


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


# Folders that `conclave endorsements export` wrote: spec/endorsements.md section 9 --------


def _exported(read: Callable[..., bytes | None], place: Path, *evidence: bytes | str) -> bytes:
    """What does not parse has no endorsements; why, the verifier says."""
    try:
        return read(place, *evidence) or b""
    except (Error, msgspec.MsgspecError, UnicodeError) as error:
        if isinstance(error, Error) and error.code == "usage":
            raise
        return b""


def _exported_amd(place: Path, evidence: bytes) -> bytes | None:
    report = parse_report(evidence)
    key, tcb, chip = report.signing_key.lower(), report.field("reported_tcb").hex(), report.field("chip_id").hex()
    for product in ("milan", "genoa", "turin"):
        # A Turin's hardware id is the first eight bytes of its chip id.
        names = (f"{product}-{tcb}",) if key == "vlek" else (f"{product}-{chip}-{tcb}", f"{product}-{chip[:16]}-{tcb}")
        leaf = _first(place, (f"amd-{key}-{name}.der" for name in names))
        chain = _first(place, [f"amd-{key}-{product}-chain.pem"])
        if leaf and chain:
            return _amd(leaf, chain.decode("ascii"), _first(place, [f"amd-{key}-{product}-crl.crl"]))
    return None


class _TcbAnswer(msgspec.Struct, frozen=True):
    tcbInfo: msgspec.Raw
    signature: str


class _IdentityAnswer(msgspec.Struct, frozen=True):
    enclaveIdentity: msgspec.Raw
    signature: str


def _exported_intel(place: Path, evidence: bytes, kind: str) -> bytes | None:
    chain = [_x509.Certificate(der, what="pck") for der in parse_quote(evidence).chain]
    if len(chain) < 2:
        return None
    fmspc = pck_extension(chain[0]).fmspc.hex()
    ca = "platform" if "platform" in chain[1].common_name.lower() else "processor"
    pck_crl = f"intel-pck-crl-{ca}"
    for number in _evaluations(place, f"intel-{kind}-tcb-{fmspc}-"):
        tcb, qe = f"intel-{kind}-tcb-{fmspc}-{number}", f"intel-{kind}-qe-{number}"
        texts = [_first(place, [f"{name}.json"]) for name in (tcb, qe)]
        if not all(texts):
            continue
        info = msgspec.json.decode(texts[0], type=_TcbAnswer)
        identity = msgspec.json.decode(texts[1], type=_IdentityAnswer)
        chains = (_first(place, [f"{name}.chain.pem"]).decode("ascii") for name in (pck_crl, tcb, qe))
        names = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
        return json.dumps(
            {
                **dict(zip(names, chains, strict=True)),
                "root_ca_crl": _first(place, ["intel-root-crl.crl"]).hex(),
                "pck_crl": _first(place, [f"{pck_crl}.crl"]).hex(),
                "tcb_info": bytes(info.tcbInfo).decode("ascii"),
                "tcb_info_signature": info.signature,
                "qe_identity": bytes(identity.enclaveIdentity).decode("ascii"),
                "qe_identity_signature": identity.signature,
            }
        ).encode()
    return None


def _evaluations(place: Path, prefix: str) -> list[str]:
    """Of which evaluations there are documents: the standard one first, then the newest."""
    names = [p.name.removeprefix(prefix).removesuffix(".json") for p in _files(place, deep=False)
             if p.name.startswith(prefix) and p.name.endswith(".json")]  # fmt: skip
    return sorted(names, key=lambda n: (n != "standard", -int(n) if re.fullmatch(r"[1-9]\d{0,8}", n) else 0))


def _first(place: Path, names: Iterable[str]) -> bytes:
    return next((d for d in (read_if_there(place / n, limit=MAX_ENDORSEMENTS) for n in names) if d), b"")
