"""What a host serves over HTTP (ASGI): instance info, mail, challenges, outboxes.

Runs in the untrusted host. What it learns of an enclave's error is one word.

Spec: spec/http.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from conclave._chunkheader import MAX_UPLOAD, upload_address
from conclave._framing import Frame, Kind
from conclave._mailheader import MAX_MAIL, TO_ENCLAVE, address_of
from conclave.errors import FormatError, TransportError
from conclave.host import openapi, streams
from conclave.host.answers import Refusal, read_body, refuse, respond
from conclave.host.exchange import Body, Exchange, Receive, Scope, Send, passed_on
from conclave.host.health import Health
from conclave.host.link import Ask, Link
from conclave.host.order import Reorder
from conclave.host.outbox import Outbox
from conclave.host.pickup import Pickup

INFO_TYPE: Final = b"application/vnd.conclave.instance-info"
MAILS_TYPE: Final = b"application/vnd.conclave.mails"
_MAIL: Final = Kind.MAIL
_ERROR: Final = Kind.ERROR
_MAILS: Final = frozenset({Kind.REPLY, Kind.DONE})
_STATUS: Final = {
    b"format": (400, "not a mail the enclave can read"),
    b"decryption": (422, "the enclave could not decrypt this mail"),
    b"session": (409, "the enclave does not know this session; verify the instance again"),
    b"overloaded": (429, "the enclave has no room; try later"),
    b"stopping": (503, "the enclave is stopping"),
    b"store": (503, "the host's store takes no posted mail, and the reply waits for it; send the same mail again"),
}

# What `/readyz` calls so, in the words of the other resources.
_UNWELL: Final = {
    "draining": ("stopping", "this host stops; go to another"),
    "enclave": ("starting", "the enclave is not running at the moment; try again"),
    "halted": ("halted", "the enclave has proof that its state was rolled back or forked, and says so to each client"),
    "store": ("store", "the host's store does not answer, or takes no state or posted mail"),
}


class Routes:
    """The resources of one host."""

    def __init__(
        self,
        order: Reorder,
        *,
        outbox: Outbox,
        health: Health,
        link: Callable[[], Link | None],
        info: Callable[[], bytes | None],
    ) -> None:
        """Nothing runs by itself.

        Args:
            order: puts early mails back in order.
            outbox: where posted mail waits for its clients.
            health: what `/health` says.
            link: the enclave that runs now and has shown its evidence, or None.
            info: its instance info.
        """
        self._order = order
        self._pickup = Pickup(outbox)
        self._health = health
        self._link = link
        self._info = info

    def release(self) -> None:
        """Let go of mails that wait for others: their boot is gone."""
        self._order.clear()

    def clear(self) -> None:
        """Forget everything of the boot before. Posted mail is kept."""
        self._order.clear()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if await openapi.answered(scope, send):
            return
        try:
            if scope["path"] == "/mail" and scope["method"] == "POST":
                await self._mail(scope, receive, send)
            elif scope["path"] == "/stream" and scope["method"] == "POST":
                await self._upload(scope, receive, send)
            else:
                await self._other(scope, receive, send)
        except Refusal as refusal:
            await refuse(send, refusal)

    def take(self, data: Body, exchange: Exchange) -> bool:
        """The short way of a mail: from the server's callback to the enclave and back.

        Returns:
            False, with nothing changed, if this mail needs the long way through
            `serve`: it is early, or to be refused.
        """
        link = self._link()
        if link is None:
            return False
        try:
            direction, session_id, counter, opening = address_of(data)
            if direction != TO_ENCLAVE or not self._order.in_turn(session_id, counter, opening=opening):
                return False
            ask = link.ask(_MAIL, data)
        except (FormatError, TransportError):
            return False
        exchange.on_gone = ask.drop
        ask.waiter = partial(self._answered, exchange, session_id)
        return True

    def _answered(self, exchange: Exchange, session_id: bytes, ask: Ask) -> None:
        if exchange.gone:
            return
        frames = ask.frames
        if ask.done and frames and frames[0].kind != _ERROR:
            exchange.answer(200, MAILS_TYPE, _parts(ask.take()))
        else:
            # A stream, an error, or an enclave that ended.
            exchange.run(partial(self._finish, ask, session_id), {})

    async def _finish(self, ask: Ask, session_id: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        ask.leaves = partial(_left, receive)
        try:
            await self._answer(ask, session_id, receive, send)
        except Refusal as refusal:
            await refuse(send, refusal)

    def _linked(self) -> Link:
        link = self._link()
        if link is None:
            raise Refusal(503, "starting", "the enclave is not running at the moment; try again")
        return link

    def _ask(self, kind: Kind, payload: bytes) -> Ask:
        try:
            return self._linked().ask(kind, payload)
        except TransportError as error:
            raise Refusal(429, "overloaded", str(error)) from None

    def _pass_on(self, scope: Scope, kind: Kind, payload: bytes) -> Ask:
        ask = self._ask(kind, payload)
        passed_on(scope)
        return ask

    async def _mail(self, scope: Scope, receive: Receive, send: Send) -> None:
        data = await read_body(scope, receive, MAX_MAIL)
        try:
            direction, session_id, counter, opening = address_of(data)
        except FormatError as error:
            raise Refusal(400, "format", str(error)) from None
        if direction != TO_ENCLAVE:
            raise Refusal(400, "format", "this is a mail for a client")
        if not self._order.in_turn(session_id, counter, opening=opening):
            await self._order.turn(session_id, counter)
        ask = self._pass_on(scope, Kind.MAIL, data)
        # The answer may take hours; what is not counted is not held either.
        del data
        ask.leaves = partial(_left, receive)
        await self._answer(ask, session_id, receive, send)

    async def _answer(self, ask: Ask, session_id: bytes, receive: Receive, send: Send) -> None:
        frames = await ask.more()
        if not frames or frames[0].kind == Kind.ERROR:
            if frames and frames[0].payload == b"session":
                self._order.forget(session_id)
            raise _refusal(frames)
        if ask.done:
            await respond(send, 200, MAILS_TYPE, _join(frames))
            return
        reply = streams.Reply(ask)
        ask.leaves = None

        async def pass_on() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", MAILS_TYPE)]})
            async for some in reply.frames(frames):
                await send({"type": "http.response.body", "body": _join(some), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await reply.while_there(_left(receive), pass_on)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        data = await read_body(scope, receive, MAX_UPLOAD)
        try:
            upload_address(data)
        except FormatError as error:
            raise Refusal(400, "format", str(error)) from None
        ask = self._pass_on(scope, Kind.CHUNKS, data)
        del data
        ask.leaves = partial(_left, receive)
        frames = await ask.more()
        if not streams.answered(frames):
            raise _refusal(frames)
        await respond(send, 204, b"text/plain", b"")

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if path == "/instance" and method == "GET":
            self._linked()
            await respond(send, 200, INFO_TYPE, self._info() or b"")
        elif path == "/health" and method == "GET":
            for reason in await self._health.reasons():
                word, detail = _UNWELL[reason]
                raise Refusal(503, word, detail)
            await respond(send, 200, b"application/json", b'{"status":"ok"}')
        elif path == "/challenge" and method == "POST":
            challenge = await read_body(scope, receive, 64)
            if len(challenge) != 32:
                raise Refusal(400, "format", "a challenge has 32 bytes")
            frames = await self._ask(Kind.CHALLENGE, challenge).more()
            if not frames or frames[0].kind != Kind.SIGNED:
                raise _refusal(frames)
            await respond(send, 200, b"application/octet-stream", frames[0].payload)
        elif path == "/outbox" or path.startswith(("/outbox/", "/instance/")):
            await self._pickup.serve(scope, receive, send)
        elif path in ("/mail", "/stream", "/instance", "/health", "/challenge"):
            raise Refusal(405, "method", f"{path} does not take {method}")
        else:
            raise Refusal(404, "no such resource", "see spec/http.md for what a host serves")


def _refusal(frames: list[Frame]) -> Refusal:
    if not frames:
        return Refusal(502, "enclave", "the enclave ended while it handled this")
    status, detail = _STATUS.get(frames[0].payload, (502, "the enclave answered something unknown"))
    return Refusal(status, frames[0].payload.decode("ascii", "replace"), detail)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _parts(frames: Iterable[Frame]) -> list[bytes]:
    """Mails with their sizes before them, not joined."""
    parts: list[bytes] = []
    for frame in frames:
        if frame.kind in _MAILS and frame.payload:
            parts += (len(frame.payload).to_bytes(4, "big"), frame.payload)
    return parts


def _join(frames: Iterable[Frame]) -> bytes:
    return b"".join(_parts(frames))
