"""Measurements of a device beside what NVIDIA published for it."""

from __future__ import annotations

import pytest
from tests._nvidia import GPU_FIELDS, Manifest, Nvidia, entry

from conclave.attestation.nvidia import Difference, GpuClaims, Rim, compare, rim_ids
from conclave.attestation.nvidia.compare import fits
from conclave.errors import BindingError

DRIVER = Manifest(entries=(entry(20), entry(35)))
VBIOS = Manifest(version="96.00.5E.00.01", entries=(entry(0), entry(12, bytes(48), bytes([13]) * 48)))
BIOS = Manifest(edition="SWITCH", product="LS10", version="96.10.55.00.01", entries=(entry(0), entry(30)))


def gpu(**changes: object) -> GpuClaims:
    return Nvidia(**changes).verify()  # type: ignore[arg-type]


def rims(*manifests: Manifest) -> list[Rim]:
    return [manifest.verify() for manifest in manifests]


def refused(claims: GpuClaims, code: str, *manifests: Manifest) -> None:
    with pytest.raises(BindingError) as caught:
        compare(claims, rims(*manifests))
    assert caught.value.code == code


@pytest.mark.spec("GPU-18", "GPU-20")
def test_a_device_that_is_as_published() -> None:
    assert compare(gpu(), rims(DRIVER, VBIOS)) == ()
    assert compare(gpu(), rims(VBIOS, DRIVER)) == ()
    assert compare(Nvidia("LS_10").verify(), rims(BIOS)) == ()


@pytest.mark.spec("GPU-20")
def test_nothing_to_compare_with_is_a_difference() -> None:
    assert compare(gpu(), []) == (Difference("rim-missing", "driver"), Difference("rim-missing", "vbios"))
    assert compare(gpu(), rims(VBIOS)) == (Difference("rim-missing", "driver"),)
    assert compare(gpu(), rims(DRIVER)) == (Difference("rim-missing", "vbios"),)
    assert compare(Nvidia("LS_10").verify(), []) == (Difference("rim-missing", "vbios"),)


@pytest.mark.spec("GPU-20")
def test_every_difference_is_told() -> None:
    claims = gpu(blocks={21: bytes(48), 13: b"\xee" * 48})
    assert compare(claims, rims(DRIVER, VBIOS)) == (
        Difference("value", "driver", 20, "Measurement_20", "00" * 48, ("15" * 48,)),
        Difference("value", "vbios", 12, "Measurement_12", "ee" * 48, ("00" * 48, "0d" * 48)),
    )
    # Any alternative will do.
    assert compare(gpu(blocks={13: bytes(48)}), rims(DRIVER, VBIOS)) == ()


@pytest.mark.spec("GPU-20")
def test_a_block_that_is_not_there() -> None:
    more = DRIVER.but(entries=(entry(20), entry(64)))
    assert compare(gpu(), rims(more, VBIOS)) == (
        Difference("block-missing", "driver", 64, "Measurement_64", None, ("41" * 48,)),
    )


@pytest.mark.spec("GPU-20")
def test_what_is_not_active_says_nothing() -> None:
    idle = DRIVER.but(entries=(entry(20), entry(21, bytes(48), active=False), entry(0, bytes(48), active=False)))
    assert compare(gpu(), rims(idle, VBIOS)) == ()


@pytest.mark.spec("GPU-20")
@pytest.mark.parametrize(
    ("status", "excused"), [(b"\x55", "nvdec0-disabled"), (b"\xaa", ""), (b"\x77", ""), (None, "")]
)
def test_the_one_that_nvidia_skips_is_told_and_marked(status: bytes | None, excused: str) -> None:
    claims = gpu(blocks={36: bytes(48), 21: bytes(48)}, fields={11: status})
    found = compare(claims, rims(DRIVER, VBIOS))
    assert [(d.index, d.excused) for d in found] == [(20, ""), (35, excused)]
    switch = Nvidia("LS_10", blocks={36: bytes(48)}, fields={11: status}).verify()
    (only,) = compare(switch, rims(BIOS.but(entries=(entry(35),))))
    assert only.excused == ""


@pytest.mark.spec("GPU-18")
def test_a_manifest_of_another_product() -> None:
    refused(gpu(), "rim-product", DRIVER.but(product="GB100"))
    refused(gpu(), "rim-product", DRIVER.but(edition="SWITCH"))
    refused(gpu(), "rim-product", BIOS)
    refused(Nvidia("LS_10").verify(), "rim-product", VBIOS)
    refused(Nvidia("LS_10").verify(), "rim-product", BIOS.but(product="LS_10"))
    # Later GPUs say themselves under which name of a chip their driver is published.
    claims = Nvidia("GB100", fields={35: b"GB10X\0"}).verify()
    assert not compare(claims, rims(*(m.but(product="GB10X") for m in (DRIVER, VBIOS))))
    assert not compare(claims, rims(*(m.but(product="GB100") for m in (DRIVER, VBIOS))))


@pytest.mark.spec("GPU-18")
def test_a_manifest_of_another_version() -> None:
    refused(gpu(), "rim-version", DRIVER.but(version="550.90.08"))
    refused(gpu(), "rim-version", DRIVER, VBIOS.but(version="96.00.5E.00.02"))
    # A driver of a GPU is none of a switch.
    refused(Nvidia("LS_10", fields={3: b"1.0"}).verify(), "rim-version", BIOS.but(version="1.0"))


@pytest.mark.spec("GPU-18")
def test_upper_and_lower_case_are_one_version() -> None:
    assert compare(gpu(), rims(DRIVER, VBIOS.but(version="96.00.5e.00.01"))) == ()
    assert compare(gpu(fields={3: b"550.90.07b"}), rims(DRIVER.but(version="550.90.07B"), VBIOS)) == ()


@pytest.mark.spec("GPU-19")
def test_manifests_do_not_overlap() -> None:
    refused(gpu(), "rim-overlap", DRIVER, DRIVER)
    refused(gpu(), "rim-overlap", DRIVER, VBIOS, VBIOS)
    refused(gpu(), "rim-overlap", DRIVER, VBIOS.but(entries=(entry(20),)))
    refused(gpu(), "rim-overlap", DRIVER.but(entries=(entry(1),)), DRIVER.but(entries=(entry(2),)))


def test_which_manifest_fits() -> None:
    claims = gpu()
    fitting = [fits(claims, rim) for rim in rims(DRIVER, VBIOS, BIOS, DRIVER.but(version="1"), DRIVER.but(product="x"))]
    assert fitting == [True, True, False, False, False]


def test_names_of_manifests() -> None:
    assert rim_ids(gpu()) == ("NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96005E0001")
    assert rim_ids(Nvidia("GB100").verify())[0] == "NV_GPU_CC_DRIVER_GB100_550.90.07"
    assert rim_ids(Nvidia("GB100", fields={35: b"GB10X"}).verify())[0] == "NV_GPU_CC_DRIVER_GB10X_550.90.07"
    assert rim_ids(Nvidia("LS_10").verify()) == ("NV_SWITCH_BIOS_5612_0002_890_9610550001",)
    bare = Nvidia(fields=dict.fromkeys(GPU_FIELDS.keys() - {3, 6})).verify()
    assert rim_ids(bare)[1] == "NV_GPU_VBIOS____96005E0001"
