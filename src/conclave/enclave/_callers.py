"""Enclaves that call this one: which are accepted, and who introduced itself.

Runs inside the enclave, and is loaded only by those that declare `callers`. An
introduction comes from a client, who may be anybody: what it says counts once the
evidence in it verified, for the key that opened the channel and for no other.

Spec: spec/mail.md section 9 (MAIL-45 to MAIL-49).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from conclave import _crypto
from conclave.attestation.appraisal import AttestationResult
from conclave.attestation.claims import parse_claims, parse_instance_info
from conclave.attestation.constraint import Constraint
from conclave.attestation.verify import verify_instance
from conclave.enclave._clock import Clock
from conclave.enclave.sdk import Caller, NotIntroduced
from conclave.errors import Error, FormatError

MAX_INTRODUCTION: Final = 256 * 1024
MAX_NAMES: Final = 16
MAX_KNOWN: Final = 4096
# So many wait at most for the one thread that verifies, and so many of one identity.
MAX_WAITING: Final = 32
MAX_WAITING_EACH: Final = 2
# A constraint's EXPIRE: is looked at again at least so often.
MAX_AGE: Final = timedelta(days=1)


def check_declared(declared: Mapping[str, str | None]) -> dict[str, Constraint | None]:
    """The constraints of a class's `callers`.

    Raises:
        TypeError: it is no mapping of names to constraint lines.
        FormatError: a constraint does not parse.
    """
    if not isinstance(declared, Mapping) or len(declared) > MAX_NAMES:
        raise TypeError(f"callers is a mapping of at most {MAX_NAMES} names to constraints")
    found: dict[str, Constraint | None] = {}
    for name, line in declared.items():
        if not isinstance(name, str) or not 0 < len(name) <= 64 or not (line is None or isinstance(line, str)):
            raise TypeError("callers: a name has 1 to 64 characters; its constraint is a line, or None until it is set")
        found[name] = None if line is None else Constraint.parse(line)
    return found


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    until: datetime


class Callers:
    """Who introduced itself in this boot, until their evidence ends."""

    def __init__(self, declared: Mapping[str, str | None], clock: Clock) -> None:
        self._accepted = check_declared(declared)
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        self._waiting: Counter[bytes] = Counter()
        # One thread beside the loop: whoever sends what takes long to refuse holds up no call.
        self._pool = ThreadPoolExecutor(1)

    def allow(self, name: str, constraint: str) -> None:
        """Replace what a declared name accepts; who was accepted under it introduces itself again."""
        if name not in self._accepted:
            raise ValueError(f"callers declares no {name!r}; it has: {', '.join(self._accepted)}")
        self._accepted[name] = Constraint.parse(constraint)
        self._known = {key: known for key, known in self._known.items() if name not in known.caller.names}

    def find(self, identity: bytes) -> Caller | None:
        """The enclave with that signing key, if it introduced itself and its evidence still counts."""
        known = self._known.get(identity)
        if known is None:
            return None
        if self._clock.now() > known.until:
            self._known.pop(identity, None)
            return None
        return known.caller

    def demand(self, names: tuple[str, ...], identity: bytes) -> None:
        """Raise NotIntroduced unless that key is of a caller by one of these names."""
        caller = self.find(identity)
        if caller is None or caller.names.isdisjoint(names):
            raise NotIntroduced(f"this method is for enclaves that introduced themselves as {' or '.join(names)}")

    async def introduce(self, identity: bytes, info: bytes) -> None:
        """Verify an introduction.

        Args:
            identity: the key that opened the channel.
            info: instance info, at most 256 KiB. Untrusted.

        Raises:
            FormatError: no instance info, or too large.
            NotIntroduced: for another key, or refused under every name.
        """
        if len(info) > MAX_INTRODUCTION:
            raise FormatError(f"an introduction has at most {MAX_INTRODUCTION} bytes")
        # What costs little comes first. These claims are not verified yet: the evidence has to cover just these bytes.
        if not _crypto.same(parse_claims(parse_instance_info(info).claims).signing_key, identity):
            raise NotIntroduced("the introduction is of another enclave than the one that opened this channel")
        if self._waiting[identity] >= MAX_WAITING_EACH or self._waiting.total() >= MAX_WAITING:
            raise NotIntroduced("too many introductions wait; try again")
        asked, now = dict(self._accepted), self._clock.now()
        self._waiting[identity] += 1
        try:
            loop = asyncio.get_running_loop()
            results, reasons = await loop.run_in_executor(self._pool, _verify, info, asked, now)
        finally:
            self._waiting[identity] -= 1
            # Of who waits no more nothing is kept.
            self._waiting += Counter()
        # The author may have replaced a constraint meanwhile.
        results = {name: result for name, result in results.items() if self._accepted[name] is asked[name]}
        if not results:
            raise NotIntroduced("refused as every caller that is declared: " + "; ".join(reasons))
        first = next(iter(results.values()))
        self._clock.accept(first)
        self._known.pop(identity, None)
        if len(self._known) >= MAX_KNOWN:
            # The oldest introduces itself again when it calls.
            del self._known[next(iter(self._known))]
        until = min(now + MAX_AGE, *(result.evidence.valid_until for result in results.values()))
        self._known[identity] = _Known(Caller(frozenset(results), first), until)


def _verify(
    info: bytes, accepted: Mapping[str, Constraint | None], now: datetime
) -> tuple[dict[str, AttestationResult], list[str]]:
    """What each name's constraint makes of it: results by name, and why the others refuse."""
    results: dict[str, AttestationResult] = {}
    reasons = []
    for name, constraint in accepted.items():
        if constraint is None:
            reasons.append(f"{name}: no constraint was set yet")
            continue
        try:
            # Each constraint decides for itself which trust anchors count.
            result = verify_instance(info, constraint, now=now)
        except Error as error:
            reasons.append(f"{name}: {error}")
        else:
            results[name] = result
    return results, reasons
