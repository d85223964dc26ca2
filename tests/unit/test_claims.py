from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conclave import _codec, _crypto
from conclave.attestation import InstanceClaims, InstanceInfo, bundle_id, parse_claims, parse_instance_info
from conclave.attestation.claims import (
    MAX_CLAIMS,
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE,
    MAX_INFO,
    MODES,
    SANDBOXES,
    claims_digest,
)
from conclave.errors import FormatError, SignatureError

CLAIMS: dict[str, Any] = {
    "version": 1,
    "bundle_id": b"b" * 32,
    "code": b"c" * 32,
    "signer": b"s" * 32,
    "product_id": 7,
    "revocation_level": 3,
    "runtime": "conclave-9.9.9",
    "sandbox": "namespaces",
    "mode": "release",
    "suite": bytes.fromhex("647a00010002"),
    "encryption_key": b"e" * 1216,
    "signing_key": b"k" * 32,
    "boot_nonce": b"n" * 32,
    "log_id": None,
    "kds_constraint": None,
    "interface": b"i" * 32,
}
INFO: dict[str, Any] = {"version": 1, "format": "sgx", "evidence": b"e", "endorsements": b"{}", "claims": b"c"}


def but(**changes: Any) -> bytes:
    return _codec.encode(CLAIMS | changes)


@pytest.mark.spec("CLM-4")
def test_the_bundle_id_is_the_digest_of_its_parts() -> None:
    data = b"conclave/1 bundle" + b"c" * 32 + b"s" * 32 + struct.pack(">HH", 258, 772)
    made = bundle_id(code=b"c" * 32, signer=b"s" * 32, product_id=258, revocation_level=772)
    assert made == hashlib.sha256(data).digest()


@pytest.mark.spec("CLM-4")
def test_each_part_changes_the_bundle_id() -> None:
    parts: dict[str, Any] = {"code": bytes(32), "signer": bytes(32), "product_id": 0, "revocation_level": 0}
    others = [{"code": b"\1" + bytes(31)}, {"signer": b"\1" + bytes(31)}, {"product_id": 1}, {"revocation_level": 1}]
    ids = {bundle_id(**parts)} | {bundle_id(**(parts | change)) for change in others}
    assert len(ids) == 5


@pytest.mark.parametrize("change", [{"code": bytes(31)}, {"code": bytes(33)}, {"signer": b""}, {"signer": bytes(33)}])
def test_parts_of_another_size_are_a_bug_of_the_caller(change: dict[str, bytes]) -> None:
    parts: dict[str, Any] = {"code": bytes(32), "signer": bytes(32), "product_id": 0, "revocation_level": 0}
    with pytest.raises(ValueError, match="32 bytes"):
        bundle_id(**(parts | change))


@pytest.mark.spec("CLM-5")
def test_the_claims_digest() -> None:
    expected = hashlib.sha512(b"conclave/1 instance-claims\x00" + but()).digest()
    assert claims_digest(but()) == expected
    assert parse_claims(but()).digest() == expected


def test_claims_read_and_written_are_the_same_bytes() -> None:
    for changes in ({}, {"log_id": b"l" * 32}, {"kds_constraint": b"d" * 32}, {"product_id": 65535}):
        assert parse_claims(but(**changes)).encode() == but(**changes)
    claims = parse_claims(but())
    assert {name: getattr(claims, name) for name in CLAIMS} == CLAIMS
    assert InstanceClaims.__struct_fields__ == tuple(CLAIMS)


REFUSED = {
    "version 0": but(version=0),
    "version 2": but(version=2),
    "version is true": but(version=True),
    "version is text": but(version="1"),
    "mode": but(mode="test"),
    "mode with a capital": but(mode="Release"),
    "no mode": but(mode=""),
    "sandbox": but(sandbox="chroot"),
    "suite": but(suite=bytes.fromhex("647a00010001")),
    "suite of five bytes": but(suite=bytes(5)),
    "runtime is empty": but(runtime=""),
    "runtime is long": but(runtime="r" * 65),
    "runtime with a newline": but(runtime="a\nb"),
    "runtime is not ASCII": but(runtime="cönclave"),
    "product id": but(product_id=65536),
    "negative product id": but(product_id=-1),
    "product id is a float": but(product_id=1.0),
    "revocation level": but(revocation_level=65536),
    "negative revocation level": but(revocation_level=-1),
    "text for bytes": but(code="c" * 32),
    "bytes for text": but(runtime=b"conclave"),
    "nil for a key": but(signing_key=None),
    "a key too many": _codec.encode(CLAIMS | {"extra": 1}),
    "another order": _codec.encode(dict(reversed(CLAIMS.items()))),
    "a list": _codec.encode(list(CLAIMS.values())),
    "nothing": b"",
    "trailing byte": but() + b"\0",
    "twice": but() + but(),
    "a number of two bytes": but().replace(b"\xa7version\x01", b"\xa7version\xcc\x01"),
    "a name of two lengths": but().replace(b"\xa7version", b"\xd9\x07version"),
    "a key twice": b"\xde\x00\x11" + but()[3:] + b"\xa7version\x01",
    "deep": b"\x91" * 5000,
}
SIZES = ["bundle_id", "code", "signer", "signing_key", "boot_nonce", "log_id", "kds_constraint", "interface"]


