"""The specs of SNP and Nitro evidence and their code hold the same tables, codes and limits."""

from __future__ import annotations

import re
from pathlib import Path

from conclave.attestation.nitro import document, verify_document
from conclave.attestation.nitro.verify import MAX_AHEAD_MS
from conclave.attestation.snp import endorsements, facts, key, report, verify_report

ROOT = Path(__file__).parents[2]
SNP, NITRO = ((ROOT / "spec" / f"{name}.md").read_text() for name in ("snp", "nitro"))
SOURCE = ROOT / "src" / "conclave" / "attestation"


def section(text: str, title: str) -> str:
    return re.split(rf"^## \d+\. {title}\n", text, flags=re.MULTILINE)[1].partition("\n## ")[0]


def codes_of_spec(text: str) -> set[str]:
    section = text.partition(" Codes\n")[2].partition("\n## ")[0]
    return {
        code
        for row in re.findall(r"^\| (`.*?`) \| \w+Error", section, re.MULTILINE)
        for code in re.findall(r"`(\S+?)`", row)
    }


def codes_of_source(package: str, whats: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for path in (SOURCE / package).glob("*.py"):
        for template, code in re.findall(r"code=(f?)\"([^\"]+)\"", path.read_text()):
            found |= {code.replace("{what}", what) for what in (whats if template else ("",))}
    return found


def test_the_table_of_a_report() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([0-9A-F]{3})h \| (\d+) \| (\d?) ?\|", SNP, re.MULTILINE)
    assert [(n, int(o, 16), int(s), int(v or 2)) for n, o, s, v in rows] == [tuple(f) for f in report.FIELDS]


def test_the_table_of_products() -> None:
    rows = re.findall(r"^\| (\w+)[^|]*\| 1[9A]h, [^|]*\| ([\d ]+) \| (\d+) bytes", SNP, re.MULTILINE)
    assert {n: (tuple(map(int, arcs.split())), int(size)) for n, arcs, size in rows} == {
        name: (product.layout, product.hwid_size) for name, product in key.PRODUCTS.items()
    }


def test_the_names_of_bits() -> None:
    policy, _, platform = section(SNP, "Report").partition("Policy bits: ")[2].partition("Platform bits: ")
    for names, said in ((facts.POLICY, policy), (facts.PLATFORM, platform)):
        assert {int(bit): name for bit, name in re.findall(r"(\d+) `(\w+)`", said)} == names


def test_the_remarks() -> None:
    said = set(re.findall(r"^\| `([a-z-]+)` \|", section(SNP, "Claims"), re.MULTILINE))
    source = (SOURCE / "snp" / "facts.py").read_text().partition("said = {")[2].partition("}")[0]
    assert said == set(re.findall(r"\"([a-z-]+)\": ", source))


def test_the_codes() -> None:
    paths = {f"{what}-{why}" for what in ("vcek", "vlek") for why in ("chain", "expired", "revoked")}
    paths |= {"ark-crl-issuer", "ark-crl-expired"}
    assert codes_of_spec(SNP) == codes_of_source("snp", ("vcek", "vlek")) | paths
    assert codes_of_spec(NITRO) == codes_of_source("nitro", ()) | {"document-chain", "document-expired"}


def test_the_limits() -> None:
    for limit in (endorsements.MAX_SIZE, endorsements.MAX_CERTIFICATE, report.SIZE, key.MAX_TEXT):
        assert f" {limit}" in SNP.partition("Limits: ")[2].partition("\n")[0]
    said = NITRO.partition("Limits: ")[2].partition("\n")[0]
    for limit in (
        document.MAX_DOCUMENT, document.MAX_PAYLOAD, document.MAX_CHAIN, document.MAX_CERTIFICATE, document.MAX_PCRS,
        MAX_AHEAD_MS // 1000,
    ):  # fmt: skip
        assert f" {limit}" in said
    assert f"1 to {document.MAX_MODULE_ID} characters" in NITRO
    assert f"0 to {document.MAX_CHOSEN}, null" in NITRO
    assert document.ES384.hex(" ") in NITRO


def test_the_steps_are_numbered_alike() -> None:
    for text, function, guide in ((SNP, verify_report, "amd"), (NITRO, verify_document, "aws")):
        named = re.findall(r"^(\d+)\. \*\*([^*]+)\*\*", section(text, "Verification"), re.MULTILINE)
        assert [int(n) for n, _ in named] == list(range(1, len(named) + 1))
        source = Path(function.__code__.co_filename).read_text()
        assert re.findall(r"^    # (\d+)\. ", source, re.MULTILINE) == [n for n, _ in named]
        assert re.findall(r"^        Step\(\"([^\"]+)\"", source, re.MULTILINE) == [name for _, name in named]
        page = (ROOT / "docs" / "guide" / f"checked-{guide}.md").read_text()
        told = re.findall(r"^(\d+)\. \*\*([^*]+)\.\*\*", page, re.MULTILINE)
        assert [(n, name.lower()) for n, name in told] == [(n, name.lower()) for n, name in named]
