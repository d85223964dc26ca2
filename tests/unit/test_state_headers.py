"""What a host reads of sealed state is what a log writes, field by field."""

from __future__ import annotations

import pytest
from tests._stored import BUNDLE, LEVEL, change, new_log

from conclave._stateheader import CHUNK_HEADER, parse_chunk, parse_record
from conclave.errors import FormatError


def test_records_of_a_log() -> None:
    log, entries = new_log()
    entries += [log.commit(change(number)) for number in range(3)]
    headers = [parse_record(entry) for entry in entries]
    assert [header.version for header in headers] == [0, 1, 2, 3]
    assert [header.counter for header in headers] == [0, 1, 2, 3]
    boot = headers[0].boot
    assert boot is not None
    assert (boot.log_id, boot.bundle_id, boot.level, boot.boot_id) == (log.log_id, BUNDLE, LEVEL, log.boot)
    assert all(header.boot is None for header in headers[1:])


def test_chunks_of_a_snapshot() -> None:
    log, _ = new_log()
    log.commit(change(1))
    *chunks, manifest = log.snapshot()
    assert chunks
    for index, data in enumerate(chunks, 1):
        header = parse_chunk(data)
        assert (header.index, header.version, header.boot) == (index, 1, None)
        assert header.snapshot_id == parse_chunk(manifest).snapshot_id
    whole = parse_chunk(manifest)
    assert (whole.index, whole.version) == (0, 1)
    assert whole.boot is not None
    assert (whole.boot.log_id, whole.boot.boot_id) == (log.log_id, log.boot)


def test_a_chunk_whose_kind_and_index_do_not_go_together() -> None:
    log, _ = new_log()
    *_, manifest = log.snapshot()
    magic, kind, zero, snapshot, index, *rest = CHUNK_HEADER.unpack_from(manifest)
    for other in ((3 - kind, index), (kind, index + 1), (0, index), (3, index + 1)):
        with pytest.raises(FormatError):
            parse_chunk(
                CHUNK_HEADER.pack(magic, other[0], zero, snapshot, other[1], *rest) + manifest[CHUNK_HEADER.size :]
            )
