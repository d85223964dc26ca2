"""One simulated machine: its secret, its PKI, its TCB version, its quotes and sealing keys.

Runs in the simulated platform alone. A directory is a machine: deleting it
destroys the machine, and whoever can read it is the processor.

Spec: spec/claims.md section 2 (CLM-1), spec/host-channel.md section 3 (PLAT-1 to PLAT-3),
spec/tcb.md section 2 (TCB-1 to TCB-6).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from conclave import _crypto
from conclave._crypto import Secret
from conclave.errors import PlatformError, UnsupportedPolicy
from conclave.platform import pki
from conclave.platform.pki import Pki
from conclave.platform.quote import ATTRIBUTES, QuotingEnclave
from conclave.platform.vendor import FIRST, Moment, Tcb, Vendor, start_of_day

_REISSUE_AFTER: Final = timedelta(days=1)
_PARTS: Final = ("root", "ca", "tcb")


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What changes with an update, and what never does; hex where it is bytes.

    `serials` are of every PCK certificate the machine ever had.
    """

    secret: str
    fmspc: str
    ppid: str
    tcb: Tcb
    pck_key: str
    pck: str
    serials: tuple[str, ...]
    vendor: Vendor
    issued: Moment

    def certified(self, keys: Pki, tcb: Tcb) -> _Settings:
        """With another PCK certificate."""
        return msgspec.structs.replace(
            self,
            tcb=tcb,
            pck_key=pki.private_der(keys.pck_key).hex(),
            pck=pki.certificate_der(keys.pck).hex(),
            serials=(*self.serials, f"{keys.pck.serial_number:x}"),
        )


