"""An operator who owns genuine processors, and old and other endorsements for them: T-09, T-12, T-24 to T-31.

He signs nothing that a vendor would not: everything here is built under a test PKI of the
vendor's shape, as genuine hardware in hostile hands would make it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from conclave import _crypto
from conclave.attestation import (
    Anchors,
    AttestationResult,
    Claims,
    Constraint,
    EvidenceClaims,
    InstanceClaims,
    InstanceInfo,
    appraise,
    bundle_id,
    verify_evidence,
    verify_instance,
)
from conclave.attestation._x509 import Certificate
from conclave.attestation.appraisal import chip_of, security_of, weigh
from conclave.attestation.binding import runtime_measurement
from conclave.attestation.tcb import version_of
from conclave.attestation.verify import SIMULATED_ROOT
from conclave.bundle import Bundle, unpack
from conclave.client import Client
from conclave.enclave import _runtime
from conclave.enclave._sandbox import in_memory
from conclave.enclave.drivers.nsm import NitroTee, Nsm
from conclave.errors import (
    AppraisalError,
    BindingError,
    BundleError,
    ChainError,
    Error,
    ExpiredError,
    FormatError,
    RevokedError,
    VerificationError,
)
from conclave.host.endorsements.documents import TcbInfo, read_document
from conclave.host.endorsements.schedule import MAXIMUM_AGE, Act, Held, decide, failed, retry_after
from conclave.platform.pki import der
from conclave.testing import HostServer
from conclave.testing.evidence import AmdPki, AwsPki, BuiltEvidence, IntelPki
from conclave.testing.evidence.pki import CertificateDraft, RsaKey, integer, oid, pem, sequence, signed
from conclave.testing.verifier import RELEASE, vendor_root

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
VICTIM: dict[str, Any] = {"code": b"v" * 32, "signer": b"s" * 32, "product_id": 7, "revocation_level": 3}
EVIL: dict[str, Any] = VICTIM | {"code": b"e" * 32}


@cache
def intel() -> IntelPki:
    return IntelPki.create(now=NOW)


@cache
def amd() -> AmdPki:
    return AmdPki.create(now=NOW)


@cache
def aws() -> AwsPki:
    return AwsPki.create(now=NOW)


def root_of(tee: str) -> bytes:
    if tee == "snp":
        return amd().snp_draft().certificate("ark")
    return (aws().nitro_draft() if tee == "nitro" else intel().sgx_draft()).certificate("root")


def said(parts: dict[str, Any] = VICTIM, **changes: Any) -> InstanceClaims:
    """What whoever makes the evidence says about itself."""
    fields: dict[str, Any] = {
        "version": 1,
        "bundle_id": bundle_id(**parts),
        **parts,
        "runtime": RELEASE,
        "sandbox": "none",
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


def verify(built: BuiltEvidence) -> EvidenceClaims:
    """What genuine hardware said, by the production verifier."""
    anchors = Anchors({built.tee: built.anchors})
    return verify_evidence(built.raw, built.endorsements, kind=built.tee, anchors=anchors, now=NOW)[1]


def level(built: BuiltEvidence, constraint: str = "") -> str:
    """The security of evidence alone."""
    found = verify(built)
    claims = Claims(None, b"", found.tee, found, runtime_measurement(found), NOW)
    return security_of(claims, constraint=Constraint.parse(constraint, program=False) if constraint else None)[0]


@contextlib.contextmanager
def vendor(tee: str, measurement: bytes = bytes(48), **known: Any) -> Iterator[None]:
    """Within the block the test PKI is the vendor's, and reference values know that much."""
    with vendor_root(root_of(tee), tee=tee, measurement=measurement, **known):
        yield


def connect(built: BuiltEvidence, claims: InstanceClaims, constraint: str) -> AttestationResult:
    """A client who is given this evidence for these claims."""
    info = InstanceInfo(
        version=1, format=built.tee, evidence=built.raw, endorsements=built.endorsements, claims=claims.encode()
    )
    return verify_instance(info.encode(), Constraint.parse(constraint), now=NOW)


