"""spec/nvidia.md says what the code says: codes, limits, labels, chips, flags."""

from __future__ import annotations

import re
from pathlib import Path

from conclave.attestation.nvidia import binding, device, gpus, markup, opaque, report, rim, verify

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "spec" / "nvidia.md").read_text()
SOURCES = "".join(p.read_text() for p in (ROOT / "src" / "conclave" / "attestation" / "nvidia").glob("*.py"))


def test_codes() -> None:
    raised = set(re.findall(r'code="([a-z-]+)"', SOURCES))
    # Of certificates and their paths, by what they are about.
    raised |= {f"{what}-{fault}" for what in re.findall(r'what="([a-z]+)"', SOURCES) for fault in ("chain", "expired")}
    _, _, rest = SPEC.partition("## 12. Codes")
    table, _, _ = rest.partition("## 13.")
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(code for row in rows for code in re.findall(r"`([a-z-]+)`", row)) == sorted(raised)


def test_limits() -> None:
    _, _, rest = SPEC.partition("## 13. Limits")
    line = next(line for line in rest.splitlines() if line.startswith("Limits:"))
    numbers = (report.MAX_SIZE, verify.MAX_CHAIN_SIZE, markup.MAX_SIZE, binding.MAX_SIZE, binding.MAX_GPUS)
    for number in (*numbers, gpus.MAX_MANIFESTS, gpus.MAX_EVIDENCE // 2**20):
        assert f" {number}" in line
    assert f"at most {report.MAX_OPAQUE} bytes" in SPEC
    assert (markup.MAX_DEPTH, markup.MAX_ELEMENTS, markup.MAX_ATTRIBUTES) == (8, 1024, 32)
    assert "At most 8 levels, 1024 elements, 32 attributes each." in SPEC
    assert (rim.MAX_ENTRIES, rim.MAX_ALTERNATIVES) == (255, 16)
    assert "Index: 0 to 254" in SPEC
    assert "alternatives: 1 to 16" in SPEC


def test_label_and_purpose() -> None:
    assert binding.NONCE_LABEL == b"conclave/1 gpu\0"
    assert '`nonce(i) = SHA-256("conclave/1 gpu" ‖ 0x00 ‖ D (64) ‖ i (4, big-endian))`' in SPEC
    assert f"purpose `{binding.PURPOSE}`" in SPEC


def test_chips_modes_and_flags() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (gpu|switch) \|$", SPEC, re.MULTILINE)
    assert {chip: (architecture, kind) for chip, architecture, kind in rows} == device.CHIPS
    assert ", ".join(f"{number} {mode}" for number, mode in opaque.MODES.items()) in SPEC
    assert ", ".join(f"`{word}`" for word in device.FLAGS.values()) in SPEC
