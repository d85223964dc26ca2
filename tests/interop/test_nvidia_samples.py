"""Reports and manifests of real NVIDIA devices: every sample gets the verdict and the values it is known for."""

from __future__ import annotations

import hashlib
import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests._evidence import ABSENT, evidence_dir, samples

from conclave.attestation.anchors import NVIDIA_DEVICES, NVIDIA_MANIFESTS
from conclave.attestation.nvidia import GpuClaims, Rim, compare, parse_report, rim_ids, verify_report, verify_rim
from conclave.attestation.nvidia.rim import parse_rim
from conclave.errors import BindingError, ChainError, Error, ExpiredError, FormatError, SignatureError

SAMPLES = samples("nvidia")
SECOND = timedelta(seconds=1)
INVALID = {
    "signature": (SignatureError, "gpu-report-signature"),
    "signature: first certificate is not the attestation key's": (SignatureError, "gpu-report-signature"),
    "chain has only the root certificate": (ChainError, "gpu-chain"),
    "chain broken": (ChainError, "gpu-chain"),
}
MANIFESTS = [
    (sample, rim) for sample in SAMPLES for rim in json.loads((sample / "meta.json").read_text()).get("rims", [])
]
pytestmark = pytest.mark.skipif(not SAMPLES, reason=ABSENT)
each = pytest.mark.parametrize("sample", SAMPLES, ids=lambda p: p.name)
each_manifest = pytest.mark.parametrize(
    ("sample", "rim"), MANIFESTS, ids=[f"{sample.name}-{rim['role']}" for sample, rim in MANIFESTS]
)


def meta(sample: Path) -> dict[str, Any]:
    return json.loads((sample / "meta.json").read_text())


def named(name: str) -> Path:
    place = evidence_dir()
    assert place is not None
    return place / "nvidia" / name


def verify(sample: Path, now: datetime | None = None, raw: bytes | None = None, **changes: bytes) -> GpuClaims:
    known = meta(sample)
    said = {
        "nonce": bytes.fromhex(known["expected"]["nonce"]),
        "chain_pem": (sample / "cert_chain.pem").read_bytes(),
        **changes,
    }
    report = parse_report((sample / "report.bin").read_bytes() if raw is None else raw)
    now = now or datetime.fromisoformat(known["valid_at"])
    return verify_report(report, said["chain_pem"], nonce=said["nonce"], anchors=NVIDIA_DEVICES, now=now)


def manifest(sample: Path, rim: dict[str, Any], now: datetime | None = None) -> Rim:
    begin = datetime.fromisoformat(rim["cert_window"][0])
    return verify_rim((sample / rim["file"]).read_bytes(), anchors=NVIDIA_MANIFESTS, now=now or begin)


def test_all_samples_are_here() -> None:
    assert len(SAMPLES) == 12
    assert len(MANIFESTS) == 6


def test_the_roots_are_those_that_are_pinned() -> None:
    place = evidence_dir()
    assert place is not None
    known = {r["file"]: r.get("sha256_der") for r in json.loads((place / "roots" / "roots.json").read_text())}
    assert {known["nvidia/device_identity_root.pem"]} == NVIDIA_DEVICES
    assert {known["nvidia/rim_root.pem"]} == NVIDIA_MANIFESTS


