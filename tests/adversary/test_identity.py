"""An operator who acts on what runs: T-06, T-07, T-09, T-10, T-13, T-21."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from conclave import _codec
from conclave.attestation import Constraint, parse_instance_info, verify_instance
from conclave.bundle import Bundle
from conclave.client import Client, Identity
from conclave.errors import (
    AppraisalError,
    BindingError,
    CallError,
    ChainError,
    Error,
    FormatError,
    TransportError,
)
from conclave.testing import HostServer

pytestmark = pytest.mark.slow
Only = Callable[[Bundle], str]

HONEST = """
from conclave.enclave import Enclave, rpc

class Honest(Enclave):
    @rpc
    def give(self, secret: str) -> None:
        pass
"""

OTHER = HONEST + "    # another program\n"

EVIL = """
from conclave.enclave import Enclave, rpc
import msgspec

class Evil(Enclave):
    def on_start(self) -> None:
        context = self._context
        honest = context._make_claims

        def lie(encryption_key, signing_key):
            return msgspec.structs.replace(honest(encryption_key, signing_key), **LIES)

        context._make_claims = lie

    @rpc
    def give(self, secret: str) -> None:
        pass
"""

ROSTER = """
# /// script
# [tool.conclave]
# roster = ["%s", "%s"]
# ///
from conclave.enclave import Enclave, rpc

class Joint(Enclave):
    def on_start(self) -> None:
        self.values = {}

    def admit(self, sender: bytes, topic: str) -> bool:
        return sender in self.roster.members

    @rpc
    def add(self, value: int) -> None:
        self.roster.check(self.sender)
        self.values[self.sender] = value

    @rpc
    async def total(self, claims_digest: bytes) -> int:
        self.roster.acknowledge(self.sender, claims_digest)
        await self.roster.stable()
        return sum(self.values.values())
