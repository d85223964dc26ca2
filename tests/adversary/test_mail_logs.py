"""Clients of enclaves with logs: hostile ones harm nobody else, and chaos without malice is no alarm (T-45)."""

from __future__ import annotations

import asyncio
import copy
import random
from contextlib import suppress

import pytest
from tests import _boots
from tests._log import Boot

from conclave import _crypto
from conclave._crypto import DecryptionKey, SigningKey
from conclave.enclave import Enclave, rpc
from conclave.errors import DecryptionError, FormatError
from conclave.mail import ClientSession, Conversation, Pending, ReplyKind, RequestKind
from conclave.mail.contexts import Contexts

REPLY_KEY = DecryptionKey.generate()


class Process:
    """One client process: a strand of its own, and what it saved."""

    def __init__(self, identity: SigningKey, saved: bytes = b"") -> None:
        self.identity, self.contexts = identity, Contexts(saved)
        self.strand = int.from_bytes(_crypto.random_bytes(8), "big")
        self.conversation = Conversation()
        self.boot: Boot | None = None

    def meet(self, boot: Boot) -> None:
        if boot is self.boot:
            return
        self.boot = boot
        session = ClientSession(
            claims_digest=boot.digest,
            encryption_key=boot.key.public,
            identity=self.identity,
            reply_key=REPLY_KEY.public,
            topic="t",
            log_id=boot.log_id,
            contexts=self.contexts,
            strand=self.strand,
        )
        self.conversation.use(session, new_boot=False)

    def take(self, mails: list[bytes]) -> None:
        for mail in mails:
            # Of a session that this process had before. Anything else would be an alarm.
            with suppress(DecryptionError, FormatError):
                self.conversation.receive(mail)

    def ask(self, body: bytes) -> Pending:
        return self.conversation.add(RequestKind.MAIL, body)


@pytest.mark.spec("MAIL-62", "MAIL-64")
@pytest.mark.parametrize("seed", range(6))
def test_chaos_without_malice_is_no_alarm_and_everything_runs_once(seed: int) -> None:
    """Lost and repeated mails, lost answers, 64 in flight, two devices of one identity, restored backups, restarts."""
    randomly = random.Random(seed)
    stored: list[bytes] = []
    boot = Boot(stored)
    identities = [SigningKey.generate() for _ in range(3)]
    # The first two are devices of one identity.
    processes = [Process(identities[max(0, n - 1)]) for n in range(4)]
    backups = {number: b"" for number in range(4)}
    asked: list[bytes] = []
    late: list[tuple[Process, Boot, list[bytes]]] = []
    for step in range(400):
        number = randomly.randrange(4)
        process = processes[number]
        process.meet(boot)
        what = randomly.random()
        waiting = process.conversation.waiting()
        if what < 0.4 and len(waiting) < 64:
            body = randomly.choice((b"", b"wait ", b"twice ")) + b"%d" % step
            asked.append(body)
            item = process.ask(body)
            if randomly.random() < 0.7:
                late.append((process, boot, boot.receive(item.encrypted)))
        elif what < 0.6 and waiting:
            for item in waiting[: randomly.randrange(1, 9)]:
                late.append((process, boot, boot.receive(item.encrypted)))
        elif what < 0.75 and boot.running:
            body = randomly.choice(list(boot.running))
            answers = boot.finish(body)
            if randomly.random() < 0.5:
                owner = next(p for p in processes if any(i.body == body for i in p.conversation.waiting()))
                late.append((owner, boot, answers))
        elif what < 0.9 and late:
            at = randomly.randrange(len(late))
            owner, of, answers = late.pop(at)
            if of is boot and owner.boot is boot and randomly.random() < 0.8:
                owner.take(answers)
        elif what < 0.93:
            backups[number] = process.contexts.saved
        elif what < 0.96:
            # From a backup, or killed: what it showed is forgotten, what it asked goes on.
            process.contexts = Contexts(backups[number])
            process.boot = None
        else:
            boot = Boot(stored)
            late.clear()
    for _ in range(200):
        for process in processes:
            process.meet(boot)
            for item in process.conversation.waiting():
                process.take(boot.receive(item.encrypted))
        for body in list(boot.running):
            answers = boot.finish(body)
            owner = next(p for p in processes if any(i.body == body for i in p.conversation.waiting()))
            owner.take(answers)
        if not any(process.conversation.waiting() for process in processes):
            break
    assert not boot.mailbox.halted
    assert [boot.count(body) for body in asked] == [1] * len(asked)


