"""AWS Nitro Enclaves: the Nitro Secure Module behind /dev/nsm.

Runs inside the enclave. The module is the hypervisor's, and here the vendor and the
operator's landlord are the same company.

Spec: spec/drivers.md section 4 (DRV-22 to DRV-25). Sources: the nsm driver of Linux
(linux/nsm.h); the NSM library's description of requests, answers and the document.
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Final

from conclave import _crypto
from conclave.enclave.drivers import cbor
from conclave.enclave.drivers.cbor import Value
from conclave.enclave.drivers.fields import EMPTY_REGISTER, extended
from conclave.enclave.drivers.tee import (
    Evidence,
    Identity,
    Mounted,
    check_context,
    check_echo,
    check_report_data,
    unsupported,
)
from conclave.errors import FormatError, PlatformError

PLACE: Final = "dev/nsm"
BUNDLE_PCR: Final = 16
IOCTL_RAW: Final = 0xC0200A00
MAX_REQUEST: Final = 0x1000
MAX_RESPONSE: Final = 0x3000
# u64 request address and length, u64 response address and length; the length of the
# response is written back.
_RAW: Final = struct.Struct("=QQQQ")
_ERRORS: Final = frozenset(
    {"InvalidArgument", "InvalidIndex", "InvalidResponse", "ReadOnlyIndex", "InvalidOperation"}
    | {"BufferTooSmall", "InputTooLarge", "InternalError"}
)

Ioctl = Callable[[int, int, bytearray], object]


class Nsm:
    """Requests to the module, one at a time."""

    def __init__(self, descriptor: int, *, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._descriptor = descriptor
        self._ioctl = ioctl
        self._lock = threading.Lock()

    def ask(self, name: str, arguments: dict[str | int, Value] | None = None) -> dict[str | int, Value]:
        """One request; what its answer holds.

        Raises:
            PlatformError: the device or the module refuses, or answers something else.
        """
        request = cbor.encode(name if arguments is None else {name: arguments})
        try:
            with self._lock:
                answer = cbor.decode(self._exchange(request))
        except OSError as error:
            raise PlatformError(f"the NSM device refuses {name}: {error.strerror}") from None
        except FormatError as error:
            raise PlatformError(f"the NSM's answer to {name} does not parse: {error}") from None
        # An answer without contents is its bare name.
        if answer == name:
            return {}
        if isinstance(answer, dict) and len(answer) == 1:
            if "Error" in answer:
                word = answer["Error"]
                known = word if isinstance(word, str) and word in _ERRORS else "an error this release does not know"
                raise PlatformError(f"the NSM refuses {name}: {known}")
            if isinstance(found := answer.get(name), dict):
                return found
        raise PlatformError(f"the NSM answered something else than {name}")

    def _exchange(self, request: bytes) -> bytes:
        if len(request) > MAX_REQUEST:
            raise ValueError(f"an NSM request has at most {MAX_REQUEST} bytes")
        sent = ctypes.create_string_buffer(request, len(request))
        room = ctypes.create_string_buffer(MAX_RESPONSE)
        raw = bytearray(
            _RAW.pack(ctypes.addressof(sent), len(request), ctypes.addressof(room), MAX_RESPONSE),
        )
        self._ioctl(self._descriptor, IOCTL_RAW, raw)
        size = _RAW.unpack(raw)[3]
        if size > MAX_RESPONSE:
            raise FormatError("it claims to be larger than the room it was given")
        return room.raw[:size]


class NitroTee:
    """The TEE of a Nitro Enclave."""

    kind = "nitro"
    # The module answers whoever runs in the enclave, and guards no secret of the runtime.
    places: Sequence[str] | None = None

    def __init__(self, nsm: Nsm) -> None:
        self._nsm = nsm

    def identity(self, mounted: Mounted) -> Identity:
        """Extend PCR16 with the bundle id and lock it, before author code could.

        A runtime that is started again in the same enclave finds its own value. Any
        other value was put there by somebody else, and nothing can take it out again.
        """
        # 1. A module this driver knows.
        about = self._nsm.ask("DescribeNSM")
        registers = about.get("max_pcrs")
        if about.get("version_major") != 1 or about.get("digest") != "SHA384":
            raise PlatformError("the NSM speaks another version, or has registers of another digest than SHA-384")
        if not isinstance(registers, int) or registers <= BUNDLE_PCR:
            raise PlatformError(f"the NSM has no register {BUNDLE_PCR}")
        # 2. Name the bundle, if nobody did.
        wanted = extended(EMPTY_REGISTER, mounted.bundle_id)
        held, locked = self._register()
        if held == EMPTY_REGISTER and not locked:
            self._nsm.ask("ExtendPCR", {"index": BUNDLE_PCR, "data": mounted.bundle_id})
            held, locked = self._register()
        # 3. It must be this bundle.
        if not _crypto.same(held, wanted):
            raise PlatformError(f"PCR{BUNDLE_PCR} holds something else than this bundle; start the enclave anew")
        # 4. Lock: documents list locked registers alone, and author code cannot extend it.
        if not locked:
            self._nsm.ask("LockPCR", {"index": BUNDLE_PCR})
            held, locked = self._register()
        if not locked or not _crypto.same(held, wanted):
            raise PlatformError(f"the NSM did not lock PCR{BUNDLE_PCR}")
        return Identity(tee=self.kind, bundle_id=mounted.bundle_id, sandbox="none")

    def check_closed(self) -> None:
        """See `Tee.check_closed`."""

    def evidence(self, report_data: bytes) -> Evidence:
        """See `Tee.evidence`; report data is the document's `user_data`."""
        check_report_data(report_data)
        answer = self._nsm.ask("Attestation", {"user_data": report_data, "nonce": None, "public_key": None})
        document = answer.get("document")
        if not isinstance(document, bytes):
            raise PlatformError("the NSM answered no document")
        check_echo(user_data(document), report_data, document)
        return Evidence(self.kind, document)

    def sealing_key(self, policy: str, context: bytes = b"", *, level: int | None = None) -> bytes:
        """See `Tee.sealing_key`; there is none."""
        check_context(context)
        raise unsupported(policy, tee="Nitro", offers="has no sealing keys")

    def _register(self) -> tuple[bytes, bool]:
        answer = self._nsm.ask("DescribePCR", {"index": BUNDLE_PCR})
        held, locked = answer.get("data"), answer.get("lock")
        if not isinstance(held, bytes) or len(held) != len(EMPTY_REGISTER) or not isinstance(locked, bool):
            raise PlatformError("the NSM described a register in another form")
        return held, locked


def user_data(document: bytes) -> bytes | None:
    """The `user_data` of an attestation document: COSE_Sign1 around a map. Nothing is verified."""
    try:
        match cbor.decode(document):
            case [_, _, bytes(payload), _]:
                match cbor.decode(payload):
                    case {"user_data": bytes(found)}:
                        return found
    except FormatError:
        pass
    return None
