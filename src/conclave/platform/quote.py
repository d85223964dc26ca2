"""SGX reports and quotes, as a processor and its quoting enclave make them.

Runs in the simulated platform. Formats: Intel SDM volume 3D, table 38-21 (report);
Intel DCAP ECDSA Quote Library API, appendix A (quote version 3).

Spec: spec/claims.md section 2 (CLM-1).
"""

from __future__ import annotations

import struct
from typing import Final

from conclave import _crypto
from conclave.platform import pki
from conclave.platform.pki import Pki
from conclave.platform.vendor import FIRST, QE_ATTRIBUTES, QE_MRSIGNER, QE_PRODUCT, Tcb

QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
# INIT and MODE64BIT, and KSS, without which a report has no CONFIGID.
ATTRIBUTES: Final = struct.pack("<QQ", 0x85, 0x3)


def report_body(
    *,
    measurement: bytes,
    signer: bytes,
    attributes: bytes,
    product: int,
    svn: int,
    report_data: bytes,
    config_id: bytes = bytes(64),
    cpu_svn: bytes = FIRST.cpu_svn,
) -> bytes:
    """An SGX report body, 384 bytes (Intel SDM volume 3D, table 38-21)."""
    parts = (measurement, signer, attributes, report_data, config_id, cpu_svn)
    if [len(p) for p in parts] != [32, 32, 16, 64, 64, 16]:
        raise ValueError("a part of the report body has another size than it must have")
    return b"".join(
        (
            cpu_svn,
            bytes(4 + 12 + 16),
            attributes,
            measurement,
            bytes(32),
            signer,
            bytes(32),
            config_id,
            struct.pack("<HHH", product, svn, 0),
            bytes(42 + 16),
            report_data,
        )
    )


class QuotingEnclave:
    """Signs reports of this machine with a key that the processor certified."""

    def __init__(self, keys: Pki, tcb: Tcb, key: pki.PrivateKey) -> None:
        self._tcb = tcb
        self._key = key
        self._certification = self._certify(keys)

    def _certify(self, keys: Pki) -> bytes:
        """Its part of every quote: key, report, chain."""
        public = pki.point(self._key)
        extra = bytes(range(32))
        report = report_body(
            measurement=_crypto.sha256(b"conclave simulated quoting enclave"),
            signer=QE_MRSIGNER,
            attributes=QE_ATTRIBUTES,
            product=QE_PRODUCT,
            svn=self._tcb.qe,
            report_data=_crypto.sha256(public, extra) + bytes(32),
            cpu_svn=self._tcb.cpu_svn,
        )
        chain = pki.pem(keys.pck, keys.ca, keys.root).encode()
        return (
            public
            + report
            + pki.raw_signature(keys.pck_key, report)
            + struct.pack("<H", len(extra))
            + extra
            + struct.pack("<HI", 5, len(chain))
            + chain
        )

    def quote(
        self, *, report_data: bytes, config_id: bytes, mrenclave: bytes, product: int, svn: int, attributes: bytes
    ) -> bytes:
        """A real-format SGX ECDSA quote, version 3. See `Machine.quote`."""
        header = struct.pack("<HHIHH16s20s", 3, 2, 0, self._tcb.qe, self._tcb.pce_svn, QE_VENDOR, bytes(20))
        body = report_body(
            measurement=mrenclave,
            signer=_crypto.sha256(b"conclave simulated runtime signer"),
            attributes=attributes,
            product=product,
            svn=svn,
            report_data=report_data,
            config_id=config_id,
            cpu_svn=self._tcb.cpu_svn,
        )
        signed = header + body
        auth = pki.raw_signature(self._key, signed) + self._certification
        return signed + struct.pack("<I", len(auth)) + auth
