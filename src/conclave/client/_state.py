"""What a client keeps across restarts: requests without an answer, and its box.

Runs at the relying party. The file is encrypted under a key derived from the
identity's, each record under a key of its own; session keys are never in it. A
copy of it or an older one gives away and breaks nothing: whoever goes on from it
opens sessions and strands of its own.

Spec: spec/mail.md section 12 (MAIL-53).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from conclave import _codec, _crypto
from conclave.client.identity import Identity
from conclave.errors import DecryptionError, FormatError, StateError, VerificationError, WrongKeyError
from conclave.mail.conversation import Pending

MAGIC: Final = b"conclave-state-3"
# Before there were logs. Read, and replaced.
_MAGIC_2: Final = b"conclave-state-2"
LABEL: Final = b"conclave/1 client state"
_HEADER_SIZE: Final = len(MAGIC) + 16
_SIZE: Final = 8
# As many do not occur by chance in what is encrypted.
_ZEROS: Final = 16
_ALL_BITS: Final = 2**32 - 1
MAX_RECORD: Final = 2**31
MAX_FILE: Final = 2**32
_COMPACT_BYTES: Final = 1024 * 1024
Key = tuple[int, int]


class Unanswered(_codec.Record, frozen=True):
    """One request that left, or was about to, and whose last reply did not come.

    Attributes:
        boots: nonces of the boots, or ids of the logs, that it may have reached; `strand` and
            `sequence` are of the last.
        padding: the text form of its own padding; None for the client's.
        logged: the last of them is a log.
    """

    topic: str
    strand: int
    sequence: int
    kind: int
    flags: int
    body: bytes
    envelope: bytes
    padding: str | None
    boots: list[bytes]
    logged: bool

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return self.strand, self.sequence


class _Change(_codec.Record, frozen=True):
    """One record: what changed. The first of a file is everything. None: as before."""

    claims_digest: bytes | None = None
    reference: int | None = None
    box: bytes | None = None
    log: bytes | None = None
    contexts: bytes | None = None
    statement: bytes | None = None
    sent: tuple[Unanswered, ...] = ()
    done: tuple[Key, ...] = ()


class _Unanswered2(_codec.Record, frozen=True):
    """`Unanswered` of version 2."""

    topic: str
    strand: int
    sequence: int
    kind: int
    flags: int
    body: bytes
    envelope: bytes
    padding: str | None
    boots: list[bytes]


class _Change2(_codec.Record, frozen=True):
    """`_Change` of version 2."""

    claims_digest: bytes | None
    reference: int | None
    box: bytes | None
    sent: tuple[_Unanswered2, ...]
    done: tuple[Key, ...]

    def now(self) -> _Change:
        """The same in today's form."""
        fields = msgspec.structs.asdict(self)
        sent = tuple(Unanswered(**msgspec.structs.asdict(item), logged=False) for item in self.sent)
        return _Change(**{**fields, "sent": sent})


