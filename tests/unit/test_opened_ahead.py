"""Mails that came together: decrypted ahead of their turn, and handled as if they had come one by one."""

from __future__ import annotations

import pytest
from tests._claims import claims_of
from tests._sessions import session_to

from conclave import _mailheader
from conclave._crypto import SMALL_MARK, DecryptionKey, SigningKey, random_bytes
from conclave._framing import Frame, Kind
from conclave.enclave import Enclave, rpc
from conclave.enclave._service import Service
from conclave.enclave.drivers import Evidence
from conclave.errors import DecryptionError, Error, SessionError
from conclave.mail import Bounds, ClientSession, Mailbox, Outcome, Received, ReplyKind, Request, RequestKind
from conclave.mail._wire import MARK_SHIFT, request_plaintext, strand_mark
from conclave.mail.padding import padme
from conclave.rpc.interface import encode_call, interface_of

_CALL, _STREAM = RequestKind.CALL, RequestKind.STREAM


class Box:
    """A mailbox, and the routes that the host gave."""

    def __init__(self, **bounds: int) -> None:
        self.key, self.digest = DecryptionKey.generate(), random_bytes(64)
        self.mailbox = Mailbox(key=self.key, claims_digest=self.digest, bounds=Bounds(**bounds))
        self.route = 0

    def session(self, identity: SigningKey | None = None, *, strand: int = 0) -> ClientSession:
        strand |= strand_mark(self.digest) << MARK_SHIFT
        return session_to(self.digest, self.key.public, identity, strand=strand)

    def receive(self, *mails: bytes) -> list[Received | str]:
        """What comes of a batch."""
        opened = [self.mailbox.open(mail) for mail in mails]
        found: list[Received | str] = []
        for mail, one in zip(mails, opened, strict=True):
            self.route += 1
            try:
                found.append(self.mailbox.receive(mail, self.route, one))
            except Error as error:
                found.append(error.code)
        return found

    def outcomes(self, *mails: bytes) -> list[Outcome | str]:
        return [one if isinstance(one, str) else one.outcome for one in self.receive(*mails)]


def _request(sequence: int, body: bytes = b"x", *, acknowledged: int = 0) -> Request:
    return Request(_CALL, 0, sequence, acknowledged, body)


def test_opening_a_mail_changes_nothing() -> None:
    box = Box(awake=1)
    session, other = box.session(), box.session()
    assert box.outcomes(session.encrypt(_request(0)), other.encrypt(_request(0))) == [Outcome.RUN] * 2
    box_, channel = box.mailbox, box.mailbox._sessions[session.session_id][1]

    def state() -> tuple[object, ...]:
        end = box_._sessions[session.session_id][0]
        kept = channel.next_request, channel.next_reply, channel.used, len(channel._owed), channel._bytes
        return kept, box_._mails, list(box_._awake), end.awake, end.last_stream, end._counter, dict(box_._sessions)

    before = state()
    for request in (_request(1), _request(7), Request(_STREAM, 0, _mailheader.NONE, 0, b"x")):
        opened = box_.open(session.encrypt(request))
        assert opened is not None
        assert opened.request.sequence == request.sequence
    assert state() == before
    # Of a session that nobody knows, of a mail that is none or was altered, nothing is made.
    assert box_.open(box.session().encrypt(_request(0))) is None
    mail = session.encrypt(_request(1))
    assert box_.open(mail[:-1]) is None
    assert box_.open(mail[:-1] + bytes((mail[-1] ^ 1,))) is None
    assert state() == before


@pytest.mark.spec("MAIL-9", "T-21")
def test_what_a_batch_repeats_runs_once() -> None:
    box = Box()
    session = box.session()
    first = session.encrypt(_request(0))
    assert box.outcomes(first, first) == [Outcome.RUN, Outcome.WAIT]
    again = session.encrypt(_request(1))
    assert box.outcomes(again, again, first) == [Outcome.RUN, Outcome.WAIT, Outcome.WAIT]
    stream = session.encrypt(Request(_STREAM, 0, _mailheader.NONE, 0, b"x"))
    assert box.outcomes(stream, stream) == [Outcome.STREAM, DecryptionError.code]


