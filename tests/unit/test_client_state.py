"""Saved state and identity files: what they keep, who may open them, what a crash leaves."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from conclave import _crypto
from conclave.attestation import Constraint
from conclave.client import Client, Identity, _state
from conclave.client._state import MAGIC, ClientState, Unanswered
from conclave.client.core import ClientCore
from conclave.errors import FormatError, StateError, VerificationError, WrongKeyError
from conclave.mail import Pending

STRAND = 2**64 - 1


def save(state: ClientState, *sequences: int, body: bytes = b"body") -> None:
    items = [Pending(1, 0, body, b"", n, boots=[bytes(32)]) for n in sequences]
    state.sending("t", STRAND, items)


def request(sequence: int, body: bytes = b"body") -> Unanswered:
    return Unanswered(
        topic="t",
        strand=STRAND,
        sequence=sequence,
        kind=1,
        flags=0,
        body=body,
        envelope=b"",
        padding=None,
        boots=[bytes(32)],
        logged=False,
    )


@pytest.fixture
def me() -> Identity:
    return Identity.generate()


@pytest.mark.spec("MAIL-53")
def test_what_was_written_is_there_again(tmp_path: Path, me: Identity) -> None:
    state = ClientState(tmp_path / "s", me)
    save(state, 0, 1)
    state.answered(request(0).key)
    state.verified(b"d" * 64)
    state.accept_reference(7)
    state.keep_box(b"box")
    # Nothing waits for `close`.
    shutil.copy(tmp_path / "s", tmp_path / "copy")
    state.close()
    for name in ("s", "copy"):
        again = ClientState(tmp_path / name, me)
        assert again.left == [request(1)]
        assert (again.claims_digest, again.reference, again.box) == (b"d" * 64, 7, b"box")
        with pytest.raises(VerificationError) as older:
            again.accept_reference(6)
        assert older.value.code == "reference-rollback"
        again.close()
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


@pytest.mark.spec("MAIL-53")
def test_what_the_file_shows(tmp_path: Path, me: Identity) -> None:
    state = ClientState(tmp_path / "s", me)
    save(state, 0, body=b"PLAINTEXT")
    state.close()
    data = (tmp_path / "s").read_bytes()
    assert b"PLAINTEXT" not in data
    assert me.public not in data
    with pytest.raises(WrongKeyError, match=f"^{re.escape(str(tmp_path / 's'))}: .*another identity"):
        ClientState(tmp_path / "s", Identity.generate())
    # Refused, it is as it was.
    assert (tmp_path / "s").read_bytes() == data
    (tmp_path / "other").write_bytes(b"something else")
    # Whose key it is of cannot be asked of what is no state.
    with pytest.raises(FormatError, match=f"^{re.escape(str(tmp_path / 'other'))}: this is no client state"):
        ClientState(tmp_path / "other", me)


@pytest.mark.spec("MAIL-53")
def test_every_place_where_a_crash_can_cut_it(tmp_path: Path, me: Identity) -> None:
    path = tmp_path / "s"
    state = ClientState(path, me)
    sizes = [path.stat().st_size]
    for n in range(3):
        save(state, n)
        sizes.append(path.stat().st_size)
    state.close()
    data = path.read_bytes()
    for end in range(sizes[0], len(data)):
        # Cut short, or filled with zeros that the file system did not write in time.
        zeros = len(data) - end if end % 2 and len(data) - end >= 4 else 0
        path.write_bytes(data[:end] + bytes(zeros))
        again = ClientState(path, me)
        whole = sum(size <= end for size in sizes) - 1
        assert [left.sequence for left in again.left] == list(range(whole))
        again.close()
    # The first record was on the disk before the file had its name: that one is never torn.
    path.write_bytes(data[: sizes[0] - 1])
    with pytest.raises(WrongKeyError):
        ClientState(path, me)


@pytest.mark.spec("MAIL-53")
def test_records_do_not_change_places(tmp_path: Path, me: Identity) -> None:
    path = tmp_path / "s"
    state = ClientState(path, me)
    at = [path.stat().st_size]
    for n in range(2):
        save(state, n)
        at.append(path.stat().st_size)
    state.close()
    data = path.read_bytes()
    path.write_bytes(data[: at[0]] + data[at[1] :] + data[at[0] : at[1]])
    with pytest.raises(StateError, match=f"/s: .*damaged at byte {at[0]}"):
        ClientState(path, me)


@pytest.mark.spec("MAIL-53")
def test_a_changed_byte_is_no_crash(tmp_path: Path, me: Identity) -> None:
    """At whatever place it is: refused, with the file as it was, so that nothing is forgotten in silence."""
    path = tmp_path / "s"
    state = ClientState(path, me)
    for n in range(3):
        save(state, n)
    save(state, 3, body=bytes(2000))
    state.close()
    data = path.read_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        # Without its first bytes it is a file of another kind.
        with pytest.raises(FormatError if at < len(MAGIC) else StateError):
            ClientState(path, me)
        assert path.read_bytes() == damaged


@pytest.mark.spec("MAIL-53")
def test_a_block_that_never_reached_the_disk(tmp_path: Path, me: Identity) -> None:
    """Blocks reach a disk in any order: what comes before one that is missing stays, whatever comes after it."""
    path = tmp_path / "s"
    state = ClientState(path, me)
    for n in range(4):
        save(state, n, body=bytes(5000))
    state.close()
    data = path.read_bytes()
    for at in range(4096, len(data), 512):
        path.write_bytes(data[:at] + bytes(512) + data[at + 512 :])
        again = ClientState(path, me)
        assert [left.sequence for left in again.left] == list(range(len(again.left)))
        assert len(again.left) < 4
        again.close()


@pytest.mark.spec("MAIL-53")
def test_one_process_at_a_time(tmp_path: Path, me: Identity) -> None:
    state = ClientState(tmp_path / "s", me)
    with pytest.raises(StateError, match=r"/s: the client state is in use by another client"):
        ClientState(tmp_path / "s", me)
    child = os.fork()
    if child == 0:
        try:
            ClientState(tmp_path / "s", me)
        except StateError:
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    state.close()
    with pytest.raises(StateError, match="not open here"):
        save(state, 0)
    ClientState(tmp_path / "s", me).close()


@pytest.mark.spec("MAIL-53")
def test_a_child_process_writes_nothing(tmp_path: Path, me: Identity) -> None:
    """Also where something waits for the next record, as a context that came with a stream does."""
    core = ClientCore(
        constraint=Constraint.parse("C:" + "0" * 64),
        identity=me,
        state=ClientState(tmp_path / "s", me),
    )
    state = core.state
    assert state is not None
    save(state, 0)
    state.contexts = bytes(72)
    before = (tmp_path / "s").read_bytes()
    child = os.fork()
    if child == 0:
        core.forked()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "s").read_bytes() == before
    save(state, 1)
    save(state, 2)
    state.close()
    again = ClientState(tmp_path / "s", me)
    assert again.left == [request(0), request(1), request(2)]
    again.close()


@pytest.mark.spec("MAIL-53")
def test_it_does_not_grow_with_what_is_answered(tmp_path: Path, me: Identity) -> None:
    state = ClientState(tmp_path / "s", me)
    for n in range(60):
        save(state, n, body=bytes(100_000))
        state.answered(request(n).key)
        assert (tmp_path / "s").stat().st_size < 1_300_000
    save(state, 60)
    state.close()
    again = ClientState(tmp_path / "s", me)
    assert again.left == [request(60)]
    again.close()


@pytest.mark.spec("MAIL-53")
def test_a_full_disk_is_an_error_and_the_file_stays_whole(
    tmp_path: Path, me: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ClientState(tmp_path / "s", me)
    save(state, 0)
    write = os.write

    def half(file: int, data: bytes) -> int:
        write(file, bytes(data[: len(data) // 2]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(StateError, match="No space left"):
        save(state, 1)
    monkeypatch.undo()
    save(state, 2)
    state.close()
    again = ClientState(tmp_path / "s", me)
    assert [left.sequence for left in again.left] == [0, 2]
    again.close()


@pytest.mark.spec("MAIL-53")
@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename", "fsync of the directory", "close"])
def test_a_disk_that_fails_while_the_file_is_replaced(
    tmp_path: Path, me: Identity, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Wherever it fails: what the file had is there, and what may not have got there does not leave."""
    monkeypatch.setattr(_state, "_COMPACT_BYTES", 0)
    state = ClientState(tmp_path / "s", me)
    written = 0
    while state._end <= state._compact_at:
        save(state, written, body=bytes(200))
        written += 1

    name = step.partition(" ")[0]
    real = getattr(os, name)

    def fails(*args: object, **options: object) -> object:
        directory = isinstance(args[0], int) and stat.S_ISDIR(os.fstat(args[0]).st_mode)
        if name in ("fsync", "close") and directory != step.endswith("directory"):
            return real(*args, **options)
        if name == "close":
            real(*args, **options)
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, name, fails)
    for _ in range(2):
        if step == "close":
            # The file that is closed is no longer the one that counts.
            save(state, written, body=bytes(200))
            written += 1
        else:
            with pytest.raises(StateError, match=r"/s: .*cannot be read or written"):
                save(state, written, body=bytes(200))
            with pytest.raises(StateError):
                state.keep_box(b"lost")
        shutil.copy(tmp_path / "s", tmp_path / "copy")
    state.answered(request(0).key)
    monkeypatch.setattr(os, name, real)

    def kept(path: Path) -> list[int]:
        again = ClientState(path, me)
        again.close()
        assert again.box == b""
        return [item.sequence for item in again.left]

    assert kept(tmp_path / "copy") == list(range(written))
    # It works again: that request may leave now, and nothing is lost that did before.
    save(state, written, body=bytes(200))
    assert os.fstat(state._file).st_ino == (tmp_path / "s").stat().st_ino
    state.close()
    assert kept(tmp_path / "s") == list(range(1, written + 1))


