"""Which state store belongs to the store that a URL names.

Runs in the untrusted host.

Spec: spec/stores.md section 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from conclave.host.states.blobs import BlobStates
from conclave.host.states.files import FileStates
from conclave.host.states.store import StateStore
from conclave.host.stores import BlobStore

DIRECTORY: Final = "state"


def open_state(url: str, blobs: BlobStore) -> StateStore:
    """The state store in the blob store that was opened at that URL."""
    kind, _, rest = url.partition(":")
    return FileStates(Path(rest) / DIRECTORY) if kind == "file" else BlobStates(blobs)
