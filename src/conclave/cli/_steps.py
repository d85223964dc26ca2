"""The numbered steps of each verifier, and to which of them an error code belongs.

For `conclave verify --explain`: what succeeded tells its own steps; of a failure only
the code is known. The steps are those of spec/dcap.md section 4, spec/snp.md section
6, spec/nitro.md section 5; a test holds them against what the verifiers say.
"""

from __future__ import annotations

from typing import Final

_INTEL: Final = (
    "certification",
    "PCK chain",
    "PCK extension",
    "QE report",
    "attestation key",
    "quote",
    "endorsements",
    "TCB info and QE identity",
    "revocation",
    "TCB info match",
    "QE identity match",
    "TDX module",
    "TCB level",
    "facts",
)
STEPS: Final = {
    "sgx": _INTEL,
    "tdx": _INTEL,
    "snp": (
        "signing key",
        "endorsements",
        "path",
        "revocation",
        "product",
        "signature",
        "TCB version",
        "chip",
        "claims",
    ),
    "nitro": ("signed", "path", "signing certificate", "signature", "time", "claims"),
}
_ENDORSEMENTS: Final = 7
# Steps of instance info, after those of its evidence: spec/claims.md section 4.
BINDING: Final = "binding"
LIVENESS: Final = "liveness"

_INTEL_CODES: Final = {
    "certification-unsupported": 1,
    "pck-chain": 2,
    "chain": 2,
    "pck-expired": 2,
    "pck-extension": 3,
    "pck-mismatch": 3,
    "qe-report-signature": 4,
    "qe-binding": 5,
    "quote-signature": 6,
    "endorsements-missing": 7,
    "endorsements-format": 7,
    "tcb-info-format": 7,
    "qe-identity-format": 7,
    "root-crl-format": 7,
    "pck-crl-format": 7,
    "tcb-info-chain": 8,
    "tcb-info-signature": 8,
    "tcb-info-expired": 8,
    "qe-identity-chain": 8,
    "qe-identity-signature": 8,
    "qe-identity-expired": 8,
    "root-crl-issuer": 9,
    "root-crl-expired": 9,
    "pck-crl-issuer": 9,
    "pck-crl-expired": 9,
    "pck-ca-revoked": 9,
    "tcb-signer-revoked": 9,
    "pck-revoked": 9,
    "tcb-info-mismatch": 10,
    "qe-identity-mismatch": 11,
    "qe-vendor": 11,
    "qe-mrsigner": 11,
    "qe-product": 11,
    "qe-misc-select": 11,
    "qe-attributes": 11,
    "tdx-module-mismatch": 12,
    "tcb-unsupported": 13,
    "tcb-revoked": 13,
}
CODES: Final = {
    "sgx": _INTEL_CODES,
    "tdx": _INTEL_CODES,
    "snp": {
        "report-unsigned": 1,
        "endorsements-missing": 2,
        "endorsements-format": 2,
        **{f"{key}-{what}": 3 for key in ("vcek", "vlek") for what in ("chain", "expired")},
        "ark-crl-issuer": 4,
        "ark-crl-expired": 4,
        **{f"{key}-revoked": 4 for key in ("vcek", "vlek")},
        "report-signing-key": 5,
        **{f"{key}-{what}": 5 for key in ("vcek", "vlek") for what in ("extensions", "product")},
        "report-signature": 6,
        **{f"{key}-tcb": 7 for key in ("vcek", "vlek")},
        "vcek-chip": 8,
    },
    "nitro": {
        "document-unsigned": 1,
        "document-expired": 2,
        "document-chain": 2,
        "document-signature": 4,
        "document-timestamp": 5,
        "document-future": 5,
    },
}
# Codes that more than one step raises: how many steps have surely held before.
_SURELY: Final = {"tcb-unsupported": 10, "tcb-revoked": 10}
# Of what a code is the last word, or the whole, and what a person can do about it.
_ADVICE: Final = {
    "endorsements-missing": "Get the vendor's endorsements for this platform (`conclave endorsements export` on a "
    "machine with a network) and name their folder with --endorsements.",
    "certification-unsupported": "The quote names its processor in encrypted form. Have it made again by a "
    "machine that puts its PCK certificate chain into its quotes.",
    "chain": "The certificates lead to no root that counts here. If it is a test PKI, name its root with --roots; "
    "if it claims to be real hardware, do not trust it.",
    "issuer": "A revocation list of another authority: the host must fetch endorsements again.",
    "expired": "Check the time that was asked about (--at, or this machine's clock). If that is right, the operator "
    "must fetch new endorsements.",
    "future": "Check the time that was asked about (--at, or this machine's clock).",
    "timestamp": "Have the document made again.",
    "revoked": "The vendor withdrew this platform, or a key of it. The operator needs another machine, or an update.",
    "signature": "Altered on the way, or never made by such hardware. Do not trust it.",
    "unsigned": "An emulator made it. It protects nothing.",
    "unsupported": "The platform is older than everything the vendor vouches for. The operator must update it.",
    "binding": "Genuine evidence about something else: another bundle or other keys. Do not send data.",
    "format": "It is not of its documented form: cut short, altered, or something else. Get it again.",
    "mismatch": "These endorsements are another platform's. Fetch those of this one.",
    "tcb": "These endorsements are for another TCB version. Fetch those for the reported one.",
    "chip": "These endorsements are another chip's. Fetch those of this one.",
    "product": "These endorsements are another product's. Fetch those of this one.",
    "key": "These endorsements are for another kind of key. Fetch those for the kind that the report names.",
}
_FALLBACK: Final = "It is not what it says. Do not trust it."


def failed_step(kind: str, code: str, *, carries_certificates: bool) -> tuple[int, int]:
    """Where a verification failed: how many steps have surely held, and the number of the one that did not.

    Args:
        kind: `sgx`, `tdx`, `snp` or `nitro`.
        code: of the error.
        carries_certificates: whether the evidence does; a quote that does not has its
            endorsements read first.

    Returns:
        (0, 0) for what failed before the first step.
    """
    step = CODES[kind].get(code, 0)
    if code in ("binding", "challenge-signature"):
        step = len(STEPS[kind]) + (1 if code == "binding" else 2)
    if kind in ("sgx", "tdx") and not carries_certificates and step == _ENDORSEMENTS:
        step = 1
    return _SURELY.get(code, max(step - 1, 0)), step


def advice(code: str) -> str:
    """What a person can do about it."""
    last = code.rpartition("-")[2]
    return _ADVICE.get(code) or _ADVICE.get(last) or _FALLBACK
