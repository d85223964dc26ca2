"""Chunks of a stream: what is sealed opens in its order, and nothing else does."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._chunks import seal

from conclave import _crypto
from conclave._chunkheader import (
    CHUNK_HEADER,
    CHUNK_PRIVATE,
    MAX_CHUNK,
    MAX_CHUNKS,
    MAX_CONTENT,
    chunk_address,
    split_chunks,
    upload_address,
)
from conclave._crypto import AeadKey, DecryptionKey, Secret, SigningKey
from conclave._mailheader import NONE
from conclave.errors import DecryptionError, Error, FormatError, SessionError
from conclave.mail import ClientSession, Mailbox, Outcome, Reply, ReplyKind, Request, RequestKind, buckets
from conclave.mail._wire import FLAG_LAST, FLAG_OUTSIDE, FLAG_UPLOAD, PRIVATE
from conclave.mail.conversation import Conversation
from conclave.mail.stream import (
    FLAG_ERROR,
    FLAG_FINAL,
    FLAG_ITEM,
    FLAG_PACKED,
    MAX_ITEM,
    Chunk,
    ChunkOpener,
    ChunkSealer,
    Items,
    Packer,
    unpack,
)

DIGEST = bytes(64)
SESSION = bytes(range(16))


def pair(direction: int = 1, counter: int = 7, session_id: bytes = SESSION) -> tuple[ChunkSealer, ChunkOpener]:
    secret = Secret.random()
    place = {"direction": direction, "session_id": session_id, "counter": counter}
    return ChunkSealer(AeadKey(secret), **place), ChunkOpener(AeadKey(secret), **place)  # type: ignore[arg-type]


@given(st.lists(st.binary(max_size=300), max_size=6), st.booleans())
def test_round_trip(contents: list[bytes], error: bool) -> None:
    sealer, opener = pair()
    for content in contents:
        assert opener.open(seal(sealer, content, item=True)) == Chunk(False, True, False, content)
    assert not opener.ended
    last = opener.open(seal(sealer, b"why", final=True, error=error))
    assert last == Chunk(True, False, error, b"why")
    assert opener.ended
    assert sealer.ended


@pytest.mark.parametrize("size", [0, 1, 247, 248, 249, MAX_CONTENT - 1, MAX_CONTENT])
def test_sizes_on_the_wire(size: int) -> None:
    sealer, opener = pair()
    chunk = seal(sealer, os.urandom(size))
    assert len(opener.open(chunk).content) == size
    assert len(chunk) <= MAX_CHUNK
    if size <= 248:
        assert len(chunk) == CHUNK_HEADER.size + 256 + 16
    if size >= MAX_CONTENT - 1:
        assert len(chunk) == MAX_CHUNK


def test_a_shorter_content_leaves_nothing_of_the_one_before() -> None:
    sealer, opener = pair()
    opener.open(seal(sealer, b"\xff" * MAX_CONTENT))
    assert opener.open(seal(sealer, b"x")).content == b"x"


def test_a_policy_for_whole_mails_pads_chunks_too() -> None:
    secret = Secret.random()
    sealer = ChunkSealer(AeadKey(secret), direction=1, session_id=SESSION, counter=0, padding=buckets(1024))
    assert len(seal(sealer, b"x")) == CHUNK_HEADER.size + 1024 + 16
    # What its largest bucket does not hold is a full chunk.
    assert len(seal(sealer, bytes(2000))) == MAX_CHUNK


@pytest.mark.spec("MAIL-21")
def test_only_the_next_chunk() -> None:
    sealer, opener = pair()
    first, second, third = (seal(sealer, c, item=True) for c in (b"1", b"2", b"3"))
    for wrong in (second, third):
        with pytest.raises(DecryptionError):
            opener.open(wrong)
    assert opener.open(first).content == b"1"
    for wrong in (first, third):
        with pytest.raises(DecryptionError):
            opener.open(wrong)
    assert opener.open(second).content == b"2"
    assert opener.open(third).content == b"3"


@pytest.mark.spec("MAIL-21")
def test_nothing_after_the_final_one() -> None:
    secret = Secret.random()
    place = {"direction": 1, "session_id": SESSION, "counter": 0}
    opener = ChunkOpener(AeadKey(secret), **place)  # type: ignore[arg-type]
    opener.open(forged(secret, 1, FLAG_FINAL))
    with pytest.raises(DecryptionError):
        opener.open(forged(secret, 2, FLAG_ITEM))


def forged(
    secret: Secret, number: int, flags: int, *, zero: bytes = b"\0\0\0", size: int = 0, rest: bytes = bytes(20)
) -> bytes:
    """An authentic chunk, of a peer that need not keep to the format."""
    head = CHUNK_HEADER.pack(b"CMS1", 1, b"\0\0\0", SESSION, 0, number)
    return head + AeadKey(secret).encrypt(head[24:36], CHUNK_PRIVATE.pack(flags, zero, size) + rest, head)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: forged(s, 1, 16),
        lambda s: forged(s, 1, FLAG_PACKED),
        lambda s: forged(s, 1, FLAG_PACKED | FLAG_ERROR | FLAG_FINAL),
        lambda s: forged(s, 1, FLAG_ERROR),
        lambda s: forged(s, 1, FLAG_ERROR | FLAG_ITEM | FLAG_FINAL),
        lambda s: forged(s, 1, 0, zero=b"\0\1\0"),
        lambda s: forged(s, 1, 0, rest=b"\0" * 19 + b"\1"),
        lambda s: forged(s, 1, 0, size=21),
    ],
)
def test_authentic_but_malformed(make: Callable[[Secret], bytes]) -> None:
    secret = Secret.random()
    opener = ChunkOpener(AeadKey(secret), direction=1, session_id=SESSION, counter=0)
    with pytest.raises(FormatError):
        opener.open(make(secret))
    # It changed nothing.
    assert not opener.ended


@pytest.mark.spec("MAIL-21")
@settings(max_examples=200)
@given(st.integers(0, 36 + 256 + 15), st.integers(1, 255))
def test_any_changed_byte_is_refused(at: int, change: int) -> None:
    sealer, opener = pair()
    chunk = bytearray(seal(sealer, b"content"))
    good = bytes(chunk)
    chunk[at] ^= change
    with pytest.raises(Error):
        opener.open(bytes(chunk))
    assert opener.open(good).content == b"content"


@pytest.mark.spec("MAIL-21")
def test_cut_and_extended() -> None:
    sealer, opener = pair()
    good = seal(sealer, b"content")
    for wrong in (good[:-1], good + b"\0", good[:60], b"", good[:36]):
        with pytest.raises(Error):
            opener.open(wrong)


@pytest.mark.spec("MAIL-21")
def test_of_another_stream_direction_or_session() -> None:
    secret = Secret.random()
    opener = ChunkOpener(AeadKey(secret), direction=1, session_id=SESSION, counter=3)
    for place in (
        {"direction": 2, "session_id": SESSION, "counter": 3},
        {"direction": 1, "session_id": bytes(16), "counter": 3},
        {"direction": 1, "session_id": SESSION, "counter": 4},
    ):
        _crypto.on_encrypt, recorder = None, _crypto.on_encrypt
        try:
            chunk = seal(ChunkSealer(AeadKey(secret), **place), b"x")  # type: ignore[arg-type]
        finally:
            _crypto.on_encrypt = recorder
        with pytest.raises(DecryptionError):
            opener.open(chunk)


@pytest.mark.spec("MAIL-23")
def test_a_sealer_ends() -> None:
    sealer, _ = pair()
    seal(sealer, b"", final=True)
    with pytest.raises(SessionError):
        seal(sealer, b"more")
    spent, _ = pair()
    spent._number = 2**32 - 1
    with pytest.raises(SessionError):
        seal(spent, b"one too many")
    with pytest.raises(ValueError, match="at most 262144"):
        seal(pair()[0], bytes(MAX_CONTENT + 1))


@pytest.mark.spec("MAIL-24")
def test_items() -> None:
    item = os.urandom(3 * MAX_CONTENT + 5)
    joined = Items()
    found = [joined.add(chunk) for chunk in chunks(item)]
    assert found == [[], [], [], [item]]
    assert [chunk.item for chunk in chunks(item)] == [False, False, False, True]
    assert len(chunks(bytes(2 * MAX_CONTENT))) == 2
    assert chunks(b"") == [Chunk(False, True, False, b"")]
    assert joined.add(Chunk(False, False, False, b"")) == []
    assert joined.size == 0
    assert joined.add(Chunk(True, True, False, b"last")) == [b"last"]


def chunks(*items: bytes) -> list[Chunk]:
    packer = Packer()
    for item in items:
        packer.add(item)
    found = []
    while packer:
        content, item_ends, packed = packer.next()
        assert len(content) <= MAX_CONTENT
        found.append(Chunk(False, item_ends, False, bytes(content), packed))
    assert packer.size == 0
    return found


def size_of(item: bytes) -> bytes:
    return len(item).to_bytes(4, "big") + item


@pytest.mark.spec("MAIL-24")
def test_small_items_share_a_chunk() -> None:
    assert chunks(b"a", b"", b"bc") == [Chunk(False, True, False, b"\0\0\0\1a\0\0\0\0\0\0\0\2bc", True)]
    # To the last byte, and no further.
    most = bytes(MAX_CONTENT - 4 - 4 - 1)
    assert chunks(b"a", most) == [Chunk(False, True, False, size_of(b"a") + size_of(most), True)]
    assert [c.packed for c in chunks(b"a", most + b"x")] == [False, False]
    assert [c.packed for c in chunks(b"a", b"b", bytes(MAX_CONTENT + 1), b"c")] == [True, False, False, False]
    packer = Packer()
    for count in range(1025):
        assert not packer.full, count
        packer.add(b"")
    assert packer.full
    large = Packer()
    large.add(bytes(MAX_CONTENT - 4))
    assert not large.full
    large.add(b"")
    assert large.full


@pytest.mark.spec("MAIL-24")
@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 3 * MAX_CONTENT).map(bytes)), max_size=12))
@settings(max_examples=50)
def test_items_come_out_as_they_went_in(items: list[bytes]) -> None:
    sealer, opener = pair()
    joined = Items()
    found: list[bytes] = []
    for chunk in chunks(*items):
        sealed = seal(sealer, chunk.content, item=chunk.item, packed=chunk.packed)
        found += joined.add(opener.open(sealed))
    assert found == items


@pytest.mark.spec("MAIL-24")
@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", b"\0\0\0\1", b"\0\0\0\1ab", b"\0\0\0\1a\0\0\0\5bc", b"\xff\xff\xff\xffa"]
)
def test_badly_packed_items(content: bytes) -> None:
    with pytest.raises(FormatError, match="add up"):
        unpack(content)
    joined = Items()
    with pytest.raises(FormatError, match="add up"):
        joined.add(Chunk(False, True, False, content, True))
    assert joined.add(Chunk(False, True, False, size_of(b"a") + size_of(b""), True)) == [b"a", b""]
    joined.add(Chunk(False, False, False, b"begun"))
    with pytest.raises(FormatError, match="within an item"):
        joined.add(Chunk(False, True, False, size_of(b"a"), True))


@pytest.mark.spec("MAIL-24")
def test_an_item_too_large_or_cut_off() -> None:
    with pytest.raises(ValueError, match="at most"):
        Packer().add(bytes(MAX_ITEM + 1))
    joined = Items()
    for _ in range(MAX_ITEM // MAX_CONTENT):
        joined.add(Chunk(False, False, False, bytes(MAX_CONTENT)))
    joined.add(Chunk(False, False, False, bytes(MAX_ITEM % MAX_CONTENT)))
    with pytest.raises(FormatError):
        joined.add(Chunk(False, True, False, b"x"))
    cut = Items()
    cut.add(Chunk(False, False, False, b"begun"))
    with pytest.raises(FormatError):
        cut.add(Chunk(True, False, False, b""))
    # Its sender failed: that it did not end is no news.
    failed = Items()
    failed.add(Chunk(False, False, False, b"begun"))
    assert failed.add(Chunk(True, False, True, b"why")) == []


def test_the_form_of_an_upload() -> None:
    sealer, _ = pair()
    chunks = [seal(sealer, b"x") for _ in range(MAX_CHUNKS + 1)]
    join = lambda some: b"".join(len(c).to_bytes(4, "big") + c for c in some)  # noqa: E731
    assert upload_address(join(chunks[:MAX_CHUNKS])) == (SESSION, 7)
    assert list(map(bytes, split_chunks(memoryview(join(chunks[:2]))))) == chunks[:2]
    assert chunk_address(chunks[1]) == (1, SESSION, 7, 2)
    other = seal(pair(counter=8)[0], b"x")
    back = seal(pair(direction=2)[0], b"x")
    good = join(chunks[:1])
    for wrong in (
        b"",
        join(chunks),
        join([chunks[0], other]),
        join([back]),
        good[:-1],
        good + b"\0\0\0",
        good[:3],
        b"\xff\xff\xff\xff" + good[4:],
        join([chunks[0][:32] + bytes(4) + chunks[0][36:]]),
        join([b"CMS2" + chunks[0][4:]]),
        join([chunks[0][:6] + b"\1" + chunks[0][7:]]),
        join([chunks[0][:4] + b"\3" + chunks[0][5:]]),
    ):
        with pytest.raises(FormatError):
            upload_address(wrong)
    for direction in (0, 3):
        with pytest.raises(FormatError):
            chunk_address(chunks[0][:4] + bytes((direction,)) + chunks[0][5:])


# Stream calls between a session and a mailbox ----------------------------------------


class Ends:
    """A client's conversation and an enclave's mailbox."""

    def __init__(self, admit: bool = True) -> None:
        key = DecryptionKey.generate()
        self.box = Mailbox(key=key, claims_digest=DIGEST, admit=lambda sender, topic: admit)
        self.session = ClientSession(
            claims_digest=DIGEST,
            encryption_key=key.public,
            identity=SigningKey.generate(),
            reply_key=key.public,
            topic="t",
        )
        self.conversation = Conversation()
        self.conversation.use(self.session, new_boot=False)


@pytest.mark.spec("MAIL-20")
def test_a_stream_call_is_outside_the_sequence() -> None:
    ends = Ends()
    session, mail, counter, sealer = ends.conversation.open_stream(b"\1fx", upload=True)
    received = ends.box.receive(mail, 1)
    assert received.outcome is Outcome.STREAM
    assert received.request is not None
    assert (received.request.kind, received.request.flags, received.request.sequence) == (3, FLAG_UPLOAD, NONE)
    assert (received.counter, session) == (counter, ends.session)
    # The sequence goes on as if nothing had been.
    item = ends.conversation.add(RequestKind.MAIL, b"ordinary")
    assert ends.box.receive(item.encrypted, 2).outcome is Outcome.RUN
    assert item.sequence == 0
    # The upload opens at the other end, and the reply stream here.
    assert received.session is not None
    upload = received.session.stream_opener(counter)
    assert upload.open(seal(sealer, b"up", item=True)).content == b"up"
    head, reply_sealer = received.session.open_stream(Reply(ReplyKind.STREAM, FLAG_OUTSIDE, NONE, 0, counter, 0, b""))
    with pytest.raises(SessionError):
        session.stream_opener(0)
    reply = session.decrypt(head)
    assert (reply.kind, reply.outside, reply.answers) == (ReplyKind.STREAM, True, counter)
    download = session.stream_opener(int.from_bytes(head[24:32], "big"))
    assert download.open(seal(reply_sealer, b"down", item=True)).content == b"down"


@pytest.mark.spec("MAIL-20")
def test_a_replayed_or_overtaken_stream_call_runs_nothing() -> None:
    ends = Ends()
    first, second, third = (ends.conversation.open_stream(b"\1f", upload=False)[1] for _ in range(3))
    assert ends.box.receive(first, 1).outcome is Outcome.STREAM
    assert ends.box.receive(third, 2).outcome is Outcome.STREAM
    for old in (first, second, third):
        with pytest.raises(DecryptionError):
            ends.box.receive(old, 3)


@pytest.mark.spec("MAIL-20")
def test_who_is_not_admitted_opens_no_stream() -> None:
    ends = Ends(admit=False)
    session, mail, counter, _ = ends.conversation.open_stream(b"\1f", upload=False)
    received = ends.box.receive(mail, 1)
    assert received.outcome is Outcome.ANSWERED
    reply = session.decrypt(received.mails[0])
    assert (reply.kind, reply.outside, reply.answers) == (ReplyKind.NOT_ADMITTED, True, counter)


def test_the_head_of_a_stream_answers_no_ordinary_request() -> None:
    ends = Ends()
    item = ends.conversation.add(RequestKind.MAIL, b"ordinary")
    ends.box.receive(item.encrypted, 1)
    received = ends.box.receive(ends.conversation.open_stream(b"\1f", upload=False)[1], 2)
    assert received.session is not None
    # The host hands it to the request whose sequence is the stream call's counter.
    head, _ = received.session.open_stream(Reply(ReplyKind.OVERLOADED, FLAG_OUTSIDE, NONE, 0, 0, 0, b""))
    with pytest.raises(DecryptionError):
        ends.conversation.receive(head)
    assert item.refused is None


@pytest.mark.parametrize(
    ("kind", "flags", "sequence"),
    [(3, 1, NONE), (3, 0, 0), (3, 4, NONE), (0, FLAG_UPLOAD, 0), (2, FLAG_UPLOAD, NONE)],
)
def test_malformed_stream_calls(kind: int, flags: int, sequence: int) -> None:
    ends = Ends()
    mail = ends.session.encrypt(Request(kind, flags, sequence, 0, b""))
    with pytest.raises(FormatError):
        ends.box.receive(mail, 1)


@pytest.mark.parametrize(
    ("kind", "flags", "sequence", "expected"),
    [
        (ReplyKind.STREAM, 0, NONE, 0),
        (ReplyKind.RESULT, FLAG_OUTSIDE, NONE, 0),
        (ReplyKind.STREAM, FLAG_OUTSIDE, 0, 0),
        (ReplyKind.STREAM, FLAG_OUTSIDE, NONE, 1),
        (ReplyKind.STREAM, 4 | FLAG_LAST, NONE, 0),
    ],
)
def test_malformed_heads(kind: int, flags: int, sequence: int, expected: int) -> None:
    ends = Ends()
    received = ends.box.receive(ends.conversation.open_stream(b"\1f", upload=False)[1], 1)
    assert received.session is not None
    mail = received.session.encrypt(Reply(kind, flags, sequence, 0, 0, expected, b""))
    with pytest.raises(FormatError):
        ends.session.decrypt(mail)


@pytest.mark.spec("MAIL-23")
def test_a_forked_client_seals_nothing_more() -> None:
    ends = Ends()
    _, _, _, sealer = ends.conversation.open_stream(b"\1f", upload=True)
    seal(sealer, b"before")
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            seal(sealer, b"twice")
        except SessionError:
            os.write(done, b"refused")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(done)
    assert os.read(ready, 100) == b"refused"
    os.close(ready)


def test_the_layout_of_the_private_header() -> None:
    assert PRIVATE.size == 40
    assert CHUNK_HEADER.size == 36
    assert CHUNK_PRIVATE.size == 8
    assert MAX_CHUNK == 36 + 8 + 262144 + 16


@pytest.mark.spec("MAIL-21")
def test_the_header_of_the_next_chunk_with_too_little_or_too_much_behind_it() -> None:
    sealer, opener = pair()
    chunk = seal(sealer, b"content", item=True)
    for wrong in (chunk[:36], chunk[:40], chunk[:59], chunk + bytes(MAX_CHUNK)):
        with pytest.raises(FormatError, match="not a chunk"):
            opener.open(wrong)
    assert opener.open(chunk).content == b"content"
