"""A client's box: mail that enclaves posted, fetched, proven and handed out once.

Runs at the relying party, without IO of its own. The host keeps the mail and is
the adversary: what does not decrypt, or was not signed by an instance that the
client's constraint accepts, or was handed out before, is refused and counted,
and never ends a poll.

Spec: spec/mail.md section 11 (MAIL-30 to MAIL-38), spec/http.md section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from conclave import _codec, _crypto
from conclave._crypto import DecryptionKey
from conclave._mailheader import parse_post
from conclave.attestation import InstanceClaims
from conclave.client._log import history_id
from conclave.errors import (
    AppraisalError,
    ExpiredError,
    FormatError,
    MailError,
    OverloadedError,
    SignatureError,
    TransportError,
    VerificationError,
)
from conclave.mail.post import Post, box_id, open_post
from conclave.mail.session import CounterWindow

T = TypeVar("T")
Steps = Generator[Any, Any, T]
CAPABILITY_SIZE: Final = 32
SEED_SIZE: Final = 96
# Kept for ever, as forgetting one would let its mails come again; then no more senders are accepted.
MAX_WINDOWS: Final = 65_536
MAX_WAITING: Final = 16_384
MAX_UNRESOLVED: Final = 1024
MAX_UNRESOLVED_BYTES: Final = 64 * 1024 * 1024
MAX_STATE: Final = 64 * 1024 * 1024
_Line = tuple[bytes, str]


class _Window(_codec.Record, frozen=True):
    boot: bytes
    topic: str
    below: int
    above: list[int]


class _State(_codec.Record, frozen=True):
    version: int
    reply_key: bytes
    capability: bytes
    seen: list[_Window]


class Box:
    """The reply key of a client, the capability of its box, and what was received in it.

    What a client has to keep if mail shall reach it after a restart. Nothing here
    encrypts: a copy or an older one repeats no nonce. Two processes with one box
    share its mail; an older copy may hand out again what the newer one did.
    """

    def __init__(self, reply_key: DecryptionKey, capability: bytes) -> None:
        self.reply_key = reply_key
        self.capability = capability
        self.id = box_id(reply_key.public)
        self._seen: dict[_Line, CounterWindow] = {}
        # Received and not yet done with: what is exported knows nothing of them.
        self._open: dict[_Line, set[int]] = {}

    def __repr__(self) -> str:
        return f"<Box {self.id.hex()}>"

    @classmethod
    def generate(cls) -> Box:
        """A box that nobody has posted to."""
        return cls(DecryptionKey.generate(), _crypto.random_bytes(CAPABILITY_SIZE))

    def export(self) -> bytes:
        """All of it as bytes: secret, to be kept encrypted."""
        seen = [_Window(boot=b, topic=t, below=w.below, above=w.above) for (b, t), w in self._seen.items()]
        seed = self.reply_key.insecure_seed()
        return _codec.encode(_State(version=1, reply_key=seed, capability=self.capability, seen=seen))

    @classmethod
    def restore(cls, data: bytes) -> Box:
        """What `export` gave. Raises FormatError."""
        state = _codec.decode(_State, data, max_size=MAX_STATE, what="box")
        if state.version != 1 or len(state.reply_key) != SEED_SIZE or len(state.capability) != CAPABILITY_SIZE:
            raise FormatError("box: only version 1 is known, and this is not whole")
        try:
            key = DecryptionKey(state.reply_key[:64], state.reply_key[64:])
        except ValueError:
            raise FormatError("box: the reply key is none") from None
        box = cls(key, state.capability)
        for window in state.seen:
            box._seen[window.boot, window.topic] = CounterWindow(below=window.below, above=window.above)
        return box

    def receive(self, line: _Line, number: int, acknowledged: int) -> bool:
        """Whether that mail did not come before; from now on it did.

        Args:
            acknowledged: what the sender has of this client's acknowledgements: more than
                is known here, if this box was restored from an older copy.
        """
        if number in self._seen.get(line, ()) or number in self._open.get(line, ()):
            return False
        if line not in self._seen:
            if len(self._seen) >= MAX_WINDOWS:
                return False
            self._seen[line] = CounterWindow()
        self._seen[line].advance(min(acknowledged, number))
        self._open.setdefault(line, set()).add(number)
        return True

    def settle(self, line: _Line, number: int) -> None:
        """That mail, which was received, is done with."""
        self._open[line].discard(number)
        self._seen[line].add(number)

    def received_below(self, history: bytes, topic: str) -> int:
        """All mails of that boot or log and topic with a lower number are done with."""
        window = self._seen.get((history, topic))
        return 0 if window is None else window.below


class Ask(Protocol):
    """One HTTP request as steps, whose result has `status` and `body`."""

    def __call__(
        self, method: str, path: str, body: bytes = b"", *, bearer: str = "", wait_seconds: float = 0.0
    ) -> Steps[Any]: ...


@dataclass(frozen=True, slots=True)
class _Arrived:
    """One mail, the host's number for it, and whose number its own is."""

    place: int
    line: _Line
    post: Post


