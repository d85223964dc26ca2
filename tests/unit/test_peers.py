"""What an enclave keeps of others: the time, who introduced itself, exchanges under way."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from tests.unit.test_verify import INSECURE, NOW, claims, info

from conclave import _codec
from conclave._crypto import SigningKey
from conclave._framing import Frame, Kind
from conclave.attestation import Constraint, verify_instance
from conclave.enclave import Enclave, NotIntroduced, _callers, rpc
from conclave.enclave._callers import MAX_INTRODUCTION, Callers, check_declared
from conclave.enclave._clock import Clock
from conclave.enclave._fetches import MAX_OUTSTANDING, Fetch, Fetches
from conclave.enclave._peers import MAX_PEERS, Peer, Peers
from conclave.errors import AppraisalError, FormatError, TransportError, VerificationError
from conclave.platform.machine import Machine
from conclave.rpc import interface_of

pytestmark = pytest.mark.anyio
KEY = b"k" * 32
OTHER = "C:" + "1" * 64 + " SEC:INSECURE"


class Time:
    """A host's clock."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine.open(tmp_path_factory.mktemp("machine"), now=NOW)


def introduction(machine: Machine, key: bytes = KEY) -> bytes:
    return info(machine, claims(signing_key=key))


# Declaring ---------------------------------------------------------------------------


@pytest.mark.spec("MAIL-48")
@pytest.mark.parametrize(
    "declared",
    [["a"], "a", {1: None}, {"": None}, {"x" * 65: None}, {"a": 5}, {f"n{i}": None for i in range(17)}],
)
def test_callers_of_another_form(declared: Any) -> None:
    with pytest.raises(TypeError, match="callers"):
        check_declared(declared)


def test_a_class_with_a_constraint_that_does_not_parse() -> None:
    with pytest.raises(FormatError, match="unknown clause"):
        type("Wrong", (Enclave,), {"callers": {"a": "nonsense:1"}})


@pytest.mark.spec("RPC-14")
def test_a_method_for_a_caller_that_is_not_declared() -> None:
    class Wrong(Enclave):
        callers: ClassVar = {"scorer": None}

        @rpc(callers=("scorer", "nobody"))
        def method(self) -> None: ...

    with pytest.raises(TypeError, match=r"Wrong\.method: the class's `callers` has no nobody"):
        interface_of(Wrong)


# Introductions -----------------------------------------------------------------------


@pytest.mark.spec("MAIL-46", "MAIL-47")
async def test_an_introduction_counts_for_its_key_until_it_ends(machine: Machine) -> None:
    time = Time()
    callers = Callers({"no": OTHER, "yes": INSECURE, "also": INSECURE, "unset": None}, Clock(time))
    assert callers.find(KEY) is None
    await callers.introduce(KEY, introduction(machine))
    found = callers.find(KEY)
    assert found is not None
    assert found.names == {"yes", "also"}
    assert found.result.claims.signing_key == KEY
    callers.demand(("no", "yes"), KEY)
    for names in (("no",), ("unset",), ()):
        with pytest.raises(NotIntroduced):
            callers.demand(names, KEY)
    with pytest.raises(NotIntroduced):
        callers.demand(("yes",), b"x" * 32)
    time.now = NOW + timedelta(days=1)
    assert callers.find(KEY) is found
    time.now += timedelta(seconds=1)
    assert callers.find(KEY) is None
    # Turning back does not bring back what was dropped.
    time.now = NOW
    assert callers.find(KEY) is None


@pytest.mark.spec("MAIL-47")
async def test_no_longer_than_its_evidence(machine: Machine) -> None:
    time = Time()
    callers = Callers({"yes": INSECURE}, Clock(time))
    await callers.introduce(KEY, introduction(machine))
    found = callers.find(KEY)
    assert found is not None
    end = found.result.evidence.valid_until
    time.now = end - timedelta(hours=1)
    await callers.introduce(KEY, introduction(machine))
    assert callers.find(KEY) is not None
    time.now = end + timedelta(seconds=1)
    assert callers.find(KEY) is None
    with pytest.raises(NotIntroduced, match="expired"):
        await callers.introduce(KEY, introduction(machine))


