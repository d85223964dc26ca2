"""Lets a test treat one simulated machine as genuine hardware.

For tests and rehearsals only: no public setting of the verifier does this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from conclave.attestation import verify as _verify


@contextmanager
def secure_simulated(root_der: bytes) -> Iterator[None]:
    """Within the block, evidence under this root counts as `TEE:sgx`."""
    before = _verify._vendor_roots["sgx"]
    _verify._vendor_roots["sgx"] = before | {hashlib.sha256(root_der).hexdigest()}
    try:
        yield
    finally:
        _verify._vendor_roots["sgx"] = before
