"""Whether a device measured what NVIDIA published for its driver and VBIOS.

Runs at the relying party, on claims and manifests that were verified.

Spec: spec/nvidia.md section 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from conclave.attestation.nvidia.claims import GpuClaims
from conclave.attestation.nvidia.rim import Rim
from conclave.errors import BindingError

# NVIDIA's verifiers skip this one where the report says that the first video decoder is disabled.
NVDEC0_INDEX: Final = 35


@dataclass(frozen=True, slots=True)
class Difference:
    """One reason why a device is not shown to run what NVIDIA published.

    Attributes:
        reason: `rim-missing`: no manifest was given for this role; `block-missing`: the report
            has no such block; `value`: it has another value.
        role: `driver` or `vbios`.
        index: in the manifest, from 0; the report's block is one above. None for `rim-missing`.
        name: the manifest's name of the measurement.
        measured: hex, or None if there is none.
        expected: every value that would do, hex.
        excused: why NVIDIA's own verifiers would not count it; empty if they would.
    """

    reason: str
    role: str
    index: int | None = None
    name: str = ""
    measured: str | None = None
    expected: tuple[str, ...] = ()
    excused: str = ""


def compare(claims: GpuClaims, rims: Sequence[Rim]) -> tuple[Difference, ...]:
    """Compare measurements with manifests. Nothing is left out silently: empty means that all is as published.

    Args:
        claims: from `verify_report`.
        rims: from `verify_rim`: for a GPU one of its driver and one of its VBIOS, for a switch one of its BIOS.

    Raises:
        BindingError: `rim-product`, `rim-version`: a manifest is of another device, driver or VBIOS.
            `rim-overlap`: two are for the same, or both say what one block has to be.

    Spec: spec/nvidia.md section 10 (GPU-18 to GPU-20).
    """
    wanted = _versions(claims)
    given: dict[str, Rim] = {}
    for rim in rims:
        role = _role(claims, rim)
        if role in given or any(rim.entries.keys() & other.entries.keys() for other in given.values()):
            raise BindingError("two manifests say what one measurement has to be", code="rim-overlap")
        given[role] = rim
    found: list[Difference] = []
    for role in wanted:
        found += _differences(claims, role, given[role]) if role in given else [Difference("rim-missing", role)]
    return tuple(found)


def fits(claims: GpuClaims, rim: Rim) -> bool:
    """Whether a manifest is of the driver or VBIOS that this device runs."""
    return _is_of_product(claims, rim) and rim.version.casefold() in _versions(claims).values()


def _versions(claims: GpuClaims) -> dict[str, str]:
    """By role, in lower case: manifests and devices write the same version differently."""
    said = {"driver": claims.driver_version, "vbios": claims.vbios_version}
    return {role: version.casefold() for role, version in said.items() if version is not None}


def _is_of_product(claims: GpuClaims, rim: Rim) -> bool:
    return rim.kind == claims.kind and rim.product in (claims.chip.replace("_", ""), claims.details.get("chip_info"))


def _role(claims: GpuClaims, rim: Rim) -> str:
    if not _is_of_product(claims, rim):
        raise BindingError("a manifest is of another product than the device", code="rim-product")
    for role, version in _versions(claims).items():
        if rim.version.casefold() == version:
            return role
    raise BindingError("a manifest is of another driver or VBIOS than the device runs", code="rim-version")


def _differences(claims: GpuClaims, role: str, rim: Rim) -> list[Difference]:
    found = []
    for index, entry in sorted(rim.entries.items()):
        measured = claims.measurements.get(index + 1)
        if measured not in entry.values:
            reason = "block-missing" if measured is None else "value"
            excused = "nvdec0-disabled" if index == NVDEC0_INDEX and _nvdec0_disabled(claims) else ""
            found.append(Difference(reason, role, index, entry.name, measured, entry.values, excused))
    return found


def _nvdec0_disabled(claims: GpuClaims) -> bool:
    return claims.kind == "gpu" and claims.details.get("nvdec0_status") == "disabled"


def rim_ids(claims: GpuClaims) -> tuple[str, ...]:
    """Names under which NVIDIA's RIM service has the manifests of this device, for whoever fetches them."""
    said = claims.details
    version = claims.vbios_version.replace(".", "")
    if claims.kind == "switch":
        return (f"NV_SWITCH_BIOS_5612_0002_890_{version}",)
    board = "_".join(said.get(name, "") for name in ("project", "project_sku", "chip_sku"))
    driver = "NV_GPU_DRIVER_GH100" if claims.chip == "GH100" else f"NV_GPU_CC_DRIVER_{said.get('chip_info', 'GB100')}"
    return f"{driver}_{claims.driver_version}", f"NV_GPU_VBIOS_{board}_{version}"
