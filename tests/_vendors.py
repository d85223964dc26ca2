"""What tests of endorsements share: a clock of their own, platforms real and made up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests._evidence import ABSENT, evidence_dir

from conclave.errors import FormatError
from conclave.host.endorsements import AmdService, Endorsements, IntelService, TimeLimits
from conclave.platform.machine import Machine
from conclave.testing import VendorServer

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
_AMD = "1.3.6.1.4.1.3704.1"
_LEVELS = {"blSPL": "3.1", "teeSPL": "3.2", "snpSPL": "3.3", "ucodeSPL": "3.8", "fmcSPL": "3.9"}


class FakeClock:
    """Time that passes when somebody sleeps, and at once."""

    def __init__(self, now: datetime = NOW) -> None:
        self.time = now
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += timedelta(seconds=seconds)
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Platform:
    """Evidence and what a vendor would say of its platform."""

    kind: str
    evidence: bytes
    endorsements: bytes
    valid_at: datetime


@dataclass(frozen=True)
class AmdPlatform:
    """An SEV-SNP platform and its documents."""

    product: str
    key: str
    evidence: bytes
    certificate: bytes
    chain: str
    crl: bytes
    valid_at: datetime

    @property
    def published(self) -> dict[str, Any]:
        """Arguments of `VendorServer.publish_amd` after the product."""
        own = {"certificate": self.certificate, "report": self.evidence} if self.key == "vcek" else {}
        return {"key": self.key, "chain": self.chain, "crl": self.crl or None, **own}


def refusal(work: Callable[[], object]) -> str:
    """The code of the FormatError that it raises, or ""."""
    try:
        work()
    except FormatError as error:
        return error.code
    return ""


def simulated(place: Path, *, now: datetime = NOW) -> Platform:
    """A simulated machine: synthetic data for Intel's interface."""
    machine = Machine.open(place, now=now)
    quote = machine.quote(report_data=bytes(64), config_id=bytes(64), mrenclave=bytes(32))
    return Platform("sgx", quote, machine.endorsements(), now)


def sample_folder(name: str) -> Path:
    """One sample; skips the test where there are none."""
    place = evidence_dir()
    if place is None:
        pytest.skip(ABSENT)
    return place / name


def intel_sample(name: str) -> Platform:
    """A sample of SGX or TDX, such as `sgx/azure-sgx-debug`."""
    place = sample_folder(name)
    at = datetime.fromisoformat(json.loads((place / "meta.json").read_bytes())["valid_at"])
    return Platform(place.parent.name, (place / "quote.bin").read_bytes(), (place / "collateral.json").read_bytes(), at)


def amd_sample(name: str) -> AmdPlatform:
    """A sample of SEV-SNP; its revocation list only where one of that time is known."""
    place = sample_folder(name)
    meta = json.loads((place / "meta.json").read_bytes())
    root = place.parents[1]
    key = meta["endorsement_key"].lower()
    crl = place / f"crl_{meta['product'].lower()}.der"
    return AmdPlatform(
        meta["product"],
        key,
        (place / "report.bin").read_bytes(),
        (place / f"{key}.der").read_bytes(),
        "".join((root / part).read_text() for part in meta["chain"]),
        crl.read_bytes() if crl.exists() else b"",
        datetime.fromisoformat(meta["valid_at"]),
    )


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    # One is enough: nothing here looks at signatures.
    return ec.generate_private_key(ec.SECP256R1())


