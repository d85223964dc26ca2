"""How clients claim, read and clear their boxes over HTTP.

Runs in the untrusted host. A capability stands in a header and never in a URL,
which servers on the way write down.

Spec: spec/http.md section 2 (HTTP-13 to HTTP-19).
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from typing import Final

from conclave.errors import StoreError
from conclave.host.answers import Refusal, read_body, respond
from conclave.host.exchange import Receive, Scope, Send
from conclave.host.outbox import Outbox

POSTS_TYPE: Final = b"application/vnd.conclave.posts"
EVENTS_TYPE: Final = b"text/event-stream"
INFO_TYPE: Final = b"application/vnd.conclave.instance-info"
CAPABILITY_SIZE: Final = 32
BOX_SIZE: Final = 16
DIGEST_SIZE: Final = 64
MOST_WAIT_SECONDS: Final = 30.0
HEARTBEAT_SECONDS: Final = 15.0
# One answer has at most so much, or one mail.
ANSWER_BYTES: Final = 8 * 1024 * 1024
_LAST: Final = 2**64 - 1


class Pickup:
    """`/outbox` and `/instance/<claims digest>`."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises Refusal."""
        method, path = scope["method"], scope["path"]
        try:
            if path.startswith("/instance/"):
                await self._instance(method, path.removeprefix("/instance/"), send)
            elif path.startswith("/outbox/"):
                await self._claim(method, path.removeprefix("/outbox/"), scope, receive, send)
            elif method == "GET":
                await self._read(scope, receive, send)
            elif method == "DELETE":
                query = _query(scope)
                first, below = _number(query.get("from", "0"), "from"), _number(query.get("below", ""), "below")
                self._outbox.delete(self._owned(scope), below, first=first)
                await respond(send, 204, b"text/plain", b"")
            else:
                raise Refusal(405, "method", "/outbox takes GET and DELETE; POST goes to /outbox/<box id>")
        except StoreError:
            raise Refusal(503, "store", "the host's store does not answer; try again") from None

    async def _claim(self, method: str, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        if method != "POST":
            raise Refusal(405, "method", "/outbox/<box id> takes POST; GET and DELETE go to /outbox")
        box = _hex(name, BOX_SIZE, "a box id")
        capability = bytes(await read_body(scope, receive, CAPABILITY_SIZE))
        if len(capability) != CAPABILITY_SIZE:
            raise Refusal(400, "format", f"a capability has {CAPABILITY_SIZE} bytes, not {len(capability)}")
        if not await self._outbox.claim(box, capability):
            raise Refusal(409, "claimed", "this box was claimed with another capability; use a fresh reply key")
        await respond(send, 204, b"text/plain", b"")

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        box = self._owned(scope)
        query = _query(scope)
        events = EVENTS_TYPE in _header(scope, b"accept")
        last = _header(scope, b"last-event-id").decode("ascii", "replace") if events else ""
        after = _number(last or query.get("after", "0"), "after")
        if events:
            await self._stream(box, after, receive, send)
            return
        wait = min(_seconds(query.get("wait", "0")), MOST_WAIT_SECONDS)
        mails = await self._outbox.read(box, after, most_bytes=ANSWER_BYTES)
        if not mails and wait:
            # Who waits and goes away shall not hold a place among the readers.
            await _unless_left(receive, self._wait(box, wait, after))
            mails = await self._outbox.read(box, after, most_bytes=ANSWER_BYTES)
        parts = [part for number, mail in mails for part in (_head(number, mail), mail)]
        await respond(send, 200, POSTS_TYPE, b"".join(parts))

    async def _wait(self, box: bytes, seconds: float, after: int) -> None:
        self._admit(box)
        # Who makes room for another is answered with what there is: nothing, as after the time it would wait.
        await self._outbox.wait(box, seconds, after=after)

    def _admit(self, box: bytes) -> None:
        if self._outbox.crowded(box):
            raise Refusal(429, "overloaded", "too many requests wait for this box; poll without waiting, or try later")

    async def _stream(self, box: bytes, after: int, receive: Receive, send: Send) -> None:
        self._admit(box)
        headers = [(b"content-type", EVENTS_TYPE), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def events() -> None:
            place = after
            while True:
                try:
                    mails = await self._outbox.read(box, place, most_bytes=ANSWER_BYTES)
                except StoreError:
                    # The stream is under way: only its end can say so. The client comes again.
                    return
                for number, mail in mails:
                    event = b"id: %d\ndata: %s\n\n" % (number, base64.b64encode(mail))
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                    place = number
                if not mails:
                    # Shows a client that the host lives, and the host that the client does.
                    await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})
                    if not await self._outbox.wait(box, HEARTBEAT_SECONDS, after=place):
                        return

        with suppress(_Left):
            await _unless_left(receive, events())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _instance(self, method: str, name: str, send: Send) -> None:
        if method != "GET":
            raise Refusal(405, "method", "/instance/<claims digest> takes GET")
        info = await self._outbox.info(_hex(name, DIGEST_SIZE, "a claims digest"))
        if info is None:
            raise Refusal(404, "no such resource", "no mail of an instance with these claims is kept here")
        await respond(send, 200, INFO_TYPE, info)

    def _owned(self, scope: Scope) -> bytes:
        scheme, _, value = _header(scope, b"authorization").partition(b" ")
        try:
            capability = bytes.fromhex(value.decode("ascii"))
        except ValueError:
            capability = b""
        box = self._outbox.box_of(capability) if scheme.lower() == b"bearer" else None
        if box is None:
            raise Refusal(401, "capability", "no box is claimed with that capability; POST it to /outbox/<box id>")
        return box


class _Left(Exception):
    """The client went away."""


async def _unless_left(receive: Receive, work: object) -> None:
    """Do that until it ends or the client leaves. Raises _Left, or what the work raises."""
    working = asyncio.ensure_future(work)  # type: ignore[call-overload]
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Left
        working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _head(number: int, mail: bytes) -> bytes:
    return number.to_bytes(8, "big") + len(mail).to_bytes(4, "big")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _query(scope: Scope) -> dict[str, str]:
    text = scope["query_string"].decode("ascii", "replace")
    return dict(part.split("=", 1) for part in text.split("&") if "=" in part)


def _hex(text: str, size: int, what: str) -> bytes:
    try:
        value = bytes.fromhex(text) if len(text) == 2 * size else b""
    except ValueError:
        value = b""
    if len(value) != size:
        raise Refusal(400, "format", f"{what} is {2 * size} hex digits")
    return value


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= _LAST):
        raise Refusal(400, "format", f"{what} is a number from 0 to {_LAST}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 2**53:
        raise Refusal(400, "format", "wait is a number of seconds, not negative")
    return value