class ClientState:
    """The open state of one client, held by one process.

    Attributes:
        unanswered: requests without an answer, of this process and of earlier ones.
        left: those that earlier processes left.
        claims_digest: of the instance verified last; empty at first.
        box: what receives posted mail, as its own bytes; empty if there is none.
        log: id of the log that is pinned; empty if there is none.
        contexts: what is kept of its state contexts, as their own bytes. Set it: it goes along with the next record.
        statement: the newest signed statement on it, as its own bytes.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Identity, *, durable: bool = False) -> None:
        """Open, or begin if there is no file.

        Args:
            path: the file; `PATH.lock` and `PATH.new` beside it are used too.
            identity: whose key encrypts the file.
            durable: wait for the disk before each request leaves. Otherwise a process that is
                killed loses nothing, and a machine that loses power the last seconds.

        Raises:
            FormatError: the file is no state.
            StateError: in use by another process, damaged, or it cannot be written.
            WrongKeyError: it belongs to another identity.
        """
        self._path = Path(path)
        self._secret = identity._key.derive(LABEL)
        self._durable = durable
        self.claims_digest = b""
        self.reference = 0
        self.box = b""
        self.log = b""
        self.contexts = b""
        self.statement = b""
        self._noted = b""
        self.unanswered: dict[Key, Unanswered] = {}
        self._file = -1
        self._lock = self._take_lock()
        try:
            self._read()
            self.left = list(self.unanswered.values())
            self._compact()
        except OSError as error:
            self.close()
            raise self._trouble(error) from None
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<ClientState with {len(self.unanswered)} unanswered requests>"

    # Changes -------------------------------------------------------------------------

    def sending(self, topic: str, strand: int, items: Iterable[Pending], *, done: Iterable[Key] = ()) -> None:
        """Write down requests before they leave, instead of others. Raises StateError: then they must not."""
        sent = tuple(
            Unanswered(
                topic=topic,
                strand=strand,
                sequence=item.sequence,
                kind=item.kind,
                flags=item.flags,
                body=item.body,
                envelope=item.envelope,
                padding=None if item.padding is None else str(item.padding),
                boots=list(item.boots),
                logged=item.logged,
            )
            for item in items
        )
        change = _Change(sent=sent, done=tuple(done))
        self._write(change)
        self._apply(change)

    def answered(self, *keys: Key) -> None:
        """Forget requests that have their answer.

        What cannot be written is repeated after a restart, and answered by the enclave from memory.
        """
        for key in keys:
            self.unanswered.pop(key, None)
        with suppress(StateError):
            self._write(_Change(done=keys))

    def verified(self, claims_digest: bytes) -> None:
        """Note the instance."""
        if claims_digest != self.claims_digest:
            self.claims_digest = claims_digest
            with suppress(StateError):
                self._write(_Change(claims_digest=claims_digest))

    def accept_reference(self, number: int) -> None:
        """Note the number of the reference values in use.

        Raises:
            VerificationError: `reference-rollback`: newer ones were used before.
        """
        if number < self.reference:
            raise VerificationError(
                f"reference values number {number} are older than those used before, number {self.reference}",
                code="reference-rollback",
            )
        if number > self.reference:
            self._write(_Change(reference=number))
            self.reference = number

    def keep_box(self, box: bytes) -> None:
        """Note what receives posted mail. Raises StateError."""
        self._write(_Change(box=box))
        self.box = box

    def pin(self, log: bytes) -> None:
        """Note the log; of any other one nothing is kept.

        What cannot be written is pinned anew after a restart: nothing is sent before something could be written.
        """
        self.log, self.contexts, self.statement = log, b"", b""
        with suppress(StateError):
            self._write(_Change(log=log, contexts=b"", statement=b""))

    def keep_statement(self, statement: bytes) -> None:
        """Note what the enclave signed. Raises StateError."""
        self._write(_Change(statement=statement))
        self.statement = statement

    def close(self) -> None:
        """Let another process have it."""
        if self._file >= 0 and self.contexts != self._noted:
            with suppress(StateError):
                self._write(_Change())
        self.forked()

    def forked(self) -> None:
        """Leave the file to the parent process, which goes on writing to it: a record from here would damage it."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    # File ----------------------------------------------------------------------------

    def _take_lock(self) -> int:
        try:
            # A file of its own: the other one is replaced.
            lock = os.open(_beside(self._path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._trouble(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise self._broken(
                "the client state is in use by another client: close that one, or give each its own file"
            ) from None
        return lock

    def _trouble(self, error: OSError) -> StateError:
        return self._broken(f"the client state cannot be read or written ({os.strerror(error.errno or 0)})")

    def _broken(self, what: str) -> StateError:
        return StateError(f"{self._path}: {what}")

    def _read(self) -> None:
        try:
            if self._path.stat().st_size > MAX_FILE:
                raise self._broken(f"the client state has more than {MAX_FILE} bytes")
            data = memoryview(self._path.read_bytes())
        except FileNotFoundError:
            return
        header = bytes(data[:_HEADER_SIZE])
        old = header.startswith(_MAGIC_2)
        if not old and not header.startswith(MAGIC):
            raise FormatError(f"{self._path}: this is no client state of a known version; give it a file of its own")
        at, count, tag = _HEADER_SIZE, 0, b""
        while at < len(data):
            size = _record_size(data[at : at + _SIZE])
            end = at + _SIZE + size
            record = data[at + _SIZE : end]
            try:
                plain = _crypto.open_record(self._secret, LABEL, record, _associated(header, count, tag))
                if old:
                    change = _codec.decode(_Change2, plain, max_size=MAX_RECORD, what="client state").now()
                else:
                    change = _codec.decode(_Change, plain, max_size=MAX_RECORD, what="client state")
            except (DecryptionError, FormatError):
                if count == 0:
                    break
                if not _is_torn(data[at:], size):
                    raise self._broken(
                        f"the client state is damaged at byte {at}: put a copy of it back, an older one does no harm, "
                        "or move it away and begin without it"
                    ) from None
                # What a crash left of the last writes. What came before stands by itself.
                return
            self._apply(change)
            at, count, tag = end, count + 1, bytes(record[-_crypto.TAG_SIZE :])
        if count == 0:
            raise WrongKeyError(
                f"{self._path}: the client state cannot be decrypted: it was written by another identity, or is damaged"
            )

    def _apply(self, change: _Change) -> None:
        if change.claims_digest is not None:
            self.claims_digest = change.claims_digest
        if change.reference is not None:
            self.reference = change.reference
        if change.box is not None:
            self.box = change.box
        if change.log is not None:
            self.log = change.log
        if change.contexts is not None:
            self.contexts = self._noted = change.contexts
        if change.statement is not None:
            self.statement = change.statement
        for key in change.done:
            self.unanswered.pop(key, None)
        self.unanswered.update((item.key, item) for item in change.sent)

    def _seal(self, change: _Change, header: bytes, count: int, tag: bytes) -> bytes:
        record = _crypto.seal_record(self._secret, LABEL, _codec.encode(change), _associated(header, count, tag))
        return _size_field(len(record)) + record

    def _compact(self) -> None:
        """Replace the file by one with a single record: written aside, on the disk, then renamed."""
        header = MAGIC + _crypto.random_bytes(16)
        everything = _Change(
            claims_digest=self.claims_digest,
            reference=self.reference,
            box=self.box,
            log=self.log,
            contexts=self.contexts,
            statement=self.statement,
            sent=tuple(self.unanswered.values()),
        )
        data = self._seal(everything, header, 0, b"")
        aside = _beside(self._path, ".new")
        with suppress(FileNotFoundError):
            os.unlink(aside)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(aside, flags, 0o600)
        try:
            _write_all(file, header + data)
            os.fsync(file)
            os.rename(aside, self._path)
            _sync_directory(self._path.parent)
        except BaseException:
            os.close(file)
            raise
        old, self._file, self._end = self._file, file, _HEADER_SIZE + len(data)
        if old >= 0:
            with suppress(OSError):
                # Whatever a disk says now of a file that is no longer there.
                os.close(old)
        self._compact_at = self._end + max(_COMPACT_BYTES, self._end)
        self._header, self._count, self._tag = header, 1, data[-_crypto.TAG_SIZE :]
        self._noted = self.contexts

    def _write(self, change: _Change) -> None:
        if self._file < 0:
            raise StateError("the client state is not open here: it was closed, or stays with the parent process")
        contexts = self.contexts
        if contexts != self._noted:
            change = msgspec.structs.replace(change, contexts=contexts)
        try:
            if self._end > self._compact_at:
                # Until this succeeds nothing is written: if it failed late, `_file` is one that has no name any more.
                self._compact()
            data = self._seal(change, self._header, self._count, self._tag)
            _write_all(self._file, data)
            if self._durable:
                os.fdatasync(self._file)
        except OSError as error:
            try:
                # Half a record would end the file for whoever reads it.
                os.ftruncate(self._file, self._end)
                os.lseek(self._file, self._end, os.SEEK_SET)
            except OSError:
                # Then the next record goes into another file.
                self._compact_at = -1
            raise self._trouble(error) from None
        self._end += len(data)
        self._count, self._tag = self._count + 1, data[-_crypto.TAG_SIZE :]
        self._noted = contexts


def _associated(header: bytes, count: int, tag: bytes) -> bytes:
    return header + count.to_bytes(8, "big") + tag


def _size_field(size: int) -> bytes:
    """The size twice, once with all its bits turned: damage cannot pass as a record that was cut short."""
    return (size << 32 | size ^ _ALL_BITS).to_bytes(_SIZE, "big")


def _record_size(field: memoryview) -> int:
    """What a size field says; 0 if it is none."""
    size = int.from_bytes(field[:4], "big")
    return size if field == _size_field(size) else 0


def _is_torn(rest: memoryview, size: int) -> bool:
    """Whether a crash leaves a record of this size so: cut short, or with blocks of zeros that were never written."""
    if len(rest) < _SIZE + size:
        return True
    record = bytes(rest[: _SIZE + max(size, _ZEROS)])
    return bytes(_ZEROS) in record or rest[-4:] == bytes(4)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
