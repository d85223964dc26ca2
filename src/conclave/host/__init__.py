"""The common host: untrusted, runs an enclave and serves its clients."""

from conclave.host.host import Host, log_to_stderr

__all__ = ["Host", "log_to_stderr"]
