"""Laws of sealed state: whatever a host makes of what it stored, it is the state of one moment, or it is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests._stored import IDENTITY, OPTIONS, change, contents, new_log, restore, stored

from conclave.errors import RollbackError, StateError, WrongKeyError
from conclave.persistence.log import Change, Log, What
from conclave.persistence.snapshots import CHUNK_CONTENT, parse_chunk

Given = tuple[tuple[int, bytes], ...]


@functools.cache
def written() -> tuple[list[bytes], list[bytes], list[Any], list[bytes], list[bytes]]:
    """A log of three boots: its entries, what it held at each version, a snapshot at version 7 and its tail."""
    log, entries = new_log()
    held: list[Any] = [contents(log)[2:]]
    chunks: list[bytes] = []
    for number in range(12):
        if number in (4, 9):
            log = restore(entries)
            entries.append(log.boot_entry())
        else:
            entries.append(log.commit(change(number)))
        held.append(contents(log)[2:])
        if log.version == 7:
            # Two chunks and more, so that they can be swapped.
            big = Change(mail=[(b"big %d" % n, bytes(CHUNK_CONTENT)) for n in range(3)])
            entries.append(log.commit(big))
            held.append(contents(log)[2:])
            chunks = list(log.snapshot())
    version = parse_chunk(chunks[0]).version
    return entries, entries[version + 1 :], held, chunks, [data for _, data in stored([], chunks)][:-1]


def both() -> list[Given]:
    entries, tail, _, chunks, _ = written()
    return [tuple(stored(entries)), tuple(stored(tail, chunks))]


def outcome(given: Given) -> Any:
    """What a log that was restored from this holds; None if it was refused."""
    try:
        return contents(Log.restore(given, **OPTIONS))[2:]
    except StateError as error:
        if type(error) not in (StateError, WrongKeyError):
            raise
        return None


def test_unchanged_it_is_the_newest_state() -> None:
    held = written()[2]
    for whole in both():
        assert outcome(whole) == held[-1]


@pytest.mark.slow
@pytest.mark.spec("STATE-35")
@pytest.mark.parametrize("which", [0, 1])
def test_any_flipped_bit_is_refused(which: int) -> None:
    """A bit of each byte of each object's head, of its tag, and of some bytes between."""
    whole = both()[which]
    for at, (what, data) in enumerate(whole[:-1]):
        head = 48 + 162 if data[4] == 1 else 48
        places = {*range(head), *range(len(data) - 16, len(data)), *range(0, len(data), 1 + len(data) // 20)}
        for place in places:
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            assert outcome((*whole[:at], (what, bytes(changed)), *whole[at + 1 :])) is None


@pytest.mark.slow
@pytest.mark.spec("STATE-35")
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_cut_or_longer_is_refused(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(both()))
    at = data.draw(st.integers(0, len(whole) - 2))
    what, was = whole[at]
    cut = was[: data.draw(st.integers(0, len(was) - 1))]
    longer = was + data.draw(st.binary(min_size=1, max_size=40))
    for changed in (cut, longer):
        assert outcome((*whole[:at], (what, changed), *whole[at + 1 :])) is None


@functools.cache
def pieces() -> tuple[tuple[int, bytes], ...]:
    """All that a host may have kept: of this log, of a fork of it, of another log of the same enclave."""
    entries, _, _, chunks, _ = written()
    fork = restore(entries[:6])
    forked = [fork.boot_entry(), *(fork.commit(change(n)) for n in range(3))]
    other, others = new_log()
    others += [other.commit(change(n)) for n in range(7)]
    everything = [*stored(entries, chunks), *stored(forked, fork.snapshot()), *stored(others, other.snapshot())]
    return (*everything, (What.UNREADABLE, b""), (7, b""), (What.ENTRY, b""), (What.MANIFEST, bytes(300)))


def _moments() -> list[Any]:
    """What some boot of one of these histories held at some version."""
    entries, _, held, _, _ = written()
    found = list(held)
    everything = pieces()
    starts = [n for n, (what, _) in enumerate(everything) if what == What.MANIFEST][1:3]
    for start in starts:
        # The fork's own entries go after the entries that it was restored from; the other log's alone.
        mine: list[bytes] = []
        for what, data in everything[start:]:
            if what == What.ENTRY:
                mine.append(data)
            if what == What.END:
                break
        before = entries[:6] if start == starts[0] else []
        found += [contents(restore(before + mine[:n]))[2:] for n in range(len(mine) + 1) if before or n]
    return found


moments = functools.cache(_moments)


@pytest.mark.slow
@pytest.mark.spec("STATE-30", "STATE-34", "STATE-35")
@given(st.data())
@settings(max_examples=400, deadline=None)
def test_whatever_a_host_mixes_is_one_moment_or_refused(data: st.DataObject) -> None:
    """Lose, repeat, swap, and put in pieces of anything else that was ever sealed."""
    mixed = list(data.draw(st.sampled_from(both())))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(mixed) - 1)))
        how = data.draw(st.sampled_from(["drop", "cut", "repeat", "swap", "insert", "replace"]))
        if how == "drop":
            del mixed[at : at + 1]
        elif how == "cut":
            mixed = [*mixed[:at], (What.END, b"")]
        elif how == "repeat":
            mixed[at:at] = mixed[at : at + 1]
        elif how == "swap":
            other = data.draw(st.integers(0, max(0, len(mixed) - 1)))
            if mixed:
                mixed[at], mixed[other] = mixed[other], mixed[at]
        else:
            mixed[at : at + (how == "replace")] = [data.draw(st.sampled_from(pieces()))]
    found = outcome(tuple(mixed))
    if found is not None and mixed[0] != (What.END, b""):
        assert any(found == moment for moment in moments())


