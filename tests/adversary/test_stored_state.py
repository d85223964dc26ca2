"""T-48, T-54: a store that returns anything at all, a host that repeats or drops commits, and who would fill the state.

What is stored is the host's. Whatever it makes of it, an enclave begins with one whole state of its own log, or does
not begin.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from tests._log import Boot
from tests._stored import OPTIONS, change, contents, new_log, restore, stored

from conclave import _crypto
from conclave._crypto import DecryptionKey, SigningKey
from conclave.bundle import build
from conclave.client import Client
from conclave.errors import PlatformError, StateError, WrongKeyError
from conclave.host import Host
from conclave.host.states import MemoryStates, What
from conclave.mail import Bounds, ClientSession, Conversation, RequestKind
from conclave.mail.contexts import Contexts
from conclave.persistence.log import Log
from conclave.platform import start_platform
from conclave.testing import HostServer

Given = list[tuple[int, bytes]]
Lie = Callable[[Given], Given]


def history(first: int = 0) -> tuple[Log, Given]:
    """A log of two boots with a snapshot and a tail, and what its host would give."""
    log, entries = new_log()
    entries += [log.commit(change(first + number)) for number in range(3)]
    log = restore(entries)
    entries += [log.boot_entry()] + [log.commit(change(first + number)) for number in range(3, 6)]
    chunks = list(log.snapshot())
    tail = [log.commit(change(first + number)) for number in range(6, 10)]
    return log, list(stored(tail, chunks))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


FOREIGN = history(100)[1]
# What the host gives in place of [manifest, chunk, record × 4, end].
LIES: dict[str, Lie] = {
    "a commit dropped": lambda g: [*g[:3], *g[4:]],
    "a commit repeated": lambda g: [*g[:3], *g[2:]],
    "commits swapped": lambda g: [*g[:2], g[3], g[2], *g[4:]],
    "a bit of the first": lambda g: [(g[0][0], flipped(g[0][1], 40)), *g[1:]],
    "a bit of a record": lambda g: [*g[:3], (g[3][0], flipped(g[3][1], -1)), *g[4:]],
    "half a record": lambda g: [*g[:3], (g[3][0], g[3][1][: len(g[3][1]) // 2]), *g[4:]],
    "more than the record": lambda g: [*g[:3], (g[3][0], g[3][1] + b"\0"), *g[4:]],
    "no chunks": lambda g: [g[0], *g[2:]],
    "a chunk twice": lambda g: [*g[:2], *g[1:]],
    "no manifest": lambda g: g[1:],
    "no snapshot": lambda g: g[2:],
    "another log's record": lambda g: [*g[:3], FOREIGN[3], *g[4:]],
    "another log's snapshot": lambda g: [*FOREIGN[:2], *g[2:]],
    "another log's chunk": lambda g: [g[0], FOREIGN[1], *g[2:]],
    "another log's tail": lambda g: [*g[:2], *FOREIGN[2:]],
    "a record in a chunk's place": lambda g: [g[0], (What.CHUNK, g[2][1]), *g[2:]],
    "a manifest in a record's place": lambda g: [*g[:2], (What.ITEM, g[0][1]), *g[2:]],
    "something after the end": lambda g: [*g[:-1], (What.END, b"more")],
    "no end": lambda g: g[:-1],
    "unreadable": lambda g: [*g[:3], (What.UNREADABLE, b"")],
    "noise": lambda g: [(What.ITEM, random.Random(1).randbytes(500)), g[-1]],
    "nothing where a record is": lambda g: [*g[:3], (What.ITEM, b""), *g[3:]],
    "another kind": lambda g: [*g[:2], (9, g[2][1]), *g[3:]],
}


@pytest.mark.spec("T-48", "STATE-30", "STATE-34", "STATE-35", "STATE-36")
@pytest.mark.parametrize("lie", LIES)
def test_what_the_host_makes_of_it_is_refused(lie: str) -> None:
    given = history()[1]
    with pytest.raises(StateError):
        Log.restore(LIES[lie](given), **OPTIONS)


@pytest.mark.spec("T-48")
def test_what_is_left_to_a_host_is_an_older_state_that_is_whole() -> None:
    """Any of it cut, repeated or mixed at random: the state of one version, or none."""
    log, entries = new_log()
    held = [contents(log)]
    for number in range(8):
        entries.append(log.commit(change(number)))
        held.append(contents(log))
    randomly = random.Random(46)
    taken = 0
    for _ in range(300):
        mixed = entries[: randomly.randrange(len(entries) + 1)]
        for _ in range(randomly.randrange(3)):
            mixed.insert(randomly.randrange(len(mixed) + 1), randomly.choice([*entries, FOREIGN[2][1]]))
        if not mixed:
            # Nothing is a new log: clients who know one see that (T-53).
            continue
        try:
            found = restore(mixed)
        except StateError:
            continue
        taken += 1
        assert contents(found) == held[found.version]
    assert taken


@pytest.mark.spec("T-48", "STATE-31")
def test_state_of_another_machine_or_program() -> None:
    given = history()[1]
    for options in ({"bundle_id": bytes(32), "key": lambda _b, _l: OPTIONS["key"](b"other", 0)}, {"level": 0}):
        with pytest.raises(WrongKeyError):
            Log.restore(given, **(OPTIONS | options))


KEEPER = """
from conclave.enclave import Enclave, rpc


