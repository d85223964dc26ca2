"""One log in the enclave: what the host stored comes in, sealed records and snapshots go out.

Pure, and for one thread at a time. What was stored is the host's, and hostile until it authenticates.

Spec: spec/state.md sections 4 to 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Self

from conclave._crypto import MacKey, Secret, SigningKey, random_bytes
from conclave.errors import StateError
from conclave.persistence.context import (
    Context,
    Forked,
    Statement,
    context_head,
    make_context,
    open_context,
)
from conclave.persistence.records import MAX_SEALS, Boot, Born, Change, Keys, digest_of, pad, seal_entry
from conclave.persistence.replay import Replay, SealingKeyOf, Stored, What, make_change
from conclave.persistence.snapshots import Manifest, divide, seal_chunk
from conclave.persistence.witness import log_id_of

LABEL_CONTEXT_KEY: Final = b"state/1 context key"
LABEL_MARK_KEY: Final = b"state/1 mark key"

_BROKEN: Final = "this boot cannot go on: a commit of it was broken off, or its boot record not made; start it again"

__all__ = ["Change", "Log", "Stored", "What"]


class Log:
    """The state of one log, in the one boot that goes on with it.

    A record is sealed once and sent once made; what comes of it is the host's business. Nothing is
    ever sealed twice, no version made twice, and no number of the counter used twice.

    Attributes:
        log_id: names the anchor key, 32 bytes; born with the log.
        boot: of this boot, random, 16 bytes.
        version: of the newest record; -1 before the first of a new log.
        digest: of the log up to it.
        history: which boot made which versions.
        table: the author's map.
        rows: the runtime's own rows.
        floor: the newest time that was accepted, in seconds since 1970.
        anchor: the key under which this log, in whatever boot, speaks to witnesses.
        marks: recognises requests of earlier boots without keeping them.
    """

    def __init__(self, past: Replay, *, key: SealingKeyOf, bundle_id: bytes, level: int) -> None:
        """A boot that goes on from `past`; for `begin` and `restore`."""
        self._token = past.token or Secret.random()
        self.anchor = past.anchor or SigningKey.generate()
        self._context_key = MacKey(self._token.expand(LABEL_CONTEXT_KEY))
        self.marks = MacKey(self._token.expand(LABEL_MARK_KEY))
        self.log_id = log_id_of(self.anchor.public)
        self.boot = random_bytes(16)
        self.version, self.digest, self.floor = past.version, past.digest, past.floor
        self.history, self.table, self.rows = past.history, past.table, past.rows
        boot_key = Secret.random()
        self._keys = Keys(boot_key)
        self._boot = Boot.begin(
            log=self.log_id,
            bundle=bundle_id,
            level=level,
            boot=self.boot,
            key=boot_key,
            sealing=key(bundle_id, level),
        ).pack()
        self._counter = 0
        # Whether `boot_entry` was made and no commit was broken off.
        self._ready = False
        # What contexts say of the newest version, once one was asked for.
        self._head = b""

    @classmethod
    def begin(cls, *, key: SealingKeyOf, bundle_id: bytes, level: int) -> Self:
        """A new log.

        Args:
            key: gives the sealing key for a bundle id (32 bytes) and a revocation level.
            bundle_id, level: our own.
        """
        return cls(Replay(key=key, level=level), key=key, bundle_id=bundle_id, level=level)

    @classmethod
    def restore(cls, stored: Iterable[Stored], *, key: SealingKeyOf, bundle_id: bytes, level: int) -> Self:
        """The log that is stored, or a new one if the store is empty.

        It does not show that this is the newest state: that, clients do.

        Args:
            stored: manifest and chunks of a snapshot if there is one, the entries after it, the end. Untrusted.
            key: gives the sealing key for a bundle id and a level that a record claims: the level is
                no higher than ours, the bundle id may be anything.
            bundle_id, level: our own.

        Raises:
            WrongKeyError: the first of it was not sealed for this enclave, or some of it by a higher revocation level.
            StateError: anything else that is not one whole history from its beginning, or from a snapshot, on.

        Spec: spec/state.md section 8 (STATE-30 to STATE-38).
        """
        past = Replay(key=key, level=level)
        past.run(stored)
        return cls(past, key=key, bundle_id=bundle_id, level=level)

    def boot_entry(self) -> bytes:
        """The boot record of this boot: the first commit, version 0 of a new log.

        Raises:
            StateError: the log was started too often.
        """
        if self._counter:
            raise RuntimeError("a boot has one boot record")
        self.history.begin(self.boot, self.version + 1)
        if self.version < 0:
            # What is born with the log leaves this memory here, sealed, and nowhere else.
            born = Born(Change(), self._token.insecure_reveal(), self.anchor.insecure_seed())
        else:
            born = Born(Change(), None, None)
        entry = self._seal(pad(born), self._boot)
        self._ready = True
        return entry

    def commit(self, change: Change) -> bytes:
        """Make a change, in memory, and the record of it. Raises as `record`."""
        entry = self.record(change)
        # A change that is made in part, for want of memory, is no state that any record describes.
        self._ready = False
        make_change(change, self.table, self.rows)
        self._ready = True
        return entry

    def record(self, change: Change) -> bytes:
        """The record of a change that its caller makes, in `table` and `rows`: before, or with nothing between.

        Raises:
            ValueError: the change is too large for a record; nothing happened.
            StateError: this boot sealed as much as it may, or an earlier record was broken off; start it again.
        """
        if not self._ready:
            raise StateError(_BROKEN)
        plain = pad(change)
        # What a seal that was broken off leaves behind, nobody knows.
        self._ready = False
        entry = self._seal(plain, b"")
        if change.floor > self.floor:
            self.floor = change.floor
        self._ready = True
        return entry

    def snapshot(self) -> Iterator[bytes]:
        """The state in chunks, index 1 and up, then the manifest, index 0, which completes them.

        It is of the version at which it is called, however many records come between the chunks; call it while all that
        is in `table` and `rows` is in records. Each chunk is a small step. Given up in the middle, it costs nothing but
        numbers of the counter.

        Raises:
            StateError: as `record`, also at a later step.
        """
        if not self._ready:
            raise StateError(_BROKEN)
        chunks = self._chunks()
        # From here on it holds the state of now, and lets go of it however it ends.
        next(chunks)
        return chunks

    def _chunks(self) -> Iterator[bytes]:
        version, digest, floor, view = self.version, self.digest, self.floor, self.table.snapshot()
        rows, history, snapshot, index = list(self.rows.items()), self.history.encode(), random_bytes(16), 0
        try:
            yield b""
            for index, data in enumerate(divide(view.scan(), rows), 1):
                yield self._chunk(pad(data), snapshot, index, version)
        finally:
            view.release()
        token, anchor = self._token.insecure_reveal(), self.anchor.insecure_seed()
        manifest = Manifest(index, digest, history, token, anchor, floor)
        yield self._chunk(pad(manifest), snapshot, 0, version, self._boot)

    def context(self, identity: bytes) -> bytes:
        """The newest version as a client (32 bytes: its identity key) is told of it: 72 bytes."""
        if not self._head:
            self._head = context_head(self.version, self.boot, self.digest)
        return make_context(self._context_key, log=self.log_id, identity=identity, head=self._head)

    def check(self, token: bytes, identity: bytes) -> Context | None:
        """The context that a client sent; None if it has none yet.

        Raises:
            BadContext: not one that this log gave this client. An error to that client alone.
            Forked: genuine, and not of this history: this boot must stop, with a statement.
        """
        context = open_context(token, self._context_key, log=self.log_id, identity=identity)
        if context is None:
            return None
        known = self.history.contains(context, newest=self.version)
        if context.version == self.version:
            known = known and context.digest == self.digest
        if not known:
            raise Forked(context)
        return context

    def statement(self, refused: Context | None = None) -> Statement:
        """The newest version, to be signed; with a refused context that it is not in this history."""
        return Statement(
            version=1,
            log_id=self.log_id,
            state_version=self.version,
            boot=self.boot,
            digest=self.digest,
            refused_version=refused.version if refused else None,
            refused_boot=refused.boot if refused else None,
            refused_digest=refused.digest if refused else None,
        )

    def _take(self) -> int:
        """The next number of the counter: gone, whatever comes of it."""
        counter = self._counter
        if counter >= MAX_SEALS:
            raise StateError(f"this boot sealed {MAX_SEALS} times, as often as its key may be used; start it again")
        self._counter = counter + 1
        return counter

    def _seal(self, plain: bytes, boot: bytes) -> bytes:
        version = self.version + 1
        entry = seal_entry(
            plain,
            key=self._keys.record,
            log=self.log_id,
            version=version,
            counter=self._take(),
            previous=self.digest,
            boot=boot,
        )
        self.digest = digest_of(entry, log=self.log_id, version=version, previous=self.digest)
        self.version = version
        self._head = b""
        return entry

    def _chunk(self, plain: bytes, snapshot: bytes, index: int, version: int, boot: bytes = b"") -> bytes:
        return seal_chunk(
            plain,
            key=self._keys.snapshot,
            log=self.log_id,
            snapshot=snapshot,
            index=index,
            version=version,
            counter=self._take(),
            boot=boot,
        )
