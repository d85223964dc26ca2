"""The shape of NVIDIA reports: sizes, fixed fields, blocks, NVIDIA's own fields. Nothing is verified here."""

from __future__ import annotations

import contextlib
import random
import re
import struct
import time
from pathlib import Path

import pytest
from tests._nvidia import GPU_FIELDS, NONCE, Nvidia

from conclave.attestation.nvidia import parse_report
from conclave.attestation.nvidia.opaque import OWN
from conclave.attestation.nvidia.report import FIELDS, MAX_OPAQUE, MAX_SIZE
from conclave.errors import FormatError

SPEC = (Path(__file__).parents[2] / "spec" / "nvidia.md").read_text()
RECORD = 45


def refused(raw: bytes, code: str = "gpu-report-format") -> None:
    with pytest.raises(FormatError) as caught:
        parse_report(raw)
    assert caught.value.code == code


@pytest.mark.spec("GPU-1")
def test_the_fields_tile_what_stands_before_the_blocks() -> None:
    at = 0
    for field in FIELDS:
        assert field.offset == at, field.name
        assert field.value is None or len(field.value) == field.size
        at += field.size
    assert at == RECORD
    assert len({f.name for f in FIELDS}) == len(FIELDS)


@pytest.mark.spec("GPU-1", "GPU-2", "GPU-3", "GPU-4")
def test_what_is_read() -> None:
    case = Nvidia()
    report = parse_report(case.report())
    assert report.nonce == NONCE
    assert report.responder_nonce == bytes(range(200, 232))
    assert list(report.blocks) == list(range(1, 65))
    assert report.blocks[64] == b"\x40" * 48
    assert dict(report.opaque) == dict(GPU_FIELDS)
    assert report.signed == case.body()
    assert len(report.signature) == 96
    assert parse_report(bytearray(report.raw)) == report


@pytest.mark.spec("GPU-1")
@pytest.mark.parametrize("field", [f for f in FIELDS if f.value is not None], ids=lambda f: f.name)
def test_what_is_fixed_has_no_other_value(field: object) -> None:
    name, offset = field.name, field.offset  # type: ignore[attr-defined]
    for value in (0, 1, 2, 0x10, 0x12, 0x13, 0x80, 0xFE, 0xFF):
        if bytes([value]) != field.value:  # type: ignore[attr-defined]
            code = "gpu-report-version" if name.endswith("version") else "gpu-report-format"
            refused(Nvidia(patch={offset: bytes([value])}).report(), code)


@pytest.mark.spec("GPU-1", "GPU-2")
def test_every_other_size_is_refused() -> None:
    for case in (Nvidia(), Nvidia("LS_10", blocks={1: bytes(48)})):
        raw = case.report()
        for size in range(len(raw)):
            refused(raw[:size])
        refused(raw + b"\0")
        refused(raw * 2)
    refused(raw[:RECORD] + bytes(MAX_SIZE))


@pytest.mark.spec("GPU-2")
def test_sizes_that_do_not_add_up_are_refused() -> None:
    raw = Nvidia().report()
    record = int.from_bytes(raw[42:45], "little")
    for size in (0, 1, record - 55, record - 1, record + 1, record + 55, 0xFFFF, 0xFFFFFF):
        refused(Nvidia(patch={42: size.to_bytes(3, "little")}).report())
    at = RECORD + record + 32
    own = int.from_bytes(raw[at : at + 2], "little")
    for size in (0, 1, own - 1, own + 1, own + 96, 0xFFFF):
        refused(Nvidia(patch={at: size.to_bytes(2, "little")}).report())


@pytest.mark.spec("GPU-2")
def test_own_fields_are_bounded() -> None:
    room = MAX_OPAQUE - sum(4 + len(value) for value in GPU_FIELDS.values())
    assert parse_report(Nvidia(fields={35: bytes(room - 4)}).report())
    refused(Nvidia(fields={35: bytes(room - 3)}).report())


@pytest.mark.spec("GPU-2")
def test_a_report_has_a_largest_size() -> None:
    # More blocks than any driver's response can hold, each as it should be.
    blocks = {index: bytes(48) for index in range(1, 141)}
    assert parse_report(Nvidia(blocks=blocks).report())
    refused(Nvidia(blocks=blocks | {index: bytes(48) for index in range(141, 160)}).report())


BLOCKS = {
    "another specification": (1, b"\2"),
    "no specification": (1, b"\0"),
    "measurement smaller": (2, b"\x32"),
    "measurement larger": (2, b"\x34"),
    "raw instead of a digest": (4, b"\x81"),
    "a manifest": (4, b"\4"),
    "value smaller": (5, b"\x20"),
    "value larger": (5, b"\x40"),
    "value size in the wrong order": (5, b"\0\x30"),
    "index 0": (0, b"\0"),
}


