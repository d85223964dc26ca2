"""`conclave inspect`: what an artefact is and says, in words. It verifies nothing.

Runs on anybody's machine; every artefact is untrusted, and so is what it would do
to a terminal. Of files that hold keys only the public part is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conclave._mailheader import MAX_MAIL, TO_ENCLAVE, parse_mail
from conclave.attestation.claims import (
    InstanceClaims,
    bundle_id,
    claims_digest,
    parse_claims,
    parse_instance_info,
)
from conclave.attestation.constraint import Constraint
from conclave.attestation.dcap import parse_endorsements, parse_quote
from conclave.attestation.verify import anchor_name
from conclave.bundle.keys import load_signing_key
from conclave.bundle.lockfile import parse_lock
from conclave.bundle.manifest import Manifest, parse_manifest
from conclave.cli._artefact import is_url
from conclave.cli._host import fetch_instance_info
from conclave.cli._terminal import safe
from conclave.client import Identity
from conclave.client._state import MAGIC
from conclave.errors import FormatError
from conclave.rpc.interface import interface_digest

_LONGEST: Final = 20
_KNOWN: Final = (
    "a bundle, instance info, instance claims, SGX or TDX evidence, endorsements, encrypted mail, a constraint, "
    "a manifest, a lock, a signing request, a detached signature, an author's key, an identity, a client's state"
)
_MEANING: Final = {
    "code": "exactly this program; C: in a constraint",
    "signer": "the author's key; S: in a constraint",
    "product_id": "which of the author's products; PROD:",
    "revocation_level": "only rises, when an author revokes older releases; REVOKE:",
    "mode": "release: nothing it prints leaves it; debug: the host sees output and errors",
    "runtime": "release of the enclave-side software, in its own words",
    "mrenclave": "the TEE's measurement of the runtime; RUNTIME:",
    "mrtd": "the TEE's measurement of the domain as it was launched",
    "config_id": "the bundle that the TEE launched",
    "report_data": "digest of the claims that the evidence covers",
    "interface": "digest of the methods and their types",
    "log": "which history of state it continues",
    "debug": "whether the operator can read the enclave's memory",
    "compiler": "what compiled the byte code; build with it to compare",
    "oldest_issue_date": "what EXPIRE: is held against",
    "counter": "position of this mail in its session",
    "envelope": "readable by the host, which cannot change it",
    "ciphertext_bytes": "padded: only a bucket of sizes shows",
    "reply_salt": "makes the enclave's sending key of this boot",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an artefact is, and its facts by name. Nothing in it is verified."""

    kind: str
    summary: str
    facts: dict[str, Any]


def inspect_command(source: str, *, as_json: bool) -> int:
    """Explain and print."""
    explanation = explain(source)
    if as_json:
        value = {"kind": explanation.kind, "verified": False, "summary": explanation.summary, **explanation.facts}
        print(json.dumps(value, default=bytes.hex))
        return 0
    print(f"{explanation.kind}: {explanation.summary}")
    for line in _lines(explanation.facts, "  "):
        print(line)
    print("NOT verified: this is what it says of itself.")
    return 0


def explain(source: str) -> Explanation:
    """Explain a file, the instance info of a running host, or a constraint line.

    Raises:
        FormatError, BundleError: it is none of the artefacts, or a broken one.
        TransportError: the host does not answer.
        OSError: the file cannot be read.
    """
    if is_url(source):
        return _instance_info(fetch_instance_info(source))
    path = Path(source)
    if ":" in source and not _is_file(path):
        return _constraint(source)
    with open(path, "rb") as file:
        head = file.read(_HEAD)
        if head.startswith(b"PK\3\4"):
            return _bundle(path)
        if head.startswith(_STATE):
            return _client_state(head, path)
        data = head + file.read(MAX_MAIL)
    if not data:
        raise FormatError(f"{safe(path.name)}: the file is empty")
    if len(data) > MAX_MAIL:
        raise FormatError(f"{safe(path.name)} is too large for any artefact but a bundle, and it is no bundle")
    for prefix, kind in _KINDS:
        if data.startswith(prefix):
            return kind(data, path)
    if len(data) == 96:
        return Explanation(
            "detached signature",
            "if it is one, 96 bytes: an author's public key and Ed25519 signature, for `build --signature`",
            {"public_key": data[:32], "signature": data[32:]},
        )
    try:
        return _constraint(data.decode("ascii"))
    except (UnicodeDecodeError, FormatError) as error:
        why = f" (as a constraint: {error})" if isinstance(error, FormatError) and b":" in data[:16] else ""
        raise FormatError(f"not an artefact that this release knows: it knows {_KNOWN}{why}") from None


