"""Every test runs with a recorder on each AEAD encryption."""

from __future__ import annotations

import pytest

from conclave import _crypto

_seen: set[bytes] = set()


def _record(key_id: bytes, nonce: bytes) -> None:
    use = key_id + nonce
    if use in _seen:
        raise AssertionError("a (key, nonce) pair was used twice")
    _seen.add(use)


_crypto.on_encrypt = _record


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
