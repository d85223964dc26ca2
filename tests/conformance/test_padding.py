"""Bodies of one bucket are one number of bytes, through a real host and enclave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._wiretap import Wiretap, wiretap

from conclave._framing import Frame, FrameReader, Kind
from conclave.bundle import Bundle
from conclave.client import AsyncClient, Client, buckets, fixed, padme
from conclave.enclave import Enclave, RpcError, rpc
from conclave.errors import AppraisalError, CallError
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = '''
from conclave.enclave import Enclave, Mail, RpcError, buckets, fixed, rpc


class Refused(RpcError):
    """Declared: its message reaches the caller."""


class Shy(Enclave):
    padding = buckets(1024, 8192)

    def admit(self, sender: bytes, topic: str) -> bool:
        return topic != "forbidden"

    def on_mail(self, mail: Mail) -> bytes:
        return bytes(int.from_bytes(mail.body[:4], "big"))

    @rpc(padding=fixed(2048))
    def one(self, act: str, size: int, more: bytes = b"") -> bytes:
        if act == "refuse":
            raise Refused("x" * size)
        if act == "fail":
            raise RuntimeError("x" * size)
        return bytes(size)

    @rpc
    def some(self, size: int, more: bytes = b"") -> bytes:
        if size > 10**6:
            raise Refused("too much")
        return bytes(size)
'''


class Refused(RpcError):
    """Declared: its message reaches the caller."""


class Shy(Enclave):
    padding = buckets(1024, 8192)

    @rpc(padding=fixed(2048))
    def one(self, act: str, size: int, more: bytes = b"") -> bytes: ...

    @rpc
    def some(self, size: int, more: bytes = b"") -> bytes: ...


Only = Callable[[Bundle], str]
HEADER, TAG, OPENING, FRAMED = 68, 16, 2785, 4


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("shy", SOURCE)


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle) as running:
        yield running


@pytest.fixture(scope="module")
def tap(server: HostServer) -> Iterator[Wiretap]:
    with wiretap(server.url) as running:
        yield running


@pytest.fixture(scope="module")
def line(bundle: Bundle, only: Only) -> str:
    return only(bundle)


def _answers(call: Callable[..., object], *args: object) -> str:
    """The type of the error, or nothing."""
    try:
        call(*args)
    except CallError as error:
        return error.type_name
    return ""


# Every way in which a call of one method can go.
WAYS: list[tuple[str, Callable[[Any, Client], object]]] = [
    ("", lambda stub, _: stub.one("return", 0)),
    ("", lambda stub, _: stub.one("return", 1900, bytes(900))),
    ("Refused", lambda stub, _: stub.one("refuse", 1)),
    ("Refused", lambda stub, _: stub.one("refuse", 4000)),
    ("error", lambda stub, _: stub.one("fail", 10)),
    ("DoesNotFit", lambda stub, _: stub.one("return", 2048)),
    ("DoesNotFit", lambda stub, _: stub.one("return", 17 * 1024 * 1024)),
    ("InvalidCall", lambda _, client: client.call("one", 5, 5, padding=fixed(2048))),
    ("InvalidCall", lambda _, client: client.call("one", padding=fixed(2048))),
]


@pytest.mark.spec("MAIL-1", "MAIL-41", "RPC-12", "RPC-13")
def test_no_way_a_call_can_go_shows_in_any_size(tap: Wiretap, line: str) -> None:
    shapes: dict[str, set[Any]] = {"first": set(), "later": set()}
    for index in range(len(WAYS)):
        with Client(tap.url, constraint=line) as client:
            stub, before = client.stub(Shy), len(tap.mails())
            for kind, call in (WAYS[index], WAYS[0], WAYS[index]):
                assert _answers(call, stub, client) == kind
            first, *later = tap.mails()[before:]
            assert len(later) == 2
            shapes["first"].add(first.shape)
            shapes["later"] |= {e.shape for e in later}
    # The method's padding decides of everything, the head's digits and the framing of the body included.
    assert len(shapes["first"]) == len(shapes["later"]) == 1
    ((request, answer),) = shapes["later"]
    assert request[1] == HEADER + 2048 + TAG
    assert answer[1] == FRAMED + HEADER + 2048 + TAG
    assert answer[2] == ()
    assert shapes["first"].pop()[0][1] == request[1] + OPENING


@pytest.mark.spec("MAIL-44", "RPC-12")
def test_each_answer_is_one_frame(monkeypatch: pytest.MonkeyPatch, server: HostServer, line: str) -> None:
    frames: list[Frame] = []
    received = FrameReader.received

    def record(reader: FrameReader, size: int) -> list[Frame]:
        found = received(reader, size)
        frames.extend(found)
        return found

    with Client(server.url, constraint=line) as client:
        stub = client.stub(Shy)
        stub.one("return", 0)
        monkeypatch.setattr(FrameReader, "received", record)
        for _, call in WAYS:
            _answers(call, stub, client)
        # A refusal looks alike.
        assert (
            _answers(lambda: client.call("one", "return", 1, topic="forbidden", padding=fixed(2048))) == "NotAdmitted"
        )
    assert [(f.kind, len(f.payload)) for f in frames] == [(Kind.DONE, HEADER + 2048 + TAG)] * (len(WAYS) + 1)


@pytest.mark.spec("MAIL-1", "RPC-12")
@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 8192 - 40 - 8),
    st.one_of(st.integers(0, 900), st.integers(1100, 8000)),
)
def test_buckets_show_the_bucket_only(tap: Wiretap, line: str, size: int, more: int) -> None:
    padding = buckets(1024, 8192)
    with Client(tap.url, constraint=line) as client:
        stub, before = client.stub(Shy), len(tap.mails())
        for _ in range(2):
            assert stub.some(size, bytes(more)) == bytes(size)
        first, later = tap.mails()[before:]
    result = size + (2 if size < 256 else 3)
    for opening, exchange in ((OPENING, first), (0, later)):
        assert len(exchange.request.body) == HEADER + opening + (1024 if more <= 900 else 8192) + TAG
        assert len(exchange.answer.body) == FRAMED + HEADER + padding(40 + result) + TAG
        assert exchange.answer.chunks == ()


@pytest.mark.spec("MAIL-41", "RPC-13")
def test_an_answer_that_does_not_fit_takes_the_largest_size(tap: Wiretap, line: str) -> None:
    with Client(tap.url, constraint=line) as client:
        stub = client.stub(Shy)
        stub.some(1)
        before = len(tap.mails())
        assert _answers(lambda: stub.some(8100)) == ""
        assert _answers(lambda: stub.some(8192)) == "DoesNotFit"
        assert _answers(lambda: stub.some(10**6)) == "DoesNotFit"
        assert len({e.shape for e in tap.mails()[before:]}) == 1
        # An error of the author that fits the smaller one goes out in it, as its result would.
        assert _answers(lambda: stub.some(2 * 10**6)) == "Refused"
        assert len(tap.mails()[-1].answer.body) == FRAMED + HEADER + 1024 + TAG


@pytest.mark.spec("MAIL-41")
def test_a_call_that_does_not_fit_is_refused_here_and_nothing_is_sent(tap: Wiretap, line: str) -> None:
    with Client(tap.url, constraint=line) as client:
        stub = client.stub(Shy)
        stub.one("return", 1)
        before = len(tap.mails())
        with pytest.raises(ValueError, match="does not fit the padding 'fixed 2048', headers of 40 bytes included"):
            stub.one("return", 1, bytes(2048))
        assert len(tap.mails()) == before
        assert stub.one("return", 1) == bytes(1)
        counters = [int.from_bytes(e.request.body[24:32], "big") for e in tap.mails()[-2:]]
        assert counters[1] == counters[0] + 1


@pytest.mark.spec("RPC-12")
def test_who_decides_where_no_method_does(tap: Wiretap, line: str) -> None:
    with Client(tap.url, constraint=line, padding=fixed(3000)) as client:
        client.call("some", 1)
        for call, request, answer in (
            (lambda: client.call("some", 1), 3000, 1024),
            (lambda: client.call("some", 1, padding=fixed(700)), 700, 1024),
            (lambda: client.call("some", 1, padding=padme), 256, 1024),
            (lambda: client.call("missing", bytes(2000)), 3000, 1024),
            (lambda: client.mail(bytes(4)), 3000, 1024),
            (lambda: client.mail((5000).to_bytes(4, "big"), padding=fixed(500)), 500, 8192),
            (lambda: client.mail((9000).to_bytes(4, "big")), 3000, 8192),
            (lambda: client.stub(Shy).some(1), 1024, 1024),
        ):
            before = len(tap.mails())
            _answers(call)
            (exchange,) = tap.mails()[before:]
            assert len(exchange.request.body) == HEADER + request + TAG
            assert len(exchange.answer.body) == FRAMED + HEADER + answer + TAG


@pytest.mark.spec("RPC-6", "RPC-12")
def test_a_stub_with_another_padding_is_refused(server: HostServer, line: str) -> None:
    class Other(Shy):
        @rpc(padding=fixed(4096))
        def one(self, act: str, size: int, more: bytes = b"") -> bytes: ...

    with Client(server.url, constraint=line) as client, pytest.raises(AppraisalError, match="interface"):
        client.stub(Other)


@pytest.mark.anyio
async def test_the_asynchronous_client_pads_alike(tap: Wiretap, line: str) -> None:
    client = AsyncClient(tap.url, constraint=line, padding=fixed(3000))
    try:
        stub = await client.stub(Shy)
        await stub.one("return", 1)
        before = len(tap.mails())
        await stub.one("return", 2)
        await client.call("some", 1)
        await client.mail(bytes(4), padding=fixed(600))
        sizes = [len(e.request.body) - HEADER - TAG for e in tap.mails()[before:]]
        assert sizes == [2048, 3000, 600]
    finally:
        await client.aclose()
