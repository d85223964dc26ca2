"""Many clients at once, while enclave and host die and clocks go wrong: all go on, and nothing is handled twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.load._rig import SECONDS, SOURCE, Callers, HostProcess, Reader, report, scaled, until

from conclave.bundle import Bundle

pytestmark = pytest.mark.slow

DAY = 86_400


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("target", SOURCE)


def test_many_clients_at_once(bundle: Bundle, tmp_path: Path) -> None:
    with HostProcess(bundle, tmp_path) as host, Callers(host, scaled(40, 200), processes=2) as callers:
        callers.rounds()
        start, began = host.memory(), time.monotonic()
        callers.rounds(3)
        while time.monotonic() < began + SECONDS:
            callers.rounds()
        end = host.memory()
        tally = callers.stop()
        report("clients at once", **tally.figures(), start=start, end=end)
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert tally.boots == 1
    assert end["host_mib"] < start["host_mib"] + 32
    assert end["enclave_mib"] < start["enclave_mib"] + 32
    assert end["descriptors"] <= start["descriptors"] + 8


def test_an_enclave_that_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    kills, chance, start = 0, random.Random(3), {}
    with HostProcess(bundle, tmp_path) as host, Callers(host, scaled(16, 64)) as callers:
        began = time.monotonic()
        while kills < 4 or time.monotonic() < began + SECONDS:
            callers.rounds()
            start = start or host.memory()
            time.sleep(chance.uniform(0, 0.05))
            host.kill_enclave()
            kills += 1
        callers.rounds()
        end = host.memory()
        tally = callers.stop()
        report("enclave killed", kills=kills, **tally.figures(), start=start, end=end)
    # Who asks again is answered in the end.
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert tally.boots == kills + 1
    assert end["host_mib"] < start["host_mib"] + 32
    assert end["descriptors"] <= start["descriptors"] + 8


@pytest.mark.parametrize("store", ["file", "sqlite"] if SECONDS else ["file"])
def test_a_host_that_is_killed(store: str, bundle: Bundle, tmp_path: Path) -> None:
    """At any instruction, also while it writes: what an answer promised is there when it comes back."""
    kills, chance = 0, random.Random(4)
    host = HostProcess(bundle, tmp_path, store=f"{store}:{tmp_path / 'mails'}")
    with host, Reader(host) as reader, Callers(host, scaled(8, 32), to=reader.address) as callers:
        start, began = host.memory(), time.monotonic()
        while kills < 3 or time.monotonic() < began + SECONDS:
            # Now and then everybody is waited for; in between, it may be killed before it is asked anything.
            if kills % 8 == 0:
                callers.rounds()
            time.sleep(chance.uniform(0, 0.5))
            host.kill()
            kills += 1
            host.start()
        callers.rounds()
        tally = callers.stop()
        lost = tally.acknowledged - set(reader.all())
        report(f"host killed, {store}", kills=kills, **tally.figures(), lost=len(lost), start=start, end=host.memory())
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    # A boot that was killed before it answered anybody is not known to them.
    assert 3 <= tally.boots <= kills + 1
    assert tally.acknowledged
    assert not lost


def test_clocks_that_jump(bundle: Bundle, tmp_path: Path) -> None:
    """Forward and back, at the host and at the clients, while mail is posted and read, and enclave and host die."""
    clock, theirs = tmp_path / "clock", tmp_path / "theirs"
    clock.write_text("0")
    theirs.write_text("0")
    kills = 0
    host = HostProcess(bundle, tmp_path, clock=clock)
    with host, Reader(host) as reader:
        with Callers(host, scaled(4, 16), to=reader.address, clock=theirs) as callers:
            start, began = host.memory(), time.monotonic()
            while not kills or time.monotonic() < began + SECONDS:
                for jump in (30 * DAY, 0, -30 * DAY, DAY, -DAY, 0) if SECONDS else (DAY, 0):
                    clock.write_text(str(jump))
                    # Beyond a day their evidence would be too old, or not be valid yet.
                    theirs.write_text(str(max(min(jump // 2, DAY), 0)))
                    callers.rounds()
                    # A new boot makes new evidence, whatever the time is said to be.
                    kills += 1
                    if kills % 2:
                        host.kill_enclave()
                    else:
                        host.kill()
                        host.start()
                    callers.rounds()
                    if SECONDS:
                        # What was read is deleted from the store, and only the host's note of the last number is left.
                        until(
                            lambda: len(list((tmp_path / "store").glob("*mails*"))) < 3, "the end of mail that was read"
                        )
            tally = callers.stop()
        seen = reader.all()
        lost = tally.acknowledged - set(seen)
        # Newcomers verify by their own clock: ahead, evidence is valid still; behind, it is not yet, and they say so.
        theirs.write_text(str(DAY))
        with Callers(host, 2, clock=theirs) as ahead:
            ahead.rounds()
            early = ahead.stop()
        theirs.write_text(str(-DAY))
        with Callers(host, 2, clock=theirs) as behind:
            behind.failures()
            theirs.write_text("0")
            behind.rounds()
            late = behind.stop()
        report(
            "clocks jump",
            kills=kills,
            **tally.figures(),
            lost=len(lost),
            behind=late.errors,
            start=start,
            end=host.memory(),
        )
    assert not early.errors
    assert set(late.errors) == {"ExpiredError: pck: not valid yet at this time; check the clock"}
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert tally.boots <= kills + 1
    assert tally.acknowledged
    assert not lost
