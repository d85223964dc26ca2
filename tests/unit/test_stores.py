"""What URLs open, what is said when that is not possible, and how patience ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from conclave.errors import FormatError, StoreError, StoreUnavailable, TransportError
from conclave.host.stores import open_store
from conclave.host.stores.patience import Patience
from conclave.host.stores.threads import MOST_WAITING, Threads


@pytest.mark.parametrize("url", ["", "file:", "sqlite:", "s3:", "s3:/", "postgresql:", "ftp://x", "/x", "FILE:x"])
def test_what_names_no_store(url: str) -> None:
    with pytest.raises(FormatError, match="expected file:DIR, sqlite:FILE, s3:BUCKET/PREFIX or postgresql://"):
        open_store(url)


@pytest.mark.spec("STORE-15")
@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [("obstore", "s3:bucket", "s3"), ("psycopg", "postgresql://host/base", "postgres")],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, url: str, extra: str) -> None:
    for name in ("s3", "postgres"):
        monkeypatch.delitem(sys.modules, f"conclave.host.stores.{name}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StoreUnavailable, match=rf"pip install 'conclave-core\[{extra}\]'"):
        open_store(url)


def test_no_package_is_loaded_before_it_is_needed() -> None:
    program = "import sys, conclave.host; print(sorted({'obstore', 'psycopg', 'sqlite3'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_path_that_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable) as refused:
        open_store(f"file:{tmp_path}/file")
    assert str(refused.value).endswith(
        "/file is a file, and a directory is needed; name one that is there, or a new one"
    )
    for url in (f"file:{tmp_path}/file/below", f"sqlite:{tmp_path}/file/below/x.db"):
        with pytest.raises(StoreUnavailable, match=r"^cannot use .* as a store: Not a directory$"):
            open_store(url)


@pytest.mark.spec("STORE-16")
@pytest.mark.parametrize("url", ["file:{}/none/store", "sqlite:{}/none/x.db"])
def test_a_store_makes_nothing_but_itself(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        open_store(url.format(tmp_path))
    assert str(refused.value) == f"no such folder: {tmp_path / 'none'}; make it first"
    assert not (tmp_path / "none").exists()
    # Its own last part it makes.
    (tmp_path / "none").mkdir()

    async def work() -> None:
        store = open_store(url.format(tmp_path))
        await store.put("blob", b"")
        await store.close()

    asyncio.run(work())


@pytest.mark.spec("STORE-16")
def test_a_folder_that_goes_is_not_made_again(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()

    async def work() -> None:
        store = open_store(f"sqlite:{place}/x.db")
        place.rmdir()
        with pytest.raises(StoreUnavailable, match="SQLITE_CANTOPEN"):
            await store.put("blob", b"")
        await store.close()

    asyncio.run(work())
    assert not place.exists()


@pytest.mark.spec("STORE-17")
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_one_host_alone(tmp_path: Path, kind: str) -> None:
    url = f"{kind}:{tmp_path / 'store'}"

    async def work() -> None:
        first = open_store(url, alone=True)
        with pytest.raises(StoreUnavailable, match=r"^another host uses this store; give each host its own$"):
            open_store(url, alone=True)
        # Others than hosts may look into it.
        other = open_store(url)
        await other.put("blob", b"")
        assert await first.list("") == ["blob"]
        await other.close()
        await first.close()
        await first.close()
        second = open_store(url, alone=True)
        await second.close()

    asyncio.run(work())


def test_a_new_database_that_many_open_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        for turn in range(60):
            stores = [open_store(f"sqlite:{tmp_path / str(turn)}") for _ in range(4)]
            await asyncio.gather(*(store.put(f"{number}", b"") for number, store in enumerate(stores)))
            await asyncio.gather(*(store.close() for store in stores))

    asyncio.run(work())


def test_store_errors_are_for_trying_again() -> None:
    assert issubclass(StoreError, TransportError)


@pytest.mark.spec("STORE-14")
@pytest.mark.parametrize(("again", "attempts"), [(True, 5), (False, 1)])
def test_patience_repeats_what_may_be_repeated(*, again: bool, attempts: int) -> None:
    seen = []

    async def work(attempt: int) -> None:
        seen.append(attempt)
        raise StoreUnavailable("gone")

    with pytest.raises(StoreUnavailable, match="gone"):
        asyncio.run(Patience(60, pause_seconds=0).spend(work, again=again))
    assert seen == list(range(attempts))


@pytest.mark.spec("STORE-13")
def test_patience_ends() -> None:
    async def work(attempt: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.01 seconds"):
        asyncio.run(Patience(0.01).spend(work, again=True))


def test_a_disk_that_hangs_holds_no_more_than_some_operations() -> None:
    async def work() -> None:
        threads, hangs, goes_on, done = (
            Threads(1, "test", Patience(60), lambda error: error),
            threading.Event(),
            threading.Event(),
            [],
        )
        first = asyncio.ensure_future(threads.run(lambda: (hangs.set(), goes_on.wait())))
        while not hangs.is_set():
            await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(threads.run(partial(done.append, n))) for n in range(MOST_WAITING)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        with pytest.raises(StoreUnavailable, match="too many operations wait"):
            await threads.run(lambda: None)
        goes_on.set()
        await first
        # What nobody waits for any more is not done; then there is room again.
        await asyncio.to_thread(threads._pool.submit(lambda: None).result)
        assert done == []
        await threads.run(partial(done.append, "new"))
        assert done == ["new"]
        threads.close()

    asyncio.run(work())
