"""The simulated vendor: what it says of TCB levels, and which certificates it took back.

Runs in the simulated platform. A value: to publish something is to make the next one.
The documents have the vendor's real formats, so that the production verifier runs
unchanged on them.

Formats: Intel PCS API v4 (TCB info version 3, enclave identity version 2).
Spec: spec/tcb.md section 2 (TCB-1 to TCB-6).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Self

import msgspec
from msgspec import Meta

from conclave.attestation.dcap.collateral import QE_STATUSES
from conclave.attestation.dcap.tcb import converge

PCE_ID: Final = "0000"
CPU_SVN: Final = 2
PCE_SVN: Final = 11
QE_SVN: Final = 8
QE_PRODUCT: Final = 1
QE_MRSIGNER: Final = bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff")
QE_ATTRIBUTES: Final = bytes.fromhex("11000000000000000000000000000000")
STATUSES: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
PARTS: Final = ("cpu", "pce", "qe")
REVOCABLE: Final = ("platform", "ca")
PERISHABLE: Final = ("crl", "tcb-info", "qe-identity")
VALID: Final = timedelta(days=30)
_MICROCODE: Final = 2
_COMPONENTS: Final = 16
_MOST_SVN: Final = 255
_ADVISORY: Final = re.compile(r"[A-Z0-9-]{1,32}")
Svn = Annotated[int, Meta(ge=0, le=65535)]
Moment = Annotated[datetime, Meta(tz=True)]


class Tcb(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The TCB version of a machine.

    Attributes:
        platform: SVNs of 16 components, then PCESVN.
        qe: SVN of the quoting enclave.
    """

    platform: Annotated[tuple[Svn, ...], Meta(min_length=17, max_length=17)]
    qe: Svn

    @property
    def cpu_svn(self) -> bytes:
        """16 bytes, as reports and certificates have them."""
        return bytes(self.platform[:_COMPONENTS])

    @property
    def pce_svn(self) -> int:
        """Version of the provisioning certification enclave."""
        return self.platform[_COMPONENTS]


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the vendor says of all that have at least these versions, and not those of a higher level.

    Attributes:
        versions: as `Tcb.platform`; or one, the quoting enclave's.
        date: when the vendor made it.
        status: one of `STATUSES`.
    """

    versions: Annotated[tuple[Svn, ...], Meta(min_length=1, max_length=17)]
    date: Moment
    status: str = "UpToDate"
    advisories: tuple[str, ...] = ()

    def is_reached_by(self, versions: Iterable[int]) -> bool:
        """Whether something of those versions has this level, or a higher one."""
        return all(a >= b for a, b in zip(versions, self.versions, strict=True))

    def overtaken(self, status: str, advisories: Iterable[str]) -> Level:
        """The same level after a newer one that has to do with these advisories."""
        found = tuple(sorted({*self.advisories, *advisories}))
        return msgspec.structs.replace(self, status=converge((self.status, status)), advisories=found)


FIRST: Final = Tcb((CPU_SVN,) * _COMPONENTS + (PCE_SVN,), QE_SVN)


class Vendor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that the vendor says at one time.

    Attributes:
        levels, qe_levels: of platforms and of quoting enclaves, highest first.
        number: the TCB evaluation data number; only grows.
        revoked: of `REVOCABLE`.
        expired: of `PERISHABLE`: what it does not publish anew.
    """

    levels: Annotated[tuple[Level, ...], Meta(min_length=1)]
    qe_levels: Annotated[tuple[Level, ...], Meta(min_length=1)]
    number: int = 1
    revoked: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()

    @classmethod
    def first(cls, date: datetime, *, number: int = 1) -> Vendor:
        """One level, of that date, which is up to date."""
        return cls((Level(FIRST.platform, date),), (Level((FIRST.qe,), date),), number)

    @property
    def newest(self) -> Tcb:
        """The version that every machine should have."""
        return Tcb(self.levels[0].versions, self.qe_levels[0].versions[0])

    def level_of(self, tcb: Tcb) -> Level:
        """The level that a machine has."""
        return _level(self.levels, tcb.platform)

    def qe_level_of(self, tcb: Tcb) -> Level:
        """The level that its quoting enclave has."""
        return _level(self.qe_levels, (tcb.qe,))

    def publish(
        self,
        *,
        date: datetime,
        parts: Collection[str] = ("cpu",),
        status_of_older: str = "OutOfDate",
        advisories: Collection[str] = (),
    ) -> Vendor:
        """A new level, above all others. Parts that it does not raise stay good, as of its date.

        Args:
            date: of the level; not before that of the newest.
            parts: what machines have to update: `cpu` (microcode), `pce`, `qe`.
            status_of_older: what the levels below are from now on, if they are not worse.
            advisories: what was found; added to the levels below.

        Raises:
            ValueError: saying what cannot be published.
        """
        _demand(status_of_older, STATUSES, "a TCB status")
        _demand_advisories(advisories)
        if not parts:
            raise ValueError("a new level raises at least one part")
        for part in parts:
            _demand(part, PARTS, "a part")
        if "qe" in parts:
            _demand(status_of_older, sorted(QE_STATUSES), "the status of a quoting enclave")
        if date < max(self.levels[0].date, self.qe_levels[0].date):
            raise ValueError("a new level cannot be older than the one before it")
        platform = list(self.levels[0].versions)
        raised = [*(range(_MICROCODE) if "cpu" in parts else ()), *((_COMPONENTS,) if "pce" in parts else ())]
        for part in raised:
            platform[part] += 1
        qe = (self.qe_levels[0].versions[0] + ("qe" in parts),)
        levels = _topped(self.levels, Level(tuple(platform), date), status_of_older, advisories)
        qe_levels = _topped(self.qe_levels, Level(qe, date), status_of_older, advisories)
        if max(*levels[0].versions[:_COMPONENTS], qe_levels[0].versions[0]) > _MOST_SVN:
            raise ValueError(f"a version is at most {_MOST_SVN}")
        return self._next(levels=levels, qe_levels=qe_levels)

    def declare(self, tcb: Tcb, status: str, *, advisories: Collection[str] = ()) -> Vendor:
        """Say something else of the level that a machine has, with no level above it.

        Raises:
            ValueError: that is no status, or no id of an advisory.
        """
        _demand(status, STATUSES, "a TCB status")
        _demand_advisories(advisories)
        level = self.level_of(tcb)
        other = msgspec.structs.replace(level, status=status, advisories=tuple(sorted(set(advisories))))
        return self._next(levels=tuple(other if found is level else found for found in self.levels))

    def revoke(self, what: str) -> Vendor:
        """Take back the certificates of the `platform`, or that of the `ca` above it. Raises ValueError."""
        _demand(what, REVOCABLE, "what can be revoked")
        return msgspec.structs.replace(self, revoked=tuple(sorted({*self.revoked, what})))

    def expire(self, what: str) -> Vendor:
        """Let a document grow old, as if nobody had fetched a newer one. Raises ValueError."""
        _demand(what, PERISHABLE, "what can expire")
        return msgspec.structs.replace(self, expired=tuple(sorted({*self.expired, what})))

    def restore(self, tcb: Tcb) -> Vendor:
        """Nothing is revoked or expired, and a machine of this version has the newest level, up to date."""
        levels = tuple(level for level in self.levels if level.is_reached_by(tcb.platform))
        qe_levels = tuple(level for level in self.qe_levels if level.is_reached_by((tcb.qe,)))
        fine = {"status": "UpToDate", "advisories": ()}
        return self._next(
            levels=(msgspec.structs.replace(levels[0], **fine), *levels[1:]),
            qe_levels=(msgspec.structs.replace(qe_levels[0], **fine), *qe_levels[1:]),
            revoked=(),
            expired=(),
        )

    def _next(self, **changes: Any) -> Self:
        return msgspec.structs.replace(self, number=self.number + 1, **changes)

    def issue_date(self, document: str, now: datetime) -> datetime:
        """When the document that is out now was issued: now, or too long ago."""
        return now - VALID - timedelta(days=1) if document in self.expired else now

    def tcb_info(self, fmspc: bytes, *, now: datetime) -> dict[str, Any]:
        """TCB info of SGX platforms of one kind."""
        issued = self.issue_date("tcb-info", now)
        return {
            "id": "SGX",
            "version": 3,
            "issueDate": _text(issued),
            "nextUpdate": _text(issued + VALID),
            "fmspc": fmspc.hex().upper(),
            "pceId": PCE_ID,
            "tcbType": 0,
            "tcbEvaluationDataNumber": self.number,
            "tcbLevels": [
                _entry(
                    level,
                    {
                        "sgxtcbcomponents": [{"svn": svn} for svn in level.versions[:_COMPONENTS]],
                        "pcesvn": level.versions[_COMPONENTS],
                    },
                )
                for level in self.levels
            ],
        }

    def qe_identity(self, *, now: datetime) -> dict[str, Any]:
        """The identity of the quoting enclave."""
        issued = self.issue_date("qe-identity", now)
        return {
            "id": "QE",
            "version": 2,
            "issueDate": _text(issued),
            "nextUpdate": _text(issued + VALID),
            "tcbEvaluationDataNumber": self.number,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": QE_ATTRIBUTES.hex().upper(),
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_MRSIGNER.hex().upper(),
            "isvprodid": QE_PRODUCT,
            "tcbLevels": [_entry(level, {"isvsvn": level.versions[0]}) for level in self.qe_levels],
        }


