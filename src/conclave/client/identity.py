"""A client's identity: the Ed25519 key that signs its openings.

Runs at the relying party. Whoever holds the key is that client to every enclave.
"""

from __future__ import annotations

import os
from pathlib import Path

from conclave._crypto import SigningKey
from conclave.errors import FormatError

_PREFIX = "conclave-identity-1 "


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
            OSError: it cannot be read.
        """
        text = Path(path).read_text(errors="replace").strip()
        try:
            seed = bytes.fromhex(text.removeprefix(_PREFIX))
        except ValueError:
            seed = b""
        if not text.startswith(_PREFIX) or len(seed) != 32:
            raise FormatError(f"{path} is not an identity file (made by Identity.save)")
        return cls(SigningKey(seed))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the secret key to a new file that only its owner can read."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(_PREFIX + self._key.insecure_seed().hex() + "\n")

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Identity:
        """Read the file, or make it with a fresh identity if there is none."""
        try:
            return cls.load(path)
        except FileNotFoundError:
            identity = cls.generate()
            try:
                identity.save(path)
            except FileExistsError:
                return cls.load(path)
            return identity
