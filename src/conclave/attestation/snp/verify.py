"""Verification of an SEV-SNP report: who signed it, and whether AMD vouches for that key.

Runs at the relying party. Report and endorsements come from the host and are
hostile; the anchors are what the caller trusts.

Spec: spec/snp.md sections 6 and 7.
"""

from __future__ import annotations

from datetime import datetime

from conclave.attestation import _x509
from conclave.attestation.evidence import EvidenceClaims, Step
from conclave.attestation.snp.endorsements import parse_endorsements
from conclave.attestation.snp.facts import details, measurements, remarks
from conclave.attestation.snp.key import PRODUCTS, EndorsementKey, read_key
from conclave.attestation.snp.report import SIGNED, Report
from conclave.errors import BindingError, ChainError, SignatureError


def verify_report(report: Report, endorsements: bytes, *, anchors: frozenset[str], now: datetime) -> EvidenceClaims:
    """Check that a genuine AMD processor signed this report, and that AMD vouches for it.

    Authenticity only: debug, privilege level and TCB version are told, and are the
    constraint's question.

    Args:
        report: from `parse_report`. Untrusted.
        endorsements: JSON text, at most 512 KiB. Untrusted.
        anchors: SHA-256 of the ARK certificates to trust, in hex.
        now: aware UTC time at which certificates and list must be valid.

    Raises:
        FormatError: endorsements that do not parse.
        VerificationError: by its subclasses, with a code of spec/snp.md section 8.

    Spec: spec/snp.md section 6 (SNP-5 to SNP-16).
    """
    # 1. The report names the kind of key that signed it.
    if report.signing_key == "none":
        raise SignatureError("the report is not signed", code="report-unsigned")
    what = report.signing_key.lower()
    # 2. Endorsements are well-formed.
    given = parse_endorsements(endorsements)
    # 3. The key's certificate leads to a pinned ARK over one issuer; all are valid now.
    path = _x509.path(given.issuers, given.certificate, anchors=anchors, now=now, what=what)
    if len(path) != 3:
        raise ChainError("the chain is not endorsement key, issuer and root", code=f"{what}-chain")
    # 4. The ARK revoked none of them, if its list is given.
    if given.crl is not None:
        given.crl.check(path[2], now=now, what="ark-crl")
        # Endorsement keys all have serial number 0, of another issuer: not the list's business.
        given.crl.refuse(path[1:], what=what)
    # 5. Certificate, issuers and CPUID are of one product, and of the kind that the report names.
    key = read_key(path[0], what=what)
    _check_kind(report, key, path, what)
    # 6. The key signed the report.
    path[0].verify(report.signature, report.raw[:SIGNED], code="report-signature")
    # 7. It is the key of the TCB version that the report gives.
    if key.tcb != report.field("reported_tcb"):
        raise BindingError(
            "the endorsement key's certificate is for another TCB version than the report's; "
            "the host must fetch the one for the reported TCB",
            code=f"{what}-tcb",
        )
    # 8. It is the key of the chip that the report names, if it names one.
    chip_id = _chip_id(report, key)
    # 9. What was signed, as claims.
    certain = [(c.not_before, c.not_after) for c in path]
    if given.crl is not None:
        certain.append((given.crl.this_update, given.crl.next_update))
    return EvidenceClaims(
        tee="snp",
        anchor=path[2].fingerprint,
        tcb_status="",
        statuses={},
        advisories=(),
        debug=report.debug,
        remarks=remarks(report, key, given.crl),
        measurements=measurements(report),
        report_data=report.field("report_data"),
        details=details(report, key, given.crl),
        platform=chip_id.hex() if any(chip_id) else "",
        tcb_date=None,
        oldest_issue_date=given.crl.this_update if given.crl is not None else path[0].not_before,
        valid_from=max(begin for begin, _ in certain),
        valid_until=min(end for _, end in certain),
        steps=_steps(report, key, path, given.crl),
    )


def _check_kind(report: Report, key: EndorsementKey, path: tuple[_x509.Certificate, ...], what: str) -> None:
    if key.kind != report.signing_key:
        raise BindingError("the report names another kind of signing key than came", code="report-signing-key")
    issuer = f"SEV-{key.product}" if key.kind == "VCEK" else f"SEV-VLEK-{key.product}"
    if path[1].common_name != issuer or path[2].common_name != f"ARK-{key.product}":
        raise ChainError("the issuers are not those of this product and kind of key", code=f"{what}-chain")
    if report.cpuid is not None and not PRODUCTS[key.product].made(report.cpuid):
        raise BindingError("the endorsement key is of another product than the processor", code=f"{what}-product")


def _chip_id(report: Report, key: EndorsementKey) -> bytes:
    """A VCEK's certificate names the chip; with a VLEK only the firmware's word is left."""
    said = report.field("chip_id")
    if key.chip_id is None:
        return said
    # Zeros: the operator masked the chip id. The signature alone then ties report and chip.
    if any(said) and said != key.chip_id:
        raise BindingError("the endorsement key is of another chip than the report", code="vcek-chip")
    return key.chip_id


def _steps(
    report: Report, key: EndorsementKey, path: tuple[_x509.Certificate, ...], crl: _x509.RevocationList | None
) -> tuple[Step, ...]:
    owner = key.provider or "one chip"
    tcb = " ".join(f"{name}={value}" for name, value in key.parts.items())
    return (
        Step("signing key", f"version {report.version} report, signed by a {key.kind}"),
        Step("endorsements", "certificate, two issuers, " + ("revocation list" if crl else "no revocation list")),
        Step("path", " ← ".join(c.common_name for c in path)),
        Step("revocation", f"list number {crl.number} names none of them" if crl else "not known: no list was given"),
        Step("product", f"{key.product}, key of {owner}"),
        Step("signature", "ECDSA P-384 over the first 672 bytes"),
        Step("TCB version", tcb),
        Step("chip", "as certified" if any(report.field("chip_id")) and key.chip_id else "not named by the report"),
        Step("claims", "debugging allowed" if report.debug else "debugging not allowed"),
    )
