"""Who would lose access: enclaves of every vendor held against constraints, now and then."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote as percent

import msgspec
import pytest
from tests.unit.test_verify import claims, info

from conclave.attestation import Constraint
from conclave.attestation import verify as verifier
from conclave.attestation.announced import Announcement, announce, in_force, parse_announcement
from conclave.attestation.expiry import expiries
from conclave.attestation.gaps import Gap
from conclave.attestation.reference import built_in
from conclave.attestation.rehearse import Enclave, Outcome, Situation, rehearse
from conclave.errors import ExpiredError, FormatError, VerificationError
from conclave.platform.machine import Machine
from conclave.platform.vendor import Vendor
from conclave.testing.evidence import AmdPki, AwsPki, BuiltEvidence, IntelDraft, IntelPki

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
INTEL, AMD, AWS = IntelPki.create(now=NOW), AmdPki.create(now=NOW), AwsPki.create(now=NOW)
PROGRAM = f"C:{'c' * 64}"


@pytest.fixture(autouse=True)
def _vendors(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = {"sgx": INTEL.anchors, "tdx": INTEL.anchors, "snp": AMD.anchors["Milan"], "nitro": AWS.anchors}
    monkeypatch.setattr(verifier, "_vendor_roots", roots)


def alone(name: str, built: BuiltEvidence) -> Enclave:
    return Enclave(name, built.tee, built.raw, built.endorsements)


def one(now: Situation, then: Situation, line: str) -> Outcome:
    (outcome,) = rehearse(now, then, {"client": Constraint.parse(line, program=False)})
    assert (outcome.enclave, outcome.constraint) == (now.enclaves[0].name, "client")
    return outcome


def out_of_date(draft: IntelDraft) -> None:
    """The vendor's next TCB info: a level above the one that the platform has."""
    level = draft.level
    newer = json.loads(json.dumps(level))
    newer["tcbDate"] = "2026-02-27T00:00:00Z"
    for index, name in ((0, "Early Microcode Update"), (6, "")):
        newer["tcb"]["sgxtcbcomponents"][index] = {"svn": 4, "category": "BIOS"} | ({"type": name} if name else {})
    newer["tcb"]["pcesvn"] += 2
    draft.tcb_info["tcbLevels"] = [newer, level | {"tcbStatus": "OutOfDate", "advisoryIDs": ["TEST-SA-1"]}]
    draft.tcb_info["tcbEvaluationDataNumber"] += 1


SGX = INTEL.sgx()
SGX_LATER = INTEL.sgx(change=out_of_date)
TDX = INTEL.tdx(version=5, body=3)


def answer(built: BuiltEvidence, document: str = "tcb_info") -> bytes:
    """What the vendor's service says."""
    members = json.loads(built.endorsements)
    outer = {"tcb_info": "tcbInfo", "qe_identity": "enclaveIdentity"}[document]
    return f'{{"{outer}":{members[document]},"signature":"{members[f"{document}_signature"]}"}}'.encode()


# The rehearsal.


@pytest.mark.spec("TCB-7")
@pytest.mark.parametrize(
    ("line", "now", "then"),
    [
        ("SEC:SECURE", "SECURE", None),
        ("SEC:STALE", "SECURE", "STALE"),
        ("SEC:SECURE ADVISORIES:TEST-SA-1", "SECURE", None),
        ("SEC:STALE TCB:sgx@2026-02-28", "SECURE", "STALE"),
        ("SEC:STALE TCB:sgx@2026-03-02", None, None),
        ("SEC:STALE TEE:sgx", "SECURE", "STALE"),
        ("SEC:STALE TEE:tdx", None, None),
        ("SEC:STALE CHIP:" + "0" * 64, None, None),
    ],
)
def test_accepted_now_and_then(line: str, now: str | None, then: str | None) -> None:
    before = alone("one", SGX)
    after = replace(before, endorsements=SGX_LATER.endorsements)
    outcome = one(Situation((before,), NOW), Situation((after,), NOW), line)
    assert (outcome.now.security if outcome.now.accepted else None) == now
    assert (outcome.then.security if outcome.then.accepted else None) == then
    assert outcome.loses_access == (now is not None and then is None)
    assert not outcome.gains_access
    for standing in (outcome.now, outcome.then):
        assert standing.accepted == (not standing.failures) == (standing.code == "")
    assert outcome.now.reasons == ()


