"""Chunks of a stream as they travel."""

from __future__ import annotations

from typing import Any

from conclave.mail.stream import ChunkSealer


def seal(sealer: ChunkSealer, content: bytes, **marks: Any) -> bytes:
    """The next chunk, whole."""
    return b"".join(sealer.seal(content, **marks))
