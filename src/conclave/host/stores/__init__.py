"""Blob stores: where a host keeps small files of bytes that outlive it.

Runs in the untrusted host. A store is untrusted too: what is kept in it is sealed
or checked by whoever reads it.

Spec: spec/stores.md.
"""

from conclave.host.stores.blobs import MAX_BLOB, MAX_NAME, BlobStore
from conclave.host.stores.opening import open_store

__all__ = ["MAX_BLOB", "MAX_NAME", "BlobStore", "open_store"]
