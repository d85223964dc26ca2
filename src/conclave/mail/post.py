"""Posted mail: what an enclave writes to a client that asked nothing, also days later.

Pure. Sealed to the client's reply key, so that no session is needed, and signed
with the attested key, as a key that many may seal to says nothing about the
sender. Everything of it is the host's to keep and untrusted until `open_post`
and `check_sender` have both passed.

Spec: spec/mail.md section 11 (MAIL-30, MAIL-33, MAIL-37).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import msgspec

from conclave import _crypto, _mailheader
from conclave._crypto import AeadKey, DecryptionKey, Secret, SigningKey
from conclave.errors import DecryptionError, FormatError
from conclave.mail import _wire

LABEL_POST: Final = b"mail/1 post"
# kind, topic size, zero, body size, number, acknowledged, recipient, topic
_FIELDS: Final = struct.Struct(">BBHIQQ32s255sx")
PRIVATE_SIZE: Final = _FIELDS.size + _crypto.SIGNATURE_SIZE
# Kinds: a body; a state context and a body.
_PLAIN, _STATEFUL = 0, 1
# One mail is encrypted under each key.
_NONCE: Final = bytes(12)
_ADDRESS: Final = struct.Struct(">4s32s1216sB")
_ADDRESS_MAGIC: Final = b"CMA1"


class Address(msgspec.Struct, frozen=True):
    """Where posted mail goes: a client, its reply key and one of its topics.

    Nothing in it is authentic by itself: it came in a signed opening, and after
    that only whoever kept it can say that it is still the same.
    """

    identity: bytes
    reply_key: bytes
    topic: str

    def encode(self) -> bytes:
        """As bytes, for keeping."""
        topic = self.topic.encode("ascii")
        return _ADDRESS.pack(_ADDRESS_MAGIC, self.identity, self.reply_key, len(topic)) + topic

    @property
    def box(self) -> bytes:
        """The box id of the reply key."""
        return box_id(self.reply_key)


def parse_address(data: bytes) -> Address:
    """Read what `Address.encode` made. Raises FormatError."""
    try:
        magic, identity, reply_key, size = _ADDRESS.unpack_from(data)
        topic = data[_ADDRESS.size :].decode("ascii")
        _wire.check_topic(topic)
    except (struct.error, ValueError):
        raise FormatError("not an address made by Enclave.address") from None
    if magic != _ADDRESS_MAGIC or size != len(topic):
        raise FormatError("not an address made by Enclave.address")
    return Address(identity, reply_key, topic)


def box_id(reply_key: bytes) -> bytes:
    """Under which 16 bytes a host keeps mail for a reply key."""
    return _crypto.sha256(b"conclave/1 outbox", reply_key)[:16]


class Post(msgspec.Struct, frozen=True):
    """One posted mail, decrypted. Its sender is proven by `check_sender` alone.

    Attributes:
        claims_digest: which instance says that it wrote this.
        number: from 0, counted by the boot that wrote it for this reply key and topic.
        acknowledged: the client had acknowledged all with a lower number.
        context: the state context (72 bytes) for this client when it was posted; empty where there is no log.
    """

    claims_digest: bytes
    topic: str
    number: int
    acknowledged: int
    envelope: bytes
    body: bytes
    signed: bytes
    signature: bytes
    context: bytes = b""

    def check_sender(self, signing_key: bytes) -> None:
        """Whether the instance of these claims wrote it. Raises SignatureError."""
        _crypto.verify_signature(signing_key, "mail", self.claims_digest, self.signed, self.signature)


def _info(reply_key: bytes, claims_digest: bytes) -> bytes:
    return LABEL_POST + _crypto.SUITE_ID + _crypto.sha256(reply_key) + claims_digest


def _key(secret: Secret, sealed: bytes, claims_digest: bytes) -> AeadKey:
    return AeadKey(secret.extract(_crypto.sha256(sealed, claims_digest)).expand(LABEL_POST))


def _signed(reply_key: bytes, associated: bytes, fields: bytes, body: bytes) -> bytes:
    digests = _crypto.sha256(reply_key) + _crypto.sha256(associated)
    return LABEL_POST + _crypto.SUITE_ID + digests + fields + _crypto.sha256(body)


def inner_size(body: bytes, *, stateful: bool = False) -> int:
    """How large a body and what stands before it are, to be padded. Raises ValueError."""
    if len(body) > _wire.MAX_BODY:
        raise ValueError(f"a mail body has at most {_wire.MAX_BODY} bytes")
    return PRIVATE_SIZE + (_wire.CONTEXT_SIZE if stateful else 0) + len(body)


def wire_size(size: int, envelope: bytes) -> int:
    """How large the whole mail is if its inside is padded to that size. Raises ValueError."""
    if len(envelope) > _mailheader.MAX_ENVELOPE:
        raise ValueError(f"an envelope has at most {_mailheader.MAX_ENVELOPE} bytes")
    return _mailheader.POST_HEADER.size + len(envelope) + size + _crypto.TAG_SIZE


@dataclass(frozen=True, slots=True)
class Sealed:
    """A fresh secret, and the same sealed to a reply key: for one mail."""

    secret: Secret
    data: bytes


def seal_to(address: Address, claims_digest: bytes) -> Sealed:
    """Raises FormatError: the reply key is none. A client chose it."""
    secret = Secret.random()
    return Sealed(secret, _crypto.seal_secret(address.reply_key, _info(address.reply_key, claims_digest), secret))


def make_post(
    address: Address,
    body: bytes,
    *,
    number: int,
    acknowledged: int,
    signer: SigningKey,
    claims_digest: bytes,
    size: int,
    envelope: bytes = b"",
    context: bytes = b"",
    sealed: Sealed | None = None,
) -> bytes:
    """Encrypt one mail.

    Args:
        number: how many the sender's boot posted to this reply key and topic before.
        acknowledged: of those, how many the client has acknowledged.
        signer: the attested key of `claims_digest`.
        size: to how much private header and body are padded, at least `inner_size`.
        context: the state context for that client, of an enclave with a log.
        sealed: what `seal_to` gave for this mail; None to have it made here.

    Raises:
        FormatError: the reply key is none. A client chose it.
    """
    sealed = sealed or seal_to(address, claims_digest)
    return _make_from_parts(
        address,
        body,
        number=number,
        acknowledged=acknowledged,
        signer=signer,
        claims_digest=claims_digest,
        size=size,
        envelope=envelope,
        context=context,
        secret=sealed.secret,
        sealed=sealed.data,
    )


def _make_from_parts(
    address: Address,
    body: bytes,
    *,
    number: int,
    acknowledged: int,
    signer: SigningKey,
    claims_digest: bytes,
    size: int,
    envelope: bytes,
    secret: Secret,
    sealed: bytes,
    context: bytes = b"",
) -> bytes:
    header = _mailheader.POST_HEADER.pack(
        _mailheader.POST_MAGIC,
        0,
        len(envelope),
        address.box,
        claims_digest,
        sealed,
        size + _crypto.TAG_SIZE,
    )
    associated = header + envelope
    topic = address.topic.encode("ascii")
    kind = _STATEFUL if context else _PLAIN
    content = context + body if context else body
    fields = _FIELDS.pack(kind, len(topic), 0, len(content), number, acknowledged, address.identity, topic)
    signature = signer.sign("mail", claims_digest, _signed(address.reply_key, associated, fields, content))
    plaintext = (fields + signature + content).ljust(size, b"\0")
    return associated + _key(secret, sealed, claims_digest).encrypt(_NONCE, plaintext, associated)


def open_post(data: bytes, *, key: DecryptionKey, identity: bytes) -> Post:
    """Decrypt a posted mail that is for this reply key and this client.

    Says nothing about who wrote it: that is `Post.check_sender`.

    Args:
        data: untrusted.

    Raises:
        FormatError: not a posted mail, or malformed inside.
        DecryptionError: altered, for another reply key or for another client.
    """
    header = _mailheader.parse_post(data)
    if header.box != box_id(key.public):
        raise DecryptionError
    secret = key.open_secret(header.sealed, _info(key.public, header.claims_digest))
    aead = _key(secret, header.sealed, header.claims_digest)
    plaintext = aead.decrypt(_NONCE, header.ciphertext, header.associated)
    fields, signature = plaintext[: _FIELDS.size], plaintext[_FIELDS.size : PRIVATE_SIZE]
    kind, topic_size, zero, size, number, acknowledged, recipient, topic = _FIELDS.unpack(fields)
    end = PRIVATE_SIZE + size
    # As in `_wire`: who pads otherwise has another idea of the format.
    if kind not in (_PLAIN, _STATEFUL) or (kind == _STATEFUL and size < _wire.CONTEXT_SIZE):
        raise FormatError("a posted mail whose kind is unknown, or that is too short for it")
    if zero or fields[-1] or any(topic[topic_size:]) or plaintext.count(0, end) != len(plaintext) - end:
        raise FormatError("a posted mail whose inside is malformed")
    if not _crypto.same(recipient, identity):
        raise DecryptionError
    try:
        name = topic[:topic_size].decode("ascii")
        _wire.check_topic(name)
    except ValueError:
        raise FormatError("a posted mail whose topic is none") from None
    content = plaintext[PRIVATE_SIZE:end]
    signed = _signed(key.public, header.associated, fields, content)
    at = _wire.CONTEXT_SIZE if kind == _STATEFUL else 0
    context, body = content[:at], content[at:]
    return Post(header.claims_digest, name, number, acknowledged, header.envelope, body, signed, signature, context)
