"""`conclave verify`: is this evidence authentic, and does a constraint accept it?

Runs at the relying party. What it is pointed at is hostile; the constraint, the time,
the roots and the reference values are the user's.

Spec: spec/verify.md.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from conclave.attestation import (
    Anchors,
    Claims,
    Constraint,
    InstanceInfo,
    ReferenceValues,
    load_reference_values,
    parse_instance_info,
    verify_evidence,
)
from conclave.attestation.appraisal import security_of, weigh
from conclave.attestation.binding import runtime_measurement
from conclave.attestation.reference import MAX_SIZE
from conclave.attestation.verify import authenticate_instance
from conclave.cli._answer import Answer, unverified, verified
from conclave.cli._artefact import INSTANCE, Artefact, is_url, read_artefact
from conclave.cli._explain import Finding, explained, summary
from conclave.cli._files import constraint_line, misuse, read_file
from conclave.cli._folders import Places, find_endorsements, find_roots
from conclave.cli._terminal import show
from conclave.errors import AppraisalError, FormatError, VerificationError

MISSING: Final = "endorsements-missing"
# What a verifier says when it comes to the endorsements and has none.
_LACKING: Final = frozenset({"endorsements-format", "certification-unsupported"})


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be verified, and against what. All but the artefact is the user's own.

    Attributes:
        artefact: the bytes. Untrusted.
        url: the host they came from, if they did.
        now: as of when; aware.
        constraint: the line, or None: authenticity alone.
        places: where endorsements may be.
        roots: SHA-256 of roots that stand in for the vendors', or none.
        reference: which measurements are which release.
    """

    artefact: Artefact
    url: str | None
    now: datetime
    constraint: str | None
    places: Places
    roots: frozenset[str]
    reference: ReferenceValues | None


@dataclass(frozen=True, slots=True)
class _Subject:
    """Evidence proper, how to read it, and the instance info it came in, if it did."""

    kind: str
    evidence: bytes
    info: InstanceInfo | None


def verify_command(
    source: str,
    *,
    constraint: str | None,
    at: str | None,
    endorsements: Path | None,
    roots: Path | None,
    reference: Path | None,
    publisher: str | None,
    as_json: bool,
    explain: bool,
) -> int:
    """Answer, in one JSON object or in words; the exit status goes with the verdict."""
    if as_json and explain:
        raise misuse("--json is for machines and --explain for people: leave one out")
    question = ask(
        source,
        constraint=constraint,
        at=at,
        endorsements=endorsements,
        roots=roots,
        reference=reference,
        publisher=publisher,
    )
    with warnings.catch_warnings():
        # A parser's remarks about a stranger's certificate are not for the reader of the answer.
        warnings.simplefilter("ignore")
        finding = judge(question)
    if as_json:
        print(json.dumps(msgspec.to_builtins(finding.answer)))
    else:
        show(explained(finding) if explain else summary(finding.answer))
    return finding.answer.status


def ask(
    source: str,
    *,
    constraint: str | None = None,
    at: str | None = None,
    endorsements: Path | None = None,
    roots: Path | None = None,
    reference: Path | None = None,
    publisher: str | None = None,
) -> Question:
    """Read what the command line names; see `conclave verify --help`.

    Raises:
        Error, OSError: a mistake of the user's, or nothing answers: there is no verdict to be had.
    """
    now = datetime.now(UTC) if at is None else _moment(at)
    line = None if constraint is None else constraint_line(constraint, program=False)
    for name, place in (("--endorsements", endorsements), ("--roots", roots)):
        if place is not None and not place.is_dir():
            raise misuse(f"{name} takes a folder")
    values = _reference_values(reference, publisher)
    given = find_roots(roots) if roots else frozenset[str]()
    url = source if is_url(source) else None
    artefact = Artefact(_fetched(url), INSTANCE) if url else read_artefact(Path(source))
    return Question(artefact, url, now, line, Places(artefact.folder, endorsements, roots), given, values)


