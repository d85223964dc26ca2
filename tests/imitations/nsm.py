"""The Nitro Secure Module and the ioctl of its kernel driver, and the derived keys of /dev/sev-guest.

From the kernel's sources (misc/nsm.c, sev-guest.c) and the NSM library's description of
requests and answers. Addresses in the structures are followed as the kernel would.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import struct
import threading
from typing import Any

import cbor2
from tests.imitations.processor import EMPTY, Nitro, Snp, extend
from tests.imitations.tsm import refuse

NSM_RAW = 0xC0200A00
PCRS = 32


class Module:
    """A module with 32 registers, of which the hypervisor locks the first 16.

    Attributes:
        answers: raw answers to give instead, by request name.
        fault: an error number for every call.
        asked: the requests' names.
    """

    def __init__(self, processor: Nitro, *, about: dict[str, Any] | None = None) -> None:
        self.processor = processor
        self.launch()
        self.answers: dict[str, bytes] = {}
        self.fault: int | None = None
        self.asked: list[str] = []
        self._about = about or {}
        self._lock = threading.Lock()

    def launch(self) -> None:
        """A new enclave: registers above those of the hypervisor are empty and open."""
        self.registers = [EMPTY] * PCRS
        self.locked = set(range(16))

    def ioctl(self, descriptor: int, number: int, raw: bytearray) -> int:
        if number != NSM_RAW:
            raise refuse(errno.EINVAL)
        sent, sent_size, room, room_size = struct.unpack("=QQQQ", raw)
        if sent_size > 0x1000:
            raise refuse(errno.EMSGSIZE)
        if self.fault is not None:
            raise refuse(self.fault)
        with self._lock:
            answer = self._answer(ctypes.string_at(sent, sent_size))[:0x3000]
        # What does not fit is cut off, as the kernel does.
        size = min(len(answer), room_size)
        ctypes.memmove(room, answer, size)
        raw[:] = struct.pack("=QQQQ", sent, sent_size, room, size)
        return 0

    def _answer(self, request: bytes) -> bytes:
        asked = cbor2.loads(request)
        name, arguments = (asked, {}) if isinstance(asked, str) else next(iter(asked.items()))
        self.asked.append(name)
        if name in self.answers:
            return self.answers[name]
        answer = getattr(self, f"_{name}", lambda **_: "InvalidOperation")(**arguments)
        if isinstance(answer, dict):
            return cbor2.dumps({name: answer})
        return cbor2.dumps(name if answer is None else {"Error": answer})

    def _DescribeNSM(self) -> dict[str, Any]:
        about = {
            "version_major": 1,
            "version_minor": 0,
            "version_patch": 0,
            "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
            "max_pcrs": PCRS,
            "locked_pcrs": sorted(self.locked),
            "digest": "SHA384",
        }
        return about | self._about

    def _DescribePCR(self, index: int) -> Any:
        if not 0 <= index < PCRS:
            return "InvalidIndex"
        return {"lock": index in self.locked, "data": self.registers[index]}

    def _ExtendPCR(self, index: int, data: bytes) -> Any:
        if not 0 <= index < PCRS:
            return "InvalidIndex"
        if index in self.locked:
            return "ReadOnlyIndex"
        if len(data) > 512:
            return "InputTooLarge"
        self.registers[index] = extend(self.registers[index], data)
        return {"data": self.registers[index]}

    def _LockPCR(self, index: int) -> Any:
        if not 0 <= index < PCRS:
            return "InvalidIndex"
        if index in self.locked:
            return "ReadOnlyIndex"
        self.locked.add(index)
        return None

    def _Attestation(self, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None) -> Any:
        if any(len(v or b"") > most for v, most in ((user_data, 512), (nonce, 512), (public_key, 1024))):
            return "InputTooLarge"
        self.processor.pcrs = {n: self.registers[n] for n in self.locked if n >= 16}
        self.processor.nonce, self.processor.public_key = nonce, public_key
        return {"document": self.processor.evidence(user_data).raw}


GET_DERIVED_KEY = 0xC0205301


class SevGuestDevice:
    """GET_DERIVED_KEY: a key of this processor, of what the request selects and of the launch.

    Attributes:
        status: the firmware's answer where it is not 0.
        requests: what was selected, VMPL and TCB of each request.
    """

    def __init__(self, processor: Snp, *, chip: bytes = b"this processor", measurement: bytes = b"runtime") -> None:
        self.processor = processor
        self.chip = chip
        self.launch = {3: measurement, 0: b"policy"}
        self.status = 0
        self.fault: int | None = None

    def ioctl(self, descriptor: int, number: int, raw: bytearray) -> int:
        version, sent, room, _ = struct.unpack("=B7xQQQ", raw)
        if number != GET_DERIVED_KEY:
            raise refuse(errno.ENOTTY)
        if not version or not sent or not room:
            raise refuse(errno.EINVAL)
        if self.fault is not None:
            raise refuse(self.fault)
        request = ctypes.string_at(sent, 32)
        root, reserved, select, vmpl, svn, tcb = struct.unpack("=IIQIIQ", request)
        committed = int.from_bytes(self.processor.evidence(bytes(64)).raw[0x1E0:0x1E8], "little")
        status = self.status
        if root > 1 or reserved or select >> 6 or not self.processor.vmpl <= vmpl <= 3 or tcb > committed or svn:
            status = 0x16  # INVALID_PARAM
        mixed = [self.chip, root.to_bytes(4, "little"), select.to_bytes(8, "little"), vmpl.to_bytes(4, "little")]
        mixed += [part for bit, part in sorted(self.launch.items()) if select >> bit & 1]
        if select >> 5 & 1:
            mixed.append(tcb.to_bytes(8, "little"))
        key = bytes(32) if status else hashlib.sha256(b"\0".join(mixed)).digest()
        ctypes.memmove(room, status.to_bytes(4, "little") + bytes(28) + key, 64)
        raw[:] = struct.pack("=B7xQQQ", version, sent, room, 0)
        return 0
