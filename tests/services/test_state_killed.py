"""A host, a platform and an enclave that are killed, each as a process of its own: state and answers are whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests._kills import ledger
from tests._kills.processes import besiege

from conclave.bundle import Bundle

pytestmark = pytest.mark.slow


def test_one_kill_of_each(author: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = author("ledger", Path(ledger.__file__).read_text())
    figures = besiege(bundle, tmp_path, kills=3, callers=2, seed=1)
    assert figures["killed"] == {"host": 1, "enclave": 1, "platform": 1}
    assert figures["boots"] >= 3
