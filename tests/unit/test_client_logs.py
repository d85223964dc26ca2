"""A client of an enclave with a log: restarts, rollbacks, another log, saved state. The test plays the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests._claims import claims_of
from tests._facts import evidence
from tests._log import Boot

from conclave import _codec, _crypto
from conclave._crypto import SigningKey, random_bytes
from conclave.attestation import AttestationResult, Constraint
from conclave.client import Client, Identity, SignedStatement
from conclave.client import _state as saved_state
from conclave.client._state import ClientState
from conclave.client.core import Answer, ClientCore, Exchange
from conclave.errors import (
    DecryptionError,
    FormatError,
    LogReplaced,
    RollbackError,
    StateError,
    TransportError,
)
from conclave.mail import Reply
from conclave.mail import _wire as wire
from conclave.mail.contexts import VersionOrder, check_echo
from conclave.mail.post import Address, inner_size, make_post
from conclave.persistence.context import Context

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LOST = Answer(0)


class World:
    """A host with whatever boot the test has it run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stored: list[bytes] = []
        self.results: dict[bytes, AttestationResult] = {}
        self.exchanges: list[Exchange] = []
        self.outbox: list[bytes] = []
        monkeypatch.setattr("conclave.client.core.verify_instance", lambda body, *_, **__: self.results[bytes(body)])
        self.start()

    def start(self, stored: list[bytes] | None = None, *, log: bool = True) -> Boot:
        """Run another boot, from these records."""
        self.boot = Boot(self.stored if stored is None else stored)
        zero = bytes(32)
        claims = claims_of(
            self.boot.key.public,
            self.boot.signing.public,
            boot_nonce=random_bytes(32),
            log_id=self.boot.log_id if log else None,
        )
        self.info = random_bytes(8)
        self.results[self.info] = AttestationResult(
            claims, self.boot.digest, "simulated", "INSECURE", (), evidence(), zero, NOW
        )
        return self.boot

    def mails(self, exchange: Exchange) -> Answer:
        answers = self.boot.receive(exchange.body)
        if answers == [b"session"]:
            return Answer(409)
        if answers == [DecryptionError.code.encode()]:
            return Answer(422)
        return Answer(200, b"".join(len(m).to_bytes(4, "big") + m for m in answers))

    def answer(self, exchange: Exchange) -> Answer:
        if exchange.path == "/instance":
            return Answer(200, self.info)
        if exchange.path == "/mail":
            return self.mails(exchange)
        if exchange.method == "GET":
            numbered = [n.to_bytes(8, "big") + len(m).to_bytes(4, "big") + m for n, m in enumerate(self.outbox, 1)]
            return Answer(200, b"".join(numbered))
        return Answer(204)

    def drive(self, steps: Generator[Any, Answer, Any], host: Callable[[Exchange], Answer] | None = None) -> Any:
        answer = None
        while True:
            try:
                step = next(steps) if answer is None else steps.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = LOST
            if isinstance(step, Exchange):
                self.exchanges.append(step)
                answer = (host or self.answer)(step)

    def sent(self) -> int:
        """How many mails left a client."""
        return sum(exchange.path == "/mail" for exchange in self.exchanges)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def client(**options: Any) -> ClientCore:
    return ClientCore(
        constraint=Constraint.parse("C:" + "0" * 64), attempts=3, now=lambda: NOW, elapsed=lambda: 0.0, **options
    )


def mail(core: ClientCore, body: bytes) -> Generator[Any, Answer, Any]:
    return core.mail(body, topic="t", envelope=b"")


def bodies(replies: list[Any]) -> list[bytes]:
    return [reply.body for reply in replies]


def call_once(core: ClientCore) -> Generator[Any, Answer, Any]:
    """A call that is not retried."""
    return core._request(wire.RequestKind.MAIL, b"once", topic="t", envelope=b"", retry=False, padding=None)


