from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._facts import MEASUREMENT, NOW, OF_EVIDENCE, evidence

import conclave
from conclave import _crypto
from conclave.attestation import Claims, Constraint, InstanceClaims, appraise, reference
from conclave.attestation.appraisal import _before
from conclave.attestation.constraint import HARDWARE, LEVELS, MAX_LENGTH
from conclave.errors import AppraisalError, FormatError

CODE, SIGNER = "c0" * 32, "5e" * 32
RUNTIME = "conclave-9.9.9"
C = f"C:{CODE}"
S = f"S:{SIGNER} PROD:7"
OURS = f"conclave-{conclave.__version__}"


@pytest.fixture(autouse=True)
def _known_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement of both releases is one that the library knows."""
    known = {release: {tee: [MEASUREMENT] for tee in HARDWARE} for release in (RUNTIME, OURS)}
    monkeypatch.setattr(reference, "_built_in", msgspec.structs.replace(reference.built_in(), releases=known))


def facts(**changes: Any) -> Claims:
    """Verified claims of a release enclave on an up-to-date SGX processor."""
    fields: dict[str, Any] = {
        "version": 1,
        "bundle_id": bytes(32),
        "code": bytes.fromhex(CODE),
        "signer": bytes.fromhex(SIGNER),
        "product_id": 7,
        "revocation_level": 3,
        "runtime": RUNTIME,
        "sandbox": "namespaces",
        "mode": "release",
        "suite": _crypto.SUITE_ID,
        "encryption_key": bytes(1216),
        "signing_key": bytes(32),
        "boot_nonce": bytes(32),
        "log_id": None,
        "kds_constraint": None,
        "interface": bytes(32),
    }
    instance = InstanceClaims(**(fields | {k: v for k, v in changes.items() if k in fields}))
    verified = Claims(
        instance=instance,
        claims_digest=instance.digest(),
        tee="sgx",
        evidence=evidence(**{k: v for k, v in changes.items() if k in OF_EVIDENCE}),
        measurement=bytes.fromhex(MEASUREMENT),
        verified_at=NOW,
    )
    return replace(verified, **{k: v for k, v in changes.items() if k not in OF_EVIDENCE and k not in fields})


def accepts(text: str, **changes: Any) -> str:
    """The security level of what the constraint accepts."""
    if "RUNTIME:" not in text:
        text += f" RUNTIME:{RUNTIME}"
    return appraise(Constraint.parse(text), facts(**changes)).security


def refuses(text: str, *expected: str, **changes: Any) -> None:
    """Every reason, in order; each says expected, actual and what to do."""
    if "RUNTIME:" not in text:
        text += f" RUNTIME:{RUNTIME}"
    with pytest.raises(AppraisalError) as caught:
        appraise(Constraint.parse(text), facts(**changes))
    failures = caught.value.failures
    assert len(failures) == len(expected), failures
    for failure, pattern in zip(failures, expected, strict=True):
        assert re.search(pattern, failure), failure
        assert failure in str(caught.value)


def test_a_result_carries_what_was_verified() -> None:
    given = facts(advisories=("INTEL-SA-1",))
    result = appraise(Constraint.parse(f"{C} RUNTIME:{RUNTIME}"), given)
    assert result.claims is given.instance
    for name in ("claims_digest", "tee", "evidence", "measurement", "verified_at"):
        assert getattr(result, name) == getattr(given, name)
    for name in ("tcb_status", "advisories", "anchor", "oldest_issue_date"):
        assert getattr(result, name) == getattr(given.evidence, name)


# Grammar.


@pytest.mark.spec("CON-1")
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "   ",
        "C",
        "C:",
        ":",
        f":{CODE}",
        CODE,
        f"c:{CODE}",
        f"D:{CODE}",
        f"{C} FOO:1",
        f"{C} RUNTIME",
        f"{C}:",
        f"{C} SEC:",
        f"{C} SEC:secure",
        f"{C} SEC:GOOD",
        f"{C} SEC: SECURE",
        f"{C} SEC:SECURE,STALE",
        f"C:{CODE[:-1]}",
        f"C:{CODE}0",
        f"C:{CODE[:-1]}g",
        f"C:{CODE},{CODE}",
        f"C:0x{CODE[2:]}",
        f"S:{SIGNER[:-1]} PROD:1",
        f"{C}\n",
        f"{C}\tSEC:STALE",
        f"{C}\nSEC:STALE",
        f"{C}\0",
        f"{S[:-1]}-1",
        f"{S[:-1]}+1",
        f"{S[:-1]}65536",
        f"{S[:-1]}000001",
        f"{S[:-1]}1.0",
        f"{S[:-1]}1_0",
        f"{C} REVOKE:-1",
        f"{C} REVOKE:65536",
        f"{C} REVOKE:x",
        f"{C} EXPIRE:30",
        f"{C} EXPIRE:P",
        f"{C} EXPIRE:PD",
        f"{C} EXPIRE:P1H",
        f"{C} EXPIRE:PT1M",
        f"{C} EXPIRE:P1D1M",
        f"{C} EXPIRE:P-1D",
        f"{C} EXPIRE:P1.5D",
        f"{C} EXPIRE:p1d",
        f"{C} EXPIRE:P10000Y",
        f"{C} EXPIRE:P9999Y12M",
        f"{C} EXPIRE:P99999D1W",
        f"{C} EXPIRE:P9999W99999D",
        f"{C} TEE:",
        f"{C} TEE:SGX",
        f"{C} TEE:sgx,",
        f"{C} TEE:,sgx",
        f"{C} TEE:sgx,sgx",
        f"{C} TEE:sev",
        f"{C} TEE:sgx@{CODE}",
        f"{C} SEC:INSECURE TEE:simulated@",
        f"{C} SEC:INSECURE TEE:simulated@{CODE[:-1]}",
        f"{C} SEC:INSECURE TEE:simulated,simulated@{CODE}",
        f"{C} RUNTIME:",
        f"{C} RUNTIME:a/b",
        f"{C} RUNTIME:{'a' * 64}x",
        f"{C} RUNTIME:{'g' * 64}",
        f"{C} ADVISORIES:",
        f"{C} ADVISORIES:,",
        f"{C} ADVISORIES:A,",
        f"{C} ADVISORIES:intel",
        f"{C} ADVISORIES:{'A' * 33}",
    ],
)
def test_what_does_not_parse(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        Constraint.parse(text)
    # A message repeats nothing of the text, which may come from anywhere, but a clause that is none.
    assert CODE not in str(caught.value)


@pytest.mark.spec("CON-1")
@pytest.mark.parametrize(
    "text",
    [
        f"{C} RUNTIME:cönclave",
        f"{C} EXPIRE:P٣٠D",  # Arabic digits, which int() accepts
        f"{C} REVOKE:３",
        f"{C}\u00a0SEC:STALE",
        f"{C} \ud800",
        "ſ:1",
    ],
)
def test_ascii_only(text: str) -> None:
    with pytest.raises(FormatError, match="ASCII characters only"):
        Constraint.parse(text)


@pytest.mark.spec("CON-1")
@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("FOO:1", " 'FOO:1'"),
        ("sec:insecure", " 'sec:insecure'"),
        ("nonsense", " 'nonsense'"),
        ("A\x1b[2J\n:1", r" 'A\x1b[2J\n:1'"),
        ("B:" + "1" * 31, f" 'B:{'1' * 30}'…"),
        # A key, out of the wrong file.
        ("5" * 64, ""),
    ],
)
def test_an_unknown_clause_is_named(word: str, shown: str) -> None:
    with pytest.raises(FormatError) as caught:
        Constraint.parse(f"{C} {word}")
    assert str(caught.value).startswith(f"unknown clause{shown} in the constraint; known: C:, S:, PROD:")


@pytest.mark.spec("CON-1")
def test_size() -> None:
    fits = f"{C} " + " " * (MAX_LENGTH - len(C) - 1)
    assert len(fits) == MAX_LENGTH
    assert Constraint.parse(fits).codes == {CODE}
    with pytest.raises(FormatError, match=f"at most {MAX_LENGTH} characters"):
        Constraint.parse(fits + " ")


@pytest.mark.spec("CON-1", "CON-10")
def test_size_when_written_out() -> None:
    many = [f"C:{n:064x}" for n in range(MAX_LENGTH // 67)]
    assert len(" ".join(many)) <= MAX_LENGTH
    with pytest.raises(FormatError, match="written out"):
        Constraint.parse(" ".join(many))
    kept = Constraint.parse(" ".join(many[:-2]))
    assert Constraint.parse(str(kept)) == kept


@pytest.mark.spec("CON-1")
@pytest.mark.parametrize("clause", ["PROD:7", "REVOKE:1", "SEC:STALE", "EXPIRE:P1D", "TEE:sgx", "ADVISORIES:A"])
def test_given_more_than_once(clause: str) -> None:
    name = clause.partition(":")[0]
    with pytest.raises(FormatError, match=f"{name}: is given more than once"):
        Constraint.parse(f"{C} {S} {clause} {clause}".replace(S, f"S:{SIGNER}" if name == "PROD" else ""))


@pytest.mark.spec("CON-1")
def test_clauses_in_any_order_with_any_number_of_spaces() -> None:
    one = Constraint.parse(f"C:{CODE} C:{SIGNER} REVOKE:1 SEC:STALE")
    assert one == Constraint.parse(f"  SEC:STALE   C:{SIGNER.upper()} REVOKE:00001 C:{CODE}  C:{CODE} ")


@pytest.mark.spec("CON-2")
def test_a_constraint_names_a_program_or_an_author() -> None:
    for text in ("SEC:STALE", "PROD:1", "TEE:sgx", "RUNTIME:conclave-0.1.0"):
        with pytest.raises(FormatError, match="at least one program"):
            Constraint.parse(text)


@pytest.mark.spec("CON-3")
@pytest.mark.parametrize("text", [f"S:{SIGNER}", f"{C} S:{SIGNER}", f"{C} PROD:7"])
def test_s_and_prod_need_each_other(text: str) -> None:
    with pytest.raises(FormatError, match="S: and PROD: need each other"):
        Constraint.parse(text)


@pytest.mark.spec("CON-3")
def test_nobodys_signature_cannot_be_accepted() -> None:
    with pytest.raises(FormatError, match="stands for unsigned bundles"):
        Constraint.parse(f"S:{'0' * 64} PROD:0")
    refuses(S, "C/S", signer=bytes(32))


# Which program.


@pytest.mark.spec("CON-2")
def test_program_or_author() -> None:
    other = "0d" * 32
    assert accepts(C) == "SECURE"
    assert accepts(S) == "SECURE"
    assert accepts(f"C:{other} {C}") == "SECURE"
    assert accepts(f"S:{other} {S}") == "SECURE"
    assert accepts(f"C:{other} {S}") == "SECURE"
    assert accepts(f"{C} S:{other} PROD:7") == "SECURE"
    refuses(f"C:{other}", f"^C/S: expected C:{other}, got C:{CODE} S:{SIGNER}: .*put its code into the constraint")
    refuses(f"S:{other} PROD:7", f"^C/S: expected S:{other}, got C:{CODE} S:{SIGNER}")
    # A code is not an author, nor the other way round.
    refuses(f"C:{SIGNER}", "^C/S")
    refuses(f"S:{CODE} PROD:7", "^C/S")


@pytest.mark.spec("CON-9")
@pytest.mark.parametrize("mode", ["debug", "release"])
def test_a_refusal_says_what_explains_most_of_them(mode: str) -> None:
    # Nobody's signature is no 64 zeros to look for, and `conclave run` and a release are two programs.
    found = f"got C:{CODE}, unsigned: this is another program, in {mode} mode \\(a release has another code than"
    failures = ["^SEC"] if mode == "debug" else []
    refuses(f"C:{'0d' * 32}", found, *failures, mode=mode, signer=bytes(32))


@pytest.mark.spec("CON-12")
def test_product() -> None:
    refuses(f"S:{SIGNER} PROD:8", "^PROD: expected 8, got 7: .*change PROD")
    refuses(f"{C} S:{SIGNER} PROD:8", "^PROD: expected 8, got 7")
    assert accepts(S, product_id=7) == "SECURE"
    assert accepts(f"S:{SIGNER} PROD:0", product_id=0) == "SECURE"
    assert accepts(C, product_id=65535) == "SECURE"


@pytest.mark.spec("CON-12")
def test_revocation_level() -> None:
    for level in (0, 2, 3):
        assert accepts(f"{C} REVOKE:{level}") == "SECURE"
    refuses(f"{C} REVOKE:4", "^REVOKE: expected at least 4, got 3: .*ask the operator to upgrade")
    refuses(f"{S} REVOKE:65535", "^REVOKE")
    assert accepts(C, revocation_level=0) == "SECURE"


# How secure.

STALE = ("SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
OUTDATED = ("OutOfDate", "OutOfDateConfigurationNeeded")


@pytest.mark.spec("CON-4")
@pytest.mark.parametrize("status", [*STALE, *OUTDATED])
def test_a_platform_with_a_reason_to_update(status: str) -> None:
    got = f"got STALE \\(sgx, TCB {status}, release mode\\), because TCB {status}: [^;]*"
    hint = "ask the operator to update the platform, or accept SEC:STALE$"
    for text in (C, f"{C} SEC:SECURE"):
        refuses(text, f"^SEC: expected SECURE, {got}; {hint}", tcb_status=status)
    assert accepts(f"{C} SEC:STALE", tcb_status=status) == "STALE"


@pytest.mark.spec("CON-4")
def test_more_secure_than_asked_for() -> None:
    assert accepts(f"{C} SEC:STALE") == "SECURE"


INSECURE: list[dict[str, Any]] = [{"debug": True}, {"mode": "debug"}, {"tee": "simulated"}]


@pytest.mark.spec("CON-4", "CON-5", "CLM-9")
@pytest.mark.parametrize("why", INSECURE)
@pytest.mark.parametrize("status", ["UpToDate", *STALE, *OUTDATED])
def test_insecure_whatever_the_tcb_status(why: dict[str, Any], status: str) -> None:
    changes = {**why, "tcb_status": status, "advisories": ("A",)}
    assert accepts(f"{C} SEC:INSECURE", **changes) == "INSECURE"
    assert accepts(f"{C} SEC:INSECURE ADVISORIES:A", **changes) == "INSECURE"
    if why.get("tee") != "simulated":
        for wanted in ("SECURE", "STALE"):
            refuses(
                f"{C} SEC:{wanted} ADVISORIES:A", f"^SEC: expected {wanted}, got INSECURE .*SEC:INSECURE", **changes
            )


@pytest.mark.spec("CON-5")
@pytest.mark.parametrize("status", ["UpToDate", *STALE, *OUTDATED])
def test_insecure_matches_only_insecure(status: str) -> None:
    refuses(
        f"{C} SEC:INSECURE",
        "^SEC: INSECURE matches only insecure enclaves, got (SECURE|STALE) .*remove SEC:INSECURE",
        tcb_status=status,
    )


@pytest.mark.spec("CON-8")
@pytest.mark.parametrize("rest", ["", " SEC:SECURE", " SEC:STALE"])
def test_simulated_is_named_only_with_insecure(rest: str) -> None:
    for tee in ("simulated", "sgx,simulated", f"simulated@{CODE}"):
        with pytest.raises(FormatError, match="accepted only together with SEC:INSECURE"):
            Constraint.parse(f"{C} TEE:{tee}{rest}")
        assert Constraint.parse(f"{C} TEE:{tee} SEC:INSECURE").security == "INSECURE"


@pytest.mark.spec("CON-6")
def test_advisories_lift_when_all_are_named() -> None:
    for status in STALE:
        assert accepts(f"{C} ADVISORIES:A,B", tcb_status=status, advisories=("A", "B")) == "SECURE"
        assert accepts(f"{C} ADVISORIES:A,B,C", tcb_status=status, advisories=("A",)) == "SECURE"
        refuses(f"{C} ADVISORIES:A", "^SEC", tcb_status=status, advisories=("A", "B"))
        # A status without a reason cannot have been accepted by name.
        refuses(f"{C} ADVISORIES:A", "^SEC", tcb_status=status, advisories=())
        assert accepts(f"{C} SEC:STALE ADVISORIES:A", tcb_status=status, advisories=("B",)) == "STALE"
    for status in OUTDATED:
        refuses(f"{C} ADVISORIES:A", "^SEC", tcb_status=status, advisories=("A",))


# How old.


@pytest.mark.spec("CON-7")
@pytest.mark.parametrize(
    ("period", "begin"),
    [
        ("P1D", datetime(2026, 3, 30, 12, tzinfo=UTC)),
        ("P30D", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("P4W", datetime(2026, 3, 3, 12, tzinfo=UTC)),
        ("P1W3D", datetime(2026, 3, 21, 12, tzinfo=UTC)),
        ("P1M", datetime(2026, 2, 28, 12, tzinfo=UTC)),  # a day that February lacks
        ("P25M", datetime(2024, 2, 29, 12, tzinfo=UTC)),
        ("P12M", datetime(2025, 3, 31, 12, tzinfo=UTC)),
        ("P1Y", datetime(2025, 3, 31, 12, tzinfo=UTC)),
        ("P1Y2M1W1D", datetime(2025, 1, 23, 12, tzinfo=UTC)),
        ("P0D", NOW),
        ("P2024Y", datetime(2, 3, 31, 12, tzinfo=UTC)),
        ("P9999Y", datetime.min.replace(tzinfo=UTC)),
        ("P2024Y99999D", datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_age_of_the_oldest_endorsement(period: str, begin: datetime) -> None:
    text = f"{C} EXPIRE:{period}"
    assert _before(NOW, Constraint.parse(text).expire or (0, 0, 0)) == begin
    assert accepts(text, oldest_issue_date=begin + timedelta(seconds=1)) == "SECURE"
    pattern = (
        f"^EXPIRE: expected .*the oldest endorsement is of {begin.year:04}-.*ask the operator to fetch new endorsements"
    )
    refuses(text, pattern, oldest_issue_date=begin)


@pytest.mark.spec("CON-7")
def test_no_age_of_its_own() -> None:
    assert Constraint.parse(C).expire is None
    assert accepts(C, oldest_issue_date=datetime(2000, 1, 1, tzinfo=UTC)) == "SECURE"


@settings(deadline=None)
@given(
    st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)),
    st.tuples(st.integers(0, 9999), st.integers(0, 11), st.integers(0, 99999)),
)
def test_going_back_any_period(moment: datetime, period: tuple[int, int, int]) -> None:
    assert datetime.min.replace(tzinfo=UTC) <= _before(moment, period) <= moment


# Which hardware.


@pytest.mark.spec("CON-8")
def test_tee() -> None:
    assert Constraint.parse(C).tees == set(HARDWARE)
    assert Constraint.parse(f"{C} SEC:STALE").tees == set(HARDWARE)
    assert Constraint.parse(f"{C} SEC:INSECURE").tees == {*HARDWARE, "simulated"}
    assert accepts(f"{C} TEE:sgx,tdx", tee="tdx") == "SECURE"
    refuses(f"{C} TEE:tdx,snp", "^TEE: expected snp, tdx, got sgx; add it to TEE: if you accept it")
    refuses(f"{C} SEC:INSECURE TEE:sgx", "^TEE: expected sgx, got simulated", tee="simulated")
    refuses(C, "^SEC", "^TEE: expected nitro, sgx, snp, tdx, got simulated", tee="simulated")
    pinned = Constraint.parse(f"{C} SEC:INSECURE TEE:sgx,simulated@{CODE.upper()}")
    assert (pinned.tees, pinned.simulated_anchor) == ({"sgx", "simulated"}, CODE)


# Which runtime.


@pytest.mark.spec("CON-11")
@pytest.mark.spec("CON-11", "T-23")
def test_a_release_is_only_a_word_on_hardware() -> None:
    other = bytes.fromhex("4e" * 32)
    refuses(C, "^RUNTIME: expected .*the reference values know no such measurement of that release", measurement=other)
    assert accepts(f"{C} RUNTIME:{other.hex()}", measurement=other) == "SECURE"
    # On a simulated machine nothing vouches for measurements either way.
    assert accepts(f"{C} SEC:INSECURE", tee="simulated", measurement=other) == "INSECURE"


@pytest.mark.spec("CON-11")
def test_a_pinned_measurement_of_sgx_is_one_programs() -> None:
    other = bytes.fromhex("4e" * 32)
    assert accepts(f"{C} RUNTIME:{other.hex()}", measurement=other) == "SECURE"
    for several in (f"{C} {S}", f"{C} C:{'00' * 32}"):
        refuses(f"{several} RUNTIME:{other.hex()}", "^RUNTIME: .* is pinned, but not for which", measurement=other)


def test_no_release_on_hardware_is_published_yet() -> None:
    script = (
        "from conclave.attestation.reference import built_in as b; print(b().releases, b().bundles, b().minimum_tcb)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "{} {} {}\n"


def test_runtime() -> None:
    assert Constraint.parse(C).runtimes == {OURS}
    assert accepts(f"{C} RUNTIME:{OURS}", runtime=OURS) == "SECURE"
    assert appraise(Constraint.parse(C), facts(runtime=OURS)).security == "SECURE"
    pattern = f"^RUNTIME: expected {OURS}, got {RUNTIME} with measurement {MEASUREMENT}; upgrade .* or name the release"
    refuses(f"{C} RUNTIME:{OURS}", pattern)
    assert accepts(f"{C} RUNTIME:{OURS} RUNTIME:{RUNTIME}") == "SECURE"
    assert accepts(f"{C} RUNTIME:{MEASUREMENT.upper()}") == "SECURE"
    refuses(f"{C} RUNTIME:{'0' * 64}", "^RUNTIME")


@pytest.mark.spec("CON-11")
def test_a_release_cannot_pass_itself_off_as_a_measurement() -> None:
    # The release is what the runtime says of itself; the measurement is what the TEE says.
    refuses(f"{C} RUNTIME:{MEASUREMENT}", "^RUNTIME", runtime=MEASUREMENT, measurement=bytes(32))


# Refusals.


@pytest.mark.spec("CON-9")
def test_a_refusal_lists_every_reason() -> None:
    refuses(
        f"S:{CODE} PROD:1 REVOKE:9 EXPIRE:P1D TEE:tdx RUNTIME:{'0' * 64}",
        "^C/S: expected .*got",
        "^PROD: expected .*got",
        "^REVOKE: expected .*got",
        "^SEC: expected .*got",
        "^EXPIRE: expected .*the oldest endorsement is of",
        "^TEE: expected .*got",
        "^RUNTIME: expected .*got",
        tcb_status="OutOfDate",
    )


@pytest.mark.spec("CON-9")
def test_codes_of_both_errors() -> None:
    assert (FormatError.code, AppraisalError.code) == ("format", "appraisal")


# Writing out.


@pytest.mark.spec("CON-10")
def test_written_out() -> None:
    assert str(Constraint.parse(C)) == f"{C} REVOKE:0 SEC:SECURE TEE:nitro,sgx,snp,tdx RUNTIME:{OURS}"
    text = (
        f"{C} {S} REVOKE:2 SEC:INSECURE EXPIRE:P1Y2M3D TEE:sgx,simulated@{CODE} "
        f"RUNTIME:{MEASUREMENT} RUNTIME:conclave-0.1.0 ADVISORIES:INTEL-SA-1,INTEL-SA-2"
    )
    assert str(Constraint.parse(text)) == text


_hashes = st.integers(0, 2**256 - 1).map(lambda n: f"{n:064x}")
_releases = st.from_regex(r"[A-Za-z0-9._-]{1,63}", fullmatch=True)
_clauses = st.fixed_dictionaries(
    {},
    optional={
        "REVOKE": st.integers(0, 65535).map(str),
        "SEC": st.sampled_from(LEVELS),
        "EXPIRE": st.tuples(*[st.integers(0, 9999) | st.none()] * 4)
        .filter(any)
        .map(lambda p: "P" + "".join(f"{n}{u}" for n, u in zip(p, "YMWD", strict=True) if n is not None)),
        "TEE": st.lists(st.sampled_from((*HARDWARE, "simulated")), min_size=1, unique=True).map(",".join),
        "ADVISORIES": st.lists(st.from_regex(r"[A-Z0-9-]{1,32}", fullmatch=True), min_size=1).map(",".join),
    },
)


@pytest.mark.spec("CON-10")
@settings(deadline=None)
@given(
    st.lists(_hashes, max_size=3),
    st.lists(_hashes.filter(lambda h: h != "0" * 64), max_size=3),
    st.integers(0, 65535),
    st.lists(_releases | _hashes, max_size=3),
    _clauses,
    st.randoms(use_true_random=False),
)
def test_writing_out_and_reading_again(
    codes: list[str], signers: list[str], product: int, runtimes: list[str], clauses: dict[str, str], random: Any
) -> None:
    parts = [f"C:{c}" for c in codes] + [f"S:{s}" for s in signers] + [f"RUNTIME:{r}" for r in runtimes]
    parts += [f"{k}:{v}" for k, v in clauses.items()] + ([f"PROD:{product}"] if signers else [])
    random.shuffle(parts)
    try:
        first = Constraint.parse(" ".join(parts))
    except FormatError:
        too_long = int(re.match(r"P(\d*)", clauses.get("EXPIRE", "P"))[1] or 0) > 9000  # type: ignore[index]
        simulated = "simulated" in clauses.get("TEE", "") and clauses.get("SEC") != "INSECURE"
        assert too_long or simulated or not (codes or signers)
        return
    text = str(first)
    second = Constraint.parse(text)
    assert second == first
    assert str(second) == text


@pytest.mark.spec("CON-1")
@settings(deadline=None)
@given(
    st.text(max_size=200)
    | st.lists(
        st.sampled_from(
            [C, S, f"S:{SIGNER}", "PROD:1", "SEC:", "SEC:STALE", "TEE:", "EXPIRE:P", "C:", "RUNTIME:", "\n"]
        )
        | st.text(max_size=5)
    ).map(" ".join)
    | st.binary(max_size=200).map(lambda b: b.decode("latin-1"))
)
def test_any_text_gives_a_constraint_or_a_format_error(text: str) -> None:
    try:
        constraint = Constraint.parse(text)
    except FormatError:
        return
    assert Constraint.parse(str(constraint)) == constraint


def test_a_hostile_text_costs_linear_time() -> None:
    for filler in ("P", "1", "C:", " ", "C:0 ", "P1", ",", "TEE:sgx,"):
        for start in ("EXPIRE:P", "TEE:", "ADVISORIES:", "C:", "RUNTIME:", ""):
            with pytest.raises(FormatError):
                Constraint.parse(start + filler * (MAX_LENGTH // len(filler) - 20))
