"""The constraint: which enclaves a client accepts, in one line.

Runs at the relying party. The text is trusted (the data owner chose it); what it
is held against was verified before.

Spec: spec/constraint.md (CON-1 to CON-12).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

import conclave
from conclave.attestation.claims import InstanceClaims
from conclave.errors import AppraisalError, FormatError

Security = Literal["SECURE", "STALE", "INSECURE"]
LEVELS: Final[tuple[Security, ...]] = ("INSECURE", "STALE", "SECURE")
HARDWARE: Final = ("sgx", "tdx", "snp", "nitro")
SIMULATED: Final = "simulated"
MAX_LENGTH: Final = 16384
_LIFTABLE: Final = {"SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"}
_REPEATABLE: Final = {"C", "S", "RUNTIME"}
_KEYS: Final = ("C", "S", "PROD", "REVOKE", "SEC", "EXPIRE", "TEE", "RUNTIME", "ADVISORIES")
_HASH = re.compile(r"[0-9A-Fa-f]{64}\Z")
_PERIOD = re.compile(r"P(?=\d)(?:(\d{1,4})Y)?(?:(\d{1,4})M)?(?:(\d{1,4})W)?(?:(\d{1,5})D)?\Z")
_RELEASE = re.compile(r"[A-Za-z0-9._-]{1,63}\Z")
# Measurements of our releases on hardware, by release: without one, a release is only a
# word that anybody's runtime can say. None is published yet.
_release_measurements: dict[str, frozenset[str]] = {}
_ADVISORY = re.compile(r"[A-Z0-9-]{1,32}\Z")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified quote says, together with the instance claims it covers.

    Made by the verifier only. `tee` names the trust anchor that verified.
    """

    instance: InstanceClaims
    claims_digest: bytes
    tee: str
    debug: bool
    tcb_status: str
    advisories: tuple[str, ...]
    measurement: bytes
    anchor: str
    oldest_issue_date: datetime
    verified_at: datetime


@dataclass(frozen=True, slots=True)
class AttestationResult:
    """A verified instance that a constraint accepts. Only appraisal makes one."""

    claims: InstanceClaims
    claims_digest: bytes
    tee: str
    security: Security
    tcb_status: str
    advisories: tuple[str, ...]
    measurement: bytes
    anchor: str
    oldest_issue_date: datetime
    verified_at: datetime


