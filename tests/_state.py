"""Sealed state as a host sees it: records and snapshots with good headers, and nothing behind them."""

from __future__ import annotations

from conclave._stateheader import (
    BOOT,
    BOOT_HEADER,
    CHANGE,
    CHUNK_HEADER,
    COMMIT_HEADER,
    RECORD_HEADER,
    RECORD_MAGIC,
    SNAPSHOT_HEADER,
    SNAPSHOT_MAGIC,
)

LOG = b"L" * 32


def boot_header(boot: int = 1, *, log: bytes = LOG, bundle: bytes = b"B" * 32, level: int = 3) -> bytes:
    """What a boot says of itself."""
    return BOOT_HEADER.pack(log, bundle, level, boot.to_bytes(16, "big"), bytes(32), bytes(48))


def record(version: int, body: bytes = b"", *, boot: bytes = b"") -> bytes:
    """A record whose ciphertext is that body and a tag of zeros."""
    sealed = body + bytes(16)
    head = RECORD_HEADER.pack(RECORD_MAGIC, BOOT if boot else CHANGE, bytes(3), version, version, len(sealed))
    return head + boot + sealed


def commit(version: int, body: bytes = b"", *, boot: bytes = b"", posts: bytes = b"") -> bytes:
    """Payload of a COMMIT frame."""
    made = record(version, body, boot=boot)
    return COMMIT_HEADER.pack(version, len(made)) + made + posts


def chunk(snapshot: int, index: int, version: int, body: bytes = b"") -> bytes:
    """A chunk of a snapshot; index 0 is its manifest."""
    sealed = body + bytes(16)
    head = CHUNK_HEADER.pack(
        SNAPSHOT_MAGIC, 2 if index else 1, bytes(3), snapshot.to_bytes(16, "big"), index, version, index, len(sealed)
    )
    return head + (b"" if index else boot_header()) + sealed


def snapshot(snapshot: int, index: int, version: int, body: bytes = b"") -> bytes:
    """Payload of a SNAPSHOT frame."""
    head = SNAPSHOT_HEADER.pack(snapshot.to_bytes(16, "big"), index, version)
    return head + chunk(snapshot, index, version, body)
