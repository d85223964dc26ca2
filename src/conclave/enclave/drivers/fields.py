"""The few fields of evidence that drivers look at, where the vendors put them.

Runs inside the enclave, on evidence its own TEE just made. Nothing is verified here:
that is the client's part.

Sources: Intel SGX DCAP and TDX DCAP quoting library, appendices on quote formats;
AMD SEV-SNP firmware ABI, table of the attestation report. Offsets are in bytes.
"""

from __future__ import annotations

from typing import Final

from conclave import _crypto
from conclave.errors import PlatformError

# Quote header: version u16 at 0, attestation key type u16 at 2, TEE type u32 at 4.
_QUOTE_HEADER: Final = 48
_SGX, _TDX = 0, 0x81
# Version 5 says in six bytes what body follows: type u16, size u32.
_BODY_HEADER: Final = 6
_TD_10, _TD_15 = 2, 3
_SIZES: Final = {_TD_10: 584, _TD_15: 648}
_SGX_BODY: Final = 384
_SGX_REPORT_DATA: Final = 320
_MRCONFIGID, _RTMR3, _TD_REPORT_DATA = 184, 472, 520
_REGISTER: Final = 48
EMPTY_REGISTER: Final = bytes(_REGISTER)

SNP_REPORT_SIZE: Final = 1184
_SNP_VMPL, _SNP_REPORT_DATA, _SNP_HOST_DATA, _SNP_COMMITTED_TCB = 0x30, 0x50, 0xC0, 0x1E0


def extended(register: bytes, data: bytes) -> bytes:
    """What an RTMR or a PCR holds after it was extended: SHA-384(register ‖ data)."""
    return _crypto.sha384(register, data)


def sgx_report_data(quote: bytes) -> bytes:
    """The report data of an SGX quote, version 3."""
    if len(quote) < _QUOTE_HEADER + _SGX_BODY or _number(quote, 0, 2) != 3 or _number(quote, 4, 4) != _SGX:
        raise PlatformError("the quote is not an SGX quote of version 3")
    at = _QUOTE_HEADER + _SGX_REPORT_DATA
    return quote[at : at + 64]


class TdQuote:
    """A TDX quote, version 4 or 5."""

    def __init__(self, quote: bytes) -> None:
        version, at = _number(quote, 0, 2), _QUOTE_HEADER
        size = _SIZES[_TD_10]
        if version == 5:
            size = _SIZES.get(_number(quote, at, 2), 0)
            at += _BODY_HEADER
            if not size or _number(quote, at - 4, 4) != size:
                raise PlatformError("the quote is a TDX quote of version 5 with another body than a TD's")
        if version not in (4, 5) or _number(quote, 4, 4) != _TDX or len(quote) < at + size:
            raise PlatformError("the quote is not a TDX quote of version 4 or 5")
        body = quote[at : at + size]
        self.mrconfigid = body[_MRCONFIGID : _MRCONFIGID + _REGISTER]
        self.rtmr3 = body[_RTMR3 : _RTMR3 + _REGISTER]
        self.report_data = body[_TD_REPORT_DATA : _TD_REPORT_DATA + 64]


class SnpReport:
    """An SEV-SNP attestation report."""

    def __init__(self, report: bytes) -> None:
        if len(report) != SNP_REPORT_SIZE:
            raise PlatformError(f"the SEV-SNP report has {len(report)} bytes, not {SNP_REPORT_SIZE}")
        self.vmpl = _number(report, _SNP_VMPL, 4)
        self.report_data = report[_SNP_REPORT_DATA : _SNP_REPORT_DATA + 64]
        self.host_data = report[_SNP_HOST_DATA : _SNP_HOST_DATA + 32]
        self.committed_tcb = _number(report, _SNP_COMMITTED_TCB, 8)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
