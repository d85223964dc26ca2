"""A client's upload: one batch after the other, in order, the next one encrypted while one is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from conclave._chunkheader import MAX_CHUNKS, MAX_CONTENT, split_chunks
from conclave._crypto import AeadKey, Secret
from conclave.client import _upload
from conclave.mail.stream import Chunk, ChunkOpener, ChunkSealer, Items

PART = bytes(MAX_CONTENT)
TAKEN, REFUSED, NO_ROOM = 204, 409, 429


class Counting(ChunkSealer):
    """A sealer, and how many chunks it made."""

    made = 0

    def seal(self, *args: Any, **marks: Any) -> tuple[bytes, bytes]:
        self.made += 1
        return super().seal(*args, **marks)


class Rig:
    """An uploader and the other end, which answers when it is told to."""

    def __init__(self, source: Any) -> None:
        secret = Secret.random()
        place: dict[str, Any] = {"direction": 1, "session_id": bytes(16), "counter": 7}
        self.sealer = Counting(AeadKey(secret), **place)
        self.uploader = _upload.Uploader(
            SimpleNamespace(sealer=self.sealer),  # type: ignore[arg-type]
            source,
            self._post,
            raw=True,
        )
        self.leaves = True
        self.bodies: list[bytes] = []
        self.items: list[bytes] = []
        self.chunks: list[Chunk] = []
        self.cancelled = 0
        self._opener = ChunkOpener(AeadKey(secret), **place)
        self._joined = Items()
        self._answer: asyncio.Future[int] | None = None
        self._on_its_way: Callable[[], None] = lambda: None
        self.running = asyncio.ensure_future(self.uploader.run())

    async def _post(self, body: bytes, on_its_way: Callable[[], None]) -> int:
        assert self._answer is None, "two batches at once"
        self.bodies.append(body)
        self._answer = asyncio.get_running_loop().create_future()
        self._on_its_way = on_its_way
        if self.leaves:
            on_its_way()
        try:
            status = await self._answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._answer = None
        if status == TAKEN:
            for data in split_chunks(memoryview(body)):
                self.chunks.append(self._opener.open(data))
                self.items += self._joined.add(self.chunks[-1])
        return status

    async def leave(self) -> None:
        """All of the batch is on its way now."""
        self._on_its_way()
        await self.settle()

    async def answer(self, status: int | Exception = TAKEN) -> None:
        """Answer the batch under way, and have everything go as far as it can."""
        assert self._answer is not None, "no batch is under way"
        if isinstance(status, Exception):
            self._answer.set_exception(status)
        else:
            self._answer.set_result(status)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def cancel(self) -> None:
        self.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.running


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run that in a loop; it leaves no task, and nothing to complain of."""

    async def main() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await work()
        # A generator that was left in the middle is closed by the loop.
        for _ in range(50):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not complaints

    asyncio.run(main())


