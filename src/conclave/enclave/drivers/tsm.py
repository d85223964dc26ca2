"""SEV-SNP and TDX by way of configfs-tsm, the kernel's common report interface.

Runs inside the enclave. The kernel of the guest is measured; it speaks to the
processor for us.

Spec: spec/drivers.md section 3 (DRV-11 to DRV-21). Sources: the kernel's ABI pages
configfs-tsm-report and sysfs-devices-virtual-misc-tdx_guest.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from conclave import _crypto
from conclave._crypto import Secret
from conclave.enclave.drivers import certificates, fields
from conclave.enclave.drivers.fields import EMPTY_REGISTER, extended
from conclave.enclave.drivers.files import Files
from conclave.enclave.drivers.sevguest import SevGuest
from conclave.enclave.drivers.tee import (
    NO_BUNDLE,
    Evidence,
    Identity,
    Mounted,
    bound_parts,
    check_context,
    check_echo,
    check_level,
    check_report_data,
    key_from,
    unsupported,
)
from conclave.errors import PlatformError

T = TypeVar("T")

PLACE: Final = "sys/kernel/config/tsm/report"
REGISTERS: Final = "sys/devices/virtual/misc/tdx_guest/measurements"
_MAX_BLOB: Final = 65536
_MAX_WORD: Final = 64
_NUMBER: Final = re.compile(rb"\d{1,20}")
# The kernel's own words for "not now": a quote in flight, a signal, no answer in time.
_PASSING: Final = frozenset({errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.EAGAIN})
_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.2
_MAX_PRIVILEGE_LEVEL: Final = 3


class Reports:
    """Reports over 64 bytes, each from an entry of its own."""

    def __init__(self, files: Files, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._files = files
        self._sleep = sleep
        self._lock = threading.Lock()

    def provider(self) -> str:
        """Which driver of the kernel answers, such as `sev_guest`. Raises OSError, PlatformError."""
        with self._entry() as name:
            return self._word(name, "provider").decode("ascii", "replace")

    def report(self, data: bytes, *, provider: str, leveled: bool) -> tuple[bytes, bytes]:
        """A report over the data, and what the kernel gives along.

        Args:
            provider: whose report it must be.
            leveled: there are privilege levels (VMPL): ask from the least that is
                allowed here, and there is an auxiliary blob.

        Raises:
            PlatformError: the kernel refuses, or does not come to an end.
        """
        check_report_data(data)
        try:
            with self._lock, self._entry() as name:
                # 1. The right kernel driver.
                if self._word(name, "provider") != provider.encode():
                    raise PlatformError(f"the kernel's reports are not those of {provider}")
                for attempt in range(_ATTEMPTS):
                    # 2. Set every option, counting.
                    before = self._number(name, "generation")
                    writes = self._ask(name, data, leveled=leveled)
                    # 3. The first read makes the report; later ones read the same again.
                    found = self._patiently(lambda: self._files.read(f"{name}/outblob", _MAX_BLOB))
                    along = b""
                    if leveled:
                        along = self._patiently(lambda: self._files.read(f"{name}/auxblob", _MAX_BLOB))
                    # 4. Nobody else wrote between: then the report is over our options.
                    if self._number(name, "generation") == before + writes:
                        return found, along
                    self._sleep(_PAUSE_SECONDS * attempt)
        except OSError as error:
            raise _refused(error) from None
        raise PlatformError("somebody else keeps writing to our entry of configfs-tsm")

    def _ask(self, name: str, data: bytes, *, leveled: bool) -> int:
        if leveled:
            level = self._number(name, "privlevel_floor")
            if level > _MAX_PRIVILEGE_LEVEL:
                raise PlatformError("configfs-tsm names a privilege level that does not exist")
            self._patiently(lambda: self._files.write(f"{name}/privlevel", b"%d" % level))
        self._patiently(lambda: self._files.write(f"{name}/inblob", data))
        return 2 if leveled else 1

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do it again a few times where the kernel says "not now"."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return work()
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
            self._sleep(_PAUSE_SECONDS * attempt)
        return work()

    @contextmanager
    def _entry(self) -> Iterator[str]:
        # Nobody else knows the name; and it is no secret.
        name = f"conclave-{os.getpid()}-{_crypto.random_bytes(8).hex()}"
        self._files.mkdir(name)
        try:
            yield name
        finally:
            # An entry that stays costs some memory of the kernel; the report is as good.
            with suppress(OSError):
                self._files.rmdir(name)

    def _word(self, name: str, attribute: str) -> bytes:
        return self._files.read(f"{name}/{attribute}", _MAX_WORD).removesuffix(b"\n")

    def _number(self, name: str, attribute: str) -> int:
        word = self._word(name, attribute)
        if not _NUMBER.fullmatch(word):
            raise PlatformError(f"configfs-tsm's {attribute} is not a number")
        return int(word)


def _refused(error: OSError) -> PlatformError:
    if error.errno == errno.ENXIO:
        return PlatformError("configfs-tsm has no provider here: this is no SEV-SNP or TDX guest")
    return PlatformError(f"configfs-tsm: {error.strerror}")


# SEV-SNP -----------------------------------------------------------------------------


class SnpTee:
    """The TEE of an SEV-SNP guest."""

    kind = "snp"
    provider: Final = "sev_guest"

    def __init__(self, reports: Reports, guest: SevGuest, *, places: Sequence[str]) -> None:
        """Nothing is asked yet.

        Args:
            guest: the device with derived keys, used before author code runs and never after.
            places: where `reports` lie.
        """
        self.places = places
        self._reports = reports
        self._guest = guest
        self._roots: Mapping[tuple[str, int], Secret] = {}
        self._level = 0
        self._no_keys = "gave none to this runtime"

    def identity(self, mounted: Mounted) -> Identity:
        """The bundle in HOST_DATA, which the host set at launch and nobody can change."""
        report = fields.SnpReport(self._report(bytes(64))[0])
        if report.host_data == NO_BUNDLE:
            raise PlatformError("HOST_DATA is empty; the guest must be launched with the bundle id in it")
        if _crypto.same(report.host_data, mounted.bundle_id):
            self._level = mounted.revocation_level
            self._derive(report, mounted)
        return Identity(tee=self.kind, bundle_id=report.host_data, sandbox="none")

    def _derive(self, report: fields.SnpReport, mounted: Mounted) -> None:
        try:
            self._roots = self._guest.roots(level=report.vmpl, tcb=report.committed_tcb, bound=bound_parts(mounted))
        except PlatformError as error:
            # Evidence needs no keys. Who asks for one is told why there is none.
            self._no_keys = f"gave no derived keys ({error})"

    def check_closed(self) -> None:
        """See `Tee.check_closed`: the device with derived keys must be out of reach.

        The processor's key belongs to the runtime and not to the bundle, so author code
        of any bundle that reached the device could derive every other bundle's keys.
        """
        if self._guest.opens():
            raise PlatformError("the device of SEV-SNP keys is still open to author code: the sandbox is not closed")

    def evidence(self, report_data: bytes) -> Evidence:
        """See `Tee.evidence`; hints are the host's certificates."""
        report, table = self._report(report_data)
        check_echo(fields.SnpReport(report).report_data, report_data, report)
        return Evidence(self.kind, report, certificates.hints(table))

    def sealing_key(self, policy: str, context: bytes = b"", *, level: int | None = None) -> bytes:
        """See `Tee.sealing_key`; SEV-SNP binds to this runtime, processor and TCB besides."""
        check_context(context)
        if (policy, self._level) not in self._roots:
            offered = dict.fromkeys(policy for policy, _ in self._roots)
            offers = f"binds keys to {' and '.join(offered)} alone" if offered else self._no_keys
            raise unsupported(policy, tee="SEV-SNP", offers=offers)
        return key_from(self._roots[policy, check_level(policy, level, self._level)], context)

    def _report(self, data: bytes) -> tuple[bytes, bytes]:
        return self._reports.report(data, provider=self.provider, leveled=True)