@pytest.mark.spec("MAIL-46")
async def test_a_key_that_is_not_its_own(machine: Machine) -> None:
    callers = Callers({"yes": INSECURE}, Clock(Time()))
    with pytest.raises(NotIntroduced, match="of another enclave"):
        await callers.introduce(b"x" * 32, introduction(machine))
    assert callers.find(KEY) is callers.find(b"x" * 32) is None


@pytest.mark.spec("MAIL-46")
async def test_a_refusal_keeps_what_counted_before(machine: Machine) -> None:
    """Whoever sends rubbish on a channel of its own takes nothing from anybody, itself included."""
    callers = Callers({"yes": INSECURE}, Clock(Time()))
    await callers.introduce(KEY, introduction(machine))
    with pytest.raises(NotIntroduced):
        await callers.introduce(KEY, info(machine, claims(signing_key=KEY), report_data=bytes(64)))
    assert callers.find(KEY) is not None


@pytest.mark.spec("MAIL-47")
async def test_a_constraint_that_is_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = Callers({"yes": INSECURE, "unset": None}, Clock(Time()))
    await callers.introduce(KEY, introduction(machine))
    callers.allow("unset", OTHER)
    assert callers.find(KEY) is not None
    callers.allow("yes", OTHER)
    assert callers.find(KEY) is None
    with pytest.raises(ValueError, match="declares no"):
        callers.allow("other", OTHER)
    with pytest.raises(FormatError):
        callers.allow("yes", "nonsense:1")
    # Replaced while it is verified: what the old one accepted does not count.
    callers.allow("yes", INSECURE)
    verifying, go = threading.Event(), threading.Event()
    verify = _callers.verify_instance

    def slowly(*args: Any, **options: Any) -> Any:
        verifying.set()
        assert go.wait(30)
        return verify(*args, **options)

    monkeypatch.setattr(_callers, "verify_instance", slowly)
    task = asyncio.create_task(callers.introduce(KEY, introduction(machine)))
    await asyncio.to_thread(verifying.wait, 30)
    callers.allow("yes", INSECURE)
    go.set()
    with pytest.raises(NotIntroduced):
        await task
    assert callers.find(KEY) is None


@pytest.mark.spec("MAIL-45", "MAIL-48")
async def test_bounds_of_introductions(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = Callers({"yes": INSECURE}, Clock(Time()))
    with pytest.raises(FormatError, match="at most 262144 bytes"):
        await callers.introduce(KEY, bytes(MAX_INTRODUCTION + 1))
    monkeypatch.setattr(_callers, "MAX_KNOWN", 2)
    keys = [bytes([n]) * 32 for n in range(3)]
    for key in keys:
        await callers.introduce(key, introduction(machine, key))
    assert [callers.find(key) is not None for key in keys] == [False, True, True]
    # One that introduces itself again does not push out another, and is the newest then.
    await callers.introduce(keys[1], introduction(machine, keys[1]))
    await callers.introduce(keys[0], introduction(machine, keys[0]))
    assert [callers.find(key) is not None for key in keys] == [True, True, False]
    monkeypatch.setattr(_callers, "MAX_WAITING", 2)
    tasks = [asyncio.create_task(callers.introduce(key, introduction(machine, key))) for key in keys]
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(e) for e in ended if e is not None] == ["too many introductions wait; try again"]


# Time --------------------------------------------------------------------------------


@pytest.mark.spec("MAIL-49")
async def test_the_time_does_not_go_back(machine: Machine) -> None:
    time = Time()
    clock = Clock(time)
    callers = Callers({"yes": INSECURE, "no": OTHER}, clock)
    time.now = NOW - timedelta(days=300)
    assert clock.now() == time.now
    # What is not accepted moves nothing: not valid yet.
    with pytest.raises(NotIntroduced):
        await callers.introduce(KEY, introduction(machine))
    assert clock.now() == time.now
    time.now = NOW
    await callers.introduce(KEY, introduction(machine))
    found = callers.find(KEY)
    assert found is not None
    time.now = NOW - timedelta(days=300)
    floor = clock.now()
    assert floor == found.result.evidence.valid_from
    assert NOW - timedelta(days=1) < floor <= NOW
    await callers.introduce(KEY, introduction(machine))
    # Forward it goes with the host's clock, and no evidence turns it.
    time.now = NOW + timedelta(days=3)
    assert clock.now() == time.now
    await callers.introduce(KEY, introduction(machine))
    assert clock.now() == time.now


