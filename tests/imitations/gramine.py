"""Gramine's /dev/attestation, and the kernel's directory of TDX registers, as files.

From Gramine's source (libos attestation pseudo-files): report data is taken when the
file is written, padded with zeros; the quote is made when the file is opened; without
remote attestation there is no `quote`, without SGX nothing but `keys`.
"""

from __future__ import annotations

import errno
from typing import Any

from tests.imitations.processor import extend
from tests.imitations.tsm import Binary, Handle, Text, refuse


class Attestation:
    """The directory `attestation` of one enclave."""

    def __init__(self, processor: Any, *, kind: str = "dcap") -> None:
        self.processor = processor
        self.kind = kind
        self.report_data = bytes(64)
        self.quotes = 0
        self.refuses = False

    def files(self) -> dict[str, int]:
        found = {"keys/_sgx_mrenclave": 0o600, "keys/_sgx_mrsigner": 0o600}
        if self.kind == "direct":
            return {"keys/default": 0o600}
        found |= {"attestation_type": 0o444, "user_report_data": 0o666, "my_target_info": 0o444, "target_info": 0o666}
        if self.kind != "none":
            found["quote"] = 0o444
        return found

    def open(self, name: str, *, writing: bool) -> Handle:
        if name not in self.files():
            raise refuse(errno.ENOENT)
        if name == "attestation_type":
            return Text(lambda: self.kind, None)
        if name == "user_report_data":
            return Text(lambda: self.report_data.decode("latin1"), self._take)
        if name == "quote":
            quote = self._quote()
            return Binary(lambda: quote, None)
        if name.startswith("keys/"):
            key = self.processor.sealing_key(name.removeprefix("keys/"))
            return Binary(lambda: key, None)
        return Text(lambda: "", None)

    def _take(self, data: bytes) -> None:
        self.report_data = data[:64].ljust(64, b"\0")

    def _quote(self) -> bytes:
        if self.refuses:
            raise refuse(errno.EACCES)
        self.quotes += 1
        quote: bytes = self.processor.evidence(self.report_data).raw
        return quote


class Registers:
    """The directory `measurements` of a TDX guest (Linux 6.16): a write extends."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.extensions = 0

    def files(self) -> dict[str, int]:
        return {"rtmr3:sha384": 0o644, "mrconfigid": 0o444}

    def open(self, name: str, *, writing: bool) -> Handle:
        if name not in self.files() or (writing and name == "mrconfigid"):
            raise refuse(errno.ENOENT)
        return Register(self, name)


class Register:
    """One register's file."""

    def __init__(self, registers: Registers, name: str) -> None:
        self._registers, self._name = registers, name

    def read(self, offset: int, size: int) -> bytes:
        processor = self._registers.processor
        value: bytes = processor.rtmr3 if self._name.startswith("rtmr3") else processor.mrconfigid
        return value[offset : offset + size]

    def write(self, offset: int, data: bytes) -> int:
        if offset or len(data) != 48:
            raise refuse(errno.EINVAL)
        self._registers.processor.rtmr3 = extend(self._registers.processor.rtmr3, data)
        self._registers.extensions += 1
        return len(data)

    def close(self) -> None:
        pass
