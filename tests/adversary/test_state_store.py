"""A store that returns anything at all: a start is refused in words, before any of it reaches the author's code.

The enclaves are real processes (see `tests/_kills`); some are in their sandbox. What a store gave is compared with
what the log itself says of it, so that no refusal is for another reason than it should be.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests._kills.bare import Piece, start
from tests._kills.boots import RECORD
from tests._kills.clients import Adder
from tests._kills.nursery import Nursery
from tests._kills.record import Findings
from tests._kills.world import Place, world

from conclave import _crypto
from conclave._crypto import Secret
from conclave._stateheader import parse_commit
from conclave.bundle import Bundle, parse_manifest
from conclave.client import Client
from conclave.enclave.drivers import Mounted
from conclave.errors import PlatformError, StateError, WrongKeyError
from conclave.host import Host
from conclave.host.states import MemoryStates, What
from conclave.host.states.files import FileStates
from conclave.persistence.log import Log
from conclave.platform import start_platform
from conclave.platform.machine import Machine
from conclave.testing import HostServer

pytestmark = pytest.mark.slow
END: Piece = (What.END, b"")


@dataclass(frozen=True)
class Stored:
    """A log as a host stored it.

    Attributes:
        pieces: what it gives to a boot, without the end.
        directory: where it lies.
        place: of the bundle and the machine that it belongs to.
    """

    pieces: list[Piece]
    directory: Path
    place: Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def stored(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A snapshot of several chunks, and some records after it of two boots."""
    return _stored(place, tmp_path_factory.mktemp("stored") / "world", seed=1)


