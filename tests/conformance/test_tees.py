"""Every TEE driver against one contract, over imitations, judged by the production verifiers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.imitations import mounts
from tests.imitations.gramine import Attestation, Registers
from tests.imitations.nsm import Module, SevGuestDevice
from tests.imitations.processor import Nitro, Sgx, Snp, Tdx
from tests.imitations.tsm import Memory, Tsm

from conclave._framing import FrameReader, PlatformKind
from conclave.attestation import dcap, nitro, snp
from conclave.attestation.evidence import EvidenceClaims
from conclave.enclave.drivers import Evidence, Mounted, Tee, find, gramine, tsm
from conclave.enclave.drivers.files import Files, Folder
from conclave.enclave.drivers.nsm import NitroTee, Nsm
from conclave.enclave.drivers.sevguest import SevGuest
from conclave.enclave.drivers.simulated import SimulatedTee
from conclave.platform import launch
from conclave.platform.machine import Machine
from conclave.testing import TeeConformance

NOW = datetime.now(UTC).replace(microsecond=0)

pytestmark = pytest.mark.spec("DRV-1", "DRV-2", "DRV-3", "DRV-4", "DRV-29")


def intel(processor: Any, evidence: Evidence) -> EvidenceClaims:
    built = processor.evidence(bytes(64))
    quote = dcap.parse_quote(evidence.data)
    assert quote.tee == evidence.format == processor.kind
    assert evidence.hints == b""
    return dcap.verify_quote(quote, built.endorsements, anchors=built.anchors, now=NOW)


class Simulated(launch._Platform):
    """The platform process's answers, in a thread."""

    def __init__(self, machine: Machine, mounted: Mounted) -> None:
        manifest = type("Manifest", (), {})()
        manifest.product_id, manifest.revocation_level = mounted.product_id, mounted.revocation_level
        self._bundle = type("Bundle", (), {})()
        self._bundle.code, self._bundle.signer, self._bundle.bundle_id = mounted.code, mounted.signer, mounted.bundle_id
        self._bundle.manifest = manifest
        self._machine = machine
        self._tree = type("Tree", (), {"measurement": bytes(32)})()
        self.sandbox = "namespaces"
        self._published = machine.endorsements()

    def serve(self, channel: socket.socket) -> None:  # type: ignore[override]
        reader = FrameReader(PlatformKind)
        while data := channel.recv(65536):
            for frame in reader.feed(data):
                channel.sendall(self._answer(PlatformKind(frame.kind), frame.request, frame.payload))


