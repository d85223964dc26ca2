"""For tests and demonstrations: an enclave served, a hostile host. Public."""

from conclave.testing.hostile import HostileHost
from conclave.testing.server import HostServer, ServedEnclave, serve_enclave

__all__ = ["HostServer", "HostileHost", "ServedEnclave", "serve_enclave"]