@pytest.mark.spec("TCB-7")
def test_what_is_told_of_a_platform() -> None:
    before = alone("one", SGX)
    after = replace(before, endorsements=SGX_LATER.endorsements)
    outcome = one(Situation((before,), NOW), Situation((after,), NOW), "SEC:SECURE")
    assert (outcome.now.tcb_status, outcome.then.tcb_status) == ("UpToDate", "OutOfDate")
    assert outcome.then.advisories == ("TEST-SA-1",)
    assert outcome.then.tcb_version == "2026-02-28"
    assert outcome.then.code == "appraisal"
    assert outcome.then.reasons == ("TCB OutOfDate: the platform lacks security updates",)
    assert outcome.then.failures[0].startswith("SEC: expected SECURE, got STALE")
    back = one(Situation((after,), NOW), Situation((before,), NOW), "SEC:SECURE")
    assert back.gains_access
    assert not back.loses_access


@pytest.mark.spec("TCB-7")
def test_what_does_not_verify_is_refused_with_the_verifiers_code() -> None:
    good = alone("one", SGX)
    for change, code in (
        ({"evidence": SGX.raw[:-1]}, "quote-format"),
        ({"endorsements": b"{}"}, "endorsements-format"),
        ({"kind": "tdx"}, "quote-tee"),
    ):
        outcome = one(Situation((good,), NOW), Situation((replace(good, **change),), NOW), "SEC:STALE")
        assert (outcome.then.code, outcome.then.security, outcome.then.gaps) == (code, None, ())
        assert outcome.loses_access
        assert len(outcome.then.failures) == 1
    late = one(Situation((good,), NOW), Situation((good,), NOW + 60 * DAY), "SEC:STALE")
    assert late.then.code == "tcb-info-expired"


def test_every_enclave_with_every_constraint() -> None:
    enclaves = (alone("one", SGX), alone("two", TDX), alone("three", AMD.snp()), alone("four", AWS.nitro()))
    lines = {"a": "SEC:SECURE", "b": "SEC:STALE", "c": "SEC:STALE TEE:sgx,tdx"}
    constraints = {name: Constraint.parse(line, program=False) for name, line in lines.items()}
    outcomes = rehearse(Situation(enclaves, NOW), Situation(enclaves, NOW), constraints)
    assert [(o.enclave, o.constraint) for o in outcomes] == [(e.name, c) for e in enclaves for c in constraints]
    assert {(o.enclave, o.constraint) for o in outcomes if not o.now.accepted} == {
        # No minimum is known for that product: stale.
        ("three", "a"),
        ("three", "c"),
        ("four", "c"),
    }
    assert all(o.now == o.then for o in outcomes)
    assert rehearse(Situation(enclaves, NOW), Situation(enclaves, NOW), {}) == ()


def test_an_enclave_is_verified_once_for_each_set_of_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain = Enclave.authenticate

    def counted(self: Enclave, anchors: Any, now: datetime) -> Any:
        asked.append(anchors)
        return plain(self, anchors, now)

    monkeypatch.setattr(Enclave, "authenticate", counted)
    constraints = {str(n): Constraint.parse(f"SEC:STALE EXPIRE:P{n}D", program=False) for n in range(1, 50)}
    constraints["other"] = Constraint.parse("SEC:STALE TEE:sgx", program=False)
    situation = Situation((alone("one", SGX),), NOW)
    outcomes = rehearse(situation, situation, constraints)
    assert len(outcomes) == 50
    assert len(asked) == 4