@pytest.mark.spec("MAIL-13")
def test_a_session_that_ended_within_the_batch_has_ended() -> None:
    box = Box(sessions=1)
    session, next_ = box.session(), box.session()
    assert box.outcomes(session.encrypt(_request(0))) == [Outcome.RUN]
    confirmed = session.encrypt(_request(1))
    assert box.outcomes(next_.encrypt(_request(0)), confirmed) == [Outcome.RUN, SessionError.code]


@pytest.mark.spec("MAIL-51")
def test_a_strand_that_was_closed_within_the_batch_is_closed() -> None:
    box, identity = Box(channels_per_identity=1), SigningKey.generate()
    session = box.session(identity)
    (begun,) = box.receive(session.encrypt(_request(0)))
    assert isinstance(begun, Received)
    assert begun.channel is not None
    assert box.mailbox.reply(begun.channel, 0, ReplyKind.RESULT, b"", last=True) is not None
    late = session.encrypt(_request(1))
    newer = box.session(identity, strand=1).encrypt(_request(0))
    assert box.outcomes(newer, late) == [Outcome.RUN, SessionError.code]
    assert begun.channel.next_request == 1


@pytest.mark.spec("MAIL-2")
def test_a_mail_for_a_client_is_refused_however_it_was_encrypted() -> None:
    """A client encrypts under its own key what says that it goes to a client, with a salt that is none."""
    box = Box()
    session = box.session()
    assert box.outcomes(session.encrypt(_request(0))) == [Outcome.RUN]
    plain = request_plaintext(_request(1), session._strand, padme)
    public = _mailheader.HEADER.pack(
        _mailheader.MAGIC, _mailheader.TO_CLIENT, 0, 0, session.session_id, 9, b"\7" * 32, len(plain) + 16
    )
    mail = public + session._send.encrypt((9).to_bytes(8, "big") + bytes(4), plain, public)
    assert box.mailbox.open(mail) is None
    assert box.outcomes(mail) == [SessionError.code]


@pytest.mark.spec("MAIL-9")
@pytest.mark.parametrize(("first", "then"), [(0, 3000), (4, SMALL_MARK + 1), (3000, 0), (3000, 4), (SMALL_MARK, 5000)])
def test_the_same_number_with_a_body_of_another_size_is_refused(first: int, then: int) -> None:
    box = Box()
    session = box.session()
    (begun,) = box.receive(session.encrypt(_request(0, bytes(first))))
    assert isinstance(begun, Received)
    assert begun.channel is not None
    assert box.mailbox.reply(begun.channel, 0, ReplyKind.RESULT, b"done", last=True) is not None
    (other,) = box.receive(session.encrypt(_request(0, bytes(then))))
    assert isinstance(other, Received)
    assert session.decrypt(other.mails[0]).kind == ReplyKind.SEQUENCE_ERROR
    (same,) = box.receive(session.encrypt(_request(0, bytes(first))))
    assert isinstance(same, Received)
    assert session.decrypt(same.mails[0]).body == b"done"


@pytest.mark.spec("MAIL-13")
def test_what_recognises_requests_counts_as_much_as_replies() -> None:
    most = 10 * 1500
    box = Box(unacknowledged_bytes=most)
    session = box.session()
    for sequence in range(10):
        (begun,) = box.receive(session.encrypt(_request(sequence, bytes(1500))))
        assert isinstance(begun, Received)
        assert begun.channel is not None
        assert box.mailbox.reply(begun.channel, sequence, ReplyKind.RESULT, b"", last=True) is not None
    (full,) = box.receive(session.encrypt(_request(10, bytes(1500))))
    assert isinstance(full, Received)
    assert session.decrypt(full.mails[0]).kind == ReplyKind.OVERLOADED
    # All of it is given back.
    (last,) = box.receive(session.encrypt(_request(10, b"", acknowledged=10)))
    assert isinstance(last, Received)
    assert last.outcome is Outcome.RUN
    assert last.channel is not None
    assert last.channel._bytes == 3


