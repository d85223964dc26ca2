"""A witness's key: a file that holds an Ed25519 seed.

Runs on the witness's machine. The file is the witness: whoever has it can countersign
anything in its name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from conclave._crypto import SigningKey
from conclave.errors import FormatError

_PREFIX: Final = "conclave-witness-key-1 "


def make_key(path: Path) -> SigningKey:
    """Make a key and write it to a new file that only its owner can read. Raises OSError."""
    key = SigningKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(_PREFIX + key.insecure_seed().hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def load_key(path: Path) -> SigningKey:
    """Read a key file. Raises FormatError if it is none, OSError if it cannot be read."""
    text = path.read_text(errors="replace").strip()
    try:
        seed = bytes.fromhex(text.removeprefix(_PREFIX))
    except ValueError:
        seed = b""
    if not text.startswith(_PREFIX) or len(seed) != 32:
        raise FormatError(f"{path} is not a witness's key file (`conclave witness key {path.name}` makes one)")
    return SigningKey(seed)
