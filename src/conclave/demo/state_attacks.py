"""Everything an operator can do to what is kept: forks, older disks, invented members.

Runs as the operator, who owns the disk, and as the hospitals whose records lie on it.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from conclave.bundle import Bundle
from conclave.client import Client, Identity
from conclave.demo.refusal import refusal
from conclave.demo.stage import Stage
from conclave.errors import Error, RollbackError, TransportError
from conclave.testing import HostServer


class Disks:
    """The operator's disk, and copies of it."""

    def __init__(self, name: str, stage: Stage, bundle: Bundle, constraint: str, identities: list[Identity]) -> None:
        self.stage = stage
        self.disk = stage.place / name
        self._bundle = bundle
        self._constraint = constraint
        self._identities = identities

    def copy(self, name: str) -> Path:
        """Keep the disk as it is now. No host has it."""
        return shutil.copytree(self.disk, self.stage.place / name)

    def host(self, disk: Path) -> HostServer:
        """The program, on one of the disks."""
        return HostServer(self.stage.host(self._bundle.path, disk))

    def hospital(self, number: int, server: HostServer, **options: int) -> Client:
        """A hospital, which remembers what it was told."""
        return Client(
            server.url,
            constraint=self._constraint,
            identity=self._identities[number],
            state=self.stage.place / f"{self.disk.name}{number}.state",
            **options,
        )

    def contribute(self, client: Client, number: int) -> int:
        """Mail a hospital's half."""
        with open(self.stage.place / f"hospital{number}.csv", newline="") as file:
            rows = [[float(value) for value in row] for row in csv.reader(file)]
        return int(client.call("contribute", [r[:-1] for r in rows], [int(r[-1]) for r in rows]))


def attack_state(stage: Stage, bundle: Bundle, constraint: str, identities: list[Identity]) -> None:
    """One disk, and an operator who keeps copies of it."""
    disks = Disks("disk", stage, bundle, constraint, identities)
    others = Disks("otherdisk", stage, bundle, constraint, identities)

    def invent() -> str:
        with disks.host(disks.disk) as server, Client(server.url, constraint=constraint) as invented:
            return refusal(Error, lambda: disks.contribute(invented, 1), "NotInRoster")

    def separate() -> str:
        for number in (0, 1):
            with disks.host(disks.disk) as server, disks.hospital(number, server) as hospital:
                disks.contribute(hospital, number)
        fork = disks.copy("fork")
        with (
            disks.host(disks.disk) as first,
            disks.host(fork) as second,
            disks.hospital(0, first, timeout_seconds=3, attempts=1) as here,
            disks.hospital(1, second, timeout_seconds=3, attempts=1) as there,
        ):
            for hospital in (here, there):
                # Both have all records, and close them: each in a history of its own.
                hospital.call("result")
            refusal(TransportError, lambda: there.call("result"), "no reply")
            return refusal(TransportError, lambda: here.call("result"), "no reply")

    def cross() -> str:
        with disks.host(stage.place / "fork") as second, disks.hospital(0, second) as hospital:
            return refusal(RollbackError, lambda: hospital.call("result"), "")

    def yesterday() -> str:
        with others.host(others.disk) as server, others.hospital(0, server) as hospital:
            others.contribute(hospital, 0)
        old = others.copy("yesterday")
        with others.host(others.disk) as server, others.hospital(0, server) as hospital:
            others.contribute(hospital, 0)
        with others.host(old) as server, others.hospital(0, server) as hospital:
            return refusal(RollbackError, lambda: others.contribute(hospital, 0), "")

    stage.expect("invent the other hospital", "enclave", invent)
    stage.expect(
        "give each hospital a copy of the state of its own", "enclave, which keeps the model to itself", separate
    )
    stage.expect("send a hospital to the other copy", "enclave, which stops, with a signed statement", cross)
    stage.expect("put back yesterday's disk", "enclave, which stops, with a signed statement", yesterday)
