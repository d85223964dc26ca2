"""Posted mail, and a blob store that fails, for tests of the host."""

from __future__ import annotations

import asyncio

from conclave._crypto import DecryptionKey, SigningKey
from conclave.host.outbox import InMemory
from conclave.mail.post import Address, box_id, make_post

SIGNER, DIGEST = SigningKey.generate(), bytes(64)
KEYS = [DecryptionKey.generate().public for _ in range(3)]
BOXES = [box_id(key) for key in KEYS]


def mail(to: int, body: bytes = b"", *, digest: bytes = DIGEST) -> bytes:
    address = Address(bytes(32), KEYS[to], "t")
    return make_post(address, body, number=0, acknowledged=0, signer=SIGNER, claims_digest=digest, size=512 + len(body))


def frame(*mails: bytes) -> bytes:
    return b"".join(len(m).to_bytes(4, "big") + m for m in mails)


class Failing(InMemory):
    """A store that fails while told to, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.after_all = False
        self.puts = 0
        self.held: asyncio.Event | None = None

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        self.puts += 1
        if self.held is not None:
            await self.held.wait()
        if self.error is not None:
            if self.after_all:
                await super().put(name, data, expected=expected)
            raise self.error
        return await super().put(name, data, expected=expected)

    async def get(self, name: str) -> tuple[bytes, str] | None:
        if self.error is not None:
            raise self.error
        return await super().get(name)

    async def delete(self, name: str) -> None:
        if self.error is not None:
            raise self.error
        await super().delete(name)
