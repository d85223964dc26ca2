"""Reference values: one signed file, read strictly, and never an older one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conclave import _crypto
from conclave._crypto import SigningKey
from conclave.attestation import ReferenceValues, load_reference_values, sign_reference_values
from conclave.attestation.reference import MAX_SIZE
from conclave.errors import Error, FormatError, SignatureError, VerificationError

KEY = SigningKey.generate()
PUBLISHER = _crypto.sha256(KEY.public)
VALUES: dict[str, Any] = {
    "version": 1,
    "number": 7,
    "issued": "2026-11-24",
    "releases": {"conclave-1.0": {"sgx": ["11" * 32], "snp": ["22" * 48, "33" * 48]}},
    "bundles": {"conclave-1.0": {"bb" * 32: ["44" * 32]}},
    "minimum_tcb": {"snp-milan": "4.0.22.213", "nitro": "any"},
}
FILE = sign_reference_values(ReferenceValues(**VALUES), KEY)


def signed(text: bytes, key: SigningKey = KEY, purpose: str = "reference-values") -> bytes:
    return text + b"\n" + (key.public + key.sign(purpose, _crypto.ZERO_DIGEST, text)).hex().encode() + b"\n"


def refused(data: bytes, code: str, **options: Any) -> None:
    with pytest.raises(Error) as caught:
        load_reference_values(data, **({"publisher": PUBLISHER} | options))
    assert caught.value.code == code


@pytest.mark.spec("EVID-12", "EVID-14")
def test_what_they_know() -> None:
    values = load_reference_values(FILE, publisher=PUBLISHER, at_least=7)
    assert values == ReferenceValues(**VALUES)
    assert values.knows("conclave-1.0", "snp", bytes.fromhex("33" * 48))
    assert not values.knows("conclave-1.0", "tdx", bytes.fromhex("33" * 48))
    assert not values.knows("conclave-1.1", "snp", bytes.fromhex("33" * 48))
    assert not values.knows("conclave-1.0", "snp", bytes.fromhex("44" * 32))
    assert values.knows_bundle("conclave-1.0", bytes.fromhex("bb" * 32), bytes.fromhex("44" * 32))
    assert not values.knows_bundle("conclave-1.0", bytes(32), bytes.fromhex("44" * 32))
    assert not values.knows_bundle("conclave-1.0", bytes.fromhex("bb" * 32), bytes.fromhex("11" * 32))


@pytest.mark.spec("EVID-12")
def test_another_publisher_an_altered_file_an_older_one() -> None:
    text = FILE.partition(b"\n")[0]
    refused(FILE, "reference-signature", publisher=bytes(32))
    refused(signed(text, SigningKey.generate()), "reference-signature")
    refused(signed(text, purpose="app"), "reference-signature")
    refused(FILE.replace(b'"number":7', b'"number":8'), "reference-signature")
    refused(FILE, "reference-rollback", at_least=8)
    assert issubclass(SignatureError, VerificationError)


WRONG: dict[str, dict[str, Any]] = {
    "version": {"version": 2},
    "number": {"number": -1},
    "number too large": {"number": 2**53},
    "day": {"issued": "24.11.2026"},
    "release": {"releases": {"a b": {"sgx": []}}},
    "TEE": {"releases": {"r": {"simulated": []}}},
    "measurement of another size": {"releases": {"r": {"sgx": ["11" * 48]}}},
    "measurement of another form": {"releases": {"r": {"snp": ["AA" * 48]}}},
    "release of a bundle": {"bundles": {"a b": {}}},
    "bundle id": {"bundles": {"r": {"bb": []}}},
    "MRENCLAVE": {"bundles": {"r": {"bb" * 32: ["44" * 48]}}},
    "minimum": {"minimum_tcb": {"snp-milan": "4"}},
    "subject": {"minimum_tcb": {"snp": "any"}},
}


@pytest.mark.spec("EVID-13")
@pytest.mark.parametrize("name", WRONG)
def test_what_says_something_else(name: str) -> None:
    refused(signed(msgspec.json.encode(VALUES | WRONG[name], order="sorted")), "reference-format")


@pytest.mark.spec("EVID-13")
def test_nothing_ill_formed_is_signed() -> None:
    with pytest.raises(FormatError):
        sign_reference_values(ReferenceValues(**(VALUES | {"version": 2})), KEY)


@pytest.mark.spec("EVID-13")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 5000,
        msgspec.json.encode(VALUES | {"more": 1}, order="sorted"),
        msgspec.json.encode({k: v for k, v in VALUES.items() if k != "number"}, order="sorted"),
        msgspec.json.encode(VALUES),
        msgspec.json.format(msgspec.json.encode(VALUES, order="sorted"), indent=1).replace(b"\n", b""),
        FILE.partition(b"\n")[0].replace(b'"number":7', b'"number":7,"number":7'),
    ],
)
def test_other_forms_of_the_first_line(text: bytes) -> None:
    refused(signed(text), "reference-format")


@pytest.mark.spec("EVID-13")
@pytest.mark.parametrize("data", [b"", FILE[:-1], FILE + b"\n", FILE[:-3] + b"\n", FILE.upper(), FILE + b" "])
def test_other_forms_of_the_file(data: bytes) -> None:
    refused(data, "reference-format")


@pytest.mark.spec("EVID-13")
def test_a_file_that_is_too_large() -> None:
    refused(b" " * (MAX_SIZE + 1), "reference-format")
    # Well-formed and signed, and still too much.
    many = VALUES | {"releases": {"conclave-1.0": {"sgx": [f"{n:064x}" for n in range(16_000)]}}}
    refused(sign_reference_values(ReferenceValues(**many), KEY), "reference-format")


@given(st.binary(max_size=400))
def test_anything(data: bytes) -> None:
    for given_ in (data, signed(data.replace(b"\n", b" "))):
        with pytest.raises(Error):
            load_reference_values(given_, publisher=PUBLISHER)
