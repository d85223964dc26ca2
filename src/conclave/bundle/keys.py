"""An author's signing key: a file that holds an Ed25519 seed.

Runs on the author's machine. The file is the author: keep it off the build
machine by signing elsewhere (`signing_request`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from conclave._crypto import SigningKey
from conclave.errors import BundleError

_PREFIX: Final = "conclave-author-key-1 "


def generate_key(path: Path) -> SigningKey:
    """Make a key and write it to a new file that only its owner can read."""
    key = SigningKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(_PREFIX + key.insecure_seed().hex() + "\n")
    return key


def load_signing_key(path: Path) -> SigningKey:
    """Read a key file. Raises BundleError if it is none, OSError if unreadable."""
    text = path.read_text(errors="replace").strip()
    try:
        seed = bytes.fromhex(text.removeprefix(_PREFIX))
    except ValueError:
        seed = b""
    if not text.startswith(_PREFIX) or len(seed) != 32:
        raise BundleError(f"{path} is not an author's key file (`conclave build --sign` makes one)")
    return SigningKey(seed)
