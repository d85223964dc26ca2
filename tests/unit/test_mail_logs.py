"""The mailbox of an enclave with a log: what outlives a boot, and what contexts do to it."""

from __future__ import annotations

import random

import msgspec
import pytest
from tests._log import Boot

from conclave._crypto import DecryptionKey, SigningKey
from conclave._mailheader import parse_mail
from conclave.errors import DecryptionError, FormatError, RollbackError, SequenceError, StateError
from conclave.mail import Bounds, ClientSession, Conversation, EnclaveSession, Pending, Reply, ReplyKind, RequestKind
from conclave.mail import _wire as wire
from conclave.mail.contexts import MAX_HELD, Contexts
from conclave.mail.memory import Finished, LogRows
from conclave.persistence.context import CONTEXT_SIZE, NO_CONTEXT, SignedStatement

REPLY_KEY = DecryptionKey.generate()


class Device:
    """One client process of an identity, on one topic."""

    def __init__(self, *, identity: SigningKey | None = None, strand: int = 7, topic: str = "t") -> None:
        self.identity = identity or SigningKey.generate()
        self.contexts = Contexts()
        self.topic, self.strand = topic, strand
        self.conversation = Conversation()
        self.statements: list[SignedStatement] = []

    def session(self, boot: Boot, *, log_id: bytes | None = None, context: bytes | None = None) -> ClientSession:
        return ClientSession(
            claims_digest=boot.digest,
            encryption_key=boot.key.public,
            identity=self.identity,
            reply_key=REPLY_KEY.public,
            topic=self.topic,
            log_id=boot.log_id if log_id is None else log_id,
            contexts=self.contexts if context is None else Contexts(context),
            strand=self.strand,
        )

    def meet(self, boot: Boot) -> None:
        """Open a session with a boot of the log, and have what is unanswered encrypted again."""
        self.conversation.use(self.session(boot), new_boot=False)

    def ask(self, body: bytes) -> Pending:
        return self.conversation.add(RequestKind.MAIL, body)

    def send(self, boot: Boot, item: Pending) -> None:
        """Send it, and take what comes back."""
        for mail in boot.receive(item.encrypted):
            self.conversation.receive(mail)

    def call(self, boot: Boot, body: bytes) -> list[bytes]:
        item = self.ask(body)
        self.send(boot, item)
        if item.refused is not None and item.refused.kind == ReplyKind.SEQUENCE_ERROR:
            raise SequenceError(expected=item.refused.expected, got=item.sequence)
        assert item.done, item.refused
        return [reply.body for reply in item.replies]


def begun() -> tuple[list[bytes], Boot, Device]:
    stored: list[bytes] = []
    boot, device = Boot(stored), Device()
    device.meet(boot)
    return stored, boot, device


def test_one_layout() -> None:
    assert (wire.CONTEXT_SIZE, wire.NO_CONTEXT) == (CONTEXT_SIZE, NO_CONTEXT)


@pytest.mark.spec("MAIL-58", "MAIL-61")
def test_contexts_go_along_and_cover_the_answer() -> None:
    _, boot, device = begun()
    assert device.contexts.newest == NO_CONTEXT
    item = device.ask(b"one")
    device.send(boot, item)
    assert device.contexts.version == boot.memory.log.version == 1
    assert (item.replies[0].context, item.replies[0].echo) == (device.contexts.newest, 0)
    second = device.ask(b"two")
    device.send(boot, second)
    assert (second.replies[0].echo, device.contexts.version) == (1, 2)


@pytest.mark.spec("MAIL-64")
def test_what_is_done_is_answered_by_the_next_boot_and_not_run() -> None:
    stored, boot, device = begun()
    item = device.ask(b"twice")
    boot.receive(item.encrypted)
    # Its answer is lost with the boot.
    boot = Boot(stored)
    device.meet(boot)
    device.send(boot, item)
    assert item.done
    assert [reply.body for reply in item.replies] == [b"re: twice"] * 2
    assert boot.count(b"twice") == 1
    assert device.call(boot, b"next") == [b"re: next"]


