"""Logs for tests of sealed state, and what a host would have stored of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from conclave._crypto import Secret
from conclave.persistence.log import Change, Log, What

BUNDLE = bytes(range(32))
IDENTITY = bytes(range(64, 96))
SEALING = Secret(bytes(range(32)))
LEVEL = 3


def sealing_key(bundle: bytes, level: int) -> Secret:
    """One machine's key for one program; each level has its own."""
    return SEALING.extract(bundle).expand(b"level %d" % level)


OPTIONS: dict[str, Any] = {"key": sealing_key, "bundle_id": BUNDLE, "level": LEVEL}


def new_log() -> tuple[Log, list[bytes]]:
    """A new log after its boot record, and its entries."""
    log = Log.begin(**OPTIONS)
    return log, [log.boot_entry()]


def change(number: int) -> Change:
    """A change that differs from those of other numbers."""
    return Change(
        map=[(f"key {number % 5}", b"%d" % number), (f"gone {number - 1}", None), (f"gone {number}", b"")],
        mail=[(b"row %d" % (number % 3), bytes(number % 50)), (b"mark %d" % (number - 2), None)],
        posts=[(bytes(16), number, bytes(32))],
        floor=1000 - number if number % 2 else 1000 + number,
    )


def stored(
    entries: Iterable[bytes], snapshot: Iterable[bytes] = (), *, end: bool = True
) -> Iterator[tuple[int, bytes]]:
    """As a host gives it: the manifest first, which a snapshot ends with."""
    chunks = list(snapshot)
    yield from ((What.MANIFEST, data) for data in chunks[-1:])
    yield from ((What.CHUNK, data) for data in chunks[:-1])
    yield from ((What.ENTRY, data) for data in entries)
    if end:
        yield What.END, b""


def restore(entries: Iterable[bytes], snapshot: Iterable[bytes] = (), **options: Any) -> Log:
    """The log of the next boot, before its boot record."""
    return Log.restore(stored(entries, snapshot), **(OPTIONS | options))


def contents(log: Log) -> tuple[Any, ...]:
    """All that a log holds."""
    view = log.table.snapshot()
    items = list(view.scan())
    view.release()
    return log.log_id, log.version, log.digest, log.floor, items, dict(log.rows), log.anchor.public
