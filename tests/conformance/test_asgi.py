"""An ASGI application in a real enclave, over a real host: what the application sees, and what its clients get."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from conclave.bundle import Bundle
from conclave.client import AsyncMailTransport, Client, Identity, MailTransport
from conclave.errors import AppraisalError, PlatformError, StreamError
from conclave.rpc.http import HeadReader, HttpExchange, RequestHead
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
# /// script
# [tool.conclave]
# entry = "served:app"
# ///
import asyncio, contextvars, json, resource

started = []
after = []
gate = asyncio.Event()
released = asyncio.Event()
listened = asyncio.Event()
left = []
who = contextvars.ContextVar("who")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            started.append(message["type"])
            scope["state"]["started"] = len(started)
            await send({"type": message["type"] + ".complete"})
    await globals()[scope["path"].strip("/").split("/")[0]](scope, receive, send)


async def answer(send, body, status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read(receive):
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message["body"])
        if not message["more_body"]:
            return parts


async def scope(scope, receive, send):
    await answer(send, repr(scope).encode())


async def echo(scope, receive, send):
    await answer(send, b"".join(await read(receive)))


async def moves(scope, receive, send):
    await answer(send, b"", 307, [(b"location", b"http://elsewhere.example:99/echo")])


async def headers(scope, receive, send):
    made = [(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"X-Last", b"\\xe9"), (b"Connection", b"close")]
    await answer(send, b"", 201, made)


async def parts(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for n in range(100):
        await send({"type": "http.response.body", "body": b"%d," % n, "more_body": True})
    await send({"type": "http.response.body"})


async def fails(scope, receive, send):
    raise ValueError("SECRET-IN-AN-ERROR")


async def leaves(scope, receive, send):
    raise SystemExit(3)


async def silent(scope, receive, send):
    pass


async def half(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise ValueError("SECRET-IN-AN-ERROR")


async def sized(scope, receive, send):
    first, second = scope["query_string"].split(b",")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": first, "more_body": True})
    await send({"type": "http.response.body", "body": second})


async def wide(scope, receive, send):
    await answer(send, b"", 200, [(b"x-wide", b"x" * 60_000)])


async def twice(scope, receive, send):
    await answer(send, b"once")
    await answer(send, b"again")


async def empty(scope, receive, send):
    await answer(send, b"not for you", int(scope["query_string"] or b"200"), [(b"content-length", b"11")])


async def background(scope, receive, send):
    await answer(send, b"soon")
    await gate.wait()
    after.append((await receive())["type"])


async def opens(scope, receive, send):
    gate.set()
    await asyncio.sleep(0)
    while not after:
        await asyncio.sleep(0.01)
    await answer(send, repr(after).encode())


async def context(scope, receive, send):
    mine = scope["query_string"]
    who.set(mine)
    for _ in range(5):
        await asyncio.sleep(0.01)
        assert who.get() is mine
    await answer(send, await asyncio.to_thread(who.get))


async def stays(scope, receive, send):
    await answer(send, b"")
    await released.wait()


async def releases(scope, receive, send):
    released.set()
    await answer(send, b"")


async def slowly(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await listened.wait()
    await send({"type": "http.response.body", "body": b"second"})


async def listens(scope, receive, send):
    listened.set()
    await answer(send, b"")


async def endless(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    left.append((await receive())["type"])


async def who_left(scope, receive, send):
    while not left:
        await asyncio.sleep(0.01)
    await answer(send, left.pop().encode())


async def sums(scope, receive, send):
    before, size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    while (message := await receive())["type"] == "http.request":
        size += len(message["body"])
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    part = bytes(1024 * 1024)
    for _ in range(size // len(part)):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    await send({"type": "http.response.body", "body": b"%012d" % grown})


async def meet(scope, receive, send):
    global waiting
    waiting = globals().get("waiting", 0) + 1
    while waiting < 20:
        await asyncio.sleep(0.01)
    await answer(send, b"met")
"""

