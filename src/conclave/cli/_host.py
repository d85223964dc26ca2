"""One running host, as a relying party meets it. Nothing it says is believed here.

Spec: spec/http.md.
"""

from __future__ import annotations

import time
from typing import Final

import httpx2

from conclave import _crypto
from conclave.attestation.appraisal import Claims
from conclave.attestation.claims import MAX_INFO
from conclave.cli._files import misuse
from conclave.client._http import parse_url, unreachable
from conclave.client.core import CHALLENGE_ANSWER, Answer, check_challenge, reason_of
from conclave.errors import SignatureError, TransportError

TIMEOUT_SECONDS: Final = 10.0
# Nothing is decompressed on the way: what expands is chosen by the host.
_HEADERS: Final = {"accept-encoding": "identity"}


def fetch_instance_info(url: str) -> bytes:
    """What a host says of its enclave: at most one byte more than instance info may have.

    Raises:
        FormatError: `usage`: no address of a host.
        TransportError: nobody answers, or nothing of the kind.
    """
    try:
        parse_url(url)
    except ValueError as error:
        raise misuse(str(error)) from None
    answer = _exchange("GET", f"{url.rstrip('/')}/instance", limit=MAX_INFO)
    if answer.status != 200:
        raise TransportError(f"the host gives no instance info (status {answer.status}): {reason_of(answer)}")
    return answer.body


def challenge(url: str, claims: Claims) -> None:
    """Check that the instance of these verified claims is alive now.

    Raises:
        SignatureError: `challenge-signature`: somebody else answered.
        TransportError: nobody did.
    """
    # Evidence without an instance comes from a file, never from a host.
    assert claims.instance is not None
    nonce = _crypto.random_bytes(32)
    answer = _exchange("POST", f"{url.rstrip('/')}/challenge", limit=CHALLENGE_ANSWER, body=nonce)
    try:
        check_challenge(claims.instance, claims.claims_digest, nonce, answer)
    except SignatureError:
        raise SignatureError(
            "another than the verified instance answered the challenge", code="challenge-signature"
        ) from None


def _exchange(method: str, url: str, *, limit: int, body: bytes = b"") -> Answer:
    """One request; the answer is bounded in size and time, since a host may drip for ever."""
    data, until = bytearray(), time.monotonic() + TIMEOUT_SECONDS
    try:
        with httpx2.stream(method, url, timeout=TIMEOUT_SECONDS, headers=_HEADERS, content=body) as answer:
            for part in answer.iter_raw():
                data += part
                if len(data) > limit:
                    break
                if time.monotonic() > until:
                    raise TransportError(f"no whole answer within {TIMEOUT_SECONDS:g} seconds")
            # One byte too many is enough to be refused for it.
            return Answer(answer.status_code, bytes(data[: limit + 1]))
    except httpx2.ConnectError as error:
        raise TransportError(unreachable(error)) from None
    except httpx2.TimeoutException:
        raise TransportError(
            f"nothing answers there within {TIMEOUT_SECONDS:g} seconds; is it a conclave host?"
        ) from None
    except httpx2.HTTPError as error:
        raise TransportError(f"the connection to the host broke ({type(error).__name__})") from None
