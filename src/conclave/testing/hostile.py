"""A host whose operator is the adversary: sees, changes, drops, swaps mails.

For tests and demonstrations. It wraps the common host and acts on the bytes that
pass through it, which is all that a real operator can do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from conclave.client.core import split_mails
from conclave.host import Host

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class HostileHost:
    """An ASGI application between clients and a real host.

    Attributes:
        requests: every encrypted mail that clients sent, in order.
        answers: every HTTP answer body to those, in order.
        on_request: gets an encrypted mail, returns what the enclave gets instead;
            None swallows it: the client hears nothing.
        on_answer: gets an answer body, returns what the client gets instead.
        on_info: the same for instance info.
        streaming: answers go on as they come, for streams; then `on_part` gets each
            mail or chunk of them, and returns what the client gets in its place.
        parts: all of those, in order.
        uploads: every body that clients sent to a stream, in order.
        on_upload: as `on_request`, for those.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.requests: list[bytes] = []
        self.answers: list[bytes] = []
        self.on_request: Callable[[bytes], bytes | None] = _as_is
        self.on_answer: Callable[[bytes], bytes] = _as_is
        self.on_info: Callable[[bytes], bytes] = _as_is
        self.streaming = False
        self.parts: list[bytes] = []
        self.uploads: list[bytes] = []
        self.on_part: Callable[[bytes], list[bytes]] = _one
        self.on_upload: Callable[[bytes], bytes | None] = _as_is

    def behave(self) -> None:
        """Stop all attacks."""
        self.on_request = self.on_answer = self.on_info = self.on_upload = _as_is
        self.on_part = _one

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http" or scope["path"] not in ("/mail", "/instance", "/stream"):
            await self.host(scope, receive, send)
            return
        body = await _read(receive)
        if scope["path"] != "/instance":
            upload = scope["path"] == "/stream"
            (self.uploads if upload else self.requests).append(body)
            changed = self.on_upload(body) if upload else self.on_request(body)
            if changed is None:
                # Swallowed: the client hears nothing, however long it waits.
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            body = changed
            if self.streaming:
                await self._stream(scope, body, receive, send)
                return
        status, answer = await self.inject(scope["method"], scope["path"], body)
        if scope["path"] == "/mail":
            self.answers.append(answer)
            answer = self.on_answer(answer)
        elif status == 200:
            answer = self.on_info(answer)
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _stream(self, scope: dict[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        first = [{"type": "http.request", "body": body, "more_body": False}]

        async def give() -> dict[str, Any]:
            return first.pop() if first else await receive()

        async def take(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [(n, v) for n, v in message["headers"] if n != b"content-length"]
                message = {**message, "headers": headers}
            elif scope["path"] == "/mail" and not message["body"].startswith(b"{"):
                parts = split_mails(message["body"])
                self.parts += parts
                changed = [other for part in parts for other in self.on_part(part)]
                message = {**message, "body": b"".join(len(p).to_bytes(4, "big") + p for p in changed)}
            await send(message)

        await self.host({**scope, "headers": []}, give, take)

    async def inject(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send something to the real host as the operator, and read its answer."""
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}
        sent: list[dict[str, Any]] = []

        given = False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if given:
                # The operator stays: what is asked here never leaves.
                await asyncio.Event().wait()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.host(scope, receive, send)
        return int(sent[0]["status"]), b"".join(m.get("body", b"") for m in sent[1:])


def _one(part: bytes) -> list[bytes]:
    return [part]


def _as_is(data: bytes) -> bytes:
    return data


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body
