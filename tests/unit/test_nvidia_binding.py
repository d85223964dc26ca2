"""Whose GPUs they are: the enclave names its devices, and each of them signed the enclave's claims."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests._nvidia import NOW, Manifest, Nvidia, entry, fingerprint, pem

from conclave import _crypto
from conclave.attestation.nvidia import (
    DeviceEvidence,
    Difference,
    Gpu,
    GpuClaims,
    GpuEvidence,
    check_gpu_binding,
    gpu_binding,
    gpu_nonce,
    verify_gpus,
)
from conclave.attestation.nvidia.gpus import MAX_EVIDENCE
from conclave.errors import BindingError, ChainError, Error, ExpiredError, FormatError, SignatureError

DIGEST = bytes(range(64))
OTHER = bytes(64)
KEY = _crypto.SigningKey(b"k" * 32)
# Two GPUs and a switch, as one machine has them.
DEVICES = (
    Nvidia(nonce=gpu_nonce(DIGEST, 0)),
    Nvidia(nonce=gpu_nonce(DIGEST, 1), serial="48B02D0123456780", leaf={"key": "second"}, signer="second"),
    Nvidia("LS_10", nonce=gpu_nonce(DIGEST, 2), leaf={"key": "third"}, signer="third"),
)


def claims_of(devices: tuple[Nvidia, ...] = DEVICES) -> list[GpuClaims]:
    return [device.verify(nonce=None) for device in devices]


def sign(binding: bytes, digest: bytes = DIGEST, purpose: str = "gpu", key: _crypto.SigningKey = KEY) -> bytes:
    return key.sign(purpose, digest, binding)


def check(gpus: list[GpuClaims], **changes: Any) -> None:
    binding = changes.get("binding") or gpu_binding([gpu.certificate for gpu in gpus])
    said = {"signature": sign(binding), "claims_digest": DIGEST, "signing_key": KEY.public} | changes
    signature = said.pop("signature")
    said.pop("binding", None)
    check_gpu_binding(binding, signature, gpus=gpus, **said)


def refused(kind: type[Error], code: str, gpus: list[GpuClaims], **changes: Any) -> None:
    with pytest.raises(Error) as caught:
        check(gpus, **changes)
    assert type(caught.value) is kind, caught.value
    assert caught.value.code == code


# What is bound, and how.


@pytest.mark.spec("GPU-24")
def test_the_nonce_stands_for_claims_and_place() -> None:
    assert gpu_nonce(DIGEST, 1) == hashlib.sha256(b"conclave/1 gpu\0" + DIGEST + b"\0\0\0\1").digest()
    assert len({gpu_nonce(digest, index) for digest in (DIGEST, OTHER) for index in range(64)}) == 128
    for digest, index in ((DIGEST[:63], 0), (DIGEST + b"\0", 0), (DIGEST, -1), (DIGEST, 64)):
        with pytest.raises(ValueError, match="claims digest"):
            gpu_nonce(digest, index)


@pytest.mark.spec("GPU-21")
def test_the_binding_lists_certificates() -> None:
    binding = gpu_binding(["01" * 32, "02" * 32])
    assert msgspec.msgpack.decode(binding) == {"version": 1, "certificates": [b"\1" * 32, b"\2" * 32]}
    assert gpu_binding([f"{n:064x}" for n in range(64)])
    for certificates in ([], ["01" * 32] * 2, [f"{n:064x}" for n in range(65)]):
        with pytest.raises(ValueError, match="64 devices"):
            gpu_binding(certificates)


@pytest.mark.spec("GPU-22", "GPU-23", "GPU-24")
def test_the_devices_of_an_enclave() -> None:
    check(claims_of())
    check(claims_of(DEVICES[:1]))


@pytest.mark.spec("GPU-22")
def test_another_did_not_sign_the_list() -> None:
    gpus = claims_of()
    binding = gpu_binding([gpu.certificate for gpu in gpus])
    other = _crypto.SigningKey(b"o" * 32)
    for signature in (
        sign(binding, key=other),
        sign(binding, digest=OTHER),
        sign(binding + b"\0"),
        b"",
        bytes(64),
        *(sign(binding, purpose=purpose) for purpose in _crypto.PURPOSES - {"gpu"}),
    ):
        refused(SignatureError, "gpu-binding-signature", gpus, signature=signature)
    refused(SignatureError, "gpu-binding-signature", gpus, signing_key=other.public)


@pytest.mark.spec("GPU-23")
def test_another_machines_gpu_is_refused() -> None:
    """It signed the right nonce, since whoever owns it can ask it with anything; the enclave does not name it."""
    ours = claims_of()
    theirs = Nvidia(nonce=gpu_nonce(DIGEST, 0), serial="48B02DFFFFFFFFFF", leaf={"key": "far"}, signer="far")
    gpus = [theirs.verify(nonce=gpu_nonce(DIGEST, 0)), *ours[1:]]
    refused(BindingError, "gpu-binding-list", gpus, binding=gpu_binding([gpu.certificate for gpu in ours]))


@pytest.mark.spec("GPU-23")
def test_the_list_is_whole_and_in_order() -> None:
    gpus = claims_of()
    binding = gpu_binding([gpu.certificate for gpu in gpus])
    for shown in (gpus[:2], gpus[1:], [], [gpus[1], gpus[0], gpus[2]], [*gpus, gpus[0]]):
        refused(BindingError, "gpu-binding-list", shown, binding=binding)


@pytest.mark.spec("GPU-23")
def test_one_device_is_not_two() -> None:
    """After a reset a device has another certificate; its name stays."""
    first, second, _ = claims_of()
    again = replace(second, device_id=first.device_id)
    refused(BindingError, "gpu-binding-list", [first, again])


@pytest.mark.spec("GPU-24")
def test_a_report_about_something_else_is_refused() -> None:
    gpus = claims_of()
    for nonce in (bytes(32), gpu_nonce(OTHER, 1), gpu_nonce(DIGEST, 0), gpu_nonce(DIGEST, 2), b""):
        refused(BindingError, "gpu-binding-nonce", [gpus[0], replace(gpus[1], nonce=nonce), gpus[2]])


@pytest.mark.spec("GPU-21")
@pytest.mark.parametrize(
    "binding",
    [
        b"",
        b"\xc0",
        msgspec.msgpack.encode({"version": 2, "certificates": [bytes(32)]}),
        msgspec.msgpack.encode({"version": 1, "certificates": []}),
        msgspec.msgpack.encode({"version": 1, "certificates": [bytes(31)]}),
        msgspec.msgpack.encode({"version": 1, "certificates": [bytes(32), bytes(33)]}),
        msgspec.msgpack.encode({"version": 1, "certificates": [bytes([n]) * 32 for n in range(65)]}),
        msgspec.msgpack.encode({"certificates": [bytes(32)], "version": 1}),
        msgspec.msgpack.encode({"version": 1, "certificates": [bytes(32)], "more": 1}),
        msgspec.msgpack.encode({"version": 1, "certificates": [bytes(32)]}) + b"\0",
        msgspec.msgpack.encode({"version": 1, "certificates": ["x" * 32]}),
        msgspec.msgpack.encode({"version": 1, "certificates": [bytes(32)] * 200}),
    ],
)
def test_a_binding_has_its_one_form(binding: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        check_gpu_binding(binding, sign(binding), claims_digest=DIGEST, signing_key=KEY.public, gpus=[])
    assert caught.value.code == "gpu-binding-format"


# All of it together.

DRIVER = Manifest(entries=(entry(20), entry(35)))
VBIOS = Manifest(version="96.00.5E.00.01", entries=(entry(0),))
BIOS = Manifest(edition="SWITCH", product="LS10", version="96.10.55.00.01", entries=(entry(0),))
ROOTS = {"devices": Nvidia().anchors, "manifests": DRIVER.anchors}


def handed_out(
    devices: tuple[Nvidia, ...] = DEVICES, manifests: tuple[Manifest, ...] = (DRIVER, VBIOS, BIOS), **changes: Any
) -> bytes:
    binding = gpu_binding([fingerprint(device.certificates()[0]) for device in devices])
    shown = [DeviceEvidence(report=device.report(), chain=pem(device.certificates())) for device in devices]
    shown = changes.pop("shown", shown)
    said = {
        "version": 1,
        "binding": binding,
        "signature": sign(binding),
        "devices": shown,
        "manifests": [m.xml() for m in manifests],
    } | changes
    return GpuEvidence(**said).encode()


def verify(evidence: bytes, **changes: Any) -> tuple[Gpu, ...]:
    said = {"claims_digest": DIGEST, "signing_key": KEY.public, "now": NOW, **ROOTS} | changes
    return verify_gpus(evidence, **said)


@pytest.mark.spec("GPU-25")
def test_what_a_host_hands_out() -> None:
    found = verify(handed_out())
    assert [gpu.claims.device_id for gpu in found] == [claims.device_id for claims in claims_of()]
    assert all(gpu.differences == () for gpu in found)
    assert all("nonce-unchecked" not in gpu.claims.remarks for gpu in found)


@pytest.mark.spec("GPU-25")
def test_differences_are_told_for_each_device() -> None:
    changed = (DEVICES[0], DEVICES[1].but(blocks={21: bytes(48)}), DEVICES[2])
    unneeded = DRIVER.but(version="1.0")
    found = verify(handed_out(changed, (DRIVER, VBIOS, unneeded)))
    assert found[0].differences == ()
    assert [d.index for d in found[1].differences] == [20]
    assert found[2].differences == (Difference("rim-missing", "vbios"),)


@pytest.mark.spec("GPU-25")
@pytest.mark.parametrize(
    ("make", "options", "kind", "code"),
    [
        (lambda: handed_out(), {"claims_digest": OTHER}, BindingError, "gpu-nonce"),
        (lambda: handed_out(), {"signing_key": bytes(32)}, SignatureError, "gpu-binding-signature"),
        (lambda: handed_out(), {"devices": frozenset()}, ChainError, "gpu-chain"),
        (lambda: handed_out(), {"manifests": frozenset()}, ChainError, "rim-chain"),
        (lambda: handed_out(), {"now": NOW.replace(year=2035)}, ExpiredError, "rim-expired"),
        (lambda: handed_out(DEVICES[::-1]), {}, BindingError, "gpu-nonce"),
        (lambda: handed_out(signature=b""), {}, SignatureError, "gpu-binding-signature"),
        (lambda: handed_out(binding=b""), {}, FormatError, "gpu-binding-format"),
        (lambda: handed_out(shown=[]), {}, BindingError, "gpu-binding-list"),
        (lambda: handed_out(manifests=(DRIVER, DRIVER)), {}, BindingError, "rim-overlap"),
        (lambda: handed_out(manifests=(DRIVER.but(signer="other"),)), {}, SignatureError, "rim-signature"),
    ],
)
def test_each_part_counts(make: Callable[[], bytes], options: dict[str, Any], kind: type[Error], code: str) -> None:
    with pytest.raises(Error) as caught:
        verify(make(), **options)
    assert type(caught.value) is kind, caught.value
    assert caught.value.code == code


@pytest.mark.spec("GPU-25")
def test_what_is_handed_out_has_its_one_form() -> None:
    good = handed_out()
    small = DeviceEvidence(report=b"", chain=b"")
    for evidence in (
        b"",
        good + b"\0",
        good[:-1],
        handed_out(version=2),
        handed_out(shown=[small] * 65),
        GpuEvidence(version=1, binding=b"", signature=b"", devices=[], manifests=[b""] * 17).encode(),
        GpuEvidence(version=1, binding=bytes(MAX_EVIDENCE), signature=b"", devices=[], manifests=[]).encode(),
    ):
        with pytest.raises(FormatError) as caught:
            verify(evidence)
        assert caught.value.code == "gpu-evidence-format"
