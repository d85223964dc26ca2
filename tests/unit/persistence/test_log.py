"""One log: what is committed is restored, and nothing else is."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from tests._stored import BUNDLE, IDENTITY, LEVEL, OPTIONS, change, contents, new_log, restore, sealing_key, stored

from conclave import _crypto
from conclave._crypto import Secret
from conclave.errors import DecryptionError, RollbackError, StateError, WrongKeyError
from conclave.persistence import log as _log
from conclave.persistence import records
from conclave.persistence.log import Change, Log, What
from conclave.persistence.records import Keys, parse_entry
from conclave.persistence.replay import make_change
from conclave.persistence.snapshots import CHUNK_CONTENT, parse_chunk
from conclave.persistence.table import Table


def sealed(count: int) -> tuple[Log, list[bytes]]:
    log, entries = new_log()
    return log, entries + [log.commit(change(number)) for number in range(count)]


@pytest.mark.spec("STATE-1")
def test_a_new_log_begins_with_its_boot_record() -> None:
    log = Log.begin(**OPTIONS)
    assert (log.version, len(log.log_id), len(log.boot), log.floor) == (-1, 32, 16, 0)
    with pytest.raises(StateError, match="its boot record not made"):
        log.commit(Change())
    with pytest.raises(StateError, match="its boot record not made"):
        log.snapshot()
    entry = parse_entry(log.boot_entry())
    assert (entry.version, entry.counter, log.version) == (0, 0, 0)
    assert entry.boot is not None
    assert (entry.boot.log, entry.boot.bundle, entry.boot.level, entry.boot.boot) == (
        log.log_id,
        BUNDLE,
        LEVEL,
        log.boot,
    )
    assert parse_entry(log.commit(Change())).version == 1
    with pytest.raises(RuntimeError, match="one boot record"):
        log.boot_entry()
    assert Log.begin(**OPTIONS).log_id != log.log_id


@pytest.mark.spec("STATE-1", "STATE-30")
def test_what_was_committed_is_restored() -> None:
    log, entries = sealed(40)
    again = restore(entries)
    assert contents(again) == contents(log)
    assert again.boot != log.boot
    assert log.floor == 1038
    # And goes on, boot after boot.
    for boot in range(3):
        entries.append(again.boot_entry())
        assert parse_entry(entries[-1]).version == 41 + 2 * boot
        entries.append(again.commit(change(100 + boot)))
        assert len(again.history) == 2 + boot
        following = restore(entries)
        assert contents(following) == contents(again)
        assert following.history.encode() == again.history.encode()
        again = following


@pytest.mark.spec("STATE-30")
def test_an_empty_store_is_a_new_log() -> None:
    log = restore([])
    assert log.version == -1
    assert parse_entry(log.boot_entry()).version == 0


@pytest.mark.spec("STATE-30", "STATE-36")
@pytest.mark.parametrize(
    ("then", "why"),
    [
        ([], "has no end: a part of the state is missing"),
        ([(5, b"")], "something of an unknown kind"),
        ([(What.UNREADABLE, b"disk")], "its store cannot be read"),
        ([(What.MANIFEST, b"")], "a record or the end was expected, and the host gave: manifest"),
        ([(What.CHUNK, b"")], "a record or the end was expected, and the host gave: chunk"),
        ([(What.END, b"x")], "holds 1 bytes, where it holds none"),
    ],
)
def test_what_ends_a_store_is_its_end(then: list[tuple[int, bytes]], why: str) -> None:
    _, entries = sealed(1)
    with pytest.raises(StateError, match=why) as refused:
        Log.restore([*stored(entries, end=False), *then], **OPTIONS)
    assert "disk" not in str(refused.value)


@pytest.mark.spec("STATE-2")
def test_every_seal_takes_a_number() -> None:
    log, entries = sealed(3)
    chunks = list(log.snapshot())
    entries.append(log.commit(Change()))
    counters = [parse_entry(entry).counter for entry in entries] + [parse_chunk(data).counter for data in chunks]
    assert sorted(counters) == list(range(len(counters)))
    assert [parse_entry(entry).counter for entry in restored_boot(entries)] == [0, 1]


def restored_boot(entries: list[bytes]) -> list[bytes]:
    log = restore(entries)
    return [log.boot_entry(), log.commit(Change())]


@pytest.mark.spec("STATE-2", "STATE-9")
def test_a_seal_that_fails_takes_its_number_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nonce of a seal that was broken off, after or before it encrypted, is never used again."""
    log, _ = sealed(1)
    used: list[bytes] = []

    def broken(key_id: bytes, nonce: bytes) -> None:
        used.append(nonce)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(_crypto, "on_encrypt", broken)
        with pytest.raises(MemoryError):
            log.commit(Change())
    # This boot is over: whether its memory is what its records say, nobody knows.
    with pytest.raises(StateError, match="start it again"):
        log.commit(Change())
    with pytest.raises(StateError, match="start it again"):
        next(log.snapshot())
    assert used == [bytes((0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0))]
    assert log._take() == 3


