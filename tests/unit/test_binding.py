"""Where each TEE holds the runtime, the bundle and the claims digest."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from tests._facts import evidence

from conclave.attestation import EvidenceClaims
from conclave.attestation.binding import bound_digest, measured_with_bundle, names_bundle, runtime_measurement

BUNDLE = bytes(range(32))
OTHER = bytes(32)
ZEROS = bytes(48).hex()


def sha384(*parts: bytes) -> bytes:
    return hashlib.sha384(b"".join(parts)).digest()


def once(value: bytes) -> str:
    return sha384(bytes(48), value).hex()


def twice(value: bytes) -> str:
    return sha384(bytes.fromhex(once(value)), value).hex()


def sgx(config_id: bytes) -> EvidenceClaims:
    return evidence(details={"config_id": config_id.hex()})


def tdx(mrconfigid: str = ZEROS, rtmr3: str = ZEROS) -> EvidenceClaims:
    registers = {name: f"{n:02x}" * 48 for n, name in enumerate(("mrtd", "rtmr0", "rtmr1", "rtmr2"))}
    return evidence(tee="tdx", measurements={**registers, "mrconfigid": mrconfigid, "rtmr3": rtmr3}, details={})


def snp(host_data: bytes) -> EvidenceClaims:
    return evidence(tee="snp", measurements={"measurement": "5d" * 48, "host_data": host_data.hex()}, details={})


def nitro(pcr16: str | None, name: str = "pcrs", **details: Any) -> EvidenceClaims:
    registers = {str(n): f"{n:02x}" * 48 for n in range(3)}
    if pcr16 is not None:
        registers["16"] = pcr16
    return evidence(tee="nitro", measurements={name: registers}, report_data=None, details=details)


@pytest.mark.spec("CLM-1", "EVID-8")
@pytest.mark.parametrize(
    "found",
    [
        sgx(BUNDLE + bytes(32)),
        tdx((BUNDLE + bytes(16)).hex()),
        tdx(rtmr3=once(BUNDLE + bytes(16))),
        snp(BUNDLE),
        nitro(once(BUNDLE)),
    ],
)
def test_the_tee_names_the_bundle(found: EvidenceClaims) -> None:
    assert names_bundle(found, BUNDLE, tee=found.tee)
    assert not names_bundle(found, OTHER, tee=found.tee)


@pytest.mark.spec("CLM-3", "EVID-8")
@pytest.mark.parametrize(
    "found",
    [
        sgx(BUNDLE + bytes(31) + b"\1"),
        sgx(bytes(32) + BUNDLE),
        tdx((BUNDLE + bytes(15) + b"\1").hex()),
        # A bundle in MRCONFIGID is not overruled by a register that the guest may extend.
        tdx((OTHER[:31] + b"\1" + bytes(16)).hex(), rtmr3=once(BUNDLE + bytes(16))),
        tdx(),
        tdx(rtmr3=twice(BUNDLE + bytes(16))),
        tdx(rtmr3=once(BUNDLE)),
        tdx(rtmr3=(BUNDLE + bytes(16)).hex()),
        snp(BUNDLE[::-1]),
        nitro(None),
        nitro(ZEROS),
        nitro(twice(BUNDLE)),
        nitro(once(BUNDLE + bytes(16))),
        # The register of an instance's TPM can be reset.
        nitro(once(BUNDLE), "nitrotpm_pcrs"),
    ],
)
def test_the_tee_names_no_bundle_or_another(found: EvidenceClaims) -> None:
    assert not names_bundle(found, BUNDLE, tee=found.tee)


@pytest.mark.spec("CLM-1", "EVID-8", "EVID-9")
def test_on_sgx_hardware_the_measurement_may_cover_the_bundle() -> None:
    empty = sgx(bytes(64))
    assert names_bundle(empty, BUNDLE, tee="sgx")
    assert measured_with_bundle(empty)
    # A simulated machine sets CONFIGID itself: empty is another bundle there.
    assert not names_bundle(empty, BUNDLE, tee="simulated")
    for found in (sgx(BUNDLE + bytes(32)), tdx(), snp(BUNDLE), nitro(ZEROS)):
        assert not measured_with_bundle(found)


def test_what_names_the_runtime() -> None:
    assert runtime_measurement(sgx(bytes(64))).hex() == evidence().measurements["mrenclave"]
    assert runtime_measurement(snp(BUNDLE)).hex() == "5d" * 48
    assert runtime_measurement(tdx()) == sha384(*(bytes([n]) * 48 for n in range(4)))
    assert runtime_measurement(nitro(None, "nitrotpm_pcrs")) == b""
    assert runtime_measurement(nitro(None)) == sha384(*(bytes([n]) * 48 for n in range(3)))


@pytest.mark.spec("EVID-10")
def test_where_the_claims_digest_is() -> None:
    digest = bytes(range(64))
    assert bound_digest(evidence(report_data=digest)) == digest
    assert bound_digest(nitro(None, user_data=digest.hex())) == digest
    assert bound_digest(nitro(None, user_data=None)) == b""
    assert bound_digest(nitro(None)) == b""
