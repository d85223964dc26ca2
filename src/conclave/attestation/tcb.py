"""Minimum TCB versions that a data owner or reference values name.

Runs at the relying party, on claims that were verified.

Spec: spec/evidence.md section 6 (EVID-11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Final

from conclave.attestation.evidence import EvidenceClaims
from conclave.errors import FormatError

ANY: Final = "any"
# What a platform's TCB version consists of, in the order it is written.
SNP_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "milan": ("boot_loader", "tee", "snp", "microcode"),
    "genoa": ("boot_loader", "tee", "snp", "microcode"),
    "turin": ("fmc", "boot_loader", "tee", "snp", "microcode"),
}
SUBJECTS: Final = ("sgx", "tdx", "nitro", *(f"snp-{product}" for product in SNP_PARTS))
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_PART = re.compile(r"0|[1-9][0-9]{0,2}")


def parse_minimum(subject: str, text: str) -> str:
    """Check one minimum; returns it as it is written everywhere.

    `any`, for `sgx` and `tdx` a date (of the TCB level, as the vendor dates it), for
    `snp-…` the parts of AMD's TCB version joined by dots. AWS publishes no version: `any`.

    Raises:
        FormatError: saying what is expected.
    """
    if subject not in SUBJECTS:
        raise FormatError(f"TCB: takes minimums for {', '.join(SUBJECTS)}")
    if text == ANY:
        return text
    if subject in ("sgx", "tdx"):
        try:
            if _DATE.fullmatch(text) is None:
                raise ValueError
            return date.fromisoformat(text).isoformat()
        except ValueError:
            raise FormatError(f"TCB: the minimum of {subject} is a date such as 2024-03-13, or {ANY}") from None
    if subject == "nitro":
        raise FormatError(f"TCB: nitro publishes no TCB version; its minimum is {ANY}")
    parts = text.split(".")
    names = SNP_PARTS[subject.partition("-")[2]]
    if len(parts) != len(names) or not all(_PART.fullmatch(p) and int(p) <= 255 for p in parts):
        raise FormatError(f"TCB: the minimum of {subject} is {'.'.join(names)}, each 0 to 255, or {ANY}")
    return text


def subject_of(evidence: EvidenceClaims) -> str:
    """What minimums of this platform are listed under."""
    if evidence.tee == "snp":
        return f"snp-{str(evidence.details['product']).lower()}"
    return evidence.tee


def version_of(evidence: EvidenceClaims) -> str:
    """The platform's TCB version as minimums are written; empty where there is none.

    SEV-SNP: part by part the lowest of today's, that at the guest's launch, and the committed one.
    """
    if evidence.tee == "snp":
        parts = evidence.details["lowest_tcb"]
        return ".".join(str(parts[name]) for name in SNP_PARTS[subject_of(evidence).partition("-")[2]])
    return "" if evidence.tcb_date is None else evidence.tcb_date.date().isoformat()


def reaches(evidence: EvidenceClaims, minimum: str) -> bool:
    """Whether the platform's TCB version is at or above a minimum for it, part by part."""
    if minimum == ANY:
        return True
    if evidence.tee == "snp":
        found, wanted = version_of(evidence).split("."), minimum.split(".")
        return all(int(a) >= int(b) for a, b in zip(found, wanted, strict=True))
    if evidence.tcb_date is None:
        return False
    return evidence.tcb_date >= datetime.combine(date.fromisoformat(minimum), time(), UTC)
