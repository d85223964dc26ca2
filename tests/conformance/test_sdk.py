"""What an author and a client may rely on, over a real host and a real enclave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from conclave.bundle import Bundle
from conclave.cli import main
from conclave.client import AsyncClient, Client, Identity
from conclave.enclave import Enclave, RpcError, rpc
from conclave.errors import AppraisalError, CallError, FormatError, SignatureError, TransportError
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = '''
import asyncio, os, threading
from dataclasses import dataclass
from conclave.enclave import Enclave, Mail, RpcError, rpc


@dataclass
class Point:
    x: int
    y: int = 7


class Refused(RpcError):
    """Declared: its message reaches the caller."""


class Kitchen(Enclave):
    def on_start(self) -> None:
        self.calls = []
        self.gate = asyncio.Event()

    def admit(self, sender: bytes, topic: str) -> bool:
        return topic != "forbidden"

    def on_mail(self, mail: Mail) -> bytes | None:
        if mail.body == b"many":
            for n in range(5):
                mail.reply(b"part %d" % n, envelope=b"e%d" % n)
            return None
        if mail.body == b"none":
            return None
        if mail.body == b"later":
            self.post(mail.sender, b"unasked", topic=mail.topic, envelope=b"seen by all")
            return b"posted"
        return b"|".join((mail.sender, mail.topic.encode(), str(mail.sequence).encode(), mail.envelope, mail.body))

    @rpc
    def add(self, a: int, b: int = 2) -> int:
        return a + b

    @rpc
    def mirror(self, point: Point) -> Point:
        return Point(point.y, point.x)

    @rpc
    def refuse(self) -> None:
        raise Refused("not on a Sunday")

    @rpc
    def fail(self) -> None:
        raise ValueError("SECRET-IN-AN-ERROR")

    @rpc
    def leave(self) -> None:
        raise SystemExit(3)

    @rpc
    def count(self, token: str) -> int:
        self.calls.append(token)
        return self.calls.count(token)

    @rpc
    async def wait_open(self) -> int:
        await self.gate.wait()
        return 1

    @rpc
    def open_gate(self) -> None:
        self.gate.set()

    @rpc
    def who(self) -> bytes:
        return self.sender

    @rpc
    def signed(self, data: bytes) -> bytes:
        return self.sign(data)

    @rpc
    def die(self) -> None:
        os._exit(9)

    @rpc(retry=False)
    def die_once(self) -> None:
        os._exit(9)

    @rpc
    def echo(self, data: bytes) -> bytes:
        return data
'''


class Refused(RpcError):
    """As the enclave declares it."""


@dataclass
class Point:
    x: int
    y: int = 7


class Kitchen(Enclave):
    """The same interface, on the client's side: names and types, no bodies."""

    @rpc
    def add(self, a: int, b: int = 2) -> int: ...
    @rpc
    def mirror(self, point: Point) -> Point: ...
    @rpc
    def refuse(self) -> None: ...
    @rpc
    def fail(self) -> None: ...
    @rpc
    def leave(self) -> None: ...
    @rpc
    def count(self, token: str) -> int: ...
    @rpc
    async def wait_open(self) -> int: ...
    @rpc
    def open_gate(self) -> None: ...
    @rpc
    def who(self) -> bytes: ...
    @rpc
    def signed(self, data: bytes) -> bytes: ...
    @rpc
    def die(self) -> None: ...
    @rpc(retry=False)
    def die_once(self) -> None: ...
    @rpc
    def echo(self, data: bytes) -> bytes: ...


class Drifted(Enclave):
    @rpc
    def add(self, a: int, b: str) -> int: ...


Only = Callable[[Bundle], str]


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("kitchen", SOURCE)


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle, hostile=True) as running:
        yield running


@pytest.fixture
def client(server: HostServer, bundle: Bundle, only: Only) -> Iterator[Client]:
    with Client(server.url, constraint=only(bundle)) as made:
        yield made


def test_typed_stub(client: Client) -> None:
    kitchen = client.stub(Kitchen)
    assert kitchen.add(1) == 3
    assert kitchen.add(1, b=5) == 6
    assert kitchen.mirror(Point(1, 2)) == Point(2, 1)
    with pytest.raises(TypeError):
        kitchen.add()  # type: ignore[call-arg]


@pytest.mark.spec("RPC-6")
def test_stub_of_another_interface_is_refused(client: Client) -> None:
    with pytest.raises(AppraisalError, match="interface: the stub's class"):
        client.stub(Drifted)


@pytest.mark.spec("RPC-2", "RPC-3")
def test_errors_of_the_author(client: Client, server: HostServer) -> None:
    with pytest.raises(CallError, match="not on a Sunday") as declared:
        client.call("refuse")
    assert declared.value.type_name == "Refused"
    for method in ("fail", "leave"):
        with pytest.raises(CallError) as opaque:
            client.call(method)
        assert (opaque.value.type_name, str(opaque.value)) == ("error", "the enclave's code failed")
    with pytest.raises(CallError, match="no method of that name; it has: add"):
        client.call("nothing")
    with pytest.raises(CallError, match="argument 'a' is not int"):
        client.call("add", "one")
    # The host learns nothing: neither the message nor that there was an error.
    seen = b"".join(server.operator.requests + server.operator.answers)
    assert b"SECRET" not in seen
    assert b"Sunday" not in seen
    assert b"refuse" not in seen


