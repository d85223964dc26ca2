"""An SEV-SNP attestation report, by the table of its fields. Nothing is authentic yet.

Runs at the relying party, on hostile bytes.

Spec: spec/snp.md sections 3 and 4. Layout: AMD 56860, ATTESTATION_REPORT and GUEST_POLICY.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from conclave.errors import FormatError

SIZE: Final = 0x4A0
SIGNED: Final = 0x2A0
VERSIONS: Final = (2, 3, 5)
SIGNING_KEYS: Final = {0: "VCEK", 1: "VLEK", 7: "none"}
DEBUG: Final = 1 << 19
_ECDSA_P384_SHA384: Final = 1
_POLICY_ONE: Final = 1 << 17
_COORDINATE: Final = 48


class Field(NamedTuple):
    """A field; integers are little-endian. Before version `since` its bytes are reserved."""

    name: str
    offset: int
    size: int
    since: int = 2


FIELDS: Final = (
    Field("version", 0x000, 4),
    Field("guest_svn", 0x004, 4),
    Field("policy", 0x008, 8),
    Field("family_id", 0x010, 16),
    Field("image_id", 0x020, 16),
    Field("vmpl", 0x030, 4),
    Field("signature_algorithm", 0x034, 4),
    Field("current_tcb", 0x038, 8),
    Field("platform_info", 0x040, 8),
    Field("key_info", 0x048, 4),
    Field("reserved_1", 0x04C, 4),
    Field("report_data", 0x050, 64),
    Field("measurement", 0x090, 48),
    Field("host_data", 0x0C0, 32),
    Field("id_key_digest", 0x0E0, 48),
    Field("author_key_digest", 0x110, 48),
    Field("report_id", 0x140, 32),
    Field("report_id_ma", 0x160, 32),
    Field("reported_tcb", 0x180, 8),
    Field("cpuid_family", 0x188, 1, 3),
    Field("cpuid_model", 0x189, 1, 3),
    Field("cpuid_stepping", 0x18A, 1, 3),
    Field("reserved_2", 0x18B, 21),
    Field("chip_id", 0x1A0, 64),
    Field("committed_tcb", 0x1E0, 8),
    Field("current_build", 0x1E8, 1),
    Field("current_minor", 0x1E9, 1),
    Field("current_major", 0x1EA, 1),
    Field("reserved_3", 0x1EB, 1),
    Field("committed_build", 0x1EC, 1),
    Field("committed_minor", 0x1ED, 1),
    Field("committed_major", 0x1EE, 1),
    Field("reserved_4", 0x1EF, 1),
    Field("launch_tcb", 0x1F0, 8),
    Field("launch_mit_vector", 0x1F8, 8, 5),
    Field("current_mit_vector", 0x200, 8, 5),
    Field("reserved_5", 0x208, 152),
    Field("signature_r", 0x2A0, 72),
    Field("signature_s", 0x2E8, 72),
    Field("reserved_6", 0x330, 368),
)
_PLACES: Final = {f.name: slice(f.offset, f.offset + f.size) for f in FIELDS}
# The highest bit of the guest policy that a version defines.
_POLICY_BITS: Final = {2: 24, 3: 24, 5: 25}


@dataclass(frozen=True, slots=True)
class Report:
    """A report of a known version and form."""

    raw: bytes

    def field(self, name: str) -> bytes:
        """The bytes of a field of the table."""
        return self.raw[_PLACES[name]]

    def number(self, name: str) -> int:
        """A field read as a number."""
        return int.from_bytes(self.raw[_PLACES[name]], "little")

    @property
    def version(self) -> int:
        """2, 3 or 5."""
        return self.number("version")

    @property
    def signing_key(self) -> str:
        """Which key is to have signed it: `VCEK`, `VLEK`, or `none`."""
        return SIGNING_KEYS[self.number("key_info") >> 2]

    @property
    def mask_chip_key(self) -> bool:
        """The operator told the firmware not to use the chip's own key."""
        return bool(self.number("key_info") & 2)

    @property
    def debug(self) -> bool:
        """The guest's policy lets the hypervisor read and write its memory."""
        return bool(self.number("policy") & DEBUG)

    @property
    def cpuid(self) -> bytes | None:
        """Family, model and stepping, from version 3 on."""
        return self.raw[0x188:0x18B] if self.version >= 3 else None

    @property
    def signature(self) -> bytes:
        """r ‖ s, big-endian, 96 bytes."""
        return b"".join(self.field(name)[_COORDINATE - 1 :: -1] for name in ("signature_r", "signature_s"))


def parse_report(raw: bytes) -> Report:
    """Read a report. Verifies nothing.

    Args:
        raw: 1184 bytes as the guest device returns them. Untrusted.

    Raises:
        FormatError: `report-version`: a version this release does not know.
            `report-format`: wrong size, a reserved bit is set, or an unknown
            algorithm, privilege level or kind of key.

    Spec: spec/snp.md section 4 (SNP-1 to SNP-4).
    """
    if len(raw) != SIZE:
        raise _malformed(f"its size is not {SIZE} bytes")
    report = Report(bytes(raw))
    version = report.version
    if version not in VERSIONS:
        raise FormatError("report: a version that this release does not know", code="report-version")
    for field in FIELDS:
        if (field.since > version or field.name.startswith("reserved")) and any(report.field(field.name)):
            raise _malformed("reserved bytes are not zero")
    policy = report.number("policy")
    if not policy & _POLICY_ONE or policy >> (_POLICY_BITS[version] + 1):
        raise _malformed("reserved bits of the guest policy are set, or the one that is always set is not")
    if report.number("vmpl") > 3:
        # All ones would be a report that the hypervisor asked for, not the guest.
        raise _malformed("unknown privilege level")
    if report.number("signature_algorithm") != _ECDSA_P384_SHA384:
        raise _malformed("unknown signature algorithm")
    if report.number("key_info") >> 2 not in SIGNING_KEYS:
        raise _malformed("unknown kind of signing key")
    if any(report.field("signature_r")[_COORDINATE:] + report.field("signature_s")[_COORDINATE:]):
        raise _malformed("a number of the signature is too large")
    return report


def _malformed(why: str) -> FormatError:
    return FormatError(f"report: {why}", code="report-format")
