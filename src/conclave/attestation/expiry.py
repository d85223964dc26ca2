"""Until when each part of an enclave's evidence and endorsements is valid.

Runs at the operator or the relying party. Nothing here is verified: it tells in which
order things expire, for evidence that the verifier accepts.

Spec: spec/tcb.md section 3 (TCB-12).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from conclave.attestation import dcap, nitro, snp
from conclave.attestation._x509 import Certificate
from conclave.attestation.rehearse import Enclave
from conclave.attestation.snp.endorsements import parse_endorsements as parse_snp


@dataclass(frozen=True, slots=True)
class Expiry:
    """One part and its end.

    Attributes:
        what: for people; what a certificate calls itself is untrusted text.
        until: aware UTC time.
        renewable: a newer one comes with new evidence or endorsements, as hosts fetch them
            on a schedule. False: only the vendor can do something about it.
    """

    what: str
    until: datetime
    renewable: bool


def expiries(enclave: Enclave) -> tuple[Expiry, ...]:
    """Everything that ends, soonest first. Raises FormatError, ChainError."""
    if enclave.kind in ("sgx", "tdx"):
        found = _intel(enclave)
    elif enclave.kind == "snp":
        found = _amd(enclave)
    else:
        found = _aws(enclave)
    return tuple(sorted(set(found), key=lambda e: (e.until, e.what)))


def _intel(enclave: Enclave) -> Iterator[Expiry]:
    given = dcap.parse_endorsements(enclave.endorsements)
    yield Expiry("TCB info", given.tcb_info.next_update, True)
    yield Expiry("QE identity", given.qe_identity.next_update, True)
    if given.root_crl:
        yield Expiry("revocation list of the root", given.root_crl.next_update, True)
    if given.pck_crl:
        yield Expiry("revocation list of the PCK CA", given.pck_crl.next_update, True)
    quoted = dcap.parse_quote(enclave.evidence).chain or given.pck_chain
    signers = (*given.tcb_info_document.chain, *given.qe_identity_document.chain)
    yield from _certificates((*quoted, *signers))


def _amd(enclave: Enclave) -> Iterator[Expiry]:
    given = parse_snp(enclave.endorsements)
    if given.crl:
        yield Expiry("revocation list of the ARK", given.crl.next_update, True)
    kind = snp.parse_report(enclave.evidence).signing_key
    yield Expiry(f"certificate of the {kind}", given.certificate.not_after, True)
    yield from _certificates(issuer.der for issuer in given.issuers)


def _aws(enclave: Enclave) -> Iterator[Expiry]:
    document = nitro.parse_document(enclave.evidence)
    root, *issuers = document.cabundle
    # Each document comes with new certificates, some of which are valid for hours.
    yield from _certificates((*issuers, document.certificate), renewable=True)
    yield from _certificates((root,))


def _certificates(chain: Iterable[bytes], *, renewable: bool = False) -> Iterator[Expiry]:
    for der in chain:
        certificate = Certificate(der, what="expiry")
        yield Expiry(f"certificate {certificate.common_name}".rstrip(), certificate.not_after, renewable)
