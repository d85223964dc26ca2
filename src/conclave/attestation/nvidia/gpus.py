"""All GPUs of one enclave, as its host hands them out beside the instance info.

Runs at the relying party. Everything is hostile but the enclave's digest and key, which are of
verified claims, and the anchors.

Spec: spec/nvidia.md section 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from conclave import _codec
from conclave.attestation.nvidia.binding import MAX_GPUS, check_gpu_binding, gpu_nonce
from conclave.attestation.nvidia.claims import GpuClaims
from conclave.attestation.nvidia.compare import Difference, compare, fits
from conclave.attestation.nvidia.report import parse_report
from conclave.attestation.nvidia.rim import verify_rim
from conclave.attestation.nvidia.verify import verify_report
from conclave.errors import FormatError

MAX_EVIDENCE: Final = 4 * 1024 * 1024
MAX_MANIFESTS: Final = 16


class DeviceEvidence(_codec.Record, frozen=True):
    """One device: its report, and its certificates in PEM. Nothing is verified."""

    report: bytes
    chain: bytes


class GpuEvidence(_codec.Record, frozen=True):
    """What a host hands out about the GPUs of an enclave. Nothing is verified."""

    version: int
    binding: bytes
    signature: bytes
    devices: list[DeviceEvidence]
    manifests: list[bytes]

    def encode(self) -> bytes:
        """The canonical encoding."""
        return _codec.encode(self)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device that is the enclave's, and all in which it is not as NVIDIA published."""

    claims: GpuClaims
    differences: tuple[Difference, ...]


def verify_gpus(
    evidence: bytes,
    *,
    claims_digest: bytes,
    signing_key: bytes,
    devices: frozenset[str],
    manifests: frozenset[str],
    now: datetime,
) -> tuple[Gpu, ...]:
    """Check that these are the GPUs that an enclave uses, and that each is genuine.

    Differences from what NVIDIA published are told, and are policy's question.

    Args:
        evidence: an encoded `GpuEvidence`, at most 4 MiB. Untrusted.
        claims_digest, signing_key: of the enclave, from its verified claims.
        devices, manifests: SHA-256 of the root certificates to trust for each, in hex:
            `anchors.NVIDIA_DEVICES` and `anchors.NVIDIA_MANIFESTS`.
        now: aware UTC time at which all certificates must be valid.

    Raises:
        FormatError, VerificationError: with a code of spec/nvidia.md section 12.

    Spec: spec/nvidia.md section 11 (GPU-25).
    """
    # 1. The evidence has its one form.
    parsed = _parse(evidence)
    # 2. Each report is genuine, and about this enclave's claims.
    found = [
        verify_report(
            parse_report(device.report),
            device.chain,
            nonce=gpu_nonce(claims_digest, index),
            anchors=devices,
            now=now,
        )
        for index, device in enumerate(parsed.devices)
    ]
    # 3. They are the devices that the enclave names.
    check_gpu_binding(
        parsed.binding, parsed.signature, claims_digest=claims_digest, signing_key=signing_key, gpus=found
    )
    # 4. Each manifest is NVIDIA's.
    rims = [verify_rim(xml, anchors=manifests, now=now) for xml in parsed.manifests]
    # 5. Each device is compared with those that are of it. One that is of none changes nothing.
    return tuple(Gpu(claims, compare(claims, [rim for rim in rims if fits(claims, rim)])) for claims in found)


def _parse(evidence: bytes) -> GpuEvidence:
    try:
        parsed = _codec.decode(GpuEvidence, evidence, max_size=MAX_EVIDENCE, what="GPU evidence")
        if parsed.version != 1 or len(parsed.devices) > MAX_GPUS or len(parsed.manifests) > MAX_MANIFESTS:
            raise FormatError("GPU evidence: unknown version, or too many devices or manifests")
    except FormatError as error:
        raise FormatError(str(error), code="gpu-evidence-format") from None
    return parsed
