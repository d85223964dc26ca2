"""The enclave's half of the TEE drivers: identity, evidence and sealing keys.

Runs inside the enclave. The TEE is trusted, and the kernel that passes its words
on is measured; certificates that come along are the host's word.

Spec: spec/drivers.md.
"""

from conclave.enclave.drivers.selection import find
from conclave.enclave.drivers.tee import Evidence, Identity, Mounted, Tee

__all__ = ["Evidence", "Identity", "Mounted", "Tee", "find"]
