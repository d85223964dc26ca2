"""What an enclave and an outside witness say to one another, and the anchor that comes of it.

Pure. The enclave trusts no answer that its witness has not signed; a witness trusts
nobody, and knows a log by the key that the log's id names; clients trust the witnesses
whose keys they have, as far as a quorum of them goes.

Spec: spec/witness.md sections 3 to 5 (WIT-1 to WIT-11).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Self

from msgspec import Meta

from conclave import _crypto
from conclave._codec import Record, decode, encode
from conclave._crypto import ZERO_DIGEST, SigningKey, verify_signature
from conclave.errors import BindingError, RollbackError, SignatureError, VerificationError

LABEL_LOG: Final = b"conclave/1 log"
MAX_MESSAGE: Final = 1024
MAX_ANCHOR: Final = 4096
MAX_WITNESSES: Final = 16
HEAD_PATH: Final = "/witness/head"
ADVANCE_PATH: Final = "/witness/advance"
# A witness whose answers contradict one another is not asked for ever.
_ATTEMPTS: Final = 4
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_KEY: Final = re.compile(r"[0-9a-f]{64}")

_One = Annotated[int, Meta(ge=1, le=1)]
_Version = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Bytes64 = Annotated[bytes, Meta(min_length=64, max_length=64)]


class Head(Record, frozen=True):
    """One state of a log: its version, the boot that made it, and the digest of the log up to it."""

    version: _Version
    boot: _Bytes16
    digest: _Bytes32


class Step(Record, frozen=True):
    """From one state of a log to a later one, which continues it. Signed by the log's anchor key."""

    log_key: _Bytes32
    previous: Head | None
    new: Head


class Standing(Record, frozen=True):
    """What a witness keeps of a log: the last step that it countersigned. Needs no other proof."""

    step: Step
    signature: _Bytes64
    countersignature: _Bytes64


class HeadRequest(Record, frozen=True):
    """`POST /witness/head`: where does this log stand?"""

    version: _One
    log_key: _Bytes32
    nonce: _Bytes32


class AdvanceRequest(Record, frozen=True):
    """`POST /witness/advance`: countersign the end of this step, if the log stands at its beginning."""

    version: _One
    step: Step
    signature: _Bytes64
    nonce: _Bytes32


class Answer(Record, frozen=True):
    """Where the log stands after either request, signed over its nonce. Not where it was to be: a conflict."""

    version: _One
    standing: Standing | None
    signature: _Bytes64


class _Countersigned(Record, frozen=True):
    log_id: bytes
    head: Head


class ForkWitnessed(RollbackError):
    """A witness countersigned a state of this log that is not in this history.

    `witness`: its name. `standing`: the proof: a step signed by the log's own key, and the countersignature.
    """

    def __init__(self, witness: str, standing: Standing) -> None:
        self.witness = witness
        self.standing = standing
        super().__init__(
            f"witness '{witness}' countersigned version {standing.step.new.version} of this log from a boot that is "
            "not in the history this enclave was given: the host presented older state, or runs two from one state"
        )


def log_id_of(log_key: bytes) -> bytes:
    """The id of the log whose anchor key has this public half."""
    return _crypto.sha256(LABEL_LOG, log_key)


def check_witnesses(witnesses: Mapping[str, str], quorum: int, *, of: str) -> None:
    """Raise TypeError unless a class, named by `of`, can be anchored by a quorum of these."""
    if not 0 < len(witnesses) <= MAX_WITNESSES:
        raise TypeError(f"{of}.witnesses names 1 to {MAX_WITNESSES} witnesses; got {len(witnesses)}")
    for name, key in witnesses.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise TypeError(f"{of}.witnesses: a name has 1 to 32 of `a-z 0-9 -`, and begins with no hyphen")
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise TypeError(f"{of}.witnesses['{name}'] is the witness's public key, 64 hex digits in lower case")
    if len(set(witnesses.values())) != len(witnesses):
        raise TypeError(f"{of}.witnesses has one key under two names; each witness counts once")
    if not isinstance(quorum, int) or not len(witnesses) < 2 * quorum <= 2 * len(witnesses):
        raise TypeError(
            f"{of}.witness_quorum is more than half of the witnesses and at most all, so that two quorums share one; "
            f"got {quorum} of {len(witnesses)}"
        )


# What a witness signs ------------------------------------------------------------------


def countersign(key: SigningKey, log_id: bytes, head: Head) -> bytes:
    """A witness's word that the log stood at this state, and goes on from there alone."""
    return key.sign("countersign", ZERO_DIGEST, encode(_Countersigned(log_id=log_id, head=head)))


def check_countersignature(key: bytes, log_id: bytes, head: Head, signature: bytes) -> None:
    """Raises SignatureError."""
    verify_signature(key, "countersign", ZERO_DIGEST, encode(_Countersigned(log_id=log_id, head=head)), signature)


def check_step(step: Step, signature: bytes) -> None:
    """Whether the log's own key signed the step. Raises SignatureError."""
    verify_signature(step.log_key, "anchor", ZERO_DIGEST, encode(step), signature)


def make_answer(key: SigningKey, *, log_key: bytes, nonce: bytes, standing: Standing | None) -> bytes:
    """A witness's answer to a request with that nonce."""
    signature = key.sign("head", ZERO_DIGEST, _answered(log_key, nonce, standing))
    return encode(Answer(version=1, standing=standing, signature=signature))


