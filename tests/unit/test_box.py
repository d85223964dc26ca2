"""A client's box: what it hands out once, and what it refuses, with the test as the host."""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.unit.test_client_core import DIGEST, NOW, Instance, core

from conclave._crypto import SigningKey
from conclave.attestation import AttestationResult, InstanceClaims
from conclave.client import Box
from conclave.client._box import MAX_WINDOWS, split_numbered
from conclave.client.core import Answer, ClientCore, Exchange
from conclave.errors import AppraisalError, ExpiredError, FormatError, TransportError
from conclave.mail import Mailbox
from conclave.mail.post import Address, make_post


class Host:
    """Keeps posts and answers as the common host would; the test may do otherwise."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.mails: list[tuple[int, bytes]] = []
        self.infos: dict[str, Answer] = {}
        self.asked: list[Exchange] = []
        self.claims = [204]
        self.below = 0
        self.deleted: set[int] = set()
        self.alter: Callable[[bytes], bytes] = lambda mail: mail

    def keep(self, mail: bytes) -> None:
        self.mails.append((len(self.mails) + 1, mail))

    def __call__(self, exchange: Exchange) -> Answer:
        self.asked.append(exchange)
        if exchange.path == "/mail":
            return self.instance.answer(exchange)
        if exchange.path.startswith("/instance/"):
            return self.infos.get(exchange.path.removeprefix("/instance/"), Answer(404))
        if exchange.method == "POST":
            return Answer(self.claims.pop(0) if len(self.claims) > 1 else self.claims[0])
        assert len(exchange.bearer) == 64
        assert exchange.bearer not in exchange.path
        if exchange.method == "DELETE":
            asked = dict(part.split("=") for part in exchange.path.partition("?")[2].split("&"))
            first, below = int(asked.get("from", 0)), int(asked["below"])
            self.deleted.update(range(first, below))
            self.below = self.below if first else below
            return Answer(204)
        after = int(exchange.path.partition("after=")[2].partition("&")[0])
        found = [(n, self.alter(m)) for n, m in self.mails if n > after]
        return Answer(200, b"".join(n.to_bytes(8, "big") + len(m).to_bytes(4, "big") + m for n, m in found))


class World:
    """One client, the instance that it verified, and its host."""

    def __init__(self) -> None:
        self.instance = Instance()
        self.client = core(self.instance)
        self.host = Host(self.instance)
        self.number = 0

    def post(
        self,
        body: bytes = b"",
        *,
        topic: str = "t",
        signer: SigningKey | None = None,
        digest: bytes = DIGEST,
        identity: bytes | None = None,
        number: int | None = None,
        acknowledged: int = 0,
    ) -> bytes:
        if number is None:
            number, self.number = self.number, self.number + 1
        address = Address(identity or self.client.identity.public, self.client.box.reply_key.public, topic)
        mail = make_post(
            address,
            body,
            number=number,
            acknowledged=acknowledged,
            signer=signer or self.instance.signing,
            claims_digest=digest,
            size=1024,
        )
        self.host.keep(mail)
        return mail

    def poll(self, topic: str = "t", client: ClientCore | None = None) -> list[bytes]:
        steps = (client or self.client).poll(topic=topic, wait_seconds=0)
        return [mail.body for mail in self.instance.drive(steps, self.host)]


@pytest.mark.spec("MAIL-32", "MAIL-38")
def test_mail_is_handed_out_once_and_acknowledged_by_the_next_poll() -> None:
    w = World()
    w.post(b"a")
    w.post(b"b")
    assert w.poll() == [b"a", b"b"]
    assert w.host.below == 0
    assert [e.path for e in w.host.asked if e.path == "/mail"] == []
    assert w.poll() == []
    assert w.host.below == 3
    assert len([e for e in w.host.asked if e.path == "/mail"]) == 1
    assert w.client._topics["t"].conversation.posted == 2
    assert w.client.refused_mails == 0


def test_topics_share_a_box_and_nothing_else() -> None:
    w = World()
    w.post(b"t1")
    w.post(b"u1", topic="u", number=0)
    w.post(b"t2")
    assert w.poll("t") == [b"t1", b"t2"]
    assert w.poll("t") == []
    # What nobody took yet stays with the host.
    assert w.host.below == 2
    assert w.poll("u") == [b"u1"]
    assert w.poll("u") == []
    assert w.host.below == 4


@pytest.mark.spec("MAIL-30", "MAIL-31", "MAIL-32")
@pytest.mark.parametrize(
    "bad",
    [
        lambda w: w.post(signer=SigningKey.generate()),
        lambda w: w.post(identity=bytes(32)),
        lambda w: w.host.keep(b"noise"),
        lambda w: w.host.keep(w.host.mails[0][1]),
        lambda w: w.host.keep(w.host.mails[0][1][:-1]),
        lambda w: w.host.keep(w.host.mails[0][1][:-1] + b"\0"),
        lambda w: w.post(number=0),
    ],
)
def test_what_is_refused_is_counted_and_ends_no_poll(bad: Callable[[World], None]) -> None:
    w = World()
    w.post(b"before")
    bad(w)
    w.post(b"after")
    assert w.poll() == [b"before", b"after"]
    assert w.client.refused_mails == 1
    assert w.poll() == []


def other_boot(w: World, **changes: Any) -> tuple[SigningKey, bytes, AttestationResult]:
    signing = SigningKey.generate()
    result = w.instance.result()
    claims = msgspec.structs.replace(result.claims, signing_key=signing.public, boot_nonce=bytes([9]) * 32)
    return (
        signing,
        bytes([7]) * 64,
        AttestationResult(claims, bytes([7]) * 64, "simulated", "INSECURE", (), result.evidence, bytes(32), NOW),
    )


@pytest.mark.spec("MAIL-31")
def test_a_sender_of_another_boot_is_verified_first(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    signing, digest, result = other_boot(w)
    given: list[Any] = []

    def verify(info: bytes, constraint: object, **_: object) -> AttestationResult:
        given.append((info, constraint))
        if info == b"refused":
            raise AppraisalError(("another program",))
        if info == b"garbage":
            raise FormatError("no")
        return result if info == b"info" else w.instance.result()

    monkeypatch.setattr("conclave.client.core.verify_instance", verify)
    w.post(b"old", signer=signing, digest=digest, number=0)
    w.post(b"new")
    # The host does not say who that was: the mail waits, and keeps no other.
    assert w.poll() == [b"new"]
    assert w.client.refused_mails == 0
    assert w.poll() == []
    assert w.host.below == 1
    w.host.infos[digest.hex()] = Answer(200, b"info")
    assert w.poll() == [b"old"]
    assert given == [(b"info", w.client.constraint)]
    assert w.poll() == []
    assert w.host.below == 3
    # It is known now.
    w.post(b"more", signer=signing, digest=digest, number=1)
    assert w.poll() == [b"more"]
    assert len(given) == 1
    for info in (b"refused", b"garbage", b"of another"):
        v = World()
        # Info of another instance does not count, not even if its key is the right one.
        v.post(b"x", signer=w.instance.signing if info == b"of another" else signing, digest=digest)
        v.host.infos[digest.hex()] = Answer(200, info)
        v.post(b"good", number=0)
        assert v.poll() == [b"good"]
        assert v.client.refused_mails == 1


@pytest.mark.spec("MAIL-31")
def test_mail_waits_while_the_clients_clock_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    signing, digest, result = other_boot(w)
    clock = {"wrong": True}

    def verify(info: bytes, constraint: object, **_: object) -> AttestationResult:
        if clock["wrong"]:
            raise ExpiredError("pck: not valid yet at this time")
        return result

    monkeypatch.setattr("conclave.client.core.verify_instance", verify)
    w.host.infos[digest.hex()] = Answer(200, b"info")
    w.post(b"old", signer=signing, digest=digest, number=0)
    w.post(b"new")
    assert w.poll() == [b"new"]
    assert w.poll() == []
    # The host keeps it, and no newer one for its sake.
    assert w.host.deleted == {0, 2}
    clock["wrong"] = False
    assert w.poll() == [b"old"]
    assert w.client.refused_mails == 0


@pytest.mark.spec("MAIL-39")
def test_what_waits_for_its_sender_keeps_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    signing, digest, result = other_boot(w)
    monkeypatch.setattr("conclave.client.core.verify_instance", lambda *_, **__: result)
    w.post(b"1")
    w.post(b"2", signer=signing, digest=digest, number=0)
    w.post(b"3")
    w.post(b"4", signer=signing, digest=digest, number=1)
    for body in (b"5", b"6"):
        w.post(body)
    w.post(b"7", topic="u", number=0)
    w.post(b"8")
    assert w.poll() == [b"1", b"3", b"5", b"6", b"8"]
    # One sender is asked for once in a poll.
    assert [e.path for e in w.host.asked].count(f"/instance/{digest.hex()}") == 1
    assert w.poll() == []
    assert w.host.deleted == {0, 1, 5, 6}
    assert w.poll("u") == [b"7"]
    assert w.poll("u") == []
    assert w.host.deleted == {0, 1, 5, 6, 7, 8}
    w.host.infos[digest.hex()] = Answer(200, b"info")
    assert w.poll() == [b"2", b"4"]
    assert w.poll() == []
    assert w.host.deleted == set(range(9))
    assert w.client.refused_mails == 0


@pytest.mark.spec("MAIL-31", "MAIL-39")
@pytest.mark.parametrize("bound", ["MAX_UNRESOLVED", "MAX_UNRESOLVED_BYTES"])
def test_what_finds_no_room_while_it_waits_is_fetched_again(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    signing, digest, result = other_boot(w)
    monkeypatch.setattr("conclave.client.core.verify_instance", lambda *_, **__: result)
    size = len(w.post(b"new 1"))
    monkeypatch.setattr(f"conclave.client._box.{bound}", 2 if bound == "MAX_UNRESOLVED" else 3 * size - 1)
    for n in range(5):
        w.post(b"old %d" % n, signer=signing, digest=digest, number=n)
    w.post(b"new 2")
    assert w.poll() == [b"new 1", b"new 2"]
    assert w.poll() == []
    assert w.host.deleted == {0, 1}
    w.host.infos[digest.hex()] = Answer(200, b"info")
    old = []
    for _ in range(3):
        old += w.poll()
        # What was not handed out is never deleted.
        assert not {2 + n for n in range(5)} & w.host.deleted - {2 + int(body[-1:]) for body in old}
    assert old == [b"old %d" % n for n in range(5)]
    assert w.poll() == []
    assert w.host.deleted == set(range(8))
    assert w.client.refused_mails == 0


@pytest.mark.spec("MAIL-39")
def test_what_is_at_the_host_again_is_deleted_again() -> None:
    w = World()
    w.post(b"1")
    w.post(b"2")
    assert w.poll() == [b"1", b"2"]
    assert w.poll() == []
    assert w.host.deleted == {0, 1, 2}
    # A host that was killed has them again, and says nothing of it.
    w.host.deleted.clear()
    assert w.poll() == []
    assert w.host.deleted == {0, 1, 2}
    # A request that fails may be of the time when it was away; the next begins with this.
    w.post(b"3")
    assert w.poll() == [b"3"]
    with pytest.raises(TransportError):
        w.instance.drive(
            w.client.poll(topic="t", wait_seconds=0),
            lambda exchange: Answer(0) if exchange.method == "GET" else w.host(exchange),
        )
    w.host.deleted.clear()
    w.post(b"4")
    assert w.poll() == [b"4"]
    assert w.host.deleted == {0, 1, 2, 3}
    assert w.poll() == []
    # Who begins with a kept box finds them, too.
    w.host.deleted.clear()
    kept = Box.restore(w.client.box.export())
    again = ClientCore(constraint=w.client.constraint, identity=w.client.identity, box=kept, now=lambda: NOW)
    again.instance = w.client.instance
    for _ in range(3):
        assert w.poll(client=again) == []
    assert w.host.deleted == {0, 1, 2, 3, 4}


@pytest.mark.spec("MAIL-39")
def test_a_deletion_that_did_not_arrive_is_asked_for_again() -> None:
    w = World()
    w.post(b"1")
    assert w.poll() == [b"1"]

    def away(exchange: Exchange) -> Answer:
        return Answer(503) if exchange.method == "DELETE" else w.host(exchange)

    w.post(b"2")
    assert [m.body for m in w.instance.drive(w.client.poll(topic="t", wait_seconds=0), away)] == [b"2"]
    assert not w.host.deleted
    w.post(b"3")
    assert w.poll() == [b"3"]
    assert w.host.deleted == {0, 1, 2}


@pytest.mark.spec("MAIL-36")
@pytest.mark.parametrize("status", [0, 429, 502, 503])
def test_an_acknowledgement_that_did_not_arrive_is_sent_again(status: int) -> None:
    w = World()
    w.post(b"1")
    assert w.poll() == [b"1"]
    told: list[Exchange] = []

    def away(exchange: Exchange) -> Answer:
        if exchange.path == "/mail":
            told.append(exchange)
            return Answer(status)
        return w.host(exchange)

    for n in range(1, 4):
        assert w.instance.drive(w.client.poll(topic="t", wait_seconds=0), away) == []
        assert len(told) == n
    # It arrives, and is said no more.
    for _ in range(2):
        assert w.poll() == []
        assert len([e for e in w.host.asked if e.path == "/mail"]) == 1


@pytest.mark.spec("MAIL-36")
@pytest.mark.parametrize("status", [409, 422])
@pytest.mark.parametrize("old_mail", [True, False])
def test_who_only_polls_acknowledges_to_the_boot_that_runs(
    status: int, old_mail: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is of a boot that is gone, which it learns by its acknowledgement alone."""
    w = World()
    signing, digest, result = other_boot(w)
    told: list[Answer] = []
    successor = Instance()
    successor.box = Mailbox(
        key=w.instance.key, claims_digest=digest, posted=lambda _, below: acknowledged.append(below)
    )
    acknowledged: list[int] = []
    monkeypatch.setattr("conclave.client.core.verify_instance", lambda *_, **__: result)

    def host(exchange: Exchange) -> Answer:
        if exchange.path == "/instance" or exchange.path.startswith("/instance/"):
            return Answer(200, b"info")
        if exchange.path == "/mail":
            told.append(Answer(status) if not told else successor.answer(exchange))
            return told[-1]
        return w.host(exchange)

    def poll() -> list[bytes]:
        return [m.body for m in w.instance.drive(w.client.poll(topic="t", wait_seconds=0), host)]

    if old_mail:
        w.post(b"old")
    for n in range(3):
        w.post(b"new", signer=signing, digest=digest, number=n)
    assert len(poll()) == 3 + old_mail
    assert poll() == []
    assert acknowledged == [3]
    assert len(told) == 2
    assert poll() == []
    assert len(told) == 2


