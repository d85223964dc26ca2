"""The gate and state: what came after a commit leaves once the commit is durable, and what names a log too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from conclave._framing import Frame, Kind
from conclave.errors import FormatError
from conclave.host.gate import Gate
from conclave.host.streams import weight


class Gated:
    """A gate, what it let through, and the writings that it waits for."""

    def __init__(self, patience: float = 60.0) -> None:
        self.out: list[tuple[int, bytes]] = []
        self.keeping: list[Callable[[], None]] = []
        self.gate = Gate(
            lambda _, done: self.keeping.append(done), self._deliver, state=self, patience_seconds=patience
        )

    def commit(self, payload: bytes, durable: Callable[[], None]) -> None:
        if payload == b"bad":
            raise FormatError("no commit")
        self.keeping.append(durable)

    def snapshot(self, payload: bytes, kept: Callable[[], None]) -> None:
        self.keeping.append(kept)

    def _deliver(self, frames: list[Frame]) -> None:
        self.out += [(frame.request, frame.payload) for frame in frames]

    def take(self, *frames: tuple[Kind, int, bytes]) -> None:
        self._deliver(self.gate.passed([Frame(*frame) for frame in frames]))


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


@pytest.mark.spec("CHAN-13")
def test_replies_wait_for_commits_and_for_mail() -> None:
    async def work() -> None:
        g = Gated()
        g.take((Kind.DONE, 1, b"before"), (Kind.COMMIT, 0, b"1"), (Kind.DONE, 2, b"a"))
        g.take((Kind.POST, 0, b"mail"), (Kind.REPLY, 3, b"b"), (Kind.COMMIT, 0, b"2"), (Kind.ERROR, 4, b"c"))
        assert g.out == [(1, b"before")]
        g.keeping[2]()
        assert g.out == [(1, b"before")]
        g.keeping[0]()
        assert g.out[1:] == [(2, b"a")]
        g.keeping[1]()
        assert g.out[2:] == [(3, b"b"), (4, b"c")]
        g.take((Kind.DONE, 5, b"at once"))
        assert g.out[4:] == [(5, b"at once")]
        assert g.gate.held == 0

    run(work)


@pytest.mark.spec("CHAN-20")
def test_nothing_waits_for_a_snapshot_and_it_counts_until_it_is_kept() -> None:
    async def work() -> None:
        g = Gated()
        g.take((Kind.SNAPSHOT, 0, bytes(100)), (Kind.DONE, 1, b"at once"))
        assert g.out == [(1, b"at once")]
        assert g.gate.held == weight(Frame(Kind.SNAPSHOT, 0, bytes(100)))
        g.keeping[0]()
        assert g.gate.held == 0

    run(work)


@pytest.mark.spec("CHAN-23", "CHAN-13")
def test_instance_info_waits_for_the_boot_record_whatever_that_takes() -> None:
    async def work() -> None:
        g = Gated(patience=0.005)
        g.take((Kind.COMMIT, 0, b"boot"), (Kind.INSTANCE, 0, b"info"), (Kind.DONE, 1, b"reply"))
        await asyncio.sleep(0.03)
        # A reply becomes an error, and is asked for again; instance info comes once.
        assert g.out == [(1, b"store")]
        g.take((Kind.INSTANCE, 9, b"renewed"))
        assert g.out[1:] == [(9, b"renewed")]
        g.keeping[0]()
        assert g.out[2:] == [(0, b"info")]

    run(work)


@pytest.mark.spec("CHAN-23")
def test_instance_info_waits_for_nothing_else() -> None:
    async def work() -> None:
        g = Gated()
        g.take((Kind.POST, 0, b"mail"), (Kind.INSTANCE, 0, b"info"))
        assert g.out == [(0, b"info")]

    run(work)


@pytest.mark.spec("CHAN-17")
def test_what_is_no_commit_is_refused_at_once() -> None:
    async def work() -> None:
        with pytest.raises(FormatError):
            Gated().take((Kind.COMMIT, 0, b"bad"))
        for kind in (Kind.COMMIT, Kind.SNAPSHOT):
            with pytest.raises(FormatError):
                Gate(lambda _, done: done(), lambda frames: None).passed([Frame(kind, 0, b"")])

    run(work)
