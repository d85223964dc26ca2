"""NVIDIA's own fields of a report, by number: what they are called and how they are read.

Runs at the relying party, after the device's signature was checked.

Spec: spec/nvidia.md section 4. Numbers: NVIDIA's attestation SDK.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from conclave.attestation.nvidia.report import malformed

_STATUS: Final = {0xAA: "enabled", 0x55: "disabled"}
_SWITCH_VERSION: Final = re.compile(rb"[0-9A-Fa-f]{2}(?:\.[0-9A-Fa-f]{2}){4}")
# What GPUs do to share work, from version 1 of these fields.
MODES: Final = {0: "MPT", 1: "SPT", 2: "PPCIE"}


def _text(value: bytes) -> str:
    """Printable ASCII; zeros at the end are padding."""
    text = value.rstrip(b"\0").decode("latin-1")
    if not (text.isascii() and text.isprintable()):
        raise malformed("a text of its own is not printable ASCII")
    return text


def _number(value: bytes) -> int:
    if not 1 <= len(value) <= 8:
        raise malformed("a number of its own has a wrong size")
    return int.from_bytes(value, "little")


def _counts(value: bytes) -> list[int]:
    return [int.from_bytes(part, "little") for part in _parts(value, 4)]


def _ids(value: bytes) -> list[str]:
    return [part.hex() for part in _parts(value, 8)]


def _parts(value: bytes, size: int) -> list[bytes]:
    if len(value) % size:
        raise malformed("a list of its own ends within a member")
    return [value[at : at + size] for at in range(0, len(value), size)]


def _status(value: bytes) -> str:
    return _STATUS.get(_number(value), value.hex())


def _firmware_id(value: bytes) -> str:
    if len(value) != 48:
        raise malformed("its firmware id has a wrong size")
    return value.hex()


def _gpu_version(value: bytes) -> str:
    """`96.00.5E.00.01` of 00 5e 00 96 01 and three zeros."""
    if len(value) != 8 or any(value[5:]):
        raise malformed("its VBIOS version has a wrong form")
    return value[3::-1].hex(".").upper() + f".{value[4]:02X}"


def _switch_version(value: bytes) -> str:
    if not _SWITCH_VERSION.fullmatch(value):
        raise malformed("its BIOS version has a wrong form")
    return value.decode().upper()


class Own(NamedTuple):
    """A field of NVIDIA's own: its name, and how it is read."""

    name: str
    read: Callable[[bytes], Any] = bytes.hex


_BOTH: Final = {
    1: Own("cert_issuer_name"),
    2: Own("cert_authority_key_identifier"),
    3: Own("driver_version", _text),
    4: Own("gpu_info"),
    5: Own("sku"),
    6: Own("vbios_version", _gpu_version),
    7: Own("manufacturer_id"),
    8: Own("tamper_detection"),
    9: Own("smc"),
    10: Own("vpr"),
    11: Own("nvdec0_status", _status),
    12: Own("measurement_counts", _counts),
    13: Own("cpr_info"),
    14: Own("board_id"),
    15: Own("chip_sku", _text),
    16: Own("chip_sku_mod", _text),
    17: Own("project", _text),
    18: Own("project_sku", _text),
    19: Own("project_sku_mod", _text),
    20: Own("fwid", _firmware_id),
    21: Own("protected_pcie_status", _status),
}
_GPU: Final = _BOTH | {
    22: Own("switch_pdis", _ids),
    23: Own("floorswept_ports"),
    24: Own("position_id"),
    25: Own("lock_switch_status"),
    32: Own("gpu_link_conn"),
    33: Own("sys_enable_status"),
    34: Own("opaque_data_version", _number),
    35: Own("chip_info", _text),
    36: Own("feature_flag", _number),
}
_SWITCH: Final = _BOTH | {
    6: Own("vbios_version", _switch_version),
    22: Own("pdi"),
    23: Own("disabled_ports"),
    24: Own("position_id"),
    25: Own("lock_status"),
    26: Own("gpu_pdis"),
    27: Own("ports"),
}
OWN: Final[Mapping[str, Mapping[int, Own]]] = {"gpu": _GPU, "switch": _SWITCH}


def read_fields(opaque: Mapping[int, bytes], kind: str) -> dict[str, Any]:
    """The fields of a `gpu` or `switch` by name, as JSON values; unknown ones in hex as `field_<number>`.

    Raises:
        FormatError: `gpu-report-format`: a field does not have the form that its table says, or
            one that every device of this kind has is missing.
    """
    table = OWN[kind]
    found = {}
    for number, value in opaque.items():
        own = table.get(number, Own(f"field_{number}"))
        found[own.name] = own.read(value)
    if not found.get("vbios_version") or (kind == "gpu" and not found.get("driver_version")):
        raise malformed("it does not say which driver or VBIOS the device runs")
    return found
