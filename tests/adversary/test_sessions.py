"""Strangers, with as many identities as they like, who use up what sessions and channels take: T-21."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from tests._sessions import session_to

from conclave._crypto import DecryptionKey, SigningKey, random_bytes
from conclave._framing import Kind, pack
from conclave._mailheader import NONE
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.errors import DecryptionError, OverloadedError, SessionError
from conclave.host import host as hosts
from conclave.mail import Bounds, ClientSession, Mailbox, Outcome, Received, ReplyKind, Request, RequestKind
from conclave.mail._wire import MARK_SHIFT, strand_mark
from conclave.testing import HostServer


class Enclave:
    """One boot whose key is renewed, and what a host delivers to it."""

    def __init__(self, **bounds: int) -> None:
        self.asked = 0
        self.key, self.digest = DecryptionKey.generate(), random_bytes(64)
        self.mailbox = Mailbox(key=self.key, claims_digest=self.digest, bounds=Bounds(**bounds), spent=self._spent)

    def _spent(self) -> None:
        self.asked += 1

    def renew(self) -> None:
        self.key, self.digest = DecryptionKey.generate(), random_bytes(64)
        self.mailbox.renew(self.key, self.digest)

    def session(self, identity: SigningKey | None = None, *, strand: int | None = None) -> ClientSession:
        fresh = strand_mark(self.digest) << MARK_SHIFT | int.from_bytes(os.urandom(5), "big")
        return session_to(self.digest, self.key.public, identity, strand=fresh if strand is None else strand)

    def take(self, session: ClientSession, sequence: int = 0, *, answered: bool = True) -> Received:
        received = self.mailbox.receive(session.encrypt(Request(RequestKind.MAIL, 0, sequence, 0, b"x")), 1)
        if answered and received.outcome is Outcome.RUN:
            assert received.channel is not None
            made = self.mailbox.reply(received.channel, sequence, ReplyKind.MAIL, b"", last=True)
            assert made is not None
            session.decrypt(made[1])
        return received


@pytest.mark.spec("T-21", "MAIL-7")
def test_what_was_opened_to_a_key_is_remembered_while_it_lives_and_no_longer() -> None:
    enclave = Enclave(sessions=1)
    session = enclave.session()
    first = session.encrypt(Request(RequestKind.MAIL, 0, 0, 0, b"once"))
    assert enclave.mailbox.receive(first, 1).outcome is Outcome.RUN
    for _ in range(2):
        # The session ends with the next one, and its opening does not come back.
        enclave.take(enclave.session())
        with pytest.raises(SessionError):
            enclave.mailbox.receive(first, 1)
        enclave.renew()
    assert not any(session.session_id in term.ids for term in enclave.mailbox._terms)
    with pytest.raises(DecryptionError):
        enclave.mailbox.receive(first, 1)


@pytest.mark.spec("T-21", "MAIL-55")
def test_a_stranger_who_opens_without_end_waits_and_others_do_not() -> None:
    enclave = Enclave(session_ids=40, session_ids_when_scarce=4)
    stranger = SigningKey.generate()
    for _ in range(30):
        enclave.take(enclave.session(stranger))
    with pytest.raises(OverloadedError):
        enclave.take(enclave.session(stranger))
    assert enclave.asked
    for _ in range(10):
        enclave.take(enclave.session())
    with pytest.raises(OverloadedError):
        enclave.take(enclave.session())
    # Whoever has a session goes on, and after the renewal everybody opens again.
    enclave.renew()
    for identity in (stranger, None):
        enclave.take(enclave.session(identity))


@pytest.mark.spec("T-21", "MAIL-55")
def test_who_opens_to_the_key_before_is_sent_to_the_new_one() -> None:
    enclave = Enclave(session_ids=4)
    late, old = enclave.session(), [enclave.session() for _ in range(4)]
    for session in old:
        enclave.take(session)
    asked = enclave.asked
    enclave.renew()
    # SESSION, and not OVERLOADED: a client verifies again and opens to the new key.
    with pytest.raises(SessionError, match="renewed"):
        enclave.take(late)
    assert enclave.asked == asked
    enclave.take(enclave.session())
    assert enclave.take(old[0], 1).outcome is Outcome.RUN


@pytest.mark.spec("T-21", "MAIL-56")
def test_strangers_who_hold_all_channels_make_room() -> None:
    enclave = Enclave(channels=20)
    for _ in range(20):
        enclave.take(enclave.session())
    busy, running = enclave.session(), enclave.session()
    enclave.take(running, answered=False)
    for number in range(200):
        enclave.take(busy, number)
        enclave.take(enclave.session())
        assert len(enclave.mailbox._channels) == 20
    # What runs is never closed, nor is who was at work just now.
    assert enclave.take(running, 1).outcome is Outcome.RUN
    assert enclave.take(busy, 200).outcome is Outcome.RUN
    # Identities are free, so none that has nothing is remembered.
    assert len(enclave.mailbox._owned) == len(enclave.mailbox._per_identity) == 20


@pytest.mark.spec("T-21", "MAIL-56")
def test_channels_that_all_run_are_the_end() -> None:
    enclave = Enclave(channels=3)
    sessions = [enclave.session() for _ in range(3)]
    for session in sessions:
        enclave.take(session, answered=False)
    with pytest.raises(OverloadedError):
        enclave.take(enclave.session())
    assert enclave.take(sessions[0], 1).outcome is Outcome.RUN


@pytest.mark.spec("T-21", "MAIL-51", "MAIL-56")
def test_a_strand_that_was_forgotten_never_runs_again() -> None:
    enclave = Enclave(channels=1, closed=3)
    victim, strand = SigningKey.generate(), strand_mark(enclave.digest) << MARK_SHIFT | 7
    enclave.take(enclave.session(victim, strand=strand))

    def again(strand: int) -> int | None:
        session = enclave.session(victim, strand=strand)
        received = enclave.take(session)
        if received.outcome is Outcome.RUN:
            return None
        reply = session.decrypt(received.mails[0])
        assert reply.kind == ReplyKind.CLOSED
        return reply.expected

    for _ in range(4):
        enclave.take(enclave.session())
    assert again(strand) == 1
    enclave.renew()
    assert again(strand) == 1
    enclave.renew()
    # Of these strands the enclave knows nothing more than that they are not new: what they took may have run.
    assert not enclave.mailbox._closed
    assert again(strand) == NONE
    assert again(strand_mark(enclave.digest) << MARK_SHIFT | 7) is None


SOURCE = """
from functools import partial
from conclave.enclave import Enclave, rpc
from conclave.mail import mailbox

