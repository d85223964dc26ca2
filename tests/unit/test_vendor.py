from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from conclave.attestation.dcap.collateral import MODULE_STATUSES, PLATFORM_STATUSES, QE_STATUSES
from conclave.platform.vendor import FIRST, PARTS, PERISHABLE, REVOCABLE, STATUSES, Tcb, Vendor

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
FIRST_DAY = Vendor.first(NOW)


def statuses(vendor: Vendor) -> list[str]:
    return [level.status for level in vendor.levels]


def test_statuses_are_those_the_verifier_knows() -> None:
    assert set(STATUSES) == PLATFORM_STATUSES
    assert QE_STATUSES | MODULE_STATUSES <= PLATFORM_STATUSES


@pytest.mark.spec("TCB-1")
def test_a_new_level_is_above_all_others() -> None:
    second = FIRST_DAY.publish(date=NOW + DAY, advisories=("INTEL-SA-2", "INTEL-SA-1"))
    third = second.publish(date=NOW + 2 * DAY, status_of_older="SWHardeningNeeded", advisories=("INTEL-SA-3",))
    assert statuses(third) == ["UpToDate", "SWHardeningNeeded", "OutOfDate"]
    assert [level.date for level in third.levels] == [NOW + 2 * DAY, NOW + DAY, NOW]
    assert third.levels[1].advisories == ("INTEL-SA-3",)
    # What was found earlier still holds.
    assert third.levels[2].advisories == ("INTEL-SA-1", "INTEL-SA-2", "INTEL-SA-3")
    assert [v.number for v in (FIRST_DAY, second, third)] == [1, 2, 3]
    for older, newer in zip(third.levels[1:], third.levels, strict=False):
        assert older.is_reached_by(newer.versions)
        assert not newer.is_reached_by(older.versions)


@pytest.mark.spec("TCB-1")
@pytest.mark.parametrize(
    ("parts", "changed"),
    [
        (("cpu",), {0, 1}),
        (("pce",), {16}),
        (("qe",), {"qe"}),
        (("cpu", "pce"), {0, 1, 16}),
        (PARTS, {0, 1, 16, "qe"}),
    ],
)
def test_a_level_raises_the_parts_it_is_about(parts: tuple[str, ...], changed: set[Any]) -> None:
    vendor = FIRST_DAY.publish(date=NOW + DAY, parts=parts)
    found: set[Any] = {i for i in range(17) if vendor.newest.platform[i] != FIRST.platform[i]}
    assert found | ({"qe"} if vendor.newest.qe != FIRST.qe else set()) == changed
    assert vendor.level_of(FIRST).status == ("OutOfDate" if changed != {"qe"} else "UpToDate")
    assert vendor.qe_level_of(FIRST).status == ("OutOfDate" if "qe" in changed else "UpToDate")
    assert vendor.level_of(vendor.newest) is vendor.levels[0]
    assert vendor.qe_level_of(vendor.newest) is vendor.qe_levels[0]
    # As real vendors do: what is good is good as of the newest level.
    assert vendor.levels[0].date == vendor.qe_levels[0].date == NOW + DAY


def test_a_level_is_never_praised_by_a_later_one() -> None:
    revoked = FIRST_DAY.publish(date=NOW, status_of_older="Revoked")
    assert statuses(revoked.publish(date=NOW, status_of_older="UpToDate")) == ["UpToDate", "UpToDate", "Revoked"]


