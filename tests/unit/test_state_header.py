"""What the host reads of sealed state is what an enclave writes, and nothing of it needs a key."""

from __future__ import annotations

import asyncio

import pytest
from tests._stored import BUNDLE, LEVEL, change, new_log

from conclave._stateheader import (
    BOOT_HEADER,
    CHUNK_HEADER,
    COMMIT_HEADER,
    RECORD_HEADER,
    SNAPSHOT_HEADER,
    next_digest,
    parse_chunk,
    parse_commit,
    parse_record,
)
from conclave.errors import FormatError
from conclave.host.states import MemoryStates, Snapshot
from conclave.host.states.survey import survey


@pytest.mark.spec("CHAN-17", "STORE-27")
def test_records_of_a_log() -> None:
    log, entries = new_log()
    entries += [log.commit(change(number)) for number in range(5)]
    digest = bytes(32)
    for version, entry in enumerate(entries):
        header = parse_record(entry)
        assert header.version == header.counter == version
        assert (header.boot is not None) == (version == 0)
        digest = next_digest(log.log_id, version, digest, entry)
        for size in (0, 3, RECORD_HEADER.size, len(entry) - 1):
            with pytest.raises(FormatError):
                parse_record(entry[:size])
        with pytest.raises(FormatError):
            parse_record(entry + b"x")
        for at in (0, 4, 5, 7, 24):
            flipped = bytearray(entry)
            flipped[at] ^= 0x80
            with pytest.raises(FormatError):
                parse_record(bytes(flipped))
    assert digest == log.digest
    boot = parse_record(entries[0]).boot
    assert boot is not None
    assert (boot.log_id, boot.bundle_id, boot.level, boot.boot_id) == (log.log_id, BUNDLE, LEVEL, log.boot)


@pytest.mark.spec("CHAN-20", "STORE-27")
def test_snapshots_and_a_survey_of_them() -> None:
    log, entries = new_log()
    entries += [log.commit(change(number)) for number in range(50)]
    chunks = list(log.snapshot())
    after = [log.commit(change(100))]
    headers = [parse_chunk(data) for data in chunks]
    assert [header.index for header in headers] == [*range(1, len(chunks)), 0]
    assert {header.version for header in headers} == {50}
    assert headers[-1].boot is not None
    assert headers[-1].boot.log_id == log.log_id
    assert all(header.boot is None for header in headers[:-1])
    for data in chunks:
        for size in (0, CHUNK_HEADER.size, len(data) - 1):
            with pytest.raises(FormatError):
                parse_chunk(data[:size])

    async def work() -> None:
        store = MemoryStates()
        packed = [COMMIT_HEADER.pack(version, len(entry)) + entry for version, entry in enumerate([*entries, *after])]
        await store.append(list(enumerate(packed)))
        found = await survey(store)
        assert (found.version, found.records, found.log_id, found.digest) == (51, 52, log.log_id, log.digest)
        snapshot = Snapshot(headers[0].snapshot_id, 50)
        for header, data in zip(headers[:-1], chunks[:-1], strict=True):
            await store.put_chunk(snapshot, header.index, data)
        await store.complete(snapshot, chunks[-1])
        found = await survey(store)
        assert (found.version, found.records, found.digest) == (51, 1, None)
        assert found.snapshot is not None
        assert found.snapshot.chunks == len(chunks) - 1

    asyncio.run(work())


def test_a_commit_in_its_parts() -> None:
    _, (entry,) = new_log()
    payload = COMMIT_HEADER.pack(0, len(entry)) + entry
    assert parse_commit(payload).posts == b""
    assert parse_commit(payload + b"posts").posts == b"posts"
    assert parse_commit(payload).record == entry
    for bad in (payload[:-1], payload[:11], b"", COMMIT_HEADER.pack(1, len(entry)) + entry):
        with pytest.raises(FormatError):
            parse_commit(bad)


def test_sizes_of_the_specification() -> None:
    sizes = {RECORD_HEADER: 28, BOOT_HEADER: 162, CHUNK_HEADER: 48, COMMIT_HEADER: 12, SNAPSHOT_HEADER: 28}
    assert {layout.size for layout in sizes} == set(sizes.values())
    assert all(layout.size == size for layout, size in sizes.items())
