"""Records and chunks: their layout, what fits, what a host sees of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from conclave._crypto import TAG_SIZE, Secret
from conclave.errors import DecryptionError, FormatError
from conclave.mail.padding import padme
from conclave.persistence import log as _log
from conclave.persistence import records, snapshots
from conclave.persistence.context import CONTEXT_SIZE, LABEL_CONTEXT, MAX_BOOTS
from conclave.persistence.records import Boot, Change, Keys, open_entry, pad, parse_entry, seal_entry, unpad
from conclave.persistence.snapshots import CHUNK_CONTENT, divide, parse_chunk

SPEC = (Path(__file__).parents[3] / "spec" / "state.md").read_text()
KEYS = Keys(Secret.random())
LOG = bytes(range(32))


def sealed(change: Change, counter: int, *, version: int = 5) -> bytes:
    return seal_entry(pad(change), key=KEYS.record, log=LOG, version=version, counter=counter, previous=bytes(32))


def test_the_spec_has_our_constants() -> None:
    values = [
        records.MAGIC.decode(),
        snapshots.MAGIC.decode(),
        *(label.decode() for label in (records.LABEL_DIGEST, records.LABEL_RECORD, records.LABEL_SNAPSHOT)),
        *(label.decode() for label in (records.LABEL_WRAP, _log.LABEL_CONTEXT_KEY, _log.LABEL_MARK_KEY, LABEL_CONTEXT)),
    ]
    table = SPEC.partition("## 11. Constants")[2].partition("## 12")[0]
    assert [value for value in table.split("`")[1::2]] == values
    assert f"context | {CONTEXT_SIZE} bytes" in table
    sizes = (records.HEADER.size, records.BOOT_PART.size, snapshots.HEADER.size)
    assert "{}, {}, {} bytes".format(*sizes) in table
    limits = SPEC.partition("## 9. Limits")[2].partition("## 10")[0]
    assert f"16 MiB + {records.MAX_ENTRY - 16 * 2**20} bytes" in limits
    assert f"16 MiB + {snapshots.MAX_CHUNK - 16 * 2**20} bytes" in limits
    assert f"{MAX_BOOTS:,}: {24 * MAX_BOOTS // 10**6} MB" in limits
    assert records.MAX_SEALS == 2**32
    assert f"up to {CHUNK_CONTENT // 1024} KiB" in SPEC


def rows(heading: str) -> list[tuple[int, int]]:
    """Offsets and sizes of the first table behind a heading."""
    table = SPEC.partition(heading)[2].partition("\n\n|")[2].partition("\n\n")[0]
    cells = [line.split("|") for line in ("|" + table).splitlines()[2:]]
    return [(int(c[1]), int(c[2])) for c in cells if c[1].strip() and c[2].strip().isdigit()]


@pytest.mark.parametrize(
    ("heading", "size"),
    [("## 4. Records", 28 + 162), ("## 5. Snapshots", 48 + 162), ("## 6. Contexts", CONTEXT_SIZE)],
)
def test_the_fields_tile_the_structure(heading: str, size: int) -> None:
    end = 0
    for offset, length in rows(heading):
        assert offset == end
        end += length
    assert end == size


@pytest.mark.spec("STATE-4")
@pytest.mark.parametrize("size", [0, 1, 200, 300, 5000, 10**6])
def test_a_record_has_a_padded_size(size: int) -> None:
    """And no other: what differs within a size cannot be seen."""
    change = Change(map=[("k", bytes(size))])
    plain = pad(change)
    assert len(plain) == padme(len(plain)) >= 256
    assert len(plain) <= max(256, (size + 32) * 1.12)
    assert len(sealed(change, 10 + size)) == records.HEADER.size + len(plain) + TAG_SIZE
    assert unpad(plain, Change, "a record") == change


@pytest.mark.spec("STATE-4")
def test_records_of_one_size_look_alike() -> None:
    short, long = sealed(Change(), 1), sealed(Change(map=[("name", b"x" * 100)], posts=[(bytes(16), 7, bytes(32))]), 2)
    assert len(short) == len(long)
    assert short[:16] == long[:16]


@pytest.mark.spec("STATE-4")
@pytest.mark.parametrize(
    "plain", [b"", b"\0\0\0", bytes(255), bytes(4) + b"\1" * 252, b"\xff" * 256, pad(Change()) * 2]
)
def test_other_padding_is_refused(plain: bytes) -> None:
    with pytest.raises(FormatError):
        unpad(plain, Change, "a record")


@pytest.mark.spec("STATE-7")
def test_the_largest_change() -> None:
    room = records.MAX_PLAIN - 4 - len(pad(Change(map=[("k", b"")])).rstrip(b"\0")) - 8
    largest = sealed(Change(map=[("k", bytes(room))]), 3)
    assert len(largest) <= records.MAX_ENTRY
    assert parse_entry(largest).version == 5
    with pytest.raises(ValueError, match=r"at most 16777212 bytes, not .*; change less at once"):
        pad(Change(map=[("k", bytes(records.MAX_PLAIN))]))


@pytest.mark.spec("STATE-6", "STATE-13")
@pytest.mark.parametrize(("parse", "least"), [(parse_entry, records.HEADER), (parse_chunk, snapshots.HEADER)])
def test_sizes_are_bounded_before_anything(parse: Callable[[bytes], object], least: struct.Struct) -> None:
    for data in (b"", b"CSR1", bytes(least.size - 1), bytes(snapshots.MAX_CHUNK + 1)):
        with pytest.raises(FormatError, match="bytes, not"):
            parse(data)
    with pytest.raises(FormatError, match="does not begin with"):
        parse(bytes(least.size))


@pytest.mark.spec("STATE-6", "STATE-13")
def test_a_ciphertext_has_a_tag() -> None:
    header = records.HEADER.pack(b"CSR1", records.CHANGE, bytes(3), 1, 1, 15) + bytes(15)
    with pytest.raises(FormatError, match="says that it has 43 bytes, and has 43"):
        parse_entry(header)
    header = snapshots.HEADER.pack(b"CSS1", snapshots.DATA, bytes(3), bytes(16), 1, 1, 1, 15) + bytes(15)
    with pytest.raises(FormatError, match="says that it has 63 bytes, and has 63"):
        parse_chunk(header)


@pytest.mark.spec("STATE-13")
def test_a_chunk_has_the_size_that_it_says() -> None:
    chunk = snapshots.HEADER.pack(b"CSS1", snapshots.DATA, bytes(3), bytes(16), 1, 1, 1, 20) + bytes(20)
    assert parse_chunk(chunk).index == 1
    for wrong in (chunk[:-1], chunk + b"\0"):
        with pytest.raises(FormatError, match=f"says that it has 68 bytes, and has {len(wrong)}"):
            parse_chunk(wrong)


@pytest.mark.spec("STATE-13")
@pytest.mark.parametrize(("kind", "index"), [(1, 1), (2, 0), (0, 1), (3, 1)])
def test_kind_and_index_of_a_chunk_go_together(kind: int, index: int) -> None:
    def head(kind: int, zero: bytes, index: int) -> bytes:
        return snapshots.HEADER.pack(b"CSS1", kind, zero, bytes(16), index, 1, 1, 20)

    part = bytes(162) if kind == 1 else b""
    with pytest.raises(FormatError, match="unknown kind, with the other kind's index, or with reserved bytes"):
        parse_chunk(head(kind, bytes(3), index) + part + bytes(20))
    assert parse_chunk(head(2, bytes(3), 1) + bytes(20)).index == 1
    for zero in (b"\1\0\0", b"\0\0\1"):
        with pytest.raises(FormatError, match="unknown kind, with the other kind's index, or with reserved bytes"):
            parse_chunk(head(2, zero, 1) + bytes(20))


@pytest.mark.spec("STATE-35")
def test_a_record_is_authentic_in_its_place_only() -> None:
    entry = parse_entry(sealed(Change(floor=1), 20))
    place = {"key": KEYS.record, "log": LOG, "previous": bytes(32)}
    assert open_entry(entry, Change, **place) == Change(floor=1)  # type: ignore[arg-type]
    other = {"key": Keys(Secret.random()).record, "log": bytes(32), "previous": b"\1" * 32}
    for name, value in {**other, "key ": KEYS.snapshot}.items():
        with pytest.raises(DecryptionError):
            open_entry(entry, Change, **place | {name.strip(): value})  # type: ignore[arg-type]


@pytest.mark.spec("STATE-3")
def test_a_boot_key_opens_for_its_boot_only() -> None:
    sealing, key = Secret.random(), Secret.random()
    facts = {"log": LOG, "bundle": bytes(32), "level": 7, "boot": bytes(16)}
    boot = Boot.begin(**facts, key=key, sealing=sealing)  # type: ignore[arg-type]
    assert boot.unwrap(sealing).insecure_reveal() == key.insecure_reveal()
    again = Boot.begin(**facts, key=key, sealing=sealing)  # type: ignore[arg-type]
    assert again.wrapped != boot.wrapped
    assert key.insecure_reveal() not in boot.pack()
    packed = boot.pack()
    for at in range(len(packed)):
        changed = Boot.parse(packed[:at] + bytes((packed[at] ^ 1,)) + packed[at + 1 :])
        with pytest.raises(DecryptionError):
            changed.unwrap(sealing)
    with pytest.raises(DecryptionError):
        boot.unwrap(Secret.random())


@pytest.mark.spec("STATE-11")
def test_how_chunks_are_filled() -> None:
    assert list(divide([], [])) == []
    small = [(f"{i:08}", bytes(100)) for i in range(10_000)]
    names = [(b"%08d" % i, bytes(100)) for i in range(10_000)]
    parts = list(divide(small, names))
    assert [item for part in parts for item in part.map.items()] == small
    assert [item for part in parts for item in part.mail.items()] == names
    sizes = [len(pad(part)) for part in parts]
    assert max(sizes) <= CHUNK_CONTENT
    assert min(sizes[:-1]) > 0.9 * CHUNK_CONTENT
    assert next(divide([("b", bytes(2 * CHUNK_CONTENT))], [])).map
    # One chunk has both, and what is larger than a chunk has one to itself.
    assert sum(1 for part in parts if part.map and part.mail) == 1
    large = bytes(3 * CHUNK_CONTENT)
    parts = list(divide([("a", b""), ("b", large), ("c", b"")], [(b"d", large), (b"e", large)]))
    assert [(list(part.map), list(part.mail)) for part in parts] == [
        (["a"], []),
        (["b"], []),
        (["c"], []),
        ([], [b"d"]),
        ([], [b"e"]),
    ]


@pytest.mark.spec("STATE-11")
def test_keys_of_many_bytes_are_counted_as_such() -> None:
    parts = list(divide([("\U0001f600" * 200 + f"{i:08}", b"") for i in range(2000)], []))
    assert max(len(pad(part)) for part in parts) <= CHUNK_CONTENT
