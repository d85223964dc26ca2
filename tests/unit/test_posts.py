"""What one boot of an enclave posts: numbers, bounds, batches, addresses."""

from __future__ import annotations

import pytest

from conclave._crypto import DecryptionKey, SigningKey
from conclave._framing import MAX_PAYLOAD
from conclave.client import Box
from conclave.enclave import Post
from conclave.enclave._posts import KEPT_SECONDS, PostBounds, Posts
from conclave.errors import FormatError, OverloadedError, SessionError
from conclave.host.outbox import split_posts
from conclave.mail import ClientSession, EnclaveSession, parse_mail
from conclave.mail._wire import Request, RequestKind
from conclave.mail.padding import DoesNotFit, Padding, buckets, padme
from conclave.mail.post import box_id, open_post

DIGEST = bytes(64)
ENCLAVE = DecryptionKey.generate()


class Client:
    """A client with one session of a boot."""

    def __init__(self, topic: str = "default", *, identity: SigningKey | None = None) -> None:
        self.identity, self.reply_key = identity or SigningKey.generate(), DecryptionKey.generate()
        self.session = self.opened(topic)

    def opened(self, topic: str) -> EnclaveSession:
        ours = ClientSession(
            claims_digest=DIGEST,
            encryption_key=ENCLAVE.public,
            identity=self.identity,
            reply_key=self.reply_key.public,
            topic=topic,
        )
        mail = parse_mail(ours.encrypt(Request(RequestKind.MAIL, 0, 0, 0, b"")))
        return EnclaveSession(mail.opening, key=ENCLAVE, claims_digest=DIGEST)

    @property
    def public(self) -> bytes:
        return self.identity.public

    @property
    def box(self) -> bytes:
        return box_id(self.reply_key.public)


class Boot:
    """One boot's posts, and what it sent to its host."""

    def __init__(self, bounds: PostBounds | None = None, *, padding: Padding = padme) -> None:
        self.frames: list[list[bytes]] = []
        self.time = 1000.0
        self.posts = Posts(
            signer=SigningKey.generate(),
            claims_digest=DIGEST,
            send=lambda payload: self.frames.append(list(split_posts(payload))),
            padding=padding,
            bounds=bounds,
            elapsed=lambda: self.time,
        )

    def meets(self, *clients: Client) -> None:
        for client in clients:
            self.posts.opened(client.session)

    def numbers(self, client: Client) -> list[int]:
        mails = [m for f in self.frames for m in f if m[8:24] == client.box]
        return [open_post(m, key=client.reply_key, identity=client.public).number for m in mails]


@pytest.mark.spec("MAIL-34")
def test_together_means_one_frame_and_one_size() -> None:
    boot, clients = Boot(), [Client() for _ in range(5)]
    boot.meets(*clients)
    boot.posts.post([Post(c.public, b"x" * (n * 977)) for n, c in enumerate(clients)])
    (frame,) = boot.frames
    assert len(frame) == 5
    assert len({len(mail) for mail in frame}) == 1