Only = Callable[[Bundle], str]


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("served", SOURCE)


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle) as running:
        yield running


@pytest.fixture
def transport(server: HostServer, bundle: Bundle, only: Only) -> MailTransport:
    return MailTransport(server.url, constraint=only(bundle))


@pytest.fixture
def client(transport: MailTransport) -> Iterator[httpx2.Client]:
    with httpx2.Client(transport=transport, base_url="http://app") as made:
        yield made


@pytest.fixture
def raw(server: HostServer, bundle: Bundle, only: Only) -> Iterator[Callable[..., tuple[int, bytes]]]:
    """A client that writes its own heads: status and body of the answer."""
    with Client(server.url, constraint=only(bundle)) as made:
        stub = made.stub(HttpExchange)

        def send(body: bytes = b"", **changed: Any) -> tuple[int, bytes]:
            head = RequestHead(**{"method": "POST", "path": b"/echo", "query": b"", "headers": [], **changed})
            whole = HeadReader().feed(b"".join(stub.request(head, body)))  # type: ignore[arg-type]
            assert whole is not None
            return whole[0].status, whole[1]

        yield send


@pytest.mark.spec("ASGI-1", "ASGI-10")
def test_the_scope_is_fixed_but_for_the_request(client: httpx2.Client, transport: MailTransport) -> None:
    sent = [
        ("X-Twice", "1"),
        ("x-twice", "2"),
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1;proto=http"),
    ]
    scope = eval(client.get("/scope/%E4%BD%A0/a%2Fb%20c?x=%31&y=a+b&x=2", headers=sent).text)
    headers = scope.pop("headers")
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/scope/你/a/b c",
        "raw_path": b"/scope/%E4%BD%A0/a%2Fb%20c",
        "query_string": b"x=%31&y=a+b&x=2",
        "root_path": "",
        "client": None,
        "server": ("enclave", 443),
        "state": {"started": 1},
        "extensions": {"conclave": {"sender": transport.identity.public}},
    }
    assert (b"host", b"app") in headers
    assert [v for n, v in headers if n == b"x-twice"] == [b"1", b"2"]
    assert not {b"connection", b"transfer-encoding"} & {n for n, _ in headers}


@pytest.mark.spec("ASGI-5")
def test_the_sender_is_the_key_of_the_session(server: HostServer, bundle: Bundle, only: Only) -> None:
    seen = []
    for identity in (Identity.generate(), Identity.generate()):
        transport = MailTransport(server.url, constraint=only(bundle), identity=identity)
        with httpx2.Client(transport=transport, base_url="http://app") as client:
            forged = {"conclave-sender": "00" * 32, "x-conclave-sender": "00" * 32}
            scope = eval(client.get("/scope?sender=00", headers=forged).text)
            seen.append((scope["extensions"]["conclave"]["sender"], identity.public))
    assert all(told == real for told, real in seen)
    assert seen[0] != seen[1]


def test_bodies_go_and_come_as_they_are(client: httpx2.Client) -> None:
    for size in (0, 1, 65_536, 3_000_000):
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert client.post("/echo", content=body).content == body
    assert client.post("/echo", content=iter([b"one", b"", b"two"])).content == b"onetwo"
    assert client.post("/echo", json={"a": [1]}).json() == {"a": [1]}


@pytest.mark.spec("ASGI-7")
def test_headers_of_a_response(client: httpx2.Client) -> None:
    response = client.get("/headers")
    assert response.status_code == 201
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert (b"x-last", b"\xe9") in response.headers.raw
    assert "connection" not in response.headers
    assert dict(client.cookies) == {"a": "1", "b": "2"}
    assert ("cookie", "a=1; b=2") in [(n.decode(), v.decode()) for n, v in eval(client.get("/scope").text)["headers"]]