@pytest.mark.spec("MAIL-64", "MAIL-66")
def test_a_request_runs_once_though_the_enclave_restarts_before_its_answer_arrives(world: World) -> None:
    core = client()
    assert bodies(world.drive(mail(core, b"one"))) == [b"re: one"]
    strand = core._topics["t"].strand
    for steps, body in ((mail(core, b"two"), b"two"), (call_once(core), b"once")):
        crashed = []

        def crashing(exchange: Exchange, crashed: list[int] = crashed) -> Answer:
            if exchange.path == "/mail" and not crashed:
                # It is done, and the answer is lost with the boot.
                world.mails(exchange)
                world.start()
                crashed.append(1)
                return LOST
            return world.answer(exchange)

        assert bodies(world.drive(steps, crashing)) == [b"re: " + body]
        assert world.boot.count(body) == 1
    assert core._topics["t"].strand == strand


@pytest.mark.spec("MAIL-64")
def test_a_process_that_was_killed_has_its_request_answered_by_another_boot(world: World, tmp_path: Path) -> None:
    me = Identity.generate()
    core = client(identity=me, state=ClientState(tmp_path / "s", me))

    def losing(exchange: Exchange) -> Answer:
        world.answer(exchange)
        return LOST if exchange.path == "/mail" else world.answer(exchange)

    with pytest.raises(TransportError):
        world.drive(mail(core, b"one"), losing)
    core.close()
    world.start()
    core = client(identity=me, state=ClientState(tmp_path / "s", me))
    (resumed,) = world.drive(core.resume())
    assert bodies(resumed.mails) == [b"re: one"]
    assert world.boot.count(b"one") == 1
    core.close()


@pytest.mark.spec("MAIL-60", "MAIL-68")
def test_a_rollback_is_told_with_evidence_and_nothing_more_is_sent_to_that_boot(world: World) -> None:
    core = client()
    world.drive(mail(core, b"one"))
    older = list(world.stored)
    world.drive(mail(core, b"two"))
    world.start(older)
    with pytest.raises(RollbackError, match="its history lacks") as caught:
        world.drive(mail(core, b"three"))
    refusal, before = caught.value.evidence
    assert "2 signed statements" in str(caught.value)
    said = refusal.verify(world.boot.signing.public)
    assert (said.refused_version, said.state_version) == (2, 2)
    assert refusal.instance_info == world.info
    assert before.statement.refused_version is None
    assert before.statement.boot == said.refused_boot
    count = world.sent()
    for _ in range(2):
        with pytest.raises(RollbackError, match="signed statements") as again:
            world.drive(mail(core, b"four"))
        assert again.value.evidence == caught.value.evidence
    with pytest.raises(RollbackError):
        world.drive(core.poll(topic="t", wait_seconds=0))
    assert world.sent() == count
    # The operator comes back with the state that clients know: what was unanswered is done, once.
    world.start()
    assert bodies(world.drive(mail(core, b"five"))) == [b"re: five"]
    assert [world.boot.count(body) for body in (b"one", b"two", b"three", b"four", b"five")] == [1, 1, 1, 0, 1]


@pytest.mark.spec("MAIL-63", "MAIL-68")
def test_a_client_that_restarted_still_knows_what_it_saw(world: World, tmp_path: Path) -> None:
    me = Identity.generate()
    core = client(identity=me, state=ClientState(tmp_path / "s", me))
    world.drive(mail(core, b"one"))
    older = list(world.stored)
    world.drive(mail(core, b"two"))
    core.close()
    world.start(older)
    core = client(identity=me, state=ClientState(tmp_path / "s", me))
    with pytest.raises(RollbackError) as caught:
        world.drive(mail(core, b"three"))
    assert [signed.statement.refused_version for signed in caught.value.evidence] == [2, None]
    core.close()


