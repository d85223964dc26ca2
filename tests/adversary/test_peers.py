"""The host between two enclaves, programs that pass as another one, and who floods introductions: T-40, T-41, T-21."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.test_verify import INSECURE, NOW, claims, info

from conclave import _codec
from conclave._framing import Kind
from conclave.attestation.claims import parse_claims, parse_instance_info
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.enclave import NotIntroduced, _callers
from conclave.enclave._callers import Callers
from conclave.enclave._clock import Clock
from conclave.errors import CallError
from conclave.host import Host
from conclave.host.fetch import Answer, Fetcher
from conclave.platform import start_platform
from conclave.platform.machine import Machine
from conclave.testing import HostServer

CALLED = """
from conclave.enclave import Enclave, rpc

class Called(Enclave):
    callers = {"friend": None}

    def on_start(self) -> None:
        self.heard: list[str] = []

    @rpc
    def allow(self, constraint: str) -> None:
        self.allow_caller("friend", constraint)

    @rpc(callers="friend")
    def tell(self, secret: str) -> str:
        self.heard.append(secret)
        return "heard"

    @rpc
    def told(self) -> list[str]:
        return self.heard
"""

CALLING = """
import asyncio
from conclave.enclave import Enclave, rpc
from conclave.errors import Error

class Calling(Enclave):
    @rpc
    async def tell(self, url: str, constraint: str, secret: str) -> str:
        peer = self.peer(url, constraint, attempts=3, timeout_seconds=10)
        try:
            return await peer.call("tell", secret, returns=str)
        except Error as error:
            return f"{type(error).__name__} {getattr(error, 'type_name', '')}: {error}"

    @rpc
    async def many(self, url: str, constraint: str, count: int) -> int:
        peer = self.peer(url, constraint, attempts=1, timeout_seconds=3)
        ended = await asyncio.gather(*(peer.verify() for _ in range(count)), return_exceptions=True)
        return sum(isinstance(e, Error) for e in ended)

    @rpc
    def alive(self) -> bool:
        return True
"""

# Another program of the same operator's, which shows what it was given as its own introduction.
IMPOSTOR = """
from conclave.enclave import Enclave, rpc
from conclave.errors import Error

class Impostor(Enclave):
    callers = {"friend": None}

    @rpc
    async def tell_as(self, url: str, constraint: str, info: bytes) -> str:
        peer = self.peer(url, constraint)

        async def own_info(**options: object) -> bytes:
            return info

        peer._peers.own_info = own_info
        try:
            return await peer.call("tell", "from an impostor", returns=str)
        except Error as error:
            return f"{type(error).__name__} {getattr(error, 'type_name', '')}: {error}"

    @rpc(callers="friend")
    def tell(self, secret: str) -> str:
        return "stolen"
"""


class Operator(Fetcher):
    """A host that answers its enclave's FETCH frames as `act` says; None: as it should."""

    def __init__(self, host: Host, peers: list[str]) -> None:
        super().__init__(peers, info=lambda: host.info)
        self.asked: list[bytes] = []
        self.act: Callable[[bytes, Answer], bool] = lambda payload, answer: False

    def take(self, payload: bytes, answer: Answer) -> None:
        self.asked.append(payload)
        if not self.act(payload, answer):
            super().take(payload, answer)