def _name(common: str, organisation: str) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)] if organisation else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def certificate(
    subject: str,
    issuer: str,
    extensions: dict[str, bytes] | None = None,
    *,
    begin: datetime,
    end: datetime,
    organisation: str = "",
) -> bytes:
    """DER with those names, dates and extensions (by the end of AMD's identifier)."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject, organisation))
        .issuer_name(_name(issuer, organisation))
        .public_key(_key().public_key())
        .serial_number(7)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
    )
    for end_of, value in (extensions or {}).items():
        oid = x509.ObjectIdentifier(f"{_AMD}.{end_of}")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def revocation_list(issuer: str, *, begin: datetime, end: datetime, organisation: str = "") -> bytes:
    """DER of an empty list."""
    name = _name(issuer, organisation)
    builder = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(begin).next_update(end)
    return builder.sign(_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def pem(*certificates: bytes) -> str:
    """Certificates as PEM."""
    made = [x509.load_der_x509_certificate(c) for c in certificates]
    return "".join(c.public_bytes(serialization.Encoding.PEM).decode() for c in made)


def report(*, version: int = 3, cpuid: bytes = b"\x19\x01\x01", tcb: bytes, chip: bytes, signing: int = 0) -> bytes:
    """An SEV-SNP report with these fields and nothing else."""
    made = bytearray(1184)
    made[0:4] = version.to_bytes(4, "little")
    made[0x48:0x4C] = (signing << 2).to_bytes(4, "little")
    made[0x180:0x188] = tcb
    if version > 2:
        made[0x188:0x18B] = cpuid
    made[0x1A0 : 0x1A0 + len(chip)] = chip
    return bytes(made)


@cache
def amd_platform(
    product: str = "Milan", *, key: str = "vcek", version: int = 3, chip: bytes = b"", now: datetime = NOW
) -> AmdPlatform:
    """A made-up SEV-SNP platform."""
    chip = chip or (bytes(range(1, 9)) if product == "Turin" else bytes(range(1, 65)))
    cpuid = {"Milan": b"\x19\x01\x01", "Genoa": b"\x19\x11\x01", "Turin": b"\x1a\x02\x01"}[product]
    levels = {"blSPL": 4, "teeSPL": 1, "snpSPL": 24, "ucodeSPL": 219}
    if product == "Turin":
        levels["fmcSPL"] = 9
        tcb = bytes((9, 4, 1, 24, 0, 0, 0, 219))
    else:
        tcb = bytes((4, 1, 0, 0, 0, 0, 24, 219))
    extensions = {
        _LEVELS[k]: b"\x02\x01" + bytes((v,)) if v < 128 else b"\x02\x02\0" + bytes((v,)) for k, v in levels.items()
    }
    extensions["2"] = b"\x16" + bytes((len(product),)) + product.encode()
    if key == "vcek":
        extensions["4"] = chip
    signer = f"SEV-{product}" if key == "vcek" else f"SEV-VLEK-{product}"
    times = {"begin": now - 30 * DAY, "end": now + 2000 * DAY}
    leaf = certificate(f"SEV-{key.upper()}", signer, extensions, **times)
    root = certificate(f"ARK-{product}", f"ARK-{product}", **times)
    middle = certificate(signer, f"ARK-{product}", **times)
    return AmdPlatform(
        product,
        key,
        report(
            version=version,
            cpuid=cpuid,
            tcb=tcb,
            chip=chip if key == "vcek" else b"",
            signing=int(key == "vlek"),
        ),
        leaf,
        pem(middle, root),
        revocation_list(f"ARK-{product}", begin=now - DAY, end=now + 365 * DAY),
        now,
    )


class Operator:
    """A host's source, its clock, and what it was told."""

    def __init__(self, vendors: VendorServer, place: Path, now: datetime = NOW, **options: Any) -> None:
        self.clock = FakeClock(now)
        self.events: list[dict[str, Any]] = []
        self.chances: list[float] = []
        defaults: dict[str, Any] = {
            "intel": IntelService(vendors.url),
            "amd": AmdService(vendors.url),
            "limits": TimeLimits(10.0, 10.0),
            "chance": lambda: 0.0,
        }
        self.source = Endorsements(place, clock=self.clock, on_event=self.events.append, **(defaults | options))

    def run(self, *work: Callable[[], Awaitable[Any]]) -> list[Any]:
        """The works at the same time; their results or errors."""

        async def main() -> list[Any]:
            try:
                return await asyncio.gather(*(w() for w in work), return_exceptions=True)
            finally:
                await self.source.close()

        return asyncio.run(main())

    def ask(self, platform: Platform | AmdPlatform, times: int = 1, **options: Any) -> Any:
        """One result, from so many that ask at the same time."""
        kind = platform.kind if isinstance(platform, Platform) else "snp"
        done = self.run(*[lambda: self.source.endorsements(platform.evidence, kind, **options)] * times)
        assert len({d if isinstance(d, bytes) else str(d) for d in done}) == 1, done
        if isinstance(done[0], BaseException):
            raise done[0]
        return done[0]

    def codes(self) -> list[str]:
        return [e["code"] for e in self.events]
