"""Which host comes next, how long a client waits, what it tells meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.test_client_core import Instance, call, core

from conclave.client._hosts import Hosts, delay_seconds
from conclave.client.core import Answer, Exchange, Pause
from conclave.errors import AppraisalError


@pytest.mark.spec("MAIL-54")
def test_who_left_a_host_first_decides() -> None:
    hosts = Hosts(3)
    assert hosts.leave(0, "silent")
    # Another thread found the same: it does not skip the next one for that.
    assert hosts.leave(0, "silent")
    assert hosts.current == 1
    assert [(e.kind, e.host) for e in hosts.events] == [("failed over", 1)]
    hosts.leave(1, "silent")
    hosts.leave(2, "silent")
    assert hosts.current == 0
    assert not Hosts(1).leave(0, "silent")


@pytest.mark.spec("MAIL-54")
def test_delays_are_random_within_bounds() -> None:
    for attempt, longest in enumerate([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]):
        delays = [delay_seconds(attempt) for _ in range(200)]
        assert all(0 <= delay <= longest for delay in delays)
        assert len(set(delays)) > 100
    assert delay_seconds(10**6) <= 2.0
    # A host may ask for patience, within reason.
    assert delay_seconds(0, 5.0) == 5.0
    assert delay_seconds(0, 99999.0) == 10.0


@pytest.mark.spec("MAIL-54")
def test_a_hint_and_what_is_told() -> None:
    instance = Instance()
    client = core(instance)
    steps = call(client)
    next(steps)
    pause = steps.send(Answer(429, retry_after=7.0))
    assert isinstance(pause, Pause)
    assert pause.seconds == 7.0
    again = steps.send(Answer(0))
    assert isinstance(again, Exchange)
    with pytest.raises(StopIteration):
        steps.send(instance.answer(again))
    waiting, retrying = client.hosts.events
    assert (waiting.kind, waiting.attempt, waiting.seconds) == ("waiting", 1, 7.0)
    assert waiting.reason == "the host says that the enclave has no room"
    assert (retrying.kind, retrying.attempt) == ("retrying", 2)


@pytest.mark.spec("MAIL-54")
def test_two_failures_at_one_host_are_enough() -> None:
    instance = Instance()
    client = core(instance, attempts=4)
    client.hosts = Hosts(2)
    steps = call(client)
    asked = []
    answer = None
    for _ in range(12):
        step = next(steps) if answer is None else steps.send(answer)
        answer = Answer(0)
        if isinstance(step, Exchange):
            asked.append((step.path, step.host))
            if step.path == "/instance":
                break
            answer = Answer(502)
    # The first time it asks the same host again.
    assert asked == [("/mail", 0), ("/instance", 0)]
    steps.close()


@pytest.mark.spec("MAIL-54")
def test_an_instance_is_refused_at_each_host_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AppraisalError(("another program",))

    monkeypatch.setattr("conclave.client.core.verify_instance", refuse)
    instance = Instance()
    client = core(instance)
    for count in (1, 2):
        client.hosts = Hosts(count)
        instance.exchanges.clear()
        with pytest.raises(AppraisalError):
            instance.drive(client.verify(), lambda _: Answer(200))
        assert [e.host for e in instance.exchanges] == list(range(count))
