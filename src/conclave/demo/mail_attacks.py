"""Everything an operator can do to mail, each attempt refused by enclave or client.

Runs as the operator: it acts on the bytes that pass through its host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from conclave.client import Client
from conclave.client.core import split_mails
from conclave.demo.refusal import Background, Told, refusal, until
from conclave.demo.stage import Stage
from conclave.errors import Error, SequenceError, TransportError
from conclave.testing import HostServer


def attack_mail(stage: Stage, server: HostServer, constraint: str) -> None:
    """Everything an operator can do to mail."""
    operator = server.operator

    def client(timeout_seconds: float = 20.0) -> Client:
        made = Client(server.url, constraint=constraint, timeout_seconds=timeout_seconds, attempts=1)
        made.verify()
        return made

    def tamper() -> str:
        operator.on_request = lambda m: m[:-1] + bytes([m[-1] ^ 1])
        with client() as c:
            return refusal(TransportError, lambda: c.call("contribute", [], []), "could not decrypt")

    def truncate() -> str:
        operator.on_request = _shortened
        with client() as c:
            return refusal(TransportError, lambda: c.call("contribute", [], []), "could not decrypt")

    def tamper_reply() -> str:
        operator.on_answer = lambda a: a[:-1] + bytes([a[-1] ^ 1]) if a else a
        with client() as c:
            said = refusal(TransportError, lambda: c.call("contribute", [], []), "nothing authentic")
            if not c.refused_mails:
                raise Told("the client took an altered reply")
            return said

    def replay() -> str:
        with client() as c:
            _call(c)
            first = operator.requests[-1]
            _call(c)  # acknowledges the first reply
            status, body = server.run(operator.inject("POST", "/mail", first))
            # A signed statement on the state goes before it.
            reply = _open(c, split_mails(body)[-1])
            if status != 200 or reply.kind != 3:
                raise Told(f"a replayed mail was handled: {status}")
            return f"sequence {reply.answers} again, expected {reply.expected}; no handler ran"

    def replay_reply() -> str:
        with client() as c:
            _call(c)
            old = operator.answers[-1]
            operator.on_answer = lambda a: old
            said = refusal(TransportError, lambda: c.call("contribute", [], []), "nothing authentic")
            if not c.refused_mails:
                raise Told("the client took an old reply")
            return said

    def reorder() -> str:
        with client(timeout_seconds=3.0) as c:
            _call(c)
            held: list[bytes] = []

            def swap(mail: bytes) -> bytes | None:
                held.append(mail)
                return None if len(held) == 1 else mail

            operator.on_request = swap
            late = Background(lambda: c.call("contribute", [], []))
            until(lambda: len(held) == 1)
            said = refusal(SequenceError, lambda: c.call("contribute", [], []), "")
            late.result()
            return said

    def drop() -> str:
        with client(timeout_seconds=3.0) as c:
            _call(c)
            count = 0

            def swallow(mail: bytes) -> bytes | None:
                nonlocal count
                count += 1
                return None if count == 1 else mail

            operator.on_request = swallow
            missing = Background(lambda: c.call("contribute", [], []))
            until(lambda: count == 1)
            after = refusal(SequenceError, lambda: c.call("contribute", [], []), "")
            error = missing.result()
            if not isinstance(error, TransportError):
                raise Told(f"the missing mail was not reported: {error!r}")
            return f"next one: {after}; missing one: reported by time-out"

    def cross_wire() -> str:
        with client() as alice, client() as bob:
            _call(alice)
            for_alice = operator.answers[-1]
            operator.on_answer = lambda a: for_alice
            said = refusal(TransportError, lambda: bob.call("contribute", [], []), "nothing authentic")
            if not bob.refused_mails:
                raise Told("Bob took Alice's mail")
            return f"Alice's mail does not decrypt for Bob; {said}"

    attacks: list[tuple[str, str, Callable[[], str]]] = [
        ("tamper with a mail", "enclave", tamper),
        ("tamper with a reply", "client", tamper_reply),
        ("truncate a mail and mend its size field", "enclave", truncate),
        ("replay a mail", "enclave", replay),
        ("replay a reply", "client", replay_reply),
        ("reorder two mails", "enclave", reorder),
        ("drop a mail", "enclave and client", drop),
        ("cross-wire two clients", "client", cross_wire),
    ]
    for attempt, by, act in attacks:
        operator.behave()
        stage.expect(attempt, by, act)
    operator.behave()


def _shortened(mail: bytes) -> bytes:
    """A mail cut by seven bytes, its ciphertext size (offset 64) made to fit."""
    size = int.from_bytes(mail[64:68], "big") - 7
    return (mail[:64] + size.to_bytes(4, "big") + mail[68:])[:-7]


def _call(client: Client) -> None:
    """A call that reaches the handler; the enclave refuses strangers, which is an answer."""
    with contextlib.suppress(Error):
        client.call("contribute", [], [])


def _open(client: Client, mail: bytes) -> Any:
    session = client._core._topics["default"].conversation.session
    assert session is not None
    return session.decrypt(mail)
