"""The operator, a stranger on the network and a hostile client against posted mail (T-36, T-37, T-38)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import httpx2
import pytest

from conclave._crypto import SigningKey
from conclave.bundle import Bundle
from conclave.client import Box, Client, Identity, ReceivedMail
from conclave.errors import TransportError
from conclave.host.outbox import _MAIL, OutboxLimits, _Blob, _Box, _Entry
from conclave.mail.post import Address, make_post, parse_address
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
from conclave.enclave import Enclave, Post, rpc


class Poster(Enclave):
    @rpc
    def me(self, topic: str = "default") -> bytes:
        return self.address(self.sender, topic)

    @rpc
    def write(self, to: bytes, body: bytes) -> None:
        self.post(to, body)
"""


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("poster", SOURCE)


@pytest.fixture(scope="module")
def other_bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("impostor", SOURCE.replace("Poster", "Impostor"))


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], bundle: Bundle) -> Iterator[HostServer]:
    with serve(bundle, hostile=True) as server:
        yield server


@pytest.fixture(scope="module")
def impostor(serve: Callable[..., HostServer], other_bundle: Bundle) -> Iterator[HostServer]:
    with serve(other_bundle) as server:
        yield server


class Party:
    """A client with its address and box."""

    def __init__(self, server: HostServer, constraint: str) -> None:
        self.client = Client(server.url, constraint=constraint)
        self.address = self.client.call("me", returns=bytes)
        assert self.bodies() == []

    @property
    def box(self) -> bytes:
        return self.client.box.id

    def bodies(self) -> list[bytes]:
        return [mail.body for mail in self.client.poll()]


@pytest.fixture
def pair(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]) -> Iterator[tuple[Party, Party]]:
    parties = Party(server, only(bundle)), Party(server, only(bundle))
    yield parties
    for party in parties:
        party.client.close()


def stored(server: HostServer, box: bytes) -> list[bytes]:
    async def read() -> list[bytes]:
        return [mail for _, mail in await server.host.outbox.read(box, 0, most_bytes=2**30)]

    return server.run(read())


def plant(server: HostServer, box: bytes, *mails: bytes) -> None:
    """Put bytes into a box, as the operator of the store can."""

    async def put() -> None:
        outbox = server.host.outbox
        for mail in mails:
            # Under that box, whatever the mail says of itself.
            data = b"CMO1" + bytes(8) + _MAIL.pack(2**40 + len(outbox._blobs), max(len(mail), 0)) + mail
            name = f"outbox/mails/{10**18 + len(outbox._blobs):020d}"
            await outbox._store.put(name, data)
            if len(mail) >= 1260 and mail[8:24] == box:
                outbox._index(name, data)
                continue
            blob = _Blob(name, 2.0**40)
            place = outbox._boxes.setdefault(box, _Box())
            number = max(place.last + 1, 2**50)
            place.last = number
            place.entries[number] = _Entry(blob, len(data) - len(mail), len(mail), bytes(64))
            outbox._blobs[name] = blob
            outbox._wanted[bytes(64)] = outbox._wanted.get(bytes(64), 0) + 1
            blob.waiting.add((box, number))

    server.run(put())


@pytest.mark.spec("T-36", "MAIL-30", "MAIL-32")
def test_forged_altered_swapped_and_replayed(server: HostServer, pair: tuple[Party, Party]) -> None:
    alice, bob = pair
    alice.client.call("write", alice.address, b"for alice")
    alice.client.call("write", bob.address, b"for bob")
    (hers,), (his,) = stored(server, alice.box), stored(server, bob.box)
    reply_key = parse_address(alice.address).reply_key
    # Whoever knows the reply key can seal to it, and cannot sign.
    forged = make_post(
        Address(alice.client.identity.public, reply_key, "default"),
        b"forged",
        number=1,
        acknowledged=0,
        signer=SigningKey.generate(),
        claims_digest=hers[24:88],
        size=1024,
    )
    bad = [
        forged,
        hers,
        hers[:-1] + bytes([hers[-1] ^ 1]),
        hers[:1200] + bytes([hers[1200] ^ 1]) + hers[1201:],
        hers[:-17],
        hers + b"\0",
        his,
        his[:8] + hers[8:24] + his[24:],
        b"CMP1" + bytes(2000),
        b"\0",
    ]
    for mail in bad:
        plant(server, alice.box, mail)
    alice.client.call("write", alice.address, b"and more")
    assert alice.bodies() == [b"for alice", b"and more"]
    assert alice.client.refused_mails == len(bad)
    assert alice.bodies() == []
    assert bob.bodies() == [b"for bob"]


@pytest.mark.spec("T-36")
def test_a_mail_for_another_client_of_the_same_reply_key(server: HostServer, pair: tuple[Party, Party]) -> None:
    """A hostile client names another one's reply key in its opening, to have mail of its own read as the other's."""
    alice, mallory = pair
    address = parse_address(alice.address)
    crossed = Address(mallory.client.identity.public, address.reply_key, "default").encode()
    alice.client.call("write", crossed, b"for mallory")
    assert alice.bodies() == []
    assert alice.client.refused_mails == 1


