"""`conclave call`: a client on the command line."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

from conclave.attestation import Constraint
from conclave.cli._artefact import NO_URL, is_url
from conclave.cli._files import constraint_line, misuse
from conclave.cli._terminal import safe
from conclave.client import Client, Identity
from conclave.errors import CallError
from conclave.rpc.http import HttpExchange
from conclave.rpc.interface import interface_of


def call_command(
    url: str,
    method: str,
    arguments: tuple[str, ...],
    constraint: str,
    *,
    identity: Path | None,
    state: Path | None,
    timeout_seconds: float,
    deadline_seconds: float | None,
) -> int:
    """Call once and print the result as JSON; before that, say what became of what a call before left."""
    urls = url.split(",")
    if not all(is_url(u) for u in urls):
        raise misuse(NO_URL)
    if state is not None and identity is None:
        raise misuse("--state goes with --identity, whose key encrypts it")
    who = None if identity is None else Identity.load_or_create(identity)
    options = {
        "constraint": Constraint.parse(constraint_line(constraint)),
        "identity": who,
        "timeout_seconds": timeout_seconds,
        "deadline_seconds": deadline_seconds,
        "state": state,
    }
    try:
        made = Client(urls, **options)
    except ValueError as error:
        raise misuse(str(error)) from None
    with made as client:
        for resumed in client.resume() if client.unanswered else ():
            how = "its outcome is unknown" if resumed.error is not None else "it has its answer now"
            print(f"an earlier call of {safe(resumed.method)} was unfinished: {how}", file=sys.stderr)
        try:
            result = client.call(method, *[_argument(a) for a in arguments])
        except CallError as error:
            print(f"error ({error.code}): {_refusal(error)}", file=sys.stderr)
            if client.instance.claims.interface == interface_of(HttpExchange).digest():
                print("it serves HTTP: talk to it with httpx2 and conclave.client.MailTransport", file=sys.stderr)
            return 1
    print(json.dumps(result, default=_plain, ensure_ascii=False))
    return 0


def _refusal(error: CallError) -> str:
    """A declared error with its name; of any other the enclave says nothing more."""
    if error.type_name == "error":
        return f"{safe(str(error))}; under `conclave run` its terminal has the traceback"
    return safe(f"{error.type_name}: {error}")


def _argument(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return list(value)
