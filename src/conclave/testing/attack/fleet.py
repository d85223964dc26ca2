"""The enclaves that one operator runs during one run, and which client is led to which.

For tests. What an operator can do without looking at a single mail: kill, start again
on another store, run a second one, run another program, have a store that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conclave.errors import Error
from conclave.testing.attack.boot import Boot
from conclave.testing.attack.hosting import Hosting
from conclave.testing.attack.schedule import Step

# How many requests long a fault or another program is there, at most.
_LONGEST: Final = 5
_FAULTS: Final = {
    "full": "takes nothing more",
    "fails": "does not answer",
    "unsure": "writes, and says that it does not know whether it did",
    "forgets": "says that it wrote, and did not",
}


class Fleet:
    """All boots of one run.

    Attributes:
        main: the boot that an honest operator would lead everybody to.
        continuous: whether all clients always had one and the same boot.
        linear: whether every boot went on with all that the one before had stored.
        fell: whether an enclave ended though nobody had ended it.
    """

    def __init__(self, hosting: Hosting) -> None:
        self._hosting = hosting
        self._fork: Boot | None = None
        self._forked: set[str] = set()
        self._unforked: str | None = None
        # Whether those who were led to the second enclave are back at the first, and all others at the second.
        self._swapped = False
        self._other: Boot | None = None
        self._other_until, self._other_for = 0, ""
        self._faulty_until = 0
        self._copies: list[Path] = []
        self.boots: list[Boot] = []
        self.main: Boot
        self.continuous = self.linear = True
        self.fell = False

    async def begin(self) -> None:
        """Start the enclave on an empty store."""
        self.main = await self._hosting.fresh()
        self.boots.append(self.main)

    async def end(self) -> None:
        """Kill whatever runs."""
        running = [boot for boot in self.boots if not boot.ended]
        self.fell |= any(boot.failed for boot in running)
        self._hosting.remember(*running)
        await asyncio.gather(*(boot.kill() for boot in running))

    def stored(self) -> Iterator[bytes]:
        """All files of all stores."""
        for place in {*(boot.place for boot in self.boots), *self._copies}:
            for file in sorted(place.rglob("*")):
                if file.is_file():
                    yield file.read_bytes()

    def keep_copy(self) -> None:
        """Remember the store as it is, for a roll back."""
        self._copies.append(self._hosting.new_place())
        self.main.copy_store(self._copies[-1])

    # Who is led where ---------------------------------------------------------------------

    async def boot_for(self, client: str, turn: int) -> Boot:
        """The boot that answers a client now."""
        if self._other is not None and turn <= self._other_until and self._other_for in ("", client):
            return self._other
        elsewhere = client in self._forked or (self._unforked is not None and client != self._unforked)
        if elsewhere != self._swapped and self._fork is not None:
            return self._fork
        if not self.main.runs:
            self.fell |= self.main.failed
            await self.restart()
        return self.main

    def unite(self) -> None:
        """Lead everybody to the first enclave, on a store that works."""
        self._forked, self._unforked, self._swapped, self._other_until = set(), None, False, 0
        self.heal(None)

    def heal(self, turn: int | None) -> None:
        """End faults of the store that are over by then; None: all."""
        if turn is None or turn > self._faulty_until:
            for boot in self.boots:
                boot.faults.now = None

    # What is done to them -------------------------------------------------------------------

    async def restart(self, place: Path | None = None, *, politely: bool = False) -> str:
        """End the first enclave and start it again, on its store or another; gives what else was to be done for it."""
        self.continuous = False
        old = self.main
        self._hosting.remember(old)
        await (old.stop() if politely else old.kill())
        place = place or old.place
        try:
            self.main = await self._start(place)
        except Error as error:
            # What was torn off in the middle no host can read; a good one would begin anew.
            self.main, self.linear = await self._start(self._hosting.new_place()), False
            return f", which was refused ({error.code}); so it was on an empty one"
        return ""

    async def _start(self, place: Path, *, other: bool = False) -> Boot:
        boot = await self._hosting.boot(self._hosting.other if other else self._hosting.program, place)
        self.boots.append(boot)
        return boot

    def _copy(self) -> Path:
        copy = self._hosting.new_place()
        self.main.copy_store(copy)
        return copy

    async def act(self, step: Step, client: str, turn: int) -> str:
        """Do what a step says; gives it in words."""
        match step.action:
            case "fork":
                return await self._act_fork(step, client)
            case "roll-back":
                return await self._act_roll_back(step)
            case "bundle":
                return await self._act_bundle(step, client, turn)
        long = _long(step)
        self.main.faults.now, self._faulty_until = step.variant, turn + long - 1
        self.linear &= step.variant != "forgets"
        # What a store says that is not so, its host may give up over.
        self.main.spoilt |= step.variant in ("forgets", "unsure")
        return f"had a store that {_FAULTS[step.variant]}, for {times(long, 'request')}"

    async def _act_fork(self, step: Step, client: str) -> str:
        self.continuous = self.linear = False
        did = ""
        if self._fork is None:
            try:
                self._fork = await self._start(self._copy())
            except Error as error:
                return f"tried a second enclave on a copy of the first one's store, which was refused: {error}"
            did = "started a second enclave of the same program, on a copy of the first one's store, and "
        if step.variant == "swap":
            self._swapped = not self._swapped
            return f"{did}led everybody to the other enclave of the two"
        self._swapped = False
        if step.variant == "this":
            self._forked.add(client)
            return f"{did}led {client} to the second enclave"
        self._unforked = client
        self._forked.discard(client)
        return f"{did}led everybody but {client} to the second enclave"

    async def _act_roll_back(self, step: Step) -> str:
        self.linear = False
        how = "asked the enclave to end" if step.variant == "stop" else "killed the enclave"
        kept = 0 if step.variant == "empty" else len(self._copies)
        back = 1 + step.number % kept if kept else 0
        place = self._copies[-back] if back else self._hosting.new_place()
        besides = await self.restart(place, politely=step.variant == "stop")
        if not back:
            return f"{how}, and started it again on an empty store"
        # What is written on from here is no copy of that time any more.
        del self._copies[-back:]
        return f"{how}, and started it again on its store as it was {times(back, 'mail')} before{besides}"

    async def _act_bundle(self, step: Step, client: str, turn: int) -> str:
        self.continuous = False
        if self._other is None:
            try:
                self._other = await self._start(self._copy(), other=True)
            except Error as error:
                return f"tried another program of the same author on a copy of the store, which refused: {error}"
        long = _long(step)
        self._other_until, self._other_for = turn + long - 1, client if step.variant == "this" else ""
        return f"led {self._other_for or 'everybody'} to another program of the author, for {times(long, 'request')}"


def _long(step: Step) -> int:
    return 1 + step.number % _LONGEST


def times(count: int, what: str) -> str:
    """So many of them, in words."""
    return f"one {what}" if count == 1 else f"{count} {what}s"
