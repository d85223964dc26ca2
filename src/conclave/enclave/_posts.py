"""What one boot posts: numbers, bounds, and batches that become visible together.

Runs inside the enclave, without IO. A client that never fetches, or never
acknowledges, is bounded by what it holds of its own box; a host that says a box
is full only stops mail that it could as well have dropped.

Spec: spec/mail.md section 11 (MAIL-33 to MAIL-37).
"""

from __future__ import annotations

import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from conclave._crypto import SigningKey
from conclave._framing import MAX_PAYLOAD
from conclave.enclave.sdk import Post
from conclave.errors import FormatError, OverloadedError, SessionError
from conclave.mail import EnclaveSession, post
from conclave.mail._wire import check_topic
from conclave.mail.padding import Padding, padme
from conclave.mail.post import Address, box_id

IDENTITY_SIZE: Final = 32
ROOM, FULL = 0, 1
BOX_SIZE: Final = 16
_STEP: Final = 1024
# A day more than a host keeps mail (HTTP-17). What expired there never reaches its client, which
# acknowledges cumulatively: without an end it would hold up all that comes after it.
KEPT_SECONDS: Final = 8 * 86_400.0
_LOOK_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class PostBounds:
    """What one boot posts at most before it is acknowledged (MAIL-35)."""

    mails_per_box: int = 1024
    bytes_per_box: int = 32 * 1024 * 1024
    # A client has as many boxes as it likes: one alone must not fill what is for all.
    mails_per_identity: int = 16 * 1024
    bytes_per_identity: int = 256 * 1024 * 1024
    lines_per_identity: int = 20_000
    topics_per_identity: int = 256
    lines: int = 200_000


@dataclass(slots=True)
class _Held:
    """What was posted to one box, or to one client, and is not acknowledged; and on how many lines."""

    mails: int = 0
    size: int = 0
    lines: int = 0

    def __add__(self, more: _Held) -> _Held:
        return _Held(self.mails + more.mails, self.size + more.size, self.lines + more.lines)

    def add(self, mails: int, size: int) -> None:
        self.mails += mails
        self.size += size


@dataclass(frozen=True, slots=True)
class Plan:
    """Mail that may be posted: resolved, sealed to its readers, and not numbered.

    Attributes:
        going: mail, where it goes, its size on the wire, and the secret that was sealed there.
        lost: what is not among it.
    """

    going: list[tuple[Post, Address, int, post.Sealed]]
    inner: int
    claims_digest: bytes
    lost: tuple[Post, ...]

    @property
    def size(self) -> int:
        """Bytes of all of it on the wire."""
        return sum(4 + size for _, _, size, _ in self.going)


@dataclass(frozen=True, slots=True)
class Posted:
    """One mail that has its number, to be made with the context that goes along."""

    box: bytes
    identity: bytes
    number: int
    body: bytes
    make: Callable[..., bytes]


class Rows(Protocol):
    """Where numbers go on from: the rows of a log (`mail.memory.Memory`)."""

    @property
    def rows(self) -> Mapping[bytes, bytes]: ...
    def put(self, key: bytes, value: bytes | None, *, lazily: bool = False) -> None: ...


# Keys of rows: a line, and where new lines begin. A line's: next number, mails that wait, their bytes.
_LINE: Final = b"p"
_BEGIN: Final = b"b"
_BOX, _IDENTITY, _TOPIC = slice(1, 17), slice(17, 49), slice(49, None)
_LINE_ROW: Final = struct.Struct(">QQQ")
# Box, identity, topic.
_Key = tuple[bytes, bytes, str]


@dataclass(slots=True)
class _Line:
    """Mail of this boot for one reply key, client and topic."""

    box: _Held
    owner: _Held
    next: int = 0
    # When, and of what size, was posted what is not acknowledged; the newest has the number `next - 1`.
    sent: deque[tuple[float, int]] = field(default_factory=deque)
    size: int = 0

    @property
    def acknowledged(self) -> int:
        return self.next - len(self.sent)

    def add(self, now: float, size: int) -> None:
        self.next += 1
        self.size += size
        self.sent.append((now, size))
        self.box.add(1, size)
        self.owner.add(1, size)

    def drop(self) -> None:
        """The oldest of what is not acknowledged is, or never will be."""
        _, size = self.sent.popleft()
        self.size -= size
        self.box.add(-1, -size)
        self.owner.add(-1, -size)