@pytest.mark.spec("MAIL-68")
@pytest.mark.parametrize("forged", ["key", "log", "nothing refused"])
def test_a_halt_that_nobody_signed_is_none(world: World, forged: str) -> None:
    core = client()
    world.drive(mail(core, b"one"))
    older = list(world.stored)
    world.drive(mail(core, b"two"))
    boot = world.start(older)
    log, statement = boot.memory.log, boot.memory.log.statement
    if forged == "key":
        boot.signing = SigningKey.generate()
    elif forged == "log":
        log.statement = lambda refused=None: _changed(statement(refused), log_id=bytes(32))  # type: ignore[method-assign]
    else:
        log.statement = lambda refused=None: statement()  # type: ignore[method-assign]
    before = core.refused_mails
    with pytest.raises(TransportError, match="nothing authentic"):
        world.drive(mail(core, b"three"))
    assert core.refused_mails > before


def _changed(statement: Any, **changes: Any) -> Any:
    return type(statement)(**{**{name: getattr(statement, name) for name in statement.__struct_fields__}, **changes})


@pytest.mark.spec("MAIL-69")
def test_another_log_is_gone_on_with_by_consent_only(world: World, tmp_path: Path) -> None:
    me = Identity.generate()
    core = client(identity=me, state=ClientState(tmp_path / "s", me))
    world.drive(mail(core, b"one"))

    def losing(exchange: Exchange) -> Answer:
        return LOST if exchange.path == "/mail" else world.answer(exchange)

    with pytest.raises(TransportError):
        world.drive(mail(core, b"lost"), losing)
    old = world.boot.log_id
    new = world.start([]).log_id
    count = world.sent()
    for again in range(2):
        with pytest.raises(LogReplaced, match=r"client\.accept_log\(error\.new\)") as caught:
            world.drive(core.verify())
        assert (caught.value.old, caught.value.new) == (old, new)
        core.close()
        accepted = None if again == 0 else bytes(31) + b"\1"
        core = client(identity=me, state=ClientState(tmp_path / "s", me), accept_log=accepted)
    assert world.sent() == count
    core.accept_log(caught.value.new)
    (resumed,) = world.drive(core.resume())
    assert isinstance(resumed.error, TransportError)
    assert "log was replaced" in str(resumed.error)
    assert bodies(world.drive(mail(core, b"two"))) == [b"re: two"]
    assert [world.boot.count(body) for body in (b"lost", b"two")] == [0, 1]
    assert core.log.contexts.version == 1
    # From now on this one is pinned.
    core.close()
    core = client(identity=me, state=ClientState(tmp_path / "s", me))
    assert bodies(world.drive(mail(core, b"three"))) == [b"re: three"]
    world.start([])
    with pytest.raises(LogReplaced):
        world.drive(core.verify())
    core.close()


@pytest.mark.spec("MAIL-69")
def test_what_a_running_client_has_unanswered_fails_when_the_log_is_replaced(world: World) -> None:
    core = client()
    world.drive(mail(core, b"one"))
    waiting = mail(core, b"two")
    step = next(waiting)
    assert step.path == "/mail"
    core.accept_log(world.start([]).log_id)
    world.drive(core.verify())
    with pytest.raises(TransportError, match="log was replaced"):
        world.drive(_go_on(waiting))
    assert world.boot.count(b"two") == 0


def _go_on(steps: Generator[Any, Answer, Any]) -> Generator[Any, Answer, Any]:
    """The rest of what a host had left without an answer."""
    step = steps.send(LOST)
    while True:
        step = steps.send((yield step))


@pytest.mark.spec("MAIL-69")
def test_an_enclave_without_a_log_takes_no_ones_place(world: World) -> None:
    core = client()
    world.drive(core.verify())
    world.start([], log=False)
    with pytest.raises(LogReplaced, match="keeps no state") as caught:
        world.drive(core.verify())
    assert caught.value.new == bytes(32)
    core.accept_log(caught.value.new)
    assert world.drive(core.verify()).claims.log_id is None
    # What had none before may have one from now on.
    log_id = world.start().log_id
    assert world.drive(core.verify()).claims.log_id == log_id


def test_consent_is_to_a_log() -> None:
    with pytest.raises(ValueError, match=r"give LogReplaced\.new"):
        Client("http://127.0.0.1:1", constraint="C:" + "0" * 64, accept_log=b"yes")
    with pytest.raises(ValueError, match=r"give LogReplaced\.new"):
        Client("http://127.0.0.1:1", constraint="C:" + "0" * 64).accept_log(b"")


