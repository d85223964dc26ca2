"""The enclave's half of the simulated TEE's driver: identity, evidence, keys.

Runs inside the enclave, over the platform channel (fd 4), which the host never
holds. The platform is the TEE here: trusted as the processor is.

Spec: spec/host-channel.md section 3 (PLAT-1, PLAT-2).
"""

from __future__ import annotations

import socket
from typing import Final

from conclave import _codec
from conclave._framing import FrameReader, PlatformKind, pack
from conclave.errors import PlatformError, UnsupportedPolicy

_MAX_ANSWER: Final = 65536
POLICIES: Final = ("code", "signer", "product")


class Identity(_codec.Record, frozen=True):
    """What the TEE says about the program it launched."""

    tee: str
    bundle_id: bytes
    sandbox: str


class SimulatedTee:
    """Blocking requests to the platform, one at a time."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._reader = FrameReader(PlatformKind, max_payload=_MAX_ANSWER)

    def identity(self) -> Identity:
        """The bundle the platform measured and launched."""
        answer = self._ask(PlatformKind.IDENTITY, b"", PlatformKind.IDENTITY_IS)
        return _codec.decode(Identity, answer, max_size=4096, what="platform identity")

    def evidence(self, report_data: bytes) -> bytes:
        """Evidence over 64 bytes of report data; the platform names the bundle in it."""
        if len(report_data) != 64:
            raise ValueError("report data has 64 bytes")
        return self._ask(PlatformKind.EVIDENCE, report_data, PlatformKind.EVIDENCE_IS)

    def sealing_key(self, policy: str, context: bytes = b"") -> bytes:
        """A 32-byte key only programs with the same identity get on this machine.

        Args:
            policy: `code`, `signer` or `product`: which part of the identity binds.
            context: up to 256 bytes of domain separation.
        """
        if policy not in POLICIES:
            raise UnsupportedPolicy(f"this TEE binds sealing keys to {', '.join(POLICIES)}")
        request = policy.encode() + b"\0" + context
        return self._ask(PlatformKind.SEALING_KEY, request, PlatformKind.SEALING_KEY_IS)

    def _ask(self, kind: PlatformKind, payload: bytes, expected: PlatformKind) -> bytes:
        self._channel.sendall(pack(kind, 1, payload))
        while True:
            data = self._channel.recv(_MAX_ANSWER)
            if not data:
                raise PlatformError("the platform closed its channel")
            for frame in self._reader.feed(data):
                if frame.kind == expected:
                    return frame.payload
                raise PlatformError("the platform refused the request")
