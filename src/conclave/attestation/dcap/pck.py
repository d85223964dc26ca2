"""The SGX extension of a PCK certificate: which processor it is for, at which TCB.

Runs at the relying party. Read only after the certificate's path to the trust anchor
was checked; strict all the same.

Format: Intel SGX PCK Certificate and CRL Profile Specification, section 1.3.5.
Spec: spec/dcap.md section 4 (DCAP-10).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conclave.attestation import _der
from conclave.attestation._der import Element
from conclave.attestation._x509 import Certificate
from conclave.errors import FormatError, VerificationError

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
_IDENTIFIER: Final = bytes.fromhex("2a864886f84d010d01")
SGX_TYPES: Final = ("standard", "scalable", "scalable-with-integrity")
_CONFIGURATION: Final = {1: "dynamic-platform", 2: "cached-keys", 3: "smt"}
_U16: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class PckExtension:
    """What Intel certified about one processor or platform.

    Attributes:
        ppid: 16 bytes that name it.
        components: SVNs of 16 components, each 0 to 255.
        pce_svn: version of the provisioning certification enclave.
        cpu_svn: 16 bytes, the processor's own form of the components.
        pce_id, fmspc: 2 and 6 bytes; with which TCB info to compare.
        sgx_type: `standard`, `scalable` or `scalable-with-integrity`.
        platform_instance_id: 16 bytes, of a platform with several processors; else empty.
        configuration: those that hold of `dynamic-platform`, `cached-keys`, `smt`.
    """

    ppid: bytes
    components: bytes
    pce_svn: int
    cpu_svn: bytes
    pce_id: bytes
    fmspc: bytes
    sgx_type: str
    platform_instance_id: bytes
    configuration: frozenset[str]


def pck_extension(certificate: Certificate) -> PckExtension:
    """Read the extension.

    Raises:
        VerificationError: `pck-extension`: there is none, or it does not parse.
    """
    try:
        return _parse(certificate.extension(SGX_EXTENSION) or b"")
    except FormatError:
        raise VerificationError(
            "the PCK certificate does not say which processor it is for", code="pck-extension"
        ) from None


def _parse(data: bytes) -> PckExtension:
    members = _members(_der.parse(data), _IDENTIFIER)
    if not {1, 2, 3, 4, 5} <= members.keys() <= {1, 2, 3, 4, 5, 6, 7}:
        raise FormatError("SGX extension: a member is missing or unknown")
    tcb = _members(members[2], _IDENTIFIER + b"\2")
    if tcb.keys() != set(range(1, 19)):
        raise FormatError("SGX extension: a TCB component is missing or unknown")
    flags = _members(members[7], _IDENTIFIER + b"\7") if 7 in members else {}
    if not flags.keys() <= _CONFIGURATION.keys():
        raise FormatError("SGX extension: a configuration that is not known")
    return PckExtension(
        members[1].octets(16),
        bytes(tcb[i].number(255) for i in range(1, 17)),
        tcb[17].number(_U16),
        tcb[18].octets(16),
        members[3].octets(2),
        members[4].octets(6),
        SGX_TYPES[members[5].number(len(SGX_TYPES) - 1, tag=_der.ENUMERATED)],
        members[6].octets(16) if 6 in members else b"",
        frozenset(_CONFIGURATION[i] for i, flag in flags.items() if flag.boolean()),
    )


def _members(sequence: Element, prefix: bytes) -> Mapping[int, Element]:
    """Pairs of an identifier one below `prefix` and a value, by the identifier's last number; each once."""
    found: dict[int, Element] = {}
    for member in sequence.children():
        pair = member.children()
        name = pair[0].identifier() if len(pair) == 2 else b""
        if name[:-1] != prefix or name[-1] in found:
            raise FormatError("SGX extension: a member is not what it must be, or comes twice")
        found[name[-1]] = pair[1]
    return found
