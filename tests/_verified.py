"""`conclave verify` as tests run it: in this process, every answer held against its form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest

from conclave.cli import main
from conclave.cli._answer import STATUSES, Answer


@dataclass(frozen=True)
class Outcome:
    """What a command wrote and returned."""

    status: int
    out: str
    err: str

    @property
    def answer(self) -> Answer:
        """The one JSON object; strict, so that a member too many or too few fails the test."""
        found = msgspec.json.decode(self.out, type=Answer)
        assert self.out.count("\n") == 1
        assert self.out.isascii()
        assert self.err == ""
        assert self.status == STATUSES[found.verdict]
        assert (found.code is None) == (found.verdict in ("accepted", "authentic"))
        assert bool(found.failures) == (found.verdict == "refused")
        if found.verdict in ("not-authentic", "malformed") or found.tee is None:
            assert found == msgspec.structs.replace(NOTHING, **{n: getattr(found, n) for n in TOLD})
        return found


TOLD = ("verdict", "code", "message", "at", "failures")
NOTHING = Answer(
    verdict="malformed", code=None, message="", at="", tee=None, tcb_status=None, security=None, reasons=[], debug=None,
    remarks=[], advisories=[], measurements={}, runtime_measurement=None, report_data=None, tcb_version=None, chip=None,
    anchor=None, oldest_issue_date=None, valid_from=None, valid_until=None, details={}, claims=None, failures=[],
)  # fmt: skip
Verify = Callable[..., Outcome]


def verifier(capsys: pytest.CaptureFixture[str]) -> Verify:
    """A function that runs `conclave verify` with these arguments."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as stopped:
            main(["verify", *map(str, arguments)])
        printed = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return Outcome(stopped.value.code, printed.out, printed.err)

    return run