def start_of_day(moment: datetime) -> datetime:
    """Its first moment, in UTC: vendors date levels by days."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _topped(levels: tuple[Level, ...], top: Level, status: str, advisories: Iterable[str]) -> tuple[Level, ...]:
    """Levels with a newer one above them; one of the same versions takes its place: only the date is another."""
    if top.versions == levels[0].versions:
        return (msgspec.structs.replace(levels[0], date=top.date), *levels[1:])
    return (top, *(level.overtaken(status, advisories) for level in levels))


def _level(levels: Iterable[Level], versions: tuple[int, ...]) -> Level:
    # No machine is older than the first level, which is never withdrawn.
    return next(level for level in levels if level.is_reached_by(versions))


def _entry(level: Level, tcb: dict[str, Any]) -> dict[str, Any]:
    entry = {"tcb": tcb, "tcbDate": _text(level.date), "tcbStatus": level.status}
    return entry | ({"advisoryIDs": list(level.advisories)} if level.advisories else {})


def _demand(value: str, known: Collection[str], what: str) -> None:
    if value not in known:
        raise ValueError(f"{what} is one of {', '.join(known)}")


def _demand_advisories(names: Iterable[str]) -> None:
    if not all(_ADVISORY.fullmatch(name) for name in names):
        raise ValueError("the id of an advisory is such as INTEL-SA-00615: 1 to 32 of A to Z, 0 to 9 and -")


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