class Keeper(Enclave):
    persistence = "code"

    def on_start(self) -> None:
        print("begins with", len(self.map))

    @rpc
    def keep(self, name: str) -> int:
        self.map[name] = b"kept"
        return len(self.map)
"""


class Liar(MemoryStates):
    """Keeps everything, and gives what its owner likes."""

    lie: Lie | None = None

    async def read(self) -> AsyncGenerator[tuple[What, bytes], None]:
        pieces: Given = [piece async for piece in super().read()]
        for what, data in self.lie(pieces) if self.lie else pieces:
            yield What(what), data


def tampered(pieces: Given) -> Given:
    """A bit of the newest record's ciphertext; a host that checks what it can sees nothing."""
    data = pieces[-1][1]
    return [*pieces[:-1], (pieces[-1][0], flipped(data, len(data) - 40))]


@pytest.mark.spec("T-48", "STATE-30")
def test_a_real_enclave_begins_with_its_own_state_or_not_at_all(tmp_path: Path) -> None:
    """No method of the author's runs on state that was not found whole, and what is stored is left as it is."""
    (tmp_path / "keeper.py").write_text(KEEPER)
    bundle = build(tmp_path / "keeper.py", tmp_path / "keeper.enclave", mode="debug")
    line, store, other = f"C:{bundle.code.hex()} SEC:INSECURE", Liar(), Liar()
    events: list[dict[str, object]] = []

    def host(state: Liar) -> HostServer:
        launch = Host(
            lambda: start_platform(tmp_path / "machine", bundle.path),
            state=state,
            restart=False,
            on_event=events.append,
        )
        return HostServer(launch)

    for state in (store, other):
        with host(state) as server, Client(server.url, constraint=line) as client:
            assert [client.call("keep", name) for name in "abc"] == [1, 2, 3]
    foreign = [(What.ITEM, data) for _, data in sorted(other._items.items())]
    lies: dict[str, Lie] = {
        "tampered": tampered,
        "dropped": lambda pieces: [*pieces[:2], *pieces[3:]],
        "another enclave's": lambda pieces: [*pieces[:2], *foreign[2:]],
    }
    begun = [event for event in events if "begins with" in str(event.get("text"))]
    assert len(begun) == 2
    kept = dict(store._items)
    for store.lie in lies.values():
        with pytest.raises(PlatformError, match="conclave state reset STORE"), host(store):
            pass
    assert [event for event in events if "begins with" in str(event.get("text"))] == begun
    assert store._items == kept
    store.lie = None
    with host(store) as server, Client(server.url, constraint=line) as client:
        assert client.call("keep", "d") == 4


@pytest.mark.spec("T-54", "MAIL-65")
def test_invented_identities_do_not_fill_the_state() -> None:
    """What is kept of strangers is bounded in all, however many come and however often the enclave starts."""
    stored_entries: list[bytes] = []
    bounds = Bounds(channels=8, channels_per_identity=2, unacknowledged_replies=2, closed=20)
    sizes = []
    for _ in range(6):
        boot = Boot(stored_entries, bounds=bounds)
        for number in range(40):
            session = ClientSession(
                claims_digest=boot.digest,
                encryption_key=boot.key.public,
                identity=SigningKey.generate(),
                reply_key=DecryptionKey.generate().public,
                topic="t",
                log_id=boot.log_id,
                contexts=Contexts(),
                strand=int.from_bytes(_crypto.random_bytes(8), "big"),
            )
            stranger = Conversation()
            stranger.use(session, new_boot=False)
            boot.receive(stranger.add(RequestKind.MAIL, b"%d" % number).encrypted)
        sizes.append(sum(map(len, boot.memory.log.rows)) + sum(map(len, boot.memory.log.rows.values())))
    # As much after six boots and 240 strangers as a full enclave has anyway.
    assert sizes[-1] < 2 * sizes[1]