@pytest.mark.spec("STATE-36")
@given(st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=400)), max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_bytes_at_all_are_refused(given: list[tuple[int, bytes]]) -> None:
    expected = given[:1] == [(What.END, b"")]
    assert (outcome(tuple(given)) is not None) == expected


class Interleaved(RuleBasedStateMachine):
    """Snapshots and commits, in any order, over several boots, against a model of two dictionaries."""

    @initialize()
    def begin(self) -> None:
        self.log, self.entries = new_log()
        self.map: dict[str, bytes] = {}
        self.rows: dict[bytes, bytes] = {}
        # Each snapshot under way: what is to come, what came, the map and rows of the time it began.
        self.running: list[tuple[Any, list[bytes], Any]] = []
        self.told: list[bytes] = []
        self.kept: list[bytes] = []
        self.tail: list[bytes] = list(self.entries)

    def commit(self, change: Change) -> None:
        entry = self.log.commit(change)
        self.entries.append(entry)
        self.tail.append(entry)
        for key, value in change.map:
            self.map.pop(key, None) if value is None else self.map.update({key: value})
        for row, value in change.mail:
            self.rows.pop(row, None) if value is None else self.rows.update({row: value})

    @rule(
        changes=st.dictionaries(
            st.sampled_from(["", "a", "b", "ab", "ü", "z" * 90, *map(str, range(40))]),
            st.none() | st.binary(max_size=9) | st.integers(1, 9).map(lambda n: bytes(n) * (CHUNK_CONTENT // 5)),
            max_size=6,
        ),
        rows=st.dictionaries(
            st.binary(max_size=1),
            st.none() | st.integers(0, 3).map(lambda n: bytes(n * CHUNK_CONTENT // 3)),
            max_size=3,
        ),
    )
    def change(self, changes: dict[str, bytes | None], rows: dict[bytes, bytes | None]) -> None:
        self.commit(Change(map=list(changes.items()), mail=list(rows.items())))

    @rule()
    def tell(self) -> None:
        self.told.append(self.log.context(IDENTITY))

    @precondition(lambda self: len(self.running) < 3)
    @rule()
    def begin_snapshot(self) -> None:
        snapshot = self.log.snapshot()
        first = next(snapshot)
        begun = (self.log.version, dict(self.map), dict(self.rows), len(self.entries))
        self.running.append((snapshot, [first], begun))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2))
    def go_on(self, which: int) -> None:
        running = self.running[which % len(self.running)]
        snapshot, chunks, begun = running
        piece = next(snapshot, None)
        if piece is not None:
            chunks.append(piece)
            return
        self.running.remove(running)
        version, items, rows, count = begun
        whole = restore([], chunks)
        assert (whole.version, whole.table.current, whole.rows) == (version, items, rows)
        # And with what came since.
        assert contents(restore(self.entries[count:], chunks)) == contents(self.log)
        self.kept, self.tail = chunks, self.entries[count:]

    @rule()
    def boot(self) -> None:
        self.running.clear()
        self.log = restore(self.tail, self.kept)
        entry = self.log.boot_entry()
        self.entries.append(entry)
        self.tail.append(entry)

    @rule(back=st.integers(1, 5))
    def forked_by_the_host(self, back: int) -> None:
        """From entries that are older: every client that was told more catches it, and no other raises an alarm."""
        known = max(1, len(self.entries) - back)
        fork = restore(self.entries[:known])
        fork.boot_entry()
        for token in self.told:
            context = self.log.check(token, IDENTITY)
            assert context is not None
            if context.version < known:
                assert fork.check(token, IDENTITY) == context
            else:
                with pytest.raises(RollbackError):
                    fork.check(token, IDENTITY)

    @invariant()
    def the_state_is_the_model(self) -> None:
        assert (self.log.table.current, self.log.rows) == (self.map, self.rows)


Interleaved.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestInterleaved = pytest.mark.slow(pytest.mark.spec("STATE-10", "STATE-12", "STATE-22")(Interleaved.TestCase))
