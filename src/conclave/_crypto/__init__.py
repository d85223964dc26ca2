"""Whole constructions over the one cryptography dependency.

Runs everywhere. Nothing home-made: HPKE with X-Wing (RFC 9180), HKDF-SHA-256
(RFC 5869), AES-256-GCM, Ed25519 (RFC 8032). Secrets are objects whose contents
only this package reads. Labels: spec/claims.md section 5, spec/mail.md section 4.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from conclave.errors import DecryptionError, FormatError, SignatureError

SUITE_ID: Final = bytes.fromhex("647a00010002")
ENCRYPTION_KEY_SIZE: Final = 1216
SIGNING_KEY_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64
SEALED_SECRET_SIZE: Final = 1120 + 32 + 16
TAG_SIZE: Final = 16
WRAPPED_KEY_SIZE: Final = 32 + 32 + TAG_SIZE
ZERO_DIGEST: Final = bytes(64)

PURPOSES: Final = frozenset(
    {
        "challenge",
        "opening",
        "mail",
        "kds-statement",
        "kds-request",
        "receipt",
        "checkpoint",
        "state",
        "app",
        "bundle",
        "reference-values",
        "gpu",
        "anchor",
        "countersign",
        "head",
    }
)

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)

# Called with (SHA-256 of the key, nonce) before every AEAD encryption. The test
# suite installs a recorder that fails on a repeat; nothing else may set it.
on_encrypt: Callable[[bytes, bytes], None] | None = None


def random_bytes(size: int) -> bytes:
    """`size` bytes from the operating system's generator."""
    return os.urandom(size)


def sha256(*parts: bytes | memoryview) -> bytes:
    """SHA-256 of the parts joined."""
    if len(parts) == 1:
        return hashlib.sha256(parts[0]).digest()
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def sha384(*parts: bytes) -> bytes:
    """SHA-384 of the parts joined."""
    digest = hashlib.sha384()
    for part in parts:
        digest.update(part)
    return digest.digest()


def sha512(*parts: bytes) -> bytes:
    """SHA-512 of the parts joined."""
    digest = hashlib.sha512()
    for part in parts:
        digest.update(part)
    return digest.digest()


def same(a: bytes, b: bytes) -> bool:
    """Constant-time comparison."""
    return hmac.compare_digest(a, b)


class _Hidden:
    """A secret: no contents in `repr`, no comparison by content, no pickling."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> str:
        raise TypeError(f"{type(self).__name__} cannot be pickled")


class Secret(_Hidden):
    """Key material to derive from. Only this package reads it."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    @classmethod
    def random(cls, size: int = 32) -> Secret:
        """A fresh secret."""
        return cls(os.urandom(size))

    def extract(self, salt: bytes) -> Secret:
        """HKDF-Extract with this secret as input key material."""
        return Secret(hmac.digest(salt, self._value, "sha256"))

    def expand(self, info: bytes, size: int = 32) -> Secret:
        """HKDF-Expand with this secret as pseudo-random key."""
        return Secret(HKDFExpand(hashes.SHA256(), size, info).derive(self._value))

    def insecure_reveal(self) -> bytes:
        """The bytes, for a platform that hands out sealing keys and for vectors."""
        return self._value


class AeadKey(_Hidden):
    """One AES-256-GCM key. The caller owns nonce uniqueness by counting."""

    __slots__ = ("_aead", "_value")

    def __init__(self, secret: Secret) -> None:
        self._value = secret._value
        self._aead: AESGCM | None = None

    def rest(self) -> None:
        """Give up the expanded key, 2.6 KiB, until the next use: that costs a microsecond."""
        self._aead = None

    def _expand(self) -> AESGCM:
        self._aead = AESGCM(self._value)
        return self._aead

    def _note(self, recorder: Callable[[bytes, bytes], None], nonce: bytes) -> None:
        recorder(hashlib.sha256(b"key id" + self._value).digest(), nonce)

    def encrypt(self, nonce: bytes, plaintext: bytes | bytearray | memoryview, associated: bytes) -> bytes:
        """Ciphertext with its 16-byte tag."""
        if on_encrypt is not None:
            self._note(on_encrypt, nonce)
        return (self._aead or self._expand()).encrypt(nonce, plaintext, associated)

    def decrypt(self, nonce: bytes, ciphertext: bytes | memoryview, associated: bytes) -> bytes:
        """Plaintext, or `DecryptionError` which says nothing more."""
        try:
            return (self._aead or self._expand()).decrypt(nonce, ciphertext, associated)
        except InvalidTag:
            raise DecryptionError from None

    def decrypt_into(self, nonce: bytes, ciphertext: memoryview, associated: bytes, into: memoryview) -> None:
        """The same, written to `into`, which has exactly the room for it."""
        try:
            (self._aead or self._expand()).decrypt_into(nonce, ciphertext, associated, into)
        except InvalidTag:
            raise DecryptionError from None


