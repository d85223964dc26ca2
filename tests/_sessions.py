"""Sessions of clients with an enclave that is nothing but its key and its claims digest."""

from __future__ import annotations

from conclave._crypto import DecryptionKey, SigningKey
from conclave.mail import ClientSession

_REPLY_KEY = DecryptionKey.generate().public


def session_to(
    digest: bytes, encryption_key: bytes, identity: SigningKey | None = None, *, strand: int = 0
) -> ClientSession:
    """A session on the topic `t`; of a new client, if no identity is given."""
    return ClientSession(
        claims_digest=digest,
        encryption_key=encryption_key,
        identity=identity or SigningKey.generate(),
        reply_key=_REPLY_KEY,
        topic="t",
        strand=strand,
    )
