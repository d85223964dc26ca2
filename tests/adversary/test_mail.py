"""An operator who acts on the mail: T-01 to T-05, T-16, T-17. Real host, real enclave."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from conclave._mailheader import parse_mail
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.client.core import split_mails
from conclave.errors import CallError, Error, MailError, SequenceError, TransportError
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
from conclave.enclave import Enclave, Mail, rpc

class Counter(Enclave):
    def on_start(self) -> None:
        self.seen = []
        self.members: set[bytes] = set()

    def on_mail(self, mail: Mail) -> bytes:
        return mail.body

    @rpc
    def put(self, token: str) -> int:
        self.seen.append(token)
        return self.seen.count(token)

    def admit(self, sender: bytes, topic: str) -> bool:
        return topic != "members" or sender in self.members

    @rpc
    def invite(self, who: bytes) -> None:
        self.members.add(who)
"""


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("counter", SOURCE)


@pytest.fixture(scope="module")
def running(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle, hostile=True, patience_seconds=0.0) as server:
        yield server


@pytest.fixture
def server(running: HostServer) -> Iterator[HostServer]:
    running.operator.behave()
    yield running
    running.operator.behave()


@pytest.fixture
def connect(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> Iterator[Callable[..., Client]]:
    with contextlib.ExitStack() as stack:

        def make(**options: object) -> Client:
            settings: dict[str, object] = {"timeout_seconds": 20.0, "attempts": 1, **options}
            client = stack.enter_context(Client(server.url, constraint=only(bundle), **settings))
            client.verify()
            return client

        yield make


def cut(mail: bytes) -> bytes:
    size = int.from_bytes(mail[64:68], "big") - 7
    return (mail[:64] + size.to_bytes(4, "big") + mail[68:])[:-7]


def flip(mail: bytes, at: int) -> bytes:
    return mail[:at] + bytes([mail[at] ^ 1]) + mail[at + 1 :]


@pytest.mark.spec("T-01", "MAIL-4", "MAIL-6")
def test_every_part_of_a_mail_is_authentic(server: HostServer, connect: Callable[..., Client]) -> None:
    client = connect()
    with contextlib.suppress(Error):
        server.operator.on_request = lambda mail: b""
        client.call("put", "first")
    server.operator.behave()
    mail = server.operator.requests[-1]
    total = len(mail)
    # Magic, direction, flags, envelope size, session id, counter, salt, size, opening
    # (key encapsulation, sealed secret, record), ciphertext, tag.
    places = [
        0,
        4,
        5,
        6,
        8,
        23,
        24,
        31,
        32,
        63,
        64,
        68,
        1000,
        1235,
        1240,
        1500,
        2800,
        2853,
        2900,
        total - 17,
        total - 1,
    ]
    for place in places:
        status, body = server.run(server.operator.inject("POST", "/mail", flip(mail, place)))
        assert status in (400, 409, 422), f"byte {place}: {status} {body!r}"
    for changed in (mail[:-1], cut(mail), mail + b"\0", mail[:100], b"", mail * 2):
        status, _ = server.run(server.operator.inject("POST", "/mail", changed))
        assert status in (400, 422)
    # Nothing of that changed any state: the mail itself is still good.
    status, _ = server.run(server.operator.inject("POST", "/mail", mail))
    assert status == 200


@pytest.mark.spec("T-01", "MAIL-4")
def test_an_altered_reply_is_ignored(server: HostServer, connect: Callable[..., Client]) -> None:
    changes = (
        lambda a: flip(a, len(a) - 1),
        lambda a: flip(a, 4 + 24),
        lambda a: flip(a, 4 + 40),
        lambda a: a[:-1],
        lambda a: b"\xff\xff\xff\xff" + a,
        lambda a: b"",
        lambda a: os.urandom(500),
    )
    for change in changes:
        client = connect()
        server.operator.on_answer = change
        with pytest.raises(TransportError, match="nothing authentic"):
            client.call("put", "reply")
        server.operator.behave()


@pytest.mark.spec("T-02", "MAIL-11", "MAIL-5")
def test_replays(server: HostServer, connect: Callable[..., Client]) -> None:
    client = connect()
    assert client.call("put", "replay") == 1
    first = server.operator.requests[-1]
    # Before it is acknowledged: the stored reply, no handler.
    status, answer = server.run(server.operator.inject("POST", "/mail", first))
    assert (status, len(split_mails(answer))) == (200, 1)
    assert client.call("put", "replay") == 2
    # After: a sequence error to the client, nothing else.
    status, answer = server.run(server.operator.inject("POST", "/mail", first))
    assert status == 200
    session = client._core._topics["default"].conversation.session
    reply = session.decrypt(split_mails(answer)[0])
    assert (reply.kind, reply.expected) == (3, 2)
    assert client.call("put", "replay") == 3


@pytest.mark.spec("T-02", "MAIL-9")
def test_an_old_reply_is_ignored(server: HostServer, connect: Callable[..., Client]) -> None:
    client = connect()
    assert client.call("put", "old reply") == 1
    old = server.operator.answers[-1]
    server.operator.on_answer = lambda answer: old
    with pytest.raises(TransportError, match="nothing authentic"):
        client.call("put", "old reply")
    assert client.refused_mails == 1


@pytest.mark.spec("T-02", "MAIL-7")
def test_an_opening_replayed_to_a_new_boot_is_nothing_to_it(
    serve: Callable[..., HostServer], bundle: Bundle, server: HostServer, connect: Callable[..., Client]
) -> None:
    client = connect()
    assert client.call("put", "boot") == 1
    mail = server.operator.requests[-1]
    with serve(bundle, hostile=True) as other:
        status, _ = other.run(other.operator.inject("POST", "/mail", mail))
        assert status == 422


@pytest.mark.spec("T-02", "MAIL-72")
def test_a_call_that_was_not_admitted_never_runs(server: HostServer, connect: Callable[..., Client]) -> None:
    guest = connect()
    with pytest.raises(CallError, match="nothing of it will"):
        guest.call("put", "guest", topic="members")
    refused = server.operator.requests[-1]
    connect().call("invite", guest.identity.public)
    # The enclave would take that sender now, and the operator still has what it sent before.
    status, answer = server.run(server.operator.inject("POST", "/mail", refused))
    assert (status, len(split_mails(answer))) == (200, 1)
    assert guest.call("put", "guest", topic="members") == 1


@pytest.mark.spec("T-03", "MAIL-10")
def test_reordered_mails(server: HostServer, connect: Callable[..., Client]) -> None:
    client = connect()
    assert client.call("put", "order") == 1
    held: list[bytes] = []

    def hold_first(mail: bytes) -> bytes | None:
        held.append(mail)
        return None if len(held) == 1 else mail

    server.operator.on_request = hold_first
    first = threading.Thread(target=lambda: _swallow(lambda: client.call("put", "order")))
    client._timeout = 3.0
    first.start()
    _until(lambda: len(held) == 1)
    with pytest.raises(SequenceError) as refused:
        client.call("put", "order")
    assert (refused.value.expected, refused.value.got) == (1, 2)
    # Late but in order, the first one is taken.
    status, _ = server.run(server.operator.inject("POST", "/mail", held[0]))
    assert status == 200
    first.join()


@pytest.mark.spec("T-04", "MAIL-10")
def test_a_dropped_mail(server: HostServer, connect: Callable[..., Client]) -> None:
    client = connect(timeout_seconds=1.0)
    assert client.call("put", "drop") == 1
    count = 0

    def swallow_first(mail: bytes) -> bytes | None:
        nonlocal count
        count += 1
        return None if count == 1 else mail

    server.operator.on_request = swallow_first
    outcome: list[Exception | None] = []
    missing = threading.Thread(target=lambda: outcome.append(_swallow(lambda: client.call("put", "drop"))))
    missing.start()
    _until(lambda: count == 1)
    with pytest.raises(SequenceError, match="expected sequence 1, got 2"):
        client.call("put", "drop")
    missing.join()
    assert isinstance(outcome[0], TransportError)
    assert "no answer within" in str(outcome[0])
    # An honest path heals it: the missing mail, the refused one, then the new one; each once.
    server.operator.behave()
    assert client.call("put", "drop") == 4


@pytest.mark.spec("T-05", "MAIL-4", "MAIL-8")
def test_cross_wired_clients(server: HostServer, connect: Callable[..., Client]) -> None:
    alice, bob = connect(), connect()
    assert alice.call("put", "alice") == 1
    for_alice = server.operator.answers[-1]
    assert bob.call("put", "bob") == 1
    server.operator.on_answer = lambda answer: for_alice
    with pytest.raises(TransportError, match="nothing authentic"):
        bob.call("put", "bob")
    assert bob.refused_mails == 1


@pytest.mark.spec("T-05")
def test_a_mail_under_another_session_id(server: HostServer, connect: Callable[..., Client]) -> None:
    alice, bob = connect(), connect()
    for client in (alice, bob):
        assert client.call("put", f"x{id(client)}") == 1
        assert client.call("put", f"x{id(client)}") == 2
    of_bob = parse_mail(server.operator.requests[-1]).session_id
    assert alice.call("put", f"x{id(alice)}") == 3
    mail = server.operator.requests[-1]
    status, _ = server.run(server.operator.inject("POST", "/mail", mail[:8] + of_bob + mail[24:]))
    assert status == 422


@pytest.mark.spec("T-16", "MAIL-15")
def test_a_forked_client_process_shares_no_session(server: HostServer, connect: Callable[..., Client]) -> None:
    client = connect(attempts=6)
    assert client.call("put", "fork") == 1
    session_before = parse_mail(server.operator.requests[-1]).session_id
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = b"?"
        with contextlib.suppress(BaseException):
            # The child encrypts next; it must not do so under its parent's key.
            conversation = client._core._topic("default").conversation
            assert conversation.session is not None
            outcome = conversation.session.session_id
        os.write(write, outcome)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        session_of_child = pipe.read()
    os.waitpid(child, 0)
    assert len(session_of_child) == 16
    assert session_of_child != session_before
    assert client.call("put", "fork") == 2


@pytest.mark.spec("T-17")
def test_what_the_operator_sees(server: HostServer, connect: Callable[..., Client]) -> None:
    client = connect()
    client.call("put", "PLAINTEXT-IN-A-CALL", topic="TOPIC-NAME")
    with pytest.raises(CallError):
        client.call("NO-SUCH-METHOD")
    client.mail(b"PLAINTEXT-IN-A-MAIL", envelope=b"VISIBLE-ENVELOPE")
    seen = b"".join(server.operator.requests + server.operator.answers)
    for secret in (b"PLAINTEXT", b"TOPIC-NAME", b"NO-SUCH-METHOD", b"put", client.identity.public):
        assert secret not in seen
    assert b"VISIBLE-ENVELOPE" in seen


@pytest.mark.spec("T-17", "MAIL-1")
def test_sizes_show_buckets_only(server: HostServer, connect: Callable[..., Client]) -> None:
    sizes = set()
    for size in (0, 1, 50, 100, 200):
        client = connect()
        client.mail(bytes(size))
        sizes.add((len(server.operator.requests[-1]), len(server.operator.answers[-1])))
    assert len(sizes) == 1


@pytest.mark.spec("T-01", "MAIL-4")
def test_an_altered_envelope_is_refused(server: HostServer, connect: Callable[..., Client]) -> None:
    client = connect()
    server.operator.on_request = lambda mail: mail.replace(b"to: alice", b"to: mallo")
    with pytest.raises((TransportError, MailError)):
        client.mail(b"body", envelope=b"to: alice")


def _swallow(act: Callable[[], object]) -> Exception | None:
    try:
        act()
    except Error as error:
        return error
    return None


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