class Slow:
    """A source whose items are given one by one."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = False

    def give(self, *items: Any) -> None:
        for item in items:
            self._queue.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while (item := await self._queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


@pytest.mark.spec("MAIL-23", "MAIL-24")
def test_every_batch_in_its_turn() -> None:
    async def work() -> None:
        given = [n.to_bytes(2, "big") * (MAX_CONTENT // 2) for n in range(4 * MAX_CHUNKS)]
        rig = Rig(given)
        await rig.settle()
        while not rig.running.done():
            await rig.answer()
        assert rig.items == given
        assert rig.chunks[-1].final
        assert not rig.chunks[-1].error
        assert rig.uploader.refused is None

    run(work)


def test_a_lone_item_leaves_at_once_and_what_comes_meanwhile_goes_together() -> None:
    async def work() -> None:
        source = Slow()
        rig = Rig(source)
        source.give(b"one")
        await rig.settle()
        assert len(rig.bodies) == 1
        for item in (b"two", b"three", b"four"):
            source.give(item)
            await rig.settle()
        # They might still be joined by more.
        assert rig.sealer.made == 1
        await rig.answer()
        assert len(rig.bodies) == 2
        source.give(None)
        await rig.settle()
        await rig.answer()
        await rig.answer()
        assert rig.running.done()
        assert rig.items == [b"one", b"two", b"three", b"four"]

    run(work)


def test_a_whole_batch_is_encrypted_once_the_one_before_has_left() -> None:
    async def work() -> None:
        rig = Rig([PART] * 4 * MAX_CHUNKS)
        rig.leaves = False
        await rig.settle()
        assert rig.sealer.made == MAX_CHUNKS
        await rig.leave()
        # That one, and not another: memory is bounded.
        assert rig.sealer.made == 2 * MAX_CHUNKS
        assert len(rig.bodies) == 1
        await rig.answer()
        assert len(rig.bodies) == 2
        # The second has not left.
        assert rig.sealer.made == 2 * MAX_CHUNKS
        await rig.answer()
        # One of which nobody said that it left is followed by the next all the same.
        assert rig.sealer.made == 3 * MAX_CHUNKS
        await rig.cancel()

    run(work)


def test_the_last_batch_is_encrypted_meanwhile_even_if_it_is_small() -> None:
    async def work() -> None:
        source = Slow()
        rig = Rig(source)
        source.give(b"one")
        await rig.settle()
        source.give(b"two", None)
        await rig.settle()
        assert rig.sealer.ended
        assert len(rig.bodies) == 1
        await rig.answer()
        assert not rig.running.done()
        await rig.answer()
        assert rig.running.done()
        assert (rig.items, rig.chunks[-1].final) == ([b"one", b"two"], True)

    run(work)


def test_what_is_held_is_bounded() -> None:
    async def work() -> None:
        taken = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal taken
            while True:
                taken += 1
                yield PART

        rig = Rig(endless())
        await rig.settle()
        # Under way, encrypted, and waiting.
        assert taken <= 3 * (MAX_CHUNKS + 1)
        await rig.cancel()

    run(work)


def test_the_same_bytes_again_where_there_was_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_upload, "_AGAIN_SECONDS", (0.0,) * 4)

    async def work() -> None:
        rig = Rig([PART] * 2 * MAX_CHUNKS)
        await rig.settle()
        for _ in range(3):
            await rig.answer(NO_ROOM)
        assert len(set(rig.bodies)) == 1
        assert len(rig.bodies) == 4
        await rig.answer()
        assert rig.bodies[4] != rig.bodies[3]
        for _ in range(4):
            await rig.answer(NO_ROOM)
        # Enough: it is refused.
        assert rig.running.done()
        assert rig.uploader.refused is not None

    run(work)


@pytest.mark.parametrize("whole", [False, True])
def test_nothing_follows_a_batch_that_was_refused(whole: bool) -> None:
    async def work() -> None:
        source = Slow()
        rig = Rig(source)
        source.give(b"one")
        await rig.settle()
        source.give(*[PART if whole else b"two"] * 2 * MAX_CHUNKS)
        await rig.settle()
        assert rig.uploader.refused is None
        await rig.answer(REFUSED)
        assert rig.running.done()
        assert rig.uploader.refused is not None
        assert len(rig.bodies) == 1
        assert source.closed

    run(work)


def test_a_refusal_is_noticed_while_the_source_waits() -> None:
    """A source may wait for what the reply brings, which never comes once its batch was refused."""

    async def work() -> None:
        source = Slow()
        rig = Rig(source)
        source.give(b"one")
        await rig.settle()
        await rig.answer(REFUSED)
        assert rig.uploader.refused is not None
        assert rig.running.done()
        assert source.closed

    run(work)


def test_the_last_batch_may_be_refused_too() -> None:
    async def work() -> None:
        rig = Rig([b"one"])
        await rig.settle()
        assert not rig.running.done()
        await rig.answer(REFUSED)
        assert rig.running.done()
        assert rig.uploader.refused is not None

    run(work)


@pytest.mark.parametrize("waits", [False, True])
def test_what_sending_raises_is_raised(waits: bool) -> None:
    async def work() -> None:
        source = Slow()
        rig = Rig(source)
        source.give(b"one")
        await rig.settle()
        if not waits:
            source.give(b"two")
            await rig.settle()
        await rig.answer(RuntimeError("the client was closed"))
        assert rig.running.done()
        with pytest.raises(RuntimeError, match="was closed"):
            await rig.running

    run(work)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.spec("MAIL-22")
def test_a_source_that_fails_while_a_batch_is_under_way(sealed: bool) -> None:
    async def work() -> None:
        source, failure = Slow(), ValueError("of the caller")
        rig = Rig(source)
        source.give(b"one")
        await rig.settle()
        more = [PART] * MAX_CHUNKS if sealed else [b"two"]
        source.give(*more)
        await rig.settle()
        source.give(failure)
        await rig.settle()
        assert len(rig.bodies) == 1
        while not rig.running.done():
            await rig.answer()
        assert rig.items == [b"one", *more]
        assert (rig.chunks[-1].final, rig.chunks[-1].error) == (True, True)
        assert rig.uploader.failure is failure

    run(work)


@pytest.mark.parametrize("place", ["before", "reading", "under way", "leaving", "encrypted", "pausing"])
def test_it_may_be_cancelled_anywhere(place: str) -> None:
    async def work() -> None:
        source = Slow()
        rig = Rig(source)
        rig.leaves = place != "leaving"
        if place != "before":
            await rig.settle()
        if place not in ("before", "reading"):
            source.give(b"one")
            await rig.settle()
        if place == "encrypted":
            source.give(*[PART] * MAX_CHUNKS)
            await rig.settle()
            assert rig.sealer.made == 1 + MAX_CHUNKS
        if place == "pausing":
            await rig.answer(NO_ROOM)
        posted = len(rig.bodies)
        await rig.cancel()
        assert len(rig.bodies) == posted
        assert rig.cancelled == (place in ("under way", "leaving", "encrypted"))
        assert source.closed == (place != "before")

    run(work)


def test_nothing_is_sent_while_a_cancelled_source_takes_its_time() -> None:
    async def work() -> None:
        over = asyncio.Event()

        async def source() -> AsyncIterator[bytes]:
            try:
                yield b"one"
                await asyncio.Event().wait()
            finally:
                await over.wait()

        rig = Rig(source())
        await rig.settle()
        rig.running.cancel()
        await rig.settle()
        assert not rig.running.done()
        assert rig.cancelled == 1
        over.set()
        with pytest.raises(asyncio.CancelledError):
            await rig.running

    run(work)


def test_an_iterator_in_its_thread() -> None:
    async def work() -> None:
        def numbers() -> Iterator[bytes]:
            for n in range(5000):
                yield n.to_bytes(2, "big") * 500

        rig = Rig(numbers())
        while not rig.running.done():
            await rig.settle()
            if rig._answer is not None:
                await rig.answer()
        assert rig.items == list(numbers())

    run(work)