@pytest.mark.spec("MAIL-64")
def test_what_was_not_done_runs_in_the_next_boot() -> None:
    stored, boot, device = begun()
    item = device.ask(b"wait")
    device.send(boot, item)
    boot = Boot(stored)
    device.meet(boot)
    device.send(boot, item)
    assert not item.done
    for mail in boot.finish(b"wait"):
        device.conversation.receive(mail)
    assert item.done
    assert boot.count(b"wait") == 1


@pytest.mark.spec("MAIL-64", "MAIL-11")
def test_another_request_under_a_number_that_is_done_is_refused_in_every_boot() -> None:
    stored, boot, device = begun()
    item = device.ask(b"mine")
    boot.receive(item.encrypted)
    boot, other = Boot(stored), Device(identity=device.identity)
    other.meet(boot)
    with pytest.raises(SequenceError) as refused:
        other.call(boot, b"not mine")
    assert (refused.value.expected, refused.value.got) == (1, 0)
    assert boot.count(b"not mine") == 0


@pytest.mark.spec("MAIL-64")
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3), (3,), (1, 3), (0, 2), ()])
def test_requests_end_in_any_order_around_a_restart(order: tuple[int, ...]) -> None:
    stored, boot, device = begun()
    bodies = [b"wait %d" % number for number in range(4)]
    items = [device.ask(body) for body in bodies]
    for item in items:
        device.send(boot, item)
    for number in order:
        boot.commit(bodies[number])
    boot = Boot(stored)
    device.meet(boot)
    for item in items:
        device.send(boot, item)
    for number in sorted(set(range(4)) - set(order), reverse=True):
        for mail in boot.finish(bodies[number]):
            device.conversation.receive(mail)
    assert all(item.done for item in items)
    assert [boot.count(body) for body in bodies] == [1] * 4
    assert device.call(boot, b"after") == [b"re: after"]


@pytest.mark.spec("MAIL-64")
def test_after_a_restart_a_gap_is_still_an_error() -> None:
    stored, boot, device = begun()
    items = [device.ask(b"wait %d" % number) for number in range(3)]
    for item in items:
        device.send(boot, item)
    boot.commit(b"wait 1")
    boot = Boot(stored)
    device.meet(boot)
    device.send(boot, items[2])
    assert items[2].refused is not None
    assert (items[2].refused.kind, items[2].refused.expected) == (ReplyKind.SEQUENCE_ERROR, 0)
    device.send(boot, items[1])
    assert items[1].done


@pytest.mark.spec("MAIL-64", "MAIL-66")
def test_acknowledged_replies_leave_the_log_with_the_next_record() -> None:
    stored, boot, device = begun()
    device.call(boot, b"one")
    before = len(stored)
    boot.receive(device.conversation.acknowledgement())
    boot.memory.commit()
    assert len(stored) == before, "an acknowledgement alone made a record"
    assert any(key.startswith(b"q") for key in boot.memory.log.rows)
    device.call(boot, b"two")
    rows = boot.memory.log.rows
    assert sum(key.startswith(b"q") for key in rows) == 1
    # An acknowledgement that was lost is given again.
    boot = Boot(stored)
    device.meet(boot)
    device.call(boot, b"three")
    assert sum(key.startswith(b"q") for key in boot.memory.log.rows) == 1


@pytest.mark.spec("MAIL-64")
def test_a_number_that_was_done_and_acknowledged_never_runs_again() -> None:
    stored, boot, device = begun()
    first, second = device.ask(b"wait"), device.ask(b"done")
    for item in (first, second):
        device.send(boot, item)
    # The first is still running when the second was answered and acknowledged.
    boot.receive(device.conversation.acknowledgement())
    boot.memory.commit({"x": b""})
    boot = Boot(stored)
    copy = Device(identity=device.identity)
    copy.meet(boot)
    for body in (b"wait", b"done"):
        copy.send(boot, copy.ask(body))
    assert boot.count(b"done") == 1
    assert [entry[1].sequence for entry in boot.running.values()] == [0]


