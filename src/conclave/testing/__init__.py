"""For tests and demonstrations: a hostile host, a server in a thread. Public."""

from conclave.testing.hostile import HostileHost
from conclave.testing.server import HostServer

__all__ = ["HostServer", "HostileHost"]
