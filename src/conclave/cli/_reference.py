"""`conclave reference`: sign reference values, and read them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from conclave import _crypto
from conclave.attestation import ReferenceValues, load_reference_values, sign_reference_values
from conclave.bundle import load_signing_key
from conclave.errors import FormatError


def sign_command(values: Path, *, key: Path, output: Path) -> int:
    """Sign what a JSON file says."""
    try:
        found = msgspec.json.decode(values.read_bytes(), type=ReferenceValues)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise FormatError(f"{values} holds no reference values: {_place(error)}", code="reference-format") from None
    signer = load_signing_key(key)
    output.write_bytes(sign_reference_values(found, signer))
    print(f"wrote     {output}, number {found.number}")
    print(f"publisher {_crypto.sha256(signer.public).hex()}")
    return 0


def _place(error: Exception) -> str:
    """Where the decoder stopped, in its words: they name members and types, and quote no contents."""
    return str(error) if isinstance(error, msgspec.ValidationError) else "it is not JSON"


def show_command(path: Path, *, publisher: str, as_json: bool) -> int:
    """Verify the signature, then show what the values say."""
    values = load_reference_values(path.read_bytes(), publisher=parse_publisher(publisher))
    facts = msgspec.to_builtins(values)
    if as_json:
        print(json.dumps(facts))
        return 0
    print(f"reference values number {values.number} of {values.issued}, signature verified")
    for release, tees in values.releases.items():
        for tee, measurements in tees.items():
            for measurement in measurements:
                print(f"  {release:<20} {tee:<6} {measurement}")
    for release, bundles in values.bundles.items():
        for bundle, measurements in bundles.items():
            for measurement in measurements:
                print(f"  {release:<20} sgx    {measurement} with bundle {bundle}")
    for subject, minimum in values.minimum_tcb.items():
        print(f"  minimum TCB version  {subject} {minimum}")
    return 0


def parse_publisher(text: str) -> bytes:
    """SHA-256 of a publisher's key, from 64 hex digits. Raises FormatError."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise FormatError("a publisher is 64 hex digits: SHA-256 of the key, as `conclave reference sign` prints it")
    return found
