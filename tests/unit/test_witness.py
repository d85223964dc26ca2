"""What enclave and witness say: which steps are taken, which answers count, what an anchor proves."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._witness import Branch, Desk, run

from conclave import _codec
from conclave._crypto import ZERO_DIGEST, SigningKey, sha256
from conclave.enclave import Enclave
from conclave.errors import BindingError, FormatError, RollbackError, SignatureError, StateError, VerificationError
from conclave.persistence import Anchor, Countersignature
from conclave.persistence.witness import (
    ADVANCE_PATH,
    HEAD_PATH,
    MAX_MESSAGE,
    AdvanceRequest,
    Answer,
    ForkWitnessed,
    Head,
    HeadRequest,
    Standing,
    Step,
    advance_request,
    check_countersignature,
    check_witnesses,
    countersign,
    log_id_of,
    make_answer,
    read_answer,
)
from conclave.witness import steps

NONCE = bytes(range(32))
KEY = SigningKey(b"w" * 32)
LOG = SigningKey(b"l" * 32)
OTHER = SigningKey(b"o" * 32)
FIRST = Head(version=0, boot=b"b" * 16, digest=b"d" * 32)
SECOND = Head(version=5, boot=b"c" * 16, digest=b"e" * 32)


def step(previous: Head | None = None, new: Head = FIRST, key: SigningKey = LOG) -> Step:
    return Step(log_key=key.public, previous=previous, new=new)


def request(previous: Head | None = None, new: Head = FIRST) -> AdvanceRequest:
    return advance_request(LOG, step(previous, new), NONCE)


def standing(previous: Head | None = None, new: Head = FIRST) -> Standing:
    taken = steps.take(KEY, None, request(None, new)) if previous is None else None
    if taken is None:
        before = standing(None, previous or FIRST)
        taken = steps.take(KEY, before, request(previous, new))
    assert taken is not None
    return taken


def answer(of: Standing | None, nonce: bytes = NONCE, key: SigningKey = KEY) -> bytes:
    return make_answer(key, log_key=LOG.public, nonce=nonce, standing=of)


def read(data: bytes) -> Standing | None:
    return read_answer(data, key=KEY.public, log_key=LOG.public, nonce=NONCE)


# Requests ------------------------------------------------------------------------------


def test_a_log_id_names_its_key() -> None:
    assert log_id_of(LOG.public) == sha256(b"conclave/1 log" + LOG.public)


@pytest.mark.spec("WIT-1")
def test_requests_have_one_encoding() -> None:
    asked = HeadRequest(version=1, log_key=LOG.public, nonce=NONCE)
    assert steps.read_head_request(_codec.encode(asked)) == asked
    given = _codec.encode(request(FIRST, SECOND))
    assert steps.read_advance_request(given) == request(FIRST, SECOND)
    assert len(given) <= MAX_MESSAGE
    plain = {"version": 1, "log_key": LOG.public, "nonce": NONCE}
    for wrong in (
        {**plain, "version": 2},
        {**plain, "log_key": LOG.public[:31]},
        {**plain, "nonce": NONCE + b"x"},
        {**plain, "more": 1},
        {"version": 1, "log_key": LOG.public},
        {"log_key": LOG.public, "nonce": NONCE, "version": 1},
    ):
        with pytest.raises(FormatError):
            steps.read_head_request(_codec.encode(wrong))
    for data in (b"", _codec.encode(asked) + b"\0", bytes(MAX_MESSAGE + 1)):
        with pytest.raises(FormatError):
            steps.read_head_request(data)
    for version in (-1, 2**63):
        plain_head = {"version": version, "boot": bytes(16), "digest": bytes(32)}
        whole = {"log_key": LOG.public, "previous": None, "new": plain_head}
        with pytest.raises(FormatError):
            steps.read_advance_request(
                _codec.encode({"version": 1, "step": whole, "signature": bytes(64), "nonce": NONCE})
            )


@pytest.mark.spec("WIT-3")
@pytest.mark.parametrize("version", [4, 5])
def test_a_step_goes_forward(version: int) -> None:
    back = msgspec.structs.replace(SECOND, version=version, boot=bytes(16))
    with pytest.raises(FormatError, match="later version"):
        steps.read_advance_request(_codec.encode(request(SECOND, back)))


@pytest.mark.spec("WIT-3", "WIT-6")
def test_only_the_logs_own_key_signs_a_step_and_both_its_ends() -> None:
    good = request(FIRST, SECOND)
    foreign = advance_request(OTHER, step(FIRST, SECOND), NONCE)
    moved = msgspec.structs.replace(good, step=step(None, SECOND))
    stolen = msgspec.structs.replace(good, step=step(FIRST, SECOND, OTHER))
    other_end = msgspec.structs.replace(good, step=step(FIRST, msgspec.structs.replace(SECOND, digest=bytes(32))))
    for wrong in (foreign, moved, stolen, other_end):
        with pytest.raises(SignatureError):
            steps.read_advance_request(_codec.encode(wrong))


# Judgement -----------------------------------------------------------------------------


@pytest.mark.spec("WIT-4", "WIT-5")
def test_which_steps_are_taken() -> None:
    first = steps.take(KEY, None, request(None, FIRST))
    assert first is not None
    check_countersignature(KEY.public, log_id_of(LOG.public), FIRST, first.countersignature)
    # Again, and from whatever beginning: it stands there.
    assert steps.take(KEY, first, request(None, FIRST)) is first
    second = steps.take(KEY, first, request(FIRST, SECOND))
    assert second is not None
    assert second.step.new == SECOND
    assert steps.take(KEY, second, request(FIRST, SECOND)) is second
    twin = msgspec.structs.replace(SECOND, boot=b"x" * 16)
    for given_, wanted in (
        (None, request(FIRST, SECOND)),
        (first, request(None, SECOND)),
        (second, request(None, FIRST)),
        (second, request(FIRST, twin)),
        (second, request(FIRST, msgspec.structs.replace(twin, version=10))),
        (first, request(msgspec.structs.replace(FIRST, digest=bytes(32)), SECOND)),
    ):
        assert steps.take(KEY, given_, wanted) is None


@pytest.mark.spec("WIT-8")
def test_what_a_store_returns_has_to_be_this_witnesses_own() -> None:
    data = steps.pack(standing())
    assert steps.unpack(data, key=KEY.public, log_key=LOG.public) == standing()
    assert steps.pack(standing()) != data
    forged = msgspec.structs.replace(standing(), countersignature=bytes(64))
    moved = msgspec.structs.replace(standing(), signature=bytes(64))
    # The other log has the same state; its countersignature is no reason to say that of this one.
    step_of_other = step(None, FIRST, OTHER)
    other = Standing(
        step=step_of_other,
        signature=advance_request(OTHER, step_of_other, NONCE).signature,
        countersignature=standing().countersignature,
    )
    for wrong, key, log in (
        (steps.pack(other), KEY, LOG),
        (b"", KEY, LOG),
        (data[:-1], KEY, LOG),
        (data, OTHER, LOG),
        (data, KEY, OTHER),
        (steps.pack(forged), KEY, LOG),
        (steps.pack(moved), KEY, LOG),
    ):
        with pytest.raises(StateError, match="right store for this key"):
            steps.unpack(wrong, key=key.public, log_key=log.public)


# Answers -------------------------------------------------------------------------------


@pytest.mark.spec("WIT-2")
def test_an_answer_counts_for_its_request_alone() -> None:
    assert read(answer(None)) is None
    assert read(answer(standing())) == standing()
    for data in (
        answer(standing(), nonce=bytes(32)),
        answer(standing(), key=OTHER),
        make_answer(KEY, log_key=OTHER.public, nonce=NONCE, standing=standing()),
        _codec.encode(
            Answer(
                version=1,
                standing=None,
                signature=_codec.decode(Answer, answer(standing()), max_size=MAX_MESSAGE, what="x").signature,
            )
        ),
    ):
        with pytest.raises(SignatureError):
            read(data)


@pytest.mark.spec("WIT-2", "WIT-13")
def test_a_witness_cannot_invent_a_state() -> None:
    invented = Standing(
        step=step(None, SECOND),
        signature=bytes(64),
        countersignature=countersign(KEY, log_id_of(LOG.public), SECOND),
    )
    with pytest.raises(SignatureError, match="anchor"):
        read(answer(invented))
    # Nor show another log's, nor leave its own word out.
    foreign = steps.take(KEY, None, advance_request(OTHER, step(None, FIRST, OTHER), NONCE))
    with pytest.raises(SignatureError, match="another log"):
        read(answer(foreign))
    with pytest.raises(SignatureError, match="countersign"):
        read(answer(msgspec.structs.replace(standing(), countersignature=bytes(64))))


@pytest.mark.spec("WIT-1")
@given(st.binary(max_size=300) | st.integers(0, 10**6).map(lambda n: answer(standing())[: n % 500]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_answer_or_an_error(data: bytes) -> None:
    try:
        read(data)
    except (FormatError, SignatureError):
        return
    assert data == answer(standing())


@pytest.mark.spec("WIT-2")
@given(st.integers(0, 8 * len(answer(standing(FIRST, SECOND))) - 1))
@settings(max_examples=200, deadline=None)
def test_no_flipped_bit_of_an_answer_counts(bit: int) -> None:
    data = bytearray(answer(standing(FIRST, SECOND)))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises((FormatError, SignatureError)):
        read(bytes(data))


# The enclave's side --------------------------------------------------------------------


def test_a_log_is_advanced() -> None:
    desk, branch = Desk(), Branch(LOG)
    client = branch.client(desk)
    for _ in range(3):
        head = branch.commit()
        signature = run(client.countersign(head), desk)
        check_countersignature(desk.key.public, log_id_of(LOG.public), head, signature)
    assert desk.countersigned == branch.heads[1:]
    # What it has already it need not be given again; another boot of the same log goes on from there.
    assert run(client.countersign(head), desk) == signature
    later = Branch(LOG, branch)
    run(later.client(desk).countersign(later.newest), desk)
    assert desk.countersigned[-1] == later.newest


def test_an_answer_that_was_lost_is_made_up_for() -> None:
    desk, branch = Desk(), Branch(LOG)
    client = branch.client(desk)
    run(client.countersign(branch.newest), desk)
    going = client.countersign(branch.commit())
    ask = next(going)
    desk.handle(ask.path, ask.body)
    going.close()
    # The same again; and a later one, from a state that the client does not know to be countersigned.
    assert run(client.countersign(branch.newest), desk) == desk.logs[LOG.public].countersignature
    going = client.countersign(branch.commit())
    ask = next(going)
    desk.handle(ask.path, ask.body)
    going.close()
    run(client.countersign(branch.commit()), desk)
    assert desk.countersigned == branch.heads


@pytest.mark.spec("WIT-12", "WIT-13")
def test_older_state_is_caught_with_proof() -> None:
    desk, branch = Desk(), Branch(LOG)
    run(branch.client(desk).countersign(branch.commit()), desk)
    old = Branch(LOG, branch, upto=0)
    old.commit()
    with pytest.raises(ForkWitnessed) as caught:
        run(old.client(desk).countersign(old.newest), desk)
    assert isinstance(caught.value, RollbackError)
    assert caught.value.standing.step.new == branch.newest
    assert "witness 'w'" in str(caught.value)
    assert desk.countersigned == [branch.newest]


@pytest.mark.spec("WIT-13")
def test_another_digest_of_one_version_is_a_fork() -> None:
    desk, branch = Desk(), Branch(LOG)
    run(branch.client(desk).countersign(branch.newest), desk)
    with pytest.raises(ForkWitnessed):
        run(branch.client(desk).countersign(msgspec.structs.replace(branch.newest, digest=bytes(32))), desk)


@pytest.mark.spec("WIT-14")
def test_a_witness_that_contradicts_itself_is_given_up() -> None:
    branch = Branch(LOG)
    branch.commit()

    class Stubborn(Desk):
        asked = 0

        def handle(self, path: str, body: bytes) -> bytes:
            self.asked += 1
            kind = HeadRequest if path == HEAD_PATH else AdvanceRequest
            asked: Any = _codec.decode(kind, body, max_size=MAX_MESSAGE, what="x")
            return make_answer(self.key, log_key=LOG.public, nonce=asked.nonce, standing=self.logs.get(LOG.public))

    desk = Stubborn()
    with pytest.raises(VerificationError, match="takes no step"):
        run(branch.client(desk).countersign(branch.newest), desk)
    assert desk.asked == 5
    honest = Desk(key=desk.key)
    run(branch.client(honest).countersign(branch.newest), honest)
    desk.logs = honest.logs
    with pytest.raises(VerificationError, match="stands after"):
        run(branch.client(desk).countersign(branch.heads[0]), desk)


def test_paths() -> None:
    desk, branch = Desk(), Branch(LOG)
    client = branch.client(desk)
    going = client.countersign(branch.newest)
    ask = next(going)
    assert ask.path == HEAD_PATH
    assert going.send(desk.handle(ask.path, ask.body)).path == ADVANCE_PATH


# Anchors -------------------------------------------------------------------------------

KEYS = {name: SigningKey(name.encode() * 32) for name in "abc"}
PUBLIC = {name: key.public.hex() for name, key in KEYS.items()}
LOG_ID = log_id_of(LOG.public)


def anchor(*names: str, **changes: Any) -> Anchor:
    made = Anchor(
        log_id=LOG_ID,
        version=SECOND.version,
        boot=SECOND.boot,
        digest=SECOND.digest,
        countersignatures=[
            Countersignature(witness=name, signature=countersign(KEYS[name], LOG_ID, SECOND)) for name in names
        ],
    )
    return msgspec.structs.replace(made, **changes)


@pytest.mark.spec("WIT-16")
def test_what_an_anchor_proves() -> None:
    given = anchor("a", "b")
    given.verify(PUBLIC, 2, log_id=LOG_ID, version=5)
    assert Anchor.parse(given.encode()) == given
    anchor("a", "b", "c").verify(PUBLIC, 3, log_id=LOG_ID, version=0)
    with pytest.raises(BindingError, match="another log"):
        given.verify(PUBLIC, 2, log_id=bytes(32), version=5)
    with pytest.raises(BindingError, match="version 5 of the log, and 6"):
        given.verify(PUBLIC, 2, log_id=LOG_ID, version=6)
    for wrong in (
        anchor("a"),
        anchor("a", "a"),
        anchor("a", "b", version=6),
        anchor("a", "b", boot=bytes(16)),
        anchor("a", "b", digest=bytes(32)),
        anchor("a", countersignatures=[*anchor("a").countersignatures, Countersignature(witness="x", signature=b"")]),
        anchor(
            "a",
            countersignatures=[
                *anchor("a").countersignatures,
                Countersignature(witness="b", signature=anchor("a").countersignatures[0].signature),
            ],
        ),
    ):
        with pytest.raises(SignatureError, match="2 are needed"):
            wrong.verify(PUBLIC, 2, log_id=LOG_ID, version=0)
    with pytest.raises(TypeError, match="more than half"):
        given.verify(PUBLIC, 1, log_id=LOG_ID, version=5)
    with pytest.raises(FormatError):
        Anchor.parse(given.encode() + b"\0")


def test_a_countersignature_is_nothing_else() -> None:
    head = _codec.encode({"log_id": LOG_ID, "head": SECOND})
    assert anchor("a").countersignatures[0].signature == KEYS["a"].sign("countersign", ZERO_DIGEST, head)
    with pytest.raises(SignatureError):
        check_countersignature(KEYS["a"].public, LOG_ID, SECOND, KEYS["a"].sign("app", ZERO_DIGEST, head))


@pytest.mark.spec("WIT-11")
@pytest.mark.parametrize(
    ("witnesses", "quorum", "said"),
    [
        ({}, 1, "1 to 16"),
        ({f"n{i}": f"{i:064x}" for i in range(17)}, 9, "1 to 16"),
        (PUBLIC, 0, "more than half"),
        (PUBLIC, 1, "1 of 3"),
        (PUBLIC, 4, "at most all"),
        (dict(list(PUBLIC.items())[:2]), 1, "1 of 2"),
        (dict(list(PUBLIC.items())[:2]), 1.5, "1.5 of 2"),
        ({"": "0" * 64}, 1, "a name has"),
        ({"A": "0" * 64}, 1, "a name has"),
        ({"-a": "0" * 64}, 1, "a name has"),
        ({"a": "0" * 63}, 1, "64 hex digits"),
        ({"a": "A" * 64}, 1, "lower case"),
        ({"a": bytes(32)}, 1, "64 hex digits"),
        ({1: "0" * 64}, 1, "a name has"),
        ({"a": "0" * 64, "b": "0" * 64}, 2, "counts once"),
    ],
)
def test_witnesses_that_cannot_be_declared(witnesses: dict[str, str], quorum: int, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        check_witnesses(witnesses, quorum, of="Poll")
    with pytest.raises(TypeError, match=said):
        type("Poll", (Enclave,), {"persistence": "code", "witnesses": witnesses, "witness_quorum": quorum or -1})


@pytest.mark.spec("WIT-11")
@pytest.mark.parametrize("quorum", [2, 3])
def test_witnesses_that_can(quorum: int) -> None:
    type("Poll", (Enclave,), {"persistence": "code", "witnesses": PUBLIC, "witness_quorum": quorum})