@dataclass(frozen=True, slots=True)
class _Unresolved:
    """One mail whose sender is not known yet: the host's number for it, and the sender's claims digest."""

    place: int
    sender: bytes
    mail: bytes


class Collector:
    """Fetches what lies in a box, for all topics, and hands it out by topic."""

    def __init__(
        self,
        box: Box,
        identity: bytes,
        *,
        ask: Ask,
        sender: Callable[[bytes], Steps[InstanceClaims]],
        host: Callable[[], int] = lambda: 0,
        learn: Callable[[InstanceClaims, bytes], None] = lambda _claims, _context: None,
    ) -> None:
        """Nothing is fetched yet.

        Args:
            ask: does an HTTP request.
            sender: gives the verified claims with that digest. Raises TransportError where
                the host does not give them now, other errors where they are refused.
            host: number of the host that is asked now: each has boxes of its own.
            learn: is told whose mail brought which state context. It may raise RollbackError.
        """
        self.box = box
        self.refused = 0
        self._identity = identity
        self._ask = ask
        self._sender = sender
        self._host = host
        self._learn = learn
        self._asked = host()
        self._claimed = False
        self._place = 0
        # Whether the host may still keep what is done with.
        self._kept = False
        # The first mail that found no room among the unresolved, and up to where mails came for a second time.
        self._passed: int | None = None
        self._again = 0
        self._waiting: dict[str, list[_Arrived]] = {}
        self._handed: dict[str, list[_Arrived]] = {}
        # Mails whose sender's claims the host did not give: asked for again at each poll.
        self._unresolved: list[_Unresolved] = []
        # Senders whose claims were asked for in this poll, and not to be had.
        self._absent: set[bytes] = set()

    def fetch(self, topic: str, wait_seconds: float) -> Steps[list[Post]]:
        """Mail on a topic: what waits here already, or what one request brings.

        Raises:
            TransportError: the host gives no mail.
            OverloadedError: too much waits for other topics.
        """
        self._absent.clear()
        for item in [*self._unresolved]:
            taken = item.sender not in self._absent and (yield from self._take(item.place, item.mail))
            if taken and item in self._unresolved:
                self._unresolved.remove(item)
                self._go_back()
        if topic not in self._waiting:
            if sum(map(len, self._waiting.values())) >= MAX_WAITING:
                raise OverloadedError("too much mail of other topics was fetched: poll those topics too")
            yield from self._get(wait_seconds)
        arrived = self._waiting.pop(topic, [])
        self._handed.setdefault(topic, []).extend(arrived)
        return [item.post for item in arrived]

    def settle(self, topic: str) -> Steps[bool]:
        """What was handed out on that topic is done with, and need not be kept by the host."""
        handed = self._handed.pop(topic, [])
        for item in handed:
            self.box.settle(item.line, item.post.number)
        if handed:
            yield from self._delete()
        return bool(handed)

    def _delete(self) -> Steps[None]:
        """Have the host forget what nobody needs: a courtesy, but a box that stays full gets no more mail."""
        self._at_host()
        unresolved = [item.place for item in self._unresolved]
        kept = [item.place for some in (self._handed, self._waiting) for items in some.values() for item in items]
        kept.append(self._place + 1 if self._passed is None else self._passed)
        below = min([*kept, *unresolved])
        ranges = [f"below={below}"]
        if unresolved:
            # Nor does what waits for its sender's claims, for days perhaps, keep the newer mail there.
            first = max(unresolved) + 1
            if (newest := min((place for place in kept if place >= first), default=0)) > first:
                ranges.append(f"from={first}&below={newest}")
        self._kept = False
        for some in ranges:
            answer = yield from self._ask("DELETE", f"/outbox?{some}", bearer=self._bearer)
            self._kept |= answer.status != 204

    @property
    def place(self) -> int:
        """The host's number of the last mail that it gave."""
        return self._place

    @property
    def _bearer(self) -> str:
        return self.box.capability.hex()

    def _claim(self) -> Steps[None]:
        answer = yield from self._ask("POST", f"/outbox/{self.box.id.hex()}", self.box.capability)
        if answer.status == 409:
            raise TransportError("the host gave this client's box to somebody else; its mail can be had in a fresh one")
        if answer.status != 204:
            raise TransportError(f"the host gives no box: it answered with status {answer.status}")
        self._claimed = True

    def _at_host(self) -> None:
        if self._asked != (host := self._host()):
            self._asked, self._claimed, self._place = host, False, 0
            self._kept, self._passed, self._again = False, None, 0

    def _go_back(self) -> None:
        """There is room for one that found none: from there on everything is asked for once more."""
        if self._passed is not None:
            self._again = max(self._again, self._place)
            self._place, self._passed = self._passed - 1, None

    def _get(self, wait_seconds: float) -> Steps[None]:
        self._at_host()
        if not self._claimed:
            yield from self._claim()
        if self._kept:
            yield from self._delete()
        before = self._place
        path = f"/outbox?after={before}&wait={wait_seconds:g}"
        answer = yield from self._ask("GET", path, bearer=self._bearer, wait_seconds=wait_seconds)
        if answer.status == 401:
            # The host forgot the claim. It is asked again, and once.
            yield from self._claim()
            answer = yield from self._ask("GET", path, bearer=self._bearer, wait_seconds=wait_seconds)
        # What a host deleted can be there again after it was killed (HTTP-16), and would fill the box.
        self._kept |= before > 0 and (answer.status != 200 or not answer.body)
        if answer.status != 200:
            raise TransportError(f"the host gives no mail: it answered with status {answer.status}")
        for number, mail in split_numbered(answer.body):
            # Another poll of this client may have brought the same in the meantime.
            if self._place == before or number > self._place:
                before = self._place = number
                if not (yield from self._take(number, mail)):
                    self._put_aside(number, mail)

    def _put_aside(self, number: int, mail: bytes) -> None:
        if self._passed is not None:
            return
        # A host may give one mail over and over, and never say whose it is.
        size = sum(len(item.mail) for item in self._unresolved)
        if len(self._unresolved) >= MAX_UNRESOLVED or size + len(mail) > MAX_UNRESOLVED_BYTES:
            self._passed = number
        else:
            self._unresolved.append(_Unresolved(number, parse_post(mail).claims_digest, mail))

    def _take(self, number: int, data: bytes) -> Steps[bool]:
        """Whether that is done: received, or refused. False: nobody can say yet whose it is."""
        try:
            post = open_post(data, key=self.box.reply_key, identity=self._identity)
            claims = yield from self._claims(post.claims_digest)
            post.check_sender(claims.signing_key)
        except (TransportError, ExpiredError):
            # Not now, which may be the clock of this machine.
            return False
        except (FormatError, MailError, VerificationError, AppraisalError, SignatureError):
            # Whatever the host put there: an error would let it end a poll with one byte.
            self.refused += 1
            return True
        line = (history_id(claims), post.topic)
        if self.box.receive(line, post.number, post.acknowledged):
            self._waiting.setdefault(post.topic, []).append(_Arrived(number, line, post))
        else:
            self.refused += number > self._again
        self._learn(claims, post.context)
        return True

    def _claims(self, digest: bytes) -> Steps[InstanceClaims]:
        """As `sender` gives them; what is not to be had is asked for once in a poll."""
        if digest in self._absent:
            raise TransportError("the host does not say now who posted a mail")
        try:
            return (yield from self._sender(digest))
        except (TransportError, ExpiredError):
            self._absent.add(digest)
            raise


def split_numbered(body: bytes) -> list[tuple[int, bytes]]:
    """The host's numbers and mails of an answer, as far as they are whole."""
    mails, at = [], 0
    while at + 12 <= len(body):
        number = int.from_bytes(body[at : at + 8], "big")
        size = int.from_bytes(body[at + 8 : at + 12], "big")
        if at + 12 + size > len(body):
            break
        mails.append((number, body[at + 12 : at + 12 + size]))
        at += 12 + size
    return mails
