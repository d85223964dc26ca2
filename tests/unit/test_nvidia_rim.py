"""Reference manifests: their grammar, algorithms and certificates, each fault signed."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests._nvidia import (
    ALGORITHMS,
    C14N,
    DAY,
    NOW,
    RIM_ROOT,
    SHA384,
    SWID,
    TCG,
    YEAR,
    Link,
    Manifest,
    certify,
    entry,
    fingerprint,
)

from conclave.attestation.nvidia import verify_rim
from conclave.attestation.nvidia.rim import SPACES, parse_rim
from conclave.errors import ChainError, Error, ExpiredError, FormatError

SPEC = (Path(__file__).parents[2] / "spec" / "nvidia.md").read_text()


def refused(case: Manifest, kind: type[Error], code: str) -> None:
    with pytest.raises(Error) as caught:
        case.verify()
    assert type(caught.value) is kind, caught.value
    assert caught.value.code == code


def malformed(case: Manifest) -> None:
    refused(case, FormatError, "rim-format")


@pytest.mark.spec("GPU-14", "GPU-15", "GPU-16", "GPU-17")
def test_the_manifest_that_all_others_are_made_from_verifies() -> None:
    case = Manifest()
    rim = case.verify()
    assert (rim.kind, rim.product, rim.version, rim.tag_id) == ("gpu", "GH100", "550.90.07", "560b")
    assert {index: (e.name, e.values) for index, e in rim.entries.items()} == {
        7: ("Measurement_7", ("08" * 48,)),
        9: ("Measurement_9", ("00" * 48, "0a" * 48)),
    }
    assert {rim.anchor} == case.anchors
    assert rim.signer == fingerprint(case.certificates()[0])
    assert (rim.valid_from, rim.valid_until) == (NOW - 30 * DAY, NOW + YEAR)
    assert Manifest(edition="SWITCH", product="LS10").verify().kind == "switch"


# The grammar, signed.


@pytest.mark.spec("GPU-14")
@pytest.mark.parametrize(
    "inside",
    [
        "",
        "{meta}{payload}",
        "{entity}{payload}",
        "{entity}{meta}",
        "{meta}{entity}{payload}",
        "{entity}{meta}{payload}{payload}",
        "{entity}{entity}{meta}{payload}",
        "{entity}{meta}{payload}<ns0:Evidence></ns0:Evidence>",
    ],
)
def test_elements_have_their_order(inside: str) -> None:
    malformed(Manifest(inside=inside))


ROOT = f'xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="{SHA384}" '
META = (
    f'<ns0:Meta xmlns:ns1="{TCG}" PayloadType="{{}}" colloquialVersion="{{}}" edition="{{}}" product="{{}}"></ns0:Meta>'
)


@pytest.mark.spec("GPU-14")
def test_it_is_whole() -> None:
    assert Manifest(root=ROOT + 'corpus="false" patch="false" supplemental="false"').verify().tag_id == ""
    for root in (
        'corpus="true" patch="false" supplemental="false"',
        'corpus="false" patch="true" supplemental="false"',
        'corpus="false" patch="false" supplemental="true"',
        'corpus="false" patch="false"',
        'corpus="false" supplemental="false"',
        'patch="false" supplemental="false"',
    ):
        malformed(Manifest(root=ROOT + root))


@pytest.mark.spec("GPU-14")
def test_it_says_what_it_is_about() -> None:
    assert Manifest(about=META.format("direct", "1.0", "GPU", "GB100")).verify().product == "GB100"
    for said in (
        ("indirect", "1.0", "GPU", "GH100"),
        ("direct", "", "GPU", "GH100"),
        ("direct", "1.0", "CPU", "GH100"),
        ("direct", "1.0", "gpu", "GH100"),
        ("direct", "1.0", "GPU", ""),
        ("direct", "1 0", "GPU", "GH100"),
        ("direct", "1" * 65, "GPU", "GH100"),
        ("direct", "1.0", "GPU", "GH/100"),
    ):
        malformed(Manifest(about=META.format(*said)))
    malformed(Manifest(about='<ns0:Meta PayloadType="direct"></ns0:Meta>'))


ENTRIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "none that is active": (entry(7, active=False),),
    "index twice": (entry(7), entry(7, bytes(48))),
    "index twice, one not active": (entry(7), entry(7, active=False)),
    "index with a zero": (entry(7, index="07"),),
    "index with a sign": (entry(7, index="+7"),),
    "index with white space": (entry(7, index=" 7"),),
    "index in hexadecimal": (entry(7, index="0x7"),),
    "index that is negative": (entry(7, index="-1"),),
    "index that is empty": (entry(7, index=""),),
    "index too large": (entry(7, index="255"),),
    "index of four digits": (entry(7, index="1000"),),
    "no alternatives": (entry(7, alternatives="0"),),
    "more alternatives than values": (entry(7, alternatives="2"),),
    "fewer alternatives than values": (entry(7, bytes(48), bytes(48), alternatives="1"),),
    "too many alternatives": (entry(7, *[bytes(48)] * 17),),
    "another size": (entry(7, size="32"),),
    "active in lower case": (entry(7).replace("True", "true"),),
    "another type": (entry(7, type="OpaqueData"),),
    "no name": (entry(7, name=""),),
    "a name with markup": (entry(7, name="a>b"),),
    "an attribute more": (entry(7, minSvn="1"),),
    "an attribute less": (entry(7).replace(' size="48"', ""),),
    "a value in upper case": (entry(10).replace("0b" * 48, "0B" * 48),),
    "a short value": (entry(7).replace("08" * 48, "08" * 47),),
    "a value that is no hex": (entry(7).replace("08" * 48, "0x" * 48),),
    "values of other names": (entry(7).replace("Hash0", "Hash1"),),
    "a value without namespace": (entry(7).replace("ns2:Hash0", "Hash0"),),
    "a value in another namespace": (entry(7).replace("ns2:Hash0", "ns0:Hash0"),),
}


@pytest.mark.spec("GPU-14")
@pytest.mark.parametrize("name", ENTRIES)
def test_measurements_have_their_one_form(name: str) -> None:
    malformed(Manifest(entries=ENTRIES[name]))


@pytest.mark.spec("GPU-14")
def test_bounds_of_measurements() -> None:
    rim = Manifest(entries=(entry(0, *[bytes([n]) * 48 for n in range(16)]), entry(254, bytes(48)))).verify()
    assert sorted(rim.entries) == [0, 254]
    assert rim.entries[0].values == tuple(f"{n:02x}" * 48 for n in range(16))


# Algorithms.


@pytest.mark.spec("GPU-15")
@pytest.mark.parametrize("place", ALGORITHMS)
@pytest.mark.parametrize(
    "name",
    [
        "",
        "http://www.w3.org/TR/2001/REC-xml-c14n-20010315",
        "http://www.w3.org/2001/10/xml-exc-c14n#",
        C14N + "#WithComments",
        "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256",
        "http://www.w3.org/2000/09/xmldsig#hmac-sha1",
        "http://www.w3.org/2000/09/xmldsig#sha1",
        "http://www.w3.org/TR/1999/REC-xslt-19991116",
        "http://www.w3.org/2002/06/xmldsig-filter2",
    ],
)
def test_other_algorithms_are_refused(place: str, name: str) -> None:
    refused(Manifest(algorithms={place: name}), FormatError, "rim-algorithm")


@pytest.mark.spec("GPU-15")
def test_algorithms_have_no_parameters() -> None:
    def more(text: str) -> str:
        return text.replace(
            "></ds:SignatureMethod>", "><ds:HMACOutputLength>0</ds:HMACOutputLength></ds:SignatureMethod>"
        )

    def hints(text: str) -> str:
        return text.replace("></ds:CanonicalizationMethod>", ' Prefix="x"></ds:CanonicalizationMethod>')

    for statement in (more, hints, lambda t: t.replace("></ds:DigestMethod>", ">\n</ds:DigestMethod>")):
        refused(Manifest(statement=statement), FormatError, "rim-algorithm")


@pytest.mark.spec("GPU-14")
@pytest.mark.parametrize("reference", ['URI="#x"', 'URI="http://example.org/"', "", 'Id="x" URI=""', 'Type="x" URI=""'])
def test_the_reference_is_to_the_whole_document(reference: str) -> None:
    malformed(Manifest(reference=reference))


@pytest.mark.spec("GPU-14")
@pytest.mark.parametrize(
    "change",
    [
        lambda t: re.sub(r"<ds:Transforms>.*</ds:Transforms>", "", t),
        lambda t: re.sub(r"(<ds:Transform .*?</ds:Transform>)(<ds:Transform .*</ds:Transform>)", r"\1", t),
        lambda t: re.sub(r"(<ds:Transform .*?</ds:Transform>)(<ds:Transform .*</ds:Transform>)", r"\1\2\2", t),
        lambda t: t.replace("<ds:Transforms>", '<ds:Transforms Id="x">'),
        lambda t: t.replace("<ds:DigestValue>", '<ds:DigestValue Id="x">'),
        lambda t: re.sub(r"(<ds:DigestValue>)[^<]*", r"\1" + base64.b64encode(bytes(47)).decode(), t),
        lambda t: re.sub(r"(<ds:DigestValue>)[^<]*", r"\1", t),
        lambda t: re.sub(r"(<ds:DigestValue>)[^<]*", r"\1not Base64", t),
    ],
)
def test_the_statement_has_its_one_form(change: Callable[[str], str]) -> None:
    malformed(Manifest(statement=change))


@pytest.mark.spec("GPU-15")
def test_transforms_have_their_order() -> None:
    exchanged = {"enveloped": ALGORITHMS["transform"], "transform": ALGORITHMS["enveloped"]}
    refused(Manifest(algorithms=exchanged), FormatError, "rim-algorithm")


@pytest.mark.spec("GPU-14")
def test_the_signatures_value_has_96_bytes() -> None:
    for size in (0, 64, 95, 97):
        value = base64.b64encode(bytes(size)).decode()
        malformed(Manifest(written=lambda t, v=value: re.sub(r"(<ds:SignatureValue>)[^<]*", r"\1" + v, t)))  # type: ignore[misc]


# Certificates.


@pytest.mark.spec("GPU-14")
@pytest.mark.parametrize("text", ["", "\n", "not Base64", "AAA"])
def test_a_certificate_is_base64(text: str) -> None:
    def written(whole: str) -> str:
        return re.sub(r"(<ds:X509Certificate>)[^<]*", lambda m: m[1] + text, whole, count=1)

    malformed(Manifest(written=written))


OTHER_ROOT = Link(RIM_ROOT.name, "other")
SIGNER = Link("RIM L4 Signer", "rim-signer", ca=False)
CHAINS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "root alone": lambda c: c[-1:],
    "no root": lambda c: c[:-1],
    "one missing": lambda c: [c[0], *c[2:]],
    "one twice": lambda c: [*c[:2], *c[1:]],
    "exchanged": lambda c: [c[0], c[2], c[1], c[3]],
    "something else": lambda c: [c[0], b"x", *c[2:]],
    "another root of that name": lambda c: [*c[:3], certify(OTHER_ROOT, OTHER_ROOT)],
    "signer made by another": lambda c: [certify(SIGNER, Link("NVIDIA Reference Value L3 GH100 001", "other")), *c[1:]],
}


@pytest.mark.spec("GPU-16")
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_that_is_none_is_refused(name: str) -> None:
    refused(Manifest(chain=CHAINS[name]), ChainError, "rim-chain")


@pytest.mark.spec("GPU-16")
@pytest.mark.parametrize("changes", [{"usage": ""}, {"usage": "none"}])
def test_the_signer_is_for_signing(changes: dict[str, Any]) -> None:
    refused(Manifest(leaf=changes), ChainError, "rim-chain")


@pytest.mark.spec("GPU-16")
def test_an_authority_does_not_sign_manifests() -> None:
    refused(Manifest(leaf={"ca": True, "usage": "both"}), ChainError, "rim-chain")


@pytest.mark.spec("GPU-14", "GPU-16")
def test_number_of_certificates() -> None:
    malformed(Manifest(chain=lambda c: []))
    malformed(Manifest(chain=lambda c: [*c, *c, c[0]]))
    # Steps are not counted, unlike those of devices.
    assert Manifest().verify()


@pytest.mark.spec("GPU-16")
def test_outside_of_its_time_it_is_expired() -> None:
    for edge, outside in ((NOW - 30 * DAY, -DAY), (NOW + YEAR, DAY)):
        assert Manifest(now=edge).verify()
        refused(Manifest(now=edge + outside), ExpiredError, "rim-expired")
    refused(Manifest(leaf={"end": NOW + 3 * YEAR}, now=NOW + 2 * YEAR + DAY), ExpiredError, "rim-expired")


@pytest.mark.spec("GPU-16")
def test_an_anchor_that_is_not_pinned_is_refused() -> None:
    case = Manifest()
    for anchors in (frozenset[str](), frozenset({fingerprint(c) for c in case.certificates()[:3]})):
        with pytest.raises(ChainError) as caught:
            verify_rim(case.xml(), anchors=anchors, now=NOW)
        assert caught.value.code == "rim-chain"


def test_parsing_verifies_nothing() -> None:
    case = Manifest(signer="other")
    manifest = parse_rim(case.xml())
    assert manifest.digest == hashlib.sha384(case.content().format(signature="").encode()).digest()
    assert manifest.content == case.content().format(signature="").encode()


@pytest.mark.spec("GPU-13", "GPU-15")
def test_the_specification_names_the_same_namespaces_and_algorithms() -> None:
    _, _, rest = SPEC.partition("## 9. Reference manifests")
    section, _, _ = rest.partition("## 10.")
    named = set(re.findall(r"`(https?://[^`]+)`", section))
    assert named == SPACES | set(ALGORITHMS.values())