@pytest.mark.spec("MAIL-67")
def test_the_newest_statement_is_kept(world: World, tmp_path: Path) -> None:
    me = Identity.generate()
    core = client(identity=me, state=ClientState(tmp_path / "s", me))
    world.drive(mail(core, b"one"))
    first = core.log.statement
    assert first is not None
    assert first.verify(world.boot.signing.public).state_version == 0
    world.start()
    world.drive(mail(core, b"two"))
    second = core.log.statement
    assert second is not None
    assert second.verify(world.boot.signing.public).state_version == 2
    core.close()
    core = client(identity=me, state=ClientState(tmp_path / "s", me))
    assert core.log.statement == second
    core.close()


@pytest.mark.spec("MAIL-67", "MAIL-62")
def test_two_statements_on_one_version_are_two_histories(world: World) -> None:
    copy = list(world.stored)
    core = client()
    world.drive(mail(core, b"one"))
    first = core.log.statement
    other = world.start(copy)
    other.memory.needed = True
    # Of the same version as the first, and from another boot of the same log.
    said = SignedStatement.sign(other.memory.log.statement(), other.signing, other.digest)
    said = SignedStatement.sign(_changed(said.statement, state_version=0), other.signing, other.digest)
    reply = Reply(wire.ReplyKind.STATEMENT, 0, 0, 0, 0, 0, said.signature + said.encoded)
    result = world.results[world.info]
    with pytest.raises(RollbackError, match="two different versions 0") as caught:
        core.log.watch(result, lambda: core.log.hear(result, world.info, reply))
    assert set(caught.value.evidence) == {first, dataclasses.replace(said, instance_info=world.info)}


@pytest.mark.spec("MAIL-62")
@pytest.mark.parametrize("change", ["echo", "version", "digest"])
def test_an_answer_that_contradicts_what_was_shown_is_a_rollback(world: World, change: str) -> None:
    core = client()
    world.drive(mail(core, b"one"))
    boot, log = world.boot, world.boot.memory.log
    context = log.context
    # Of an enclave that does not follow the specification: no other has the session's keys.
    if change == "echo":
        boot.mailbox._sealed = lambda session, _handled, reply: boot.mailbox.seal(session, reply)  # type: ignore[method-assign]
    elif change == "version":
        log.context = lambda identity: (0).to_bytes(8, "big") + context(identity)[8:]  # type: ignore[method-assign]
    else:
        log.context = lambda identity: core.log.contexts.newest[:24] + bytes(48)  # type: ignore[method-assign]
    with pytest.raises(RollbackError, match="One signed statement is at hand"):
        world.drive(mail(core, b"two"))
    with pytest.raises(RollbackError):
        world.drive(mail(core, b"three"))


@pytest.mark.spec("MAIL-62")
def test_versions_follow_counters_in_whatever_order_they_arrive() -> None:
    order = VersionOrder()
    for counter, version in ((5, 7), (2, 4), (9, 9), (3, 4), (0, 1)):
        order.check(counter, version)
        order.add(counter, version, below=0)
    for counter, version in ((4, 3), (4, 8), (1, 0), (1, 5), (10, 8), (6, 10)):
        with pytest.raises(RollbackError, match="went back"):
            order.check(counter, version)
    order.add(4, 5, below=6)
    assert order._seen == [(5, 7), (9, 9)]
    with pytest.raises(RollbackError):
        order.check(10, 8)


@pytest.mark.spec("MAIL-62")
def test_an_echo_is_what_was_shown() -> None:
    reply = Reply(0, 1, 0, 0, 0, 1, b"", context=(5).to_bytes(8, "big") + bytes(64), echo=4)
    check_echo(reply, 4)
    for shown in (3, 5):
        with pytest.raises(RollbackError):
            check_echo(reply, shown)
    older = Reply(0, 1, 0, 0, 0, 1, b"", context=(5).to_bytes(8, "big") + bytes(64), echo=6)
    with pytest.raises(RollbackError):
        check_echo(older, 6)


