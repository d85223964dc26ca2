"""What a client does with a host's answers, without IO: the test plays the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests._claims import claims_of
from tests._facts import evidence

from conclave import _codec
from conclave._crypto import DecryptionKey, SigningKey, random_bytes
from conclave._mailheader import address_of
from conclave.attestation import AttestationResult, Constraint
from conclave.client import Client, Identity
from conclave.client._state import ClientState
from conclave.client.core import Answer, ClientCore, Exchange, Pause, Resumed
from conclave.enclave import Enclave, rpc
from conclave.errors import (
    AppraisalError,
    CallError,
    FormatError,
    OverloadedError,
    SequenceError,
    SignatureError,
    StateError,
    TransportError,
)
from conclave.mail import Bounds, Mailbox, Outcome, Reply, ReplyKind
from conclave.rpc.interface import CallFailure, interface_of

DIGEST = bytes(64)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Instance:
    """One boot and its host, as far as a client can tell."""

    def __init__(self, *, bounds: Bounds | None = None, admitted: bool = True) -> None:
        self.key, self.signing = DecryptionKey.generate(), SigningKey.generate()
        self.box = Mailbox(key=self.key, claims_digest=DIGEST, bounds=bounds, admit=lambda *_: admitted)
        self.kind, self.body = ReplyKind.RESULT, msgspec.msgpack.encode(7)
        self.exchanges: list[Exchange] = []

    def result(self) -> AttestationResult:
        zero = bytes(32)
        claims = claims_of(self.key.public, self.signing.public)
        return AttestationResult(claims, DIGEST, "simulated", "INSECURE", (), evidence(), zero, NOW)

    def answer(self, exchange: Exchange) -> Answer:
        received = self.box.receive(exchange.body, 1)
        mails = list(received.mails)
        if received.outcome is Outcome.RUN:
            assert received.channel is not None
            assert received.request is not None
            made = self.box.reply(received.channel, received.request.sequence, self.kind, self.body, last=True)
            assert made is not None
            mails.append(made[1])
        return Answer(200, b"".join(len(m).to_bytes(4, "big") + m for m in mails))

    def drive(self, steps: Generator[Any, Answer, Any], host: Callable[[Exchange], Answer] | None = None) -> Any:
        """Run a client's steps against a host; returns what they return."""
        answer = None
        while True:
            try:
                step = next(steps) if answer is None else steps.send(answer)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, Pause):
                answer = Answer(0)
            else:
                self.exchanges.append(step)
                assert len(self.exchanges) < 200, "it never ends"
                answer = (host or self.answer)(step)


def core(instance: Instance, *, attempts: int = 3) -> ClientCore:
    made = ClientCore(constraint=Constraint.parse("C:" + "0" * 64), attempts=attempts, now=lambda: NOW)
    made.instance = instance.result()
    return made


def call(client: ClientCore, *, retry: bool = True) -> Generator[Any, Answer, Any]:
    return client.call("method", [1], returns=int, topic="t", retry=retry)


def test_a_call_and_its_result() -> None:
    instance = Instance()
    assert instance.drive(call(core(instance))) == 7
    assert [e.path for e in instance.exchanges] == ["/mail"]


def test_an_answer_that_is_no_result() -> None:
    instance = Instance()
    instance.kind = ReplyKind.MAIL
    with pytest.raises(FormatError, match="something else than a result"):
        instance.drive(call(core(instance)))


def test_an_introduction_that_is_answered_otherwise() -> None:
    instance = Instance()
    with pytest.raises(FormatError, match="something else"):
        instance.drive(core(instance).introduce(b"info", topic="t"))
    instance.kind = ReplyKind.INTRODUCED
    instance.drive(core(instance).introduce(b"info", topic="t"))


@pytest.mark.spec("MAIL-42")
def test_what_a_constant_rate_does_not_hide_is_refused(tmp_path: Path) -> None:
    instance = Instance()
    client = core(instance)
    client.only_topic = "t"
    assert instance.drive(call(client)) == 7
    sent = len(instance.exchanges)
    for steps in (
        client.mail(b"", topic="u", envelope=b""),
        client.mail(b"", topic="t", envelope=b"e"),
        client.open_stream("method", [], topic="t", upload=False),
    ):
        with pytest.raises(ValueError, match="constant rate"):
            instance.drive(steps)
    client.state = left_one(tmp_path, client.identity)
    with pytest.raises(ValueError, match="without pace"):
        instance.drive(client.resume())
    assert len(instance.exchanges) == sent
    client.close()


