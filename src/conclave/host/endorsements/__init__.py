"""Vendors' endorsements for a host to staple: fetched, cached, exported, imported.

Untrusted, holds no keys: clients verify what is stapled.
"""

from conclave.host.endorsements.amd import AmdService
from conclave.host.endorsements.http import TimeLimits
from conclave.host.endorsements.intel import IntelService
from conclave.host.endorsements.source import Clock, Endorsements, EndorsementSource

__all__ = ["AmdService", "Clock", "EndorsementSource", "Endorsements", "IntelService", "TimeLimits"]
