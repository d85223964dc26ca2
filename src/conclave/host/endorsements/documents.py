"""The vendors' documents: their names, their shapes, and until when they are valid.

Untrusted, and holds no keys. A document is judged by its contents alone, whether
it came over HTTP, from the cache or from an import: it parses, it is what its name
says, and it has dates. Signatures are the client's business.

Formats: Intel PCS API v4 (TCB info, enclave identity), Intel PCK CRL specification,
AMD 57230. Spec: spec/endorsements.md section 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec

from conclave.errors import FormatError
from conclave.host.endorsements import der
from conclave.host.endorsements.platform import PRODUCTS, certification_authority, patch_levels, tcb_version

T = TypeVar("T")

MAX_LIST: Final = 98304
MAX_JSON: Final = 98304
MAX_CHAIN: Final = 16384
MAX_CERTIFICATE: Final = 8192
MAX_ENDORSEMENTS: Final = 524288
_AMD: Final = bytes.fromhex("2b060104019c7801")
_AMD_PRODUCT: Final = _AMD + b"\x02"
_AMD_HWID: Final = _AMD + b"\x04"
_AMD_LEVELS: Final = {
    "blSPL": _AMD + b"\x03\x01",
    "teeSPL": _AMD + b"\x03\x02",
    "snpSPL": _AMD + b"\x03\x03",
    "ucodeSPL": _AMD + b"\x03\x08",
    "fmcSPL": _AMD + b"\x03\x09",
}
_OLDEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EVALUATION: Final = r"standard|early|[1-9]\d{0,8}"
_QE_IDS: Final = {"sgx": "QE", "tdx": "TD_QE"}


@dataclass(frozen=True, slots=True)
class Window:
    """When a document was issued, and until when it is valid; aware UTC times."""

    issued: datetime
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class RootList:
    """The revocation list of Intel's root."""

    @property
    def name(self) -> str:
        return "intel-root-crl"

    def check(self, body: bytes, chain: bytes) -> Window:
        facts = der.revocation_list(body)
        _demand("root ca" in facts.issuer_name.lower(), "the list is not a root's")
        return Window(facts.this_update, facts.next_update)


@dataclass(frozen=True, slots=True)
class PckList:
    """The revocation list of the authority that issued a platform's certificate.

    Attributes:
        ca: `processor` or `platform`.
    """

    ca: str

    @property
    def name(self) -> str:
        return f"intel-pck-crl-{self.ca}"

    def check(self, body: bytes, chain: bytes) -> Window:
        facts = der.revocation_list(body)
        certificates = issuer_chain(chain)
        _demand(certification_authority(facts.issuer_name) == self.ca, "the list is another authority's")
        _demand(certificates[0].subject == facts.issuer, "the chain is not that of the list's issuer")
        return _narrowed(facts.this_update, facts.next_update, certificates)


class _Signed(msgspec.Struct, frozen=True):
    issueDate: str
    nextUpdate: str
    version: int
    id: str = ""
    fmspc: str = ""
    pceId: str = ""


class _TcbAnswer(msgspec.Struct, frozen=True):
    tcbInfo: msgspec.Raw
    signature: str


class _IdentityAnswer(msgspec.Struct, frozen=True):
    enclaveIdentity: msgspec.Raw
    signature: str


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """What Intel says of each patch level of one platform type.

    Attributes:
        tee: `sgx` or `tdx`.
        fmspc: 12 lower-case hex digits.
        evaluation: `standard`, `early`, or a TCB evaluation data number.
    """

    tee: str
    fmspc: str
    evaluation: str = "standard"

    @property
    def name(self) -> str:
        return f"intel-{self.tee}-tcb-{self.fmspc}-{self.evaluation}"

    def check(self, body: bytes, chain: bytes) -> Window:
        text, _ = tcb_info(body)
        facts = _decode(text.encode(), _Signed)
        # Version 2 is SGX's, and has no id.
        of = facts.id.lower() if facts.version == 3 else "sgx"
        _demand(facts.version in (2, 3) and of == self.tee, "the TCB info is of another kind")
        _demand(facts.fmspc.lower() == self.fmspc, "the TCB info is another platform's")
        return _narrowed(_date(facts.issueDate), _date(facts.nextUpdate), issuer_chain(chain))


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """What Intel says of its quoting enclave.

    Attributes:
        tee: `sgx` or `tdx`.
        evaluation: as for `TcbInfo`.
    """

    tee: str
    evaluation: str = "standard"

    @property
    def name(self) -> str:
        return f"intel-{self.tee}-qe-{self.evaluation}"

    def check(self, body: bytes, chain: bytes) -> Window:
        text, _ = qe_identity(body)
        facts = _decode(text.encode(), _Signed)
        _demand(facts.id == _QE_IDS[self.tee], "the identity is another enclave's")
        return _narrowed(_date(facts.issueDate), _date(facts.nextUpdate), issuer_chain(chain))


