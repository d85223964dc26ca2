"""Constraints: text, and what they accept."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import conclave
from conclave._crypto import SUITE_ID
from conclave.attestation import Claims, Constraint, InstanceClaims
from conclave.errors import AppraisalError, Error, FormatError

A, B = "a" * 64, "b" * 64
NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)


def instance(**changes: object) -> InstanceClaims:
    values: dict[str, object] = {
        "version": 1,
        "bundle_id": bytes(32),
        "code": bytes.fromhex(A),
        "signer": bytes.fromhex(B),
        "product_id": 7,
        "revocation_level": 3,
        "runtime": f"conclave-{conclave.__version__}",
        "sandbox": "none",
        "mode": "release",
        "suite": SUITE_ID,
        "encryption_key": bytes(1216),
        "signing_key": bytes(32),
        "boot_nonce": bytes(32),
        "log_id": None,
        "kds_constraint": None,
        "interface": bytes(32),
    }
    return InstanceClaims(**{**values, **changes})  # type: ignore[arg-type]


def claims(**changes: object) -> Claims:
    made = Claims(
        instance=instance(),
        claims_digest=bytes(64),
        tee="sgx",
        debug=False,
        tcb_status="UpToDate",
        advisories=(),
        measurement=bytes.fromhex("cc" * 32),
        anchor="dd" * 32,
        oldest_issue_date=NOW - timedelta(days=10),
        verified_at=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def refusal(text: str, found: Claims) -> str:
    with pytest.raises(AppraisalError) as refused:
        Constraint.parse(text).appraise(found)
    assert len(refused.value.failures) == 1
    return refused.value.failures[0]


@pytest.mark.spec("CON-1", "CON-2", "CON-3", "CON-8")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one program"),
        ("SEC:SECURE", "at least one program"),
        ("nonsense", "unknown clause"),
        (f"c:{A}", "unknown clause"),
        (f"C {A}", "unknown clause"),
        ("C:", "has no value"),
        ("C:abc", "64 hexadecimal digits, got 3"),
        (f"C:{A}0", "got 65"),
        (f"C:{A} C:{'g' * 64}", "64 hexadecimal"),
        (f"C:{A} PROD:1", "need each other"),
        (f"S:{B}", "need each other"),
        (f"S:{'0' * 64} PROD:1", "zero hash"),
        (f"C:{A} REVOKE:-1", "0 to 65535"),
        (f"C:{A} REVOKE:65536", "0 to 65535"),
        (f"C:{A} REVOKE:\u0661", "0 to 65535"),
        (f"C:{A} REVOKE:1 REVOKE:2", "more than once"),
        (f"C:{A} SEC:secure", "SECURE, STALE or INSECURE"),
        (f"C:{A} EXPIRE:30", "a period"),
        (f"C:{A} EXPIRE:P", "a period"),
        (f"C:{A} EXPIRE:PT1H", "a period"),
        (f"C:{A} TEE:sev", "takes a list of"),
        (f"C:{A} TEE:sgx,sgx", "names sgx twice"),
        (f"C:{A} TEE:simulated", "only together with SEC:INSECURE"),
        (f"C:{A} TEE:sgx@{B}", "takes a list of"),
        (f"C:{A} SEC:INSECURE TEE:simulated@12", "64 hexadecimal"),
        (f"C:{A} RUNTIME:a/b", "takes a release"),
        (f"C:{A} ADVISORIES:a", "takes a list of ids"),
        (f"C:{A}\tSEC:STALE", "64 hexadecimal"),
        (f"C:{A} " * 300, "at most 16384"),
    ],
)
def test_refused_texts(text: str, said: str) -> None:
    with pytest.raises(FormatError, match=said) as refused:
        Constraint.parse(text)
    assert len(str(refused.value)) < 300


@pytest.mark.spec("CON-10")
def test_the_expanded_form_says_everything() -> None:
    assert str(Constraint.parse(f"C:{A.upper()}")) == (
        f"C:{A} REVOKE:0 SEC:SECURE TEE:nitro,sgx,snp,tdx RUNTIME:conclave-{conclave.__version__}"
    )
    full = (
        f"C:{A} S:{B} PROD:7 REVOKE:2 SEC:INSECURE EXPIRE:P1Y2M25D TEE:sgx,simulated@{A} RUNTIME:x-1 RUNTIME:{B} "
        "ADVISORIES:INTEL-SA-1,INTEL-SA-2"
    )
    parsed = Constraint.parse(full.replace("P1Y2M25D", "P14M3W4D"))
    assert Constraint.parse(str(parsed)) == parsed
    assert parsed.expire == (1 + 0, 2, 25)


@given(
    st.lists(st.sampled_from([A, B]), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 65535),
    st.sampled_from(["SECURE", "STALE", "INSECURE"]),
    st.integers(0, 9999),
)
@pytest.mark.spec("CON-10")
def test_round_trip(codes: list[str], signed: bool, number: int, security: str, days: int) -> None:
    text = " ".join([f"C:{c}" for c in codes] + ([f"S:{B} PROD:{number}"] if signed else []))
    parsed = Constraint.parse(f"{text} REVOKE:{number} SEC:{security} EXPIRE:P{days}D")
    assert Constraint.parse(str(parsed)) == parsed


@given(st.one_of(st.text(), st.text(alphabet="CS:PRODEVKXTUNIMA0123456789abcdef ,@-"), st.binary().map(repr)))
@pytest.mark.spec("CON-1")
def test_any_text_gives_a_constraint_or_one_error(text: str) -> None:
    try:
        parsed = Constraint.parse(text)
    except FormatError:
        return
    assert Constraint.parse(str(parsed)) == parsed


@pytest.mark.spec("CON-2", "CON-9")
def test_identity() -> None:
    for text in (f"C:{A}", f"C:{B} C:{A}", f"S:{B} PROD:7", f"C:{B} S:{B} PROD:7"):
        assert Constraint.parse(text).appraise(claims()).claims.product_id == 7
    assert f"expected C:{B}, got C:{A}" in refusal(f"C:{B}", claims())
    assert "put its code into the constraint" in refusal(f"S:{A} PROD:7", claims())
    assert "PROD: expected 8, got 7" in refusal(f"S:{B} PROD:8", claims())
    # A product id belongs to the author's signature, and binds a code clause beside it too.
    assert "PROD: expected 8" in refusal(f"C:{A} S:{A} PROD:8", claims())


def test_revocation_level() -> None:
    assert Constraint.parse(f"C:{A} REVOKE:3").appraise(claims())
    assert "expected at least 4, got 3" in refusal(f"C:{A} REVOKE:4", claims())


@pytest.mark.spec("CON-4", "CON-5", "CLM-9")
@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "SECURE"),
        ({"tcb_status": "SWHardeningNeeded"}, "STALE"),
        ({"tcb_status": "OutOfDate"}, "STALE"),
        ({"tcb_status": "something new"}, "STALE"),
        ({"debug": True}, "INSECURE"),
        ({"tee": "simulated"}, "INSECURE"),
        ({"instance": instance(mode="debug")}, "INSECURE"),
        ({"debug": True, "tcb_status": "OutOfDate"}, "INSECURE"),
    ],
)
def test_security(changes: dict[str, object], level: str) -> None:
    found = claims(**changes)
    tee = " TEE:sgx,simulated" if found.tee == "simulated" else ""
    accepted = {"SECURE": {"SECURE", "STALE"}, "STALE": {"STALE"}, "INSECURE": {"INSECURE"}}[level]
    for wanted in ("SECURE", "STALE", "INSECURE"):
        text = f"C:{A} SEC:{wanted}" + (tee if wanted == "INSECURE" else "")
        if wanted in accepted:
            assert Constraint.parse(text).appraise(found).security == level
        else:
            with pytest.raises(AppraisalError, match="SEC: "):
                Constraint.parse(text).appraise(found)


@pytest.mark.spec("CON-6")
def test_advisories() -> None:
    found = claims(tcb_status="SWHardeningNeeded", advisories=("INTEL-SA-1", "INTEL-SA-2"))
    assert Constraint.parse(f"C:{A} ADVISORIES:INTEL-SA-1,INTEL-SA-2").appraise(found).security == "SECURE"
    assert "got STALE" in refusal(f"C:{A} ADVISORIES:INTEL-SA-1", found)
    for status in ("OutOfDate", "OutOfDateConfigurationNeeded", "Revoked"):
        other = replace(found, tcb_status=status)
        assert "got STALE" in refusal(f"C:{A} ADVISORIES:INTEL-SA-1,INTEL-SA-2", other)
    # Needed hardening without a named advisory cannot be lifted: there is nothing to name.
    assert "got STALE" in refusal(f"C:{A} ADVISORIES:INTEL-SA-1", replace(found, advisories=()))


@pytest.mark.spec("CON-7")
def test_age() -> None:
    def issued(year: int, month: int, day: int) -> Claims:
        return claims(oldest_issue_date=datetime(year, month, day, 13, tzinfo=UTC))

    assert Constraint.parse(f"C:{A} EXPIRE:P1M").appraise(issued(2026, 2, 28))
    assert "the oldest endorsement is of 2026-02-27" in refusal(f"C:{A} EXPIRE:P1M", issued(2026, 2, 27))
    assert Constraint.parse(f"C:{A} EXPIRE:P1Y").appraise(issued(2025, 3, 31))
    assert "EXPIRE" in refusal(f"C:{A} EXPIRE:P52W", issued(2025, 3, 31))
    assert Constraint.parse(f"C:{A} EXPIRE:P9999Y").appraise(issued(1990, 1, 1))
    assert Constraint.parse(f"C:{A} EXPIRE:P9999M99999D").appraise(issued(1990, 1, 1))
    assert "EXPIRE" in refusal(f"C:{A} EXPIRE:P0D", claims(oldest_issue_date=NOW))


@pytest.mark.spec("CON-8")
def test_tee() -> None:
    assert "TEE: expected snp, got sgx" in refusal(f"C:{A} TEE:snp", claims())
    simulated = claims(tee="simulated")
    assert Constraint.parse(f"C:{A} SEC:INSECURE").appraise(simulated)
    assert "TEE: expected sgx, got simulated" in refusal(f"C:{A} SEC:INSECURE TEE:sgx", simulated)


def test_runtime() -> None:
    assert Constraint.parse(f"C:{A} RUNTIME:x RUNTIME:{'cc' * 32}").appraise(claims())
    said = refusal(f"C:{A} RUNTIME:conclave-9", claims())
    assert "RUNTIME: expected conclave-9, got conclave-" in said
    assert "cc" * 32 in said


@pytest.mark.spec("CON-9")
def test_a_refusal_lists_every_clause() -> None:
    text = f"C:{B} S:{A} PROD:1 REVOKE:9 EXPIRE:P1D TEE:snp RUNTIME:x"
    with pytest.raises(AppraisalError) as refused:
        Constraint.parse(text).appraise(claims(tcb_status="OutOfDate"))
    names = [failure.partition(":")[0] for failure in refused.value.failures]
    assert names == ["C/S", "PROD", "REVOKE", "SEC", "EXPIRE", "TEE", "RUNTIME"]
    assert isinstance(refused.value, Error)