def left_one(tmp_path: Path, identity: Identity) -> ClientState:
    """State of a client that ended before its one call was answered."""
    state, instance = ClientState(tmp_path / "s", identity), Instance()
    client = ClientCore(
        constraint=Constraint.parse("C:" + "0" * 64), identity=identity, attempts=1, state=state, now=lambda: NOW
    )
    client.instance = instance.result()
    with pytest.raises(TransportError):
        instance.drive(call(client), lambda _: Answer(0))
    client.close()
    state = ClientState(tmp_path / "s", identity)
    assert len(state.left) == 1
    return state


@pytest.mark.spec("MAIL-53")
def test_what_was_left_stays_until_it_is_answered(tmp_path: Path) -> None:
    instance = Instance()
    client = core(instance)
    client.state = left_one(tmp_path, client.identity)
    with pytest.raises(TransportError, match="outcome is unknown"):
        instance.drive(client.resume(), lambda _: Answer(429))
    assert len(client.state.left) == 1
    (outcome,) = instance.drive(client.resume())
    assert (outcome.method, outcome.arguments, outcome.result(int)) == ("method", [1], 7)
    assert instance.drive(client.resume()) == []
    client.close()


def test_the_outcome_of_what_was_left() -> None:
    lost = Resumed("t", "method", b"", TransportError("lost"), b"", [])
    with pytest.raises(TransportError, match="lost"):
        lost.result(int)
    mail = Resumed("t", "", b"body", None, b"", [Reply(ReplyKind.MAIL, 1, 0, 0, 0, 1, b"answer")])
    with pytest.raises(TypeError, match="a mail has no result"):
        mail.result(int)
    assert [m.body for m in mail.mails] == [b"answer"]


def test_where_nothing_waits_nothing_is_written(tmp_path: Path) -> None:
    instance = Instance()
    client = core(instance)
    client.state = ClientState(tmp_path / "s", client.identity)
    assert instance.drive(call(client)) == 7
    # A state that cannot be written stops what would be lost with it, and no new session.
    client.close()
    client._open("t", client._topics["t"], new_boot=True)
    with pytest.raises(StateError):
        instance.drive(call(client))


def test_a_declared_error() -> None:
    instance = Instance()
    instance.kind, instance.body = ReplyKind.CALL_ERROR, _codec.encode(CallFailure(type="Closed", message="on Sunday"))
    with pytest.raises(CallError, match="on Sunday") as refused:
        instance.drive(call(core(instance)))
    assert refused.value.type_name == "Closed"
    # It is asked once: what the author's code refused is no reason to try again.
    assert len(instance.exchanges) == 1


@pytest.mark.spec("BAR-7")
@pytest.mark.parametrize("times", [1, 8, 9])
def test_a_call_that_is_to_come_back_does_so_by_itself(times: int) -> None:
    instance = Instance()
    later = _codec.encode(CallFailure(type="ComeBack", message="ask again"))
    result = instance.body

    def host(exchange: Exchange) -> Answer:
        to_come = len(instance.exchanges) <= times
        instance.kind, instance.body = (ReplyKind.CALL_ERROR, later) if to_come else (ReplyKind.RESULT, result)
        return instance.answer(exchange)

    steps = call(core(instance))
    if times > 8:
        with pytest.raises(CallError, match="ask again"):
            instance.drive(steps, host)
    else:
        assert instance.drive(steps, host) == 7
    assert len(instance.exchanges) == min(times, 8) + 1


def test_what_an_enclave_refuses() -> None:
    outside = Instance(admitted=False)
    with pytest.raises(CallError) as refused:
        outside.drive(call(core(outside)))
    assert refused.value.type_name == "NotAdmitted"
    full = Instance(bounds=Bounds(unacknowledged_replies=0))
    with pytest.raises(OverloadedError, match="keeps its place"):
        full.drive(call(core(full)))
    # There may be room at the next attempt.
    assert len(full.exchanges) == 3
    ahead = Instance()
    client = core(ahead)
    client._topic("t").conversation._next = 5
    with pytest.raises(SequenceError) as gap:
        ahead.drive(call(client))
    assert (gap.value.expected, gap.value.got) == (0, 5)
    # The client has no request 0 to send: trying again would not help.
    assert len(ahead.exchanges) == 1