@pytest.mark.spec("MAIL-65")
def test_bounds_count_what_earlier_boots_left() -> None:
    stored: list[bytes] = []
    bounds = Bounds(unacknowledged_replies=2, channels_per_identity=2, channels=3)
    boot, device = Boot(stored, bounds=bounds), Device()
    device.meet(boot)
    for number in range(2):
        boot.receive(device.ask(b"%d" % number).encrypted)
    boot = Boot(stored, bounds=bounds)
    again = Device(identity=device.identity)
    again.conversation.use(again.session(boot), new_boot=False)
    for number in range(2):
        again.ask(b"%d" % number)
    full = again.ask(b"2")
    again.send(boot, full)
    assert full.refused is not None
    assert full.refused.kind == ReplyKind.OVERLOADED


@pytest.mark.spec("MAIL-65", "MAIL-51")
def test_closed_strands_stay_closed_in_every_boot() -> None:
    stored: list[bytes] = []
    bounds = Bounds(channels_per_identity=1)
    boot, old = Boot(stored, bounds=bounds), Device(strand=1)
    old.meet(boot)
    old.call(boot, b"old")
    left = [old.ask(b"wait"), old.ask(b"left")]
    for item in left:
        boot.receive(item.encrypted)
    boot = Boot(stored, bounds=bounds)
    new = Device(identity=old.identity, strand=2)
    new.meet(boot)
    assert new.call(boot, b"new") == [b"re: new"]
    for again in (boot, Boot(stored, bounds=bounds)):
        old.meet(again)
        old.send(again, left[0])
        assert left[0].refused is not None
        # Of what is not done before the last that is, nothing more will be: its number does not come free.
        assert (left[0].refused.kind, left[0].refused.expected) == (ReplyKind.CLOSED, 3)
    assert not any(
        key.startswith((b"c", b"q")) and key[33:41] == bytes(7) + b"\1" for key in stored and boot.memory.log.rows
    )


@pytest.mark.spec("MAIL-65")
def test_strands_too_many_to_remember_are_known_by_their_marks_in_every_boot() -> None:
    stored: list[bytes] = []
    bounds = Bounds(channels_per_identity=1, closed=3)
    boot, identity = Boot(stored, bounds=bounds), SigningKey.generate()
    devices = [Device(identity=identity, strand=(0xABCDEF << 40) + number) for number in range(6)]
    for device in devices:
        device.meet(boot)
        device.call(boot, b"x")
    assert sum(key.startswith(b"x") for key in boot.memory.log.rows) == 5
    for _ in range(2):
        boot = Boot(stored, bounds=bounds)
        stranger = Device(strand=wire.strand_mark(boot.digest) << 40)
        stranger.meet(boot)
        stranger.call(boot, b"y")
        assert not any(key.startswith(b"x") for key in boot.memory.log.rows)
        devices[0].meet(boot)
        item = devices[0].ask(b"z")
        devices[0].send(boot, item)
        assert item.refused is not None
        assert (item.refused.kind, item.refused.expected) == (ReplyKind.CLOSED, 2**64 - 1)


@pytest.mark.spec("MAIL-57")
def test_an_opening_names_the_log_it_is_for() -> None:
    _, boot, device = begun()
    for other in (bytes(32), None):
        session = ClientSession(
            claims_digest=boot.digest,
            encryption_key=boot.key.public,
            identity=device.identity,
            reply_key=REPLY_KEY.public,
            topic="t",
            log_id=other,
        )
        conversation = Conversation()
        conversation.use(session, new_boot=False)
        assert boot.receive(conversation.add(RequestKind.MAIL, b"").encrypted) == [DecryptionError.code.encode()]