class _EarlySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of machines made before TCB versions could be rehearsed."""

    secret: str
    fmspc: str
    status: str
    advisories: tuple[str, ...]
    number: int
    issued: Moment


class Machine:
    """A simulated machine, opened from its directory.

    An object keeps the TCB version with which it was opened, as a machine does until
    it starts again; what the vendor says is always the newest.
    """

    def __init__(self, directory: Path, secret: bytes, tcb: Tcb, keys: Pki, attestation: bytes) -> None:
        self._directory = directory
        self._pki = keys
        self._secret = Secret(secret)
        self._attestation_key = pki.load_private(attestation)
        self.tcb = tcb
        self._quoting = QuotingEnclave(keys, tcb, self._attestation_key)

    @classmethod
    def open(cls, directory: Path, *, create: bool = True, now: datetime | None = None) -> Machine:
        """Open a machine; by default make it if there is none.

        Raises:
            PlatformError: the directory is damaged or cannot be used.
        """
        moment = now or datetime.now(UTC)
        target = directory / "machine"
        if not target.exists():
            if not create:
                raise PlatformError(f"there is no simulated machine in {directory}")
            _create(directory, moment)
        try:
            _bring_up_to_date(target, moment)
            machine = cls._read(target)
            machine.reissue(moment)
        except (OSError, ValueError, LookupError, msgspec.MsgspecError):
            raise PlatformError(
                f"the simulated machine in {target} is damaged; delete that directory to get a new machine "
                "(whatever was sealed on the old one is lost)"
            ) from None
        return machine

    @classmethod
    def _read(cls, target: Path) -> Machine:
        settings = _load(target)
        parts: dict[str, Any] = {name: bytes.fromhex(getattr(settings, name)) for name in ("fmspc", "ppid")}
        for name in _PARTS:
            parts[f"{name}_key"] = pki.load_private((target / f"{name}.key").read_bytes())
            parts[name] = pki.load_certificate((target / f"{name}.crt").read_bytes())
        parts["pck_key"] = pki.load_private(bytes.fromhex(settings.pck_key))
        parts["pck"] = pki.load_certificate(bytes.fromhex(settings.pck))
        attestation = (target / "attestation.key").read_bytes()
        return cls(target, bytes.fromhex(settings.secret), settings.tcb, Pki(**parts), attestation)

    @contextmanager
    def _alone(self) -> Iterator[_Settings]:
        """The settings, which no other process changes within the block."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _load(self._directory)
        finally:
            os.close(descriptor)

    def reissue(self, now: datetime) -> bool:
        """Publish endorsements again if those of before are a day old; whether it did."""
        with self._alone() as settings:
            fresh = timedelta(0) <= now - settings.issued < _REISSUE_AFTER
            if fresh and (self._directory / "endorsements").exists():
                return False
            self._issue(settings, now)
            return True

    def _issue(self, settings: _Settings, now: datetime) -> None:
        _write(self._directory / "endorsements", self._endorsements(settings, settings.vendor, now))
        _write(self._directory / "settings.json", msgspec.json.encode(msgspec.structs.replace(settings, issued=now)))

    def _endorsements(self, settings: _Settings, vendor: Vendor, now: datetime) -> bytes:
        return self._pki.endorsements(vendor, now=now, serials=[int(serial, 16) for serial in settings.serials])

    @property
    def vendor(self) -> Vendor:
        """What the vendor says now."""
        return _load(self._directory).vendor

    def tell(self, change: Callable[[Vendor], Vendor], *, now: datetime | None = None) -> None:
        """From now on the vendor says something else, and publishes it at once."""
        with self._alone() as settings:
            changed = msgspec.structs.replace(settings, vendor=change(settings.vendor))
            self._issue(changed, now or datetime.now(UTC))

    def foresee(self, change: Callable[[Vendor], Vendor], *, now: datetime | None = None) -> bytes:
        """The endorsements that there would be then. Nothing changes."""
        settings = _load(self._directory)
        return self._endorsements(settings, change(settings.vendor), now or datetime.now(UTC))

    def update(self, *, now: datetime | None = None) -> Tcb:
        """Patch the machine to the vendor's newest level, from its next start on; gives that version.

        Its sealing keys stay: what a machine sealed before an update it can still open.
        """
        moment = now or datetime.now(UTC)
        with self._alone() as settings:
            newest = settings.vendor.newest
            if newest != settings.tcb:
                keys = self._pki.certified(pki.new_private(), newest, now=moment)
                self._issue(settings.certified(keys, newest), moment)
            return newest

    @property
    def root_der(self) -> bytes:
        """The root certificate."""
        return pki.certificate_der(self._pki.root)

    @property
    def anchor(self) -> str:
        """SHA-256 of the root certificate, in hex: names this machine."""
        return _crypto.sha256(self.root_der).hex()

    def endorsements(self) -> bytes:
        """What the vendor publishes about this machine now."""
        return (self._directory / "endorsements").read_bytes()

    def quote(
        self,
        *,
        report_data: bytes,
        config_id: bytes,
        mrenclave: bytes,
        product: int = 1,
        svn: int = 1,
        attributes: bytes = ATTRIBUTES,
    ) -> bytes:
        """A real-format SGX ECDSA quote, version 3.

        Args:
            report_data: 64 bytes chosen by the enclave.
            config_id: 64 bytes chosen by the platform that launched it, never by it.
            mrenclave: 32 bytes, measurement of the runtime.
        """
        return self._quoting.quote(
            report_data=report_data,
            config_id=config_id,
            mrenclave=mrenclave,
            product=product,
            svn=svn,
            attributes=attributes,
        )

    def sealing_key(
        self,
        policy: str,
        *,
        code: bytes,
        signer: bytes,
        product_id: int,
        revocation_level: int,
        context: bytes,
        level: int | None = None,
    ) -> bytes:
        """32 bytes that only a program with the same identity gets on this machine.

        `code` binds the exact program, `signer` its author, `product` author and
        product. A revocation level is mixed into the latter two.

        Args:
            level: the one that is meant; None: the program's own.

        Raises:
            UnsupportedPolicy: another policy, an unsigned bundle asks for its author's key,
                which every unsigned bundle would share, or a program for a key of a higher level than its own.
        """
        wanted = revocation_level if level is None else level
        # An older release never gets a newer one's key: that is what raising the level is for.
        if not 0 <= wanted <= revocation_level or (policy == "code" and wanted != revocation_level):
            raise UnsupportedPolicy(
                f"a program of revocation level {revocation_level} has no key of level {wanted} under that policy"
            )
        mixed = wanted.to_bytes(2, "big")
        bound = {
            "code": code,
            "signer": signer + mixed,
            "product": signer + product_id.to_bytes(2, "big") + mixed,
        }
        if policy not in bound:
            raise UnsupportedPolicy("the policies are code, signer and product")
        if policy != "code" and not any(signer):
            raise UnsupportedPolicy("an unsigned bundle has no author to bind to; use the policy code")
        info = b"conclave/1 sealing " + policy.encode() + b"\0" + bound[policy] + b"\0" + context
        return self._secret.extract(b"conclave/1 platform").expand(info).insecure_reveal()


