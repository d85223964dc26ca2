"""`conclave attack`: an author's enclave under a hostile host.

Runs on the author's machine, with the author's workload.
"""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from pathlib import Path
from typing import Final

from conclave.cli._build import progress
from conclave.cli._terminal import safe, show
from conclave.errors import FormatError

FOUND: Final = 10


def attack_command(
    path: Path,
    *,
    workload: Path | None,
    seeds: int | None,
    seconds: float,
    seed: int | None,
    schedule: str | None,
    actions: str,
    as_json: bool,
) -> int:
    """Attack it, and say what was found."""
    from conclave.testing.attack.generated import GeneratedWorkload
    from conclave.testing.attack.hosting import Hosting
    from conclave.testing.attack.hunt import hunt
    from conclave.testing.attack.report import lines, value
    from conclave.testing.attack.runner import Runner
    from conclave.testing.attack.schedule import chosen, read
    from conclave.testing.attack.workload import beside, load_workload

    if seed is not None and (schedule is not None or seeds is not None):
        raise FormatError("--seed names one schedule by itself: give it without --seeds and --schedule")
    wanted = chosen(actions)
    given = None if schedule is None else read(schedule)
    file = workload or beside(path)
    written = None if file is None else load_workload(file)
    numbers = [seed] if seed is not None else itertools.count(1) if seeds is None else range(1, seeds + 1)
    with Hosting(path, on_progress=progress) as hosting:
        generated = None if written is not None else GeneratedWorkload(hosting.program.manifest.interface)
        runner = Runner(hosting, written or generated)  # type: ignore[arg-type]
        progress(f"workload: {file.name}" if file else "no workload: every method is called, from three clients")
        found = hunt(
            runner, seeds=numbers, seconds=seconds, actions=wanted, given=given, rehearsals=runner.workload.rehearsals
        )
    remarks = () if generated is None else tuple(generated.remarks)
    if as_json:
        print(json.dumps(value(found, remarks=remarks)))
    else:
        again = shlex.join(["conclave", "attack", str(path), *(["--workload", str(workload)] if workload else [])])
        show(safe(line) for line in lines(found, again=again, remarks=remarks))
    sys.stdout.flush()
    return 0 if found.found is None else FOUND