def only(device: Device, boot: Boot, context: bytes) -> Reply:
    """What an identity gets that shows this context, in a session of its own."""
    session = Device(identity=device.identity, strand=99).session(boot, context=context)
    request = wire.Request(RequestKind.MAIL, 0, 0, 0, b"bad")
    answers = boot.receive(session.encrypt(request))
    return session.decrypt(answers[-1])


@pytest.mark.spec("MAIL-59")
def test_bad_contexts_are_errors_to_their_sender_alone() -> None:
    _, boot, device = begun()
    device.call(boot, b"one")
    good, other = device.contexts.newest, Device()
    foreign = Boot([])
    for at in range(72):
        bad = bytes(value ^ (place == at) for place, value in enumerate(good))
        assert only(device, boot, bad).kind == ReplyKind.CONTEXT
    assert only(other, boot, good).kind == ReplyKind.CONTEXT
    assert only(device, boot, foreign.memory.context(device.identity.public)).kind == ReplyKind.CONTEXT
    assert boot.count(b"bad") == 0
    assert not boot.mailbox.halted
    assert device.call(boot, b"two") == [b"re: two"]
    # Nothing was kept of it, and a good context in the same place is taken.
    assert len(boot.mailbox._channels) == 1
    assert only(device, boot, good).kind == ReplyKind.MAIL


@pytest.mark.spec("MAIL-60")
@pytest.mark.parametrize("what", ["rolled back", "forked"])
def test_a_context_that_this_history_lacks_halts_the_boot(what: str) -> None:
    stored, boot, device = begun()
    device.call(boot, b"one")
    copy = list(stored)
    device.call(boot, b"two")
    boot = Boot(copy)
    if what == "forked":
        # Its history has as many versions as the other one, and more.
        for number in range(5):
            stranger = Device()
            stranger.meet(boot)
            stranger.call(boot, b"%d" % number)
    bystander = Device()
    bystander.meet(boot)
    running = bystander.ask(b"wait")
    bystander.send(boot, running)
    device.meet(boot)
    item = device.ask(b"three")
    device.send(boot, item)
    assert item.refused is not None
    assert item.refused.kind == ReplyKind.HALTED
    assert boot.mailbox.halted
    assert boot.proof is not None
    assert boot.proof.verify(boot.signing.public).refused_version == device.contexts.version
    assert item.refused.body == boot.proof.signature + boot.proof.encoded
    # Nothing runs any more, and everyone is told so: old sessions, new ones, every kind of mail.
    assert boot.finish(b"wait") == []
    newcomer = Device()
    newcomer.meet(boot)
    for who in (bystander, newcomer):
        late = who.ask(b"four")
        who.send(boot, late)
        assert late.refused is not None
        assert late.refused.kind == ReplyKind.HALTED
    (told,) = boot.receive(bystander.conversation.acknowledgement())
    reply = bystander.conversation.session.decrypt(told)  # type: ignore[union-attr]
    assert (reply.kind, reply.outside, reply.body) == (ReplyKind.HALTED, True, item.refused.body)
    (told,) = boot.receive(bystander.conversation.acknowledgement())
    assert bystander.conversation.receive(told) is None
    assert boot.count(b"four") == boot.count(b"three") == 0


@pytest.mark.spec("MAIL-67")
def test_each_session_asks_once_for_a_statement() -> None:
    stored, again, device = begun()
    for _ in range(2):
        device.meet(again)
        answers = again.receive(device.ask(b"one").encrypted)
        assert len(answers) == 2
        session = device.conversation.session
        assert session is not None
        said = session.decrypt(answers[0])
        signed = SignedStatement(said.body[64:], said.body[:64], again.digest)
        assert (said.kind, said.last, said.sequence) == (ReplyKind.STATEMENT, False, 2**64 - 1)
        assert signed.verify(again.signing.public).log_id == again.log_id
        device.conversation.receive(answers[1])
        (answer,) = again.receive(device.ask(b"two").encrypted)
        device.conversation.receive(answer)
        again = Boot(stored)


