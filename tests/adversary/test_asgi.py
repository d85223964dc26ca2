"""An operator, and a client, who act on an ASGI application's requests: T-44. Real host, real enclave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from conclave._chunkheader import CHUNK_MAGIC
from conclave.bundle import Bundle
from conclave.client import Client, Identity, MailTransport
from conclave.enclave import asgi
from conclave.errors import AppraisalError, CallError, StreamError
from conclave.rpc.http import HeadReader, HttpExchange, RequestHead
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
# /// script
# [tool.conclave]
# entry = "diary:app"
# ///
import asyncio, os, resource

entries = {}
gone = []


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    mine = entries.setdefault(scope["extensions"]["conclave"]["sender"], [])
    if scope["path"] == "/die":
        os._exit(9)
    if scope["path"] in globals():
        return await globals()[scope["path"]](scope, receive, send)
    message = await receive()
    if scope["method"] == "POST":
        mine.append(message["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b",".join(mine) + b" " + repr(scope["client"]).encode()})


async def pages(scope, receive, send):
    # 40 parts, each with its number.
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for n in range(40):
        await send({"type": "http.response.body", "body": b"%07d" % n + bytes(9993), "more_body": n < 39})


async def flood(scope, receive, send):
    # A response that never ends, as fast as it is taken.
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        while True:
            await send({"type": "http.response.body", "body": bytes(1024 * 1024), "more_body": True})
    except OSError:
        gone.append("flood")


async def take(scope, receive, send):
    # Reads what comes of a body, says how it ended.
    seen, size = [], 0
    while not seen or seen[-1] == "http.request":
        message = await receive()
        seen.append(message["type"])
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    entries["last"] = [seen[-1], size]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size})


async def facts(scope, receive, send):
    known = [entries.get("last"), len(gone), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, scope["state"]]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": repr(known).encode()})


for handler in (pages, flood, take, facts):
    globals()["/" + handler.__name__] = handler
"""


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("diary", SOURCE)


@pytest.fixture(scope="module")
def running(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle, hostile=True, restart=True) as server:
        yield server


@pytest.fixture
def server(running: HostServer) -> Iterator[HostServer]:
    running.operator.behave()
    yield running
    running.operator.behave()