@pytest.mark.spec("MAIL-36")
def test_a_successor_that_is_refused_ends_no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()

    def refuse(*_: object, **__: object) -> AttestationResult:
        raise AppraisalError(("another program",))

    monkeypatch.setattr("conclave.client.core.verify_instance", refuse)

    def host(exchange: Exchange) -> Answer:
        if exchange.path == "/instance":
            return Answer(200, b"info")
        return Answer(409) if exchange.path == "/mail" else w.host(exchange)

    w.post(b"1")
    w.post(b"2")
    for expected in ([b"1", b"2"], [], []):
        assert [m.body for m in w.instance.drive(w.client.poll(topic="t", wait_seconds=0), host)] == expected
    # The same instance, if it is one, has another session opened to it.
    monkeypatch.setattr("conclave.client.core.verify_instance", lambda *_, **__: w.instance.result())
    session = w.client._topics["t"].conversation.session
    assert w.instance.drive(w.client.poll(topic="t", wait_seconds=0), host) == []
    assert w.client._topics["t"].conversation.session is not session


def test_a_poll_waits_no_longer_when_the_clock_is_set_back() -> None:
    w = World()
    passed = iter(range(0, 1000, 10))
    days = iter(range(1000))
    w.client._elapsed = lambda: float(next(passed))
    w.client._now = lambda: NOW - timedelta(days=next(days))
    steps = w.client.poll(topic="t", wait_seconds=60)
    assert w.instance.drive(steps, w.host) == []
    assert next(passed) <= 100


