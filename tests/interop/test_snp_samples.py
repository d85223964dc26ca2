"""Reports of real AMD processors: every sample gets the verdict and the values it is known for."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests._evidence import ABSENT, evidence_dir, samples

from conclave.attestation.anchors import ANCHORS
from conclave.attestation.evidence import EvidenceClaims
from conclave.attestation.snp import parse_report, verify_report
from conclave.errors import BindingError, ChainError, Error, ExpiredError, FormatError, RevokedError, SignatureError

SAMPLES = samples("snp")
SECOND = timedelta(seconds=1)
pytestmark = pytest.mark.skipif(not SAMPLES, reason=ABSENT)
each = pytest.mark.parametrize("sample", SAMPLES, ids=lambda p: p.name)


def meta(sample: Path) -> dict[str, Any]:
    return json.loads((sample / "meta.json").read_text())


def report(sample: Path) -> bytes:
    return (sample / "report.bin").read_bytes()


def endorsements(sample: Path, **members: str) -> bytes:
    place = evidence_dir()
    assert place is not None
    key = next(sample / name for name in ("vcek.der", "vlek.der") if (sample / name).exists())
    chain = "".join((place / name).read_text() for name in meta(sample)["chain"])
    return json.dumps({"certificate": key.read_bytes().hex(), "chain": chain, "crl": "", **members}).encode()


def verify(sample: Path, now: datetime | None = None, raw: bytes | None = None, **members: str) -> EvidenceClaims:
    now = now or datetime.fromisoformat(meta(sample)["valid_at"])
    parsed = parse_report(report(sample) if raw is None else raw)
    return verify_report(parsed, endorsements(sample, **members), anchors=ANCHORS["snp"], now=now)


def refused(kind: type[Error], code: str, sample: Path, now: datetime | None = None, **members: str) -> None:
    with pytest.raises(Error) as caught:
        verify(sample, now, **members)
    assert type(caught.value) is kind, caught.value
    assert caught.value.code == code


def named(name: str) -> Path:
    place = evidence_dir()
    assert place is not None
    return place / "snp" / name


def roots(*names: str) -> str:
    place = evidence_dir()
    assert place is not None
    return "".join((place / "roots" / "amd" / f"{name}.pem").read_text() for name in names)


def test_all_samples_are_here() -> None:
    assert len(SAMPLES) == 15


@each
def test_what_a_sample_is_known_for(sample: Path) -> None:
    known = meta(sample)
    expected = known["expected"]
    if expected["verdict"] == "invalid":
        assert expected["reason"] == "signature"
        refused(SignatureError, "report-signature", sample)
        assert parse_report(report(sample)).debug == expected["debug"]
        return
    claims = verify(sample)
    assert (claims.tee, claims.tcb_status) == ("snp", "")
    assert claims.debug == expected["debug"]
    assert claims.measurements == expected["measurements"]
    assert claims.report_data is not None
    assert claims.report_data.hex() == expected["report_data"]
    others = expected.keys() - {"verdict", "debug", "measurements", "report_data"}
    assert {name: claims.details[name] for name in others} == {name: expected[name] for name in others}
    assert claims.details["version"] == known["quote_version"]
    assert claims.details["product"] == known["product"]
    assert claims.details["signing_key"] == known["endorsement_key"]
    assert claims.details["csp_id"] == known.get("csp_id")
    assert claims.platform == ("" if known["endorsement_key"] == "VLEK" else expected["chip_id"])
    window = [f"{t:%Y-%m-%dT%H:%M:%SZ}" for t in (claims.valid_from, claims.valid_until)]
    assert window == known["valid_window"]


@each
def test_outside_its_window_a_sample_is_expired(sample: Path) -> None:
    if meta(sample)["expected"]["verdict"] == "invalid":
        return
    begin, end = (datetime.fromisoformat(t) for t in meta(sample)["valid_window"])
    verify(sample, begin)
    verify(sample, end)
    code = f"{meta(sample)['endorsement_key'].lower()}-expired"
    refused(ExpiredError, code, sample, begin - SECOND)
    refused(ExpiredError, code, sample, end + SECOND)


@each
def test_every_truncation_of_a_sample(sample: Path) -> None:
    raw = report(sample)
    for size in range(len(raw)):
        with pytest.raises(FormatError):
            parse_report(raw[:size])


@each
def test_any_signed_bit_of_a_sample_counts(sample: Path) -> None:
    raw, chance = report(sample), random.Random(sample.name)
    stapled, now = endorsements(sample), datetime.fromisoformat(meta(sample)["valid_at"])
    for bit in chance.sample(range(0x2A0 * 8), 300):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, SignatureError, BindingError)):
            verify_report(parse_report(bytes(changed)), stapled, anchors=ANCHORS["snp"], now=now)


def test_what_belongs_to_another() -> None:
    """Chains, keys and products exchanged among the samples."""
    milan, genoa = named("mstav-milan-v3"), named("mstav-genoa-v3")
    vlek, turin = named("trustee-milan-v3-vlek-aws"), named("mstav-turin-v5")
    refused(ChainError, "vcek-chain", milan, chain=roots("genoa_ask", "genoa_ark"))
    refused(ChainError, "vcek-chain", milan, chain=roots("milan_asvk", "milan_ark"))
    refused(ChainError, "vlek-chain", vlek, chain=roots("milan_ask", "milan_ark"))
    refused(ChainError, "vcek-chain", milan, chain=roots("milan_ask", "genoa_ark"))
    # Another chip of the same product, and the other kind of key.
    other = (named("dstack-milan-v3") / "vcek.der").read_bytes().hex()
    refused(
        SignatureError, "report-signature", milan, now=datetime.fromisoformat("2026-08-01T00:00:00Z"), certificate=other
    )
    loaded, now = (vlek / "vlek.der").read_bytes().hex(), datetime.fromisoformat("2025-03-01T00:00:00Z")
    refused(
        BindingError, "report-signing-key", named("trustee-milan-v3-azure-1"), now,
        certificate=loaded, chain=roots("milan_asvk", "milan_ark"),
    )  # fmt: skip
    chip = (named("trustee-milan-v3-azure-1") / "vcek.der").read_bytes().hex()
    refused(BindingError, "report-signing-key", vlek, now, certificate=chip, chain=roots("milan_ask", "milan_ark"))
    # A chip of another product with its own chain.
    chip, chain = (turin / "vcek.der").read_bytes().hex(), roots("turin_ask", "turin_ark")
    refused(BindingError, "vcek-product", genoa, certificate=chip, chain=chain)
    early = named("virtee-milan-v2")
    chip = (early / "vcek_turin_other.der").read_bytes().hex()
    refused(
        SignatureError,
        "report-signature",
        early,
        datetime.fromisoformat("2026-08-01T00:00:00Z"),
        certificate=chip,
        chain=chain,
    )


def test_certificates_that_the_source_calls_invalid() -> None:
    sample = named("trustee-milan-v2-azure")
    for name in ("vcek_invalid_legacy.der", "vcek_invalid_new.der"):
        refused(ChainError, "vcek-chain", sample, certificate=(sample / name).read_bytes().hex())


def test_a_tcb_version_that_is_not_the_reports() -> None:
    """Two chips' certificates differ in the TCB version; the signature is what refuses first."""
    raw = bytearray(report(named("cmc-milan-v2")))
    raw[0x180] ^= 1
    with pytest.raises(SignatureError):
        verify(named("cmc-milan-v2"), raw=bytes(raw))