@pytest.mark.spec("MAIL-53")
@pytest.mark.parametrize("durable", [False, True])
def test_half_a_record_that_cannot_be_taken_back(
    tmp_path: Path, me: Identity, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Whatever came after it would be lost to whoever reads the file."""
    state = ClientState(tmp_path / "s", me, durable=durable)
    save(state, 0)
    write = os.write

    def half(file: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "injected")
        return write(file, data[: len(data) // 2])

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", fails)
        with pytest.raises(StateError):
            save(state, 1)
    save(state, 2)
    state.close()
    again = ClientState(tmp_path / "s", me)
    assert [item.sequence for item in again.left] == [0, 2]
    if durable:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fails)
            durably = ClientState(tmp_path / "t", me, durable=True)
            with pytest.raises(StateError):
                save(durably, 1)
        # What did not leave is not repeated either.
        durably.close()
        assert ClientState(tmp_path / "t", me).left == []


@pytest.mark.spec("MAIL-53", "MAIL-2")
def test_copies_that_go_on_side_by_side_share_no_key(
    tmp_path: Path, me: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(_crypto, "on_encrypt", lambda key, nonce: uses.append((key, nonce)))
    state = ClientState(tmp_path / "s", me)
    save(state, 0)
    state.close()
    copies = []
    for n in range(4):
        shutil.copy(tmp_path / "s", tmp_path / f"copy{n}")
        copies.append(ClientState(tmp_path / f"copy{n}", me))
    for copy in copies:
        save(copy, 1)
        copy.close()
    assert len(uses) == 2 + 2 * len(copies)
    # Not one key serves for two records.
    assert len({key for key, _ in uses}) == len(uses)


def test_a_client_asks_for_the_identity_with_the_state(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="identity"):
        Client("http://127.0.0.1:1", constraint="C:" + "0" * 64, state=tmp_path / "s")


# Identities ------------------------------------------------------------------------


def test_an_identity_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "me.identity"
    made = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load_or_create(path).public == made.public
    assert os.listdir(tmp_path) == ["me.identity"]
    for mode in (0o640, 0o604, 0o620, 0o601):
        path.chmod(mode)
        with pytest.raises(StateError, match=rf"/me\.identity: .*mode 0{mode:o}, expected 0600"):
            Identity.load_or_create(path)
    path.chmod(0o400)
    assert Identity.load(path).public == made.public


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "me.identity"
    Identity.generate().save(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        Identity.generate().save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["me.identity"]


def test_what_is_no_identity(tmp_path: Path) -> None:
    for name, data in {
        "empty": b"",
        "short": b"conclave-identity-1 00",
        "bare": b"0" * 64,
        "long": b"x" * 5000,
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError, match=f"/{name}: this is not an identity file"):
            Identity.load(tmp_path / name)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(FormatError, match="/pipe: an identity file is an ordinary file"):
        Identity.load(tmp_path / "pipe")
