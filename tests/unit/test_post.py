"""Posted mail: sealed to a reply key, signed by an instance, opened by one client."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from conclave import _crypto, _mailheader
from conclave._crypto import DecryptionKey, SigningKey
from conclave._mailheader import POST_HEADER, parse_post
from conclave.errors import DecryptionError, FormatError, SignatureError
from conclave.mail import post
from conclave.mail.post import Address, box_id, make_post, open_post, parse_address

KEY, SIGNER, IDENTITY, DIGEST = DecryptionKey.generate(), SigningKey.generate(), bytes(range(32)), bytes(64)
ADDRESS = Address(IDENTITY, KEY.public, "offers/1")
SPEC = (Path(__file__).parents[2] / "spec" / "mail.md").read_text()


def made(body: bytes = b"the price", *, size: int = 512, envelope: bytes = b"env", number: int = 3) -> bytes:
    return make_post(
        ADDRESS,
        body,
        number=number,
        acknowledged=1,
        signer=SIGNER,
        claims_digest=DIGEST,
        size=size,
        envelope=envelope,
    )


def opened(data: bytes, *, key: DecryptionKey = KEY, identity: bytes = IDENTITY) -> post.Post:
    return open_post(data, key=key, identity=identity)


def test_what_is_posted_arrives() -> None:
    got = opened(made())
    got.check_sender(SIGNER.public)
    assert (got.body, got.envelope, got.topic) == (b"the price", b"env", "offers/1")
    assert (got.number, got.acknowledged, got.claims_digest) == (3, 1, DIGEST)


def test_sizes_are_what_was_announced() -> None:
    size = post.inner_size(b"x" * 700)
    data = made(b"x" * 700, size=size, envelope=b"")
    assert len(data) == post.wire_size(size, b"")
    assert opened(data).body == b"x" * 700
    with pytest.raises(ValueError, match="body has at most"):
        post.inner_size(bytes(16 * 1024 * 1024))
    with pytest.raises(ValueError, match="envelope has at most"):
        post.wire_size(512, bytes(4097))


def test_the_layout_is_the_specs() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \|", SPEC.partition("## 11.")[2], re.MULTILINE)
    spans = [(int(a), int(b)) for a, b in rows]
    header, inside = spans[:7], spans[7:]
    for table, size in ((header, POST_HEADER.size), (inside, post.PRIVATE_SIZE)):
        at = 0
        for offset, width in table:
            assert offset == at
            at += width
        assert at == size
    assert _mailheader.SMALLEST_POST == post.PRIVATE_SIZE + _crypto.TAG_SIZE
    for label in (b"mail/1 post", b"conclave/1 outbox"):
        assert f'"{label.decode()}"' in SPEC


@pytest.mark.spec("MAIL-30")
def test_another_key_or_another_client_opens_nothing() -> None:
    data = made()
    with pytest.raises(DecryptionError):
        opened(data, key=DecryptionKey.generate())
    with pytest.raises(DecryptionError):
        opened(data, identity=bytes(32))
    other = DecryptionKey.generate()
    relabelled = data[:8] + box_id(other.public) + data[24:]
    with pytest.raises(DecryptionError):
        opened(relabelled, key=other)
    with pytest.raises(DecryptionError):
        opened(relabelled)


@pytest.mark.spec("MAIL-30")
def test_any_flipped_byte_is_refused() -> None:
    data = made()
    for at in [*range(0, 100), *range(100, len(data), 37), len(data) - 1]:
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises((DecryptionError, FormatError)):
            opened(bytes(changed))


@pytest.mark.spec("MAIL-30")
@pytest.mark.parametrize("cut", [0, 4, 100, POST_HEADER.size - 1, POST_HEADER.size + 3, -1])
def test_truncated_or_extended_is_no_mail(cut: int) -> None:
    with pytest.raises(FormatError):
        parse_post(made()[:cut])
    with pytest.raises(FormatError, match="do not add up"):
        parse_post(made() + b"\0")


def test_a_large_envelope_or_a_reserved_field_is_no_mail() -> None:
    data = made()
    for at, value in ((0, b"CMP2"), (4, b"\0\1"), (6, b"\x10\1")):
        with pytest.raises(FormatError):
            parse_post(data[:at] + value + data[at + len(value) :])
    with pytest.raises(FormatError, match="it has"):
        parse_post(bytes(_mailheader.MAX_MAIL + 1))


@pytest.mark.spec("MAIL-30")
def test_the_signature_is_over_all_of_it() -> None:
    got = opened(made())
    with pytest.raises(SignatureError):
        got.check_sender(SigningKey.generate().public)
    other = opened(made(b"another"))
    mixed = post.Post(
        got.claims_digest, got.topic, got.number, got.acknowledged, got.envelope, got.body, got.signed, other.signature
    )
    with pytest.raises(SignatureError):
        mixed.check_sender(SIGNER.public)


def authentic(plaintext: bytes, *, box: bytes = ADDRESS.box, envelope: bytes = b"") -> bytes:
    """An inside that only who knows the reply key can seal: no client must fall over it."""
    secret = _crypto.Secret.random()
    sealed = _crypto.seal_secret(KEY.public, post._info(KEY.public, DIGEST), secret)
    header = POST_HEADER.pack(b"CMP1", 0, len(envelope), box, DIGEST, sealed, len(plaintext) + 16) + envelope
    return header + post._key(secret, sealed, DIGEST).encrypt(bytes(12), plaintext, header)


def inside(*, body: bytes = b"", **changes: object) -> bytes:
    fields = {"kind": 0, "topic_size": 1, "zero": 0, "size": len(body), "number": 0, "acknowledged": 0}
    fields |= {"identity": IDENTITY, "topic": b"t"} | changes
    return struct.pack(">BBHIQQ32s255sx", *fields.values()) + bytes(64) + body


@pytest.mark.spec("MAIL-30")
@pytest.mark.parametrize(
    "plaintext",
    [
        inside(kind=1),
        inside(zero=1),
        inside(topic_size=0),
        inside(topic_size=255),
        inside(topic=b"tt"),
        inside(topic=b"\xff"),
        inside(topic=b" "),
        inside(size=1),
        inside(size=2**32 - 1),
        inside(body=b"padding")[:-7] + b"\0\0\1",
        inside()[:311] + b"\1" + inside()[312:],
    ],
)
def test_a_malformed_inside_is_refused(plaintext: bytes) -> None:
    with pytest.raises(FormatError, match="posted mail whose"):
        opened(authentic(plaintext))
    opened(authentic(inside()))


@pytest.mark.spec("MAIL-30")
def test_an_authentic_one_of_another_form_is_refused() -> None:
    assert opened(authentic(inside(), envelope=bytes(4096))).envelope == bytes(4096)
    for form in (authentic(inside(), envelope=bytes(4097)), authentic(inside()[:-1])):
        with pytest.raises(FormatError, match="do not add up"):
            opened(form)
    # Sealed to this key, and labelled for another box.
    with pytest.raises(DecryptionError):
        opened(authentic(inside(), box=bytes(16)))


@pytest.mark.spec("MAIL-33")
def test_each_mail_has_a_key_of_its_own() -> None:
    """The recorder of the whole suite fails on a repeated key and nonce: the nonce is always zero."""
    assert made() != made()


def test_an_address_comes_back() -> None:
    assert parse_address(ADDRESS.encode()) == ADDRESS
    whole = ADDRESS.encode()
    for bad in (b"", b"CMA1", whole[:-1], whole + b"x", b"X" + whole[1:], whole[:-1] + b" "):
        with pytest.raises(FormatError, match="not an address"):
            parse_address(bad)


def test_a_reply_key_that_is_none() -> None:
    broken = Address(IDENTITY, bytes(1216), "t")
    with pytest.raises(FormatError, match="X-Wing"):
        make_post(broken, b"", number=0, acknowledged=0, signer=SIGNER, claims_digest=DIGEST, size=512)
