"""A witness's ledger over real stores: what is durable, what strangers may do, what a broken store leads to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from tests._witness import Branch

from conclave import _codec
from conclave._crypto import SigningKey
from conclave.errors import FormatError, StoreUnavailable
from conclave.host.answers import Refusal
from conclave.host.stores import BlobStore, open_store
from conclave.persistence.witness import (
    MAX_MESSAGE,
    Head,
    HeadRequest,
    Standing,
    Step,
    advance_request,
    log_id_of,
    read_answer,
)
from conclave.witness.app import Witness
from conclave.witness.keys import load_key, make_key
from conclave.witness.ledger import Bounds, Ledger
from conclave.witness.rate import MAX_NAMES, Buckets

pytestmark = pytest.mark.anyio
KEY = SigningKey(b"w" * 32)
LOG = SigningKey(b"l" * 32)
NONCE = bytes(32)


class Disk:
    """A store, and what of it would be there after the machine lost power: what `put` returned for."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self.durable: dict[str, bytes] = {}
        self.broken: Exception | None = None
        # Whether a write that fails was made nevertheless.
        self.half = False
        self.puts = 0

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        self.puts += 1
        if self.broken is not None and not self.half:
            raise self.broken
        etag = await self._store.put(name, data, expected=expected)
        if self.broken is not None:
            raise self.broken
        self.durable[name] = data
        return etag

    async def get(self, name: str) -> tuple[bytes, str] | None:
        return await self._store.get(name)

    async def list(self, prefix: str) -> list[str]:
        return await self._store.list(prefix)

    async def delete(self, name: str) -> None:
        raise AssertionError("a witness deletes nothing")

    async def close(self) -> None:
        await self._store.close()

    def holds(self, head: Head) -> bool:
        """Whether this state would be found after a loss of power."""
        return any(head.digest in data for data in self.durable.values())


