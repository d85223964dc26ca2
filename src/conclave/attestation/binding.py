"""Where each TEE holds the runtime, the bundle and the claims digest.

Runs at the relying party, on claims that were verified. Author code shares a process
with the runtime: only what the TEE holds where that code cannot reach counts.

Spec: spec/claims.md section 2 (CLM-1), spec/evidence.md section 5 (EVID-8 to EVID-10).
"""

from __future__ import annotations

from collections.abc import Mapping

from conclave import _crypto
from conclave.attestation.evidence import EvidenceClaims
from conclave.attestation.security import SIMULATED

BUNDLE_PCR = "16"
_ZEROS_48 = bytes(48)


def runtime_measurement(evidence: EvidenceClaims) -> bytes:
    """What names the runtime: MRENCLAVE, the launch digest, or a digest over several registers.

    32 bytes for SGX, 48 for the others. TDX: SHA-384(MRTD ‖ RTMR0 ‖ RTMR1 ‖ RTMR2), firmware,
    its settings, kernel, and command line with the root tree. Nitro: SHA-384(PCR0 ‖ PCR1 ‖ PCR2).
    Empty for an EC2 instance (NitroTPM): those registers are the same on all of them.
    """
    found = evidence.measurements
    if evidence.tee == "sgx":
        return bytes.fromhex(found["mrenclave"])
    if evidence.tee == "snp":
        return bytes.fromhex(found["measurement"])
    if evidence.tee == "tdx":
        names = ("mrtd", "rtmr0", "rtmr1", "rtmr2")
        return _crypto.sha384(*(bytes.fromhex(found[name]) for name in names))
    registers = _registers(evidence)
    return _crypto.sha384(*(bytes.fromhex(registers[str(index)]) for index in range(3))) if registers else b""


def _registers(evidence: EvidenceClaims) -> Mapping[str, str]:
    """Of a Nitro enclave. Those of an EC2 instance's TPM mean something else: it can reset register 16."""
    registers: Mapping[str, str] = evidence.measurements.get("pcrs") or {}
    return registers


def bound_digest(evidence: EvidenceClaims) -> bytes:
    """The 64 bytes in which the program put the digest of its claims; empty if there are none."""
    if evidence.report_data is not None:
        return evidence.report_data
    return bytes.fromhex(evidence.details.get("user_data") or "")


def extended(value: bytes) -> bytes:
    """A register of 48 bytes that began as zeros, after exactly one extension with `value`."""
    return _crypto.sha384(_ZEROS_48, value)


def names_bundle(evidence: EvidenceClaims, bundle_id: bytes, *, tee: str) -> bool:
    """Whether the TEE holds that bundle id, where author code cannot change it (CLM-1).

    On SGX hardware the measurement covers the bundle, and CONFIGID is zero: then it is
    `Constraint.appraise` that decides, by the reference values of this very bundle.
    """
    found = evidence.measurements
    padded = bundle_id + bytes(16)
    if evidence.tee == "sgx":
        config = bytes.fromhex(evidence.details["config_id"])
        return _crypto.same(config, bundle_id + bytes(32)) or (tee != SIMULATED and not any(config))
    if evidence.tee == "snp":
        return _crypto.same(bytes.fromhex(found["host_data"]), bundle_id)
    if evidence.tee == "tdx":
        config = bytes.fromhex(found["mrconfigid"])
        if any(config):
            return _crypto.same(config, padded)
        return _crypto.same(bytes.fromhex(found["rtmr3"]), extended(padded))
    return _crypto.same(bytes.fromhex(_registers(evidence).get(BUNDLE_PCR, "")), extended(bundle_id))


def measured_with_bundle(evidence: EvidenceClaims) -> bool:
    """Whether runtime and bundle have one measurement (SGX with the bundle in the manifest)."""
    return evidence.tee == "sgx" and not any(bytes.fromhex(evidence.details["config_id"]))
