"""The client's side of one channel: numbering, retries and acknowledgements.

Runs at the client, without IO. Bodies are kept until the enclave answered them;
a new session, or a new instance, sends them again (MAIL-14).

Spec: spec/mail.md section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from conclave._mailheader import NONE, address_of
from conclave.errors import DecryptionError, Error
from conclave.mail._wire import FLAG_UPLOAD, Reply, ReplyKind, Request, RequestKind
from conclave.mail.contexts import check_echo
from conclave.mail.padding import Padding
from conclave.mail.session import ClientSession
from conclave.mail.stream import ChunkSealer


@dataclass(slots=True)
class Pending:
    """One request that has no last reply yet.

    Attributes:
        encrypted: the bytes sent in the present session, made when the request takes
            its place, so that the session counts in the channel's order; a retry in
            the same session sends exactly these.
        replies: authentic replies so far, in the enclave's order.
        abandoned: its caller went away; it is sent until answered all the same,
            because later requests are ordered behind it.
        attended: its caller sends it, and has not given up.
        refused: an authentic reply that ends this attempt without an answer.
        failed: why it will never be sent again.
        boots: nonces of the boots, or ids of the logs, that it may have reached: none gets it under
            a second number (MAIL-52).
        logged: the last of them is a log: no other one gets it.
        shown: the version of the state context that it has in the present session.
        saved: strand and sequence under which saved state knows it.
        resumed: an earlier process sent it.
    """

    kind: int
    flags: int
    body: bytes
    envelope: bytes
    sequence: int = 0
    encrypted: bytes = b""
    replies: list[Reply] = field(default_factory=list)
    done: bool = False
    abandoned: bool = False
    attended: bool = False
    refused: Reply | None = None
    failed: Error | None = None
    boots: list[bytes] = field(default_factory=list)
    saved: tuple[int, int] | None = None
    resumed: bool = False
    padding: Padding | None = None
    logged: bool = False
    shown: int = 0


class Conversation:
    """One channel at the client: (enclave, own identity, topic, strand)."""

    def __init__(self, heard: Callable[[Reply], None] = lambda _reply: None) -> None:
        """Nothing was said yet.

        Args:
            heard: is told what the enclave signed about its state, whatever that came with.
        """
        self.session: ClientSession | None = None
        self._heard = heard
        # Posted mails of this boot with a lower number were received.
        self.posted = 0
        self._next = 0
        self._pending: dict[int, Pending] = {}
        # Cover mails under way, by their counter.
        self._covers: dict[int, Pending] = {}
        self._received_below = 0
        self._above: set[int] = set()
        self._quiet = False
        self._reached = 0

    @property
    def acknowledged(self) -> int:
        """Every reply with a lower sequence was received."""
        return 0 if self._quiet else self._received_below

    def use(self, session: ClientSession, *, new_boot: bool) -> None:
        """Go on with a new session.

        Args:
            new_boot: the session carries another strand, which counts from 0.
        """
        self.session = session
        covers, self._covers = self._covers, {}
        for item in covers.values():
            self._enter_cover(item)
        if new_boot:
            waiting = self.waiting()
            self._pending = {}
            self._next = self._reached = self.posted = 0
            self._received_below = 0
            self._above = set()
            for item in waiting:
                self._enter(item)
        else:
            for item in self.waiting():
                item.encrypted = self._encrypt(item)

    def _enter(self, item: Pending) -> None:
        item.sequence = self._next
        item.encrypted = self._encrypt(item)
        self._pending[self._next] = item
        self._next += 1

    def _encrypt(self, item: Pending) -> bytes:
        if self.session is None:
            raise RuntimeError("no session yet")
        item.shown = self.session.version
        return self.session.encrypt(
            Request(
                item.kind,
                item.flags,
                item.sequence,
                self.acknowledged,
                item.body,
                item.envelope,
                self.posted,
                padding=item.padding,
            )
        )

    def add(
        self, kind: RequestKind, body: bytes, *, envelope: bytes = b"", flags: int = 0, padding: Padding | None = None
    ) -> Pending:
        """Take a place in the channel's order.

        Raises:
            ValueError: body or envelope do not fit a mail; no place was taken.
            SessionError: the session has ended in this process.
        """
        item = Pending(kind, flags, body, envelope, padding=padding)
        self._enter(item)
        return item

    def cover(self) -> Pending:
        """A mail that means nothing, outside the sequence (MAIL-42)."""
        item = Pending(RequestKind.COVER, 0, b"", b"", sequence=NONE)
        self._enter_cover(item)
        return item

    def _enter_cover(self, item: Pending) -> None:
        item.encrypted = self._encrypt(item)
        self._covers[address_of(item.encrypted)[2]] = item

    def uncover(self, item: Pending) -> None:
        """Wait for its answer no longer."""
        self._covers = {counter: other for counter, other in self._covers.items() if other is not item}

    def restore(self, items: list[Pending]) -> None:
        """Repeat what another process left, under the numbers it gave; before `use`.

        Nothing is acknowledged: whoever dies over this can repeat it again.
        """
        self._quiet = True
        self._pending = {item.sequence: item for item in items}
        self._next = max(self._pending) + 1

    def retract(self, item: Pending) -> None:
        """Give back the newest place: that request never left."""
        del self._pending[item.sequence]
        self._next = item.sequence

    def forget(self, item: Pending) -> None:
        """Drop a request that must not be sent to another boot."""
        self._pending.pop(item.sequence, None)

    def holds(self, sequence: int) -> bool:
        """Whether that request is still without its last reply."""
        return sequence in self._pending

    def awaits(self, sequence: int) -> bool:
        """Whether a caller has that request, and sends it until it gives up."""
        item = self._pending.get(sequence)
        return item is not None and item.attended

    def passed(self, sequence: int) -> bool:
        """Whether the enclave is known to have taken that request: it answered this or a later one."""
        return sequence < self._reached

    def waiting(self) -> list[Pending]:
        """Requests without a last reply, in order."""
        return [self._pending[s] for s in sorted(self._pending)]

    def acknowledgement(self) -> bytes:
        """A mail that only acknowledges."""
        if self.session is None:
            raise RuntimeError("no session yet")
        return self.session.encrypt(Request(RequestKind.ACKNOWLEDGE, 0, NONE, self.acknowledged, b"", b"", self.posted))

    def open_stream(
        self, body: bytes, *, upload: bool, padding: Padding | None = None
    ) -> tuple[ClientSession, bytes, int, ChunkSealer]:
        """Encrypt a stream call, which takes no place in the order; its head echoes `session.version` of now."""
        if self.session is None:
            raise RuntimeError("no session yet")
        flags = FLAG_UPLOAD if upload else 0
        request = Request(RequestKind.STREAM, flags, NONE, self.acknowledged, body, padding=padding)
        return self.session, *self.session.open_stream(request)

    def receive(self, data: bytes) -> Pending | None:
        """Take one mail from the host.

        Returns:
            The request it answers, or None for a repetition.

        Raises:
            FormatError, DecryptionError: not authentic, or a replay.
            RollbackError: authentic, and of another history than this client saw.
        """
        if self.session is None:
            raise DecryptionError
        reply = self.session.decrypt(data)
        if reply.kind in (ReplyKind.HALTED, ReplyKind.STATEMENT):
            self._heard(reply)
            if reply.kind == ReplyKind.STATEMENT or reply.outside:
                return None
        if reply.outside:
            item = self._covers.get(reply.answers)
            if item is None:
                # The host gave the head of a stream to whoever waits for something else.
                raise DecryptionError
            check_echo(reply, item.shown)
            item.done = reply.kind == ReplyKind.COVER
            item.refused = None if item.done else reply
            return item
        item = self._pending.get(reply.answers)
        if item is not None:
            check_echo(reply, item.shown)
        if reply.sequence == NONE:
            if item is not None:
                item.refused = reply
            return item
        if reply.sequence < self._received_below or reply.sequence in self._above:
            return None
        self._above.add(reply.sequence)
        while self._received_below in self._above:
            self._above.remove(self._received_below)
            self._received_below += 1
        if item is None:
            return None
        item.replies.append(reply)
        # The last reply says how many there are: the host may swap their order.
        if any(r.last and r.expected == len(item.replies) for r in item.replies):
            item.done = True
            self._reached = max(self._reached, item.sequence + 1)
            item.replies.sort(key=lambda r: r.sequence)
            del self._pending[item.sequence]
        return item