class Stage:
    """Two enclaves and an impostor, each on a machine of its own, all run by the adversary."""

    def __init__(self, a: HostServer, b: HostServer, c: HostServer, bundles: tuple[Bundle, Bundle, Bundle]) -> None:
        self.a, self.b, self.c = a, b, c
        self.calling, self.called, self.impostor = (f"C:{x.code.hex()} SEC:INSECURE" for x in bundles)
        self.operator = Operator(a.host, [b.url, c.url])
        a.host._fetcher = self.operator
        c.host._fetcher = Operator(c.host, [b.url])

    def tell(self, url: str, secret: str = "the secret") -> str:
        with Client(self.a.url, constraint=self.calling) as client:
            return str(client.call("tell", url, self.called, secret))

    def told(self) -> list[str]:
        with Client(self.b.url, constraint=self.called) as client:
            return list(client.call("told"))

    def allow(self, constraint: str) -> None:
        with Client(self.b.url, constraint=self.called) as client:
            client.call("allow", constraint)

    def info(self, server: HostServer) -> bytes:
        assert server.host.info is not None
        return server.host.info


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, author: Callable[..., Bundle]) -> Iterator[Stage]:
    place = tmp_path_factory.mktemp("stage")
    bundles = author("calling", CALLING), author("called", CALLED), author("impostor", IMPOSTOR)

    def server(name: str, bundle: Bundle) -> HostServer:
        return HostServer(Host(lambda: start_platform(place / name, bundle.path), restart=False), hostile=True)

    with (
        server("machine-a", bundles[0]) as a,
        server("machine-b", bundles[1]) as b,
        server("machine-c", bundles[2]) as c,
    ):
        yield Stage(a, b, c, bundles)


@pytest.fixture(autouse=True)
def _behave(stage: Stage) -> Iterator[None]:
    stage.allow(stage.calling)
    yield
    stage.operator.act = lambda payload, answer: False
    for server in (stage.a, stage.b, stage.c):
        server.operator.behave()


@pytest.mark.spec("T-40", "MAIL-46")
def test_another_program_in_its_place(stage: Stage) -> None:
    said = stage.tell(stage.c.url)
    assert said.startswith("AppraisalError")
    assert "this is another program" in said


@pytest.mark.spec("T-40")
def test_the_genuine_evidence_in_front_of_another_program(stage: Stage) -> None:
    """The host shows the instance info of the right enclave and passes the mail to its own."""
    stage.c.operator.on_info = lambda info: stage.info(stage.b)
    before = len(stage.c.operator.requests)
    said = stage.tell(stage.c.url, "never for the impostor")
    assert said.startswith("TransportError")
    # It got the mails, and could read none.
    assert len(stage.c.operator.requests) > before
    assert "never for the impostor" not in stage.told()


@pytest.mark.spec("T-40")
def test_its_own_key_in_the_genuine_claims(stage: Stage) -> None:
    ours, theirs = (parse_instance_info(stage.info(s)) for s in (stage.c, stage.b))
    claims = parse_claims(theirs.claims)
    forged = msgspec.structs.replace(claims, encryption_key=parse_claims(ours.claims).encryption_key)
    stage.c.operator.on_info = lambda info: msgspec.structs.replace(theirs, claims=forged.encode()).encode()
    assert stage.tell(stage.c.url).startswith("BindingError")


@pytest.mark.spec("T-40", "CHAN-12")
@pytest.mark.parametrize("attack", ["garbage", "empty", "unknown", "status", "large", "mails", "words"])
def test_forged_answers(stage: Stage, attack: str) -> None:
    """FETCHED frames with anything in them: a call fails in words of ours, and the enclave goes on."""
    forged = {
        "garbage": b"\x00\xc8" + bytes(range(256)) * 9,
        "empty": b"",
        "unknown": b"\x00\x00<script>a text of the host's</script>",
        "status": b"\xff\xffbody",
        "large": b"\x00\xc8" + bytes(16 * 1024 * 1024),
        "mails": b"\x00\xc8" + (1000).to_bytes(4, "big") + bytes(1000) + b"\xff\xff\xff\xff",
        "words": b"\x00\x00refused",
    }[attack]

    def act(payload: bytes, answer: Answer) -> bool:
        answer(forged)
        return True

    stage.operator.act = act
    said = stage.tell(stage.b.url)
    assert said.partition(" ")[0] in ("TransportError", "FormatError")
    assert "script" not in said
    stage.operator.act = lambda payload, answer: False
    assert stage.tell(stage.b.url) == "heard"