def test_numbers_are_of_one_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    signing, digest, result = other_boot(w)
    w.client._senders[digest] = result
    w.post(b"this boot", number=0)
    w.post(b"that boot", signer=signing, digest=digest, number=0)
    assert w.poll() == [b"this boot", b"that boot"]
    # An instance that is no longer vouched for vouches for nothing.
    w.client._now = lambda: NOW + timedelta(days=10_000)
    w.client.verify = lambda: iter(())  # type: ignore[method-assign, assignment]
    w.post(b"late", signer=signing, digest=digest, number=1)
    assert w.poll() == []


@pytest.mark.spec("MAIL-32", "MAIL-38")
def test_a_kept_box_goes_on_where_it_was_acknowledged() -> None:
    w = World()
    w.post(b"1")
    w.post(b"2")
    assert w.poll() == [b"1", b"2"]
    unacknowledged = Box.restore(w.client.box.export())
    assert w.poll() == []
    w.post(b"3")
    acknowledged = Box.restore(w.client.box.export())
    for box, expected in ((unacknowledged, [b"1", b"2", b"3"]), (acknowledged, [b"3"])):
        again = ClientCore(constraint=w.client.constraint, identity=w.client.identity, box=box, now=lambda: NOW)
        again.instance = w.client.instance
        assert w.poll(client=again) == expected
        assert again.refused_mails == 3 - len(expected)
    assert repr(acknowledged) == f"<Box {acknowledged.id.hex()}>"