@pytest.mark.spec("STATE-2")
def test_a_chunk_that_fails_takes_its_number_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    log, entries = sealed(1)

    def broken(key_id: bytes, nonce: bytes) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(_crypto, "on_encrypt", broken)
        with pytest.raises(MemoryError):
            next(log.snapshot())
    # The state is whole: a snapshot changes nothing.
    entries.append(log.commit(change(1)))
    assert parse_entry(entries[-1]).counter == 3
    assert contents(restore(entries)) == contents(log)


@pytest.mark.spec("STATE-9")
def test_a_change_in_part_ends_the_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    log, entries = sealed(2)
    before = restore(entries)

    def half(self: Table, changes: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Table, "apply", half)
        with pytest.raises(MemoryError):
            log.commit(change(2))
    for go_on in (lambda: log.commit(change(3)), lambda: log.record(change(3)), log.snapshot):
        with pytest.raises(StateError, match="a commit of it was broken off"):
            go_on()
    assert before.version == 2


@pytest.mark.spec("STATE-2")
def test_a_boot_ends_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert records.MAX_SEALS == 2**32
    monkeypatch.setattr(_log, "MAX_SEALS", 4)
    log, entries = sealed(2)
    snapshot = log.snapshot()
    next(snapshot)
    with pytest.raises(StateError, match="sealed 4 times, as often as its key may be used; start it again"):
        next(snapshot)
    with pytest.raises(StateError, match="start it again"):
        log.commit(Change())
    assert contents(restore(entries))[1] == 2


@pytest.mark.spec("STATE-7")
def test_a_change_that_does_not_fit_changes_nothing() -> None:
    log, entries = sealed(2)
    before = contents(log)
    with pytest.raises(ValueError, match="change less at once"):
        log.commit(Change(map=[("k", bytes(records.MAX_PLAIN))]))
    assert contents(log) == before
    entries.append(log.commit(change(2)))
    assert parse_entry(entries[-1]).counter == 3


@pytest.mark.spec("STATE-3", "STATE-8")
def test_no_key_leaves_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    real = Secret.random.__func__  # type: ignore[attr-defined]

    def noted(cls: type[Secret], size: int = 32) -> Secret:
        secret = real(cls, size)
        drawn.append(secret.insecure_reveal())
        return secret

    monkeypatch.setattr(Secret, "random", classmethod(noted))
    log, entries = sealed(3)
    out = b"".join((*entries, *log.snapshot(), log.context(IDENTITY)))
    seeds = [*drawn, log.anchor.insecure_seed(), sealing_key(BUNDLE, LEVEL).insecure_reveal()]
    assert len(seeds) == 4
    assert not any(seed in out for seed in seeds)
    assert not any(seed.hex() in repr(vars(log)) for seed in seeds)


@pytest.mark.spec("STATE-12")
def test_a_snapshot_alone_is_the_state() -> None:
    log, entries = sealed(30)
    chunks = list(log.snapshot())
    assert [parse_chunk(data).index for data in chunks] == [1, 0]
    assert contents(restore([], chunks)) == contents(log)
    # After it only what follows is needed; before its manifest it is nothing.
    more = [log.commit(change(number)) for number in range(30, 40)]
    again = restore(more, chunks)
    assert contents(again) == contents(log)
    assert again.history.encode() == log.history.encode()
    with pytest.raises(StateError):
        Log.restore(((What.CHUNK, data) for data in chunks[:-1]), **OPTIONS)
    assert contents(restore(entries + more)) == contents(log)


@pytest.mark.spec("STATE-12")
def test_the_snapshot_of_an_empty_state_is_its_manifest() -> None:
    log, _ = new_log()
    (manifest,) = log.snapshot()
    assert contents(restore([], [manifest])) == contents(log)