def test_mistakes_of_the_caller() -> None:
    first, second = alone("one", SGX), alone("two", SGX)
    with pytest.raises(ValueError, match="about the same enclaves"):
        rehearse(Situation((first,), NOW), Situation((second,), NOW), {})
    with pytest.raises(ValueError, match="about the same enclaves"):
        rehearse(Situation((first,), NOW), Situation((first, second), NOW), {})
    with pytest.raises(ValueError, match="aware"):
        rehearse(Situation((first,), NOW), Situation((first,), NOW.replace(tzinfo=None)), {})


# Evidence alone, and instance info.


@pytest.mark.spec("TCB-8")
def test_of_evidence_alone_only_the_platform_counts() -> None:
    enclave = Situation((alone("one", SGX),), NOW)
    for program in (PROGRAM, f"S:{'a' * 64} PROD:1 REVOKE:7", f"{PROGRAM} RUNTIME:conclave-9.9.9", ""):
        assert one(enclave, enclave, f"{program} SEC:SECURE".strip()).now.accepted
        refused = one(enclave, enclave, f"{program} SEC:SECURE TEE:tdx TCB:tdx@any".strip())
        assert [f.partition(":")[0] for f in refused.now.failures] == ["TEE"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine.open(tmp_path_factory.mktemp("machine"), now=NOW)


def republished(enclave: Enclave, machine: Machine, change: Callable[[Vendor], Vendor]) -> Enclave:
    return replace(enclave, endorsements=machine.foresee(change, now=NOW))


@pytest.mark.spec("TCB-8", "TCB-14")
def test_of_an_instance_the_program_counts_too(machine: Machine) -> None:
    said = claims()
    enclave = Enclave.of_instance("one", info(machine))
    assert enclave.claims == said.encode()
    situation = Situation((enclave,), NOW, genuine=frozenset({machine.anchor}))
    code, release = f"C:{said.code.hex()}", f"RUNTIME:{said.runtime}"
    assert one(situation, situation, f"{code} {release}").now.accepted
    author = f"S:{said.signer.hex()} PROD:{said.product_id}"
    assert one(situation, situation, f"{author} {release}").now.accepted
    # A constraint that names no program is about whatever runs there.
    assert one(situation, situation, release).now.accepted
    for line, clause in (
        (f"C:{'0' * 64} {release}", "C/S"),
        (f"{code} RUNTIME:conclave-9.9", "RUNTIME"),
        (f"{code} {release} REVOKE:65535", "REVOKE"),
    ):
        assert [f.partition(":")[0] for f in one(situation, situation, line).now.failures] == [clause]
    with pytest.raises(FormatError):
        Enclave.of_instance("one", b"junk")


@pytest.mark.spec("TCB-14")
def test_a_simulated_machine_counts_as_genuine_only_here_and_only_where_it_is_not_accepted_anyway(
    machine: Machine,
) -> None:
    said = claims()
    line = f"C:{said.code.hex()} RUNTIME:{said.runtime}"
    before = Enclave.of_instance("one", info(machine))
    after = republished(before, machine, lambda vendor: vendor.publish(date=NOW, advisories=("TEST-SA-1",)))
    plain = one(Situation((before,), NOW), Situation((after,), NOW), line)
    assert (plain.now.accepted, plain.now.security) == (False, None)
    assert "simulated TEE, which protects nothing" in plain.now.failures[0]
    genuine = frozenset({machine.anchor})
    now, then = (Situation((e,), NOW, genuine=genuine) for e in (before, after))
    counted = one(now, then, line)
    assert (counted.now.security, counted.then.security, counted.loses_access) == ("SECURE", "STALE", True)
    # Who accepts a simulated machine knows it for what it is.
    for insecure in (f"{line} SEC:INSECURE", f"{line} SEC:INSECURE TEE:simulated@{machine.anchor}"):
        accepted = one(now, then, insecure)
        assert (accepted.now.security, accepted.then.security) == ("INSECURE", "INSECURE")
        assert accepted.then.accepted
    # Another machine than those named does not count.
    others = replace(now, genuine=frozenset({"0" * 64}))
    assert one(others, others, line).now.security is None
    # It is SGX that it counts as.
    assert one(now, now, f"{line} TEE:tdx").now.code in ("appraisal", "chain", "pck-chain")
    assert not verifier._vendor_roots["sgx"] & genuine


# What was announced.


@pytest.mark.spec("TCB-9")
@pytest.mark.parametrize("chain", ["in the head", "apart", "none"])
def test_an_early_tcb_info_takes_the_place_of_the_one_stapled(chain: str) -> None:
    members = json.loads(SGX_LATER.endorsements)
    pem = members["tcb_info_issuer_chain"]
    head = b""
    if chain == "in the head":
        head = f"HTTP/2 301\r\nlocation: x\r\n\r\nHTTP/2 200\r\ntcb-info-issuer-chain: {percent(pem)}\r\n\r\n".encode()
    found = parse_announcement(head + answer(SGX_LATER), chain=pem if chain == "apart" else "")
    assert found.members["tcb_info"] == members["tcb_info"]
    assert ("tcb_info_issuer_chain" in found.members) == (chain != "none")
    enclaves = (alone("one", SGX), alone("two", TDX), alone("three", AMD.snp()), alone("four", AWS.nitro()))
    later = announce(enclaves, [found])
    # Only the one whose kind of platform it is about.
    assert later[1:] == enclaves[1:]
    changed = json.loads(later[0].endorsements)
    same = json.loads(SGX.endorsements)
    assert {name for name in same if changed[name] != same[name]} == {"tcb_info", "tcb_info_signature"}
    outcome = one(Situation(enclaves[:1], NOW), Situation(later[:1], NOW), "SEC:SECURE")
    assert outcome.loses_access
    assert outcome.then.tcb_status == "OutOfDate"


@pytest.mark.spec("TCB-9")
def test_an_early_qe_identity_is_about_every_platform_of_its_tee() -> None:
    def outdated(draft: IntelDraft) -> None:
        current = draft.qe_level
        newer = current | {"tcb": {"isvsvn": 9}}
        draft.qe_identity["tcbLevels"] = [newer, current | {"tcbStatus": "OutOfDate"}]

    found = parse_announcement(answer(INTEL.sgx(change=outdated), "qe_identity"))
    enclaves = (alone("one", SGX), alone("two", TDX))
    later = announce(enclaves, [found])
    assert later[1] == enclaves[1]
    outcome = one(Situation(enclaves[:1], NOW), Situation(later[:1], NOW), "SEC:SECURE")
    assert outcome.loses_access
    assert outcome.then.gaps == (Gap("quoting enclave", 8, 9),)


@pytest.mark.spec("TCB-9")
def test_whole_endorsements() -> None:
    found = parse_announcement(SGX_LATER.endorsements)
    assert found.whole
    (later,) = announce([alone("one", SGX)], [found])
    assert json.loads(later.endorsements) == json.loads(SGX_LATER.endorsements)


@pytest.mark.spec("TCB-9")
@pytest.mark.parametrize(
    "built",
    [
        INTEL.sgx(change=lambda draft: draft.tcb_info.update(fmspc="00906ED50000")),
        INTEL.sgx(change=lambda draft: draft.tcb_info.update(pceId="0001")),
        TDX,
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_concerns_nobody_is_an_error(built: BuiltEvidence, *, whole: bool) -> None:
    announced = parse_announcement(built.endorsements if whole else answer(built))
    with pytest.raises(FormatError) as caught:
        announce([alone("one", SGX), alone("two", AMD.snp())], [announced])
    assert caught.value.code == "announcement-unconcerned"


def test_what_an_enclave_without_good_endorsements_is_concerned_by() -> None:
    found = parse_announcement(answer(SGX_LATER))
    assert not found.concerns(replace(alone("one", SGX), endorsements=b"{}"))
    assert not found.concerns(replace(alone("one", SGX), endorsements=b""))
    # Endorsements of one TEE beside evidence of another.
    assert not found.concerns(replace(alone("one", SGX), kind="tdx"))
    assert not found.concerns(replace(alone("one", SGX), kind="snp"))


@pytest.mark.spec("TCB-10")
@pytest.mark.parametrize("document", ["tcb_info", "qe_identity"])
def test_a_forged_announcement_is_an_error_and_nobodys_loss(document: str) -> None:
    stranger = IntelPki.create(now=NOW, seed=b"stranger")
    name = document.replace("_", "-")
    good = json.loads(SGX_LATER.endorsements)
    text, signature, chain = good[document], good[f"{document}_signature"], good[f"{document}_issuer_chain"]
    other = json.loads(stranger.sgx(change=out_of_date).endorsements)
    forgeries = {
        f"{name}-signature": [
            {document: text.replace("UpToDate", "OutOfDate", 1), f"{document}_signature": signature},
            {document: text, f"{document}_signature": "00" * 64},
        ],
        f"{name}-chain": [{document: text, f"{document}_signature": signature, f"{document}_issuer_chain": "other"}],
    }
    before = alone("one", SGX)
    for code, forged in forgeries.items():
        for members in forged:
            if members.get(f"{document}_issuer_chain") == "other":
                members[f"{document}_issuer_chain"] = other[f"{document}_issuer_chain"]
            later = announce([before], [Announcement(members)])
            with pytest.raises(VerificationError, match="what was announced is not the vendor's") as caught:
                one(Situation((before,), NOW), Situation(later, NOW), "SEC:STALE")
            assert caught.value.code == code
    assert chain
    # Who staples such a thing already is refused, and nobody announced it.
    stapled = json.loads(SGX.endorsements) | forgeries[f"{name}-signature"][1]
    broken = replace(before, endorsements=json.dumps(stapled).encode())
    outcome = one(Situation((broken,), NOW), Situation((broken,), NOW), "SEC:STALE")
    assert outcome.now.code == f"{name}-signature"


@pytest.mark.spec("TCB-10")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/",
        b'{"tcbInfo":{},"enclaveIdentity":{},"signature":""}',
        b'{"signature":"00"}',
        b'{"tcbInfo":{}}',
        b'{"tcbInfo":{},"signature":1}',
        b'{"tcbInfo":{},"signature":"00","more":1}',
        b'{"tcbInfo":"\xc3\xa9","signature":"00"}',
        b"[" * 100_000,
        b'{"tcbInfo":' + b"[" * 100_000,
        answer(SGX_LATER) + b" " * 524_288,
        SGX_LATER.endorsements + b" " * 524_288,
    ],
)
def test_an_announcement_that_is_none(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_announcement(data)
    assert caught.value.code == "announcement-format"


@pytest.mark.spec("TCB-10")
@pytest.mark.parametrize(
    "members",
    [
        {"tcb_info": "{}", "tcb_info_signature": "00" * 64},
        {"tcb_info": "{}", "tcb_info_signature": "0"},
        {"qe_identity": "[]", "qe_identity_signature": "00" * 64},
        {"tcb_info": "x" * 524_288, "tcb_info_signature": "00" * 64},
    ],
)
def test_a_malformed_document_is_an_error(members: dict[str, str]) -> None:
    with pytest.raises(FormatError) as caught:
        announce([alone("one", SGX)], [Announcement(members)])
    assert caught.value.code == "announcement-format"


def dated(begin: datetime, end: datetime, document: str = "tcb_info") -> Announcement:
    def change(draft: IntelDraft) -> None:
        period = {"issueDate": f"{begin:%Y-%m-%dT%H:%M:%SZ}", "nextUpdate": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
        getattr(draft, document).update(period)

    return parse_announcement(answer(INTEL.sgx(change=change), document))


@pytest.mark.spec("TCB-10")
@pytest.mark.parametrize("document", ["tcb_info", "qe_identity"])
def test_then_is_the_first_time_at_which_what_was_announced_is_valid(document: str) -> None:
    before = (alone("one", SGX), alone("two", TDX))

    def moment(begin: datetime, end: datetime, now: datetime = NOW) -> datetime:
        return in_force(before, announce(before, [dated(begin, end, document)]), now)

    assert moment(NOW - DAY, NOW + DAY) == NOW
    assert moment(NOW + 5 * DAY, NOW + 9 * DAY) == NOW + 5 * DAY
    assert moment(NOW - DAY, NOW) == NOW
    assert in_force(before, before, NOW) == NOW
    with pytest.raises(ExpiredError, match="it is of the past, not to come") as caught:
        moment(NOW - 9 * DAY, NOW - DAY)
    assert caught.value.code == "announcement-expired"


@pytest.mark.spec("TCB-10")
def test_lists_that_were_announced_have_dates_too() -> None:
    def later(draft: IntelDraft) -> None:
        assert draft.pck_crl is not None
        draft.pck_crl.this_update, draft.pck_crl.next_update = NOW + 3 * DAY, NOW + 4 * DAY

    before = (alone("one", SGX),)
    after = announce(before, [parse_announcement(INTEL.sgx(change=later).endorsements)])
    assert in_force(before, after, NOW) == NOW + 3 * DAY
    with pytest.raises(ExpiredError):
        in_force(before, after, NOW + 5 * DAY)


# Time.


@pytest.mark.spec("TCB-11")
def test_time_alone_renews_nothing() -> None:
    enclave = (alone("one", SGX),)
    now = Situation(enclave, NOW)

    def then(days: int, line: str) -> Outcome:
        return one(now, Situation(enclave, NOW + days * DAY), line)

    assert not then(18, "SEC:SECURE EXPIRE:P20D").then.failures
    aged = then(19, "SEC:SECURE EXPIRE:P20D")
    assert aged.loses_access
    assert aged.then.failures[0].startswith("EXPIRE:")
    assert then(27, "SEC:SECURE").then.accepted
    assert then(40, "SEC:SECURE").then.code == "tcb-info-expired"


@pytest.mark.spec("TCB-12")
def test_everything_ends_soonest_first() -> None:
    def apart(draft: IntelDraft) -> None:
        # The quote names its processor; the certificates come with the endorsements.
        draft.certification, draft.certification_data = 1, INTEL.ppid + bytes(20)

    for built in (SGX, TDX, INTEL.sgx(change=apart)):
        found = expiries(alone("one", built))
        assert list(found) == sorted(found, key=lambda e: (e.until, e.what))
        renewable = {e.what for e in found if e.renewable}
        assert renewable == {
            "TCB info",
            "QE identity",
            "revocation list of the root",
            "revocation list of the PCK CA",
        }
        assert {e.what for e in found if not e.renewable} == {
            "certificate Test SGX Root CA",
            "certificate Test SGX PCK Platform CA",
            "certificate Test SGX PCK Certificate",
            "certificate Test SGX TCB Signing",
        }
        assert found[0].until == NOW - DAY + 30 * DAY
    # At each end something is not valid any more, and before the first everything is.
    first = expiries(alone("one", SGX))[0]
    situation = Situation((alone("one", SGX),), NOW)
    assert one(situation, replace(situation, now=first.until), "SEC:SECURE").then.accepted
    assert one(situation, replace(situation, now=first.until + timedelta(seconds=1)), "SEC:SECURE").loses_access


@pytest.mark.spec("TCB-12")
def test_ends_of_other_vendors() -> None:
    amd = expiries(alone("one", AMD.snp()))
    assert {e.what for e in amd if e.renewable} == {"revocation list of the ARK", "certificate of the VCEK"}
    assert {e.what for e in amd if not e.renewable} == {"certificate SEV-Milan", "certificate ARK-Milan"}
    without = expiries(alone("one", AMD.snp(leaf="vlek", change=lambda draft: setattr(draft, "crl", None))))
    assert {e.what for e in without if e.renewable} == {"certificate of the VLEK"}
    aws = expiries(alone("one", AWS.nitro()))
    # The document's own certificate ends first, and a new document has another.
    assert aws[0].renewable
    assert [e.renewable for e in aws].count(False) == 1
    assert not aws[-1].renewable

    def no_lists(draft: IntelDraft) -> None:
        draft.pck_crl = draft.root_crl = None

    bare = expiries(alone("one", INTEL.sgx(change=no_lists)))
    assert {e.what for e in bare if e.renewable} == {"TCB info", "QE identity"}


# What a platform lacks.


@pytest.mark.spec("TCB-13")
def test_what_an_intel_platform_lacks_for_the_newest_level() -> None:
    before = alone("one", SGX)
    after = replace(before, endorsements=SGX_LATER.endorsements)
    found = one(Situation((before,), NOW), Situation((after,), NOW), "SEC:SECURE")
    assert found.now.gaps == ()
    assert found.then.gaps == (
        Gap("CPU component 1 (BIOS: Early Microcode Update)", 2, 4),
        Gap("CPU component 7 (BIOS)", 2, 4),
        Gap("PCE", 11, 13),
    )

    def second(draft: IntelDraft) -> None:
        out_of_date(draft)
        draft.tcb_info_2()

    plain = INTEL.sgx(change=second)
    before = alone("one", plain)
    assert one(Situation((before,), NOW), Situation((before,), NOW), "SEC:SECURE").now.gaps == (
        Gap("CPU component 1", 2, 4),
        Gap("CPU component 7", 2, 4),
        Gap("PCE", 11, 13),
    )


@pytest.mark.spec("TCB-13")
@pytest.mark.parametrize(("module", "expected"), [(1, Gap("TDX module", 5, 7)), (0, Gap("TDX component 1", 5, 7))])
def test_what_a_tdx_platform_lacks(module: int, expected: Gap) -> None:
    def change(draft: IntelDraft) -> None:
        level = draft.level
        newer = json.loads(json.dumps(level))
        newer["tcb"]["tdxtcbcomponents"][2] = {"svn": 8, "category": "OS/VMM", "type": "TDX Late Microcode Update"}
        if not module:
            newer["tcb"]["tdxtcbcomponents"][0] = {"svn": 7}
        draft.tcb_info["tcbLevels"] = [newer, level | {"tcbStatus": "OutOfDate"}]
        for identity in draft.tcb_info["tdxModuleIdentities"]:
            current = identity["tcbLevels"][0]
            identity["tcbLevels"] = [current | {"tcb": {"isvsvn": 7}}, current | {"tcbStatus": "OutOfDate"}]

    situation = Situation((alone("one", INTEL.tdx(module=module, change=change)),), NOW)
    gaps = one(situation, situation, "SEC:SECURE").now.gaps
    assert set(gaps) == {expected, Gap("TDX component 3 (OS/VMM: TDX Late Microcode Update)", 6, 8)}


@pytest.mark.spec("TCB-13", "TCB-15")
def test_a_minimum_to_come_of_amds_processors() -> None:
    enclave = (alone("one", AMD.snp()),)
    has = one(Situation(enclave, NOW), Situation(enclave, NOW), "SEC:STALE").now.tcb_version
    parts = [int(p) for p in has.split(".")]
    higher = ".".join(str(p) for p in (parts[0] + 1, parts[1], parts[2] + 2, parts[3]))

    def knowing(minimum: str) -> Situation:
        return Situation(enclave, NOW, msgspec.structs.replace(built_in(), minimum_tcb={"snp-milan": minimum}))

    outcome = one(knowing(has), knowing(higher), "SEC:SECURE")
    assert (outcome.now.security, outcome.then.security, outcome.loses_access) == ("SECURE", "STALE", True)
    gaps = (Gap("boot loader", parts[0], parts[0] + 1), Gap("snp", parts[2], parts[2] + 2))
    assert outcome.then.gaps == gaps
    # The data owner's own minimum comes before.
    named = one(knowing(has), knowing(has), f"SEC:STALE TCB:snp-milan@{higher}")
    assert not named.now.accepted
    assert named.now.gaps == gaps
    for known in (Situation(enclave, NOW), knowing("any")):
        assert one(known, known, "SEC:STALE").now.gaps == ()
    nitro = Situation((alone("one", AWS.nitro()),), NOW)
    assert one(nitro, nitro, "SEC:SECURE TEE:sgx").now.gaps == ()