@pytest.mark.spec("MAIL-36")
def test_who_restored_an_older_box_acknowledges_what_comes_all_the_same() -> None:
    w = World()
    w.post(b"late", number=7, acknowledged=7)
    assert w.poll() == [b"late"]
    assert w.poll() == []
    assert w.client.box.received_below(bytes(32), "t") == 8
    # What was acknowledged is not taken once more.
    w.post(b"early", number=3)
    assert w.poll() == []


@pytest.mark.parametrize("cut", [b"", b"\x80", b"all but the end"])
def test_what_is_no_box(cut: bytes) -> None:
    whole = Box.generate().export()
    with pytest.raises(FormatError):
        Box.restore(whole[:-3] if cut.startswith(b"all") else cut)
    with pytest.raises(FormatError, match="only version 1"):
        Box.restore(whole.replace(b"version\x01", b"version\x02"))


def test_a_box_takes_no_more_senders_than_it_can_remember() -> None:
    box = Box.generate()
    box._seen = dict.fromkeys((n.to_bytes(4, "big"), "t") for n in range(MAX_WINDOWS))  # type: ignore[assignment]
    assert not box.receive((b"new", "t"), 0, 0)


def test_claiming() -> None:
    w = World()
    w.host.claims = [409]
    with pytest.raises(TransportError, match="somebody else"):
        w.poll()
    w.host.claims = [503]
    with pytest.raises(TransportError, match="gives no box"):
        w.poll()
    w.host.claims = [204]
    assert w.poll() == []
    claim = next(e for e in w.host.asked if e.method == "POST")
    assert (claim.path, claim.body) == (f"/outbox/{w.client.box.id.hex()}", w.client.box.capability)
    assert len([e for e in w.host.asked if e.method == "POST"]) == 3