@pytest.mark.spec("T-37", "MAIL-31")
def test_another_program_that_was_given_the_address(
    server: HostServer,
    impostor: HostServer,
    pair: tuple[Party, Party],
    other_bundle: Bundle,
    only: Callable[[Bundle], str],
) -> None:
    alice, _ = pair
    alice.client.call("write", alice.address, b"genuine")
    with Client(impostor.url, constraint=only(other_bundle)) as operator:
        operator.call("write", alice.address, b"I am the enclave")
    (mail,) = stored(impostor, alice.box)
    plant(server, alice.box, mail)
    # The host says who that was, and it is another program than the constraint names.
    info = impostor.host.info
    assert info is not None

    async def given() -> None:
        server.host.outbox._infos[mail[24:88]] = info

    server.run(given())
    assert alice.bodies() == [b"genuine"]
    assert alice.client.refused_mails == 1


@pytest.mark.spec("T-37", "MAIL-31")
def test_instance_info_that_was_swapped(
    server: HostServer,
    serve: Callable[..., HostServer],
    pair: tuple[Party, Party],
    bundle: Bundle,
    only: Callable[[Bundle], str],
) -> None:
    """The sender was another boot of the right program; the host hands out anything but its info."""
    alice, _ = pair
    with serve(bundle) as elsewhere:
        with Client(elsewhere.url, constraint=only(bundle)) as client:
            client.call("write", alice.address, b"from another boot")
        (mail,) = stored(elsewhere, alice.box)
        theirs = elsewhere.host.info
    assert theirs is not None
    ours = server.host.info
    assert ours is not None
    plant(server, alice.box, mail)
    # Nothing is said: the mail waits.
    assert alice.bodies() == []
    assert alice.client.refused_mails == 0

    async def give(info: bytes) -> None:
        server.host.outbox._infos[mail[24:88]] = info

    # The right one: it is read, by a second client of the box that knows nothing of what follows.
    kept = alice.client.box.export()
    server.run(give(theirs))
    identity, url = alice.client.identity, server.url
    with Client(url, constraint=only(bundle), identity=identity, box=Box.restore(kept)) as right:
        assert [m.body for m in right.poll()] == [b"from another boot"]
    for info in (ours, b"garbage", theirs[:-1], theirs.replace(theirs[-64:-32], bytes(32))):
        server.run(give(info))
        with Client(url, constraint=only(bundle), identity=identity, box=Box.restore(kept)) as client:
            assert client.poll() == []
            assert client.refused_mails == 1


@pytest.mark.spec("T-36")
def test_a_host_that_drops_keeps_nothing_else_from_arriving(server: HostServer, pair: tuple[Party, Party]) -> None:
    alice, _ = pair
    for n in range(4):
        alice.client.call("write", alice.address, b"%d" % n)

    async def drop() -> None:
        outbox = server.host.outbox
        outbox._remove(alice.box, sorted(outbox._boxes[alice.box].entries)[1])

    server.run(drop())
    mails = alice.client.poll()
    # The gap shows in the numbers.
    assert [(m.body, m.sequence) for m in mails] == [(b"0", 0), (b"2", 2), (b"3", 3)]


@pytest.mark.spec("T-38", "HTTP-13")
def test_boxes_are_neither_guessed_nor_taken(server: HostServer, pair: tuple[Party, Party]) -> None:
    alice, _ = pair
    alice.client.call("write", alice.address, b"private")
    with httpx2.Client(base_url=server.url) as stranger:
        path = f"/outbox/{alice.box.hex()}"
        assert stranger.post(path, content=b"g" * 32).json()["error"] == "claimed"
        for bearer in ("", "Bearer", "Bearer zz", f"Bearer {'00' * 32}", f"Bearer {alice.box.hex()}", "Basic abc"):
            for method in ("GET", "DELETE"):
                answer = stranger.request(method, "/outbox?below=99", headers={"authorization": bearer})
                assert (answer.status_code, answer.json()["error"]) == (401, "capability")
        # In a URL it opens nothing.
        capability = alice.client.box.capability.hex()
        assert stranger.get(f"/outbox/{capability}").status_code == 405
        assert stranger.get(f"/outbox?capability={capability}").status_code == 401
    assert alice.bodies() == [b"private"]