@dataclass(frozen=True, slots=True)
class Constraint:
    """A parsed constraint. Every field is a decision; there is no "not checked".

    `expire` is (years, months, days), or None where age is left to the
    endorsements' own validity.
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

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read a constraint line. Raises FormatError saying what to change."""
        values = _tokens(text)
        security = _security(values)
        tees, anchor = _tees(values, security)
        codes = frozenset(_hash("C", v) for v in values.get("C", ()))
        signers = frozenset(_hash("S", v) for v in values.get("S", ()))
        if "0" * 64 in signers:
            raise FormatError("S: the zero hash stands for unsigned bundles and cannot be accepted; use C:")
        if not codes and not signers:
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
        return " ".join(parts)

    def appraise(self, claims: Claims) -> AttestationResult:
        """Accept verified claims, or raise AppraisalError naming every reason."""
        instance = claims.instance
        security = self._level(claims)
        checks = (
            self._identity(instance),
            self._product(instance),
            self._revocation(instance),
            self._security_level(security, claims),
            self._age(claims),
            self._tee(claims),
            self._runtime(claims),
        )
        failures = tuple(check for check in checks if check is not None)
        if failures:
            raise AppraisalError(failures)
        return AttestationResult(
            instance,
            claims.claims_digest,
            claims.tee,
            security,
            claims.tcb_status,
            claims.advisories,
            claims.measurement,
            claims.anchor,
            claims.oldest_issue_date,
            claims.verified_at,
        )

    def _level(self, claims: Claims) -> Security:
        if claims.debug or claims.tee == SIMULATED or claims.instance.mode == "debug":
            return "INSECURE"
        if claims.tcb_status == "UpToDate":
            return "SECURE"
        # Only advisories that the vendor lists, all of them accepted by name, lift.
        named = claims.advisories and set(claims.advisories) <= self.advisories
        return "SECURE" if named and claims.tcb_status in _LIFTABLE else "STALE"

    def _identity(self, instance: InstanceClaims) -> str | None:
        if instance.code.hex() in self.codes or instance.signer.hex() in self.signers:
            return None
        accepted = [f"C:{c}" for c in sorted(self.codes)] + [f"S:{s}" for s in sorted(self.signers)]
        return (
            f"C/S: expected {' or '.join(accepted)}, got C:{instance.code.hex()} S:{instance.signer.hex()}: "
            "this is another program; if you have reviewed it, put its code into the constraint"
        )

    def _product(self, instance: InstanceClaims) -> str | None:
        if self.product_id is None or instance.product_id == self.product_id:
            return None
        return (
            f"PROD: expected {self.product_id}, got {instance.product_id}: "
            "the author's other product; connect to the right host or change PROD"
        )

    def _revocation(self, instance: InstanceClaims) -> str | None:
        if instance.revocation_level >= self.revocation_level:
            return None
        return (
            f"REVOKE: expected at least {self.revocation_level}, got {instance.revocation_level}: "
            "the author replaced this release; ask the operator to upgrade"
        )

    def _security_level(self, security: Security, claims: Claims) -> str | None:
        found = f"{security} ({claims.tee}, TCB {claims.tcb_status}, {claims.instance.mode} mode)"
        if self.security == "INSECURE":
            if security == "INSECURE":
                return None
            return f"SEC: INSECURE matches only insecure enclaves, got {found}; remove SEC:INSECURE for this one"
        if LEVELS.index(security) >= LEVELS.index(self.security):
            return None
        hint = "for development only, say SEC:INSECURE" if security == "INSECURE" else "or accept SEC:STALE"
        return f"SEC: expected {self.security}, got {found}; ask the operator to update the platform, {hint}"

    def _age(self, claims: Claims) -> str | None:
        if self.expire is None or claims.oldest_issue_date > _before(claims.verified_at, self.expire):
            return None
        years, months, days = self.expire
        return (
            f"EXPIRE: expected endorsements younger than P{years}Y{months}M{days}D, but the oldest endorsement is of "
            f"{claims.oldest_issue_date.date()}; ask the operator to fetch new endorsements"
        )

    def _tee(self, claims: Claims) -> str | None:
        if claims.tee in self.tees:
            return None
        return f"TEE: expected {', '.join(sorted(self.tees))}, got {claims.tee}; add it to TEE: if you accept it"

    def _runtime(self, claims: Claims) -> str | None:
        # The release is the runtime's own word: it must not pass for a measurement, and on
        # hardware it counts only together with the measurement of that very release.
        release, measurement = claims.instance.runtime, claims.measurement.hex()
        genuine = claims.tee == SIMULATED or measurement in _release_measurements.get(release, ())
        named = {r for r in self.runtimes if not _HASH.match(r)}
        if (release in named and genuine) or measurement in self.runtimes:
            return None
        hint = "upgrade the client library or name the release"
        if release in named:
            hint = (
                "this library knows no such measurement of that release; if you have checked it, name the measurement"
            )
        expected = ", ".join(sorted(self.runtimes))
        return f"RUNTIME: expected {expected}, got {release} with measurement {measurement}; {hint}"


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
            raise FormatError(f"unknown clause in the constraint; known: {', '.join(k + ':' for k in _KEYS)}")
        if not value:
            raise FormatError(f"{key}: has no value")
        if key in values and key not in _REPEATABLE:
            raise FormatError(f"{key}: is given more than once")
        values.setdefault(key, []).append(value)
    return values


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
        if not _RELEASE.match(value) and not _HASH.match(value):
            raise FormatError("RUNTIME: takes a release such as conclave-0.1.0, or a measurement of 64 hex digits")
    return frozenset(v.lower() if _HASH.match(v) else v for v in values["RUNTIME"])


def _advisories(values: dict[str, list[str]]) -> frozenset[str]:
    given = values.get("ADVISORIES", [""])[0]
    names = given.split(",") if given else []
    if not all(_ADVISORY.match(n) for n in names):
        raise FormatError("ADVISORIES: takes a list of ids such as INTEL-SA-00615")
    return frozenset(names)


def _before(moment: datetime, period: tuple[int, int, int]) -> datetime:
    """Calendar subtraction; a day that the month lacks becomes its last."""
    years, months, days = period
    count = moment.year * 12 + moment.month - 1 - years * 12 - months
    year, month = divmod(count, 12)
    if year < 1:
        return datetime.min.replace(tzinfo=moment.tzinfo)
    day = moment.day
    while True:
        try:
            earlier = moment.replace(year=year, month=month + 1, day=day)
            break
        except ValueError:
            day -= 1
    try:
        return earlier - timedelta(days=days)
    except OverflowError:
        return datetime.min.replace(tzinfo=moment.tzinfo)