def extended(*values: bytes) -> bytes:
    register = bytes(48)
    for value in values:
        register = hashlib.sha384(register + value).digest()
    return register


HONEST = """
from conclave.enclave import Enclave, rpc

class Honest(Enclave):
    @rpc
    def give(self, secret: str) -> None:
        self.kept = secret
"""


# What is on its way passes through his hands -------------------------------------------


@pytest.mark.spec("T-09", "CLM-5", "CLM-8")
@pytest.mark.parametrize(
    ("layer", "code"),
    [
        ("quote", "quote-signature"),
        ("qe_report", "qe-report-signature"),
        ("tcb_info", "tcb-info-signature"),
        ("qe_identity", "qe-identity-signature"),
        ("pck_crl", "pck-crl-issuer"),
        ("root_crl", "root-crl-issuer"),
        ("pck", "pck-chain"),
    ],
)
def test_a_part_that_the_operator_signed_with_a_key_of_his_own(layer: str, code: str) -> None:
    """Everything else is the vendor's, so that he may write what he likes into that part."""
    with pytest.raises(VerificationError) as caught:
        verify(intel().sgx(change=lambda draft: draft.signers.update({layer: "own"})))
    assert caught.value.code == code


# The operator lays out the bundle ----------------------------------------------------


@pytest.mark.spec("T-12", "BND-4")
@pytest.mark.parametrize("change", ["contents", "byte code", "package"])
def test_a_bundle_with_the_names_and_sizes_of_another(
    author: Callable[..., Bundle], tmp_path: Path, change: str
) -> None:
    """On hardware nobody measures more of a bundle than its manifest: the runtime must."""
    from tests.imitations.nsm import Module
    from tests.imitations.processor import Nitro

    bundle = author("genuine", HONEST)
    unpack(bundle, tmp_path / "bundle")
    source = tmp_path / "bundle" / "app" / "genuine.py"
    if change == "package":
        (tmp_path / "bundle" / "app" / "torch").mkdir()
    else:
        path = next((source.parent / "__pycache__").iterdir()) if change == "byte code" else source
        honest = path.read_bytes()
        path.write_bytes(honest.replace(b"kept", b"sent"))
        assert len(path.read_bytes()) == len(honest)
        assert path.read_bytes() != honest
    tee = NitroTee(Nsm(-1, ioctl=Module(Nitro(NOW)).ioctl))
    with pytest.raises(BundleError, match=r"differs from what the manifest says|is not in the manifest"):
        _runtime._prepare(tmp_path / "bundle", tee, None)
    assert "genuine" not in sys.modules


@pytest.mark.spec("T-12", "DRV-28")
def test_a_bundle_on_a_disk_that_changes_after_it_was_checked(author: Callable[..., Bundle], tmp_path: Path) -> None:
    from tests.imitations.nsm import Module
    from tests.imitations.processor import Nitro

    unpack(author("genuine", HONEST), tmp_path / "bundle")
    assert not in_memory(str(tmp_path / "bundle")) or pytest.skip("everything lies in memory here")
    tee = NitroTee(Nsm(-1, ioctl=Module(Nitro(NOW)).ioctl))
    with pytest.raises(_runtime.StartError, match="where the host can change it"):
        _runtime._prepare(tmp_path / "bundle", tee, lambda places: "landlock")


# He is the administrator of an EC2 instance -------------------------------------------


@pytest.mark.spec("T-24", "CLM-1", "EVID-5", "EVID-8")
def test_an_instance_that_puts_a_victims_name_into_its_tpm() -> None:
    """Register 16 of a TPM can be reset and extended at will; 0 to 2 are the same on every instance."""
    claims = said()
    registers = {n: bytes((n + 1,)) * 48 for n in range(3)}

    def document(name: str) -> BuiltEvidence:
        def change(draft: Any) -> None:
            draft.payload.pop("pcrs")
            draft.payload |= {name: {**registers, 16: extended(claims.bundle_id)}, "user_data": claims.digest()}

        return aws().nitro(change=change)

    pinned = hashlib.sha384(b"".join(registers.values())).digest()
    constraint = f"C:{claims.code.hex()} TEE:nitro RUNTIME:{pinned.hex()}"
    with vendor("nitro", pinned):
        assert connect(document("pcrs"), claims, constraint).security == "SECURE"
        with pytest.raises(BindingError):
            connect(document("nitrotpm_pcrs"), claims, constraint)
    assert level(document("nitrotpm_pcrs")) == "INSECURE"


