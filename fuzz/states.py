"""Targets that are authentic and hostile: what a peer with the right keys may send, and what a host may answer."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from conclave import _codec, _mailheader
from conclave._crypto import AeadKey, DecryptionKey, Secret, SigningKey, seal_secret
from conclave.bundle.keys import load_signing_key
from conclave.cli._inspect import explain
from conclave.client import Box, Identity
from conclave.client._box import split_numbered
from conclave.client.core import split_mails
from conclave.enclave import Enclave, rpc
from conclave.enclave._posts import Posts
from conclave.errors import Error
from conclave.host import Host
from conclave.host.outbox import _HEAD, Outbox
from conclave.mail import ClientSession, Conversation, Mailbox, Outcome, ReplyKind, RequestKind, post
from conclave.mail.padding import padme
from conclave.mail.session import EnclaveSession, _encrypt
from conclave.persistence.log import Change, Log, What
from conclave.persistence.records import Boot, Born, Keys, digest_of, pad, seal_entry
from conclave.persistence.snapshots import Manifest, seal_chunk
from conclave.persistence.witness import log_id_of
from conclave.rpc.http import MAX_TARGET, BadRequest, HeadReader, HttpExchange, check_request, encode_head
from conclave.rpc.interface import CallFailure, decode_result, interface_of

_PLACE: Final = Path(tempfile.mkdtemp(prefix="conclave-fuzz-"))
_DIGEST: Final = bytes(64)
_KEY: Final = DecryptionKey.generate()


class _Typed(Enclave):
    @rpc
    def method(self, a: int, b: list[str], c: dict[str, float | None], d: bytes = b"") -> set[int]:
        return set()


_METHOD: Final = interface_of(_Typed).methods["method"]
_REQUEST: Final = interface_of(HttpExchange).methods["request"]


class _Pair:
    """A client and an enclave with a session, made anew every so often so that counters stay small."""

    def __init__(self) -> None:
        self.box = Mailbox(key=_KEY, claims_digest=_DIGEST)
        self.conversation = Conversation()
        self.client = ClientSession(
            claims_digest=_DIGEST,
            encryption_key=_KEY.public,
            identity=SigningKey.generate(),
            reply_key=_KEY.public,
            topic="t",
        )
        self.conversation.use(self.client, new_boot=False)
        first = self.conversation.add(RequestKind.MAIL, b"").encrypted
        received = self.box.receive(first, 1)
        assert received.channel is not None
        made = self.box.reply(received.channel, 0, ReplyKind.MAIL, b"", last=False)
        assert made is not None
        self.conversation.receive(made[1])
        self.enclave: EnclaveSession = self.box._sessions[self.client.session_id][0]
        self.uses = 0

    def encrypted(self, plaintext: bytes, *, to_enclave: bool) -> bytes:
        """Those bytes as the whole inside of an authentic mail."""
        end: Any = self.client if to_enclave else self.enclave
        key: AeadKey = end._send
        counter, end._counter = end._counter, end._counter + 1
        return _encrypt(
            key,
            direction=_mailheader.TO_ENCLAVE if to_enclave else _mailheader.TO_CLIENT,
            session_id=self.client.session_id,
            counter=counter,
            salt=_mailheader.ZERO_SALT if to_enclave else self.enclave._salt,
            opening=b"",
            envelope=plaintext[:8],
            plaintext=plaintext.ljust(padme(len(plaintext)), b"\0"),
        )


_pair: list[_Pair] = []


def _fresh() -> _Pair:
    if not _pair or _pair[0].uses > 500:
        _pair[:] = [_Pair()]
    _pair[0].uses += 1
    return _pair[0]


def mailbox(data: bytes) -> None:
    pair = _fresh()
    with contextlib.suppress(Error):
        pair.box.receive(data, 1)
    received = pair.box.receive(pair.encrypted(data, to_enclave=True), 1)
    if received.outcome is Outcome.RUN:
        assert received.channel is not None
        assert received.request is not None
        pair.box.reply(received.channel, received.request.sequence, ReplyKind.MAIL, data, last=True)


def conversation(data: bytes) -> None:
    pair = _fresh()
    with contextlib.suppress(Error):
        pair.conversation.receive(data)
    pair.conversation.add(RequestKind.MAIL, b"")
    pair.conversation.receive(pair.encrypted(data, to_enclave=False))


def posted(data: bytes) -> None:
    """Bytes as a posted mail, and as the inside of one that somebody with the reply key sealed."""
    for mail in (data, _sealed(data)):
        with contextlib.suppress(Error):
            post.open_post(mail, key=_KEY, identity=bytes(32)).check_sender(bytes(32))
    with contextlib.suppress(Error):
        post.parse_address(data)
    with contextlib.suppress(Error):
        Box.restore(data)
    assert all(len(mail) <= len(data) for _, mail in split_numbered(data))


def _sealed(plaintext: bytes) -> bytes:
    plaintext = plaintext.ljust(post.PRIVATE_SIZE, b"\0")
    secret = Secret.random()
    sealed = seal_secret(_KEY.public, post._info(_KEY.public, _DIGEST), secret)
    box, size = post.box_id(_KEY.public), len(plaintext) + 16
    header = _mailheader.POST_HEADER.pack(_mailheader.POST_MAGIC, 0, 0, box, _DIGEST, sealed, size)
    return header + post._key(secret, sealed, _DIGEST).encrypt(bytes(12), plaintext, header)


def outbox(data: bytes) -> None:
    """Bytes as a blob of the store, as the payload of a POST frame, and of a ROOM frame."""
    kept = Outbox()
    kept._index("outbox/mails/1", data)
    kept._index("outbox/mails/2", _HEAD.pack(b"CMO1", 0) + data)
    kept.put(data, lambda: None)
    kept.expire()
    for box in list(kept._boxes):
        kept.delete(box, 2**64)
    assert (kept._mails, kept._size, kept._wanted, kept._blobs) == (0, 0, {}, {})
    posts = Posts(signer=SigningKey.generate(), claims_digest=_DIGEST, send=lambda _: None)
    with contextlib.suppress(Error):
        posts.room(data)


def arguments(data: bytes) -> None:
    found = _METHOD.decode_arguments(data)
    assert len(found) <= 4


def request_head(data: bytes) -> None:
    """Arguments of a request, as an enclave that serves an application gets them."""
    head, body = _REQUEST.decode_arguments(data)
    with contextlib.suppress(BadRequest):
        size = check_request(head)
        assert size is None or size >= 0
        assert len(head.path) <= MAX_TARGET
        assert isinstance(body, bytes)
        assert all(b"\n" not in name + value for name, value in head.headers)


def response_head(data: bytes) -> None:
    whole = HeadReader().feed(data)
    if whole is not None:
        assert encode_head(whole[0]) + whole[1] == data


def result(data: bytes) -> None:
    with contextlib.suppress(Error):
        _codec.decode(CallFailure, data, max_size=65536, what="call error")
    for kind in (int, Any, dict[str, list[int]], bytes | None):
        with contextlib.suppress(Error):
            decode_result(data, kind)


def mails(data: bytes) -> None:
    found = split_mails(data)
    assert b"".join(len(m).to_bytes(4, "big") + m for m in found) == data[: sum(4 + len(m) for m in found)]


def keys(data: bytes) -> None:
    path = _PLACE / "key"
    path.write_bytes(data)
    with contextlib.suppress(Error):
        Identity.load(path)
    load_signing_key(path)


def inspect(data: bytes) -> None:
    path = _PLACE / "any"
    path.write_bytes(data)
    explain(str(path))


def http(data: bytes) -> None:
    """Method, path, query and body of a request to a host whose enclave is not there."""
    method, path, query, body = [*data.split(b" ", 3), b"", b"", b""][:4]
    scope = {
        "type": "http",
        "method": method.decode("latin-1"),
        "path": "/" + path.decode("utf-8", "replace"),
        "query_string": query,
        "headers": [(b"content-length", str(len(body)).encode())],
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    def launch() -> Any:
        raise OSError

    # It ends at its first await that would wait: an outbox that is read with patience.
    async def once() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await Host(launch)(scope, receive, send)
                assert len(statuses) == 1
                assert 200 <= statuses[0] < 504

    asyncio.run(once())


def sealed(data: bytes) -> None:
    """Authentic contents: the first byte says whether of a log's first record, a change, a manifest or a chunk."""
    kind, encoded = data[0] % 4 if data else 0, data[1:]
    plain = (len(encoded).to_bytes(4, "big") + encoded).ljust(padme(4 + len(encoded)), b"\0")
    level, ids = 3, {"log": log_id_of(SigningKey(bytes(32)).public), "boot": bytes(16)}
    boot_key, sealing = Secret.random(), Secret.random()
    part = Boot.begin(bundle=bytes(32), level=level, key=boot_key, sealing=sealing, **ids).pack()
    keys, place = Keys(boot_key), {"log": ids["log"], "version": 0, "counter": 0}
    if kind < 2:
        born = plain if kind == 0 else pad(Born(Change(), bytes(32), bytes(32)))
        entry = seal_entry(born, key=keys.record, previous=bytes(32), boot=part, **place)
        given = [(What.ENTRY, entry)]
        if kind == 1:
            place |= {"version": 1, "counter": 1}
            digest = digest_of(entry, log=ids["log"], version=0, previous=bytes(32))
            given.append((What.ENTRY, seal_entry(plain, key=keys.record, previous=digest, **place)))
    else:
        history = ids["boot"] + bytes(8)
        manifest = plain if kind == 2 else pad(Manifest(1, bytes(32), history, bytes(32), bytes(32), 0))
        place |= {"key": keys.snapshot, "snapshot": bytes(16)}
        given = [(What.MANIFEST, seal_chunk(manifest, index=0, boot=part, **place))]
        place |= {"counter": 1}
        if kind == 3:
            given.append((What.CHUNK, seal_chunk(plain, index=1, **place)))
    given.append((What.END, b""))
    log = Log.restore(given, key=lambda bundle, level: sealing, bundle_id=bytes(32), level=level)
    # Whatever it is, it goes on, and comes back.
    given[-1:] = [(What.ENTRY, log.boot_entry()), (What.ENTRY, log.commit(Change())), (What.END, b"")]
    again = Log.restore(given, key=lambda bundle, level: sealing, bundle_id=bytes(32), level=level)
    assert (again.version, again.digest, again.rows) == (log.version, log.digest, log.rows)
    assert again.table.current == log.table.current


_ALL: Final = (
    *(mailbox, conversation, posted, outbox, arguments, request_head, response_head, result),
    *(mails, keys, inspect, http, sealed),
)
STATES: Final[dict[str, Callable[[bytes], None]]] = {f.__name__: f for f in _ALL}
