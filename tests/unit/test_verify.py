"""Instance info that is accepted, with one thing changed, signed again where a signature covers it."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._intel import intel

from conclave import _codec, _crypto
from conclave.attestation import (
    Anchors,
    AttestationResult,
    Constraint,
    InstanceClaims,
    InstanceInfo,
    bundle_id,
    verify_evidence,
    verify_instance,
)
from conclave.attestation.claims import MAX_CLAIMS, MAX_ENDORSEMENTS, MAX_EVIDENCE, MAX_INFO
from conclave.attestation.verify import SIMULATED_ROOT
from conclave.errors import (
    AppraisalError,
    BindingError,
    ChainError,
    Error,
    ExpiredError,
    FormatError,
    RevokedError,
    SignatureError,
    VerificationError,
)
from conclave.platform import pki
from conclave.platform.machine import Machine
from conclave.platform.pki import Pki
from conclave.platform.vendor import FIRST, Vendor
from conclave.testing.evidence import AmdPki, IntelDraft, IntelPki
from conclave.testing.verifier import secure_simulated, vendor_root

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MRENCLAVE = bytes(range(32))
PARTS = {"code": b"c" * 32, "signer": b"s" * 32, "product_id": 7, "revocation_level": 3}
RUNTIME = "conclave-9.9.9"
ANY = f"C:{PARTS['code'].hex()} RUNTIME:{RUNTIME}"  # type: ignore[attr-defined]
INSECURE = f"{ANY} SEC:INSECURE"
EVIDENCE = Path(__file__).parents[2].parent / "shared" / "evidence"


def claims(**changes: Any) -> InstanceClaims:
    parts = PARTS | {k: v for k, v in changes.items() if k in PARTS}
    fields: dict[str, Any] = {
        "version": 1,
        "bundle_id": bundle_id(**parts),
        **parts,
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
    return InstanceClaims(**(fields | changes))


def info(machine: Machine, said: InstanceClaims | None = None, **changes: Any) -> bytes:
    """Instance info about `said`; `changes` replace parts of quote or info."""
    said = said or claims()
    quoted = {"report_data": said.digest(), "config_id": said.bundle_id + bytes(32), "mrenclave": MRENCLAVE}
    quote = machine.quote(**(quoted | {k: v for k, v in changes.items() if k in (*quoted, "attributes")}))
    parts = {
        "version": 1,
        "format": "sgx",
        "evidence": quote,
        "endorsements": machine.endorsements(),
        "claims": said.encode(),
    }
    return InstanceInfo(**(parts | {k: v for k, v in changes.items() if k in parts})).encode()


def check(data: bytes, constraint: str = INSECURE, now: datetime = NOW) -> AttestationResult:
    return verify_instance(data, Constraint.parse(constraint), now=now)


def refused(error: type[Error], data: bytes, constraint: str = INSECURE, *, now: datetime = NOW, match: str) -> None:
    with pytest.raises(Error, match=match) as caught:
        check(data, constraint, now)
    assert type(caught.value) is error, caught.value


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processor")


@pytest.fixture(scope="module")
def processor(directory: Path) -> Machine:
    return Machine.open(directory, now=NOW)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine.open(tmp_path_factory.mktemp("other"), now=NOW)


def built(keys: Pki) -> Machine:
    """A machine of these keys, with fresh endorsements and no directory."""
    machine = Machine(Path(), b"", FIRST, keys, pki.private_der(pki.new_private()))
    text = keys.endorsements(Vendor.first(NOW), now=NOW)
    machine.endorsements = lambda: text  # type: ignore[method-assign]
    return machine


@pytest.mark.spec("CLM-1", "CLM-8")
def test_what_all_others_are_made_from_is_accepted(processor: Machine) -> None:
    said = claims()
    result = check(info(processor))
    assert result.claims == said
    assert result.claims_digest == said.digest()
    assert result.tee == "simulated"
    assert result.security == "INSECURE"
    assert result.tcb_status == "UpToDate"
    assert result.measurement == MRENCLAVE
    assert result.anchor == processor.anchor
    assert result.oldest_issue_date == result.verified_at == NOW


# The bundle that the TEE names.


@pytest.mark.spec("CLM-1", "CLM-3")
@pytest.mark.parametrize(
    "config_id", [bytes(64), claims().bundle_id + b"\1" + bytes(31), bytes(32) + claims().bundle_id, b"\1" * 64]
)
def test_the_tee_names_another_bundle(processor: Machine, config_id: bytes) -> None:
    refused(BindingError, info(processor, config_id=config_id), match="launched another bundle")


@pytest.mark.spec("CLM-1", "CON-11")
def test_on_hardware_one_measurement_may_cover_runtime_and_bundle(processor: Machine) -> None:
    data = info(processor, config_id=bytes(64))
    root = {"tee": "sgx", "measurement": MRENCLAVE, "release": RUNTIME}
    # Then it counts for the bundle that the reference values name with it, and for no other.
    with vendor_root(processor.root_der, **root):
        refused(AppraisalError, data, f"{ANY} TEE:sgx", match="know no such measurement of that release")
        assert check(data, f"{ANY} TEE:sgx RUNTIME:{MRENCLAVE.hex()}").security == "SECURE"
    with vendor_root(processor.root_der, bundle_id=bytes(32), **root):
        refused(AppraisalError, data, f"{ANY} TEE:sgx", match="know no such measurement of that release")
    with vendor_root(processor.root_der, bundle_id=claims().bundle_id, **root):
        assert check(data, f"{ANY} TEE:sgx").security == "SECURE"


@pytest.mark.spec("CLM-3")
def test_the_bundle_is_looked_at_before_the_rest(processor: Machine) -> None:
    # Everything is wrong with these claims; what the TEE says of the bundle comes first.
    wrong = claims(bundle_id=b"x" * 32, code=b"y" * 32)
    data = info(processor, wrong, config_id=claims().bundle_id + bytes(32), report_data=bytes(64))
    refused(BindingError, data, match="launched another bundle")


@pytest.mark.spec("CLM-4")
@pytest.mark.parametrize(
    "part", [{"code": b"x" * 32}, {"signer": bytes(32)}, {"product_id": 8}, {"revocation_level": 4}]
)
def test_the_bundle_id_is_of_other_parts(processor: Machine, part: dict[str, Any]) -> None:
    # The TEE names this bundle id, and the evidence covers these claims.
    said = claims(**part, bundle_id=claims().bundle_id)
    refused(BindingError, info(processor, said), match="does not belong to code")


# The claims that the evidence covers.


@pytest.mark.spec("CLM-5")
@pytest.mark.parametrize("report_data", [bytes(64), claims().digest()[:63] + b"\0", claims(mode="debug").digest()])
def test_the_evidence_covers_other_claims(processor: Machine, report_data: bytes) -> None:
    refused(BindingError, info(processor, report_data=report_data), match="covers other claims")


OTHER_VALUES = {
    "runtime": "conclave-9.9.8",
    "sandbox": "none",
    "mode": "debug",
    "encryption_key": b"\1" + bytes(1215),
    "signing_key": b"\1" * 32,
    "boot_nonce": b"\1" * 32,
    "log_id": bytes(32),
    "kds_constraint": bytes(32),
    "interface": b"\1" * 32,
}


@pytest.mark.spec("CLM-5")
@pytest.mark.parametrize("field", OTHER_VALUES)
def test_each_claim_is_covered(processor: Machine, field: str) -> None:
    told = claims(**{field: OTHER_VALUES[field]}).encode()
    refused(BindingError, info(processor, claims=told), match="covers other claims")


def test_every_claim_is_in_one_of_these_tests() -> None:
    elsewhere = {"version", "suite", "bundle_id", *PARTS}
    assert set(InstanceClaims.__struct_fields__) == elsewhere | set(OTHER_VALUES)


@pytest.mark.parametrize("change", [{"code": b"x" * 32}, {"signer": b"x" * 32}, {"product_id": 8}])
def test_an_altered_part_of_the_bundle_without_evidence(processor: Machine, change: dict[str, Any]) -> None:
    told = claims(**change).encode()
    refused(BindingError, info(processor, claims=told), match="launched another bundle")


@pytest.mark.parametrize("change", [{"version": 2}, {"suite": bytes(6)}, {"mode": "test"}, {"signing_key": b""}])
def test_covered_claims_of_a_wrong_shape(processor: Machine, change: dict[str, Any]) -> None:
    refused(FormatError, info(processor, claims(**change)), match="instance claims")


def test_another_program_with_good_evidence(processor: Machine) -> None:
    refused(AppraisalError, info(processor, claims(code=b"x" * 32)), match="C/S: expected")


@pytest.mark.parametrize("constraint", ["TEE:tdx", "TEE:snp,nitro"])
@pytest.mark.spec("CLM-7")
def test_anchors_are_decided_before_any_evidence_is_read(constraint: str) -> None:
    junk = InstanceInfo(version=1, format="sgx", evidence=b"", endorsements=b"", claims=b"").encode()
    refused(AppraisalError, junk, f"{ANY} {constraint}", match="got evidence of sgx; add it to TEE:")
    refused(FormatError, junk, f"{ANY} TEE:sgx", match="quote: cut short")


@pytest.mark.spec("CLM-8")
def test_claims_are_read_only_after_the_evidence_verified(processor: Machine) -> None:
    data = bytearray(info(processor, claims=b"junk"))
    at = bytes(data).index(bytes.fromhex("0300020000000000")) + 400
    refused(FormatError, bytes(data), match="instance claims")
    data[at] ^= 1
    refused(SignatureError, bytes(data), match="signature")


# Trust anchors.


@pytest.mark.spec("CLM-7")
@pytest.mark.parametrize(
    ("constraint", "match"),
    [
        (ANY, "say SEC:INSECURE"),
        (f"{ANY} SEC:SECURE", "say SEC:INSECURE"),
        (f"{ANY} SEC:STALE", "say SEC:INSECURE"),
        (f"{ANY} TEE:sgx", "say SEC:INSECURE"),
        (f"{ANY} SEC:INSECURE TEE:sgx", "say SEC:INSECURE"),
        (f"{ANY} SEC:INSECURE TEE:sgx,tdx,snp,nitro", "say SEC:INSECURE"),
        (f"{ANY} SEC:INSECURE TEE:simulated@{'0' * 64}", "another simulated machine"),
    ],
)
def test_simulated_evidence_needs_to_be_wanted(processor: Machine, constraint: str, match: str) -> None:
    refused(ChainError, info(processor), constraint, match=match)


@pytest.mark.spec("CLM-7")
def test_a_pinned_machine_and_no_other(processor: Machine, other: Machine) -> None:
    pinned = f"{ANY} SEC:INSECURE TEE:simulated@{processor.anchor}"
    assert check(info(processor), pinned).anchor == processor.anchor
    refused(ChainError, info(other), pinned, match="another simulated machine")
    unpinned = f"{ANY} SEC:INSECURE TEE:sgx,simulated"
    assert {check(info(m), unpinned).anchor for m in (processor, other)} == {processor.anchor, other.anchor}


def _names(*common: str) -> x509.Name:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Somebody")
    return x509.Name([organization, *(x509.NameAttribute(NameOID.COMMON_NAME, c) for c in common)])


@pytest.mark.spec("CLM-7")
@pytest.mark.parametrize("names", [("Intel SGX Root CA",), (), (SIMULATED_ROOT, SIMULATED_ROOT), ("Mallory",)])
def test_a_root_with_another_name_anchors_nothing(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    real = pki._name
    monkeypatch.setattr(pki, "_name", lambda common: _names(*names) if common == SIMULATED_ROOT else real(common))
    machine = built(Pki.create(fmspc=bytes(6), ppid=bytes(16), now=NOW))
    for constraint in (ANY, INSECURE, f"{INSECURE} TEE:simulated", f"{INSECURE} TEE:simulated@{machine.anchor}"):
        refused(ChainError, info(machine), constraint, match="does not lead to (a|the) trust anchor")


@pytest.mark.spec("CLM-7")
def test_a_root_that_is_not_self_signed_anchors_nothing(processor: Machine) -> None:
    keys = Pki.create(fmspc=bytes(6), ppid=bytes(16), now=NOW)
    assert check(info(built(keys))).security == "INSECURE"
    above = processor._pki
    under = pki._certificate(
        SIMULATED_ROOT, keys.root_key, above.root, above.root_key, now=NOW, authority=True, path_length=1
    )
    refused(ChainError, info(built(replace(keys, root=under))), match="does not lead to (a|the) trust anchor")


@pytest.mark.spec("CLM-7")
def test_a_vendors_root_is_recognized_by_its_digest(processor: Machine, other: Machine) -> None:
    with secure_simulated(processor.root_der, measurement=MRENCLAVE, release=RUNTIME):
        result = check(info(processor), f"{ANY} TEE:sgx")
        assert (result.tee, result.security, result.anchor) == ("sgx", "SECURE", processor.anchor)
        assert check(info(processor), ANY).tee == "sgx"
        # It verifies as hardware, so a constraint for insecure enclaves does not want it.
        refused(AppraisalError, info(processor), INSECURE, match="matches only insecure")
        refused(ChainError, info(processor), f"{INSECURE} TEE:simulated@{other.anchor}", match="another simulated")
        refused(ChainError, info(other), f"{ANY} TEE:sgx", match="say SEC:INSECURE")
    refused(ChainError, info(processor), f"{ANY} TEE:sgx", match="say SEC:INSECURE")


@pytest.mark.spec("CLM-7")
def test_real_evidence_gets_as_far_as_the_bundle() -> None:
    place = EVIDENCE / "sgx" / "oasis-sgx-swh-2025"
    if not place.is_dir():
        pytest.skip("captured evidence of real processors is not here (../shared/evidence)")
    data = InstanceInfo(
        version=1,
        format="sgx",
        evidence=(place / "quote.bin").read_bytes(),
        endorsements=(place / "collateral.json").read_bytes(),
        claims=claims().encode(),
    ).encode()
    captured = datetime(2025, 7, 8, 21, 45, 59, tzinfo=UTC)
    # Genuine, under the pinned root, but no enclave of ours: its CONFIGID is empty, so its measurement would
    # have to cover the bundle, and its report data are not those of our claims.
    refused(BindingError, data, f"{ANY} TEE:sgx", now=captured, match="covers other claims")
    refused(ExpiredError, data, f"{ANY} TEE:sgx", now=NOW, match="expired; the host must fetch new")
    refused(ChainError, data, f"{INSECURE} TEE:simulated", now=captured, match="does not lead to (a|the) trust anchor")


# Endorsements, through the whole verifier.


@pytest.mark.spec("CLM-8")
def test_endorsements_that_are_not_good_raise_even_for_insecure(processor: Machine, other: Machine) -> None:
    keys = processor._pki
    good = json.loads(processor.endorsements())

    def changed(**members: str) -> bytes:
        return info(processor, endorsements=json.dumps(good | members).encode())

    assert check(changed()).security == "INSECURE"
    refused(ExpiredError, info(processor), now=NOW + timedelta(days=31), match="expired; the host must fetch new")
    refused(ExpiredError, info(processor), now=NOW - timedelta(days=1), match="not valid yet at this time")
    crl = pki._crl(keys.ca, keys.ca_key, now=NOW, revoked=(keys.pck.serial_number,)).hex()
    refused(RevokedError, changed(pck_crl=crl), match="revoked")
    refused(SignatureError, changed(tcb_info_signature="00" * 64), match="signature")
    chain = pki.pem(other._pki.tcb, other._pki.root)
    refused(ChainError, changed(tcb_info_issuer_chain=chain), match="does not lead to the trust anchor")
    refused(FormatError, info(processor, endorsements=b"{}"), match="endorsements")
    identity = json.dumps(json.loads(good["qe_identity"]) | {"isvprodid": 9})
    signature = pki.raw_signature(keys.tcb_key, identity.encode()).hex()
    refused(VerificationError, changed(qe_identity=identity, qe_identity_signature=signature), match="another product")


@pytest.mark.spec("CLM-8")
def test_evidence_of_another_machine(processor: Machine, other: Machine) -> None:
    data = info(processor, endorsements=other.endorsements())
    refused(ChainError, data, match="does not lead to the trust anchor")


# Security levels.

STALE = ("SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
OUTDATED = ("OutOfDate", "OutOfDateConfigurationNeeded")


@pytest.fixture
def rehearsed(directory: Path, processor: Machine) -> Any:
    """Sets what the vendor says of the machine's TCB level, and sets it back."""

    def declare(*arguments: Any, **options: Any) -> None:
        processor.tell(lambda vendor: vendor.declare(processor.tcb, *arguments, **options), now=NOW)

    yield declare
    declare("UpToDate")


