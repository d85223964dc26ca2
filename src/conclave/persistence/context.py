"""State contexts, the table of boots that they are checked against, and signed statements.

Pure. Enclaves make and check contexts; clients keep them, and verify statements.

Spec: spec/state.md sections 6 and 7 (STATE-20 to STATE-26).
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import msgspec

from conclave._codec import Record, decode, encode
from conclave._crypto import MacKey, SigningKey, verify_signature
from conclave.errors import FormatError, RollbackError, StateError

CONTEXT: Final = struct.Struct(">Q16s32s16s")
CONTEXT_SIZE: Final = CONTEXT.size
# What a client sends that has none yet.
NO_CONTEXT: Final = bytes(CONTEXT_SIZE)
LABEL_CONTEXT: Final = b"state/1 context"
MAX_BOOTS: Final = 500_000
MAX_STATEMENT: Final = 1024

_HEAD: Final = struct.Struct(">Q16s32s")
_BOOT: Final = struct.Struct(">16sQ")


class BadContext(StateError):
    """A state context that this log never gave to this client. An error to its sender alone."""

    code = "context"


class Forked(RollbackError):
    """A genuine context that is not in this history: the host went back, or runs two. `context` is the proof."""

    def __init__(self, context: Context) -> None:
        self.context = context
        super().__init__(
            f"a client knows version {context.version} of this log from a boot that is not in the history this "
            "enclave was given: the host presented older state, or runs two enclaves from one state"
        )


class Context(msgspec.Struct, frozen=True, gc=False):
    """One version of a log as one client was told of it: 72 bytes.

    Attributes:
        version: of the state.
        boot: the boot that made this version, 16 bytes.
        digest: of the log up to it, 32 bytes.
        tag: by which the log knows its own; clients cannot check it.
    """

    version: int
    boot: bytes
    digest: bytes
    tag: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Read 72 bytes; zeros say that there is none. Raises FormatError."""
        if len(data) != CONTEXT_SIZE:
            raise FormatError(f"a state context has {CONTEXT_SIZE} bytes, not {len(data)}")
        return None if data == NO_CONTEXT else cls(*CONTEXT.unpack(data))

    def pack(self) -> bytes:
        """The same bytes again."""
        return CONTEXT.pack(self.version, self.boot, self.digest, self.tag)


def context_head(version: int, boot: bytes, digest: bytes) -> bytes:
    """What a context says, without its tag."""
    return _HEAD.pack(version, boot, digest)


def make_context(key: MacKey, *, log: bytes, identity: bytes, head: bytes) -> bytes:
    """The context of one version for one client (32 bytes: its identity key)."""
    return head + key.tag(LABEL_CONTEXT, log, identity, head)


def open_context(token: bytes, key: MacKey, *, log: bytes, identity: bytes) -> Context | None:
    """The context that a client sent, once its tag fits; None if it has none yet.

    Raises:
        BadContext: malformed, changed, of another log or another client.
    """
    try:
        context = Context.parse(token)
    except FormatError as error:
        raise BadContext(str(error)) from None
    if context and not key.fits(context.tag, LABEL_CONTEXT, log, identity, token[: _HEAD.size]):
        raise BadContext("this state context was not made by this log for this client")
    return context


class History:
    """Which boot made which versions. 24 bytes a boot.

    A boot makes one record for each version and never goes back, so two histories can part
    only where a boot begins: whoever knows the boots knows the history.
    """

    __slots__ = ("_boots", "_firsts")

    def __init__(self) -> None:
        self._boots = bytearray()
        self._firsts = array("Q")

    def __len__(self) -> int:
        return len(self._firsts)

    def begin(self, boot: bytes, version: int) -> None:
        """From this version on it is this boot.

        Raises:
            StateError: there is no room for another one.
        """
        if len(self) >= MAX_BOOTS:
            raise StateError(f"this log was started {MAX_BOOTS} times, and is full; begin a new one")
        self._boots += boot
        self._firsts.append(version)

    def boot_of(self, version: int) -> bytes:
        """The boot that made a version, or the newest one if it is in the future."""
        at = 16 * (bisect_right(self._firsts, version) - 1)
        return bytes(self._boots[at : at + 16])

    def contains(self, context: Context, *, newest: int) -> bool:
        """Whether a context of this log is of this history, whose newest version is given."""
        return context.version <= newest and self.boot_of(context.version) == context.boot

    def encode(self) -> bytes:
        """Of each boot its id (16) and first version (8), in order."""
        firsts: Sequence[int] = self._firsts
        return b"".join(_BOOT.pack(self._boots[16 * n : 16 * n + 16], first) for n, first in enumerate(firsts))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an encoding.

        Raises:
            FormatError: of another size, out of order, or not from version 0 on.
        """
        if len(data) % _BOOT.size or not 0 < len(data) <= MAX_BOOTS * _BOOT.size:
            raise FormatError(f"a table of boots has {_BOOT.size} bytes for each of 1 to {MAX_BOOTS} boots")
        history = cls()
        for boot, first in _BOOT.iter_unpack(data):
            if first <= history._firsts[-1] if history else first != 0:
                raise FormatError("a table of boots is in order, and begins with version 0")
            history.begin(boot, first)
        return history


class Statement(Record, frozen=True):
    """What an enclave says of its log under its signing key. With `refused_…`: that context is not in my history."""

    version: int
    log_id: bytes
    state_version: int
    boot: bytes
    digest: bytes
    refused_version: int | None
    refused_boot: bytes | None
    refused_digest: bytes | None


def parse_statement(data: bytes) -> Statement:
    """Read a statement, untrusted.

    Raises:
        FormatError: not one, in another encoding, or of sizes that no log has.
    """
    statement = decode(Statement, data, max_size=MAX_STATEMENT, what="a statement on state")
    refused = (statement.refused_version, statement.refused_boot, statement.refused_digest)
    if statement.version != 1:
        raise FormatError(f"a statement on state of version {statement.version}, where 1 is known")
    sizes = [(statement.log_id, 32), (statement.boot, 16), (statement.digest, 32)]
    if refused != (None, None, None):
        if None in refused:
            raise FormatError("a statement on state names all three parts of what it refuses, or none")
        sizes += [(statement.refused_boot or b"", 16), (statement.refused_digest or b"", 32)]
    numbers = (statement.state_version, statement.refused_version or 0)
    if any(len(value) != size for value, size in sizes) or not all(0 <= n < 2**64 for n in numbers):
        raise FormatError("a statement on state has a field of a size that no log has")
    return statement


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """Evidence that can be shown to others: what an enclave said of its log, signed.

    Attributes:
        encoded: the statement as it was signed.
        signature: 64 bytes, under the enclave's signing key.
        claims_digest: of the instance that signed, 64 bytes.
        instance_info: that instance's info, by which others verify the key; empty if it is not at hand.
    """

    encoded: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    claims_digest: bytes
    instance_info: bytes = field(default=b"", repr=False)

    @classmethod
    def sign(cls, statement: Statement, key: SigningKey, claims_digest: bytes) -> Self:
        """Sign with an instance's key."""
        encoded = encode(statement)
        return cls(encoded, key.sign("state", claims_digest, encoded), claims_digest)

    @property
    def statement(self) -> Statement:
        """What it says. Raises FormatError."""
        return parse_statement(self.encoded)

    def verify(self, signing_key: bytes) -> Statement:
        """What it says, once the signature verified under an instance's signing key, which was verified before.

        Raises:
            SignatureError: it does not verify.
            FormatError: signed, and no statement.
        """
        verify_signature(signing_key, "state", self.claims_digest, self.encoded, self.signature)
        return self.statement