@dataclass(frozen=True, slots=True)
class ChipCertificate:
    """AMD's certificate for the key of one chip (VCEK), or of one provider (VLEK), at one TCB version.

    Attributes:
        key: `vcek` or `vlek`.
        product: AMD's name of the processor family.
        hwid: chip id in lower-case hex, "" for a VLEK.
        tcb: the reported TCB version, 16 hex digits as they stand in a report.
    """

    key: str
    product: str
    hwid: str
    tcb: str

    @property
    def name(self) -> str:
        return "-".join(p for p in ("amd", self.key, self.product.lower(), self.hwid, self.tcb) if p)

    def check(self, body: bytes, chain: bytes) -> Window:
        facts = der.certificate(body)
        _demand(facts.subject_name == f"SEV-{self.key.upper()}", "the certificate is of another kind of key")
        product = der.single(facts.extensions.get(_AMD_PRODUCT, b"")).content.decode("ascii", "replace")
        _demand(product.partition("-")[0] == self.product, "the certificate is of another processor family")
        hwid, tcb = chip_of(facts, self.product)
        _demand(hwid == self.hwid, "the certificate is another chip's")
        # Level by level: what is reserved in a TCB version is in no certificate.
        same = patch_levels(tcb, self.product) == patch_levels(bytes.fromhex(self.tcb), self.product)
        _demand(same, "the certificate is for another TCB version")
        return Window(facts.not_before, facts.not_after)


@dataclass(frozen=True, slots=True)
class FamilyChain:
    """AMD's certificates above a VCEK or VLEK: the family's signing key, then its root.

    Attributes:
        key: `vcek` or `vlek`.
        product: AMD's name of the processor family.
    """

    key: str
    product: str

    @property
    def name(self) -> str:
        return f"amd-{self.key}-{self.product.lower()}-chain"

    def check(self, body: bytes, chain: bytes) -> Window:
        certificates = issuer_chain(body)
        names = tuple(c.subject_name for c in certificates)
        signer = f"SEV-{self.product}" if self.key == "vcek" else f"SEV-VLEK-{self.product}"
        _demand(names == (signer, f"ARK-{self.product}"), "the chain is another family's")
        return _narrowed(max(c.not_before for c in certificates), certificates[0].not_after, certificates)


@dataclass(frozen=True, slots=True)
class FamilyList:
    """The revocation list of AMD's root for a processor family.

    Attributes:
        key: `vcek` or `vlek`: under which of its addresses AMD publishes it.
        product: AMD's name of the processor family.
    """

    key: str
    product: str

    @property
    def name(self) -> str:
        return f"amd-{self.key}-{self.product.lower()}-crl"

    def check(self, body: bytes, chain: bytes) -> Window:
        facts = der.revocation_list(body)
        _demand(facts.issuer_name == f"ARK-{self.product}", "the list is another family's")
        return Window(facts.this_update, facts.next_update)


Wanted = RootList | PckList | TcbInfo | QeIdentity | ChipCertificate | FamilyChain | FamilyList


@dataclass(frozen=True, slots=True)
class Form:
    """How a kind of document is kept: largest size, file name ending, whether an issuer chain goes with it."""

    max_size: int
    ending: str
    has_chain: bool


_FORMS: Final[dict[type, Form]] = {
    RootList: Form(MAX_LIST, ".crl", False),
    PckList: Form(MAX_LIST, ".crl", True),
    TcbInfo: Form(MAX_JSON, ".json", True),
    QeIdentity: Form(MAX_JSON, ".json", True),
    ChipCertificate: Form(MAX_CERTIFICATE, ".der", False),
    FamilyChain: Form(MAX_CHAIN, ".pem", False),
    FamilyList: Form(MAX_LIST, ".crl", False),
}
_BY_NAME: Final = {p.lower(): p for p in PRODUCTS}
_FAMILY: Final = "|".join(_BY_NAME)
_NAMES: Final[tuple[tuple[str, Callable[[re.Match[str]], Wanted]], ...]] = (
    (r"intel-root-crl", lambda m: RootList()),
    (r"intel-pck-crl-(processor|platform)", lambda m: PckList(m[1])),
    (rf"intel-(sgx|tdx)-tcb-([0-9a-f]{{12}})-({_EVALUATION})", lambda m: TcbInfo(m[1], m[2], m[3])),
    (rf"intel-(sgx|tdx)-qe-({_EVALUATION})", lambda m: QeIdentity(m[1], m[2])),
    (
        rf"amd-vcek-({_FAMILY})-([0-9a-f]{{16}}|[0-9a-f]{{128}})-([0-9a-f]{{16}})",
        lambda m: ChipCertificate("vcek", _BY_NAME[m[1]], m[2], m[3]),
    ),
    (rf"amd-vlek-({_FAMILY})-([0-9a-f]{{16}})", lambda m: ChipCertificate("vlek", _BY_NAME[m[1]], "", m[2])),
    (rf"amd-(vcek|vlek)-({_FAMILY})-chain", lambda m: FamilyChain(m[1], _BY_NAME[m[2]])),
    (rf"amd-(vcek|vlek)-({_FAMILY})-crl", lambda m: FamilyList(m[1], _BY_NAME[m[2]])),
)


