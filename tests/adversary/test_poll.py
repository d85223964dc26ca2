"""T-13: an operator who forks a joint computation for each member, or goes back, and invents the others.

Played on the example: an opinion poll whose result must not tell the operator how anybody voted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from conclave.bundle import Bundle, build
from conclave.client import Client, Identity
from conclave.errors import CallError, RollbackError, TransportError
from conclave.host import Host
from conclave.host.states.opening import open_state
from conclave.host.stores import open_store
from conclave.platform import start_platform
from conclave.testing import HostServer

POLL = Path(__file__).parents[2] / "examples" / "poll" / "poll.py"
pytestmark = pytest.mark.spec("T-13", "BAR-3", "BAR-7")


class Operator:
    """Who has the program, the machine and the disks."""

    def __init__(self, place: Path, members: int, quorum: int) -> None:
        self.place = place
        self.members = [Identity.generate() for _ in range(members)]
        roster = json.dumps([member.public.hex() for member in self.members])
        text = POLL.read_text().replace("# roster = []", f"# roster = {roster}")
        (place / "poll.py").write_text(text.replace("# quorum = 0", f"# quorum = {quorum}"))
        self.bundle: Bundle = build(place / "poll.py", place / "poll.enclave", mode="release")

    def copy(self, disk: str, name: str) -> str:
        shutil.copytree(self.place / disk, self.place / name)
        return name

    @contextmanager
    def runs(self, disk: str) -> Iterator[HostServer]:
        (self.place / disk).mkdir(exist_ok=True)
        url = f"file:{self.place / disk}"
        blobs = open_store(url, alone=True)
        host = Host(
            lambda: start_platform(self.place / "machine", self.bundle.path),
            store=blobs,
            state=open_state(url, blobs),
            restart=False,
        )
        with HostServer(host) as server:
            yield server

    def member(self, number: int, server: HostServer, *, patience: float = 20) -> Client:
        return self.client(server, self.members[number], patience=patience, state=self.place / f"{number}.state")

    def client(
        self, server: HostServer, identity: Identity, *, patience: float = 20, state: Path | None = None
    ) -> Client:
        line = f"C:{self.bundle.code.hex()} SEC:INSECURE"
        attempts = 1 if patience < 5 else 6
        return Client(
            server.url, constraint=line, identity=identity, timeout_seconds=patience, attempts=attempts, state=state
        )


def result(client: Client) -> dict[str, int]:
    """As members ask for it: again, until it is told."""
    while (found := client.call("result")) is None:
        pass
    return dict(found)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path, 3, 3)


def test_members_who_stand_behind_one_history_get_the_result(operator: Operator) -> None:
    with operator.runs("disk") as server:
        clients = [operator.member(number, server) for number in range(3)]
        for number, client in enumerate(clients):
            client.call("vote", number != 1)
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(result, clients)) == [{"yes": 2, "no": 1}] * 3
        with pytest.raises(CallError, match="closed"):
            clients[0].call("vote", True)
        for client in clients:
            client.close()


def test_no_result_for_a_fork_of_each_voter(operator: Operator) -> None:
    """Each fork has one real voter, and whomever the operator invents."""
    with operator.runs("disk"):
        # Where all forks begin.
        pass
    for victim in range(3):
        with operator.runs(operator.copy("disk", f"fork{victim}")) as server, operator.member(victim, server) as c:
            c.call("vote", True)
            with operator.client(server, Identity.generate()) as invented:
                for call in (("vote", True), ("result",)):
                    with pytest.raises(CallError) as error:
                        invented.call(*call)
                    assert error.value.type_name == "NotInRoster"
            assert c.call("result") is None


def test_no_result_where_the_last_vote_is_forked(operator: Operator) -> None:
    """Two histories with all votes but the last, and the last in both: two results would tell it."""
    with operator.runs("disk") as server:
        for number in (0, 1):
            with operator.member(number, server) as client:
                client.call("vote", True)
    fork = operator.copy("disk", "fork")
    with operator.runs("disk") as server, operator.member(2, server, patience=2) as last:
        last.call("vote", False)
        assert last.call("result") is None
        # The others would have to come back: to this history, and no other.
        with pytest.raises(TransportError):
            last.call("result")
        with operator.member(0, server, patience=2) as client, pytest.raises(TransportError):
            # Two of three are not enough.
            result(client)
    with operator.runs(fork) as server:
        for number in (0, 2):
            with operator.member(number, server) as client, pytest.raises(RollbackError):
                client.call("result")
