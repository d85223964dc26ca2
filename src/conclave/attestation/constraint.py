"""The constraint: which enclaves a client accepts, in one line: its grammar and its form.

Runs at the relying party. The text is trusted: the data owner chose it. `appraisal`
holds it against what was verified.

Spec: spec/constraint.md (CON-1 to CON-15).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import conclave
from conclave.attestation.claims import TEES as HARDWARE
from conclave.attestation.security import LEVELS, SIMULATED, Security
from conclave.attestation.tcb import parse_minimum
from conclave.errors import FormatError

MAX_LENGTH: Final = 16384
# Of a clause that is none, an error shows so many characters; of a word without a colon, only a short one.
_MOST_SHOWN: Final = 32
_WORD: Final = 16
_REPEATABLE: Final = {"C", "S", "RUNTIME", "CHIP"}
_KEYS: Final = ("C", "S", "PROD", "REVOKE", "SEC", "EXPIRE", "TEE", "RUNTIME", "ADVISORIES", "TCB", "CHIP")
_HASH = re.compile(r"[0-9A-Fa-f]{64}\Z")
# 32 bytes for SGX, 48 for the others.
MEASUREMENT = re.compile(r"[0-9A-Fa-f]{64}(?:[0-9A-Fa-f]{32})?\Z")
_PERIOD = re.compile(r"P(?=\d)(?:(\d{1,4})Y)?(?:(\d{1,4})M)?(?:(\d{1,4})W)?(?:(\d{1,5})D)?\Z")
_RELEASE = re.compile(r"[A-Za-z0-9._-]{1,63}\Z")
_ADVISORY = re.compile(r"[A-Z0-9-]{1,32}\Z")


@dataclass(frozen=True, slots=True)
class Constraint:
    """A parsed constraint. Every field is a decision; there is no "not checked".

    `expire` is (years, months, days), or None where age is left to the
    endorsements' own validity. `minimum_tcb` and `chips` are empty where that is left
    to the vendor's status. `codes` and `signers` are both empty only in a constraint
    on evidence alone.
    """

    codes: frozenset[str]
    signers: frozenset[str]
    product_id: int | None
    revocation_level: int
    security: Security
    expire: tuple[int, int, int] | None
    tees: frozenset[str]
    simulated_anchor: str | None
    runtimes: frozenset[str]
    advisories: frozenset[str]
    minimum_tcb: Mapping[str, str] = field(hash=False)
    chips: frozenset[str]

    @classmethod
    def parse(cls, text: str, *, program: bool = True) -> Constraint:
        """Read a constraint line.

        Args:
            text: the line. Trusted.
            program: whether it has to name a program, as every constraint for a client
                does. False: it may be about evidence alone (`conclave verify` of a quote).

        Raises:
            FormatError: saying what to change.
        """
        values = _tokens(text)
        security = _security(values)
        tees, anchor = _tees(values, security)
        codes = frozenset(_hash("C", v) for v in values.get("C", ()))
        signers = frozenset(_hash("S", v) for v in values.get("S", ()))
        if "0" * 64 in signers:
            raise FormatError("S: the zero hash stands for unsigned bundles and cannot be accepted; use C:")
        if program and not codes and not signers:
            raise FormatError("a constraint names at least one program with C: or one author with S: and PROD:")
        if bool(signers) != ("PROD" in values):
            raise FormatError("S: and PROD: need each other: an author's key signs many products")
        constraint = cls(
            codes=codes,
            signers=signers,
            product_id=_number("PROD", values["PROD"][0]) if "PROD" in values else None,
            revocation_level=_number("REVOKE", values["REVOKE"][0]) if "REVOKE" in values else 0,
            security=security,
            expire=_period(values["EXPIRE"][0]) if "EXPIRE" in values else None,
            tees=tees,
            simulated_anchor=anchor,
            runtimes=_runtimes(values),
            advisories=_advisories(values),
            minimum_tcb=_minimum_tcb(values),
            chips=frozenset(_hash("CHIP", v) for v in values.get("CHIP", ())),
        )
        if len(str(constraint)) > MAX_LENGTH:
            raise FormatError(f"a constraint with every clause written out has at most {MAX_LENGTH} characters")
        return constraint

    def __str__(self) -> str:
        """The expanded line: every clause explicit, parses to an equal constraint."""
        parts = [f"C:{c}" for c in sorted(self.codes)] + [f"S:{s}" for s in sorted(self.signers)]
        if self.product_id is not None:
            parts.append(f"PROD:{self.product_id}")
        parts.append(f"REVOKE:{self.revocation_level}")
        parts.append(f"SEC:{self.security}")
        if self.expire is not None:
            years, months, days = self.expire
            parts.append(f"EXPIRE:P{years}Y{months}M{days}D")
        names = [
            f"{t}@{self.simulated_anchor}" if t == SIMULATED and self.simulated_anchor else t for t in sorted(self.tees)
        ]
        parts.append("TEE:" + ",".join(names))
        parts += [f"RUNTIME:{r}" for r in sorted(self.runtimes)]
        if self.advisories:
            parts.append("ADVISORIES:" + ",".join(sorted(self.advisories)))
        if self.minimum_tcb:
            parts.append("TCB:" + ",".join(f"{name}@{least}" for name, least in sorted(self.minimum_tcb.items())))
        parts += [f"CHIP:{c}" for c in sorted(self.chips)]
        return " ".join(parts)


def _tokens(text: str) -> dict[str, list[str]]:
    if len(text) > MAX_LENGTH:
        raise FormatError(f"a constraint has at most {MAX_LENGTH} characters")
    if not text.isascii():
        raise FormatError("a constraint has ASCII characters only")
    values: dict[str, list[str]] = {}
    for token in text.split(" "):
        if not token:
            continue
        key, _, value = token.partition(":")
        if key not in _KEYS:
            known = ", ".join(k + ":" for k in _KEYS)
            raise FormatError(f"unknown clause{_shown(token)} in the constraint; known: {known}")
        if not value:
            raise FormatError(f"{key}: has no value")
        if key in values and key not in _REPEATABLE:
            raise FormatError(f"{key}: is given more than once")
        values.setdefault(key, []).append(value)
    return values


def _shown(token: str) -> str:
    """What stands where a clause was expected. A long word without a colon may be a key, out of the wrong file."""
    if ":" not in token and len(token) > _WORD:
        return ""
    return f" {token[:_MOST_SHOWN]!r}{'…' if len(token) > _MOST_SHOWN else ''}"


def _hash(key: str, value: str) -> str:
    if not _HASH.match(value):
        raise FormatError(f"{key}: takes 64 hexadecimal digits, got {len(value)} characters")
    return value.lower()


def _number(key: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", value) or int(value) > 65535:
        raise FormatError(f"{key}: takes a number from 0 to 65535")
    return int(value)


def _security(values: dict[str, list[str]]) -> Security:
    given = values.get("SEC", ["SECURE"])[0]
    for level in LEVELS:
        if given == level:
            return level
    raise FormatError("SEC: takes SECURE, STALE or INSECURE")


def _period(value: str) -> tuple[int, int, int]:
    match = _PERIOD.match(value)
    if match is None:
        raise FormatError("EXPIRE: takes a period such as P30D, P6M or P1Y2M3W4D")
    years, months, weeks, days = (int(g or 0) for g in match.groups())
    years, months, days = years + months // 12, months % 12, weeks * 7 + days
    if years > 9999 or days > 99999:
        raise FormatError("EXPIRE: takes at most 9999 years and 99999 days")
    return years, months, days


def _tees(values: dict[str, list[str]], security: Security) -> tuple[frozenset[str], str | None]:
    insecure = security == "INSECURE"
    if "TEE" not in values:
        return frozenset((*HARDWARE, SIMULATED) if insecure else HARDWARE), None
    names, anchor = set(), None
    for item in values["TEE"][0].split(","):
        name, at, pin = item.partition("@")
        if name not in (*HARDWARE, SIMULATED) or (at and name != SIMULATED):
            raise FormatError(f"TEE: takes a list of {', '.join(HARDWARE)}, {SIMULATED}, {SIMULATED}@<sha256>")
        if name == SIMULATED and not insecure:
            raise FormatError("TEE:simulated protects nothing and is accepted only together with SEC:INSECURE")
        if name in names:
            raise FormatError(f"TEE: names {name} twice")
        names.add(name)
        anchor = _hash("TEE", pin) if at else anchor
    return frozenset(names), anchor


def _runtimes(values: dict[str, list[str]]) -> frozenset[str]:
    if "RUNTIME" not in values:
        return frozenset({f"conclave-{conclave.__version__}"})
    for value in values["RUNTIME"]:
        if not _RELEASE.match(value) and not MEASUREMENT.match(value):
            raise FormatError(
                "RUNTIME: takes a release such as conclave-0.1.0, or a measurement of 64 or 96 hex digits"
            )
    return frozenset(v.lower() if MEASUREMENT.match(v) else v for v in values["RUNTIME"])


def _advisories(values: dict[str, list[str]]) -> frozenset[str]:
    given = values.get("ADVISORIES", [""])[0]
    names = given.split(",") if given else []
    if not all(_ADVISORY.match(n) for n in names):
        raise FormatError("ADVISORIES: takes a list of ids such as INTEL-SA-00615")
    return frozenset(names)


def _minimum_tcb(values: dict[str, list[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in values.get("TCB", [""])[0].split(",") if "TCB" in values else ():
        name, _, least = item.partition("@")
        if name in found:
            raise FormatError(f"TCB: names {name} twice")
        found[name] = parse_minimum(name, least)
    return found
