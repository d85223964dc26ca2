"""Sessions: one key agreement between one client process and one boot.

Pure state machines without IO. The client end trusts the verified claims it was
made with; the enclave end trusts nothing before the opening's signature holds.
Session keys live in these objects only.

Spec: spec/mail.md sections 3 to 5 (MAIL-2 to MAIL-9, MAIL-15).
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Callable, Iterable
from typing import Final

from conclave import _crypto, _mailheader
from conclave._crypto import AeadKey, DecryptionKey, Secret, SigningKey
from conclave._mailheader import EncryptedMail
from conclave.errors import DecryptionError, SessionError, SignatureError
from conclave.mail import _wire
from conclave.mail._wire import BARE, FLAG_STATEMENT, Reply, Request
from conclave.mail.contexts import Contexts, VersionOrder
from conclave.mail.padding import Padding, padme
from conclave.mail.stream import ChunkOpener, ChunkSealer

LABEL_OPENING: Final = b"mail/1 opening"
LABEL_RECORD: Final = b"mail/1 record"
LABEL_C2E: Final = b"mail/1 c2e"
LABEL_E2C: Final = b"mail/1 e2c"
MAX_COUNTER: Final = 2**32
_NONCE = struct.Struct(">QI")
_RECORD = struct.Struct(">32s1216sB255sB32s64s")
_ZERO_NONCE = bytes(12)


class CounterWindow:
    """Which counters were seen: all below a mark, and single ones above it."""

    __slots__ = ("_above", "_below")
    _LIMIT = 65536

    def __init__(self, *, below: int = 0, above: Iterable[int] = ()) -> None:
        self._below = below
        self._above = {counter for counter in above if counter >= below}
        self._close_up()

    def __contains__(self, counter: int) -> bool:
        return counter < self._below or counter in self._above

    @property
    def below(self) -> int:
        """Every counter below this was seen."""
        return self._below

    @property
    def above(self) -> list[int]:
        """The single ones above, in order."""
        return sorted(self._above)

    def add(self, counter: int) -> None:
        """Mark as seen. Forgets nothing: at the bound the gap is given up."""
        if counter >= self._below:
            self._above.add(counter)
        self._close_up()
        if len(self._above) > self._LIMIT:
            self._below = min(self._above)
            self._close_up()

    def advance(self, below: int) -> None:
        """Mark all below that as seen."""
        if below > self._below:
            self._below = below
            self._above = {counter for counter in self._above if counter >= below}
            self._close_up()

    def _close_up(self) -> None:
        while self._below in self._above:
            self._above.remove(self._below)
            self._below += 1


def _session_id(sealed: bytes) -> bytes:
    return _crypto.sha256(sealed)[:16]


def _schedule(secret: Secret, sealed: bytes, recipient: bytes) -> Secret:
    return secret.extract(_crypto.sha256(sealed, recipient))


def _opening_info(recipient: bytes) -> bytes:
    return LABEL_OPENING + _crypto.SUITE_ID + recipient


def _signed_body(sealed: bytes, topic: bytes, reply_key: bytes, log: bytes) -> bytes:
    return b"".join(
        (
            _crypto.SUITE_ID,
            sealed,
            _session_id(sealed),
            bytes((len(topic),)),
            topic.ljust(255, b"\0"),
            reply_key,
            log,
        )
    )


def _log_field(log_id: bytes | None) -> bytes:
    return b"\0" + bytes(32) if log_id is None else b"\1" + log_id


def _encrypt(
    key: AeadKey,
    direction: int,
    session_id: bytes,
    counter: int,
    salt: bytes,
    opening: bytes,
    envelope: bytes,
    plaintext: bytes,
) -> bytes:
    public = _mailheader.HEADER.pack(
        _mailheader.MAGIC,
        direction,
        _mailheader.FLAG_OPENING if opening else 0,
        len(envelope),
        session_id,
        counter,
        salt,
        len(plaintext) + _crypto.TAG_SIZE,
    )
    if opening or envelope:
        public += opening + envelope
    return public + key.encrypt(_NONCE.pack(counter, 0), plaintext, public)


_client_sessions: weakref.WeakSet[ClientSession] = weakref.WeakSet()


def _discard_after_fork() -> None:
    for session in list(_client_sessions):
        session.discard()


os.register_at_fork(after_in_child=_discard_after_fork)


class ClientSession:
    """The client's end. Made with what verification returned."""

    __slots__ = (
        "__weakref__",
        "_asked",
        "_confirmed",
        "_contexts",
        "_counter",
        "_dead",
        "_opening",
        "_order",
        "_padding",
        "_prk",
        "_receive",
        "_recipient",
        "_salt",
        "_seen",
        "_send",
        "_shown",
        "_strand",
        "session_id",
    )

    def __init__(
        self,
        *,
        claims_digest: bytes,
        encryption_key: bytes,
        identity: SigningKey,
        reply_key: bytes,
        topic: str,
        log_id: bytes | None = None,
        contexts: Contexts | None = None,
        padding: Padding = padme,
        strand: int = 0,
        _secret: Secret | None = None,
        _sealed: bytes | None = None,
    ) -> None:
        """Nothing was sent yet.

        Args:
            log_id: of the verified claims.
            contexts: what this client knows of that log; None if it knows nothing.
        """
        topic_bytes = _wire.check_topic(topic)
        secret = _secret or Secret.random()
        sealed = _sealed or _crypto.seal_secret(encryption_key, _opening_info(claims_digest), secret)
        self.session_id = _session_id(sealed)
        self._prk = _schedule(secret, sealed, claims_digest)
        log = _log_field(log_id)
        body = _signed_body(sealed, topic_bytes, reply_key, log)
        record = _RECORD.pack(
            identity.public,
            reply_key,
            len(topic_bytes),
            topic_bytes,
            log[0],
            log[1:],
            identity.sign("opening", claims_digest, body),
        )
        # The record key is used for this one record, so its nonce is fixed.
        record_key = AeadKey(self._prk.expand(LABEL_RECORD))
        self._opening = sealed + record_key.encrypt(_ZERO_NONCE, record, b"")
        self._send = AeadKey(self._prk.expand(LABEL_C2E))
        self._receive: AeadKey | None = None
        self._salt = b""
        self._seen = CounterWindow()
        self._counter = 0
        self._confirmed = False
        self._dead = False
        self._padding = padding
        self._strand = strand
        self._contexts = None if log_id is None else contexts or Contexts()
        self._recipient = claims_digest
        # What mails of this session showed that another boot had said, by version.
        self._shown: dict[int, bytes] = {}
        self._order = VersionOrder()
        # Whether the enclave was asked to sign what its state is: once in each session.
        self._asked = self._contexts is None
        _client_sessions.add(self)

    def discard(self) -> None:
        """End this session for this process; its keys are never used again."""
        self._dead = True

    @property
    def usable(self) -> bool:
        """Whether it may still encrypt."""
        return not self._dead and self._counter < MAX_COUNTER

    @property
    def seen_below(self) -> int:
        """Every reply counter below this was received."""
        return self._seen.below

    @property
    def version(self) -> int:
        """The version that the next mail will show, and its answers echo."""
        return 0 if self._contexts is None else _wire.version_of(self._contexts.shown(self._recipient))

    def encrypt(self, request: Request) -> bytes:
        """Encrypt a request under the next counter.

        Raises:
            SessionError: discarded, or spent after 2^32 mails.
            ValueError: body or envelope too large for the format or padding.
        """
        if not self.usable:
            raise SessionError("this session has ended in this process; open a new one")
        # Before a counter is taken: a gap would tell the host of a mail that did not fit.
        if self._contexts is None:
            plaintext = _wire.request_plaintext(request, self._strand, self._padding)
        else:
            flags = 0 if self._asked or not _wire.asks(request.kind) else FLAG_STATEMENT
            contexts = self._contexts
            context = contexts.shown(self._recipient)
            if not contexts.own(context, self._recipient):
                self._shown[_wire.version_of(context)] = context
            plaintext = _wire.request_plaintext(request, self._strand, self._padding, flags=flags, context=context)
            self._asked = self._asked or flags > 0
        counter, self._counter = self._counter, self._counter + 1
        opening = b"" if self._confirmed else self._opening
        return _encrypt(
            self._send,
            _mailheader.TO_ENCLAVE,
            self.session_id,
            counter,
            _mailheader.ZERO_SALT,
            opening,
            request.envelope,
            plaintext,
        )

    def open_stream(self, request: Request) -> tuple[bytes, int, ChunkSealer]:
        """Encrypt a stream call; the mail, its counter, and what encrypts the upload's chunks.

        Raises:
            SessionError, ValueError: as `encrypt`.
        """
        mail = self.encrypt(request)
        counter = self._counter - 1
        sealer = ChunkSealer(
            self._send,
            direction=_mailheader.TO_ENCLAVE,
            session_id=self.session_id,
            counter=counter,
            padding=request.padding or self._padding,
            alive=lambda: not self._dead,
        )
        return mail, counter, sealer

    def stream_opener(self, counter: int) -> ChunkOpener:
        """Decrypts the stream whose head came under that counter. After `decrypt` took the head."""
        if self._receive is None:
            raise SessionError("nothing of the enclave was received in this session")
        return ChunkOpener(self._receive, direction=_mailheader.TO_CLIENT, session_id=self.session_id, counter=counter)

    def decrypt(self, data: bytes) -> Reply:
        """Decrypt a reply of the enclave; each counter once.

        Raises:
            FormatError: not a mail.
            DecryptionError: not of this session, altered, or seen before.
            RollbackError: it is of another history than what came before; nothing changed.
        """
        mail = _mailheader.parse_mail(data)
        if self._dead or mail.direction != _mailheader.TO_CLIENT or mail.session_id != self.session_id:
            raise DecryptionError
        if self._receive is None:
            key = AeadKey(self._prk.expand(LABEL_E2C + mail.reply_salt))
        elif mail.reply_salt == self._salt and mail.counter not in self._seen:
            key = self._receive
        else:
            raise DecryptionError
        plaintext = key.decrypt(_NONCE.pack(mail.counter, 0), mail.ciphertext, mail.associated)
        reply = _wire.parse_reply(plaintext, mail.envelope, stateful=self._contexts is not None)
        told = None if reply.kind in BARE else self._contexts
        if told is not None:
            self._order.check(mail.counter, _wire.version_of(reply.context))
            shown = self._shown.get(reply.echo)
            told.answered(reply.context, instance=self._recipient, shown=shown)
            if shown is not None:
                self._shown = {version: other for version, other in self._shown.items() if version > reply.echo}
        self._receive, self._salt, self._confirmed = key, mail.reply_salt, True
        self._seen.add(mail.counter)
        if told is not None:
            self._order.add(mail.counter, _wire.version_of(reply.context), below=self._seen.below)
        return reply


