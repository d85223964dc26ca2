"""What a verified report says: claims about one GPU or NVSwitch.

Runs at the relying party. Only `verify_report` makes them.

Spec: spec/nvidia.md section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from conclave.attestation.evidence import Step


@dataclass(frozen=True, slots=True)
class GpuClaims:
    """What genuine NVIDIA hardware under one trust anchor said, as of a time.

    Attributes:
        kind: `gpu` or `switch`.
        architecture: `HOPPER`, `BLACKWELL` or `LS10`.
        chip: as the certificate names it: `GH100`, `GB100`, `LS_10`.
        device_id: `NVIDIA:<chip>:<serial number>`; names the device for life.
        certificate: SHA-256, in hex, of the certificate of the key that signed. The device makes
            the key anew for other firmware.
        device_certificate: SHA-256, in hex, of the certificate that NVIDIA gave the device for life.
        anchor: SHA-256 of the trust anchor's certificate, in hex.
        driver_version: None for a switch.
        vbios_version: `96.00.5E.00.01`, upper case.
        mode: `SPT`, `MPT` or `PPCIE`; empty where the device does not say.
        measurements: digests in hex by index of the block, from 1.
        nonce: the 32 bytes that the report was asked for with.
        debug: whether the firmware says that debugging is possible; None where it says nothing.
        remarks: words for what policy has to know, from the table in spec/nvidia.md section 7.
        details: further signed facts by name, JSON values only (bytes as hex).
        valid_from, valid_until: within these all certificates are valid.
        steps: what was checked, in order.
    """

    kind: str
    architecture: str
    chip: str
    device_id: str
    certificate: str
    device_certificate: str
    anchor: str
    driver_version: str | None
    vbios_version: str
    mode: str
    measurements: Mapping[int, str]
    nonce: bytes
    debug: bool | None
    remarks: frozenset[str]
    details: Mapping[str, Any]
    valid_from: datetime
    valid_until: datetime
    steps: tuple[Step, ...]
