"""An operator, and a client, who act on an ASGI application's requests: T-44. Real host, real enclave."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2
import pytest

from conclave.bundle import Bundle
from conclave.client import Identity, MailTransport
from conclave.errors import AppraisalError
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
# /// script
# [tool.conclave]
# entry = "diary:app"
# ///
import os

entries = {}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    mine = entries.setdefault(scope["extensions"]["conclave"]["sender"], [])
    if scope["path"] == "/die":
        os._exit(9)
    message = await receive()
    if scope["method"] == "POST":
        mine.append(message["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b",".join(mine) + b" " + repr(scope["client"]).encode()})
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
