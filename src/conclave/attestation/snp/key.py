"""What the certificate of an endorsement key says: product, TCB version, chip or provider.

Runs at the relying party. The certificate's word counts, never the report's.

Spec: spec/snp.md section 5. Profile: AMD 57230 (VCEK), and the VLEK certificate definition.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from conclave.attestation._x509 import Certificate
from conclave.errors import ChainError

OID: Final = "1.3.6.1.4.1.3704.1"
CHIP_ID_SIZE: Final = 64
MAX_TEXT: Final = 64
_PRODUCT_NAME: Final = re.compile(rb"([A-Z][a-z]+)(?:-[A-Z][0-9])?")
_STRUCTURES: Final = (0, 1)
_FMC: Final = 9
# Names of the parts by the last arc of their extension; 4 to 7 are reserved.
PARTS: Final = {_FMC: "fmc", 1: "boot_loader", 2: "tee", 3: "snp", 8: "microcode"}


@dataclass(frozen=True, slots=True)
class Product:
    """A line of processors.

    Attributes:
        models: CPUID family and range of models.
        layout: for each byte of a TCB version, the last arc of the extension that has it.
        hwid_size: bytes of a hardware id; a chip id is padded with zeros.
    """

    models: tuple[tuple[int, range], ...]
    layout: tuple[int, ...]
    hwid_size: int

    def made(self, cpuid: bytes) -> bool:
        """Whether family and model are of this line."""
        return any(cpuid[0] == family and cpuid[1] in models for family, models in self.models)


PRODUCTS: Final = {
    "Milan": Product(((0x19, range(0x00, 0x10)),), (1, 2, 4, 5, 6, 7, 3, 8), 64),
    # Siena and Bergamo are models A0h to AFh, endorsed as Genoa.
    "Genoa": Product(((0x19, range(0x10, 0x20)), (0x19, range(0xA0, 0xB0))), (1, 2, 4, 5, 6, 7, 3, 8), 64),
    "Turin": Product(((0x1A, range(0x00, 0x20)),), (_FMC, 1, 2, 3, 5, 6, 7, 8), 8),
}


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """The certificate's word about its key.

    Attributes:
        kind: `VCEK` (one chip at one TCB version) or `VLEK` (one provider's at one).
        product: a name of `PRODUCTS`.
        tcb: the TCB version, 8 bytes as reports have it.
        chip_id: 64 bytes, or None for a VLEK.
        provider: the cloud provider's name, or "" for a VCEK.
    """

    kind: str
    product: str
    tcb: bytes
    chip_id: bytes | None
    provider: str

    @property
    def parts(self) -> dict[str, int]:
        """The TCB version part by part."""
        return self.parts_of(self.tcb)

    def parts_of(self, tcb: bytes) -> dict[str, int]:
        """Any TCB version of this product, 8 bytes as reports have it, part by part."""
        arcs = PRODUCTS[self.product].layout
        return {PARTS[arc]: value for arc, value in zip(arcs, tcb, strict=True) if arc in PARTS}


def read_key(certificate: Certificate, *, what: str) -> EndorsementKey:
    """Read AMD's extensions of an endorsement key's certificate.

    Raises:
        ChainError: `{what}-extensions`: one is missing, malformed, unknown, or one too many.
    """
    try:
        if _integer(certificate, "1") not in _STRUCTURES:
            raise ValueError
        name = _PRODUCT_NAME.fullmatch(_text(certificate, "2"))
        if name is None:
            raise ValueError
        product = PRODUCTS[name[1].decode()]
        if _FMC not in product.layout and certificate.extension(f"{OID}.3.{_FMC}") is not None:
            raise ValueError
        tcb = bytes(_integer(certificate, f"3.{arc}") for arc in product.layout)
        hwid, provider = certificate.extension(f"{OID}.4"), certificate.extension(f"{OID}.5")
        if (hwid is None) == (provider is None) or (hwid is not None and len(hwid) != product.hwid_size):
            raise ValueError
        said = "" if provider is None else _text(certificate, "5").decode("ascii")
        if not said.isprintable() or (provider is not None and not said):
            raise ValueError
    except (ValueError, KeyError):
        raise ChainError(
            "a certificate does not have the extensions of an endorsement key", code=f"{what}-extensions"
        ) from None
    chip_id = None if hwid is None else hwid.ljust(CHIP_ID_SIZE, b"\0")
    return EndorsementKey("VLEK" if hwid is None else "VCEK", name[1].decode(), tcb, chip_id, said)


def _integer(certificate: Certificate, arc: str) -> int:
    """A DER INTEGER from 0 to 255, in its one form."""
    der = certificate.extension(f"{OID}.{arc}") or b""
    if len(der) == 3 and der[:2] == b"\x02\x01" and der[2] < 0x80:
        return der[2]
    if len(der) == 4 and der[:3] == b"\x02\x02\x00" and der[3] >= 0x80:
        return der[3]
    raise ValueError


def _text(certificate: Certificate, arc: str) -> bytes:
    """A short DER IA5String."""
    der = certificate.extension(f"{OID}.{arc}") or b""
    if not 2 <= len(der) <= 2 + MAX_TEXT or der[0] != 0x16 or der[1] != len(der) - 2:
        raise ValueError
    return der[2:]