@pytest.mark.spec("MAIL-72")
def test_who_was_not_admitted_begins_anew() -> None:
    instance = Instance(admitted=False)
    client = core(instance)
    first = client._topic("t").strand
    other = client.call("method", [2], returns=int, topic="t", retry=True)
    waits = next(other)
    with pytest.raises(CallError, match="nothing of it will"):
        instance.drive(call(client))
    assert client._topic("t").strand != first
    instance.box._admit = lambda *_: True
    # Another call of the same time goes to the new strand by itself.
    assert isinstance(waits, Exchange)
    answer = instance.answer(waits)
    step = other.send(answer)
    while isinstance(step, Pause):
        step = other.send(Answer(0))
    with pytest.raises(StopIteration) as done:
        other.send(instance.answer(step))
    assert done.value.value == 7
    assert instance.drive(call(client)) == 7
    # What was refused is not among what was sent since.
    assert [channel.next_request for channel in instance.box._channels.values()] == [2]


def test_a_call_that_found_no_room_is_tried_again() -> None:
    instance = Instance(bounds=Bounds(unacknowledged_replies=0))
    client = core(instance)

    def host(exchange: Exchange) -> Answer:
        if len(instance.exchanges) == 2:
            instance.box._bounds = Bounds()
            for channel in instance.box._channels.values():
                channel._bounds = Bounds()
        return instance.answer(exchange)

    assert instance.drive(call(client), host) == 7
    assert len(instance.exchanges) == 2


@pytest.mark.parametrize("status", [400, 404, 405, 413])
def test_what_a_host_refuses_is_not_sent_again(status: int) -> None:
    instance = Instance()
    with pytest.raises(TransportError, match="the host refuses the mail"):
        instance.drive(call(core(instance)), lambda _: Answer(status))
    assert len(instance.exchanges) == 1


@pytest.mark.spec("MAIL-12")
def test_a_call_that_is_not_retried_never_reaches_another_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance()
    client = core(instance)

    def meanwhile(exchange: Exchange) -> Answer:
        # Another caller of this client finds a new boot while this call is under way.
        client._open("t", client._topics["t"], new_boot=True)
        return Answer(200)

    with pytest.raises(TransportError, match="is not retried"):
        instance.drive(call(client, retry=False), meanwhile)
    assert len(instance.exchanges) == 1

    # The same where the call itself finds the new boot. What verification returns is
    # given here: it has tests of its own.
    other = Instance().result()
    claims = msgspec.structs.replace(other.claims, boot_nonce=random_bytes(32))
    renewed = dataclasses.replace(other, claims=claims, claims_digest=random_bytes(64))
    monkeypatch.setattr("conclave.client.core.verify_instance", lambda *_, **__: renewed)
    instance, answers = Instance(), {"/mail": Answer(502), "/instance": Answer(200)}
    with pytest.raises(TransportError, match="is not retried"):
        instance.drive(call(core(instance), retry=False), lambda exchange: answers[exchange.path])
    assert [e.path for e in instance.exchanges] == ["/mail", "/instance"]


@pytest.mark.spec("MAIL-17")
def test_what_stands_in_line_goes_into_a_new_session_in_order() -> None:
    instance = Instance()
    client = core(instance)
    calls = [call(client) for _ in range(4)]
    for steps in calls:
        next(steps)
    before = client._topics["t"].conversation.session
    result = instance.result()
    claims = msgspec.structs.replace(result.claims, boot_nonce=random_bytes(32))
    client.instance = dataclasses.replace(result, claims=claims)
    client._open("t", client._topics["t"], new_boot=True)
    waiting = client._topics["t"].conversation.waiting()
    assert [item.sequence for item in waiting] == [0, 1, 2, 3]
    assert [address_of(item.encrypted)[2] for item in waiting] == [0, 1, 2, 3]
    assert {address_of(item.encrypted)[1] for item in waiting} != {before.session_id if before else b""}
    # Whoever comes first, the enclave can be given them in order.
    for item in waiting:
        assert instance.answer(Exchange("POST", "/mail", item.encrypted, mails=True)).body


