"""Makes the evidence vectors with the public builder, `conclave.testing.evidence`.

The verifiers of `conclave` are not used: what each case must give is written down beside
it. Evidence and endorsements are files in `blobs/`, since cases share them: compressed by
gzip, named by the SHA-256 of what is inside. Everything is signed by test keys, and the
same every time (gzip's own bytes may differ between its implementations).

Usage: python vectors/evidence/generate.py [DIRECTORY]
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import amd_cases
import aws_cases
import intel_cases
from case import Case

HERE = Path(__file__).parent


def cases() -> list[Case]:
    found = [*intel_cases.cases(), *amd_cases.cases(), *aws_cases.cases()]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), sorted({n for n in names if names.count(n) > 1})
    return found


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    blobs = target / "blobs"
    blobs.mkdir(exist_ok=True)

    def keep(data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        path = blobs / f"{name}.gz"
        if not path.exists():
            path.write_bytes(gzip.compress(data, 9, mtime=0))
        return name

    for case in cases():
        built = case.built
        item: dict[str, Any] = {
            "id": f"evidence/{case.name}",
            "spec": case.spec,
            "comment": case.comment,
            "expect": case.expect,
            "tee": built.tee,
            "now": (built.now + case.later).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "anchors": sorted(built.anchors),
            "evidence": keep(built.raw),
            # A Nitro document carries what it needs.
            "endorsements": keep(built.endorsements) if built.tee != "nitro" else None,
        }
        if case.claims:
            item["claims"] = case.claims
        (target / f"{case.name}.json").write_text(json.dumps(item, indent=2) + "\n")


if __name__ == "__main__":
    main()
