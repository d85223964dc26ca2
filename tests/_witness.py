"""Witnesses and logs for tests: the witness's own judgement, with nothing between it and who asks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Generator
from dataclasses import dataclass, field

from conclave._crypto import SigningKey
from conclave.persistence.context import History
from conclave.persistence.witness import (
    ADVANCE_PATH,
    HEAD_PATH,
    Ask,
    Head,
    Standing,
    WitnessClient,
    make_answer,
)
from conclave.witness.steps import read_advance_request, read_head_request, take


@dataclass
class Desk:
    """One honest witness, whose memory is durable. `countersigned`: all that it ever signed, in order."""

    name: str = "w"
    key: SigningKey = field(default_factory=SigningKey.generate)
    logs: dict[bytes, Standing] = field(default_factory=dict)
    countersigned: list[Head] = field(default_factory=list)

    def handle(self, path: str, body: bytes) -> bytes:
        if path == HEAD_PATH:
            asked = read_head_request(body)
            return make_answer(
                self.key, log_key=asked.log_key, nonce=asked.nonce, standing=self.logs.get(asked.log_key)
            )
        assert path == ADVANCE_PATH
        request = read_advance_request(body)
        before = self.logs.get(request.step.log_key)
        taken = take(self.key, before, request)
        if taken is not None and taken is not before:
            self.logs[request.step.log_key] = taken
            self.countersigned.append(taken.step.new)
        standing = before if taken is None else taken
        return make_answer(self.key, log_key=request.step.log_key, nonce=request.nonce, standing=standing)


class Branch:
    """One enclave's history of one log: what it restored, and what its boot added."""

    def __init__(self, anchor: SigningKey, before: Branch | None = None, *, upto: int | None = None) -> None:
        self.anchor = anchor
        self.heads = [] if before is None else list(before.heads[: None if upto is None else upto + 1])
        self.boot = secrets.token_bytes(16)
        self.commit()

    def commit(self) -> Head:
        self.heads.append(Head(version=len(self.heads), boot=self.boot, digest=secrets.token_bytes(32)))
        return self.heads[-1]

    @property
    def newest(self) -> Head:
        return self.heads[-1]

    def contains(self, head: Head) -> bool:
        """By the table of boots, as an enclave does it."""
        history = History()
        for version, known in enumerate(self.heads):
            if not version or self.heads[version - 1].boot != known.boot:
                history.begin(known.boot, version)
        return head.version <= self.newest.version and history.boot_of(head.version) == head.boot

    def client(self, desk: Desk) -> WitnessClient:
        return WitnessClient(desk.name, desk.key.public, anchor_key=self.anchor, contains=self.contains)


def run(steps: Generator[Ask, bytes, bytes], desk: Desk) -> bytes:
    """Take a client's steps with that witness."""
    try:
        ask = next(steps)
        while True:
            ask = steps.send(desk.handle(ask.path, ask.body))
    except StopIteration as end:
        signature: bytes = end.value
        return signature


async def turns(count: int = 50) -> None:
    """Let everything go on that can."""
    for _ in range(count):
        await asyncio.sleep(0)