mailbox.Bounds = partial(mailbox.Bounds, session_ids=12, session_ids_when_scarce=2)


class Small(Enclave):
    @rpc
    def ping(self) -> str:
        return "pong"

    @rpc(retry=False)
    def ask(self, frames: bytes) -> None:
        import os
        os.write(3, frames)
"""


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("small", SOURCE)


@pytest.mark.slow
@pytest.mark.spec("T-21", "MAIL-55", "CHAN-15")
def test_a_boot_outlives_any_number_of_sessions(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    monkeypatch.setattr(hosts, "RENEW_AGAIN_SECONDS", 0.1)
    with serve(bundle) as server:
        with Client(server.url, constraint=only(bundle)) as honest:
            assert honest.call("ping") == "pong"
            for _ in range(60):
                with Client(server.url, constraint=only(bundle), attempts=8) as stranger:
                    assert stranger.call("ping") == "pong"
            # It kept its session, and opens another one as well as anybody.
            assert honest.call("ping") == "pong"
            assert honest.call("ping", topic="another") == "pong"
        assert server.host.counts.renewals >= 4
        assert server.host.counts.starts == 1


@pytest.mark.slow
@pytest.mark.spec("T-20", "CHAN-15")
def test_an_enclave_does_not_decide_how_often_its_key_is_renewed(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with serve(bundle) as server, Client(server.url, constraint=only(bundle)) as client:
        for _ in range(20):
            client.call("ask", pack(Kind.SPENT, 0) * 100)
        assert client.call("ping") == "pong"
        assert server.host.counts.renewals <= 1
