"""A host without room, store or descriptors, and clients that are slow on purpose: what was promised is kept."""

from __future__ import annotations

import fcntl
import resource
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from tests.load._rig import (
    SECONDS,
    SOURCE,
    Callers,
    HostProcess,
    Reader,
    answer,
    connected,
    exchange,
    head,
    report,
    scaled,
    until,
)

from conclave.bundle import Bundle
from conclave.client import Client

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("target", SOURCE)


def reasons(host: HostProcess) -> list[str]:
    """Why clients should go elsewhere, as the host says."""
    answered = httpx2.get(f"{host.url}/readyz", timeout=60).json()
    found: list[str] = answered.get("reasons", [])
    return found


@contextmanager
def full(host: HostProcess, store: Path) -> Iterator[None]:
    """Every write to a file finds no room."""
    before = resource.prlimit(host.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    yield
    resource.prlimit(host.pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def gone(host: HostProcess, store: Path) -> Iterator[None]:
    """The directory is not there."""
    elsewhere = store.with_suffix(".away")
    store.rename(elsewhere)
    yield
    elsewhere.rename(store)


@contextmanager
def hung(host: HostProcess, store: Path) -> Iterator[None]:
    """Writes begin and do not end."""
    with (store / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.spec("CHAN-13")
@pytest.mark.parametrize("hinder", [full, gone, hung])
def test_a_store_that_takes_nothing_for_a_while(
    hinder: Callable[[HostProcess, Path], Iterator[None]], bundle: Bundle, tmp_path: Path
) -> None:
    _hindered(bundle, tmp_path, HostProcess(bundle, tmp_path, store_timeout_seconds=10 if SECONDS else 2), hinder)


@pytest.mark.spec("CHAN-13")
def test_a_disk_that_is_full(bundle: Bundle, tmp_path: Path) -> None:
    """A file system of its own without a byte left, as another program's files may leave it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=False, capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:

        @contextmanager
        def filled(host: HostProcess, store: Path) -> Iterator[None]:
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                for size in (65536, 1):
                    with suppress(OSError):
                        while True:
                            file.write(bytes(size))
            yield
            ballast.unlink()

        _hindered(bundle, disk, HostProcess(bundle, tmp_path, store=f"file:{disk / 'store'}"), filled)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _hindered(
    bundle: Bundle, place: Path, host: HostProcess, hinder: Callable[[HostProcess, Path], Iterator[None]]
) -> None:
    times = 0
    with (
        host,
        Reader(host) as reader,
        Callers(host, scaled(8, 32), to=reader.address) as callers,
    ):
        callers.rounds()
        start, began = host.memory(), time.monotonic()
        while not times or time.monotonic() < began + SECONDS:
            with hinder(host, place / "store"):  # type: ignore[attr-defined]
                until(lambda: reasons(host) == ["store"], "the host's word that its store takes nothing")
                # Longer than the gate's patience in a long run, so that replies are refused and asked for again.
                time.sleep(min(SECONDS / 4, 12))
            callers.rounds()
            until(lambda: reasons(host) == [], "the host's word that its store takes mail again")
            times += 1
        end = host.memory()
        tally = callers.stop()
        lost = tally.acknowledged - set(seen := reader.all())
        report(f"store {hinder.__name__}", times=times, **tally.figures(), lost=len(lost), start=start, end=end)
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert tally.boots == 1
    assert not lost
    assert len(seen) == len(set(seen))
    assert end["host_mib"] < start["host_mib"] + 32
    assert end["descriptors"] <= start["descriptors"] + 8


def test_calls_without_mail_need_no_store(bundle: Bundle, tmp_path: Path) -> None:
    with HostProcess(bundle, tmp_path) as host, Callers(host, scaled(8, 64)) as callers:
        callers.rounds()
        with gone(host, tmp_path / "store"):
            until(lambda: reasons(host) == ["store"], "the host's word that its store is gone")
            callers.rounds(3)
        until(lambda: reasons(host) == [], "the host's word that its store is back")
        tally = callers.stop()
        report("store gone, nothing posted", **tally.figures(), end=host.memory())
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert tally.boots == 1


def test_a_slow_store(bundle: Bundle, tmp_path: Path) -> None:
    """Something else holds it nearly all the time: one write in a tenth of a second is all there is for everybody."""
    stop = threading.Event()

    def hold() -> None:
        with (tmp_path / "store" / "lock").open("rb") as lock:
            while not stop.is_set():
                fcntl.flock(lock, fcntl.LOCK_EX)
                time.sleep(0.1)
                fcntl.flock(lock, fcntl.LOCK_UN)
                time.sleep(0.005)

    with HostProcess(bundle, tmp_path) as host, Reader(host) as reader:
        holding = threading.Thread(target=hold)
        holding.start()
        try:
            with Callers(host, scaled(8, 64), to=reader.address) as callers:
                callers.rounds()
                start, began = host.memory(), time.monotonic()
                while time.monotonic() < began + SECONDS:
                    callers.rounds()
                callers.rounds()
                end = host.memory()
                tally = callers.stop()
        finally:
            stop.set()
            holding.join()
        lost = tally.acknowledged - set(reader.all())
        report("store slow", **tally.figures(), lost=len(lost), start=start, end=end)
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert tally.acknowledged
    assert not lost
    assert end["host_mib"] < start["host_mib"] + 32


def test_no_more_descriptors(bundle: Bundle, tmp_path: Path) -> None:
    """More connections than the host may have descriptors, none of which does anything."""
    flood: list[socket.socket] = []
    found: Counter[str] = Counter()
    with HostProcess(bundle, tmp_path, descriptors=160) as host:
        start = host.memory()
        with Client(host.url, constraint=host.constraint, attempts=60) as old:
            address = old.call("me", returns=bytes)
            # At once: who is refused keeps a descriptor for some seconds, unless too many are.
            for number in range(scaled(3, 30)):
                flood += [socket.create_connection(("127.0.0.1", host.port), timeout=60) for _ in range(150)]
                # Who is connected is served, and the store has what it needs.
                assert old.call("tell", "old", number, address)[1] == "1"
            during = host.memory()
            # The enclave can be started again, too.
            host.kill_enclave()
            assert old.call("run", "old", 1)[1] == "1"
            for sock in flood:
                sock.setblocking(False)
                try:
                    found["answered " + sock.recv(100)[9:12].decode()] += 1
                except BlockingIOError:
                    found["waits"] += 1
                except OSError:
                    found["reset"] += 1
                sock.close()
            posted = set()
            while mails := old.poll():
                posted.update(mail.body.decode() for mail in mails)
        until(lambda: host.descriptors() <= start["descriptors"] + 2, "the descriptors that were given back")
        with Client(host.url, constraint=host.constraint, attempts=1) as new:
            assert new.call("run", "new", 1)[1] == "1"
        report("descriptors", **found, start=start, during=during, end=host.memory())
    assert found["answered 503"]
    assert posted == {f"old {n}" for n in range(scaled(3, 30))}
    # 96 connections, some more that are told so, and a host's own: what is left is for the store and the next boot.
    assert during["descriptors"] < 150


def test_too_few_descriptors_to_begin_with(bundle: Bundle, tmp_path: Path) -> None:
    host = HostProcess(bundle, tmp_path, descriptors=60)
    with pytest.raises(AssertionError), host:
        pass
    assert host.process is not None
    assert host.process.wait(60) != 0
    until(lambda: any("`ulimit -Hn`" in line for line in host.events), "what the operator has to do")
    # With the least that a host takes, its enclave runs, too.
    least = HostProcess(bundle, tmp_path, descriptors=80)
    with least, Client(least.url, constraint=least.constraint) as client:
        assert client.call("run", "one", 1)[1] == "1"


def test_descriptors_that_others_took(bundle: Bundle, tmp_path: Path) -> None:
    """Fewer than the host counted on when it started: it meets the end of them before its own limit of connections."""
    flood: list[socket.socket] = []
    with (
        HostProcess(bundle, tmp_path) as host,
        Client(host.url, constraint=host.constraint, attempts=60) as old,
    ):
        address = old.call("me", returns=bytes)
        start = host.memory()
        resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (int(start["descriptors"]) + 40,) * 2)
        for number in range(scaled(2, 20)):
            for _ in range(100):
                flood.append(sock := socket.socket())
                sock.setblocking(False)
                with suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", host.port))
            assert old.call("run", "old", number)[1] == "1"
        during = host.memory()
        for sock in flood:
            sock.close()
        until(lambda: host.descriptors() <= start["descriptors"] + 2, "the descriptors that were given back")
        # What needs descriptors, of the store and of newcomers, has them again.
        assert old.call("tell", "old", 10_000, address)[1] == "1"
        assert [mail.body for mail in old.poll(wait_seconds=30)] == [b"old 10000"]
        with Client(host.url, constraint=host.constraint) as new:
            assert new.call("run", "new", 1)[1] == "1"
        end = host.memory()
        report("descriptors taken by others", connections=len(flood), start=start, during=during, end=end)
    assert end["host_mib"] < start["host_mib"] + 32


def test_slow_and_half_closed(bundle: Bundle, tmp_path: Path) -> None:
    ways = ["half a head", "a slow body", "reads nothing", "half-closed", "half-closed in a body", "leaves"]
    per_way, found = scaled(10, 100), Counter[str]()
    with HostProcess(bundle, tmp_path) as host, Callers(host, scaled(8, 64)) as callers:
        callers.rounds()
        start, began = host.memory(), time.monotonic()
        socks: list[tuple[str, socket.socket]] = []
        while len(socks) < per_way * len(ways) or time.monotonic() < began + SECONDS:
            if len(socks) < per_way * len(ways):
                for way in ways:
                    socks.append((way, _slow(host, way)))
            else:
                callers.rounds()
            for number, (way, sock) in enumerate(socks):
                if way == "a slow body":
                    try:
                        sock.send(b"x")
                    except OSError:
                        # Who was cut off comes again.
                        sock.close()
                        socks[number] = way, _slow(host, way)
                        found["cut off"] += 1
        callers.rounds(2)
        during = host.memory()
        for way, sock in socks:
            if way == "half-closed":
                status, _ = answer(sock)
                found[f"{way}: {status}"] += 1
            sock.close()
        tally = callers.stop()
        until(lambda: host.descriptors() <= start["descriptors"] + 2, "the descriptors that were given back")
        end = host.memory()
        report("slow HTTP", connections=len(socks), **found, **tally.figures(), start=start, during=during, end=end)
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert set(found) - {"cut off"} == {"half-closed: 200"}
    assert end["host_mib"] < start["host_mib"] + 32


def _slow(host: HostProcess, way: str) -> socket.socket:
    sock = connected(host)
    if way == "half a head":
        sock.sendall(b"POST /mail HTTP/1.1\r\nHost: loc")
    elif way == "a slow body":
        sock.sendall(head("/mail", 100_000))
    elif way == "reads nothing":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(head("/openapi.json", 0, "GET") * 50)
    elif way == "half-closed":
        sock.sendall(head("/instance", 0, "GET"))
        sock.shutdown(socket.SHUT_WR)
    elif way == "half-closed in a body":
        sock.sendall(head("/mail", 1000) + bytes(10))
        sock.shutdown(socket.SHUT_WR)
    else:
        exchange(sock, head("/health", 0, "GET"))
        sock.sendall(head("/mail", 1000) + bytes(10))
        sock.close()
    return sock
