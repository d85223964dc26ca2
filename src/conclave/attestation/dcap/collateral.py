"""Endorsements of Intel platforms: TCB info, QE identity, revocation lists. Parsing.

Runs at the relying party. Everything comes from the host; nothing here is authentic
until `verify_quote`.

Formats: Intel PCS API version 4 (TCB info 3, enclave identity 2) and those before it
(TCB info 2, QE identity 1). Spec: spec/dcap.md section 3 (DCAP-5 to DCAP-7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

from conclave.attestation import _x509
from conclave.attestation.claims import MAX_ENDORSEMENTS
from conclave.attestation.dcap import _json
from conclave.attestation.dcap._json import Members
from conclave.attestation.dcap.quote import leaf_first
from conclave.errors import FormatError

_U16: Final = 0xFFFF
_U31: Final = 0x7FFF_FFFF
TEXTS: Final = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "tcb_info", "qe_identity_issuer_chain", "qe_identity")
BYTES: Final = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")
OPTIONAL: Final = "pck_certificate_chain"
# What the vendor may say of a platform, of a quoting enclave, of a TDX module.
PLATFORM_STATUSES: Final = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "Revoked",
    }
)
QE_STATUSES: Final = PLATFORM_STATUSES - {"SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded"}
MODULE_STATUSES: Final = frozenset({"UpToDate", "OutOfDate", "Revoked"})


@dataclass(frozen=True, slots=True)
class Level:
    """A TCB level's standing. `date` is None where QE identity version 1 gives none."""

    status: str
    date: datetime | None
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlatformLevel:
    """From which versions of the platform's components on a level holds; `tdx` is empty for SGX."""

    components: tuple[int, ...]
    pce_svn: int
    tdx: tuple[int, ...]
    level: Level


@dataclass(frozen=True, slots=True)
class EnclaveLevel:
    """From which version of one enclave or module on a level holds."""

    svn: int
    level: Level


