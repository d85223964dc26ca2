"""What stores on a local file system share.

Runs in the untrusted host.

Spec: spec/stores.md section 3.
"""

from __future__ import annotations

from pathlib import Path

from conclave.errors import StoreUnavailable


def unusable(path: Path, error: OSError) -> StoreUnavailable:
    """Why a store cannot be opened there, or made."""
    if isinstance(error, FileNotFoundError):
        # A folder that is made of what was mistyped, or where a disk is not mounted, would take mail in silence.
        return StoreUnavailable(f"no such folder: {path.parent}; make it first")
    return StoreUnavailable(f"cannot use {path} as a store: {error.strerror}")
