"""The evidence builder: the same bytes every time, what it builds passes, and nothing else vouches for it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import dcap_qvl
import pytest
from cryptography import x509

from conclave.attestation import dcap, nitro, snp
from conclave.attestation._x509 import split_pem
from conclave.attestation.anchors import ANCHORS
from conclave.attestation.evidence import EvidenceClaims
from conclave.errors import ChainError, Error
from conclave.testing.evidence import AmdPki, AwsPki, BuiltEvidence, IntelPki, amd, intel
from conclave.testing.evidence.aws import Pairs, Raw, cbor
from conclave.testing.evidence.draft import Layout, Record, flip
from conclave.testing.evidence.pki import KeyRing, oid

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
INTEL, AMD, AWS = IntelPki.create(now=NOW), AmdPki.create(now=NOW), AwsPki.create(now=NOW)
DATA = bytes(range(64))
Build = Callable[..., BuiltEvidence]
EVERYTHING: list[tuple[Build, dict[str, Any]]] = [
    *((INTEL.sgx, {"version": v, "tcb_info": t, "report_data": DATA}) for v in (3, 4, 5) for t in (2, 3)),
    *((INTEL.tdx, {"version": v, "module": m, "report_data": DATA}) for v in (4, 5) for m in (0, 1, 3)),
    (INTEL.tdx, {"version": 5, "body": 3, "report_data": DATA}),
    *(
        (AMD.snp, {"product": p, "version": v, "leaf": leaf, "report_data": DATA})
        for p in ("Milan", "Genoa", "Turin")
        for v in (2, 3, 5)
        for leaf in ("vcek", "vlek")
    ),
    *((AWS.nitro, {"pcrs": pcrs, "nonce": DATA}) for pcrs in (16, 17)),
]


def verify(built: BuiltEvidence, *, anchors: frozenset[str] | None = None) -> EvidenceClaims:
    trusted = built.anchors if anchors is None else anchors
    if built.tee == "nitro":
        return nitro.verify_document(nitro.parse_document(built.raw), anchors=trusted, now=built.now)
    if built.tee == "snp":
        return snp.verify_report(snp.parse_report(built.raw), built.endorsements, anchors=trusted, now=built.now)
    return dcap.verify_quote(dcap.parse_quote(built.raw), built.endorsements, anchors=trusted, now=built.now)


@pytest.mark.parametrize(("build", "options"), EVERYTHING)
def test_what_it_builds_passes(build: Build, options: dict[str, Any]) -> None:
    built = build(**options)
    claims = verify(built)
    assert claims.tee == built.tee
    assert {claims.anchor} == built.anchors
    assert not claims.debug
    assert claims.report_data == (None if built.tee == "nitro" else DATA)
    assert claims.tcb_status in ("", "UpToDate")
    with pytest.raises(ChainError):
        verify(built, anchors=ANCHORS[built.tee])
    debug = build(**options, debug=True)
    assert verify(debug).debug


@pytest.mark.parametrize("build", [INTEL.tdx, AMD.snp, AWS.nitro])
def test_building_twice_gives_the_same_bytes(build: Build) -> None:
    assert build() == build()
    again: dict[str, Any] = {"sgx": IntelPki, "tdx": IntelPki, "snp": AmdPki, "nitro": AwsPki}
    kind = again[build().tee]
    name = build.__name__
    assert getattr(kind.create(now=NOW), name)() == build()
    other = getattr(kind.create(now=NOW, seed=b"another"), name)()
    assert other.raw != build().raw
    assert verify(other)
    later = getattr(kind.create(now=NOW + timedelta(days=1)), name)()
    assert later.anchors != build().anchors


@pytest.mark.parametrize(("build", "options"), [(b, o) for b, o in EVERYTHING if b in (INTEL.sgx, INTEL.tdx)])
def test_another_verifier_agrees(build: Build, options: dict[str, Any]) -> None:
    """dcap-qvl, as far as it goes: no TCB info 2, and SGX in quotes of version 3 only."""
    built = build(**options)
    if options.get("tcb_info") == 2 or (built.tee == "sgx" and options["version"] > 3):
        pytest.skip("dcap-qvl does not read these")
    members = json.loads(built.endorsements)
    root = split_pem(members["pck_crl_issuer_chain"].encode())[-1]
    collateral = dcap_qvl.QuoteCollateralV3.from_json(built.endorsements.decode())
    report = dcap_qvl.verify_with_root_ca(built.raw, collateral, root, int(built.now.timestamp()))
    assert report.status == "UpToDate"
    with pytest.raises(ValueError, match="signature"):
        dcap_qvl.verify_with_root_ca(flip(built.raw, 400), collateral, root, int(built.now.timestamp()))


@pytest.mark.parametrize(
    "layout",
    [intel.HEADER_3, intel.HEADER_4, intel.SGX_REPORT, intel.TD_REPORT_10, intel.TD_REPORT_15, amd.REPORT],
)
def test_layouts_tile(layout: Layout) -> None:
    end = 0
    for _, offset, size in layout:
        assert offset == end
        end += size
    assert end in (48, 384, 584, 648, 0x2A0)
    assert len(Record(layout).pack()) == end


def test_records() -> None:
    record = Record(intel.HEADER_4).set(version=7, user_data=b"u" * 20)
    record["tee_type"] = 0x81
    assert record["tee_type"] == b"\x81\0\0\0"
    assert record.pack() == b"\7\0" + bytes(2) + b"\x81\0\0\0" + bytes(20) + b"u" * 20
    with pytest.raises(KeyError):
        record["nothing"] = 1
    with pytest.raises(ValueError, match="user_data has 20 bytes"):
        record["user_data"] = b"short"
    with pytest.raises(OverflowError):
        record["version"] = 65536


def test_what_is_set_is_signed_and_a_hook_is_not() -> None:
    def set_it(draft: Any) -> None:
        draft.body.set(isv_svn=9)

    claims = verify(INTEL.sgx(change=set_it))
    assert claims.measurements["isv_svn"] == 9
    for when in ("before_signing", "at_signature", "after_signing"):

        def hook(draft: Any, when: str = when) -> None:
            getattr(draft, when)("quote", lambda data: flip(data, 60 if when != "at_signature" else 0))

        if when == "before_signing":
            assert verify(INTEL.sgx(change=hook)).measurements["cpu_svn"][24:26] == "03"
        else:
            with pytest.raises(Error) as refused:
                verify(INTEL.sgx(change=hook))
            assert refused.value.code == "quote-signature"


def test_mistakes_are_noticed() -> None:
    with pytest.raises(TypeError, match="no field serail"):
        INTEL.sgx(change=lambda d: d.certificates["pck"].set(serail=1))
    with pytest.raises(ValueError, match="hooks for what is not in this evidence: qoute"):
        INTEL.sgx(change=lambda d: d.after_signing("qoute", bytes))
    for build, options in (
        (AMD.snp, {"product": "Rome"}),
        (AMD.snp, {"version": 4}),
        (AMD.snp, {"leaf": "ask"}),
        (INTEL.sgx, {"version": 6}),
        (INTEL.sgx, {"tcb_info": 1}),
        (INTEL.tdx, {"version": 4, "body": 3}),
    ):
        with pytest.raises(ValueError, match="or"):
            build(**options)
    with pytest.raises(TypeError):
        AWS.nitro(report_data=b"")
    with pytest.raises(TypeError, match="no CBOR for set"):
        cbor({1, 2}.__class__())


def test_a_changed_root_can_be_pinned() -> None:
    def change(draft: Any) -> None:
        draft.certificates["root"].serial = 5
        draft.pinned = "root"

    built = INTEL.sgx(change=change)
    assert built.anchors != INTEL.anchors
    assert verify(built)


def test_certificates_are_what_they_say() -> None:
    members = json.loads(AMD.snp(product="Turin").endorsements)
    ask, ark = (x509.load_der_x509_certificate(c) for c in split_pem(members["chain"].encode()))
    assert ark.subject.rfc4514_string() == "CN=ARK-Turin,O=Test of AMD's shape,C=US,OU=Test"
    ask.verify_directly_issued_by(ark)
    assert ask.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    usage = ark.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature
    crl = x509.load_der_x509_crl(bytes.fromhex(members["crl"]))
    assert crl.next_update_utc == NOW + timedelta(days=365)
    # RFC 5280: from 2050 on with four digits of the year.
    late = AwsPki.create(now=NOW + timedelta(days=8000))
    document = nitro.parse_document(late.nitro().raw)
    root = x509.load_der_x509_certificate(document.cabundle[0])
    assert root.not_valid_after_utc == NOW + timedelta(days=16000)
    assert verify(late.nitro())


def test_keys_by_name() -> None:
    ring = KeyRing(b"seed", "p384", ("ark",))
    assert ring.ec("x") is ring.ec("x")
    assert len({ring[name].public for name in ("x", "y", "p256:x", "k256:x", "b384:x", "ark")}) == 6
    assert ring["ark"].public == ring["pkcs1:ark"].public
    assert ring["ark"].algorithm != ring["pkcs1:ark"].algorithm
    assert ring.serial("x") != ring.serial("y") != KeyRing(b"other", "p384").serial("y")
    for dotted in ("2.5.4.3", "1.2.840.113741.1.13.1", "1.3.6.1.4.1.3704.1.3.1"):
        assert x509.ExtendedKeyUsage([x509.ObjectIdentifier(dotted)]).public_bytes()[2:] == oid(dotted)


def test_cbor_is_that_of_another_encoder() -> None:
    draw = random.Random(1)
    numbers = [n for bits in (0, 5, 8, 16, 32, 63) for n in ((1 << bits) - 1, 1 << bits)]
    numbers += [draw.randrange(1 << draw.randrange(1, 64)) for _ in range(100)]
    for number in numbers:
        for value in (number, -number):
            assert cbor(value) == cbor2.dumps(value)
    value = {"a": [b"x" * 300, "y\u00e9", None, True, False], 1: {-1: b""}, "z": list(range(30))}
    assert cbor(value) == cbor2.dumps(value)
    assert cbor(Pairs(((1, 2), (1, Raw(b"\xf7"))))) == bytes.fromhex("a2010201f7")
    assert cbor(Pairs(((1, 2),), indefinite=True)) == bytes.fromhex("bf0102ff")
