"""A blob store that fails, or lies, when its operator says so.

For tests. It stands between a host and a real store.

Spec: spec/stores.md.
"""

from __future__ import annotations

from typing import Final

from conclave.errors import StoreFull, StoreUnavailable
from conclave.host.stores import BlobStore

FAULTS: Final = ("full", "fails", "unsure", "forgets")


class FaultyStore:
    """A `BlobStore`.

    Attributes:
        fault: None, or one of `FAULTS`: it takes nothing more; it does not answer; it takes what is
            written and says that it does not know; it says that it took what it did not.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self.fault: str | None = None

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """See BlobStore."""
        if self.fault == "full":
            raise StoreFull("the store is full, by order of the operator")
        if self.fault == "fails":
            raise StoreUnavailable("the store does not answer, by order of the operator")
        if self.fault == "forgets":
            return "forgotten"
        etag = await self._store.put(name, data, expected=expected)
        if self.fault == "unsure":
            raise StoreUnavailable("the store says nothing of what it did, by order of the operator")
        return etag

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """See BlobStore."""
        self._check()
        return await self._store.get(name)

    async def list(self, prefix: str) -> list[str]:
        """See BlobStore."""
        self._check()
        return await self._store.list(prefix)

    async def delete(self, name: str) -> None:
        """See BlobStore."""
        self._check()
        if self.fault != "forgets":
            await self._store.delete(name)

    async def close(self) -> None:
        """See BlobStore."""
        await self._store.close()

    def _check(self) -> None:
        if self.fault == "fails":
            raise StoreUnavailable("the store does not answer, by order of the operator")
