"""Endorsements from a folder that `conclave endorsements export` wrote: the vendors' documents, by their names.

Untrusted, and not checked here: what does not fit, the verifier refuses. Unlike an
import this takes documents that have expired, for evidence of the same time.

Names: spec/endorsements.md section 9.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec

from conclave.attestation import _x509
from conclave.attestation.claims import MAX_ENDORSEMENTS
from conclave.attestation.dcap import parse_quote
from conclave.attestation.dcap.pck import pck_extension
from conclave.attestation.snp import parse_report
from conclave.cli._files import MISUSE, files_in, read_if_there
from conclave.errors import Error


def exported(place: Path, kind: str, evidence: bytes) -> bytes | None:
    """The endorsements for this evidence; None if the folder holds none for it.

    Raises:
        FormatError: `usage`: a file is of no use to anybody, such as a pipe.
        OSError: a file cannot be read.
    """
    folder = _Folder(place)
    try:
        return _amd(folder, evidence) if kind == "snp" else _intel(folder, evidence, kind)
    except (Error, msgspec.MsgspecError, UnicodeError) as error:
        if isinstance(error, Error) and error.code == MISUSE:
            raise
        # Evidence that does not parse has no endorsements; why, the verifier says.
        return None


def amd_endorsements(leaf: bytes, chain: str, crl: bytes) -> bytes:
    """As spec/snp.md section 2 has them."""
    return json.dumps({"certificate": leaf.hex(), "chain": chain, "crl": crl.hex()}).encode()


class _Folder:
    """Files by name; what is absent is empty."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __getitem__(self, name: str) -> bytes:
        return read_if_there(self.place / name, limit=MAX_ENDORSEMENTS) or b""


def _amd(folder: _Folder, evidence: bytes) -> bytes | None:
    report = parse_report(evidence)
    key, tcb, chip = report.signing_key.lower(), report.field("reported_tcb").hex(), report.field("chip_id").hex()
    for product in ("milan", "genoa", "turin"):
        # A Turin's hardware id is the first eight bytes of its chip id.
        of = "" if key == "vlek" else f"{chip[:16] if product == 'turin' else chip}-"
        leaf, chain = folder[f"amd-{key}-{product}-{of}{tcb}.der"], folder[f"amd-{key}-{product}-chain.pem"]
        if leaf and chain:
            return amd_endorsements(leaf, chain.decode("ascii"), folder[f"amd-{key}-{product}-crl.crl"])
    return None


class _TcbAnswer(msgspec.Struct, frozen=True):
    tcbInfo: msgspec.Raw
    signature: str


class _IdentityAnswer(msgspec.Struct, frozen=True):
    enclaveIdentity: msgspec.Raw
    signature: str


def _intel(folder: _Folder, evidence: bytes, kind: str) -> bytes | None:
    chain = [_x509.Certificate(der, what="pck") for der in parse_quote(evidence).chain]
    if len(chain) < 2:
        return None
    prefix = f"intel-{kind}-tcb-{pck_extension(chain[0]).fmspc.hex()}-"
    pck_crl = f"intel-pck-crl-{'platform' if 'platform' in chain[1].common_name.lower() else 'processor'}"
    for evaluation in _evaluations(folder.place, prefix):
        tcb, qe = prefix + evaluation, f"intel-{kind}-qe-{evaluation}"
        if not folder[f"{qe}.json"]:
            continue
        info = msgspec.json.decode(folder[f"{tcb}.json"], type=_TcbAnswer)
        identity = msgspec.json.decode(folder[f"{qe}.json"], type=_IdentityAnswer)
        members = {
            "pck_crl_issuer_chain": folder[f"{pck_crl}.chain.pem"].decode("ascii"),
            "root_ca_crl": folder["intel-root-crl.crl"].hex(),
            "pck_crl": folder[f"{pck_crl}.crl"].hex(),
            "tcb_info_issuer_chain": folder[f"{tcb}.chain.pem"].decode("ascii"),
            "tcb_info": bytes(info.tcbInfo).decode("ascii"),
            "tcb_info_signature": info.signature,
            "qe_identity_issuer_chain": folder[f"{qe}.chain.pem"].decode("ascii"),
            "qe_identity": bytes(identity.enclaveIdentity).decode("ascii"),
            "qe_identity_signature": identity.signature,
        }
        return json.dumps(members).encode()
    return None


def _evaluations(place: Path, prefix: str) -> list[str]:
    """Of which evaluations there are documents: the standard one first, then the newest."""
    names = [path.name for path in files_in(place, deep=False) if path.name.startswith(prefix)]
    found = [name.removeprefix(prefix).removesuffix(".json") for name in names if name.endswith(".json")]
    return sorted(found, key=lambda n: (n != "standard", -int(n) if re.fullmatch(r"[1-9]\d{0,8}", n) else 0))
