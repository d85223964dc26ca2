"""Stores that fail, or lie, when their operator says so.

For tests. They stand between a host and real stores.

Spec: spec/stores.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from conclave.errors import StoreFull, StoreUnavailable
from conclave.host.states import Item, Snapshot, StateStore, What
from conclave.host.stores import BlobStore


class Faults:
    """What is wrong with the stores of one host.

    Attributes:
        now: None, or `full`: they take nothing more; `fails`: they do not answer; `unsure`: they take what is
            written and say that they do not know; `forgets`: they say that they took what they did not.
    """

    def __init__(self) -> None:
        self.now: str | None = None

    def before_read(self) -> None:
        """Raise what a read meets."""
        if self.now == "fails":
            raise StoreUnavailable("the store does not answer, by order of the operator")

    def before_write(self) -> bool:
        """Raise what a write meets; whether it shall be done."""
        self.before_read()
        if self.now == "full":
            raise StoreFull("the store is full, by order of the operator")
        return self.now != "forgets"

    def after_write(self) -> None:
        """Raise what is said of a write that was done."""
        if self.now == "unsure":
            raise StoreUnavailable("the store says nothing of what it did, by order of the operator")


class FaultyStore:
    """A `BlobStore`."""

    def __init__(self, store: BlobStore, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """See BlobStore."""
        if not self._faults.before_write():
            return "forgotten"
        etag = await self._store.put(name, data, expected=expected)
        self._faults.after_write()
        return etag

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """See BlobStore."""
        self._faults.before_read()
        return await self._store.get(name)

    async def list(self, prefix: str) -> list[str]:
        """See BlobStore."""
        self._faults.before_read()
        return await self._store.list(prefix)

    async def delete(self, name: str) -> None:
        """See BlobStore."""
        self._faults.before_read()
        if self._faults.now != "forgets":
            await self._store.delete(name)

    async def close(self) -> None:
        """See BlobStore."""
        await self._store.close()


class FaultyStates:
    """A `StateStore`."""

    def __init__(self, states: StateStore, faults: Faults) -> None:
        self._states = states
        self._faults = faults

    async def read(self) -> AsyncGenerator[tuple[What, bytes], None]:
        """See StateStore."""
        self._faults.before_read()
        async for piece in self._states.read():
            yield piece

    async def append(self, items: Sequence[Item]) -> None:
        """See StateStore."""
        if self._faults.before_write():
            await self._states.append(items)
            self._faults.after_write()

    async def put_chunk(self, snapshot: Snapshot, index: int, chunk: bytes) -> None:
        """See StateStore."""
        if self._faults.before_write():
            await self._states.put_chunk(snapshot, index, chunk)

    async def complete(self, snapshot: Snapshot, manifest: bytes) -> None:
        """See StateStore."""
        if self._faults.before_write():
            await self._states.complete(snapshot, manifest)
            self._faults.after_write()

    async def forget(self) -> None:
        """See StateStore."""
        if self._faults.before_write():
            await self._states.forget()

    async def close(self) -> None:
        """See StateStore."""
        await self._states.close()
