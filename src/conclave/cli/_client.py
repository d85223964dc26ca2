"""`conclave call`: a client on the command line."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

from conclave.attestation import Constraint
from conclave.cli._files import constraint_line
from conclave.client import Client, Identity
from conclave.errors import CallError, FormatError


def call_command(
    url: str,
    method: str,
    arguments: tuple[str, ...],
    constraint: str,
    *,
    identity: Path | None,
    timeout_seconds: float,
) -> int:
    """Call once and print the result as JSON."""
    if not url.startswith(("http://", "https://")):
        raise FormatError("the address of a host begins with http:// or https://")
    who = None if identity is None else Identity.load_or_create(identity)
    options = {
        "constraint": Constraint.parse(constraint_line(constraint)),
        "identity": who,
        "timeout_seconds": timeout_seconds,
    }
    with Client(url, **options) as client:
        try:
            result = client.call(method, *[_argument(a) for a in arguments])
        except CallError as error:
            print(f"the enclave refused the call: {error.type_name}: {error}", file=sys.stderr)
            return 1
    print(json.dumps(result, default=_plain, ensure_ascii=False))
    return 0


def _argument(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return list(value)
