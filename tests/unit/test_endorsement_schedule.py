"""When a vendor is asked, and when not: decisions without IO."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from conclave.host.endorsements import documents, schedule
from conclave.host.endorsements.documents import Window
from conclave.host.endorsements.schedule import Act, Bucket, Held, Trouble, decide, failed, retry_after

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY, HOUR, MINUTE, SECOND = (timedelta(**{u: 1}) for u in ("days", "hours", "minutes", "seconds"))


def held(*, age: timedelta = HOUR, left: timedelta = 20 * DAY, issued: timedelta = DAY) -> Held:
    """A document fetched that long ago."""
    return Held(NOW - age, Window(NOW - issued, NOW + left), DAY)


def trouble(ahead: timedelta, *, missing: bool = False) -> Trouble:
    return Trouble(1, NOW + ahead, missing, "vendor-failed")


@pytest.mark.spec("END-9", "END-10", "END-12", "END-14", "END-18")
@pytest.mark.parametrize(
    ("document", "before", "pause", "act"),
    [
        # In hand and fresh: nobody is asked, whatever went wrong.
        (held(), None, None, Act.USE),
        (held(), trouble(HOUR), NOW + HOUR, Act.USE),
        # In hand, and due.
        (held(age=25 * HOUR), None, None, Act.REFRESH),
        (held(age=25 * HOUR), trouble(-SECOND), None, Act.REFRESH),
        (held(age=25 * HOUR), trouble(SECOND), None, Act.KEEP),
        (held(age=25 * HOUR), trouble(SECOND, missing=True), None, Act.KEEP),
        (held(age=25 * HOUR), None, NOW + SECOND, Act.KEEP),
        # Half of its life has passed.
        (held(age=HOUR, left=59 * MINUTE), None, None, Act.REFRESH),
        (held(age=HOUR, left=61 * MINUTE), None, None, Act.USE),
        # Near its end it is asked for every ten minutes, no oftener.
        (held(age=9 * MINUTE, left=SECOND), None, None, Act.USE),
        (held(age=10 * MINUTE, left=SECOND), None, None, Act.REFRESH),
        # The last moment, and the one after.
        (held(left=0 * SECOND), trouble(SECOND), None, Act.KEEP),
        (held(left=-SECOND), trouble(SECOND), None, Act.WAIT),
        (held(left=-SECOND), None, None, Act.FETCH),
        # Not valid yet, beyond what clocks differ.
        (held(issued=-4 * MINUTE), None, None, Act.USE),
        (held(issued=-6 * MINUTE), None, None, Act.FETCH),
        # Nothing in hand.
        (None, None, None, Act.FETCH),
        (None, trouble(SECOND), None, Act.WAIT),
        (None, trouble(SECOND, missing=True), None, Act.REFUSE),
        (None, trouble(-SECOND, missing=True), None, Act.FETCH),
        (None, None, NOW + SECOND, Act.WAIT),
        (None, trouble(-SECOND, missing=True), NOW + SECOND, Act.WAIT),
        # Left by a clock that was years ahead.
        (None, trouble(400 * DAY), NOW + 400 * DAY, Act.FETCH),
        (held(age=-400 * DAY), None, None, Act.REFRESH),
        (held(age=-4 * MINUTE), None, None, Act.USE),
    ],
)
def test_decide(document: Held | None, before: Trouble | None, pause: datetime | None, act: Act) -> None:
    assert decide(document, before, pause, NOW) is act


@pytest.mark.spec("END-9")
def test_every_kind_of_document_has_an_age() -> None:
    assert set(schedule.MAXIMUM_AGE) == set(documents._FORMS)


def after(before: Trouble | None = None, **options: object) -> Trouble:
    given = {"code": "vendor-failed", "missing": False, "retry_after": None, "now": NOW, "chance": 0.0} | options
    return failed(before, **given)  # type: ignore[arg-type]


@pytest.mark.spec("END-11")
def test_delays_double_up_to_an_hour() -> None:
    found, now = None, NOW
    waits = []
    for _ in range(40):
        found = after(found, now=now)
        waits.append((found.until - now).total_seconds())
        now = found.until
    assert waits[:4] == [2, 4, 8, 16]
    assert waits[11:] == [3600] * 29
    assert [(after(chance=c).until - NOW).total_seconds() for c in (0.0, 0.5, 0.9999999)] == [2, 1.5, pytest.approx(1)]


@pytest.mark.spec("END-11")
def test_what_fails_together_counts_once() -> None:
    first = after()
    assert after(first, now=NOW + SECOND).failures == 1
    assert after(first, now=NOW + 2 * SECOND).failures == 2


@pytest.mark.spec("END-12", "END-14")
def test_what_the_vendor_asks_is_never_undercut() -> None:
    assert after(retry_after=30 * SECOND, chance=0.99).until == NOW + 30 * SECOND
    assert after(retry_after=0 * SECOND).until == NOW + 2 * SECOND
    assert after(missing=True, chance=0.99).until == NOW + HOUR
    # A later, shorter wait does not end an earlier one.
    long = after(retry_after=600 * SECOND)
    assert after(long, now=NOW + SECOND).until == long.until
    # One that a wrong clock left behind is no wait.
    assert after(Trouble(3, NOW + 400 * DAY, False, "x")).until < NOW + HOUR


@pytest.mark.spec("END-12")
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("Sun, 01 Mar 2026 12:01:00 GMT", 60),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("999999999999999999999", 86400),
        ("Sun, 01 Mar 2099 12:01:00 GMT", 86400),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("١٢", None),
        ("Sun, 99 Mar 2026 12:01:00 GMT", None),
        ("Sun, 01 Mar 2026 99999999999999999999:01:00 GMT", None),
        ("Sun, 01 Mar 2026 12:01:00 +99999999999999999999", None),
    ],
)
def test_retry_after(text: str, seconds: int | None) -> None:
    found = retry_after(text, NOW)
    assert found == (None if seconds is None else timedelta(seconds=seconds))


@pytest.mark.spec("END-13")
def test_a_bucket() -> None:
    bucket = Bucket.full(3, 10 * SECOND, NOW)
    waits = []
    for _ in range(5):
        bucket, wait = bucket.take(NOW)
        waits.append(wait.total_seconds())
    assert waits == [0, 0, 0, 10, 20]
    # A clock turned back gives nothing, and takes nothing.
    bucket, wait = bucket.take(NOW - DAY)
    assert wait == 30 * SECOND
    bucket, wait = bucket.take(NOW + DAY)
    assert (wait, bucket.left) == (timedelta(0), 2)
