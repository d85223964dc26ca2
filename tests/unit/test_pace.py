"""Constant rate and release at ticks, tick by tick: what a host sees of a busy and of an idle client."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conclave._crypto import DecryptionKey, SigningKey
from conclave._framing import Kind
from conclave.client import Client, ConstantRate, _pace, fixed, padme
from conclave.client._pace import MAX_IN_FLIGHT, Pace, TaskTicker, ThreadTicker, Turn, paced
from conclave.client.core import Answer, Exchange
from conclave.enclave import Enclave, rpc
from conclave.enclave._release import Release, seal_later
from conclave.errors import OverloadedError, TransportError
from conclave.mail import ClientSession, Conversation, Mailbox, Outcome, ReplyKind, RequestKind
from conclave.rpc.interface import interface_of

RATE = ConstantRate(timedelta(seconds=1), queue=2)


def pace(rate: ConstantRate = RATE) -> Pace:
    return Pace(rate, fixed(1024))


# Turns -------------------------------------------------------------------------------


@pytest.mark.spec("MAIL-42")
def test_one_leaves_at_each_tick_what_left_before_first() -> None:
    turns, log = pace(), list[str]()
    turns.enter(Turn(), lambda: log.append("first"))
    turns.enter(Turn(), lambda: log.append("second"))
    turns.enter(Turn(again=True), lambda: log.append("again"))
    assert [turns.tick() for _ in range(4)] == [False, False, False, True]
    assert log == ["again", "first", "second"]


def test_the_queue_is_bounded() -> None:
    turns = pace()
    turns.enter(Turn(), lambda: None)
    turns.enter(Turn(), lambda: None)
    with pytest.raises(OverloadedError, match="2 calls wait for their turn already; call less often"):
        turns.enter(Turn(), lambda: None)
    # What left before has its place.
    turns.enter(Turn(again=True), lambda: None)


def test_who_gives_up_takes_no_turn() -> None:
    turns, log = pace(), list[str]()

    def grant() -> None:
        log.append("granted")

    turns.enter(Turn(), grant)
    assert turns.leave(grant)
    assert turns.tick()
    assert not log
    turns.enter(Turn(), grant)
    turns.tick()
    assert not turns.leave(grant)


@pytest.mark.spec("MAIL-42")
def test_above_the_bound_ticks_pass_for_all_alike() -> None:
    turns, log = pace(), list[str]()
    assert all(turns.tick() for _ in range(MAX_IN_FLIGHT))
    turns.enter(Turn(), lambda: log.append("granted"))
    assert not turns.tick()
    assert not log
    turns.landed()
    assert not turns.tick()
    assert log == ["granted"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstantRate(timedelta(0)),
        lambda: ConstantRate(timedelta(days=2)),
        lambda: ConstantRate(timedelta(seconds=1), queue=0),
        lambda: ConstantRate(timedelta(seconds=1), queue=10**6),
        lambda: Pace(RATE, padme),
        lambda: Client("http://localhost:1", constraint="C:" + "0" * 64, pace=RATE),
    ],
)
def test_a_rate_that_hides_nothing_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"every is|queue is|padding=fixed"):
        make()


def test_an_enclave_that_answers_in_several_sizes_is_refused() -> None:
    class One(Enclave):
        padding = fixed(4096)

        @rpc
        def call(self) -> None: ...

    class Bare(Enclave):
        @rpc
        def call(self) -> None: ...

    class Two(One):
        @rpc(padding=fixed(8192))
        def call(self) -> None: ...

    pace().check_interface(interface_of(One))
    for cls in (Bare, Two):
        with pytest.raises(ValueError, match="differ in size"):
            pace().check_interface(interface_of(cls))


# Steps -------------------------------------------------------------------------------

GRANTED = Answer(200)


def mails(count: int, log: list[str]) -> Callable[[], Any]:
    def steps() -> Any:
        for n in range(count):
            log.append(f"made {n}")
            yield Exchange("POST", "/mail", b"%d" % n, mails=True)
        yield Exchange("GET", "/instance")
        return "done"

    return steps


def drive(steps: Any, grant: Callable[[], Answer]) -> list[str]:
    seen = []
    answer = None
    while True:
        try:
            step = next(steps) if answer is None else steps.send(answer)
        except StopIteration as stop:
            return [*seen, str(stop.value)]
        seen.append(f"turn {step.again}" if isinstance(step, Turn) else step.path)
        answer = _pace._GRANTED if isinstance(step, Turn) and grant() else Answer(200)


@pytest.mark.spec("MAIL-42")
def test_a_mail_is_made_at_its_turn_and_sent_again_at_another() -> None:
    turns, log = pace(), list[str]()
    turns.tick()
    turns.tick()
    answers = iter([False, True, True])
    seen = drive(paced(turns, mails(2, log)), lambda: next(answers))  # type: ignore[arg-type, return-value]
    assert seen == ["turn False", "turn False", "/mail", "turn True", "/mail", "/instance", "done"]
    assert turns._in_flight == 0


@pytest.mark.spec("MAIL-42")
def test_what_cannot_be_made_leaves_no_silence() -> None:
    turns, log = pace(), list[str]()
    turns.tick()

    def fails() -> Any:
        raise ValueError("too large")
        yield

    steps = paced(turns, fails, cover=mails(1, log))
    assert isinstance(next(steps), Turn)
    step = steps.send(_pace._GRANTED)
    assert isinstance(step, Exchange)
    assert step.path == "/mail"
    steps.send(Answer(200))
    with pytest.raises(ValueError, match="too large"):
        steps.send(Answer(200))
    assert turns._in_flight == 0


def test_a_turn_that_is_given_up_is_given_back() -> None:
    turns = pace()
    turns.tick()
    steps = paced(turns, mails(1, []))
    next(steps)
    steps.send(_pace._GRANTED)
    steps.close()
    assert turns._in_flight == 0


# Tickers -----------------------------------------------------------------------------


def _until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.001)


class Covers:
    def __init__(self) -> None:
        self.sent = 0

    def send(self) -> None:
        self.sent += 1

    async def send_later(self) -> None:
        self.sent += 1


def test_closing_wakes_threads_that_wait() -> None:
    covers = Covers()
    ticker = ThreadTicker(pace(ConstantRate(timedelta(days=1))), covers.send)
    ticker.start()
    told: list[BaseException] = []

    def call() -> None:
        try:
            ticker.wait(Turn(), 60.0)
        except TransportError as error:
            told.append(error)

    # The first tick comes at once, and is for a cover.
    _until(lambda: covers.sent)
    thread = threading.Thread(target=call)
    thread.start()
    _until(lambda: ticker.pace._first)
    ticker.close()
    thread.join()
    assert [str(e) for e in told] == ["the client was closed before this call left"]
    assert ticker._thread is not None
    ticker._thread.join()
    with pytest.raises(TransportError):
        ticker.wait(Turn(), 0.0)


def test_a_ticker_ends_with_its_client() -> None:
    held = [Covers()]
    ticker = ThreadTicker(pace(ConstantRate(timedelta(milliseconds=1))), held[0].send)
    ticker.start()
    _until(lambda: held[0].sent)
    held.clear()
    assert ticker._thread is not None
    ticker._thread.join()


@pytest.mark.anyio
async def test_tasks_wait_give_up_and_are_closed() -> None:
    covers = Covers()
    ticker = TaskTicker(pace(ConstantRate(timedelta(days=1), queue=3)), covers.send_later)
    ticker.start()
    await asyncio.sleep(0)
    assert (await ticker.wait(Turn(), 0.0)).status == 0
    assert not ticker.pace._first
    one, two = (asyncio.create_task(ticker.wait(Turn(), 60.0)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    with suppress(asyncio.CancelledError):
        await one
    before = ticker.pace._in_flight
    ticker.pace.tick()
    assert (await two).status == 200
    assert ticker.pace._in_flight == before + 1
    # Granted and cancelled in the same moment: the turn is given back.
    three = asyncio.create_task(ticker.wait(Turn(), 60.0))
    await asyncio.sleep(0)
    ticker.pace.tick()
    three.cancel()
    with suppress(asyncio.CancelledError):
        await three
    assert ticker.pace._in_flight in (before + 1, before + 2)
    four = asyncio.create_task(ticker.wait(Turn(), 60.0))
    await asyncio.sleep(0)
    await ticker.close()
    with pytest.raises(TransportError, match="closed"):
        await four


# Release -----------------------------------------------------------------------------


class Held:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int, bytes]] = []
        self.release = Release(timedelta(hours=1), lambda *frame: self.sent.append(frame))

    def tick(self) -> list[tuple[int, int, bytes]]:
        self.sent.clear()
        self.release.tick()
        return list(self.sent)


@pytest.mark.spec("MAIL-43")
def test_answers_leave_at_the_second_tick_in_the_order_of_their_requests() -> None:
    held = Held()
    # A host's ids are its own affair: their order is none, and one can name two mails.
    one, two, three = [held.release.arrived(request) for request in (3, 2, 3)]
    # The last one is ready at once, and the first only after a tick.
    held.release.send(Kind.DONE, three, b"three")
    held.release.send(Kind.REPLY, two, b"two")
    assert held.tick() == []
    held.release.send(Kind.DONE, two, b"two and last")
    held.release.send(Kind.DONE, one, b"one")
    assert held.tick() == [
        (Kind.DONE, 3, b"one"),
        (Kind.REPLY, 2, b"two"),
        (Kind.DONE, 2, b"two and last"),
        (Kind.DONE, 3, b"three"),
    ]
    assert held.tick() == []


@pytest.mark.spec("MAIL-43")
@pytest.mark.parametrize("kind", [Kind.ERROR, Kind.SIGNED])
def test_a_word_under_the_id_of_a_mail_does_not_make_its_answer_leave_earlier(kind: Kind) -> None:
    held = Held()
    mail = held.release.arrived(7)
    held.release.send(kind, held.release.arrived(7), b"word")
    held.release.send(kind, 7, b"word")
    held.release.send(Kind.DONE, mail, b"answer")
    assert held.tick() == []
    assert held.tick() == [(Kind.DONE, 7, b"answer")]


@pytest.mark.spec("MAIL-43")
def test_what_is_late_or_unasked_leaves_at_the_next_tick() -> None:
    held = Held()
    mail = held.release.arrived(1)
    held.tick()
    held.tick()
    held.tick()
    held.release.send(Kind.DONE, mail, b"late")
    held.release.send(Kind.REPLY, 0, b"unasked")
    assert held.tick() == [(Kind.REPLY, 0, b"unasked"), (Kind.DONE, 1, b"late")]


@pytest.mark.spec("MAIL-43")
@pytest.mark.parametrize("kind", [Kind.ERROR, Kind.INSTANCE, Kind.SIGNED])
def test_what_tells_nothing_leaves_at_once(kind: Kind) -> None:
    held = Held()
    held.release.send(kind, held.release.arrived(7), b"word")
    assert held.sent == [(kind, 7, b"word")]


@pytest.mark.spec("MAIL-43")
@settings(deadline=None)
@given(st.permutations(range(5)), st.permutations(range(5)))
def test_counters_tell_nothing_of_what_was_ready_first(one: list[int], other: list[int]) -> None:
    class Session:
        def __init__(self) -> None:
            self.counter = itertools.count()

        def encrypt(self, reply: Any) -> bytes:
            return b"%d" % next(self.counter)

    seen = []
    for ready in (one, other):
        held, session = Held(), Session()
        tickets = [held.release.arrived(request + 1) for request in range(5)]
        for request in ready:
            held.release.send(Kind.DONE, tickets[request], seal_later(session, None))  # type: ignore[arg-type]
        held.tick()
        seen.append(held.tick())
    assert seen[0] == seen[1] == [(Kind.DONE, n + 1, b"%d" % n) for n in range(5)]


@pytest.mark.parametrize("every", [5, timedelta(0), timedelta(days=1)])
def test_an_impossible_period_is_told_when_the_class_is_made(every: Any) -> None:
    with pytest.raises(TypeError, match=r"Wrong\.release_every is a timedelta"):

        class Wrong(Enclave):
            release_every = every


@pytest.mark.anyio
async def test_ticks_come_by_themselves() -> None:
    sent: list[int] = []
    done = asyncio.Event()

    def send(kind: int, request: int, *payload: bytes) -> None:
        sent.append(request)
        done.set()

    release = Release(timedelta(milliseconds=1), send)
    release.start(asyncio.get_running_loop())
    release.send(Kind.DONE, release.arrived(5), b"")
    await done.wait()
    assert sent == [5]


# Both together, seen by a host -------------------------------------------------------

ROUNDS = 8


class Observed:
    """Three clients at a constant rate and one enclave that releases at ticks, and what passes between them."""

    def __init__(self, ready: Callable[[int], int]) -> None:
        self.trace: list[tuple[str, int, int, int]] = []
        self.ready = ready
        key = DecryptionKey.generate()
        self.release = Release(timedelta(hours=1), self._to_host)
        self.box = Mailbox(key=key, claims_digest=bytes(64), padding=fixed(2048), seal=seal_later)
        self.clients = []
        for _ in range(3):
            conversation = Conversation()
            conversation.use(
                ClientSession(
                    claims_digest=bytes(64),
                    encryption_key=key.public,
                    identity=SigningKey.generate(),
                    reply_key=key.public,
                    topic="t",
                    padding=fixed(1024),
                ),
                new_boot=False,
            )
            self.clients.append((Pace(ConstantRate(timedelta(hours=1)), fixed(1024)), conversation))
        self.waiting: dict[int, Any] = {}
        self.running: list[tuple[int, int, Callable[[], None]]] = []
        self.answered = 0

    def call(self, client: int, size: int) -> None:
        turns, conversation = self.clients[client]

        def steps() -> Any:
            item = conversation.add(RequestKind.CALL, bytes(size))
            answer = yield Exchange("POST", "/mail", item.encrypted, mails=True)
            conversation.receive(answer.body)
            self.answered += item.done

        work = paced(turns, steps, cover=lambda: self._cover(conversation))
        assert isinstance(next(work), Turn)
        turns.enter(Turn(), lambda: self._leave(client, work.send(_pace._GRANTED), work))

    def _cover(self, conversation: Conversation) -> Any:
        item = conversation.cover()
        answer = yield Exchange("POST", "/mail", item.encrypted, mails=True)
        conversation.receive(answer.body)
        assert item.done

    def _leave(self, client: int, step: Any, work: Any) -> None:
        assert isinstance(step, Exchange)
        request = len(self.trace) + 1
        self.trace.append(("out", client, len(step.body), int.from_bytes(step.body[24:32], "big")))
        self.waiting[request] = (client, work)
        ticket = self.release.arrived(request)
        received = self.box.receive(step.body, ticket)
        if received.outcome is Outcome.ANSWERED:
            self.release.send(Kind.DONE, ticket, received.mails[0])
            return
        channel, asked = received.channel, received.request
        assert channel is not None
        assert asked is not None
        handled = channel.known(asked.sequence)
        assert handled is not None
        self.release.wait(ticket, handled)

        def finish() -> None:
            assert self.box.reply(channel, asked.sequence, ReplyKind.RESULT, asked.body, last=True) is not None

        late = self.ready(request)
        self.running.append((len(self.trace) + late, late, finish))

    def _to_host(self, kind: int, request: int, mail: bytes) -> None:
        client, work = self.waiting.pop(request)
        self.trace.append(("back", client, len(mail), int.from_bytes(mail[24:32], "big")))
        with suppress(StopIteration, ValueError):
            step = work.send(Answer(200, mail))
            self._leave(client, step, work)

    def round(self) -> None:
        for client, (turns, conversation) in enumerate(self.clients):
            if turns.tick():
                work = paced(turns, lambda c=conversation: self._cover(c), granted=True)  # type: ignore[misc]
                self._leave(client, next(work), work)
        running, self.running = sorted(self.running, key=lambda r: r[0]), []
        for _, late, finish in running:
            # Some handlers need until after the next tick.
            if late > 3:
                self.running.append((0, 0, finish))
            else:
                finish()
        self.release.tick()


@pytest.mark.spec("MAIL-42", "MAIL-43", "T-39")
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, ROUNDS - 1), st.integers(0, 2), st.integers(0, 1200)), max_size=16),
    st.integers(0, 2**32),
)
def test_a_host_sees_the_same_of_busy_and_of_idle_clients(calls: list[tuple[int, int, int]], seed: int) -> None:
    """Whatever is called, however large, whether it can be made at all, whichever answer is ready first."""
    traces = []
    for made in (calls, []):
        random = Random(seed)
        observed = Observed(lambda _, random=random: random.randrange(6))  # type: ignore[misc]
        for now in range(ROUNDS):
            for when, client, size in made:
                if when == now:
                    observed.call(client, size)
            observed.round()
        traces.append(observed.trace)
        fit = [c for c in made if c[2] <= 1024 - 40 and c[0] < ROUNDS - 6]
        assert observed.answered >= min(1, len(fit))
    assert traces[0] == traces[1]
    assert {size for way, _, size, _ in traces[0] if way == "back"} == {68 + 2048 + 16}
