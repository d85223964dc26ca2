"""Where each log stands, kept so that no answer is ever taken back.

Runs in a witness. Whoever asks is untrusted; the store keeps what it acknowledged, and
what it returns is checked against the witness's own signature.

Spec: spec/witness.md sections 4 and 6 (WIT-3 to WIT-9).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from conclave._crypto import SigningKey
from conclave.errors import FormatError, SignatureError, StateError, StoreConflict, StoreError
from conclave.host.answers import Refusal
from conclave.host.stores import BlobStore
from conclave.persistence.witness import Standing, log_id_of, make_answer
from conclave.witness import steps
from conclave.witness.rate import Bucket, Buckets

_PREFIX: Final = "log/"
# Another witness process on the same store was faster, so often in a row.
_ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class Bounds:
    """What strangers may make a witness do."""

    logs: int = 100_000
    new_per_second: float = 10.0
    new_at_once: float = 100.0
    steps_per_second: float = 100.0
    steps_at_once: float = 200.0


class _Turn:
    """Requests of one log, one after the other."""

    __slots__ = ("lock", "wanted")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0


class Ledger:
    """The logs of one witness. Several of one key, on one store, are one witness."""

    def __init__(
        self,
        store: BlobStore,
        key: SigningKey,
        *,
        bounds: Bounds | None = None,
        allowed: frozenset[bytes] = frozenset(),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read before `start`.

        Args:
            store: keeps what it acknowledged: a witness that forgets is none.
            key: the witness's own.
            bounds: for everybody together, and for each log.
            allowed: ids of the only logs that are witnessed; none: anybody's.
            now: seconds, that only grow.
        """
        self._store = store
        self._key = key
        self._bounds = bounds or Bounds()
        self._allowed = allowed
        self._now = now
        self._logs = 0
        self._steps = Buckets(self._bounds.steps_per_second, self._bounds.steps_at_once)
        self._new = Bucket(self._bounds.new_per_second, self._bounds.new_at_once, self._bounds.new_at_once, now())
        # Etags of what this process knows to be durable.
        self._durable: dict[bytes, str] = {}
        self._turns: dict[bytes, _Turn] = {}

    async def start(self) -> None:
        """Count the logs that there are. Raises StoreUnavailable."""
        self._logs = len(await self._store.list(_PREFIX))

    async def head(self, body: bytes) -> bytes:
        """Answer `POST /witness/head`. Raises Refusal."""
        with _refused():
            request = steps.read_head_request(body)
            self._check_allowed(request.log_key)
            async with self._alone(request.log_key):
                standing, _ = await self._read(request.log_key)
            return make_answer(self._key, log_key=request.log_key, nonce=request.nonce, standing=standing)

    async def advance(self, body: bytes) -> tuple[bool, bytes]:
        """Answer `POST /witness/advance`: whether the log stands where it was to go, and the answer. Raises Refusal."""
        with _refused():
            request = steps.read_advance_request(body)
            log_key = request.step.log_key
            self._check_allowed(log_key)
            async with self._alone(log_key):
                for _ in range(_ATTEMPTS):
                    standing, etag = await self._read(log_key)
                    taken = steps.take(self._key, standing, request)
                    if taken is not None and taken is not standing:
                        try:
                            await self._write(log_key, taken, etag)
                        except StoreConflict:
                            continue
                    answer = make_answer(
                        self._key, log_key=log_key, nonce=request.nonce, standing=standing if taken is None else taken
                    )
                    return taken is not None, answer
            raise Refusal(503, "busy", "the log moves too fast on this witness's store; try again")

    async def _read(self, log_key: bytes) -> tuple[Standing | None, str]:
        """Where a log stands, and its etag; it is durable."""
        for _ in range(_ATTEMPTS):
            found = await self._store.get(_name(log_key))
            if found is None:
                return None, ""
            data, etag = found
            standing = steps.unpack(data, key=self._key.public, log_key=log_key)
            if self._durable.get(log_key) != etag:
                # Written by a process that ended, or whose write failed, half way: it may be on no disk yet, and
                # to answer from it would be to take it back when the machine ends.
                try:
                    etag = await self._store.put(_name(log_key), steps.pack(standing), expected=etag)
                except StoreConflict:
                    continue
                self._durable[log_key] = etag
            return standing, etag
        raise Refusal(503, "busy", "the log moves too fast on this witness's store; try again")

    async def _write(self, log_key: bytes, standing: Standing, etag: str) -> None:
        now = self._now()
        if not etag and (self._logs >= self._bounds.logs):
            raise Refusal(
                507, "full", "this witness has as many logs as it takes; ask its operator, or another witness"
            )
        # Counted after the signature was checked: nobody else can use up a log's share.
        if not self._steps.take(log_key, now) or (not etag and not self._new.take(now)):
            raise Refusal(429, "rate", "too many steps, or new logs, at a time; try again in a second")
        self._durable[log_key] = await self._store.put(_name(log_key), steps.pack(standing), expected=etag)
        self._logs += not etag

    def _check_allowed(self, log_key: bytes) -> None:
        if self._allowed and log_id_of(log_key) not in self._allowed:
            raise Refusal(403, "log", "this witness is for other logs; its operator can allow this one (--allow)")

    @asynccontextmanager
    async def _alone(self, log_key: bytes) -> AsyncIterator[None]:
        """One request of a log at a time; those of others go on."""
        turn = self._turns.setdefault(log_key, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[log_key]


@contextmanager
def _refused() -> Iterator[None]:
    """Every error of ours as the answer that it gets."""
    try:
        yield
    except FormatError as error:
        raise Refusal(400, "format", str(error)) from None
    except SignatureError:
        raise Refusal(403, "signature", "the step is not signed by the key that the log's id names") from None
    except StateError as error:
        raise Refusal(500, "state", str(error)) from None
    except StoreError:
        raise Refusal(503, "store", "this witness's store does not take or give it now; try again") from None


def _name(log_key: bytes) -> str:
    return _PREFIX + log_id_of(log_key).hex()
