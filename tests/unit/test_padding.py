"""Padding policies, their text form, and that one bucket is one size on the wire."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conclave._crypto import DecryptionKey, SigningKey
from conclave.enclave import Enclave
from conclave.errors import FormatError
from conclave.mail import (
    MAX_BODY,
    Bounds,
    ClientSession,
    Conversation,
    Mailbox,
    Outcome,
    ReplyKind,
    RequestKind,
    buckets,
    fixed,
    padme,
)
from conclave.mail._wire import PRIVATE
from conclave.mail.padding import HEADER, MAX_BUCKETS, MAXIMUM, MINIMUM, DoesNotFit, Padding
from conclave.rpc.interface import CallFailure, interface_of, rpc

DIGEST = bytes(64)
SIZES = st.integers(MINIMUM, MAXIMUM)
PADDINGS = st.one_of(
    st.just(padme),
    SIZES.map(fixed),
    st.sets(SIZES, min_size=2, max_size=8).map(lambda sizes: buckets(*sizes)),
)


@settings(deadline=None)
@given(PADDINGS)
@pytest.mark.spec("MAIL-40")
def test_the_text_form_reads_back_as_the_same_value(padding: Padding) -> None:
    assert Padding.parse(str(padding)) == padding
    assert hash(Padding.parse(str(padding))) == hash(padding)


@pytest.mark.spec("MAIL-40")
def test_text_forms() -> None:
    assert str(padme) == "padme"
    assert str(fixed(4096)) == str(buckets(4096)) == "fixed 4096"
    assert str(buckets(65536, 1024, 4096)) == "buckets 1024 4096 65536"


_OTHER_TEXTS = """
Padme| padme|padme |padme 256|fixed|fixed |fixed 255|fixed 0|fixed 0256|fixed -256|fixed 256 |fixed  256|fixed 16777217
fixed 99999999999999999999|fixed 1024 2048|fixed 1e4|fixed ٢٥٦|buckets|buckets 1024|buckets 2048 1024|buckets 1024 1024
buckets 255 1024|buckets 1024,2048|bucket 1024 2048
"""
_TOO_MANY = "buckets " + " ".join(str(256 + n) for n in range(MAX_BUCKETS + 1))


@pytest.mark.spec("MAIL-40")
@pytest.mark.parametrize(
    "text", ["", "fixed 256\n", _TOO_MANY, *(t for line in _OTHER_TEXTS[1:-1].split("\n") for t in line.split("|"))]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="padding"):
        Padding.parse(text)


@pytest.mark.parametrize("make", [lambda: fixed(255), lambda: fixed(MAXIMUM + 1), lambda: buckets(), lambda: fixed(0)])
def test_impossible_sizes(make: Any) -> None:
    with pytest.raises(ValueError, match="padded size"):
        make()


def test_sizes_are_given_once() -> None:
    with pytest.raises(ValueError, match="each once"):
        buckets(1024, 1024)
    with pytest.raises(ValueError, match="each once"):
        Padding((2048, 1024))


@settings(deadline=None)
@given(PADDINGS, st.integers(HEADER, MAX_BODY + HEADER))
def test_a_policy_never_shrinks_and_is_monotonic(padding: Padding, size: int) -> None:
    if size - HEADER > padding.room:
        with pytest.raises(DoesNotFit, match="does not fit"):
            padding(size)
        return
    padded = padding(size)
    assert padded >= max(size, MINIMUM)
    assert padding(size - 1) <= padded
    assert padding(padded) == padded
    assert padding.largest(size) >= padded
    assert padding.largest.largest == padding.largest


def test_the_header_counts() -> None:
    assert PRIVATE.size == HEADER
    assert fixed(4096).room == 4056
    assert fixed(4096)(4096) == 4096
    assert not padme.is_fixed
    assert not buckets(256, 512).is_fixed
    assert fixed(256).is_fixed


# One bucket, one size on the wire ------------------------------------------------------


class Wire:
    """One client and one enclave, and the sizes of what they send."""

    def __init__(self, padding: Padding, *, bounds: Bounds | None = None, admit: bool = True) -> None:
        key = DecryptionKey.generate()
        # Everything of a call is padded as given; what is no call, otherwise.
        self.box = Mailbox(
            key=key,
            claims_digest=DIGEST,
            admit=lambda _sender, _topic: admit,
            padding=fixed(512),
            padding_of=lambda request: padding if request.kind == RequestKind.CALL else None,
            bounds=bounds,
        )
        self.padding = padding
        self.conversation = Conversation()
        session = ClientSession(
            claims_digest=DIGEST,
            encryption_key=key.public,
            identity=SigningKey.generate(),
            reply_key=key.public,
            topic="t",
        )
        self.conversation.use(session, new_boot=False)
        self.routes = itertools.count(1)

    def request(self, body: bytes) -> bytes:
        return self.conversation.add(RequestKind.CALL, body, padding=self.padding).encrypted

    def answer(self, mail: bytes, body: bytes, kind: ReplyKind = ReplyKind.RESULT) -> bytes:
        received = self.box.receive(mail, next(self.routes))
        if received.outcome is not Outcome.RUN:
            return received.mails[0]
        assert received.channel is not None
        assert received.request is not None
        made = self.box.reply(received.channel, received.request.sequence, kind, body, last=True)
        assert made is not None
        return made[1]

    def sizes(self, body: bytes, answers: list[bytes]) -> list[int]:
        """First with opening and later ones, results and errors, a repetition."""
        sizes = []
        for kind, answer in zip(itertools.cycle((ReplyKind.RESULT, ReplyKind.CALL_ERROR)), answers, strict=False):
            mail = self.request(body)
            reply = self.answer(mail, answer, kind)
            again = self.answer(mail, b"never")
            self.conversation.receive(reply)
            sizes += [len(mail), len(reply), len(again)]
        return sizes


def in_bucket(padding: Padding, size: int) -> st.SearchStrategy[bytes]:
    """Bodies whose mails have the padded size of one with a body of that size."""
    top = padding(size + HEADER) - HEADER
    low = top
    while low > 0 and padding(low - 1 + HEADER) == top + HEADER:
        low -= 1
    return st.integers(low, top).map(bytes)


@pytest.mark.spec("MAIL-1", "RPC-12")
@settings(max_examples=25, deadline=None)
@given(st.sampled_from([padme, fixed(1024), buckets(512, 1024, 4096)]), st.integers(0, 900), st.data())
def test_bodies_of_one_bucket_give_equal_sizes_of_everything(padding: Padding, size: int, data: st.DataObject) -> None:
    bodies = in_bucket(padding, size)
    seen = [Wire(padding).sizes(data.draw(bodies), [data.draw(bodies) for _ in range(3)]) for _ in range(2)]
    assert seen[0] == seen[1]
    first, reply = seen[0][:2]
    assert first == 68 + 2785 + padding(size + HEADER) + 16
    assert reply == 68 + padding(size + HEADER) + 16
    # After the first reply, without an opening.
    assert seen[0][3::3] == [first - 2785] * 2
    assert {*seen[0][1::3], *seen[0][2::3]} == {reply}


@pytest.mark.spec("RPC-12")
@pytest.mark.parametrize("padding", [fixed(2048), buckets(1024, 4096)])
def test_refusals_are_padded_as_the_call_they_refuse(padding: Padding) -> None:
    expected = 68 + padding(HEADER) + 16
    gap = Wire(padding)
    gap.request(b"lost")
    assert len(gap.answer(gap.request(b"early"), b"")) == expected
    full = Wire(padding, bounds=Bounds(unacknowledged_replies=0))
    assert len(full.answer(full.request(b"x"), b"")) == expected
    outsider = Wire(padding, admit=False)
    assert len(outsider.answer(outsider.request(b"x"), b"")) == expected


@pytest.mark.spec("MAIL-41")
def test_what_does_not_fit_takes_neither_counter_nor_sequence() -> None:
    wire = Wire(fixed(256))
    wire.request(bytes(216))
    with pytest.raises(DoesNotFit, match="headers of 40 bytes included"):
        wire.request(bytes(217))
    mail = wire.request(b"next")
    assert int.from_bytes(mail[24:32], "big") == 1
    assert [p.sequence for p in wire.conversation.waiting()] == [0, 1]
    received = wire.box.receive(wire.conversation.waiting()[0].encrypted, 1)
    channel, request = received.channel, received.request
    assert channel is not None
    assert request is not None
    with pytest.raises(DoesNotFit):
        wire.box.reply(channel, 0, ReplyKind.RESULT, bytes(217), last=True)
    made = wire.box.reply(channel, 0, ReplyKind.RESULT, bytes(216), last=True)
    assert made is not None
    assert int.from_bytes(made[1][24:32], "big") == 0
    assert channel.next_reply == 1


def test_a_reply_that_no_mail_carries_takes_no_number() -> None:
    wire = Wire(padme)
    received = wire.box.receive(wire.request(b""), 1)
    assert received.channel is not None
    with pytest.raises(ValueError, match="at most"):
        wire.box.reply(received.channel, 0, ReplyKind.MAIL, bytes(MAX_BODY + 1), last=False)
    with pytest.raises(ValueError, match="envelope"):
        wire.box.reply(received.channel, 0, ReplyKind.MAIL, b"", envelope=bytes(4097), last=False)
    assert received.channel.next_reply == 0


# Interface ---------------------------------------------------------------------------


class Padded(Enclave):
    padding = buckets(1024, 4096)

    @rpc
    def usual(self) -> None: ...

    @rpc(padding=fixed(2048))
    def own(self) -> None: ...


class Bare(Enclave):
    @rpc
    def usual(self) -> None: ...

    @rpc(padding=fixed(2048))
    def own(self) -> None: ...


@pytest.mark.spec("RPC-5", "RPC-12")
def test_padding_is_part_of_the_interface() -> None:
    padded, bare = interface_of(Padded), interface_of(Bare)
    assert padded.padding == buckets(1024, 4096)
    assert padded.methods["usual"].padding == buckets(1024, 4096)
    assert padded.methods["own"].padding == bare.methods["own"].padding == fixed(2048)
    assert bare.padding is bare.methods["usual"].padding is None
    assert b"buckets 1024 4096" in padded.encode()
    assert padded.digest() != bare.digest()

    class Other(Bare):
        @rpc(padding=fixed(2049))
        def own(self) -> None: ...

    assert interface_of(Other).digest() != bare.digest()


@pytest.mark.parametrize("value", [4096, "fixed 4096", lambda size: size])
def test_a_padding_of_another_type_is_a_bug_told_early(value: Any) -> None:
    with pytest.raises(TypeError, match=r"padme, fixed\(…\) or buckets\(…\)"):
        rpc(padding=value)

    class Wrong(Enclave):
        padding = value

    with pytest.raises(TypeError, match=r"Wrong.padding is padme, fixed\(…\) or buckets\(…\)"):
        interface_of(Wrong)


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=20), st.integers(100, 400))
@pytest.mark.spec("RPC-13")
def test_an_error_is_cut_to_the_room_there_is(message: str, kind: str, room: int) -> None:
    body = CallFailure(type=kind, message=message).encode(room)
    assert len(body) <= room
    from conclave import _codec

    failure = _codec.decode(CallFailure, body, max_size=1000, what="failure")
    assert failure.type == kind
    assert message.startswith(failure.message)