def test_only_what_asked_is_told_of_the_state() -> None:
    _, boot, device = begun()
    received = boot.mailbox.receive(device.ask(b"one").encrypted, 1)
    assert received.statement
    for changes in ({"session": None}, {"request": None}):
        with pytest.raises(ValueError, match="asked for no statement"):
            boot.mailbox.outside(msgspec.structs.replace(received, **changes), ReplyKind.STATEMENT, b"")


@pytest.mark.spec("MAIL-67")
def test_a_statement_is_heard_and_answers_nothing() -> None:
    _, boot, device = begun()
    heard: list[Reply] = []
    device.conversation = Conversation(heard.append)
    device.meet(boot)
    item = device.ask(b"one")
    statement, answer = boot.receive(item.encrypted)
    assert device.conversation.receive(statement) is None
    assert (item.refused, [reply.kind for reply in heard]) == (None, [ReplyKind.STATEMENT])
    assert device.conversation.receive(answer) is item


@pytest.mark.spec("MAIL-67", "MAIL-64")
def test_wanting_a_statement_is_no_part_of_a_request() -> None:
    stored, boot, device = begun()
    device.call(boot, b"first")
    item = device.ask(b"second")
    boot.receive(item.encrypted)
    boot = Boot(stored)
    device.meet(boot)
    device.send(boot, item)
    assert item.done
    assert boot.count(b"second") == 1


@pytest.mark.spec("MAIL-58")
def test_sessions_without_a_log_know_nothing_of_it() -> None:
    def packed(kind: int, flags: int, sequence: int = 0) -> bytes:
        return wire.PRIVATE.pack(kind, flags, 0, 0, sequence, 0, 0, 0).ljust(256, b"\0")

    none = 2**64 - 1
    with pytest.raises(FormatError):
        wire.parse_request(packed(0, 4), b"")
    assert wire.parse_request(packed(0, 4), b"", stateful=True).flags == 4
    for kind in (2, 3, 4):
        with pytest.raises(FormatError):
            wire.parse_request(packed(kind, 4, none), b"", stateful=True)
    for kind, flags in ((11, 1), (12, 0), (13, 1)):
        with pytest.raises(FormatError):
            wire.parse_reply(packed(kind, flags, none), b"")


@pytest.mark.spec("MAIL-58")
@pytest.mark.parametrize(
    ("kind", "flags", "sequence", "context", "echo"),
    [
        (11, 1, 2**64 - 1, True, 0),
        (11, 1, 2**64 - 1, False, 1),
        (11, 0, 2**64 - 1, False, 0),
        (11, 1, 5, False, 0),
        (12, 1, 2**64 - 1, True, 0),
        (12, 2, 2**64 - 1, True, 0),
        (12, 0, 2**64 - 1, False, 0),
        (13, 0, 2**64 - 1, False, 0),
        (0, 1, 0, False, 0),
    ],
)
def test_replies_of_another_form(kind: int, flags: int, sequence: int, context: bool, echo: int) -> None:
    def packed(kind: int, flags: int, sequence: int, context: bool, echo: int) -> bytes:
        header = wire.PRIVATE.pack(kind, flags, 0, 0, sequence, 0, 0, 0) + bytes([context]) * 72
        return (header + wire.ECHO.pack(echo)).ljust(256, b"\0")

    wire.parse_reply(packed(0, 1, 0, True, 7), b"", stateful=True)
    wire.parse_reply(packed(12, 0, 2**64 - 1, True, 7), b"", stateful=True)
    wire.parse_reply(packed(11, 3, 2**64 - 1, False, 0), b"", stateful=True)
    with pytest.raises(FormatError):
        wire.parse_reply(packed(kind, flags, sequence, context, echo), b"", stateful=True)


