"""`conclave build`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conclave.errors import BundleError

if TYPE_CHECKING:
    from conclave.bundle import Bundle

_SHOWN = 20


def constraint_for(bundle: Bundle, *, simulated: bool) -> str:
    """A constraint that accepts exactly this program."""
    parts = [f"C:{bundle.code.hex()}"]
    if simulated or bundle.manifest.mode == "debug":
        parts.append("SEC:INSECURE")
    return " ".join(parts)


def build_command(
    path: Path,
    *,
    output: Path | None,
    sign: Path | None,
    request: Path | None,
    signature: Path | None,
    mode: str,
    as_json: bool,
) -> None:
    """Build, and say what was built."""
    from conclave.bundle import build, generate_key, load_signing_key, signing_request

    if sign is not None and signature is not None:
        raise BundleError("--sign signs here, --signature was made elsewhere: give one of them")
    made = None if signature is None else signature.read_bytes()
    key = None
    if sign is not None:
        if not sign.exists():
            generate_key(sign)
            print(f"made a new signing key: {sign} (keep it secret, keep a copy)", file=sys.stderr)
        key = load_signing_key(sign)
    bundle = build(path, output, mode=mode, signing_key=key, signature=made, on_progress=progress)
    if request is not None:
        request.write_bytes(signing_request(bundle))
    strict = constraint_for(bundle, simulated=False)
    # Beside the bundle, so that what clients are given need not be cut out of a terminal.
    beside = bundle.path.with_name(bundle.path.name.removesuffix(".enclave") + ".constraint")
    beside.write_text(strict + "\n")
    facts: dict[str, object] = {
        "bundle": str(bundle.path),
        "code": bundle.code.hex(),
        "signer": bundle.signer.hex(),
        "product_id": bundle.manifest.product_id,
        "revocation_level": bundle.manifest.revocation_level,
        "mode": mode,
        "constraint": strict,
        "constraint_simulated": constraint_for(bundle, simulated=True),
    }
    if any(bundle.signer):
        manifest = bundle.manifest
        facts["constraint_author"] = (
            f"S:{bundle.signer.hex()} PROD:{manifest.product_id} REVOKE:{manifest.revocation_level}"
        )
    facts["written_to"] = str(beside)
    if as_json:
        print(json.dumps(facts))
        return
    if not any(bundle.signer):
        facts["signer"] = "none (sign with --sign KEY)"
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {value}")


def verify_build(path: Path, bundle: Path, *, as_json: bool) -> int:
    """Say whether a bundle is what the source gives."""
    from conclave.bundle import reproduce
    from conclave.bundle.builder import COMPILER

    given, differences = reproduce(path, bundle, on_progress=progress)
    if as_json:
        facts = {"code": given.code.hex(), "signer": given.signer.hex(), "differences": differences}
        print(json.dumps({"reproduced": not differences, **facts}))
        return 1 if differences else 0
    if not differences:
        print(f"REPRODUCED: {path} gives exactly this program")
        print(f"code    {given.code.hex()}")
        print(f"signer  {given.signer.hex() if any(given.signer) else 'none'}")
        return 0
    print(f"DIFFERENT: {path} does not give this program")
    for difference in differences[:_SHOWN]:
        print(f"  {difference}")
    if len(differences) > _SHOWN:
        print(f"  and {len(differences) - _SHOWN} more (--json has all)")
    if given.manifest.compiler != COMPILER and all("/__pycache__/" in d for d in differences):
        print(
            f"only byte code differs: it was compiled by {given.manifest.compiler}, this is {COMPILER}; "
            "build with the same release to be sure"
        )
    return 1


def progress(text: str) -> None:
    """Progress of a build, for a person."""
    print(f"  {text}", file=sys.stderr)
