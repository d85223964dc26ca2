"""What `conclave tcb rehearse` answers: one object of a fixed form, and the same in words.

Spec: spec/tcb.md section 5, spec/tcb-rehearsal.schema.json.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from conclave.attestation.constraint import Constraint
from conclave.attestation.expiry import expiries
from conclave.attestation.rehearse import Enclave, Outcome, Situation, Standing
from conclave.attestation.security import Security
from conclave.cli._answer import Code, Time, text_of
from conclave.cli._terminal import WIDTH, safe
from conclave.errors import Error

_SHOWN: Final = 3


class GapFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the platform that is older than the vendor's newest level, or a minimum, wants."""

    part: str
    has: int
    needs: int


class StandingFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an enclave fares under a constraint; `code` is null if it is accepted.

    What is known of the platform is null or empty unless the evidence verified.
    """

    accepted: bool
    code: Code | None
    security: Security | None
    tcb_status: str | None
    tcb_version: str | None
    advisories: list[str]
    reasons: list[str]
    failures: list[str]
    gaps: list[GapFacts]


class PairFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One enclave and one constraint, by their names in this answer."""

    enclave: str
    constraint: str
    loses_access: bool
    gains_access: bool
    now: StandingFacts
    then: StandingFacts


class ExpiryFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of something that the evidence stands on now; `renewable`: hosts fetch a newer one."""

    what: str
    until: Time
    renewable: bool


class EnclaveFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An enclave: `changes` says whether it will be endorsed otherwise; `expires` is sorted by time."""

    name: str
    kind: str
    changes: bool
    expires: list[ExpiryFacts]


class Rehearsal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer of `conclave tcb rehearse`. Every member is always present.

    `constraints` are expanded, by name; `losers` counts the pairs that lose access, and the
    exit status is 10 if there are any.
    """

    now: Time
    then: Time
    losers: Annotated[int, Meta(ge=0)]
    gainers: Annotated[int, Meta(ge=0)]
    constraints: dict[str, str]
    enclaves: list[EnclaveFacts]
    pairs: list[PairFacts]


def answer(
    now: Situation, then: Situation, constraints: Mapping[str, Constraint], outcomes: Iterable[Outcome]
) -> Rehearsal:
    """The answer from what was found."""
    pairs = [
        PairFacts(o.enclave, o.constraint, o.loses_access, o.gains_access, _standing(o.now), _standing(o.then))
        for o in outcomes
    ]
    return Rehearsal(
        now=text_of(now.now),
        then=text_of(then.now),
        losers=sum(p.loses_access for p in pairs),
        gainers=sum(p.gains_access for p in pairs),
        constraints={name: str(constraint) for name, constraint in constraints.items()},
        enclaves=[
            EnclaveFacts(before.name, before.kind, before.endorsements != after.endorsements, _expiries(before))
            for before, after in zip(now.enclaves, then.enclaves, strict=True)
        ],
        pairs=pairs,
    )


def _standing(found: Standing) -> StandingFacts:
    return StandingFacts(
        accepted=found.accepted,
        code=found.code or None,
        security=found.security,
        tcb_status=found.tcb_status or None,
        tcb_version=found.tcb_version or None,
        advisories=list(found.advisories),
        reasons=list(found.reasons),
        failures=list(found.failures),
        gaps=[GapFacts(gap.part, gap.has, gap.needs) for gap in found.gaps],
    )


def _expiries(enclave: Enclave) -> list[ExpiryFacts]:
    try:
        return [ExpiryFacts(e.what, text_of(e.until), e.renewable) for e in expiries(enclave)]
    except Error:
        # What does not parse is not authentic either, and the pairs say so.
        return []


def schema() -> dict[str, Any]:
    """JSON Schema of the answer: spec/tcb-rehearsal.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Rehearsal)}


# In words ------------------------------------------------------------------------------


def told(found: Rehearsal) -> Iterator[str]:
    """Lines for a terminal: every pair, then what there is to know about those that are not accepted then."""
    yield f"now   {found.now}"
    yield f"then  {found.then}"
    yield ""
    names = _short([e.name for e in found.enclaves])
    rows = [("ENCLAVE", "CONSTRAINT", "NOW", "THEN", "")]
    for pair in found.pairs:
        change = "LOSES ACCESS" if pair.loses_access else "gains access" if pair.gains_access else ""
        rows.append((names[pair.enclave], safe(pair.constraint), _word(pair.now), _word(pair.then), change))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    for enclave in found.enclaves:
        yield from _about(enclave, found, names[enclave.name])
    yield f"{found.losers} of {len(found.pairs)} lose access" if found.losers else "nobody loses access"


def _word(standing: StandingFacts) -> str:
    if standing.accepted:
        return f"accepted, {standing.security}"
    if standing.security is None:
        return f"refused, {standing.code}"
    return f"refused, {standing.security}"


def _about(enclave: EnclaveFacts, found: Rehearsal, name: str) -> Iterator[str]:
    pairs = [p for p in found.pairs if p.enclave == enclave.name]
    lines: list[str] = []
    for pair in pairs:
        if not pair.then.accepted:
            for failure in pair.then.failures:
                lines += _hanging(f"{pair.constraint}: {failure}")
    gaps = {(g.part, g.has, g.needs): None for p in pairs if not p.then.accepted for g in p.then.gaps}
    for part, has, needs in gaps:
        lines += _hanging(f"update: {part} is {has}, and has to be {needs}")
    ended = [e for e in enclave.expires if e.until < found.then] or enclave.expires[:1]
    for end in ended[:_SHOWN]:
        who = "the host fetches a newer one" if end.renewable else "only the vendor can renew it"
        lines += _hanging(f"expires: {end.what}, {end.until}; {who}")
    if len(ended) > _SHOWN:
        lines.append(f"  expires: and {len(ended) - _SHOWN} more until then (--json has all)")
    if not enclave.changes and enclave.kind in ("sgx", "tdx") and any(e.changes for e in found.enclaves):
        lines.append("  what is to come does not concern it")
    if lines:
        yield f"{name}"
        yield from lines
        yield ""


def _hanging(text: str) -> list[str]:
    return textwrap.wrap(safe(text), WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _short(names: Iterable[str]) -> dict[str, str]:
    """Names of at most 40 columns: the end of a path tells more than its beginning."""
    return {name: text if len(text := safe(name)) <= 40 else f"…{text[-39:]}" for name in names}