@each
def test_what_a_sample_is_known_for(sample: Path) -> None:
    expected = meta(sample)["expected"]
    report = parse_report((sample / "report.bin").read_bytes())
    values = {str(index): value.hex() for index, value in report.blocks.items()}
    assert values == json.loads((sample / "measurements.json").read_text())["blocks"]
    assert (
        hashlib.sha256(json.dumps(values).encode()).hexdigest()
        == (expected["measurements"]["sha256_of_index_value_list"])
    )
    assert len(values) == expected["measurements"]["count"]
    assert report.nonce.hex() == expected["nonce"]
    assert report.responder_nonce.hex() == expected["responder_nonce"]
    if expected["verdict"] == "invalid":
        kind, code = INVALID[expected["reason"]]
        with pytest.raises(Error) as caught:
            verify(sample)
        assert (type(caught.value), caught.value.code) == (kind, code)
        return
    claims = verify(sample)
    assert {str(index): value for index, value in claims.measurements.items()} == values
    assert claims.architecture == meta(sample)["arch"]
    assert claims.steps[0].detail.startswith(meta(sample)["leaf"])
    assert (claims.driver_version, claims.details["vbios_version_raw"]) == (
        expected["driver_version"],
        expected["vbios_version_raw"],
    )
    assert claims.nonce.hex() == expected["nonce"]
    assert claims.anchor in NVIDIA_DEVICES
    # Nobody recorded this: the samples have no list and no answer of NVIDIA's revocation service.
    assert expected["debug"] is None
    assert claims.debug is (False if claims.chip == "GB100" else None)
    assert "revocation-unknown" in claims.remarks
    json.dumps(dict(claims.details))


def test_what_devices_say_of_themselves() -> None:
    """Facts that two samples of NVIDIA's own tests are known for, and the names of manifests."""
    protected = verify(named("hopper-590.12-json"))
    assert (protected.mode, protected.details["protected_pcie_status"]) == ("PPCIE", "enabled")
    assert {"protected-pcie"} <= protected.remarks
    assert protected.device_id == "NVIDIA:GH100:48B02DF44660DA06"
    blackwell = verify(named("blackwell-575.32"))
    assert (blackwell.mode, blackwell.details["svn"], blackwell.vbios_version) == ("", 1, "97.00.88.00.0F")
    assert "not-configured" in blackwell.remarks
    assert rim_ids(verify(named("hopper-535.86.09"))) == (
        "NV_GPU_DRIVER_GH100_535.86.09",
        "NV_GPU_VBIOS_1010_0200_882_96005E0001",
    )
    assert rim_ids(blackwell) == ("NV_GPU_CC_DRIVER_GB100_575.32", "NV_GPU_VBIOS_G525_0220_886_970088000F")
    assert rim_ids(verify(named("switch-ls10"))) == ("NV_SWITCH_BIOS_5612_0002_890_9610550001",)


@each
def test_another_nonce_is_refused(sample: Path) -> None:
    if meta(sample)["expected"]["verdict"] == "invalid":
        return
    with pytest.raises(BindingError) as caught:
        verify(sample, nonce=bytes(32))
    assert caught.value.code == "gpu-nonce"


@each
def test_outside_its_window_a_sample_is_expired(sample: Path) -> None:
    if meta(sample)["expected"]["verdict"] == "invalid":
        return
    claims = verify(sample)
    assert f"{claims.valid_until:%Y-%m-%dT%H:%M:%SZ}" == "9999-12-31T23:59:59Z"
    verify(sample, claims.valid_from)
    verify(sample, claims.valid_until)
    with pytest.raises(ExpiredError) as caught:
        verify(sample, claims.valid_from - SECOND)
    assert caught.value.code == "gpu-expired"


@each
def test_every_truncation_of_a_sample(sample: Path) -> None:
    raw = (sample / "report.bin").read_bytes()
    for size in range(len(raw)):
        with pytest.raises(FormatError):
            parse_report(raw[:size])
    with pytest.raises(FormatError):
        parse_report(raw + b"\0")


@each
def test_any_bit_of_a_sample_counts(sample: Path) -> None:
    if meta(sample)["expected"]["verdict"] == "invalid":
        return
    raw, chance = (sample / "report.bin").read_bytes(), random.Random(sample.name)
    for bit in chance.sample(range(len(raw) * 8), 40):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, SignatureError)):
            verify(sample, raw=bytes(changed))


def test_what_belongs_to_another() -> None:
    """Chains of other devices, of the same family and of another."""
    for other in ("hopper-535.86.09", "blackwell-575.32", "switch-ls10"):
        with pytest.raises(SignatureError) as caught:
            verify(named("hopper-550.90.07"), chain_pem=(named(other) / "cert_chain.pem").read_bytes())
        assert caught.value.code == "gpu-report-signature"


