"""A host that staples what a source gives, around a real enclave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Author, Serve

from conclave import _codec
from conclave._framing import Frame, Kind
from conclave.attestation import Constraint, parse_instance_info, verify_instance
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.errors import PlatformError, TransportError
from conclave.host import host as host_module
from conclave.host.endorsements import Endorsements, IntelService, TimeLimits
from conclave.platform import Machine
from conclave.testing import HostServer, VendorServer

SOURCE = """
    from conclave.enclave import Enclave, rpc

    class Echo(Enclave):
        @rpc
        def echo(self, text: str) -> str:
            return text
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(author: Author) -> Bundle:
    return author("echo", SOURCE)


@pytest.fixture
def vendors(machine: Path) -> Any:
    with VendorServer() as server:
        server.publish_intel(Machine.open(machine).endorsements())
        yield server


class Scripted:
    """A source that gives, one after the other, endorsements or errors; the last for ever."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[bytes, str]] = []

    async def endorsements(self, evidence: bytes, kind: str, hints: bytes = b"") -> bytes:
        self.asked.append((evidence, kind))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def stapled(server: HostServer) -> bytes:
    assert server.host.info is not None
    return parse_instance_info(server.host.info).endorsements


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.spec("END-19")
def test_a_client_verifies_what_was_fetched(
    bundle: Bundle, serve: Serve, only: Callable[[Bundle], str], vendors: VendorServer, machine: Path, tmp_path: Path
) -> None:
    source = Endorsements(tmp_path, intel=IntelService(vendors.url))
    with serve(bundle, endorsements=source) as server:
        assert len(vendors.requests) == 4
        with Client(server.url, constraint=only(bundle)) as client:
            assert client.call("echo", "hello") == "hello"
        # New evidence, same endorsements, no request.
        before = parse_instance_info(server.host.info or b"")
        server.run(server.host._renew())
        until(lambda: parse_instance_info(server.host.info or b"").evidence != before.evidence)
        assert stapled(server) == before.endorsements
        assert len(vendors.requests) == 4
        verify_instance(server.host.info or b"", Constraint.parse(only(bundle)), now=datetime.now(UTC))


@pytest.mark.spec("END-19")
def test_newer_endorsements_are_published_and_failures_told(
    bundle: Bundle, serve: Serve, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "STAPLE_SECONDS", 0.05)
    monkeypatch.setattr(host_module, "STAPLE_AGAIN_SECONDS", 0.05)
    events: list[dict[str, Any]] = []
    down = TransportError("no list from Intel", code="vendor-slow")
    source = Scripted(b"first", down, b"second")
    with serve(bundle, endorsements=source, on_event=events.append) as server:
        until(lambda: stapled(server) == b"second")
        assert {k for _, k in source.asked} == {"sgx"}
        assert {"event": "endorsements", "code": "vendor-slow", "text": "no list from Intel"} in events
        # While nothing newer is to be had, new evidence goes out with what there was.
        source.answers = [down]
        before = parse_instance_info(server.host.info or b"").evidence
        server.run(server.host._renew())
        until(lambda: parse_instance_info(server.host.info or b"").evidence != before)
        assert stapled(server) == b"second"


@pytest.mark.spec("END-19")
def test_without_endorsements_there_is_no_start(bundle: Bundle, serve: Serve, tmp_path: Path) -> None:
    with VendorServer() as gone:
        pass
    source = Endorsements(tmp_path, intel=IntelService(gone.url), patience_seconds=0, limits=TimeLimits(0.5, 0.5))
    server = serve(bundle, endorsements=source)
    with pytest.raises(PlatformError, match=r"no endorsements for this platform: no intel-.* from Intel"):
        server.__enter__()


@pytest.mark.spec("END-19")
def test_the_simulated_platform_gives_its_own(bundle: Bundle, serve: Serve, machine: Path) -> None:
    with serve(bundle) as server:
        assert stapled(server) == Machine.open(machine).endorsements()


@pytest.mark.spec("END-27")
def test_evidence_that_nobody_asked_for_is_taken_once(bundle: Bundle, serve: Serve, machine: Path) -> None:
    source = Scripted(b"endorsements")
    with serve(bundle, endorsements=source) as server:
        taken = server.host._evidence
        assert taken is not None
        again = Frame(Kind.INSTANCE, 0, _codec.encode({"claims": taken.claims, "evidence": b"another platform"}))

        async def flood() -> None:
            for _ in range(100):
                server.host._unasked(again)
                await asyncio.sleep(0)

        server.run(flood())
        # Whoever sends more is no enclave of ours: its channel ends.
        until(lambda: server.host.info is None)
        assert len(source.asked) == 1