@pytest.fixture(params=["file", "sqlite"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return Disk(open_store(f"{request.param}:{tmp_path / 'store'}"))


def ledger(disk: Disk, **options: Any) -> Ledger:
    time = options.pop("time", [0.0])
    return Ledger(disk, KEY, now=lambda: time[0], **options)


def advance(previous: Head | None, new: Head, key: SigningKey = LOG) -> bytes:
    step = Step(log_key=key.public, previous=previous, new=new)
    return _codec.encode(advance_request(key, step, NONCE))


def ask(key: SigningKey = LOG) -> bytes:
    return _codec.encode(HeadRequest(version=1, log_key=key.public, nonce=NONCE))


def read(answer: bytes, key: SigningKey = LOG) -> Standing | None:
    return read_answer(answer, key=KEY.public, log_key=key.public, nonce=NONCE)


async def refused(work: Awaitable[Any]) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        await work
    return caught.value.status, caught.value.word


def heads(count: int, key: SigningKey = LOG) -> list[Head]:
    branch = Branch(key)
    for _ in range(count - 1):
        branch.commit()
    return branch.heads


@pytest.mark.spec("WIT-4", "WIT-5")
async def test_a_log_advances_and_stays_across_processes(disk: Disk) -> None:
    first, second, third = heads(3)
    for _ in range(2):
        witness = ledger(disk)
        await witness.start()
        assert await witness.advance(advance(None, first)) == (True, await witness.head(ask()))
    assert (await witness.advance(advance(first, third)))[0]
    for wrong in (advance(first, second), advance(None, second), advance(first, Branch(LOG).commit())):
        taken, answer = await witness.advance(wrong)
        standing = read(answer)
        assert not taken
        assert standing is not None
        assert standing.step.new == third
    other = SigningKey.generate()
    assert read(await witness.head(ask(other)), other) is None
    await disk.close()


@pytest.mark.spec("WIT-7")
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("again", ["the same process", "the next one"])
async def test_no_answer_before_it_is_durable(disk: Disk, half: bool, again: str) -> None:
    first, second = heads(2)
    witness = ledger(disk)
    await witness.advance(advance(None, first))
    disk.broken, disk.half = StoreUnavailable("the disk refuses"), half
    assert await refused(witness.advance(advance(first, second))) == (503, "store")
    if again == "the next one":
        witness = ledger(disk)
        await witness.start()
    if half:
        # The step can be read, and is on no disk: nobody is told of it, whichever way they ask.
        assert await refused(witness.head(ask())) == (503, "store")
        assert await refused(witness.advance(advance(first, second))) == (503, "store")
        assert not disk.holds(second)
    disk.broken = None
    standing = read(await witness.head(ask()))
    assert standing is not None
    assert standing.step.new == (second if half else first)
    assert disk.holds(standing.step.new)
    assert (await witness.advance(advance(first, second)))[0]
    assert disk.holds(second)
    # What this process wrote, it does not write again to be asked for.
    puts = disk.puts
    for _ in range(3):
        await witness.head(ask())
    assert disk.puts == puts
    await disk.close()


@pytest.mark.spec("WIT-5", "WIT-7")
async def test_of_two_steps_at_one_time_one_is_taken(disk: Disk) -> None:
    """Many at once, at two processes with one store."""
    start = Branch(LOG)
    witnesses = ledger(disk), ledger(disk)
    await witnesses[0].advance(advance(None, start.newest))
    twins = [Branch(LOG, start).newest for _ in range(8)]
    done = await asyncio.gather(
        *(witnesses[n % 2].advance(advance(start.newest, twin)) for n, twin in enumerate(twins))
    )
    assert [taken for taken, _ in done].count(True) == 1
    standing = {read(answer) for _, answer in done}
    assert len(standing) == 1
    assert not witnesses[0]._turns
    await disk.close()


@pytest.mark.spec("WIT-8")
async def test_a_log_that_is_broken_concerns_no_other(disk: Disk) -> None:
    first, second = heads(2)
    other = SigningKey.generate()
    await ledger(disk).advance(advance(None, first))
    await ledger(disk).advance(
        advance(None, first, other),
    )
    await disk.put(f"log/{log_id_of(LOG.public).hex()}", disk.durable[f"log/{log_id_of(other.public).hex()}"])
    witness = ledger(disk)
    assert await refused(witness.head(ask())) == (500, "state")
    assert await refused(witness.advance(advance(first, second))) == (500, "state")
    assert (await witness.advance(advance(first, second, other)))[0]
    await disk.close()


# Strangers -----------------------------------------------------------------------------


@pytest.mark.spec("WIT-1", "WIT-3", "WIT-9")
async def test_what_is_refused_changes_nothing(disk: Disk) -> None:
    first, second = heads(2)
    witness = ledger(disk)
    stolen = _codec.encode(
        advance_request(SigningKey.generate(), Step(log_key=LOG.public, previous=None, new=first), NONCE)
    )
    for body, said in (
        (b"", (400, "format")),
        (advance(None, first)[:-1], (400, "format")),
        (advance(second, first), (400, "format")),
        (stolen, (403, "signature")),
    ):
        assert await refused(witness.advance(body)) == said
    assert await refused(witness.head(b"x")) == (400, "format")
    await witness.head(ask())
    assert not disk.puts
    await disk.close()


@pytest.mark.spec("WIT-9")
async def test_as_many_logs_as_there_may_be(disk: Disk) -> None:
    first, second = heads(2)
    others = [SigningKey.generate() for _ in range(4)]
    bounds = Bounds(logs=3, new_at_once=2, new_per_second=1)
    time = [0.0]
    witness = ledger(disk, bounds=bounds, time=time)
    for key in (LOG, others[0]):
        assert (await witness.advance(advance(None, first, key)))[0]
    assert await refused(witness.advance(advance(None, first, others[1]))) == (429, "rate")
    # Who is there is not concerned.
    assert (await witness.advance(advance(first, second)))[0]
    time[0] += 1
    assert (await witness.advance(advance(None, first, others[1])))[0]
    time[0] += 100
    again = ledger(disk, bounds=bounds, time=time)
    await again.start()
    for some in (witness, again):
        assert await refused(some.advance(advance(None, first, others[2]))) == (507, "full")
        assert (await some.advance(advance(first, second)))[0]
    await disk.close()


@pytest.mark.spec("WIT-9")
async def test_a_log_has_its_share_and_nobody_else_uses_it_up(disk: Disk) -> None:
    branch = Branch(LOG)
    other = SigningKey.generate()
    time = [0.0]
    witness = ledger(disk, bounds=Bounds(steps_at_once=2, steps_per_second=1), time=time)
    forged = _codec.encode(advance_request(other, Step(log_key=LOG.public, previous=None, new=branch.newest), NONCE))
    for _ in range(5):
        assert await refused(witness.advance(forged)) == (403, "signature")
    await witness.advance(advance(None, branch.newest))
    await witness.advance(advance(branch.newest, branch.commit()))
    late = advance(branch.newest, branch.commit())
    assert await refused(witness.advance(late)) == (429, "rate")
    # What it has is asked for without limit, and others go on.
    for _ in range(5):
        assert not (await witness.advance(advance(None, branch.heads[2])))[0]
        await witness.head(ask())
    assert (await witness.advance(advance(None, branch.newest, other)))[0]
    time[0] += 1
    assert (await witness.advance(late))[0]
    await disk.close()


@pytest.mark.spec("WIT-9")
async def test_only_the_logs_that_are_named(disk: Disk) -> None:
    first = heads(1)[0]
    witness = ledger(disk, allowed=frozenset({log_id_of(LOG.public)}))
    assert (await witness.advance(advance(None, first)))[0]
    other = SigningKey.generate()
    assert await refused(witness.advance(advance(None, first, other))) == (403, "log")
    assert await refused(witness.head(ask(other))) == (403, "log")
    await disk.close()


@pytest.mark.spec("WIT-9")
def test_what_is_counted_of_names_is_bounded() -> None:
    buckets = Buckets(1.0, 2.0)
    assert [buckets.take(b"a", 0.0) for _ in range(3)] == [True, True, False]
    for number in range(MAX_NAMES - 1):
        buckets.take(number.to_bytes(4, "big"), 0.0)
    assert not buckets.take(b"a", 0.5)
    assert buckets.take(b"a", 1.5)
    assert len(buckets._of) == MAX_NAMES
    for number in range(MAX_NAMES):
        buckets.take(number.to_bytes(5, "big"), 1.5)
    assert len(buckets._of) == MAX_NAMES
    assert buckets.take(b"a", 1.5)


# HTTP ----------------------------------------------------------------------------------


@pytest.mark.spec("WIT-10")
async def test_what_is_served(disk: Disk) -> None:
    first, second = heads(2)
    app = Witness(ledger(disk))

    async def request(method: str, path: str, body: bytes = b"") -> tuple[int, bytes, bytes]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])[b"content-type"], sent[1]["body"]

    binary = b"application/vnd.conclave.witness"
    assert (await request("POST", "/witness/head", ask()))[:2] == (200, binary)
    assert (await request("POST", "/witness/advance", advance(None, first)))[:2] == (200, binary)
    status, kind, answer = await request("POST", "/witness/advance", advance(None, second))
    assert (status, kind) == (409, binary)
    standing = read(answer)
    assert standing is not None
    assert standing.step.new == first
    for method, path, body, wanted in (
        ("GET", "/witness/head", b"", (405, "method")),
        ("POST", "/witness", b"", (404, "no such resource")),
        ("POST", "/witness/head", bytes(MAX_MESSAGE + 1), (413, "too large")),
        ("POST", "/witness/advance", b"x", (400, "format")),
    ):
        status, kind, answer = await request(method, path, body)
        assert kind == b"application/json"
        said = json.loads(answer)
        assert (status, said["error"]) == wanted
        assert said["detail"]
    await disk.close()


# Keys ----------------------------------------------------------------------------------


def test_a_key_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "witness.key"
    made = make_key(path)
    assert load_key(path).public == made.public
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        make_key(path)
    assert load_key(path).public == made.public
    for text in (
        "",
        "conclave-author-key-1 " + "0" * 64,
        "conclave-witness-key-1 " + "0" * 62,
        "conclave-witness-key-1 x",
    ):
        path.write_text(text)
        with pytest.raises(FormatError, match="conclave witness key"):
            load_key(path)
