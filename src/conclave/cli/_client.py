"""`conclave verify` and `conclave call`: the relying party on the command line."""

from __future__ import annotations

import base64
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conclave.attestation import AttestationResult, Constraint, verify_instance
from conclave.client import Client, Identity
from conclave.errors import AppraisalError, CallError, FormatError, VerificationError


def read_constraint(text: str) -> Constraint:
    """The constraint line itself, or a file that holds it."""
    if ":" not in text or Path(text).is_file():
        text = Path(text).read_text()
    return Constraint.parse(text.strip())


def verify_command(source: str, constraint_text: str, *, as_json: bool) -> int:
    """Appraise, say what was found."""
    constraint = read_constraint(constraint_text)
    try:
        if source.startswith(("http://", "https://")):
            with Client(source, constraint=constraint) as client:
                result = client.verify()
                client.challenge()
        else:
            info = Path(source).read_bytes()
            result = verify_instance(info, constraint, now=datetime.now(UTC))
    except (AppraisalError, VerificationError) as error:
        if as_json:
            print(json.dumps({"accepted": False, "error": error.code, "detail": str(error)}))
        else:
            print(f"REFUSED ({error.code}): {error}", file=sys.stderr)
        return 1
    facts = describe(result)
    if as_json:
        print(json.dumps({"accepted": True, **facts}))
    else:
        print("ACCEPTED")
        for name, value in facts.items():
            print(f"  {name.replace('_', ' '):<18} {value}")
    return 0


def describe(result: AttestationResult) -> dict[str, Any]:
    """An attestation result as plain values."""
    claims = result.claims
    return {
        "tee": result.tee,
        "security": result.security,
        "tcb_status": result.tcb_status,
        "mode": claims.mode,
        "code": claims.code.hex(),
        "signer": claims.signer.hex(),
        "product_id": claims.product_id,
        "revocation_level": claims.revocation_level,
        "runtime": claims.runtime,
        "measurement": result.measurement.hex(),
        "sandbox": claims.sandbox,
        "log": "stateless" if claims.log_id is None else claims.log_id.hex(),
        "claims_digest": result.claims_digest.hex(),
    }


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
    options = {"constraint": read_constraint(constraint), "identity": who, "timeout_seconds": timeout_seconds}
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