@pytest.mark.spec("GPU-3")
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_another_form_is_refused(name: str) -> None:
    offset, value = BLOCKS[name]
    refused(Nvidia(patch={RECORD + offset: value}).report())
    if offset:
        refused(Nvidia(patch={RECORD + 63 * 55 + offset: value}).report())


@pytest.mark.spec("GPU-3")
def test_a_block_that_is_cut_short() -> None:
    raw = Nvidia().report()
    size = 64 * 55
    for cut in range(1, 55):
        record = (size - cut).to_bytes(3, "little") + raw[RECORD : RECORD + size - cut]
        refused(raw[:42] + record + raw[RECORD + size :])


@pytest.mark.spec("GPU-3")
def test_blocks_ascend() -> None:
    for first, second in ((2, 2), (3, 2), (1, 1)):
        refused(Nvidia(patch={RECORD: bytes([first]), RECORD + 55: bytes([second])}).report())
    # One may be missing; that is for the comparison to tell.
    assert 64 not in parse_report(Nvidia(patch={RECORD + 63 * 55: b"\x41"}).report()).blocks


@pytest.mark.spec("GPU-3")
def test_kinds_of_digests() -> None:
    for kind in range(4):
        assert parse_report(Nvidia(patch={RECORD + 4: bytes([kind])}).report())


@pytest.mark.spec("GPU-3")
def test_there_are_as_many_blocks_as_it_says() -> None:
    for count in (0, 1, 63, 65, 255):
        refused(Nvidia(patch={41: bytes([count])}).report())
    none = b"\x11\xe0\x01\xff" + bytes(33) + b"\x11\x60\0\0" + bytes(4) + bytes(34) + bytes(96)
    refused(none)


@pytest.mark.spec("GPU-4")
def test_a_field_is_there_once_and_whole() -> None:
    raw = Nvidia().report()
    at = RECORD + 64 * 55 + 34
    assert raw[at : at + 2] == b"\6\0"
    # The second one, 14, made a second 6.
    refused(Nvidia(patch={at + 12: b"\6"}).report())
    for size in (7, 9, 0xFF, 0xFFFF):
        refused(Nvidia(patch={at + 2: struct.pack("<H", size)}).report())


@pytest.mark.spec("GPU-4")
@pytest.mark.parametrize("end", [b"\7", b"\7\0", b"\7\0\0", b"\7\0\1\0"])
def test_a_field_that_is_cut_short(end: bytes) -> None:
    # A last field whose contents are the rest, so that the sizes around it still add up.
    at = RECORD + 64 * 55 + 34
    own = int.from_bytes(Nvidia(fields={99: end}).report()[at - 2 : at], "little")
    size = own - 4 - len(end)
    refused(Nvidia(fields={99: end}, patch={at + size + 2: b"\0\0"}).report())


@pytest.mark.spec("GPU-4")
def test_versions_of_own_fields() -> None:
    for value in (b"\0\0", b"\1\0", b"\1"):
        assert parse_report(Nvidia(fields={34: value}).report())
    for value in (b"\2\0", b"\0\1", b"\xff", b"\0" * 7 + b"\1"):
        refused(Nvidia(fields={34: value}).report(), "gpu-report-version")


@pytest.mark.spec("GPU-4")
def test_the_other_format_of_own_fields_is_refused_by_name() -> None:
    at = RECORD + 64 * 55 + 34
    refused(Nvidia(patch={at: b"NVDAOD"}).report(), "gpu-report-version")
    refused(Nvidia(patch={at: b"NVDAOE"}).report())


def test_random_changes_give_a_report_or_a_format_error() -> None:
    chance, raw = random.Random(7), Nvidia().report()
    begin = time.monotonic()
    for _ in range(300):
        changed = bytearray(raw)
        for _ in range(chance.randint(1, 20)):
            changed[chance.randrange(len(raw))] = chance.randrange(256)
        with contextlib.suppress(FormatError):
            assert parse_report(bytes(changed)).raw == changed
    assert time.monotonic() - begin < 10


@pytest.mark.spec("GPU-1")
def test_the_specification_has_the_same_fields() -> None:
    for field in FIELDS:
        value = f"`{field.value.hex().upper()}h`" if field.value else ""
        assert re.search(rf"^\| `{field.name}` \| {field.offset} \| {field.size} \| {value}", SPEC, re.MULTILINE)


@pytest.mark.spec("GPU-4")
def test_the_specification_has_the_same_own_fields() -> None:
    gpu, switch = OWN["gpu"], OWN["switch"]
    for number in sorted(gpu.keys() | switch.keys()):
        names = {t[number].name for t in (gpu, switch) if number in t}
        row = re.search(rf"^\| {number} \|([^|]*)\|([^|]*)\|", SPEC, re.MULTILINE)
        assert row is not None, number
        assert {n for n in re.findall(r"`(\w+)`", row[1] + row[2])} == names
