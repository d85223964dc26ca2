"""Makes the constraint vectors. Every answer is written down by hand from spec/constraint.md.

Nothing of `conclave` is imported. A case has a `text`, and either the error that
reading it gives (`format`), or its `written` form and what it says of the verified
`facts`, of which the measurement is one that the verifier knows for the release:
`ok` with a security level, or `appraisal` with the clauses that refuse.

Usage: python vectors/constraint/generate.py [DIRECTORY]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CODE, OTHER, SIGNER = "c0" * 32, "0d" * 32, "5e" * 32
MEASUREMENT, ANCHOR = "3e" * 32, "a0" * 32
RUNTIME = "RUNTIME:conclave-9.9.9"
HARDWARE = "TEE:nitro,sgx,snp,tdx"
# A signed release bundle on an up-to-date SGX processor.
FACTS = {
    "code": CODE,
    "signer": SIGNER,
    "product_id": 7,
    "revocation_level": 3,
    "runtime": "conclave-9.9.9",
    "mode": "release",
    "tee": "sgx",
    "debug": False,
    "tcb_status": "UpToDate",
    "advisories": [],
    "measurement": MEASUREMENT,
    "oldest_issue_date": "2026-02-28T12:00:01Z",
    "now": "2026-03-31T12:00:00Z",
}
C = f"C:{CODE}"
S = f"S:{SIGNER} PROD:7"


def case(name: str, spec: str, comment: str, expect: str, text: str, **rest: Any) -> dict[str, Any]:
    return {"id": f"constraint/{name}", "spec": spec, "comment": comment, "expect": expect, "text": text, **rest}


def accepted(
    name: str, spec: str, comment: str, text: str, written: str, security: str = "SECURE", **facts: Any
) -> dict[str, Any]:
    return case(name, spec, comment, "ok", text, written=written, security=security, facts=FACTS | facts)


def refused(
    name: str, spec: str, comment: str, text: str, written: str, clauses: list[str], **facts: Any
) -> dict[str, Any]:
    return case(name, spec, comment, "appraisal", text, written=written, clauses=clauses, facts=FACTS | facts)


def broken(name: str, spec: str, comment: str, text: str) -> dict[str, Any]:
    return case(name, spec, comment, "format", text)


def cases() -> list[dict[str, Any]]:
    tail = f"SEC:SECURE {HARDWARE} {RUNTIME}"
    swh = {"tcb_status": "SWHardeningNeeded", "advisories": ["INTEL-SA-00334", "INTEL-SA-00615"]}
    simulated = {"tee": "simulated"}
    insecure = f"{C} REVOKE:0 SEC:INSECURE TEE:nitro,sgx,simulated,snp,tdx {RUNTIME}"
    everything = (
        f"{C} S:{OTHER} {S} REVOKE:2 SEC:INSECURE EXPIRE:P1Y2M24D TEE:sgx,simulated@{ANCHOR} "
        f"RUNTIME:{MEASUREMENT} {RUNTIME} ADVISORIES:INTEL-SA-00334,INTEL-SA-00615"
    )
    return [
        accepted("code", "CON-2", "One program, everything else by default.", f"{C} {RUNTIME}", f"{C} REVOKE:0 {tail}"),
        accepted("signer", "CON-2", "An author's product.", f"{S} {RUNTIME}", f"{S} REVOKE:0 {tail}"),
        accepted(
            "either",
            "CON-2",
            "Another program, but the author is right; sorted, repeated clauses merged, lower case.",
            f"{RUNTIME}  PROD:00007 S:{SIGNER.upper()} C:{OTHER}   C:{OTHER.upper()} ",
            f"C:{OTHER} {S} REVOKE:0 {tail}",
        ),
        accepted(
            "everything",
            "CON-10",
            "Every clause; months carried into years, weeks into days.",
            f"TEE:simulated@{ANCHOR.upper()},sgx ADVISORIES:INTEL-SA-00615,INTEL-SA-00334 EXPIRE:P14M3W3D "
            f"{RUNTIME} RUNTIME:{MEASUREMENT} S:{SIGNER} S:{OTHER} PROD:7 REVOKE:2 SEC:INSECURE {C}",
            everything,
            "INSECURE",
            **simulated,
        ),
        accepted(
            "insecure", "CON-5", "A simulated TEE.", f"{C} SEC:INSECURE {RUNTIME}", insecure, "INSECURE", **simulated
        ),
        accepted(
            "insecure-debug",
            "CON-4",
            "A debug bundle on hardware.",
            f"{C} SEC:INSECURE {RUNTIME}",
            insecure,
            "INSECURE",
            mode="debug",
        ),
        refused(
            "insecure-matches-only-insecure",
            "CON-5",
            "A secure enclave is not an insecure one.",
            f"{C} SEC:INSECURE {RUNTIME}",
            insecure,
            ["SEC"],
        ),
        refused("debug", "CON-4", "A debug bundle.", f"{C} {RUNTIME}", f"{C} REVOKE:0 {tail}", ["SEC"], mode="debug"),
        refused(
            "debug-attribute",
            "CON-4",
            "A TEE that can be debugged.",
            f"{C} {RUNTIME}",
            f"{C} REVOKE:0 {tail}",
            ["SEC"],
            debug=True,
        ),
        refused(
            "other-program",
            "CON-2",
            "Neither code nor signer.",
            f"C:{OTHER} {RUNTIME}",
            f"C:{OTHER} REVOKE:0 {tail}",
            ["C/S"],
        ),
        refused(
            "other-product",
            "CON-12",
            "PROD applies to a program that C names, too.",
            f"{C} S:{OTHER} PROD:8 {RUNTIME}",
            f"{C} S:{OTHER} PROD:8 REVOKE:0 {tail}",
            ["PROD"],
        ),
        refused(
            "revoked-level",
            "CON-12",
            "An older release.",
            f"{C} REVOKE:4 {RUNTIME}",
            f"{C} REVOKE:4 {tail}",
            ["REVOKE"],
        ),
        refused(
            "stale",
            "CON-4",
            "A platform with a reason to update.",
            f"{C} {RUNTIME}",
            f"{C} REVOKE:0 {tail}",
            ["SEC"],
            **swh,
        ),
        accepted(
            "stale-accepted",
            "CON-4",
            "The same, accepted.",
            f"{C} SEC:STALE {RUNTIME}",
            f"{C} REVOKE:0 SEC:STALE {HARDWARE} {RUNTIME}",
            "STALE",
            **swh,
        ),
        accepted(
            "advisories",
            "CON-6",
            "All listed advisories are accepted by name.",
            f"{C} ADVISORIES:INTEL-SA-00615,INTEL-SA-00334 {RUNTIME}",
            f"{C} REVOKE:0 {tail} ADVISORIES:INTEL-SA-00334,INTEL-SA-00615",
            **swh,
        ),
        refused(
            "advisories-one-more",
            "CON-6",
            "One listed advisory is not named.",
            f"{C} ADVISORIES:INTEL-SA-00615 {RUNTIME}",
            f"{C} REVOKE:0 {tail} ADVISORIES:INTEL-SA-00615",
            ["SEC"],
            **swh,
        ),
        refused(
            "advisories-none-listed",
            "CON-6",
            "The vendor names no advisory, so none was accepted.",
            f"{C} ADVISORIES:INTEL-SA-00615 {RUNTIME}",
            f"{C} REVOKE:0 {tail} ADVISORIES:INTEL-SA-00615",
            ["SEC"],
            tcb_status="SWHardeningNeeded",
        ),
        refused(
            "advisories-out-of-date",
            "CON-6",
            "OutOfDate is never lifted.",
            f"{C} ADVISORIES:INTEL-SA-00334,INTEL-SA-00615 {RUNTIME}",
            f"{C} REVOKE:0 {tail} ADVISORIES:INTEL-SA-00334,INTEL-SA-00615",
            ["SEC"],
            **(swh | {"tcb_status": "OutOfDate"}),
        ),
        accepted(
            "expire",
            "CON-7",
            "A month before 31 March is 28 February; issued a second after that.",
            f"{C} EXPIRE:P1M {RUNTIME}",
            f"{C} REVOKE:0 SEC:SECURE EXPIRE:P0Y1M0D {HARDWARE} {RUNTIME}",
        ),
        refused(
            "expire-too-old",
            "CON-7",
            "Issued exactly a month before.",
            f"{C} EXPIRE:P1M {RUNTIME}",
            f"{C} REVOKE:0 SEC:SECURE EXPIRE:P0Y1M0D {HARDWARE} {RUNTIME}",
            ["EXPIRE"],
            oldest_issue_date="2026-02-28T12:00:00Z",
        ),
        refused(
            "other-tee",
            "CON-8",
            "Genuine, of another vendor.",
            f"{C} TEE:snp,tdx {RUNTIME}",
            f"{C} REVOKE:0 SEC:SECURE TEE:snp,tdx {RUNTIME}",
            ["TEE"],
        ),
        refused(
            "simulated",
            "CON-8",
            "A simulated TEE is no hardware.",
            f"{C} SEC:INSECURE TEE:sgx {RUNTIME}",
            f"{C} REVOKE:0 SEC:INSECURE TEE:sgx {RUNTIME}",
            ["TEE"],
            **simulated,
        ),
        accepted(
            "measurement",
            "CON-11",
            "The runtime by its measurement.",
            f"{C} RUNTIME:{MEASUREMENT.upper()}",
            f"{C} REVOKE:0 SEC:SECURE {HARDWARE} RUNTIME:{MEASUREMENT}",
        ),
        refused(
            "release-says-measurement",
            "CON-11",
            "A runtime whose release spells the measurement asked for.",
            f"{C} RUNTIME:{MEASUREMENT}",
            f"{C} REVOKE:0 SEC:SECURE {HARDWARE} RUNTIME:{MEASUREMENT}",
            ["RUNTIME"],
            runtime=MEASUREMENT,
            measurement=OTHER,
        ),
        refused(
            "every-reason",
            "CON-9",
            "A refusal lists every clause.",
            f"S:{OTHER} PROD:8 REVOKE:4 EXPIRE:P1D TEE:tdx RUNTIME:conclave-9.9.8",
            f"S:{OTHER} PROD:8 REVOKE:4 SEC:SECURE EXPIRE:P0Y0M1D TEE:tdx RUNTIME:conclave-9.9.8",
            ["C/S", "PROD", "REVOKE", "SEC", "EXPIRE", "TEE", "RUNTIME"],
            **swh,
        ),
        broken("empty", "CON-2", "Nothing.", ""),
        broken("nothing-named", "CON-2", "Neither program nor author.", "SEC:STALE"),
        broken("signer-alone", "CON-3", "S without PROD.", f"S:{SIGNER}"),
        broken("product-alone", "CON-3", "PROD without S.", f"{C} PROD:7"),
        broken("unsigned", "CON-3", "The signer of every unsigned bundle.", f"S:{'0' * 64} PROD:7"),
        broken("simulated-secure", "CON-8", "A simulated TEE as if it were secure.", f"{C} TEE:simulated"),
        broken("pin-of-hardware", "CON-1", "Only a simulated machine can be pinned.", f"{C} TEE:sgx@{ANCHOR}"),
        broken("unknown-clause", "CON-1", "A clause nobody knows.", f"{C} FOO:1"),
        broken("lower-case", "CON-1", "Names are case-sensitive.", f"c:{CODE}"),
        broken("no-value", "CON-1", "A clause without value.", f"{C} SEC:"),
        broken("twice", "CON-1", "A clause that is not repeatable.", f"{C} SEC:STALE SEC:STALE"),
        broken("short-hash", "CON-1", "63 digits.", f"C:{CODE[1:]}"),
        broken("number", "CON-1", "Above 65535.", f"{C} REVOKE:65536"),
        broken("period", "CON-1", "No part.", f"{C} EXPIRE:P"),
        broken("period-too-long", "CON-7", "Months carry years above 9999.", f"{C} EXPIRE:P9999Y12M"),
        broken("tee-twice", "CON-1", "A TEE twice.", f"{C} TEE:sgx,sgx"),
        broken("digits", "CON-1", "Digits outside ASCII.", f"{C} REVOKE:\uff13"),
        broken("newline", "CON-1", "A line end is no space.", f"{C}\n"),
        broken("too-long", "CON-1", "16385 characters.", C + " " * (16385 - len(C))),
    ]


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for item in cases():
        path = target / f"{item['id'].partition('/')[2]}.json"
        path.write_text(json.dumps(item, indent=2) + "\n")


if __name__ == "__main__":
    main()
