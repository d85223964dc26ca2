"""`python -m mutation`: every check taken out in turn; writes KILLED.txt.

    python -m mutation              all, the test named last time first
    python -m mutation --new        those that KILLED.txt does not have yet
    python -m mutation session.py   those whose name contains this text

Exit status 1: a mutant survives that EQUIVALENT.txt does not explain.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutation.mutants import Mutant, mutants
from mutation.runner import EQUIVALENT, KILLED, failing_test, read

_VECTORS = "tests/vectors/test_evidence_vectors.py"
_WITNESS = ["tests/vectors/test_witness_vectors.py", "tests/unit/test_witness.py", "tests/adversary/test_witness.py"]
# By the longest beginning of a file's name.
_FAST = {
    "attestation": [
        "tests/unit/test_verify.py",
        "tests/unit/test_constraint.py",
        "tests/unit/test_appraisal.py",
        "tests/unit/test_binding.py",
        "tests/unit/test_reference.py",
        "tests/unit/test_claims.py",
        "tests/vectors/test_claims_vectors.py",
        "tests/vectors/test_constraint_vectors.py",
        "tests/unit/test_inspect.py",
        "tests/adversary/test_evidence.py",
    ],
    "attestation/appraisal.py": [
        "tests/unit/test_appraisal.py",
        "tests/unit/test_constraint.py",
        "tests/unit/test_verify.py",
        "tests/adversary/test_evidence.py",
    ],
    "attestation/reference.py": ["tests/unit/test_reference.py", "tests/unit/test_appraisal.py"],
    "attestation/tcb.py": ["tests/unit/test_appraisal.py"],
    "attestation/_x509.py": ["tests/unit/test_x509.py", _VECTORS],
    "attestation/_der.py": ["tests/unit/test_der.py", _VECTORS],
    "attestation/dcap": [
        _VECTORS,
        "tests/unit/test_dcap_tcb.py",
        "tests/unit/test_dcap_pck.py",
        "tests/unit/test_dcap_tdx.py",
        "tests/unit/test_dcap_json.py",
        "tests/unit/test_dcap.py",
        "tests/adversary/test_evidence.py",
    ],
    "attestation/snp": [_VECTORS, "tests/unit/test_snp_report.py", "tests/unit/test_snp_verify.py"],
    "attestation/nitro": [_VECTORS, "tests/unit/test_nitro_document.py", "tests/unit/test_nitro_verify.py"],
    "attestation/announced.py": ["tests/unit/test_rehearse.py"],
    "attestation/expiry.py": ["tests/unit/test_rehearse.py"],
    "attestation/gaps.py": ["tests/unit/test_rehearse.py"],
    "attestation/rehearse.py": ["tests/unit/test_rehearse.py", "tests/unit/test_tcb_command.py"],
    "mail": [
        "tests/unit/test_mail_checks.py",
        "tests/unit/test_mail.py",
        "tests/unit/test_opened_ahead.py",
        "tests/unit/test_mail_logs.py",
        "tests/unit/test_padding.py",
        "tests/unit/test_strands.py",
        "tests/adversary/test_sessions.py",
        "tests/unit/test_mail_streams.py",
        "tests/vectors/test_mail_vectors.py",
        "tests/unit/test_peers.py",
        "tests/unit/test_posts.py",
        "tests/unit/test_client_core.py",
        "tests/unit/test_client_logs.py",
        "tests/adversary/test_mail.py",
        "tests/adversary/test_mail_logs.py",
        "tests/adversary/test_traffic.py",
    ],
    "mail/padding.py": ["tests/unit/test_padding.py", "tests/unit/test_mail_checks.py"],
    "mail/stream.py": ["tests/unit/test_mail_streams.py", "tests/vectors/test_mail_vectors.py"],
    "mail/post.py": [
        "tests/unit/test_post.py",
        "tests/unit/test_posts.py",
        "tests/unit/test_box.py",
        "tests/vectors/test_post_vectors.py",
    ],
    "bundle": [
        "tests/vectors/test_bundle_vectors.py",
        "tests/unit/test_bundle.py",
        "tests/adversary/test_bootstrap.py",
    ],
    "client": [
        "tests/unit/test_client_core.py",
        "tests/unit/test_rpc.py",
        "tests/unit/test_hosts.py",
        "tests/unit/test_peers.py",
        "tests/unit/test_pace.py",
        "tests/unit/test_box.py",
        "tests/unit/test_client_state.py",
        "tests/unit/test_client_logs.py",
    ],
    "persistence": ["tests/unit/persistence", "tests/vectors/test_state_vectors.py"],
    "persistence/witness.py": _WITNESS,
    "witness": _WITNESS,
    "_codec.py": ["tests/unit/test_claims.py", "tests/vectors/test_claims_vectors.py"],
    "_framing.py": ["tests/unit/test_framing.py", "tests/unit/test_batches.py", "tests/adversary/test_host_channel.py"],
    "_mailheader.py": [
        "tests/unit/test_mail_checks.py",
        "tests/unit/test_mail.py",
        "tests/unit/test_post.py",
        "tests/vectors/test_mail_vectors.py",
    ],
    "_chunkheader.py": ["tests/unit/test_mail_streams.py", "tests/vectors/test_mail_vectors.py"],
}
_SLOW = ["tests/adversary", "tests/conformance", "tests/unit/test_machine.py", "tests/unit/test_verify.py"]


def main(wanted: str) -> int:
    known, excused = read(KILLED), read(EQUIVALENT)
    everything = mutants()
    chosen = [m for m in everything if m.name not in excused]
    chosen = [m for m in chosen if (m.name not in known if wanted == "--new" else wanted in m.name)]
    places: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as root:
        for number in range(2):
            places.put(Path(root) / str(number))
        with ThreadPoolExecutor(2) as pool:
            killers = list(pool.map(lambda m: _kill(m, known.get(m.name), places), chosen))
    survivors = [m for m, killer in zip(chosen, killers, strict=True) if killer is None]
    known |= {m.name: killer for m, killer in zip(chosen, killers, strict=True) if killer is not None}
    lines = ["# Each check taken out, and the test that fails without it. `python -m mutation` writes this.", ""]
    for mutant in everything:
        if mutant.name in known and mutant not in survivors:
            lines += [mutant.name, f"    {known[mutant.name]}"]
    KILLED.write_text("\n".join(lines) + "\n")
    print(f"{len(chosen)} mutants, {len(survivors)} survive, {len(excused)} excused")
    return 1 if survivors else 0


def _fast(file: str) -> list[str]:
    return _FAST[max((name for name in _FAST if file.startswith(name)), key=len)]


def _kill(mutant: Mutant, last: str | None, places: SimpleQueue[Path]) -> str | None:
    place = places.get()
    try:
        killer = failing_test(mutant, [last], place, slow=True) if last else None
        killer = killer or failing_test(mutant, _fast(mutant.file), place)
        killer = killer or failing_test(mutant, _SLOW, place, slow=True)
    except RuntimeError as error:
        print(error, flush=True)
        killer = None
    finally:
        places.put(place)
    print(f"{'killed  ' if killer else 'SURVIVES'} {mutant.name}\n         {killer or ''}", flush=True)
    return killer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