def read_answer(data: bytes, *, key: bytes, log_key: bytes, nonce: bytes) -> Standing | None:
    """Where a log stands, by an answer that is untrusted until here.

    Raises:
        FormatError, SignatureError: it is not that witness's answer to that request, or what it
            says the log signed, the log did not.
    """
    answer = decode(Answer, data, max_size=MAX_MESSAGE, what="witness answer")
    verify_signature(key, "head", ZERO_DIGEST, _answered(log_key, nonce, answer.standing), answer.signature)
    standing = answer.standing
    if standing is not None:
        if standing.step.log_key != log_key:
            raise SignatureError("the witness answered with another log's step")
        check_step(standing.step, standing.signature)
        check_countersignature(key, log_id_of(log_key), standing.step.new, standing.countersignature)
    return standing


def _answered(log_key: bytes, nonce: bytes, standing: Standing | None) -> bytes:
    return log_key + nonce + encode(standing)


def advance_request(key: SigningKey, step: Step, nonce: bytes) -> AdvanceRequest:
    """A step, signed by the log's anchor key."""
    signature = key.sign("anchor", ZERO_DIGEST, encode(step))
    return AdvanceRequest(version=1, step=step, signature=signature, nonce=nonce)


# The enclave's side --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to a witness, for somebody with a network to make; its answer's body comes back."""

    path: str
    body: bytes


class WitnessClient:
    """One witness, as one boot of an enclave asks it. An `AnchorSource`."""

    def __init__(self, name: str, key: bytes, *, anchor_key: SigningKey, contains: Callable[[Head], bool]) -> None:
        """Nothing is known of where the log stands there.

        Args:
            key: the witness's public key.
            anchor_key: the log's.
            contains: whether a state is in this enclave's own history.
        """
        self.name = name
        self._key = key
        self._anchor = anchor_key
        self._contains = contains
        self._asked = False
        self._standing: Standing | None = None

    def countersign(self, head: Head) -> Generator[Ask, bytes, bytes]:
        """Have the witness countersign a durable state of this boot, whatever it knew before.

        Returns:
            The countersignature, 64 bytes.

        Raises:
            ForkWitnessed: it has countersigned what is not in this history.
            FormatError, SignatureError: an answer is not the witness's; nothing was learnt.
            VerificationError: it contradicts itself.
        """
        if not self._asked:
            nonce = _crypto.random_bytes(32)
            request = HeadRequest(version=1, log_key=self._anchor.public, nonce=nonce)
            yield from self._ask(HEAD_PATH, encode(request), nonce)
        for _ in range(_ATTEMPTS):
            standing = self._standing
            if standing is not None:
                self._check(standing, head)
                if standing.step.new == head:
                    return standing.countersignature
            step = Step(log_key=self._anchor.public, previous=None if standing is None else standing.step.new, new=head)
            nonce = _crypto.random_bytes(32)
            yield from self._ask(ADVANCE_PATH, encode(advance_request(self._anchor, step, nonce)), nonce)
        raise VerificationError(f"witness '{self.name}' takes no step from where it says that the log stands")

    def _ask(self, path: str, body: bytes, nonce: bytes) -> Generator[Ask, bytes, None]:
        data = yield Ask(path, body)
        self._standing = read_answer(data, key=self._key, log_key=self._anchor.public, nonce=nonce)
        self._asked = True

    def _check(self, standing: Standing, head: Head) -> None:
        new = standing.step.new
        # One boot makes one state of each version: another digest is another boot's work under its name.
        if not self._contains(new) or (new.version == head.version and new != head):
            raise ForkWitnessed(self.name, standing)
        if new.version > head.version:
            raise VerificationError(f"witness '{self.name}' stands after the state that it is to countersign")


# Anchors -------------------------------------------------------------------------------


class Countersignature(Record, frozen=True):
    """One witness's signature, 64 bytes, and the witness's name."""

    witness: str
    signature: _Bytes64


class Anchor(Record, frozen=True):
    """Proof that a quorum of witnesses knows one state of a log, and no other continuation than its.

    An enclave may hand it to anybody, as a method's result too.

    Attributes:
        log_id: of the log, 32 bytes.
        version: of the state.
        boot: which made it, 16 bytes.
        digest: of the log up to it, 32 bytes.
        countersignatures: one for each witness.
    """

    log_id: _Bytes32
    version: _Version
    boot: _Bytes16
    digest: _Bytes32
    countersignatures: list[Countersignature]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read what `encode` gave. Raises FormatError."""
        return decode(cls, data, max_size=MAX_ANCHOR, what="anchor")

    def encode(self) -> bytes:
        """The anchor as bytes, to be kept or passed on."""
        return encode(self)

    def verify(self, keys: Mapping[str, str], quorum: int, *, log_id: bytes, version: int) -> None:
        """Check that a quorum of witnesses countersigned this state.

        Args:
            keys: public keys of the witnesses whose word counts, 64 hex digits each, by name.
            quorum: how many of them must have signed.
            log_id: of the log that was verified: `claims.log_id` of the instance.
            version: the state must be this one or a later one, such as that of one's own input.

        Raises:
            TypeError: keys and quorum with which two forks could both be anchored.
            BindingError: an anchor of another log, or of an older state.
            SignatureError: too few of these witnesses signed.
        """
        check_witnesses(keys, quorum, of="Anchor.verify")
        if self.log_id != log_id:
            raise BindingError("the anchor is of another log than the one that was verified")
        if self.version < version:
            raise BindingError(f"the anchor is of version {self.version} of the log, and {version} was to be anchored")
        good = set()
        for given in self.countersignatures:
            if given.witness in keys and self._is_good(bytes.fromhex(keys[given.witness]), given.signature):
                good.add(given.witness)
        if len(good) < quorum:
            raise SignatureError(f"{len(good)} of these witnesses countersigned this state; {quorum} are needed")

    def _is_good(self, key: bytes, signature: bytes) -> bool:
        try:
            head = Head(version=self.version, boot=self.boot, digest=self.digest)
            check_countersignature(key, self.log_id, head, signature)
        except SignatureError:
            return False
        return True
