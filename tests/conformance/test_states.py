"""All state stores pass the suite that stands open to others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests._stores import S3, Postgres, postgres, s3

from conclave.host.states import StateStore
from conclave.host.states.blobs import BlobStates
from conclave.host.states.files import FileStates
from conclave.host.stores import open_store
from conclave.testing import StateConformance

__all__ = ["postgres", "s3"]
pytestmark = pytest.mark.slow


class OwnBlobs(BlobStates):
    """Closes the blob store that was opened for it."""

    async def close(self) -> None:
        await self._blobs.close()


def open_blobs(url: str) -> StateStore:
    return OwnBlobs(open_store(url, timeout_seconds=60))


class _Over(StateConformance):
    url = ""

    def opener(self) -> Callable[[], StateStore]:
        return partial(open_blobs, self.url)


@pytest.mark.spec("STORE-18", "STORE-19", "STORE-20", "STORE-21", "STORE-22", "STORE-26")
class TestFiles(StateConformance):
    directory = Path()

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "state"

    def opener(self) -> Callable[[], StateStore]:
        return partial(FileStates, self.directory)


@pytest.mark.spec("STORE-18", "STORE-19", "STORE-20", "STORE-21", "STORE-25")
class TestSqlite(_Over):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.url = f"sqlite:{tmp_path / 'store.db'}"


@pytest.mark.spec("STORE-18", "STORE-19", "STORE-20", "STORE-21", "STORE-25")
class TestS3(_Over):
    @pytest.fixture(autouse=True)
    def place(self, s3: S3) -> None:
        self.url = f"s3:{s3.bucket()}/below/here"


@pytest.mark.spec("STORE-18", "STORE-19", "STORE-20", "STORE-21", "STORE-25")
class TestPostgres(_Over):
    @pytest.fixture(autouse=True)
    def place(self, postgres: Postgres) -> Iterator[None]:
        self.url = postgres.database()
        yield
        postgres.drop(self.url)
