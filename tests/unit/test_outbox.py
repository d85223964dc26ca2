"""The outbox and its gate: durable before visible, visible at one moment, bounded, and honest when the store fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests._posts import BOXES, Failing, frame, mail

from conclave._framing import Frame, Kind
from conclave.errors import StoreFull, StoreUnavailable
from conclave.host.gate import Gate
from conclave.host.outbox import CLAIMS, INSTANCES, MAILS, InMemory, Outbox, OutboxLimits
from conclave.host.streams import weight


class Clock:
    now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def opened(store: InMemory | None = None, **options: Any) -> Outbox:
    outbox = Outbox(store, **options)
    await outbox.start()
    return outbox


async def put(outbox: Outbox, *mails: bytes) -> None:
    durable = asyncio.Event()
    outbox.put(frame(*mails), durable.set)
    async with asyncio.timeout(10):
        await durable.wait()


async def read(outbox: Outbox, to: int, after: int = 0, most: int = 2**20) -> list[tuple[int, bytes]]:
    return await outbox.read(BOXES[to], after, most_bytes=most)


def restart(store: InMemory, **options: Any) -> Coroutine[Any, Any, Outbox]:
    """The host was killed: another begins with what is on the store."""
    return opened(store, **options)


@pytest.mark.spec("HTTP-15")
def test_a_batch_becomes_visible_at_one_moment_and_only_when_durable() -> None:
    async def work() -> None:
        store = Failing()
        outbox = await opened(store)
        store.held = asyncio.Event()
        outbox.put(frame(mail(0), mail(1)), lambda: None)
        await asyncio.sleep(0.05)
        assert (await read(outbox, 0), await read(outbox, 1)) == ([], [])
        store.held.set()
        while not await read(outbox, 0):
            await asyncio.sleep(0)
        assert len(await read(outbox, 1)) == 1
        await outbox.stop()

    run(work)


def test_many_frames_are_one_write() -> None:
    async def work() -> None:
        store = Failing()
        outbox = await opened(store)
        store.held = asyncio.Event()
        outbox.put(frame(mail(0)), lambda: None)
        await asyncio.sleep(0.01)
        for _ in range(50):
            outbox.put(frame(mail(0)), lambda: None)
        store.held.set()
        await put(outbox, mail(0))
        assert store.puts == 2
        assert len(await read(outbox, 0)) == 52
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-16")
def test_a_host_that_was_killed_has_what_was_durable() -> None:
    async def work() -> None:
        store, clock = InMemory(), Clock()
        outbox = await opened(store, now=clock)
        await put(outbox, mail(0, b"one"), mail(0, b"two"), mail(1))
        assert await outbox.claim(BOXES[0], b"c" * 32)
        before = await read(outbox, 0)
        again = await restart(store, now=clock)
        assert await read(again, 0) == before
        assert again.box_of(b"c" * 32) == BOXES[0]
        assert not await again.claim(BOXES[0], b"d" * 32)
        # What was deleted may come back with its number; what is new has a higher one.
        again.delete(BOXES[0], before[1][0])
        await put(again, mail(0, b"three"))
        after = await read(again, 0)
        assert after[0][0] == before[1][0]
        assert after[1][0] > before[1][0]
        back = await restart(store, now=clock)
        assert [n for n, _ in await read(back, 0)] == [before[0][0], before[1][0], after[1][0]]

    run(work)


@pytest.mark.spec("HTTP-16")
def test_damaged_blobs_are_passed_over() -> None:
    async def work() -> None:
        store = InMemory()
        outbox = await opened(store)
        await put(outbox, mail(0), mail(1))
        (name,) = await store.list(MAILS)
        found = await store.get(name)
        assert found is not None
        await store.put(f"{MAILS}{7:020d}", found[0][:-5])
        await store.put(f"{MAILS}{8:020d}", b"CMO1")
        await store.put(f"{MAILS}{9:020d}", b"something else" * 10)
        ahead = found[0][:12] + (2**63).to_bytes(8, "big") + found[0][20:]
        await store.put(f"{MAILS}{6:020d}", ahead)
        await store.put(f"{CLAIMS}zz", b"1")
        await store.put(f"{INSTANCES}zz", b"1")
        again = await restart(store)
        assert len(await read(again, 0)) == 1
        await put(again, mail(0))
        assert len(await read(again, 0)) == 2
        assert f"{MAILS}{10:020d}" in await store.list(MAILS)

    run(work)


@pytest.mark.spec("HTTP-14")
def test_reading() -> None:
    async def work() -> None:
        store = InMemory()
        outbox = await opened(store)
        mails = [mail(0, bytes([n]) * 1000) for n in range(5)]
        await put(outbox, *mails)
        got = await read(outbox, 0)
        assert [m for _, m in got] == mails
        numbers = [n for n, _ in got]
        assert numbers == sorted(set(numbers))
        assert await read(outbox, 0, after=numbers[2]) == got[3:]
        assert await read(outbox, 0, after=numbers[-1]) == []
        # A number of a history that was lost.
        assert await read(outbox, 0, after=numbers[-1] + 1) == got
        assert await read(outbox, 0, most=1) == got[:1]
        assert await read(outbox, 0, most=2 * len(mails[0])) == got[:2]
        assert await read(outbox, 2) == []
        outbox.delete(BOXES[0], numbers[1] + 1)
        outbox.delete(BOXES[2], 5)
        assert await read(outbox, 0) == got[2:]
        outbox.delete(BOXES[0], numbers[3] + 1, first=numbers[3] + 1)
        assert await read(outbox, 0) == got[2:]
        # What has left memory is read from the store; what the store lost is gone.
        outbox._cache.clear()
        assert await read(outbox, 0) == got[2:]
        outbox._cache.clear()
        await store.delete((await store.list(MAILS))[0])
        assert await read(outbox, 0) == []
        await outbox.stop()

    run(work)


def test_a_blob_is_deleted_once_nothing_in_it_is_wanted() -> None:
    async def work() -> None:
        store = Failing()
        outbox = await opened(store)
        await put(outbox, mail(0), mail(1))
        for to in (0, 1):
            assert len(await store.list(MAILS)) == 1
            outbox.delete(BOXES[to], 2**64)
            await outbox._tidy()
        assert await store.list(MAILS) == []
        # A store that fails meanwhile is asked again.
        await put(outbox, mail(0))
        store.error = StoreUnavailable("gone")
        outbox.delete(BOXES[0], 2**64)
        await outbox._tidy()
        store.error = None
        assert len(await store.list(MAILS)) == 1
        await outbox._tidy()
        assert await store.list(MAILS) == []
        assert (outbox._boxes, outbox._blobs, outbox._wanted, outbox._cached) == ({}, {}, {}, 0)
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-17")
def test_mail_expires() -> None:
    async def work() -> None:
        clock, store = Clock(), InMemory()
        outbox = await opened(store, now=clock, limits=OutboxLimits(keep_seconds=100))
        await put(outbox, mail(0))
        clock.now += 60
        await put(outbox, mail(0))
        clock.now += 60
        outbox.expire()
        assert len(await read(outbox, 0)) == 1
        clock.now += 60
        outbox.expire()
        assert await read(outbox, 0) == []
        await outbox._tidy()
        assert await store.list(MAILS) == []
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-17")
def test_a_clock_that_jumps_ahead_expires_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        outbox = await opened()
        await put(outbox, mail(0, b"waits"))
        right = time.time
        monkeypatch.setattr(time, "time", lambda: right() + 30 * 86_400)
        outbox.expire()
        assert len(await read(outbox, 0)) == 1
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-17")
def test_mail_of_a_clock_that_ran_ahead_expires_too() -> None:
    async def work() -> None:
        clock, store = Clock(), InMemory()
        limits = OutboxLimits(keep_seconds=100)
        clock.now += 10_000
        await put(await opened(store, now=clock, limits=limits), mail(0))
        clock.now -= 10_000
        outbox = await restart(store, now=clock, limits=limits)
        await put(outbox, mail(0))
        numbers = [n for n, _ in await read(outbox, 0)]
        assert len(numbers) == 2
        clock.now += 101
        outbox.expire()
        assert await read(outbox, 0) == []

    run(work)


@pytest.mark.spec("HTTP-17", "CHAN-14")
def test_a_box_that_fills_is_announced_before_anything_is_dropped() -> None:
    async def work() -> None:
        told: list[bytes] = []
        outbox = await opened(limits=OutboxLimits(mails_per_box=8), tell=told.append)
        for _ in range(3):
            await put(outbox, mail(0))
        assert told == []
        await put(outbox, mail(0))
        assert told == [b"\1" + BOXES[0]]
        assert outbox.fullness() == [b"\1" + BOXES[0]]
        for _ in range(6):
            await put(outbox, mail(0))
        assert (len(await read(outbox, 0)), outbox.dropped) == (8, 2)
        numbers = [n for n, _ in await read(outbox, 0)]
        outbox.delete(BOXES[0], numbers[6])
        assert told[1:] == []
        outbox.delete(BOXES[0], numbers[7])
        assert told[1:] == [b"\0" + BOXES[0]]
        assert outbox.fullness() == []
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-17", "CHAN-14")
def test_a_full_outbox_is_announced() -> None:
    async def work() -> None:
        told: list[bytes] = []
        outbox = await opened(limits=OutboxLimits(mails=10), tell=told.append)
        for n in range(10):
            await put(outbox, mail(n % 3))
        assert told == [b"\1"]
        assert outbox.fullness() == [b"\1"]
        for _ in range(5):
            await put(outbox, mail(0))
        assert (outbox._mails, outbox.dropped) == (12, 3)
        for to in range(3):
            outbox.delete(BOXES[to], 2**64)
        assert told == [b"\1", b"\0"]
        await outbox.stop()

    run(work)


def test_what_is_no_mail_is_not_kept() -> None:
    async def work() -> None:
        store = Failing()
        outbox = await opened(store)
        whole = frame(mail(0), b"no mail", mail(1))
        await put(outbox)
        durable = asyncio.Event()
        outbox.put(whole + b"\0\0\0\xffcut", durable.set)
        await durable.wait()
        assert (len(await read(outbox, 0)), len(await read(outbox, 1)), store.puts) == (1, 1, 1)
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-13")
def test_two_claimants() -> None:
    async def work() -> None:
        store = Failing()
        outbox = await opened(store)
        first = asyncio.gather(outbox.claim(BOXES[0], b"a" * 32), outbox.claim(BOXES[0], b"b" * 32))
        assert await first == [True, False]
        assert await outbox.claim(BOXES[0], b"a" * 32)
        # A capability is of one box.
        assert not await outbox.claim(BOXES[1], b"a" * 32)
        assert outbox.box_of(b"a" * 32) == BOXES[0]
        assert outbox.box_of(b"b" * 32) is None
        assert b"a" * 32 not in b"".join(store._blobs.values())
        # What could not be written was not given.
        store.error = StoreFull("full")
        with pytest.raises(StoreFull):
            await outbox.claim(BOXES[1], b"c" * 32)
        store.error = None
        assert await outbox.claim(BOXES[1], b"d" * 32)
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-13", "HTTP-17")
@pytest.mark.spec("HTTP-14")
@pytest.mark.parametrize("killed", [False, True])
def test_a_clock_that_goes_back_hides_no_mail(*, killed: bool) -> None:
    async def work() -> None:
        store, clock = InMemory(), Clock()
        outbox = await opened(store, now=clock)
        await put(outbox, mail(0, b"read"))
        ((place, _),) = await read(outbox, 0)
        outbox.delete(BOXES[0], place + 1)
        await outbox._tidy()
        if killed:
            outbox = await restart(store, now=clock)
        # Its client has read up to there, and the box is empty. The first comes while the clock is behind.
        clock.now -= 86_400
        await put(outbox, mail(0, b"behind"))
        clock.now += 2 * 86_400
        await put(outbox, mail(0, b"ahead"))
        assert len(await read(outbox, 0, place)) == 2
        await outbox.stop()

    run(work)


def test_claims_are_bounded_and_boxes_with_mail_keep_theirs() -> None:
    async def work() -> None:
        store = InMemory()
        outbox = await opened(store, limits=OutboxLimits(claims=2))
        await put(outbox, mail(0))
        assert await outbox.claim(BOXES[0], b"a" * 32)
        assert await outbox.claim(BOXES[1], b"b" * 32)
        assert await outbox.claim(BOXES[2], b"c" * 32)
        assert outbox.box_of(b"a" * 32) == BOXES[0]
        assert outbox.box_of(b"b" * 32) is None
        await outbox._tidy()
        assert len(await store.list(CLAIMS)) == 2
        await put(outbox, mail(2))
        # Nobody's mail is given up for a newcomer.
        assert not await outbox.claim(BOXES[1], b"b" * 32)
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-17")
def test_readers_that_wait() -> None:
    async def work() -> None:
        outbox = await opened(limits=OutboxLimits(readers=2, readers_per_box=1))
        one = asyncio.create_task(outbox.wait(BOXES[0], 30))
        await asyncio.sleep(0)
        assert not await outbox.wait(BOXES[0], 30)
        two = asyncio.create_task(outbox.wait(BOXES[1], 30))
        await asyncio.sleep(0)
        await put(outbox, mail(0))
        assert await one
        one = asyncio.create_task(outbox.wait(BOXES[0], 30))
        await asyncio.sleep(0)
        # Who waited longest makes room, and learns that it is not for mail.
        assert await outbox.wait(BOXES[2], 0.01)
        assert not await two
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert (len(outbox._readers), list(outbox._boxes)) == (0, [BOXES[0]])
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-14")
def test_mail_that_goes_while_it_is_read() -> None:
    """A poll waits for the store; meanwhile another of the same client deletes, and the blob goes."""

    class Slow(InMemory):
        def __init__(self) -> None:
            super().__init__()
            self.asked, self.go = asyncio.Event(), asyncio.Event()

        async def get(self, name: str) -> tuple[bytes, str] | None:
            if name.startswith(MAILS):
                self.asked.set()
                await self.go.wait()
            return await super().get(name)

    async def work() -> None:
        store = Slow()
        outbox = await opened(store)
        await put(outbox, mail(0))
        outbox._cache.clear()
        outbox._cached = 0
        reading = asyncio.create_task(read(outbox, 0))
        await store.asked.wait()
        outbox.delete(BOXES[0], 2**63)
        assert BOXES[0] not in outbox._boxes
        await outbox._tidy()
        store.go.set()
        assert await reading == []
        assert outbox.sizes()["mails"] == 0
        await outbox.stop()

    run(work)


@pytest.mark.spec("HTTP-19")
def test_senders_are_kept_with_their_mail() -> None:
    async def work() -> None:
        store, clock = Failing(), Clock()
        outbox = await opened(store, now=clock, limits=OutboxLimits(keep_seconds=100))
        import hashlib

        digests = [hashlib.sha512(b"conclave/1 instance-claims\0%d" % n).digest() for n in range(8)]
        outbox.announce(b"0", b"info 0")
        assert await store.list(INSTANCES) == []
        await put(outbox, mail(0, digest=digests[0]))
        assert len(await store.list(INSTANCES)) == 1
        # Mail of a boot whose evidence is published only later.
        await put(outbox, mail(0, digest=digests[1]))
        assert await outbox.info(digests[1]) is None
        outbox.announce(b"1", b"info 1")
        assert await outbox.info(digests[1]) == b"info 1"
        # Newer endorsements take the place of older ones.
        outbox.announce(b"0", b"info 0, newer")
        await outbox._tidy()
        for n in range(2, 8):
            outbox.announce(b"%d" % n, b"info")
        again = await restart(store, now=clock, limits=OutboxLimits(keep_seconds=100))
        for kept in (outbox, again):
            assert await kept.info(digests[0]) == b"info 0, newer"
            assert await kept.info(digests[1]) == b"info 1"
        assert await again.info(digests[7]) is None
        clock.now += 200
        again.expire()
        await again._tidy()
        # As long as no boot runs, mail of these may still come out of the state of one.
        assert len(await store.list(INSTANCES)) == 2
        again.announce(b"8", b"info 8")
        again.expire()
        await again._tidy()
        assert await store.list(INSTANCES) == []
        assert await again.info(digests[0]) is None

    run(work)


def test_a_store_that_fails_is_tried_until_it_takes_the_mail() -> None:
    async def work() -> None:
        events: list[dict[str, Any]] = []
        store = Failing()
        outbox = await opened(store, on_event=events.append)
        for error, after_all in ((StoreFull("full"), False), (StoreUnavailable("gone"), True)):
            store.error, store.after_all = error, after_all
            kept: list[bool] = []
            outbox.put(frame(mail(0)), lambda kept=kept: kept.append(True))  # type: ignore[misc]
            while not outbox.trouble:
                await asyncio.sleep(0.01)
            assert ("full" if error.code == "store-full" else "not reachable") in outbox.trouble
            assert not kept
            store.error = None
            while not kept:
                await asyncio.sleep(0.01)
            assert not outbox.trouble
        # The second writing seemed to fail, and did not: the same numbers, so one mail.
        again = await restart(store)
        assert len(await read(again, 0)) == len(await read(outbox, 0)) == 2
        assert [e["event"] for e in events] == ["store"] * 4
        await outbox.stop()

    run(work)


# The gate ----------------------------------------------------------------------------


class Gated:
    """A gate, what it let through, and the writings that it waits for."""

    def __init__(self, patience: float = 60.0) -> None:
        self.out: list[tuple[int, bytes]] = []
        self.keeping: list[Callable[[], None]] = []
        self.gate = Gate(lambda _, durable: self.keeping.append(durable), self.deliver, patience_seconds=patience)

    def deliver(self, frames: list[Frame]) -> None:
        self.out += [(f.request, f.payload) for f in frames]

    def take(self, kind: Kind, request: int, payload: bytes = b"") -> None:
        frame = Frame(kind, request, payload)
        if not self.gate.holds(frame):
            self.deliver([frame])


@pytest.mark.spec("CHAN-13")
def test_replies_wait_for_the_mail_before_them_and_for_no_other() -> None:
    async def work() -> None:
        g = Gated()
        g.take(Kind.DONE, 1, b"at once")
        g.take(Kind.POST, 0, b"mail")
        g.take(Kind.REPLY, 2, b"a")
        g.take(Kind.DONE, 2, b"b")
        g.take(Kind.POST, 0, b"more")
        g.take(Kind.DONE, 3, b"c")
        g.take(Kind.SIGNED, 4, b"no answer to a mail")
        g.take(Kind.INSTANCE, 5)
        assert g.out == [(1, b"at once"), (4, b"no answer to a mail"), (5, b"")]
        assert g.gate.held == 11 + 5 * weight(Frame(Kind.DONE, 0, b""))
        g.keeping[1]()
        assert len(g.out) == 3
        g.keeping[0]()
        assert g.out[3:] == [(2, b"a"), (2, b"b"), (3, b"c")]
        g.take(Kind.DONE, 6)
        assert g.out[-1] == (6, b"")
        assert g.gate.held == 0

    run(work)


@pytest.mark.spec("CHAN-13")
def test_a_part_is_let_through_when_its_mail_is_durable() -> None:
    async def work() -> None:
        g = Gated()
        g.take(Kind.POST, 0)
        g.take(Kind.DONE, 1)
        g.take(Kind.POST, 0)
        g.take(Kind.DONE, 2)
        g.keeping[0]()
        assert g.out == [(1, b"")]
        g.keeping[1]()
        assert g.out == [(1, b""), (2, b"")]

    run(work)


@pytest.mark.spec("CHAN-13")
def test_after_patience_replies_become_errors_until_the_store_takes_mail() -> None:
    async def work() -> None:
        g = Gated(patience=0.01)
        g.take(Kind.POST, 0, b"mail")
        g.take(Kind.DONE, 1, b"secret")
        while not g.out:
            await asyncio.sleep(0.001)
        g.take(Kind.DONE, 2, b"secret")
        assert g.out == [(1, b"store"), (2, b"store")]
        assert g.gate.held == weight(Frame(Kind.POST, 0, b"mail"))
        g.keeping[0]()
        g.take(Kind.DONE, 3, b"again")
        assert g.out[2:] == [(3, b"again")]
        assert g.gate.held == 0

    run(work)


def test_a_gate_of_a_boot_that_ended() -> None:
    async def work() -> None:
        g = Gated()
        g.take(Kind.POST, 0)
        g.take(Kind.DONE, 1)
        g.gate.close()
        g.keeping[0]()
        assert g.out == []

    run(work)
