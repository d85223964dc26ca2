"""The real runtime on imitated hardware, a real host, and a client that verifies as it would anywhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.imitations import mounts
from tests.imitations.processor import Nitro, Sgx, Snp, Tdx

from conclave.attestation import dcap, nitro, snp
from conclave.attestation.binding import runtime_measurement
from conclave.attestation.evidence import EvidenceClaims
from conclave.bundle import Bundle, unpack
from conclave.client import Client
from conclave.enclave.drivers import tsm
from conclave.errors import AppraisalError, PlatformError, VerificationError
from conclave.host import Host
from conclave.platform import bootstrap_command, runtime_tree
from conclave.testing import HostServer
from conclave.testing.verifier import vendor_root

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOW = datetime.now(UTC).replace(microsecond=0)
MOUNT = pytest.mark.skipif(bool(mounts.why_not()), reason=f"no imitation can be mounted: {mounts.why_not()}")
MEASURED = {"LC_ALL": "C.UTF-8"}

SOURCE = """
import os
from conclave.enclave import Enclave, rpc


class Small(Enclave):
    @rpc
    def ping(self) -> str:
        return "pong"

    @rpc
    def attempt(self, what: str, path: str) -> str:
        try:
            if what == "mkdir":
                os.mkdir(path)
                os.rmdir(path)
            else:
                os.close(os.open(path, {"read": os.O_RDONLY, "write": os.O_RDWR}[what]))
        except OSError as error:
            return error.strerror
        return "done"

    @rpc
    def key(self, policy: str) -> str:
        try:
            return self._context._evidence.__self__.sealing_key(policy).hex()
        except Exception as error:
            return str(error)
"""


@dataclass
class Launched:
    process: subprocess.Popen[bytes]
    channel: socket.socket


def launched(command: list[str], cwd: Path, **options: Any) -> Launched:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*command[:1], *(part.replace("{fd}", str(theirs.fileno())) for part in command[1:])],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            **options,
        )
    return Launched(process, ours)


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("small", SOURCE)


@pytest.fixture(scope="module")
def place(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("guest")
    unpack(bundle, place / "bundle")
    (place / "tmp").mkdir()
    return place


def verified(processor: Any) -> tuple[EvidenceClaims, bytes]:
    """What the production verifier finds in evidence of this processor, and the vendor's root certificate."""
    built = processor.evidence(bytes(64))
    if processor.kind in ("sgx", "tdx"):
        quote = dcap.parse_quote(built.raw)
        return dcap.verify_quote(quote, built.endorsements, anchors=built.anchors, now=NOW), quote.chain[-1]
    if processor.kind == "snp":
        from tests.imitations.tsm import table_of

        from conclave.enclave.drivers.certificates import parse_table

        root = parse_table(table_of(built))["ark"]
        report = snp.parse_report(built.raw)
        return snp.verify_report(report, built.endorsements, anchors=built.anchors, now=NOW), root
    document = nitro.parse_document(built.raw)
    return nitro.verify_document(document, anchors=built.anchors, now=NOW), document.cabundle[0]


@contextmanager
def genuine(processor: Any, bundle: Bundle) -> Iterator[None]:
    """Within the block this processor's vendor counts as one, and its runtime as a release."""
    claims, root = verified(processor)
    options: dict[str, Any] = {"bundle_id": bundle.bundle_id} if processor.kind == "sgx" else {}
    with vendor_root(root, tee=processor.kind, measurement=runtime_measurement(claims), **options):
        yield


def command_of(kind: str, root: Path | str, processor: Any, place: Path) -> list[str]:
    endorsements = place / f"{kind}.endorsements"
    endorsements.write_bytes(processor.evidence(bytes(64)).endorsements)
    return [sys.executable, "-m", "tests.imitations.enclave", "run", kind, str(root), str(endorsements), "{fd}"]


def start(command: list[str], place: Path, **options: Any) -> HostServer:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return HostServer(Host(lambda: launched(command, place / "bundle", env=environment), restart=False, **options))


def accepts(kind: str, bundle: Bundle) -> str:
    # AMD gives no status, so a minimum TCB version would make it SECURE.
    return f"C:{bundle.code.hex()} TEE:{kind}" + (" SEC:STALE" if kind == "snp" else "")


def use(server: HostServer, kind: str, bundle: Bundle) -> None:
    """Verify, call, renew, verify and call again."""
    with Client(server.url, constraint=accepts(kind, bundle)) as client:
        first = client.verify()
        assert first.tee == kind
        assert first.claims.bundle_id == bundle.bundle_id
        assert client.call("ping") == "pong"
        server.run(server.host._renew())
        second = client.verify()
        assert second.claims_digest != first.claims_digest
        assert client.call("ping") == "pong"
        client.challenge()
        # A policy that no key is bound to is told from inside.
        policy = "signer" if kind == "sgx" else "code"
        assert "KDS" in client.call("key", policy, returns=str)
    # Who wants another TEE, or a simulated one, does not take this for it.
    others = {"sgx", "tdx", "snp", "nitro"} - {kind}
    for constraint in (f"TEE:{','.join(sorted(others))}", "SEC:INSECURE"):
        with (
            Client(server.url, constraint=f"C:{bundle.code.hex()} {constraint}") as client,
            pytest.raises((AppraisalError, VerificationError)),
        ):
            client.verify()


