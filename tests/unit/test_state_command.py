"""`conclave state`: what it prints, its exit statuses, and what it says to mistakes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests._posts import frame, mail
from tests._state import LOG, boot_header, chunk, commit, record

from conclave.cli import main
from conclave.host.states import Snapshot, StateStore
from conclave.host.states.opening import open_state
from conclave.host.stores import open_store

pytestmark = pytest.mark.spec("STORE-27")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def call(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(["state", *arguments])
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call


def fill(url: str, work: Callable[[StateStore], Awaitable[None]]) -> None:
    async def inner() -> None:
        blobs = open_store(url)
        store = open_state(url, blobs)
        try:
            await work(store)
        finally:
            await store.close()
            await blobs.close()

    asyncio.run(inner())


async def log(store: StateStore, *, records: int = 5) -> None:
    await store.append([(0, commit(0, boot=boot_header(1)))])
    await store.append([(version, commit(version, b"x" * version)) for version in range(1, records)])
    posts = frame(mail(0), mail(1))
    await store.append([(records, commit(records, posts=posts))])
    await store.append([(records + 1, commit(records + 1, boot=boot_header(2)))])


async def snapshot(store: StateStore, version: int, *chunks: bytes) -> None:
    made = Snapshot((7).to_bytes(16, "big"), version)
    for index, body in enumerate(chunks, 1):
        await store.put_chunk(made, index, chunk(7, index, version, body))
    await store.complete(made, chunk(7, 0, version))


@pytest.fixture(params=["file", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}:{tmp_path / 'store'}"


def digest(records: list[bytes]) -> str:
    """As spec/state.md says it."""
    found = bytes(32)
    for version, data in enumerate(records):
        found = hashlib.sha256(b"state/1" + LOG + version.to_bytes(8, "big") + found + data).digest()
    return found.hex()


def test_what_lies_there(url: str, run: Callable[..., Done]) -> None:
    fill(url, log)
    done = run("inspect", url, "--json")
    assert done.status == 0
    facts = done.json
    assert (facts["log_id"], facts["version"], facts["records"]) == (LOG.hex(), 6, 7)
    assert [(boot["version"], int(boot["boot_id"], 16), boot["level"]) for boot in facts["boots"]] == [
        (0, 1, 3),
        (6, 2, 3),
    ]
    assert (facts["posting_records"], facts["posted_mails"], facts["snapshot"]) == (1, 2, None)
    records = [record(0, boot=boot_header(1)), *(record(v, b"x" * v) for v in range(1, 5)), record(5)]
    assert facts["digest"] == digest([*records, record(6, boot=boot_header(2))])
    text = run("inspect", url).out
    assert f"log         {LOG.hex()}" in text
    assert "version     6" in text
    assert "mail        2 posted by 1 records" in text
    assert run("verify", url, "--json").json == {"whole": True, **facts}
    assert run("verify", url).out.startswith("whole ")


def test_a_snapshot(url: str, run: Callable[..., Done]) -> None:
    async def work(store: StateStore) -> None:
        await log(store)
        await snapshot(store, 6, b"one", b"two")
        await store.append([(7, commit(7))])

    fill(url, work)
    facts = run("inspect", url, "--json").json
    assert (facts["version"], facts["records"], facts["boots"], facts["digest"]) == (7, 1, [], None)
    assert (facts["snapshot"]["version"], facts["snapshot"]["chunks"]) == (6, 2)
    assert "since the snapshot" in run("inspect", url).out
    done = run("compact", url, "--json")
    assert done.json["freed"] > 0
    assert run("inspect", url, "--json").json == facts
    assert "nothing to delete" in run("compact", url).out


BAD: dict[str, Callable[[StateStore], Awaitable[None]]] = {}


def bad(work: Callable[[StateStore], Awaitable[None]]) -> Callable[[StateStore], Awaitable[None]]:
    BAD[work.__name__] = work
    return work


@bad
async def another_version(store: StateStore) -> None:
    await store.append([(0, commit(0, boot=boot_header())), (1, commit(2))])


@bad
async def another_log(store: StateStore) -> None:
    await store.append([(0, commit(0, boot=boot_header())), (1, commit(1, boot=boot_header(log=b"M" * 32)))])


@bad
async def no_boot(store: StateStore) -> None:
    await store.append([(0, commit(0))])


@bad
async def no_record(store: StateStore) -> None:
    await store.append([(0, b"something else")])


@bad
async def half_a_mail(store: StateStore) -> None:
    await store.append([(0, commit(0, boot=boot_header(), posts=frame(mail(0))[:-1]))])


@bad
async def a_counter_again(store: StateStore) -> None:
    repeated = bytearray(commit(1, b"x"))
    # The nonce counter, behind the version, of the record behind the head of the frame.
    repeated[12 + 16 : 12 + 24] = bytes(8)
    await store.append([(0, commit(0, boot=boot_header())), (1, bytes(repeated))])


@bad
async def another_snapshots_chunk(store: StateStore) -> None:
    await log(store)
    made = Snapshot(bytes(16), 6)
    await store.put_chunk(made, 1, chunk(8, 1, 6))
    await store.complete(made, chunk(7, 0, 6))


@bad
async def a_chunk_twice(store: StateStore) -> None:
    await log(store)
    made = Snapshot(bytes(16), 6)
    await store.put_chunk(made, 1, chunk(7, 1, 6))
    await store.put_chunk(made, 2, chunk(7, 1, 6))
    await store.complete(made, chunk(7, 0, 6))


@bad
async def no_manifest(store: StateStore) -> None:
    await log(store)
    made = Snapshot(bytes(16), 6)
    await store.put_chunk(made, 1, chunk(7, 1, 6))
    await store.complete(made, chunk(7, 1, 6))


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_together(case: str, tmp_path: Path, run: Callable[..., Done]) -> None:
    url = f"file:{tmp_path / 'store'}"
    fill(url, BAD[case])
    before = {file.name: file.read_bytes() for file in (tmp_path / "store" / "state").iterdir()}
    done = run("verify", url)
    assert (done.status, done.out.splitlines()[0][:7]) == (30, "damaged")
    assert run("verify", url, "--json").json["code"] == "store-damaged"
    for command in ("inspect", "compact"):
        refused = run(command, url)
        assert refused.status == 1
        assert refused.err.startswith("error (store-damaged): ")
        assert refused.err.count("\n") == 1
    assert {file.name: file.read_bytes() for file in (tmp_path / "store" / "state").iterdir()} == before


def test_reset_moves_it_aside(url: str, run: Callable[..., Done], tmp_path: Path) -> None:
    fill(url, log)
    asked = run("reset", url)
    assert (asked.status, "--yes" in asked.err) == (1, True)
    assert run("inspect", url).status == 0
    done = run("reset", url, "--yes")
    assert done.status == 0
    assert "LogReplaced" in done.out
    again = run("inspect", url)
    assert (again.status, "no state in" in again.err) == (1, True)
    # All of it is elsewhere, and a new log can begin.
    if url.startswith("file:"):
        (aside,) = (tmp_path / "store").glob("state-reset-*")
        assert any(aside.glob("log-*"))
    else:

        async def names() -> list[str]:
            blobs = open_store(url)
            found = await blobs.list("state-reset-")
            await blobs.close()
            return found

        assert len(asyncio.run(names())) == 4
    fill(url, log)
    assert run("inspect", url, "--json").json["version"] == 6


def test_reset_asks_at_a_terminal(tmp_path: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file:{tmp_path / 'store'}"
    fill(url, log)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, status in (("no", 1), ("", 1), ("reset", 0)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        done = run("reset", url)
        assert done.status == status
        assert ("nothing was changed" in done.out) == (status == 1)
    assert not (tmp_path / "store" / "state").exists()


@pytest.mark.parametrize("command", ["inspect", "verify", "compact", "reset"])
def test_mistakes(command: str, tmp_path: Path, run: Callable[..., Done]) -> None:
    yes = ["--yes"] if command == "reset" else []
    (tmp_path / "empty").mkdir()
    open_store(f"file:{tmp_path / 'blobs'}")
    for store, told in (
        (f"file:{tmp_path / 'empty'}", "no state in"),
        (f"file:{tmp_path / 'nowhere' / 'at-all'}", "no state in"),
        (f"sqlite:{tmp_path / 'nothing.db'}", "no such file"),
        (f"file:{tmp_path / 'blobs'}", "no state in"),
        (str(tmp_path / "no.enclave"), "no such file"),
    ):
        done = run(command, store, *yes)
        assert done.status == 1, store
        assert told in done.err
        assert done.err.count("\n") == 1
    # And nothing was made by asking.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blobs", "empty"]
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("command", ["inspect", "verify", "compact", "reset"])
def test_a_host_that_has_the_store(command: str, url: str, run: Callable[..., Done]) -> None:
    fill(url, log)
    host = open_store(url, alone=True)
    try:
        done = run(command, url, *(["--yes"] if command == "reset" else []))
        assert done.status == 1
        assert "a host uses this store: stop it first" in done.err
    finally:
        asyncio.run(host.close())
    assert run("verify", url).status == 0