# TDX ---------------------------------------------------------------------------------


class TdxTee:
    """The TEE of a TDX guest."""

    kind = "tdx"
    provider: Final = "tdx_guest"
    _REGISTER_NAME: Final = "rtmr3:sha384"

    def __init__(self, reports: Reports, *, registers: Files, places: Sequence[str]) -> None:
        """Nothing is asked yet.

        Args:
            registers: the kernel's directory of measurement registers (Linux 6.16 and later).
            places: where `reports` lie.
        """
        self.places = places
        self._reports = reports
        self._registers = registers

    def identity(self, mounted: Mounted) -> Identity:
        """The bundle in MRCONFIGID, or in RTMR3 where the launch left MRCONFIGID empty."""
        quote = self._quote(bytes(64))
        if quote.mrconfigid != EMPTY_REGISTER:
            named, rest = quote.mrconfigid[:32], quote.mrconfigid[32:]
            if any(rest):
                raise PlatformError("MRCONFIGID holds something else than a bundle id and 16 zero bytes")
            return Identity(tee=self.kind, bundle_id=named, sandbox="none")
        # RTMR3 starts as zeros. A runtime that starts again finds its own extension.
        once = mounted.bundle_id + bytes(16)
        if quote.rtmr3 == EMPTY_REGISTER:
            self._extend(once)
            quote = self._quote(bytes(64))
        if not _crypto.same(quote.rtmr3, extended(EMPTY_REGISTER, once)):
            raise PlatformError("RTMR3 holds something else than this bundle, once; start the guest anew")
        return Identity(tee=self.kind, bundle_id=mounted.bundle_id, sandbox="none")

    def check_closed(self) -> None:
        """See `Tee.check_closed`."""

    def evidence(self, report_data: bytes) -> Evidence:
        """See `Tee.evidence`."""
        quote = self._report(report_data)
        check_echo(fields.TdQuote(quote).report_data, report_data, quote)
        return Evidence(self.kind, quote)

    def sealing_key(self, policy: str, context: bytes = b"", *, level: int | None = None) -> bytes:
        """See `Tee.sealing_key`; there is none."""
        check_context(context)
        raise unsupported(policy, tee="TDX", offers="has no sealing keys")

    def _extend(self, data: bytes) -> None:
        try:
            self._registers.write(self._REGISTER_NAME, data)
        except OSError as error:
            raise PlatformError(
                f"RTMR3 cannot be extended ({error.strerror}): launch the guest with the bundle id in MRCONFIGID, "
                "or with Linux 6.16 or later"
            ) from None

    def _quote(self, data: bytes) -> fields.TdQuote:
        return fields.TdQuote(self._report(data))

    def _report(self, data: bytes) -> bytes:
        return self._reports.report(data, provider=self.provider, leveled=False)[0]
