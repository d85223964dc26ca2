"""Layout and sealing of the records of a log: one boot record for each boot, one change for each batch.

Pure. What is parsed here is the host's, and hostile until it was opened.

Spec: spec/state.md sections 3 and 4 (STATE-1 to STATE-9).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import msgspec

from conclave._codec import decode, encode
from conclave._crypto import TAG_SIZE, WRAPPED_KEY_SIZE, AeadKey, Secret, sha256, unwrap_key, wrap_key
from conclave.errors import FormatError
from conclave.mail.padding import padme

MAGIC: Final = b"CSR1"
BOOT: Final = 1
CHANGE: Final = 2
HEADER: Final = struct.Struct(">4sB3sQQI")
BOOT_PART: Final = struct.Struct(f">32s32sH16s{WRAPPED_KEY_SIZE}s")
# The largest plaintext, padded: it goes through the host channel in one frame.
MAX_PLAIN: Final = 16 * 1024 * 1024
MAX_ENTRY: Final = HEADER.size + BOOT_PART.size + MAX_PLAIN + TAG_SIZE
# AES-GCM under one key: 2^32 seals of at most 2^20 blocks are 2^52 blocks at the very most, and 2^36 of the smallest.
MAX_SEALS: Final = 2**32
NO_DIGEST: Final = bytes(32)

LABEL_DIGEST: Final = b"state/1"
LABEL_RECORD: Final = b"state/1 record"
LABEL_SNAPSHOT: Final = b"state/1 snapshot"
LABEL_WRAP: Final = b"state/1 wrap"

_SIZE: Final = struct.Struct(">I")
_NUMBER: Final = struct.Struct(">Q")
_NONCE: Final = struct.Struct(">Q4x")
_ZERO: Final = b"\0\0\0"

T = TypeVar("T")


class Change(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What one batch changes. None in place of a value takes the key away.

    Attributes:
        map: of the author's map.
        mail: of the runtime's own rows.
        posts: of each mail that was posted the box (16), its number, SHA-256 of its body.
        floor: the newest time that was accepted, in seconds since 1970; 0 if none.
    """

    map: list[tuple[str, bytes | None]] = []
    mail: list[tuple[bytes, bytes | None]] = []
    posts: list[tuple[bytes, int, bytes]] = []
    floor: int = 0


