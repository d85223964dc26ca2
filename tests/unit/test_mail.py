"""Mail between a client's conversation and an enclave's mailbox, without IO."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conclave import _crypto
from conclave._crypto import DecryptionKey, SigningKey
from conclave.errors import DecryptionError, Error, FormatError, OverloadedError, SessionError
from conclave.mail import (
    Bounds,
    ClientSession,
    Conversation,
    Mailbox,
    Outcome,
    Received,
    Reply,
    ReplyKind,
    RequestKind,
    buckets,
    fixed,
    padme,
)

DIGEST = bytes(range(64))


class Pair:
    """A client channel and the enclave it talks to."""

    def __init__(self, *, bounds: Bounds | None = None, **options: object) -> None:
        self.key = DecryptionKey.generate()
        self.box = Mailbox(key=self.key, claims_digest=DIGEST, bounds=bounds)
        self.identity = SigningKey.generate()
        self.conversation = Conversation()
        self.open()

    def open(self, topic: str = "t") -> None:
        self.conversation.use(self.session(topic), new_boot=False)

    def session(self, topic: str = "t") -> ClientSession:
        return ClientSession(
            claims_digest=DIGEST,
            encryption_key=self.key.public,
            identity=self.identity,
            reply_key=self.key.public,
            topic=topic,
        )

    def request(self, body: bytes = b"hello") -> bytes:
        return self.conversation.add(RequestKind.MAIL, body).encrypted

    def answer(self, received: Received, body: bytes = b"answer", *, last: bool = True) -> bytes:
        assert received.outcome is Outcome.RUN
        assert received.channel is not None
        assert received.request is not None
        made = self.box.reply(received.channel, received.request.sequence, ReplyKind.MAIL, body, last=last)
        assert made is not None
        return made[1]


@pytest.mark.spec("MAIL-16")
def test_a_request_reaches_the_handler_and_its_replies_the_client() -> None:
    pair = Pair()
    received = pair.box.receive(pair.request(b"body"), 1)
    assert received.request is not None
    assert received.request.body == b"body"
    assert received.channel is not None
    assert received.channel.identity == pair.identity.public
    first = pair.answer(received, b"one", last=False)
    second = pair.answer(received, b"two")
    pair.conversation.receive(second)
    pending = pair.conversation.receive(first)
    assert pending is not None
    assert pending.done
    assert [r.body for r in pending.replies] == [b"one", b"two"]


@pytest.mark.spec("MAIL-1")
@pytest.mark.parametrize("policy", [padme, fixed(2048), buckets(512, 1024, 4096)])
def test_bodies_in_one_bucket_give_mails_of_one_size(policy: object) -> None:
    sizes: dict[int, set[int]] = {}
    for size in range(0, 900, 7):
        pair = Pair()
        session = ClientSession(
            claims_digest=DIGEST,
            encryption_key=pair.key.public,
            identity=pair.identity,
            reply_key=pair.key.public,
            topic="t" * (size % 255 + 1),
            padding=policy,  # type: ignore[arg-type]
        )
        pair.conversation.use(session, new_boot=False)
        sizes.setdefault(policy(40 + size), set()).add(len(pair.request(bytes(size))))  # type: ignore[operator]
    assert all(len(s) == 1 for s in sizes.values())


@pytest.mark.spec("MAIL-4")
def test_any_flipped_bit_and_any_cut_is_refused_and_changes_nothing() -> None:
    pair = Pair()
    mail = pair.request()
    for at in list(range(0, 80)) + list(range(80, len(mail), 37)):
        bad = bytearray(mail)
        bad[at] ^= 1 << at % 8
        with pytest.raises((FormatError, DecryptionError, SessionError)):
            pair.box.receive(bytes(bad), 1)
    for size in [*range(0, len(mail), 53), len(mail) - 1]:
        with pytest.raises(FormatError):
            pair.box.receive(mail[:size], 1)
    with pytest.raises(FormatError):
        pair.box.receive(mail + b"\0", 1)
    reply = pair.answer(pair.box.receive(mail, 1))
    for at in range(len(reply)):
        bad = bytearray(reply)
        bad[at] ^= 1 << at % 8
        with pytest.raises((FormatError, DecryptionError)):
            pair.conversation.receive(bytes(bad))
    assert pair.conversation.receive(reply) is not None


@pytest.mark.spec("MAIL-5", "MAIL-7")
def test_an_opening_travels_until_the_first_reply_and_never_opens_twice() -> None:
    pair = Pair()
    first, second = pair.request(b"1"), pair.request(b"2")
    received = pair.box.receive(first, 1)
    salt = pair.answer(received)[32:64]
    other = pair.answer(pair.box.receive(second, 2))
    assert other[32:64] == salt, "a later copy of the opening made a new session"
    pair.conversation.receive(other)
    assert len(pair.request(b"3")) == len(first) - 2785


@pytest.mark.spec("MAIL-10", "MAIL-11")
def test_order_gap_repeat_and_other_digest() -> None:
    pair = Pair()
    one, two = pair.request(b"1"), pair.request(b"2")
    early = pair.box.receive(two, 1)
    assert early.outcome is Outcome.ANSWERED
    item = pair.conversation.receive(early.mails[0])
    assert item is not None
    assert item.refused is not None
    assert item.refused.kind == ReplyKind.SEQUENCE_ERROR
    assert item.refused.expected == 0
    received = pair.box.receive(one, 2)
    waits = pair.box.receive(one, 3)
    assert waits.outcome is Outcome.WAIT
    assert waits.superseded_route == 2
    pair.answer(received, b"only once")
    again = pair.box.receive(one, 4)
    assert again.outcome is Outcome.ANSWERED
    done = pair.conversation.receive(again.mails[0])
    assert done is not None
    assert done.replies[0].body == b"only once"
    # Acknowledged with the next mail: from then on a repeat is an error.
    pair.box.receive(pair.conversation.acknowledgement(), 5)
    refused = pair.box.receive(one, 6)
    assert refused.outcome is Outcome.ANSWERED
    assert pair.conversation.receive(refused.mails[0]) is None


@pytest.mark.spec("MAIL-10")
def test_a_known_sequence_with_another_body_is_refused() -> None:
    pair = Pair()
    pair.box.receive(pair.request(b"1"), 1)
    twin = Conversation()
    twin.use(pair.session(), new_boot=False)
    changed = twin.add(RequestKind.MAIL, b"another").encrypted
    refused = pair.box.receive(changed, 2)
    item = twin.receive(refused.mails[0])
    assert item is not None
    assert item.refused is not None
    assert item.refused.kind == ReplyKind.SEQUENCE_ERROR


@pytest.mark.spec("MAIL-14")
def test_a_retry_in_a_new_session_gets_the_same_reply() -> None:
    pair = Pair()
    item = pair.conversation.add(RequestKind.MAIL, b"x")
    mail = item.encrypted
    pair.answer(pair.box.receive(mail, 1), b"kept")
    pair.open()
    second = item.encrypted
    assert second != mail
    again = pair.box.receive(second, 2)
    assert again.outcome is Outcome.ANSWERED
    done = pair.conversation.receive(again.mails[0])
    assert done is not None
    assert done.replies[0].body == b"kept"


@pytest.mark.spec("MAIL-8", "MAIL-9")
def test_replayed_and_foreign_replies_are_refused() -> None:
    pair, other = Pair(), Pair()
    reply = pair.answer(pair.box.receive(pair.request(), 1))
    foreign = other.answer(other.box.receive(other.request(), 1))
    with pytest.raises(DecryptionError):
        pair.conversation.receive(foreign)
    pair.conversation.receive(reply)
    with pytest.raises(DecryptionError):
        pair.conversation.receive(reply)
    with pytest.raises(DecryptionError):
        pair.conversation.receive(reply[:32] + os.urandom(32) + reply[64:])


@pytest.mark.spec("MAIL-6")
def test_an_opening_signed_by_another_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    liar = SigningKey.generate()
    victim = SigningKey.generate()
    monkeypatch.setattr(liar, "public", victim.public)
    pair.identity = liar
    pair.open()
    with pytest.raises(DecryptionError):
        pair.box.receive(pair.request(), 1)


def test_an_opening_for_another_instance_is_refused() -> None:
    pair = Pair()
    pair.box = Mailbox(key=pair.key, claims_digest=bytes(64))
    with pytest.raises(DecryptionError):
        pair.box.receive(pair.request(), 1)


def test_a_renewed_key_accepts_new_openings_and_those_under_way() -> None:
    pair = Pair()
    old = pair.request()
    new_key, new_digest = DecryptionKey.generate(), bytes(64)
    pair.box.renew(new_key, new_digest)
    assert pair.box.receive(old, 1).outcome is Outcome.RUN
    fresh = ClientSession(
        claims_digest=new_digest,
        encryption_key=new_key.public,
        identity=SigningKey.generate(),
        reply_key=new_key.public,
        topic="t",
    )
    conversation = Conversation()
    conversation.use(fresh, new_boot=False)
    mail = conversation.add(RequestKind.MAIL, b"").encrypted
    assert pair.box.receive(mail, 2).outcome is Outcome.RUN


@pytest.mark.spec("MAIL-13")
def test_bounds_refuse_and_acknowledging_frees_them() -> None:
    pair = Pair(bounds=Bounds(unacknowledged_replies=4))
    replies = [pair.answer(pair.box.receive(pair.request(), i)) for i in range(4)]
    item = pair.conversation.add(RequestKind.MAIL, b"fifth")
    full = pair.box.receive(item.encrypted, 5)
    pair.conversation.receive(full.mails[0])
    assert item.refused is not None
    assert item.refused.kind == ReplyKind.OVERLOADED
    for reply in replies:
        pair.conversation.receive(reply)
    pair.box.receive(pair.conversation.acknowledgement(), 6)
    assert pair.box.receive(item.encrypted, 7).outcome is Outcome.RUN


@pytest.mark.spec("MAIL-13", "MAIL-7")
def test_sessions_and_channels_of_one_identity_are_bounded() -> None:
    pair = Pair(bounds=Bounds(sessions_per_identity=2, channels_per_identity=2))
    first = pair.request()
    pair.box.receive(first, 1)
    for n in range(2):
        pair.open()
        pair.box.receive(pair.request(str(n).encode()), 1)
    with pytest.raises(SessionError):
        pair.box.receive(first, 2)
    pair.conversation = Conversation()
    pair.open("second")
    assert pair.box.receive(pair.request(), 3).outcome is Outcome.RUN
    pair.open("third")
    with pytest.raises(OverloadedError):
        pair.box.receive(pair.request(), 4)


@pytest.mark.spec("MAIL-15")
def test_a_forked_client_cannot_use_its_sessions() -> None:
    pair = Pair()
    pair.request()
    child = os.fork()
    if child == 0:
        try:
            pair.request()
        except SessionError:
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


@given(st.binary(max_size=3000))
def test_any_bytes_give_an_error_of_the_tree(data: bytes) -> None:
    pair = Pair()
    for mail in (data, pair.request()[:68] + data):
        with pytest.raises(Error):
            pair.box.receive(mail, 1)
        with pytest.raises(Error):
            pair.conversation.receive(mail)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_an_authentic_client_that_sends_nonsense_gets_an_error(data: bytes) -> None:
    pair = Pair()
    pair.box.receive(pair.request(), 1)
    session = pair.conversation.session
    assert session is not None
    from conclave.mail import session as module

    mail = module._encrypt(
        session._send,
        direction=1,
        session_id=session.session_id,
        counter=2**20 + int.from_bytes(_crypto.random_bytes(4), "big"),
        salt=bytes(32),
        opening=b"",
        envelope=b"",
        plaintext=data.ljust(64, b"\1"),
    )
    with pytest.raises(FormatError):
        pair.box.receive(mail, 2)


def test_padme_never_shrinks_and_wastes_little() -> None:
    for size in range(1, 100_000, 13):
        padded = padme(size)
        assert padded >= size
        assert size <= 256 or padded <= size * 1.12
    with pytest.raises(ValueError, match="does not fit"):
        fixed(512)(513)


def test_reply_and_request_show_no_secret() -> None:
    assert isinstance(Reply(0, 0, 0, 0, 0, 0, b"").last, bool)
