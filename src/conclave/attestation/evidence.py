"""What every vendor's verifier returns: claims whose signatures were checked.

Runs at the relying party. Parsing is not trusting: `EvidenceClaims` are made by a
verifier alone, and whether to accept them is the constraint's question.

Spec: spec/evidence.md sections 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One numbered step of a verification, for people: `conclave verify --explain`.

    Attributes:
        name: the check, in the words of spec/evidence.md.
        detail: what was found; holds public facts only.
    """

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class EvidenceClaims:
    """What genuine hardware under one trust anchor said, as of a time.

    Attributes:
        tee: `sgx`, `tdx`, `snp` or `nitro`: whose verifier made this.
        anchor: SHA-256 of the trust anchor's certificate, in hex.
        tcb_status: the vendor's word for the platform, or "" where the vendor gives
            none (SEV-SNP, Nitro). Intel: converged of `statuses`.
        statuses: the vendor's word for each part, such as `platform`, `qe`, `tdx_module`.
        advisories: ids of the vendor's security advisories, sorted.
        debug: the operator can read this program's memory.
        remarks: words for what policy has to know, from the table in spec/evidence.md
            section 2, such as `service-td`, `revocation-unknown`, `relaunch-advised`.
        measurements: by the vendor's names; hex, or for `pcrs` a mapping of hex by index.
        report_data: the 64 bytes the program chose; None for Nitro.
        details: further signed facts by name, JSON values only (bytes as hex).
        platform: names the processor: hex of PPID (Intel) or chip id (AMD), module id (AWS).
        tcb_date: since when the platform's TCB level stands, where the vendor says so.
        oldest_issue_date: of the endorsements that age (lists, TCB info; certificates if
            there is nothing else).
        valid_from, valid_until: within these everything that was used is valid.
        steps: what was checked, in order.
    """

    tee: str
    anchor: str
    tcb_status: str
    statuses: Mapping[str, str]
    advisories: tuple[str, ...]
    debug: bool
    remarks: frozenset[str]
    measurements: Mapping[str, Any]
    report_data: bytes | None
    details: Mapping[str, Any]
    platform: str
    tcb_date: datetime | None
    oldest_issue_date: datetime
    valid_from: datetime
    valid_until: datetime
    steps: tuple[Step, ...]
