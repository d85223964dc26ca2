"""Verified claims as the tests of appraisal need them: all well, but for what a test changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from conclave.attestation import EvidenceClaims

NOW = datetime(2026, 3, 31, 12, 0, tzinfo=UTC)
MEASUREMENT = "3e" * 32


def evidence(**changes: Any) -> EvidenceClaims:
    """Of an up-to-date SGX processor that launched the bundle it names in CONFIGID."""
    made = EvidenceClaims(
        tee="sgx",
        anchor="aa" * 32,
        tcb_status="UpToDate",
        statuses={},
        advisories=(),
        debug=False,
        remarks=frozenset(),
        measurements={"mrenclave": MEASUREMENT},
        report_data=bytes(64),
        details={"config_id": "cf" * 64},
        platform="99" * 16,
        tcb_date=datetime(2025, 3, 12, tzinfo=UTC),
        oldest_issue_date=NOW - timedelta(days=10),
        valid_from=NOW - timedelta(days=10),
        valid_until=NOW + timedelta(days=20),
        steps=(),
    )
    return replace(made, **changes)


OF_EVIDENCE = frozenset(EvidenceClaims.__dataclass_fields__) - {"tee"}
