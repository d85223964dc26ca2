"""The common host: untrusted, runs an enclave and serves its clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conclave._lazy import lazily

if TYPE_CHECKING:
    from conclave.host.host import Host, log_to_stderr
    from conclave.host.stores import BlobStore, open_store

__all__ = ["BlobStore", "Host", "log_to_stderr", "open_store"]

# The command takes its ports, and has the platform start, before it loads the rest.
__getattr__ = lazily(__name__, {"BlobStore": "stores", "Host": "host", "log_to_stderr": "host", "open_store": "stores"})
