"""Where the fields of quotes and reports lie: tables of name, offset and size.

Runs at the relying party. Numbers are little-endian. A test asserts that each table
tiles its structure exactly.

Formats: Intel SGX ECDSA QuoteLibReference (version 3), Intel TDX DCAP Quoting Library
API (versions 4 and 5), Intel SDM volume 3D (report), Intel TDX module ABI (TD report).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from conclave.errors import FormatError

Layout = tuple[tuple[str, int, int], ...]

HEADER: Final[Layout] = (
    ("version", 0, 2),
    ("attestation_key_type", 2, 2),
    ("tee_type", 4, 4),
    ("qe_svn", 8, 2),
    ("pce_svn", 10, 2),
    ("qe_vendor_id", 12, 16),
    ("user_data", 28, 20),
)
SGX_REPORT: Final[Layout] = (
    ("cpu_svn", 0, 16),
    ("misc_select", 16, 4),
    ("reserved1", 20, 12),
    ("isv_ext_prod_id", 32, 16),
    ("attributes", 48, 16),
    ("mrenclave", 64, 32),
    ("reserved2", 96, 32),
    ("mrsigner", 128, 32),
    ("reserved3", 160, 32),
    ("config_id", 192, 64),
    ("isv_prod_id", 256, 2),
    ("isv_svn", 258, 2),
    ("config_svn", 260, 2),
    ("reserved4", 262, 42),
    ("isv_family_id", 304, 16),
    ("report_data", 320, 64),
)
TD_REPORT_10: Final[Layout] = (
    ("tee_tcb_svn", 0, 16),
    ("mrseam", 16, 48),
    ("mrsignerseam", 64, 48),
    ("seam_attributes", 112, 8),
    ("td_attributes", 120, 8),
    ("xfam", 128, 8),
    ("mrtd", 136, 48),
    ("mrconfigid", 184, 48),
    ("mrowner", 232, 48),
    ("mrownerconfig", 280, 48),
    ("rtmr0", 328, 48),
    ("rtmr1", 376, 48),
    ("rtmr2", 424, 48),
    ("rtmr3", 472, 48),
    ("report_data", 520, 64),
)
TD_REPORT_15: Final[Layout] = (*TD_REPORT_10, ("tee_tcb_svn2", 584, 16), ("mrservicetd", 600, 48))
# By the body type of quote version 5: TEE and layout.
BODIES: Final[Mapping[int, tuple[str, Layout]]] = MappingProxyType(
    {1: ("sgx", SGX_REPORT), 2: ("tdx", TD_REPORT_10), 3: ("tdx", TD_REPORT_15)}
)


def size_of(layout: Layout) -> int:
    """How many bytes the structure has."""
    _, offset, size = layout[-1]
    return offset + size


def fields(layout: Layout, data: bytes) -> Mapping[str, bytes]:
    """The fields by name. Raises FormatError if a reserved one is not zero."""
    found = {name: data[offset : offset + size] for name, offset, size in layout}
    if any(any(value) for name, value in found.items() if name.startswith("reserved")):
        raise FormatError("quote: a reserved field is not zero", code="quote-format")
    return MappingProxyType(found)


def number(data: bytes) -> int:
    """A field as a number."""
    return int.from_bytes(data, "little")