@pytest.mark.spec("STATE-10")
def test_a_snapshot_stays_where_it_began() -> None:
    log, entries = new_log()
    big = CHUNK_CONTENT // 3
    entries.append(log.commit(Change(map=[(f"k{i}", bytes([i]) * big) for i in range(9)], mail=[(b"r", b"old")])))
    before = contents(log)
    snapshot = log.snapshot()
    chunks: list[bytes] = []
    later = [log.commit(Change(map=[(f"k{i}", None)], mail=[(b"r", b"%d" % i)], floor=5)) for i in range(8, 3, -1)]
    chunks += [next(snapshot), next(snapshot)]
    later.append(log.commit(Change(map=[("k2a", b"between"), ("k0", b"changed")])))
    chunks += snapshot
    assert len({parse_chunk(data).snapshot for data in chunks}) == 1
    assert {parse_chunk(data).version for data in chunks} == {1}
    assert contents(restore([], chunks)) == before
    assert contents(restore(later, chunks)) == contents(log)


@pytest.mark.spec("STATE-10")
def test_a_snapshot_that_is_given_up_keeps_nothing() -> None:
    log, _ = sealed(5)
    for finish in (False, True):
        snapshot = log.snapshot()
        assert log.table._readers
        next(snapshot)
        if finish:
            list(snapshot)
        else:
            snapshot.close()  # type: ignore[attr-defined]
        assert not log.table._readers
    log.snapshot()
    assert not log.table._readers


@pytest.mark.spec("STATE-31")
@pytest.mark.parametrize("whose", ["machine", "bundle"])
def test_state_of_somebody_else(whose: str) -> None:
    log, entries = sealed(2)
    other = Secret.random()
    chunks = list(log.snapshot())
    for given in ((entries, []), ([], chunks)):
        with pytest.raises(WrongKeyError) as refused:
            restore(*given, key=lambda bundle, level: other if whose == "machine" else sealing_key(bytes(32), level))
        for word in ("another program", "another machine", "another sealing policy", "conclave state reset STORE"):
            assert word in str(refused.value)
    assert restore(entries).version == 2


@pytest.mark.spec("STATE-30")
@pytest.mark.parametrize("called", [What.ENTRY, What.MANIFEST, What.END])
def test_a_chunk_that_is_called_something_else(called: What) -> None:
    log, _ = sealed(3)
    data, manifest = log.snapshot()
    with pytest.raises(StateError, match=f"chunk 1 of 1 .* was expected, and the host gave: {called.name.lower()}"):
        Log.restore([(What.MANIFEST, manifest), (called, data), (What.END, b"")], **OPTIONS)


@pytest.mark.spec("STATE-32", "STATE-33")
def test_levels() -> None:
    asked: list[tuple[bytes, int]] = []

    def key(bundle: bytes, level: int) -> Secret:
        asked.append((bundle, level))
        return sealing_key(bundle, level)

    _, entries = sealed(2)
    newer = restore(entries, level=5, key=key, bundle_id=bytes(32))
    # The keys of both bundles, each for its own.
    assert asked == [(BUNDLE, LEVEL), (bytes(32), 5)]
    entries.append(newer.boot_entry())
    asked.clear()
    with pytest.raises(
        WrongKeyError, match=r"revocation level 5 of the program, and this enclave has 3.*start the newer"
    ):
        restore(entries, key=key)
    assert asked == [(BUNDLE, LEVEL)]
    asked.clear()
    with pytest.raises(WrongKeyError, match="revocation level 5"):
        restore([], newer.snapshot(), key=key)
    assert asked == []
    # An older release that got hold of a newer log's bytes cannot go on with it.
    assert contents(restore(entries, level=6))[1] == 3
    older_boot = Log(_replayed(entries), key=sealing_key, bundle_id=BUNDLE, level=4)
    with pytest.raises(StateError, match="of revocation level 4, after one of 5"):
        restore([*entries, older_boot.boot_entry()], level=6)


def _replayed(entries: list[bytes]) -> _log.Replay:
    past = _log.Replay(key=sealing_key, level=9)
    past.run(stored(entries))
    return past


def test_the_key_is_asked_for_once_a_program() -> None:
    asked: list[int] = []

    def key(bundle: bytes, level: int) -> Secret:
        asked.append(level)
        return sealing_key(bundle, level)

    _, entries = sealed(1)
    for _ in range(5):
        entries.append(restore(entries).boot_entry())
    restore(entries, key=key)
    assert asked == [LEVEL, LEVEL]


@pytest.mark.spec("STATE-36")
def test_a_store_that_cannot_be_read_is_not_an_empty_one() -> None:
    for given in ([], [(4, b"")], [(4, b"broken")], [(9, b"")]):
        with pytest.raises(StateError):
            Log.restore(given, **OPTIONS)


