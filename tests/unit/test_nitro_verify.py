"""Nitro documents that verify, with one thing changed, signed again where a signature covers it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from tests._aws import (
    CHAIN,
    HOUR,
    MADE_MS,
    NOW,
    PCRS,
    USAGE_OF_AUTHORITIES,
    USAGE_OF_SIGNERS,
    Aws,
    certificate,
    chain,
    ec_key,
    emulated,
    leaf,
    nitrotpm,
    usage,
)

from conclave.attestation.nitro import parse_document, verify_document
from conclave.errors import ChainError, Error, ExpiredError, SignatureError

SECOND = timedelta(seconds=1)
BUNDLE = tuple(reversed(chain()[1:]))


def refused(case: Aws, kind: type[Error], code: str) -> None:
    with pytest.raises(Error) as caught:
        case.verify()
    assert type(caught.value) is kind, caught.value
    assert caught.value.code == code


def signed_by(der: bytes) -> Aws:
    return Aws(members={"certificate": der})


# What passes.


@pytest.mark.spec("NITRO-8", "NITRO-11", "NITRO-13")
@pytest.mark.parametrize("tagged", [False, True])
def test_the_document_that_all_others_are_made_from_verifies(tagged: bool) -> None:
    case = Aws(members={"user_data": b"user data", "nonce": b""}, tagged=tagged)
    claims = case.verify()
    assert claims.tee == "nitro"
    assert {claims.anchor} == case.anchors
    assert (claims.tcb_status, claims.statuses, claims.advisories, claims.tcb_date) == ("", {}, (), None)
    assert not claims.debug
    assert claims.remarks == frozenset()
    assert claims.report_data is None
    assert claims.measurements == {"pcrs": {str(i): v.hex() for i, v in PCRS.items()}, "digest": "SHA384"}
    assert claims.platform == "i-0123456789abcdef0-enc0123456789abcdef"
    assert claims.details == {
        "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
        "timestamp_ms": MADE_MS,
        "kind": "enclave",
        "public_key": None,
        "user_data": b"user data".hex(),
        "nonce": "",
    }
    assert [s.name for s in claims.steps] == ["signed", "path", "signing certificate", "signature", "time", "claims"]
    json.dumps([dict(claims.measurements), dict(claims.details)])


@pytest.mark.spec("NITRO-13")
def test_debug_mode_is_told_and_not_refused() -> None:
    assert Aws(members={"pcrs": {**PCRS, 0: bytes(48), 1: bytes(48), 2: bytes(48)}}).verify().debug
    for index in range(3):
        zeros = {i: bytes(48) for i in range(3)} | {index: b"\1" * 48}
        assert not Aws(members={"pcrs": PCRS | zeros}).verify().debug


@pytest.mark.spec("NITRO-13")
def test_a_document_of_an_instance_is_told_as_such() -> None:
    claims = nitrotpm().verify()
    assert claims.remarks == {"nitrotpm"}
    assert "pcrs" not in claims.measurements
    assert len(claims.measurements["nitrotpm_pcrs"]) == 24
    assert claims.details["kind"] == "nitrotpm"
    assert not claims.debug
    assert nitrotpm().but(members={"nitrotpm_pcrs": {7: b"\7" * 48}}).verify().debug


# Signatures.


@pytest.mark.spec("NITRO-7")
@pytest.mark.parametrize(
    "case",
    [
        emulated(),
        emulated().but(protected=bytes.fromhex("a1013822")),
        emulated().but(signature=b""),
        Aws(signature=bytes(96)),
        Aws(protected=b"", signature=bytes(64)),
    ],
)
def test_an_unsigned_document_is_refused_by_name(case: Aws) -> None:
    refused(case, SignatureError, "document-unsigned")


@pytest.mark.spec("NITRO-11")
def test_another_key_did_not_sign() -> None:
    refused(Aws(signer="other"), SignatureError, "document-signature")
    refused(Aws(signer="instance"), SignatureError, "document-signature")
    refused(signed_by(leaf(key="other")), SignatureError, "document-signature")
    assert signed_by(leaf(key="other")).but(signer="other").verify()


@pytest.mark.spec("NITRO-11")
def test_the_signature_covers_header_and_payload() -> None:
    case = Aws()
    document = parse_document(case.document())
    assert document.signed_bytes.startswith(bytes.fromhex("846a") + b"Signature1" + bytes.fromhex("44a101382240"))
    other = Aws(members={"nonce": b"other"}, signature=document.signature)
    refused(other, SignatureError, "document-signature")
    r, s = document.signature[:48], document.signature[48:]
    for signature in (s + r, r[::-1] + s[::-1], bytes(48) + s, r + bytes(48), b"\xff" * 96):
        refused(Aws(signature=signature), SignatureError, "document-signature")


@pytest.mark.spec("NITRO-11")
def test_a_key_on_another_curve_did_not_sign() -> None:
    small = leaf(key="small", curve="P-256")
    assert ec_key("small", "P-256").key_size == 256
    refused(signed_by(small), SignatureError, "document-signature")
    refused(signed_by(small).but(signature=b"\1" * 96), SignatureError, "document-signature")


# The chain.

LEAF, INSTANCE, ZONAL, REGIONAL, ROOT = chain()


def another(place: int, **changes: object) -> bytes:
    """Another certificate in the place of one of the issuers; the instance's is 1."""
    common, key, before, after = CHAIN[place]
    issuer, issuer_key, _, _ = CHAIN[min(place + 1, 4)]
    usual: dict[str, object] = {
        "common": common, "issuer": issuer, "key": key, "issuer_key": issuer_key, "begin": NOW - before,
        "end": NOW + after, "ca": True, "key_usage": USAGE_OF_AUTHORITIES,
    }  # fmt: skip
    return certificate(**(usual | changes))  # type: ignore[arg-type]


