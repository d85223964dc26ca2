"""The state in the store that a URL names, in the hands of its operator while no host has it.

Runs in the untrusted host's place.

Spec: spec/stores.md section 5 (STORE-27).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conclave.errors import StoreUnavailable
from conclave.host.states.opening import DIRECTORY, open_state
from conclave.host.states.store import StateStore
from conclave.host.stores import BlobStore, open_store
from conclave.host.stores.local import IN_USE, sync_directory

_BLOBS: Final = "state/"
_ASIDE: Final = "state-reset-"


@dataclass(frozen=True, slots=True)
class KeptState:
    """State that no host has now."""

    states: StateStore
    _blobs: BlobStore
    # None: it is in blobs.
    _directory: Path | None

    @property
    def unit(self) -> str:
        """What `occupied` counts."""
        return "blobs" if self._directory is None else "bytes"

    async def occupied(self) -> int:
        """How much lies there."""
        if self._directory is None:
            return len(await self._blobs.list(_BLOBS))
        return sum(file.stat().st_size for file in self._directory.iterdir())

    async def move_aside(self, stamp: str) -> str:
        """Put all of it where no host looks, and leave nothing; says where. Nothing is deleted before it is there.

        Args:
            stamp: sets what was moved apart: digits and hyphens.
        """
        if self._directory is not None:
            await self.states.close()
            aside = self._directory.with_name(_ASIDE + stamp)
            self._directory.rename(aside)
            sync_directory(aside.parent)
            return str(aside)
        names = await self._blobs.list(_BLOBS)
        for name in names:
            found = await self._blobs.get(name)
            if found is not None:
                await self._blobs.put(f"{_ASIDE}{stamp}/{name.removeprefix(_BLOBS)}", found[0])
        for name in names:
            await self._blobs.delete(name)
        return f"blobs under {_ASIDE}{stamp}/"


@asynccontextmanager
async def kept_state(url: str) -> AsyncIterator[KeptState]:
    """Open it; on a directory or in SQLite it is locked against hosts meanwhile.

    Raises:
        FormatError: no such kind of store.
        StoreUnavailable: there is no state, a host has it, or the store refuses.
    """
    kind, _, rest = url.partition(":")
    directory = Path(rest) / DIRECTORY if kind == "file" else None
    # Nothing is made of what was mistyped.
    if directory is not None and not directory.is_dir():
        raise StoreUnavailable(f"no state in {rest}: is it the directory that a host was given as --store?")
    if kind == "sqlite" and not Path(rest).is_file():
        raise StoreUnavailable(f"no such file: {rest}")
    try:
        blobs = open_store(url, alone=True)
    except StoreUnavailable as error:
        raise StoreUnavailable("a host uses this store: stop it first") if str(error) == IN_USE else error from None
    states = open_state(url, blobs, alone=True)
    try:
        if directory is None and not await blobs.list(_BLOBS):
            raise StoreUnavailable("no state in this store: is it the one that a host was given as --store?")
        yield KeptState(states, blobs, directory)
    finally:
        await states.close()
        await blobs.close()