@pytest.mark.spec("ASGI-7")
def test_parts_arrive_in_order(client: httpx2.Client) -> None:
    assert client.get("/parts").text == "".join(f"{n}," for n in range(100))


@pytest.mark.spec("ASGI-7")
def test_what_has_no_body(client: httpx2.Client) -> None:
    head = client.head("/empty")
    assert (head.content, head.headers["content-length"]) == (b"", "11")
    for status in (204, 304):
        assert client.get(f"/empty?{status}").content == b""


def test_a_response_comes_as_it_is_made(client: httpx2.Client) -> None:
    with client.stream("GET", "/slowly") as response:
        parts = response.iter_raw()
        assert next(parts) == b"first"
        # It goes on only now: nothing had waited for the end.
        client.get("/listens")
        assert b"".join(parts) == b"second"


@pytest.mark.spec("ASGI-9")
def test_a_client_that_leaves_is_a_disconnect(client: httpx2.Client) -> None:
    with client.stream("GET", "/endless") as response:
        assert next(response.iter_raw()) == b"begun"
    assert client.get("/who_left").text == "http.disconnect"

    # In the middle of its upload, too: that is never the end of a body (ASGI-6).
    def parts() -> Iterator[bytes]:
        yield b"some"
        raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="the caller's own"):
        client.post("/endless", content=parts())
    assert client.get("/who_left").text == "http.disconnect"


def test_bodies_are_not_held_in_memory(client: httpx2.Client) -> None:
    size = 96 * 1024 * 1024
    with client.stream("POST", "/sums", content=(bytes(1024 * 1024) for _ in range(96)), timeout=60) as response:
        taken, end = 0, b""
        for part in response.iter_raw():
            taken += len(part)
            end = (end + part)[-12:]
    assert taken == size + 12
    assert int(end) < 48 * 1024


def test_time_outs_are_those_of_httpx2(client: httpx2.Client) -> None:
    with client.stream("GET", "/endless", timeout=httpx2.Timeout(30, read=0.5)) as response:
        parts = response.iter_raw()
        assert next(parts) == b"begun"
        with pytest.raises(httpx2.ReadTimeout):
            next(parts)
    assert client.get("/who_left").text == "http.disconnect"


def test_a_redirect_brings_the_body_to_the_same_enclave(client: httpx2.Client) -> None:
    moved = client.post("/moves", content=b"x" * 1000, follow_redirects=True)
    assert (moved.content, len(moved.history)) == (b"x" * 1000, 1)
    assert moved.url.host == "elsewhere.example"


