"""Which state store belongs to the store that a URL names.

Runs in the untrusted host.

Spec: spec/stores.md section 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from conclave.host.states.blobs import GRACE_SECONDS, BlobStates
from conclave.host.states.files import FileStates
from conclave.host.states.store import StateStore
from conclave.host.stores import BlobStore

DIRECTORY: Final = "state"


def open_state(url: str, blobs: BlobStore, *, alone: bool = False) -> StateStore:
    """The state store in the blob store that was opened at that URL.

    Args:
        alone: no host has it; on a directory and in SQLite a lock says so anyway.
    """
    kind, _, rest = url.partition(":")
    if kind == "file":
        return FileStates(Path(rest) / DIRECTORY)
    return BlobStates(blobs, grace_seconds=0 if alone or kind == "sqlite" else GRACE_SECONDS)
