"""What one boot holds of streams at most, with real sessions and handlers, at the bounds of a real boot."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests._chunks import seal

from conclave._chunkheader import MAX_CHUNKS, MAX_CONTENT
from conclave._crypto import DecryptionKey, SigningKey
from conclave._framing import Frame, Kind
from conclave.enclave import Enclave, rpc
from conclave.enclave._streams import Bounds, Streams
from conclave.errors import StreamError
from conclave.mail import ClientSession, Mailbox, ReplyKind, Request
from conclave.mail.conversation import Conversation
from conclave.mail.padding import padme
from conclave.mail.stream import ChunkSealer
from conclave.rpc.interface import CallFailure, interface_of

DIGEST = bytes(64)
PART = bytes(MAX_CONTENT)
ROUTE = 100_000


class Slow(Enclave):
    """Takes nothing of its uploads before it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.ends: list[str] = []

    @rpc
    async def up(self, data: AsyncIterator[bytes]) -> int:
        await self.go.wait()
        size = 0
        try:
            async for part in data:
                size += len(part)
        except StreamError as error:
            self.ends.append(str(error))
            raise
        return size


class Rig:
    """An enclave's streams, and clients of any number of identities."""

    def __init__(self) -> None:
        self.key = DecryptionKey.generate()
        self.box = Mailbox(key=self.key, claims_digest=DIGEST, admit=lambda sender, topic: True)
        self.sent: list[tuple[int, int, bytes]] = []
        self.author = Slow()
        method = interface_of(Slow).methods["up"]
        self.streams = Streams(
            send=lambda kind, request, *payload: self.sent.append((kind, request, b"".join(payload))),
            prepare=lambda request, sender: (self.author.up, method, ()),
            failure=lambda error: CallFailure(type="error", message=""),
            pool=None,
            bounds=Bounds(),
        )
        self._requests = 0

    def client(self) -> tuple[ClientSession, Conversation]:
        """A new identity."""
        session = ClientSession(
            claims_digest=DIGEST,
            encryption_key=self.key.public,
            identity=SigningKey.generate(),
            reply_key=self.key.public,
            topic="t",
        )
        conversation = Conversation()
        conversation.use(session, new_boot=False)
        return session, conversation

    def open(self, client: tuple[ClientSession, Conversation]) -> tuple[ReplyKind, ChunkSealer]:
        """Call `up`; what the enclave answers first."""
        session, conversation = client
        _, mail, counter, sealer = conversation.open_stream(b"\2up", upload=True)
        self._requests += 1
        received = self.box.receive(mail, self._requests)
        assert isinstance(received.request, Request)
        assert received.session is not None
        sender: contextvars.ContextVar[bytes] = contextvars.ContextVar("sender")
        self.streams.start(received.request, received.session, counter, self._requests, sender=sender, padding=padme)
        kind, route, head = self.sent.pop()
        assert (kind in (Kind.REPLY, Kind.DONE), route) == (True, self._requests)
        assert sealer is not None
        return ReplyKind(session.decrypt(head).kind), sealer

    def upload(
        self, sealer: ChunkSealer, chunks: int = MAX_CHUNKS, *, part: bytes = PART, error: bool = False
    ) -> bytes:
        """Upload chunks, as one frame; the word with which they were refused, or nothing."""
        made = [seal(sealer, b"" if error else part, item=not error, final=error, error=error) for _ in range(chunks)]
        self._requests += 1
        payload = b"".join(len(chunk).to_bytes(4, "big") + chunk for chunk in made)
        before = len(self.sent)
        self.streams.chunks(Frame(Kind.CHUNKS, ROUTE + self._requests, payload))
        return b"".join(word for kind, _, word in self.sent[before:] if kind == Kind.ERROR)

    async def close(self) -> None:
        """Have every handler end."""
        for route in list(self.streams._by_route):
            self.streams.drop(Frame(Kind.DROP, route, b""))
        await self.settle()
        assert (len(self.streams), self.streams.held) == (0, 0)

    async def settle(self) -> None:
        """Have every handler go as far as it can."""
        for _ in range(100):
            await asyncio.sleep(0)


def in_rig(work: Callable[[Rig], Awaitable[None]]) -> None:
    """Run that in a loop, and see that it leaves nothing."""

    async def main() -> None:
        rig = Rig()
        await work(rig)
        await rig.close()

    asyncio.run(main())


@pytest.mark.spec("MAIL-26")
def test_streams_in_all_are_bounded() -> None:
    async def work(rig: Rig) -> None:
        for _ in range(16):
            client = rig.client()
            assert {rig.open(client)[0] for _ in range(32)} == {ReplyKind.STREAM}
        assert len(rig.streams) == 512
        assert rig.open(rig.client())[0] == ReplyKind.OVERLOADED
        assert len(rig.streams) == 512

    in_rig(work)


@pytest.mark.spec("MAIL-26")
def test_waiting_uploads_in_all_are_bounded() -> None:
    async def work(rig: Rig) -> None:
        for _ in range(64):
            # A MiB each, and each of another identity.
            assert rig.upload(rig.open(rig.client())[1]) == b""
        held = rig.streams.held
        assert held >= 64 * 1024 * 1024
        sealer = rig.open(rig.client())[1]
        assert rig.upload(sealer) == b"overloaded"
        assert rig.streams.held == held

    in_rig(work)


@pytest.mark.spec("MAIL-26")
def test_waiting_uploads_of_one_identity_are_bounded() -> None:
    async def work(rig: Rig) -> None:
        client = rig.client()
        most = rig.open(client)[1]
        assert rig.upload(most) == b""
        for _ in range(26):
            assert rig.upload(rig.open(client)[1], part=PART[: len(PART) * 15 // 16] if _ else PART) in (
                b"",
                b"overloaded",
            )
        held = rig.streams.held
        assert 24 * 1024 * 1024 <= held < 25 * 1024 * 1024 + 64 * 1024
        assert rig.upload(rig.open(client)[1]) == b"overloaded"
        assert rig.streams.held == held
        # Others have room of their own.
        assert rig.upload(rig.open(rig.client())[1]) == b""

    in_rig(work)


@pytest.mark.spec("MAIL-22")
def test_the_handler_of_an_upload_that_was_given_up_gets_an_error() -> None:
    async def work(rig: Rig) -> None:
        sealer = rig.open(rig.client())[1]
        assert rig.upload(sealer, 1) == b""
        rig.author.go.set()
        assert rig.upload(sealer, 1, error=True) == b""
        await rig.settle()
        assert rig.author.ends == ["the client gave the upload up"]

    in_rig(work)
