"""What the kernel says of processes."""

from __future__ import annotations

from pathlib import Path


def children(pid: int | str) -> list[int]:
    """The processes that a process has started; none if it has gone."""
    threads = Path(f"/proc/{pid}/task")
    while threads.is_dir():
        try:
            return [int(child) for thread in threads.iterdir() for child in (thread / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            # A thread ended between the two, and another one has its children now.
            continue
    return []