def judge(question: Question) -> Finding:
    """Verify, and appraise if there is a constraint.

    Raises:
        Error, OSError: as `ask`; whatever is wrong with the evidence is a verdict.

    Spec: spec/verify.md section 3.
    """
    # 1. Recognise what it is.
    try:
        subject = _subject(question.artefact)
    except FormatError as error:
        return Finding(unverified(error, now=question.now))
    # 2. Trust anchors follow from constraint and options, before anything of the evidence is read.
    constraint = _constraint(question, subject)
    anchors = _anchors(question, constraint)
    # 3. Endorsements: of a folder, or stapled.
    endorsements = _endorsements(question, subject)
    # 4. Authenticity, and of a running host: that it is the verified instance which answers.
    try:
        claims = _authenticated(subject, endorsements, anchors, question.now)
        if question.url:
            _challenge(question.url, claims)
    except (FormatError, VerificationError, AppraisalError) as error:
        answer = unverified(error, now=question.now)
        return Finding(answer, subject.kind, subject.info is not None, subject.evidence)
    # 5. Policy, if there is one.
    answer = _appraised(claims, constraint, question.reference)
    return Finding(answer, subject.kind, subject.info is not None, subject.evidence, claims, question.url is not None)


def _subject(artefact: Artefact) -> _Subject:
    kind = artefact.kind
    if kind != INSTANCE:
        return _Subject(kind, artefact.data, None)
    info = parse_instance_info(artefact.data)
    return _Subject(info.format, info.evidence, info)


def _constraint(question: Question, subject: _Subject) -> Constraint | None:
    """A constraint on an instance has to name a program; one on evidence alone need not."""
    if question.constraint is None:
        return None
    return Constraint.parse(question.constraint, program=subject.info is not None)


def _anchors(question: Question, constraint: Constraint | None) -> Anchors:
    if constraint is not None:
        return Anchors.of(constraint, given=question.roots)
    # Who names roots names all that count; who names none hears of a simulated machine what it is.
    return Anchors.of_vendors(given=question.roots, simulated=not question.roots)


def _endorsements(question: Question, subject: _Subject) -> bytes | None:
    if subject.info is not None and question.places.endorsements is None:
        return subject.info.endorsements or None
    return find_endorsements(subject.kind, subject.evidence, question.places)


def _authenticated(subject: _Subject, endorsements: bytes | None, anchors: Anchors, now: datetime) -> Claims:
    given = endorsements or b""
    try:
        if subject.info is not None:
            info = msgspec.structs.replace(subject.info, endorsements=given)
            return authenticate_instance(info.encode(), anchors, now=now)
        anchors.demand(subject.kind)
        tee, claims = verify_evidence(subject.evidence, given, kind=subject.kind, anchors=anchors, now=now)
    except (FormatError, VerificationError) as error:
        if endorsements is not None or error.code not in _LACKING:
            raise
        raise VerificationError(
            "no endorsements came with this evidence; name a folder that has them: --endorsements", code=MISSING
        ) from None
    return Claims(None, b"", tee, claims, runtime_measurement(claims), now)


def _appraised(claims: Claims, constraint: Constraint | None, reference: ReferenceValues | None) -> Answer:
    if constraint is None:
        security, reasons = security_of(claims, reference=reference)
        return verified(claims, security=security, reasons=reasons, failures=None)
    security, reasons, failures = weigh(constraint, claims, reference=reference)
    return verified(claims, security=security, reasons=reasons, failures=failures)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.utcoffset() is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise misuse("--at takes a time with its zone, such as 2026-01-31T12:00:00Z") from None


def _reference_values(file: Path | None, publisher: str | None) -> ReferenceValues | None:
    if file is None and publisher is None:
        return None
    if file is None or publisher is None:
        raise misuse("--reference and --publisher go together: a file, and whose signature counts")
    from conclave.cli._reference import parse_publisher

    return load_reference_values(read_file(file, limit=MAX_SIZE), publisher=parse_publisher(publisher))


def _fetched(url: str) -> bytes:
    # Not before it is needed: it loads an HTTP client.
    from conclave.cli._host import fetch_instance_info

    return fetch_instance_info(url)


def _challenge(url: str, claims: Claims) -> None:
    from conclave.cli._host import challenge

    challenge(url, claims)