@pytest.fixture(scope="module")
def other(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Another log of the same program on the same machine."""
    return _stored(place, tmp_path_factory.mktemp("other") / "world", seed=2)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A log of another machine."""
    return _stored(Place(tmp_path_factory.mktemp("machine")), tmp_path_factory.mktemp("strange") / "world", seed=3)


def _stored(place: Place, path: Path, *, seed: int) -> Stored:
    async def main() -> list[Piece]:
        async with world(place, path, seed=seed) as here:
            line = await here.host()
            adder, number = Adder(here, line, "adder", filler=600), 0
            await adder.ready()
            # Until the beginning of the log is in a snapshot alone.
            while not number or list(line.directory.glob("state/log-*0")):
                adder.check(number, await adder.one(number))
                number += 1
            here.nursery.kill(line.name, "enclave")
            for _ in range(3):
                adder.check(number, await adder.one(number))
                number += 1
            await line.stop()
            return await _read(line.directory / "state")

    return Stored(asyncio.run(main()), path / "one" / "state", place)


async def _read(directory: Path) -> list[Piece]:
    store = FileStates(directory)
    pieces: list[Piece] = []
    async for what, data in store.read():
        pieces.append((what, parse_commit(data).record if what == What.ITEM else data))
    await store.close()
    return pieces


@pytest.fixture
def started(place: Place, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts enclaves of the place, each with something else for its state."""
    path = place.new(tmp_path / "world")
    with Nursery(path) as nursery:
        yield lambda pieces: start(nursery, path, pieces)
    assert not nursery.errors


def said(place: Place, pieces: list[Piece]) -> StateError | None:
    """What the log says of it, in this process."""
    data = (place.path / "bundle" / "manifest").read_bytes()
    manifest = parse_manifest(data)
    mounted = Mounted(_crypto.sha256(data), bytes(32), manifest.product_id, manifest.revocation_level)
    machine = Machine.open(place.path / "machine")

    def key(bundle_id: bytes, level: int) -> Secret:
        if (bundle_id, level) != (mounted.bundle_id, mounted.revocation_level):
            raise WrongKeyError("the state is of another program, and `persistence` binds it to exact code")
        sealing = machine.sealing_key(
            "code",
            code=mounted.code,
            signer=mounted.signer,
            product_id=mounted.product_id,
            revocation_level=level,
            context=b"state/1",
        )
        return Secret(sealing)

    try:
        Log.restore(pieces, key=key, bundle_id=mounted.bundle_id, level=mounted.revocation_level)
    except StateError as error:
        return error
    return None


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def cases(stored: Stored, other: Stored, chance: random.Random) -> Iterator[tuple[str, list[Piece]]]:
    """Everything that can be done to each position, by name."""
    pieces = stored.pieces
    count = len(pieces)
    for at, (what, data) in enumerate(pieces):
        name = f"{What(what).name.lower()} {at}"
        before, after = pieces[:at], pieces[at + 1 :]
        if after or what != What.ITEM:
            # Without its last records it is an older state: that is for clients to see.
            yield f"{name} missing", [*before, *after]
        yield f"{name} twice", [*before, (what, data), (what, data), *after]
        swapped = [*before, *after[:1], (what, data), *after[1:]] if after else [*before[:-1], (what, data), before[-1]]
        yield f"{name} moved", swapped
        yield f"{name} cut", [*before, (what, data[: chance.randrange(len(data))]), *after]
        yield f"{name} empty", [*before, (what, b""), *after]
        yield f"{name} longer", [*before, (what, data + b"\0"), *after]
        for place in (0, 4, 8, 20, 27, 50, len(data) - 1, chance.randrange(len(data))):
            yield f"{name} changed at {place}", [*before, (what, changed(data, place % len(data))), *after]
        yield f"{name} of other bytes", [*before, (what, chance.randbytes(chance.randrange(1, 3000))), *after]
        if at < len(other.pieces):
            yield f"{name} of another log", [*before, (what, other.pieces[at][1]), *after]
        for number in range(5):
            if number != what:
                yield f"{name} as {number}", [*before, (number, data), *after]
        yield f"{name} with another's place", [*before, (what, pieces[(at + 1) % count][1]), *after]
        yield f"{name} unreadable", [*before, (What.UNREADABLE, b"disk error"), *after]
        yield f"{name} of an unknown kind", [*before, (9, data), *after]
        yield f"{name} with an end before it", [*before, (What.END, data), *after]


@pytest.mark.spec("STATE-30", "STATE-31", "STATE-32", "STATE-33", "STATE-34", "STATE-35")
def test_each_position_of_a_stored_log(
    stored: Stored, other: Stored, place: Place, started: Callable[..., Any]
) -> None:
    assert [what for what, _ in stored.pieces].count(What.CHUNK) > 1
    assert [what for what, _ in stored.pieces].count(What.ITEM) > 3
    good = started([*stored.pieces, END])
    assert good.began
    assert not good.refused
    kinds, found = set(), 0
    for name, pieces in cases(stored, other, random.Random(1)):
        given = [*pieces, END]
        expected = said(place, given)
        assert expected is not None, name
        result = started(given)
        # Of what cannot be read, enclave and log speak in words of their own.
        assert result.refused.partition(";")[0] == str(expected).partition(";")[0], name
        assert (result.began, result.commits) == (False, []), name
        kinds.add(type(expected))
        found += 1
    assert kinds == {StateError, WrongKeyError}
    assert found > 200
    # None of it left anything behind.
    assert started([*stored.pieces, END]).began


def test_other_states_whole(
    stored: Stored, other: Stored, strange: Stored, place: Place, started: Callable[..., Any]
) -> None:
    def refused(pieces: list[Piece], words: str, kind: type[StateError] = StateError) -> None:
        expected = said(place, pieces)
        assert type(expected) is kind
        result = started(pieces)
        assert result.refused.partition(";")[0] == str(expected).partition(";")[0]
        assert words in result.refused
        assert not result.began

    items = [piece for piece in stored.pieces if piece[0] == What.ITEM]
    snapshot = [piece for piece in stored.pieces if piece[0] != What.ITEM]
    others = [piece for piece in other.pieces if piece[0] == What.ITEM]
    refused([*strange.pieces, END], "under a key that this enclave does not have", WrongKeyError)
    refused([*items, END], "the record of version 0 was expected")
    follows = others[0][1][8:16] == items[0][1][8:16]
    refused([*snapshot, *others, END], "not authentic here" if follows else "was expected")
    refused([*snapshot, *snapshot, *items, END], "a record or the end was expected")
    refused([*reversed(stored.pieces), END], "the record of version 0 was expected")
    refused([(What.END, b"x")], "the end that the host gave holds 1 bytes")
    refused([(What.UNREADABLE, b"")], "its store cannot be read")
    # Another log of this program is no lie that a program could see through: whose it is, clients know.
    assert started([*other.pieces, END]).began
    assert started([END]).began
    assert started([*snapshot, END]).began


def test_a_host_that_stops_in_the_middle(stored: Stored, started: Callable[..., Any]) -> None:
    for count in (0, 1, len(stored.pieces) // 2, len(stored.pieces)):
        result = started(stored.pieces[:count])
        assert "the host closed the channel before it had given the state" in result.refused
        assert not result.began


def test_more_after_the_end(stored: Stored, other: Stored, started: Callable[..., Any]) -> None:
    """It is of no boot any more, and changes nothing."""
    result = started([*stored.pieces, END, *other.pieces, END])
    assert result.began
    last = int.from_bytes(stored.pieces[-1][1][8:16], "big")
    assert int.from_bytes(result.commits[0][8:16], "big") == last + 1


# What lies on the disk ------------------------------------------------------------------


def contents(directory: Path) -> dict[str, bytes]:
    """All files; room that was allocated beforehand is no content."""
    return {
        str(path.relative_to(directory)): path.read_bytes().rstrip(b"\0")
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def _flip(path: Path, at: int) -> None:
    path.write_bytes(changed(path.read_bytes(), at))


def _first(directory: Path, name: str) -> Path:
    return sorted(directory.glob(name))[0]


def _without(name: str) -> Callable[[Path, Stored], None]:
    def change(directory: Path, other: Stored) -> None:
        for path in sorted(directory.glob(name)):
            path.unlink()

    return change


def _of_other(name: str) -> Callable[[Path, Stored], None]:
    def change(directory: Path, other: Stored) -> None:
        for path in directory.glob(name):
            path.unlink()
        for path in other.directory.glob(name):
            shutil.copy(path, directory)

    return change


def _cut(directory: Path, _: Stored) -> None:
    path = _first(directory, "snapshot-*")
    path.write_bytes(path.read_bytes()[:-7])


def _emptied(directory: Path, _: Stored) -> None:
    _first(directory, "snapshot-*").write_bytes(b"")


def _of_other_bytes(directory: Path, _: Stored) -> None:
    for path in (*directory.glob("log-*"), *directory.glob("snapshot-*")):
        path.write_bytes(random.Random(1).randbytes(5000))


DAMAGES: dict[str, Callable[[Path, Stored], None]] = {
    "the snapshot's chunk changed": lambda directory, _: _flip(_first(directory, "snapshot-*"), 200),
    "the snapshot's end cut": _cut,
    "the snapshot empty": _emptied,
    "the snapshot gone": _without("snapshot-*"),
    "the snapshot of another log": _of_other("snapshot-*"),
    "the log of another log": _of_other("log-*"),
    "the log gone": _without("log-*"),
    "a record in the middle changed": lambda directory, _: _flip(sorted(directory.glob("log-*"))[-1], 100),
    "all of it other bytes": _of_other_bytes,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_lies_on_the_disk(damage: str, stored: Stored, other: Stored, place: Place, tmp_path: Path) -> None:
    """The host says what it is, no boot begins, and the files are as they were."""
    path = place.new(tmp_path / "world")
    directory = path / "one" / "state"
    shutil.copytree(stored.directory, directory)
    DAMAGES[damage](directory, other)
    before = contents(directory)
    with Nursery(path) as nursery:
        events = _started(nursery, path)
    assert not nursery.errors
    (refused,) = [event for event in events if event["event"] == "refused"]
    assert refused["code"] in ("platform", "store-damaged")
    words = ("the enclave refused to start: ", "the log ", "the snapshot ", "the state store ")
    assert refused["text"].startswith(words)
    assert not (path / RECORD).exists() or not Findings(path / RECORD).started
    assert contents(directory) == before


def _started(nursery: Nursery, path: Path) -> list[dict[str, Any]]:
    """What a host said that was started once, and ended."""
    ours, theirs = socket.socketpair()
    with ours:
        nursery.fork("one", {"name": "one"}, theirs)
        theirs.close()
        ours.settimeout(60)
        assert ours.recv(1) == b""
    return [msgspec.json.decode(line) for line in (path / "one.events").read_bytes().splitlines()]


# In the sandbox -------------------------------------------------------------------------

SOURCE = """
from conclave.enclave import Enclave, rpc


class Counter(Enclave):
    persistence = "code"

    def on_start(self) -> None:
        print("the author's code began", flush=True)

    @rpc
    def add(self) -> int:
        counts = self.map.of(int)
        counts["n"] = counts.get("n", 0) + 1
        return counts["n"]
"""


@pytest.fixture(scope="module")
def counter(author: Callable[..., Bundle]) -> Bundle:
    return author("counter", SOURCE, mode="debug")


class Given(MemoryStates):
    """Gives what it has as `change` has it."""

    change: Callable[[list[Piece]], list[Piece]] = staticmethod(lambda pieces: pieces)

    async def read(self) -> AsyncGenerator[tuple[What, bytes], None]:
        for what, data in self.change([piece async for piece in super().read()]):
            yield What(what), data


LIES: dict[str, tuple[Callable[[list[Piece]], list[Piece]], str]] = {
    "a record changed": (lambda p: [*p[:2], (p[2][0], changed(p[2][1], -1)), *p[3:]], "is not authentic here"),
    "a record missing": (lambda p: [*p[:2], *p[3:]], "was expected, and the host gave version 3"),
    "another's key": (lambda p: [(p[0][0], changed(p[0][1], 150)), *p[1:]], "a key that this enclave does not have"),
}


def test_in_the_sandbox(counter: Bundle, machine: Path, only: Callable[[Bundle], str]) -> None:
    store, events = Given(), list[dict[str, Any]]()

    def host() -> Host:
        return Host(lambda: start_platform(machine, counter.path), state=store, on_event=events.append, restart=False)

    def began() -> bool:
        return any("the author's code began" in str(event.get("text")) for event in events)

    with HostServer(host()) as server, Client(server.url, constraint=only(counter)) as client:
        assert [client.call("add") for _ in range(3)] == [1, 2, 3]
    assert began()
    events.clear()
    before = dict(store._items)
    for change, words in LIES.values():
        store.change = change
        with pytest.raises(PlatformError, match="the enclave refused to start: ") as caught, HostServer(host()):
            pass
        assert words in str(caught.value)
    assert not began()
    assert store._items == before
    store.change = lambda pieces: pieces
    with HostServer(host()) as server, Client(server.url, constraint=only(counter)) as client:
        assert client.call("add") == 4
    assert began()
