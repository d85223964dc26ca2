"""Which store a URL names.

Runs in the untrusted host.

Spec: spec/stores.md section 3.
"""

from __future__ import annotations

from pathlib import Path

from conclave.errors import FormatError, StoreUnavailable
from conclave.host.stores.blobs import BlobStore
from conclave.host.stores.patience import TIMEOUT_SECONDS, Patience


def open_store(url: str, *, timeout_seconds: float = TIMEOUT_SECONDS, alone: bool = False) -> BlobStore:
    """The store at `file:DIR`, `sqlite:FILE`, `s3:BUCKET/PREFIX` or `postgresql://…`.

    Nothing is connected before the first operation.

    Args:
        timeout_seconds: how long one operation may take.
        alone: as a host's: refuse if another that is alone has it, until that closes it or ends.
            Nobody sees to this on S3 and PostgreSQL.

    Raises:
        FormatError: no such kind of store.
        StoreUnavailable: a package for it is not installed, its directory or file cannot be used, or another has it.
    """
    patience = Patience(timeout_seconds)
    kind, _, rest = url.partition(":")
    if kind == "file" and rest:
        from conclave.host.stores.directory import DirectoryStore

        return DirectoryStore(Path(rest), patience, alone=alone)
    if kind == "sqlite" and rest:
        from conclave.host.stores.sqlite import SqliteStore

        return SqliteStore(Path(rest), patience, alone=alone)
    if kind == "s3" and rest.strip("/"):
        try:
            from conclave.host.stores.s3 import S3Store
        except ImportError:
            raise _missing("S3", "s3") from None
        bucket, _, prefix = rest.strip("/").partition("/")
        return S3Store(bucket, prefix, patience)
    if kind in ("postgresql", "postgres") and rest:
        try:
            from conclave.host.stores.postgres import PostgresStore
        except ImportError:
            raise _missing("PostgreSQL", "postgres") from None
        return PostgresStore(url, patience)
    raise FormatError(
        "not a store; expected file:DIR, sqlite:FILE, s3:BUCKET/PREFIX or postgresql://USER@HOST/DATABASE"
    )


def _missing(name: str, extra: str) -> StoreUnavailable:
    return StoreUnavailable(f"stores on {name} need a package more: pip install 'conclave-core[{extra}]'")
