"""Many clients at once, while enclave and host die and clocks go wrong: all go on, and nothing is handled twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.load._rig import SECONDS, SOURCE, Callers, HostProcess, report, scaled

from conclave.bundle import Bundle
from conclave.client import Client

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


def test_a_host_that_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    kills, chance = 0, random.Random(4)
    host = HostProcess(bundle, tmp_path)
    with host, Client(host.url, constraint=host.constraint) as receiver:
        address = receiver.call("me", returns=bytes)
        receiver.poll()
        with Callers(host, scaled(8, 32), to=address) as callers:
            began = time.monotonic()
            while kills < 3 or time.monotonic() < began + SECONDS:
                callers.rounds()
                time.sleep(chance.uniform(0, 0.1))
                host.kill()
                kills += 1
                host.start()
            callers.rounds()
            tally = callers.stop()
        seen: set[str] = set()
        while mails := receiver.poll():
            seen.update(mail.body.decode() for mail in mails)
        report(
            "host killed",
            kills=kills,
            **tally.figures(),
            lost=len(tally.acknowledged - seen),
            end=host.memory(),
        )
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert tally.boots == kills + 1
    assert tally.acknowledged - seen == set()


def test_clocks_that_jump(bundle: Bundle, tmp_path: Path) -> None:
    """By a day, forward and back, at the host, while mail is posted; then at the clients."""
    clock, theirs = tmp_path / "clock", tmp_path / "theirs"
    clock.write_text("0")
    theirs.write_text("0")
    with HostProcess(bundle, tmp_path, clock=clock) as host, Client(host.url, constraint=host.constraint) as receiver:
        address = receiver.call("me", returns=bytes)
        receiver.poll()
        seen: list[str] = []
        with Callers(host, scaled(4, 16), to=address, clock=theirs) as callers:
            for jump in (0, DAY, 0, -DAY, 0, DAY, -DAY, 0):
                clock.write_text(str(jump))
                callers.rounds()
                # Read now and then: an emptied box must not begin again below what its client has.
                seen += [mail.body.decode() for mail in receiver.poll()]
                theirs.write_text(str(jump // 2))
                callers.rounds()
                seen += [mail.body.decode() for mail in receiver.poll()]
            tally = callers.stop()
        while mails := receiver.poll():
            seen += [mail.body.decode() for mail in mails]
        lost = tally.acknowledged - set(seen)
        # Newcomers verify by their own clock: ahead, evidence is valid still; behind, it is not yet, and they say so.
        theirs.write_text(str(DAY))
        with Callers(host, 2, clock=theirs) as ahead:
            ahead.rounds()
            early = ahead.stop()
        theirs.write_text(str(-DAY))
        with Callers(host, 2, clock=theirs) as behind:
            time.sleep(SECONDS / 4)
            theirs.write_text("0")
            behind.rounds()
            late = behind.stop()
        report("clocks jump", **tally.figures(), lost=len(lost), behind=late.errors, end=host.memory())
    assert not early.errors
    assert set(late.errors) <= {"ExpiredError: pck: not valid yet at this time; check the clock"}
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert tally.boots == 1
    assert not lost
    assert len(seen) == len(set(seen))
