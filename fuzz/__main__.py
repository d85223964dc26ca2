"""Fuzz for longer: python -m fuzz SECONDS TARGET. Coverage-guided; new inputs go to a scratch directory.

Without arguments it names the targets.
"""

from __future__ import annotations

import sys
import tempfile

import atheris

from fuzz.engine import CORPUS, check
from fuzz.targets import TARGETS


def main() -> None:
    if not sys.argv[1:]:
        print(*TARGETS)
        return
    seconds, name = sys.argv[1:]
    if name not in TARGETS:
        raise SystemExit(f"no target {name}; there are {', '.join(TARGETS)}")
    found = tempfile.mkdtemp(prefix=f"conclave-fuzz-{name}-")
    print(f"{name}: new inputs in {found}", flush=True)
    atheris.instrument_all()
    arguments = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=40000", f"-artifact_prefix={found}/", found]
    atheris.Setup([*arguments, str(CORPUS / name)], lambda data: check(name, data))
    atheris.Fuzz()


main()
