"""One simulated machine: its secret, its PKI, its quotes and sealing keys.

Runs in the simulated platform alone. A directory is a machine: deleting it
destroys the machine, and whoever can read it is the processor.

Spec: spec/claims.md section 2 (CLM-1), spec/host-channel.md section 3 (PLAT-1, PLAT-2).
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conclave import _crypto
from conclave._crypto import Secret
from conclave.errors import PlatformError, UnsupportedPolicy
from conclave.platform import pki
from conclave.platform.pki import Pki

QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
# INIT and MODE64BIT, and KSS, without which a report has no CONFIGID.
ATTRIBUTES: Final = struct.pack("<QQ", 0x85, 0x3)
_REISSUE_AFTER: Final = timedelta(days=1)
_PARTS: Final = ("root", "ca", "pck", "tcb")


def report_body(
    *,
    measurement: bytes,
    signer: bytes,
    attributes: bytes,
    product: int,
    svn: int,
    report_data: bytes,
    config_id: bytes = bytes(64),
) -> bytes:
    """An SGX report body, 384 bytes (Intel SDM volume 3D, table 38-21)."""
    if [len(p) for p in (measurement, signer, attributes, report_data, config_id)] != [32, 32, 16, 64, 64]:
        raise ValueError("a part of the report body has another size than it must have")
    return b"".join(
        (
            bytes((pki.CPU_SVN,)) * 16,
            bytes(4 + 12 + 16),
            attributes,
            measurement,
            bytes(32),
            signer,
            bytes(32),
            config_id,
            struct.pack("<HHH", product, svn, 0),
            bytes(42 + 16),
            report_data,
        )
    )


class Machine:
    """A simulated machine, opened from its directory."""

    def __init__(self, directory: Path, settings: dict[str, Any], keys: Pki, attestation: bytes) -> None:
        self._directory = directory
        self._settings = settings
        self._pki = keys
        self._secret = Secret(bytes.fromhex(settings["secret"]))
        self._attestation_key = pki.load_private(attestation)
        self._qe = self._certify(self._attestation_key)

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
            machine = cls._read(target)
            machine.reissue(moment)
        except (OSError, ValueError, KeyError, TypeError):
            raise PlatformError(
                f"the simulated machine in {target} is damaged; delete that directory to get a new machine "
                "(whatever was sealed on the old one is lost)"
            ) from None
        return machine

    @classmethod
    def _read(cls, target: Path) -> Machine:
        settings = json.loads((target / "settings.json").read_bytes())
        parts: dict[str, Any] = {"fmspc": bytes.fromhex(settings["fmspc"])}
        for name in _PARTS:
            parts[f"{name}_key"] = pki.load_private((target / f"{name}.key").read_bytes())
            parts[name] = x509.load_der_x509_certificate((target / f"{name}.crt").read_bytes())
        keys = Pki(**parts)
        return cls(target, settings, keys, (target / "attestation.key").read_bytes())

    def reissue(self, now: datetime) -> bool:
        """Publish endorsements again if those of before are a day old; whether it did."""
        issued = datetime.fromisoformat(self._settings["issued"])
        if not timedelta(0) <= now - issued < _REISSUE_AFTER or not (self._directory / "endorsements").exists():
            self._issue(now)
            return True
        return False

    def _issue(self, now: datetime) -> None:
        settings = self._settings
        settings["issued"] = now.isoformat()
        endorsements = self._pki.endorsements(
            now=now,
            status=settings["status"],
            advisories=tuple(settings["advisories"]),
            number=settings["number"],
        )
        _write(self._directory / "endorsements", endorsements)
        _write(self._directory / "settings.json", json.dumps(settings).encode())

    def set_tcb(self, status: str, *, advisories: tuple[str, ...] = (), now: datetime | None = None) -> None:
        """Rehearse a TCB level: what the vendor says of this machine from now on."""
        if status not in pki.STATUSES:
            raise ValueError(f"a TCB status is one of {', '.join(pki.STATUSES)}")
        self._settings |= {
            "status": status,
            "advisories": list(advisories),
            "number": self._settings["number"] + 1,
        }
        self._issue(now or datetime.now(UTC))

    @property
    def root_der(self) -> bytes:
        """The root certificate."""
        return self._pki.root.public_bytes(serialization.Encoding.DER)

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
        header = struct.pack("<HHIHH16s20s", 3, 2, 0, pki.QE_SVN, pki.PCE_SVN, QE_VENDOR, bytes(20))
        body = report_body(
            measurement=mrenclave,
            signer=_crypto.sha256(b"conclave simulated runtime signer"),
            attributes=attributes,
            product=product,
            svn=svn,
            report_data=report_data,
            config_id=config_id,
        )
        signed = header + body
        auth = pki.raw_signature(self._attestation_key, signed) + self._qe
        return signed + struct.pack("<I", len(auth)) + auth

    def _certify(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        """The quoting enclave's part of every quote: key, report, chain."""
        numbers = key.public_key().public_numbers()
        public = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        extra = bytes(range(32))
        report = report_body(
            measurement=_crypto.sha256(b"conclave simulated quoting enclave"),
            signer=pki.QE_MRSIGNER,
            attributes=pki.QE_ATTRIBUTES,
            product=pki.QE_PRODUCT,
            svn=pki.QE_SVN,
            report_data=_crypto.sha256(public, extra) + bytes(32),
        )
        chain = pki.pem(self._pki.pck, self._pki.ca, self._pki.root).encode()
        return (
            public
            + report
            + pki.raw_signature(self._pki.pck_key, report)
            + struct.pack("<H", len(extra))
            + extra
            + struct.pack("<HI", 5, len(chain))
            + chain
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
    ) -> bytes:
        """32 bytes that only a program with the same identity gets on this machine.

        `code` binds the exact program, `signer` its author, `product` author and
        product. The revocation level is mixed into the latter two.

        Raises:
            UnsupportedPolicy: another policy, or an unsigned bundle asks for its
                author's key, which every unsigned bundle would share.
        """
        level = revocation_level.to_bytes(2, "big")
        bound = {
            "code": code,
            "signer": signer + level,
            "product": signer + product_id.to_bytes(2, "big") + level,
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
    fmspc = _crypto.random_bytes(6)
    keys = Pki.create(fmspc=fmspc, ppid=_crypto.random_bytes(16), now=now)
    for name in _PARTS:
        _write(place / f"{name}.key", pki.private_der(getattr(keys, f"{name}_key")))
        certificate = getattr(keys, name).public_bytes(serialization.Encoding.DER)
        _write(place / f"{name}.crt", certificate)
    attestation = ec.generate_private_key(ec.SECP256R1())
    _write(place / "attestation.key", pki.private_der(attestation))
    settings = {
        "secret": _crypto.random_bytes(32).hex(),
        "fmspc": fmspc.hex(),
        "status": "UpToDate",
        "advisories": [],
        "number": 1,
        "issued": datetime.min.replace(tzinfo=UTC).isoformat(),
    }
    _write(place / "settings.json", json.dumps(settings).encode())
    try:
        place.rename(directory / "machine")
    except OSError:
        # Somebody else made it first; theirs is the machine.
        shutil.rmtree(place, ignore_errors=True)
        if not (directory / "machine").exists():
            raise PlatformError(f"cannot make a simulated machine in {directory}") from None


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)
