"""Derived keys of SEV-SNP, behind /dev/sev-guest.

Runs inside the enclave, before author code, in a process of its own: the
processor's key is the runtime's and not the bundle's, so the process that later runs
author code never holds it.

Spec: spec/drivers.md section 3.1 (DRV-18 to DRV-20). Sources: linux/sev-guest.h; AMD
SEV-SNP firmware ABI, MSG_KEY_REQ.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from conclave._crypto import Secret
from conclave.enclave.drivers.tee import policy_root
from conclave.errors import PlatformError

PLACE: Final = "dev/sev-guest"
GET_DERIVED_KEY: Final = 0xC0205301
# u8 message version, padding, u64 request, u64 response, u64 error of host and firmware.
_CALL: Final = struct.Struct("=B7xQQQ")
# u32 root key (0: VCEK), u32 zero, u64 what is mixed in, u32 VMPL, u32 guest SVN, u64 TCB.
_REQUEST: Final = struct.Struct("=IIQIIQ")
_RESPONSE_SIZE: Final = 64
_KEY: Final = slice(32, 64)
_VCEK: Final = 0
# Mixed in: the guest policy, or a debuggable launch of the same program would get the
# key; the measurement, which is the runtime; the TCB, or older firmware would get it.
SELECT: Final = 1 << 0 | 1 << 3 | 1 << 5
_ROOT_SIZE: Final = 32

Ioctl = Callable[[int, int, bytearray], object]


class SevGuest:
    """The device, opened when it is needed and never kept open."""

    def __init__(self, path: Path, *, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._path = path
        self._ioctl = ioctl

    def opens(self) -> bool:
        """Whether this process can open the device."""
        for flags in (os.O_RDWR, os.O_RDONLY):
            with suppress(OSError):
                os.close(os.open(self._path, flags | os.O_CLOEXEC))
                return True
        return False

    def roots(self, *, level: int, tcb: int, bound: Mapping[tuple[str, int], bytes]) -> dict[tuple[str, int], Secret]:
        """The key of each policy and revocation level, derived in a child process that ends before this returns.

        Args:
            level: the VMPL this guest runs at.
            tcb: the committed TCB version to mix in.
            bound: what each policy binds, by policy and revocation level.

        Raises:
            PlatformError: the device is missing or refuses. Nothing was derived.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            with suppress(BaseException):
                os.write(writer, self._answer(level, tcb, bound))
                status = 0
            os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        why, keys = answer[:1], answer[1:]
        if why != b"\0" or len(keys) != _ROOT_SIZE * len(bound):
            raise PlatformError(keys.decode("ascii", "replace")[:200] or "the process that derives keys died")
        return {use: Secret(keys[n * _ROOT_SIZE : (n + 1) * _ROOT_SIZE]) for n, use in enumerate(bound)}

    def _answer(self, level: int, tcb: int, bound: Mapping[tuple[str, int], bytes]) -> bytes:
        try:
            key = self._device_key(level, tcb)
        except PlatformError as error:
            return b"\1" + str(error).encode("ascii", "replace")
        roots = (policy_root(key, tee="snp", policy=policy, bound=part) for (policy, _), part in bound.items())
        return b"\0" + b"".join(root.insecure_reveal() for root in roots)

    def _device_key(self, level: int, tcb: int) -> Secret:
        request = _REQUEST.pack(_VCEK, 0, SELECT, level, 0, tcb)
        sent = ctypes.create_string_buffer(request, len(request))
        room = ctypes.create_string_buffer(_RESPONSE_SIZE)
        call = bytearray(_CALL.pack(1, ctypes.addressof(sent), ctypes.addressof(room), 0))
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._ioctl(descriptor, GET_DERIVED_KEY, call)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise PlatformError(f"/dev/sev-guest: {error.strerror}") from None
        status = int.from_bytes(room.raw[:4], "little")
        key = room.raw[_KEY]
        if status or not any(key):
            raise PlatformError(f"the processor derives no key (status {status:#x})")
        return Secret(key)
