"""The demonstration fails when something goes otherwise than told."""

from __future__ import annotations

from pathlib import Path

import pytest

from conclave.demo import tour
from conclave.demo.refusal import Told, refusal
from conclave.demo.stage import Stage
from conclave.errors import AppraisalError, TransportError


def test_an_attack_that_goes_through_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Stage(tmp_path)
    made.expect("harmless", "client", lambda: "no such luck")
    assert made.failures == 0
    made.expect("attack", "client", lambda: refusal(AppraisalError, lambda: None, ""))
    assert made.failures == 1
    assert "✗ attack: NOT refused as told: Told: it went through" in capsys.readouterr().out


def test_another_refusal_than_the_told_one_counts_as_none() -> None:
    def other() -> None:
        raise TransportError("the cable is out")

    with pytest.raises(TransportError):
        refusal(AppraisalError, other, "")
    with pytest.raises(Told, match="refused otherwise"):
        refusal(TransportError, other, "nothing authentic")
    assert refusal(TransportError, other, "cable") == "the cable is out"


@pytest.mark.parametrize("went", ["attack went through", "the main job failed", "all well"])
def test_the_exit_status_tells(monkeypatch: pytest.MonkeyPatch, went: str) -> None:
    def steps(made: Stage) -> None:
        if went == "attack went through":
            made.failures += 1
        elif went == "the main job failed":
            raise Told("no model")

    monkeypatch.setattr(tour, "_steps", steps)
    assert tour.tour() == (went != "all well")
