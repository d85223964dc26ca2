"""Which platform made a piece of evidence: as much as is needed to ask its vendor.

Untrusted, and holds no keys: fields by their offsets and the certificate that an
Intel quote carries, nothing verified. Wrong answers here only fetch endorsements
that do not fit, which clients refuse.

Formats: Intel SGX ECDSA QuoteLibReference appendix A; Intel TDX DCAP Quoting
Library API appendix A; Intel SGX PCK Certificate and CRL Specification section
1.3.5; AMD 56860 (SEV-SNP ABI) tables 3 and 23.
Spec: spec/endorsements.md section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conclave.errors import FormatError
from conclave.host.endorsements import der

MAX_EVIDENCE: Final = 131072
KINDS: Final = ("sgx", "tdx", "snp", "nitro")
REPORT_SIZE: Final = 1184
_TEES: Final = {0x00: "sgx", 0x81: "tdx"}
_BODIES: Final = {"sgx": 384, "tdx": 584}
# Quote version 5 names the body: type and size.
_BODY_TYPES: Final = {1: ("sgx", 384), 2: ("tdx", 584), 3: ("tdx", 648)}
_SGX_EXTENSION: Final = bytes.fromhex("2a864886f84d010d01")
_PCE_ID: Final = _SGX_EXTENSION + b"\x03"
_FMSPC: Final = _SGX_EXTENSION + b"\x04"
_PCK_CHAIN: Final = 5
_QE_REPORT_CERTIFICATION: Final = 6


@dataclass(frozen=True, slots=True)
class IntelPlatform:
    """An SGX or TDX machine, as Intel's service knows it.

    Attributes:
        tee: `sgx` or `tdx`.
        fmspc: 12 lower-case hex digits: family, model, stepping, platform type, custom SKU.
        ca: which authority issued its PCK certificate: `processor` or `platform`.
        pce_id: 4 lower-case hex digits.
        issuer: DER name of that authority.
    """

    tee: str
    fmspc: str
    ca: str
    pce_id: str
    issuer: bytes

    def __str__(self) -> str:
        return f"{self.tee} FMSPC {self.fmspc} ({self.ca} CA)"


@dataclass(frozen=True, slots=True)
class AmdPlatform:
    """An SEV-SNP machine at one TCB version, as AMD's service knows it.

    Attributes:
        key: what signs its reports: `vcek` or `vlek`.
        products: names of the processor family; several where the report does not say which.
        hwid: chip id in lower-case hex, 128 digits or 16; "" for a VLEK.
        tcb: the reported TCB version, 8 bytes as they stand in the report.
    """

    key: str
    products: tuple[str, ...]
    hwid: str
    tcb: bytes

    def __str__(self) -> str:
        where = f" {self.hwid[:16]}…" if self.hwid else ""
        return f"snp {'/'.join(self.products)}{where} TCB {self.tcb.hex()}"


@dataclass(frozen=True, slots=True)
class NitroPlatform:
    """A Nitro enclave: its document carries all there is."""

    def __str__(self) -> str:
        return "nitro"


Platform = IntelPlatform | AmdPlatform | NitroPlatform


def read_platform(evidence: bytes, kind: str) -> Platform:
    """Say which platform made this evidence.

    Args:
        evidence: untrusted, at most 131072 bytes.
        kind: `sgx`, `tdx`, `snp` or `nitro`.

    Raises:
        FormatError: it is no such evidence (`quote-format`, `report-format`), or
            does not say what its vendor must be asked for (`quote-certificate`, `report-chip`).
    """
    if kind not in KINDS:
        raise ValueError(f"evidence is of the kind {', '.join(KINDS)}")
    if len(evidence) > MAX_EVIDENCE:
        raise FormatError(f"evidence is larger than {MAX_EVIDENCE} bytes", code="evidence-size")
    if kind == "nitro":
        return NitroPlatform()
    if kind == "snp":
        return _amd(evidence)
    platform = _intel(evidence)
    if platform.tee != kind:
        raise FormatError(f"this is a quote of {platform.tee}, not of {kind}", code="quote-format")
    return platform


class _Bytes:
    """Reads on, field by field; the end is an error."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) != size:
            raise FormatError("quote: cut short", code="quote-format")
        self._at += size
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


