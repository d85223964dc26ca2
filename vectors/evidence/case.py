"""One case: evidence that passes, with one thing changed, and what a verifier must say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from conclave.testing.evidence import BuiltEvidence

PASSES = "authentic"
Change = Callable[[Any], object]


@dataclass(frozen=True)
class Case:
    """`claims` holds what the verifier of evidence that passes must say of it."""

    name: str
    spec: str
    comment: str
    expect: str
    built: BuiltEvidence
    later: timedelta
    claims: dict[str, Any]


@dataclass
class Cases:
    """The cases of one TEE, each built by the same function with other options.

    `facts` are what evidence that passes says, read from the draft it was built from.
    """

    tee: str
    build: Callable[..., BuiltEvidence]
    facts: Callable[[Any], dict[str, Any]]
    found: list[Case] = field(default_factory=list)

    def refuse(
        self,
        expect: str,
        spec: str,
        name: str,
        comment: str,
        change: Change | None = None,
        *,
        later: timedelta = timedelta(),
        **options: Any,
    ) -> None:
        """A case that must be refused with that code."""
        self._add(name, spec, comment, expect, change, later, {}, options)

    def accept(
        self,
        spec: str,
        name: str,
        comment: str,
        change: Change | None = None,
        *,
        claims: dict[str, Any],
        later: timedelta = timedelta(),
        **options: Any,
    ) -> None:
        """A case that must verify, and be described so."""
        self._add(name, spec, comment, PASSES, change, later, claims, options)

    def _add(
        self,
        name: str,
        spec: str,
        comment: str,
        expect: str,
        change: Change | None,
        later: timedelta,
        claims: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        drafts: list[Any] = []
        built = self.build(change=do(drafts.append, *([change] if change else [])), **options)
        if expect == PASSES:
            claims = claims | self.facts(drafts[0])
        self.found.append(Case(f"{self.tee}-{name}", spec, comment, expect, built, later, claims))


def window(periods: Iterable[tuple[datetime, datetime]], issued: Iterable[datetime]) -> dict[str, str]:
    """Within what all of these are valid, and the oldest of what ages."""
    begins, ends = zip(*periods, strict=True)
    moments = {"oldest_issue_date": min(issued), "valid_from": max(begins), "valid_until": min(ends)}
    return {name: moment.strftime("%Y-%m-%dT%H:%M:%SZ") for name, moment in moments.items()}


def do(*changes: Change) -> Change:
    """Several changes as one."""

    def change(draft: Any) -> None:
        for each in changes:
            each(draft)

    return change
