"""What a check of mail refuses that no other would: one change to a mail that is authentic otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from conclave import _mailheader
from conclave._crypto import AeadKey, DecryptionKey, Secret, SigningKey, seal_secret
from conclave._mailheader import (
    HEADER,
    MAX_ENVELOPE,
    MAX_MAIL,
    NONE,
    OPENING_SIZE,
    SMALLEST_CIPHERTEXT,
    address_of,
    parse_mail,
)
from conclave.errors import DecryptionError, FormatError, OverloadedError, SessionError
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
)
from conclave.mail import session as _session
from conclave.mail._wire import MAX_BODY, PRIVATE, Request, check_topic, parse_reply, parse_request
from conclave.mail.session import MAX_COUNTER, EnclaveSession

DIGEST = bytes(64)
KEY = DecryptionKey.generate()


def client(topic: str = "t", identity: SigningKey | None = None, strand: int = 0) -> ClientSession:
    return ClientSession(
        claims_digest=DIGEST,
        encryption_key=KEY.public,
        identity=identity or SigningKey.generate(),
        reply_key=KEY.public,
        topic=topic,
        strand=strand,
    )


def request(sequence: int = 0, body: bytes = b"", kind: int = RequestKind.MAIL, acknowledged: int = 0) -> Request:
    return Request(kind, 0, sequence, acknowledged, body)


def mailbox(**options: Any) -> Mailbox:
    return Mailbox(key=KEY, claims_digest=DIGEST, **options)


def started(box: Mailbox, session: ClientSession, sequence: int) -> Received:
    received = box.receive(session.encrypt(request(sequence)), 1)
    assert received.outcome is Outcome.RUN
    return received


def refusal(session: ClientSession, received: Received) -> int:
    assert received.outcome is Outcome.ANSWERED
    return session.decrypt(received.mails[0]).kind


# The public header -------------------------------------------------------------------


def header(**changes: int) -> bytes:
    values = {"direction": 1, "flags": 0, "envelope": 0, "counter": 0, "size": 56} | changes
    head = HEADER.pack(
        b"CML1",
        values["direction"],
        values["flags"],
        values["envelope"],
        bytes(16),
        values["counter"],
        bytes(32),
        values["size"],
    )
    opening = bytes(OPENING_SIZE if values["flags"] else 0)
    return head + opening + bytes(values["envelope"] + values["size"])


@pytest.mark.spec("MAIL-3")
@pytest.mark.parametrize(
    "changes",
    [
        {"direction": 0},
        {"direction": 3},
        {"flags": 2},
        {"direction": 2, "flags": 1},
        {"direction": 2, "flags": 2},
        {"envelope": MAX_ENVELOPE + 1},
        {"counter": NONE},
        {"size": 55},
        {"size": MAX_MAIL - HEADER.size + 1},
    ],
)
def test_headers_of_another_form(changes: dict[str, int]) -> None:
    assert parse_mail(header()).counter == 0
    assert parse_mail(header(direction=2)).direction == 2
    assert parse_mail(header(flags=1)).opening == bytes(OPENING_SIZE)
    assert (address_of(header())[3], address_of(header(flags=1))[3]) == (False, True)
    assert parse_mail(header(envelope=MAX_ENVELOPE, size=MAX_MAIL - HEADER.size - MAX_ENVELOPE)).counter == 0
    with pytest.raises(FormatError):
        parse_mail(header(**changes))


# The private header ------------------------------------------------------------------


def private(*fields: int) -> bytes:
    return PRIVATE.pack(*fields).ljust(256, b"\0")


@pytest.mark.spec("MAIL-3")
@pytest.mark.parametrize(
    "plain",
    [
        private(3, 0, 0, 0, 0, 0, 0, 0),
        private(6, 0, 0, 0, 0, 0, 0, 0),
        private(0, 2, 0, 0, 0, 0, 0, 0),
        private(0, 0, 1, 0, 0, 0, 0, 0),
        private(0, 0, 0, 217, 0, 0, 0, 0),
        private(0, 0, 0, 0, NONE, 0, 0, 0),
        private(2, 0, 0, 0, 0, 0, 0, 0),
        private(0, 0, 0, 0, 0, 0, 0, 0)[:-1] + b"\1",
    ],
)
def test_private_headers_of_requests_of_another_form(plain: bytes) -> None:
    assert parse_request(private(0, 1, 0, 216, 0, 0, 0, 0), b"").body == bytes(216)
    assert parse_request(private(2, 0, 0, 0, NONE, 0, 0, 0), b"").sequence == NONE
    assert parse_request(private(0, 0, 0, 0, 0, 0, 0, 7), b"").strand == 7
    assert parse_request(private(0, 0, 0, 0, 0, 0, 5, 0), b"").posted == 5
    with pytest.raises(FormatError):
        parse_request(plain, b"")


@pytest.mark.spec("MAIL-3")
@pytest.mark.parametrize(
    "plain",
    [
        private(7, 0, 0, 0, 0, 0, 0, 0),
        private(14, 0, 0, 0, 0, 0, 0, 0),
        private(0, 2, 0, 0, 0, 0, 0, 0),
        private(0, 4, 0, 0, 0, 0, 0, 0),
    ],
)
def test_private_headers_of_replies_of_another_form(plain: bytes) -> None:
    assert parse_reply(private(6, 1, 0, 0, 0, 0, 0, 0), b"").kind == 6
    with pytest.raises(FormatError):
        parse_reply(plain, b"")


@pytest.mark.parametrize("topic", ["", "a" * 256, "a b", "ä", "a\n", "a\0"])
def test_topics_of_another_form(topic: str) -> None:
    assert check_topic("a" * 255) == b"a" * 255
    with pytest.raises(ValueError, match="a topic has"):
        check_topic(topic)


@pytest.mark.parametrize("make", [lambda: fixed(255), lambda: buckets(), lambda: buckets(255, 1024)])
def test_padding_that_hides_less_than_the_smallest_bucket(make: Any) -> None:
    assert fixed(256)(1) == 256
    with pytest.raises(ValueError, match="256"):
        make()


# Sessions ----------------------------------------------------------------------------


def test_what_does_not_fit_the_format_is_not_encrypted() -> None:
    session = client()
    with pytest.raises(ValueError, match="envelope"):
        session.encrypt(Request(0, 0, 0, 0, b"", bytes(MAX_ENVELOPE + 1)))
    with pytest.raises(ValueError, match="body"):
        session.encrypt(request(body=bytes(MAX_BODY + 1)))
    session.encrypt(Request(0, 0, 0, 0, bytes(MAX_BODY), bytes(MAX_ENVELOPE)))


@pytest.mark.spec("MAIL-2")
def test_a_spent_session_encrypts_nothing_more() -> None:
    session = client()
    session._counter = MAX_COUNTER - 1
    mail = session.encrypt(request())
    with pytest.raises(SessionError):
        session.encrypt(request())
    enclave = EnclaveSession(parse_mail(mail).opening, key=KEY, claims_digest=DIGEST)
    enclave._counter = MAX_COUNTER - 1
    enclave.encrypt(Reply(0, 1, 0, 0, 0, 1, b""))
    with pytest.raises(SessionError):
        enclave.encrypt(Reply(0, 1, 0, 0, 0, 1, b""))


@pytest.mark.spec("MAIL-3", "MAIL-8", "MAIL-9")
def test_what_needs_no_key_is_refused_before_a_key_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    session, other = client(), client()
    mails = [s.encrypt(request()) for s in (session, other)]
    ends = [EnclaveSession(parse_mail(m).opening, key=KEY, claims_digest=DIGEST) for m in mails]
    again = EnclaveSession(parse_mail(mails[0]).opening, key=KEY, claims_digest=DIGEST)
    reply = Reply(0, 1, 0, 0, 0, 1, b"")
    first, following = ends[0].encrypt(reply), ends[0].encrypt(reply)
    reflected = bytearray(following)
    reflected[4] = _mailheader.TO_ENCLAVE
    reflected[32:64] = bytes(32)
    foreign, salted = ends[1].encrypt(reply), [again.encrypt(reply) for _ in range(3)][2]
    session.decrypt(first)
    # One that has received nothing knows no salt yet.
    new = client()
    turned = bytearray(new.encrypt(request())[: HEADER.size]) + bytes(SMALLEST_CIPHERTEXT)
    turned[5], turned[-SMALLEST_CIPHERTEXT - 4 : -SMALLEST_CIPHERTEXT] = 0, SMALLEST_CIPHERTEXT.to_bytes(4, "big")

    def used(*_: object) -> bytes:
        raise AssertionError("a key was used")

    with monkeypatch.context() as patch:
        patch.setattr(AeadKey, "decrypt", used)
        for mail in (first, bytes(reflected), foreign, salted):
            with pytest.raises(DecryptionError):
                session.decrypt(mail)
        for mail in (foreign, bytes(turned)):
            with pytest.raises(DecryptionError):
                new.decrypt(mail)
        with pytest.raises(AssertionError):
            session.decrypt(following)
    session.discard()
    with pytest.raises(DecryptionError):
        session.decrypt(following)


def opening(*, topic: bytes = b"t", size: int = 1, padding: bytes = b"", log: bytes = bytes(33)) -> bytes:
    """An opening as another implementation might make it: sealed, encrypted and signed as it should be."""
    secret, identity = Secret.random(), SigningKey.generate()
    sealed = seal_secret(KEY.public, _session._opening_info(DIGEST), secret)
    prk = _session._schedule(secret, sealed, DIGEST)
    body = _session._signed_body(sealed, topic[:size], KEY.public, log)
    field = (topic + padding).ljust(255, b"\0")
    signature = identity.sign("opening", DIGEST, body)
    record = identity.public + KEY.public + bytes((size,)) + field + log + signature
    assert len(record) == _session._RECORD.size
    return sealed + AeadKey(prk.expand(_session.LABEL_RECORD)).encrypt(bytes(12), record, b"")


@pytest.mark.spec("MAIL-6")
@pytest.mark.parametrize(
    "changes",
    [
        {"log": b"\2" + bytes(32)},
        {"log": b"\0" + bytes(31) + b"\1"},
        {"padding": b"\0x"},
        {"topic": b"", "size": 0},
        {"topic": b"a b", "size": 3},
        {"topic": b"\xff", "size": 1},
    ],
)
def test_openings_of_another_form(changes: dict[str, Any]) -> None:
    assert EnclaveSession(opening(), key=KEY, claims_digest=DIGEST).topic == "t"
    logged = opening(log=b"\1" + bytes(32))
    assert EnclaveSession(logged, key=KEY, claims_digest=DIGEST, log_id=bytes(32)).log_id == bytes(32)
    with pytest.raises(DecryptionError):
        EnclaveSession(opening(**changes), key=KEY, claims_digest=DIGEST)


# The mailbox -------------------------------------------------------------------------


@pytest.mark.spec("MAIL-13")
def test_each_bound_of_a_channel_refuses() -> None:
    unanswered, box = client(), mailbox(bounds=Bounds(unacknowledged_replies=2))
    for sequence in range(2):
        started(box, unanswered, sequence)
    assert refusal(unanswered, box.receive(unanswered.encrypt(request(2)), 1)) == ReplyKind.OVERLOADED

    many, box = client(), mailbox(bounds=Bounds(unacknowledged_replies=3))
    received = started(box, many, 0)
    assert received.channel is not None
    for _ in range(3):
        box.reply(received.channel, 0, ReplyKind.MAIL, b"", last=False)
    assert refusal(many, box.receive(many.encrypt(request(1)), 1)) == ReplyKind.OVERLOADED

    large, box = client(), mailbox(bounds=Bounds(unacknowledged_bytes=100))
    received = started(box, large, 0)
    assert received.channel is not None
    box.reply(received.channel, 0, ReplyKind.MAIL, bytes(100), last=False)
    assert refusal(large, box.receive(large.encrypt(request(1)), 1)) == ReplyKind.OVERLOADED


@pytest.mark.spec("MAIL-13")
def test_replies_of_one_request_are_bounded_and_its_last_one_goes_out() -> None:
    session, box = client(), mailbox(bounds=Bounds(unacknowledged_replies=2))
    received = started(box, session, 0)
    assert received.channel is not None
    for _ in range(4):
        box.reply(received.channel, 0, ReplyKind.MAIL, b"", last=False)
    with pytest.raises(OverloadedError):
        box.reply(received.channel, 0, ReplyKind.MAIL, b"", last=False)
    assert box.reply(received.channel, 0, ReplyKind.MAIL, b"", last=True) is not None


def test_a_request_that_is_done_takes_no_reply() -> None:
    session, box = client(), mailbox()
    channel = started(box, session, 0).channel
    assert channel is not None
    assert box.reply(channel, 0, ReplyKind.MAIL, b"", last=True) is not None
    assert box.reply(channel, 0, ReplyKind.MAIL, b"", last=True) is None
    assert box.reply(channel, 1, ReplyKind.MAIL, b"", last=True) is None
    assert channel.next_reply == 1
    assert box.reply(channel, NONE, ReplyKind.MAIL, b"", last=False) is None


@pytest.mark.spec("MAIL-3")
def test_mails_that_belong_to_no_session_here() -> None:
    session, box = client(), mailbox()
    channel = started(box, session, 0).channel
    assert channel is not None
    made = box.reply(channel, 0, ReplyKind.MAIL, b"", last=True)
    assert made is not None
    with pytest.raises(SessionError, match="for a client"):
        box.receive(made[1], 1)
    session.decrypt(made[1])
    with pytest.raises(SessionError, match="no such session"):
        mailbox().receive(session.encrypt(request(1)), 1)
    liar = client()
    liar.session_id = bytes(16)
    with pytest.raises(SessionError, match="does not belong"):
        box.receive(liar.encrypt(request()), 1)


@pytest.mark.spec("MAIL-7", "MAIL-13")
@pytest.mark.parametrize("bounds", [Bounds(session_ids=1), Bounds(channels=1)])
def test_sessions_and_channels_of_all_identities_are_bounded(bounds: Bounds) -> None:
    box = mailbox(bounds=bounds)
    started(box, client(), 0)
    with pytest.raises(OverloadedError):
        box.receive(client().encrypt(request()), 1)


def test_who_is_not_admitted_costs_nothing() -> None:
    asked: list[tuple[bytes, str]] = []

    def admit(identity: bytes, topic: str) -> bool:
        asked.append((identity, topic))
        return topic == "open"

    box, identity = mailbox(admit=admit), SigningKey.generate()
    session = client("closed", identity)
    assert refusal(session, box.receive(session.encrypt(request()), 1)) == ReplyKind.NOT_ADMITTED
    assert not box._sessions
    assert not box._channels
    started(box, client("open", identity), 0)
    assert asked == [(identity.public, "closed"), (identity.public, "open")]
    # Who is in stays in: a further session of the channel is not asked again.
    started(box, client("open", identity), 1)
    assert len(asked) == 2


@pytest.mark.spec("MAIL-72")
def test_what_was_not_admitted_never_runs() -> None:
    members: set[bytes] = set()
    box, identity = mailbox(admit=lambda sender, _: sender in members), SigningKey.generate()
    refused, withheld, stream = (client("t", identity) for _ in range(3))
    mails = [session.encrypt(request()) for session in (refused, withheld)]
    call, _, _ = stream.open_stream(Request(RequestKind.STREAM, 0, NONE, 0, b""))
    assert refusal(refused, box.receive(mails[0], 1)) == ReplyKind.NOT_ADMITTED
    members.add(identity.public)
    # Neither that mail, nor another of its strand that the host kept back.
    for mail in (*mails, call, *mails):
        received = box.receive(mail, 2)
        assert (received.outcome, received.request) == (Outcome.ANSWERED, None)
    assert not box._channels
    started(box, client("t", identity, strand=7), 0)
    # For as long as something from then can be opened.
    box.renew(DecryptionKey.generate(), bytes(63) + b"1")
    assert box.receive(mails[1], 3).outcome is Outcome.ANSWERED
    box.renew(DecryptionKey.generate(), bytes(63) + b"2")
    with pytest.raises(DecryptionError):
        box.receive(mails[1], 4)
    assert not any(term.refused for term in box._terms)


@pytest.mark.spec("MAIL-72")
def test_so_many_are_remembered_as_not_admitted() -> None:
    member = SigningKey.generate()
    box = mailbox(admit=lambda sender, _: sender == member.public, bounds=Bounds(refused=2))
    for _ in range(2):
        stranger = client()
        assert refusal(stranger, box.receive(stranger.encrypt(request()), 1)) == ReplyKind.NOT_ADMITTED
    with pytest.raises(OverloadedError):
        box.receive(client().encrypt(request()), 1)
    started(box, client("t", member), 0)


# The conversation --------------------------------------------------------------------


def test_a_conversation_without_a_session() -> None:
    conversation = Conversation()
    with pytest.raises(RuntimeError, match="no session"):
        conversation.add(RequestKind.MAIL, b"")
    with pytest.raises(RuntimeError, match="no session"):
        conversation.acknowledgement()
    with pytest.raises(RuntimeError, match="no session"):
        conversation.open_stream(b"", upload=False)
    with pytest.raises(DecryptionError):
        conversation.receive(header(direction=2))


@pytest.mark.spec("MAIL-11")
def test_replies_that_come_again_count_once() -> None:
    conversation, session = Conversation(), client()
    conversation.use(session, new_boot=False)
    item = conversation.add(RequestKind.MAIL, b"")
    enclave = EnclaveSession(parse_mail(item.encrypted).opening, key=KEY, claims_digest=DIGEST)

    def arrives(sequence: int, answers: int = NONE, **flags: int) -> object:
        return conversation.receive(
            enclave.encrypt(Reply(0, flags.get("last", 0), sequence, 0, answers, flags.get("count", 0), b""))
        )

    for sequence in (1, 1, 0, 0, 1):
        assert arrives(sequence) is None
    assert conversation.acknowledged == 2
    # So they do for their request, whichever comes first: it has two, and not one of them twice.
    for order in ((0, 0, 1), (1, 1, 0)):
        first, other = conversation.acknowledged, conversation.add(RequestKind.MAIL, b"")
        for n in order:
            assert not other.done
            arrives(first + n, answers=other.sequence, last=n, count=2 * n)
        assert [r.sequence for r in other.replies] == [first, first + 1]
        assert other.done
    assert conversation.acknowledged == 6
    # An answer to what was given up is taken note of, and belongs to nobody.
    conversation.forget(item)
    assert arrives(6, answers=0, last=1, count=1) is None
    assert conversation.acknowledged == 7
