"""Lets a test or a rehearsal treat a root of its own as a vendor's.

For tests and rehearsals only: no public setting of the verifier does this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

import conclave
from conclave.attestation import reference as _reference
from conclave.attestation import verify as _verify

RELEASE = f"conclave-{conclave.__version__}"


@contextmanager
def vendor_root(
    root_der: bytes,
    *,
    tee: str,
    measurement: bytes,
    release: str = RELEASE,
    bundle_id: bytes | None = None,
    minimum_tcb: dict[str, str] | None = None,
) -> Iterator[None]:
    """Within the block, this root vouches for that TEE, as its vendor's does.

    Args:
        root_der: the root certificate.
        tee: `sgx`, `tdx`, `snp` or `nitro`.
        measurement: counts as the release's runtime there (`runtime_measurement`).
        release: which release that is.
        bundle_id: with SGX, where the measurement covers this bundle too.
        minimum_tcb: as reference values have it.
    """
    roots, known = _verify._vendor_roots[tee], _reference._built_in
    _verify._vendor_roots[tee] = roots | {hashlib.sha256(root_der).hexdigest()}
    found = {**known.releases.get(release, {})}
    found[tee] = [*found.get(tee, []), measurement.hex()]
    bundles = {**known.bundles.get(release, {})}
    if bundle_id is not None:
        bundles[bundle_id.hex()] = [measurement.hex()]
    _reference._built_in = msgspec.structs.replace(
        known,
        releases={**known.releases, release: found},
        bundles={**known.bundles, release: bundles},
        minimum_tcb={**known.minimum_tcb, **(minimum_tcb or {})},
    )
    try:
        yield
    finally:
        _verify._vendor_roots[tee] = roots
        _reference._built_in = known


@contextmanager
def secure_simulated(root_der: bytes, *, measurement: bytes, release: str = RELEASE) -> Iterator[None]:
    """Within the block, evidence of one simulated machine counts as `TEE:sgx`."""
    with vendor_root(root_der, tee="sgx", measurement=measurement, release=release):
        yield