def test_a_short_plaintext_of_a_session_with_a_log_is_malformed() -> None:
    for size in (40, 111, 119):
        with pytest.raises(FormatError):
            wire.parse_request(
                wire.PRIVATE.pack(0, 0, 0, 0, 0, 0, 0, 0).ljust(size, b"\0")[: min(size, 111)], b"", stateful=True
            )
        with pytest.raises(FormatError):
            wire.parse_reply(wire.PRIVATE.pack(0, 1, 0, 0, 0, 0, 0, 1).ljust(size, b"\0"), b"", stateful=True)


def test_what_is_finished() -> None:
    randomly = random.Random(5)
    for _ in range(300):
        finished, model = Finished(), set()
        for _ in range(randomly.randrange(40)):
            number = randomly.randrange(30)
            finished.add(number)
            model.add(number)
            finished = Finished(finished.low, finished.runs)
            assert [n for n in range(40) if n in finished] == sorted(model)
            assert finished.low == next(n for n in range(40) if n not in model)
            assert finished.end == max(model) + 1
            for start in range(40):
                assert finished.after(start) == next(n for n in range(max(start, finished.low), 99) if n not in model)
    for low, runs in ((-1, []), (0, [0, 1]), (0, [2]), (0, [3, 2]), (0, [1, 3, 3, 4]), (2**64, []), (5, [4, 6])):
        with pytest.raises(ValueError, match="ascending"):
            Finished(low, runs)


def test_rows_that_are_none() -> None:
    _, boot, device = begun()
    device.call(boot, b"one")
    good = dict(boot.memory.log.rows)
    channel = next(key for key in good if key.startswith(b"c"))
    request = next(key for key in good if key.startswith(b"q"))
    for bad in (
        {channel: b""},
        {channel: good[channel] + b"\0"},
        {request: good[request]},
        {**good, request: b"\x90"},
        {**good, request[:41] + (9).to_bytes(8, "big") + request[49:]: good[request]},
        {b"c" + bytes(40) + b"\xff": good[channel]},
    ):
        boot.memory.rows = bad
        with pytest.raises(StateError, match="release"):
            LogRows(boot.memory).restore()
    boot.memory.rows = {**good, b"p what others keep": b"anything"}
    assert len(LogRows(boot.memory).restore().channels) == 1


def context(version: int, boot: int, digest: int = 0) -> bytes:
    return version.to_bytes(8, "big") + bytes([boot]) * 16 + bytes([digest]) * 32 + bytes(16)


@pytest.mark.spec("MAIL-63")
def test_what_another_boot_said_is_shown_until_it_is_answered_to() -> None:
    known = Contexts()
    assert known.shown(b"B") == NO_CONTEXT
    known.answered(context(7, 2), instance=b"B", shown=None)
    assert known.shown(b"B") == context(7, 2)
    # Late, and of a lower version: nothing says yet that both are of one history.
    known.take(context(5, 1), instance=b"A")
    assert (known.newest, known.shown(b"B"), known.shown(b"A")) == (context(7, 2), context(5, 1), context(7, 2))
    assert Contexts(known.saved).saved == known.saved == context(5, 1) + context(7, 2)
    known.take(context(6, 1), instance=b"A")
    known.answered(context(8, 2), instance=b"B", shown=context(5, 1))
    assert known.shown(b"B") == context(6, 1), "a newer one of that boot is not proved by an older one"
    known.answered(context(9, 2), instance=b"B", shown=context(6, 1))
    assert known.saved == context(9, 2)