# He has one accepted program claim to be another ----------------------------------------


@pytest.mark.spec("T-25", "T-07", "EVID-9")
@pytest.mark.parametrize("by_config_id", [False, True])
def test_an_accepted_program_that_claims_to_be_another(by_config_id: bool) -> None:
    """Runtime and program are one measurement, and the program shares its process with the runtime."""
    lie = said(VICTIM)
    measured = {"victim": b"V" * 32, "evil": b"E" * 32}
    constraint = f"C:{VICTIM['code'].hex()} C:{EVIL['code'].hex()} TEE:sgx"
    constraint += "".join(f" RUNTIME:{m.hex()}" for m in measured.values())

    def quote(measurement: bytes, claims: InstanceClaims) -> BuiltEvidence:
        # Whoever launches it signs it anew, with key separation, and writes any CONFIGID.
        config = claims.bundle_id + bytes(32) if by_config_id else bytes(64)

        def change(draft: Any) -> None:
            draft.body.set(mrenclave=measurement, config_id=config)

        return intel().sgx(report_data=claims.digest(), change=change)

    known = {"measurement": measured["victim"], "bundle_id": lie.bundle_id}
    with vendor("sgx", **known):
        assert connect(quote(measured["victim"], lie), lie, constraint).claims.code == VICTIM["code"]
        with pytest.raises(AppraisalError, match="not for which of the programs"):
            connect(quote(measured["evil"], lie), lie, constraint)
        # Pinned for one program, it is that one's: its owner said so.
        connect(quote(measured["evil"], lie), lie, f"C:{VICTIM['code'].hex()} RUNTIME:{measured['evil'].hex()}")


@pytest.mark.spec("T-25", "EVID-9", "CON-12")
def test_a_replaced_release_that_claims_the_level_of_its_successor() -> None:
    old = said(VICTIM | {"revocation_level": 9})
    constraint = f"S:{VICTIM['signer'].hex()} PROD:7 REVOKE:4 TEE:sgx RUNTIME:{'0e' * 32}"
    quote = intel().sgx(report_data=old.digest(), change=lambda draft: draft.body.set(mrenclave=b"\x0e" * 32))
    with vendor("sgx", bytes(32)), pytest.raises(AppraisalError, match="not for which of the programs"):
        connect(quote, old, constraint)


# He has old firmware -------------------------------------------------------------------


@pytest.mark.spec("T-26", "EVID-11")
@pytest.mark.parametrize("product", ["Milan", "Turin"])
@pytest.mark.parametrize("field", ["launch_tcb", "committed_tcb"])
def test_firmware_that_is_new_only_when_it_is_asked(product: str, field: str) -> None:
    """What launched the guest measured it; what is not committed can be turned back at any time."""
    whole = amd().snp(product=product)
    now = verify(whole)
    minimum = f"TCB:snp-{product.lower()}@{version_of(now)}"
    assert level(whole, minimum) == "SECURE"
    tcb = bytearray(bytes.fromhex(now.details["reported_tcb"]))
    tcb[-1] -= 1
    older = amd().snp(product=product, change=lambda draft: draft.report.set(**{field: bytes(tcb)}))
    assert level(older, minimum) == "STALE"
    assert level(older, f"TCB:snp-{product.lower()}@any") == "SECURE"
    # Firmware that was committed further than it reports is no reason for anything.
    tcb[-1] += 2
    newer = amd().snp(product=product, change=lambda draft: draft.report.set(**{field: bytes(tcb)}))
    assert level(newer, minimum) == "SECURE"


