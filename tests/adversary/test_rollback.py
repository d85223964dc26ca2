"""T-46, T-47, T-49, T-53: an operator who owns the disk of an enclave with state, and its clients.

Real enclaves under real hosts. The operator copies disks, brings back old ones, runs two enclaves beside each other,
says of records that they are kept, and takes the state away.
"""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conclave.bundle import Bundle, build
from conclave.client import Client, Identity
from conclave.errors import LogReplaced, RollbackError, TransportError
from conclave.host import Host
from conclave.host.states import Item, MemoryStates, StateStore
from conclave.host.states.opening import open_state
from conclave.host.stores import open_store
from conclave.platform import start_platform
from conclave.testing import HostServer

BOOK = '''
from conclave.enclave import Enclave, rpc


class Book(Enclave):
    persistence = "code"

    @rpc
    def add(self, amount: int) -> int:
        counts = self.map.of(int)
        counts["total"] = counts.get("total", 0) + amount
        return counts["total"]

    @rpc
    def note(self, text: str) -> None:
        """Written by clients who never read."""
        self.map[f"note/{len(self.map)}"] = text.encode()

    @rpc
    def tell(self, text: str) -> None:
        self.map["told"] = text.encode()
        self.post(self.sender, text.encode())

    @rpc
    def look(self) -> int:
        return len(self.map)
'''


