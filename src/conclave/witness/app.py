"""What a witness serves over HTTP (ASGI).

Runs in a witness; whoever asks is untrusted.

Spec: spec/witness.md section 5.
"""

from __future__ import annotations

from typing import Final

from conclave.host.answers import Refusal, read_body, refuse, respond
from conclave.host.exchange import Receive, Scope, Send
from conclave.persistence.witness import ADVANCE_PATH, HEAD_PATH, MAX_MESSAGE
from conclave.witness.ledger import Ledger

CONTENT_TYPE: Final = b"application/vnd.conclave.witness"


class Witness:
    """An ASGI application over one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        try:
            status, body = await self._answer(scope, receive)
        except Refusal as refusal:
            await refuse(send, refusal)
        else:
            await respond(send, status, CONTENT_TYPE, body)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        path, method = scope["path"], scope["method"]
        if path not in (HEAD_PATH, ADVANCE_PATH):
            raise Refusal(404, "no such resource", f"here are {HEAD_PATH}, {ADVANCE_PATH}, /healthz and /readyz")
        if method != "POST":
            raise Refusal(405, "method", f"{path} takes POST")
        body = await read_body(scope, receive, MAX_MESSAGE)
        if path == HEAD_PATH:
            return 200, await self._ledger.head(body)
        taken, answer = await self._ledger.advance(body)
        return 200 if taken else 409, answer
