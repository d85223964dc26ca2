"""Transactions of an enclave that keeps state: all or nothing, in one record, and never one lost to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import pytest
from tests._boots import Boot, Caller, result

from conclave._framing import Frame, Kind
from conclave.enclave import Enclave, Mail, rpc
from conclave.errors import StateError
from conclave.mail import ReplyKind, RequestKind
from conclave.mail._wire import CONTEXT_SIZE, version_of
from conclave.mail.stream import Items
from conclave.persistence.context import Context
from conclave.rpc.interface import encode_call

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024


class Desk(Enclave):
    persistence = "code"

    def on_start(self) -> None:
        self.go = asyncio.Event()
        self.runs = 0

    @rpc
    def put(self, key: str, value: int) -> int:
        self.map.of(int)[key] = value
        return value

    @rpc
    def read(self, key: str) -> int:
        return self.map.of(int).get(key, 0)

    @rpc
    async def raised(self, key: str) -> int:
        self.runs += 1
        counts = self.map.of(int)
        before = counts.get(key, 0)
        await self.go.wait()
        counts[key] = before + 1
        return before + 1

    @rpc
    async def told(self, key: str) -> int:
        self.runs += 1
        value = self.map.of(int).get(key, 0)
        await self.go.wait()
        self.post(self.sender, str(value).encode(), topic="a")
        return value

    @rpc
    def large(self, size: int) -> int:
        self.map["large"] = bytes(size)
        self.post(self.sender, b"with it", topic="t")
        return size

    @rpc
    async def stubborn(self) -> int:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.atomically(lambda: self.map.of(int).update(after=1))
        return 1

    @rpc
    async def total(self, items: AsyncIterator[int]) -> int:
        self.map.of(int)["total"] = sum([item async for item in items])
        return self.map.of(int)["total"]

    @rpc
    async def leaves(self, items: AsyncIterator[int]) -> bytes:
        self.map["count"] = bytes([item async for item in items])
        self.late = asyncio.create_task(self._later())
        # More than its client takes now: the stream stays open.
        return bytes(4 * MIB)

    async def _later(self) -> None:
        await self.go.wait()
        self.atomically(lambda: self.map.update(late=b"own"))
        self.map["lost"] = b""

    @rpc
    async def watch(self, key: str) -> AsyncIterator[int]:
        yield self.map.of(int).get(key, 0)

    async def on_mail(self, mail: Mail) -> bytes:
        self.map.of(int)[str(mail.sequence)] = 1
        for _ in range(int(mail.body)):
            mail.reply(b"r" * 12_000 if mail.envelope else b"r", envelope=mail.envelope)
        await self.go.wait()
        return b"last"


async def begin(stored: list[bytes] | None = None) -> Boot:
    boot = Boot(Desk, [] if stored is None else stored)
    await boot.service.start()
    return boot


async def settle(boot: Boot) -> None:
    for _ in range(20):
        await asyncio.sleep(0)
    boot.service.flush()


async def test_two_who_write_the_same_over_the_same_are_both_counted() -> None:
    boot = await begin()
    one, other = Caller(boot, "a"), Caller(boot, "b")
    (first, at), (second, then) = one.call("raised", "n"), other.call("raised", "n")
    await settle(boot)
    boot.enclave.go.set()  # type: ignore[attr-defined]
    await settle(boot)
    one.take(at)
    other.take(then)
    assert sorted([result(first), result(second)]) == [1, 2]
    assert boot.enclave.runs == 3  # type: ignore[attr-defined]


async def test_mail_of_what_another_has_changed_meanwhile_is_of_the_new_state() -> None:
    boot = await begin()
    one, other = Caller(boot, "a"), Caller(boot, "b")
    item, at = one.call("told", "n")
    await settle(boot)
    other.call("put", "n", 5)
    boot.service.flush()
    boot.enclave.go.set()  # type: ignore[attr-defined]
    await settle(boot)
    one.take(at)
    assert result(item) == 5


async def test_numbers_of_mail_are_in_the_record_of_their_mail() -> None:
    """Otherwise a crash between the two records would leave a number that no mail ever has."""
    boot = await begin()
    caller = Caller(boot)
    # Two in one batch, the second too large to go along with the first.
    caller.call("put", "n", 1)
    caller.call("large", 3 * MIB)
    boot.service.flush()
    for change in boot.changes:
        assert any(key.startswith(b"p") for key, _ in change.mail) == bool(change.posts)
    assert sum(len(change.posts) for change in boot.changes) == 1


async def test_replies_for_which_there_is_no_room_any_more_undo_all_of_it() -> None:
    """Both were let reply when there was room, and only one of them finds it when it ends."""
    boot = await begin()
    caller = Caller(boot)
    items = []
    for _ in range(2):
        item = caller.conversation.add(RequestKind.MAIL, b"1500")
        items.append((item, boot.mail(item.encrypted)))
    await settle(boot)
    boot.enclave.go.set()  # type: ignore[attr-defined]
    await settle(boot)
    for _, route in items:
        caller.take(route)
    kinds = [item.replies[-1].kind for item, _ in items]
    assert kinds == [ReplyKind.MAIL, ReplyKind.CALL_ERROR]
    assert [len(item.replies) for item, _ in items] == [1501, 1]
    assert dict(boot.state.log.table.snapshot().scan()).keys() == {"0"}
    assert not boot.broken


async def test_envelopes_count_among_what_leaves_with_a_transaction() -> None:
    boot = await begin()
    caller = Caller(boot)
    boot.enclave.go.set()  # type: ignore[attr-defined]
    item = caller.conversation.add(RequestKind.MAIL, b"1100", envelope=bytes(4096))
    route = boot.mail(item.encrypted)
    await settle(boot)
    caller.take(route)
    assert item.replies[-1].kind == ReplyKind.CALL_ERROR
    assert not boot.broken
    assert len(boot.state.log.table) == 0


async def test_any_number_of_acknowledgements_fit_records() -> None:
    """A client may acknowledge more at one time than one record holds, and nothing else be done meanwhile."""
    boot = await begin()
    caller = Caller(boot)
    for mail in range(80):
        for number in range(1000):
            # As a mail does that acknowledges the replies to a thousand requests.
            boot.state.put(b"q" + mail.to_bytes(4, "big") + number.to_bytes(4, "big") + bytes(290), None, lazily=True)
        boot.mail(caller.conversation.cover().encrypted)
    item, route = caller.call("put", "n", 1)
    boot.service.flush()
    caller.take(route)
    assert result(item) == 1
    assert not boot.broken


@pytest.mark.spec("MAIL-71")
async def test_a_stream_begins_with_a_context_of_all_that_it_reads() -> None:
    boot = await begin()
    writer, reader = Caller(boot, "a"), Caller(boot, "b")
    writer.call("put", "n", 5)
    # In the same batch, before anything is sealed.
    _, mail, _, _ = reader.conversation.open_stream(encode_call("watch", ["n"]), upload=False)
    route = boot.mail(mail)
    boot.service.flush()
    boot.service.handle([Frame(Kind.CREDIT, route, (8).to_bytes(4, "big"))])
    await settle(boot)
    head = reader.session.decrypt(boot.answers[route][0])
    assert head.kind == ReplyKind.STREAM
    assert version_of(head.context) == boot.state.log.version


@pytest.mark.spec("MAIL-71")
async def test_the_result_of_a_stream_has_a_context_of_what_the_stream_changed() -> None:
    boot = await begin()
    caller = Caller(boot)
    _, mail, _, sealer = caller.conversation.open_stream(encode_call("total", []), upload=True)
    route = boot.mail(mail)
    boot.service.flush()
    before = boot.state.log.version
    chunk = b"".join(sealer.seal(b"\7", item=True, final=True))
    boot.service.handle([Frame(Kind.CREDIT, route, (8).to_bytes(4, "big"))])
    boot.service.handle([Frame(Kind.CHUNKS, 99, len(chunk).to_bytes(4, "big") + chunk)])
    await settle(boot)
    head, *chunks = boot.answers[route]
    assert version_of(caller.session.decrypt(head).context) == before
    opener, items = caller.session.stream_opener(int.from_bytes(head[24:32], "big")), Items()
    (item,) = [item for data in chunks for item in items.add(opener.open(memoryview(data)))]
    assert item[CONTEXT_SIZE:] == b"\7"
    assert version_of(item) == boot.state.log.version == before + 1
    caller.contexts.take(item[:CONTEXT_SIZE], instance=caller.boot.service.claims.digest())
    # The record left first.
    assert boot.left.index((Kind.COMMIT, 0), 1) < boot.left.index((Kind.DONE, route))


async def test_a_task_that_a_stream_left_behind_changes_nothing_of_what_was_committed() -> None:
    stored: list[bytes] = []
    boot = await begin(stored)
    caller = Caller(boot)
    _, mail, _, sealer = caller.conversation.open_stream(encode_call("leaves", []), upload=True)
    boot.mail(mail)
    boot.service.flush()
    chunk = b"".join(sealer.seal(b"\7", item=True, final=True))
    boot.service.handle([Frame(Kind.CHUNKS, 99, len(chunk).to_bytes(4, "big") + chunk)])
    await settle(boot)
    assert len(boot.service.streams) == 1
    boot.enclave.go.set()
    await settle(boot)
    # An error rather than a change that is nobody's; a transaction of its own is one.
    with pytest.raises(RuntimeError, match="within handlers"):
        boot.enclave.late.result()
    assert dict(Boot(Desk, stored).state.log.table.snapshot().scan()) == {"count": b"\7", "late": b"own"}


async def test_what_an_enclave_with_ticks_does_last_is_in_a_record() -> None:
    class Ticks(Enclave):
        persistence = "code"
        release_every = timedelta(seconds=60)

        def on_stop(self) -> None:
            self.atomically(lambda: self.map.of(int).update(last=1))

    boot = Boot(Ticks, stored := [])
    await boot.service.start()
    await boot.service.stop()
    boot.service.flush()
    assert dict(Boot(Ticks, stored).state.log.table.snapshot().scan()) == {"last": b"\1"}


async def test_what_an_enclave_does_last_loses_nobodys_update() -> None:
    class Ends(Enclave):
        persistence = "code"

        def on_start(self) -> None:
            self.go = asyncio.Event()

        @rpc
        def put(self, value: int) -> None:
            self.map.of(int)["n"] = value

        async def on_stop(self) -> None:
            before = self.map.of(int).get("n", 0)
            await self.go.wait()
            self.map.of(int)["n"] = before + 1

    boot = Boot(Ends, stored := [])
    await boot.service.start()
    stopping = asyncio.create_task(boot.service.stop())
    await settle(boot)
    Caller(boot).call("put", 5)
    boot.service.flush()
    boot.enclave.go.set()  # type: ignore[attr-defined]
    await stopping
    assert dict(Boot(Ends, stored).state.log.table.snapshot().scan()) == {"n": b"\5"}


@pytest.mark.spec("MAIL-43")
async def test_a_halt_between_two_ticks_does_not_tell_which_handlers_had_ended() -> None:
    """The host chose the moment."""

    class Ticks(Desk):
        release_every = timedelta(hours=1)

    boot = Boot(Ticks, [])
    await boot.service.start()
    done, running = Caller(boot, "a"), Caller(boot, "b")
    routes = [done.call("put", "n", 5)[1], running.call("stubborn")[1]]
    await settle(boot)
    boot.service._stop(Context(9, bytes(16), bytes(32), b""))
    told = [(Kind.ERROR, route) for route in routes]
    assert boot.left[-2:] == told
    await settle(boot)
    assert boot.service._release is not None
    for _ in range(3):
        boot.service._release.tick()
    assert [frame for frame in boot.left if frame[1] in routes] == told


async def test_nothing_is_committed_after_a_halt() -> None:
    boot = await begin()
    caller = Caller(boot)
    caller.call("stubborn")
    await settle(boot)
    stored, version = len(boot.stored), boot.state.log.version
    boot.service._stop(Context(9, bytes(16), bytes(32), b""))
    await settle(boot)
    assert (len(boot.stored), boot.state.log.version, len(boot.state.log.table)) == (stored, version, 0)
    with pytest.raises(StateError, match="this boot has stopped"):
        boot.service.atomically(lambda: None)


@pytest.mark.parametrize("where", ["apply", "record"])
async def test_a_state_that_no_record_describes_answers_nobody(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = await begin()
    caller = Caller(boot)

    def no_memory(*_: object) -> None:
        raise MemoryError

    if where == "apply":
        monkeypatch.setattr(boot.state.log.table.__class__, "apply", no_memory)
    else:
        boot.state.log.record = no_memory  # type: ignore[method-assign,assignment]
    left = len(boot.left)
    caller.call("put", "n", 1)
    with suppress(MemoryError):
        boot.service.flush()
    caller.call("read", "n")
    boot.service.flush()
    assert boot.broken
    assert boot.left[left:] == []
