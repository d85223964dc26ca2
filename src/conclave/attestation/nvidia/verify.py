"""Verification of a report: whether a genuine NVIDIA device signed it, and for whom.

Runs at the relying party. Report and certificates come from the host and are
hostile; the anchors are what the caller trusts.

Spec: spec/nvidia.md sections 6 and 7.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from conclave import _crypto
from conclave.attestation import _x509
from conclave.attestation.evidence import Step
from conclave.attestation.nvidia.claims import GpuClaims
from conclave.attestation.nvidia.device import Device, read_device
from conclave.attestation.nvidia.opaque import MODES, read_fields
from conclave.attestation.nvidia.report import GpuReport
from conclave.errors import BindingError, ChainError, FormatError

MAX_CHAIN_SIZE: Final = 32768
# Report key, device, provisioner, chip family, root.
CHAIN: Final = 5


def verify_report(
    report: GpuReport, chain_pem: bytes, *, nonce: bytes | None, anchors: frozenset[str], now: datetime
) -> GpuClaims:
    """Check that a genuine NVIDIA device signed this report, asked with this nonce.

    Authenticity only. Whether its firmware is NVIDIA's is `compare`'s question, whether it is an
    enclave's GPU `check_gpu_binding`'s.

    Args:
        report: from `parse_report`. Untrusted.
        chain_pem: five certificates, that of the report key first, the root last; at most 32 KiB. Untrusted.
        nonce: the 32 bytes it must have been asked with, for example of `gpu_nonce`; None to take
            any, which the remark `nonce-unchecked` tells.
        anchors: SHA-256 of the root certificates to trust, in hex.
        now: aware UTC time at which all certificates must be valid.

    Raises:
        FormatError: certificates that are not PEM, or a field that is not of its documented form.
        VerificationError: by its subclasses, with a code of spec/nvidia.md section 12.

    Spec: spec/nvidia.md section 6 (GPU-5 to GPU-11).
    """
    # 1. The first certificate leads over the others, in order, to a pinned root; all are valid now.
    given = [_x509.Certificate(der, what="gpu") for der in _split(chain_pem)]
    path = _x509.path(given[1:], given[0], anchors=anchors, now=now, what="gpu")
    if list(path) != given or len(path) == 1:
        raise ChainError("the certificates are not a chain below the root, in order", code="gpu-chain")
    # 2. The key of the first one signed request and response.
    path[0].verify(report.signature, report.signed, code="gpu-report-signature")
    # 3. It is the report key of a known device, five steps below the root.
    if len(path) != CHAIN:
        raise ChainError("the chain is not report key, device, provisioner, family and root", code="gpu-chain")
    device = read_device(path[0])
    # 4. The firmware that the report names is the one that the certificate names.
    fields = read_fields(report.opaque, device.kind)
    if fields.get("fwid", device.fwid.hex()) != device.fwid.hex():
        raise BindingError("the report is of other firmware than its key's certificate", code="gpu-firmware")
    # 5. It was asked for with this nonce.
    if nonce is not None and not _crypto.same(report.nonce, nonce):
        raise BindingError("the report was asked for with another nonce: it is old, or another's", code="gpu-nonce")
    # 6. What was signed, as claims.
    mode = MODES.get(fields.get("feature_flag", -1), "") if fields.get("opaque_data_version") else ""
    return GpuClaims(
        kind=device.kind,
        architecture=device.architecture,
        chip=device.chip,
        device_id=device.device_id,
        certificate=path[0].fingerprint,
        device_certificate=path[1].fingerprint,
        anchor=path[-1].fingerprint,
        driver_version=fields.get("driver_version") if device.kind == "gpu" else None,
        vbios_version=fields["vbios_version"],
        mode=mode,
        measurements={index: value.hex() for index, value in report.blocks.items()},
        nonce=report.nonce,
        debug=None if device.flags is None else "debug" in device.flags,
        remarks=_remarks(device, fields, mode, asked=nonce is not None),
        details=_details(report, device, fields),
        valid_from=max(c.not_before for c in path),
        valid_until=min(c.not_after for c in path),
        steps=_steps(report, device, fields, path, asked=nonce is not None),
    )


def _split(chain_pem: bytes) -> tuple[bytes, ...]:
    try:
        if len(chain_pem) > MAX_CHAIN_SIZE:
            raise FormatError
        return _x509.split_pem(chain_pem)
    except FormatError:
        raise FormatError("gpu: the certificate chain is not PEM, or too long", code="gpu-chain-format") from None


def _remarks(device: Device, fields: dict[str, Any], mode: str, *, asked: bool) -> frozenset[str]:
    """Words for what policy has to know. NVIDIA revokes by OCSP, which cannot be asked offline."""
    said = {
        "revocation-unknown": True,
        "nonce-unchecked": not asked,
        "protected-pcie": mode == "PPCIE" or fields.get("protected_pcie_status") == "enabled",
        "mode-unknown": bool(fields.get("opaque_data_version")) and not mode,
    }
    return frozenset(word for word, holds in said.items() if holds) | (device.flags or frozenset())


def _details(report: GpuReport, device: Device, fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {
        "fwid": device.fwid.hex(),
        "svn": device.svn,
        "responder_nonce": report.responder_nonce.hex(),
        "vbios_version_raw": report.opaque[6].hex(),
    }


def _steps(
    report: GpuReport, device: Device, fields: dict[str, Any], path: tuple[_x509.Certificate, ...], *, asked: bool
) -> tuple[Step, ...]:
    return (
        Step("path", " ← ".join(c.common_name for c in path)),
        Step("signature", f"ECDSA P-384 over {len(report.signed)} bytes of request and response"),
        Step("device", f"{device.device_id}, {device.architecture}"),
        Step("firmware", "as certified" if "fwid" in fields else "not named by the report"),
        Step("nonce", "as asked" if asked else "not compared"),
        Step("claims", f"{len(report.blocks)} measurements"),
    )