CHAINS: dict[str, dict[str, object]] = {
    "certificate does not parse": {"certificate": LEAF[:-1]},
    "certificate of zeros": {"certificate": bytes(64)},
    "certificate with a tail": {"certificate": LEAF + b"\0"},
    "issuer does not parse": {"cabundle": [ROOT, REGIONAL, ZONAL, INSTANCE[:-1]]},
    "without the root": {"cabundle": [REGIONAL, ZONAL, INSTANCE]},
    "only the root": {"cabundle": [ROOT]},
    "one missing": {"cabundle": [ROOT, REGIONAL, INSTANCE]},
    "another order": {"cabundle": [REGIONAL, ROOT, ZONAL, INSTANCE]},
    "leaf first": {"cabundle": [INSTANCE, ZONAL, REGIONAL, ROOT]},
    "one twice": {"cabundle": [ROOT, REGIONAL, ZONAL, INSTANCE, INSTANCE]},
    "one too many": {"cabundle": [ROOT, REGIONAL, ZONAL, INSTANCE, LEAF]},
    "root twice": {"cabundle": [ROOT, ROOT, REGIONAL, ZONAL, INSTANCE]},
    "another root of that name": {"cabundle": [another(4, key="other", issuer_key="other"), REGIONAL, ZONAL, INSTANCE]},
    "an issuer that another key signed": {"cabundle": [ROOT, REGIONAL, another(2, issuer_key="other"), INSTANCE]},
    "an issuer with another key": {"cabundle": [ROOT, REGIONAL, another(2, key="other"), INSTANCE]},
    "an issuer that is no authority": {"cabundle": [ROOT, REGIONAL, ZONAL, another(1, ca=False)]},
    "an issuer that may not certify": {"cabundle": [ROOT, REGIONAL, ZONAL, another(1, key_usage=USAGE_OF_SIGNERS)]},
    "a path longer than permitted": {"cabundle": [ROOT, another(3, path_length=1), ZONAL, INSTANCE]},
    "signed by itself": {"certificate": leaf(issuer=CHAIN[0][0], issuer_key="leaf")},
    "certificate of another issuer": {"certificate": leaf(issuer_key="zonal")},
    "the root for the certificate": {"certificate": ROOT},
}


@pytest.mark.spec("NITRO-8")
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_that_is_not_this_documents_is_refused(name: str) -> None:
    refused(Aws(members=CHAINS[name]), ChainError, "document-chain")


@pytest.mark.spec("NITRO-8")
def test_shorter_and_longer_chains_are_chains() -> None:
    direct = leaf(issuer=CHAIN[4][0], issuer_key="root")
    assert Aws(members={"certificate": direct, "cabundle": [ROOT]}).verify()


@pytest.mark.spec("NITRO-8")
def test_an_anchor_that_is_not_pinned_is_refused() -> None:
    document = parse_document(Aws().document())
    for anchors in (frozenset[str](), frozenset({hashlib.sha256(REGIONAL).hexdigest()})):
        with pytest.raises(ChainError) as caught:
            verify_document(document, anchors=anchors, now=NOW)
        assert caught.value.code == "document-chain"


@pytest.mark.spec("NITRO-10")
@pytest.mark.parametrize(
    "der",
    [
        leaf(key_usage=None),
        leaf(key_usage=usage(signs=False, certifies=False)),
        leaf(ca=True, key_usage=usage(signs=True, certifies=True)),
        leaf(ca=True, key_usage=None),
        leaf(ca=True, key_usage=usage(signs=False, certifies=True)),
    ],
)
def test_the_key_is_for_signing_documents(der: bytes) -> None:
    refused(signed_by(der), ChainError, "document-chain")