def parse_name(name: str) -> Wanted:
    """The document of that name. Raises FormatError."""
    for pattern, make in _NAMES:
        match = re.fullmatch(pattern, name, re.ASCII)
        if match is not None:
            return make(match)
    raise FormatError("no document has such a name", code="document-name")


def is_evaluation(text: str) -> bool:
    """Whether this chooses a TCB evaluation: `standard`, `early`, or a number."""
    return re.fullmatch(_EVALUATION, text, re.ASCII) is not None


def form(wanted: Wanted) -> Form:
    """How this document is kept."""
    return _FORMS[type(wanted)]


@dataclass(frozen=True, slots=True)
class Document:
    """One document, its shape checked; made by `read_document` alone.

    Attributes:
        wanted: what it is.
        body: DER, PEM (certificate chains) or the vendor's JSON.
        chain: PEM of the issuers, where the vendor sends them beside it; else empty.
        fetched: when the vendor gave it.
        window: from its contents.
    """

    wanted: Wanted
    body: bytes
    chain: bytes
    fetched: datetime
    window: Window

    @property
    def vendor(self) -> str:
        return vendor(self.wanted)


def vendor(wanted: Wanted) -> str:
    """Whose document it is: `intel` or `amd`."""
    return wanted.name.partition("-")[0]


def read_document(wanted: Wanted, body: bytes, chain: bytes, *, fetched: datetime) -> Document:
    """Check a document's shape, and that it is the one wanted.

    Raises:
        FormatError: `document-size`, `document-format` or `document-other`.
    """
    kept = form(wanted)
    if len(body) > kept.max_size or len(chain) > MAX_CHAIN:
        raise FormatError("the document is too large", code="document-size")
    if bool(chain) != kept.has_chain:
        raise FormatError("an issuer chain is missing, or out of place", code="document-format")
    try:
        window = wanted.check(body, chain)
    except FormatError as error:
        code = error.code if error.code == "document-other" else "document-format"
        raise FormatError(str(error) or "the document does not parse", code=code) from None
    if window.issued >= window.valid_until:
        raise FormatError("the document ends before it begins", code="document-format")
    # Nothing is so old; and what is counted from the first days of the calendar runs out of it.
    if min(window.issued, fetched) < _OLDEST:
        raise FormatError("the document is older than any of its kind", code="document-format")
    return Document(wanted, body, chain, fetched, window)


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise FormatError(message, code="document-other")


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        raise FormatError("the document is not the JSON that it should be") from None


def tcb_info(body: bytes) -> tuple[str, str]:
    """The signed text exactly as it was sent, and its signature in hex. Raises FormatError."""
    answer = _decode(body, _TcbAnswer)
    return _text(answer.tcbInfo), _signature(answer.signature)


def qe_identity(body: bytes) -> tuple[str, str]:
    """The signed text exactly as it was sent, and its signature in hex. Raises FormatError."""
    answer = _decode(body, _IdentityAnswer)
    return _text(answer.enclaveIdentity), _signature(answer.signature)


def pce_id(body: bytes) -> str:
    """PCE id of a TCB info, 4 lower-case hex digits. Raises FormatError."""
    return _decode(tcb_info(body)[0].encode(), _Signed).pceId.lower()


def _text(raw: msgspec.Raw) -> str:
    try:
        return bytes(raw).decode("ascii")
    except UnicodeError:
        raise FormatError("the document is not ASCII") from None


def _signature(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{128}", text, re.ASCII):
        raise FormatError("the signature is not 64 bytes in hex")
    return text


def _date(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise FormatError("the document has no dates") from None


def chip_of(facts: der.CertificateFacts, product: str) -> tuple[str, bytes]:
    """Chip id in hex ("" in a VLEK's) and TCB version (8 bytes) of an AMD certificate. Raises FormatError."""
    levels = {}
    for level, oid in _AMD_LEVELS.items():
        if level in patch_levels(bytes(8), product):
            number = int.from_bytes(der.single(facts.extensions.get(oid, b"")).content, "big")
            if number > 255:
                raise FormatError("a patch level of the certificate is out of range")
            levels[level] = number
    return facts.extensions.get(_AMD_HWID, b"").hex(), tcb_version(levels, product)


def issuer_chain(chain: bytes) -> tuple[der.CertificateFacts, ...]:
    """A signer's certificate and its root's, in PEM, in that order. Raises FormatError."""
    found = tuple(der.certificate(c) for c in der.pem_certificates(chain))
    if len(found) != 2 or found[0].issuer != found[1].subject or found[1].issuer != found[1].subject:
        raise FormatError("the issuer chain is not a signer and its root")
    return found


def _narrowed(issued: datetime, until: datetime, certificates: tuple[der.CertificateFacts, ...]) -> Window:
    """No document outlives the certificates that its signature needs."""
    return Window(issued, min(until, *(c.not_after for c in certificates)))
