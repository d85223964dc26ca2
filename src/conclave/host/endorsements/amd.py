"""AMD's Key Distribution Service: what is asked, how answers are read.

Untrusted, and holds no keys; no IO. A VCEK certificate is asked for by chip and
TCB version. A VLEK certificate is given to its cloud provider alone and comes with
the machine; here only what stands above it is asked for.

Formats: AMD 57230 (VCEK certificate and KDS interface) chapters 3 and 4;
spec/endorsements.md section 5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from conclave.errors import FormatError
from conclave.host.endorsements import der, documents
from conclave.host.endorsements.documents import ChipCertificate, Document, FamilyChain, FamilyList, Wanted
from conclave.host.endorsements.platform import PRODUCTS, AmdPlatform, patch_levels


@dataclass(frozen=True, slots=True)
class AmdService:
    """Where endorsements of SEV-SNP platforms come from.

    Attributes:
        url: AMD's service, or a mirror of it: scheme and host, without path.
        ca_file: PEM of the authority that certifies the service's TLS certificate,
            in place of the system's authorities.
    """

    url: str
    ca_file: Path | None = None


def wanted(
    platform: AmdPlatform, product: str, *, revocation_lists: bool
) -> tuple[ChipCertificate, tuple[FamilyChain | FamilyList, ...]]:
    """The documents that make up a platform's endorsements, if it is of that family: its key's, those above."""
    leaf = ChipCertificate(platform.key, product, platform.hwid, platform.tcb.hex())
    chain = FamilyChain(platform.key, product)
    return leaf, (chain, FamilyList(platform.key, product)) if revocation_lists else (chain,)


def address(document: Wanted, service: AmdService) -> str:
    """Where to get a document.

    Raises:
        FormatError: `document-format`: AMD gives it to its owner alone.
    """
    base = service.url.rstrip("/")
    match document:
        case ChipCertificate("vcek", product, hwid, tcb):
            levels = patch_levels(bytes.fromhex(tcb), product)
            return f"{base}/vcek/v1/{product}/{hwid}?" + "&".join(f"{k}={v:02d}" for k, v in levels.items())
        case FamilyChain(key, product):
            return f"{base}/{key}/v1/{product}/cert_chain"
        case FamilyList(key, product):
            return f"{base}/{key}/v1/{product}/crl"
    raise TypeError("not a document that AMD's service gives to anybody")


def read_answer(document: Wanted, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Body and issuer chain (none) as they are kept.

    Raises:
        FormatError: `document-format`.
    """
    if isinstance(document, FamilyChain):
        body = der.to_pem(der.pem_certificates(body)).encode()
    return body, b""


def assemble(found: Mapping[str, Document]) -> bytes:
    """Endorsements from a platform's documents, in the format of spec/claims.md section 4.

    Raises:
        FormatError: `document-other`: they do not belong together.
    """
    by_kind = {type(d.wanted): d for d in found.values()}
    leaf, chain = by_kind[ChipCertificate], by_kind[FamilyChain]
    signer, root = documents.issuer_chain(chain.body)
    if der.certificate(leaf.body).issuer != signer.subject:
        raise FormatError("the certificate is not issued by the chain's signing key", code="document-other")
    revoked = by_kind.get(FamilyList)
    if revoked is not None and der.revocation_list(revoked.body).issuer != root.subject:
        raise FormatError("the revocation list is not that of the chain's root", code="document-other")
    parts = {
        "certificate": leaf.body.hex(),
        "chain": chain.body.decode(),
        "crl": "" if revoked is None else revoked.body.hex(),
    }
    return json.dumps(parts, separators=(",", ":")).encode()


class _Parts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    certificate: str
    chain: str
    crl: str


def parts(endorsements: bytes, *, fetched: datetime) -> tuple[Document, ...]:
    """The documents that endorsements were made of; the inverse of `assemble`.

    Args:
        endorsements: untrusted; chain and list may be empty.
        fetched: to be noted.

    Raises:
        FormatError: not of that format, or a part is of another family than the certificate.
    """
    try:
        if len(endorsements) > documents.MAX_ENDORSEMENTS:
            raise ValueError
        given = msgspec.json.decode(endorsements, type=_Parts)
        certificate, crl = bytes.fromhex(given.certificate), bytes.fromhex(given.crl)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise FormatError("endorsements are not of the format for SEV-SNP", code="endorsements-format") from None
    leaf = describe(certificate)
    found = [documents.read_document(leaf, certificate, b"", fetched=fetched)]
    if given.chain:
        chain = FamilyChain(leaf.key, leaf.product)
        found.append(documents.read_document(chain, *read_answer(chain, given.chain.encode(), {}), fetched=fetched))
    if crl:
        found.append(documents.read_document(FamilyList(leaf.key, leaf.product), crl, b"", fetched=fetched))
    return tuple(found)


def describe(certificate: bytes) -> ChipCertificate:
    """Which document a VCEK's or VLEK's certificate is.

    Raises:
        FormatError: it is neither, or of a family that is not known here.
    """
    facts = der.certificate(certificate)
    key = facts.subject_name.removeprefix("SEV-").lower()
    for product in PRODUCTS:
        if facts.issuer_name in (f"SEV-{product}", f"SEV-VLEK-{product}") and key in ("vcek", "vlek"):
            hwid, tcb = documents.chip_of(facts, product)
            return ChipCertificate(key, product, hwid, tcb.hex())
    raise FormatError("not a certificate of a VCEK or VLEK", code="document-other")