@pytest.mark.spec("T-38", "HTTP-13")
def test_a_stranger_who_was_first_gets_ciphertext_and_the_client_is_told(
    server: HostServer, bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    with Client(server.url, constraint=only(bundle), identity=Identity.generate()) as client:
        stolen = b"s" * 16 + client.box.id
        assert httpx2.post(f"{server.url}/outbox/{client.box.id.hex()}", content=stolen).status_code == 204
        with pytest.raises(TransportError, match="gave this client's box to somebody else"):
            client.poll()
        client.call("write", client.call("me", returns=bytes), b"SECRET-OF-THE-CLIENT")
        bearer = {"authorization": f"Bearer {stolen.hex()}"}
        seen = httpx2.get(f"{server.url}/outbox", headers=bearer).content
        assert len(seen) > 1000
        assert b"SECRET" not in seen
        assert client.identity.public not in seen


@pytest.mark.spec("HTTP-13", "HTTP-14", "HTTP-19")
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("POST", "/outbox/zz", b"c" * 32, 400, "format"),
        ("POST", "/outbox/" + "0" * 31, b"c" * 32, 400, "format"),
        ("POST", "/outbox/" + "0 " * 16, b"c" * 32, 400, "format"),
        ("POST", "/outbox/" + "ab" * 16, b"c" * 31, 400, "format"),
        ("POST", "/outbox/" + "ab" * 16, b"c" * 33, 413, "too large"),
        ("GET", "/outbox/" + "ab" * 16, b"", 405, "method"),
        ("POST", "/outbox", b"", 405, "method"),
        ("PUT", "/outbox", b"", 405, "method"),
        ("GET", "/outbox?wait=never", b"", 400, "format"),
        ("GET", "/outbox?wait=-1", b"", 400, "format"),
        ("GET", "/outbox?wait=nan", b"", 400, "format"),
        ("GET", "/outbox?after=-1", b"", 400, "format"),
        ("GET", "/outbox?after=18446744073709551616", b"", 400, "format"),
        ("GET", "/outbox?after=" + "9" * 5000, b"", 400, "format"),
        ("DELETE", "/outbox?below=1e400", b"", 400, "format"),
        ("DELETE", "/outbox", b"", 400, "format"),
        ("DELETE", "/outbox?from=1", b"", 400, "format"),
        ("DELETE", "/outbox?from=x&below=2", b"", 400, "format"),
        ("GET", "/instance/zz", b"", 400, "format"),
        ("GET", "/instance/" + "00" * 64, b"", 404, "no such resource"),
        ("POST", "/instance/" + "00" * 64, b"", 405, "method"),
    ],
)
def test_refusals(server: HostServer, method: str, path: str, body: bytes, status: int, word: str) -> None:
    capability = b"capability of a stranger's box!!"
    with httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {capability.hex()}"}) as http:
        assert http.post("/outbox/" + "cd" * 16, content=capability).status_code == 204
        answer = http.request(method, path, content=body)
        assert (answer.status_code, answer.json()["error"]) == (status, word)
        assert answer.json()["detail"]


def test_a_reply_key_that_is_none_harms_its_client_alone(
    server: HostServer, bundle: Bundle, pair: tuple[Party, Party], only: Callable[[Bundle], str]
) -> None:
    alice, _ = pair
    with Client(server.url, constraint=only(bundle)) as mallory:

        class NoKey:
            public = bytes(1216)

        mallory.box.reply_key = NoKey()  # type: ignore[assignment]
        mallory.call("write", mallory.call("me", returns=bytes), b"lost")
        mallory.call("write", alice.address, b"arrives")
    assert alice.bodies() == [b"arrives"]


@pytest.mark.spec("T-38", "HTTP-17", "HTTP-18")
def test_a_stranger_with_many_boxes_keeps_nobody_from_waiting(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str]
) -> None:
    """Boxes are free: what one of them may hold says nothing of what a stranger holds."""
    with (
        serve(bundle, outbox=OutboxLimits(readers=8)) as server,
        Client(server.url, constraint=only(bundle)) as honest,
        Client(server.url, constraint=only(bundle)) as sender,
    ):
        address = honest.call("me", returns=bytes)
        assert honest.poll() == []
        ended: list[int] = []

        async def strangers(mails: Callable[[], list[ReceivedMail]]) -> list[ReceivedMail]:
            async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http, asyncio.TaskGroup() as group:

                async def hold(number: int, accept: str) -> None:
                    capability = bytes([number]) * 32
                    headers = {"authorization": f"Bearer {capability.hex()}", "accept": accept}
                    await http.post(f"/outbox/{capability[:16].hex()}", content=capability)
                    while True:
                        ended.append((await http.get("/outbox?wait=30", headers=headers)).status_code)

                holding = [group.create_task(hold(n, ("*/*", "text/event-stream")[n % 2])) for n in range(1, 17)]
                waiting = asyncio.create_task(asyncio.to_thread(mails))
                while len(ended) < 32:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(sender.call, "write", address, b"for whoever waits")
                found = await waiting
                for task in holding:
                    task.cancel()
            return found

        found = asyncio.run(strangers(lambda: honest.poll(wait_seconds=60)))
        assert [mail.body for mail in found] == [b"for whoever waits"]
        # Nobody is refused, and nobody keeps a place for itself.
        assert set(ended) == {200}