@pytest.fixture
def person(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> Callable[..., httpx2.Client]:
    def make(**options: object) -> httpx2.Client:
        options = {"constraint": only(bundle), "timeout_seconds": 5.0, **options}
        return httpx2.Client(transport=MailTransport(server.url, **options), base_url="https://diary")

    return make


def flipped(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.spec("T-44", "ASGI-5")
def test_nobody_writes_into_anothers_diary(person: Callable[..., httpx2.Client], server: HostServer) -> None:
    ada, eve = Identity.generate(), Identity.generate()
    with person(identity=ada) as hers, person(identity=eve) as theirs:
        hers.post("/", content=b"secret")
        forged = {"sender": ada.public.hex(), "x-real-ip": "127.0.0.1", "x-forwarded-for": ada.public.hex()}
        answer = theirs.post("/", content=b"mine", headers=forged, params={"sender": ada.public.hex()})
        assert answer.text == "mine None"
        assert hers.get("/").text == "secret None"
        # The operator gives the enclave her mails again, as often as it likes.
        for mail in list(server.operator.requests):
            server.run(server.operator.inject("POST", "/mail", mail))
        assert hers.get("/").text == "secret None"


@pytest.mark.spec("T-44")
def test_requests_that_were_altered_reach_nobody(person: Callable[..., httpx2.Client], server: HostServer) -> None:
    with person() as client:
        client.get("/")
        server.operator.on_request = flipped
        with pytest.raises(httpx2.TransportError):
            client.post("/", content=b"altered")
        server.operator.behave()
        assert client.get("/").text.startswith(" ")


@pytest.mark.spec("T-44")
def test_responses_that_were_altered_or_anothers_are_none(
    person: Callable[..., httpx2.Client], server: HostServer
) -> None:
    with person() as hers, person() as theirs:
        hers.post("/", content=b"secret")
        theirs.get("/")
        anothers = server.operator.answers[-1]
        for changed in (flipped, lambda answer: anothers, lambda answer: b"", lambda answer: answer[:-40]):
            server.operator.on_answer = changed
            with pytest.raises(httpx2.TransportError):
                hers.get("/")
            server.operator.behave()
            assert hers.get("/").text == "secret None"


@pytest.mark.spec("ASGI-12")
def test_a_request_is_not_sent_to_another_boot(person: Callable[..., httpx2.Client]) -> None:
    with person(attempts=8) as client:
        client.post("/", content=b"first")
        with pytest.raises(httpx2.TransportError):
            client.post("/die", content=b"x")
        # The next one finds the new instance, which knows nothing of the old.
        for _ in range(50):
            try:
                assert client.get("/").text == " None"
                break
            except httpx2.TransportError:
                continue
        else:
            pytest.fail("the client never found the new instance")


@pytest.mark.spec("T-44")
def test_a_redirect_stays_with_the_enclave(person: Callable[..., httpx2.Client]) -> None:
    with person() as client:
        assert client.get("http://somewhere.example:99/else").text == " None"


@pytest.mark.spec("ASGI-11")
def test_nothing_of_a_request_is_outside_mail(person: Callable[..., httpx2.Client], server: HostServer) -> None:
    with person() as client:
        client.post("/WHERE-IT-GOES?q=WHAT-IS-ASKED", content=b"WHAT-IS-SAID", headers={"x-secret": "WHO-IT-IS"})
    seen = b"".join(server.operator.requests + server.operator.answers)
    for secret in (b"WHERE-IT-GOES", b"WHAT-IS-ASKED", b"WHAT-IS-SAID", b"WHO-IT-IS", b"request", b"POST"):
        assert secret not in seen


def test_another_enclave_is_refused_as_such(server: HostServer) -> None:
    transport = MailTransport(server.url, constraint=f"C:{'00' * 32} SEC:INSECURE")
    with httpx2.Client(transport=transport, base_url="https://diary") as client, pytest.raises(AppraisalError):
        client.get("/")


Part = Callable[[bytes], list[bytes]]


def until(look: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    """What is seen once it is enough."""
    for _ in range(1000):
        seen = look()
        if enough(seen):
            return seen
        time.sleep(0.02)
    pytest.fail(f"it stays at {seen}")


@pytest.fixture
def streaming(server: HostServer) -> Iterator[HostServer]:
    """The operator lets answers go on as they come, and has its hand on each part of them."""
    server.operator.streaming = True
    yield server
    server.operator.streaming = False


def is_chunk(part: bytes) -> bool:
    return part.startswith(CHUNK_MAGIC)


def without_the_last(kept: list[bytes]) -> Part:
    """Each chunk leaves when the next has come; the one that says that this is all never does."""

    def changed(part: bytes) -> list[bytes]:
        if not is_chunk(part):
            return [part]
        kept.append(part)
        return kept[-2:-1]

    return changed


def in_pairs(kept: list[bytes]) -> Part:
    """Every two chunks change places."""

    def changed(part: bytes) -> list[bytes]:
        if not is_chunk(part):
            return [part]
        kept.append(part)
        return [kept.pop(), kept.pop()] if len(kept) == 2 else []

    return changed


def in_pieces(kept: list[bytes]) -> Part:
    return lambda part: [part[:-1]] if is_chunk(part) else [part]


@pytest.mark.spec("T-44", "ASGI-7")
@pytest.mark.parametrize("attack", [without_the_last, in_pairs, in_pieces])
def test_a_response_is_whole_or_an_error(
    person: Callable[..., httpx2.Client], streaming: HostServer, attack: Callable[[list[bytes]], Part]
) -> None:
    with person() as client:
        assert len(client.get("/pages").content) == 400_000
        streaming.operator.on_part = attack([])
        with pytest.raises(httpx2.ReadError) as raised:
            client.get("/pages")
        assert isinstance(raised.value.__cause__, StreamError)
        # Nor is it taken for whole where it is read as it comes; what was read is a beginning of it.
        streaming.operator.on_part = attack([])
        got = b""
        with pytest.raises(httpx2.ReadError), client.stream("GET", "/pages") as response:  # noqa: PT012
            for part in response.iter_raw():
                got += part
        assert len(got) <= 400_000
        assert [got[at : at + 7] for at in range(0, len(got) - 7, 10_000)] == [
            b"%07d" % n for n in range(-(-(len(got) - 7) // 10_000))
        ]


@pytest.mark.spec("T-44")
def test_answers_of_one_client_are_not_swapped(person: Callable[..., httpx2.Client], streaming: HostServer) -> None:
    """Both are authentic, of the same session; each answers its own request, and no other one."""
    operator = streaming.operator
    with person() as client:
        first = len(operator.parts)
        client.post("/", content=b"one")
        answered = operator.parts[first:]
        assert len(answered) >= 2
        # All of the answer before; its head before the new body; the new head before its body.
        told = iter(answered)
        for attack in (
            lambda part: answered if not is_chunk(part) else [],
            lambda part: [next(told, part)] if not is_chunk(part) else [part],
            lambda part: [part, *answered[1:]] if not is_chunk(part) else [],
        ):
            operator.on_part = attack
            with pytest.raises(httpx2.TransportError):
                client.post("/", content=b"two")
        operator.behave()
        assert client.get("/").text == "one,two,two,two None"


@pytest.mark.spec("T-44", "ASGI-6")
def test_a_body_that_the_operator_cuts_is_no_body(person: Callable[..., httpx2.Client], streaming: HostServer) -> None:
    body = [bytes(65536)] * 16
    with person() as client:
        assert client.post("/take", content=iter(body)).text == str(16 * 65536)
        taken: list[bytes] = []

        def only_the_first(upload: bytes) -> bytes | None:
            taken.append(upload)
            return upload if len(taken) == 1 else None

        streaming.operator.on_upload = only_the_first
        with pytest.raises(httpx2.TransportError):
            client.post("/take", content=iter(body * 8), timeout=httpx2.Timeout(5, write=1, read=1))
        streaming.operator.behave()
        last = until(lambda: eval(client.get("/facts").text)[0], lambda last: last[0] == "http.disconnect")
        assert last[1] < 8 * 16 * 65536


@pytest.fixture
def raw(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> Iterator[Callable[..., Iterator[bytes]]]:
    """A client of its own making: what it writes into a head is what goes."""
    with Client(server.url, constraint=only(bundle), timeout_seconds=5.0) as made:
        made.stub(HttpExchange)

        def send(path: bytes, body: bytes | Iterator[bytes] = b"", *headers: tuple[bytes, bytes]) -> Iterator[bytes]:
            head = RequestHead(method="POST", path=path, query=b"", headers=list(headers))
            if isinstance(body, bytes):
                return made.call_stream("request", head, body)
            return made.call_stream("upload", head, upload=body)

        yield send


def status(reply: Iterable[bytes]) -> int:
    whole = HeadReader().feed(b"".join(reply))
    assert whole is not None
    return whole[0].status


@pytest.mark.spec("T-44", "ASGI-6")
def test_a_body_is_the_one_that_was_announced(
    raw: Callable[..., Iterator[bytes]], person: Callable[..., httpx2.Client], streaming: HostServer
) -> None:
    assert status(raw(b"/take", b"12345", (b"content-length", b"4"))) == 400
    assert status(raw(b"/take", b"12345", (b"content-length", b"6"))) == 400
    with person() as other:
        for parts in ([b"1234"], [b"12345", b"6"], []):
            # To the application it broke off, and its response is nobody's.
            with pytest.raises(CallError):
                list(raw(b"/take", iter(parts), (b"content-length", b"5")))
            assert eval(other.get("/facts").text)[0][0] == "http.disconnect"
        assert status(raw(b"/take", iter([b"123", b"45"]), (b"content-length", b"5"))) == 200
        assert eval(other.get("/facts").text)[0] == ["http.request", 5]


@pytest.mark.spec("T-44", "ASGI-3")
@pytest.mark.parametrize(
    "headers",
    [
        [(b"transfer-encoding", b"chunked")],
        [(b"Connection", b"close, x-real-ip")],
        [(b"trailer", b"content-length")],
        [(b"host", b"diary"), (b"Host", b"another")],
        [(b"authorization", b"Bearer hers"), (b"Authorization", b"Bearer mine")],
        [(b"content-type", b"text/plain"), (b"content-type", b"application/json")],
        [(b"content-length", b"5"), (b"content-length", b"5")],
    ],
)
def test_headers_that_two_readers_read_differently(
    raw: Callable[..., Iterator[bytes]], headers: list[tuple[bytes, bytes]]
) -> None:
    assert status(raw(b"/take", b"12345")) == 200
    assert status(raw(b"/take", b"12345", *headers)) == 400


@pytest.mark.anyio
@pytest.mark.spec("T-44", "ASGI-3")
async def test_requests_that_go_on_behind_their_responses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client takes its response, which frees its stream, and asks again; what the application does then goes on."""
    go = asyncio.Event()

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            await go.wait()

    enclave = asgi.enclave_of(application)()
    await enclave.on_start()

    async def ask(sender: bytes) -> int:
        head = RequestHead(method="GET", path=b"/", query=b"", headers=[])
        return status([part async for part in enclave._handle(head, b"", sender)])

    one = [await ask(b"eve") for _ in range(asgi.MAX_OF_ONE + 2)]
    assert one == [200] * asgi.MAX_OF_ONE + [503] * 2
    # Others are served, up to what there may be in all, of however many she invents.
    monkeypatch.setattr(asgi, "MAX_REQUESTS", asgi.MAX_OF_ONE + 5)
    assert [await ask(b"%d" % n) for n in range(7)] == [200] * 5 + [503] * 2
    go.set()
    await enclave.on_stop()
    assert await ask(b"eve") == 200


@pytest.mark.spec("T-44", "ASGI-5")
def test_nothing_in_a_head_is_the_scope(raw: Callable[..., Iterator[bytes]]) -> None:
    forged = [(name, b"10.0.0.1:1") for name in (b"extensions", b"state", b"sender", b"conclave", b"client")]
    whole = HeadReader().feed(b"".join(raw(b"/facts", b"", *forged)))
    assert whole is not None
    assert eval(whole[1])[3] == {}
    whole = HeadReader().feed(b"".join(raw(b"/", b"mine", *forged)))
    assert whole is not None
    assert whole[1] == b"mine None"


@pytest.mark.spec("T-44", "T-35", "ASGI-9")
def test_responses_that_nobody_reads_fill_nothing(
    person: Callable[..., httpx2.Client], streaming: HostServer, bundle: Bundle
) -> None:
    """One client takes as many endless responses as it may, and reads of each what it must; others are served."""
    with person() as other:
        _, before, memory, _ = eval(other.get("/facts").text)
        with person() as greedy, ExitStack() as stack:
            with ThreadPoolExecutor(8) as pool:
                list(
                    pool.map(lambda _: stack.enter_context(greedy.stream("GET", "/flood", timeout=30)), range(32)),
                )
            with pytest.raises(httpx2.PoolTimeout):
                greedy.get("/", timeout=httpx2.Timeout(5, pool=0.1))
            assert other.get("/").text == " None"
            _, _, now, _ = eval(other.get("/facts").text)
            assert now - memory < 256
        # All of them are told that she is gone.
        until(lambda: eval(other.get("/facts").text)[1], lambda told: told == before + 32)


@pytest.mark.spec("T-44", "ASGI-9")
def test_the_head_of_an_endless_response_stops_nobody(
    person: Callable[..., httpx2.Client], streaming: HostServer
) -> None:
    with person() as hostile, person() as other:
        before = eval(other.get("/facts").text)[1]
        with pytest.raises(httpx2.ReadTimeout):
            hostile.head("/flood", timeout=httpx2.Timeout(5, read=1))
        until(lambda: eval(other.get("/facts").text)[1], lambda told: told == before + 1)
