"""Where the demonstration plays: its folder, its machine, what it prints, what went otherwise than told.

Runs on one machine, as author, operator and hospitals in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from conclave.cli._places import platform_directory
from conclave.host import Host
from conclave.host.states.opening import open_state
from conclave.host.stores import open_store
from conclave.platform import start_platform


class Stage:
    """One run of the demonstration."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.console = Console(highlight=False, soft_wrap=True)
        self.failures = 0
        self.machine = platform_directory(None)

    def title(self, text: str) -> None:
        """A heading."""
        self.console.print(f"\n[bold]{text}[/bold]")

    def say(self, text: str) -> None:
        """A plain line."""
        self.console.print(f"  {text}")

    def expect(self, attempt: str, by: str, act: Callable[[], str]) -> None:
        """One attack: `act` returns how it was refused, or raises."""
        try:
            outcome = act()
        except Exception as error:
            self.failures += 1
            self.console.print(
                f"  [red]✗ {attempt}: NOT refused as told[/red]: {type(error).__name__}: {escape(str(error))}"
            )
            return
        self.console.print(f"  [green]✓[/green] {attempt}\n      refused by the {by}: [dim]{escape(outcome)}[/dim]")

    def host(self, bundle: Path, disk: Path | None = None) -> Host:
        """A host for one bundle on the simulated machine; what it keeps is on that disk, or in its memory."""
        blobs = None
        if disk is not None:
            disk.mkdir(exist_ok=True)
            blobs = open_store(f"file:{disk}", alone=True)
        return Host(
            lambda: start_platform(self.machine, bundle),
            restart=False,
            patience_seconds=0.0,
            store=blobs,
            state=None if blobs is None else open_state(f"file:{disk}", blobs),
        )
