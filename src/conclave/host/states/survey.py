"""What anybody can see of stored state without a key: versions, boots, sizes, and whether all of it fits together.

Runs in the untrusted host's place, for its operator. That it fits together says nothing of
authenticity: only an enclave that has the keys can tell.

Spec: spec/stores.md section 5 (STORE-27).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from conclave._chunkheader import split_chunks
from conclave._stateheader import BootHeader, ChunkHeader, next_digest, parse_chunk, parse_commit, parse_record
from conclave.errors import FormatError, StoreDamaged
from conclave.host.states.store import NONE_YET, StateStore, What

_ZEROS: Final = bytes(32)


@dataclass(slots=True)
class SnapshotFacts:
    """The newest complete snapshot."""

    snapshot_id: bytes
    version: int
    boot: BootHeader
    chunks: int = 0
    size: int = 0


@dataclass(slots=True)
class Survey:
    """Facts of one log. `boots` are those whose boot record is still there, by the version of that record.

    `digest`: of the whole log; None where its beginning is in a snapshot, sealed with it.
    """

    log_id: bytes = b""
    version: int = NONE_YET
    records: int = 0
    size: int = 0
    boots: list[tuple[int, BootHeader]] = field(default_factory=list)
    snapshot: SnapshotFacts | None = None
    posting: int = 0
    mails: int = 0
    digest: bytes | None = _ZEROS
    # Of the boot whose records are read.
    _counter: int = NONE_YET

    def add(self, what: What, data: bytes) -> None:
        """The next piece, in the order of `StateStore.read`.

        Raises:
            FormatError: it does not parse, or does not follow what came before it.
        """
        if what == What.ITEM:
            self._record(data)
        else:
            self._piece(what, parse_chunk(data), len(data))

    def _piece(self, what: What, header: ChunkHeader, size: int) -> None:
        if what == What.MANIFEST:
            if header.boot is None or self.snapshot is not None:
                raise FormatError("a snapshot's manifest is none")
            self.snapshot = SnapshotFacts(header.snapshot_id, header.version, header.boot)
            self.log_id, self.version, self.digest = header.boot.log_id, header.version, None
        snapshot = self.snapshot
        if snapshot is None or (header.snapshot_id, header.version) != (snapshot.snapshot_id, snapshot.version):
            raise FormatError("a chunk of another snapshot")
        due = 0 if what == What.MANIFEST else snapshot.chunks + 1
        if header.index != due:
            raise FormatError(f"chunk {header.index} of the snapshot where chunk {due} is due")
        snapshot.chunks = header.index
        snapshot.size += size

    def _record(self, item: bytes) -> None:
        commit = parse_commit(item)
        header = parse_record(commit.record)
        if header.version != self.version + 1:
            raise FormatError(f"a record of version {header.version} where version {self.version + 1} is due")
        if header.boot is not None:
            if self.log_id and header.boot.log_id != self.log_id:
                raise FormatError(f"the boot record of version {header.version} is of another log")
            self.log_id, self._counter = header.boot.log_id, NONE_YET
            self.boots.append((header.version, header.boot))
        elif not self.log_id:
            raise FormatError("the log does not begin with a boot record")
        if header.counter <= self._counter:
            raise FormatError(f"the nonce counter of version {header.version} does not grow")
        self._counter, self.version = header.counter, header.version
        self.records += 1
        self.size += len(item)
        if self.digest is not None:
            self.digest = next_digest(self.log_id, header.version, self.digest, commit.record)
        mails = len(list(split_chunks(memoryview(commit.posts))))
        self.posting += mails > 0
        self.mails += mails


async def survey(store: StateStore) -> Survey:
    """Read all that lies on a store; nothing of it is kept.

    Raises:
        StoreDamaged: it does not fit together, or cannot be what an enclave and its host wrote.
        StoreUnavailable: the store is gone or refuses.
    """
    found = Survey()
    async for what, data in store.read():
        try:
            found.add(what, data)
        except FormatError as error:
            raise StoreDamaged(f"the stored state does not fit together: {error}") from None
    return found