@pytest.mark.spec("CLM-8", "CLM-9")
def test_levels_of_a_platform_that_counts_as_hardware(processor: Machine, rehearsed: Any) -> None:
    with secure_simulated(processor.root_der, measurement=MRENCLAVE, release=RUNTIME):
        assert check(info(processor), ANY).security == "SECURE"
        for status in (*STALE, *OUTDATED):
            rehearsed(status, advisories=("INTEL-SA-00001",))
            data = info(processor)
            refused(AppraisalError, data, ANY, match=f"SEC: expected SECURE, got STALE .*{status}")
            result = check(data, f"{ANY} SEC:STALE")
            assert (result.security, result.tcb_status) == ("STALE", status)
            assert result.advisories == ("INTEL-SA-00001",)
            lifted = f"{ANY} ADVISORIES:INTEL-SA-00001"
            if status in STALE:
                assert check(data, lifted).security == "SECURE"
            else:
                refused(AppraisalError, data, lifted, match="got STALE")
            refused(AppraisalError, data, INSECURE, match="matches only insecure")
        rehearsed("Revoked")
        for constraint in (ANY, f"{ANY} SEC:STALE", INSECURE):
            refused(RevokedError, info(processor), constraint, match="revoked")


@pytest.mark.spec("CLM-9")
def test_a_simulated_platform_is_insecure_whatever_its_status(processor: Machine, rehearsed: Any) -> None:
    for status in ("UpToDate", *STALE, *OUTDATED):
        rehearsed(status)
        result = check(info(processor))
        assert (result.security, result.tcb_status) == ("INSECURE", status)
    rehearsed("Revoked")
    refused(RevokedError, info(processor), match="revoked")