def ends(known: Contexts, said: list[bytes]) -> tuple[ClientSession, EnclaveSession]:
    """Both ends of one session; the enclave's replies have the contexts that the test says."""
    key, log_id = DecryptionKey.generate(), bytes(32)
    client = ClientSession(
        claims_digest=bytes(64),
        encryption_key=key.public,
        identity=SigningKey.generate(),
        reply_key=REPLY_KEY.public,
        topic="t",
        log_id=log_id,
        contexts=known,
    )
    opening = parse_mail(client.encrypt(wire.Request(RequestKind.MAIL, 0, 0, 0, b""))).opening
    enclave = EnclaveSession(opening, key=key, claims_digest=bytes(64), log_id=log_id, context=lambda _: said.pop(0))
    return client, enclave


@pytest.mark.spec("MAIL-62")
@pytest.mark.parametrize(("echo", "version"), [(4, 6), (5, 4)])
def test_the_answer_to_a_cover_is_checked_as_any_is(echo: int, version: int) -> None:
    client, enclave = ends(Contexts(context(5, 1)), [context(version, 2), context(6, 2)])
    conversation = Conversation()
    conversation.use(client, new_boot=False)
    item = conversation.cover()

    def answer(echo: int) -> bytes:
        return enclave.encrypt(Reply(ReplyKind.COVER, 3, 2**64 - 1, 0, 1, 0, b"", echo=echo))

    with pytest.raises(RollbackError, match="went back"):
        conversation.receive(answer(echo))
    assert not item.done
    conversation.receive(answer(5))
    assert item.done


@pytest.mark.spec("MAIL-62")
@pytest.mark.parametrize("swapped", [False, True])
def test_versions_of_a_session_never_fall(swapped: bool) -> None:
    client, enclave = ends(Contexts(), [context(6, 1), context(5, 1)])
    replies = [enclave.encrypt(Reply(ReplyKind.MAIL, 1, number, 1, number, 1, b"")) for number in range(2)]
    # In whatever order they come, the one that was sent later is of the older state.
    first, second = reversed(replies) if swapped else replies
    client.decrypt(first)
    with pytest.raises(RollbackError, match="went back"):
        client.decrypt(second)


@pytest.mark.spec("MAIL-62")
def test_every_context_that_is_kept_can_contradict() -> None:
    known = Contexts(context(5, 1) + context(7, 2))
    for contradiction in (context(5, 3), context(5, 1, digest=1), context(7, 1)):
        with pytest.raises(RollbackError, match="two histories"):
            known.take(contradiction, instance=b"")
    assert known.saved == context(5, 1) + context(7, 2)


@pytest.mark.spec("MAIL-63")
def test_contexts_of_many_boots_are_bounded() -> None:
    known = Contexts()
    for boot in range(MAX_HELD + 1):
        known.take(context(boot + 1, boot), instance=bytes([boot]))
    assert len(known.saved) == MAX_HELD * CONTEXT_SIZE
    assert known.saved.startswith(context(2, 1))
    for saved in (bytes(CONTEXT_SIZE + 1), bytes(CONTEXT_SIZE * (MAX_HELD + 1))):
        with pytest.raises(FormatError, match="72 bytes each"):
            Contexts(saved)


@pytest.mark.spec("DET-1", "MAIL-60")
@pytest.mark.parametrize("mail", ["request", "repetition", "acknowledgement", "cover", "stream"])
def test_any_mail_shows_what_its_client_was_told(mail: str) -> None:
    stored, boot, device = begun()
    device.call(boot, b"one")
    left = device.ask(b"left")
    went_back = Boot(stored[:1])
    device.meet(went_back)
    encrypted = {
        "request": lambda: device.ask(b"two").encrypted,
        "repetition": lambda: left.encrypted,
        "acknowledgement": device.conversation.acknowledgement,
        "cover": lambda: device.conversation.cover().encrypted,
        "stream": lambda: device.conversation.open_stream(b"s", upload=False)[1],
    }[mail]()
    went_back.receive(encrypted)
    assert went_back.proof is not None
    assert went_back.proof.verify(went_back.signing.public).refused_version == 1
    assert not went_back.running
