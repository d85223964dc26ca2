"""For tests and demonstrations: an enclave served, a hostile host, what a TEE driver must do. Public."""

from conclave.testing.conformance import TeeConformance
from conclave.testing.hostile import HostileHost
from conclave.testing.server import HostServer, ServedEnclave, serve_enclave

__all__ = ["HostServer", "HostileHost", "ServedEnclave", "TeeConformance", "serve_enclave"]