@pytest.mark.spec("MAIL-34")
def test_all_or_none() -> None:
    boot, one, two = Boot(PostBounds(mails_per_box=2)), Client(), Client()
    boot.meets(one)
    with pytest.raises(SessionError, match="no session on that topic"):
        boot.posts.post([Post(one.public, b"1"), Post(two.public, b"2")])
    with pytest.raises(OverloadedError, match="has not acknowledged 0 mails"):
        boot.posts.post([Post(one.public, b"")] * 3)
    boot.meets(two)
    with pytest.raises(ValueError, match="leave at one moment"):
        boot.posts.post([Post(one.public, bytes(MAX_PAYLOAD // 2)), Post(two.public, b"")])
    with pytest.raises(ValueError, match="a topic has"):
        boot.posts.post([Post(one.public, b""), Post(one.public, b"", "no topic")])
    assert boot.frames == []
    boot.posts.post([])
    assert boot.frames == []
    boot.posts.post([Post(one.public, b"")] * 2)
    assert boot.numbers(one) == [0, 1]


@pytest.mark.spec("MAIL-34", "MAIL-41")
def test_the_classs_padding_holds_for_posted_mail_and_what_does_not_fit_is_not_posted() -> None:
    boot, client = Boot(padding=buckets(1024, 2048)), Client()
    boot.meets(client)
    with pytest.raises(DoesNotFit):
        boot.posts.post([Post(client.public, b""), Post(client.public, bytes(2048))])
    assert boot.frames == []
    for size in (0, 1024 - 376, 1024 - 375):
        boot.posts.post([Post(client.public, bytes(size))])
    assert boot.numbers(client) == [0, 1, 2]
    small, same, larger = (len(frame[0]) for frame in boot.frames)
    assert small == same == larger - 1024


@pytest.mark.spec("MAIL-34")
def test_a_client_whose_reply_key_is_none_keeps_nobody_from_mail() -> None:
    boot, good, bad = Boot(), Client(), Client()
    bad.session.reply_key = bytes(1216)
    boot.meets(good, bad)
    boot.posts.post([Post(bad.public, b"-"), Post(good.public, b"+")])
    boot.posts.post([Post(bad.public, b"-")])
    assert boot.numbers(good) == [0]
    assert len(boot.frames) == 1


@pytest.mark.spec("MAIL-35", "MAIL-36")
def test_a_box_is_bounded_until_acknowledged() -> None:
    boot, client = Boot(PostBounds(mails_per_box=3)), Client()
    boot.meets(client)
    for _ in range(3):
        boot.posts.post([Post(client.public, b"")])
    with pytest.raises(OverloadedError, match="the client's box is full: it has not acknowledged 3 mails"):
        boot.posts.post([Post(client.public, b"")])
    # Another topic is another line in the same box.
    other = client.opened("other")
    boot.posts.opened(other)
    with pytest.raises(OverloadedError):
        boot.posts.post([Post(client.public, b"", "other")])
    boot.posts.acknowledge(other, 2)
    with pytest.raises(OverloadedError):
        boot.posts.post([Post(client.public, b"")])
    boot.posts.acknowledge(client.session, 2)
    boot.posts.post([Post(client.public, b"")] * 2)
    # Who claims more than there was gets no more room than there is.
    boot.posts.acknowledge(client.session, 2**64 - 1)
    boot.posts.acknowledge(client.session, 1)
    boot.posts.post([Post(client.public, b"")] * 3)
    assert boot.numbers(client) == list(range(8))
    last = open_post(boot.frames[-1][-1], key=client.reply_key, identity=client.public)
    assert last.acknowledged == 5


@pytest.mark.spec("MAIL-35")
def test_bytes_and_lines_are_bounded() -> None:
    boot, client = Boot(PostBounds(bytes_per_box=4096, lines=2)), Client()
    boot.meets(client)
    boot.posts.post([Post(client.public, bytes(500))])
    with pytest.raises(OverloadedError, match="4096 bytes wait"):
        boot.posts.post([Post(client.public, bytes(2000))])
    others = [Client(), Client()]
    boot.meets(others[0])
    boot.posts.post([Post(others[0].public, b"")])
    boot.meets(others[1])
    with pytest.raises(OverloadedError, match="waits on 2 channels"):
        boot.posts.post([Post(others[1].public, b"")])


@pytest.mark.spec("MAIL-35", "MAIL-32", "T-21")
def test_channels_whose_mail_was_fetched_make_room_and_none_of_their_numbers_comes_again() -> None:
    boot, clients, spoiled = Boot(PostBounds(lines=3)), [Client() for _ in range(6)], Client()
    spoiled.session.reply_key = bytes(1216)
    boot.meets(clients[0], spoiled)
    # To a client that can get none nothing is lost, and it holds no place.
    boot.posts.post([Post(spoiled.public, b"")])
    for _ in range(5):
        boot.posts.post([Post(clients[0].public, b"")])
    for client in clients:
        boot.meets(client)
        boot.posts.post([Post(client.public, b"")])
        boot.posts.acknowledge(client.session, 2**64 - 1)
        assert len(boot.posts._lines) <= 3
        assert set(boot.posts._boxes) == {key[0] for key in boot.posts._lines}
        assert set(boot.posts._owners) == {key[1] for key in boot.posts._lines}
    boot.meets(clients[0])
    boot.posts.post([Post(clients[0].public, b"")])
    assert boot.numbers(clients[0]) == [0, 1, 2, 3, 4, 5, 2048]
    last = open_post(boot.frames[-1][0], key=clients[0].reply_key, identity=clients[0].public)
    # Its client takes from this that nothing is missing.
    assert last.acknowledged == 2048
    assert boot.numbers(clients[5]) == [1024]


@pytest.mark.spec("MAIL-35", "MAIL-36")
def test_mail_that_expired_at_the_host_holds_up_nobody() -> None:
    boot, away = Boot(PostBounds(mails_per_box=3)), Client()
    boot.meets(away)
    box = Box.generate()
    for day in range(3):
        boot.time = 1000.0 + day * 86_400
        boot.posts.post([Post(away.public, b"")])
    boot.time = 1000.0 + KEPT_SECONDS
    with pytest.raises(OverloadedError, match="the client's box is full"):
        boot.posts.post([Post(away.public, b"")])
    # An hour later the first one counts no more: its client, which never got it, is told so.
    boot.time += 3600
    boot.posts.post([Post(away.public, b"")])
    for (mail,) in boot.frames[1:]:
        made = open_post(mail, key=away.reply_key, identity=away.public)
        assert box.receive((b"boot", "default"), made.number, made.acknowledged)
        box.settle((b"boot", "default"), made.number)
    assert box.received_below(b"boot", "default") == 4
    boot.posts.acknowledge(away.session, 4)
    boot.posts.post([Post(away.public, b"")] * 3)


@pytest.mark.spec("MAIL-35", "T-38")
def test_strangers_that_never_fetch_keep_others_from_mail_for_days_alone() -> None:
    boot, strangers, late = Boot(PostBounds(lines=3)), [Client() for _ in range(3)], Client()
    for stranger in strangers:
        boot.meets(stranger)
        boot.posts.post([Post(stranger.public, b"")])
    boot.meets(late)
    boot.time += KEPT_SECONDS
    with pytest.raises(OverloadedError, match="waits on 3 channels"):
        boot.posts.post([Post(late.public, b"")])
    boot.time += 3600
    boot.posts.post([Post(late.public, b"")])
    assert len(boot.posts._lines) == 3


@pytest.mark.spec("MAIL-34", "T-38")
def test_who_does_not_fetch_keeps_no_mail_from_others() -> None:
    boot, full, lost = Boot(PostBounds(mails_per_box=2)), Client(), Client()
    clients = [Client() for _ in range(3)]
    boot.meets(full, *clients)
    boot.posts.post([Post(full.public, b"")] * 2)
    everybody = [Post(c.public, b"x" * (n * 500)) for n, c in enumerate([*clients, full])]
    with pytest.raises(OverloadedError, match="box is full") as error:
        boot.posts.post(everybody)
    assert error.value.clients == (full.public,)
    assert len(boot.frames) == 1
    # Several for one: those that fit, in the order of the call.
    more = [Post(lost.public, b"?"), *everybody, *[Post(clients[0].public, b"%d" % n) for n in range(3)]]
    left = boot.posts.post(more, skip_unreachable=True)
    assert [(p.to, p.body) for p in left] == [
        (lost.public, b"?"),
        (full.public, everybody[3].body),
        (clients[0].public, b"1"),
        (clients[0].public, b"2"),
    ]
    # All of the others in one frame, as large as if nobody had been left out.
    assert [len(frame) for frame in boot.frames] == [2, 4]
    assert len({len(mail) for mail in boot.frames[1]}) == 1
    other = Boot()
    other.meets(full)
    other.posts.post([everybody[3]])
    assert len(other.frames[0][0]) == len(boot.frames[1][0])
    # Nobody is left: nothing leaves, and that is no error.
    assert len(boot.posts.post([Post(full.public, b"")] * 2, skip_unreachable=True)) == 2
    assert len(boot.frames) == 2


@pytest.mark.spec("MAIL-36")
def test_only_the_client_itself_acknowledges() -> None:
    boot, client, other = Boot(PostBounds(mails_per_box=1)), Client(), Client()
    boot.meets(client, other)
    boot.posts.post([Post(client.public, b"")])
    boot.posts.acknowledge(other.session, 1)
    other.session.reply_key = client.session.reply_key
    boot.posts.acknowledge(other.session, 1)
    with pytest.raises(OverloadedError):
        boot.posts.post([Post(client.public, b"")])


def test_the_newest_session_decides_where_mail_goes() -> None:
    boot, first = Boot(), Client()
    second = Client(identity=first.identity)
    boot.meets(first, second)
    boot.posts.post([Post(first.public, b"")])
    assert (boot.numbers(first), boot.numbers(second)) == ([], [0])


@pytest.mark.spec("MAIL-37")
def test_an_address_needs_no_session() -> None:
    boot, later, client = Boot(), Boot(), Client("news")
    with pytest.raises(SessionError):
        boot.posts.address(client.public, "news")
    boot.meets(client)
    address = boot.posts.address(client.public, "news")
    boot.posts.post([Post(address, b"")])
    boot.posts.post([Post(client.public, b"", "news")])
    later.posts.post([Post(address, b"days later")])
    assert boot.numbers(client) == [0, 1]
    mail = open_post(later.frames[0][0], key=client.reply_key, identity=client.public)
    assert (mail.topic, mail.body, mail.number) == ("news", b"days later", 0)
    with pytest.raises(FormatError, match="not an address"):
        boot.posts.post([Post(address[:-1], b"")])


@pytest.mark.spec("CHAN-14")
def test_a_host_that_has_no_room_says_so() -> None:
    boot, client, other = Boot(), Client(), Client()
    boot.meets(client, other)
    boot.posts.room(b"\1" + client.box)
    with pytest.raises(OverloadedError, match="outbox is full"):
        boot.posts.post([Post(other.public, b""), Post(client.public, b"")])
    boot.posts.post([Post(other.public, b"")])
    boot.posts.room(b"\0" + client.box)
    boot.posts.post([Post(client.public, b"")])
    boot.posts.room(b"\1")
    with pytest.raises(OverloadedError):
        boot.posts.post([Post(other.public, b"")])
    boot.posts.room(b"\0")
    boot.posts.post([Post(other.public, b"")])
    for bad in (b"", b"\2", b"\1x"):
        with pytest.raises(FormatError, match="list of boxes"):
            boot.posts.room(bad)


@pytest.mark.spec("CHAN-14")
def test_a_host_does_not_fill_the_enclave_with_boxes() -> None:
    boot = Boot(PostBounds(lines=2))
    boot.posts.room(b"\1" + bytes(range(48)))
    assert not boot.posts._full
    boot.posts.room(b"\1" + bytes(range(32)))
    assert len(boot.posts._full) == 2
