"""For tests: an enclave served, a hostile host, suites for TEE drivers and blob stores, vendors' services. Public."""

from conclave.testing.conformance import TeeConformance
from conclave.testing.hostile import HostileHost
from conclave.testing.server import HostServer, ServedEnclave, serve_enclave
from conclave.testing.stores import StoreConformance
from conclave.testing.vendors import VendorServer

__all__ = [
    "HostServer",
    "HostileHost",
    "ServedEnclave",
    "StoreConformance",
    "TeeConformance",
    "VendorServer",
    "serve_enclave",
]
