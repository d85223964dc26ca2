"""The common host: untrusted, runs an enclave and serves its clients."""

from conclave.host.host import Host, log_to_stderr
from conclave.host.stores import BlobStore, open_store

__all__ = ["BlobStore", "Host", "log_to_stderr", "open_store"]
