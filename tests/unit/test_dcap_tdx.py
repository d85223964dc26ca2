"""TDX domains, and all versions of quotes: evidence that verifies, with one thing changed and signed again."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from tests._intel import (
    BODIES,
    FMSPC,
    MODULES,
    NOW,
    PPID,
    SEPT_VE_DISABLE,
    Intel,
    anchor,
    intel,
    keys,
    level,
    module,
    platform_level,
    svn,
)

from conclave.attestation.dcap import parse_endorsements, parse_quote, verify_quote
from conclave.attestation.dcap._layout import size_of
from conclave.errors import Error, ExpiredError, FormatError, RevokedError, VerificationError
from conclave.platform import pki

KINDS = [(3, 1), (4, 1), (4, 2), (5, 1), (5, 2), (5, 3)]
TDX = [(4, 2), (5, 2), (5, 3)]


def refused(
    code: str, changed: Intel, error: type[Error] = VerificationError, *, endorsements: bytes | None = None
) -> None:
    with pytest.raises(Error) as caught:
        changed.verify(endorsements=endorsements)
    assert (type(caught.value), caught.value.code) == (error, code), caught.value


@pytest.mark.spec("DCAP-1", "DCAP-22", "DCAP-23")
@pytest.mark.parametrize(("version", "body_type"), KINDS)
def test_what_all_others_are_made_from_verifies(version: int, body_type: int) -> None:
    made = intel(version, body_type)
    quote, claims = parse_quote(made.quote()), made.verify()
    assert (quote.version, quote.body_type, quote.tee) == (version, body_type, made.tee)
    assert {k: v for k, v in quote.body.items() if k in made.body} == made.body
    assert (claims.tee, claims.tcb_status, claims.anchor) == (made.tee, "UpToDate", anchor())
    assert not claims.debug
    assert claims.remarks == frozenset()
    assert claims.advisories == ()
    assert claims.report_data == bytes(range(64))
    assert claims.platform == PPID.hex()
    assert claims.details["fmspc"] == FMSPC.hex()
    assert claims.details["tcb_evaluation_number"] == 17
    assert claims.details["qe_evaluation_number"] == 18
    assert claims.details["root_crl_number"] == claims.details["pck_crl_number"] == int(NOW.timestamp())
    assert claims.tcb_date == datetime(2026, 2, 11, tzinfo=UTC)
    measured = ("mrenclave", 32) if made.tee == "sgx" else ("mrtd", 48)
    assert claims.measurements[measured[0]] == bytes(range(measured[1])).hex()
    assert len(claims.steps) == 14


# Parsing.


@pytest.mark.spec("DCAP-1")
@pytest.mark.parametrize(("version", "body_type"), KINDS)
def test_cut_short_anywhere(version: int, body_type: int) -> None:
    raw = intel(version, body_type).quote()
    for size in range(len(raw)):
        with pytest.raises(FormatError):
            parse_quote(raw[:size])


@pytest.mark.spec("DCAP-1")
@pytest.mark.parametrize(
    ("tee", "kind", "size", "code"),
    [
        (0x81, 0, 584, "quote-body"),
        (0x81, 1, 384, "quote-body"),
        (0x81, 2, 583, "quote-body"),
        (0x81, 3, 584, "quote-body"),
        (0x81, 4, 885, "quote-body"),
        (0x81, 5, 584, "quote-body"),
        (0x81, 2, 2**32 - 1, "quote-body"),
        (0x00, 2, 584, "quote-body"),
        (0x82, 2, 584, "quote-tee"),
    ],
)
def test_bodies_that_are_not_known(tee: int, kind: int, size: int, code: str) -> None:
    raw = intel(5, 2).quote()
    changed = raw[:4] + struct.pack("<I", tee) + raw[8:48] + struct.pack("<HI", kind, size) + raw[54:]
    with pytest.raises(FormatError) as caught:
        parse_quote(changed)
    assert caught.value.code == code
    assert ("not supported" in str(caught.value)) is (kind == 4)


@pytest.mark.spec("DCAP-1", "DCAP-4")
def test_the_nested_part_is_of_one_kind_and_has_one_size() -> None:
    raw = intel().quote()
    at = 48 + 584 + 4 + 128
    (size,) = struct.unpack_from("<I", raw, at + 2)
    for kind, said, code in (
        (5, size, "quote-certification"),
        (0, size, "quote-certification"),
        (6, size - 1, "quote-format"),
        (6, size + 1, "quote-format"),
        (6, 0, "quote-format"),
        (6, 2**32 - 1, "quote-format"),
    ):
        with pytest.raises(FormatError) as caught:
            parse_quote(raw[:at] + struct.pack("<HI", kind, said) + raw[at + 6 :])
        assert caught.value.code == code


@pytest.mark.spec("DCAP-2")
def test_what_follows_the_quote_proper() -> None:
    for version, body_type in KINDS:
        for trailing in (b"\0" * 70, b"text"):
            changed = intel(version, body_type).but(trailing=trailing)
            if version == 3:
                refused("quote-format", changed, FormatError)
            else:
                assert changed.verify().details["trailing_bytes"] == len(trailing)


def ders() -> list[bytes]:
    platform, _ = keys()
    return [c.public_bytes(serialization.Encoding.DER) for c in (platform.pck, platform.ca, platform.root)]


@pytest.mark.spec("DCAP-3")
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_a_chain_in_any_order_and_form(order: tuple[int, ...]) -> None:
    made = intel()
    platform, _ = keys()
    certificates = [(platform.pck, platform.ca, platform.root)[i] for i in order]
    text = pki.pem(*certificates).encode()
    for data in (text, text + b"\0", text.rstrip(), b"".join(ders()[i] for i in order)):
        changed = made.but(certification=(5, data))
        assert parse_quote(changed.quote()).chain == tuple(ders())
        assert changed.verify().tcb_status == "UpToDate"


def test_certificates_that_form_no_chain_stay_as_they_come() -> None:
    pck, _, root = ders()
    signer = keys()[0].tcb.public_bytes(serialization.Encoding.DER)
    for chain in ((root,), (signer, pck, root), (pck, root), (root, root), (b"\x30\0", pck), (b"\x31\0",)):
        data = b"".join(chain)
        assert parse_quote(intel().but(certification=(5, data)).quote()).chain == chain


# Certification data that names a processor.


def named(kind: int, size: int) -> tuple[int, bytes]:
    data = (PPID + bytes([2]) * 16 + struct.pack("<H", 11) + b"\0\0")[:size]
    return kind, data.ljust(size, b"\7")


@pytest.mark.spec("DCAP-4", "DCAP-8")
@pytest.mark.parametrize(("version", "body_type"), [(3, 1), (4, 2), (5, 3)])
@pytest.mark.parametrize("size", [34, 36])
def test_a_processor_in_the_clear_with_the_chain_beside(version: int, body_type: int, size: int) -> None:
    platform, _ = keys()
    made = intel(version, body_type).but(certification=named(1, size))
    chain = {"pck_certificate_chain": pki.pem(platform.ca, platform.root, platform.pck)}
    assert parse_quote(made.quote()).chain == ()
    assert made.but(members=chain).verify().tcb_status == "UpToDate"
    refused("certification-unsupported", made)
    kind, data = named(1, size)
    for at in (0, 15, *([35] if size == 36 else [])):
        other = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        refused("pck-mismatch", made.but(members=chain, certification=(kind, other)))


@pytest.mark.spec("DCAP-4", "DCAP-8")
@pytest.mark.parametrize(("kind", "size"), [(2, 276), (3, 404)])
def test_a_processor_that_only_the_vendor_can_tell(kind: int, size: int) -> None:
    platform, _ = keys()
    made = intel().but(certification=named(kind, size))
    chain = {"pck_certificate_chain": pki.pem(platform.pck, platform.ca, platform.root)}
    # Whatever the endorsements are: they are not even read.
    for changed, given in ((made, b""), (made, None), (made.but(members=chain), None)):
        refused("certification-unsupported", changed, endorsements=given)
    for wrong in (size - 1, size + 1, 0):
        refused("quote-certification", made.but(certification=named(kind, wrong)), FormatError)


@pytest.mark.spec("DCAP-4")
@pytest.mark.parametrize(("kind", "size"), [(0, 36), (4, 36), (6, 36), (7, 36), (1, 35), (1, 33), (1, 37), (1, 0)])
def test_certification_data_of_no_known_kind_or_size(kind: int, size: int) -> None:
    refused("quote-certification", intel().but(certification=named(kind, size)), FormatError)


# What the quote alone proves comes first.


@pytest.mark.spec("DCAP-11")
def test_without_endorsements_what_the_quote_itself_says_is_checked() -> None:
    made = intel()
    refused("endorsements-format", made, FormatError, endorsements=b"")
    raw = bytearray(made.quote())
    raw[100] ^= 1
    with pytest.raises(VerificationError) as caught:
        verify_quote(parse_quote(bytes(raw)), b"", anchors=frozenset({anchor()}), now=NOW)
    assert caught.value.code == "quote-signature"


@pytest.mark.spec("DCAP-11")
def test_an_attestation_key_that_is_no_point() -> None:
    # The quoting enclave certified it, so only the curve is left to refuse it.
    made = intel(3, 1)
    raw = bytearray(made.quote())
    quote = parse_quote(bytes(raw))
    key = b"\xff" * 64
    report = bytearray(quote.qe_report)
    report[320:352] = hashlib.sha256(key + quote.qe_auth_data).digest()
    raw[500:564] = key
    raw[564:948] = report
    raw[948:1012] = pki.raw_signature(keys()[0].pck_key, bytes(report))
    with pytest.raises(VerificationError) as caught:
        verify_quote(parse_quote(bytes(raw)), made.endorsements(), anchors=frozenset({anchor()}), now=NOW)
    assert caught.value.code == "quote-signature"


# Platform levels.

LEVELS = [
    platform_level("UpToDate", sgx=3, tdx=(5, 0, 3)),
    platform_level("SWHardeningNeeded", "INTEL-SA-2", sgx=2, tdx=(5, 0, 2), date="2025-05-14T00:00:00Z"),
    platform_level("OutOfDate", "INTEL-SA-1", "INTEL-SA-2", sgx=1, tdx=(3, 0, 1), date="2023-02-15T00:00:00Z"),
    platform_level("Revoked", sgx=0, pce=5, tdx=(0, 0, 0), date="2018-01-04T00:00:00Z"),
]


@pytest.mark.spec("DCAP-18")
@pytest.mark.parametrize(("version", "body_type"), TDX)
@pytest.mark.parametrize(
    ("versions", "status"),
    [
        ((6, 1, 3), "SWHardeningNeeded"),
        ((6, 1, 2), "SWHardeningNeeded"),
        ((6, 1, 1), "OutOfDate"),
        ((6, 1, 255), "SWHardeningNeeded"),
        # A module with a major version is judged by its identity: its minor is not compared with the platform's levels.
        ((4, 1, 2), "OutOfDate"),
    ],
)
def test_the_first_level_that_every_component_reaches(
    version: int, body_type: int, versions: tuple[int, ...], status: str
) -> None:
    body = {"tee_tcb_svn": svn(*versions)} | ({"tee_tcb_svn2": svn(*versions)} if body_type == 3 else {})
    made = intel(version, body_type).but(tcb_info={"tcbLevels": LEVELS}, body=body)
    claims = made.verify()
    assert claims.tcb_status == status
    expected = "OutOfDate" if versions[2] < 2 else "SWHardeningNeeded"
    assert claims.statuses["platform"] == expected


@pytest.mark.spec("DCAP-18")
def test_the_order_is_the_vendors() -> None:
    # The vendor lists the highest first; a list in another order is taken as it stands.
    both = [platform_level("OutOfDate", sgx=1, tdx=(0,)), platform_level("UpToDate", sgx=2, tdx=(0,))]
    assert intel().but(tcb_info={"tcbLevels": both}).verify().tcb_status == "OutOfDate"
    assert intel().but(tcb_info={"tcbLevels": both[::-1]}).verify().tcb_status == "UpToDate"


@pytest.mark.spec("DCAP-18")
@pytest.mark.parametrize("at", range(16))
def test_each_component_counts(at: int) -> None:
    for made, list_of in (
        (intel(3, 1), "sgxtcbcomponents"),
        (intel(), "sgxtcbcomponents"),
        (intel(), "tdxtcbcomponents"),
    ):
        lower = made.tcb_info["tcbLevels"][0]
        components = [dict(c) for c in lower["tcb"][list_of]]
        components[at]["svn"] += 1 if list_of[0] == "s" else 10
        higher = lower | {"tcb": lower["tcb"] | {list_of: components}}
        changed = made.but(tcb_info={"tcbLevels": [higher, lower | {"tcbStatus": "OutOfDate"}]})
        ignored = list_of == "tdxtcbcomponents" and at < 2
        assert changed.verify().tcb_status == ("UpToDate" if ignored else "OutOfDate")


@pytest.mark.spec("DCAP-18")
def test_the_pce_counts() -> None:
    levels = [platform_level("UpToDate", pce=12), platform_level("OutOfDate", pce=11), platform_level("Revoked", pce=5)]
    assert intel().but(tcb_info={"tcbLevels": levels}).verify().tcb_status == "OutOfDate"


@pytest.mark.spec("DCAP-17", "DCAP-18")
def test_below_every_level() -> None:
    refused("tcb-unsupported", intel().but(body={"tee_tcb_svn": svn(6, 1, 1)}))
    refused("tcb-unsupported", intel().but(tcb_info={"tcbLevels": [platform_level("UpToDate", pce=12)]}))
    refused("tcb-unsupported", intel().but(tcb_info={"tcbLevels": []}))
    # What a domain runs under now must be known too.
    refused("tcb-unsupported", intel(5, 3).but(body={"tee_tcb_svn2": svn(6, 1, 1)}))
    refused("tcb-unsupported", intel(5, 3).but(body={"tee_tcb_svn2": svn(6, 2, 2)}))
    refused("tcb-unsupported", intel(5, 3).but(body={"tee_tcb_svn2": svn(1, 1, 2)}))


# TDX modules.


@pytest.mark.spec("DCAP-20")
@pytest.mark.parametrize(
    ("versions", "status"),
    [((6, 1), "UpToDate"), ((7, 1), "UpToDate"), ((5, 1), "OutOfDate"), ((4, 1), "OutOfDate"), ((3, 3), "UpToDate"),
     ((1, 3), "OutOfDate")],
)  # fmt: skip
def test_a_module_is_found_by_its_major_version_and_judged_by_its_minor(versions: tuple[int, int], status: str) -> None:
    claims = intel().but(body={"tee_tcb_svn": svn(*versions, 2)}).verify()
    assert claims.statuses == {"platform": "UpToDate", "qe": "UpToDate", "tdx_module": status}
    assert claims.tcb_status == status
    assert claims.advisories == (("INTEL-SA-1",) if (status, versions[1]) == ("OutOfDate", 1) else ()) + (
        ("INTEL-SA-3",) if (status, versions[1]) == ("OutOfDate", 3) else ()
    )


@pytest.mark.spec("DCAP-17", "DCAP-19", "DCAP-20")
def test_modules_that_are_revoked_or_not_known() -> None:
    refused("tcb-revoked", intel().but(body={"tee_tcb_svn": svn(3, 1, 2)}), RevokedError)
    refused("tcb-revoked", intel(5, 3).but(body={"tee_tcb_svn2": svn(3, 1, 2)}), RevokedError)
    refused("tcb-unsupported", intel().but(body={"tee_tcb_svn": svn(1, 1, 2)}))
    refused("tcb-unsupported", intel().but(body={"tee_tcb_svn": svn(6, 2, 2)}))
    refused("tcb-unsupported", intel().but(tcb_info={"tdxModuleIdentities": []}))
    refused("tcb-unsupported", intel().but(tcb_info={"tdxModuleIdentities": None}))


@pytest.mark.spec("DCAP-20")
def test_a_module_is_named_in_either_case() -> None:
    modules = [module("tdx_0a", level("UpToDate", 1)), module("TDX_0B", level("OutOfDate", 1))]
    made = intel().but(tcb_info={"tdxModuleIdentities": modules})
    assert made.but(body={"tee_tcb_svn": svn(1, 10, 2)}).verify().statuses["tdx_module"] == "UpToDate"
    assert made.but(body={"tee_tcb_svn": svn(1, 11, 2)}).verify().statuses["tdx_module"] == "OutOfDate"
    twice = made.but(tcb_info={"tdxModuleIdentities": [*modules, module("TDX_0A", level("UpToDate", 0))]})
    refused("tcb-info-format", twice, FormatError)


@pytest.mark.spec("DCAP-20")
def test_a_module_without_a_major_version_is_judged_by_the_platforms_levels() -> None:
    made = intel().but(body={"tee_tcb_svn": svn(5, 0, 2)}, tcb_info={"tdxModuleIdentities": None})
    claims = made.verify()
    assert claims.statuses == {"platform": "UpToDate", "qe": "UpToDate"}
    for lower in ((4, 0, 2), (5, 0, 1)):
        refused("tcb-unsupported", made.but(body={"tee_tcb_svn": svn(*lower)}))


OTHER = {"mrsigner": "01" + "00" * 47}


@pytest.mark.spec("DCAP-20")
@pytest.mark.parametrize(
    ("versions", "info"),
    [
        ((5, 0, 2), {"tdxModule": MODULES[0] | OTHER}),
        ((6, 1, 2), {"tdxModuleIdentities": [module("TDX_01", level("UpToDate", 6), **OTHER)]}),
        ((6, 1, 2), {"tdxModuleIdentities": [module("TDX_01", level("UpToDate", 6), attributes="01" + "00" * 7)]}),
        ((5, 0, 2), {"tdxModule": MODULES[0] | {"attributes": "01" + "00" * 7}}),
    ],
)
def test_a_module_of_another_signer_or_with_other_attributes(versions: tuple[int, ...], info: dict[str, Any]) -> None:
    made = intel().but(body={"tee_tcb_svn": svn(*versions)})
    made.verify()
    refused("tdx-module-mismatch", made.but(tcb_info=info))


@pytest.mark.spec("DCAP-20")
def test_the_modules_signer_and_attributes_in_the_report() -> None:
    for field, size in (("mrsignerseam", 48), ("seam_attributes", 8)):
        for at in (0, size - 1):
            value = bytes(at) + b"\1" + bytes(size - 1 - at)
            refused("tdx-module-mismatch", intel().but(body={field: value}))
    # The module's entry may name a signer other than zero, and then it is that one.
    signed = [module("TDX_01", level("UpToDate", 6), **OTHER)]
    made = intel().but(
        tcb_info={"tdxModuleIdentities": signed}, body={"mrsignerseam": bytes.fromhex(OTHER["mrsigner"])}
    )
    assert made.verify().tcb_status == "UpToDate"
    # A mask hides no attribute, as long as no attribute has a meaning.
    hidden = [module("TDX_01", level("UpToDate", 6), attributesMask="00" * 8)]
    refused(
        "tdx-module-mismatch",
        intel().but(tcb_info={"tdxModuleIdentities": hidden}, body={"seam_attributes": b"\1" + bytes(7)}),
    )


# TD preserving updates.


@pytest.mark.spec("DCAP-21")
@pytest.mark.parametrize(
    ("launch", "current", "status"),
    [
        ((6, 1, 3), (6, 1, 3), "UpToDate"),
        ((4, 1, 3), (6, 1, 3), "TDRelaunchAdvised"),
        ((4, 1, 3), (3, 3, 3), "TDRelaunchAdvised"),
        ((4, 1, 3), (4, 1, 3), "OutOfDate"),
        ((6, 1, 3), (4, 1, 3), "OutOfDate"),
        ((4, 1, 2), (6, 1, 3), "TDRelaunchAdvised"),
        ((6, 1, 2), (6, 1, 3), "SWHardeningNeeded"),
        ((6, 1, 1), (6, 1, 3), "TDRelaunchAdvised"),
        ((6, 1, 1), (6, 1, 2), "TDRelaunchAdvised"),
    ],
)
def test_a_domain_that_outlived_an_update(launch: tuple[int, ...], current: tuple[int, ...], status: str) -> None:
    levels = [
        platform_level(s, tdx=(5, 0, t)) for s, t in (("UpToDate", 3), ("SWHardeningNeeded", 2), ("OutOfDate", 1))
    ]
    body = {"tee_tcb_svn": svn(*launch), "tee_tcb_svn2": svn(*current)}
    claims = intel(5, 3).but(tcb_info={"tcbLevels": levels}, body=body).verify()
    assert claims.tcb_status == status
    assert ("relaunch-advised" in claims.remarks) is status.startswith("TDRelaunch")
    # Reports without the second set of versions know nothing of updates.
    without = intel(5, 2).but(tcb_info={"tcbLevels": levels}, body={"tee_tcb_svn": svn(*launch)}).verify()
    assert "relaunch-advised" not in without.remarks


@pytest.mark.spec("DCAP-21")
def test_relaunch_and_configuration() -> None:
    levels = [
        platform_level(s, tdx=(5, 0, t)) for s, t in (("ConfigurationNeeded", 3), ("OutOfDateConfigurationNeeded", 1))
    ]
    made = intel(5, 3).but(tcb_info={"tcbLevels": levels})
    for launch, current in (((4, 1, 3), (6, 1, 3)), ((6, 1, 1), (6, 1, 3))):
        claims = made.but(body={"tee_tcb_svn": svn(*launch), "tee_tcb_svn2": svn(*current)}).verify()
        assert claims.tcb_status == "TDRelaunchAdvisedConfigurationNeeded"
        assert "relaunch-advised" in claims.remarks


# The quoting enclave.


@pytest.mark.spec("DCAP-16", "DCAP-21")
@pytest.mark.parametrize(
    ("status", "converged"),
    [
        ("OutOfDate", "OutOfDate"),
        ("ConfigurationNeeded", "ConfigurationNeeded"),
        ("OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
    ],
)
def test_the_standing_of_the_quoting_enclave_counts(status: str, converged: str) -> None:
    levels = [level("UpToDate", 5), level(status, 4, "INTEL-SA-9", date="2024-01-01T00:00:00Z")]
    claims = intel().but(qe_identity={"tcbLevels": levels}).verify()
    assert (claims.tcb_status, claims.statuses["qe"]) == (converged, status)
    assert claims.advisories == ("INTEL-SA-9",)
    assert claims.tcb_date == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.spec("DCAP-16", "DCAP-17", "DCAP-19")
def test_a_quoting_enclave_that_is_revoked_or_older_than_all() -> None:
    refused("tcb-revoked", intel().but(qe_identity={"tcbLevels": [level("Revoked", 4)]}), RevokedError)
    refused("tcb-unsupported", intel().but(qe_identity={"tcbLevels": [level("UpToDate", 5)]}))


@pytest.mark.spec("DCAP-16")
@pytest.mark.parametrize(
    ("identity", "code"),
    [
        ({"mrsigner": "00" * 32}, "qe-mrsigner"),
        ({"isvprodid": 1}, "qe-product"),
        ({"miscselect": "01000000"}, "qe-misc-select"),
        ({"attributes": "10" + "00" * 15}, "qe-attributes"),
        # Both values are compared under the mask alone.
        ({"attributesMask": "00" * 16}, "qe-attributes"),
        ({"id": "QE"}, "qe-identity-mismatch"),
    ],
)
def test_another_quoting_enclave_than_the_vendors(identity: dict[str, Any], code: str) -> None:
    refused(code, intel().but(qe_identity=identity))


@pytest.mark.spec("DCAP-16")
def test_the_mask_applies_to_misc_select_in_the_order_of_its_bytes() -> None:
    made = intel().but(qe={"misc_select": bytes.fromhex("d182b18c")})
    refused("qe-misc-select", made)
    assert made.but(qe_identity={"miscselect": "D182B18C"}).verify().tcb_status == "UpToDate"
    assert made.but(qe_identity={"miscselectMask": "00000000"}).verify().tcb_status == "UpToDate"
    masked = {"miscselectMask": "FF000000", "miscselect": "d1000000"}
    assert made.but(qe_identity=masked).verify().tcb_status == "UpToDate"


# Older documents.


def version_2(made: Intel) -> Intel:
    """TCB info in the form of the PCS API version 3."""
    levels = []
    for old in made.tcb_info["tcbLevels"]:
        svns = {f"sgxtcbcomp{i + 1:02}svn": c["svn"] for i, c in enumerate(old["tcb"]["sgxtcbcomponents"])}
        levels.append(old | {"tcb": svns | {"pcesvn": old["tcb"]["pcesvn"]}})
    return made.but(tcb_info={"id": None, "version": 2, "tcbLevels": levels})


@pytest.mark.spec("DCAP-7", "DCAP-18")
def test_tcb_info_of_version_2() -> None:
    assert version_2(intel(3, 1)).verify().tcb_status == "UpToDate"
    for at in range(1, 17):
        old = version_2(intel(3, 1))
        tcb = old.tcb_info["tcbLevels"][0]["tcb"]
        higher = old.but(tcb_info={"tcbLevels": [level_with(old, tcb | {f"sgxtcbcomp{at:02}svn": 3})]})
        refused("tcb-unsupported", higher)
        missing = {k: v for k, v in tcb.items() if k != f"sgxtcbcomp{at:02}svn"}
        refused("tcb-info-format", old.but(tcb_info={"tcbLevels": [level_with(old, missing)]}), FormatError)
    # It exists for SGX alone, and has no id.
    refused("tcb-info-mismatch", replace(intel(), tcb_info=version_2(intel(3, 1)).tcb_info))
    refused("tcb-info-format", version_2(intel(3, 1)).but(tcb_info={"id": "SGX"}), FormatError)


def level_with(made: Intel, tcb: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = made.tcb_info["tcbLevels"][0]
    return first | {"tcb": tcb}


@pytest.mark.spec("DCAP-7", "DCAP-16")
@pytest.mark.parametrize(("isvsvn", "status"), [(8, "UpToDate"), (7, "UpToDate"), (9, "OutOfDate")])
@pytest.mark.parametrize("name", [None, "QE"])
def test_qe_identity_of_version_1(isvsvn: int, status: str, name: str | None) -> None:
    old = {"id": name, "version": 1, "isvsvn": isvsvn, "tcbLevels": None, "tcbEvaluationDataNumber": None}
    claims = intel(3, 1).but(qe_identity=old).verify()
    assert (claims.statuses["qe"], claims.tcb_status) == (status, status)
    assert claims.details["qe_evaluation_number"] is None
    assert claims.tcb_date == datetime(2026, 2, 11, tzinfo=UTC)


@pytest.mark.spec("DCAP-7")
def test_qe_identity_of_version_1_is_for_sgx() -> None:
    old = {"id": "TD_QE", "version": 1, "isvsvn": 4}
    refused("qe-identity-format", intel().but(qe_identity=old), FormatError)


# What is told.

Flag = tuple[tuple[int, int], dict[str, bytes], set[str]]
FLAGS: list[Flag] = [
    ((4, 2), {"td_attributes": bytes(8)}, {"sept-ve-enabled"}),
    ((4, 2), {"td_attributes": struct.pack("<Q", 1 << 28 | 1 << 29)}, {"migratable", "hidden-service-td"}),
    ((5, 2), {"td_attributes": struct.pack("<Q", 1 << 28 | 1 << 29)}, {"migratable", "hidden-service-td"}),
    ((5, 3), {"td_attributes": struct.pack("<Q", 1 << 28 | 1 << 29)}, {"migratable"}),
    ((4, 2), {"td_attributes": struct.pack("<Q", 1 << 28 | 1 << 30 | 1 << 63)}, set()),
    ((4, 2), {"td_attributes": struct.pack("<Q", 1 << 28 | 1 << 40)}, {"unknown-attributes"}),
    ((5, 3), {"mrservicetd": bytes(47) + b"\1"}, {"service-td"}),
    ((3, 1), {"attributes": struct.pack("<QQ", 5 | 1 << 7, 0xE7)}, set()),
    ((3, 1), {"attributes": struct.pack("<QQ", 5 | 1 << 3, 3)}, {"unknown-attributes"}),
    ((3, 1), {"attributes": struct.pack("<QQ", 5 | 1 << 63, 3)}, {"unknown-attributes"}),
]


@pytest.mark.spec("DCAP-23")
@pytest.mark.parametrize(("kind", "body", "remarks"), FLAGS)
def test_remarks_of_the_body(kind: tuple[int, int], body: dict[str, bytes], remarks: set[str]) -> None:
    claims = intel(*kind).but(body=body).verify()
    assert claims.remarks == remarks
    assert claims.tcb_status == "UpToDate"


@pytest.mark.spec("DCAP-22")
@pytest.mark.parametrize("bit", range(8))
def test_a_domain_under_debug(bit: int) -> None:
    made = intel().but(body={"td_attributes": struct.pack("<Q", 1 << 28 | 1 << bit)})
    assert parse_quote(made.quote()).debug
    assert made.verify().debug


@pytest.mark.spec("DCAP-22")
def test_an_enclave_under_debug() -> None:
    for version, body_type in ((3, 1), (4, 1), (5, 1)):
        claims = intel(version, body_type).but(body={"attributes": struct.pack("<QQ", 7, 3)}).verify()
        assert (claims.debug, claims.tcb_status) == (True, "UpToDate")


def test_domains_have_other_debug_bits_than_enclaves() -> None:
    assert not intel().but(body={"td_attributes": SEPT_VE_DISABLE}).verify().debug


@pytest.mark.spec("DCAP-24")
def test_the_measurements_of_a_domain_are_all_its_fields() -> None:
    for body_type in (2, 3):
        claims = intel(5, body_type).verify()
        assert set(claims.measurements) == {name for name, _, _ in BODIES[body_type]} - {"report_data"}
    sgx = intel(3, 1).but(body={"config_id": b"c" * 64, "isv_prod_id": b"\2\1", "config_svn": b"\4\3"}).verify()
    assert sgx.measurements["isv_prod_id"] == 258
    assert (sgx.details["config_id"], sgx.details["config_svn"]) == ((b"c" * 64).hex(), 772)


@pytest.mark.spec("DCAP-24")
def test_advisories_of_all_parts_and_the_oldest_level() -> None:
    levels = [
        platform_level("SWHardeningNeeded", "INTEL-SA-P", "INTEL-SA-1", tdx=(5, 0, 2), date="2025-02-02T00:00:00Z")
    ]
    made = intel(5, 3).but(
        tcb_info={"tcbLevels": levels},
        qe_identity={"tcbLevels": [level("UpToDate", 4, "INTEL-SA-Q", date="2024-03-03T00:00:00Z")]},
        body={"tee_tcb_svn": svn(4, 1, 2), "tee_tcb_svn2": svn(1, 3, 2)},
    )
    claims = made.verify()
    assert claims.advisories == ("INTEL-SA-1", "INTEL-SA-3", "INTEL-SA-P", "INTEL-SA-Q")
    assert claims.tcb_date == datetime(2024, 3, 3, tzinfo=UTC)
    assert claims.details["advisories"]["qe"] == ["INTEL-SA-Q"]
    assert claims.details["advisories"]["current_tdx_module"] == ["INTEL-SA-3"]


Period = Callable[[Intel, str, str], Intel]
PERIODS: list[Period] = [
    lambda i, a, b: i.but(tcb_info={"issueDate": a, "nextUpdate": b}),
    lambda i, a, b: i.but(qe_identity={"issueDate": a, "nextUpdate": b}),
]


@pytest.mark.spec("DCAP-13", "DCAP-24")
@pytest.mark.parametrize("change", PERIODS)
def test_the_window_is_that_of_its_narrowest_part(change: Period) -> None:
    begin, end = NOW + timedelta(hours=1), NOW + timedelta(days=2)
    made = change(intel(), f"{begin:%Y-%m-%dT%H:%M:%SZ}", f"{end:%Y-%m-%dT%H:%M:%SZ}")
    claims = made.but(now=begin).verify()
    assert (claims.valid_from, claims.valid_until) == (begin, end)
    assert made.but(now=end).verify() == claims
    for now in (begin - timedelta(seconds=1), end + timedelta(seconds=1)):
        with pytest.raises(ExpiredError):
            made.but(now=now).verify()
    assert claims.oldest_issue_date == NOW


def test_endorsements_say_how_old_they_are() -> None:
    given = intel().but(tcb_info={"issueDate": "2026-02-01T00:00:00Z"}).endorsements()
    assert parse_endorsements(given).oldest_issue_date == datetime(2026, 2, 1, tzinfo=UTC)


def test_sizes_of_bodies() -> None:
    assert {kind: size_of(layout) for kind, layout in BODIES.items()} == {1: 384, 2: 584, 3: 648}