class Born(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a boot record holds. The keys are in the first one of a log only: they are born with it."""

    change: Change
    token_key: bytes | None
    anchor_seed: bytes | None


@dataclass(frozen=True, slots=True)
class Boot:
    """The part in the clear by which a boot is known, and its key found: 162 bytes.

    Attributes:
        bundle: bundle id of the enclave that booted, 32 bytes.
        level: its revocation level.
        boot: random, 16 bytes.
        wrapped: salt (32) and the boot key under the sealing key (48).
    """

    log: bytes
    bundle: bytes
    level: int
    boot: bytes
    wrapped: bytes

    @classmethod
    def begin(cls, *, log: bytes, bundle: bytes, level: int, boot: bytes, key: Secret, sealing: Secret) -> Self:
        """A boot with this fresh key, for whoever has the sealing key."""
        wrapped = wrap_key(sealing, LABEL_WRAP, key, cls._associated(log, bundle, level, boot))
        return cls(log, bundle, level, boot, wrapped)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read 162 bytes, untrusted."""
        return cls(*BOOT_PART.unpack(data))

    def pack(self) -> bytes:
        """The same bytes again."""
        return BOOT_PART.pack(self.log, self.bundle, self.level, self.boot, self.wrapped)

    def unwrap(self, sealing: Secret) -> Secret:
        """The boot key. Raises DecryptionError."""
        return unwrap_key(
            sealing, LABEL_WRAP, self.wrapped, self._associated(self.log, self.bundle, self.level, self.boot)
        )

    @staticmethod
    def _associated(log: bytes, bundle: bytes, level: int, boot: bytes) -> bytes:
        return log + bundle + level.to_bytes(2, "big") + boot


class Keys:
    """The two keys of one boot. One counter, held by the log, gives the nonces of both."""

    __slots__ = ("record", "snapshot")

    def __init__(self, boot_key: Secret) -> None:
        self.record = AeadKey(boot_key.expand(LABEL_RECORD))
        self.snapshot = AeadKey(boot_key.expand(LABEL_SNAPSHOT))


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as it was stored: structure only, not authentic until `open_entry`.

    Attributes:
        boot: of a boot record.
        data: all its bytes.
    """

    version: int
    counter: int
    boot: Boot | None
    data: bytes

    @property
    def head(self) -> int:
        """How many bytes precede the ciphertext."""
        return HEADER.size + (BOOT_PART.size if self.boot else 0)


def parse_entry(data: bytes) -> Entry:
    """Split a stored record, untrusted.

    Raises:
        FormatError: too short, too large, an unknown magic or kind, reserved bytes set, or another size than it says.
    """
    if len(data) > MAX_ENTRY:
        raise FormatError(f"a record has at most {MAX_ENTRY} bytes, not {len(data)}")
    if len(data) < HEADER.size:
        raise FormatError(f"a record has at least {HEADER.size} bytes, not {len(data)}")
    magic, kind, zero, version, counter, size = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("not a record of a log: it does not begin with CSR1")
    if kind not in (BOOT, CHANGE) or zero != _ZERO:
        raise FormatError("a record of an unknown kind, or with reserved bytes set")
    head = HEADER.size + (BOOT_PART.size if kind == BOOT else 0)
    if size < TAG_SIZE or len(data) != head + size:
        raise FormatError(f"a record says that it has {head + size} bytes, and has {len(data)}")
    boot = Boot.parse(data[HEADER.size : head]) if kind == BOOT else None
    return Entry(version, counter, boot, data)


def seal_entry(
    plain: bytes, *, key: AeadKey, log: bytes, version: int, counter: int, previous: bytes, boot: bytes = b""
) -> bytes:
    """One record.

    Args:
        plain: as `pad` made it.
        counter: never used before with this key.
        previous: the digest of the log up to here.
        boot: 162 bytes, of a boot record only.
    """
    kind = BOOT if boot else CHANGE
    head = HEADER.pack(MAGIC, kind, _ZERO, version, counter, len(plain) + TAG_SIZE) + boot
    return head + key.encrypt(nonce_of(counter), plain, log + previous + head)


def open_entry(entry: Entry, kind: type[T], *, key: AeadKey, log: bytes, previous: bytes) -> T:
    """What a record holds: a `Change`, of boot records a `Born`.

    Raises:
        DecryptionError: not authentic, of another log, at another place or after another history.
        FormatError: authentic, and not what this version writes.
    """
    head = entry.data[: entry.head]
    plain = key.decrypt(nonce_of(entry.counter), memoryview(entry.data)[entry.head :], log + previous + head)
    return unpad(plain, kind, "a record")


def digest_of(entry: bytes, *, log: bytes, version: int, previous: bytes) -> bytes:
    """The digest of a log up to and including this entry: over ciphertext, so it tells nothing of what is inside."""
    return sha256(b"".join((LABEL_DIGEST, log, _NUMBER.pack(version), previous, entry)))


def nonce_of(counter: int) -> bytes:
    """The nonce of a seal: the boot's counter and zeros."""
    return _NONCE.pack(counter)


def pad(value: object) -> bytes:
    """A plaintext: the size of an encoding, the encoding, zeros up to a padded size.

    Raises:
        ValueError: larger than a record may be.
    """
    encoded = encode(value)
    size = _SIZE.size + len(encoded)
    if size > MAX_PLAIN:
        raise ValueError(
            f"a record holds at most {MAX_PLAIN - _SIZE.size} bytes, not {len(encoded)}; change less at once"
        )
    return (_SIZE.pack(len(encoded)) + encoded).ljust(padme(size), b"\0")


def unpad(plain: bytes, kind: type[T] | Any, what: str) -> T:
    """Read an authentic plaintext.

    Raises:
        FormatError: padded otherwise, or not the one encoding of a `kind`.
    """
    size = _SIZE.unpack_from(plain)[0] if len(plain) >= _SIZE.size else len(plain)
    end = _SIZE.size + size
    # What would end behind the plaintext is padded to more than that, too.
    if len(plain) != padme(end) or plain.count(0, end) != len(plain) - end:
        raise FormatError(f"{what} is not padded as this version pads")
    value: T = decode(kind, plain[_SIZE.size : end], max_size=MAX_PLAIN, what=what)
    return value
