"""The simulated TEE's driver: asks the platform process.

Runs inside the enclave, over the platform channel (fd 4), which the host never
holds. The platform is the TEE here: trusted as the processor is.

Spec: spec/host-channel.md section 3 (PLAT-1 to PLAT-3).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import Final

from conclave import _codec
from conclave._framing import FrameReader, PlatformKind, pack
from conclave.enclave.drivers.tee import (
    Evidence,
    Identity,
    Mounted,
    check_context,
    check_level,
    check_report_data,
    offered_to,
    unsupported,
)
from conclave.errors import PlatformError

_MAX_ANSWER: Final = 65536


class SimulatedTee:
    """Blocking requests to the platform, one at a time."""

    kind = "simulated"
    # The whole sandbox is closed before this driver is made.
    places: Sequence[str] | None = None

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._reader = FrameReader(PlatformKind, max_payload=_MAX_ANSWER)
        self._lock = threading.Lock()
        self._mounted: Mounted | None = None

    def identity(self, mounted: Mounted) -> Identity:
        """The bundle the platform measured and launched."""
        self._mounted = mounted
        answer = self._ask(PlatformKind.IDENTITY, b"", PlatformKind.IDENTITY_IS)
        return _codec.decode(Identity, answer, max_size=4096, what="platform identity")

    def check_closed(self) -> None:
        """See `Tee.check_closed`."""

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes of report data; the platform names the bundle in it."""
        check_report_data(report_data)
        return Evidence("sgx", self._ask(PlatformKind.EVIDENCE, report_data, PlatformKind.EVIDENCE_IS))

    def sealing_key(self, policy: str, context: bytes = b"", *, level: int | None = None) -> bytes:
        """See `Tee.sealing_key`; this TEE binds to each policy."""
        check_context(context)
        if self._mounted is None:
            raise RuntimeError("identity comes first")
        offered = offered_to(self._mounted)
        if policy not in offered:
            raise unsupported(policy, tee="the simulated TEE", offers=f"binds keys to {', '.join(offered)} alone")
        wanted = check_level(policy, level, self._mounted.revocation_level)
        request = policy.encode() + b"\0" + wanted.to_bytes(2, "big") + context
        return self._ask(PlatformKind.SEALING_KEY, request, PlatformKind.SEALING_KEY_IS)

    def _ask(self, kind: PlatformKind, payload: bytes, expected: PlatformKind) -> bytes:
        with self._lock:
            self._channel.sendall(pack(kind, 1, payload))
            while True:
                data = self._channel.recv(_MAX_ANSWER)
                if not data:
                    raise PlatformError("the platform closed its channel")
                for frame in self._reader.feed(data):
                    if frame.kind == expected:
                        return frame.payload
                    raise PlatformError("the platform refused the request")