@pytest.mark.spec("CLM-9")
def test_a_debug_program_is_insecure_on_hardware_too(processor: Machine) -> None:
    data = info(processor, claims(mode="debug"))
    with secure_simulated(processor.root_der, measurement=MRENCLAVE, release=RUNTIME):
        assert check(data).security == "INSECURE"
        refused(AppraisalError, data, f"{ANY} SEC:STALE", match="got INSECURE .*debug mode")


@pytest.mark.spec("CLM-9")
def test_debug_evidence_is_authentic_and_insecure(processor: Machine) -> None:
    data = info(processor, attributes=struct.pack("<QQ", 0x87, 3))
    with secure_simulated(processor.root_der, measurement=MRENCLAVE, release=RUNTIME):
        assert check(info(processor), ANY).security == "SECURE"
        for constraint in (ANY, f"{ANY} SEC:STALE"):
            refused(AppraisalError, data, constraint, match="got INSECURE")
        assert check(data).security == "INSECURE"


# Shape.


def test_trailing_bytes_and_truncations(processor: Machine) -> None:
    data = info(processor)
    refused(FormatError, data + b"\0", match="instance info")
    for size in [*range(0, len(data), 997), len(data) - 1]:
        refused(FormatError, data[:size], match="instance info")


@pytest.mark.parametrize(
    ("part", "limit"), [("evidence", MAX_EVIDENCE), ("endorsements", MAX_ENDORSEMENTS), ("claims", MAX_CLAIMS)]
)
def test_a_part_above_its_limit(processor: Machine, part: str, limit: int) -> None:
    refused(FormatError, info(processor, **{part: bytes(limit + 1)}), match="a part exceeds its limit")
    with pytest.raises(Error) as other_reason:
        check(info(processor, **{part: bytes(limit)}))
    assert "limit" not in str(other_reason.value)