@pytest.mark.spec("MAIL-49")
async def test_older_evidence_lowers_nothing(machine: Machine) -> None:
    clock = Clock(Time(NOW - timedelta(days=300)))
    newest = verify_instance(info(machine), Constraint.parse(INSECURE), now=NOW)
    older = replace(newest, evidence=replace(newest.evidence, valid_from=NOW - timedelta(days=20)))
    for result in (older, newest, older):
        clock.accept(result)
    assert clock.now() == newest.evidence.valid_from


def test_the_hosts_clock() -> None:
    assert abs(Clock().now() - datetime.now(UTC)) < timedelta(minutes=5)


# Exchanges ---------------------------------------------------------------------------

REQUEST = Fetch(url="http://b", method="GET", path="/instance", body=b"")


@pytest.mark.spec("CHAN-12", "MAIL-48")
async def test_exchanges_under_way() -> None:
    sent: list[tuple[int, int, bytes]] = []
    fetches = Fetches(lambda kind, number, payload: sent.append((kind, number, payload)))
    tasks = [asyncio.create_task(fetches.fetch(REQUEST, timeout_seconds=30)) for _ in range(MAX_OUTSTANDING + 2)]
    while len(sent) < MAX_OUTSTANDING:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert [number for _, number, _ in sent] == list(range(1, MAX_OUTSTANDING + 1))
    assert {kind for kind, _, _ in sent} == {Kind.FETCH}
    assert _codec.decode(Fetch, sent[0][2], max_size=1000, what="fetch") == REQUEST
    # Unknown, and twice: the first that was said of an exchange counts.
    for number in (0, 10**6, 2**64 - 1):
        fetches.fetched(Frame(Kind.FETCHED, number, b"\0\xc8forged"))
    fetches.fetched(Frame(Kind.FETCHED, 1, b"\0\xc8first"))
    fetches.fetched(Frame(Kind.FETCHED, 1, b"\0\xc8second"))
    answer = await tasks[0]
    assert (answer.status, answer.body) == (200, b"first")
    fetches.fetched(Frame(Kind.FETCHED, 1, b"\0\xc8third"))
    # There is room for one more, and one that is given up makes room too.
    tasks[1].cancel()
    while len(sent) < MAX_OUTSTANDING + 2:
        await asyncio.sleep(0)
    for number in range(2, MAX_OUTSTANDING + 3):
        fetches.fetched(Frame(Kind.FETCHED, number, b"\x01\xf7"))
    done = await asyncio.gather(*tasks[2:])
    assert {a.status for a in done} == {503}
    assert not fetches._waiting


@pytest.mark.spec("CHAN-12")
async def test_what_a_host_says() -> None:
    numbers: list[int] = []
    fetches = Fetches(lambda kind, number, payload: numbers.append(number))

    async def said(payload: bytes) -> tuple[int, bytes, str]:
        task = asyncio.create_task(fetches.fetch(REQUEST, timeout_seconds=30))
        count = len(numbers)
        while len(numbers) == count:
            await asyncio.sleep(0)
        fetches.fetched(Frame(Kind.FETCHED, numbers[-1], payload))
        answer = await task
        return answer.status, answer.body, answer.text

    assert await said(b"\0\xc8body") == (200, b"body", "")
    assert await said(b"\xff\xff") == (65535, b"", "")
    assert await said(b"") == await said(b"\0") == (0, b"", "the host's answer has no status")
    assert await said(b"\0\0<text of the host's>") == (0, b"", "the host made no exchange")
    assert (await said(b"\0\0refused"))[2].endswith("its operator has to allow it (--peer, --witness)")
    answer = await fetches.fetch(REQUEST, timeout_seconds=0)
    assert (answer.status, answer.text) == (0, "the host gave no answer within 0 seconds")
    assert not fetches._waiting


