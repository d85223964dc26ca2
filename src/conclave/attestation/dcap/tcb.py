"""TCB levels: which one a platform has, and one status for all of its parts.

Runs at the relying party, on documents whose signatures were checked.

Rules: Intel PCS API version 4 ("how to determine TCB status") and Intel's quote
verification library for TD preserving updates. Spec: spec/dcap.md section 5
(DCAP-17 to DCAP-21).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from conclave.attestation.dcap.collateral import EnclaveLevel, Level, Module, PlatformLevel, TcbInfo
from conclave.errors import RevokedError, VerificationError

REVOKED: Final = "Revoked"
RELAUNCH: Final = "TDRelaunchAdvised"
RELAUNCH_AND_CONFIGURE: Final = "TDRelaunchAdvisedConfigurationNeeded"
# A status says up to three things; being out of date swallows the need of hardening.
_OLD, _CONFIGURE, _HARDEN = "out of date", "configuration", "hardening"
_MEANING: Final[Mapping[str, frozenset[str]]] = {
    "UpToDate": frozenset(),
    "SWHardeningNeeded": frozenset({_HARDEN}),
    "ConfigurationNeeded": frozenset({_CONFIGURE}),
    "ConfigurationAndSWHardeningNeeded": frozenset({_CONFIGURE, _HARDEN}),
    "OutOfDate": frozenset({_OLD}),
    "OutOfDateConfigurationNeeded": frozenset({_OLD, _CONFIGURE}),
}
_STATUS: Final = {meaning: status for status, meaning in _MEANING.items()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The levels that matched, by part, and their one status."""

    status: str
    parts: Mapping[str, Level]

    @property
    def statuses(self) -> dict[str, str]:
        """The vendor's word for each part."""
        return {name: level.status for name, level in self.parts.items()}

    @property
    def advisories(self) -> tuple[str, ...]:
        """Of all parts, sorted."""
        return tuple(sorted({a for level in self.parts.values() for a in level.advisories}))

    @property
    def date(self) -> datetime | None:
        """Since when the oldest of the levels stands."""
        return min((level.date for level in self.parts.values() if level.date), default=None)


def converge(statuses: Iterable[str]) -> str:
    """One status that says everything that these say; Revoked overrides."""
    found = set(statuses)
    if REVOKED in found:
        return REVOKED
    meaning = frozenset[str]().union(*(_MEANING[s] for s in found))
    return _STATUS[meaning - {_HARDEN} if _OLD in meaning else meaning]


def relaunched(launch: str, current: str) -> str:
    """The status of a domain that was launched under one TDX module and now runs under another.

    If only what it was launched under is out of date, relaunching it is enough.
    """
    if _OLD in _MEANING[launch] and _OLD not in _MEANING[current]:
        configure = _CONFIGURE in _MEANING[launch] | _MEANING[current]
        return RELAUNCH_AND_CONFIGURE if configure else RELAUNCH
    return converge((launch, current))


def enclave_level(levels: Iterable[EnclaveLevel], svn: int, what: str) -> Level:
    """The first level that this version reaches. Raises VerificationError `tcb-unsupported`."""
    for candidate in levels:
        if svn >= candidate.svn:
            return candidate.level
    raise _unsupported(what)


def module_of(info: TcbInfo, tee_tcb_svn: bytes) -> Module:
    """The identity that a TDX module of this version must have. Raises VerificationError `tcb-unsupported`."""
    # The second byte is the module's major version. TDX 1.0 has 0 and is not listed by version.
    found = info.modules.get(f"TDX_{tee_tcb_svn[1]:02X}") if tee_tcb_svn[1] else info.module
    if found is None:
        raise _unsupported("the TDX module")
    return found


def evaluate(
    info: TcbInfo, *, components: bytes, pce_svn: int, qe: Level, tee_tcb_svn: bytes = b"", current: bytes = b""
) -> Evaluation:
    """Find every part's level and their one status.

    Args:
        components, pce_svn: of the PCK certificate.
        qe: the quoting enclave's level.
        tee_tcb_svn: TDX: versions when the domain was launched.
        current: TDX: versions now, where the report has them.

    Raises:
        RevokedError: `tcb-revoked`: the vendor revoked the level of a part.
        VerificationError: `tcb-unsupported`: the vendor lists no level as low as a part's.
    """
    parts = _parts(info, components, pce_svn, qe, tee_tcb_svn)
    status = _one(parts.values())
    if current:
        now = _parts(info, components, pce_svn, qe, current)
        status = relaunched(status, _one(now.values()))
        parts |= {f"current_{name}": level for name, level in now.items() if name != "qe"}
    return Evaluation(status, parts)


def _parts(info: TcbInfo, components: bytes, pce_svn: int, qe: Level, tee_tcb_svn: bytes) -> dict[str, Level]:
    parts = {"platform": _platform_level(info.levels, components, pce_svn, tee_tcb_svn), "qe": qe}
    if tee_tcb_svn and tee_tcb_svn[1]:
        parts["tdx_module"] = enclave_level(module_of(info, tee_tcb_svn).levels, tee_tcb_svn[0], "the TDX module")
    return parts


def _platform_level(levels: Iterable[PlatformLevel], components: bytes, pce_svn: int, tee_tcb_svn: bytes) -> Level:
    # A module with a major version has levels of its own: its two bytes are not compared here.
    start = 2 if tee_tcb_svn and tee_tcb_svn[1] else 0
    for candidate in levels:
        reached = _reaches(components, candidate.components) and pce_svn >= candidate.pce_svn
        if reached and (not tee_tcb_svn or _reaches(tee_tcb_svn[start:], candidate.tdx[start:])):
            return candidate.level
    raise _unsupported("the platform")


def _reaches(versions: bytes, least: Sequence[int]) -> bool:
    return all(a >= b for a, b in zip(versions, least, strict=True))


def _one(levels: Iterable[Level]) -> str:
    status = converge(level.status for level in levels)
    if status == REVOKED:
        raise RevokedError("the vendor revoked this platform's TCB level", code="tcb-revoked")
    return status


def _unsupported(what: str) -> VerificationError:
    return VerificationError(
        f"the vendor lists no TCB level that {what} reaches; it is older than every one", code="tcb-unsupported"
    )