@pytest.mark.spec("MAIL-59")
def test_a_context_that_the_log_never_gave_is_an_error_to_its_owner(world: World) -> None:
    core = client()
    world.drive(mail(core, b"one"))
    core.log.contexts._held = {bytes(16): (9).to_bytes(8, "big") + bytes(64)}
    with pytest.raises(StateError, match="made under another identity") as caught:
        world.drive(mail(core, b"two"))
    assert not isinstance(caught.value, RollbackError)
    assert not world.boot.mailbox.halted


@pytest.mark.spec("MAIL-60", "MAIL-62")
def test_the_head_of_a_stream_is_checked_as_an_answer_is(world: World) -> None:
    core = client()
    world.drive(mail(core, b"one"))
    older = list(world.stored)
    world.drive(mail(core, b"two"))
    world.start(older)
    world.drive(core.verify())
    opened = world.drive(core.open_stream("method", [], topic="t", upload=False))
    (halted,) = world.boot.receive(opened.mail)
    with pytest.raises(RollbackError) as caught:
        opened.head(halted)
    assert len(caught.value.evidence) == 2
    with pytest.raises(RollbackError):
        world.drive(core.open_stream("method", [], topic="t", upload=False))


@pytest.mark.spec("MAIL-59", "MAIL-62")
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"kind": wire.ReplyKind.RESULT, "flags": 1, "sequence": 1}, DecryptionError),
        ({"answers": 7}, DecryptionError),
        ({"echo": 0}, RollbackError),
        ({"kind": wire.ReplyKind.CONTEXT}, StateError),
    ],
)
def test_what_no_head_of_a_stream_is(world: World, changes: dict[str, Any], error: type[Exception]) -> None:
    core = client()
    world.drive(mail(core, b"one"))
    opened = world.drive(core.open_stream("method", [], topic="t", upload=False))
    received = world.boot.mailbox.receive(opened.mail, 1)
    assert received.session is not None
    head = Reply(wire.ReplyKind.STREAM, 3, 2**64 - 1, 0, opened.counter, 0, b"", echo=1)
    with pytest.raises(error) as caught:
        opened.head(received.session.encrypt(_changed(head, **changes)))
    assert isinstance(caught.value, RollbackError) == (error is RollbackError)
    assert opened.head(received.session.encrypt(head)).kind == wire.ReplyKind.STREAM


@pytest.mark.spec("MAIL-62")
def test_the_result_of_a_stream_has_a_context(world: World) -> None:
    core = client()
    world.drive(mail(core, b"one"))
    opened = world.drive(core.open_stream("method", [], topic="t", upload=False))
    world.boot.memory.commit({"x": b"1"})
    told = world.boot.memory.context(core.identity.public)
    assert opened.result(told + b"seven") == b"seven"
    assert core.log.contexts.version == 2
    for short in (b"", told[:-1]):
        with pytest.raises(FormatError, match="no state context"):
            opened.result(short)


def posted(world: World, core: ClientCore, number: int, *, context: bytes | None = None) -> bytes:
    log, body = world.boot.memory.log, b"posted %d" % number
    return make_post(
        Address(core.identity.public, core.box.reply_key.public, "t"),
        body,
        number=number,
        acknowledged=0,
        signer=world.boot.signing,
        claims_digest=world.boot.digest,
        size=inner_size(body, stateful=True) + 100,
        context=log.context(core.identity.public) if context is None else context,
    )


@pytest.mark.spec("MAIL-70", "MAIL-63")
def test_who_only_polls_learns_what_was_posted_of(world: World) -> None:
    core = client()
    world.drive(core.verify())
    world.boot.memory.commit({"x": b"1"})
    early = posted(world, core, 0)
    older = list(world.stored)
    world.boot.memory.commit({"x": b"2"})
    world.outbox = [posted(world, core, 1), early]
    # Late mail with a lower version is normal.
    assert bodies(world.drive(core.poll(topic="t", wait_seconds=0))) == [b"posted 1", b"posted 0"]
    assert core.log.contexts.version == 2
    world.outbox = []
    # The next boot of the log counts on from there.
    world.start()
    world.outbox = [b"", b"", posted(world, core, 1), posted(world, core, 2)]
    assert bodies(world.drive(core.poll(topic="t", wait_seconds=0))) == [b"posted 2"]
    world.outbox = []
    world.start(older)
    with pytest.raises(RollbackError):
        world.drive(core.poll(topic="t", wait_seconds=0))