def _is_file(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _bundle(path: Path) -> Explanation:
    from conclave.bundle import read_bundle

    bundle = read_bundle(path)
    facts = {"code": bundle.code, "signer": bundle.signer if bundle.signature else None, "bundle_id": bundle.bundle_id}
    return Explanation(
        "bundle",
        "a program and everything it loads; digests inside agree, and the signature is its signer's if there is one",
        facts | _manifest_facts(bundle.manifest),
    )


def _manifest_facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "release": manifest.release,
        "product_id": manifest.product_id,
        "revocation_level": manifest.revocation_level,
        "mode": manifest.mode,
        "python": manifest.python,
        "platform": manifest.platform,
        "compiler": manifest.compiler,
        "entry": manifest.entry,
        "interface": interface_digest(manifest.interface),
        "environment": dict(manifest.environment),
        "roster": manifest.roster,
        "quorum": manifest.quorum,
        "memory_mib": manifest.limits.memory_mib,
        "temporary_mib": manifest.limits.temporary_mib,
        "wheels": [w.path for w in manifest.wheels],
        "author_files": [f.path for f in manifest.files if f.path.startswith("app/") and "/__pycache__/" not in f.path],
        "files": len(manifest.files),
        "files_bytes": sum(f.size for f in manifest.files),
    }


def _manifest(data: bytes, _: Path) -> Explanation:
    return Explanation("manifest", "all of a bundle but the bytes of its files", _manifest_facts(parse_manifest(data)))


def _signing_request(data: bytes, _: Path) -> Explanation:
    manifest = parse_manifest(data[len(_REQUEST) :])
    return Explanation(
        "signing request", "sign these bytes with Ed25519 to become this bundle's author", _manifest_facts(manifest)
    )


def _instance_info(data: bytes, _: Path | None = None) -> Explanation:
    info = parse_instance_info(data)
    claims = parse_claims(info.claims)
    quote = parse_quote(info.evidence)
    named = bundle_id(
        code=claims.code,
        signer=claims.signer,
        product_id=claims.product_id,
        revocation_level=claims.revocation_level,
    )
    facts = {
        "claims": _claims_facts(claims, info.claims),
        "evidence": _quote_facts(info.evidence),
        "endorsements": _endorsement_facts(info.endorsements),
        "evidence_covers_the_claims": quote.report_data == claims_digest(info.claims),
        "evidence_names_the_bundle": quote.body.get("config_id") == named + bytes(32) and named == claims.bundle_id,
    }
    return Explanation(
        "instance info", "what a host says of its enclave; `conclave verify` holds it against a constraint", facts
    )


def _claims_facts(claims: InstanceClaims, encoded: bytes) -> dict[str, Any]:
    return {
        "code": claims.code,
        "signer": claims.signer if any(claims.signer) else None,
        "product_id": claims.product_id,
        "revocation_level": claims.revocation_level,
        "bundle_id": claims.bundle_id,
        "runtime": claims.runtime,
        "sandbox": claims.sandbox,
        "mode": claims.mode,
        "suite": claims.suite,
        "signing_key": claims.signing_key,
        "boot_nonce": claims.boot_nonce,
        "log": "stateless" if claims.log_id is None else claims.log_id,
        "interface": claims.interface,
        "claims_digest": claims_digest(encoded),
    }


def _claims(data: bytes, _: Path) -> Explanation:
    return Explanation(
        "instance claims", "which bundle one boot runs, and its keys", _claims_facts(parse_claims(data), data)
    )


