"""`conclave tcb rehearse`: reads what is given, and makes two situations of it: now, and then.

Runs at an operator or a data owner. Hosts, evidence, endorsements and announcements
are hostile; constraints and reference values are the user's.

Spec: spec/tcb.md section 3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from conclave.attestation import Constraint, ReferenceValues, dcap, load_reference_values
from conclave.attestation.announced import Announcement, announce, in_force, parse_announcement
from conclave.attestation.claims import MAX_ENDORSEMENTS
from conclave.attestation.constraint import MAX_LENGTH
from conclave.attestation.reference import MAX_SIZE, built_in
from conclave.attestation.rehearse import Enclave, Situation, rehearse
from conclave.attestation.tcb import parse_minimum
from conclave.cli._artefact import INSTANCE, is_url, read_artefact
from conclave.cli._files import misuse, read_file, read_if_there
from conclave.cli._folders import Places, find_endorsements
from conclave.cli._reference import parse_publisher
from conclave.cli._rehearsal import answer, told
from conclave.cli._terminal import safe
from conclave.errors import Error, FormatError

if TYPE_CHECKING:
    from conclave.platform.vendor import Vendor

MAX_CONSTRAINTS: Final = 10_000
_MAX_FILE: Final = 16 * 1024 * 1024
LOSES: Final = 10


@dataclass(frozen=True, slots=True)
class Given:
    """As things are, as the command line says it."""

    sources: tuple[str, ...]
    constraints: tuple[str, ...]
    now: datetime
    endorsements: Path | None = None
    reference: Path | None = None
    publisher: str | None = None


@dataclass(frozen=True, slots=True)
class Coming:
    """What is to come, as the command line says it.

    Attributes:
        change: what the vendor of a simulated machine would say instead; None: what it says now.
    """

    announced: tuple[Path, ...] = ()
    advance_to: datetime | None = None
    minimums: tuple[str, ...] = ()
    platform: Path | None = None
    change: Callable[[Vendor], Vendor] | None = None

    @property
    def nothing(self) -> bool:
        """Whether nothing is."""
        return not (self.announced or self.advance_to or self.minimums or self.platform)


def rehearse_command(given: Given, coming: Coming, *, as_json: bool) -> int:
    """Rehearse, and say what was found; the exit status tells whether anybody would lose access."""
    if not given.sources:
        raise misuse("name the enclaves: URLs of hosts, files or folders")
    if coming.nothing:
        raise misuse("say what is to come: --announced, --advance-to, --minimum, or --platform")
    constraints = _constraints(given.constraints)
    now, then = _situations(given, coming)
    outcomes = rehearse(now, then, constraints)
    found = answer(now, then, constraints, outcomes)
    print(json.dumps(msgspec.to_builtins(found)) if as_json else "\n".join(told(found)))
    return LOSES if found.losers else 0


def _situations(given: Given, coming: Coming) -> tuple[Situation, Situation]:
    enclaves = tuple(_enclave(source, given.endorsements) for source in given.sources)
    reference = _reference_values(given.reference, given.publisher)
    later = announce(enclaves, [a for path in coming.announced for a in _announcements(path, enclaves)])
    moment = coming.advance_to or in_force(enclaves, later, given.now)
    genuine: frozenset[str] = frozenset()
    if coming.platform is not None:
        anchor, later = _republished(later, coming.platform, coming.change, moment)
        genuine = frozenset({anchor})
    now = Situation(enclaves, given.now, reference, genuine)
    return now, Situation(later, moment, _with_minimums(reference, coming.minimums), genuine)


# Enclaves ------------------------------------------------------------------------------


def _enclave(source: str, endorsements: Path | None) -> Enclave:
    if is_url(source):
        # Not before it is needed: it loads an HTTP client.
        from conclave.cli._host import fetch_instance_info

        return _named(source, fetch_instance_info(source))
    artefact = read_artefact(Path(source))
    try:
        kind = artefact.kind
    except FormatError as error:
        raise FormatError(f"{safe(source)}: {error}", code=error.code) from None
    if kind == INSTANCE:
        return _named(source, artefact.data)
    found = find_endorsements(kind, artefact.data, Places(artefact.folder, endorsements))
    # A document of Nitro carries all of its own.
    if found is None and kind != "nitro":
        raise FormatError(
            f"{safe(source)}: no endorsements beside it; name their folder with --endorsements",
            code="endorsements-missing",
        )
    return Enclave(source, kind, artefact.data, found or b"")


def _named(source: str, info: bytes) -> Enclave:
    try:
        return Enclave.of_instance(source, info)
    except FormatError as error:
        raise FormatError(f"{safe(source)}: {error}", code=error.code) from None


# Constraints ---------------------------------------------------------------------------


def _constraints(texts: Iterable[str]) -> dict[str, Constraint]:
    found: dict[str, Constraint] = {}
    for text in texts:
        path = Path(text)
        lines = [text] if ":" in text and not _is_file(path) else _lines(path)
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name = f"{safe(text)}:{number}" if lines != [text] else f"constraint {len(found) + 1}"
            try:
                found[name] = Constraint.parse(line.strip(), program=False)
            except FormatError as error:
                raise FormatError(f"{name}: {error}", code=error.code) from None
    if not 1 <= len(found) <= MAX_CONSTRAINTS:
        raise misuse(f"give 1 to {MAX_CONSTRAINTS} constraints; there are {len(found)}")
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _lines(path: Path) -> list[str]:
    data = read_file(path, limit=_MAX_FILE)
    try:
        if len(data) > _MAX_FILE:
            raise ValueError
        lines = data.decode().splitlines()
    except ValueError:
        raise misuse(f"{safe(str(path))} holds no constraints") from None
    if any(len(line) > MAX_LENGTH + 1 for line in lines):
        raise misuse(f"{safe(str(path))}: a constraint has at most {MAX_LENGTH} characters")
    return lines


# What is to come -----------------------------------------------------------------------


def _announcements(path: Path, enclaves: tuple[Enclave, ...]) -> list[Announcement]:
    """Of one file; or of a folder that `conclave endorsements export` wrote, what concerns these enclaves."""
    if path.is_dir():
        files = sorted(p for p in path.glob("intel-*.json") if "-tcb-" in p.name or "-qe-" in p.name)
        if not files:
            raise misuse(f"{safe(str(path))} holds no TCB info or QE identity as they are exported")
        found = [a for file in files for a in _announcements(file, enclaves)]
        # If nothing in it does, it is the wrong folder, and that is said.
        return [a for a in found if any(a.concerns(enclave) for enclave in enclaves)] or found
    data = read_file(path, limit=MAX_ENDORSEMENTS)
    chain = read_if_there(path.with_name(f"{path.stem}.chain.pem"), limit=MAX_ENDORSEMENTS) or b""
    try:
        return [parse_announcement(data, chain=chain.decode("ascii", "replace"))]
    except FormatError as error:
        raise FormatError(f"{safe(str(path))}: {error}", code=error.code) from None


def _republished(
    enclaves: tuple[Enclave, ...], directory: Path, change: Callable[[Vendor], Vendor] | None, moment: datetime
) -> tuple[str, tuple[Enclave, ...]]:
    """The anchor of a simulated machine, and its enclaves as they would be endorsed."""
    from conclave.platform.machine import Machine

    machine = Machine.open(directory, create=False)
    try:
        endorsements = machine.foresee(change or (lambda vendor: vendor), now=moment)
    except ValueError as error:
        raise misuse(str(error)) from None
    later = tuple(replace(e, endorsements=endorsements) if _runs_on(e, machine.anchor) else e for e in enclaves)
    if later == enclaves:
        raise misuse("none of these enclaves runs on that simulated machine")
    return machine.anchor, later


def _runs_on(enclave: Enclave, anchor: str) -> bool:
    if enclave.kind != "sgx":
        return False
    try:
        chain = dcap.parse_quote(enclave.evidence).chain
    except Error:
        return False
    return any(hashlib.sha256(der).hexdigest() == anchor for der in chain)


def _reference_values(file: Path | None, publisher: str | None) -> ReferenceValues:
    if file is None and publisher is None:
        return built_in()
    if file is None or publisher is None:
        raise misuse("--reference and --publisher go together: a file, and whose signature counts")
    return load_reference_values(read_file(file, limit=MAX_SIZE), publisher=parse_publisher(publisher))


def _with_minimums(reference: ReferenceValues, minimums: Iterable[str]) -> ReferenceValues:
    found = dict(reference.minimum_tcb)
    for text in minimums:
        subject, _, least = text.partition("@")
        if not subject.startswith("snp-"):
            raise misuse("--minimum is for AMD (snp-milan@…): Intel gives a status itself, and AWS no version")
        found[subject] = parse_minimum(subject, least)
    return msgspec.structs.replace(reference, minimum_tcb=found)