class Operator:
    """Who has the program, the machine and the disks."""

    def __init__(self, place: Path, bundle: Bundle) -> None:
        self.place = place
        self.bundle = bundle
        self.events: list[dict[str, Any]] = []
        self.disk = place / "disk"
        self.disk.mkdir()

    def copy(self, name: str) -> Path:
        """Keep the disk as it is now."""
        return Path(shutil.copytree(self.disk, self.place / name))

    @contextmanager
    def runs(
        self, disk: Path | None = None, *, state: StateStore | None = None, hostile: bool = False
    ) -> Iterator[Any]:
        """The enclave on a disk, or on a store of the operator's own."""
        url = f"file:{disk or self.disk}"
        blobs = open_store(url, alone=True) if state is None else None
        host = Host(
            lambda: start_platform(self.place / "machine", self.bundle.path),
            store=blobs,
            state=state or open_state(url, blobs),
            restart=False,
            on_event=self.events.append,
        )
        with HostServer(host, hostile=hostile) as server:
            yield server

    def ready(self, server: HostServer) -> tuple[int, dict[str, Any]]:
        """What `/readyz` says."""
        try:
            with urllib.request.urlopen(f"{server.url}/readyz", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


class Person:
    """A client who comes and goes, with an identity and saved state."""

    def __init__(self, operator: Operator, name: str) -> None:
        self.identity = Identity.generate()
        self.state = operator.place / f"{name}.state"
        self.line = f"C:{operator.bundle.code.hex()} SEC:INSECURE"

    def at(self, server: HostServer, **options: Any) -> Client:
        return Client(server.url, constraint=self.line, identity=self.identity, state=self.state, **options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("book")
    (place / "book.py").write_text(BOOK)
    return build(place / "book.py", place / "book.enclave", mode="release")


@pytest.fixture
def operator(bundle: Bundle, tmp_path: Path) -> Operator:
    return Operator(tmp_path, bundle)


@pytest.fixture
def ada(operator: Operator) -> Person:
    return Person(operator, "ada")


@pytest.fixture
def bob(operator: Operator) -> Person:
    return Person(operator, "bob")


@pytest.mark.spec("T-46", "DET-11", "DET-13", "MAIL-68", "CHAN-22")
def test_yesterdays_disk_stops_the_enclave_for_everybody_and_the_operator_is_told(
    operator: Operator, ada: Person, bob: Person
) -> None:
    with operator.runs() as server, ada.at(server) as a, bob.at(server) as b:
        assert a.call("add", 1) == 1
        assert b.call("add", 1) == 2
        yesterday = operator.copy("yesterday")
        assert a.call("add", 1) == 3
    with operator.runs(yesterday) as server:
        with ada.at(server) as a:
            with pytest.raises(RollbackError) as error:
                a.call("add", 1)
            refused = error.value.evidence[0]
            assert refused.statement.refused_boot not in (None, refused.statement.boot)
            assert refused.instance_info
            # The client keeps away from that boot, by itself.
            with pytest.raises(RollbackError):
                a.call("look")
        # Bob misses nothing of his own, and a stranger knows nothing at all: nobody is served any more.
        with bob.at(server) as b, pytest.raises(RollbackError):
            b.call("look")
        with Person(operator, "stranger").at(server) as stranger, pytest.raises(RollbackError):
            stranger.call("look")
        assert operator.ready(server) == (503, {"status": "not ready", "reasons": ["halted"]})
    (told,) = [event for event in operator.events if event["event"] == "halted"]
    assert "restored from a backup" in told["text"]
    # With the disk as it was, everybody goes on.
    with operator.runs() as server, ada.at(server) as a, bob.at(server) as b:
        assert b.call("add", 1) == 4
        assert a.call("add", 1) == 5


@pytest.mark.spec("T-46", "DET-1")
def test_who_only_writes_is_heard(operator: Operator, ada: Person, bob: Person) -> None:
    """Her answers hold nothing, and the operator even keeps the last one back: what she shows is enough."""
    with operator.runs() as server, ada.at(server) as a:
        yesterday = operator.copy("yesterday")
        a.call("note", "kept?")
    with operator.runs(yesterday, hostile=True) as server, bob.at(server) as b:
        # Whoever was told of nothing that is missing cannot know.
        assert b.call("look") == 0
        server.operator.on_answer = lambda answer: b""
        with ada.at(server, attempts=1, timeout_seconds=2) as a, pytest.raises((TransportError, RollbackError)):
            a.call("note", "again")
        server.operator.behave()
        with pytest.raises(RollbackError):
            b.call("look")
    assert [event["event"] for event in operator.events].count("halted") == 1


@pytest.mark.spec("T-46", "MAIL-70")
def test_posted_mail_tells_of_what_is_rolled_back(operator: Operator, ada: Person) -> None:
    """The answer to her call was kept back. What was posted to her says the same."""
    with operator.runs() as server, ada.at(server) as a:
        a.call("add", 1)
    yesterday = operator.copy("yesterday")
    with operator.runs(hostile=True) as server:
        server.operator.on_answer = lambda answer: b""
        with ada.at(server, attempts=1, timeout_seconds=2) as a:
            with pytest.raises(TransportError):
                a.call("tell", "news")
            server.operator.behave()
            assert [mail.body for mail in a.poll(wait_seconds=5)] == [b"news"]
    with operator.runs(yesterday) as server, ada.at(server) as a, pytest.raises(RollbackError):
        a.call("look")


@pytest.mark.spec("T-47", "DET-11")
def test_two_enclaves_from_one_disk_are_found_by_the_first_who_changes_sides(
    operator: Operator, ada: Person, bob: Person
) -> None:
    with operator.runs() as server, ada.at(server) as a, bob.at(server) as b:
        a.call("add", 1)
        b.call("add", 1)
    fork = operator.copy("fork")
    with operator.runs() as one, operator.runs(fork) as other:
        with ada.at(one) as a, bob.at(other) as b:
            # Kept apart, each in a history of its own: neither can know (DET-16). Both say where they are.
            assert a.call("add", 10) == b.call("add", 20) - 10 == 12
            here, there = a.statement, b.statement
            assert here is not None
            assert there is not None
            assert here.statement.boot != there.statement.boot
        with bob.at(one) as b, pytest.raises(RollbackError):
            b.call("look")
        assert operator.ready(one)[0] == 503
        # The other one is stopped when Ada goes there; until then it serves its own.
        assert operator.ready(other)[0] == 200
        with ada.at(other) as a, pytest.raises(RollbackError):
            a.call("look")
        assert operator.ready(other)[0] == 503


@pytest.mark.spec("T-47", "DET-16")
def test_on_first_contact_there_is_nothing_to_compare_with(operator: Operator, ada: Person) -> None:
    """Not detected, as the threat model says (T-98): who comes for the first time takes what there is."""
    with operator.runs() as server, ada.at(server) as a:
        yesterday = operator.copy("yesterday")
        a.call("add", 1)
    with operator.runs(yesterday) as server, Person(operator, "new").at(server) as stranger:
        assert stranger.call("add", 5) == 5
        assert operator.ready(server)[0] == 200


class Careless(MemoryStates):
    """Says of every record that it is kept, and keeps those before `limit` only."""

    limit = 1 << 62

    async def append(self, items: Sequence[Item]) -> None:
        kept = [item for item in items if item[0] < self.limit]
        if kept:
            await super().append(kept)


@pytest.mark.spec("T-49", "DET-10", "CHAN-19")
def test_answers_that_left_without_their_records(operator: Operator, ada: Person) -> None:
    """The enclave believes the host that all is durable, and lets nothing depend on it."""
    store = Careless()
    with operator.runs(state=store) as server, ada.at(server) as a:
        assert a.call("add", 1) == 1
        store.limit = store._last + 1
        assert a.call("add", 1) == 2
        assert a.call("add", 1) == 3
    with operator.runs(state=store) as server, ada.at(server) as a, pytest.raises(RollbackError):
        a.call("add", 1)


@pytest.mark.spec("T-53", "MAIL-69")
def test_another_log_gets_nothing_without_consent(operator: Operator, ada: Person) -> None:
    with operator.runs() as server, ada.at(server) as a:
        a.call("add", 7)
        old = a.verify().claims.log_id
    empty = operator.place / "empty"
    empty.mkdir()
    with operator.runs(empty, hostile=True) as server, ada.at(server) as a:
        with pytest.raises(LogReplaced) as error:
            a.call("add", 1)
        assert error.value.old == old
        assert error.value.new != old
        assert server.operator.requests == []
        with pytest.raises(LogReplaced):
            a.call("look")
        a.accept_log(error.value.new)
        assert a.call("add", 1) == 1
        replaced = error.value.new
    # From now on the first one is the stranger.
    with operator.runs() as server, ada.at(server) as a:
        with pytest.raises(LogReplaced) as error:
            a.call("look")
        assert (error.value.old, error.value.new) == (replaced, old)
