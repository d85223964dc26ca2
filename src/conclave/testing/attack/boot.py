"""One host with one enclave, as its operator starts, kills and robs it.

For tests. Real processes: the enclave runs under the simulated TEE.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from conclave._framing import HEADER, Kind, pack
from conclave.bundle import Bundle
from conclave.host import Host, open_store
from conclave.host.states.opening import open_state
from conclave.platform import start_platform
from conclave.testing.attack.store import Faults, FaultyStates, FaultyStore

_LINES: Final = 20
_PATIENCE_SECONDS: Final = 5.0
# How long an early mail waits for those before it: an operator who withholds them does not let it wait for long.
_ORDER_SECONDS: Final = 0.2
Scope = dict[str, Any]
Message = dict[str, Any]


class Boot:
    """A host, its enclave from one start to its end, and the store that both were given.

    Attributes:
        output: the last lines that a program in debug mode printed.
        faults: what is wrong with its store.
        spoilt: the operator did something over which the enclave may end, or never began.
        ended: the operator ended it.
    """

    def __init__(self, program: Bundle, machine: Path, place: Path) -> None:
        """Nothing runs before `start`.

        Args:
            place: directory of the store, made if there is none.
        """
        self.program = program
        self.place = place
        self.output: deque[str] = deque(maxlen=_LINES)
        self.spoilt = self.ended = False
        self._machine = machine
        self._processes: list[Any] = []
        self.faults = Faults()
        self.host: Host | None = None

    async def start(self) -> Boot:
        """Start it, and wait until it serves. Raises as `Host.start`."""
        url = f"file:{self.place}"
        blobs = open_store(url, alone=True)
        host = Host(
            self._launch,
            restart=False,
            on_event=self._event,
            patience_seconds=_ORDER_SECONDS,
            store=FaultyStore(blobs, self.faults),
            state=FaultyStates(open_state(url, blobs), self.faults),
        )
        await host.start()
        self.host = host
        return self

    def _launch(self) -> Any:
        launched = start_platform(self._machine, self.program.path)
        self._processes.append(launched.process)
        return launched

    def _event(self, event: dict[str, Any]) -> None:
        if event.get("event") == "output":
            self.output += str(event.get("text")).splitlines()

    @property
    def info(self) -> bytes | None:
        """Instance info; None: the enclave is not there."""
        return None if self.host is None else self.host.info

    @property
    def runs(self) -> bool:
        """Whether the enclave is there."""
        return self.info is not None

    @property
    def failed(self) -> bool:
        """Whether the enclave ended though nobody ended it."""
        return not (self.runs or self.ended or self.spoilt)

    async def stop(self) -> None:
        """Ask both to end, as a good operator does."""
        self.ended = True
        host, self.host = self.host, None
        if host is not None:
            await host.stop()

    async def kill(self) -> None:
        """End both at once, whatever they are doing."""
        self.ended = True
        for process in self._processes:
            process.kill()
        host = self.host
        if host is not None:
            # Then there is nobody who could be asked to end.
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    while host.info is not None:
                        await asyncio.sleep(0.005)
        await self.stop()

    def copy_store(self, target: Path) -> None:
        """Copy what is in the store, whoever is writing to it."""
        shutil.copytree(self.place, target, dirs_exist_ok=True, ignore_dangling_symlinks=True)

    # What the enclave is sent -----------------------------------------------------------

    def garble(self, variant: str, data: bytes) -> None:
        """Write to the channel of the enclave what no host writes."""
        link = None if self.host is None else self.host._link
        if link is None or link._transport is None:
            return
        self.spoilt = True
        if variant == "frame":
            # An unknown kind, in a head that is none.
            link._transport.write(HEADER.pack(len(data), 0xFE, b"\1\2\3", 1) + data)
        elif variant == "half-frame":
            link._transport.write(pack(Kind.MAIL, link.next_request, data)[: HEADER.size + len(data) // 2])
        else:
            # Two requests of one number, which no host may send.
            link._transport.write(pack(Kind.MAIL, 1, data) * 2)

    async def ask(self, scope: Scope, body: bytes) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        """Send a request to the host as the operator, and read its answer whole."""
        host, sent, given = self.host, list[Message](), False
        if host is None:
            return 503, b"", []

        async def receive() -> Message:
            nonlocal given
            if given:
                # The operator stays.
                await asyncio.Event().wait()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await host(scope, receive, send)
        whole = b"".join(m.get("body", b"") for m in sent[1:])
        return int(sent[0]["status"]), whole, list(sent[0].get("headers", ()))