def _create(directory: Path, now: datetime) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # The sandbox's mapped user must be able to pass through to what is mounted.
        place = Path(tempfile.mkdtemp(prefix="machine.", dir=directory))
    except OSError as error:
        raise PlatformError(f"cannot make a simulated machine in {directory}: {error.strerror}") from None
    fmspc, ppid = _crypto.random_bytes(6), _crypto.random_bytes(16)
    keys = Pki.create(fmspc=fmspc, ppid=ppid, now=now)
    for name in _PARTS:
        _write(place / f"{name}.key", pki.private_der(getattr(keys, f"{name}_key")))
        certificate = pki.certificate_der(getattr(keys, name))
        _write(place / f"{name}.crt", certificate)
    _write(place / "attestation.key", pki.private_der(pki.new_private()))
    long_ago = datetime.min.replace(tzinfo=UTC)
    secret = _crypto.random_bytes(32).hex()
    bare = _Settings(secret, fmspc.hex(), ppid.hex(), FIRST, "", "", (), Vendor.first(start_of_day(now)), long_ago)
    _write(place / "settings.json", msgspec.json.encode(bare.certified(keys, FIRST)))
    try:
        place.rename(directory / "machine")
    except OSError:
        # Somebody else made it first; theirs is the machine.
        shutil.rmtree(place, ignore_errors=True)
        if not (directory / "machine").exists():
            raise PlatformError(f"cannot make a simulated machine in {directory}") from None


def _bring_up_to_date(target: Path, now: datetime) -> None:
    """Give an early machine what later ones have. Its root and what it sealed stay.

    Its PCK certificate named a PPID that was written down nowhere else: it gets another.
    """
    try:
        early = msgspec.json.decode((target / "settings.json").read_bytes(), type=_EarlySettings)
    except msgspec.ValidationError:
        return
    parts: dict[str, Any] = {"fmspc": bytes.fromhex(early.fmspc)}
    for name in _PARTS:
        parts[f"{name}_key"] = pki.load_private((target / f"{name}.key").read_bytes())
        parts[name] = pki.load_certificate((target / f"{name}.crt").read_bytes())
    key = pki.load_private((target / "pck.key").read_bytes())
    ppid = _crypto.sha256(pki.certificate_der(parts["root"]))[:16]
    keys = Pki(pck_key=key, pck=parts["ca"], ppid=ppid, **parts).certified(key, FIRST, now=now)
    vendor = Vendor.first(start_of_day(now), number=early.number + 1)
    long_ago = datetime.min.replace(tzinfo=UTC)
    bare = _Settings(early.secret, early.fmspc, ppid.hex(), FIRST, "", "", (), vendor, long_ago)
    _write(target / "settings.json", msgspec.json.encode(bare.certified(keys, FIRST)))


def _load(directory: Path) -> _Settings:
    return msgspec.json.decode((directory / "settings.json").read_bytes(), type=_Settings)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)
