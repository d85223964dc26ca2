"""The real code through random hostile schedules, step by step beside the world of the proof.

Mailbox, log, sessions, conversations and what a client knows of a log, without processes: the
host is this test. After each step the two agree on which boots halted and which clients raised an
alarm, on all versions, and on which contexts each client holds; and no boot's state says that
a request ran twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proof.broken import BROKEN, Broken
from proof.explore import explore
from proof.protocol import PROTOCOL, boot_of, version_of
from proof.state import State, Step
from proof.words import tell
from proof.world import World
from tests._log import Boot

from conclave._crypto import DecryptionKey, SigningKey, random_bytes
from conclave.client._log import KnownLog
from conclave.errors import LogReplaced, RollbackError
from conclave.mail import ClientSession, Conversation, Pending, ReplyKind, RequestKind, post
from conclave.mail.contexts import Contexts
from conclave.persistence.context import Context

REPLY_KEY = DecryptionKey.generate()
STEPS = 20


@dataclass
class Record:
    """A record of the proof's world, as it really is.

    Attributes:
        stored: the state that ends with it.
        said: version, boot and digest, as contexts say them.
        contexts: what is posted to each client with it.
    """

    stored: list[bytes]
    said: tuple[int, bytes, bytes]
    contexts: list[bytes]


def instance(boot: Boot) -> Any:
    """Of a verified instance, what a client reads of it here."""
    said = {"log_id": boot.log_id, "boot_nonce": boot.digest, "signing_key": boot.signing.public}
    claims = SimpleNamespace(**said, digest=lambda: boot.digest)
    return SimpleNamespace(claims=claims, claims_digest=boot.digest)


class Device:
    """A client without its transport."""

    def __init__(self, number: int, identity: SigningKey) -> None:
        self.number, self.identity = number, identity
        self.log = KnownLog(None, None)
        self.requests = 0
        self.stopped = False
        # A boot that it verified, and so the log that it pinned.
        self.verified: Boot | None = None
        self.saved: tuple[Boot | None, bytes] = (None, b"")
        self._begin()

    def _begin(self) -> None:
        # As a process does: another strand, another numbering.
        self.strand = int.from_bytes(random_bytes(5), "big")
        self.conversation = Conversation(self._hear)
        self.boot: Boot | None = None
        self.item: Pending | None = None
        self.answers: list[bytes] = []

    def _hear(self, reply: Any) -> None:
        assert self.boot is not None
        self.log.hear(instance(self.boot), b"", reply)

    def mail(self, boot: Boot) -> None:
        """Send what is unanswered, or something new; the answer stays with the host."""
        try:
            self.log.admit(instance(boot).claims)
        except LogReplaced:
            self.stopped, self.item, self.answers = True, None, []
            return
        self.log.pin(instance(boot).claims)
        self.verified = boot
        if self.boot is not boot:
            self.boot = boot
            self.conversation.use(self._session(boot), new_boot=False)
        if self.item is None:
            self.requests += 1
            self.item = self.conversation.add(RequestKind.MAIL, b"%d-%d" % (self.number, self.requests))
        self.answers = boot.receive(self.item.encrypted)

    def _session(self, boot: Boot) -> ClientSession:
        return ClientSession(
            claims_digest=boot.digest,
            encryption_key=boot.key.public,
            identity=self.identity,
            reply_key=REPLY_KEY.public,
            topic="t",
            log_id=boot.log_id,
            contexts=self.log.contexts,
            strand=self.strand,
        )

    def answer(self) -> bool:
        """Take the answer that the host has; False if the enclave wants an earlier request than this one."""
        assert self.boot is not None
        item, refused = self.item, False
        for mail in self.answers:
            self._watch(self.boot, partial(self.conversation.receive, mail))
        if item is not None and not item.done and not self.stopped:
            assert item.refused is not None
            assert item.refused.kind == ReplyKind.SEQUENCE_ERROR
            self.conversation.forget(item)
            refused = True
        self.item, self.answers = None, []
        return not refused

    def post(self, boot: Boot, context: bytes) -> None:
        """Take a mail that a boot posted."""
        address = post.Address(self.identity.public, REPLY_KEY.public, "t")
        data = post.make_post(
            address,
            b"news",
            number=0,
            acknowledged=0,
            signer=boot.signing,
            claims_digest=boot.digest,
            size=post.inner_size(b"news", stateful=True),
            context=context,
        )
        opened = post.open_post(data, key=REPLY_KEY, identity=self.identity.public)
        opened.check_sender(boot.signing.public)
        self._watch(boot, partial(self.log.learn, instance(boot).claims, opened.context))

    def _watch(self, boot: Boot, work: Any) -> None:
        try:
            self.log.watch(instance(boot), work)
        except RollbackError as error:
            for signed in error.evidence:
                assert signed.statement.log_id
            self.stopped = True

    def backup(self) -> None:
        """Of what it knows of the log."""
        self.saved = self.verified, self.log.contexts.saved

    def restore(self) -> None:
        """As a process of its own, from the backup."""
        self.verified, contexts = self.saved
        self.log = KnownLog(None, None)
        if self.verified is not None:
            self.log.pin(instance(self.verified).claims)
            self.log.contexts = Contexts(contexts)
        self._begin()

    def held(self) -> set[tuple[int, bytes, bytes]]:
        saved = self.log.contexts.saved
        parsed = [Context.parse(saved[at : at + 72]) for at in range(0, len(saved), 72)]
        return {(context.version, context.boot, context.digest) for context in parsed if context is not None}


@dataclass
class Twin:
    """The world of the proof, and the real one."""

    world: World
    identities: list[SigningKey]
    state: State = field(init=False)
    done: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = self.world.begin()
        self.devices = [Device(number, identity) for number, identity in enumerate(self.identities)]
        self.mallory = Device(len(self.devices), SigningKey.generate())
        self.records: dict[str, Record] = {}
        self.boots: dict[str, Boot] = {}
        self._boot("A", [])

    def _boot(self, head: str, stored: list[bytes]) -> None:
        self.boots[head] = Boot(list(stored))
        self._recorded(head)

    def _recorded(self, name: str) -> None:
        boot = self.boots[boot_of(name)]
        contexts = [boot.memory.context(device.identity.public) for device in self.devices]
        context = Context.parse(contexts[0])
        assert context is not None
        self.records[name] = Record(list(boot.memory.stored), (context.version, context.boot, context.digest), contexts)

    def take(self, step: Step) -> None:
        """One step in both worlds."""
        before = self.state
        device = self.devices[step.client]
        match step.name:
            case "mail":
                boot = self._running(step)
                size = len(boot.memory.stored)
                device.mail(boot)
                if len(boot.memory.stored) == size:
                    # What the log has done already is answered from there.
                    step = step._replace(name="ask")
            case "answer":
                flight = before.clients[step.client].flights[step.boot]
                told = before.clients[step.client].told
                # Its own requests may be part of what this history lacks, and another context went first.
                assert device.answer() or not all(flight.record.startswith(record) for record in told)
            case "post":
                device.post(self.boots[boot_of(step.record)], self.records[step.record].contexts[step.client])
            case "backup":
                device.backup()
            case "restore":
                device.restore()
            case "forge":
                self._forge(self._running(step))
        self.done.append(step)
        self.state = self.world.after(before, step)
        for running in self.state.boots:
            name = boot_of(running.head)
            if name not in self.boots:
                self._boot(name, self.records[step.record].stored if step.record else [])
            elif running.head not in self.records:
                self._recorded(running.head)
        try:
            self.compare()
        except AssertionError as error:
            raise AssertionError("\n".join([*tell(self.world, self.done), str(error)])) from None

    def _running(self, step: Step) -> Boot:
        return self.boots[boot_of(self.state.boots[step.boot].head)]

    def _forge(self, boot: Boot) -> None:
        """Contexts of somebody else, and of nobody."""
        log, halted = boot.log_id, boot.proof is not None
        for context in (self.records["A"].contexts[0], b"\xff" * 72):
            self.mallory = Device(len(self.devices), self.mallory.identity)
            self.mallory.log.pin(instance(boot).claims)
            self.mallory.log.contexts = Contexts(context)
            session = self.mallory._session(boot)
            self.mallory.conversation.use(session, new_boot=False)
            item = self.mallory.conversation.add(RequestKind.MAIL, b"evil")
            (answer,) = boot.receive(item.encrypted)
            assert session.decrypt(answer).kind == (ReplyKind.HALTED if halted else ReplyKind.CONTEXT)
        assert boot.log_id == log

    def compare(self) -> None:
        state = self.state
        for running in state.boots:
            boot = self.boots[boot_of(running.head)]
            assert running.halted == (boot.proof is not None)
            assert boot.memory.log.version == version_of(running.head)
            for device in self.devices:
                for number in range(1, device.requests + 1):
                    assert boot.count(b"%d-%d" % (device.number, number)) <= 1
        for client, device in zip(state.clients, self.devices, strict=True):
            assert client.stopped == device.stopped
            if not client.stopped:
                assert {self.records[name].said for name in client.held} == device.held()


WORLDS = {
    "posts": World(posts=True, hostile_client=True),
    "backups": World(backups=True, hostile_client=True),
    "devices": World(clients=2, posts=True),
    "three branches": World(forks=3),
}


@pytest.mark.spec("DET-1", "DET-2", "DET-10", "DET-11", "DET-12", "DET-13", "DET-15", "MAIL-64")
@pytest.mark.parametrize("name", WORLDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_real_code_does_what_the_proof_says(name: str, data: st.DataObject) -> None:
    world = WORLDS[name]
    identities = [SigningKey.generate() for _ in range(world.clients)]
    if name == "devices":
        identities[1] = identities[0]
    twin = Twin(world, identities)
    # A log that is replaced ends a schedule early: most clients then stop.
    replaced = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, STEPS))):
        steps = [step for step, _ in world.steps(twin.state) if replaced or step.record or step.name != "start"]
        kind = data.draw(st.sampled_from(sorted({step.name for step in steps})))
        twin.take(data.draw(st.sampled_from([step for step in steps if step.name == kind])))


@pytest.mark.spec("DET-2", "DET-10", "DET-15")
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_honest_host_is_never_accused(data: st.DataObject) -> None:
    """Crashes, lost answers, repetitions, late posted mail, restored backups, two devices, forged contexts."""
    world = World(posts=True, backups=True, hostile_client=True)
    identity = SigningKey.generate()
    twin = Twin(world, [identity, identity, SigningKey.generate()])
    for _ in range(data.draw(st.integers(1, STEPS))):
        steps = [step for step, _ in world.steps(twin.state) if world.after(twin.state, step).kept is not None]
        kind = data.draw(st.sampled_from(sorted({step.name for step in steps})))
        twin.take(data.draw(st.sampled_from([step for step in steps if step.name == kind])))
    assert not any(boot.proof for boot in twin.boots.values())
    assert not any(device.stopped for device in twin.devices)


# Without those that take a broken enclave, or several mails in flight.
REPLAYED = [broken for broken in BROKEN if broken.world.in_flight == 1 and broken.world.rules.one_record_a_version]


@pytest.mark.spec("DET-10", "DET-11")
@pytest.mark.parametrize("broken", REPLAYED, ids=lambda broken: broken.instead)
def test_what_breaks_a_weaker_protocol_does_not_break_the_code(broken: Broken) -> None:
    identities = [SigningKey.generate()] * broken.world.clients if broken.world.identities else None
    world = broken.world._replace(rules=PROTOCOL, identities="", unwatched="")
    twin = Twin(world, identities or [SigningKey.generate() for _ in range(world.clients)])
    for step in explore(broken.world, 6).schedule:
        twin.take(step)