def test_errors_of_the_author_at_the_command_line(
    server: HostServer, bundle: Bundle, only: Only, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, said in (
        ("refuse", "error (call): Refused: not on a Sunday"),
        ("fail", "error (call): the enclave's code failed; under `conclave run` its terminal has the traceback"),
        ("nothing", "error (call): InvalidCall: this enclave has no method"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["call", server.url, method, "--constraint", only(bundle)])
        written = capsys.readouterr()
        assert (stopped.value.code, written.out) == (1, "")
        assert written.err.startswith(said)


def test_mail_topics_envelopes_and_senders(client: Client) -> None:
    me = client.identity.public
    for sequence in range(2):
        (reply,) = client.mail(b"body", topic="a", envelope=b"label")
        assert reply.body == b"|".join((me, b"a", str(sequence).encode(), b"label", b"body"))
    (reply,) = client.mail(b"", topic="b")
    assert reply.body == b"|".join((me, b"b", b"0", b"", b""))


def test_several_replies_and_none(client: Client) -> None:
    replies = client.mail(b"many", topic="many")
    assert [(r.body, r.envelope) for r in replies] == [(b"part %d" % n, b"e%d" % n) for n in range(5)]
    assert client.mail(b"none", topic="many") == []


def test_mail_nobody_asked_for(client: Client) -> None:
    (reply,) = client.mail(b"later", topic="inbox")
    assert reply.body == b"posted"
    (unasked,) = client.poll(topic="inbox", wait_seconds=5)
    assert (unasked.body, unasked.envelope) == (b"unasked", b"seen by all")
    assert client.poll(topic="inbox") == []


def test_admission(client: Client) -> None:
    with pytest.raises(CallError, match="does not admit"):
        client.call("add", 1, 1, topic="forbidden")
    assert client.call("add", 1, 1, topic="allowed") == 2


def test_sender_is_the_identity(server: HostServer, bundle: Bundle, only: Only, tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path / "me.identity")
    for again in (identity, Identity.load(tmp_path / "me.identity")):
        with Client(server.url, constraint=only(bundle), identity=again) as client:
            assert client.call("who", returns=bytes) == identity.public


def test_signature_of_the_author_is_under_its_own_purpose(client: Client) -> None:
    signature = client.call("signed", b"statement", returns=bytes)
    client.instance.check_signature(b"statement", signature)
    for data, wrong in (
        (b"Statement", signature),
        (b"statement", signature[:-1]),
        (b"statement", bytes(64)),
        (b"statement", b""),
    ):
        with pytest.raises(SignatureError, match="the app signature does not verify"):
            client.instance.check_signature(data, wrong)
    # Another boot of the same program is another signer.
    with pytest.raises(SignatureError):
        replace(client.instance, claims_digest=bytes(64)).check_signature(b"statement", signature)


def test_calls_in_flight_interleave(server: HostServer, bundle: Bundle, only: Only) -> None:
    async def main() -> None:
        async with AsyncClient(server.url, constraint=only(bundle)) as client:
            await client.verify()
            kitchen = await client.stub(Kitchen)
            waiting = asyncio.create_task(kitchen.wait_open())
            # Sixty-four at once on the same channel overtake the one that waits.
            sums = await asyncio.gather(*(kitchen.add(n, n) for n in range(64)))
            assert sums == [2 * n for n in range(64)]
            assert not waiting.done()
            await kitchen.open_gate()
            assert await waiting == 1
            replies = await client.mail(b"many", topic="t")
            assert len(replies) == 5

    asyncio.run(main())


def test_one_client_from_many_threads(client: Client) -> None:
    client.verify()
    sums: list[int] = []

    def work(n: int) -> None:
        for _ in range(10):
            sums.append(client.call("add", n, n, topic=f"t{n % 3}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == sorted(2 * n for n in range(8) for _ in range(10))


@pytest.mark.spec("MAIL-11", "MAIL-12")
def test_a_lost_reply_is_sent_again_and_nothing_runs_twice(server: HostServer, bundle: Bundle, only: Only) -> None:
    lost = 0

    def lose(answer: bytes) -> bytes:
        nonlocal lost
        lost += 1
        return b"" if lost <= 3 else answer

    with Client(server.url, constraint=only(bundle)) as client:
        client.verify()
        server.operator.on_answer = lose
        try:
            assert client.call("count", "lost") == 1
        finally:
            server.operator.behave()
        assert lost == 4
        assert client.call("count", "lost") == 2


@pytest.mark.parametrize("size", [0, 1, 255, 4096, 1_000_000])
def test_sizes(client: Client, size: int) -> None:
    assert client.call("echo", bytes(size), returns=bytes) == bytes(size)


def test_too_large_is_refused_here_and_nothing_is_lost(client: Client) -> None:
    assert client.call("add", 1, 1) == 2
    with pytest.raises(ValueError, match="bytes"):
        client.call("echo", bytes(17 * 1024 * 1024))
    assert client.call("add", 1, 1) == 2


def test_challenge(client: Client) -> None:
    client.challenge()


def test_renewed_keys_are_noticed(server: HostServer, bundle: Bundle, only: Only) -> None:
    with Client(server.url, constraint=only(bundle)) as client:
        before = client.verify()
        assert client.call("count", "renewal") == 1
        server.run(server.host._renew())
        # The session lives on; a client that verifies again sees the new key, same boot.
        assert client.call("count", "renewal") == 2
        after = client.verify()
        assert after.claims_digest != before.claims_digest
        assert after.claims.boot_nonce == before.claims.boot_nonce
        assert client.call("count", "renewal") == 3
        client.challenge()


def test_a_new_instance_is_verified_and_the_client_goes_on(
    serve: Callable[..., HostServer], bundle: Bundle, only: Only
) -> None:
    with serve(bundle, restart=True) as server, Client(server.url, constraint=only(bundle)) as client:
        first = client.verify()
        assert client.call("count", "x") == 1
        with pytest.raises(TransportError, match="not retried"):
            client.stub(Kitchen).die_once()
        # Stateless: the new boot knows nothing of the old one.
        assert client.call("count", "x") == 1
        second = client.instance
        assert second.claims.boot_nonce != first.claims.boot_nonce
        assert second.claims.code == first.claims.code
        assert client.call("count", "x", topic="other") == 2


def test_synchronous_handlers_in_threads(
    author: Callable[..., Bundle], serve: Callable[..., HostServer], only: Only
) -> None:
    source = """
        import threading
        from conclave.enclave import Enclave, Mail, rpc

        class Pair(Enclave):
            threads = 2

            def on_start(self) -> None:
                self.meeting = threading.Barrier(2)

            @rpc
            def meet(self) -> bytes:
                self.meeting.wait(20)
                return self.sender

            def on_mail(self, mail: Mail) -> bytes:
                for n in range(50):
                    mail.reply(b"part %d" % n)
                self.meeting.wait(20)
                self.post(mail.sender, b"posted", topic=mail.topic)
                return b"last"
    """
    bundle = author("pair", source)

    async def main(url: str) -> None:
        async with AsyncClient(url, constraint=only(bundle)) as a, AsyncClient(url, constraint=only(bundle)) as b:
            met = await asyncio.gather(a.call("meet", returns=bytes), b.call("meet", returns=bytes))
            assert met == [a.identity.public, b.identity.public]
            # Replies and posts from two threads at a time, each in its order.
            for replies in await asyncio.gather(a.mail(b""), b.mail(b"")):
                assert [r.body for r in replies] == [b"part %d" % n for n in range(50)] + [b"last"]
            for client in (a, b):
                assert [m.body for m in await client.poll(wait_seconds=20)] == [b"posted"]

    with serve(bundle) as server:
        asyncio.run(main(server.url))


def test_endorsements_are_published_anew(serve: Callable[..., HostServer], bundle: Bundle, machine: Path) -> None:
    """A host that runs for long hands out endorsements that are still valid."""
    import json

    from conclave.attestation import parse_instance_info

    with serve(bundle) as server:
        assert server.host.info is not None
        before = parse_instance_info(server.host.info).endorsements
        settings = machine / "machine" / "settings.json"
        server.run(server.host._renew())
        assert parse_instance_info(server.host.info).endorsements == before
        # What the platform reports while it runs is handed out from then on.
        server.run(_tell(server, {"event": "endorsements", "endorsements": b"anew".hex()}))
        assert parse_instance_info(server.host.info).endorsements == b"anew"
        # A machine that is opened a day later publishes by itself.
        changed = json.loads(settings.read_text())
        changed["issued"] = "2020-01-01T00:00:00+00:00"
        settings.write_text(json.dumps(changed))
    with serve(bundle) as server:
        assert server.host.info is not None
        assert parse_instance_info(server.host.info).endorsements != before


async def _tell(server: HostServer, event: dict[str, str]) -> None:
    server.host._event(event)


def test_a_bad_constraint_is_told_at_once() -> None:
    with pytest.raises(FormatError):
        Client("http://127.0.0.1:1", constraint="nonsense")
    with pytest.raises(ValueError, match="http"):
        Client("ftp://127.0.0.1", constraint="C:" + "0" * 64)


def test_nobody_there() -> None:
    with (
        Client("http://127.0.0.1:1", constraint="C:" + "0" * 64, attempts=1) as client,
        pytest.raises(TransportError, match="is the host running"),
    ):
        client.verify()