# He has a migration TD -------------------------------------------------------------------


@pytest.mark.spec("T-27", "DCAP-23", "EVID-5")
def test_a_service_td_that_the_form_of_the_quote_hides() -> None:
    """TDX 1.5 makes quotes of version 4, whose report has no MRSERVICETD: all that shows is MIGRATABLE."""
    migratable = 1 << 28 | 1 << 29

    def domain(attributes: int = migratable, **options: Any) -> BuiltEvidence:
        return intel().tdx(change=lambda draft: draft.body.set(td_attributes=attributes), **options)

    for version in (4, 5):
        assert level(domain(version=version, body=2)) == "INSECURE"
        assert level(domain(1 << 28, version=version, body=2)) == "SECURE"
    # A report that has the field says that there is nobody.
    assert level(domain(version=5, body=3)) == "SECURE"
    watched = {"td_attributes": migratable, "mrservicetd": b"\1" * 48}
    assert level(intel().tdx(version=5, body=3, change=lambda draft: draft.body.set(**watched))) == "INSECURE"


@pytest.mark.spec("T-27", "DCAP-23", "EVID-5")
def test_attributes_that_come_with_hardware_to_come() -> None:
    """What a bit does that has no meaning yet, the host knows first."""
    for bit in (8, 17, 40):
        domain = intel().tdx(change=lambda draft, bit=bit: draft.body.set(td_attributes=1 << 28 | 1 << bit))
        assert level(domain) == "INSECURE"
    enclave = intel().sgx(change=lambda draft: draft.body.set(attributes=(3 << 64) | 5 | 1 << 3))
    assert level(enclave) == "INSECURE"


# He has a processor that the vendor revoked ----------------------------------------------


def refusals(built: BuiltEvidence, constraint: str) -> list[str]:
    found = verify(built)
    claims = Claims(None, b"", found.tee, found, runtime_measurement(found), NOW)
    line = f"{constraint} RUNTIME:{claims.measurement.hex()}"
    return [text.partition(":")[0] for text in weigh(Constraint.parse(line, program=False), claims)[2]]


@pytest.mark.spec("T-28", "CON-7", "EVID-3")
def test_a_revocation_list_that_is_left_out_or_held_back() -> None:
    """A stale platform may be good enough; not to know since when it is good may not."""
    revoked = [intel().certificates()["pck"].serial]
    with pytest.raises(RevokedError):
        verify(intel().sgx(change=lambda draft: draft.pck_crl.revoked.extend(revoked)))
    for left_out in ({"pck_crl": None}, {"root_crl": None}):
        without = intel().sgx(change=lambda draft, left_out=left_out: vars(draft).update(left_out))
        assert refusals(without, "SEC:STALE") == []
        assert refusals(without, "SEC:STALE EXPIRE:P30D") == ["EXPIRE"]
        assert refusals(without, "EXPIRE:P30D") == ["SEC", "EXPIRE"]

    def held_back(draft: Any) -> None:
        draft.pck_crl.set(this_update=NOW - timedelta(days=31), next_update=NOW + timedelta(days=1))

    assert refusals(intel().sgx(change=held_back), "EXPIRE:P30D") == ["EXPIRE"]
    # AMD's certificates are made when they are asked for: they say nothing of the list's age.
    amds = amd().snp(change=lambda draft: vars(draft).update(crl=None))
    assert refusals(amds, "SEC:STALE EXPIRE:P90D") == ["EXPIRE"]
    assert refusals(aws().nitro(), "EXPIRE:P1D") == []


# He makes what is slow to refuse -----------------------------------------------------------

PATIENCE_SECONDS = 0.1


def time_to_refuse(built: BuiltEvidence, error: type[Error] = Error) -> float:
    """Seconds of the processor, best of three, where a simulated machine would do: its root is looked for."""
    anchors, best = Anchors({built.tee: built.anchors}, simulated=True), 9.0
    for _ in range(3):
        begin = time.process_time()
        with pytest.raises(error):
            verify_evidence(built.raw, built.endorsements, kind=built.tee, anchors=anchors, now=NOW)
        best = min(best, time.process_time() - begin)
    return best


