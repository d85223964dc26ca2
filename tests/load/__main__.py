"""Load and faults at full size, with figures: `make load`, or `python -m tests.load MINUTES`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.load import scenarios
from tests.load.scenarios import Figures, Host, hosted

from conclave.bundle import build


def main(minutes: float) -> None:
    seconds = minutes * 60
    on_host: dict[str, Callable[[Host], Awaitable[Figures]]] = {
        "200 concurrent clients": lambda host: scenarios.steady(host, seconds, 200),
        "enclave killed": lambda host: scenarios.enclave_killed(host, seconds / 2, 50),
        "host killed": lambda host: scenarios.host_killed(host, seconds / 2, 50),
        "slow and half-closed HTTP": lambda host: scenarios.slow_and_half_closed(host, seconds / 2, 50, 500),
        "unknown channels": lambda host: scenarios.unknown_channels(host, int(500_000 * minutes)),
    }
    print("| | requests | errors | host, MiB | enclave, MiB | |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        place = Path(name)
        (place / "echo.py").write_text(scenarios.SOURCE)
        bundle = build(place / "echo.py", place / "echo.enclave", mode="release")
        for title, scenario in on_host.items():
            with hosted(bundle, place) as host:
                _show(title, scenario(host))
        with hosted(bundle, place, descriptors=256) as host:
            _show("descriptors exhausted", scenarios.descriptors(host, 600))
        _show("store gone", scenarios.store_gone(bundle, place, seconds / 4, 50))
        disk = place / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(disk)], check=False).returncode == 0:
            try:
                _show("disk full", scenarios.disk_full(bundle, disk, seconds / 4, 50))
            finally:
                subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _show(title: str, work: Awaitable[Figures]) -> None:
    async def run() -> Figures:
        return await work

    print(f"| {title} | {asyncio.run(run()).line()} |", flush=True)


main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)