@MOUNT
@pytest.mark.spec("DRV-2", "DRV-5", "DRV-26", "DRV-27", "CLM-1", "CLM-3", "CLM-5")
@pytest.mark.parametrize("kind", ["sgx", "tdx", "snp"])
def test_from_the_device_to_a_call(kind: str, bundle: Bundle, place: Path, tmp_path: Path) -> None:
    processor = {"sgx": Sgx(NOW), "tdx": Tdx(NOW, version=5, body=3, by_register=True), "snp": Snp(NOW)}[kind]
    processor.launch(bundle.bundle_id)  # type: ignore[attr-defined]
    make = mounts.sgx_parts if kind == "sgx" else mounts.tsm_parts
    with (
        mounts.mounted(tmp_path / "machine", make, processor) as machine,
        genuine(processor, bundle),
        start(command_of(kind, machine.root, processor, tmp_path), place) as server,
    ):
        use(server, kind, bundle)
        if kind == "tdx":
            assert machine.get(tsm.REGISTERS, "extensions") == 1


@pytest.mark.spec("DRV-2", "DRV-24", "DRV-26", "DRV-27", "CLM-1", "CLM-3", "CLM-5")
def test_from_the_module_to_a_call(bundle: Bundle, place: Path, tmp_path: Path) -> None:
    processor = Nitro(NOW)
    with genuine(processor, bundle), start(command_of("nitro", NOW.isoformat(), processor, tmp_path), place) as server:
        use(server, "nitro", bundle)
        # Its certificates are valid for three hours.
        assert server.host._renew_after() == 3600


def refusal(server: HostServer) -> str:
    with pytest.raises(PlatformError) as refused, server:
        pass
    return str(refused.value)


@MOUNT
@pytest.mark.spec("CLM-2", "DRV-16", "DRV-21", "DRV-7", "DRV-15")
def test_starts_that_are_refused(bundle: Bundle, place: Path, tmp_path: Path) -> None:
    snp, sgx = Snp(NOW, b"\7" * 32), Sgx(NOW)
    with mounts.mounted(tmp_path / "snp", mounts.tsm_parts, snp) as machine:
        command = command_of("snp", machine.root, snp, tmp_path)
        assert "the TEE names another bundle" in refusal(start(command, place))
        machine.call(tsm.PLACE, "processor.launch", bytes(32))
        assert "HOST_DATA is empty" in refusal(start(command, place))
        machine.set(tsm.PLACE, "provider", "arm_cca_guest")
        assert "offers no TEE that is known here" in refusal(start(command, place))
    with mounts.mounted(tmp_path / "sgx", mounts.sgx_parts, sgx, kind="none") as machine:
        assert "attestation type is 'none'" in refusal(start(command_of("sgx", machine.root, sgx, tmp_path), place))


# The measured bootstrap and its sandbox, with the imitation at the kernel's own paths -----


@MOUNT
@pytest.mark.spec("DRV-20", "DRV-26", "BOOT-1", "BOOT-3")
def test_the_measured_bootstrap_on_hardware(bundle: Bundle, place: Path, tmp_path: Path) -> None:
    processor = Snp(NOW, bundle.bundle_id)
    (tmp_path / "endorsements").write_bytes(processor.evidence(bytes(64)).endorsements)
    boot = bootstrap_command(str(runtime_tree().root))
    with mounts.mounted(tmp_path / "machine", mounts.tsm_parts, processor) as machine, genuine(processor, bundle):
        enter = [sys.executable, "-m", "tests.imitations.enclave", "become"]
        command = [*enter, str(machine.root), str(tmp_path / "endorsements"), "{fd}", *boot]
        server = start(command, place)
        try:
            server.__enter__()
        except PlatformError as error:
            if "namespace:" not in str(error):
                raise
            pytest.skip(f"no mount namespace: {error}")
        try:
            use(server, "snp", bundle)
            with Client(server.url, constraint=accepts("snp", bundle)) as client:
                assert client.verify().claims.sandbox == "landlock"
                # The device lies there and does not open; reports are left to whoever asks.
                for what in ("read", "write"):
                    assert client.call("attempt", what, "/dev/sev-guest") == "Permission denied"
                assert client.call("attempt", "mkdir", f"/{tsm.PLACE}/mine") == "done"
                for what, path in (("read", "/etc/passwd"), ("mkdir", "/sys/kernel/mine"), ("mkdir", "/dev/mine")):
                    assert client.call("attempt", what, path) == "Permission denied"
        finally:
            server.__exit__(None, None, None)


@MOUNT
@pytest.mark.spec("DRV-20")
def test_no_start_where_the_device_of_keys_stays_open(bundle: Bundle, place: Path, tmp_path: Path) -> None:
    """Without the sandbox, author code could open it."""
    processor = Snp(NOW, bundle.bundle_id)
    with mounts.mounted(tmp_path / "machine", with_device, processor) as machine:
        command = command_of("snp", machine.root, processor, tmp_path)
        assert "still open to author code" in refusal(start(command, place))


class Device:
    """Something at `dev/sev-guest` that opens."""

    def files(self) -> dict[str, int]:
        return {"": 0o600}

    def open(self, name: str, *, writing: bool) -> Any:
        from tests.imitations.tsm import Text

        return Text(lambda: "", None)


def with_device(processor: Any) -> mounts.Parts:
    return mounts.tsm_parts(processor) | {"dev/sev-guest": Device()}