@cache
def pss() -> bytes:
    """The algorithm identifier of RSA-PSS with SHA-384."""
    return RsaKey("ark").algorithm


def hostile_certificate(key: bytes, *extensions: bytes, signature: bytes = bytes(64)) -> bytes:
    """Of his own, by whichever key, under the name that has the verifier look at it."""
    name = sequence(der(0x31, sequence(oid("2.5.4.3"), der(0x0C, SIMULATED_ROOT.encode()))))
    algorithm = pss()
    dates = sequence(*(der(0x17, day) for day in (b"250101000000Z", b"350101000000Z")))
    said = sequence(
        der(0xA0, integer(2)), integer(5), algorithm, name, dates, name, key, der(0xA3, sequence(*extensions))
    )
    return signed(said, algorithm, signature)


AUTHORITY = sequence(oid("2.5.29.19"), der(1, b"\xff"), der(4, sequence(der(1, b"\xff"))))


def with_chain(chain: list[bytes]) -> BuiltEvidence:
    return intel().sgx(change=lambda draft: draft.after_signing("chain", lambda _: b"".join(chain)))


@pytest.mark.spec("T-29", "EVID-2")
@pytest.mark.parametrize(("bits", "exponent_bits"), [(16384, 64), (3072, 3072), (4096, 64)])
def test_keys_that_are_slow_to_use(bits: int, exponent_bits: int) -> None:
    """Eight authorities of one name, each of which may have issued each: a signature took 14 ms."""
    modulus, exponent = (1 << bits) - 159, (1 << exponent_bits - 1) | 1
    numbers = sequence(integer(modulus), integer(exponent))
    key = sequence(sequence(oid("1.2.840.113549.1.1.1"), der(5, b"")), der(3, b"\0" + numbers))
    chain = [
        hostile_certificate(key, AUTHORITY, signature=bytes((1, n)).ljust(bits // 8, b"\1"))
        for n in range(16384 // (bits // 4 + 600))
    ]
    assert time_to_refuse(with_chain(chain[:8]), ChainError) < PATIENCE_SECONDS / 4


@pytest.mark.spec("T-29", "EVID-2", "EVID-3", "DCAP-3")
def test_names_without_end() -> None:
    """A name in a certificate or list takes a microsecond to read, and 60,000 fit."""
    key = intel().ring["stranger"].public

    def names(size: int) -> bytes:
        return sequence(oid("2.5.29.17"), der(4, sequence(der(0xA4, sequence()) * (size // 4))))

    assert time_to_refuse(with_chain([hostile_certificate(key, names(60000))]), FormatError) < PATIENCE_SECONDS / 4
    whole = [hostile_certificate(key, names(7000)) for _ in range(2)]
    assert time_to_refuse(with_chain(whole), ChainError) < PATIENCE_SECONDS

    def endless(draft: Any) -> None:
        draft.chains["tcb_info"] = []
        draft.endorsements["tcb_info_issuer_chain"] = pem(hostile_certificate(key, names(250000)))

    assert time_to_refuse(intel().sgx(change=endless), FormatError) < PATIENCE_SECONDS / 4
    issuers = {"2.5.29.18": (False, sequence(der(0xA4, sequence()) * 60000))}
    listed = intel().sgx(change=lambda draft: draft.pck_crl.set(extensions=issuers))
    assert time_to_refuse(listed, FormatError) < PATIENCE_SECONDS / 4


@pytest.mark.spec("T-29", "DCAP-5", "SNP-6")
def test_small_things_without_number() -> None:
    for text in ("[" * 20 + "]" * 20 + ",", "{},", '{"a":[]},'):
        many = "[" + text * (520000 // len(text)) + "1]"
        for built in (intel().sgx(), amd().snp()):
            filled = replace(built, endorsements=many.encode())
            assert time_to_refuse(filled, FormatError) < PATIENCE_SECONDS / 4


@pytest.mark.spec("T-29", "EVID-2")
def test_a_name_that_cannot_be_read() -> None:
    """A string of bits is no name; and the certificate signs itself, so that its name is looked at."""
    ring = intel().ring
    name = {"CN": SIMULATED_ROOT, "O": "Nobody"}
    draft = CertificateDraft("own", name, name, 5, NOW, NOW + timedelta(days=1))
    to_sign = draft.to_sign(ring, ring["own"]).replace(der(0x0C, b"Nobody"), der(0x03, b"\0obody"))
    root = signed(to_sign, ring["own"].algorithm, ring["own"].sign(to_sign))
    certificate = Certificate(root, what="root")
    assert certificate.signed_by(certificate)
    assert certificate.common_name == ""
    time_to_refuse(with_chain([root]), ChainError)


# He answers in the vendor's place --------------------------------------------------------


@pytest.mark.spec("T-30", "END-3", "END-12", "END-18", "END-26")
def test_dates_beyond_the_calendar() -> None:
    chain = pem(*(intel().sgx_draft().certificate(name) for name in ("tcb_signer", "root"))).encode()
    wanted = TcbInfo("sgx", intel().fmspc.hex())

    def answer(issued: str, until: str) -> bytes:
        said = {
            "id": "SGX",
            "version": 3,
            "issueDate": issued,
            "nextUpdate": until,
            "fmspc": wanted.fmspc,
            "pceId": "0000",
        }
        return json.dumps({"tcbInfo": said, "signature": "00" * 64}).encode()

    fine = "2026-02-01T00:00:00Z", "2026-03-31T00:00:00Z"
    document = read_document(wanted, answer(*fine), chain, fetched=NOW)
    held = Held(NOW, document.window, MAXIMUM_AGE[TcbInfo])
    assert decide(held, None, None, NOW) is Act.USE
    for issued, until, fetched in (
        ("0001-01-01T00:00:00Z", fine[1], NOW),
        ("0001-01-01T00:00:00+23:59", fine[1], NOW),
        (fine[0], "9999-12-31T23:59:59-23:59", NOW),
        (*fine, datetime(1, 1, 1, tzinfo=UTC)),
    ):
        with pytest.raises(FormatError):
            read_document(wanted, answer(issued, until), chain, fetched=fetched)
    for text in ("Sun, 01 Mar 2026 12:00:00 +99999999999999999999", "01 Mar 99999999999999999999 12:00:00 GMT"):
        assert retry_after(text, NOW) is None


@pytest.mark.spec("T-30", "END-12", "END-18")
def test_no_answer_has_a_host_never_ask_again() -> None:
    """He asks it to wait for years, and gives it years by a clock of his: it is back after a day at the latest."""
    day = timedelta(days=1)
    for text in ("9" * 400, "315360000", "Fri, 31 Dec 9999 23:59:59 GMT"):
        wait = retry_after(text, NOW)
        assert wait == day
        trouble = failed(None, code="vendor-busy", missing=True, retry_after=wait, now=NOW, chance=0.0)
        assert decide(None, trouble, None, NOW) is Act.REFUSE
        assert decide(None, trouble, trouble.until, NOW + day) is Act.FETCH
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT", NOW) == timedelta(0)
    years = NOW + 365 * day
    later = failed(None, code="vendor-busy", missing=True, retry_after=day, now=years, chance=0.0)
    assert decide(None, later, later.until, NOW) is Act.FETCH
    assert failed(later, code="vendor-busy", missing=True, retry_after=None, now=NOW, chance=0.0).until <= NOW + day


@pytest.mark.slow
@pytest.mark.spec("T-28", "CLM-11")
def test_a_client_that_stays_while_its_platform_is_revoked(
    author: Callable[..., Bundle], serve: Callable[..., HostServer], only: Callable[[Bundle], str]
) -> None:
    """It would go on for ever with what it verified once; the operator only has to keep the enclave up."""
    bundle = author("honest", HONEST)
    with serve(bundle, hostile=True) as server, Client(server.url, constraint=only(bundle)) as client:
        client.call("give", "secret")
        end = client.instance.evidence.valid_until
        client._core._now = lambda: end
        client.call("give", "another")
        sent = len(server.operator.requests)
        client._core._now = lambda: end + timedelta(seconds=1)
        with pytest.raises(ExpiredError):
            client.call("give", "a third")
        assert len(server.operator.requests) == sent


# He finds what a constraint left open ----------------------------------------------------


@pytest.mark.spec("T-06", "CON-15")
def test_a_constraint_that_names_no_program_accepts_none() -> None:
    """It is for evidence alone; an instance that it accepted could be any program."""
    claims = said(EVIL)
    quote = intel().sgx(report_data=claims.digest())
    measurement = runtime_measurement(verify(quote))
    info = InstanceInfo(1, "sgx", quote.raw, quote.endorsements, claims.encode()).encode()
    open_to_all = Constraint.parse(f"TEE:sgx RUNTIME:{measurement.hex()}", program=False)
    with vendor("sgx", measurement):
        with pytest.raises(AppraisalError, match="names no program"):
            verify_instance(info, open_to_all, now=NOW)
        found = verify(quote)
        with pytest.raises(AppraisalError, match="evidence alone names no program"):
            appraise(open_to_all, Claims(None, b"", "sgx", found, measurement, NOW))


@pytest.mark.spec("T-31", "EVID-6", "CON-6")
def test_an_accepted_advisory_that_is_about_another_part() -> None:
    """The owner accepted what one part needs; TCB info of an older form says of the platform no more than a word."""

    def change(draft: Any, listed: list[str]) -> None:
        draft.level.update(tcbStatus="SWHardeningNeeded", advisoryIDs=listed)
        draft.qe_level.update(advisoryIDs=["INTEL-SA-00615"])

    accepted = "ADVISORIES:INTEL-SA-00615"
    named = intel().sgx(change=lambda draft: change(draft, ["INTEL-SA-00615"]))
    assert (level(named), level(named, accepted)) == ("STALE", "SECURE")
    assert level(intel().sgx(change=lambda draft: change(draft, [])), accepted) == "STALE"


@pytest.mark.spec("T-31", "EVID-7")
def test_a_minimum_that_reference_values_know_of_a_vendor_with_statuses() -> None:
    """He staples the oldest TCB info that is still valid: by that, everything is up to date."""
    date = verify(intel().sgx()).tcb_date
    assert date is not None
    for days, found in ((0, "SECURE"), (1, "STALE")):
        minimum = {"sgx": (date + timedelta(days=days)).date().isoformat()}
        with vendor("sgx", bytes(32), minimum_tcb=minimum):
            assert level(intel().sgx()) == found


# What held -----------------------------------------------------------------------------


def launched(tee: str, parts: dict[str, Any], report_data: bytes, *, register: bytes | None = None) -> BuiltEvidence:
    """Evidence of a TEE that was launched with that bundle; TDX and Nitro may have another register."""
    name = bundle_id(**parts)
    if tee == "sgx":
        return intel().sgx(report_data=report_data, change=lambda draft: draft.body.set(config_id=name + bytes(32)))
    if tee == "snp":
        return amd().snp(report_data=report_data, change=lambda draft: draft.report.set(host_data=name))
    if tee == "nitro":
        held = register or extended(name)
        return aws().nitro(user_data=report_data, change=lambda draft: draft.payload["pcrs"].update({16: held}))
    field = {"rtmr3": register} if register else {"mrconfigid": name + bytes(16)}
    return intel().tdx(report_data=report_data, change=lambda draft: draft.body.set(**field))


TEES = ("sgx", "tdx", "snp", "nitro")


@pytest.mark.spec("T-07", "CLM-3", "CLM-4", "CLM-5")
@pytest.mark.parametrize("tee", TEES)
def test_his_own_program_asks_for_evidence_over_a_victims_claims(tee: str) -> None:
    accepts = f"C:{VICTIM['code'].hex()} TEE:{tee} SEC:STALE"
    measurement = runtime_measurement(verify(launched(tee, VICTIM, bytes(64))))
    with vendor(tee, measurement):
        honest = said(VICTIM)
        assert connect(launched(tee, VICTIM, honest.digest()), honest, accepts).claims == honest
        for lie in (honest, said(VICTIM, bundle_id=bundle_id(**EVIL))):
            with pytest.raises(BindingError):
                connect(launched(tee, EVIL, lie.digest()), lie, accepts)
        # Genuine evidence of the victim, over keys that are not the victim's.
        with pytest.raises(BindingError):
            connect(launched(tee, VICTIM, honest.digest()), said(VICTIM, encryption_key=b"k" * 1216), accepts)


@pytest.mark.spec("T-07", "CLM-1", "EVID-8")
@pytest.mark.parametrize(("tee", "padding"), [("tdx", 16), ("nitro", 0)])
def test_a_register_cannot_be_brought_to_another_bundle(tee: str, padding: int) -> None:
    """The runtime extended it with the evil bundle before that ran; all that is left is to extend it further."""
    victim, evil = (bundle_id(**parts) + bytes(padding) for parts in (VICTIM, EVIL))
    claims = said(VICTIM)
    with vendor(tee):
        for register in (extended(evil, victim), extended(victim, evil), extended(victim, victim), evil + bytes(48)):
            built = launched(tee, VICTIM, claims.digest(), register=register[:48])
            with pytest.raises(BindingError):
                connect(built, claims, f"C:{VICTIM['code'].hex()} TEE:{tee}")


@pytest.mark.spec("T-23", "EVID-14")
@pytest.mark.parametrize("tee", TEES)
def test_his_own_runtime_under_the_name_of_a_release(tee: str) -> None:
    """On his own genuine processor he measures what he likes, and puts the victim's bundle id where it belongs."""
    claims = said(VICTIM)
    with vendor(tee, b"r" * (32 if tee == "sgx" else 48)), pytest.raises(AppraisalError, match="RUNTIME"):
        connect(launched(tee, VICTIM, claims.digest()), claims, f"C:{VICTIM['code'].hex()} TEE:{tee} SEC:STALE")


@pytest.mark.spec("T-10", "CLM-7")
def test_a_simulated_machines_root_beside_a_genuine_chain() -> None:
    """Whoever accepts both shall not be told that it is the genuine one; whoever does not is told why."""
    ring = intel().ring
    name = {"CN": SIMULATED_ROOT}
    draft = CertificateDraft("own", name, name, 5, NOW - timedelta(days=1), NOW + timedelta(days=1), ca=True)
    to_sign = draft.to_sign(ring, ring["own"])
    root = pem(signed(to_sign, ring["own"].algorithm, ring["own"].sign(to_sign))).encode()
    for chain in (lambda given: given + root, lambda given: root + given):
        built = intel().sgx(change=lambda draft, chain=chain: draft.after_signing("chain", chain))
        for simulated in (False, True):
            anchors = Anchors({"sgx": built.anchors}, simulated=simulated)
            with pytest.raises(ChainError):
                verify_evidence(built.raw, built.endorsements, kind="sgx", anchors=anchors, now=NOW)


@pytest.mark.spec("T-31", "CON-14")
def test_a_chip_that_hides_behind_its_provider_or_a_mask() -> None:
    chip = chip_of(verify(amd().snp()))
    masked = amd().snp(change=lambda draft: draft.report.set(chip_id=bytes(64)))
    assert refusals(masked, f"SEC:STALE CHIP:{chip}") == []
    assert refusals(masked, f"SEC:STALE CHIP:{'0' * 64}") == ["CHIP"]
    nameless = hashlib.sha256(b"").hexdigest()
    hidden = amd().snp(leaf="vlek", change=lambda draft: draft.report.set(chip_id=bytes(64)))
    assert refusals(hidden, f"SEC:STALE CHIP:{chip} CHIP:{nameless}") == ["CHIP"]
