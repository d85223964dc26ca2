"""What a verified quote says: claims, from parts that were all checked.

Runs at the relying party. Only `verify_quote` may call this, as its last step.

Spec: spec/dcap.md section 6 (DCAP-22 to DCAP-24).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from conclave.attestation._x509 import Certificate
from conclave.attestation.dcap._layout import number
from conclave.attestation.dcap.collateral import Endorsements
from conclave.attestation.dcap.pck import PckExtension
from conclave.attestation.dcap.quote import Quote
from conclave.attestation.dcap.tcb import RELAUNCH, Evaluation
from conclave.attestation.evidence import EvidenceClaims, Step

_SGX_MEASUREMENTS: Final = ("mrenclave", "mrsigner", "isv_prod_id", "isv_svn", "attributes", "cpu_svn")
_SGX_DETAILS: Final = ("config_id", "config_svn", "isv_ext_prod_id", "isv_family_id", "misc_select")
_NUMBERS: Final = {"isv_prod_id", "isv_svn", "config_svn"}
# Bits whose meaning is published. SGX: INIT, DEBUG, MODE64BIT, PROVISIONKEY, EINITTOKENKEY, CET, KSS, AEXNOTIFY.
_SGX_KNOWN: Final = 0x4F7
# TDX: the byte of domains under debug, ICSSD, LASS, SEPT_VE_DISABLE, MIGRATABLE, PKS, KL, TPA, PERFMON.
_TDX_KNOWN: Final = 0xFF | 1 << 16 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 31 | 1 << 62 | 1 << 63
_SEPT_VE_DISABLE: Final = 1 << 28
_MIGRATABLE: Final = 1 << 29


def collect(
    quote: Quote,
    *,
    pck: PckExtension,
    path: Sequence[Certificate],
    signers: Sequence[Certificate],
    endorsements: Endorsements,
    evaluation: Evaluation,
) -> EvidenceClaims:
    """The claims of a quote that verified."""
    info, identity = endorsements.tcb_info, endorsements.qe_identity
    lists = [crl for crl in (endorsements.root_crl, endorsements.pck_crl) if crl]
    periods = [(c.not_before, c.not_after) for c in (*path, *signers)]
    periods += [(info.issue_date, info.next_update), (identity.issue_date, identity.next_update)]
    periods += [(crl.this_update, crl.next_update) for crl in lists]
    remarks = frozenset(_remarks(quote, pck, endorsements, evaluation))
    return EvidenceClaims(
        tee=quote.tee,
        anchor=path[-1].fingerprint,
        tcb_status=evaluation.status,
        statuses=evaluation.statuses,
        advisories=evaluation.advisories,
        debug=quote.debug,
        remarks=remarks,
        measurements=_measurements(quote),
        report_data=quote.report_data,
        details=_details(quote, pck, endorsements, evaluation),
        platform=pck.ppid.hex(),
        tcb_date=evaluation.date,
        oldest_issue_date=endorsements.oldest_issue_date,
        valid_from=max(begin for begin, _ in periods),
        valid_until=min(end for _, end in periods),
        steps=_steps(quote, pck, path, endorsements, evaluation, remarks),
    )


def _value(quote: Quote, name: str) -> str | int:
    return number(quote.body[name]) if name in _NUMBERS else quote.body[name].hex()


def _measurements(quote: Quote) -> dict[str, Any]:
    names = _SGX_MEASUREMENTS if quote.tee == "sgx" else [n for n in quote.body if n != "report_data"]
    return {name: _value(quote, name) for name in names}


def _details(quote: Quote, pck: PckExtension, given: Endorsements, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "quote_version": quote.version,
        "fmspc": pck.fmspc.hex(),
        "pce_id": pck.pce_id.hex(),
        "pce_svn": pck.pce_svn,
        "tcb_components": pck.components.hex(),
        "sgx_type": pck.sgx_type,
        "platform_instance_id": pck.platform_instance_id.hex(),
        "qe_svn": number(quote.qe["isv_svn"]),
        "tcb_evaluation_number": given.tcb_info.evaluation_number,
        "qe_evaluation_number": given.qe_identity.evaluation_number,
        "root_crl_number": given.root_crl.number if given.root_crl else None,
        "pck_crl_number": given.pck_crl.number if given.pck_crl else None,
        "advisories": {name: sorted(level.advisories) for name, level in evaluation.parts.items()},
        "trailing_bytes": quote.trailing,
    } | {name: _value(quote, name) for name in _SGX_DETAILS if quote.tee == "sgx"}


def _remarks(quote: Quote, pck: PckExtension, given: Endorsements, evaluation: Evaluation) -> Iterator[str]:
    yield from pck.configuration
    if given.root_crl is None or given.pck_crl is None:
        yield "revocation-unknown"
    if evaluation.status.startswith(RELAUNCH):
        yield "relaunch-advised"
    if quote.tee == "sgx":
        if number(quote.body["attributes"][:8]) & ~_SGX_KNOWN:
            yield "unknown-attributes"
        return
    attributes = number(quote.body["td_attributes"])
    if not attributes & _SEPT_VE_DISABLE:
        yield "sept-ve-enabled"
    if attributes & _MIGRATABLE:
        yield "migratable"
        # Who may migrate a domain can read it, and the TD report 1.0 does not say who that is.
        if "mrservicetd" not in quote.body:
            yield "hidden-service-td"
    if attributes & ~_TDX_KNOWN:
        yield "unknown-attributes"
    if any(quote.body.get("mrservicetd", b"")):
        yield "service-td"


def _steps(
    quote: Quote,
    pck: PckExtension,
    path: Sequence[Certificate],
    given: Endorsements,
    evaluation: Evaluation,
    remarks: frozenset[str],
) -> tuple[Step, ...]:
    """The steps of `verify_quote`, with what each found."""
    info, identity = given.tcb_info, given.qe_identity
    source = "the quote" if quote.chain else "the endorsements"
    lists = {"root": given.root_crl, "PCK CA": given.pck_crl}
    kinds = {"sgx": "SGX", "tdx": "TDX"}
    return (
        Step("certification", f"quote version {quote.version}, certificates from {source}"),
        Step("PCK chain", " ← ".join(c.common_name for c in path)),
        Step("PCK extension", f"FMSPC {pck.fmspc.hex()}, PCE {pck.pce_id.hex()}, {pck.sgx_type}"),
        Step("QE report", "signed with the PCK key"),
        Step("attestation key", "certified by the quoting enclave"),
        Step("quote", "signed with the attestation key"),
        Step("endorsements", f"TCB info {info.version}, QE identity {identity.version}"),
        Step(
            "TCB info and QE identity",
            f"signed by a signer of the anchor; issued {info.issue_date:%Y-%m-%d} and {identity.issue_date:%Y-%m-%d}",
        ),
        Step(
            "revocation",
            ", ".join(
                f"{n}: {f'not revoked as of {c.this_update:%Y-%m-%d}' if c else 'no list'}" for n, c in lists.items()
            ),
        ),
        Step("TCB info match", f"{kinds[info.tee]}, FMSPC {info.fmspc.hex()}, evaluation {info.evaluation_number}"),
        Step("QE identity match", f"ISVSVN {number(quote.qe['isv_svn'])}"),
        Step("TDX module", "the vendor's" if quote.tee == "tdx" else "none: not TDX"),
        Step("TCB level", ", ".join(f"{n} {s}" for n, s in evaluation.statuses.items()) + f": {evaluation.status}"),
        Step("facts", ", ".join(sorted(remarks | ({"debug"} if quote.debug else set()))) or "nothing to remark"),
    )
