"""Mail that nobody asked for: an auction, a client that was away, boots that come and go."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from conclave.bundle import Bundle
from conclave.client import AsyncClient, Box, Client, Identity, ReceivedMail
from conclave.errors import CallError, TransportError
from conclave.host.outbox import InMemory, OutboxLimits
from conclave.host.stores import open_store
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = '''
import os
from conclave.enclave import Enclave, Post, RpcError, rpc
from conclave.errors import OverloadedError


class Full(RpcError):
    """The box takes no more."""


class Auction(Enclave):
    def on_start(self) -> None:
        self.bids = {}

    @rpc
    def bid(self, price: int) -> None:
        self.bids[self.sender] = price

    @rpc
    def close(self) -> int:
        best = max(self.bids, key=self.bids.get)
        self.post_together(
            Post(who, b"you won, at %d; the seller waits at the harbour" % price if who == best else b"lost")
            for who, price in self.bids.items()
        )
        return len(self.bids)

    @rpc
    def address_of_me(self, topic: str = "default") -> bytes:
        return self.address(self.sender, topic)

    @rpc
    def write(self, to: bytes, body: bytes) -> None:
        self.post(to, body, envelope=b"for the host too")

    @rpc
    def fill(self, to: bytes, count: int) -> int:
        for n in range(count):
            try:
                self.post(to, b"%d" % n)
            except OverloadedError as error:
                raise Full(f"after {n}: {error}")
        return count

    @rpc
    def die(self) -> None:
        os._exit(9)
'''


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("auction", SOURCE)


@pytest.fixture(scope="module")
def server(
    serve: Callable[..., HostServer], bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HostServer]:
    place = tmp_path_factory.mktemp("outbox")
    with serve(bundle, restart=True, store=open_store(f"file:{place}")) as server:
        yield server


def fetched(server: HostServer, client: Client) -> list[tuple[int, bytes]]:
    """What anybody with the capability sees of a box, in one request."""
    bearer = {"authorization": f"Bearer {client.box.capability.hex()}"}
    data, found = httpx2.get(f"{server.url}/outbox", headers=bearer).content, []
    while data:
        size = int.from_bytes(data[8:12], "big")
        found.append((int.from_bytes(data[:8], "big"), data[12 : 12 + size]))
        data = data[12 + size :]
    return found


@pytest.mark.spec("MAIL-34", "HTTP-15")
def test_an_auction(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> None:
    """Whoever looks at the wire, and whenever, learns neither who won nor who lost."""
    clients = [Client(server.url, constraint=only(bundle)) for _ in range(4)]
    for price, client in enumerate(clients):
        client.call("bid", 100 + price)
        assert client.poll() == []
    closed, seen = threading.Event(), []

    def watch() -> None:
        # Looks at all boxes in one task of the host's loop, so at one moment, over and over.
        async def look() -> list[int]:
            outbox = server.host.outbox
            return [len(outbox._boxes[c.box.id].entries) if c.box.id in outbox._boxes else 0 for c in clients]

        while not closed.is_set():
            seen.append(server.run(look()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert clients[0].call("close", returns=int) == 4
    # The reply implies that all of them are there.
    boxes = [fetched(server, client) for client in clients]
    closed.set()
    watcher.join()
    assert all(look in ([0] * 4, [1] * 4) for look in seen)
    assert [len(box) for box in boxes] == [1] * 4
    assert len({len(mail) for box in boxes for _, mail in box}) == 1
    bodies = [[m.body for m in client.poll()] for client in clients]
    assert bodies == [[b"lost"]] * 3 + [[b"you won, at 103; the seller waits at the harbour"]]
    for client in clients:
        assert client.poll() == []
        assert fetched(server, client) == []
        client.close()


@pytest.mark.spec("MAIL-31", "MAIL-37")
def test_days_later_in_another_boot(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> None:
    """The first boot gives an address and ends. A second, that the client never met, posts to it
    and ends too. A third runs when the client comes back, with what it kept of its box."""
    identity, constraint = Identity.generate(), only(bundle)
    with Client(server.url, constraint=constraint, identity=identity) as client:
        address = client.call("address_of_me", returns=bytes)
        first = client.instance.claims.boot_nonce
        kept = client.box.export()
    with Client(server.url, constraint=constraint) as other:
        with pytest.raises(TransportError):
            other.call("die", retry=False)
        other.call("write", address, b"news")
        second = other.instance.claims.boot_nonce
        with pytest.raises(TransportError):
            other.call("die", retry=False)
        other.call("write", address, b"more news")
        third = other.verify().claims.boot_nonce
    assert len({first, second, third}) == 3
    box = Box.restore(kept)
    with Client(server.url, constraint=constraint, identity=identity, box=box) as again:
        mails = again.poll(wait_seconds=5)
        assert [(m.body, m.envelope, m.sequence) for m in mails] == [
            (b"news", b"for the host too", 0),
            (b"more news", b"for the host too", 0),
        ]
        assert again.refused_mails == 0
        # It is killed before it was done with them.
    with Client(server.url, constraint=constraint, identity=identity, box=Box.restore(kept)) as again:
        assert [m.body for m in again.poll()] == [b"news", b"more news"]
        again.acknowledge()
        assert fetched(server, again) == []
        kept = again.box.export()
    with Client(server.url, constraint=constraint, identity=identity, box=Box.restore(kept)) as again:
        assert again.poll() == []


@pytest.mark.spec("MAIL-32", "MAIL-38")
def test_saved_state_has_the_box(
    server: HostServer, bundle: Bundle, only: Callable[[Bundle], str], tmp_path: Path
) -> None:
    identity, constraint = Identity.generate(), only(bundle)

    def client() -> Client:
        return Client(server.url, constraint=constraint, identity=identity, state=tmp_path / "state")

    with client() as first:
        first.call("bid", 1)
        assert first.call("fill", identity.public, 3) == 3
        assert len(first.poll()) == 3
    with client() as second:
        # The first one never said that it was done with them.
        assert [m.body for m in second.poll()] == [b"0", b"1", b"2"]
        second.acknowledge()
    with client() as third:
        assert third.poll() == []
        third.call("fill", identity.public, 1)
        assert [m.sequence for m in third.poll()] == [3]
        assert third.refused_mails == 0


@pytest.mark.spec("MAIL-35", "MAIL-36")
def test_a_full_box_is_a_clear_error_until_the_client_fetches(
    server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with Client(server.url, constraint=only(bundle)) as client:
        me = client.identity.public
        assert client.call("fill", me, 1024) == 1024
        with pytest.raises(CallError, match="after 0: the client's box is full: it has not acknowledged 1024 mails"):
            client.call("fill", me, 1)
        mails = client.poll()
        assert [m.sequence for m in mails] == list(range(1024))
        assert client.poll() == []
        assert client.call("fill", me, 7) == 7
        assert len(client.poll()) == 7


@pytest.mark.spec("MAIL-36")
def test_who_only_polls_goes_on_after_a_restart(
    server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    """Its session ended with the boot that it verified; the next one must learn all the same what it has."""
    with Client(server.url, constraint=only(bundle)) as client, Client(server.url, constraint=only(bundle)) as other:
        address = client.call("address_of_me", returns=bytes)
        with pytest.raises(TransportError):
            other.call("die", retry=False)
        for _ in range(2):
            assert other.call("fill", address, 1024) == 1024
            assert len(client.poll()) == 1024
            assert client.poll() == []
        assert client.refused_mails == 0


@pytest.mark.spec("HTTP-17", "CHAN-14")
def test_a_host_that_keeps_less_tells_the_enclave(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    store = InMemory()
    with (
        serve(bundle, store=store, outbox=OutboxLimits(mails_per_box=20)) as server,
        Client(server.url, constraint=only(bundle)) as client,
    ):
        me = client.identity.public
        assert client.call("fill", me, 10) == 10
        # The host's word is a frame: it is there with the next mail that it passes on.
        with pytest.raises(CallError, match="after 0: the host's outbox is full"):
            client.call("fill", me, 1)
        assert len(client.poll()) == 10
        client.acknowledge()
        assert client.call("fill", me, 3) == 3
        assert client.call("fill", me, 7) == 7
        kept = client.box.export()
    # Another host with the same store tells its new enclave at once.
    with (
        serve(bundle, store=store, outbox=OutboxLimits(mails_per_box=20)) as server,
        Client(server.url, constraint=only(bundle), identity=client.identity, box=Box.restore(kept)) as client,
    ):
        client.call("bid", 1)
        with pytest.raises(CallError, match="outbox is full"):
            client.call("fill", me, 1)
        assert len(client.poll()) == 10


@pytest.mark.spec("HTTP-17")
def test_mail_expires(serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]) -> None:
    limits = OutboxLimits(keep_seconds=0.0)
    with serve(bundle, outbox=limits) as server, Client(server.url, constraint=only(bundle)) as client:
        client.call("fill", client.identity.public, 3)

        async def expire() -> None:
            server.host.outbox._now = lambda: time.time() + 2
            server.host.outbox.expire()

        server.run(expire())
        assert client.poll() == []
        assert fetched(server, client) == []


def test_polls_that_wait_and_listeners(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> None:
    with Client(server.url, constraint=only(bundle)) as client, Client(server.url, constraint=only(bundle)) as other:
        me = client.identity.public
        client.call("bid", 1)
        got: list[ReceivedMail] = []

        def listen() -> None:
            for mail in client.listen():
                got.append(mail)
                if len(got) == 5:
                    return

        listener = threading.Thread(target=listen)
        listener.start()
        for n in range(5):
            other.call("write", me, b"%d" % n)
        listener.join(60)
        assert [m.body for m in got] == [b"0", b"1", b"2", b"3", b"4"]
        assert client.refused_mails == 0


def test_listening_through_a_restart(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> None:
    async def scenario() -> list[bytes]:
        async with AsyncClient(server.url, constraint=only(bundle)) as client:
            await client.call("bid", 1)
            address = await client.call("address_of_me", returns=bytes)

            async def listen() -> list[bytes]:
                bodies: list[bytes] = []
                async for mail in client.listen():
                    bodies.append(mail.body)
                    if len(bodies) == 2:
                        break
                return bodies

            listening = asyncio.create_task(listen())
            async with AsyncClient(server.url, constraint=only(bundle)) as other:
                await other.call("write", address, b"before")
                with pytest.raises(TransportError):
                    await other.call("die", retry=False)
                await other.call("write", address, b"after")
            return await listening

    assert asyncio.run(scenario()) == [b"before", b"after"]


@pytest.mark.spec("HTTP-18")
def test_events(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> None:
    with Client(server.url, constraint=only(bundle)) as client:
        assert client.poll() == []
        headers = {"authorization": f"Bearer {client.box.capability.hex()}", "accept": "text/event-stream"}
        me = client.identity.public
        client.call("bid", 1)
        client.call("fill", me, 2)

        def events(count: int, **more: str) -> list[tuple[int, bytes]]:
            found = []
            with httpx2.stream("GET", f"{server.url}/outbox", headers={**headers, **more}, timeout=30) as answer:
                assert answer.headers["content-type"] == "text/event-stream"
                number = 0
                for line in answer.iter_lines():
                    if line.startswith("id: "):
                        number = int(line[4:])
                    elif line.startswith("data: "):
                        found.append((number, base64.b64decode(line[6:])))
                    elif line.startswith(":") and len(found) == 2:
                        # A comment: nothing more is there. What comes now comes while we wait.
                        client.call("fill", me, 1)
                    if len(found) == count:
                        return found
            return found

        got = events(3)
        assert got == fetched(server, client)
        assert events(2, **{"last-event-id": str(got[0][0])}) == got[1:]

        async def readers() -> int:
            return len(server.host.outbox._readers)

        # Whoever has gone holds no place.
        for _ in range(10):
            while server.run(readers()):
                time.sleep(0.01)
            assert events(1) == got[:1]


@pytest.mark.spec("HTTP-17")
def test_a_box_has_few_readers_that_wait(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> None:
    async def scenario() -> list[int]:
        capability, box = b"r" * 32, b"r" * 16
        headers = {"authorization": f"Bearer {capability.hex()}"}
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, headers=headers) as http:
            assert (await http.post(f"/outbox/{box.hex()}", content=capability)).status_code == 204
            waiting = [asyncio.create_task(http.get("/outbox?wait=30")) for _ in range(9)]
            done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            return [task.result().status_code for task in done]

    assert asyncio.run(scenario()) == [429]


def test_two_clients_with_one_identity_have_boxes_of_their_own(
    server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    identity = Identity.generate()
    with (
        Client(server.url, constraint=only(bundle), identity=identity) as one,
        Client(server.url, constraint=only(bundle), identity=identity) as two,
    ):
        one.call("bid", 1)
        at_one = one.call("address_of_me", returns=bytes)
        two.call("bid", 1)
        two.call("write", at_one, b"to one")
        two.call("write", identity.public, b"to the newest")
        assert ([m.body for m in one.poll()], [m.body for m in two.poll()]) == ([b"to one"], [b"to the newest"])


def test_a_reply_waits_for_a_store_that_is_away(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str], tmp_path: Path
) -> None:
    """Nothing is lost, nothing runs twice, and what posts nothing goes on."""
    from tests.unit.test_outbox import Failing

    from conclave.errors import StoreFull
    from conclave.host import gate

    store = Failing()
    with (
        serve(bundle, store=store) as server,
        Client(server.url, constraint=only(bundle), attempts=50) as client,
        Client(server.url, constraint=only(bundle)) as other,
        httpx2.Client(base_url=server.url) as http,
        pytest.MonkeyPatch.context() as patch,
    ):
        client.call("bid", 1)
        assert client.poll() == []

        async def impatient() -> None:
            patch.setattr(server.host._link._gate, "_patience", 0.05)

        assert gate.PATIENCE_SECONDS > 1
        server.run(impatient())
        store.error = StoreFull("no room")
        answered: list[int] = []
        caller = threading.Thread(
            target=lambda: answered.append(client.call("fill", client.identity.public, 1, returns=int))
        )
        caller.start()
        while http.get("/readyz").status_code != 503:
            time.sleep(0.01)
        assert http.get("/readyz").json() == {"status": "not ready", "reasons": ["store"]}
        # Everybody's replies wait, as they come after posted mail; instances and challenges do not.
        other.challenge()
        assert answered == []
        store.error = None
        caller.join(60)
        assert answered == [1]
        # The store is asked once a second.
        while http.get("/readyz").status_code != 200:
            time.sleep(0.01)
        assert [m.body for m in client.poll()] == [b"0"]


@pytest.mark.spec("HTTP-21")
def test_both_kinds_of_health_agree(
    serve: Callable[..., HostServer], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that answers nobody, though no mail was refused yet; a stop; an enclave that is gone."""
    from tests.unit.test_outbox import Failing

    from conclave.errors import StoreUnavailable
    from conclave.host import health

    monkeypatch.setattr(health, "FRESH_SECONDS", 0.0)
    store = Failing()
    with serve(bundle, store=store) as server, httpx2.Client(base_url=server.url) as http:

        def says(reasons: list[str], word: str | None) -> None:
            ready, simple = http.get("/readyz"), http.get("/health")
            assert ready.status_code == simple.status_code == (503 if reasons else 200)
            assert ready.json().get("reasons", []) == reasons
            assert simple.json().get("error") == word

        says([], None)
        store.error = StoreUnavailable("gone")
        says(["store"], "store")
        store.error = None
        says([], None)
        server.host.outbox.trouble = "no room"
        says(["store"], "store")
        info, server.host.info = server.host.info, None
        says(["enclave", "store"], "starting")
        server.host.health.draining = True
        says(["draining", "enclave", "store"], "stopping")
        server.host.info, server.host.outbox.trouble = info, ""
        says(["draining"], "stopping")