@pytest.mark.spec("STATE-30", "STATE-37")
def test_nothing_is_read_beyond_what_is_refused() -> None:
    """A host that gives without end is refused at the first thing that is wrong, and nothing is kept for a claim."""
    _, entries = sealed(3)
    taken = 0

    def endless() -> Iterator[tuple[int, bytes]]:
        nonlocal taken
        for entry in entries:
            yield What.ENTRY, entry
        while True:
            taken += 1
            yield What.ENTRY, entries[-1]

    with pytest.raises(StateError, match="version 4 was expected, and the host gave version 3"):
        Log.restore(endless(), **OPTIONS)
    assert taken == 1


@pytest.mark.spec("STATE-37")
def test_nothing_is_decoded_before_it_is_authentic(monkeypatch: pytest.MonkeyPatch) -> None:
    _, entries = sealed(1)
    monkeypatch.setattr(records, "decode", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(StateError, match="not authentic"):
        restore([entries[0][:-1] + bytes((entries[0][-1] ^ 1,)), entries[1]])


@pytest.mark.spec("STATE-38")
def test_keys_of_earlier_boots_are_gone_after_the_replay() -> None:
    _, entries = sealed(2)
    for _ in range(3):
        entries.append(restore(entries).boot_entry())
    gc.collect()
    before = sum(isinstance(found, Keys) for found in gc.get_objects())
    log = restore(entries)
    gc.collect()
    assert sum(isinstance(found, Keys) for found in gc.get_objects()) == before + 1
    assert not any(isinstance(found, _log.Replay) for found in gc.get_referents(log, *gc.get_referents(log)))


@pytest.mark.spec("STATE-22", "STATE-23")
def test_contexts_across_boots() -> None:
    log, entries = sealed(3)
    told = [log.context(IDENTITY)]
    again = restore(entries)
    entries.append(again.boot_entry())
    entries.append(again.commit(change(9)))
    told.append(again.context(IDENTITY))
    following = restore(entries)
    # Also before its own boot record: what is newest is then the boot before's.
    assert following.check(told[1], IDENTITY) is not None
    following.boot_entry()
    assert [found and found.version for found in (following.check(token, IDENTITY) for token in told)] == [3, 5]
    assert following.check(bytes(72), IDENTITY) is None
    # Back to before the second boot: what it told is not known, what the first told is.
    old = restore(entries[:4])
    old.boot_entry()
    assert old.check(told[0], IDENTITY) is not None
    with pytest.raises(RollbackError, match="version 5 of this log from a boot that is not in the history"):
        old.check(told[1], IDENTITY)


@pytest.mark.spec("STATE-1")
def test_a_record_of_what_its_caller_changes() -> None:
    log, entries = sealed(2)
    made = change(2)
    entries.append(log.record(made))
    assert log.version == 3
    make_change(made, log.table, log.rows)
    assert contents(restore(entries)) == contents(log)


def test_a_statement_says_where_the_log_is() -> None:
    log, _ = sealed(2)
    said = log.statement()
    assert (said.version, said.log_id, said.state_version, said.boot, said.digest) == (
        1,
        log.log_id,
        2,
        log.boot,
        log.digest,
    )
    assert (said.refused_version, said.refused_boot, said.refused_digest) == (None, None, None)


def test_marks_and_anchor_outlive_a_boot() -> None:
    log, entries = sealed(1)
    again = restore(entries)
    mark = log.marks.tag(b"", b"request")
    assert again.marks.fits(mark, b"", b"request")
    assert not again.marks.fits(mark, b"", b"another")
    assert not Log.begin(**OPTIONS).marks.fits(mark, b"", b"request")
    assert again.anchor.public == log.anchor.public
    assert repr(again.marks) == "<MacKey>"


@pytest.mark.spec("STATE-8")
def test_a_log_id_names_the_key_that_is_born_with_the_log() -> None:
    """Another one is refused in a first record, and in a manifest that gives one in exchange."""
    log, entries = sealed(2)
    assert log.log_id == _crypto.sha256(b"conclave/1 log" + log.anchor.public)
    assert restore(entries).log_id == log.log_id
    log.anchor = _crypto.SigningKey.generate()
    with pytest.raises(StateError, match="the log's id names another key than it holds"):
        restore([], log.snapshot())
    begun = Log.begin(**OPTIONS)
    begun.anchor = log.anchor
    with pytest.raises(StateError, match="the log's id names another key than it holds"):
        restore([begun.boot_entry()])


def test_a_changed_first_record_says_what_it_may_be() -> None:
    _, entries = sealed(1)
    with pytest.raises(WrongKeyError, match="or its first bytes were changed"):
        restore([entries[0][:60] + b"\xff" + entries[0][61:], entries[1]])
    with pytest.raises(DecryptionError):
        _crypto.unwrap_key(Secret.random(), b"label", bytes(79), b"")