def test_a_host_that_forgot_the_claim_is_told_again() -> None:
    w = World()
    w.post(b"x")
    statuses = [401, 200]

    def forgetful(exchange: Exchange) -> Answer:
        if exchange.method == "GET" and (status := statuses.pop(0)) != 200:
            return Answer(status)
        return w.host(exchange)

    assert [m.body for m in w.instance.drive(w.client.poll(topic="t", wait_seconds=0), forgetful)] == [b"x"]
    statuses = [401, 401]
    with pytest.raises(TransportError, match="gives no mail"):
        w.instance.drive(w.client.poll(topic="t", wait_seconds=0), forgetful)


def test_a_host_that_counts_from_the_beginning_again() -> None:
    w = World()
    w.post(b"a")
    w.post(b"b")
    assert w.poll() == [b"a", b"b"]
    w.host.mails = []
    w.post(b"c")
    # The common host gives what is below a number that it never had.
    w.client._collector._place = 0
    assert w.poll() == [b"c"]


def test_listening_goes_on_whatever_the_host_does() -> None:
    w = World()
    answers: list[Answer | None] = [Answer(0), Answer(500), Answer(200), None]
    w.post(b"at last")
    # Each look at the clock finds that a wait took its time.
    seconds = iter(range(0, 1_000_000, 30))

    w.client._is_stale = lambda: False  # type: ignore[method-assign]
    w.client._sender = lambda _: _claims(w)  # type: ignore[method-assign]
    w.client._collector._sender = w.client._sender
    w.client._elapsed = lambda: float(next(seconds))

    def host(exchange: Exchange) -> Answer:
        given = answers.pop(0) if exchange.method == "GET" else None
        return w.host(exchange) if given is None else given

    assert [m.body for m in w.instance.drive(w.client.listen(topic="t"), host)] == [b"at last"]
    assert answers == []


def _claims(w: World) -> Generator[Any, Any, InstanceClaims]:
    yield from ()
    return w.instance.result().claims


def test_answers_that_are_cut_off() -> None:
    whole = (7).to_bytes(8, "big") + (3).to_bytes(4, "big") + b"abc"
    assert split_numbered(whole + whole[:-1]) == [(7, b"abc")]
    for size in range(len(whole)):
        assert split_numbered(whole[:size]) == []
