"""What a report says, as names and JSON values.

Runs at the relying party, after verification. Names are those of the evidence
samples; bits have AMD's names.

Spec: spec/snp.md section 7.
"""

from __future__ import annotations

from typing import Any, Final

from conclave.attestation._x509 import RevocationList
from conclave.attestation.snp.key import EndorsementKey
from conclave.attestation.snp.report import Report

POLICY: Final = {
    16: "smt",
    18: "migrate_ma",
    19: "debug",
    20: "single_socket",
    21: "cxl_allow",
    22: "mem_aes_256_xts",
    23: "rapl_dis",
    24: "ciphertext_hiding",
    25: "page_swap_disable",
}
# Bits beyond these are told as part of the number: genuine processors set bit 6, which is not documented.
PLATFORM: Final = {
    0: "smt_en",
    1: "tsme_en",
    2: "ecc_en",
    3: "rapl_dis",
    4: "ciphertext_hiding_dram_en",
    5: "alias_check_complete",
    7: "tio_en",
}
_MEASUREMENTS: Final = ("measurement", "host_data", "id_key_digest", "author_key_digest")
_BYTES: Final = (
    "reported_tcb", "current_tcb", "committed_tcb", "launch_tcb", "platform_info", "chip_id", "report_id",
    "report_id_ma", "family_id", "image_id",
)  # fmt: skip
_NO_AGENT: Final = (bytes(32), b"\xff" * 32)


def measurements(report: Report) -> dict[str, str]:
    """Launch digest, host data, and the digests of the keys behind the ID block, in hex."""
    return {name: report.field(name).hex() for name in _MEASUREMENTS}


def remarks(report: Report, key: EndorsementKey, crl: RevocationList | None) -> frozenset[str]:
    """Words for what policy has to know."""
    policy, platform = flags(report.number("policy"), POLICY), flags(report.number("platform_info"), PLATFORM)
    agent = "migrate_ma" in policy or report.field("report_id_ma") not in _NO_AGENT
    said = {
        "revocation-unknown": crl is None,
        "vlek": key.kind == "VLEK",
        "mask-chip-key": report.mask_chip_key,
        "masked-chip-id": not any(report.field("chip_id")),
        "smt-allowed": "smt" in policy,
        "migration-agent": agent,
        "vmpl-above-zero": report.number("vmpl") > 0,
        "alias-check-missing": report.version >= 3 and "alias_check_complete" not in platform,
    }
    return frozenset(word for word, holds in said.items() if holds)


def details(report: Report, key: EndorsementKey, crl: RevocationList | None) -> dict[str, Any]:
    """Everything else that was signed, and what the certificate said."""
    number = report.number
    found: dict[str, Any] = {name: report.field(name).hex() for name in _BYTES}
    found |= {name: number(name) for name in ("version", "guest_svn", "vmpl")}
    found |= {
        "policy": f"{number('policy'):#x}",
        "policy_flags": flags(number("policy"), POLICY),
        "abi": f"{number('policy') >> 8 & 0xFF}.{number('policy') & 0xFF}",
        "platform_flags": flags(number("platform_info"), PLATFORM),
        "signing_key": report.signing_key,
        "mask_chip_key": int(report.mask_chip_key),
        "author_key_en": number("key_info") & 1,
        "cpuid_fam_model_step": report.cpuid.hex() if report.cpuid else None,
        "product": key.product,
        "csp_id": key.provider or None,
        "tcb": key.parts,
        "lowest_tcb": lowest(report, key),
        "crl_number": crl.number if crl else None,
    }
    for which in ("current", "committed"):
        found[f"{which}_version"] = ".".join(str(number(f"{which}_{part}")) for part in ("major", "minor", "build"))
    if report.version >= 5:
        found |= {name: report.field(name).hex() for name in ("launch_mit_vector", "current_mit_vector")}
    return found


def lowest(report: Report, key: EndorsementKey) -> dict[str, int]:
    """Part by part the lowest TCB version that had this guest in its hands, or may have it again.

    The signing key's is that of today. Older firmware may have launched the guest, and measured
    what it liked; and firmware that was not committed can be turned back while the guest runs.
    """
    others = [key.parts_of(report.field(name)) for name in ("launch_tcb", "committed_tcb")]
    return {part: min(value, *(other[part] for other in others)) for part, value in key.parts.items()}


def flags(number: int, names: dict[int, str]) -> list[str]:
    """Names of the bits that are set."""
    return [name for bit, name in names.items() if number >> bit & 1]