class TestSimulated(TeeConformance):
    policies = frozenset({"code", "signer", "product"})

    machine: Machine

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _machine(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.machine = Machine.open(tmp_path_factory.mktemp("processor"))

    def launch(self, mounted: Mounted) -> Tee:
        ours, theirs = socket.socketpair()
        platform = Simulated(self.machine, mounted)
        threading.Thread(target=platform.serve, args=(theirs,), daemon=True).start()
        return SimulatedTee(ours)

    def verify(self, evidence: Evidence) -> EvidenceClaims:
        quote, anchors = dcap.parse_quote(evidence.data), frozenset({self.machine.anchor})
        return dcap.verify_quote(quote, self.machine.endorsements(), anchors=anchors, now=datetime.now(UTC))


class TestGramine(TeeConformance):
    policies = frozenset({"code"})
    processor: ClassVar = Sgx(NOW)

    def launch(self, mounted: Mounted) -> Tee:
        self.processor.launch(mounted.bundle_id)
        return gramine.GramineTee(self.files())

    def files(self) -> Files:
        return Memory(Attestation(self.processor))

    def verify(self, evidence: Evidence) -> EvidenceClaims:
        return intel(self.processor, evidence)


class TestSnp(TeeConformance):
    policies = frozenset({"code", "signer", "product"})
    processor: ClassVar = Snp(NOW)
    leaf: ClassVar = "vcek"

    @pytest.fixture(autouse=True)
    def _device(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sev-guest"

    def launch(self, mounted: Mounted) -> Tee:
        self.processor.launch(mounted.bundle_id)
        self.processor.leaf = self.leaf
        self.path.write_bytes(b"")
        # The device is gone from where author code could open it.
        guest = SevGuest(self.path, ioctl=SevGuestDevice(self.processor).ioctl)
        return Closing(tsm.Reports(self.files()), guest, self.path)

    def files(self) -> Files:
        return Memory(Tsm(self.processor))

    def verify(self, evidence: Evidence) -> EvidenceClaims:
        built = self.processor.evidence(bytes(64))
        # The host's certificates are all that a verifier needs.
        return snp.verify_report(snp.parse_report(evidence.data), evidence.hints, anchors=built.anchors, now=NOW)


class Closing(tsm.SnpTee):
    """The driver, and a sandbox that hides the device before author code runs."""

    def __init__(self, reports: tsm.Reports, guest: SevGuest, path: Path) -> None:
        super().__init__(reports, guest, places=())
        self._path = path

    def check_closed(self) -> None:
        self._path.unlink()
        super().check_closed()


class TestSnpWithVlek(TestSnp):
    leaf = "vlek"


class TestTdx(TeeConformance):
    processor: ClassVar = Tdx(NOW)

    def launch(self, mounted: Mounted) -> Tee:
        self.processor.launch(mounted.bundle_id)
        return tsm.TdxTee(
            tsm.Reports(Memory(Tsm(self.processor))), registers=Memory(Registers(self.processor)), places=()
        )

    def verify(self, evidence: Evidence) -> EvidenceClaims:
        return intel(self.processor, evidence)


class TestTdxByRegister(TestTdx):
    """Version 5 with a TD report 1.5, MRCONFIGID empty, RTMR3 extended by the driver."""

    processor = Tdx(NOW, version=5, body=3, by_register=True)


class TestNitro(TeeConformance):
    processor: ClassVar = Nitro(NOW)

    def launch(self, mounted: Mounted) -> Tee:
        return NitroTee(Nsm(-1, ioctl=Module(self.processor).ioctl))

    def verify(self, evidence: Evidence) -> EvidenceClaims:
        document = nitro.parse_document(evidence.data)
        return nitro.verify_document(document, anchors=self.processor.evidence(None).anchors, now=NOW)


# The same over mounted file systems, found as a runtime finds them ------------------------


@pytest.mark.skipif(bool(mounts.why_not()), reason=f"no imitation can be mounted: {mounts.why_not()}")
class Over(TeeConformance):
    """A mounted machine of the class's own."""

    make: Callable[..., mounts.Parts]
    part: str
    machine: mounts.Machine
    processor: Any

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _mounted(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with mounts.mounted(tmp_path_factory.mktemp("mounted"), cls.make, cls.processor) as cls.machine:
            yield

    def launch(self, mounted: Mounted) -> Tee:
        self.machine.call(self.part, "processor.launch", mounted.bundle_id)
        return find(self.machine.root)


class TestGramineMounted(Over, TestGramine):
    make = staticmethod(mounts.sgx_parts)
    part = gramine.PLACE


class TestTdxMounted(Over, TestTdx):
    make = staticmethod(mounts.tsm_parts)
    part = tsm.PLACE


class TestTdxByRegisterMounted(Over, TestTdxByRegister):
    make = staticmethod(mounts.tsm_parts)
    part = tsm.PLACE


class TestSnpMounted(Over, TestSnp):
    make = staticmethod(mounts.tsm_parts)
    part = tsm.PLACE

    def launch(self, mounted: Mounted) -> Tee:
        Over.launch(self, mounted)
        self.processor.launch(mounted.bundle_id)
        self.path.write_bytes(b"")
        guest = SevGuest(self.path, ioctl=SevGuestDevice(self.processor).ioctl)
        return Closing(tsm.Reports(Folder(self.machine.root / tsm.PLACE)), guest, self.path)