@pytest.mark.spec("MAIL-65", "DET-2")
def test_ten_thousand_clients_that_never_come_back_are_no_alarm() -> None:
    """And hold up nobody: one who stays is answered through restarts, and after each thousand of them."""
    stored: list[bytes] = []
    boot, faithful = Boot(stored), Process(SigningKey.generate())
    for number in range(10):
        for _ in range(1000):
            passing = Process(SigningKey.generate())
            passing.meet(boot)
            # Its answer is lost with it.
            boot.receive(passing.ask(b"once").encrypted)
        faithful.meet(boot)
        item = faithful.ask(b"%d" % number)
        faithful.take(boot.receive(item.encrypted))
        assert item.done
        if number % 3 == 2:
            boot = Boot(stored)
    assert not boot.mailbox.halted
    assert (boot.count(b"once"), boot.count(b"9")) == (10_000, 1)


@pytest.mark.spec("MAIL-60", "T-46")
def test_the_chaos_would_notice_a_rollback() -> None:
    """What a client was told of is missing (the client's side of it is in unit/test_client_logs.py)."""
    stored: list[bytes] = []
    boot, process = Boot(stored), Process(SigningKey.generate())
    process.meet(boot)
    process.take(boot.receive(process.ask(b"one").encrypted))
    older = Boot(copy.copy(stored[:1]))
    process.meet(older)
    item = process.ask(b"two")
    process.take(older.receive(item.encrypted))
    assert item.refused is not None
    assert item.refused.kind == ReplyKind.HALTED


@pytest.mark.spec("MAIL-59", "T-45")
def test_hostile_clients_cannot_halt_an_enclave_nor_be_noticed_by_others() -> None:
    """Forged, stale, foreign, other clients' and future contexts: none halts the boot, or costs it memory."""
    stored: list[bytes] = []
    boot, good = Boot(stored), Process(SigningKey.generate())
    good.meet(boot)
    good.take(boot.receive(good.ask(b"one").encrypted))
    stale, other_log = good.contexts.newest, Boot([])
    good.take(boot.receive(good.ask(b"two").encrypted))
    for attack in range(6):
        hostile = Process(SigningKey.generate())
        own = boot.memory.context(hostile.identity.public)
        forged = (
            stale,
            good.contexts.newest,
            other_log.memory.context(hostile.identity.public),
            (2**63 - 1).to_bytes(8, "big") + own[8:],
            own[:-1] + bytes([own[-1] ^ 1]),
            random.Random(1).randbytes(72),
        )
        hostile.contexts = Contexts(forged[attack])
        rows = len(boot.memory.log.rows)
        hostile.meet(boot)
        item = hostile.ask(b"bad")
        hostile.take(boot.receive(item.encrypted))
        assert item.refused is not None
        assert item.refused.kind == ReplyKind.CONTEXT
        assert len(boot.memory.log.rows) == rows
    assert not boot.mailbox.halted
    # A stale one of one's own is good.
    good.contexts = Contexts(stale)
    good.boot = None
    good.meet(boot)
    last = good.ask(b"three")
    good.take(boot.receive(last.encrypted))
    assert last.done


class Desk(Enclave):
    persistence = "code"

    @rpc
    def put(self, key: str) -> None:
        self.map.of(int)[key] = 1


@pytest.mark.anyio
@pytest.mark.spec("MAIL-59", "T-45")
async def test_a_context_that_was_good_for_its_client_a_moment_ago_is_still_nobody_elses() -> None:
    """A boot remembers what it told; a hostile client shows just that, and so would come back in another's place."""
    boot = _boots.Boot(Desk, [])
    await boot.service.start()
    seen: list[bytes] = []
    boot.state.seen = lambda identity, version: seen.append(identity)
    good, hostile = _boots.Caller(boot), _boots.Caller(boot)
    for key in ("one", "two"):
        item, route = good.call("put", key)
        await asyncio.sleep(0)
        good.take(route)
        assert item.done
    hostile.contexts = good.contexts
    hostile.meet(boot)
    item, route = hostile.call("put", "three")
    await asyncio.sleep(0)
    hostile.take(route)
    assert item.refused is not None
    assert item.refused.kind == ReplyKind.CONTEXT
    assert good.identity.public in seen
    assert hostile.identity.public not in seen