"""


@pytest.fixture(scope="module")
def honest(author: Callable[..., Bundle]) -> Bundle:
    return author("honest", HONEST)


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], honest: Bundle) -> Iterator[HostServer]:
    with serve(honest, hostile=True) as running:
        yield running


@pytest.fixture(scope="module")
def info(server: HostServer) -> bytes:
    assert server.host.info is not None
    return server.host.info


def refused(info: bytes, constraint: str, kind: type[Error], match: str) -> None:
    with pytest.raises(kind, match=match):
        verify_instance(info, Constraint.parse(constraint), now=datetime.now(UTC))


@pytest.mark.spec("T-06")
def test_another_program_is_refused_before_anything_is_sent(
    author: Callable[..., Bundle], serve: Callable[..., HostServer], honest: Bundle, only: Only
) -> None:
    other = author("honest", OTHER)
    assert other.code != honest.code
    with serve(other, hostile=True) as server, Client(server.url, constraint=only(honest)) as client:
        with pytest.raises(AppraisalError, match=f"expected C:{honest.code.hex()}, got C:{other.code.hex()}"):
            client.call("give", "secret")
        assert server.operator.requests == []


@pytest.mark.spec("T-07", "CLM-1", "CLM-3", "CLM-4", "PLAT-1")
def test_a_program_cannot_claim_to_be_another(
    author: Callable[..., Bundle], serve: Callable[..., HostServer], honest: Bundle, only: Only
) -> None:
    code, bundle_id = honest.code.hex(), honest.bundle_id.hex()
    lies = {
        "both": f"code=bytes.fromhex('{code}'), bundle_id=bytes.fromhex('{bundle_id}')",
        "code": f"code=bytes.fromhex('{code}')",
    }
    for which, lie in lies.items():
        evil = author(f"evil_{which}", EVIL.replace("**LIES", lie))
        with serve(evil, hostile=True) as server, Client(server.url, constraint=only(honest)) as client:
            # It lies when its host, who is on its side, asks for new evidence.
            server.run(server.host._renew())
            with pytest.raises(BindingError):
                client.call("give", "secret")
            assert server.operator.requests == []


@pytest.mark.spec("T-09", "CLM-5", "CLM-8")
def test_instance_info_altered_on_its_way(info: bytes, honest: Bundle, only: Only) -> None:
    parts = parse_instance_info(info)
    fields = {name: getattr(parts, name) for name in parts.__struct_fields__}
    constraint = only(honest)
    now = datetime.now(UTC)
    genuine = verify_instance(info, Constraint.parse(constraint), now=now)
    key = parts.claims.index(b"encryption_key") + 40
    swapped = parts.claims[:key] + bytes(32) + parts.claims[key + 32 :]
    refused(_codec.encode({**fields, "claims": swapped}), constraint, BindingError, "covers other claims")
    for name in ("evidence", "endorsements"):
        data = fields[name]
        for place in range(0, len(data), max(1, len(data) // 100)):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            altered = _codec.encode({**fields, name: changed})
            with contextlib.suppress(Error):
                # What may change unseen is what says nothing: case of hex, spaces.
                assert verify_instance(altered, Constraint.parse(constraint), now=now) == genuine, (name, place)


@pytest.mark.spec("T-10", "CLM-7", "CLM-9")
def test_simulated_is_never_passed_off_as_hardware(info: bytes, honest: Bundle) -> None:
    code = f"C:{honest.code.hex()}"
    refused(info, code, ChainError, "simulated TEE, which protects nothing")
    refused(info, f"{code} TEE:sgx", ChainError, "simulated")
    refused(info, f"{code} SEC:STALE", ChainError, "simulated")
    refused(info, f"{code} SEC:INSECURE TEE:sgx", ChainError, "simulated")
    pinned = f"{code} SEC:INSECURE TEE:simulated@{'0' * 64}"
    refused(info, pinned, ChainError, "another simulated machine")


@pytest.mark.spec("T-10", "CLM-9")
def test_a_debug_program_is_insecure_whatever_the_machine(
    author: Callable[..., Bundle], serve: Callable[..., HostServer], machine: Path
) -> None:
    from conclave.platform import Machine, runtime_tree
    from conclave.testing.verifier import secure_simulated

    debug, release = author("honest", HONEST, mode="debug"), author("honest", HONEST)
    assert debug.code != release.code
    root = Machine.open(machine).root_der
    with serve(debug) as one, serve(release) as two, secure_simulated(root, measurement=runtime_tree().measurement):
        with Client(two.url, constraint=f"C:{release.code.hex()}") as client:
            assert client.verify().security == "SECURE"
        with (
            Client(one.url, constraint=f"C:{debug.code.hex()}") as client,
            pytest.raises(AppraisalError, match="debug"),
        ):
            client.verify()


@pytest.mark.spec("T-23", "CON-11")
def test_a_runtime_of_the_operators_own_on_genuine_hardware(info: bytes, honest: Bundle, machine: Path) -> None:
    """It may put any CONFIGID and any release into its quote; its measurement it cannot choose."""
    from conclave.platform import Machine, runtime_tree
    from conclave.testing.verifier import secure_simulated

    code = f"C:{honest.code.hex()}"
    root = Machine.open(machine).root_der
    with secure_simulated(root, measurement=runtime_tree().measurement):
        assert verify_instance(info, Constraint.parse(code), now=datetime.now(UTC)).security == "SECURE"
    with secure_simulated(root, measurement=bytes(32)):
        refused(info, code, AppraisalError, "know no such measurement of that release")


@pytest.mark.spec("T-09")
def test_junk_instead_of_instance_info(server: HostServer, honest: Bundle, only: Only) -> None:
    for junk in (b"", b"\0", b"{}", b"\xff" * 1000, b"\x85" + bytes(100)):
        server.operator.on_info = lambda info, junk=junk: junk
        with Client(server.url, constraint=only(honest), attempts=1) as client, pytest.raises(FormatError):
            client.verify()
    server.operator.behave()


@pytest.mark.spec("T-13", "T-21")
def test_a_roster_and_an_operator_who_invents_members(
    author: Callable[..., Bundle], serve: Callable[..., HostServer], only: Only
) -> None:
    members = [Identity.generate(), Identity.generate()]
    bundle = author("joint", ROSTER % tuple(m.public.hex() for m in members))
    options = {"constraint": only(bundle), "timeout_seconds": 2.0, "attempts": 1}
    with contextlib.ExitStack() as stack:
        one, two = stack.enter_context(serve(bundle)), stack.enter_context(serve(bundle))
        a_one = stack.enter_context(Client(one.url, identity=members[0], **options))
        b_two = stack.enter_context(Client(two.url, identity=members[1], **options))
        invented = stack.enter_context(Client(one.url, **options))
        # Invented members are not admitted.
        with pytest.raises(CallError, match="does not admit"):
            invented.call("add", 1)
        # One instance for each member: neither gives anything away.
        for client in (a_one, b_two):
            client.call("add", 21)
            with pytest.raises(TransportError, match="no answer within"):
                client.call("total", client.instance.claims_digest)
        # Acknowledging somebody else's instance counts for nothing.
        with pytest.raises(CallError, match="not this one") as wrong:
            b_two.call("total", a_one.instance.claims_digest, topic="again")
        assert wrong.value.type_name == "WrongInstance"
        # Both on the same one: done.
        b_one = stack.enter_context(Client(one.url, identity=members[1], **{**options, "timeout_seconds": 20.0}))
        b_one.call("add", 21)
        assert b_one.call("total", b_one.instance.claims_digest) == 42
