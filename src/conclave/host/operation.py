"""The resources for whoever operates a host: `/healthz`, `/readyz`, `/metrics`.

Runs in the untrusted host, before the host's own resources or on a port of its own.

Spec: spec/http.md (HTTP-20 to HTTP-22).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from conclave.host.exchange import App, Receive, Scope, Send
from conclave.host.health import Health

if TYPE_CHECKING:
    from conclave.host.metrics import Metrics

_JSON: Final = b"application/json"


class Operation:
    """An ASGI application that answers operators, and passes on what else comes."""

    def __init__(self, health: Health, *, metrics: Metrics | None = None, others: App | None = None) -> None:
        """What is None is answered 404."""
        self._health = health
        self._metrics = metrics
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        answers = {"/healthz": self._live, "/readyz": self._ready}
        if self._metrics is not None:
            answers["/metrics"] = self._figures
        answer = answers.get(scope.get("path", ""))
        if answer is not None and scope["method"] in ("GET", "HEAD"):
            await answer(send)
        elif answer is not None:
            await _refuse(send, 405, "method", f"{scope['path']} takes GET", (b"allow", b"GET, HEAD"))
        elif self._others is not None:
            await self._others(scope, receive, send)
        else:
            await _refuse(send, 404, "no such resource", "here are /healthz, /readyz and /metrics")

    async def _live(self, send: Send) -> None:
        await _respond(send, 200, _JSON, b'{"status": "lives"}')

    async def _ready(self, send: Send) -> None:
        reasons = await self._health.reasons()
        body = {"status": "not ready", "reasons": reasons} if reasons else {"status": "ready"}
        await _respond(send, 503 if reasons else 200, _JSON, json.dumps(body).encode())

    async def _figures(self, send: Send) -> None:
        from conclave.host.metrics import CONTENT_TYPE

        assert self._metrics is not None
        await _respond(send, 200, CONTENT_TYPE, self._metrics.text())


async def _refuse(send: Send, status: int, word: str, detail: str, *more: tuple[bytes, bytes]) -> None:
    await _respond(send, status, _JSON, json.dumps({"error": word, "detail": detail}).encode(), *more)


async def _respond(send: Send, status: int, content_type: bytes, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
