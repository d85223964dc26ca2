"""Layouts tile their structures; statuses of parts become one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from tests._intel import intel

from conclave.attestation import dcap
from conclave.attestation.dcap import _layout, pck
from conclave.attestation.dcap._layout import HEADER, SGX_REPORT, TD_REPORT_10, TD_REPORT_15, Layout, size_of
from conclave.attestation.dcap.collateral import MODULE_STATUSES, PLATFORM_STATUSES, QE_STATUSES
from conclave.attestation.dcap.tcb import converge, relaunched
from conclave.errors import FormatError

ROOT = Path(__file__).parents[2]
SPEC, MANUAL = ROOT / "spec" / "dcap.md", ROOT / "docs" / "guide" / "checked-intel.md"
# Up to date, hardening, configuration, both, old, old and configuration, revoked.
U, H, C, CH, OLD, OC, R = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
LEVELS = (U, H, C, CH, OLD, OC)


@pytest.mark.spec("DCAP-1")
@pytest.mark.parametrize(
    ("layout", "size"), [(HEADER, 48), (SGX_REPORT, 384), (TD_REPORT_10, 584), (TD_REPORT_15, 648)]
)
def test_fields_tile_the_structure(layout: Layout, size: int) -> None:
    at = 0
    for _, offset, length in layout:
        assert offset == at
        at += length
    assert at == size == size_of(layout)
    assert len({name for name, _, _ in layout}) == len(layout)


@pytest.mark.spec("DCAP-1")
def test_the_tables_of_the_specification_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", SPEC.read_text(), re.MULTILINE)
    specified = [(name, int(offset), int(size)) for name, offset, size in rows]
    assert specified == [*HEADER, *SGX_REPORT, *TD_REPORT_10, *TD_REPORT_15[len(TD_REPORT_10) :]]


@pytest.mark.parametrize("name", ["reserved1", "reserved2", "reserved3", "reserved4"])
def test_each_byte_of_a_reserved_field_is_zero(name: str) -> None:
    ((offset, size),) = [(o, s) for n, o, s in SGX_REPORT if n == name]
    for at in range(offset, offset + size):
        with pytest.raises(FormatError):
            _layout.fields(SGX_REPORT, bytes(at) + b"\1" + bytes(383 - at))


# Platform status, with a part that is out of date: Intel's table.
WITH_OLD = {U: OLD, H: OLD, C: OC, CH: OC, OLD: OLD, OC: OC}


@pytest.mark.spec("DCAP-21")
@pytest.mark.parametrize("status", LEVELS)
def test_convergence_with_another_part(status: str) -> None:
    assert converge([status]) == converge([status, U]) == status
    assert converge([status, OLD]) == converge([OLD, status, U]) == WITH_OLD[status]
    assert converge([status, R]) == converge([R, status, OLD]) == R


@pytest.mark.spec("DCAP-21")
def test_convergence_loses_nothing_and_knows_no_order() -> None:
    worse = {U: set(), H: {"h"}, C: {"c"}, CH: {"c", "h"}, OLD: {"o"}, OC: {"o", "c"}}
    for some in itertools.product(LEVELS, repeat=3):
        one = converge(some)
        assert one == converge(reversed(some)) == converge([converge(some[:2]), some[2]])
        said = set[str]().union(*(worse[s] for s in some))
        assert worse[one] == (said - {"h"} if "o" in said else said)


@pytest.mark.spec("DCAP-21")
@pytest.mark.parametrize(("launch", "current"), list(itertools.product(LEVELS, repeat=2)))
def test_the_status_after_an_update_at_run_time(launch: str, current: str) -> None:
    status = relaunched(launch, current)
    if launch in (OLD, OC) and current in (U, H, C, CH):
        configure = launch == OC or current in (C, CH)
        assert status == ("TDRelaunchAdvisedConfigurationNeeded" if configure else "TDRelaunchAdvised")
    else:
        assert status == converge([launch, current])


def test_what_each_part_may_be_called() -> None:
    assert set(LEVELS) | {R} == PLATFORM_STATUSES
    assert {U, OLD, R} == MODULE_STATUSES < QE_STATUSES < PLATFORM_STATUSES


@pytest.mark.spec("DCAP-21")
def test_the_table_of_the_specification() -> None:
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \| (\w+) \|$", SPEC.read_text(), re.MULTILINE)
    table = {row[0]: row[1:] for row in rows if row[0] in LEVELS}
    assert table == {s: (converge([s, OLD]), converge([s, C]), relaunched(OLD, s)) for s in LEVELS}


# The specification, the code and the manual say the same.

SOURCE = Path(dcap.__file__).parent
# Codes that are put together of a subject and a reason.
COMPOSED = {
    *(f"{what}-{why}" for what in ("tcb-info", "qe-identity") for why in ("chain", "signature", "expired", "format")),
    *(f"{what}-{why}" for what in ("root-crl", "pck-crl") for why in ("format", "issuer", "expired")),
    *(f"{what}-revoked" for what in ("pck", "pck-ca", "tcb-signer")),
    "pck-chain",
    "pck-expired",
}


def test_every_code_is_in_the_table_of_the_specification() -> None:
    table = SPEC.read_text().partition("## 7.")[2].partition("## 8.")[0]
    listed = {c for line in table.splitlines() if line.startswith("| `") for c in re.findall(r"`([a-z-]+)`", line)}
    raised = {
        c for p in SOURCE.glob("*.py") for c in re.findall(r'code = ?"([a-z-]+)"|code="([a-z-]+)"', p.read_text())
    }
    assert {a or b for a, b in raised} | COMPOSED == listed


def test_the_steps_are_the_same_in_code_specification_manual_and_claims() -> None:
    code = re.findall(r"^ +# (\d+)\. ([^:]+):", (SOURCE / "verify.py").read_text(), re.MULTILINE)
    listed = re.findall(r"^(\d+)\. \*\*([^*]+)\*\*:", SPEC.read_text(), re.MULTILINE)
    manual = re.findall(r"^(\d+)\. \*\*([^*]+)\*\*:", MANUAL.read_text(), re.MULTILINE)
    assert code == listed == manual
    assert [int(n) for n, _ in code] == list(range(1, 15))
    assert [name.casefold() for _, name in code] == [s.name.casefold() for s in intel().verify().steps]


def test_every_remark_is_in_the_table_of_the_specification() -> None:
    table = SPEC.read_text().partition("**DCAP-23**")[2].partition("**DCAP-24**")[0]
    listed = set(re.findall(r"`([a-z-]+)`", table))
    made = set(re.findall(r'yield "([a-z-]+)"', (SOURCE / "_claims.py").read_text()))
    assert made | set(pck._CONFIGURATION.values()) == listed