def _quote_facts(raw: bytes) -> dict[str, Any]:
    quote = parse_quote(raw)
    named = (
        ("mrenclave", "config_id") if quote.tee == "sgx" else ("mrtd", "mrconfigid", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    )
    return {
        "format": f"{quote.tee.upper()} ECDSA quote, version {quote.version}",
        "anchor": anchor_name(quote),
        "certificates": len(quote.chain),
        "debug": quote.debug,
        **{name: quote.body[name] for name in named},
        "report_data": quote.report_data,
    }


def _quote(data: bytes, _: Path) -> Explanation:
    return Explanation("evidence", "what a processor signed about one enclave", _quote_facts(data))


def _endorsement_facts(data: bytes) -> dict[str, Any]:
    given = parse_endorsements(data)
    return {
        "oldest_issue_date": given.oldest_issue_date.isoformat(),
        "tcb_info_fmspc": given.tcb_info.fmspc,
        "tcb_info_nextUpdate": f"{given.tcb_info.next_update:%Y-%m-%dT%H:%M:%SZ}",
        "qe_identity_nextUpdate": f"{given.qe_identity.next_update:%Y-%m-%dT%H:%M:%SZ}",
    }


def _endorsements(data: bytes, _: Path) -> Explanation:
    return Explanation(
        "endorsements", "what the vendor vouches: certificates, revocation lists, TCB info", _endorsement_facts(data)
    )


def _mail(data: bytes, _: Path) -> Explanation:
    mail = parse_mail(data)
    to_enclave = mail.direction == TO_ENCLAVE
    facts: dict[str, Any] = {
        "direction": "client to enclave" if to_enclave else "enclave to client",
        "session_id": mail.session_id,
        "counter": mail.counter,
        "opening": bool(mail.opening),
        "envelope": mail.envelope,
        "ciphertext_bytes": len(mail.ciphertext),
        "total_bytes": len(data),
    }
    if not to_enclave:
        facts["reply_salt"] = mail.reply_salt
    return Explanation("encrypted mail", "what a host sees of it; sender, topic and body are encrypted", facts)


def _lock(data: bytes, path: Path) -> Explanation:
    text = data.decode(errors="replace")
    pins = parse_lock(text.partition("\n")[2], safe(path.name))
    packages = {name: f"{version} ({len(digests)} accepted wheels)" for name, (version, digests) in pins.items()}
    facts = {"dependencies_digest": text.split("\n", 1)[0].removeprefix(_LOCK.decode())[:64], "packages": packages}
    return Explanation("lock", "an enclave's dependencies, pinned by version and SHA-256", facts)


def _author_key(_: bytes, path: Path) -> Explanation:
    import hashlib

    public = load_signing_key(path).public
    facts = {"public_key": public, "signer": hashlib.sha256(public).digest()}
    return Explanation(
        "author's key", "SECRET: whoever has this file is this author; only the public part is shown", facts
    )


def _identity(_: bytes, path: Path) -> Explanation:
    facts = {"public_key": Identity.load(path).public}
    return Explanation("identity", "SECRET: whoever has this file is this client; only the public part is shown", facts)


def _client_state(head: bytes, path: Path) -> Explanation:
    facts = {"format": head.decode(errors="replace"), "total_bytes": path.stat().st_size}
    return Explanation(
        "client state",
        "requests without an answer and the box of one client, encrypted under its identity's key; "
        "a copy or an older one breaks nothing",
        facts,
    )


def _constraint(text: str) -> Explanation:
    constraint = Constraint.parse(text.strip())
    either = [f"the program {c}" for c in sorted(constraint.codes)]
    either += [f"product {constraint.product_id} of the author {s}" for s in sorted(constraint.signers)]
    years, months, days = constraint.expire or (0, 0, 0)
    levels = {
        "SECURE": "genuine, up to date, not debug",
        "STALE": "genuine, not debug; the platform may have a known reason to update",
        "INSECURE": "ONLY insecure enclaves: simulated or debug; for development",
    }
    pin = (
        f", and of the simulated TEE only the machine {constraint.simulated_anchor}"
        if constraint.simulated_anchor
        else ""
    )
    facts: dict[str, Any] = {
        "expanded": str(constraint),
        "accepts": either,
        "at_revocation_level": f"{constraint.revocation_level} or above",
        "security": levels[constraint.security],
        "tees": ", ".join(sorted(constraint.tees)) + pin,
        "runtimes": sorted(constraint.runtimes),
        "endorsements_younger_than": f"{years} years, {months} months, {days} days" if constraint.expire else None,
        "advisories_accepted": sorted(constraint.advisories),
        "minimum_tcb": dict(constraint.minimum_tcb),
        "machines": sorted(constraint.chips) or "any",
    }
    return Explanation("constraint", "which enclaves a client accepts; every clause must hold", facts)


_STATE: Final = MAGIC[:-1]
_HEAD: Final = len(MAGIC)
_REQUEST: Final = b"conclave/1 bundle\0" + bytes(64)
_LOCK: Final = b"# conclave lock 1 "
# Records begin with their number of fields, in MessagePack; a quote with version and key type.
_KINDS: Final[tuple[tuple[bytes, Callable[[bytes, Path], Explanation]], ...]] = (
    (b"CML1", _mail),
    (b"\x85\xa7version\x01\xa6format", _instance_info),
    (b"\xde\x00\x10\xa7version", _claims),
    (b"\xde\x00\x13\xa7version", _manifest),
    (_REQUEST, _signing_request),
    (bytes.fromhex("0300020000000000"), _quote),
    (bytes.fromhex("0400020000000000"), _quote),
    (bytes.fromhex("0400020081000000"), _quote),
    (bytes.fromhex("0500020000000000"), _quote),
    (bytes.fromhex("0500020081000000"), _quote),
    (b"{", _endorsements),
    (_LOCK, _lock),
    (b"conclave-author-key-1 ", _author_key),
    (b"conclave-identity-1 ", _identity),
)


def _shown(value: Any) -> str:
    if value is None or value == [] or value == {} or value == b"":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value.hex() if isinstance(value, bytes) else safe(str(value))


def _lines(facts: dict[str, Any], indent: str) -> list[str]:
    width = max((len(name) for name in facts), default=0)
    lines: list[str] = []
    for name, value in facts.items():
        # Variables of an environment are written as they are set.
        label = safe(name if name.isupper() else name.replace("_", " "))
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{label}")
            lines += _lines(value, indent + "  ")
            continue
        several = value if isinstance(value, list) and value else [value]
        shown = [_shown(v) for v in several[:_LONGEST]]
        if len(several) > _LONGEST:
            shown.append(f"and {len(several) - _LONGEST} more (--json has all)")
        meaning = f"  ({_MEANING[name]})" if name in _MEANING else ""
        lines.append(f"{indent}{label:<{width}}  {shown[0]}{meaning}")
        lines += [f"{indent}{'':<{width}}  {more}" for more in shown[1:]]
    return lines