@pytest.mark.spec("CLM-6")
@pytest.mark.parametrize("name", REFUSED)
def test_claims_that_do_not_parse(name: str) -> None:
    assert REFUSED[name] != but()
    with pytest.raises(FormatError, match="instance claims"):
        parse_claims(REFUSED[name])


@pytest.mark.spec("CLM-6")
@pytest.mark.parametrize("name", [*SIZES, "suite", "encryption_key"])
def test_claims_with_a_part_of_another_size(name: str) -> None:
    size = {"suite": 6, "encryption_key": 1216}.get(name, 32)
    for wrong in (0, size - 1, size + 1):
        with pytest.raises(FormatError, match=f"{name} has {wrong} bytes, not {size}"):
            parse_claims(but(**{name: bytes(wrong)}))


@pytest.mark.spec("CLM-6")
@pytest.mark.parametrize("name", CLAIMS)
def test_claims_without_one_key(name: str) -> None:
    with pytest.raises(FormatError, match="well-formed"):
        parse_claims(_codec.encode({k: v for k, v in CLAIMS.items() if k != name}))


def test_every_known_word_is_accepted() -> None:
    for mode in MODES:
        for sandbox in SANDBOXES:
            claims = parse_claims(but(mode=mode, sandbox=sandbox))
            assert (claims.mode, claims.sandbox) == (mode, sandbox)
    assert parse_claims(but(runtime="r" * 64)).runtime == "r" * 64


def test_claims_cut_anywhere_or_too_long() -> None:
    data = but()
    for size in range(len(data)):
        with pytest.raises(FormatError):
            parse_claims(data[:size])
    with pytest.raises(FormatError, match=f"has {MAX_CLAIMS + 1} bytes, at most {MAX_CLAIMS} are allowed"):
        parse_claims(bytes(MAX_CLAIMS + 1))


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 1700))
def test_any_bytes_as_claims(data: bytes, at: int) -> None:
    for bad in (data, but()[:at] + data, but()[:at] + data + but()[at + len(data) :]):
        try:
            claims = parse_claims(bad)
        except FormatError:
            continue
        assert claims.encode() == bad


# Instance info.


def test_info_read_and_written_is_the_same_bytes() -> None:
    data = _codec.encode(INFO)
    info = parse_instance_info(data)
    assert info.encode() == data
    assert {name: getattr(info, name) for name in INFO} == INFO
    assert InstanceInfo.__struct_fields__ == tuple(INFO)


INFO_REFUSED = {
    "version 0": INFO | {"version": 0},
    "version 2": INFO | {"version": 2},
    "format": INFO | {"format": "tpm"},
    "a key too many": INFO | {"anchor": b""},
    "a key too few": {k: v for k, v in INFO.items() if k != "endorsements"},
    "another order": dict(reversed(INFO.items())),
    "text for bytes": INFO | {"evidence": "e"},
    "evidence too long": INFO | {"evidence": bytes(MAX_EVIDENCE + 1)},
    "endorsements too long": INFO | {"endorsements": bytes(MAX_ENDORSEMENTS + 1)},
    "claims too long": INFO | {"claims": bytes(MAX_CLAIMS + 1)},
}


@pytest.mark.parametrize("name", INFO_REFUSED)
def test_info_that_does_not_parse(name: str) -> None:
    with pytest.raises(FormatError, match="instance info"):
        parse_instance_info(_codec.encode(INFO_REFUSED[name]))


def test_info_at_its_limits() -> None:
    limits = {"evidence": MAX_EVIDENCE, "endorsements": MAX_ENDORSEMENTS, "claims": MAX_CLAIMS}
    info = parse_instance_info(_codec.encode(INFO | {k: bytes(v) for k, v in limits.items()}))
    assert len(info.endorsements) == MAX_ENDORSEMENTS
    with pytest.raises(FormatError, match=f"at most {MAX_INFO} are allowed"):
        parse_instance_info(bytes(MAX_INFO + 1))
    data = _codec.encode(INFO)
    for bad in (data + b"\0", *(data[:size] for size in range(len(data)))):
        with pytest.raises(FormatError):
            parse_instance_info(bad)


@settings(deadline=None)
@given(st.binary(max_size=500), st.integers(0, 60))
def test_any_bytes_as_info(data: bytes, at: int) -> None:
    for bad in (data, _codec.encode(INFO)[:at] + data):
        try:
            info = parse_instance_info(bad)
        except FormatError:
            continue
        assert info.encode() == bad


# What signing keys in claims are for.


@pytest.mark.spec("CLM-10")
def test_a_signature_names_its_purpose_and_its_claims() -> None:
    key = _crypto.SigningKey(bytes(32))
    digest = parse_claims(but()).digest()
    message = b"conclave/1 challenge\x00" + digest + bytes(64)
    assert _crypto.signed_message("challenge", digest, bytes(64)) == message
    signature = key.sign("challenge", digest, bytes(64))
    _crypto.verify_signature(key.public, "challenge", digest, bytes(64), signature)
    for purpose in sorted(_crypto.PURPOSES - {"challenge"}):
        with pytest.raises(SignatureError):
            _crypto.verify_signature(key.public, purpose, digest, bytes(64), signature)
