"""Constants of endorsements stand once in the code and once in spec/endorsements.md, and agree."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

from conclave.host.endorsements import cache, documents, exchange, http, schedule, source
from conclave.host.endorsements.documents import (
    ChipCertificate,
    FamilyChain,
    FamilyList,
    PckList,
    QeIdentity,
    RootList,
    TcbInfo,
)
from conclave.host.endorsements.platform import _LEVELS

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "spec" / "endorsements.md").read_text()
GUIDE = (ROOT / "docs" / "guide" / "endorsements.md").read_text()


def rows(section: int) -> list[list[str]]:
    """Cells of the tables of a section."""
    text = SPEC.split(f"\n## {section}. ")[1].split("\n## ")[0]
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]


def test_documents() -> None:
    examples = [
        RootList(),
        PckList("platform"),
        TcbInfo("sgx", "0" * 12),
        QeIdentity("sgx"),
        ChipCertificate("vcek", "Milan", "0" * 128, "0" * 16),
        ChipCertificate("vlek", "Milan", "", "0" * 16),
        FamilyChain("vcek", "Milan"),
        FamilyList("vcek", "Milan"),
    ]
    listed = [r for r in rows(3) if r[0].startswith("`")]
    assert len(listed) == len(examples)
    for (name, _, ending, size), example in zip(listed, examples, strict=True):
        pattern = re.sub(r"<[a-z ]+>", "[a-z0-9]+", name.strip("`"))
        assert re.fullmatch(pattern, example.name), (pattern, example.name)
        kept = documents.form(example)
        assert (ending.split("`")[1], int(size)) == (kept.ending, kept.max_size)
    assert f"at most {documents.MAX_CHAIN} bytes of PEM" in SPEC


def test_ages_and_rates() -> None:
    day = timedelta(days=1)
    weekly = {ChipCertificate, FamilyChain}
    assert {k: 7 * day if k in weekly else day for k in schedule.MAXIMUM_AGE} == schedule.MAXIMUM_AGE
    assert "| lists, TCB info, identities | 1 day |" in SPEC
    assert "| AMD certificates and chains | 7 days |" in SPEC
    found = {
        r[0]: (int(r[1]), timedelta(seconds=int(r[2].split()[0])), int(r[3])) for r in rows(6) if r[0] in source.RATES
    }
    assert found == source.RATES
    for constant, said in (
        (timedelta(minutes=10) == schedule.MINIMUM_AGE, "not within ten minutes"),
        (timedelta(minutes=5) == schedule.CLOCK_SKEW, "5 minutes of clock difference"),
        (timedelta(seconds=2) == schedule.FIRST_DELAY, "waits 2 s, doubling"),
        (timedelta(hours=1) == schedule.LONGEST_DELAY, "to 1 hour"),
        (timedelta(hours=1) == schedule.MISSING_FOR, "not asked for again for an hour"),
        (day == schedule.LONGEST_RETRY_AFTER, "up to a day"),
        (source.PATIENCE_SECONDS == 60, "at most 60 s in all"),
        (cache.MAX_DOCUMENTS == 1024, "At most 1024 documents"),
        (cache._LOCK_SECONDS == 30, "given up after 30 s"),
        (http.CONNECT_SECONDS == 5, "5 s for a connection"),
        (http.ANSWER_SECONDS == 20, "20 s for the whole answer"),
        (exchange.MAX_MANIFEST == 1 << 20, "at most 1 MiB"),
        (exchange.FORMAT == "conclave/1 endorsements", '"format": "conclave/1 endorsements"'),
    ):
        assert constant
        assert said in SPEC


def test_places_of_patch_levels() -> None:
    places = [int(c) for c in next(r for r in rows(5) if r[0] == "TCB version, byte")[1:]]
    for row in rows(5):
        for product in row[0].split(", "):
            if product in _LEVELS:
                assert {level: at for at, level in zip(places, row[1:], strict=True) if level} == _LEVELS[product]


def test_every_code_is_explained() -> None:
    listed = {code for row in rows(8) for code in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", row[0])}
    raised = set(http.FAILURES)
    for path in (ROOT / "src" / "conclave" / "host" / "endorsements").glob("*.py"):
        raised |= set(re.findall(r'code="([a-z-]+)"', path.read_text()))
    assert listed == raised
    for code, (meaning, _) in http.FAILURES.items():
        row = next(r for r in rows(8) if r[0] == f"`{code}`")
        assert row[1].startswith(meaning)
        # The operator's page says what to do about each that a vendor can cause.
        assert f"`{code}`" in GUIDE
