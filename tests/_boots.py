"""Boots of an enclave that keeps state, without a host: what leaves is a list of frames, what they commit another."""

from __future__ import annotations

from typing import Any

import msgspec
from tests._claims import claims_of

from conclave._crypto import DecryptionKey, Secret, SigningKey, random_bytes
from conclave._framing import Frame, Kind
from conclave.attestation.claims import InstanceClaims
from conclave.enclave import Enclave
from conclave.enclave._service import Service
from conclave.enclave._state import State
from conclave.enclave.drivers import Evidence
from conclave.mail import ClientSession, Conversation, Pending, RequestKind
from conclave.mail._wire import version_of
from conclave.mail.contexts import Contexts
from conclave.persistence.log import Log, What
from conclave.persistence.records import Change
from conclave.rpc.interface import encode_call, interface_of

_BUNDLE, _SEALING, _ZERO = bytes(range(32)), Secret(bytes(range(32))), bytes(32)


class Boot:
    """One boot in this process, on the running loop.

    Attributes:
        stored: entries that were committed, by this boot and those before it.
        left: kind and request id of all frames, in order.
        broken: whether it asked to be ended.
    """

    def __init__(self, cls: type[Enclave], stored: list[bytes]) -> None:
        entries = [(int(What.ENTRY), entry) for entry in stored]
        log = Log.restore([*entries, (int(What.END), b"")], key=lambda _b, _l: _SEALING, bundle_id=_BUNDLE, level=0)
        self.stored = stored
        self.changes: list[Change] = []
        self.left: list[tuple[int, int]] = []
        self.answers: dict[int, list[bytes]] = {}
        self.broken = False
        self._next = 0
        self.state = State(log, self._take, full=lambda: False)
        self.state.broken = self._break
        record = log.record

        def note(change: Change) -> bytes:
            self.changes.append(change)
            return record(change)

        log.record = note  # type: ignore[method-assign]
        interface = interface_of(cls)
        self.enclave = cls()

        def claims(encryption: bytes, signing: bytes) -> InstanceClaims:
            return claims_of(encryption, signing, boot_nonce=random_bytes(32), log_id=log.log_id)

        self.service = Service(
            enclave=self.enclave,
            interface=interface,
            claims=claims,
            evidence=lambda _: Evidence("simulated", b"", b""),
            roster=(),
            quorum=0,
            send=self._take,
            debug=True,
            state=self.state,
        )

    def _break(self) -> None:
        self.broken = True

    def _take(self, kind: int, request: int, *payload: bytes) -> None:
        data = b"".join(payload)
        self.left.append((kind, request))
        if kind == Kind.COMMIT:
            size = int.from_bytes(data[8:12], "big")
            self.stored.append(data[12 : 12 + size])
        elif kind in (Kind.DONE, Kind.REPLY):
            self.answers.setdefault(request, []).append(data)

    def mail(self, data: bytes) -> int:
        """One mail of a batch that goes on; the request id under which its answer leaves."""
        self._next += 1
        self.service.handle([Frame(Kind.MAIL, self._next, data)])
        return self._next

    def count(self, kind: Kind) -> int:
        """How many frames of that kind left."""
        return sum(one == kind for one, _ in self.left)


class Caller:
    """A client of such boots, on one topic."""

    def __init__(self, boot: Boot, topic: str = "t", *, strand: int = 7, identity: SigningKey | None = None) -> None:
        self.identity = identity or SigningKey.generate()
        self.contexts = Contexts()
        self.reply_key = DecryptionKey.generate()
        self.topic, self.strand = topic, strand
        self.conversation = Conversation()
        self.meet(boot)

    def meet(self, boot: Boot) -> None:
        """Open a session; what is unanswered is encrypted again."""
        self.boot = boot
        claims = boot.service.claims
        self.session = ClientSession(
            claims_digest=claims.digest(),
            encryption_key=claims.encryption_key,
            identity=self.identity,
            reply_key=self.reply_key.public,
            topic=self.topic,
            log_id=claims.log_id,
            contexts=self.contexts,
            strand=self.strand,
        )
        self.conversation.use(self.session, new_boot=False)

    def call(self, name: str, *arguments: Any) -> tuple[Pending, int]:
        """Send a call in the present batch."""
        item = self.conversation.add(RequestKind.CALL, encode_call(name, list(arguments)))
        return item, self.boot.mail(item.encrypted)

    def take(self, route: int) -> None:
        """Take what left for that request."""
        for mail in self.boot.answers.pop(route, ()):
            if mail:
                self.conversation.receive(mail)

    @property
    def version(self) -> int:
        """What it was told of last."""
        return version_of(self.contexts.newest)


def result(item: Pending) -> Any:
    """What a call returned."""
    assert item.done, item.refused
    return msgspec.msgpack.decode(item.replies[-1].body)