class Posts:
    """All mail that this boot posted and that may still lie in the outbox."""

    def __init__(
        self,
        *,
        signer: SigningKey,
        claims_digest: bytes,
        send: Callable[[bytes], None],
        padding: Padding = padme,
        bounds: PostBounds | None = None,
        elapsed: Callable[[], float] = time.monotonic,
        rows: Rows | None = None,
    ) -> None:
        """Nothing is posted yet, but what earlier boots of a log did.

        Args:
            rows: the log, of an enclave whose state persists. Each mail then has a state context
                beside its body, given to `Posted.make`, and numbers go on from boot to boot.
            send: queues the payload of one POST frame.
            elapsed: seconds since some moment, by the host's clock: one that runs ahead has mail
                forgotten that the host could as well have dropped.
        """
        self._signer = signer
        self._digest = claims_digest
        self._send = send
        self._padding = padding
        self._rows = rows
        self._bounds = bounds or PostBounds()
        self._elapsed = elapsed
        self._looked = elapsed()
        self._boxes: dict[bytes, _Held] = {}
        self._owners: dict[bytes, _Held] = {}
        # Where clients of this boot are reached, by topic: what their newest sessions brought.
        self._reply_keys: OrderedDict[bytes, OrderedDict[str, bytes]] = OrderedDict()
        self._topics = 0
        self._lines: dict[_Key, _Line] = {}
        # Those whose mail is all acknowledged, oldest first. They make room for others, and none of their
        # numbers comes again: what is begun anew begins at `_begin`.
        self._settled: OrderedDict[_Key, None] = OrderedDict()
        self._begin = 0
        self._full: set[bytes] = set()
        self._all_full = False
        if rows is not None:
            self._restore(rows)

    def renew(self, claims_digest: bytes) -> None:
        """Sign under renewed claims; the numbers go on, as it is the same boot."""
        self._digest = claims_digest

    def opened(self, session: EnclaveSession) -> None:
        """A client opened a session: from now on its mail goes to the reply key of that one."""
        mine = self._reply_keys.setdefault(session.identity, OrderedDict())
        self._reply_keys.move_to_end(session.identity)
        self._topics += session.topic not in mine
        mine[session.topic] = session.reply_key
        mine.move_to_end(session.topic)
        if len(mine) > self._bounds.topics_per_identity:
            mine.popitem(last=False)
            self._topics -= 1
        if self._topics > self._bounds.lines:
            _, oldest = self._reply_keys.popitem(last=False)
            self._topics -= len(oldest)

    def address(self, identity: bytes, topic: str) -> bytes:
        """See `Enclave.address`."""
        return Address(identity, self._reply_key(identity, topic), topic).encode()

    def post(self, posts: Sequence[Post], *, skip_unreachable: bool = False) -> tuple[Post, ...]:
        """Make all of them, equally large, and queue them as one; or nothing.

        Args:
            skip_unreachable: go on without those who have no room or no session.

        Returns:
            Those that were not posted.

        Raises:
            SessionError, OverloadedError: see `Enclave.post`; nothing was posted.
            ValueError: one does not fit a mail, or all together do not fit a frame.
        """
        plan = self.plan(posts, skip_unreachable=skip_unreachable)
        parts = []
        for posted in self._take(plan):
            made = posted.make()
            parts += [len(made).to_bytes(4, "big"), made]
        if parts:
            self._send(b"".join(parts))
        return plan.lost

    def plan(self, posts: Sequence[Post], *, skip_unreachable: bool = False) -> Plan:
        """See `post`; nothing is numbered, and nothing leaves, before it is taken."""
        self._expire(self._elapsed())
        # Also of those who are skipped: sizes shall not tell what they would have got.
        sizes = [post.inner_size(item.body, stateful=self._rows is not None) for item in posts]
        inner = self._padding(max(sizes)) if sizes else 0
        wanted, lost = [], []
        for item in posts:
            try:
                wanted.append((item, self._resolve(item), post.wire_size(inner, item.envelope)))
            except SessionError:
                if not skip_unreachable:
                    raise
                lost.append(item)
        refused = self._refused([(address, size) for _, address, size in wanted])
        if refused and not skip_unreachable:
            full = dict.fromkeys(wanted[index][1].identity for index in refused)
            raise OverloadedError(next(iter(refused.values())), clients=tuple(full))
        lost += [wanted[index][0] for index in refused]
        going = [one for index, one in enumerate(wanted) if index not in refused]
        total = sum(4 + size for _, _, size in going)
        if total > MAX_PAYLOAD:
            raise ValueError(f"posted together these have {total} bytes, at most {MAX_PAYLOAD} leave at one moment")
        sealed = []
        for item, address, size in going:
            try:
                sealed.append((item, address, size, post.seal_to(address, self._digest)))
            except FormatError:
                # A client whose reply key is none has chosen to get no mail. It
                # shall not keep the others from theirs.
                lost.append(item)
        return Plan(sealed, inner, self._digest, tuple(lost))

    def take_all(self, plans: Sequence[Plan]) -> list[Posted]:
        """Number what was planned, some time ago. Raises OverloadedError: there is no room any more, for none of it."""
        refused = self._refused([(address, size) for plan in plans for _, address, size, _ in plan.going])
        if refused:
            raise OverloadedError(next(iter(refused.values())))
        return [posted for plan in plans for posted in self._take(plan)]

    def _take(self, plan: Plan) -> list[Posted]:
        now = self._elapsed()
        taken = []
        for item, address, size, sealed in plan.going:
            line = self._line(self._key(address))
            make = partial(
                post.make_post,
                address,
                item.body,
                number=line.next,
                acknowledged=line.acknowledged,
                signer=self._signer,
                claims_digest=plan.claims_digest,
                size=plan.inner,
                envelope=item.envelope,
                sealed=sealed,
            )
            taken.append(Posted(address.box, address.identity, line.next, item.body, make))
            self._settled.pop(self._key(address), None)
            line.add(now, size)
            self._note(self._key(address), line)
        return taken

    # In a log --------------------------------------------------------------------------

    def _restore(self, rows: Rows) -> None:
        now = self._elapsed()
        for name, value in rows.rows.items():
            if name == _BEGIN:
                self._begin = int.from_bytes(value, "big")
            elif name.startswith(_LINE):
                box, identity, topic = name[_BOX], name[_IDENTITY], name[_TOPIC].decode("ascii")
                following, waiting, size = _LINE_ROW.unpack(value)
                line = self._line((box, identity, topic))
                line.next, line.size = following, size
                for number in range(waiting):
                    # When, and how large each is, no row says: of all together it is right.
                    line.sent.append((now, size // waiting + (size % waiting if number == 0 else 0)))
                line.box.add(waiting, size)
                line.owner.add(waiting, size)
                if not waiting:
                    self._settled[box, identity, topic] = None

    def _note(self, key: _Key, line: _Line, *, lazily: bool = False) -> None:
        if self._rows is not None:
            box, identity, topic = key
            value = _LINE_ROW.pack(line.next, len(line.sent), line.size)
            self._rows.put(_LINE + box + identity + topic.encode("ascii"), value, lazily=lazily)

    def _unnote(self, key: _Key) -> None:
        if self._rows is not None:
            box, identity, topic = key
            self._rows.put(_LINE + box + identity + topic.encode("ascii"), None)
            self._rows.put(_BEGIN, self._begin.to_bytes(8, "big"))

    def acknowledge(self, session: EnclaveSession, below: int) -> None:
        """The client of that session has all mail of its channel with a lower number."""
        if not below:
            return
        key = box_id(session.reply_key), session.identity, session.topic
        line = self._lines.get(key)
        if line is None:
            return
        # An identity that claims mail it cannot have harms only itself.
        if line.acknowledged >= below or not line.sent:
            return
        while line.acknowledged < below and line.sent:
            line.drop()
        # If this is lost they count as waiting until the client says so again, or they expire.
        self._note(key, line, lazily=True)
        if not line.sent:
            self._settled[key] = None

    def _expire(self, now: float) -> None:
        """What no host keeps any more counts as acknowledged."""
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for key, line in self._lines.items():
            while line.sent and line.sent[0][0] < now - KEPT_SECONDS:
                line.drop()
                if not line.sent:
                    self._settled[key] = None

    def room(self, payload: bytes) -> None:
        """The host says which boxes are full and which are no longer. Raises FormatError."""
        state, boxes = payload[:1], payload[1:]
        if state not in (bytes((ROOM,)), bytes((FULL,))) or len(boxes) % BOX_SIZE:
            raise FormatError("not a list of boxes")
        named = {boxes[at : at + BOX_SIZE] for at in range(0, len(boxes), BOX_SIZE)}
        if not named:
            self._all_full = state[0] == FULL
        elif state[0] == ROOM:
            self._full -= named
        elif len(self._full | named) <= self._bounds.lines:
            self._full |= named

    def _reply_key(self, identity: bytes, topic: str) -> bytes:
        mine = self._reply_keys.get(identity)
        found = None if mine is None else mine.get(topic)
        if found is None:
            raise SessionError("that client had no session on that topic in this boot; post to a kept address")
        return found

    def _resolve(self, item: Post) -> Address:
        if len(item.to) != IDENTITY_SIZE:
            return post.parse_address(item.to)
        check_topic(item.topic)
        return Address(item.to, self._reply_key(item.to, item.topic), item.topic)

    def _refused(self, wanted: list[tuple[Address, int]]) -> dict[int, str]:
        """Which of them find no room, all others counted together, and why."""
        boxes: dict[bytes, _Held] = {}
        owners: dict[bytes, _Held] = {}
        fresh: set[_Key] = set()
        refused = {}
        for index, (address, size) in enumerate(wanted):
            key = self._key(address)
            more = _Held(1, size, int(key not in self._lines and key not in fresh))
            box, owner = boxes.setdefault(address.box, _Held()), owners.setdefault(address.identity, _Held())
            reason = self._no_room(address, box + more, owner + more, len(fresh) + more.lines)
            if reason is not None:
                refused[index] = reason
                continue
            boxes[address.box], owners[address.identity] = box + more, owner + more
            if more.lines:
                fresh.add(key)
        return refused

    def _no_room(self, address: Address, to_box: _Held, to_owner: _Held, fresh: int) -> str | None:
        """Why so much more does not fit; None if it does."""
        bounds = self._bounds
        if self._all_full or address.box in self._full:
            return "the host's outbox is full; its clients must fetch, or mail expire, before more"
        have = self._boxes.get(address.box, _Held())
        after = have + to_box
        if after.mails > bounds.mails_per_box or after.size > bounds.bytes_per_box:
            return (
                f"the client's box is full: it has not acknowledged {have.mails} mails of {have.size} bytes; "
                f"at most {bounds.mails_per_box} mails and {bounds.bytes_per_box} bytes wait for it"
            )
        have = self._owners.get(address.identity, _Held())
        after = have + to_owner
        if (
            after.mails > bounds.mails_per_identity
            or after.size > bounds.bytes_per_identity
            or after.lines > bounds.lines_per_identity
        ):
            return (
                f"the client's boxes are full: it has not acknowledged {have.mails} mails of {have.size} bytes "
                f"on {have.lines} channels and reply keys; it has to keep its box across restarts"
            )
        if len(self._lines) - len(self._settled) + fresh > bounds.lines:
            return f"mail of this boot waits on {bounds.lines} channels; their clients must fetch it before more"
        return None

    @staticmethod
    def _key(address: Address) -> _Key:
        return address.box, address.identity, address.topic

    def _line(self, key: _Key) -> _Line:
        line = self._lines.get(key)
        if line is None:
            while len(self._lines) >= self._bounds.lines and self._settled:
                self._forget(self._settled.popitem(last=False)[0])
            box = self._boxes.setdefault(key[0], _Held())
            owner = self._owners.setdefault(key[1], _Held())
            box.lines += 1
            owner.lines += 1
            line = self._lines[key] = _Line(box, owner, self._begin)
        return line

    def _forget(self, key: _Key) -> None:
        line = self._lines.pop(key)
        for kept, name, held in ((self._boxes, key[0], line.box), (self._owners, key[1], line.owner)):
            held.lines -= 1
            if not held.lines:
                del kept[name]
        # Rounded: how many mails one client got is no other's business.
        self._begin = max(self._begin, -(-line.next // _STEP) * _STEP)
        self._unnote(key)