@pytest.mark.spec("NITRO-10")
def test_an_issuers_key_signs_no_documents() -> None:
    case = Aws(members={"certificate": INSTANCE, "cabundle": [ROOT, REGIONAL, ZONAL]}, signer="instance")
    refused(case, ChainError, "document-chain")


# Time.


@pytest.mark.spec("NITRO-9")
def test_the_window_is_that_of_all_certificates() -> None:
    claims = Aws().verify()
    assert (claims.valid_from, claims.valid_until) == (NOW - HOUR, NOW + 2 * HOUR)
    assert claims.oldest_issue_date == NOW - HOUR
    narrow = another(2, begin=NOW - HOUR / 2, end=NOW + HOUR / 2)
    claims = Aws(members={"cabundle": [ROOT, REGIONAL, narrow, INSTANCE]}).verify()
    assert (claims.valid_from, claims.valid_until) == (NOW - HOUR / 2, NOW + HOUR / 2)
    assert claims.oldest_issue_date == NOW - HOUR


@pytest.mark.spec("NITRO-9")
def test_outside_of_it_the_document_is_expired() -> None:
    early = Aws(members={"timestamp": int((NOW - HOUR).timestamp() * 1000)})
    assert early.but(now=NOW - HOUR).verify()
    assert early.but(now=NOW + 2 * HOUR).verify()
    for now in (NOW - HOUR - SECOND, NOW + 2 * HOUR + SECOND):
        refused(early.but(now=now), ExpiredError, "document-expired")
    for year in (1960, 9999):
        refused(Aws(now=datetime(year, 12, 31, tzinfo=UTC)), ExpiredError, "document-expired")


@pytest.mark.spec("NITRO-9")
@pytest.mark.parametrize("place", [1, 2, 3])
def test_an_issuer_that_expired_counts(place: int) -> None:
    bundle = list(BUNDLE)
    bundle[-place] = another(place, end=NOW - SECOND)
    refused(Aws(members={"cabundle": bundle}), ExpiredError, "document-expired")


@pytest.mark.spec("NITRO-12")
def test_the_document_was_made_while_its_certificates_were_valid() -> None:
    begin, end = (int(t.timestamp() * 1000) for t in (NOW - HOUR, NOW + 2 * HOUR))
    assert Aws(members={"timestamp": begin}).verify()
    assert Aws(members={"timestamp": end}, now=NOW + 2 * HOUR).verify()
    for timestamp in (begin - 1, 1, end + 1, (1 << 64) - 1):
        refused(Aws(members={"timestamp": timestamp}, now=NOW + 2 * HOUR), ExpiredError, "document-timestamp")


@pytest.mark.spec("NITRO-12")
def test_the_document_was_not_made_after_now() -> None:
    now = int(NOW.timestamp() * 1000)
    assert Aws(members={"timestamp": now + 300_000}).verify()
    refused(Aws(members={"timestamp": now + 300_001}), ExpiredError, "document-future")


def test_a_root_without_end_does_not_overflow() -> None:
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    bundle = [another(place, end=last) for place in (4, 3, 2, 1)]
    case = Aws(members={"cabundle": bundle, "certificate": leaf(end=last)}, now=last)
    anchors = frozenset({hashlib.sha256(bundle[0]).hexdigest()})
    assert verify_document(parse_document(case.document()), anchors=anchors, now=last).valid_until == last


# Bits.

REGIONS: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "protected header": lambda raw: (2, 6),
    "payload": lambda raw: (10, len(raw) - 98),
    "signature": lambda raw: (len(raw) - 96, len(raw)),
}


@pytest.mark.spec("NITRO-11")
@pytest.mark.parametrize("region", REGIONS)
def test_any_signed_bit_counts(region: str) -> None:
    case = Aws()
    raw, chance = case.document(), random.Random(5)
    begin, end = REGIONS[region](raw)
    bits = range(begin * 8, end * 8)
    for bit in chance.sample(bits, min(250, len(bits))):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Error) as caught:
            verify_document(parse_document(bytes(changed)), anchors=case.anchors, now=NOW)
        assert caught.value.code in (
            "document-format", "document-algorithm", "document-chain", "document-signature", "document-expired",
        ), bit  # fmt: skip


def test_the_payload_is_where_the_flips_think() -> None:
    raw = Aws().document()
    assert raw[2:6] == bytes.fromhex("a1013822")
    assert raw[7:8] == b"\x59"
    assert int.from_bytes(raw[8:10], "big") == len(raw) - 98 - 10
    assert x509.load_der_x509_certificate(LEAF)
