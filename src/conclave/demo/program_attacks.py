"""Everything an operator can do to what runs: program, identity, start.

Runs as the operator, who is also the author of other programs.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

from conclave import _codec
from conclave.attestation import parse_instance_info
from conclave.bundle import Bundle, build
from conclave.client import Client
from conclave.demo.refusal import Told, refusal
from conclave.demo.stage import Stage
from conclave.errors import AppraisalError, Error, PlatformError, VerificationError
from conclave.host import Host
from conclave.platform import bootstrap_command, runtime_tree, start_platform
from conclave.testing import HostServer

EVIL = '''
"""A hostile author's program that claims to be another one."""
from conclave.enclave import Enclave, rpc


class Evil(Enclave):
    def on_start(self) -> None:
        import gc

        # The author's code shares the process with the runtime, so it can change
        # what the runtime says about itself ...
        context = self._context
        victim = bytes.fromhex("%(victim)s")
        honest = context._make_claims

        def lie(encryption_key, signing_key):
            import msgspec
            return msgspec.structs.replace(
                honest(encryption_key, signing_key), code=victim, bundle_id=bytes.fromhex("%(bundle_id)s"))

        context._make_claims = lie
        context.claims = lie(context.claims.encryption_key, context.claims.signing_key)
        context._digest = context.claims.digest()

    @rpc
    def contribute(self, features: list[list[float]], labels: list[int]) -> int:
        return 0
'''

OTHER = '''
"""Another program: the operator's own."""
from conclave.enclave import Enclave, rpc


class Other(Enclave):
    @rpc
    def contribute(self, features: list[list[float]], labels: list[int]) -> int:
        return len(labels)
'''


def attack_identity(stage: Stage, server: HostServer, bundle: Bundle, constraint: str) -> None:
    """Another program, and a program that lies about its identity."""

    def swap() -> str:
        source = stage.place / "other.py"
        source.write_text(OTHER)
        stranger = build(source, stage.place / "other.enclave", mode="release")
        with (
            HostServer(stage.host(stranger.path)) as other,
            Client(other.url, constraint=constraint) as c,
        ):
            return refusal(AppraisalError, c.verify, "")

    def forge() -> str:
        source = stage.place / "evil.py"
        source.write_text(EVIL % {"victim": bundle.code.hex(), "bundle_id": bundle.bundle_id.hex()})
        evil = build(source, stage.place / "evil.enclave", mode="release")
        with HostServer(stage.host(evil.path)) as other, Client(other.url, constraint=constraint) as c:
            return refusal(VerificationError, c.verify, "")

    def forge_claims() -> str:
        def change(info: bytes) -> bytes:
            parsed = parse_instance_info(info)
            claims = parsed.claims.replace(b"release", b"debugge")[: len(parsed.claims)]
            return _codec.encode({**_fields(parsed), "claims": claims.replace(b"\x00" * 4, b"\x00\x00\x00\x01", 1)})

        server.operator.on_info = change
        try:
            with Client(server.url, constraint=constraint) as c:
                return refusal(Error, c.verify, "")
        finally:
            server.operator.behave()

    stage.expect("swap in a different program", "client", swap)
    stage.expect("forge another bundle's identity from inside", "client", forge)
    stage.expect("alter the claims on their way", "client", forge_claims)


def attack_start(stage: Stage, bundle: Bundle) -> None:
    """Unmeasured input at start."""

    def launcher() -> str:
        launch = lambda: start_platform(stage.machine, bundle.path, environment=("LD_PRELOAD=/tmp/x.so",))  # noqa: E731
        with contextlib.ExitStack() as stack:
            return refusal(PlatformError, lambda: stack.enter_context(HostServer(Host(launch, restart=False))), "")

    def bootstrap() -> str:
        process = subprocess.run(
            bootstrap_command(str(runtime_tree().root)),
            env={"LC_ALL": "C.UTF-8", "EXTRA": "1"},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        if process.returncode != 78:
            raise Told(f"it ran: status {process.returncode}: {process.stderr}")
        return process.stderr.strip().splitlines()[-1]

    stage.expect("start with an extra environment variable", "platform", launcher)
    stage.expect("the same, running the bootstrap directly", "measured bootstrap", bootstrap)


def _fields(info: Any) -> dict[str, Any]:
    return {name: getattr(info, name) for name in info.__struct_fields__}