@each_manifest
def test_what_a_manifest_is_known_for(sample: Path, rim: dict[str, Any]) -> None:
    parsed = parse_rim((sample / rim["file"]).read_bytes())
    assert (parsed.version, len(parsed.entries)) == (rim["version"], rim["active_entries"])
    begin, end = (datetime.fromisoformat(t) for t in rim["cert_window"])
    if rim["xml_signature"] != "right":
        for now in (begin, end):
            with pytest.raises(SignatureError) as caught:
                manifest(sample, rim, now)
            assert caught.value.code == "rim-digest"
        return
    verified = manifest(sample, rim)
    assert (verified.valid_from, verified.valid_until) == (begin, end)
    assert {verified.anchor} == NVIDIA_MANIFESTS
    assert verified.entries == parsed.entries
    manifest(sample, rim, end)
    for now in (begin - SECOND, end + SECOND):
        with pytest.raises(ExpiredError) as expired:
            manifest(sample, rim, now)
        assert expired.value.code == "rim-expired"


@each_manifest
def test_where_a_device_differs_from_a_manifest(sample: Path, rim: dict[str, Any]) -> None:
    """Of manifests with a wrong signature only the values are compared here: `verify_rim` refuses them."""
    parsed = parse_rim((sample / rim["file"]).read_bytes())
    now = datetime.fromisoformat(rim["cert_window"][0])
    values = Rim(parsed.kind, parsed.product, parsed.version, "", parsed.entries, "", "", now, now)
    found = compare(verify(sample), [manifest(sample, rim) if rim["xml_signature"] == "right" else values])
    assert [d.index for d in found if d.reason == "value"] == rim["mismatching_indices"]
    # NVIDIA's own verifier skips this one, since the report says that the decoder is disabled.
    assert {d.index for d in found if d.excused} <= {35}
    missing = {"gpu": {"driver", "vbios"} - {"driver" if "driver" in rim["role"] else "vbios"}, "switch": set()}
    assert {d.role for d in found if d.reason == "rim-missing"} == missing[values.kind]


def test_a_manifest_of_another_device() -> None:
    hopper, switch = named("hopper-535.86.09"), named("switch-ls10")
    rims = {s.name: manifest(s, rim) for s, rim in MANIFESTS if rim["role"] in ("vbios", "switch_vbios")}
    for claims, rim, code in (
        (verify(hopper), rims["switch-ls10"], "rim-product"),
        (verify(switch), rims["hopper-535.86.09"], "rim-product"),
        (verify(named("hopper-550.90.07")), rims["hopper-535.86.09"], "rim-version"),
    ):
        with pytest.raises(BindingError) as caught:
            compare(claims, [rim])
        assert caught.value.code == code
    with pytest.raises(BindingError) as caught:
        compare(verify(hopper), [rims["hopper-535.86.09"]] * 2)
    assert caught.value.code == "rim-overlap"


@each_manifest
def test_any_byte_of_a_manifest_counts(sample: Path, rim: dict[str, Any]) -> None:
    if rim["xml_signature"] != "right":
        return
    xml, now = (sample / rim["file"]).read_bytes(), datetime.fromisoformat(rim["cert_window"][0])
    chance, signed = random.Random(rim["file"]), xml.index(b"<ds:KeyInfo>")
    verified = manifest(sample, rim)
    for at in chance.sample(range(signed), 80):
        changed = xml[:at] + bytes([xml[at] ^ 1 << chance.randrange(7)]) + xml[at + 1 :]
        try:
            assert verify_rim(changed, anchors=NVIDIA_MANIFESTS, now=now) == verified
            # Within a tag white space is not signed.
            assert {xml[at], changed[at]} <= set(b" \n\t")
        except (FormatError, SignatureError):
            pass
    for size in chance.sample(range(len(xml) - 1), 60):
        with pytest.raises(FormatError):
            verify_rim(xml[:size], anchors=NVIDIA_MANIFESTS, now=now)
