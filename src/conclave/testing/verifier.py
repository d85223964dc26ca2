"""Lets a test treat one simulated machine as genuine hardware.

For tests and rehearsals only: no public setting of the verifier does this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import conclave
from conclave.attestation import constraint as _constraint
from conclave.attestation import verify as _verify


@contextmanager
def secure_simulated(
    root_der: bytes, *, measurement: bytes, release: str = f"conclave-{conclave.__version__}"
) -> Iterator[None]:
    """Within the block, evidence under this root counts as `TEE:sgx`.

    Args:
        root_der: the machine's root certificate.
        measurement: counts as the release's runtime on that hardware (32 bytes).
        release: which release that is.
    """
    roots, measurements = _verify._vendor_roots["sgx"], _constraint._release_measurements.get(release, frozenset())
    _verify._vendor_roots["sgx"] = roots | {hashlib.sha256(root_der).hexdigest()}
    _constraint._release_measurements[release] = measurements | {measurement.hex()}
    try:
        yield
    finally:
        _verify._vendor_roots["sgx"] = roots
        _constraint._release_measurements[release] = measurements
