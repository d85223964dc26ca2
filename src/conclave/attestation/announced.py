"""Documents that a vendor published before hosts staple them: TCB info, QE identity.

Runs at the operator or the relying party. Untrusted: only the verifier says whether
they are the vendor's.

Formats: answers of Intel PCS API v4 (`tcb` and `qe/identity`, also with `update=early`).
Spec: spec/tcb.md section 3 (TCB-9, TCB-10).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from urllib.parse import unquote

import msgspec

from conclave.attestation import dcap
from conclave.attestation.claims import MAX_ENDORSEMENTS
from conclave.attestation.rehearse import Enclave
from conclave.errors import ExpiredError, FormatError

CODE: Final = "announcement-format"
_CHAIN: Final = re.compile(
    rb"^(?:SGX-)?(?:TCB-Info|Enclave-Identity)-Issuer-Chain:[ \t]*([!-~]+)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE
)


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer of Intel's service: one of the two documents, and a signature over its exact text."""

    signature: str
    tcbInfo: msgspec.Raw = msgspec.Raw(b"")
    enclaveIdentity: msgspec.Raw = msgspec.Raw(b"")


@dataclass(frozen=True, slots=True)
class Announcement:
    """What enclaves will be given in place of what they have now.

    Attributes:
        members: of their endorsements.
        whole: these are all members, not one document's.
    """

    members: Mapping[str, str]
    whole: bool = False

    def concerns(self, enclave: Enclave) -> bool:
        """Whether it is about that enclave's kind of platform. Raises FormatError."""
        try:
            before = dcap.parse_endorsements(enclave.endorsements)
        except FormatError:
            return False
        try:
            after = dcap.parse_endorsements(self.in_place_of(enclave))
        except FormatError as error:
            raise _malformed(f"is not well-formed ({error.code})") from None
        if "tcb_info" not in self.members:
            return after.qe_identity.tee == enclave.kind
        ours, theirs = before.tcb_info, after.tcb_info
        return (enclave.kind, ours.fmspc, ours.pce_id) == (theirs.tee, theirs.fmspc, theirs.pce_id)

    def in_place_of(self, enclave: Enclave) -> bytes:
        """The enclave's endorsements with this in them."""
        kept = {} if self.whole else json.loads(enclave.endorsements)
        return json.dumps({**kept, **self.members}, separators=(",", ":")).encode()


def parse_announcement(data: bytes, *, chain: str = "") -> Announcement:
    """Read what a vendor announced.

    Args:
        data: an answer of Intel's service, with or without the head of its HTTP response; or
            endorsements as spec/dcap.md section 3 has them. At most 524288 bytes.
        chain: PEM of the signer's certificates, where they came apart. Without any, those
            that a host staples now are taken.

    Raises:
        FormatError: `announcement-format`.
    """
    if len(data) > MAX_ENDORSEMENTS:
        raise _malformed(f"has more than {MAX_ENDORSEMENTS} bytes")
    # A redirection has a head of its own before.
    while data.startswith(b"HTTP/"):
        head, _, data = data.partition(b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n")
        found = _CHAIN.search(head)
        chain = chain or (unquote(found[1].decode("ascii")) if found else "")
    try:
        dcap.parse_endorsements(data)
    except FormatError:
        return _of_answer(data, chain)
    return Announcement(json.loads(data), whole=True)


def _of_answer(data: bytes, chain: str) -> Announcement:
    try:
        answer = msgspec.json.decode(data, type=_Answer)
        texts = {
            "tcb_info": bytes(answer.tcbInfo).decode("ascii"),
            "qe_identity": bytes(answer.enclaveIdentity).decode("ascii"),
        }
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        raise _malformed("is neither an answer of Intel's service nor endorsements") from None
    given = [name for name, text in texts.items() if text]
    if len(given) != 1:
        raise _malformed("has no document, or two")
    name = given[0]
    members = {name: texts[name], f"{name}_signature": answer.signature}
    return Announcement(members | ({f"{name}_issuer_chain": chain} if chain else {}))


def announce(enclaves: Iterable[Enclave], announcements: Iterable[Announcement]) -> tuple[Enclave, ...]:
    """The enclaves as they will be endorsed. Those that nothing concerns stay as they are.

    Raises:
        FormatError: `announcement-unconcerned`: one of them concerns none of the enclaves.
    """
    found = list(enclaves)
    for announcement in announcements:
        concerned = [i for i, enclave in enumerate(found) if announcement.concerns(enclave)]
        if not concerned:
            raise FormatError(
                "what was announced is about another kind of platform than any of these enclaves run on",
                code="announcement-unconcerned",
            )
        for i in concerned:
            found[i] = replace(found[i], endorsements=announcement.in_place_of(found[i]))
    return tuple(found)


def in_force(now: Iterable[Enclave], then: Iterable[Enclave], moment: datetime) -> datetime:
    """The first time, not before `moment`, at which everything that was announced is valid.

    Raises:
        ExpiredError: `announcement-expired`: there is none; it was announced long ago.
    """
    periods = [p for before, after in zip(now, then, strict=True) if before != after for p in _new(before, after)]
    first = max((moment, *(begin for begin, _ in periods)))
    if any(end < first for _, end in periods):
        raise ExpiredError(
            f"what was announced is not valid any more at {first:%Y-%m-%dT%H:%M:%SZ}: it is of the past, not to come",
            code="announcement-expired",
        )
    return first


def _new(before: Enclave, after: Enclave) -> Iterator[tuple[datetime, datetime]]:
    """From when to when each document is valid that an enclave will have, and has not now."""
    old, new = (dcap.parse_endorsements(e.endorsements) for e in (before, after))
    if old.tcb_info_document.text != new.tcb_info_document.text:
        yield new.tcb_info.issue_date, new.tcb_info.next_update
    if old.qe_identity_document.text != new.qe_identity_document.text:
        yield new.qe_identity.issue_date, new.qe_identity.next_update
    for known, crl in ((old.root_crl, new.root_crl), (old.pck_crl, new.pck_crl)):
        if crl and (known is None or (known.this_update, known.number) != (crl.this_update, crl.number)):
            yield crl.this_update, crl.next_update


def _malformed(why: str) -> FormatError:
    return FormatError(f"what was announced {why}", code=CODE)
