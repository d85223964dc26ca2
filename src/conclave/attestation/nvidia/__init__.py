"""NVIDIA GPUs and NVSwitches: reports, reference manifests, and whose enclave's they are.

Spec: spec/nvidia.md.
"""

from conclave.attestation.nvidia.binding import check_gpu_binding, gpu_binding, gpu_nonce
from conclave.attestation.nvidia.claims import GpuClaims
from conclave.attestation.nvidia.compare import Difference, compare, rim_ids
from conclave.attestation.nvidia.gpus import DeviceEvidence, Gpu, GpuEvidence, verify_gpus
from conclave.attestation.nvidia.report import GpuReport, parse_report
from conclave.attestation.nvidia.rim import Rim, verify_rim
from conclave.attestation.nvidia.verify import verify_report

__all__ = [
    "DeviceEvidence",
    "Difference",
    "Gpu",
    "GpuClaims",
    "GpuEvidence",
    "GpuReport",
    "Rim",
    "check_gpu_binding",
    "compare",
    "gpu_binding",
    "gpu_nonce",
    "parse_report",
    "rim_ids",
    "verify_gpus",
    "verify_report",
    "verify_rim",
]