def test_instance_info_above_its_limit(processor: Machine) -> None:
    refused(FormatError, bytes(MAX_INFO + 1), match=f"at most {MAX_INFO}")


@pytest.mark.parametrize("change", [{"version": 0}, {"version": 2}, {"format": "tpm"}, {"format": ""}])
def test_instance_info_of_an_unknown_kind(processor: Machine, change: dict[str, Any]) -> None:
    refused(FormatError, info(processor, **change), match="only version 1 with evidence of sgx, tdx, snp, nitro")


def test_evidence_of_another_format_than_it_says(processor: Machine) -> None:
    refused(FormatError, info(processor, evidence=intel().quote()), match="a quote of tdx, not of sgx")


def test_evidence_without_certificates_leads_nowhere(processor: Machine) -> None:
    data = info(processor, evidence=intel(3, 1).but(certification=(3, bytes(404))).quote())
    refused(VerificationError, data, ANY, match="only the vendor can follow")
    refused(ChainError, data, f"{INSECURE} TEE:simulated@{processor.anchor}", match="trust anchor")


def test_a_time_without_a_zone_is_a_bug_of_the_caller(processor: Machine) -> None:
    with pytest.raises(ValueError, match="aware"):
        check(info(processor), now=datetime(2026, 3, 1))


def test_the_same_answer_every_time(processor: Machine) -> None:
    data = info(processor)
    zone = NOW.astimezone()
    assert check(data) == check(data) == replace(check(data, now=zone), verified_at=NOW)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_as_instance_info(data: bytes) -> None:
    with pytest.raises(FormatError):
        check(data)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600), st.binary(max_size=600), st.binary(max_size=600), st.sampled_from(["sgx", "tdx", ""]))
