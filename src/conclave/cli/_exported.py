"""Endorsements from a folder that `conclave endorsements export` wrote.

Untrusted: documents are judged by their shape and names alone, and the verifier by
the rest. Unlike an import this takes documents that have expired, for evidence of the
same time.

Format: spec/endorsements.md section 9.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from conclave.cli._files import MISUSE, files_in, read_if_there
from conclave.errors import FormatError
from conclave.host.endorsements import amd, intel
from conclave.host.endorsements.documents import MAX_CHAIN, Document, Wanted, form, read_document
from conclave.host.endorsements.platform import AmdPlatform, IntelPlatform, read_platform

# The folder's manifest says when they were fetched, and nothing depends on it here.
_FETCHED: Final = datetime.fromtimestamp(0, UTC)


def exported(place: Path, kind: str, evidence: bytes) -> bytes | None:
    """The endorsements for this evidence; None if the folder holds none for it.

    Raises:
        FormatError: `usage`: a file is of no use to anybody, such as a pipe.
        OSError: a file cannot be read.
    """
    try:
        platform = read_platform(evidence, kind)
        if isinstance(platform, IntelPlatform):
            return _intel(place, platform)
        return _amd(place, platform) if isinstance(platform, AmdPlatform) else None
    except FormatError as error:
        if error.code == MISUSE:
            raise
        # Evidence that does not parse has no endorsements; why, the verifier says.
        return None


def _intel(place: Path, platform: IntelPlatform) -> bytes | None:
    for evaluation in _evaluations(place, f"intel-{platform.tee}-tcb-{platform.fmspc}-"):
        found = _read(place, intel.wanted(platform, evaluation))
        if found:
            return intel.assemble(platform, found, evaluation)
    return None


def _evaluations(place: Path, prefix: str) -> list[str]:
    """Of which evaluations there are documents: the standard one first, then the newest."""
    names = [path.name for path in files_in(place, deep=False) if path.name.startswith(prefix)]
    found = [name.removeprefix(prefix).removesuffix(".json") for name in names if name.endswith(".json")]
    known = [n for n in found if re.fullmatch(r"standard|early|[1-9]\d{0,8}", n, re.ASCII)]
    return sorted(known, key=lambda n: (n != "standard", -int(n) if n.isdigit() else 0))


def _amd(place: Path, platform: AmdPlatform) -> bytes | None:
    for product in platform.products:
        for lists in (True, False):
            leaf, above = amd.wanted(platform, product, revocation_lists=lists)
            found = _read(place, (leaf, *above))
            if found:
                return amd.assemble(found)
    return None


def _read(place: Path, wanted: Sequence[Wanted]) -> dict[str, Document] | None:
    """All of them by name; None if one is not there."""
    found: dict[str, Document] = {}
    for each in wanted:
        kept = form(each)
        body = read_if_there(place / f"{each.name}{kept.ending}", limit=kept.max_size)
        chain = read_if_there(place / f"{each.name}.chain.pem", limit=MAX_CHAIN) if kept.has_chain else b""
        if body is None or chain is None:
            return None
        found[each.name] = read_document(each, body, chain, fetched=_FETCHED)
    return found
