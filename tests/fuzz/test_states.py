"""Each target behind keys or a host, ten seconds of seeded mutations of its corpus."""

from __future__ import annotations

import pytest
from fuzz.engine import corpus, run
from fuzz.states import STATES


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_any_bytes_give_a_value_or_one_error(name: str) -> None:
    assert corpus(name)
    assert run(name) > 50