@pytest.mark.spec("T-40", "CHAN-12")
def test_answers_late_twice_and_for_nobody(stage: Stage) -> None:
    answers: list[tuple[Answer, bytes]] = []

    def act(payload: bytes, answer: Answer) -> bool:
        def twice(said: bytes) -> None:
            link = stage.a.host._link
            assert link is not None
            for number in (0, 1, 2**64 - 1):
                link.tell(Kind.FETCHED, number, b"\x00\xc8forged")
            for late, before in answers:
                # What was said of an exchange that has ended, once more, and something else.
                late(before)
                late(b"\x00\xc8forged")
            answers.append((answer, said))
            answer(said)
            answer(b"\x00\xc8forged")

        Fetcher.take(stage.operator, payload, twice)
        return True

    stage.operator.act = act
    for number in range(3):
        assert stage.tell(stage.b.url, f"secret {number}") == "heard"
    assert stage.told()[-3:] == ["secret 0", "secret 1", "secret 2"]
    assert len(answers) >= 3


@pytest.mark.spec("T-40", "CHAN-12", "MAIL-48")
def test_a_host_that_never_answers(stage: Stage) -> None:
    """A hundred calls to another enclave hang: 64 reach the host, and clients are served all the while."""
    held: list[Answer] = []

    def act(payload: bytes, answer: Answer) -> bool:
        held.append(answer)
        return True

    stage.operator.act = act
    with Client(stage.a.url, constraint=stage.calling) as client, ThreadPoolExecutor(1) as pool:
        ended = pool.submit(client.call, "many", stage.b.url, stage.called, 100)
        with Client(stage.a.url, constraint=stage.calling) as other:
            while len(held) < 64:
                assert other.call("alive") is True
            assert other.call("alive") is True
        assert len(held) == 64
        assert ended.result(60) == 100
    stage.operator.act = lambda payload, answer: False
    assert stage.tell(stage.b.url) == "heard"


@pytest.mark.spec("T-40")
def test_a_host_that_gives_another_info_as_the_enclaves_own(stage: Stage) -> None:
    """It cannot have the enclave introduce itself as another; it can only keep it from introducing itself."""

    def act(payload: bytes, answer: Answer) -> bool:
        if _codec._decoder(dict[str, Any]).decode(payload)["url"]:
            return False
        answer(b"\x00\xc8" + stage.info(stage.c))
        return True

    stage.allow(stage.calling)
    stage.operator.act = act
    assert "cannot introduce itself" in stage.tell(stage.b.url)


def introduce(stage: Stage, info: bytes) -> CallError:
    """An ordinary client, with a key of its own, shows that info."""
    with Client(stage.b.url, constraint=stage.called) as client:
        with pytest.raises(CallError) as caught:
            client._run(lambda: client._core.introduce(info, topic="t"))
        with pytest.raises(CallError, match="for enclaves that introduced themselves as friend"):
            client.call("tell", "from a liar")
    assert "from a liar" not in stage.told()
    return caught.value


@pytest.mark.spec("T-41", "MAIL-46")
def test_the_introduction_of_another_enclave(stage: Stage) -> None:
    """Instance info is public: whoever shows it has to hold the key in it."""
    error = introduce(stage, stage.info(stage.a))
    assert (error.type_name, str(error)) == (
        "NotIntroduced",
        "the introduction is of another enclave than the one that opened this channel",
    )


@pytest.mark.spec("T-41", "MAIL-46")
def test_a_key_of_its_own_in_the_introduction_of_another(stage: Stage) -> None:
    info = parse_instance_info(stage.info(stage.a))
    with Client(stage.b.url, constraint=stage.called) as client:
        claims = msgspec.structs.replace(parse_claims(info.claims), signing_key=client.identity.public)
        forged = msgspec.structs.replace(info, claims=claims.encode()).encode()
        with pytest.raises(CallError, match="the evidence covers other claims than these"):
            client._run(lambda: client._core.introduce(forged, topic="t"))
        with pytest.raises(CallError, match="introduced themselves"):
            client.call("tell", "from a liar")


