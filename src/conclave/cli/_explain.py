"""The answer of `conclave verify` in words: in short, or step by step.

Everything that evidence and certificates say is shown escaped; lines have at most 100
columns, and no colours.

Spec: spec/verify.md section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from conclave.attestation.appraisal import Claims
from conclave.attestation.dcap import parse_quote
from conclave.cli._answer import Answer
from conclave.cli._steps import BINDING, LIVENESS, STEPS, advice, failed_step
from conclave.cli._terminal import safe, wrapped
from conclave.errors import FormatError

_NAMES: Final = {
    "sgx": "Intel SGX",
    "tdx": "Intel TDX",
    "snp": "AMD SEV-SNP",
    "nitro": "AWS Nitro",
    "simulated": "a simulated TEE",
}
_WORDS: Final = {
    "accepted": "ACCEPTED",
    "authentic": "AUTHENTIC",
    "refused": "REFUSED",
    "not-authentic": "NOT AUTHENTIC",
    "malformed": "MALFORMED",
}
_LEVELS: Final = {
    "SECURE": "genuine, up to date, not debug",
    "STALE": "genuine, with a known reason to update, or nothing known about that",
    "INSECURE": "the operator may see or change what is inside",
}
_JUDGED: Final = ("tee", "security", "tcb_status", "reasons", "advisories", "valid_from", "valid_until")
_SIGNED: Final = (
    "tcb_version",
    "debug",
    "remarks",
    "measurements",
    "runtime_measurement",
    "report_data",
    "chip",
    "anchor",
)
_CLAIMS: Final = (
    "mode",
    "code",
    "signer",
    "product_id",
    "revocation_level",
    "runtime",
    "sandbox",
    "log_id",
    "claims_digest",
)
_COLUMN: Final = 23


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer, and what its explanation needs beside it.

    Attributes:
        kind: of the evidence, as far as it was recognised; else empty.
        instance: whether the evidence came in instance info.
        evidence: its bytes. Untrusted.
        claims: what verified, if it did.
        alive: whether the instance answered a challenge.
    """

    answer: Answer
    kind: str = ""
    instance: bool = False
    evidence: bytes = b""
    claims: Claims | None = None
    alive: bool = False


def summary(answer: Answer) -> list[str]:
    """The verdict and the facts, or the verdict and why."""
    if answer.verdict in ("accepted", "authentic"):
        return [_WORDS[answer.verdict], *_facts(answer, _JUDGED + _SIGNED)]
    # Each clause stays on one line, where scripts look for it.
    first = f"{_title(answer)}: {answer.message}" + (":" if answer.failures else "")
    return [safe(first), *(f"  {safe(failure)}" for failure in answer.failures)]


def explained(finding: Finding) -> list[str]:
    """Step by step, what it means, and the verdict."""
    answer = finding.answer
    what = "something of no known shape"
    if finding.kind:
        whole = "instance info" if finding.instance else "evidence"
        what = f"{whole} of {_NAMES[answer.tee or finding.kind]}"
    lines = [f"{what}, as of {answer.at}", ""]
    if finding.claims is not None:
        lines += [*_told(finding, finding.claims), "", "What it means", *_meaning(answer), ""]
        lines += ["What was signed", *_facts(answer, _SIGNED), ""]
    elif finding.kind and answer.verdict != "refused":
        lines += [*_failed(finding), ""]
    lines += wrapped("", f"{_title(answer)}: {answer.message}", indent=0)
    for failure in answer.failures:
        lines += wrapped("  - ", failure, indent=4)
    if finding.claims is None and answer.code and answer.verdict != "refused":
        lines += ["", *wrapped("What to do: ", advice(answer.code), indent=12)]
    return lines


def _title(answer: Answer) -> str:
    return _WORDS[answer.verdict] + (f" ({answer.code})" if answer.code else "")


def _told(finding: Finding, claims: Claims) -> Iterator[str]:
    steps = [(s.name, s.detail) for s in claims.evidence.steps]
    if claims.instance is not None:
        bundle = claims.instance.bundle_id.hex()
        steps.append((BINDING, f"the TEE holds bundle {bundle}, and the evidence covers these claims"))
    if finding.alive:
        steps.append((LIVENESS, "the verified instance signed a fresh challenge"))
    for number, (name, detail) in enumerate(steps, 1):
        yield from wrapped(f"{number:>3}. {name}", detail, indent=30)


def _failed(finding: Finding) -> Iterator[str]:
    answer, names = finding.answer, list(STEPS[finding.kind])
    if finding.instance:
        names += [BINDING, LIVENESS]
    held, step = failed_step(finding.kind, answer.code or "", carries_certificates=_carries_certificates(finding))
    if step == 0:
        yield "It does not parse, so that no step was taken."
        return
    for number, name in enumerate(names[: max(step, len(STEPS[finding.kind]))], 1):
        if number == step:
            yield from wrapped(f"{number:>3}. {name}", f"FAILED: {answer.message}", indent=30)
        else:
            # Between the two it is not known: several steps give this code.
            state = "ok" if number <= held else "" if number < step else "not reached"
            yield f"{number:>3}. {name}".ljust(30).rstrip() if not state else f"{number:>3}. {name}".ljust(30) + state


def _carries_certificates(finding: Finding) -> bool:
    try:
        return finding.kind not in ("sgx", "tdx") or bool(parse_quote(finding.evidence).chain)
    except FormatError:
        return False


def _meaning(answer: Answer) -> Iterator[str]:
    level = answer.security or "INSECURE"
    yield from wrapped("", f"  {level}: {_LEVELS[level]}.", indent=2)
    for reason in answer.reasons:
        yield from wrapped("    because ", reason, indent=12)
    if answer.advisories:
        yield from wrapped("    see ", ", ".join(answer.advisories), indent=12)
    yield f"    it holds from {answer.valid_from} until {answer.valid_until}"


def _facts(answer: Answer, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        value = getattr(answer, name)
        for each in value if name == "reasons" else [value]:
            yield from _fact("because" if name == "reasons" else name, each)
    for name in _CLAIMS if answer.claims is not None else ():
        yield from _fact(name, getattr(answer.claims, name))


def _fact(name: str, value: Any) -> Iterator[str]:
    label = f"  {name.replace('_', ' ')}"
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _fact(f"{name[:3]} {key}" if str(key).isdigit() else str(key), inner)
    elif name == "log_id" and value is None:
        yield "  log".ljust(_COLUMN) + "stateless"
    elif name == "signer" and not value.strip("0"):
        yield "  signer".ljust(_COLUMN) + "unsigned"
    elif value not in (None, []):
        yield from wrapped(label, _shown(value), indent=_COLUMN)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    text = str(value)
    return f"zeros ({len(text) // 2} bytes)" if len(text) >= 32 and not text.strip("0") else text
