"""Which GPUs are an enclave's: the device signs the enclave's claims, the enclave names the device.

Runs at the relying party, and in the enclave to make what is checked there. What neither
half can show is in spec/nvidia.md section 11.

Spec: spec/nvidia.md section 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from conclave import _codec, _crypto
from conclave.attestation.nvidia.claims import GpuClaims
from conclave.errors import BindingError, FormatError, SignatureError

NONCE_LABEL: Final = b"conclave/1 gpu\0"
PURPOSE: Final = "gpu"
MAX_GPUS: Final = 64
MAX_SIZE: Final = 4096
_FINGERPRINT_SIZE: Final = 32


class _Binding(_codec.Record, frozen=True):
    version: int
    certificates: list[bytes]


def gpu_nonce(claims_digest: bytes, index: int) -> bytes:
    """What the enclave asks its device number `index` with: 32 bytes that stand for its claims.

    `SHA-256("conclave/1 gpu" ‖ 0x00 ‖ claims digest (64) ‖ index (4, big-endian))`
    """
    if len(claims_digest) != 64 or not 0 <= index < MAX_GPUS:
        raise ValueError("a claims digest has 64 bytes, and an index is 0 to 63")
    return _crypto.sha256(NONCE_LABEL, claims_digest, index.to_bytes(4, "big"))


def gpu_binding(certificates: Sequence[str]) -> bytes:
    """What the enclave signs, under purpose `gpu` and its claims digest.

    Args:
        certificates: of the report keys of its GPUs and switches in the order of their indices, as
            `GpuClaims.certificate`: 1 to 64, all different.
    """
    if not 1 <= len(certificates) <= MAX_GPUS or len(set(certificates)) != len(certificates):
        raise ValueError("an enclave names 1 to 64 devices, each once")
    return _codec.encode(_Binding(version=1, certificates=[bytes.fromhex(each) for each in certificates]))


def check_gpu_binding(
    binding: bytes, signature: bytes, *, claims_digest: bytes, signing_key: bytes, gpus: Sequence[GpuClaims]
) -> None:
    """Check that these are exactly the devices that an enclave says it uses, and that each signed its claims.

    Args:
        binding: from `gpu_binding`, as the host gave it. Untrusted.
        signature: over it, 64 bytes. Untrusted.
        claims_digest, signing_key: of the enclave, from its verified claims.
        gpus: from `verify_report`, in the order of the binding.

    Raises:
        FormatError: `gpu-binding-format`.
        SignatureError: `gpu-binding-signature`: the enclave did not sign it.
        BindingError: `gpu-binding-list`: other devices than it names, or one of them twice.
            `gpu-binding-nonce`: a device signed other claims, or another index.

    Spec: spec/nvidia.md section 11 (GPU-21 to GPU-24).
    """
    # 1. The binding has its one form.
    certificates = _parse(binding)
    # 2. The enclave signed it.
    try:
        _crypto.verify_signature(signing_key, PURPOSE, claims_digest, binding, signature)
    except SignatureError:
        raise SignatureError("the enclave did not sign this list of GPUs", code="gpu-binding-signature") from None
    # 3. It names these devices, all of them, in this order, and none twice.
    if [gpu.certificate for gpu in gpus] != certificates or len({gpu.device_id for gpu in gpus}) != len(gpus):
        raise BindingError("these are other GPUs than the enclave names, or one twice", code="gpu-binding-list")
    # 4. Each of them signed these claims and its own index.
    for index, gpu in enumerate(gpus):
        if not _crypto.same(gpu.nonce, gpu_nonce(claims_digest, index)):
            raise BindingError("a GPU's report is not about this enclave's claims", code="gpu-binding-nonce")


def _parse(binding: bytes) -> list[str]:
    try:
        parsed = _codec.decode(_Binding, binding, max_size=MAX_SIZE, what="list of GPUs")
        sizes = {len(each) for each in parsed.certificates}
        if parsed.version != 1 or sizes != {_FINGERPRINT_SIZE} or len(parsed.certificates) > MAX_GPUS:
            raise FormatError("unknown version, or fingerprints of a wrong size or number")
    except FormatError as error:
        raise FormatError(f"list of GPUs: {error}", code="gpu-binding-format") from None
    return [each.hex() for each in parsed.certificates]
