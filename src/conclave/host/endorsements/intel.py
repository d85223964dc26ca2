"""Intel's Provisioning Certification Service, version 4: what is asked, how answers are read.

Untrusted, and holds no keys; no IO. The same requests go to a caching service
(PCCS), which differs in two answers: it gives the root's revocation list in hex, and
some releases ignore `encoding=der`.

Formats: Intel PCS API v4; PCCS design guide; spec/endorsements.md section 4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from conclave.errors import FormatError
from conclave.host.endorsements import der, documents
from conclave.host.endorsements.documents import Document, PckList, QeIdentity, RootList, TcbInfo, Wanted
from conclave.host.endorsements.platform import IntelPlatform

CHAIN_HEADERS: Final[dict[type, tuple[str, ...]]] = {
    PckList: ("SGX-PCK-CRL-Issuer-Chain",),
    # The second is the name of version 3, which a PCCS may still send.
    TcbInfo: ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
    QeIdentity: ("SGX-Enclave-Identity-Issuer-Chain",),
}


@dataclass(frozen=True, slots=True)
class IntelService:
    """Where endorsements of SGX and TDX platforms come from.

    Attributes:
        url: Intel's service, or a caching service (PCCS): scheme and host, without path.
        root_crl_url: where the root's revocation list is. None: at the service itself,
            as with a PCCS; Intel publishes it at the address that its root certificate names.
        subscription_key: sent as `Ocp-Apim-Subscription-Key` where given.
        ca_file: PEM of the authority that certifies the service's TLS certificate,
            in place of the system's authorities.
    """

    url: str
    root_crl_url: str | None = None
    subscription_key: str | None = None
    ca_file: Path | None = None


def wanted(platform: IntelPlatform, evaluation: str) -> tuple[RootList, PckList, TcbInfo, QeIdentity]:
    """The documents that make up a platform's endorsements."""
    return (
        RootList(),
        PckList(platform.ca),
        TcbInfo(platform.tee, platform.fmspc, evaluation),
        QeIdentity(platform.tee, evaluation),
    )


def address(document: Wanted, service: IntelService) -> str:
    """Where to get a document."""
    base = service.url.rstrip("/")
    match document:
        case RootList():
            return service.root_crl_url or f"{base}/sgx/certification/v4/rootcacrl"
        case PckList(ca):
            return f"{base}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der"
        case TcbInfo(tee, fmspc, evaluation):
            return f"{base}/{tee}/certification/v4/tcb?fmspc={fmspc.upper()}{_evaluation('&', evaluation)}"
        case QeIdentity(tee, evaluation):
            return f"{base}/{tee}/certification/v4/qe/identity{_evaluation('?', evaluation)}"
    raise TypeError("not a document of Intel's")


def _evaluation(separator: str, evaluation: str) -> str:
    if evaluation == "standard":
        return ""
    return f"{separator}{'update=early' if evaluation == 'early' else f'tcbEvaluationDataNumber={evaluation}'}"


def headers(document: Wanted, service: IntelService) -> dict[str, str]:
    """What is sent along; the key goes to the service alone."""
    if service.subscription_key is None or (isinstance(document, RootList) and service.root_crl_url is not None):
        return {}
    return {"Ocp-Apim-Subscription-Key": service.subscription_key}


def read_answer(document: Wanted, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Body and issuer chain as they are kept.

    Raises:
        FormatError: `document-format`.
    """
    if isinstance(document, RootList | PckList):
        body = _list(body)
    names = CHAIN_HEADERS.get(type(document), ())
    text = next((headers[name] for name in names if name in headers), "")
    if names and not text:
        raise FormatError(f"the answer has no header {names[0]}", code="document-format")
    # Written again, so that what is stapled has one form whatever the service escaped.
    return body, der.to_pem(der.pem_certificates(unquote(text).encode("utf-8"))).encode() if text else b""


def _list(body: bytes) -> bytes:
    """DER of a revocation list that came as DER, as hex of it, or as PEM."""
    text = body.strip()
    if body[:1] == b"\x30" and not re.fullmatch(rb"[0-9a-fA-F]+", text):
        return body
    if text.startswith(b"-----BEGIN"):
        return der.pem_revocation_list(text)
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise FormatError("not a revocation list", code="document-format") from None


def assemble(platform: IntelPlatform, found: Mapping[str, Document], evaluation: str) -> bytes:
    """Endorsements from a platform's documents, in the format of spec/claims.md section 4.

    Raises:
        FormatError: `document-other`: they do not belong together.
    """
    root, pck, tcb, qe = (found[w.name] for w in wanted(platform, evaluation))
    certificates = documents.issuer_chain(pck.chain)
    if certificates[0].subject != platform.issuer:
        raise FormatError("the PCK revocation list is not that of the platform's authority", code="document-other")
    if der.revocation_list(root.body).issuer != certificates[1].subject:
        raise FormatError("the root's revocation list is another root's", code="document-other")
    if documents.pce_id(tcb.body) != platform.pce_id:
        raise FormatError("the TCB info is for another PCE", code="document-other")
    tcb_text, tcb_signature = documents.tcb_info(tcb.body)
    qe_text, qe_signature = documents.qe_identity(qe.body)
    parts = {
        "pck_crl_issuer_chain": pck.chain.decode(),
        "root_ca_crl": root.body.hex(),
        "pck_crl": pck.body.hex(),
        "tcb_info_issuer_chain": tcb.chain.decode(),
        "tcb_info": tcb_text,
        "tcb_info_signature": tcb_signature,
        "qe_identity_issuer_chain": qe.chain.decode(),
        "qe_identity": qe_text,
        "qe_identity_signature": qe_signature,
    }
    return json.dumps(parts, separators=(",", ":")).encode()
