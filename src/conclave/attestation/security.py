"""One scale for all vendors: SECURE, STALE, INSECURE, each with its reasons.

Runs at the relying party, on claims that were verified. What does not verify never
gets here: it is an error, not a level.

Spec: spec/evidence.md section 4 (EVID-5 to EVID-7).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from conclave.attestation.evidence import EvidenceClaims

Security = Literal["SECURE", "STALE", "INSECURE"]
LEVELS: Final[tuple[Security, ...]] = ("INSECURE", "STALE", "SECURE")
SIMULATED: Final = "simulated"

# The vendor's word for a platform, and what it means here. An unknown word is never SECURE: it is
# refused by the verifier, and would be STALE here.
STATUSES: Final[Mapping[str, tuple[Security, str]]] = {
    "UpToDate": ("SECURE", "the vendor says that the platform is up to date"),
    "SWHardeningNeeded": ("STALE", "the program must be hardened against the advisories named"),
    "ConfigurationNeeded": ("STALE", "the platform is configured in a way that the advisories named warn of"),
    "ConfigurationAndSWHardeningNeeded": (
        "STALE",
        "platform and program must be hardened, as the advisories named say",
    ),
    "TDRelaunchAdvised": ("STALE", "the trust domain was launched before the platform was updated"),
    "TDRelaunchAdvisedConfigurationNeeded": ("STALE", "launched before an update, and the configuration is warned of"),
    "OutOfDate": ("STALE", "the platform lacks security updates"),
    "OutOfDateConfigurationNeeded": (
        "STALE",
        "the platform lacks security updates, and is configured as is warned of",
    ),
}
_BELOW: Final = "the TCB version is below the minimum known for this product"
# Whoever names every advisory has decided about them; nobody can decide that an update is installed.
LIFTABLE: Final = frozenset({"SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"})
# What evidence may say beside the status. Words that are not here tell, and do not count.
REMARKS: Final[Mapping[str, tuple[Security, str]]] = {
    "service-td": ("INSECURE", "a service TD that nobody appraised may read this one's memory"),
    "hidden-service-td": (
        "INSECURE",
        "it can be migrated, and evidence of this form hides by whom: a service TD may read its memory",
    ),
    "unknown-attributes": ("INSECURE", "an attribute that this release does not know may open it to the host"),
    "sept-ve-enabled": ("INSECURE", "the host may raise exceptions inside at accesses of its choice"),
    "migration-agent": ("INSECURE", "a migration agent that nobody appraised may read the guest's memory"),
    "nitrotpm": (
        "INSECURE",
        "an EC2 instance, not an enclave: its administrator may run anything beside what was measured",
    ),
    "custom-root": ("INSECURE", "the root was given by hand: no vendor stands behind it"),
    "revocation-unknown": ("STALE", "no revocation list was given: it is not known whether the vendor revoked it"),
}


def judge(
    evidence: EvidenceClaims, *, tee: str, debug: bool, accepted_advisories: frozenset[str], tcb_accepted: bool | None
) -> tuple[Security, tuple[str, ...]]:
    """The level, and every reason that keeps it from SECURE.

    Args:
        tee: name of the trust anchor that verified; `simulated` for a simulated machine.
        debug: whether the program itself was built to show what it does.
        accepted_advisories: ids the data owner accepts by name.
        tcb_accepted: whether the TCB version reaches the minimum that is known: None if none is.
    """
    found: list[tuple[Security, str]] = []
    if tee == SIMULATED:
        found.append(("INSECURE", "a simulated TEE protects nothing from whoever owns the machine"))
    if evidence.debug:
        found.append(("INSECURE", "the TEE runs it in debug mode: the operator can read its memory"))
    if debug:
        found.append(("INSECURE", "the program was built in debug mode: what it prints reaches the operator"))
    found += [REMARKS[word] for word in sorted(evidence.remarks) if word in REMARKS]
    found.append(_of_platform(evidence, accepted_advisories, tcb_accepted))
    level = min((level for level, _ in found), key=LEVELS.index)
    return level, tuple(reason for its, reason in found if its != "SECURE")


def _of_platform(
    evidence: EvidenceClaims, accepted_advisories: frozenset[str], tcb_accepted: bool | None
) -> tuple[Security, str]:
    if evidence.tee == "nitro":
        return "SECURE", "the operator of the platform is its vendor, and gives no status"
    if evidence.tcb_status:
        level, reason = STATUSES.get(evidence.tcb_status, ("STALE", "a status that this release does not know"))
        if tcb_accepted is False and level == "SECURE":
            return "STALE", _BELOW
        if evidence.tcb_status in LIFTABLE and _named(evidence, accepted_advisories) and tcb_accepted is not False:
            return "SECURE", "the vendor's advisories, all of them accepted by name"
        return level, f"TCB {evidence.tcb_status}: {reason}"
    if tcb_accepted is None:
        return "STALE", "the vendor gives no status, and no minimum TCB version is known; name one with TCB:"
    if not tcb_accepted:
        return "STALE", _BELOW
    return "SECURE", "the TCB version reaches the minimum"


def _named(evidence: EvidenceClaims, accepted: frozenset[str]) -> bool:
    """Whether somebody accepted every advisory, and each part that is wanting has one: one part's excuse no other."""
    listed = evidence.details.get("advisories", {})
    excused = all(status == "UpToDate" or listed.get(part) for part, status in evidence.statuses.items())
    return bool(evidence.advisories) and set(evidence.advisories) <= accepted and excused