@pytest.mark.spec("MAIL-11")
def test_replies_of_several_requests_are_acknowledged_in_their_order() -> None:
    box = Box()
    session = box.session()
    first, second = box.receive(session.encrypt(_request(0)), session.encrypt(_request(1)))
    assert isinstance(first, Received)
    channel = first.channel
    assert channel is not None
    for number, answers in enumerate((0, 1, 0, 1)):
        assert box.mailbox.reply(channel, answers, ReplyKind.MAIL, b"%d" % number, last=number > 1) is not None
    for below, left in ((1, {0: [b"2"], 1: [b"1", b"3"]}), (3, {1: [b"3"]}), (9, {})):
        channel.acknowledge(below)
        kept = {n: [r.body for r in h.replies] for n in (0, 1) if (h := channel.known(n)) is not None}
        assert kept == left
        assert channel.owes == bool(left)
    assert channel._bytes == 0
    assert isinstance(second, Received)


class Echo(Enclave):
    @rpc
    def echo(self, data: bytes) -> bytes:
        return data


class Boot:
    """A service without a host."""

    def __init__(self) -> None:
        self.left: list[tuple[int, int]] = []
        self.answers: dict[int, bytes] = {}
        self.service = Service(
            enclave=Echo(),
            interface=interface_of(Echo),
            claims=claims_of,
            evidence=lambda _: Evidence("simulated", b"", b""),
            roster=(),
            quorum=0,
            send=self._take,
            debug=True,
        )
        claims = self.service.claims
        self.session = session_to(claims.digest(), claims.encryption_key)

    def _take(self, kind: int, request: int, *payload: bytes) -> None:
        self.left.append((kind, request))
        self.answers[request] = b"".join(payload)

    def call(self, sequence: int, route: int) -> Frame:
        return Frame(Kind.MAIL, route, self.session.encrypt(_request(sequence, encode_call("echo", [b"hi"]))))


@pytest.mark.anyio
async def test_what_is_wrong_in_a_batch_is_wrong_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = Boot()
    assert boot.service.handle([boot.call(0, 1)])
    bad = Frame(Kind.MAIL, 2, b"no mail")
    assert boot.service.handle([bad, boot.call(1, 3), Frame(Kind.CHUNKS, 4, b"?")])
    assert boot.left == [(Kind.DONE, 1), (Kind.ERROR, 2), (Kind.DONE, 3), (Kind.ERROR, 4)]
    # A fault of ours too.
    receive = boot.service._mailbox.receive

    def faulty(data: bytes, route: int, opened: object) -> Received:
        if route == 5:
            raise ValueError("a fault")
        return receive(data, route, opened)  # type: ignore[arg-type]

    monkeypatch.setattr(boot.service._mailbox, "receive", faulty)
    assert boot.service.handle([boot.call(2, 5), boot.call(2, 6)])
    assert boot.left[4:] == [(Kind.ERROR, 5), (Kind.DONE, 6)]


@pytest.mark.anyio
async def test_nothing_is_handled_after_a_stop() -> None:
    boot = Boot()
    assert not boot.service.handle([boot.call(0, 1), Frame(Kind.STOP, 0, b""), boot.call(1, 2)])
    assert boot.left == [(Kind.DONE, 1)]


def test_too_many_replies_are_refused_in_a_batch_as_elsewhere() -> None:
    box = Box(unacknowledged_replies=2)
    session = box.session()
    results = box.receive(*(session.encrypt(_request(n)) for n in range(3)))
    assert [one.outcome for one in results if isinstance(one, Received)] == [Outcome.RUN, Outcome.RUN, Outcome.ANSWERED]
