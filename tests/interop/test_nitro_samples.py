"""Documents of real Nitro enclaves: every sample gets the verdict and the values it is known for."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests._evidence import ABSENT, evidence_dir, samples

from conclave.attestation.anchors import ANCHORS
from conclave.attestation.nitro import Document, parse_document, verify_document
from conclave.errors import ChainError, Error, ExpiredError, FormatError, SignatureError, VerificationError

SAMPLES = samples("nitro")
SECOND = timedelta(seconds=1)
INVALID = {
    "signature": (SignatureError, "document-signature"),
    "leaf certificate does not parse": (ChainError, "document-chain"),
}
pytestmark = pytest.mark.skipif(not SAMPLES, reason=ABSENT)
each = pytest.mark.parametrize("sample", SAMPLES, ids=lambda p: p.name)


def meta(sample: Path) -> dict[str, Any]:
    return json.loads((sample / "meta.json").read_text())


def document(sample: Path) -> Document:
    return parse_document((sample / "document.cbor").read_bytes())


def valid(sample: Path) -> bool:
    return bool(meta(sample)["expected"]["verdict"] == "valid")


def test_all_samples_are_here() -> None:
    assert len(SAMPLES) == 19


@each
def test_what_a_sample_is_known_for(sample: Path) -> None:
    known = meta(sample)
    expected = known["expected"]
    parsed = document(sample)
    now = datetime.fromisoformat(known["valid_at"] or "2021-09-09T10:19:20Z")
    if not valid(sample):
        kind, code = INVALID[expected["reason"]]
        with pytest.raises(Error) as caught:
            verify_document(parsed, anchors=ANCHORS["nitro"], now=now)
        assert (type(caught.value), caught.value.code) == (kind, code)
        return
    claims = verify_document(parsed, anchors=ANCHORS["nitro"], now=now)
    assert (claims.tee, claims.tcb_status) == ("nitro", "")
    assert claims.debug == expected["debug"]
    assert claims.measurements == expected["measurements"]
    assert claims.report_data is expected["report_data"] is None
    others = ("module_id", "timestamp_ms", "user_data", "nonce", "public_key")
    assert {name: claims.details[name] for name in others} == {name: expected[name] for name in others}
    assert claims.platform == expected["module_id"]
    assert len(claims.measurements["pcrs"]) == known["pcr_count"]
    window = [f"{t:%Y-%m-%dT%H:%M:%SZ}" for t in (claims.valid_from, claims.valid_until)]
    assert window == known["valid_window"]
    # Not documented by AWS, so not checked; if this ever fails, spec/nitro.md section 8 is to be changed.
    assert claims.steps[1].detail.startswith(f"{parsed.module_id}.")


@each
def test_outside_its_window_a_sample_is_expired(sample: Path) -> None:
    if not valid(sample):
        return
    begin, end = (datetime.fromisoformat(t) for t in meta(sample)["valid_window"])
    parsed = document(sample)
    verify_document(parsed, anchors=ANCHORS["nitro"], now=end)
    for now in (begin - SECOND, end + SECOND):
        with pytest.raises(ExpiredError) as caught:
            verify_document(parsed, anchors=ANCHORS["nitro"], now=now)
        assert caught.value.code == "document-expired"


@each
def test_a_sample_was_not_made_in_the_future(sample: Path) -> None:
    if not valid(sample):
        return
    begin = datetime.fromisoformat(meta(sample)["valid_window"][0])
    made = datetime.fromisoformat(meta(sample)["valid_at"])
    if made - begin > timedelta(minutes=6):
        with pytest.raises(ExpiredError) as caught:
            verify_document(document(sample), anchors=ANCHORS["nitro"], now=begin)
        assert caught.value.code == "document-future"
    else:
        assert verify_document(document(sample), anchors=ANCHORS["nitro"], now=begin)


@each
def test_every_truncation_of_a_sample(sample: Path) -> None:
    raw = (sample / "document.cbor").read_bytes()
    for size in range(len(raw)):
        with pytest.raises(FormatError):
            parse_document(raw[:size])


@each
def test_any_signed_bit_of_a_sample_counts(sample: Path) -> None:
    if not valid(sample):
        return
    raw, chance = (sample / "document.cbor").read_bytes(), random.Random(sample.name)
    now = datetime.fromisoformat(meta(sample)["valid_at"])
    payload = document(sample).payload
    begin = raw.index(payload)
    for bit in chance.sample(range(begin * 8, (begin + len(payload)) * 8), 45):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, VerificationError)):
            verify_document(parse_document(bytes(changed)), anchors=ANCHORS["nitro"], now=now)


def test_the_cases_worth_a_test() -> None:
    place = evidence_dir()
    assert place is not None
    odd = document(place / "nitro" / "mysten-pcr16")
    assert odd.payload[0] == 0xBF
    assert sorted(odd.pcrs) == list(range(17))
    assert odd.user_data == b""
    assert document(place / "nitro" / "anjuna-prod-2021").user_data is None
