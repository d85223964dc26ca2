"""Enclaves with a log, without IO: a mailbox over a real log, whose store the test keeps, cuts and copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from conclave import _crypto
from conclave._crypto import DecryptionKey, Secret, SigningKey
from conclave.errors import Error
from conclave.mail import Bounds, Channel, EnclaveSession, Mailbox, Outcome, Received, Reply, ReplyKind, Request
from conclave.persistence.context import Context, SignedStatement
from conclave.persistence.log import Change, Log, What

_SEALING = Secret(bytes(range(32)))
_BUNDLE = bytes(range(32))
LABEL = b"test mark"


class LogMemory:
    """What a mailbox keeps, in a log."""

    def __init__(self, stored: list[bytes]) -> None:
        """Begin, or go on with these entries; `stored` grows with each record."""
        entries = [(int(What.ENTRY), entry) for entry in stored]
        self.log = Log.restore(
            [*entries, (int(What.END), b"")], key=lambda _bundle, _level: _SEALING, bundle_id=_BUNDLE, level=0
        )
        self.stored = stored
        self.rows: Mapping[bytes, bytes] = dict(self.log.rows)
        self.changed: dict[bytes, bytes | None] = {}
        self.needed = False
        stored.append(self.log.boot_entry())

    @property
    def log_id(self) -> bytes:
        return self.log.log_id

    def put(self, key: bytes, value: bytes | None, *, lazily: bool = False) -> None:
        self.changed[key] = value
        self.needed = self.needed or not lazily

    def check(self, context: bytes, identity: bytes) -> int:
        known = self.log.check(context, identity)
        return 0 if known is None else known.version

    def context(self, identity: bytes) -> bytes:
        return self.log.context(identity)

    def mark(self, head: bytes, body: bytes | memoryview) -> bytes:
        return self.log.marks.tag(LABEL, head, body)

    def commit(self, map_changes: dict[str, bytes | None] | None = None) -> None:
        """One record, if anything needs one."""
        if self.needed or map_changes:
            change = Change(map=sorted((map_changes or {}).items()), mail=sorted(self.changed.items()))
            self.stored.append(self.log.commit(change))
            self.changed, self.needed = {}, False


class _Later(bytes):
    encrypt: Callable[[], bytes]


def _later(session: EnclaveSession, reply: Reply) -> bytes:
    later = _Later()
    later.encrypt = partial(session.encrypt, reply)
    return later


class Boot:
    """One boot of an enclave that counts, per body, how often a request with it ran to its end.

    A body that begins with `wait` is left running until `finish`; one that begins with `twice` is
    answered with two mails.
    """

    def __init__(self, stored: list[bytes], *, bounds: Bounds | None = None, digest: bytes | None = None) -> None:
        self.memory = LogMemory(stored)
        self.key, self.signing = DecryptionKey.generate(), SigningKey.generate()
        self.digest = digest or _crypto.random_bytes(64)
        self.mailbox = Mailbox(key=self.key, claims_digest=self.digest, seal=_later, memory=self.memory, bounds=bounds)
        self.running: dict[bytes, tuple[Channel, Request, int]] = {}
        self.proof: SignedStatement | None = None
        self._route = 0

    @property
    def log_id(self) -> bytes:
        return self.memory.log_id

    def count(self, body: bytes) -> int:
        """How often it took effect, by the state of this boot."""
        value = self.memory.log.table.get(body.hex())
        return 0 if value is None else int.from_bytes(value, "big")

    def receive(self, mail: bytes) -> list[bytes]:
        """What the enclave answers at once; a word where it answers none."""
        self._route += 1
        try:
            received = self.mailbox.receive(mail, self._route)
        except Error as error:
            return [error.code.encode()]
        mails = list(received.mails)
        if received.outcome is Outcome.HALT:
            mails.append(self._halt(received))
        if received.statement:
            signed = SignedStatement.sign(self.memory.log.statement(), self.signing, self.digest)
            mails.insert(0, self.mailbox.outside(received, ReplyKind.STATEMENT, signed.signature + signed.encoded))
        if received.outcome is Outcome.RUN and received.channel and received.request:
            body = bytes(received.request.body)
            self.running[body] = (received.channel, received.request, self._route)
            if not body.startswith(b"wait"):
                mails += self._answer(body)
        return [self._sealed(mail) for mail in mails]

    def finish(self, body: bytes) -> list[bytes]:
        """A request that waits is done; the answers to it."""
        return [self._sealed(mail) for mail in self._answer(body)]

    def commit(self, body: bytes) -> list[bytes]:
        """As `finish`, and its answers are lost in the enclave."""
        return self._answer(body)

    def _answer(self, body: bytes) -> list[bytes]:
        channel, request, _ = self.running.pop(body)
        mails = []
        for last in (False, True) if body.startswith(b"twice") else (True,):
            made = self.mailbox.reply(channel, request.sequence, ReplyKind.MAIL, b"re: " + body, last=last)
            if made is not None:
                mails.append(made[1])
        if mails:
            self.memory.commit({body.hex(): (self.count(body) + 1).to_bytes(8, "big")})
        return mails

    def _halt(self, received: Received) -> bytes:
        assert received.request is not None
        refused = Context.parse(received.request.context)
        self.proof = SignedStatement.sign(self.memory.log.statement(refused), self.signing, self.digest)
        self.mailbox.halt(self.proof.signature + self.proof.encoded)
        return self.mailbox.outside(received, ReplyKind.HALTED, self.proof.signature + self.proof.encoded)

    @staticmethod
    def _sealed(mail: bytes) -> bytes:
        return mail.encrypt() if isinstance(mail, _Later) else mail