# As large as most requests.
SMALL_MARK: Final = 2048


class Marker(_Hidden):
    """Recognises a value that was marked before, in this process, without keeping it if it is large.

    A small value is its own mark: to keep it costs a tenth of what it costs to encrypt it. Of a
    large one, a mark is a nonce used once and an AES-256-GCM ciphertext under a key that nothing
    else uses and nobody else knows: to make another value that fits it is to forge a tag. Five to
    twenty times faster than SHA-256 where the processor has no instructions for that.
    """

    __slots__ = ("_count", "_key")

    def __init__(self) -> None:
        self._key = AeadKey(Secret.random())
        self._count = 0

    def mark(self, head: bytes, body: bytes) -> bytes:
        """A mark of a head of 1 to 255 bytes and a body: 1 byte more than both, or 28 more than the head alone."""
        if len(body) <= SMALL_MARK:
            # No nonce begins with another byte than zero.
            return bytes((len(head),)) + head + body
        nonce = self._count.to_bytes(12, "big")
        self._count += 1
        return nonce + self._key.encrypt(nonce, head, body)

    def fits(self, mark: bytes, head: bytes, body: bytes) -> bool:
        """Whether that mark was made of these two."""
        if len(body) <= SMALL_MARK:
            return same(mark, self.mark(head, body))
        if mark[0]:
            # Of a small one: what stands there is no nonce.
            return False
        try:
            return same(self._key.decrypt(mark[:12], mark[12:], body), head)
        except DecryptionError:
            return False


class MacKey(_Hidden):
    """Recognises what was tagged under the same key before, in whatever process: keyed BLAKE2b (RFC 7693), 16 bytes.

    Parts are not separated from one another: all but one must have a fixed size.
    """

    __slots__ = ("_begun",)

    def __init__(self, secret: Secret) -> None:
        self._begun = hashlib.blake2b(key=secret._value, digest_size=TAG_SIZE)

    def tag(self, label: bytes, *parts: bytes | memoryview) -> bytes:
        """The tag of these parts for the use that the label names."""
        mac = self._begun.copy()
        mac.update(b"".join((label, *parts)))
        return mac.digest()

    def fits(self, tag: bytes, label: bytes, *parts: bytes | memoryview) -> bool:
        """Whether `tag` is the tag of these parts, in constant time."""
        return same(self.tag(label, *parts), tag)


def wrap_key(under: Secret, label: bytes, key: Secret, associated: bytes) -> bytes:
    """A 32-byte secret for whoever has `under`: salt (32), ciphertext with its tag (48).

    The nonce is zero: the salt gives each wrapping a key of its own.
    """
    return _wrap_from_parts(under, label, key, associated, salt=os.urandom(32))


def _wrap_from_parts(under: Secret, label: bytes, key: Secret, associated: bytes, *, salt: bytes) -> bytes:
    return salt + AeadKey(under.extract(salt).expand(label)).encrypt(bytes(12), key._value, associated)


def unwrap_key(under: Secret, label: bytes, wrapped: bytes, associated: bytes) -> Secret:
    """What `wrap_key` wrapped, 80 bytes. Raises DecryptionError."""
    if len(wrapped) != WRAPPED_KEY_SIZE:
        raise DecryptionError
    return Secret(AeadKey(under.extract(wrapped[:32]).expand(label)).decrypt(bytes(12), wrapped[32:], associated))