@pytest.mark.spec("MAIL-17")
def test_an_earlier_request_that_did_not_arrive_is_sent_first() -> None:
    instance = Instance()
    client = core(instance, attempts=1)
    with pytest.raises(TransportError, match="outcome is unknown"):
        instance.drive(call(client), lambda _: Answer(0))
    client = core(instance)
    earlier, later = call(client), call(client)
    lost = next(earlier)
    assert isinstance(lost, Exchange)
    # Its caller gives up while the next one is on its way, and the enclave never saw it.
    answer = instance.answer(next(later))  # type: ignore[arg-type]
    earlier.close()
    step: Any = later.send(answer)
    assert isinstance(step, Pause)
    step = later.send(Answer(0))
    assert step.body == lost.body
    step = later.send(instance.answer(step))
    with pytest.raises(StopIteration) as end:
        later.send(instance.answer(step))
    assert end.value.value == 7

    # A host that withholds it for good is told apart from a slow one.
    earlier, later = call(client), call(client)
    next(earlier)
    earlier.close()
    lost_body = client._topics["t"].conversation.waiting()[0].encrypted

    def withholding(exchange: Exchange) -> Answer:
        return Answer(0) if exchange.body == lost_body else instance.answer(exchange)

    with pytest.raises(SequenceError):
        instance.drive(later, withholding)


@pytest.mark.spec("MAIL-17")
def test_an_earlier_request_whose_caller_takes_its_time_is_waited_for() -> None:
    instance = Instance()
    client = core(instance, attempts=3)
    earlier, later = call(client), call(client)
    lost = next(earlier)
    step: Any = next(later)
    # More often than there are attempts: none of them failed.
    for _ in range(10):
        step = later.send(instance.answer(step))
        assert isinstance(step, Pause)
        step = later.send(Answer(0))
    with pytest.raises(StopIteration) as first:
        earlier.send(instance.answer(lost))  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as second:
        later.send(instance.answer(step))
    assert (first.value.value, second.value.value) == (7, 7)


@pytest.mark.spec("MAIL-17")
def test_who_asks_once_is_told_at_once_that_an_earlier_request_is_missing() -> None:
    instance = Instance()
    client = core(instance, attempts=1)
    earlier = call(client)
    next(earlier)
    with pytest.raises(SequenceError):
        instance.drive(call(client))
    assert len(instance.exchanges) == 1


@pytest.mark.spec("MAIL-12")
def test_what_was_asked_earlier_does_not_undo_a_newer_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Instance().result(), Instance().result()
    claims = msgspec.structs.replace(new.claims, boot_nonce=random_bytes(32))
    new = dataclasses.replace(new, claims=claims, claims_digest=random_bytes(64))
    results = {b"old": old, b"new": new}
    monkeypatch.setattr("conclave.client.core.verify_instance", lambda body, *_, **__: results[body])
    client = core(Instance())
    slow, quick = client.verify(), client.verify()
    next(slow)
    next(quick)
    with pytest.raises(StopIteration) as end:
        quick.send(Answer(200, b"new"))
    assert end.value.value is new
    with pytest.raises(StopIteration) as end:
        slow.send(Answer(200, b"old"))
    assert end.value.value is new
    assert client.instance is new


def test_a_challenge() -> None:
    instance = Instance()
    client = core(instance)

    def signed(
        exchange: Exchange, *, key: SigningKey = instance.signing, status: int = 200, more: bytes = b""
    ) -> Answer:
        theirs = random_bytes(32)
        return Answer(status, theirs + key.sign("challenge", DIGEST, exchange.body + theirs) + more)

    instance.drive(client.challenge(), signed)
    with pytest.raises(SignatureError):
        instance.drive(client.challenge(), lambda e: signed(e, key=SigningKey.generate()))
    for changes in ({"status": 503}, {"more": b"\0"}):
        with pytest.raises(TransportError, match="no answer to the challenge"):
            instance.drive(client.challenge(), lambda e, changes=changes: signed(e, **changes))  # type: ignore[misc]


def test_a_stub_of_another_interface() -> None:
    class Other(Enclave):
        @rpc
        def method(self) -> int:
            return 1

    instance = Instance()
    client, interface = core(instance), interface_of(Other)
    with pytest.raises(AppraisalError, match="interface"):
        client.check_interface(interface)
    result = instance.result()
    claims = msgspec.structs.replace(result.claims, interface=interface.digest())
    client.instance = dataclasses.replace(result, claims=claims)
    client.check_interface(interface)


def test_the_name_of_a_file_is_no_constraint() -> None:
    with pytest.raises(FormatError, match=r"give the name of a file as Path\(\.\.\.\)"):
        Client("http://127.0.0.1:1", constraint="hello.constraint")
