"""One scale for all vendors, minimum TCB versions, chips, and evidence that comes alone."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from tests._claims import claims_of
from tests._facts import MEASUREMENT, NOW, evidence

from conclave._crypto import SigningKey
from conclave.attestation import AttestationResult, Claims, Constraint, EvidenceClaims, appraise
from conclave.attestation.appraisal import chip_of, security_of, weigh
from conclave.attestation.reference import built_in
from conclave.attestation.security import LIFTABLE, REMARKS, STATUSES
from conclave.attestation.tcb import SNP_PARTS, parse_minimum, reaches, subject_of, version_of
from conclave.errors import AppraisalError, FormatError, SignatureError

MILAN = {"boot_loader": 4, "tee": 0, "snp": 22, "microcode": 213}
TURIN = {"fmc": 1, "boot_loader": 1, "tee": 1, "snp": 4, "microcode": 81}


def snp(product: str = "Milan", **changes: Any) -> EvidenceClaims:
    tcb = TURIN if product == "Turin" else MILAN
    return evidence(
        tee="snp", tcb_status="", tcb_date=None, details={"product": product, "tcb": tcb, "lowest_tcb": tcb},
        measurements={"measurement": "5d" * 48, "host_data": "00" * 32}, **changes,
    )  # fmt: skip


def nitro(**changes: Any) -> EvidenceClaims:
    return evidence(tee="nitro", tcb_status="", tcb_date=None, details={}, **changes)


def alone(found: EvidenceClaims, tee: str | None = None) -> Claims:
    return Claims(None, b"", tee or found.tee, found, bytes.fromhex(MEASUREMENT), NOW)


def level(found: EvidenceClaims, constraint: str = "", tee: str | None = None) -> str:
    parsed = Constraint.parse(constraint, program=False) if constraint else None
    return security_of(alone(found, tee), constraint=parsed)[0]


def failures(found: EvidenceClaims, text: str, tee: str | None = None) -> list[str]:
    line = text if "RUNTIME:" in text else f"{text} RUNTIME:{MEASUREMENT}"
    return [f.partition(":")[0] for f in weigh(Constraint.parse(line, program=False), alone(found, tee))[2]]


# One scale ---------------------------------------------------------------------------


@pytest.mark.spec("EVID-4", "EVID-5")
@pytest.mark.parametrize("status", STATUSES)
def test_every_status_has_a_level_and_a_reason(status: str) -> None:
    found, reasons = security_of(alone(evidence(tcb_status=status)))
    assert found == ("SECURE" if status == "UpToDate" else "STALE")
    assert (reasons == ()) == (found == "SECURE")
    assert all(status in reason for reason in reasons)


@pytest.mark.spec("EVID-5")
def test_a_status_that_nobody_knows_is_never_secure() -> None:
    assert level(evidence(tcb_status="Wonderful")) == "STALE"


@pytest.mark.spec("EVID-5")
@pytest.mark.parametrize("word", REMARKS)
@pytest.mark.parametrize("made", [evidence, snp, nitro])
def test_remarks_count(word: str, made: Any) -> None:
    minimum = "TCB:snp-milan@any,sgx@any,nitro@any"
    assert level(made(), minimum) == "SECURE"
    assert level(made(remarks=frozenset({word})), minimum) == REMARKS[word][0] != "SECURE"
    assert level(made(remarks=frozenset({"smt-allowed", "vlek"})), minimum) == "SECURE"


@pytest.mark.spec("EVID-5")
def test_the_lowest_counts_and_every_reason_is_told() -> None:
    worst = evidence(tcb_status="OutOfDate", debug=True, remarks=frozenset({"revocation-unknown", "service-td"}))
    found, reasons = security_of(alone(worst, "simulated"))
    assert found == "INSECURE"
    assert len(reasons) == 5


@pytest.mark.spec("EVID-6", "CON-6")
@pytest.mark.parametrize("status", [s for s in STATUSES if s != "UpToDate"])
def test_advisories_lift_only_what_an_owner_can_decide(status: str) -> None:
    found = evidence(tcb_status=status, advisories=("INTEL-SA-1", "INTEL-SA-2"))
    lifted = level(found, "ADVISORIES:INTEL-SA-1,INTEL-SA-2,INTEL-SA-3")
    assert lifted == ("SECURE" if status in LIFTABLE else "STALE")
    assert level(found, "ADVISORIES:INTEL-SA-1") == "STALE"
    assert level(evidence(tcb_status=status), "ADVISORIES:INTEL-SA-1") == "STALE"


@pytest.mark.spec("EVID-7")
def test_amd_gives_no_status_so_a_minimum_decides() -> None:
    assert level(snp()) == "STALE"
    assert level(snp(), "TCB:snp-milan@4.0.22.213") == "SECURE"
    assert level(snp(), "TCB:snp-milan@4.0.22.214") == "STALE"
    assert level(snp(), "TCB:snp-genoa@0.0.0.0") == "STALE"
    assert level(nitro()) == "SECURE"


# Minimum TCB versions ----------------------------------------------------------------


@pytest.mark.spec("EVID-11")
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_every_part_counts(product: str) -> None:
    found = snp(product)
    own = version_of(found)
    assert subject_of(found) == f"snp-{product.lower()}"
    assert reaches(found, own)
    parts = [int(p) for p in own.split(".")]
    for index in range(len(parts)):
        above, below = parts.copy(), [p + 1 for p in parts]
        above[index] += 1
        below[index] = parts[index]
        assert not reaches(found, ".".join(map(str, above))), "a part below its minimum"
        assert not reaches(found, ".".join(map(str, below))), "one part makes up for no other"
        if parts[index]:
            lower = parts.copy()
            lower[index] -= 1
            assert reaches(found, ".".join(map(str, lower)))


@pytest.mark.spec("EVID-11")
def test_dates_of_levels() -> None:
    found = evidence(tcb_date=datetime(2025, 3, 12, tzinfo=UTC))
    assert version_of(found) == "2025-03-12"
    assert [reaches(found, d) for d in ("2025-03-11", "2025-03-12", "2025-03-13", "any")] == [True, True, False, True]
    undated = evidence(tcb_date=None)
    assert not reaches(undated, "1970-01-01")
    assert reaches(undated, "any")


@pytest.mark.spec("EVID-11", "CON-1")
@pytest.mark.parametrize(
    ("subject", "minimum"),
    [
        ("sev", "any"), ("snp", "any"), ("", "any"), ("sgx", ""), ("sgx", "2025-3-12"), ("sgx", "2025-02-30"),
        ("tdx", "20250312"), ("nitro", "1"), ("snp-milan", "1.2.3"), ("snp-milan", "1.2.3.4.5"),
        ("snp-milan", "1.2.3.256"), ("snp-milan", "1.2.3.04"), ("snp-milan", "1.2.3.-4"), ("snp-milan", "1.2.3.1４"),
        ("sgx", "２025-03-12"),
        ("snp-turin", "1.2.3.4"), ("snp-naples", "1.2.3.4"),
    ],
)  # fmt: skip
def test_what_is_no_minimum(subject: str, minimum: str) -> None:
    with pytest.raises(FormatError, match=r"^TCB: "):
        parse_minimum(subject, minimum)
    with pytest.raises(FormatError):
        Constraint.parse(f"TCB:{subject}@{minimum}", program=False)


@pytest.mark.spec("CON-10", "CON-13")
def test_the_clause_is_written_out() -> None:
    line = "TCB:tdx@2025-03-12,snp-milan@4.0.22.213,nitro@any,snp-turin@1.1.1.4.81"
    written = str(Constraint.parse(line, program=False))
    assert "TCB:nitro@any,snp-milan@4.0.22.213,snp-turin@1.1.1.4.81,tdx@2025-03-12" in written
    assert Constraint.parse(written, program=False) == Constraint.parse(line, program=False)
    for wrong in ("TCB:sgx@any,sgx@any", "TCB:sgx@any,", "TCB:sgx", "TCB:@any", "TCB:sgx@any TCB:tdx@any"):
        with pytest.raises(FormatError):
            Constraint.parse(wrong, program=False)


@pytest.mark.spec("CON-13")
def test_a_platform_below_or_of_a_kind_not_named() -> None:
    assert failures(snp(), "SEC:STALE TCB:snp-milan@4.0.22.213") == []
    assert failures(snp(), "SEC:STALE TCB:snp-milan@4.0.23.0") == ["TCB"]
    assert failures(snp(), "SEC:STALE TCB:snp-genoa@any") == ["TCB"]
    assert failures(evidence(), "TCB:sgx@2025-03-12") == []
    assert failures(evidence(), "TCB:sgx@2025-03-13") == ["TCB"]
    assert failures(evidence(tcb_date=None), "TCB:sgx@2025-03-12") == ["TCB"]
    assert failures(nitro(), "TCB:sgx@any") == ["TCB"]
    assert failures(nitro(), "TCB:nitro@any") == []
    # A rehearsal sees the same on a simulated machine.
    assert failures(evidence(), "SEC:INSECURE TCB:sgx@2025-03-13", "simulated") == ["TCB"]
    assert list(SNP_PARTS) == ["milan", "genoa", "turin"]


# Chips -------------------------------------------------------------------------------


@pytest.mark.spec("CON-14")
def test_chips() -> None:
    own = hashlib.sha256(("99" * 16).encode()).hexdigest()
    assert chip_of(evidence()) == own
    assert failures(evidence(), f"CHIP:{own}") == []
    assert failures(evidence(), f"CHIP:{'0' * 64} CHIP:{own.upper()}") == []
    assert failures(evidence(), f"CHIP:{'0' * 64}") == ["CHIP"]
    nameless = evidence(platform="")
    assert chip_of(nameless) == ""
    assert failures(nameless, f"CHIP:{hashlib.sha256(b'').hexdigest()}") == ["CHIP"]
    with pytest.raises(FormatError):
        Constraint.parse("CHIP:00", program=False)


# Evidence alone ----------------------------------------------------------------------


@pytest.mark.spec("CON-15")
def test_evidence_alone_has_no_program() -> None:
    assert failures(evidence(), "TEE:sgx") == []
    assert failures(evidence(), f"C:{'c0' * 32}") == ["C/S"]
    assert failures(evidence(), f"S:{'c0' * 32} PROD:1") == ["C/S"]
    assert failures(evidence(), "REVOKE:1") == ["REVOKE"]
    assert failures(evidence(), "REVOKE:0") == []
    assert failures(evidence(), "TEE:tdx SEC:SECURE EXPIRE:P1D") == ["EXPIRE", "TEE"]
    # Whatever it says of evidence, it is no instance.
    with pytest.raises(AppraisalError):
        appraise(Constraint.parse(f"C:{'c0' * 32}"), alone(evidence()))
    with pytest.raises(AppraisalError, match="no instance to trust"):
        appraise(Constraint.parse(f"TEE:sgx RUNTIME:{MEASUREMENT}", program=False), alone(evidence()))
    with pytest.raises(FormatError, match="at least one program"):
        Constraint.parse("TEE:sgx")


@pytest.mark.spec("CON-11", "CON-15", "EVID-14")
def test_a_release_of_evidence_alone_is_known_by_its_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    from conclave.attestation import reference

    assert failures(evidence(), "RUNTIME:conclave-9") == ["RUNTIME"]
    known = msgspec.structs.replace(built_in(), releases={"conclave-9": {"sgx": [MEASUREMENT]}})
    monkeypatch.setattr(reference, "_built_in", known)
    assert failures(evidence(), "RUNTIME:conclave-9") == []
    assert failures(snp(), "SEC:STALE RUNTIME:conclave-9") == ["RUNTIME"]
    assert failures(evidence(), f"RUNTIME:{'5d' * 48}") == ["RUNTIME"]


@pytest.mark.spec("CLM-10")
def test_what_an_author_signed() -> None:
    key, digest = SigningKey.generate(), bytes(63) + b"1"
    claims = claims_of(bytes(1216), key.public)
    found = AttestationResult(claims, digest, "simulated", "INSECURE", (), evidence(), bytes(32), NOW)
    found.check_signature(b"data", key.sign("app", digest, b"data"))
    for other in (
        key.sign("app", digest, b"date"),
        key.sign("app", bytes(64), b"data"),
        key.sign("mail", digest, b"data"),
    ):
        with pytest.raises(SignatureError):
            found.check_signature(b"data", other)
