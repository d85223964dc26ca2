"""A client's identity: the Ed25519 key that signs its openings.

Runs at the relying party. Whoever holds the key is that client to every enclave.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from conclave._crypto import SigningKey
from conclave.errors import FormatError, StateError

_PREFIX = "conclave-identity-1 "
_MAX_SIZE = 1024


class Identity:
    """One client identity. `public` (32 bytes) is what enclaves see as sender."""

    __slots__ = ("_key",)

    def __init__(self, key: SigningKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"<Identity {self.public.hex()[:16]}…>"

    @property
    def public(self) -> bytes:
        """The Ed25519 public key."""
        return self._key.public

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity, known to nobody yet."""
        return cls(SigningKey.generate())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Read an identity file.

        Raises:
            FormatError: the file is no identity.
            StateError: others than its owner may read or write it.
            OSError: it cannot be read.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(descriptor)
            raise FormatError(f"{os.fspath(path)}: an identity file is an ordinary file, and this is none")
        with os.fdopen(descriptor, "rb") as file:
            text = file.read(_MAX_SIZE).decode("ascii", "replace").strip()
        try:
            seed = bytes.fromhex(text.removeprefix(_PREFIX))
        except ValueError:
            seed = b""
        if not text.startswith(_PREFIX) or len(seed) != 32:
            raise FormatError(f"{os.fspath(path)}: this is not an identity file (made by Identity.save)")
        if facts.st_uid == os.getuid() and facts.st_mode & 0o077:
            # As ssh does: a key that others could read counts as known to them.
            raise StateError(
                f"{os.fspath(path)}: the identity file is open to others "
                f"(mode {stat.S_IMODE(facts.st_mode):04o}, expected 0600); "
                "if nobody else had it, `chmod 600` it, otherwise make another identity"
            )
        return cls(SigningKey(seed))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the secret key to a new file that only its owner can read.

        Raises:
            FileExistsError: there is a file; an identity is never overwritten.
            OSError: it cannot be written.
        """
        path = Path(path)
        # Written aside, so that nobody ever finds half of one.
        aside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(_PREFIX + self._key.insecure_seed().hex() + "\n")
                file.flush()
                os.fsync(descriptor)
            os.link(aside, path)
        finally:
            os.unlink(aside)

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Identity:
        """Read the file, or make it with a fresh identity if there is none. Raises as `load` and `save`."""
        try:
            return cls.load(path)
        except FileNotFoundError:
            identity = cls.generate()
            try:
                identity.save(path)
            except FileExistsError:
                # Another process was faster.
                return cls.load(path)
            return identity
