"""For tests: an enclave served, a hostile host, attacks on an enclave, suites for TEE drivers and stores, vendors.

Public.
"""

from conclave.testing.attack.attack import Attack, Outcome, attack_identity
from conclave.testing.attack.fixture import attack_fixture
from conclave.testing.conformance import TeeConformance
from conclave.testing.hostile import HostileHost
from conclave.testing.server import HostServer, ServedEnclave, serve_enclave
from conclave.testing.states import StateConformance
from conclave.testing.stores import StoreConformance
from conclave.testing.vendors import VendorServer

__all__ = [
    "Attack",
    "HostServer",
    "HostileHost",
    "Outcome",
    "ServedEnclave",
    "StateConformance",
    "StoreConformance",
    "TeeConformance",
    "VendorServer",
    "attack_fixture",
    "attack_identity",
    "serve_enclave",
]
