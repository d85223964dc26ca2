"""What a platform would need: its TCB version beside the vendor's newest, part by part.

Runs at the operator or the relying party, on claims that were verified. For people who
have to update it; no decision rests on it.

Spec: spec/tcb.md section 3 (TCB-13).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from conclave.attestation import dcap
from conclave.attestation.dcap.tcb import module_of
from conclave.attestation.evidence import EvidenceClaims
from conclave.attestation.tcb import ANY, SNP_PARTS, subject_of, version_of

_COMPONENTS: Final = 16


@dataclass(frozen=True, slots=True)
class Gap:
    """One part of a platform that is older than it has to be.

    Attributes:
        part: in the vendor's words where it gives some. Authentic, but made for no terminal.
        has, needs: its version, and the least that would do.
    """

    part: str
    has: int
    needs: int


def gaps_of(evidence: EvidenceClaims, endorsements: bytes, *, minimum: str | None) -> tuple[Gap, ...]:
    """Every part that keeps a platform from the newest level, or from a minimum.

    Args:
        evidence: verified, with these endorsements.
        endorsements: as they were verified with.
        minimum: SEV-SNP: the minimum TCB version that is known, as `TCB:` has it.
    """
    if evidence.tee in ("sgx", "tdx"):
        found = _intel(evidence, endorsements)
    elif evidence.tee == "snp" and minimum not in (None, ANY):
        found = _amd(evidence, str(minimum))
    else:
        found = iter(())
    return tuple(gap for gap in found if gap.has < gap.needs)


def _amd(evidence: EvidenceClaims, minimum: str) -> Iterator[Gap]:
    names = SNP_PARTS[subject_of(evidence).partition("-")[2]]
    for name, has, needs in zip(names, version_of(evidence).split("."), minimum.split("."), strict=True):
        yield Gap(name.replace("_", " "), int(has), int(needs))


def _intel(evidence: EvidenceClaims, endorsements: bytes) -> Iterator[Gap]:
    given = dcap.parse_endorsements(endorsements)
    # The vendor lists the highest level first.
    newest = given.tcb_info.levels[0]
    written = json.loads(given.tcb_info_document.text)["tcbLevels"][0]["tcb"]
    components = bytes.fromhex(evidence.details["tcb_components"])
    for index in range(_COMPONENTS):
        yield Gap(_name(written, "sgxtcbcomponents", index), components[index], newest.components[index])
    yield Gap("PCE", evidence.details["pce_svn"], newest.pce_svn)
    if evidence.tee == "tdx":
        versions = bytes.fromhex(evidence.measurements["tee_tcb_svn"])
        # A module with a major version has levels of its own: its two bytes are not compared here.
        start = 2 if versions[1] else 0
        for index in range(start, _COMPONENTS):
            yield Gap(_name(written, "tdxtcbcomponents", index), versions[index], newest.tdx[index])
        if start:
            yield Gap("TDX module", versions[0], module_of(given.tcb_info, versions).levels[0].svn)
    yield Gap("quoting enclave", evidence.details["qe_svn"], given.qe_identity.levels[0].svn)


def _name(written: Any, family: str, index: int) -> str:
    plain = f"{'TDX' if family.startswith('tdx') else 'CPU'} component {index + 1}"
    # TCB info of version 2 has no list, and no names.
    listed = written.get(family)
    words = [listed[index].get(member) for member in ("category", "type")] if listed else []
    named = ": ".join(word for word in words if isinstance(word, str) and word)
    return f"{plain} ({named})" if named else plain
