"""What every TEE driver must do, as tests that a driver's author runs.

For tests. Subclass `TeeConformance` in a test module as `Test…`, say how a machine is
launched, and pytest finds the rest; nothing here needs pytest itself.

Spec: spec/drivers.md section 1 (DRV-1 to DRV-6, DRV-29).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from conclave.attestation.binding import bound_digest, names_bundle
from conclave.attestation.evidence import EvidenceClaims
from conclave.enclave.drivers import Evidence, Mounted, Tee
from conclave.enclave.drivers.tee import MAX_CONTEXT, POLICIES, REPORT_DATA_SIZE
from conclave.errors import UnsupportedPolicy

_THREADS = 8
_ROUNDS = 4
# What may differ between two pieces of evidence of one boot, besides what was asked for.
_OWN = frozenset({"user_data", "timestamp_ms", "report_id_ma"})


def _program(name: str, *, signer: str = "author", product_id: int = 1, revocation_level: int = 2) -> Mounted:
    author = hashlib.sha256(signer.encode()).digest() if signer else bytes(32)
    return Mounted(hashlib.sha256(name.encode()).digest(), author, product_id, revocation_level)


PROGRAM = _program("program")
OTHERS = {
    "of the same author": _program("another program"),
    "of another author": _program("program", signer="somebody else"),
    "another product": _program("program", product_id=2),
    "another level": _program("program", revocation_level=3),
    "unsigned": _program("program", signer=""),
}


class TeeConformance:
    """The contract of a driver.

    Attributes:
        policies: to which parts of the identity this TEE binds sealing keys.
    """

    policies: ClassVar[frozenset[str]] = frozenset()

    def launch(self, mounted: Mounted) -> Tee:
        """Start that bundle on one and the same machine, as its operator would; a driver nobody used yet."""
        raise NotImplementedError

    def verify(self, evidence: Evidence) -> EvidenceClaims:
        """Verify evidence of that machine with the production verifier, under its test anchor."""
        raise NotImplementedError

    def started(self, mounted: Mounted = PROGRAM) -> Tee:
        """A driver as author code finds it."""
        tee = self.launch(mounted)
        identity = tee.identity(mounted)
        assert identity.bundle_id == mounted.bundle_id
        tee.check_closed()
        return tee

    # Identity ----------------------------------------------------------------------------

    def test_identity_is_that_of_the_bundle_and_stays(self) -> None:
        """It names the bundle that was launched, again for a runtime that starts anew."""
        tee = self.launch(PROGRAM)
        first = tee.identity(PROGRAM)
        assert first.bundle_id == PROGRAM.bundle_id
        assert first.tee == tee.kind
        assert tee.identity(PROGRAM) == first

    def test_evidence_names_the_bundle(self) -> None:
        """A verifier finds the bundle where the specification says, and no other."""
        tee = self.started()
        claims = self.verify(tee.evidence(bytes(REPORT_DATA_SIZE)))
        assert names_bundle(claims, PROGRAM.bundle_id, tee=tee.kind)
        for name, other in OTHERS.items():
            # Where the measurement covers the bundle, reference values tell bundles apart.
            assert tee.kind == "sgx" or not names_bundle(claims, other.bundle_id, tee=tee.kind), name
            there = self.started(other)
            theirs = self.verify(there.evidence(bytes(REPORT_DATA_SIZE)))
            assert theirs.measurements != claims.measurements or theirs.details != claims.details, name

    # Evidence ----------------------------------------------------------------------------

    def test_evidence_echoes_the_report_data(self) -> None:
        """All 64 bytes, whatever they are."""
        tee = self.started()
        for data in (bytes(64), b"\xff" * 64, bytes(range(64)), b"\0" * 63 + b"\1"):
            evidence = tee.evidence(data)
            assert bound_digest(self.verify(evidence)) == data

    def test_two_pieces_of_evidence_differ_in_their_report_data_alone(self) -> None:
        """And in what the vendor puts there anew each time."""
        tee = self.started()
        first, second = (self.verify(tee.evidence(data)) for data in (bytes(64), b"\1" * 64))
        assert bound_digest(first) != bound_digest(second)
        assert _rest(first) == _rest(second)

    def test_report_data_of_another_size(self) -> None:
        """Is a mistake of the caller's, and nothing is asked."""
        tee = self.started()
        for size in (0, 1, 32, 63, 65, 128, 4096):
            _refused(partial(tee.evidence, bytes(size)), ValueError)
        assert bound_digest(self.verify(tee.evidence(b"\2" * 64))) == b"\2" * 64

    def test_threads_get_their_own_evidence(self) -> None:
        """Calls at one time do not mix."""
        tee = self.started()

        def work(number: int) -> None:
            for turn in range(_ROUNDS):
                data = bytes((number, turn)) * 32
                assert bound_digest(self.verify(tee.evidence(data))) == data

        with ThreadPoolExecutor(_THREADS) as pool:
            for done in [pool.submit(work, number) for number in range(_THREADS)]:
                done.result()

    # Sealing keys ------------------------------------------------------------------------

    def test_sealing_keys_are_stable_and_apart(self) -> None:
        """By policy and context; again after a start anew; at one time in many threads."""
        tee = self.started()
        contexts = (b"", b"\0", b"context", b"contexT", bytes(MAX_CONTEXT))
        keys = {(p, c): tee.sealing_key(p, c) for p in sorted(self.policies) for c in contexts}
        assert all(len(key) == 32 and any(key) for key in keys.values())
        assert len(set(keys.values())) == len(keys)
        again = self.started()
        with ThreadPoolExecutor(_THREADS) as pool:
            assert dict(zip(keys, pool.map(lambda use: again.sealing_key(*use), keys), strict=True)) == keys

    def test_sealing_keys_belong_to_what_their_policy_binds(self) -> None:
        """`code` to the program; `signer` to author and level; `product` to the product besides."""
        mine = {policy: self.started().sealing_key(policy) for policy in self.policies}
        same = {
            "of the same author": {"signer", "product"},
            "another product": {"signer"},
            "unsigned": set(),
        }
        for name, other in OTHERS.items():
            tee = self.started(other)
            for policy in self.policies:
                if policy != "code" and not any(other.signer):
                    _refused(partial(tee.sealing_key, policy), UnsupportedPolicy)
                elif policy != "code" or other.code != PROGRAM.code:
                    equal = tee.sealing_key(policy) == mine[policy]
                    assert equal == (policy in same.get(name, set())), (name, policy)

    def test_a_newer_release_has_the_keys_of_older_ones(self) -> None:
        """By author, and by author and product; each level's own key, in whichever release."""
        levels = [self.started(_program(f"release {n}", revocation_level=n)) for n in range(4)]
        for policy in sorted(self.policies - {"code"}):
            keys = [tee.sealing_key(policy, b"context") for tee in levels]
            assert len(set(keys)) == len(keys)
            for own, tee in enumerate(levels):
                asked = [tee.sealing_key(policy, b"context", level=level) for level in range(own + 1)]
                assert asked == keys[: own + 1], (policy, own)
                assert tee.sealing_key(policy, b"other", level=0) != keys[0]
            stranger = self.started(_program("release 3", signer="somebody else", revocation_level=3))
            assert stranger.sealing_key(policy, b"context", level=0) not in keys
            other = self.started(_program("release 3", product_id=2, revocation_level=3))
            assert (other.sealing_key(policy, b"context", level=0) == keys[0]) == (policy == "signer")

    def test_levels_of_which_a_program_has_no_key(self) -> None:
        """Above its own, or another than its own of what is bound to exact code, and none that there is."""
        tee, own = self.started(), PROGRAM.revocation_level
        for policy in sorted(self.policies):
            assert tee.sealing_key(policy, level=own) == tee.sealing_key(policy)
            for level in (own + 1, 65535, 65536, -1, *((0, own - 1) if policy == "code" else ())):
                assert "KDS" in str(_refused(partial(tee.sealing_key, policy, level=level), UnsupportedPolicy))
        for policy in {*POLICIES, "machine"} - self.policies:
            for level in (0, own, own + 1):
                assert "KDS" in str(_refused(partial(tee.sealing_key, policy, level=level), UnsupportedPolicy))

    def test_policies_that_cannot_be_bound(self) -> None:
        """Are refused by name, with the way out."""
        tee = self.started()
        for policy in {*POLICIES, "", "CODE", "code ", "machine"} - self.policies:
            assert "KDS" in str(_refused(partial(tee.sealing_key, policy), UnsupportedPolicy))

    def test_a_context_that_is_too_long(self) -> None:
        """Is a mistake of the caller's."""
        tee = self.started()
        for policy in POLICIES:
            _refused(partial(tee.sealing_key, policy, bytes(MAX_CONTEXT + 1)), ValueError)


def _rest(claims: EvidenceClaims) -> EvidenceClaims:
    details = {name: value for name, value in claims.details.items() if name not in _OWN}
    return replace(claims, report_data=None, details=details, steps=())


def _refused(work: Callable[[], Any], kind: type[Exception]) -> Exception:
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, and nothing was raised")
