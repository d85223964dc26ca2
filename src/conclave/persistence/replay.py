"""What the host stored becomes the state that a boot begins with, or is refused.

Pure. Every byte is the host's, and hostile until it authenticates; nothing is handed out before all of it did.

Spec: spec/state.md section 8 (STATE-30 to STATE-38).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Final, TypeVar

from conclave._crypto import Secret, SigningKey
from conclave.errors import DecryptionError, FormatError, StateError, WrongKeyError
from conclave.persistence.context import History
from conclave.persistence.records import NO_DIGEST, Boot, Born, Change, Entry, Keys, digest_of, open_entry, parse_entry
from conclave.persistence.snapshots import Chunk, Data, Manifest, open_chunk, parse_chunk
from conclave.persistence.table import Table
from conclave.persistence.witness import log_id_of

# Of a bundle id and a revocation level, both only claimed: the sealing key that the TEE gives this enclave for them.
SealingKeyOf = Callable[[bytes, int], Secret]

_RESET: Final = "; to give this state up and begin a new log: `conclave state reset STORE`"
_OTHER: Final = " is authentic, and not as this release writes it; start the release that wrote it"
_DAMAGED: Final = "; restore the store as it was, or give this state up: `conclave state reset STORE`"


class What(IntEnum):
    """What a host says that it gives."""

    MANIFEST = 0
    CHUNK = 1
    ENTRY = 2
    END = 3
    UNREADABLE = 4


Stored = tuple[int, bytes]
T = TypeVar("T")


def make_change(change: Change, table: Table, rows: dict[bytes, bytes]) -> None:
    """Make one change in memory."""
    table.apply(change.map)
    for key, value in change.mail:
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value


class Replay:
    """The state of a log at its newest version that is known. Used up by the boot that goes on from it."""

    def __init__(self, *, key: SealingKeyOf, level: int) -> None:
        """Nothing yet.

        Args:
            key: called with what a record claims, after its level was found to be no higher than ours.
            level: our own revocation level.
        """
        self._key = key
        self._level = level
        # Sealing keys by what was claimed for them: the last one that opened something.
        self._sealing: dict[tuple[bytes, int], Secret] = {}
        self._keys: Keys | None = None
        self.log_id = b""
        self.version = -1
        self.digest = NO_DIGEST
        self.history = History()
        self.table = Table()
        self.rows: dict[bytes, bytes] = {}
        self.floor = 0
        # The level of the newest boot: it never falls along a log.
        self.level = 0
        self.token: Secret | None = None
        self.anchor: SigningKey | None = None

    def run(self, stored: Iterable[Stored]) -> None:
        """Take in everything that is stored: records in order, and the end.

        Raises:
            WrongKeyError: the first of it was sealed for somebody else.
            StateError: missing, repeated, in another order, changed, of another log, or too much.
        """
        source = iter(stored)
        what, data = self._next(source)
        # A snapshot, if there is one: the manifest, then its chunks.
        if what is What.MANIFEST:
            self._snapshot(data, source)
            what, data = self._next(source)
        # Entries, each after the one before.
        while what is What.ENTRY:
            self._entry(data)
            what, data = self._next(source)
        # The end, and only that.
        if what is not What.END:
            raise StateError(f"a record or the end was expected, and the host gave: {what.name.lower()}{_DAMAGED}")
        if data:
            raise StateError(f"the end that the host gave holds {len(data)} bytes, where it holds none{_DAMAGED}")

    @staticmethod
    def _next(source: Iterator[Stored]) -> tuple[What, bytes]:
        number, data = next(source, (None, b""))
        if number is None:
            raise StateError(f"what the host gave has no end: a part of the state is missing{_DAMAGED}")
        try:
            what = What(number)
        except ValueError:
            raise StateError(
                "the host gave something of an unknown kind; use host and enclave of one release"
            ) from None
        if what is What.UNREADABLE:
            raise StateError("the host says that its store cannot be read; the host's own log says why")
        return what, data

    def _snapshot(self, data: bytes, source: Iterator[Stored]) -> None:
        try:
            chunk = parse_chunk(data)
        except FormatError as error:
            raise StateError(f"the manifest of the snapshot is damaged: {error}{_DAMAGED}") from None
        if chunk.boot is None:
            raise StateError(f"a manifest was expected, and the host gave a chunk{_DAMAGED}")
        self._keys = keys = self._boot(chunk.boot, "the manifest")
        manifest: Manifest = self._opened(chunk, Manifest, keys, "the manifest")
        try:
            self.history = History.parse(manifest.history)
        except FormatError as error:
            raise StateError(f"the manifest{_OTHER} ({error})") from None
        if len(manifest.digest) != 32 or self.history.boot_of(chunk.version) != chunk.boot.boot:
            raise StateError(f"the manifest{_OTHER} (it does not hold what it must)")
        self._born(manifest.token_key, manifest.anchor_seed, "the manifest")
        self.version, self.digest, self.floor = chunk.version, manifest.digest, manifest.floor
        try:
            self.table = Table.load(self._items(chunk, manifest.count, keys, source))
        except ValueError:
            raise StateError(f"the snapshot{_OTHER} (its keys are not in order)") from None

    def _items(self, of: Chunk, count: int, keys: Keys, source: Iterator[Stored]) -> Iterator[tuple[str, bytes]]:
        """The map's items from the chunks of a snapshot, in order; the rows go where they belong."""
        rows = 0
        for index in range(1, count + 1):
            name = f"chunk {index} of {count} of the snapshot"
            what, data = self._next(source)
            if what is not What.CHUNK:
                raise StateError(f"{name} was expected, and the host gave: {what.name.lower()}{_DAMAGED}")
            try:
                chunk = parse_chunk(data)
            except FormatError as error:
                raise StateError(f"{name} is damaged: {error}{_DAMAGED}") from None
            if (chunk.snapshot, chunk.index, chunk.version) != (of.snapshot, index, of.version):
                raise StateError(f"{name} was expected, and the host gave another{_DAMAGED}")
            part: Data = self._opened(chunk, Data, keys, name)
            yield from part.map.items()
            self.rows.update(part.mail)
            rows += len(part.mail)
        if rows != len(self.rows):
            raise StateError(f"the snapshot{_OTHER} (it has a row twice)")

    def _opened(self, chunk: Chunk, kind: type[T], keys: Keys, name: str) -> T:
        try:
            return open_chunk(chunk, kind, key=keys.snapshot, log=self.log_id)
        except DecryptionError:
            raise StateError(
                f"{name} is not authentic here: it was changed, or is of another log, another snapshot or another place"
                f"{_DAMAGED}"
            ) from None
        except FormatError as error:
            raise StateError(f"{name}{_OTHER} ({error})") from None

    def _entry(self, data: bytes) -> None:
        version = self.version + 1
        try:
            entry = parse_entry(data)
        except FormatError as error:
            raise StateError(f"the record of version {version} is damaged: {error}{_DAMAGED}") from None
        if entry.version != version:
            raise StateError(
                f"the record of version {version} was expected, and the host gave version {entry.version}: "
                f"one is missing, repeated or out of order{_DAMAGED}"
            )
        if entry.boot:
            self._keys = self._boot(entry.boot, f"the boot record of version {version}")
            self.history.begin(entry.boot.boot, version)
        if self._keys is None:
            raise StateError(f"the first record of a log is a boot record, and the host gave another{_DAMAGED}")
        self._change(entry, self._keys)
        self.digest = digest_of(data, log=self.log_id, version=version, previous=self.digest)
        self.version = version

    def _boot(self, boot: Boot, name: str) -> Keys:
        """The keys of a boot, whose claims are tied to what is known already."""
        if boot.level > self._level:
            raise WrongKeyError(
                f"this state was written by revocation level {boot.level} of the program, and this enclave has "
                f"{self._level}: an older release never reads what a newer one wrote; start the newer one{_RESET}"
            )
        if self.log_id and boot.log != self.log_id:
            raise StateError(f"{name} is of another log{_DAMAGED}")
        if boot.level < self.level:
            raise StateError(f"{name} is of revocation level {boot.level}, after one of {self.level}{_DAMAGED}")
        claimed = (boot.bundle, boot.level)
        sealing = self._sealing.get(claimed) or self._key(*claimed)
        try:
            key = boot.unwrap(sealing)
        except DecryptionError:
            if self.log_id:
                raise StateError(f"{name} holds no key that opens for this enclave{_DAMAGED}") from None
            raise WrongKeyError(
                "the stored state was sealed under a key that this enclave does not have. It is of another program, "
                "another machine, another sealing policy or a higher patch level of the machine, or its first bytes "
                f"were changed: start the enclave that it belongs to, where it belongs{_RESET}"
            ) from None
        self._sealing = {claimed: sealing}
        self.log_id, self.level = boot.log, boot.level
        return Keys(key)

    def _change(self, entry: Entry, keys: Keys) -> None:
        """Open a record, and make its change."""
        kind: type[Born] | type[Change] = Born if entry.boot else Change
        try:
            held: Born | Change = open_entry(entry, kind, key=keys.record, log=self.log_id, previous=self.digest)
        except DecryptionError:
            raise StateError(
                f"the record of version {entry.version} is not authentic here: it was changed, or is of another log, "
                f"another boot or another place{_DAMAGED}"
            ) from None
        except FormatError as error:
            raise StateError(f"the record of version {entry.version}{_OTHER} ({error})") from None
        if isinstance(held, Born) and self.version < 0:
            self._born(held.token_key, held.anchor_seed, "the first record")
        elif isinstance(held, Born) and (held.token_key, held.anchor_seed) != (None, None):
            raise StateError(f"a later boot record{_OTHER} (it holds keys that are born with a log)")
        change = held.change if isinstance(held, Born) else held
        make_change(change, self.table, self.rows)
        self.floor = max(self.floor, change.floor)

    def _born(self, token_key: bytes | None, anchor_seed: bytes | None, name: str) -> None:
        """Take over the keys that are born with a log, by one of which its id is made."""
        if token_key is None or anchor_seed is None or not len(token_key) == len(anchor_seed) == 32:
            raise StateError(f"{name}{_OTHER} (it does not hold the keys that are born with a log)")
        self.token, self.anchor = Secret(token_key), SigningKey(anchor_seed)
        if log_id_of(self.anchor.public) != self.log_id:
            raise StateError(f"{name}{_OTHER} (the log's id names another key than it holds)")