def test_a_proxy_of_the_environment_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, server: HostServer, bundle: Bundle, only: Only
) -> None:
    """What httpx2 would send through a proxy would not go inside mail."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    transport = MailTransport(server.url, constraint=only(bundle))
    with httpx2.Client(transport=transport, base_url="https://app") as client:
        assert client.post("/echo", content=b"inside").content == b"inside"


def test_bodies_that_wait_for_each_other_are_all_sent(client: httpx2.Client) -> None:
    together = threading.Barrier(12, timeout=30)

    def parts(n: int) -> Iterator[bytes]:
        yield b"%d," % n
        together.wait()
        yield b"%d" % n

    with ThreadPoolExecutor(12) as pool:
        answers = pool.map(lambda n: client.post("/echo", content=parts(n), timeout=60).content, range(12))
        assert list(answers) == [b"%d,%d" % (n, n) for n in range(12)]


@pytest.mark.spec("ASGI-7")
def test_a_response_that_is_closed_has_not_ended(client: httpx2.Client) -> None:
    with client.stream("GET", "/endless") as response:
        parts = response.iter_raw()
        assert next(parts) == b"begun"
        # As another thread may do, in between.
        response.stream.close()  # type: ignore[union-attr]
        with pytest.raises(httpx2.ReadError, match="closed before its end") as raised:
            next(parts)
        assert isinstance(raised.value.__cause__, StreamError)
    assert client.get("/who_left").text == "http.disconnect"


MISTAKES = {
    "app:missing": "error (bundle): app cannot be built: app has nothing called missing",
    "app:number": "error (bundle): app cannot be built: an ASGI application is an object that can be called, ",
    "app:make": "error (bundle): app cannot be built: an ASGI application is called with scope, receive and send; ",
    "broken:app": "error (bundle): broken cannot be built: broken.py, line 1: ModuleNotFoundError: ",
    "unlocked:app": "error (bundle): unlocked.lock is missing: run `conclave lock unlocked.py` to pin the dependencies",
    "nothing:app": "error (bundle): . has no nothing.py, and no pyproject.toml that says what belongs to nothing",
    "fails:app": "error (platform): the enclave refused to start: "
    "RuntimeError: the application says that it cannot start: no database",
}


@pytest.mark.parametrize("named", MISTAKES)
def test_mistakes_get_one_line(named: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("number = 3\n\ndef make():\n    return None\n")
    (tmp_path / "broken.py").write_text("import no_such\n")
    (tmp_path / "unlocked.py").write_text('# /// script\n# dependencies = ["starlette"]\n# ///\n')
    (tmp_path / "fails.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'no database'})\n"
    )
    command = [sys.executable, "-m", "conclave.cli", "run", named, "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(MISTAKES[named])


def test_nobody_is_there(bundle: Bundle, only: Only) -> None:
    transport = MailTransport("http://127.0.0.1:1", constraint=only(bundle), attempts=1)
    with httpx2.Client(transport=transport, base_url="http://app") as client, pytest.raises(httpx2.ConnectError):
        client.get("/")


@pytest.mark.spec("ASGI-8")
def test_what_an_application_raises_is_500_and_nothing_more(client: httpx2.Client) -> None:
    for path in ("/fails", "/leaves", "/silent", "/wide", "/no-such-path"):
        response = client.get(path)
        assert (response.status_code, response.text) == (500, "Internal Server Error"), path


@pytest.mark.spec("ASGI-7")
@pytest.mark.parametrize("path", ["/half", "/sized?12,345", "/sized?12,34567"])
def test_half_a_response_is_none(client: httpx2.Client, path: str) -> None:
    with pytest.raises(httpx2.RemoteProtocolError) as raised:
        client.get(path)
    assert "SECRET" not in str(raised.value)
    assert client.get("/sized?12,3456").text == "123456"


@pytest.mark.spec("ASGI-7")
def test_a_second_response_is_not_sent(client: httpx2.Client) -> None:
    assert client.get("/twice").text == "once"


@pytest.mark.spec("ASGI-9")
def test_background_work_goes_on_after_the_response(client: httpx2.Client) -> None:
    assert client.get("/background").text == "soon"
    assert client.get("/opens").text == "['http.disconnect']"


def test_requests_run_together_and_keep_their_context(server: HostServer, bundle: Bundle, only: Only) -> None:
    async def many() -> None:
        transport = AsyncMailTransport(server.url, constraint=only(bundle))
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            met = await asyncio.gather(*(client.get("/meet") for _ in range(20)))
            assert {r.text for r in met} == {"met"}
            mine = await asyncio.gather(*(client.get(f"/context?{n}") for n in range(20)))
            assert [r.text for r in mine] == [str(n) for n in range(20)]

    asyncio.run(many())


def test_one_transport_serves_many_threads(client: httpx2.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: client.post("/echo", content=b"%d" % n).content, range(40)))
    assert answers == [b"%d" % n for n in range(40)]


BAD = {
    "no method": (400, {"method": ""}),
    "a method in small letters": (400, {"method": "get"}),
    "a method with a space": (400, {"method": "GET /"}),
    "a long method": (400, {"method": "G" * 33}),
    "a relative path": (400, {"path": b"echo"}),
    "no path": (400, {"path": b""}),
    "another server": (400, {"path": b"https://elsewhere/echo"}),
    "an authority": (400, {"method": "CONNECT", "path": b"elsewhere:443"}),
    "a path with a zero": (400, {"path": b"/echo\0"}),
    "a path with a fragment": (400, {"path": b"/echo#x"}),
    "a star and more": (400, {"method": "OPTIONS", "path": b"*/"}),
    "a path with a space": (400, {"path": b"/e cho"}),
    "a path with a question mark": (400, {"path": b"/echo?x"}),
    "a path that is not ASCII": (400, {"path": b"/\xc3\xa4"}),
    "a query with a line": (400, {"query": b"a\r\nb"}),
    "a long path": (414, {"path": b"/" + b"a" * 16384}),
    "a long query": (414, {"query": b"a" * 16384}),
    "many headers": (431, {"headers": [(b"a", b"")] * 257}),
    "a large header": (431, {"headers": [(b"a", b"x" * 32768)]}),
    "a name with a colon": (400, {"headers": [(b"a:b", b"")]}),
    "no name": (400, {"headers": [(b"", b"x")]}),
    "a value with a line": (400, {"headers": [(b"a", b"b\r\nc: d")]}),
    "a value with spaces before it": (400, {"headers": [(b"a", b" b")]}),
    "a value with a tab after it": (400, {"headers": [(b"a", b"b\t")]}),
    "a folded value": (400, {"headers": [(b"a", b"b\n c")]}),
    "a name that is not ASCII": (400, {"headers": [(b"\xc3\xa4", b"x")]}),
    "a name of HTTP/2": (400, {"headers": [(b":authority", b"x")]}),
    "a size twice in one": (400, {"headers": [(b"content-length", b"0, 0")]}),
    "a size beyond counting": (400, {"headers": [(b"content-length", b"0" * 19)]}),
    "trailers": (400, {"headers": [(b"trailer", b"content-length")]}),
    "a value with a zero": (400, {"headers": [(b"a", b"\0")]}),
    "two hosts": (400, {"headers": [(b"host", b"a"), (b"Host", b"b")]}),
    "two sizes": (400, {"headers": [(b"content-length", b"0"), (b"content-length", b"0")]}),
    "no size": (400, {"headers": [(b"content-length", b"+0")]}),
    "another size": (400, {"headers": [(b"content-length", b"1")]}),
    "chunks": (400, {"headers": [(b"transfer-encoding", b"chunked")]}),
    "a connection": (400, {"headers": [(b"Connection", b"x-auth")]}),
    "a web socket": (501, {"headers": [(b"upgrade", b"websocket")]}),
}


@pytest.mark.spec("ASGI-3")
def test_heads_that_no_application_sees(raw: Callable[..., tuple[int, bytes]]) -> None:
    for name, (status, changed) in BAD.items():
        got, text = raw(**changed)
        assert (got, name) == (status, name), text
    longest = [(b"x-long", b"x" * 32_000), (b"tab", b"a\tb \xff"), (b"content-length", b"2")]
    assert raw(b"ok", path=b"/echo/" + b"a" * 16_000, headers=longest) == (200, b"ok")
    assert raw(b"", method="OPTIONS", path=b"*")[0] == 500


def test_paths_are_the_applications_to_read(raw: Callable[..., tuple[int, bytes]]) -> None:
    """Nothing is resolved or taken away on the way: what a client sends is what an application decides about."""
    for sent, decoded in {
        b"/scope/../scope": "/scope/../scope",
        b"/scope/%2e%2e%2Fscope": "/scope/../scope",
        b"/scope//x/./": "/scope//x/./",
        b"//scope/elsewhere": "//scope/elsewhere",
        b"/scope/%00%0d%0a": "/scope/\0\r\n",
        b"/scope/%ff%C3%A4": "/scope/\N{REPLACEMENT CHARACTER}ä",
        b"/scope/%zz%2": "/scope/%zz%2",
        b"/scope/;a=b\\x": "/scope/;a=b\\x",
    }.items():
        scope = eval(raw(path=sent)[1])
        assert (scope["raw_path"], scope["path"]) == (sent, decoded)
        assert (scope["root_path"], scope["server"], scope["scheme"]) == ("", ("enclave", 443), "https")


@pytest.mark.spec("ASGI-3")
def test_the_client_refuses_what_does_not_go_inside_mail(client: httpx2.Client) -> None:
    with pytest.raises(httpx2.LocalProtocolError, match="longer than 16384 bytes"):
        client.get("/" + "a" * 20_000)
    with pytest.raises(httpx2.LocalProtocolError, match="more than 256 headers"):
        client.get("/scope", headers={"x": "y" * 40_000})
    with pytest.raises(httpx2.LocalProtocolError, match="WebSockets and other upgrades do not go inside mail"):
        client.get("/scope", headers={"upgrade": "websocket"})
    with pytest.raises(httpx2.UnsupportedProtocol, match="WebSockets do not go inside mail"):
        client.get("ws://app/scope")


@pytest.mark.spec("ASGI-3")
def test_one_sender_has_so_many_requests_at_a_time(server: HostServer, bundle: Bundle, only: Only) -> None:
    async def many() -> None:
        first = AsyncMailTransport(server.url, constraint=only(bundle))
        other = AsyncMailTransport(server.url, constraint=only(bundle))
        async with httpx2.AsyncClient(transport=first, base_url="http://app") as client:
            # Each goes on after its response: nothing of them is under way at the host.
            for _ in range(128):
                assert (await client.get("/stays")).status_code == 200
            assert (await client.get("/scope")).status_code == 503
            async with httpx2.AsyncClient(transport=other, base_url="http://app") as another:
                assert (await another.get("/releases")).status_code == 200
            while (await client.get("/scope")).status_code == 503:
                await asyncio.sleep(0.01)

    asyncio.run(many())


@pytest.mark.spec("ASGI-1")
def test_another_enclave_is_no_server_of_http(
    author: Callable[..., Bundle], serve: Callable[..., HostServer], only: Only
) -> None:
    other = author(
        "other",
        """
        from conclave.enclave import Enclave, rpc

        class Other(Enclave):
            @rpc
            def request(self, head: bytes, body: bytes) -> bytes:
                return b""
        """,
    )
    with serve(other) as running:
        transport = MailTransport(running.url, constraint=only(other))
        client = httpx2.Client(transport=transport, base_url="http://app")
        with client, pytest.raises(AppraisalError, match="serves no ASGI application; call its methods with Client"):
            client.get("/")


LIFESPANS = {
    "unknown": ("raise ValueError('only http')", None),
    "ends": ("return", None),
    "fails": ("await send({'type': 'lifespan.startup.failed', 'message': 'NO-DATABASE'})", "start failed"),
    "slow": ("await asyncio.sleep(0.2); await send({'type': 'lifespan.startup.complete'})", None),
}


@pytest.mark.spec("ASGI-10")
@pytest.mark.parametrize("name", LIFESPANS)
def test_a_lifespan(name: str, author: Callable[..., Bundle], serve: Callable[..., HostServer], only: Only) -> None:
    work, refused = LIFESPANS[name]
    source = f'''
        # /// script
        # [tool.conclave]
        # entry = "{name}:app"
        # ///
        import asyncio

        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                {work}
                return
            await send({{"type": "http.response.start", "status": 204}})
            await send({{"type": "http.response.body"}})
    '''
    bundle = author(name, source)
    if refused is not None:
        with pytest.raises(PlatformError, match=refused) as raised, serve(bundle):
            pass
        assert "NO-DATABASE" not in str(raised.value)
        return
    with serve(bundle) as running:
        transport = MailTransport(running.url, constraint=only(bundle))
        with httpx2.Client(transport=transport, base_url="http://app") as client:
            assert client.get("/").status_code == 204