def test_any_parts_of_instance_info(evidence: bytes, endorsements: bytes, said: bytes, form: str) -> None:
    data = _codec.encode(
        {"version": 1, "format": form, "evidence": evidence, "endorsements": endorsements, "claims": said}
    )
    with pytest.raises(FormatError):
        check(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_changed_byte_never_gives_another_result(processor: Machine, data: st.DataObject) -> None:
    good = info(processor)
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + bytes((data.draw(st.integers(0, 255)),)) + good[at + 1 :]
    try:
        result = check(changed)
    except Error:
        return
    # Only what says nothing may change: case of hexadecimal digits, white space, an unused chain.
    assert result == check(good)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_claims_with_good_evidence_and_one_changed_byte(processor: Machine, data: st.DataObject) -> None:
    good = claims().encode()
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != good[at]))
    with pytest.raises((FormatError, BindingError)):
        check(info(processor, claims=good[:at] + bytes((byte,)) + good[at + 1 :]))


def test_only_the_verifiers_parts_are_loaded_lazily() -> None:
    import conclave.attestation as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018


def test_a_simulated_machine_is_no_other_tee() -> None:
    def named(draft: IntelDraft) -> None:
        for name, certificate in draft.certificates.items():
            if name == "root":
                draft.root_crl.issuer = {"CN": SIMULATED_ROOT}  # type: ignore[union-attr]
                certificate.subject = {"CN": SIMULATED_ROOT}
            if name != "pck":
                certificate.issuer = {"CN": SIMULATED_ROOT}

    built = IntelPki.create(now=NOW).tdx(change=named)
    anchors = Anchors({"tdx": frozenset({"00" * 32})}, simulated=True)
    with pytest.raises(ChainError, match="simulated TEE"):
        verify_evidence(built.raw, built.endorsements, kind="tdx", anchors=anchors, now=NOW)
    sgx = IntelPki.create(now=NOW).sgx(change=named)
    assert verify_evidence(sgx.raw, sgx.endorsements, kind="sgx", anchors=anchors, now=NOW)[0] == "simulated"


def test_a_time_without_a_zone_for_any_vendor() -> None:
    built = AmdPki.create(now=NOW).snp()
    anchors = Anchors({"snp": built.anchors})
    with pytest.raises(ValueError, match="aware"):
        verify_evidence(built.raw, built.endorsements, kind="snp", anchors=anchors, now=NOW.replace(tzinfo=None))
