"""Bodies and answers of HTTP requests, as ASGI has them.

Runs in the untrusted host.

Spec: spec/http.md.
"""

from __future__ import annotations

import json

from conclave.host.exchange import Receive, Scope, Send


class Refusal(Exception):
    """An HTTP error answer."""

    def __init__(self, status: int, word: str, detail: str) -> None:
        self.status = status
        self.word = word
        self.detail = detail
        super().__init__(detail)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body of a request. Raises Refusal if it is too large, or never comes whole."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise Refusal(413, "too large", f"at most {limit} bytes are taken")
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            # Half a body is none: what is cut off here must not be acted on.
            raise Refusal(400, "format", "the client left before its request was whole")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > limit:
            raise Refusal(413, "too large", f"at most {limit} bytes are taken")
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def refuse(send: Send, refusal: Refusal) -> None:
    """Answer with an error: its status, word and advice."""
    body = json.dumps({"error": refusal.word, "detail": refusal.detail}).encode()
    await respond(send, refusal.status, b"application/json", body)


async def respond(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    """Answer with a whole body."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