def seal_record(secret: Secret, label: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """A record for a file: salt (32), nonce (12), ciphertext with its tag.

    Each has a key of its own. Counters would repeat where a file was copied or an older one restored.
    """
    salt, nonce = os.urandom(32), os.urandom(12)
    return salt + nonce + AeadKey(secret.extract(salt).expand(label)).encrypt(nonce, plaintext, associated)


def open_record(secret: Secret, label: bytes, record: bytes | memoryview, associated: bytes) -> bytes:
    """What `seal_record` sealed. Raises DecryptionError."""
    salt, nonce, ciphertext = bytes(record[:32]), bytes(record[32:44]), bytes(record[44:])
    if len(ciphertext) < TAG_SIZE:
        raise DecryptionError
    return AeadKey(secret.extract(salt).expand(label)).decrypt(nonce, ciphertext, associated)


class DecryptionKey(_Hidden):
    """An X-Wing private key that opens secrets sealed to its public half."""

    __slots__ = ("_key", "_seed", "public")

    def __init__(self, mlkem_seed: bytes, x25519_private: bytes) -> None:
        kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(mlkem_seed)
        dh = x25519.X25519PrivateKey.from_private_bytes(x25519_private)
        self._key = hpke.MLKEM768X25519PrivateKey(kem, dh)
        self._seed = mlkem_seed + x25519_private
        self.public = kem.public_key().public_bytes_raw() + dh.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> DecryptionKey:
        """A fresh key pair."""
        return cls(os.urandom(64), os.urandom(32))

    def insecure_seed(self) -> bytes:
        """Both private parts, 64 and 32 bytes, for a client that saves its reply key."""
        return self._seed

    def open_secret(self, sealed: bytes, info: bytes) -> Secret:
        """Open a sealed 32-byte secret. Raises DecryptionError."""
        try:
            value = _SUITE.decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError):
            raise DecryptionError from None
        if len(value) != 32:
            raise DecryptionError
        return Secret(value)


def seal_secret(public: bytes, info: bytes, secret: Secret) -> bytes:
    """HPKE-seal a 32-byte secret to an X-Wing public key: 1168 bytes.

    Raises:
        FormatError: `public` is not an X-Wing public key.
    """
    if len(public) != ENCRYPTION_KEY_SIZE:
        raise FormatError(f"an X-Wing public key has {ENCRYPTION_KEY_SIZE} bytes, not {len(public)}")
    try:
        key = hpke.MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(public[:1184]),
            x25519.X25519PublicKey.from_public_bytes(public[1184:]),
        )
        return _SUITE.encrypt(secret._value, key, info)
    except ValueError:
        raise FormatError("not an X-Wing public key") from None


def signed_message(purpose: str, claims_digest: bytes, body: bytes) -> bytes:
    """What a signature is over, for keys that are kept elsewhere."""
    if purpose not in PURPOSES:
        raise ValueError(f"unknown signature purpose {purpose!r}")
    if len(claims_digest) != 64:
        raise ValueError("a claims digest has 64 bytes")
    return b"conclave/1 " + purpose.encode() + b"\0" + claims_digest + body


class SigningKey(_Hidden):
    """An Ed25519 private key that signs only under a named purpose."""

    __slots__ = ("_key", "_seed", "public")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key pair."""
        return cls(os.urandom(32))

    def sign(self, purpose: str, claims_digest: bytes, body: bytes) -> bytes:
        """Sign under a purpose. `claims_digest` is 64 bytes, zeros if none."""
        return self._key.sign(signed_message(purpose, claims_digest, body))

    def derive(self, label: bytes) -> Secret:
        """A secret of the key's owner, for a use that the label names."""
        return Secret(self._seed).extract(b"conclave/1 derive").expand(label)

    def insecure_seed(self) -> bytes:
        """The 32-byte seed, for saving a key to a file its owner chose."""
        return self._seed


def verify_signature(public: bytes, purpose: str, claims_digest: bytes, body: bytes, signature: bytes) -> None:
    """Check a signature under its purpose.

    Raises:
        SignatureError: it does not verify, or key or signature have a wrong form.
    """
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public)
        key.verify(signature, signed_message(purpose, claims_digest, body))
    except (InvalidSignature, ValueError):
        raise SignatureError(f"the {purpose} signature does not verify") from None