@pytest.mark.spec("T-41", "MAIL-45")
@pytest.mark.parametrize("size", [0, 1, 1000, 256 * 1024 + 1])
def test_what_is_no_introduction(stage: Stage, size: int) -> None:
    assert introduce(stage, bytes(size)).type_name == "InvalidCall"


@pytest.mark.spec("T-41", "MAIL-46")
def test_an_enclave_that_is_another_program(stage: Stage) -> None:
    """With its own introduction it is refused by the constraint, with the friend's by its key."""
    with Client(stage.c.url, constraint=stage.impostor) as client:
        said = client.call("tell_as", stage.b.url, stage.called, stage.info(stage.c))
        assert said.startswith("CallError NotIntroduced: refused as every caller")
        assert "this is another program" in said
        said = client.call("tell_as", stage.b.url, stage.called, stage.info(stage.a))
        assert said.endswith("of another enclave than the one that opened this channel")
    assert "from an impostor" not in stage.told()


@pytest.mark.spec("T-41", "MAIL-47")
def test_an_introduction_again(stage: Stage) -> None:
    """The operator replays the mail by which an enclave introduced itself, after it was taken back."""
    requests = stage.b.operator.requests
    requests.clear()
    # A call so that the friend introduces itself: what it was accepted under has been replaced.
    assert stage.tell(stage.b.url) == "heard"
    recorded = list(requests)
    stage.allow("C:" + "0" * 64 + " SEC:INSECURE")
    assert len(recorded) >= 2
    for mail in recorded:
        stage.b.run(stage.b.operator.inject("POST", "/mail", mail))
    assert stage.tell(stage.b.url, "after it was taken back").startswith("CallError NotIntroduced: refused as every")
    assert "after it was taken back" not in stage.told()


def introduction(machine: Machine, key: bytes) -> bytes:
    return info(machine, claims(signing_key=key))


@pytest.mark.anyio
@pytest.mark.spec("T-41", "MAIL-49")
async def test_a_clock_that_is_turned_back_makes_no_old_evidence_good_again(tmp_path: Path) -> None:
    """He kept evidence of a platform that has been revoked since, and turns back to when it was good."""
    then, revoked, today = NOW - timedelta(days=300), b"r" * 32, b"t" * 32
    kept = introduction(Machine.open(tmp_path / "revoked", now=then), revoked)
    fresh = introduction(Machine.open(tmp_path / "today", now=NOW), today)
    told = then
    await Callers({"friend": INSECURE}, Clock(lambda: told)).introduce(revoked, kept)
    callers = Callers({"friend": INSECURE}, Clock(lambda: told))
    told = NOW
    await callers.introduce(today, fresh)
    told = then
    with pytest.raises(NotIntroduced, match="expired"):
        await callers.introduce(revoked, kept)
    assert callers.find(revoked) is None


@pytest.mark.anyio
@pytest.mark.spec("T-21", "MAIL-48")
async def test_one_stranger_does_not_hold_the_place_of_every_introduction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine.open(tmp_path / "machine", now=NOW)
    callers = Callers({"yes": INSECURE}, Clock(lambda: NOW))
    go = threading.Event()
    verify = _callers.verify_instance

    def slowly(*args: Any, **options: Any) -> Any:
        assert go.wait(30)
        return verify(*args, **options)

    monkeypatch.setattr(_callers, "verify_instance", slowly)
    stranger, honest = b"s" * 32, b"h" * 32
    own = introduction(machine, stranger)
    flood = [asyncio.create_task(callers.introduce(stranger, own)) for _ in range(_callers.MAX_WAITING)]
    await asyncio.sleep(0)
    one = asyncio.create_task(callers.introduce(honest, introduction(machine, honest)))
    await asyncio.sleep(0)
    go.set()
    await one
    assert callers.find(honest) is not None
    refused = [e for e in await asyncio.gather(*flood, return_exceptions=True) if e is not None]
    assert len(refused) == _callers.MAX_WAITING - _callers.MAX_WAITING_EACH
    # It may come again, and of those who do not wait nothing is kept.
    await callers.introduce(stranger, own)
    assert not callers._waiting