def _intel(quote: bytes) -> IntelPlatform:
    data = _Bytes(quote)
    version, _, tee_type = data.number(2), data.number(2), data.number(4)
    tee = _TEES.get(tee_type)
    if version not in (3, 4, 5) or tee is None or (version == 3 and tee != "sgx"):
        raise FormatError("not an SGX or TDX quote of version 3, 4 or 5", code="quote-format")
    data.take(40)
    size = _BODIES[tee]
    if version == 5:
        of, size = _BODY_TYPES.get(data.number(2), ("", 0))
        if of != tee or data.number(4) != size:
            raise FormatError("quote: a body of an unknown type", code="quote-format")
    data.take(size)
    signature = _Bytes(data.take(data.number(4)))
    signature.take(128)
    if version > 3:
        if signature.number(2) != _QE_REPORT_CERTIFICATION:
            raise FormatError("quote: no report of a quoting enclave", code="quote-format")
        signature = _Bytes(signature.take(signature.number(4)))
    signature.take(448)
    signature.take(signature.number(2))
    kind = signature.number(2)
    chain = signature.take(signature.number(4))
    if kind != _PCK_CHAIN:
        raise FormatError(
            "the quote does not carry its PCK certificate, so Intel cannot be asked about its platform",
            code="quote-certificate",
        )
    return _of_pck(tee, chain)


def _of_pck(tee: str, chain: bytes) -> IntelPlatform:
    """What the PCK certificate says, wherever in the chain it stands."""
    try:
        found = [e.raw for e in der.elements(chain)] if chain[:1] == b"\x30" else der.pem_certificates(chain)
        for each in found:
            facts = der.certificate(each)
            if _SGX_EXTENSION in facts.extensions:
                values = {
                    e.inner()[0].content: e.inner()[1].content
                    for e in der.single(facts.extensions[_SGX_EXTENSION]).inner()
                    if len(e.inner()) == 2
                }
                fmspc, pce_id = values[_FMSPC], values[_PCE_ID]
                if (len(fmspc), len(pce_id)) != (6, 2):
                    raise FormatError
                ca = certification_authority(facts.issuer_name)
                return IntelPlatform(tee, fmspc.hex(), ca, pce_id.hex(), facts.issuer)
    except (FormatError, KeyError):
        pass
    raise FormatError("quote: its PCK certificate does not parse", code="quote-certificate")


def certification_authority(name: str) -> str:
    """`processor` or `platform`, by an authority's common name. Raises FormatError."""
    for ca in ("processor", "platform"):
        if f"pck {ca} ca" in name.lower():
            return ca
    raise FormatError("not issued by a PCK Processor or Platform CA", code="quote-certificate")


def _amd(report: bytes) -> AmdPlatform:
    if len(report) != REPORT_SIZE:
        raise FormatError(f"an SEV-SNP report has {REPORT_SIZE} bytes", code="report-format")
    version = int.from_bytes(report[:4], "little")
    if version not in (2, 3, 5):
        raise FormatError("not an SEV-SNP report of version 2, 3 or 5", code="report-format")
    tcb, chip = report[0x180:0x188], report[0x1A0:0x1E0]
    # Version 2 has no CPUID: the two families that make it are tried in turn.
    products = ("Milan", "Genoa") if version == 2 else (_product(report[0x188], report[0x189]),)
    signing = int.from_bytes(report[0x48:0x4C], "little") >> 2 & 0b111
    if signing == 1:
        return AmdPlatform("vlek", products, "", tcb)
    if signing != 0:
        raise FormatError("the report is signed with no key that AMD certifies", code="report-format")
    if not any(chip):
        raise FormatError("the report hides its chip id, so AMD cannot be asked about its key", code="report-chip")
    return AmdPlatform("vcek", products, (chip[:8] if products == ("Turin",) else chip).hex(), tcb)


def _product(family: int, model: int) -> str:
    """AMD's name for a processor family, by CPUID (AMD 57230 section 3)."""
    if family == 0x19:
        if model <= 0x0F:
            return "Milan"
        if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
            return "Genoa"
    if family == 0x1A and model <= 0x1F:
        return "Turin"
    raise FormatError("the report is of a processor family that is not known here", code="report-format")


_LEVELS: Final = {
    "Milan": {"blSPL": 0, "teeSPL": 1, "snpSPL": 6, "ucodeSPL": 7},
    "Genoa": {"blSPL": 0, "teeSPL": 1, "snpSPL": 6, "ucodeSPL": 7},
    "Turin": {"fmcSPL": 0, "blSPL": 1, "teeSPL": 2, "snpSPL": 3, "ucodeSPL": 7},
}
PRODUCTS: Final = tuple(_LEVELS)


def patch_levels(tcb: bytes, product: str) -> dict[str, int]:
    """A TCB version (8 bytes, as in a report) taken apart; the names are those of AMD's interface."""
    return {level: tcb[at] for level, at in _LEVELS[product].items()}


def tcb_version(levels: Mapping[str, int], product: str) -> bytes:
    """The inverse of `patch_levels`; what is reserved is zero."""
    tcb = bytearray(8)
    for level, at in _LEVELS[product].items():
        tcb[at] = levels[level]
    return bytes(tcb)
