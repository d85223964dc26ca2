"""SGX by way of Gramine: the pseudo-files under /dev/attestation.

Runs inside the enclave. The library OS that answers is part of MRENCLAVE.

Spec: spec/drivers.md section 2 (DRV-7 to DRV-10).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from conclave._crypto import Secret
from conclave.enclave.drivers import fields
from conclave.enclave.drivers.files import Files
from conclave.enclave.drivers.tee import (
    Evidence,
    Identity,
    Mounted,
    check_context,
    check_echo,
    check_level,
    check_report_data,
    key_from,
    policy_root,
    unsupported,
)
from conclave.errors import PlatformError

PLACE: Final = "dev/attestation"
_MAX_QUOTE: Final = 65536
_MAX_WORD: Final = 64
_KEY: Final = "keys/_sgx_mrenclave"
_KEY_SIZE: Final = 16


class GramineTee:
    """The TEE of a Gramine manifest with `sgx.remote_attestation = "dcap"`."""

    kind = "sgx"
    # Gramine has no sandbox to close; the processor isolates the enclave.
    places: Sequence[str] | None = None

    def __init__(self, files: Files) -> None:
        self._files = files
        # Report data is one value for the whole process, so writing it and reading the
        # quote over it must not be interleaved by two threads.
        self._lock = threading.Lock()
        self._mounted: Mounted | None = None

    def identity(self, mounted: Mounted) -> Identity:
        """The mounted bundle: it stands in the manifest, so MRENCLAVE covers it.

        The quote has no field of its own for it. A verifier knows by a reference value
        which measurement the runtime makes together with this bundle.
        """
        kind = self._read("attestation_type", _MAX_WORD).strip()
        if kind != b"dcap":
            shown = kind.decode("ascii", "replace") if kind.isalnum() else "unknown"
            raise PlatformError(f"Gramine's attestation type is {shown!r}; the manifest must say dcap")
        self._mounted = mounted
        return Identity(tee=self.kind, bundle_id=mounted.bundle_id, sandbox="none")

    def check_closed(self) -> None:
        """See `Tee.check_closed`."""

    def evidence(self, report_data: bytes) -> Evidence:
        """See `Tee.evidence`."""
        check_report_data(report_data)
        with self._lock:
            self._write("user_report_data", report_data)
            quote = self._read("quote", _MAX_QUOTE)
        check_echo(fields.sgx_report_data(quote), report_data, quote)
        return Evidence(self.kind, quote)

    def sealing_key(self, policy: str, context: bytes = b"", *, level: int | None = None) -> bytes:
        """See `Tee.sealing_key`; SGX binds to the exact runtime and bundle, and to the processor.

        The processor also has a key by MRSIGNER: that is whoever signed the manifest,
        not the author of the bundle, so it is not offered.
        """
        check_context(context)
        if policy != "code":
            raise unsupported(policy, tee="SGX", offers="binds keys to the exact program alone (policy 'code')")
        if self._mounted is None:
            raise RuntimeError("identity comes first")
        check_level(policy, level, self._mounted.revocation_level)
        key = self._read(_KEY, _MAX_WORD)
        if len(key) != _KEY_SIZE:
            raise PlatformError(f"Gramine's sealing key has {len(key)} bytes, not {_KEY_SIZE}")
        root = policy_root(Secret(key), tee=self.kind, policy=policy, bound=self._mounted.bundle_id)
        return key_from(root, context)

    def _write(self, name: str, data: bytes) -> None:
        try:
            self._files.write(name, data)
        except OSError as error:
            raise _refused(name, error) from None

    def _read(self, name: str, most: int) -> bytes:
        try:
            return self._files.read(name, most)
        except OSError as error:
            raise _refused(name, error) from None


def _refused(name: str, error: OSError) -> PlatformError:
    return PlatformError(f"Gramine's {name}: {error.strerror}")