def test_the_list_of_the_root() -> None:
    sample = named("enarx-milan-v2")
    milan, genoa = ((sample / f"crl_{name}.der").read_bytes().hex() for name in ("milan", "genoa"))
    claims = verify(sample, crl=milan)
    assert "revocation-unknown" not in claims.remarks
    assert claims.details["crl_number"] == 3
    assert f"{claims.oldest_issue_date:%Y-%m-%d}" == "2022-05-09"
    assert f"{claims.valid_until:%Y-%m-%d}" == "2023-05-09"
    refused(ChainError, "ark-crl-issuer", sample, crl=genoa)
    refused(ExpiredError, "ark-crl-expired", sample, claims.valid_until + SECOND, crl=milan)


def test_the_issuer_that_amd_revoked() -> None:
    """No key that it issued is at hand: its place in a path, and the list that names it."""
    from conclave.attestation._x509 import Certificate, RevocationList, path, split_pem

    issuer, root = (Certificate(split_pem(roots(n).encode())[0], what="x") for n in ("revoked_genoa_ask", "genoa_ark"))
    place = evidence_dir()
    assert place is not None
    crl = RevocationList((place / "roots" / "amd" / "crl_genoa_20221031.der").read_bytes(), what="x")
    now = datetime.fromisoformat("2022-12-01T00:00:00Z")
    found = path([root], issuer, anchors=ANCHORS["snp"], now=now, what="vcek")
    crl.check(root, now=now, what="ark-crl")
    with pytest.raises(RevokedError):
        crl.refuse(found, what="vcek")
    current = Certificate(split_pem(roots("genoa_ask").encode())[0], what="x")
    crl.refuse([current, root], what="vcek")