@dataclass(frozen=True, slots=True)
class Module:
    """Which TDX module the vendor signs for; `levels` is empty for those of before TDX 1.5."""

    mrsigner: bytes
    attributes: bytes
    attributes_mask: bytes
    levels: tuple[EnclaveLevel, ...]


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """TCB levels of one kind of platform, in the vendor's order: highest first."""

    version: int
    tee: str
    issue_date: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int
    levels: tuple[PlatformLevel, ...]
    module: Module | None
    modules: Mapping[str, Module]


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """What a quoting enclave must be; `evaluation_number` is None in version 1."""

    version: int
    tee: str
    issue_date: datetime
    next_update: datetime
    evaluation_number: int | None
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mrsigner: bytes
    isv_prod_id: int
    levels: tuple[EnclaveLevel, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A signed text, its signature (r ‖ s) and certificates (DER), its signer's first."""

    text: bytes
    signature: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Endorsements:
    """Everything that a host gives with a quote. Nothing is authentic yet.

    Attributes:
        root_crl, pck_crl: None where the host has none.
        pck_chain: DER, leaf first; empty unless given.
    """

    tcb_info: TcbInfo
    tcb_info_document: Document
    qe_identity: QeIdentity
    qe_identity_document: Document
    root_crl: _x509.RevocationList | None
    pck_crl: _x509.RevocationList | None
    pck_chain: tuple[bytes, ...]

    @property
    def oldest_issue_date(self) -> datetime:
        """Of the parts that age: both documents, and the lists. Certificates are long-lived by design."""
        dates = [self.tcb_info.issue_date, self.qe_identity.issue_date]
        return min(dates + [crl.this_update for crl in (self.root_crl, self.pck_crl) if crl])


def parse_endorsements(data: bytes) -> Endorsements:
    """Read endorsements.

    Args:
        data: JSON, at most 524288 bytes. Untrusted.

    Raises:
        FormatError: `endorsements-format`, `tcb-info-format`, `qe-identity-format`,
            `root-crl-format` or `pck-crl-format`.
    """
    code = "endorsements-format"
    if len(data) > MAX_ENDORSEMENTS:
        raise FormatError(f"endorsements: more than {MAX_ENDORSEMENTS} bytes", code=code)
    members = _json.parse(data, code=code)
    if members.names - {OPTIONAL} != {*TEXTS, *BYTES}:
        raise FormatError("endorsements: a member is missing or unknown", code=code)
    if not all(members.text(name).isascii() for name in members.names):
        raise FormatError("endorsements: not ASCII", code=code)
    texts = {name: members.text(name).encode() for name in TEXTS}
    tcb_info = Document(
        texts["tcb_info"],
        members.hex("tcb_info_signature", 64),
        _chain(texts["tcb_info_issuer_chain"], code),
    )
    qe_identity = Document(
        texts["qe_identity"],
        members.hex("qe_identity_signature", 64),
        _chain(texts["qe_identity_issuer_chain"], code),
    )
    return Endorsements(
        _tcb_info(_json.parse(tcb_info.text, code="tcb-info-format")),
        tcb_info,
        _qe_identity(_json.parse(qe_identity.text, code="qe-identity-format")),
        qe_identity,
        _crl(members.hex("root_ca_crl"), "root-crl"),
        _crl(members.hex("pck_crl"), "pck-crl"),
        leaf_first(_chain(members.text(OPTIONAL).encode(), code)) if OPTIONAL in members.names else (),
    )


def _chain(text: bytes, code: str) -> tuple[bytes, ...]:
    try:
        return _x509.split_pem(text)
    except FormatError as error:
        raise FormatError(f"endorsements: {error}", code=code) from None


def _crl(der: bytes, what: str) -> _x509.RevocationList | None:
    return _x509.RevocationList(der, what=what) if der else None


def _tcb_info(members: Members) -> TcbInfo:
    version = members.number("version", _U16)
    tee = {(2, None): "sgx", (3, "SGX"): "sgx", (3, "TDX"): "tdx"}.get((version, _identifier(members)))
    # Another TCB type would mean another way to compare levels.
    if tee is None or members.number("tcbType", _U16) != 0:
        raise FormatError("TCB info: of an unknown version, kind or type", code=members.code)
    modules: dict[str, Module] = {}
    identities = members.array("tdxModuleIdentities") if tee == "tdx" and "tdxModuleIdentities" in members.names else []
    for identity in identities:
        name = identity.text("id").upper()
        if name in modules:
            raise FormatError("TCB info: a TDX module is named twice", code=members.code)
        modules[name] = _module(identity, _enclave_levels(identity, MODULE_STATUSES))
    return TcbInfo(
        version,
        tee,
        members.moment("issueDate"),
        members.moment("nextUpdate"),
        members.hex("fmspc", 6),
        members.hex("pceId", 2),
        members.number("tcbEvaluationDataNumber", _U31),
        tuple(_platform_level(level, version, tee) for level in members.array("tcbLevels")),
        _module(members.members("tdxModule"), ()) if tee == "tdx" else None,
        MappingProxyType(modules),
    )


def _qe_identity(members: Members) -> QeIdentity:
    version = members.number("version", _U16)
    tee = {(1, None): "sgx", (1, "QE"): "sgx", (2, "QE"): "sgx", (2, "TD_QE"): "tdx"}.get(
        (version, _identifier(members))
    )
    if tee is None:
        raise FormatError("QE identity: of an unknown version or kind", code=members.code)
    return QeIdentity(
        version,
        tee,
        members.moment("issueDate"),
        members.moment("nextUpdate"),
        members.number("tcbEvaluationDataNumber", _U31) if version > 1 else None,
        members.hex("miscselect", 4),
        members.hex("miscselectMask", 4),
        members.hex("attributes", 16),
        members.hex("attributesMask", 16),
        members.hex("mrsigner", 32),
        members.number("isvprodid", _U16),
        _enclave_levels(members, QE_STATUSES) if version > 1 else _single_level(members),
    )


def _identifier(members: Members) -> str | None:
    return members.text("id") if "id" in members.names else None


def _platform_level(members: Members, version: int, tee: str) -> PlatformLevel:
    tcb = members.members("tcb")
    return PlatformLevel(
        tcb.svns("sgxtcbcomponents")
        if version > 2
        else tcb.sixteen([tcb.get(f"sgxtcbcomp{i:02}svn") for i in range(1, 17)]),
        tcb.number("pcesvn", _U16),
        tcb.svns("tdxtcbcomponents") if tee == "tdx" else (),
        _level(members, PLATFORM_STATUSES),
    )


def _module(members: Members, levels: tuple[EnclaveLevel, ...]) -> Module:
    return Module(members.hex("mrsigner", 48), members.hex("attributes", 8), members.hex("attributesMask", 8), levels)


def _enclave_levels(members: Members, statuses: frozenset[str]) -> tuple[EnclaveLevel, ...]:
    return tuple(
        EnclaveLevel(level.members("tcb").number("isvsvn", _U16), _level(level, statuses))
        for level in members.array("tcbLevels")
    )


def _single_level(members: Members) -> tuple[EnclaveLevel, ...]:
    """QE identity version 1 has one threshold: below it the enclave is out of date."""
    current = EnclaveLevel(members.number("isvsvn", _U16), Level("UpToDate", None, ()))
    return (current, EnclaveLevel(0, Level("OutOfDate", None, ())))


def _level(members: Members, statuses: frozenset[str]) -> Level:
    status = members.text("tcbStatus")
    if status not in statuses:
        raise FormatError("a TCB status that is not known", code=members.code)
    return Level(status, members.moment("tcbDate"), members.advisories())