# Calling -----------------------------------------------------------------------------


class Hosts:
    """The host of a calling enclave, which answers each FETCH with what is set for its address."""

    def __init__(self, time: Time) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: list[Fetch] = []
        self.clock = Clock(time)
        self.signing = SigningKey.generate()
        self.claims = claims(signing_key=self.signing.public)
        self.peers = Peers(self, self.signing, self.clock, Fetches(self.send))

    def send(self, kind: int, number: int, payload: bytes) -> None:
        request = _codec.decode(Fetch, payload, max_size=10**6, what="fetch")
        self.asked.append(request)
        answer = self.answers.get(request.url, b"\0\0connect")
        asyncio.get_running_loop().call_soon(self.peers.fetches.fetched, Frame(Kind.FETCHED, number, answer))

    def peer(self, url: str = "http://b", constraint: str = INSECURE) -> Peer:
        return self.peers.peer(url, constraint, introduce=True, timeout_seconds=30, attempts=1)


@pytest.mark.spec("MAIL-49")
async def test_a_caller_raises_the_floor_by_what_it_verified(machine: Machine) -> None:
    time = Time()
    hosts = Hosts(time)
    hosts.answers["http://b"] = b"\0\xc8" + info(machine)
    time.now = NOW - timedelta(days=300)
    with pytest.raises(VerificationError):
        await hosts.peer().verify()
    assert hosts.clock.now() == time.now
    time.now = NOW
    result = await hosts.peer().verify()
    time.now = NOW - timedelta(days=300)
    assert hosts.clock.now() == result.evidence.valid_from
    assert (await hosts.peer().verify()).claims_digest == result.claims_digest
    # What a constraint refuses raises nothing.
    other = Hosts(Time())
    other.answers["http://b"] = b"\0\xc8" + info(machine)
    with pytest.raises(AppraisalError):
        await other.peer(constraint=OTHER).verify()
    assert other.clock._floor is None


async def test_the_same_peer_each_time(machine: Machine) -> None:
    hosts = Hosts(Time())
    first = hosts.peer()
    assert hosts.peer("http://b/") is first
    assert hosts.peer("http://c") is not first
    assert hosts.peer(constraint=OTHER) is not first
    with pytest.raises(RuntimeError, match="nothing was verified yet"):
        _ = first.instance
    for number in range(MAX_PEERS):
        hosts.peer(f"http://host-{number}")
    assert len(hosts.peers._peers) == MAX_PEERS
    assert hosts.peer() is not first
    for url in ("ftp://b", "b", ""):
        with pytest.raises(ValueError, match="http://"):
            hosts.peer(url)


@pytest.mark.spec("MAIL-46")
async def test_nothing_is_sent_to_whom_the_constraint_refuses(machine: Machine) -> None:
    hosts = Hosts(Time())
    own = info(machine, hosts.claims)
    hosts.answers = {"": b"\0\xc8" + own, "http://b": b"\0\xc8" + info(machine)}
    with pytest.raises(AppraisalError):
        await hosts.peer(constraint=OTHER).call("method", "a secret")
    assert {(f.url, f.method, f.path) for f in hosts.asked} == {
        ("", "GET", "/instance"),
        ("http://b", "GET", "/instance"),
    }
    assert all(f.body == b"" for f in hosts.asked)


@pytest.mark.parametrize("shown", ["another", "garbage", "large", "nothing"])
async def test_instance_info_that_is_not_its_own(machine: Machine, shown: str) -> None:
    hosts = Hosts(Time())
    large = info(machine, hosts.claims, endorsements=bytes(MAX_INTRODUCTION))
    body = {"another": info(machine), "garbage": b"x", "large": large, "nothing": b""}[shown]
    hosts.answers[""] = b"\0\xc8" + body
    with pytest.raises(TransportError, match="cannot introduce itself"):
        await hosts.peers.own_info(timeout_seconds=30, attempts=1)
    own = info(machine, hosts.claims)
    hosts.answers[""] = b"\0\xc8" + own
    assert await hosts.peers.own_info(timeout_seconds=30, attempts=1) == own
