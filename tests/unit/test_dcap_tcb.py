"""Layouts tile their structures; statuses of parts become one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from conclave.attestation.dcap import _layout
from conclave.attestation.dcap._layout import HEADER, SGX_REPORT, TD_REPORT_10, TD_REPORT_15, Layout, size_of
from conclave.attestation.dcap.collateral import MODULE_STATUSES, PLATFORM_STATUSES, QE_STATUSES
from conclave.attestation.dcap.tcb import converge, relaunched
from conclave.errors import FormatError

SPEC = Path(__file__).parents[2] / "spec" / "dcap.md"
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
