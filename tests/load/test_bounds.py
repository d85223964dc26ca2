"""Whatever is opened, asked for, or given up by the thousand: neither host nor enclave grows without bound."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.load._rig import (
    SECONDS,
    SOURCE,
    Callers,
    Channels,
    HostProcess,
    answer,
    connected,
    head,
    report,
    scaled,
    until,
)

from conclave._chunkheader import MAX_CHUNK
from conclave._crypto import random_bytes
from conclave._mailheader import HEADER, MAGIC, TO_ENCLAVE, ZERO_SALT
from conclave.bundle import Bundle
from conclave.client import AsyncClient, Client
from conclave.enclave._runtime import _KEPT_MIB as _ENCLAVE_KEPT
from conclave.enclave._streams import Bounds as StreamBounds
from conclave.errors import OverloadedError
from conclave.host.connection import _HIGH_WATER
from conclave.host.link import _KEPT_MIB as _HOST_KEPT
from conclave.host.streams import MOST_WAITING

pytestmark = pytest.mark.slow

PIPELINED = 32


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("target", SOURCE)


@pytest.mark.spec("MAIL-56")
def test_open_channels(bundle: Bundle, tmp_path: Path) -> None:
    """As many as a boot has room for, each of somebody else; then one more, for which a silent one makes room."""
    count, slowest = scaled(1000, 100_000), 0
    with (
        HostProcess(bundle, tmp_path) as host,
        Client(host.url, constraint=host.constraint) as silent,
        Client(host.url, constraint=host.constraint) as client,
        Client(host.url, constraint=host.constraint, attempts=1) as late,
        connected(host) as sock,
    ):
        channels = Channels(client.verify(), sock)
        assert silent.call("run", "silent", 1)[1] == "1"
        assert client.call("run", "first", 1)[1] == "1"
        opened = channels.grow(count - 2)
        while next(opened) < 100:
            pass
        start, began = host.memory(), time.monotonic()
        for _ in opened:
            pass
        seconds = time.monotonic() - began
        for _ in range(1000):
            slowest = max(slowest, channels.call(random.randrange(count - 2)))
        end = host.memory()
        # The oldest of all are served as they were.
        channels.call(0)
        assert client.call("run", "first", 2)[1] == "1"
        if SECONDS:
            assert late.call("run", "late", 1)[1] == "1"
            # All others go on, on the channels that they have.
            for number in range(count - 2):
                channels.call(number)
            assert client.call("run", "first", 3)[1] == "1"
            # The silent one opens another, for which one of those makes room that are looked at next.
            assert silent.call("run", "silent", 2)[1] == "1"
            closed = [number for number in range(200) if channels.ask(number) is None]
            assert len(closed) == 1
            assert late.call("run", "late", 2)[1] == "1"
        each = {
            f"{part}_kib_each": round((end[f"{part}_mib"] - start[f"{part}_mib"]) * 1024 / count, 2)
            for part in ("host", "enclave")
        }
        report(
            "open channels",
            channels=count,
            a_second=round(count / seconds),
            slowest_call_ms=slowest,
            **each,
            start=start,
            end=end,
        )
    assert each["host_kib_each"] < 2
    assert each["enclave_kib_each"] < 24


@pytest.mark.spec("HTTP-1")
def test_sessions_that_nobody_opened(bundle: Bundle, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    with (
        HostProcess(bundle, tmp_path) as host,
        ExitStack() as stack,
        Callers(host, scaled(4, 16)) as callers,
    ):
        socks = [stack.enter_context(connected(host)) for _ in range(4)]
        callers.rounds()
        start, began = host.memory(), time.monotonic()
        while sum(found.values()) < scaled(20_000, 1_000_000) or time.monotonic() < began + SECONDS:
            for sock in socks:
                sock.sendall(b"".join(_unknown() for _ in range(PIPELINED)))
            for sock in socks:
                for status in _answers(sock, PIPELINED):
                    found[str(status)] += 1
        callers.rounds()
        end = host.memory()
        tally = callers.stop()
        report("unknown sessions", mails=found, **tally.figures(), start=start, end=end)
    assert set(found) == {"409"}
    assert not tally.errors
    assert tally.twice == tally.wrong == 0
    assert end["host_mib"] < start["host_mib"] + 24
    assert end["enclave_mib"] < start["enclave_mib"] + 16


def _unknown() -> bytes:
    mail = HEADER.pack(MAGIC, TO_ENCLAVE, 0, 0, random_bytes(16), 0, ZERO_SALT, 128) + bytes(128)
    return head("/mail", len(mail)) + mail


def _answers(sock: object, count: int) -> list[int]:
    got, statuses = b"", []
    while len(statuses) < count:
        top, found, rest = got.partition(b"\r\n\r\n")
        size = int(top.lower().partition(b"content-length:")[2].split()[0]) if found else 0
        if found and len(rest) >= size:
            statuses.append(int(top[9:12]))
            got = rest[size:]
            continue
        data = sock.recv(65536)  # type: ignore[attr-defined]
        assert data, "the host closed the connection"
        got += data
    return statuses


def test_boxes_claimed_by_the_thousand(bundle: Bundle, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    with (
        HostProcess(bundle, tmp_path) as host,
        ExitStack() as stack,
        Client(host.url, constraint=host.constraint) as honest,
    ):
        address = honest.call("me", returns=bytes)
        honest.poll()
        socks = [stack.enter_context(connected(host)) for _ in range(16)]
        start, began = host.memory(), time.monotonic()
        while sum(found.values()) < scaled(500, 10_000) or time.monotonic() < began + SECONDS:
            for sock in socks:
                sock.sendall(head(f"/outbox/{random_bytes(16).hex()}", 32) + random_bytes(32))
            for sock in socks:
                found[str(answer(sock)[0])] += 1
        end = host.memory()
        honest.call("tell", "honest", 1, address)
        (mail,) = honest.poll(wait_seconds=30)
        assert mail.body == b"honest 1"
        claims = sum(found.values())
        each = round((end["host_mib"] - start["host_mib"]) * 1024 / claims, 2)
        report("claimed boxes", claims=found, kib_each=each, start=start, end=end)
    assert set(found) == {"204"}
    # The limit of 200,000 claims bounds the whole.
    assert end["host_mib"] < start["host_mib"] + 4 + claims * 2 / 1024


def test_cancelled_streams(bundle: Bundle, tmp_path: Path) -> None:
    """What is kept is what those streams took that were open at one time, however many came after each other."""
    count, at_once = scaled(200, 8000), 16

    async def cancel(host: HostProcess, many: int) -> None:
        async with AsyncClient(host.url, constraint=host.constraint, timeout_seconds=120) as client:

            async def some() -> None:
                done = 0
                while done < many // at_once:
                    stream = client.call_stream("zeros", 1 << 30)
                    try:
                        async for part in stream:
                            assert part
                            done += 1
                            break
                    except OverloadedError:
                        # The enclave does not know yet that others were cancelled.
                        await asyncio.sleep(0.05)
                    await stream.aclose()

            await asyncio.gather(*(some() for _ in range(at_once)))

    with HostProcess(bundle, tmp_path) as host, Client(host.url, constraint=host.constraint) as other:
        asyncio.run(cancel(host, at_once * 2))
        until(lambda: other.call("streams") == 0, "the end of all streams")
        start, began = host.memory(), time.monotonic()
        done = 0
        while done < count or time.monotonic() < began + SECONDS:
            asyncio.run(cancel(host, 160))
            until(lambda: other.call("streams") == 0, "the end of all streams")
            done += 160
        until(lambda: host.descriptors() <= start["descriptors"] + 2, "the descriptors that were given back")
        end = host.memory()
        report("cancelled streams", streams=done, start=start, end=end)
    # Of one identity. A stream has chunks that wait, in the host as many once more on their way out, and what its
    # connection takes. The C library keeps of this what lies between other blocks, and at the end of its heap twice
    # the block that it was shown. One chunk left behind by each stream of a long run would be 2 GiB.
    streams, waiting, mib = StreamBounds().streams_per_identity, MOST_WAITING * MAX_CHUNK, 1024 * 1024
    assert end["host_mib"] < start["host_mib"] + streams * (2 * waiting + _HIGH_WATER) / mib + 2 * _HOST_KEPT
    assert end["enclave_mib"] < start["enclave_mib"] + streams * waiting / mib + 2 * _ENCLAVE_KEPT