def test_a_machine_that_nobody_updated_for_long() -> None:
    vendor = FIRST_DAY
    for _ in range(255 - FIRST.qe):
        vendor = vendor.publish(date=NOW, parts=PARTS)
    assert vendor.level_of(FIRST) is vendor.levels[-1]
    with pytest.raises(ValueError, match="a version is at most 255"):
        vendor.publish(date=NOW, parts=PARTS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"status_of_older": "Fine"}, "a TCB status is one of UpToDate"),
        ({"parts": ("bios",)}, "a part is one of cpu, pce, qe"),
        ({"parts": ()}, "raises at least one part"),
        ({"parts": ("qe",), "status_of_older": "SWHardeningNeeded"}, "the status of a quoting enclave is one of"),
        ({"date": NOW - DAY}, "cannot be older than the one before it"),
    ],
)
def test_what_cannot_be_published(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FIRST_DAY.publish(**({"date": NOW} | options))


@pytest.mark.spec("TCB-3")
def test_a_level_gets_another_standing_with_no_level_above() -> None:
    vendor = FIRST_DAY.publish(date=NOW)
    declared = vendor.declare(FIRST, "SWHardeningNeeded", advisories=("B-1", "A-1", "A-1"))
    assert statuses(declared) == ["UpToDate", "SWHardeningNeeded"]
    assert declared.level_of(FIRST).advisories == ("A-1", "B-1")
    assert declared.level_of(FIRST).date == NOW
    assert statuses(vendor.declare(vendor.newest, "ConfigurationNeeded")) == ["ConfigurationNeeded", "OutOfDate"]
    assert declared.number == vendor.number + 1
    with pytest.raises(ValueError, match="a TCB status is one of"):
        vendor.declare(FIRST, "Fine")


@pytest.mark.spec("TCB-4", "TCB-5")
def test_revoked_and_expired_add_up_until_they_are_restored() -> None:
    vendor = FIRST_DAY
    for what in REVOCABLE:
        vendor = vendor.revoke(what).revoke(what)
    for what in PERISHABLE:
        vendor = vendor.expire(what).expire(what)
    assert set(vendor.revoked) == set(REVOCABLE)
    assert set(vendor.expired) == set(PERISHABLE)
    assert vendor.number == 1
    restored = vendor.restore(FIRST)
    assert (restored.revoked, restored.expired, restored.number) == ((), (), 2)
    with pytest.raises(ValueError, match="what can be revoked is one of platform, ca"):
        vendor.revoke("root")
    with pytest.raises(ValueError, match="what can expire is one of crl, tcb-info, qe-identity"):
        vendor.expire("root")


@pytest.mark.spec("TCB-3")
def test_restored_for_the_version_that_a_machine_has() -> None:
    second = FIRST_DAY.publish(date=NOW + DAY, parts=PARTS)
    third = second.publish(date=NOW + 2 * DAY, parts=PARTS, status_of_older="Revoked", advisories=("INTEL-SA-1",))
    restored = third.restore(second.newest)
    assert statuses(restored) == ["UpToDate", "Revoked"]
    assert restored.newest == second.newest
    assert restored.levels[0].date == NOW + DAY
    assert restored.levels[0].advisories == ()
    assert statuses(third.restore(FIRST)) == ["UpToDate"]
    assert third.restore(FIRST).number == third.number + 1


def test_the_documents_say_what_the_levels_do() -> None:
    vendor = FIRST_DAY.publish(date=NOW + DAY, parts=PARTS, advisories=("INTEL-SA-1",))
    info = vendor.tcb_info(b"\1\2\3\4\5\xff", now=NOW + 2 * DAY)
    assert (info["fmspc"], info["tcbEvaluationDataNumber"]) == ("0102030405FF", 2)
    assert (info["issueDate"], info["nextUpdate"]) == ("2026-03-03T12:00:00Z", "2026-04-02T12:00:00Z")
    assert [level["tcb"]["pcesvn"] for level in info["tcbLevels"]] == [12, 11]
    assert [level["tcbDate"] for level in info["tcbLevels"]] == ["2026-03-02T12:00:00Z", "2026-03-01T12:00:00Z"]
    assert "advisoryIDs" not in info["tcbLevels"][0]
    assert info["tcbLevels"][1]["advisoryIDs"] == ["INTEL-SA-1"]
    identity = vendor.qe_identity(now=NOW)
    assert [(level["tcb"]["isvsvn"], level["tcbStatus"]) for level in identity["tcbLevels"]] == [
        (9, "UpToDate"),
        (8, "OutOfDate"),
    ]


def test_written_and_read() -> None:
    vendor = FIRST_DAY.publish(date=NOW, parts=PARTS, advisories=("INTEL-SA-1",)).revoke("ca").expire("crl")
    text = msgspec.json.encode(vendor)
    assert msgspec.json.decode(text, type=Vendor) == vendor
    for change in ({"levels": []}, {"qe_levels": []}, {"number": "1"}, {"more": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(json.dumps(json.loads(text) | change).encode(), type=Vendor)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"platform": [1], "qe": 1}', type=Tcb)
