"""Endorsements over real HTTP, from servers that speak the vendors' interfaces."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests._evidence import samples
from tests._vendors import (
    DAY,
    NOW,
    Operator,
    Platform,
    amd_platform,
    amd_sample,
    certificate,
    intel_sample,
    pem,
    revocation_list,
    simulated,
)

from conclave.attestation._x509 import Certificate, RevocationList, path, split_pem
from conclave.errors import Error, FormatError, PlatformError, TransportError
from conclave.host.endorsements import AmdService, Endorsements, IntelService, TimeLimits, cache, source
from conclave.testing import VendorServer

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    return simulated(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def vendors() -> Iterator[VendorServer]:
    with VendorServer() as server:
        yield server


def paths(vendors: VendorServer) -> list[str]:
    return [r.path for r in vendors.requests]


# What is stapled -------------------------------------------------------------------------


@pytest.mark.spec("END-1", "END-4")
def test_documents_of_a_simulated_platform(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    operator = Operator(vendors, tmp_path)
    assert json.loads(operator.ask(machine)) == json.loads(machine.endorsements)
    fmspc = json.loads(json.loads(machine.endorsements)["tcb_info"])["fmspc"]
    assert {(r.path, tuple(r.query.items())) for r in vendors.requests} == {
        ("/sgx/certification/v4/rootcacrl", ()),
        ("/sgx/certification/v4/pckcrl", (("ca", "platform"), ("encoding", "der"))),
        ("/sgx/certification/v4/tcb", (("fmspc", fmspc),)),
        ("/sgx/certification/v4/qe/identity", ()),
    }


@pytest.mark.spec("END-1")
@pytest.mark.parametrize("kind", ["sgx", "tdx"])
def test_every_intel_sample_gets_its_own_endorsements_back(kind: str, tmp_path: Path) -> None:
    """From an empty cache over HTTP to the very members that the sample has."""
    found = [s for s in samples(kind) if (s / "collateral.json").exists()]
    if not found:
        pytest.skip("no samples of evidence: set CONCLAVE_EVIDENCE to their folder")
    served = 0
    with VendorServer() as vendors:
        for place in found:
            sample = intel_sample(f"{kind}/{place.name}")
            if not json.loads(sample.endorsements)["pck_crl"]:
                continue
            vendors.publish_intel(sample.endorsements)
            operator = Operator(vendors, tmp_path / place.name, sample.valid_at, patience_seconds=0)
            (given,) = operator.run(lambda o=operator, s=sample: o.source.endorsements(s.evidence, kind))  # type: ignore[misc]
            if isinstance(given, Error):
                # Expired at every time, or without a certificate in the quote; the README of the samples says so.
                assert given.code in ("vendor-expired", "quote-certificate")
                continue
            assert json.loads(given) == json.loads(sample.endorsements)
            served += 1
    assert served == {"sgx": 19, "tdx": 16}[kind]


@pytest.mark.spec("END-1")
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("sgx/phala-sgx-config-and-swh", "ConfigurationAndSWHardeningNeeded"),
        ("sgx/teepot-sgx-emr-outofdate", "OutOfDate"),
        ("tdx/phala-tdx-v4-uptodate", "UpToDate"),
    ],
)
def test_endorsements_of_intel_samples_verify(vendors: VendorServer, name: str, status: str, tmp_path: Path) -> None:
    sample = intel_sample(name)
    vendors.publish_intel(sample.endorsements)
    given = Operator(vendors, tmp_path, sample.valid_at).ask(sample)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(given.decode())
    assert dcap_qvl.verify(sample.evidence, collateral, int(sample.valid_at.timestamp())).status == status


@pytest.mark.spec("END-1")
@pytest.mark.parametrize("name", [s.name for s in samples("snp")] or ["none"])
def test_endorsements_of_every_amd_sample_verify(vendors: VendorServer, name: str, tmp_path: Path) -> None:
    sample = amd_sample(f"snp/{name}")
    vendors.publish_amd(sample.product, **sample.published)
    operator = Operator(vendors, tmp_path, sample.valid_at, revocation_lists=bool(sample.crl))
    if sample.key == "vlek":
        operator.run(lambda: operator.source.offer(sample.certificate))
    given = json.loads(operator.ask(sample))
    assert set(given) == {"certificate", "chain", "crl"}
    leaf = Certificate(bytes.fromhex(given["certificate"]), what="vcek")
    above = [Certificate(c, what="vcek") for c in split_pem(given["chain"].encode())]
    found = path(above, leaf, anchors={above[-1].fingerprint}, now=sample.valid_at, what="vcek")
    assert [c.common_name for c in found][1:] == [c.common_name for c in above]
    if sample.crl:
        revoked = RevocationList(bytes.fromhex(given["crl"]), what="ark-crl")
        revoked.check(above[-1], now=sample.valid_at, what="ark-crl")
    assert len(vendors.requests) == 2 + bool(sample.crl) - (sample.key == "vlek")


@pytest.mark.spec("END-4")
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_what_amd_is_asked(vendors: VendorServer, product: str, tmp_path: Path) -> None:
    platform = amd_platform(product)
    vendors.publish_amd(product, **platform.published)
    given = json.loads(Operator(vendors, tmp_path).ask(platform))
    assert given == {
        "certificate": platform.certificate.hex(), "chain": platform.chain, "crl": platform.crl.hex()
    }  # fmt: skip
    levels = {"blSPL": "04", "teeSPL": "01", "snpSPL": "24", "ucodeSPL": "219"}
    if product == "Turin":
        levels["fmcSPL"] = "09"
    hwid = bytes(range(1, 9 if product == "Turin" else 65)).hex()
    asked = {r.path: dict(r.query) for r in vendors.requests}
    assert asked == {
        f"/vcek/v1/{product}/{hwid}": levels,
        f"/vcek/v1/{product}/cert_chain": {},
        f"/vcek/v1/{product}/crl": {},
    }


@pytest.mark.spec("END-1")
def test_nitro_needs_none(vendors: VendorServer, tmp_path: Path) -> None:
    operator = Operator(vendors, tmp_path)
    assert operator.run(lambda: operator.source.endorsements(b"document", "nitro")) == [b""]
    assert not vendors.requests


@pytest.mark.spec("END-4")
def test_a_report_that_does_not_say_its_family(vendors: VendorServer, tmp_path: Path) -> None:
    """Version 2: Milan is asked first, then Genoa, and what was found is remembered."""
    genoa = amd_platform("Genoa", version=2)
    vendors.publish_amd("Genoa", **genoa.published)
    operator = Operator(vendors, tmp_path)
    operator.ask(genoa)
    assert [p.split("/")[3] for p in paths(vendors)] == ["Milan", "Genoa", "Genoa", "Genoa"]
    operator.clock.time += 2 * HOUR
    operator.ask(genoa)
    assert len(vendors.requests) == 4
    other = Operator(vendors, tmp_path / "other", product="Genoa")
    other.ask(genoa)
    assert [p.split("/")[3] for p in paths(vendors)[4:]] == ["Genoa"] * 3
    with pytest.raises(PlatformError, match="AMD has no amd-vcek-milan"):
        Operator(vendors, tmp_path / "third").ask(amd_platform("Milan", version=2, chip=bytes(range(9, 73))))


@pytest.mark.spec("END-4")
@pytest.mark.parametrize(
    ("evaluation", "query"),
    [("early", {"update": "early"}), ("12", {"tcbEvaluationDataNumber": "12"}), ("standard", {})],
)
def test_tcb_evaluations(
    vendors: VendorServer, machine: Platform, tmp_path: Path, evaluation: str, query: dict[str, str]
) -> None:
    vendors.publish_intel(machine.endorsements, evaluation=evaluation)
    Operator(vendors, tmp_path, evaluation=evaluation).ask(machine)
    asked = {r.path.rpartition("/v4/")[2]: {k: v for k, v in r.query.items() if k != "fmspc"} for r in vendors.requests}
    assert asked["tcb"] == asked["qe/identity"] == query
    # Documents of one evaluation are not taken for those of another.
    vendors.requests.clear()
    with pytest.raises(PlatformError) as caught:
        Operator(vendors, tmp_path, evaluation="7").ask(machine)
    assert caught.value.code == "vendor-missing"
    assert sorted(p.rpartition("/v4/")[2] for p in paths(vendors)) == ["qe/identity", "tcb"]


@pytest.mark.spec("END-4")
def test_the_root_list_of_intel_itself_and_of_a_pccs(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    """A PCCS has it, in hex; Intel's own is DER at another address, to which no key is sent."""
    vendors.publish_intel(machine.endorsements)
    service = IntelService(vendors.url, root_crl_url=vendors.root_crl_url, subscription_key="secret")
    given = Operator(vendors, tmp_path, intel=service).ask(machine)
    assert given == Operator(vendors, tmp_path / "pccs").ask(machine)
    keys = {r.path: r.headers.get("ocp-apim-subscription-key") for r in vendors.requests[:4]}
    assert keys.pop("/IntelSGXRootCA.der") is None
    assert set(keys.values()) == {"secret"}


