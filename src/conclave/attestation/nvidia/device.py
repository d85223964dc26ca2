"""What the certificate of a device's report key says: which chip, on which firmware, in which state.

Runs at the relying party, on a certificate whose path was checked.

Spec: spec/nvidia.md section 5. Profiles: DMTF DSP0274 (device information), TCG DICE Attestation
Architecture (CompositeDeviceID, DiceTcbInfo).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from conclave.attestation import _der
from conclave.attestation._der import SEQUENCE, Element
from conclave.attestation._x509 import Certificate
from conclave.errors import ChainError, FormatError

# By the name of the chip: architecture, and kind of device.
CHIPS: Final = {"GH100": ("HOPPER", "gpu"), "GB100": ("BLACKWELL", "gpu"), "LS_10": ("LS10", "switch")}
# Bits of OperationalFlags; the last only says that all 32 are there.
FLAGS: Final = {
    0: "not-configured",
    1: "not-secure",
    2: "recovery",
    3: "debug",
    4: "not-replay-protected",
    5: "not-integrity-protected",
    6: "not-runtime-measured",
    7: "not-immutable",
    8: "not-tcb",
}
_FIXED_WIDTH: Final = 31
_KEY_USAGE: Final = "2.5.29.15"
# The first bit after tag, length and the count of unused bits.
_DIGITAL_SIGNATURE: Final = b"\x80"
_ALTERNATIVE_NAME: Final = "2.5.29.17"
# 1.3.6.1.4.1.412.274.1, as encoded.
_DEVICE_INFORMATION: Final = bytes.fromhex("2b06010401831c821201")
_DEVICE: Final = re.compile(rb"NVIDIA:([A-Z0-9_]{1,16}):([0-9A-F]{16})")
_COMPOSITE: Final = "2.23.133.5.4.1"
_TCB_INFO: Final = "2.23.133.5.4.1.1"
# 2.16.840.1.101.3.4.2.2, as encoded.
_SHA384: Final = bytes.fromhex("608648016503040202")
_UTF8: Final = 0x0C
_TAGGED: Final = 0xA0
_FWIDS: Final = 0xA6
_SVN: Final = 0x83
_OPERATIONAL: Final = 0x87
_MAX_FWIDS: Final = 8


@dataclass(frozen=True, slots=True)
class Device:
    """The certificate's word about its device.

    Attributes:
        device_id: `NVIDIA:<chip>:<serial number>`.
        chip: a name of `CHIPS`.
        fwid: SHA-384 of the firmware that holds the key.
        svn: its security version, where the certificate says one.
        flags: words of `FLAGS` and `bit-<n>`, where the certificate has flags.
    """

    device_id: str
    chip: str
    fwid: bytes
    svn: int | None
    flags: frozenset[str] | None

    @property
    def architecture(self) -> str:
        """`HOPPER`, `BLACKWELL` or `LS10`."""
        return CHIPS[self.chip][0]

    @property
    def kind(self) -> str:
        """`gpu` or `switch`."""
        return CHIPS[self.chip][1]


def read_device(leaf: Certificate) -> Device:
    """Read the certificate of a report key.

    Raises:
        ChainError: `gpu-certificate`: it is not for signing reports, or does not say in the known
            form which known device it is of.
    """
    try:
        usage = leaf.extension(_KEY_USAGE) or b""
        if leaf.authority or not usage[3:4] >= _DIGITAL_SIGNATURE:
            raise FormatError
        match = _DEVICE.fullmatch(_device_information(leaf))
        if match is None:
            raise FormatError
        chip = match[1].decode()
        if chip not in CHIPS:
            raise FormatError
        composite, tcb_info = leaf.extension(_COMPOSITE), leaf.extension(_TCB_INFO)
        if (composite is None) == (tcb_info is None):
            raise FormatError
        said = _composite(composite) if composite is not None else _tcb_info(tcb_info or b"")
    except FormatError:
        raise ChainError(
            "the certificate is not that of the report key of a known NVIDIA device", code="gpu-certificate"
        ) from None
    return Device(match[0].decode(), chip, *said)


def _device_information(leaf: Certificate) -> bytes:
    """The one alternative name: SEQUENCE { [0] { OBJECT IDENTIFIER, [0] { UTF8String } } }."""
    (other,) = _some(_der.parse(leaf.extension(_ALTERNATIVE_NAME) or b"").children(), 1)
    kind, value = _some(_within(other, _TAGGED), 2)
    (text,) = _some(_within(value, _TAGGED), 1)
    if kind.identifier() != _DEVICE_INFORMATION or text.tag != _UTF8:
        raise FormatError
    return text.contents


def _composite(extension: bytes) -> tuple[bytes, int | None, frozenset[str] | None]:
    """SEQUENCE { INTEGER 1, SubjectPublicKeyInfo, FWID }."""
    version, key, fwid = _some(_der.parse(extension).children(), 3)
    if version.number(1) != 1 or key.tag != SEQUENCE:
        raise FormatError
    return _fwid(fwid), None, None


def _tcb_info(extension: bytes) -> tuple[bytes, int | None, frozenset[str] | None]:
    """SEQUENCE of members with tags [0] to [11], each at most once, in order; the first FWID is the key's."""
    members = _der.parse(extension).children()
    places = [member.tag & 0x1F for member in members]
    if places != sorted(set(places)) or any(member.tag & 0xC0 != 0x80 for member in members):
        raise FormatError
    found = {member.tag: member.contents for member in members}
    fwids = [_fwid(each) for each in Element(SEQUENCE, found.get(_FWIDS, b"")).children()]
    if not 1 <= len(fwids) <= _MAX_FWIDS:
        raise FormatError
    svn = Element(_der.INTEGER, found[_SVN]).number(2**31 - 1) if _SVN in found else None
    return fwids[0], svn, _flags(found[_OPERATIONAL]) if _OPERATIONAL in found else None


def _fwid(element: Element) -> bytes:
    algorithm, digest = _some(element.children(), 2)
    if algorithm.identifier() != _SHA384:
        raise FormatError
    return digest.octets(48)


def _flags(bits: bytes) -> frozenset[str]:
    """Words for a BIT STRING of 32 bits."""
    if len(bits) != 5 or bits[0] != 0:
        raise FormatError
    number = int.from_bytes(bits[1:], "big")
    return frozenset(FLAGS.get(n, f"bit-{n}") for n in range(_FIXED_WIDTH) if number >> (31 - n) & 1)


def _within(element: Element, tag: int) -> tuple[Element, ...]:
    if element.tag != tag:
        raise FormatError
    return Element(SEQUENCE, element.contents).children()


def _some(elements: tuple[Element, ...], count: int) -> tuple[Element, ...]:
    if len(elements) != count:
        raise FormatError
    return elements
