"""For tests and demonstrations: an enclave served, a hostile host, TEE drivers, the vendors' services. Public."""

from conclave.testing.conformance import TeeConformance
from conclave.testing.hostile import HostileHost
from conclave.testing.server import HostServer, ServedEnclave, serve_enclave
from conclave.testing.vendors import VendorServer

__all__ = ["HostServer", "HostileHost", "ServedEnclave", "TeeConformance", "VendorServer", "serve_enclave"]