@pytest.mark.spec("END-4")
def test_a_pccs_that_ignores_the_encoding(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    for make in (lambda der: der.hex().encode() + b"\n", _pem_list):
        held = vendors._published[("pck", "platform")]
        parts = json.loads(machine.endorsements)
        held.body = make(bytes.fromhex(parts["pck_crl"]))
        given = Operator(vendors, tmp_path / str(len(held.body))).ask(machine)
        assert json.loads(given)["pck_crl"] == parts["pck_crl"]


def _pem_list(der: bytes) -> bytes:
    return x509.load_der_x509_crl(der).public_bytes(serialization.Encoding.PEM)


@pytest.mark.spec("END-4")
def test_the_older_name_of_a_header(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    for place, answer in vendors._published.items():
        if place[0] == "tcb":
            answer.headers = {"SGX-TCB-Info-Issuer-Chain": answer.headers["TCB-Info-Issuer-Chain"]}
    assert Operator(vendors, tmp_path).ask(machine)


@pytest.mark.spec("END-25")
def test_certificates_that_came_with_the_machine(vendors: VendorServer, tmp_path: Path) -> None:
    """A VLEK is nowhere to be fetched; a VCEK in the hints saves a request."""
    vlek = amd_platform(key="vlek")
    vendors.publish_amd("Milan", **vlek.published)
    operator = Operator(vendors, tmp_path / "vlek")
    with pytest.raises(PlatformError, match="offer the certificate that came with the machine") as caught:
        operator.ask(vlek)
    assert caught.value.code == "endorsements-missing"
    hints = json.dumps({"certificate": vlek.certificate.hex(), "chain": "", "crl": ""}).encode()
    assert json.loads(operator.ask(vlek, hints=hints))["certificate"] == vlek.certificate.hex()
    assert paths(vendors) == ["/vlek/v1/Milan/cert_chain", "/vlek/v1/Milan/crl"]
    # A restart finds it in the cache.
    assert Operator(vendors, tmp_path / "vlek").ask(vlek)

    vendors.requests.clear()
    vcek = amd_platform()
    everything = json.dumps(
        {"certificate": vcek.certificate.hex(), "chain": vcek.chain, "crl": vcek.crl.hex()}
    ).encode()
    assert (
        Operator(vendors, tmp_path / "vcek").ask(vcek, hints=everything)
        == json.dumps(json.loads(everything), separators=(",", ":")).encode()
    )
    assert not vendors.requests


@pytest.mark.spec("END-25")
@pytest.mark.parametrize("case", ["json", "hex", "other-chip", "other-family", "expired"])
def test_hints_that_are_no_use(vendors: VendorServer, tmp_path: Path, case: str) -> None:
    platform = amd_platform()
    vendors.publish_amd("Milan", **platform.published)
    other = {
        "json": b"{",
        "hex": b'{"certificate":"0","chain":"","crl":""}',
        "other-chip": amd_platform(chip=bytes(range(7, 71))),
        "other-family": amd_platform("Genoa"),
        "expired": amd_platform(now=NOW - 3000 * DAY),
    }[case]
    if not isinstance(other, bytes):
        other = json.dumps({"certificate": other.certificate.hex(), "chain": other.chain, "crl": ""}).encode()
    operator = Operator(vendors, tmp_path)
    assert json.loads(operator.ask(platform, hints=other))["certificate"] == platform.certificate.hex()
    assert len(vendors.requests) == 3 - (case == "other-chip")
    names = {p.name for p in tmp_path.glob("*.document")}
    assert all("genoa" not in n for n in names)
    assert len(names) == 3


# One request for all ----------------------------------------------------------------------


@pytest.mark.spec("END-8")
def test_fifty_ask_and_the_vendor_is_asked_once(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    vendors.publish_amd("Milan", **(platform := amd_platform()).published)
    Operator(vendors, tmp_path).ask(machine, 50)
    assert set(Counter(paths(vendors)).values()) == {1}
    assert len(vendors.requests) == 4
    Operator(vendors, tmp_path).ask(platform, 50)
    assert len(vendors.requests) == 7


@pytest.mark.spec("END-8")
def test_who_gives_up_does_not_take_it_from_others(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    operator = Operator(vendors, tmp_path)

    vendors.fail("slow", seconds=0.3)

    async def impatient() -> None:
        task = asyncio.create_task(operator.source.endorsements(machine.evidence, "sgx"))
        while len(vendors.requests) < 4:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    done = operator.run(impatient, lambda: operator.source.endorsements(machine.evidence, "sgx"))
    assert isinstance(done[1], bytes)
    assert len(vendors.requests) == 4


_PROGRAM = """
import asyncio, sys
from pathlib import Path
from conclave.host.endorsements import Endorsements, IntelService

async def main():
    source = Endorsements(Path(sys.argv[1]), intel=IntelService(sys.argv[2]))
    evidence = Path(sys.argv[3]).read_bytes()
    print("ready", flush=True)
    sys.stdin.readline()
    print(hash(await source.endorsements(evidence, "sgx")) is not None)
    await source.close()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.spec("END-8", "END-15")
def test_two_processes_share_a_cache(vendors: VendorServer, tmp_path: Path) -> None:
    """They start at the same moment, and the vendor sees each request once."""
    platform = simulated(tmp_path / "machine", now=datetime.now(dt.UTC))
    vendors.publish_intel(platform.endorsements)
    (tmp_path / "quote").write_bytes(platform.evidence)
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "cache"), vendors.url, str(tmp_path / "quote")]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for each in both:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in both:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    assert [each.communicate(timeout=20)[0] for each in both] == ["True\n"] * 2
    assert len(vendors.requests) == 4


# Age, trouble, expiry ----------------------------------------------------------------------


@pytest.mark.spec("END-9")
def test_a_restart_asks_nothing(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    first = Operator(vendors, tmp_path).ask(machine)
    vendors.requests.clear()
    again = Operator(vendors, tmp_path, NOW + 23 * HOUR)
    assert again.ask(machine) == first
    assert not vendors.requests


@pytest.mark.spec("END-9")
def test_a_day_later_newer_documents_are_fetched(vendors: VendorServer, tmp_path: Path) -> None:
    place = tmp_path / "machine"
    vendors.publish_intel(simulated(place).endorsements)
    operator = Operator(vendors, tmp_path / "cache")
    platform = simulated(place)
    operator.ask(platform)
    newer = simulated(place, now=NOW + 2 * DAY)
    vendors.publish_intel(newer.endorsements)
    operator.clock.time = NOW + 2 * DAY
    assert json.loads(operator.ask(platform)) == json.loads(newer.endorsements)
    assert len(vendors.requests) == 8


@pytest.mark.spec("END-17")
def test_an_older_copy_on_the_way_does_not_bring_back_the_past(vendors: VendorServer, tmp_path: Path) -> None:
    place = tmp_path / "machine"
    old = simulated(place)
    newer = simulated(place, now=NOW + 2 * DAY)
    vendors.publish_intel(newer.endorsements)
    operator = Operator(vendors, tmp_path / "cache", NOW + 2 * DAY)
    operator.ask(newer)
    vendors.publish_intel(old.endorsements)
    operator.clock.time = NOW + 4 * DAY
    assert json.loads(operator.ask(newer)) == json.loads(newer.endorsements)
    assert len(vendors.requests) == 8
    # It counts as asked.
    operator.ask(newer)
    assert len(vendors.requests) == 8


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("status", {"status": 404}, "vendor-missing"),
    ("status", {"status": 410}, "vendor-missing"),
    ("status", {"status": 400}, "vendor-refused"),
    ("status", {"status": 401}, "vendor-refused"),
    ("status", {"status": 429, "retry_after": "100000"}, "vendor-busy"),
    ("status", {"status": 503}, "vendor-busy"),
    ("status", {"status": 500}, "vendor-failed"),
    ("status", {"status": 204}, "vendor-failed"),
    ("slow", {}, "vendor-slow"),
    ("drip", {}, "vendor-slow"),
    ("cut", {}, "vendor-unreachable"),
    ("reset", {}, "vendor-unreachable"),
    ("redirect", {}, "vendor-redirect"),
    ("content", {}, "vendor-content"),
    ("content", {"body": b""}, "vendor-content"),
    ("content", {"body": b"[" * 100000}, "vendor-content"),
    ("oversized", {}, "vendor-content"),
]


@pytest.mark.spec("END-3", "END-6", "END-7", "END-10")
@pytest.mark.parametrize(
    ("kind", "how", "code"), FAULTS, ids=[f"{k}-{h.get('status', n)}" for n, (k, h, _) in enumerate(FAULTS)]
)
def test_failures(
    vendors: VendorServer, machine: Platform, tmp_path: Path, kind: Any, how: dict[str, Any], code: str
) -> None:
    """Nothing in hand: an error that says which. A valid copy in hand: that one, until it expires."""
    vendors.publish_intel(machine.endorsements)
    limits = TimeLimits(0.4, 0.4) if code == "vendor-slow" else TimeLimits(10.0, 10.0)
    good = Operator(vendors, tmp_path / "warm").ask(machine)
    vendors.fail(kind, "/tcb?", **how)
    cold = Operator(vendors, tmp_path / "cold", patience_seconds=0, limits=limits)
    with pytest.raises(Error) as caught:
        cold.ask(machine)
    assert caught.value.code == code
    assert isinstance(caught.value, PlatformError if code == "vendor-missing" else TransportError)
    assert cold.codes() == [code]
    assert "again from" in str(caught.value)

    warm = Operator(vendors, tmp_path / "warm", NOW + 25 * HOUR, limits=limits)
    assert warm.ask(machine) == good
    assert warm.codes() == [code]
    assert not warm.clock.slept

    warm.clock.time = NOW + 31 * DAY
    with pytest.raises(Error, match=r"the copy here expired at 2026-03-31 12:00:00 UTC"):
        warm.ask(machine)


@pytest.mark.spec("END-3")
def test_the_right_document_under_a_wrong_type_is_taken(
    vendors: VendorServer, machine: Platform, tmp_path: Path
) -> None:
    """Contents decide: a PCCS calls its hexadecimal list a PEM file."""
    vendors.publish_intel(machine.endorsements)
    vendors.fail("type")
    assert Operator(vendors, tmp_path).ask(machine)


@pytest.mark.spec("END-3")
def test_documents_of_other_platforms_are_refused(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    other = simulated(tmp_path / "other")
    vendors.publish_intel(other.endorsements)
    theirs = dict(vendors._published)
    vendors.publish_intel(machine.endorsements)
    mine = next(k for k in vendors._published if k[0] == "tcb" and k not in theirs)
    vendors._published[mine] = next(v for k, v in theirs.items() if k[0] == "tcb")
    operator = Operator(vendors, tmp_path / "a", patience_seconds=0)
    with pytest.raises(TransportError, match="not the document asked for") as caught:
        operator.ask(machine)
    assert caught.value.code == "vendor-content"
    assert "another platform's" in operator.events[0]["text"]

    platform = amd_platform()
    for wrong in (amd_platform(chip=bytes(range(3, 67))), amd_platform("Genoa"), amd_platform(key="vlek")):
        vendors.publish_amd("Milan", **platform.published)
        vendors.publish_amd("Milan", certificate=wrong.certificate, report=platform.evidence)
        with pytest.raises(TransportError, match="not the document asked for"):
            Operator(vendors, tmp_path / wrong.certificate[-8:].hex(), patience_seconds=0).ask(platform)
    vendors.publish_amd("Milan", **{**platform.published, "crl": amd_platform("Genoa").crl})
    with pytest.raises(TransportError, match="not the document asked for"):
        Operator(vendors, tmp_path / "b", patience_seconds=0).ask(platform)
    vendors.publish_amd("Milan", **{**platform.published, "chain": amd_platform("Genoa").chain})
    with pytest.raises(TransportError, match="not the document asked for"):
        Operator(vendors, tmp_path / "c", patience_seconds=0).ask(platform)


@pytest.mark.spec("END-3")
def test_documents_that_do_not_belong_together(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    """Each is well-formed, but the list is that of a root with another name."""
    vendors.publish_intel(machine.endorsements)
    body = revocation_list("Some Root CA", begin=NOW - DAY, end=NOW + DAY)
    vendors._published[("root",)].body = body
    with pytest.raises(TransportError, match="another root's") as caught:
        Operator(vendors, tmp_path).ask(machine)
    assert caught.value.code == "vendor-content"


@pytest.mark.spec("END-3")
def test_documents_of_another_pce_or_authority(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    place = next(k for k in vendors._published if k[0] == "tcb")
    tcb = vendors._published[place]
    good = tcb.body
    tcb.body = good.replace(b'"pceId":"0000"', b'"pceId":"0001"')
    with pytest.raises(TransportError, match="another PCE"):
        Operator(vendors, tmp_path / "pce").ask(machine)
    tcb.body = good
    times = {"begin": NOW - DAY, "end": NOW + DAY}
    issuer, root = "Another PCK Platform CA", "Conclave Simulated Root CA"
    chain = pem(certificate(issuer, root, **times), certificate(root, root, **times))
    listed = vendors._published[("pck", "platform")]
    listed.body, listed.headers = revocation_list(issuer, **times), {"SGX-PCK-CRL-Issuer-Chain": quote(chain)}
    with pytest.raises(TransportError, match="not that of the platform's authority"):
        Operator(vendors, tmp_path / "authority").ask(machine)


@pytest.mark.spec("END-3")
def test_amd_documents_whose_names_differ_in_other_parts(vendors: VendorServer, tmp_path: Path) -> None:
    """Common names agree, whole names do not."""
    platform = amd_platform()
    times = {"begin": NOW - DAY, "end": NOW + DAY}
    root = certificate("ARK-Milan", "ARK-Milan", organisation="Another", **times)
    middle = certificate("SEV-Milan", "ARK-Milan", organisation="Another", **times)
    vendors.publish_amd("Milan", **{**platform.published, "chain": pem(middle, root)})
    with pytest.raises(TransportError, match="not issued by the chain's signing key"):
        Operator(vendors, tmp_path / "chain").ask(platform)
    crl = revocation_list("ARK-Milan", organisation="Another", **times)
    vendors.publish_amd("Milan", **{**platform.published, "crl": crl})
    with pytest.raises(TransportError, match="not that of the chain's root"):
        Operator(vendors, tmp_path / "list").ask(platform)


@pytest.mark.spec("END-1")
def test_endorsements_that_no_client_takes_are_not_stapled(
    vendors: VendorServer, machine: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendors.publish_intel(machine.endorsements)
    monkeypatch.setattr(source, "MAX_ENDORSEMENTS", 1000)
    with pytest.raises(TransportError, match="too large"):
        Operator(vendors, tmp_path).ask(machine)


@pytest.mark.spec("END-7")
def test_compressed_answers_are_refused(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    """Even if what is compressed would be right: a small answer must not become a large one."""
    vendors.publish_intel(machine.endorsements)
    vendors._published[("pck", "platform")].headers["Content-Encoding"] = "gzip"
    with pytest.raises(TransportError) as caught:
        Operator(vendors, tmp_path, patience_seconds=0).ask(machine)
    assert caught.value.code == "vendor-content"


@pytest.mark.spec("END-10")
def test_a_vendor_that_gives_what_is_expired(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    for late in (NOW + 31 * DAY, NOW - DAY):
        operator = Operator(vendors, tmp_path / late.date().isoformat(), late, patience_seconds=0)
        with pytest.raises(TransportError, match="expired, or not valid yet") as caught:
            operator.ask(machine)
        assert caught.value.code == "vendor-expired"
        assert not list((tmp_path / late.date().isoformat()).glob("*.document"))


@pytest.mark.spec("END-11")
def test_waits_double_and_are_shortened_by_chance(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    vendors.fail("status", "/tcb?", status=500, times=4)
    operator = Operator(vendors, tmp_path)
    operator.ask(machine)
    assert operator.clock.slept == [2, 4, 8, 16]
    vendors.fail("status", "/tcb?", status=500, times=2)
    hasty = Operator(vendors, tmp_path / "hasty", chance=lambda: 0.999)
    hasty.ask(machine)
    assert [round(s, 2) for s in hasty.clock.slept] == [1.0, 2.0]


@pytest.mark.spec("END-11")
def test_patience_ends(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.fail("status", status=500)
    operator = Operator(vendors, tmp_path)
    with pytest.raises(TransportError) as caught:
        operator.ask(machine)
    assert caught.value.code == "vendor-failed"
    assert operator.clock.now() - NOW <= timedelta(seconds=60)
    asked = len(vendors.requests)
    # And until then nobody else asks either, a new process neither.
    with pytest.raises(TransportError):
        Operator(vendors, tmp_path, operator.clock.now(), patience_seconds=0).ask(machine)
    assert len(vendors.requests) == asked


@pytest.mark.spec("END-12")
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(
    vendors: VendorServer, machine: Platform, tmp_path: Path, status: int, form: str
) -> None:
    vendors.publish_intel(machine.endorsements)
    text = "30" if form == "seconds" else "Sun, 01 Mar 2026 12:00:30 GMT"
    vendors.fail("status", status=status, retry_after=text, times=1)
    operator = Operator(vendors, tmp_path)
    operator.ask(machine)
    assert operator.clock.now() == NOW + timedelta(seconds=30)
    assert operator.codes() == ["vendor-busy"]


@pytest.mark.spec("END-12")
def test_a_long_retry_after_is_an_error_at_once_and_holds_for_all(
    vendors: VendorServer, machine: Platform, tmp_path: Path
) -> None:
    """The vendor said it to one request; the others of that vendor wait too, also after a restart."""
    platform, other = amd_platform(), amd_platform("Genoa")
    vendors.publish_amd("Milan", **platform.published)
    vendors.publish_amd("Genoa", **other.published)
    vendors.publish_intel(machine.endorsements)
    vendors.fail("status", "/vcek/", status=429, retry_after="600", times=1)
    operator = Operator(vendors, tmp_path)
    with pytest.raises(
        TransportError, match="it asks to wait; it is asked again from 2026-03-01 12:10:00 UTC"
    ) as caught:
        operator.ask(platform)
    assert caught.value.code == "vendor-busy"
    assert not operator.clock.slept
    assert len(vendors.requests) == 1
    restarted = Operator(vendors, tmp_path, NOW + timedelta(seconds=599), patience_seconds=0)
    for each in (platform, other):
        with pytest.raises(TransportError):
            restarted.ask(each)
    assert len(vendors.requests) == 1
    # The other vendor has nothing to do with it.
    restarted.ask(machine)
    for each in (other, platform):
        assert Operator(vendors, tmp_path, NOW + timedelta(seconds=600)).ask(each)


@pytest.mark.spec("END-12")
def test_an_answer_on_its_way_does_not_end_the_wait_of_all(
    vendors: VendorServer, machine: Platform, tmp_path: Path
) -> None:
    """One request is told to wait; another, sent before, succeeds after that."""
    vendors.publish_intel(machine.endorsements)
    vendors.publish_intel(machine.endorsements, evaluation="early")
    vendors.fail("slow", "/rootcacrl", seconds=0.3)
    vendors.fail("status", "/tcb?", status=429, retry_after="600")
    with pytest.raises(TransportError):
        Operator(vendors, tmp_path, patience_seconds=0).ask(machine)
    vendors.recover()
    vendors.requests.clear()
    with pytest.raises(TransportError):
        Operator(vendors, tmp_path, patience_seconds=0, evaluation="early").ask(machine)
    assert not vendors.requests


@pytest.mark.spec("END-13")
def test_requests_to_amd_are_spaced(vendors: VendorServer, tmp_path: Path) -> None:
    """Four at once, then one in ten seconds, one under way at a time."""
    platforms = [amd_platform(chip=bytes((n,)) * 64) for n in range(1, 7)]
    for platform in platforms:
        vendors.publish_amd("Milan", **platform.published)
    operator = Operator(vendors, tmp_path)
    done = operator.run(*[lambda p=p: operator.source.endorsements(p.evidence, "snp") for p in platforms])
    assert all(isinstance(d, bytes) for d in done)
    assert len(vendors.requests) == 8
    assert operator.clock.now() - NOW == timedelta(seconds=40)


@pytest.mark.spec("END-13")
def test_a_queue_that_is_too_long_is_an_error(vendors: VendorServer, tmp_path: Path) -> None:
    platforms = [amd_platform(chip=bytes((n,)) * 64) for n in range(1, 30)]
    for platform in platforms:
        vendors.publish_amd("Milan", **platform.published)
    operator = Operator(vendors, tmp_path, patience_seconds=15)
    done = operator.run(*[lambda p=p: operator.source.endorsements(p.evidence, "snp") for p in platforms])
    refused = [d for d in done if isinstance(d, TransportError)]
    assert refused
    assert {e.code for e in refused} == {"vendor-paced"}
    # Two chips with what is above all of them at once, one more after ten seconds.
    assert sum(isinstance(d, bytes) for d in done) == 3
    assert len(vendors.requests) == 5


@pytest.mark.spec("END-27")
def test_ever_new_platforms_neither_flood_nor_fill(
    vendors: VendorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an enclave invents: a minute of it costs AMD ten requests, and a bounded number of files and entries."""
    monkeypatch.setattr(cache, "MAX_DOCUMENTS", 8)
    monkeypatch.setattr(source, "MAX_DOCUMENTS", 8)
    operator = Operator(vendors, tmp_path, patience_seconds=0)
    for number in range(1, 61):
        with pytest.raises(Error):
            operator.ask(amd_platform(chip=bytes((number,)) * 64))
        operator.clock.time += timedelta(seconds=1)
    assert len(vendors.requests) <= 10
    assert len(list(tmp_path.glob("*.trouble"))) <= 8
    assert len(list((tmp_path / "locks").iterdir())) <= 16
    assert len(operator.source._troubles) <= 8


@pytest.mark.spec("END-14")
def test_what_is_missing_is_not_asked_for_at_once_again(vendors: VendorServer, tmp_path: Path) -> None:
    platform = amd_platform()
    operator = Operator(vendors, tmp_path)
    for _ in range(3):
        with pytest.raises(PlatformError, match="AMD has no amd-vcek-milan-0102") as caught:
            operator.ask(platform)
        assert caught.value.code == "vendor-missing"
    with pytest.raises(PlatformError):
        Operator(vendors, tmp_path, NOW + timedelta(minutes=59)).ask(platform)
    # Its certificate, its family's chain and list: each once.
    assert len(vendors.requests) == 3
    vendors.publish_amd("Milan", **platform.published)
    operator.clock.time += timedelta(minutes=61)
    operator.ask(platform)
    assert not operator.clock.slept


@pytest.mark.spec("END-18")
def test_a_clock_that_was_wrong(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    """What a clock years ahead left behind neither blocks nor counts as fresh."""
    future = NOW + 1000 * DAY
    later = simulated(tmp_path / "later", now=future)
    vendors.publish_intel(later.endorsements)
    vendors.fail("status", "/tcb?", status=429, retry_after="3600")
    with pytest.raises(TransportError):
        Operator(vendors, tmp_path / "cache", future).ask(later)
    vendors.recover()
    vendors.publish_intel(machine.endorsements)
    operator = Operator(vendors, tmp_path / "cache")
    assert json.loads(operator.ask(machine)) == json.loads(machine.endorsements)
    assert not operator.clock.slept


# The connection ----------------------------------------------------------------------------


@contextmanager
def tls(place: Path) -> Iterator[tuple[ssl.SSLContext, Path]]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a caching service")])
    now = datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, secret = place / "tls.pem", place / "tls.key"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, secret)
    yield context, public


@pytest.mark.spec("END-5")
def test_tls_certificates_are_verified(machine: Platform, tmp_path: Path) -> None:
    with tls(tmp_path) as (context, authority), VendorServer(tls=context) as vendors:
        vendors.publish_intel(machine.endorsements)
        assert vendors.url.startswith("https://")
        stranger = Operator(vendors, tmp_path / "stranger", patience_seconds=0)
        with pytest.raises(TransportError, match="its TLS certificate is not accepted") as caught:
            stranger.ask(machine)
        assert caught.value.code == "vendor-tls"
        assert not vendors.requests
        known = IntelService(vendors.url, ca_file=authority)
        assert Operator(vendors, tmp_path / "known", intel=known).ask(machine)
        missing = IntelService(vendors.url, ca_file=tmp_path / "nothing")
        with pytest.raises(PlatformError, match="as TLS authority"):
            Operator(vendors, tmp_path / "missing", intel=missing).ask(machine)


@pytest.mark.spec("END-5")
@pytest.mark.parametrize(
    "url",
    [
        "http://pccs.example",
        "ftp://127.0.0.1",
        "pccs.example",
        "https://",
        "https://a:b@c",
        "https://x:y",
        "http://127.0.0.1.example",
        "https://pccs.example/\u00e9",
    ],
)
def test_addresses_that_give_the_connection_away(tmp_path: Path, url: str) -> None:
    for service in ({"intel": IntelService(url)}, {"amd": AmdService(url)}):
        with pytest.raises(FormatError) as caught:
            Endorsements(tmp_path, **service)  # type: ignore[arg-type]
        assert caught.value.code == "service-address"
    with pytest.raises(FormatError):
        Endorsements(tmp_path, intel=IntelService("https://pccs.example", root_crl_url=url))


@pytest.mark.parametrize("options", [{"evaluation": "late"}, {"evaluation": "0"}, {"product": "Rome"}])
def test_settings_that_are_none(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        Endorsements(tmp_path, **options)
    assert caught.value.code == "service-setting"


@pytest.mark.spec("END-6")
def test_a_redirect_leads_nowhere(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    with VendorServer() as elsewhere:
        elsewhere.publish_intel(machine.endorsements)
        vendors.fail("redirect", location=elsewhere.url)
        with pytest.raises(TransportError) as caught:
            Operator(vendors, tmp_path, patience_seconds=0).ask(machine)
        assert caught.value.code == "vendor-redirect"
        assert elsewhere.url not in str(caught.value)
        assert not elsewhere.requests


@pytest.mark.spec("END-10")
def test_nobody_listens(machine: Platform, tmp_path: Path) -> None:
    with VendorServer() as vendors:
        pass
    operator = Operator(vendors, tmp_path, patience_seconds=0)
    with pytest.raises(TransportError) as caught:
        operator.ask(machine)
    assert caught.value.code == "vendor-unreachable"
    # One refused connection speaks for the service: what was not under way is not tried.
    assert set(operator.codes()) == {"vendor-unreachable"}


@pytest.mark.spec("END-7")
def test_a_byte_at_a_time_is_not_waited_for(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    vendors.fail("drip")
    began = time.monotonic()
    operator = Operator(vendors, tmp_path, patience_seconds=0, limits=TimeLimits(0.3, 0.3))
    with pytest.raises(TransportError):
        operator.ask(machine)
    assert time.monotonic() - began < 5


# Without a network ---------------------------------------------------------------------------


@pytest.mark.spec("END-24")
def test_only_the_cache_answers(vendors: VendorServer, machine: Platform, tmp_path: Path) -> None:
    vendors.publish_intel(machine.endorsements)
    given = Operator(vendors, tmp_path).ask(machine)
    vendors.requests.clear()
    alone = Operator(vendors, tmp_path, intel=None, amd=None)
    for days in (0, 1, 29):
        alone.clock.time = NOW + days * DAY
        assert alone.ask(machine) == given
    alone.clock.time = NOW + 31 * DAY
    with pytest.raises(PlatformError, match=r"the copy here expired at .*; import it") as caught:
        alone.ask(machine)
    assert caught.value.code == "endorsements-missing"
    with pytest.raises(PlatformError, match="there is no amd-vcek-milan"):
        alone.ask(amd_platform())
    assert not vendors.requests


@pytest.mark.spec("END-2")
def test_evidence_that_names_no_platform_costs_no_request(vendors: VendorServer, tmp_path: Path) -> None:
    operator = Operator(vendors, tmp_path)
    for kind in ("sgx", "tdx", "snp"):
        (error,) = operator.run(lambda kind=kind: operator.source.endorsements(b"nothing", kind))
        assert isinstance(error, FormatError)
    assert not vendors.requests


def test_threads_of_the_test_server_end() -> None:
    before = threading.active_count()
    with VendorServer() as server:
        server.fail("slow")
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=0.1) as s:
            s.sendall(b"GET /x HTTP/1.1\r\n\r\n")
            with pytest.raises(TimeoutError):
                s.recv(1)
    assert threading.active_count() == before