@pytest.mark.spec("MAIL-70", "MAIL-62")
def test_posted_mail_of_another_history_is_an_alarm_and_is_not_lost(world: World) -> None:
    core = client()
    world.drive(mail(core, b"one"))
    version = core.log.contexts.version.to_bytes(8, "big")
    world.outbox = [posted(world, core, 0, context=version + bytes(16) + bytes(48))]
    with pytest.raises(RollbackError, match="two histories"):
        world.drive(core.poll(topic="t", wait_seconds=0))
    world.start()
    assert bodies(world.drive(core.poll(topic="t", wait_seconds=0))) == [b"posted 0"]


@pytest.mark.spec("MAIL-53")
def test_saved_state_of_version_2_is_read_and_replaced(tmp_path: Path) -> None:
    me, path = Identity.generate(), tmp_path / "s"
    secret = me._key.derive(saved_state.LABEL)
    header = b"conclave-state-2" + random_bytes(16)
    left = saved_state._Unanswered2(
        topic="t", strand=5, sequence=3, kind=1, flags=0, body=b"b", envelope=b"", padding=None, boots=[bytes(32)]
    )
    data, tag = header, b""
    for count, change in enumerate(
        (
            saved_state._Change2(claims_digest=b"d" * 64, reference=3, box=b"box", sent=(), done=()),
            saved_state._Change2(claims_digest=None, reference=None, box=None, sent=(left,), done=()),
        )
    ):
        associated = saved_state._associated(header, count, tag)
        record = _crypto.seal_record(secret, saved_state.LABEL, _codec.encode(change), associated)
        data, tag = data + saved_state._size_field(len(record)) + record, record[-16:]
    path.write_bytes(data)
    for _ in range(2):
        state = ClientState(path, me)
        (again,) = state.left
        assert (again.key, again.boots, again.logged) == ((5, 3), [bytes(32)], False)
        assert (state.claims_digest, state.reference, state.box) == (b"d" * 64, 3, b"box")
        assert (state.log, state.contexts, state.statement) == (b"", b"", b"")
        state.close()
        assert path.read_bytes().startswith(b"conclave-state-3")
    path.write_bytes(b"conclave-state-4" + data[16:])
    with pytest.raises(FormatError, match="of a known version"):
        ClientState(path, me)


@pytest.mark.spec("MAIL-63", "MAIL-69")
def test_what_is_saved_of_a_log(tmp_path: Path) -> None:
    me, path = Identity.generate(), tmp_path / "s"
    state = ClientState(path, me)
    state.pin(b"l" * 32)
    state.contexts = b"c" * 72
    state.verified(b"d" * 64)
    state.keep_statement(b"statement")
    # As a killed process leaves it.
    (tmp_path / "copy").write_bytes(path.read_bytes())
    state.contexts = b"e" * 72
    state.close()
    for name, contexts in (("s", b"e" * 72), ("copy", b"c" * 72)):
        state = ClientState(tmp_path / name, me)
        assert (state.log, state.contexts, state.statement) == (b"l" * 32, contexts, b"statement")
        state.pin(b"m" * 32)
        state.close()
        state = ClientState(tmp_path / name, me)
        assert (state.log, state.contexts, state.statement) == (b"m" * 32, b"", b"")
        state.close()
    state = ClientState(path, me)
    state.contexts = b"short"
    with pytest.raises(FormatError):
        client(identity=me, state=state)
    state.close()


def test_contexts_of_the_tests_are_contexts(world: World) -> None:
    assert Context.parse(world.boot.memory.context(bytes(32))) is not None