class EnclaveSession:
    """The enclave's end of one accepted opening."""

    __slots__ = (
        "_context",
        "_counter",
        "_padding",
        "_receive",
        "_salt",
        "_send",
        "awake",
        "identity",
        "last_stream",
        "log_id",
        "recipient",
        "reply_key",
        "session_id",
        "topic",
    )

    def __init__(
        self,
        opening: bytes,
        *,
        key: DecryptionKey,
        claims_digest: bytes,
        padding: Padding = padme,
        log_id: bytes | None = None,
        context: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Accept an opening.

        Args:
            log_id: of the enclave's log, which the opening has to name.
            context: gives the state context for a client, by its identity; asked when a reply is encrypted.

        Raises:
            DecryptionError: not sealed to this instance, altered, of another log, or its
                signature does not verify. They look alike on purpose.
        """
        sealed, record = opening[: _wire.SEALED_SIZE], opening[_wire.SEALED_SIZE :]
        prk = _schedule(key.open_secret(sealed, _opening_info(claims_digest)), sealed, claims_digest)
        plain = AeadKey(prk.expand(LABEL_RECORD)).decrypt(_ZERO_NONCE, record, b"")
        identity, reply_key, size, topic, log_flag, log_named, signature = _RECORD.unpack(plain)
        log = bytes((log_flag,)) + log_named
        try:
            body = _signed_body(sealed, topic[:size], reply_key, log)
            _crypto.verify_signature(identity, "opening", claims_digest, body, signature)
            self.topic = topic[:size].decode("ascii")
            _wire.check_topic(self.topic)
        except (SignatureError, ValueError):
            raise DecryptionError from None
        if log != _log_field(log_id) or any(topic[size:]):
            raise DecryptionError
        self.session_id = _session_id(sealed)
        # Claims digest of the key that it was opened to.
        self.recipient = claims_digest
        self.identity = identity
        self.reply_key: bytes = reply_key
        self.log_id = log_id
        self._context = context
        self._receive = AeadKey(prk.expand(LABEL_C2E))
        self._salt = _crypto.random_bytes(32)
        self._send = AeadKey(prk.expand(LABEL_E2C + self._salt))
        self._counter = 0
        self._padding = padding
        # The counter of the newest stream call: a replayed one never runs a handler.
        self.last_stream = -1
        # Whether the mailbox counts it among those whose keys are expanded.
        self.awake = False

    def rest(self) -> None:
        """Take less memory until it is used again."""
        self._receive.rest()
        self._send.rest()
        self.awake = False

    def open_stream(self, reply: Reply) -> tuple[bytes, ChunkSealer]:
        """Encrypt the head of a reply stream; the mail, and what encrypts its chunks."""
        mail = self.encrypt(reply)
        sealer = ChunkSealer(
            self._send,
            direction=_mailheader.TO_CLIENT,
            session_id=self.session_id,
            counter=self._counter - 1,
            padding=reply.padding or self._padding,
        )
        return mail, sealer

    def stream_opener(self, counter: int) -> ChunkOpener:
        """Decrypts the upload of the stream call that came under that counter."""
        return ChunkOpener(self._receive, direction=_mailheader.TO_ENCLAVE, session_id=self.session_id, counter=counter)

    def decrypt(self, mail: EncryptedMail) -> Request:
        """Decrypt a request. Its order is the channel's question.

        Raises:
            DecryptionError: altered or of another session.
            FormatError: authentic, but malformed inside.
        """
        nonce = _NONCE.pack(mail.counter, 0)
        plaintext = self._receive.decrypt(nonce, mail.ciphertext, mail.associated)
        return _wire.parse_request(plaintext, mail.envelope, stateful=self._context is not None)

    def encrypt(self, reply: Reply) -> bytes:
        """Encrypt a reply under the next counter.

        Raises:
            SessionError: spent after 2^32 mails.
            ValueError: body or envelope too large for the format or padding.
        """
        counter = self._counter
        if counter >= MAX_COUNTER:
            raise SessionError("this session is spent")
        # In one step with the counter: the versions that a session names follow its counters.
        context = b"" if self._context is None else self._context(self.identity)
        plaintext = _wire.reply_plaintext(reply, self._padding, context)
        self._counter = counter + 1
        return _encrypt(
            self._send, _mailheader.TO_CLIENT, self.session_id, counter, self._salt, b"", reply.envelope, plaintext
        )
