"""Writes docs/evidence-samples.md: what `conclave verify` says of every captured sample.

The samples are no part of this repository: name their folder, or set
CONCLAVE_EVIDENCE. Run it as `python docs/evidence_samples.py [FOLDER]`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conclave.cli._answer import Answer
from conclave.cli._verify import ask, judge

KINDS = ("sgx", "tdx", "snp", "nitro")
# For samples that are valid at no time: one at which their certificates are.
SOME_TIME = {"sgx": "2020-06-01T00:00:00Z", "nitro": "2021-09-09T10:19:20Z"}
PAGE = Path(__file__).parent / "evidence-samples.md"
HEAD = """# What every sample is found to be

Evidence that real processors made, captured by others and published with their projects: {count} samples, judged by
`conclave verify FOLDER --at TIME` with the endorsements of their time and the roots pinned in this library. The samples
are no part of this project. `docs/evidence_samples.py` writes this page, and a test compares it with what the command
says.

`security` is what it means without a constraint ([one scale](guide/hardware-evidence.md)). Authentic is not accepted:
debug and an outdated platform are authentic, and told. What remarks and codes mean is in the pages for
[Intel](guide/checked-intel.md), [AMD](guide/checked-amd.md) and [AWS](guide/checked-aws.md), and in `spec/`.
"""
OTHERS = """
## Under other endorsements, or another root

The same quotes with endorsements of another month, or under the root of the test PKI that made them (`--roots`).
"""
COLUMNS = ("kind", "sample", "as of", "verdict", "vendor status", "security", "debug", "remarks", "code")


def samples(evidence: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Kind, folder and record of every sample."""
    for kind in KINDS:
        for record in sorted((evidence / kind).glob("*/meta.json")):
            yield kind, record.parent, json.loads(record.read_text())


def row(kind: str, name: str, answer: Answer) -> str:
    """One line of the table."""
    debug = "" if answer.debug is None else "yes" if answer.debug else "no"
    cells = (
        kind, name, answer.at[:10], answer.verdict, answer.tcb_status or "", answer.security or "", debug,
        ", ".join(answer.remarks), f"`{answer.code}`" if answer.code else "",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def others(evidence: Path, place: Path) -> Iterator[str]:
    """Samples with other endorsements, and those of test PKIs under their own root."""
    for kind, folder, known in samples(evidence):
        for other in known.get("alternates", []):
            given = place / folder.name
            given.mkdir()
            shutil.copy(folder / other["collateral"], given / "collateral.json")
            answer = judge(ask(str(folder), at=other["valid_at"], endorsements=given)).answer
            yield row(kind, folder.name, answer)
        if (folder / "trusted_root.pem").exists():
            yield row(kind, folder.name, judge(ask(str(folder), at=known["valid_at"], roots=folder)).answer)


def page(evidence: Path) -> str:
    """The whole page."""
    table = f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    rows = [
        row(kind, folder.name, judge(ask(str(folder), at=known["valid_at"] or SOME_TIME[kind])).answer)
        for kind, folder, known in samples(evidence)
    ]
    with tempfile.TemporaryDirectory() as place:
        more = list(others(evidence, Path(place)))
    text = HEAD.format(count=len(rows)) + table + "\n".join(rows) + "\n"
    return text + OTHERS + table + "\n".join(more) + "\n"


def main() -> None:
    """Write the page."""
    named = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CONCLAVE_EVIDENCE")
    evidence = Path(named) if named else Path(__file__).parents[2] / "shared" / "evidence"
    if not evidence.is_dir():
        sys.exit("no samples: name their folder, or set CONCLAVE_EVIDENCE")
    PAGE.write_text(page(evidence))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
