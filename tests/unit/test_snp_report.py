"""The shape of SEV-SNP reports: the table, versions, reserved bits, sizes. Nothing is verified here."""

from __future__ import annotations

import contextlib
import random

import pytest
from tests._amd import Amd

from conclave.attestation.snp import Report, parse_report
from conclave.attestation.snp.report import FIELDS, SIGNED, SIZE
from conclave.errors import FormatError

# What each version holds to be reserved, as AMD's tables have it, written again by hand.
RESERVED = {
    2: ((0x4C, 0x50), (0x188, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x1F8, 0x2A0), (0x330, 0x4A0)),
    3: ((0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x1F8, 0x2A0), (0x330, 0x4A0)),
    5: ((0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0), (0x330, 0x4A0)),
}


def refused(raw: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        parse_report(raw)
    return caught.value.code


@pytest.mark.spec("SNP-1")
def test_the_fields_tile_the_structure() -> None:
    at = 0
    for field in FIELDS:
        assert field.offset == at, field.name
        at += field.size
    assert at == SIZE == 1184
    assert next(f.offset for f in FIELDS if f.name == "signature_r") == SIGNED == 672
    assert len({f.name for f in FIELDS}) == len(FIELDS)


def test_the_fields_are_where_the_layout_says() -> None:
    report = parse_report(Amd(fields={"guest_svn": 7, "family_id": bytes(16), "chip_id": bytes(range(64))}).report())
    assert report.field("report_data") == bytes(range(64)) == report.raw[0x50:0x90]
    assert report.field("measurement") == report.raw[0x90:0xC0]
    assert report.number("guest_svn") == 7
    assert report.signing_key == "VCEK"
    assert report.cpuid == bytes((0x19, 1, 1))
    assert not report.debug
    assert not report.mask_chip_key


def test_the_signature_is_turned_around() -> None:
    r, s = bytes(range(1, 49)), bytes(range(101, 149))
    raw = Amd(fields={"signature_r": r[::-1] + bytes(24), "signature_s": s[::-1] + bytes(24)}).report()
    assert parse_report(raw).signature == r + s


@pytest.mark.spec("SNP-1")
def test_every_other_size_is_refused() -> None:
    raw = Amd().report()
    for size in range(len(raw)):
        assert refused(raw[:size]) == "report-format"
    assert refused(raw + b"\0") == "report-format"
    assert refused(raw * 2) == "report-format"


@pytest.mark.spec("SNP-1")
@pytest.mark.parametrize("version", [0, 1, 4, 6, 7, 0x02000000, 0xFFFFFFFF])
def test_other_versions_are_refused_by_name(version: int) -> None:
    assert refused(Amd(fields={"version": version}).report()) == "report-version"


@pytest.mark.spec("SNP-2")
@pytest.mark.parametrize("version", [2, 3, 5])
def test_reserved_bytes_are_zero(version: int) -> None:
    raw = Amd(fields={"version": version}).report()
    parse_report(raw)
    spare = {at for begin, end in RESERVED[version] for at in range(begin, end)}
    for at in range(0x188, SIZE):
        for bit in (1, 0x80):
            changed = bytearray(raw)
            changed[at] ^= bit
            if at in spare:
                assert refused(bytes(changed)) == "report-format", hex(at)
            elif at < 0x2A0:
                parse_report(bytes(changed))
    for at in range(0x4C, 0x50):
        assert refused(raw[:at] + b"\1" + raw[at + 1 :]) == "report-format"


@pytest.mark.spec("SNP-3")
@pytest.mark.parametrize(("version", "highest"), [(2, 24), (3, 24), (5, 25)])
def test_the_guest_policy_has_no_unknown_bit(version: int, highest: int) -> None:
    def with_policy(policy: int) -> bytes:
        return Amd(fields={"version": version, "policy": policy}).report()

    for bit in range(64):
        raw = with_policy(0x20000 | 1 << bit)
        if bit > highest:
            assert refused(raw) == "report-format"
        else:
            assert parse_report(raw).debug == (bit == 19)
    assert refused(with_policy(0)) == "report-format"
    assert refused(with_policy(0x1FFFFFF & ~0x20000)) == "report-format"


@pytest.mark.spec("SNP-3")
def test_the_privilege_level_is_one_of_four() -> None:
    for level in range(4):
        assert parse_report(Amd(fields={"vmpl": level}).report()).number("vmpl") == level
    for level in (4, 255, 0xFFFFFFFF):
        assert refused(Amd(fields={"vmpl": level}).report()) == "report-format"


@pytest.mark.spec("SNP-3")
def test_platform_bits_that_are_not_documented_are_told() -> None:
    raw = Amd(fields={"platform_info": 2**64 - 1}).report()
    assert parse_report(raw).number("platform_info") == 2**64 - 1


@pytest.mark.spec("SNP-4")
def test_the_algorithm_is_the_one_that_exists() -> None:
    for algorithm in (0, 2, 0x01000000):
        assert refused(Amd(fields={"signature_algorithm": algorithm}).report()) == "report-format"


@pytest.mark.spec("SNP-4")
def test_kinds_of_key() -> None:
    said = {}
    for number in range(8):
        raw = Amd(fields={"key_info": number << 2 | 3}).report()
        if number in (0, 1, 7):
            said[number] = parse_report(raw).signing_key
            assert parse_report(raw).mask_chip_key
        else:
            assert refused(raw) == "report-format"
    assert said == {0: "VCEK", 1: "VLEK", 7: "none"}
    for bit in range(5, 32):
        assert refused(Amd(fields={"key_info": 1 << bit}).report()) == "report-format"


@pytest.mark.spec("SNP-4")
@pytest.mark.parametrize("name", ["signature_r", "signature_s"])
def test_the_numbers_of_a_signature_have_48_bytes(name: str) -> None:
    for at in range(48, 72):
        number = bytearray(72)
        number[at] = 1
        assert refused(Amd(fields={name: bytes(number)}).report()) == "report-format"
    parse_report(Amd(fields={name: b"\xff" * 48 + bytes(24)}).report())


def test_any_bytes_of_the_size_give_a_report_or_an_error() -> None:
    chance = random.Random(1)
    raw = Amd().report()
    for _ in range(2000):
        data = bytearray(raw)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(SIZE)] = chance.randrange(256)
        with contextlib.suppress(FormatError):
            assert isinstance(parse_report(bytes(data)), Report)
