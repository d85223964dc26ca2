"""Several numberings of one topic: processes, copies, boots that come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import pytest
from tests.unit.test_client_core import DIGEST, Instance, call, core

from conclave._crypto import DecryptionKey, SigningKey, random_bytes
from conclave.attestation import AttestationResult
from conclave.client.core import Answer, ClientCore, Exchange
from conclave.errors import FormatError, OverloadedError, SessionError, TransportError
from conclave.mail import (
    Bounds,
    ClientSession,
    Conversation,
    Mailbox,
    Outcome,
    Received,
    ReplyKind,
    RequestKind,
    parse_mail,
)


class Side:
    """One process of an identity, and the enclave it shares with others."""

    key = DecryptionKey.generate()
    identity = SigningKey.generate()

    def __init__(self, box: Mailbox, strand: int, topic: str = "t") -> None:
        self.box, self.strand, self.topic = box, strand, topic
        self.conversation = Conversation()
        self.open()

    def open(self) -> None:
        session = ClientSession(
            claims_digest=DIGEST,
            encryption_key=self.key.public,
            identity=self.identity,
            reply_key=self.key.public,
            topic=self.topic,
            strand=self.strand,
        )
        self.conversation.use(session, new_boot=False)

    def send(self, *, answered: bool = True, acknowledged: bool = False) -> Received:
        item = self.conversation.add(RequestKind.MAIL, b"the same of all")
        received = self.box.receive(item.encrypted, 1)
        if received.outcome is Outcome.RUN and answered:
            assert received.channel is not None
            assert received.request is not None
            made = self.box.reply(received.channel, received.request.sequence, ReplyKind.MAIL, b"x", last=True)
            assert made is not None
            self.conversation.receive(made[1])
            if acknowledged:
                self.box.receive(self.conversation.acknowledgement(), 1)
        elif received.outcome is Outcome.ANSWERED:
            for mail in received.mails:
                self.conversation.receive(mail)
        return received


def mailbox(**bounds: int) -> Mailbox:
    return Mailbox(key=Side.key, claims_digest=DIGEST, bounds=Bounds(**bounds))


@pytest.mark.spec("MAIL-50")
def test_equal_requests_of_two_processes_are_two_requests() -> None:
    box = mailbox()
    one, other = Side(box, 1), Side(box, 2)
    for side in (one, other, one, other):
        assert side.send().outcome is Outcome.RUN
    assert one.conversation.waiting() == other.conversation.waiting() == []


@pytest.mark.spec("MAIL-50")
def test_a_session_carries_one_strand() -> None:
    box = mailbox()
    side = Side(box, 1)
    side.send()
    assert side.conversation.session is not None
    side.conversation.session._strand = 2
    with pytest.raises(FormatError, match="one strand"):
        side.send()
    side.conversation.session._strand = 1
    # Nothing changed: the one that was refused comes next.
    assert side.conversation.waiting()[0].sequence == 1


@pytest.mark.spec("MAIL-51", "MAIL-13")
def test_which_channel_makes_room() -> None:
    box = mailbox(channels_per_identity=3)
    owing, settled, running = Side(box, 1), Side(box, 2), Side(box, 3)
    owing.send()
    settled.send(acknowledged=True)
    running.send(answered=False)
    # Used last, and yet it goes first: its client lacks nothing.
    settled.send(acknowledged=True)
    assert Side(box, 4).send(answered=False).outcome is Outcome.RUN
    settled.open()
    refused = settled.send()
    assert refused.outcome is Outcome.ANSWERED
    item = settled.conversation.waiting()[0]
    assert item.refused is not None
    assert (item.refused.kind, item.refused.expected, item.sequence) == (ReplyKind.CLOSED, 2, 2)
    # Then the one that owes a reply; what runs never goes.
    assert Side(box, 5).send(answered=False).outcome is Outcome.RUN
    with pytest.raises(OverloadedError):
        Side(box, 6).send()
    owing.open()
    assert owing.send().outcome is Outcome.ANSWERED
    assert running.send(answered=False).outcome is Outcome.RUN


@pytest.mark.spec("MAIL-51", "MAIL-7")
def test_nothing_of_a_closed_channel_comes_back() -> None:
    box = mailbox(channels_per_identity=1)
    first = Side(box, 1)
    item = first.conversation.add(RequestKind.MAIL, b"once")
    received = box.receive(item.encrypted, 1)
    assert received.channel is not None
    box.reply(received.channel, 0, ReplyKind.MAIL, b"", last=True)
    Side(box, 2).send()
    # The host has the first mail still: its session is over, and so is its strand in another one.
    with pytest.raises(SessionError):
        box.receive(item.encrypted, 2)
    first.open()
    assert box.receive(first.conversation.waiting()[0].encrypted, 3).outcome is Outcome.ANSWERED
    # Another identity or topic has closed nothing.
    assert Side(box, 1, topic="u").send().outcome is Outcome.RUN


def closing(instance: Instance, taken: int) -> Callable[[Exchange], Answer]:
    """A host through which the enclave says once that the strand is closed."""
    done: list[bool] = []

    def host(exchange: Exchange) -> Answer:
        if done:
            return instance.answer(exchange)
        done.append(True)
        mail_session = instance.box._open(parse_mail(exchange.body))
        request = mail_session.decrypt(parse_mail(exchange.body))
        made = instance.box._refuse(mail_session, request, ReplyKind.CLOSED, taken).mails[0]
        return Answer(200, len(made).to_bytes(4, "big") + made)

    return host


@pytest.mark.spec("MAIL-51")
def test_what_a_client_makes_of_a_closed_strand() -> None:
    instance = Instance()
    client = core(instance)
    assert instance.drive(call(client), closing(instance, taken=0)) == 7
    first, second = (parse_mail(e.body).session_id for e in instance.exchanges)
    assert first != second

    client = core(instance)
    with pytest.raises(TransportError, match="no longer has its answer"):
        instance.drive(call(client), closing(instance, taken=5))
    # And it is not sent again.
    assert len(instance.exchanges) == 3
    # The next call goes on in another strand.
    assert instance.drive(call(client)) == 7


def boots(instance: Instance) -> tuple[AttestationResult, AttestationResult]:
    one = instance.result()
    claims = msgspec.structs.replace(one.claims, boot_nonce=random_bytes(32))
    return one, dataclasses.replace(one, claims=claims, claims_digest=random_bytes(64))


@pytest.mark.spec("MAIL-52")
def test_a_boot_that_comes_back_is_not_given_the_call_again(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance()
    here, there = boots(instance)
    shown = [there, here]
    monkeypatch.setattr("conclave.client.core.verify_instance", lambda *_, **__: shown.pop(0))
    client: ClientCore = core(instance, attempts=6)
    sent: list[bytes] = []

    def host(exchange: Exchange) -> Answer:
        if exchange.path == "/instance":
            return Answer(200)
        sent.append(exchange.body)
        return Answer(502)

    with pytest.raises(TransportError, match="outcome is unknown"):
        instance.drive(call(client), host)
    assert len(sent) == 2
    # Back at the first boot, another call is a call of another strand.
    assert instance.drive(call(client)) == 7
