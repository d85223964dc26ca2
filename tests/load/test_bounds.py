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

from conclave._crypto import random_bytes
from conclave._mailheader import HEADER, MAGIC, TO_ENCLAVE, ZERO_SALT
from conclave.bundle import Bundle
from conclave.client import AsyncClient, Client
from conclave.errors import OverloadedError

pytestmark = pytest.mark.slow

PIPELINED = 32


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("target", SOURCE)


def test_open_channels(bundle: Bundle, tmp_path: Path) -> None:
    """As many as a boot has room for, each of somebody else; one of them is the client that asks for the instance."""
    count, slowest = scaled(1000, 100_000) - 1, 0
    with (
        HostProcess(bundle, tmp_path) as host,
        Client(host.url, constraint=host.constraint) as client,
        connected(host) as sock,
    ):
        channels = Channels(client.verify(), sock)
        assert client.call("run", "first", 1)[1] == "1"
        opened = channels.grow(count)
        while next(opened) < 100:
            pass
        start, began = host.memory(), time.monotonic()
        for _ in opened:
            pass
        seconds = time.monotonic() - began
        for _ in range(1000):
            slowest = max(slowest, channels.call(random.randrange(count)))
        end = host.memory()
        # The oldest of all are served as they were.
        channels.call(0)
        assert client.call("run", "first", 2)[1] == "1"
        if SECONDS:
            # No room for one more, who is told so; everybody else goes on.
            with pytest.raises(OverloadedError), Client(host.url, constraint=host.constraint, attempts=1) as late:
                late.call("run", "late", 1)
            channels.call(count - 1)
        each = {
            f"{part}_kib_each": round((end[f"{part}_mib"] - start[f"{part}_mib"]) * 1024 / count, 2)
            for part in ("host", "enclave")
        }
        report(
            "open channels",
            channels=count + 1,
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
    count, at_once = scaled(200, 2000), 16

    async def cancel(host: HostProcess, many: int) -> None:
        async with AsyncClient(host.url, constraint=host.constraint, timeout_seconds=120) as client:

            async def some() -> None:
                for _ in range(many // at_once):
                    stream = client.call_stream("zeros", 1 << 30)
                    async for part in stream:
                        assert part
                        break
                    await stream.aclose()

            await asyncio.gather(*(some() for _ in range(at_once)))

    with HostProcess(bundle, tmp_path) as host, Client(host.url, constraint=host.constraint) as other:
        asyncio.run(cancel(host, at_once * 2))
        until(lambda: other.call("streams") == 0, "the end of all streams")
        start, began = host.memory(), time.monotonic()
        done = 0
        while done < count or time.monotonic() < began + SECONDS:
            asyncio.run(cancel(host, 160))
            done += 160
        until(lambda: other.call("streams") == 0, "the end of all streams")
        until(lambda: host.descriptors() <= start["descriptors"] + 2, "the descriptors that were given back")
        end = host.memory()
        report("cancelled streams", streams=done, start=start, end=end)
    assert end["host_mib"] < start["host_mib"] + 24
    assert end["enclave_mib"] < start["enclave_mib"] + 24
